//! Streams of keys and values: products of one row with each, and their weighted sum.
//!
//! A word is one f32, or two bf16, the earlier number in the lower half; widening is a shift or a mask.

use super::decode::is_wide;
use super::rows::{exp2, exponents, load, steps, store};
use crate::cpu::lanes::{Body, LANES, Lanes, dispatch};

/// Words by which a stream is fetched ahead: 8 KiB.
const AHEAD: usize = 2048;

/// Begins to load what the stream holds some way after `x[at]`.
#[inline(always)]
fn fetch(x: &[f32], at: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a fetch changes nothing and never faults, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(at + AHEAD).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (x, at, AHEAD);
}

/// The numbers of sixteen words: one or two vectors.
#[inline(always)]
fn widen<L: Lanes, const EACH: usize>(words: L) -> [L; EACH] {
    let mut all = [words; EACH];
    if EACH == 2 {
        all[0] = L::from_bits(L::shift_left::<16>(words.bits()));
        all[1] = L::from_bits(L::and(words.bits(), L::ints(0xffff_0000_u32 as i32)));
    }
    all
}

/// Scores of some keys: `s = q . row`.
pub(super) struct Score<'a> {
    /// The even, then the odd numbers of a row of pairs.
    pub q: &'a [f32],
    pub rows: &'a [f32],
    pub words: usize,
    /// Words from one row to the next.
    pub step: usize,
    pub s: &'a mut [f32],
}

impl Score<'_> {
    /// Computes the scores; a word holds `each` numbers.
    pub(super) fn run(self, each: usize) {
        match each {
            1 => dispatch(Scores::<1>(self)),
            _ => dispatch(Scores::<2>(self)),
        }
    }
}

struct Scores<'a, const EACH: usize>(Score<'a>);

impl<const EACH: usize> Body for Scores<'_, EACH> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Score { q, rows, words, step, s } = self.0;
        for (n, s) in s.iter_mut().enumerate() {
            let row = &rows[n * step..n * step + words];
            let mut sum = L::zero();
            steps!(0, words, |at, len| {
                fetch(row, at);
                for (half, x) in widen::<L, EACH>(load(row, at, len, 0.0)).into_iter().enumerate() {
                    sum = x.mul_add(load(q, half * words + at, len, 0.0), sum);
                }
            });
            *s = sum.reduce_add();
        }
    }
}

/// Scores become `exp(scale * (s - max))`; returns their sum.
pub(super) struct Soften<'a> {
    pub s: &'a mut [f32],
    pub scale: f32,
}

impl Body for Soften<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<L: Lanes>(self) -> f32 {
        let factor = L::splat(exponents(self.scale));
        let mut most = L::splat(f32::NEG_INFINITY);
        let lowest = f32::NEG_INFINITY * self.scale.signum();
        steps!(0, self.s.len(), |at, len| {
            most = load::<L>(self.s, at, len, lowest).mul(factor).max(most);
        });
        let (shift, mut sum) = (L::splat(-most.reduce_max()), L::zero());
        steps!(0, self.s.len(), |at, len| {
            store(exp2(load::<L>(self.s, at, len, 0.0).mul_add(factor, shift)), self.s, at, len);
            sum = sum.add(load(self.s, at, len, 0.0));
        });
        sum.reduce_add()
    }
}

/// Adds rows, weighted: `o += p row`.
pub(super) struct Weigh<'a> {
    pub p: &'a [f32],
    pub rows: &'a [f32],
    pub words: usize,
    pub step: usize,
    /// The even, then the odd numbers of a row of pairs.
    pub o: &'a mut [f32],
}

impl Weigh<'_> {
    /// Adds the rows; a word holds `each` numbers.
    pub(super) fn run(self, each: usize) {
        match (each, is_wide()) {
            (1, true) => dispatch(Strips::<1, 8>(self)),
            (1, false) => dispatch(Strips::<1, 4>(self)),
            (_, true) => dispatch(Strips::<2, 4>(self)),
            (_, false) => dispatch(Strips::<2, 2>(self)),
        }
    }
}

/// At most `MOST` vectors of words at a time.
struct Strips<'a, const EACH: usize, const MOST: usize>(Weigh<'a>);

impl<const EACH: usize, const MOST: usize> Body for Strips<'_, EACH, MOST> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let mut all = self.0;
        let vectors = all.words.div_ceil(LANES);
        let mut at = 0;
        while at < vectors {
            let here = MOST.min(vectors - at);
            match here {
                1 => all.strip::<L, EACH, 1>(at),
                2 => all.strip::<L, EACH, 2>(at),
                3 if MOST > 2 => all.strip::<L, EACH, 3>(at),
                4 if MOST > 2 => all.strip::<L, EACH, 4>(at),
                5 if MOST > 4 => all.strip::<L, EACH, 5>(at),
                6 if MOST > 4 => all.strip::<L, EACH, 6>(at),
                7 if MOST > 4 => all.strip::<L, EACH, 7>(at),
                _ if MOST > 4 => all.strip::<L, EACH, 8>(at),
                _ => unreachable!("strips have at most {MOST} vectors"),
            }
            at += here;
        }
    }
}

impl Weigh<'_> {
    /// Adds up `V` vectors of words from vector `first` on, in registers.
    #[inline(always)]
    fn strip<L: Lanes, const EACH: usize, const V: usize>(&mut self, first: usize) {
        let (from, words) = (first * LANES, self.words);
        let len = |v: usize| (words - from - v * LANES).min(LANES);
        let mut sums = [[L::zero(); EACH]; V];
        for (n, p) in self.p.iter().enumerate() {
            let row = &self.rows[n * self.step..n * self.step + words];
            let p = L::splat(*p);
            for (v, sums) in sums.iter_mut().enumerate() {
                let at = from + v * LANES;
                fetch(row, at);
                for (sum, x) in sums.iter_mut().zip(widen::<L, EACH>(load(row, at, len(v), 0.0))) {
                    *sum = p.mul_add(x, *sum);
                }
            }
        }
        for (v, sums) in sums.into_iter().enumerate() {
            for (half, sum) in sums.into_iter().enumerate() {
                let at = half * words + from + v * LANES;
                store(load::<L>(self.o, at, len(v), 0.0).add(sum), self.o, at, len(v));
            }
        }
    }
}
