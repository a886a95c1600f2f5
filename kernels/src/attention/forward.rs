//! The forward: blocks of queries are independent of each other.

use super::drop::Weights;
use super::mask::Run;
use super::relative::{Place, Span};
use super::rows::{Finish, Online, Scores, exponents};
use super::tile::{Group, Product, height};
use super::{KEYS, QUERIES, Relative, Room, Rows, RowsMut, Rule, Sizes, check, pack};
use crate::cpu::lanes::{LANES, dispatch};
use crate::cpu::shared::{Shared, with_scratch};
use crate::threads::{parallel_for, threads};

/// Computes `o = softmax(scale * (q k^T + r)) v` and, for the backward, `lse = log sum exp` of each row.
///
/// # Shapes
/// `q`, `o` `[batch, heads, queries, head_dim]`, `k`, `v` `[batch, heads, keys, head_dim]`, each with
/// strides of its own; `lse` `[batch, heads, queries]`. With `relative`, the mask is causal or a
/// window, and reaches back fewer than `max_len` keys.
///
/// # Panics
/// If a slice is too short, rows of `o` overlap, or a causal mask has more queries than keys.
pub fn attention_forward(
    q: Rows,
    k: Rows,
    v: Rows,
    relative: Option<Relative>,
    o: RowsMut,
    lse: &mut [f32],
    s: Sizes,
    rule: &Rule,
) {
    check(s, rule, relative);
    q.check(s, s.queries);
    k.check(s, s.keys);
    v.check(s, s.keys);
    o.check(s, s.queries);
    assert_eq!(lse.len(), s.batch * s.heads * s.queries);
    if lse.is_empty() {
        return;
    }
    let head = Head { q, k, v, relative, s, rule };
    let (strides, o, lse) = (o.strides, Shared::new(o.data), Shared::new(lse));
    // A block's bits depend on nothing but the block, so the number of threads may have a say; each
    // task packs the keys that it needs, so there are few.
    let (planes, blocks) = (s.batch * s.heads, s.queries.div_ceil(QUERIES));
    let cuts =
        if threads() == 1 { 1 } else { (4 * threads()).div_ceil(planes).min(blocks.div_ceil(8)) };
    parallel_for(planes * cuts, 1, |tasks| {
        for task in tasks {
            let (plane, cut) = (task / cuts, task % cuts);
            let at = (plane / s.heads, plane % s.heads);
            let (from, to) = (blocks * cut / cuts * QUERIES, blocks * (cut + 1) / cuts * QUERIES);
            head.forward(at, (from, to.min(s.queries)), |i, row| {
                let first = strides.at(at.0, at.1, i);
                // SAFETY: rows do not overlap, as `check` asserted, and each is written by one task.
                let y = unsafe { o.slice(first..first + s.head_dim) };
                // SAFETY: as above.
                let lse = unsafe { lse.slice(plane * s.queries + i..plane * s.queries + i + 1) };
                lse[0] = dispatch(Finish { max: row.0, sum: row.1, o: row.2, y });
            });
        }
    });
}

/// The operands of all heads.
struct Head<'a> {
    q: Rows<'a>,
    k: Rows<'a>,
    v: Rows<'a>,
    relative: Option<Relative<'a>>,
    s: Sizes,
    rule: &'a Rule,
}

/// Numbers of a row rounded up to whole vectors.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// How a block of scores lies in its buffer.
#[derive(Clone, Copy)]
pub(super) struct Board {
    /// Elements from one row to the next.
    pub stride: usize,
    /// Where score `(0, 0)` is.
    pub origin: usize,
    /// Elements of the buffer.
    pub len: usize,
}

impl Board {
    /// A plain block, or one whose rows hold `q e^T` first: row `i` begins at `i * (stride + 1)` then,
    /// and score `(i, 0)` is `QUERIES - 1 - i` numbers after that.
    pub fn new(is_relative: bool) -> Board {
        if !is_relative {
            return Board { stride: KEYS, origin: 0, len: QUERIES * KEYS };
        }
        // A vector of slack on either side.
        let row = QUERIES + KEYS + 2 * LANES;
        Board { stride: row - 1, origin: LANES + QUERIES - 1, len: QUERIES * row }
    }
}

/// Which part of a block each row of it sees.
pub(super) struct Ranges {
    all: [(usize, usize); QUERIES],
    pub rows: usize,
}

impl Ranges {
    /// For `rows` queries from position `p` on and keys `from..from + most` of a run.
    pub fn new(run: &Run, p: usize, rows: usize, from: usize, most: usize) -> Ranges {
        let all = std::array::from_fn(|r| {
            if r >= rows {
                return (0, 0);
            }
            let (a, b) = run.range(p + r);
            let (a, b) = (a.saturating_sub(from).min(most), b.saturating_sub(from).min(most));
            (a, b.max(a))
        });
        Ranges { all, rows }
    }

    /// What each row sees.
    pub fn each(&self) -> &[(usize, usize)] {
        &self.all[..self.rows]
    }

    /// What rows `from..to` see together; ends grow from row to row.
    pub fn of(&self, from: usize, to: usize) -> (usize, usize) {
        match to.min(self.rows) {
            to if from < to => (self.all[from].0, self.all[to - 1].1),
            _ => (0, 0),
        }
    }

    /// What all rows see together.
    pub fn columns(&self) -> (usize, usize) {
        self.of(0, self.rows)
    }
}

/// Vectors of columns `from..to`.
pub(super) fn vectors((from, to): (usize, usize)) -> (usize, usize) {
    if from < to { (from / LANES, to.div_ceil(LANES)) } else { (0, 0) }
}

impl Head<'_> {
    /// Computes queries `from..to` of a head, whole blocks, and hands each row's maximum, sum and
    /// weighted values to `finish`.
    fn forward(
        &self,
        at: (usize, usize),
        (from, to): (usize, usize),
        mut finish: impl FnMut(usize, (f32, f32, &[f32])),
    ) {
        let (d, width) = (self.s.head_dim, padded(self.s.head_dim));
        let board = Board::new(self.relative.is_some());
        let shift = self.s.keys - self.s.queries.min(self.s.keys);
        let runs = self.rule.mask.runs(self.s.keys);
        // Keys of each run that these queries see, from a whole vector on.
        let seen = |run: &Run| {
            let (first, last) = (run.range(shift + from).0, run.range(shift + to - 1).1);
            (first / LANES * LANES, last.min(run.count))
        };
        let span =
            self.relative.map(|r| Span::new(r.max_len, self.rule.mask.reach(self.s.keys), shift));
        let copied = if d == width { 0 } else { width };
        let len: usize = runs
            .iter()
            .map(|run| {
                let (first, last) = seen(run);
                let count = last.saturating_sub(first).next_multiple_of(LANES);
                Room::size(count * d) + Room::size(count * copied)
            })
            .sum::<usize>()
            + Room::size(board.len)
            + Room::size(QUERIES * width)
            + Room::size(QUERIES * d)
            + Room::size(span.map_or(0, |span| span.count() * d));
        with_scratch(len, |room| {
            let mut room = Room(room);
            let keys: [Option<Packed>; 2] = {
                let mut each = runs.iter().map(|run| {
                    let (first, last) = seen(run);
                    let count = last.saturating_sub(first);
                    let wide = count.next_multiple_of(LANES);
                    let (k_t, copy) = (room.take(wide * d), room.take(wide * copied));
                    let (row, start) =
                        (run.step * self.k.strides.row, run.first + run.step * first);
                    if count > 0 {
                        pack::slivers(self.k.from(at, start), row, count, d, k_t);
                    }
                    let v_row = run.step * self.v.strides.row;
                    let v = self.v.from(at, start);
                    if copied > 0 && count > 0 {
                        pack::widen(v, v_row, count, d, copy, width);
                    }
                    let (v, v_row) = if copied > 0 { (&*copy, width) } else { (v, v_row) };
                    Packed { run: *run, first, k_t, v, v_row }
                });
                [each.next(), each.next()]
            };
            let e_t = self.relative.zip(span).map(|(relative, span)| {
                let e_t = room.take(span.count() * d);
                span.pack(relative.head(at.1, d), d, e_t);
                (span, &*e_t)
            });
            let (scores, o, few) =
                (room.take(board.len), room.take(QUERIES * width), room.take(QUERIES * d));
            for first in (from..to).step_by(QUERIES) {
                let rows = (to - first).min(QUERIES);
                let (mut max, mut sum) = ([f32::NEG_INFINITY; QUERIES], [0.0; QUERIES]);
                o.fill(0.0);
                let q = block_of_rows(&self.q, at, first, rows, d, few);
                for keys in keys.iter().flatten() {
                    let p = shift + first;
                    let (begin, end) = (keys.run.range(p).0, keys.run.range(p + rows - 1).1);
                    for from in (begin / KEYS * KEYS..end.min(keys.run.count)).step_by(KEYS) {
                        let ranges = Ranges::new(
                            &keys.run,
                            p,
                            rows,
                            from,
                            (keys.run.count - from).min(KEYS),
                        );
                        let block = ScoreBlock { d, board, ranges: &ranges };
                        if let Some((span, e_t)) = e_t {
                            block.relative(q, span.place(from, p), e_t, scores);
                        }
                        let b = Vectors { data: keys.k_t, from, first: keys.first };
                        block.product(q, b, scores, e_t.is_some());
                        dispatch(Online {
                            scores: Scores {
                                ranges: ranges.each(),
                                columns: ranges.columns(),
                                stride: board.stride,
                                scale: exponents(self.rule.scale),
                            },
                            s: &mut scores[board.origin..],
                            max: &mut max,
                            sum: &mut sum,
                            o,
                            width,
                        });
                        if let Some(dropout) = self.rule.dropout {
                            let weights = Weights {
                                s: self.s,
                                at,
                                query: first,
                                run: &keys.run,
                                key: from,
                                ranges: &ranges,
                                stride: board.stride,
                            };
                            dropout.apply(&weights, &mut scores[board.origin..]);
                        }
                        weigh(&scores[board.origin..], board.stride, &ranges, keys, from, o, width);
                    }
                }
                for r in 0..rows {
                    finish(first + r, (max[r], sum[r], &o[r * width..(r + 1) * width]));
                }
            }
        });
    }
}

/// A run of keys in the order in which blocks read them.
struct Packed<'a> {
    run: Run,
    /// Number of the first key that is here.
    first: usize,
    k_t: &'a [f32],
    v: &'a [f32],
    v_row: usize,
}

/// Adds the values of a block, weighted, to the rows of `o`.
fn weigh(
    p: &[f32],
    stride: usize,
    ranges: &Ranges,
    keys: &Packed,
    from: usize,
    o: &mut [f32],
    width: usize,
) {
    let slivers = width / LANES;
    let tall = height(slivers);
    // Packed keys begin at a whole vector, blocks at a whole block, of which only a part may be here.
    let skip = keys.first.saturating_sub(from);
    let mut groups = [Group { row: 0, sum: (0, 0), slivers: (0, slivers) }; QUERIES];
    let count = ranges.rows.div_ceil(tall);
    for (g, group) in groups[..count].iter_mut().enumerate() {
        group.row = g * tall;
        let (a, b) = ranges.of(group.row, group.row + tall);
        group.sum = (a.max(skip) - skip, b.max(skip) - skip);
    }
    let product = Product {
        a: &p[skip..],
        a_row: stride,
        a_col: 1,
        b: &keys.v[(from + skip - keys.first) * keys.v_row..],
        b_row: keys.v_row,
        b_sliver: LANES,
        c: o,
        c_row: width,
        accumulate: true,
    };
    product.run(&groups[..count], slivers);
}

/// The rows of a block and the distance between them, from `x` itself where whole blocks are there, else
/// from a copy with zeros below.
pub(super) fn block_of_rows<'a>(
    x: &Rows<'a>,
    at: (usize, usize),
    first: usize,
    rows: usize,
    width: usize,
    room: &'a mut [f32],
) -> (&'a [f32], usize) {
    let from = x.from(at, first);
    if rows == QUERIES {
        return (from, x.strides.row);
    }
    pack::widen(from, x.strides.row, rows, width, room, width);
    room[rows * width..].fill(0.0);
    (room, width)
}

/// Packed rows, read as columns: vector `(key - first) / 16`.
#[derive(Clone, Copy)]
pub(super) struct Vectors<'a> {
    pub data: &'a [f32],
    /// The first key of the block.
    pub from: usize,
    /// The first key that is packed.
    pub first: usize,
}

/// A block of scores that is being made.
pub(super) struct ScoreBlock<'a> {
    pub d: usize,
    pub board: Board,
    pub ranges: &'a Ranges,
}

impl ScoreBlock<'_> {
    /// Computes `s = a b^T` (or adds it), as far as the ranges reach.
    pub fn product(
        &self,
        (a, a_row): (&[f32], usize),
        b: Vectors,
        s: &mut [f32],
        accumulate: bool,
    ) {
        let skip = b.first.saturating_sub(b.from) / LANES;
        let tall = height(KEYS / LANES);
        let mut groups = [Group { row: 0, sum: (0, self.d), slivers: (0, 0) }; QUERIES];
        let count = self.ranges.rows.div_ceil(tall);
        for (g, group) in groups[..count].iter_mut().enumerate() {
            group.row = g * tall;
            let (first, last) = vectors(self.ranges.of(group.row, group.row + tall));
            group.slivers = (first.max(skip) - skip, last.max(skip) - skip);
        }
        let product = Product {
            a,
            a_row,
            a_col: 1,
            b: &b.data[(b.from + skip * LANES - b.first) * self.d..],
            b_row: LANES,
            b_sliver: LANES * self.d,
            c: &mut s[self.board.origin + skip * LANES..],
            c_row: self.board.stride,
            accumulate,
        };
        product.run(&groups[..count], KEYS / LANES);
    }

    /// Computes `q e^T` where the scores of the block will be added to it.
    pub fn relative(&self, (q, q_row): (&[f32], usize), place: Place, e_t: &[f32], s: &mut [f32]) {
        let tall = height(KEYS / LANES);
        let mut groups = [Group { row: 0, sum: (0, self.d), slivers: (0, 0) }; QUERIES];
        let count = self.ranges.rows.div_ceil(tall);
        for (g, group) in groups[..count].iter_mut().enumerate() {
            group.row = g * tall;
            let (a, b) = self.ranges.of(group.row, group.row + tall);
            if a < b {
                // Row `i` and key `j` meet in column `j - i` of the packed embeddings.
                let first = place.column(a as isize - (group.row + tall - 1) as isize);
                let last = place.column(b as isize - group.row as isize);
                let inside = |column: isize| column.clamp(0, place.columns()) as usize;
                group.slivers = vectors((inside(first), inside(last)));
            }
        }
        // Column 0 of the embeddings lies before the buffer or behind its start.
        let zero = self.board.origin as isize - place.column(0);
        let skip = zero.min(0).unsigned_abs().div_ceil(LANES);
        for group in &mut groups[..count] {
            let (first, last) = group.slivers;
            group.slivers = (first.max(skip) - skip, last.max(skip) - skip);
        }
        let product = Product {
            a: q,
            a_row: q_row,
            a_col: 1,
            b: &e_t[skip * LANES * self.d..],
            b_row: LANES,
            b_sliver: LANES * self.d,
            c: &mut s[(zero + (skip * LANES) as isize) as usize..],
            c_row: self.board.stride + 1,
            accumulate: false,
        };
        product.run(&groups[..count], KEYS / LANES);
    }
}
