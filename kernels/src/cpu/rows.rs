//! Bodies that work row by row: softmax and its kin, cross-entropy.

use super::lanes::{Body, LANES, Lanes, Numbers};
use super::map::{self, Map, load_three, put_three, sum_row};
use super::math::{exp, log};
use super::three::{Three, threes, threes_mut};
use crate::softmax::NO_TARGET;

/// The largest number of a row; `-inf` for an empty one. NaN is passed over.
#[inline(always)]
fn max_row<L: Lanes>(x: &[f32]) -> f32 {
    let (x, tail) = x.as_chunks::<LANES>();
    let (pairs, rest) = x.as_chunks::<2>();
    let mut max = [L::splat(f32::NEG_INFINITY); 2];
    for pair in pairs {
        max[0] = L::load(&pair[0]).max(max[0]);
        max[1] = L::load(&pair[1]).max(max[1]);
    }
    for x in rest {
        max[0] = L::load(x).max(max[0]);
    }
    if !tail.is_empty() {
        let mut last = [f32::NEG_INFINITY; LANES];
        last[..tail.len()].copy_from_slice(tail);
        max[1] = L::load(&last).max(max[1]);
    }
    max[0].max(max[1]).reduce_max()
}

/// `ln` of one number, the same on every tier.
#[inline(always)]
fn log_one<L: Lanes>(x: f32) -> f32 {
    log(L::splat(x)).reduce_max()
}

/// Writes `exp(x - max)` and returns the sum.
#[inline(always)]
fn exp_row<L: Lanes>(x: &[f32], y: &mut [f32], max: f32) -> f32 {
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (y, y_tail) = y.as_chunks_mut::<LANES>();
    let max = L::splat(max);
    // One chain of adds: each of its links is much shorter than an exponential.
    let mut sum = L::zero();
    let (x_threes, x) = threes(L::ROWS_IN_TURN, x);
    let (y_threes, y) = threes_mut(L::ROWS_IN_TURN, y);
    for (x, y) in x_threes.iter().zip(y_threes) {
        let e = exp(load_three::<L>(x).sub(Three([max; 3])));
        put_three::<L, false>(e, y);
        sum = sum.add(e.0[0]).add(e.0[1]).add(e.0[2]);
    }
    for (x, y) in x.iter().zip(y) {
        let e = exp(L::load(x).sub(max));
        e.store(y);
        sum = sum.add(e);
    }
    if !x_tail.is_empty() {
        exp(L::load_part(x_tail).sub(max)).store_part(y_tail);
        sum = sum.add(L::load_part(y_tail));
    }
    sum.reduce_add()
}

/// `sum(exp(x - max))` without keeping the terms, in the order of [`exp_row`].
#[inline(always)]
fn exp_sum<L: Lanes>(x: &[f32], max: f32) -> f32 {
    let (x, tail) = x.as_chunks::<LANES>();
    let max = L::splat(max);
    let mut sum = L::zero();
    let (x_threes, x) = threes(L::ROWS_IN_TURN, x);
    for x in x_threes {
        let e = exp(load_three::<L>(x).sub(Three([max; 3])));
        sum = sum.add(e.0[0]).add(e.0[1]).add(e.0[2]);
    }
    for x in x {
        sum = sum.add(exp(L::load(x).sub(max)));
    }
    if !tail.is_empty() {
        let mut last = [0.0; LANES];
        exp(L::load_part(tail).sub(max)).store_part(&mut last[..tail.len()]);
        sum = sum.add(L::load(&last));
    }
    sum.reduce_add()
}

/// Replaces each number of a row by a function of it.
#[inline(always)]
fn map_in_place<L: Lanes, F: Map>(f: F, y: &mut [f32]) {
    let (y, tail) = y.as_chunks_mut::<LANES>();
    for y in y {
        f.apply(L::load(y)).store(y);
    }
    if !tail.is_empty() {
        f.apply(L::load_part(tail)).store_part(tail);
    }
}

/// The sum of `a b` over a row, in the order of [`sum_row`].
#[inline(always)]
fn dot_row<L: Lanes>(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    let ((a_fours, a_rest), (b_fours, b_rest)) = (a.as_chunks::<4>(), b.as_chunks::<4>());
    let mut sums = [L::zero(); 4];
    for (a, b) in a_fours.iter().zip(b_fours) {
        for p in 0..4 {
            sums[p] = L::load(&a[p]).mul_add(L::load(&b[p]), sums[p]);
        }
    }
    for ((a, b), sum) in a_rest.iter().zip(b_rest).zip(&mut sums) {
        *sum = L::load(a).mul_add(L::load(b), *sum);
    }
    if !a_tail.is_empty() {
        sums[3] = L::load_part(a_tail).mul_add(L::load_part(b_tail), sums[3]);
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).reduce_add()
}

/// `y = exp(x - max) / sum`.
pub(crate) struct Softmax<'a> {
    pub x: &'a [f32],
    pub y: &'a mut [f32],
    pub cols: usize,
}

impl Body for Softmax<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let rows = self.x.chunks_exact(self.cols).zip(self.y.chunks_exact_mut(self.cols));
        for (x, y) in rows {
            // Subtract the row maximum first: exp overflows f32 above 88.7.
            let sum = exp_row::<L>(x, y, max_row::<L>(x));
            map_in_place::<L, _>(map::Affine(1.0 / sum, 0.0), y);
        }
    }
}

/// `y = x - max - ln(sum(exp(x - max)))`.
pub(crate) struct LogSoftmax<'a> {
    pub x: &'a [f32],
    pub y: &'a mut [f32],
    pub cols: usize,
    /// Whether the result goes past the cache.
    pub past: bool,
}

impl Body for LogSoftmax<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let rows = self.x.chunks_exact(self.cols).zip(self.y.chunks_exact_mut(self.cols));
        for (x, y) in rows {
            let max = max_row::<L>(x);
            let log_sum = log_one::<L>(exp_sum::<L>(x, max));
            map::map_out::<L, _>(self.past, LessBoth(max, log_sum), x, y);
        }
    }
}

/// `x - .0 - .1`
#[derive(Clone, Copy)]
struct LessBoth(f32, f32);

impl Map for LessBoth {
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L) -> L {
        x.sub(L::splat(self.0)).sub(L::splat(self.1))
    }
}

/// `d_x = y * (d_y - sum(d_y * y))`, or `d_y - exp(y) * sum(d_y)` if `log`.
pub(crate) struct SoftmaxBackward<'a> {
    pub y: &'a [f32],
    pub d_y: &'a [f32],
    pub d_x: &'a mut [f32],
    pub cols: usize,
    pub log: bool,
    pub past: bool,
}

#[derive(Clone, Copy)]
struct Slope(f32);

impl map::Zip for Slope {
    #[inline(always)]
    fn apply<L: Lanes>(self, y: L, d_y: L) -> L {
        y.mul(d_y.sub(L::splat(self.0)))
    }
}

#[derive(Clone, Copy)]
struct LogSlope(f32);

impl map::Zip for LogSlope {
    const LONG: bool = true;
    #[inline(always)]
    fn apply<L: Lanes>(self, y: L, d_y: L) -> L {
        exp(y).neg_mul_add(L::splat(self.0), d_y)
    }
    #[inline(always)]
    fn apply_three<L: Lanes>(self, y: Three<L>, d_y: Three<L>) -> Three<L> {
        exp(y).neg_mul_add(Three::splat(self.0), d_y)
    }
}

impl Body for SoftmaxBackward<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let rows = self.y.chunks_exact(self.cols).zip(self.d_y.chunks_exact(self.cols));
        for ((y, d_y), d_x) in rows.zip(self.d_x.chunks_exact_mut(self.cols)) {
            if self.log {
                let sum = sum_row::<L, _>(map::Same, d_y);
                map::zip_out::<L, _>(self.past, LogSlope(sum), y, d_y, d_x);
            } else {
                map::zip_out::<L, _>(self.past, Slope(dot_row::<L>(d_y, y)), y, d_y, d_x);
            }
        }
    }
}

/// `-ln softmax(x)[target]` and its gradient times `scale`.
pub(crate) struct CrossEntropy<'a> {
    pub logits: &'a [f32],
    pub targets: &'a [u32],
    pub losses: &'a mut [f32],
    /// As long as `logits`, or empty.
    pub d_logits: &'a mut [f32],
    pub scale: f32,
    pub vocab: usize,
}

impl Body for CrossEntropy<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (r, (target, loss)) in self.targets.iter().zip(self.losses).enumerate() {
            let at = r * self.vocab..(r + 1) * self.vocab;
            let x = &self.logits[at.clone()];
            let d = if self.d_logits.is_empty() { None } else { Some(&mut self.d_logits[at]) };
            if *target == NO_TARGET {
                *loss = 0.0;
                if let Some(d) = d {
                    d.fill(0.0);
                }
                continue;
            }
            let target = *target as usize;
            let max = max_row::<L>(x);
            let sum = match d {
                None => exp_sum::<L>(x, max),
                Some(d) => {
                    // The row stays in cache between its passes: memory sees one.
                    let sum = exp_row::<L>(x, d, max);
                    map_in_place::<L, _>(map::Affine(self.scale / sum, 0.0), d);
                    d[target] -= self.scale;
                    sum
                }
            };
            *loss = max + log_one::<L>(sum) - x[target];
        }
    }
}
