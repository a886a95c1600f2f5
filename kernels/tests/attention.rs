//! Attention against its definition in f64: every mask, odd sizes, strides, relative logits, dropout.
//!
//! `U` is the unit roundoff. Inputs lie in `[-1, 1)`, so with `d` numbers in a row a score before
//! scaling is at most `2 d` (with relative logits), and off by at most `2 d (d + 1) U`.

mod support;

use etude_kernels::attention::{
    Dropout, Mask, Relative, Rows, RowsMut, Rule, Sizes, Strides, attention_backward,
    attention_backward_room, attention_forward,
};
use etude_kernels::ladder::attention as ladder;
use etude_kernels::philox;
use etude_kernels::reference::attention::Head;
use proptest::prelude::*;
use support::*;

const U: f64 = 1.0 / 16_777_216.0;

/// How the operands lie in memory.
#[derive(Debug, Clone, Copy)]
enum Layout {
    ByHead,
    ByRow,
    /// `[batch, rows, 3, heads, head_dim]`: what one projection for all three gives.
    Joined,
}

impl Layout {
    fn strides(self, s: Sizes, rows: usize) -> Strides {
        let by_row = Strides::by_row(s.heads, rows, s.head_dim);
        match self {
            Layout::ByHead => Strides::by_head(s.heads, rows, s.head_dim),
            Layout::ByRow => by_row,
            Layout::Joined => {
                Strides { batch: 3 * by_row.batch, head: by_row.head, row: 3 * by_row.row }
            }
        }
    }

    fn len(self, s: Sizes, rows: usize) -> usize {
        let joined = if matches!(self, Layout::Joined) { 3 } else { 1 };
        joined * s.batch * s.heads * rows * s.head_dim
    }
}

#[derive(Clone)]
struct Case {
    s: Sizes,
    rule: Rule,
    layout: Layout,
    /// 0: no relative logits.
    max_len: usize,
    seed: u64,
}

struct Operands {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    er: Vec<f32>,
    d_o: Vec<f32>,
}

/// Results in the layout of the case.
struct Outcome {
    o: Vec<f32>,
    lse: Vec<f32>,
    d_q: Vec<f32>,
    d_k: Vec<f32>,
    d_v: Vec<f32>,
    d_er: Vec<f32>,
}

impl Outcome {
    fn all(&self) -> Vec<f32> {
        [&self.o, &self.lse, &self.d_q, &self.d_k, &self.d_v, &self.d_er]
            .map(Vec::as_slice)
            .concat()
    }
}

impl Case {
    fn new(mask: Mask, [batch, heads, queries, keys, head_dim]: [usize; 5]) -> Case {
        let s = Sizes { batch, heads, queries, keys, head_dim };
        let rule = Rule { mask, scale: 1.0 / (head_dim.max(1) as f32).sqrt(), dropout: None };
        Case { s, rule, layout: Layout::ByHead, max_len: 0, seed: 7 }
    }

    fn relative(mut self, more: usize) -> Case {
        self.max_len = self.s.keys + more;
        self
    }

    fn operands(&self) -> Operands {
        let (queries, keys) =
            (self.layout.len(self.s, self.s.queries), self.layout.len(self.s, self.s.keys));
        Operands {
            q: uniform(self.seed, queries),
            k: uniform(self.seed ^ 1, keys),
            v: uniform(self.seed ^ 2, keys),
            er: uniform(self.seed ^ 3, self.s.heads * self.max_len * self.s.head_dim),
            d_o: uniform(self.seed ^ 4, queries),
        }
    }

    fn run(&self, x: &Operands) -> Outcome {
        let s = self.s;
        let of_q = self.layout.strides(s, s.queries);
        let of_k = self.layout.strides(s, s.keys);
        let rows = |data, strides| Rows { data, strides };
        let relative = (self.max_len > 0).then_some(Relative { er: &x.er, max_len: self.max_len });
        let (q, k, v) = (rows(&x.q, of_q), rows(&x.k, of_k), rows(&x.v, of_k));
        let (mut o, mut lse) =
            (Guarded::of(&x.q, 3), Guarded::new(s.batch * s.heads * s.queries, 1));
        let into = RowsMut { data: o.get(), strides: of_q };
        attention_forward(q, k, v, relative, into, lse.get(), s, &self.rule);
        let (o, lse) = (o.finish("o"), lse.finish("lse"));
        let (mut d_q, mut d_k, mut d_v) =
            (Guarded::of(&x.q, 1), Guarded::of(&x.k, 2), Guarded::of(&x.v, 5));
        let mut d_er = Guarded::of(&x.er, 7);
        let mut room = Guarded::new(attention_backward_room(s, &self.rule, self.max_len > 0), 1);
        attention_backward(
            q,
            k,
            v,
            relative,
            rows(&o, of_q),
            &lse,
            rows(&x.d_o, of_q),
            RowsMut { data: d_q.get(), strides: of_q },
            RowsMut { data: d_k.get(), strides: of_k },
            RowsMut { data: d_v.get(), strides: of_k },
            d_er.get(),
            room.get(),
            s,
            &self.rule,
        );
        room.finish("room");
        Outcome {
            o,
            lse,
            d_q: d_q.finish("d_q"),
            d_k: d_k.finish("d_k"),
            d_v: d_v.finish("d_v"),
            d_er: d_er.finish("d_er"),
        }
    }

    /// The rows of one head, in order.
    fn head<'a>(
        &self,
        x: &'a [f32],
        rows: usize,
        b: usize,
        h: usize,
    ) -> impl Iterator<Item = usize> + 'a {
        let (strides, d) = (self.layout.strides(self.s, rows), self.s.head_dim);
        let first = b * strides.batch + h * strides.head;
        assert!(rows * d == 0 || first + (rows - 1) * strides.row + d <= x.len());
        (0..rows).flat_map(move |row| first + row * strides.row..first + row * strides.row + d)
    }

    /// What dropout leaves of each weight of a head.
    fn keep(&self, plane: usize) -> Vec<f64> {
        let Some(d) = self.rule.dropout else { return Vec::new() };
        let (width, s) = (self.s.keys.next_multiple_of(4), self.s);
        let ones = vec![1.0; s.batch * s.heads * s.queries * width];
        let mut mask = vec![0.0; ones.len()];
        philox::dropout(&ones, &mut mask, d.p, d.seed, d.stream, d.position);
        let rows =
            mask[plane * s.queries * width..(plane + 1) * s.queries * width].chunks_exact(width);
        rows.flat_map(|row| row[..s.keys].iter().map(|x| f64::from(*x))).collect()
    }

    fn check(&self, what: &str) {
        let (s, x) = (self.s, self.operands());
        let got = self.run(&x);
        let d = s.head_dim as f64;
        let is_relative = self.max_len > 0;
        let terms = if is_relative { 2.0 * d } else { d };
        let scale = f64::from(self.rule.scale);
        // A weight is off by the error of its exponent (the score's and the log-sum's) and by 4 U of
        // the exponential and the division, all relative; weights sum to 1 and values are at most 1.
        let exponent = 2.0 * scale * terms * (terms + 2.0) * U + 8.0 * U;
        let blow = self.rule.dropout.map_or(1.0, |d| 1.0 / (1.0 - f64::from(d.p)));
        let weight = exponent + (s.keys as f64 + 16.0) * U;
        let near = |name: &str, want: &[f64], got: &[f32], at: Vec<usize>, bound: f64| {
            let got: Vec<f32> = at.iter().map(|at| got[*at]).collect();
            assert_near(&format!("{what}: {name}"), want, &got, bound);
        };
        let (mut d_er, mut bound_er) = (vec![0.0; x.er.len()], 0.0f64);
        for plane in 0..s.batch * s.heads {
            let (b, h) = (plane / s.heads, plane % s.heads);
            let take = |x: &[f32], rows| -> Vec<f64> {
                self.head(x, rows, b, h).map(|at| f64::from(x[at])).collect()
            };
            let (q, k, v) = (take(&x.q, s.queries), take(&x.k, s.keys), take(&x.v, s.keys));
            let len = self.max_len * s.head_dim;
            let er = wide(&x.er[h * len..(h + 1) * len]);
            let keep = self.keep(plane);
            let head = Head {
                q: &q,
                k: &k,
                v: &v,
                er: &er,
                mask: self.rule.mask,
                scale,
                keep: &keep,
                head_dim: s.head_dim,
            };
            let (o, lse) = head.forward();
            let of_q = |x: &[f32]| self.head(x, s.queries, b, h).collect::<Vec<_>>();
            let of_k = |x: &[f32]| self.head(x, s.keys, b, h).collect::<Vec<_>>();
            near("o", &o, &got.o, of_q(&got.o), blow * 2.0 * weight);
            let lines = (plane * s.queries..(plane + 1) * s.queries).collect();
            // The sum of the exponentials is off by as much as a weight; its logarithm is at most
            // max |score| + ln(keys).
            let log = weight + 2.0 * (scale * terms + (s.keys as f64).ln()) * U;
            near("lse", &lse, &got.lse, lines, log);
            let d_o = take(&x.d_o, s.queries);
            let g = head.backward(&d_o);
            // A weight's gradient is at most d and its mean too; they are off by 2 d (d + 2) U, and the
            // weight by `weight` of itself. Both multiply a weight, so the errors of a sum are those
            // times the sum of its weights: 1 over the keys of a query, `column` over the queries of a
            // key, `diagonal` over those that use an embedding.
            let gradient = blow * (2.0 * d * weight + 2.0 * d * (d + 2.0) * U);
            let score = 2.0 * scale * gradient * if is_relative { 2.0 } else { 1.0 };
            let mut columns = vec![0.0; s.keys];
            let mut diagonals = vec![0.0; s.keys + s.queries];
            for i in 0..s.queries {
                for (j, w) in head.weights(i).0.into_iter().enumerate() {
                    columns[j] += w;
                    diagonals[j + s.queries - i] += w;
                }
            }
            let most = |x: &[f64]| x.iter().copied().fold(0.0, f64::max);
            // A sum of n terms is off by n U of the sum of their sizes, at most 2 d scale a weight.
            let sum = |n: usize| 2.0 * scale * blow * d * (n as f64 + 2.0) * U;
            let (column, diagonal) = (most(&columns), most(&diagonals));
            near("d_q", &g.q, &got.d_q, of_q(&got.d_q), score + 2.0 * sum(s.keys));
            let d_k = column * (score + sum(s.queries));
            near("d_k", &g.k, &got.d_k, of_k(&got.d_k), d_k);
            let d_v = column * blow * (2.0 * weight + (s.queries as f64 + 2.0) * U);
            near("d_v", &g.v, &got.d_v, of_k(&got.d_v), d_v);
            bound_er += diagonal * (score + sum(s.queries * s.batch));
            d_er[h * len..(h + 1) * len].iter_mut().zip(&g.er).for_each(|(y, x)| *y += x);
        }
        assert_near(&format!("{what}: d_er"), &d_er, &got.d_er, bound_er);
    }
}

#[test]
fn every_mask_and_size_agrees_with_the_definition_on_every_tier() {
    on_every_tier(|isa| {
        for mask in masks() {
            for sizes in
                [[1, 1, 1, 1, 1], [1, 2, 5, 5, 3], [2, 1, 49, 97, 16], [1, 2, 130, 200, 20]]
            {
                Case::new(mask, sizes).check(&format!("{mask:?} {sizes:?} {}", isa.name()));
            }
        }
        Case::new(Mask::Full, [1, 2, 60, 31, 17]).check("more queries than keys");
    });
}

#[test]
fn relative_logits_agree_with_the_definition_on_every_tier() {
    on_every_tier(|isa| {
        for mask in [Mask::Causal, Mask::Window { width: 30 }, Mask::Window { width: 500 }] {
            for (sizes, more) in [
                ([1, 1, 1, 1, 1], 0),
                ([2, 2, 5, 5, 3], 3),
                ([1, 2, 49, 97, 16], 0),
                ([2, 1, 130, 200, 20], 50),
                ([1, 1, 201, 201, 64], 0),
            ] {
                let case = Case::new(mask, sizes).relative(more);
                case.check(&format!("relative {mask:?} {sizes:?} {}", isa.name()));
            }
        }
        // A window needs embeddings for its own width only.
        let mut case = Case::new(Mask::Window { width: 9 }, [1, 2, 120, 140, 8]);
        case.max_len = 9;
        case.check("a short table");
    });
}

#[test]
fn every_head_size_agrees_with_the_definition() {
    on_every_tier(|isa| {
        for d in (1..=34).chain([48, 63, 64, 65, 80, 96, 127, 128]) {
            let case = Case::new(Mask::Causal, [1, 1, 50, 60, d]);
            case.clone().check(&format!("head_dim {d} {}", isa.name()));
            case.relative(0).check(&format!("head_dim {d} relative {}", isa.name()));
        }
    });
}

#[test]
fn rows_may_lie_apart() {
    on_every_tier(|isa| {
        for layout in [Layout::ByHead, Layout::ByRow, Layout::Joined] {
            for (d, max_len) in [(16, 0), (16, 110), (10, 0)] {
                let mut case = Case::new(Mask::Causal, [2, 3, 101, 110, d]);
                (case.layout, case.max_len) = (layout, max_len);
                case.check(&format!("{layout:?} {d} {max_len} {}", isa.name()));
            }
        }
    });
}

#[test]
fn dropped_weights_are_those_of_their_place_in_the_stream() {
    for mask in [Mask::Full, Mask::Causal, Mask::Strided { block: 8, stride: 5 }] {
        let mut case = Case::new(mask, [2, 2, 70, 103, 12]);
        case.rule.dropout = Some(Dropout { p: 0.3, seed: 5, stream: 2, position: 11 });
        on_one_tier(|| case.check(&format!("dropout {mask:?}")));
    }
    let mut case = Case::new(Mask::Causal, [1, 2, 70, 103, 16]).relative(4);
    case.rule.dropout = Some(Dropout { p: 0.75, seed: 5, stream: 2, position: u64::MAX - 3 });
    on_one_tier(|| case.check("dropout relative"));
}

#[test]
fn the_vector_tiers_agree_bit_by_bit_and_so_does_any_number_of_threads() {
    for (mask, max_len) in [
        (Mask::Full, 0),
        (Mask::Causal, 0),
        (Mask::Causal, 1003),
        (Mask::Strided { block: 64, stride: 32 }, 0),
    ] {
        let mut case = Case::new(mask, [1, 2, 1000, 1003, 40]);
        case.max_len = max_len;
        let x = case.operands();
        let mut first: Option<Vec<f32>> = None;
        on_every_tier(|isa| {
            if isa == etude_kernels::isa::Isa::Scalar {
                return; // it rounds products and sums apart
            }
            let all = case.run(&x).all();
            match &first {
                None => first = Some(all),
                Some(first) => assert_same(isa.name(), first, &all),
            }
        });
        on_one_tier(|| same_for_any_threads(&format!("{mask:?}"), || case.run(&x).all()));
    }
}

#[test]
fn empty_sizes_do_nothing() {
    for sizes in [[0, 2, 3, 3, 4], [2, 0, 3, 3, 4], [2, 2, 0, 3, 4], [1, 1, 3, 3, 0]] {
        let case = Case::new(Mask::Causal, sizes);
        let x = case.operands();
        let got = on_one_tier(|| case.run(&x));
        assert!(got.o.is_empty() && got.d_q.is_empty());
        assert!(got.d_k.iter().all(|x| *x == 0.0) && got.d_v.iter().all(|x| *x == 0.0));
    }
    // Nothing to look at: no result, no gradient.
    let got = Case::new(Mask::Full, [1, 2, 3, 0, 4]);
    let got = on_one_tier(|| got.run(&got.operands()));
    assert!(got.o.iter().chain(&got.d_q).all(|x| *x == 0.0));
    assert!(got.lse.iter().all(|x| *x == f32::NEG_INFINITY));
}

#[test]
fn large_and_infinite_scores_stay_in_their_rows() {
    on_every_tier(|isa| {
        let case = Case::new(Mask::Causal, [1, 1, 100, 100, 16]);
        let mut x = case.operands();
        // Row 3 sees scores of +-1e6: one weight is 1. Row 50 has a NaN. Key 90 is infinite.
        x.q[3 * 16..4 * 16].fill(1e6);
        x.q[50 * 16] = f32::NAN;
        x.k[90 * 16..91 * 16].fill(f32::INFINITY);
        let got = case.run(&x);
        for (i, row) in got.o.chunks_exact(16).enumerate() {
            let is_finite = row.iter().all(|x| x.is_finite());
            assert_eq!(is_finite, i != 50 && i < 90, "row {i} on {}: {row:?}", isa.name());
        }
        // Tiny numbers neither vanish nor slow down into nonsense.
        let mut x = case.operands();
        x.q.iter_mut().for_each(|x| *x *= 1e-38);
        let got = case.run(&x);
        let mean: f32 = x.v[..100 * 16].chunks_exact(16).map(|row| row[0]).sum::<f32>() / 100.0;
        assert!((got.o[99 * 16] - mean).abs() < 100.0 * f32::EPSILON, "{}", isa.name());
    });
}

#[test]
fn every_step_of_the_ladder_computes_the_same() {
    on_every_tier(|isa| {
        for (heads, steps, d) in [(1, 1, 1), (2, 33, 16), (3, 130, 20), (1, 200, 64)] {
            let n = heads * steps * d;
            let (q, k, v) = (uniform(1, n), uniform(2, n), uniform(3, n));
            let x = ladder::Heads { q: &q, k: &k, v: &v, steps, head_dim: d };
            // The bound of `check` for a plain causal mask, `o`.
            let scale = 1.0 / (d as f64).sqrt();
            let exponent = 2.0 * scale * d as f64 * (d as f64 + 2.0) * U + 8.0 * U;
            let bound = 2.0 * (exponent + (steps as f64 + 16.0) * U);
            let mut want = Vec::new();
            for h in 0..heads {
                let rows = |x: &[f32]| wide(&x[h * steps * d..(h + 1) * steps * d]);
                let head = Head {
                    q: &rows(&q),
                    k: &rows(&k),
                    v: &rows(&v),
                    er: &[],
                    mask: Mask::Causal,
                    scale,
                    keep: &[],
                    head_dim: d,
                };
                want.extend(head.forward().0);
            }
            for step in ladder::STEPS {
                let mut o = Guarded::new(n, 1);
                (step.run)(x, o.get());
                let what = format!("{} {heads}x{steps}x{d} {}", step.name, isa.name());
                assert_near(&what, &want, &o.finish(&what), bound);
            }
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn attention_agrees_with_the_definition(
        seed: u64,
        kind in 0usize..5,
        planes in (1usize..3, 1usize..3),
        queries in 1usize..160,
        more in 0usize..120,
        d in 1usize..70,
        a in 1usize..150,
        b in 1usize..60,
    ) {
        let mask = match kind {
            0 => Mask::Full,
            1 | 2 => Mask::Causal,
            3 => Mask::Window { width: a },
            _ => Mask::Strided { block: a, stride: b },
        };
        let mut case = Case::new(mask, [planes.0, planes.1, queries, queries + more, d]);
        case.seed = seed;
        if kind == 2 || kind == 3 && b.is_multiple_of(2) {
            case = case.relative(b % 7);
        }
        case.layout = [Layout::ByHead, Layout::ByRow, Layout::Joined][a % 3];
        on_one_tier(|| case.check(&format!("{mask:?} {:?} max_len {}", case.s, case.max_len)));
    }
}
