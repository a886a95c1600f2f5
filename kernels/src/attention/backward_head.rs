//! The gradients of one head: a block of keys stays while all queries that see it pass by.
//!
//! ```text
//! p    = exp(scale * (q k^T + r) - lse)          made again
//! d_v += p^T d_o
//! d_s  = scale * p * (d_o v^T - delta)           delta = sum of d_o * o of each row
//! d_k += d_s^T q        d_q += d_s k
//! d_e += (d_s, skewed back)^T q                  d_q += (d_s, skewed back) e
//! ```

use super::drop::Weights;
use super::forward::{Board, Ranges, ScoreBlock, Vectors, block_of_rows, padded};
use super::mask::Run;
use super::relative::{Place, Span};
use super::rows::{Delta, ScoreGradient, Scores, exponents};
use super::tile::{Group, Product, height};
use super::{KEYS, QUERIES, Relative, Room, Rows, Rule, Sizes, pack};
use crate::cpu::lanes::{LANES, dispatch};
use crate::cpu::shared::with_scratch;

/// A multiple of all tiles' heights that divides [`KEYS`].
const TALL: usize = 24;
/// Rows of zeros around the gradients of the embeddings, for the corners of blocks.
const MARGIN: usize = QUERIES + KEYS;
/// Most groups of one product: those of the band of embeddings.
const GROUPS: usize = (QUERIES + KEYS) / 2;

/// What the backward reads.
pub(super) struct Operands<'a> {
    pub q: Rows<'a>,
    pub k: Rows<'a>,
    pub v: Rows<'a>,
    pub relative: Option<Relative<'a>>,
    pub o: Rows<'a>,
    pub lse: &'a [f32],
    pub d_o: Rows<'a>,
    pub s: Sizes,
    pub rule: &'a Rule,
}

/// Rows whose columns are whole vectors, and the distance between them.
type Wide<'a> = (&'a [f32], usize);

/// One head's operands in the forms in which the products read them, and its sums.
struct HeadRoom<'a> {
    at: (usize, usize),
    d: usize,
    width: usize,
    board: Board,
    /// Position of the first query.
    shift: usize,
    q: Wide<'a>,
    d_o: Wide<'a>,
    /// `lse * log2 e` and `delta` of each query.
    lse: &'a [f32],
    delta: &'a [f32],
    d_q: &'a mut [f32],
    scores: &'a mut [f32],
    d_scores: &'a mut [f32],
    few: [&'a mut [f32]; 2],
    embeddings: Option<Embeddings<'a>>,
}

/// The embeddings of a head, as columns and as rows, and their gradients.
struct Embeddings<'a> {
    span: Span,
    columns: &'a [f32],
    rows: Wide<'a>,
    d_rows: &'a mut [f32],
}

/// A block of keys in all its forms, and its gradients `[KEYS, width]`.
struct Keys<'a> {
    run: Run,
    /// The first key of the block, and how many there are.
    first: usize,
    count: usize,
    k_t: &'a [f32],
    v_t: &'a [f32],
    k: Wide<'a>,
    d_k: &'a mut [f32],
    d_v: &'a mut [f32],
}

impl Operands<'_> {
    /// Runs keys `from..to` of a head. `key_rows` gives the rows of `d_k` and `d_v` of a key,
    /// `query_row` the row of `d_q`; `d_e` `[reach, head_dim]` is overwritten.
    pub(super) fn backward<'o>(
        &self,
        at: (usize, usize),
        (from, to): (usize, usize),
        key_rows: impl Fn(usize) -> (&'o mut [f32], &'o mut [f32]),
        query_row: impl Fn(usize) -> &'o mut [f32],
        d_e: &mut [f32],
    ) {
        let (s, d, width) = (self.s, self.s.head_dim, padded(self.s.head_dim));
        let board = Board::new(self.relative.is_some());
        let shift = s.keys - s.queries.min(s.keys);
        let reach = self.rule.mask.reach(s.keys);
        let span = self.relative.map(|r| Span::new(r.max_len, reach, shift));
        let copied = if d == width { 0 } else { width };
        let queries = s.queries.next_multiple_of(QUERIES);
        let used = if span.is_some() { reach } else { 0 };
        let bordered = if span.is_some() { (reach + 2 * MARGIN) * width } else { 0 };
        let len = Room::size(queries * width)
            + 2 * Room::size(s.queries)
            + 2 * Room::size(s.queries * copied)
            + 2 * Room::size(QUERIES * d)
            + 2 * Room::size(board.len)
            + Room::size(span.map_or(0, |span| span.count() * d))
            + Room::size(used * copied)
            + Room::size(bordered)
            + 2 * Room::size(KEYS * d)
            + Room::size(KEYS * copied)
            + 2 * Room::size(KEYS * width);
        with_scratch(len, |room| {
            let mut room = Room(room);
            let (lse, delta) = self.statistics(at, &mut room);
            let embeddings = self.relative.zip(span).map(|(relative, span)| {
                let er = relative.head(at.1, d);
                let (columns, d_rows) = (room.take(span.count() * d), room.take(bordered));
                span.pack(er, d, columns);
                d_rows.fill(0.0);
                let rows = wide(&er[(relative.max_len - reach) * d..], d, reach, d, &mut room);
                Embeddings { span, columns, rows, d_rows }
            });
            let mut head = HeadRoom {
                at,
                d,
                width,
                board,
                shift,
                q: wide(self.q.from(at, 0), self.q.strides.row, s.queries, d, &mut room),
                d_o: wide(self.d_o.from(at, 0), self.d_o.strides.row, s.queries, d, &mut room),
                lse,
                delta,
                d_q: room.take(queries * width),
                scores: room.take(board.len),
                d_scores: room.take(board.len),
                few: [room.take(QUERIES * d), room.take(QUERIES * d)],
                embeddings,
            };
            head.d_q.fill(0.0);
            // Beside the scores of a row lie others of the band: they stay 0.
            head.d_scores.fill(0.0);
            let (k_t, v_t, d_k, d_v, k_copy) = (
                room.take(KEYS * d),
                room.take(KEYS * d),
                room.take(KEYS * width),
                room.take(KEYS * width),
                room.take(KEYS * copied),
            );
            for (nth, run) in self.rule.mask.runs(s.keys).iter().enumerate() {
                // The keys of the run among `from..to`.
                let number =
                    |j: usize| j.saturating_sub(run.first).div_ceil(run.step).min(run.count);
                for first in (number(from)..number(to)).step_by(KEYS) {
                    let count = (number(to) - first).min(KEYS);
                    let key = |n: usize| run.first + run.step * (first + n);
                    let (k, v) = (self.k.from(at, key(0)), self.v.from(at, key(0)));
                    let (k_row, v_row) =
                        (run.step * self.k.strides.row, run.step * self.v.strides.row);
                    pack::slivers(k, k_row, count, d, k_t);
                    pack::slivers(v, v_row, count, d, v_t);
                    d_k.fill(0.0);
                    d_v.fill(0.0);
                    let k = if copied > 0 {
                        pack::widen(k, k_row, count, d, k_copy, width);
                        (&*k_copy, width)
                    } else {
                        (k, k_row)
                    };
                    let mut keys = Keys { run: *run, first, count, k_t, v_t, k, d_k, d_v };
                    for first in (0..s.queries).step_by(QUERIES) {
                        self.block(&mut head, &mut keys, first);
                    }
                    for n in 0..count {
                        let (into_k, into_v) = key_rows(key(n));
                        let row = n * width..n * width + d;
                        // A key of a second run was written with the first one.
                        if nth == 0 {
                            into_k.copy_from_slice(&d_k[row.clone()]);
                            into_v.copy_from_slice(&d_v[row]);
                        } else {
                            into_k.iter_mut().zip(&d_k[row.clone()]).for_each(|(y, x)| *y += x);
                            into_v.iter_mut().zip(&d_v[row]).for_each(|(y, x)| *y += x);
                        }
                    }
                }
            }
            for (i, row) in head.d_q.chunks_exact(width).take(s.queries).enumerate() {
                query_row(i).copy_from_slice(&row[..d]);
            }
            if let Some(embeddings) = &head.embeddings {
                let rows = embeddings.d_rows.chunks_exact(width).skip(MARGIN);
                d_e.chunks_exact_mut(d).zip(rows).for_each(|(y, x)| y.copy_from_slice(&x[..d]));
            }
        });
    }

    /// `lse * log2 e` and `delta` of each query of a head.
    fn statistics<'r>(&self, at: (usize, usize), room: &mut Room<'r>) -> (&'r [f32], &'r [f32]) {
        let (lse, delta) = (room.take(self.s.queries), room.take(self.s.queries));
        let first = (at.0 * self.s.heads + at.1) * self.s.queries;
        for (i, (lse, delta)) in lse.iter_mut().zip(&mut *delta).enumerate() {
            *lse = exponents(self.lse[first + i]);
            let d = self.s.head_dim;
            let (a, b) = (&self.d_o.from(at, i)[..d], &self.o.from(at, i)[..d]);
            *delta = dispatch(Delta { a, b });
        }
        (lse, delta)
    }

    /// Adds what a block of queries and a block of keys give each other.
    fn block(&self, head: &mut HeadRoom, keys: &mut Keys, first: usize) {
        let rows = (self.s.queries - first).min(QUERIES);
        let p = head.shift + first;
        let (begin, end) = (keys.run.range(p).0, keys.run.range(p + rows - 1).1);
        if begin >= keys.first + keys.count || end <= keys.first {
            return;
        }
        let ranges = Ranges::new(&keys.run, p, rows, keys.first, keys.count);
        let (a, b) = ranges.columns();
        if a >= b {
            return;
        }
        let [few_q, few_o] = &mut head.few;
        let q = block_of_rows(&self.q, head.at, first, rows, head.d, few_q);
        let d_o = block_of_rows(&self.d_o, head.at, first, rows, head.d, few_o);
        let (board, d) = (head.board, head.d);
        let score = ScoreBlock { d, board, ranges: &ranges };
        let place = head.embeddings.as_ref().map(|e| (e.span.place(keys.first, p), e.columns));
        if let Some((place, columns)) = place {
            score.relative(q, place, columns, head.scores);
        }
        let b = |data| Vectors { data, from: keys.first, first: keys.first };
        score.product(q, b(keys.k_t), head.scores, place.is_some());
        score.product(d_o, b(keys.v_t), head.d_scores, false);
        let weights = Weights {
            s: self.s,
            at: head.at,
            query: first,
            run: &keys.run,
            key: keys.first,
            ranges: &ranges,
            stride: board.stride,
        };
        if let Some(dropout) = self.rule.dropout {
            dropout.apply(&weights, &mut head.d_scores[board.origin..]);
        }
        let (a, b) = ranges.columns();
        let columns = match place {
            None => (a / TALL * TALL, b.next_multiple_of(TALL)),
            Some(_) => (0, KEYS),
        };
        dispatch(ScoreGradient {
            scores: Scores {
                ranges: ranges.each(),
                columns,
                stride: board.stride,
                scale: exponents(self.rule.scale),
            },
            p: &mut head.scores[board.origin..],
            d_s: &mut head.d_scores[board.origin..],
            lse: &head.lse[first..first + rows],
            delta: &head.delta[first..first + rows],
            factor: self.rule.scale,
        });
        if let Some(dropout) = self.rule.dropout {
            dropout.apply(&weights, &mut head.scores[board.origin..]);
        }
        head.keys(keys, &ranges, first);
        head.queries(keys, &ranges, first);
        if let Some((place, _)) = place {
            head.skewed(place, &ranges, first);
        }
    }
}

/// Rows of `d` numbers as whole vectors: themselves, or a copy.
fn wide<'a>(x: &'a [f32], row: usize, count: usize, d: usize, room: &mut Room<'a>) -> Wide<'a> {
    let width = padded(d);
    if d == width {
        return (x, row);
    }
    let copy = room.take(count * width);
    pack::widen(x, row, count, d, copy, width);
    (copy, width)
}

impl HeadRoom<'_> {
    /// Adds `p^T d_o` to `d_v` and `d_s^T q` to `d_k`.
    fn keys(&self, keys: &mut Keys, ranges: &Ranges, first: usize) {
        let slivers = self.width / LANES;
        let tall = height(slivers);
        let (a, b) = ranges.columns();
        let mut groups = [Group { row: 0, sum: (0, 0), slivers: (0, slivers) }; GROUPS];
        let mut count = 0;
        for row in (a / tall * tall..b).step_by(tall) {
            // Both ends of what a query sees move forward only.
            let each = ranges.each();
            let from = each.partition_point(|(_, to)| *to <= row);
            let to = each.partition_point(|(from, _)| *from < row + tall);
            groups[count] = Group { row, sum: (from, to), ..groups[count] };
            count += 1;
        }
        let factors = [(&*self.scores, self.d_o), (&*self.d_scores, self.q)];
        for ((a, (b, b_row)), c) in factors.into_iter().zip([&mut *keys.d_v, &mut *keys.d_k]) {
            let product = Product {
                a: &a[self.board.origin..],
                a_row: 1,
                a_col: self.board.stride,
                b: &b[first * b_row..],
                b_row,
                b_sliver: LANES,
                c,
                c_row: self.width,
                accumulate: true,
            };
            product.run(&groups[..count], slivers);
        }
    }

    /// Adds `d_s k` to `d_q`.
    fn queries(&mut self, keys: &Keys, ranges: &Ranges, first: usize) {
        let slivers = self.width / LANES;
        let tall = height(slivers);
        let mut groups = [Group { row: 0, sum: (0, 0), slivers: (0, slivers) }; GROUPS];
        let count = ranges.rows.div_ceil(tall);
        for (g, group) in groups[..count].iter_mut().enumerate() {
            group.row = g * tall;
            group.sum = ranges.of(group.row, group.row + tall);
        }
        let product = Product {
            a: &self.d_scores[self.board.origin..],
            a_row: self.board.stride,
            a_col: 1,
            b: keys.k.0,
            b_row: keys.k.1,
            b_sliver: LANES,
            c: &mut self.d_q[first * self.width..],
            c_row: self.width,
            accumulate: true,
        };
        product.run(&groups[..count], slivers);
    }

    /// Adds what the embeddings give to `d_q` and get themselves.
    fn skewed(&mut self, place: Place, ranges: &Ranges, first: usize) {
        let Some(embeddings) = &mut self.embeddings else { return };
        let slivers = self.width / LANES;
        let tall = height(slivers);
        // Column `t` of the band is `u = key - query = t - (QUERIES - 1)`; row `i` of it begins one
        // number later than row `i` of the scores.
        let (back, stride) = (QUERIES - 1, self.board.stride + 1);
        let band = &self.d_scores[self.board.origin - back..];
        let low = place.embedding(-(back as isize));
        let mut groups = [Group { row: 0, sum: (0, 0), slivers: (0, slivers) }; GROUPS];

        // Only embeddings that exist take part; the others would be multiplied by 0.
        let skip = low.min(0).unsigned_abs();
        let most = (embeddings.rows.0.len() / embeddings.rows.1) as isize;
        let count = ranges.rows.div_ceil(tall);
        for (g, group) in groups[..count].iter_mut().enumerate() {
            group.row = g * tall;
            let (a, b) = ranges.of(group.row, group.row + tall);
            let from = (a + back).saturating_sub(group.row + tall - 1).max(skip);
            let to = (b + back - group.row).min((most - low).max(0) as usize);
            group.sum = if a < b && from < to { (from - skip, to - skip) } else { (0, 0) };
        }
        let product = Product {
            a: &band[skip..],
            a_row: stride,
            a_col: 1,
            b: &embeddings.rows.0[(low + skip as isize) as usize * embeddings.rows.1..],
            b_row: embeddings.rows.1,
            b_sliver: LANES,
            c: &mut self.d_q[first * self.width..],
            c_row: self.width,
            accumulate: true,
        };
        product.run(&groups[..count], slivers);

        let (a, b) = ranges.columns();
        let mut count = 0;
        for t in (a + back + 1 - ranges.rows..b + back).step_by(tall) {
            // Key `j` is seen by queries `i` with `t - back + i = j` for some `t` of the group.
            let from = (a + back + 1).saturating_sub(t + tall);
            let to = (b + back).saturating_sub(t).min(ranges.rows);
            let sum = if from < to { (from, to) } else { (0, 0) };
            groups[count] = Group { row: t, sum, slivers: (0, slivers) };
            count += 1;
        }
        let margin = (MARGIN as isize + low) as usize;
        let product = Product {
            a: band,
            a_row: 1,
            a_col: stride,
            b: &self.q.0[first * self.q.1..],
            b_row: self.q.1,
            b_sliver: LANES,
            c: &mut embeddings.d_rows[margin * self.width..],
            c_row: self.width,
            accumulate: true,
        };
        product.run(&groups[..count], slivers);
    }
}
