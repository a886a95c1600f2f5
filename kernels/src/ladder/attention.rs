//! Causal attention forward, from its definition to the kernel.
//!
//! ```text
//! s_ij = q_i . k_j / sqrt(head_dim)   for j <= i
//! o_i  = sum over j of exp(s_ij) v_j / sum over j of exp(s_ij)      Vaswani et al. 2017
//! ```
//!
//! A step is a sum of products over `head_dim` for each pair, an exponential, and as many products
//! again. What the steps change is how often a number is read for one product, and from where.

use super::Step;
use crate::attention::{Mask, Rows, RowsMut, Rule, Sizes, Strides, attention_forward};
use crate::cpu::lanes::{Block, Body, LANES, Lanes, dispatch};
use crate::cpu::math::exp;
use crate::cpu::shared::Shared;
use crate::threads::parallel_for;

/// The operands, each `[heads, steps, head_dim]`.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// Queries.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// Time steps.
    pub steps: usize,
    /// Numbers of a row.
    pub head_dim: usize,
}

/// Writes the results `[heads, steps, head_dim]`.
pub type Forward = fn(x: Heads, o: &mut [f32]);

/// The steps, in the order in which the ideas build on each other.
pub const STEPS: &[Step<Forward>] = &[
    Step {
        name: "naive",
        why: "the definition: a square of scores, the softmax of its rows, a weighted sum",
        run: naive,
    },
    Step {
        name: "online",
        why: "a running maximum and a running sum: each score is used as soon as it is there, so \
              that there is no square to write and to read again",
        run: online,
    },
    Step {
        name: "tiled",
        why: "a block of queries meets a block of keys: what is read from memory once serves all \
              pairs of the block",
        run: tiled,
    },
    Step {
        name: "vectorised",
        why: "the scores of sixteen keys at a time, their exponentials too, and sums that stay in \
              registers",
        run: vectorised,
    },
    Step {
        name: "threaded",
        why: "heads do not know of each other: each thread takes some",
        run: threaded,
    },
    Step {
        name: "register tiles",
        why: "8 queries by 48 keys in 24 registers: one load serves several multiply-adds, and the \
              edge of the triangle is cut finely: the kernel itself",
        run: kernel,
    },
];

/// Queries and keys of a block.
const QUERIES: usize = 32;
const KEYS: usize = 64;

impl<'a> Heads<'a> {
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Numbers of a head.
    fn len(&self) -> usize {
        self.steps * self.head_dim
    }

    /// One head alone.
    fn head(&self, h: usize) -> Heads<'a> {
        let at = h * self.len()..(h + 1) * self.len();
        Heads { q: &self.q[at.clone()], k: &self.k[at.clone()], v: &self.v[at], ..*self }
    }

    /// Row `i` of one head's matrix.
    fn row(&self, x: &'a [f32], i: usize) -> &'a [f32] {
        &x[i * self.head_dim..(i + 1) * self.head_dim]
    }

    /// Runs `f` on each head.
    fn each(self, o: &mut [f32], f: impl Fn(Heads, &mut [f32])) {
        for (h, o) in o.chunks_exact_mut(self.len().max(1)).enumerate() {
            f(self.head(h), o);
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `y += a x`.
fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += a * x);
}

fn naive(x: Heads, o: &mut [f32]) {
    x.each(o, |x, o| {
        let mut square = vec![0.0; x.steps * x.steps];
        for (i, s) in square.chunks_exact_mut(x.steps).enumerate() {
            for (j, s) in s[..=i].iter_mut().enumerate() {
                *s = dot(x.row(x.q, i), x.row(x.k, j)) * x.scale();
            }
        }
        for (i, s) in square.chunks_exact_mut(x.steps).enumerate() {
            let max = s[..=i].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            s[..=i].iter_mut().for_each(|s| *s = (*s - max).exp());
            let sum: f32 = s[..=i].iter().sum();
            s[..=i].iter_mut().for_each(|s| *s /= sum);
        }
        o.fill(0.0);
        for (i, o) in o.chunks_exact_mut(x.head_dim).enumerate() {
            for j in 0..=i {
                axpy(square[i * x.steps + j], x.row(x.v, j), o);
            }
        }
    });
}

/// What is known of a row so far: its maximum, and the sum of `exp(s - max)`.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

const NOTHING: Running = Running { max: f32::NEG_INFINITY, sum: 0.0 };

impl Running {
    /// Takes in scores whose maximum is `max`: earlier terms shrink if it is a new one.
    fn raise(&mut self, max: f32, o: &mut [f32]) {
        if max > self.max {
            let shrink = (self.max - max).exp();
            self.sum *= shrink;
            o.iter_mut().for_each(|o| *o *= shrink);
            self.max = max;
        }
    }
}

fn online(x: Heads, o: &mut [f32]) {
    x.each(o, |x, o| {
        o.fill(0.0);
        for (i, o) in o.chunks_exact_mut(x.head_dim).enumerate() {
            let mut running = NOTHING;
            for j in 0..=i {
                let s = dot(x.row(x.q, i), x.row(x.k, j)) * x.scale();
                running.raise(s, o);
                let p = (s - running.max).exp();
                running.sum += p;
                axpy(p, x.row(x.v, j), o);
            }
            o.iter_mut().for_each(|o| *o /= running.sum);
        }
    });
}

/// Runs `block` on the blocks that a causal head has, then divides by the sums of the rows.
///
/// `block` gets the first query and the first key, the rows so far, and their results.
fn blocks(x: Heads, o: &mut [f32], block: impl Fn(usize, usize, &mut [Running], &mut [f32])) {
    o.fill(0.0);
    for (b, o) in o.chunks_mut(QUERIES * x.head_dim.max(1)).enumerate() {
        let first = b * QUERIES;
        let rows = o.len() / x.head_dim;
        let mut running = [NOTHING; QUERIES];
        for from in (0..first + rows).step_by(KEYS) {
            block(first, from, &mut running[..rows], o);
        }
        for (o, running) in o.chunks_exact_mut(x.head_dim).zip(running) {
            o.iter_mut().for_each(|o| *o /= running.sum);
        }
    }
}

fn tiled(x: Heads, o: &mut [f32]) {
    x.each(o, |x, o| {
        blocks(x, o, |first, from, running, o| {
            for (r, o) in o.chunks_exact_mut(x.head_dim).enumerate() {
                let seen = (first + r + 1).saturating_sub(from).min(KEYS);
                let mut s = [0.0; KEYS];
                for (j, s) in s[..seen].iter_mut().enumerate() {
                    *s = dot(x.row(x.q, first + r), x.row(x.k, from + j)) * x.scale();
                }
                let max = s[..seen].iter().copied().fold(f32::NEG_INFINITY, f32::max);
                running[r].raise(max, o);
                for (j, s) in s[..seen].iter().enumerate() {
                    let p = (s - running[r].max).exp();
                    running[r].sum += p;
                    axpy(p, x.row(x.v, from + j), o);
                }
            }
        });
    });
}

/// The keys of a head, number by number: `[head_dim][keys]`, so that sixteen of them are one vector.
fn columns(x: Heads) -> (Vec<f32>, usize) {
    let wide = x.steps.next_multiple_of(KEYS);
    let mut k_t = vec![0.0; x.head_dim * wide];
    for j in 0..x.steps {
        x.row(x.k, j).iter().enumerate().for_each(|(d, k)| k_t[d * wide + j] = *k);
    }
    (k_t, wide)
}

fn one_vectorised(x: Heads, o: &mut [f32]) {
    let (k_t, wide) = columns(x);
    blocks(x, o, |first, from, running, o| {
        dispatch(VectorBlock { x, k_t: &k_t, wide, first, from, running, o });
    });
}

fn vectorised(x: Heads, o: &mut [f32]) {
    x.each(o, one_vectorised);
}

fn threaded(x: Heads, o: &mut [f32]) {
    let (len, all) = (x.len().max(1), o.len());
    let o = Shared::new(o);
    parallel_for(all / len, 1, |heads| {
        for h in heads {
            // SAFETY: heads do not overlap.
            one_vectorised(x.head(h), unsafe { o.slice(h * len..(h + 1) * len) });
        }
    });
}

/// One block of queries and keys.
struct VectorBlock<'a> {
    x: Heads<'a>,
    k_t: &'a [f32],
    /// Numbers of a row of `k_t`.
    wide: usize,
    first: usize,
    from: usize,
    running: &'a mut [Running],
    o: &'a mut [f32],
}

impl Body for VectorBlock<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let VectorBlock { x, k_t, wide, first, from, running, o } = self;
        for (r, o) in o.chunks_exact_mut(x.head_dim).enumerate() {
            let seen = (first + r + 1).saturating_sub(from).min(KEYS);
            // The scores of the block's keys, in registers while the numbers of the query pass by.
            let mut sums = [L::zero(); KEYS / LANES];
            for (d, q) in x.row(x.q, first + r).iter().enumerate() {
                let row = k_t[d * wide + from..d * wide + from + KEYS].as_chunks::<LANES>().0;
                for (sum, k) in sums.iter_mut().zip(row) {
                    *sum = L::splat(*q).mul_add(L::load(k), *sum);
                }
            }
            let mut s = [[0.0; LANES]; KEYS / LANES];
            for (s, sum) in s.iter_mut().zip(sums) {
                sum.mul(L::splat(x.scale())).store(s);
            }
            s.as_flattened_mut()[seen..].fill(f32::NEG_INFINITY);
            let mut max = L::splat(f32::NEG_INFINITY);
            for s in &s {
                max = L::load(s).max(max);
            }
            running[r].raise(max.reduce_max(), o);
            let mut sum = L::zero();
            for s in &mut s {
                let p = exp(L::load(s).sub(L::splat(running[r].max)));
                p.store(s);
                sum = sum.add(p);
            }
            running[r].sum += sum.reduce_add();
            // Sixteen numbers of the result at a time, in a register while the values pass by.
            let p = &s.as_flattened()[..seen];
            let (vectors, rest) = o.as_chunks_mut::<LANES>();
            let whole = vectors.len() * LANES;
            for (n, o) in vectors.iter_mut().enumerate() {
                let mut sum = L::load(o);
                for (j, p) in p.iter().enumerate() {
                    let v: &[f32] = &x.row(x.v, from + j)[n * LANES..];
                    if let Some(v) = v.first_chunk::<LANES>() {
                        sum = L::splat(*p).mul_add(L::load(v as &Block), sum);
                    }
                }
                sum.store(o);
            }
            for (j, p) in p.iter().enumerate() {
                axpy(*p, &x.row(x.v, from + j)[whole..], rest);
            }
        }
    }
}

fn kernel(x: Heads, o: &mut [f32]) {
    let heads = o.len() / x.len().max(1);
    let (batch, steps, head_dim) = (1, x.steps, x.head_dim);
    let s = Sizes { batch, heads, queries: steps, keys: steps, head_dim };
    let strides = Strides::by_head(heads, steps, head_dim);
    let rows = |data| Rows { data, strides };
    let mut lse = vec![0.0; heads * steps];
    let rule = Rule { mask: Mask::Causal, scale: x.scale(), dropout: None };
    let o = RowsMut { data: o, strides };
    attention_forward(rows(x.q), rows(x.k), rows(x.v), None, o, &mut lse, s, &rule);
}
