//! What happens to the rows of a block of scores between two products.

use super::KEYS;
use crate::cpu::lanes::{Block, Body, LANES, Lanes};
use std::f32::consts::{LN_2, LOG2_E};

/// `2^x` for `x <= 1`, within 2 ulp; 0 up to `2^-126`.
///
/// Scores are scaled by `log2 e` beforehand, which saves the reduction of an `exp` two operations.
#[inline(always)]
pub(super) fn exp2<L: Lanes>(x: L) -> L {
    // Adding 1.5 * 2^23 rounds to a whole number, which is left in the low bits; the rest is exact.
    let round = L::splat(12_582_912.0);
    let shifted = x.add(round);
    let r = x.sub(shifted.sub(round));
    // Fitted on [-1/2, 1/2]: relative error 9.3e-8.
    #[allow(clippy::approx_constant)] // near ln 2, but better than it here
    let c = [1.0, 0.693_147, 0.240_222_47, 0.055_507_11, 0.009_671_292, 0.001_326_953_4];
    let mut y = L::splat(c[5]);
    for c in c[..5].iter().rev() {
        y = y.mul_add(r, L::splat(*c));
    }
    // The exponent of a normal number is added to as a number.
    let y = L::from_bits(L::int_add(L::shift_left::<23>(shifted.bits()), y.bits()));
    // The order of operands lets NaN through.
    L::select(x.gt(L::splat(-126.0)), y, L::zero().max(x))
}

/// Runs a body at the places of `from..to` in steps of sixteen, the last of which may be short.
///
/// Not a function of a closure: one that is not inlined loses the instruction set of its caller.
macro_rules! steps {
    ($from:expr, $to:expr, |$at:ident, $len:ident| $body:block) => {
        let to = $to;
        let mut $at = $from;
        while $at < to {
            let $len = (to - $at).min(LANES);
            $body
            $at += LANES;
        }
    };
}

pub(super) use steps;

/// Sixteen numbers of `x` from `at` on, or the `len` that there are, `rest` beyond.
#[inline(always)]
pub(super) fn load<L: Lanes>(x: &[f32], at: usize, len: usize, rest: f32) -> L {
    match x[at..].first_chunk() {
        Some(x) if len == LANES => L::load(x),
        _ if rest == 0.0 => L::load_part(&x[at..at + len]),
        _ => {
            let mut block: Block = [rest; LANES];
            block[..len].copy_from_slice(&x[at..at + len]);
            L::load(&block)
        }
    }
}

/// Writes the first `len` of sixteen numbers to `y` from `at` on.
#[inline(always)]
pub(super) fn store<L: Lanes>(x: L, y: &mut [f32], at: usize, len: usize) {
    match y[at..].first_chunk_mut() {
        Some(y) if len == LANES => x.store(y),
        _ => x.store_part(&mut y[at..at + len]),
    }
}

/// The rows of a block of scores, in a buffer whose rows lie `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Scores<'a> {
    /// What each row sees of the block.
    pub ranges: &'a [(usize, usize)],
    /// What all rows together see: the rest of it becomes 0.
    pub columns: (usize, usize),
    pub stride: usize,
    /// What turns scores into exponents of 2.
    pub scale: f32,
}

/// One step of the online softmax: scores become `2^(scale s - max)`.
pub(super) struct Online<'a> {
    pub scores: Scores<'a>,
    pub s: &'a mut [f32],
    /// Running maximum and sum of each row.
    pub max: &'a mut [f32],
    pub sum: &'a mut [f32],
    /// Running results `[rows, width]`, rescaled where the maximum grows.
    pub o: &'a mut [f32],
    pub width: usize,
}

impl Body for Online<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Scores { ranges, columns, stride, scale } = self.scores;
        let factor = L::splat(scale);
        for (r, &(from, to)) in ranges.iter().enumerate() {
            let start = r * stride;
            let (max, total) = (&mut self.max[r], &mut self.sum[r]);
            let o = &mut self.o[r * self.width..(r + 1) * self.width];
            if let Some(s) = whole(self.s, start + from, to - from) {
                // Most rows: all of it in registers.
                let mut x = [L::zero(); KEYS / LANES];
                for (x, s) in x.iter_mut().zip(&*s) {
                    *x = L::load(s).mul(factor);
                }
                let mut most = x[0];
                for x in &x[1..] {
                    most = x.max(most);
                }
                let most = most.reduce_max();
                let shift = L::splat(-raise::<L>(most, max, total, o));
                let mut sum = L::zero();
                for (x, s) in x.into_iter().zip(s) {
                    let p = exp2(x.add(shift));
                    p.store(s);
                    sum = sum.add(p);
                }
                *total += sum.reduce_add();
                continue;
            }
            let s = &mut self.s[start..start + columns.1];
            if from >= to {
                s[columns.0..].fill(0.0);
                continue;
            }
            let mut most = L::splat(f32::NEG_INFINITY);
            let lowest = f32::NEG_INFINITY * scale.signum();
            steps!(from, to, |at, len| {
                // The order of operands passes over NaN; it comes back in the exponential.
                most = load::<L>(s, at, len, lowest).mul(factor).max(most);
            });
            let shift = L::splat(-raise::<L>(most.reduce_max(), max, total, o));
            let mut sum = L::zero();
            steps!(from, to, |at, len| {
                store(exp2(load::<L>(s, at, len, 0.0).mul(factor).add(shift)), s, at, len);
                sum = sum.add(load(s, at, len, 0.0));
            });
            *total += sum.reduce_add();
            s[columns.0..from].fill(0.0);
            s[to..].fill(0.0);
        }
    }
}

/// Takes scores whose maximum is `most` into a row's running maximum, sum and result; returns the
/// maximum of all so far.
#[inline(always)]
fn raise<L: Lanes>(most: f32, max: &mut f32, sum: &mut f32, o: &mut [f32]) -> f32 {
    // A NaN is not above and is passed over here.
    if most > *max {
        if *max > f32::NEG_INFINITY {
            let shrink = exp2(L::splat(*max - most));
            let mut first = [0.0; LANES];
            shrink.store(&mut first);
            *sum *= first[0];
            for o in o.as_chunks_mut().0 {
                L::load(o).mul(shrink).store(o);
            }
        }
        *max = most;
    }
    *max
}

/// The vectors of a row that sees all of a block.
#[inline(always)]
fn whole(s: &mut [f32], at: usize, len: usize) -> Option<&mut [Block; KEYS / LANES]> {
    if len != KEYS {
        return None;
    }
    s[at..at + KEYS].as_chunks_mut().0.try_into().ok()
}

/// Ends a row: `o / sum`, and the logarithm of what was summed.
pub(super) struct Finish<'a> {
    pub max: f32,
    pub sum: f32,
    pub o: &'a [f32],
    pub y: &'a mut [f32],
}

impl Body for Finish<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<L: Lanes>(self) -> f32 {
        if self.sum == 0.0 {
            // Nothing was seen.
            self.y.fill(0.0);
            return f32::NEG_INFINITY;
        }
        let factor = L::splat(1.0 / self.sum);
        let width = self.y.len();
        steps!(0, width, |at, len| {
            store(load::<L>(self.o, at, len, 0.0).mul(factor), self.y, at, len);
        });
        self.max * LN_2 + self.sum.ln()
    }
}

/// What turns scores into exponents of 2.
pub(super) fn exponents(scale: f32) -> f32 {
    scale * LOG2_E
}

/// Makes the weights of a block again and turns `d_s`, on entry the gradient of the weights, into that
/// of the scores.
pub(super) struct ScoreGradient<'a> {
    pub scores: Scores<'a>,
    pub p: &'a mut [f32],
    pub d_s: &'a mut [f32],
    /// `lse * log2 e` and `delta` of each row.
    pub lse: &'a [f32],
    pub delta: &'a [f32],
    /// What scores are multiplied by.
    pub factor: f32,
}

impl Body for ScoreGradient<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Scores { ranges, columns, stride, scale } = self.scores;
        let (scale, factor) = (L::splat(scale), L::splat(self.factor));
        for (r, &(from, to)) in ranges.iter().enumerate() {
            let (shift, delta) = (L::splat(-self.lse[r]), L::splat(self.delta[r]));
            let start = r * stride;
            let each =
                (whole(self.p, start + from, to - from), whole(self.d_s, start + from, to - from));
            if let (Some(p), Some(d_s)) = each {
                for (p, d_s) in p.iter_mut().zip(d_s) {
                    let weight = exp2(L::load(p).mul_add(scale, shift));
                    L::load(d_s).sub(delta).mul(weight.mul(factor)).store(d_s);
                    weight.store(p);
                }
                continue;
            }
            let row = r * stride..r * stride + columns.1;
            let (p, d_s) = (&mut self.p[row.clone()], &mut self.d_s[row]);
            if from >= to {
                p[columns.0..].fill(0.0);
                d_s[columns.0..].fill(0.0);
                continue;
            }
            steps!(from, to, |at, len| {
                let weight = exp2(load::<L>(p, at, len, 0.0).mul_add(scale, shift));
                let d = load::<L>(d_s, at, len, 0.0).sub(delta).mul(weight.mul(factor));
                store(weight, p, at, len);
                store(d, d_s, at, len);
            });
            for row in [p, d_s] {
                row[columns.0..from].fill(0.0);
                row[to..].fill(0.0);
            }
        }
    }
}

/// The sum of `a * b`.
pub(super) struct Delta<'a> {
    pub a: &'a [f32],
    pub b: &'a [f32],
}

impl Body for Delta<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<L: Lanes>(self) -> f32 {
        let mut sum = L::zero();
        steps!(0, self.a.len(), |at, len| {
            sum = load::<L>(self.a, at, len, 0.0).mul_add(load(self.b, at, len, 0.0), sum);
        });
        sum.reduce_add()
    }
}
