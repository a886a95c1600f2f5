//! A row times the lines of a panel of f32 or bf16 weights ([`crate::stream`]).

use super::lanes::{Block, Body, Lanes, dispatch};
use crate::isa::{self, Isa};

/// Adds `x` times the weights to the sums, in ascending `k`.
///
/// # Shapes
/// `x` `[k]`; `lines` `[k][blocks]`, or `[k / 2][blocks]` where words hold two bf16, of row `2 l` in
/// the low half; `sums` `[blocks]`, one to four.
pub(crate) fn add_lines(x: &[f32], lines: &[Block], bf16: bool, how: Fetch, sums: &mut [Block]) {
    let words = if bf16 { x.len().div_ceil(2) } else { x.len() };
    assert_eq!(lines.len(), words * sums.len());
    match (isa::active(), bf16) {
        (Isa::Scalar, _) => plain(x, lines, bf16, sums),
        (_, false) => dispatch(AddLines::<false> { x, lines, how, sums }),
        (_, true) => dispatch(AddLines::<true> { x, lines, how, sums }),
    }
}

/// One number at a time: the lesson.
fn plain(x: &[f32], lines: &[Block], bf16: bool, sums: &mut [Block]) {
    let blocks = sums.len();
    for (b, sums) in sums.iter_mut().enumerate() {
        for (lane, sum) in sums.iter_mut().enumerate() {
            for (l, x) in x.iter().enumerate() {
                let at = if bf16 { l / 2 } else { l };
                let word = lines[at * blocks + b][lane].to_bits();
                let weight = match (bf16, l % 2) {
                    (false, _) => word,
                    (true, 0) => word << 16,
                    (true, _) => word & 0xffff_0000,
                };
                // Not `mul_add`: without a fused instruction it is a call of hundreds of cycles.
                *sum += x * f32::from_bits(weight);
            }
        }
    }
}

/// The vector form: all sums of the panel stay in registers.
struct AddLines<'a, const BF16: bool> {
    x: &'a [f32],
    lines: &'a [Block],
    how: Fetch,
    sums: &'a mut [Block],
}

impl<const BF16: bool> Body for AddLines<'_, BF16> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        match self.sums.len() {
            1 => self.width::<L, 1>(),
            2 => self.width::<L, 2>(),
            3 => self.width::<L, 3>(),
            4 => self.width::<L, 4>(),
            blocks => unreachable!("a panel has one to four blocks, not {blocks}"),
        }
    }
}

impl<const BF16: bool> AddLines<'_, BF16> {
    /// A loop for each way, so that none asks in every row which one it is.
    #[inline(always)]
    fn width<L: Lanes, const W: usize>(self) {
        match self.how {
            Fetch::None => self.columns::<L, W>(Fetch::None),
            Fetch::Some => self.columns::<L, W>(Fetch::Some),
            Fetch::All => self.columns::<L, W>(Fetch::All),
        }
    }

    #[inline(always)]
    fn columns<L: Lanes, const W: usize>(self, how: Fetch) {
        let mut sums: [L; W] = std::array::from_fn(|w| L::load(&self.sums[w]));
        let (rows, _) = self.lines.as_chunks::<W>();
        if BF16 {
            let (pairs, last) = self.x.as_chunks::<2>();
            for ([x, next], row) in pairs.iter().zip(rows) {
                fetch(row, how);
                let (x, next) = (L::splat(*x), L::splat(*next));
                for w in 0..W {
                    let words = L::load(&row[w]).bits();
                    sums[w] = x.mul_add(low(words), sums[w]);
                    sums[w] = next.mul_add(high(words), sums[w]);
                }
            }
            if let ([x], Some(row)) = (last, rows.last()) {
                for w in 0..W {
                    sums[w] = L::splat(*x).mul_add(low(L::load(&row[w]).bits()), sums[w]);
                }
            }
        } else {
            for (x, row) in self.x.iter().zip(rows) {
                fetch(row, how);
                let x = L::splat(*x);
                for w in 0..W {
                    sums[w] = x.mul_add(L::load(&row[w]), sums[w]);
                }
            }
        }
        for (sum, finished) in sums.into_iter().zip(self.sums) {
            sum.store(finished);
        }
    }
}

/// The bf16 in the low half of each word.
#[inline(always)]
pub(super) fn low<L: Lanes>(words: L::Ints) -> L {
    L::from_bits(L::shift_left::<16>(words))
}

/// The bf16 in the high half of each word.
#[inline(always)]
pub(super) fn high<L: Lanes>(words: L::Ints) -> L {
    L::from_bits(L::and(words, L::ints(0xffff_0000_u32 as i32)))
}

/// How lines are asked for before they are wanted. It changes no bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fetch {
    /// Not at all: the hardware does it.
    None,
    /// One of the lines 16 KiB behind a row, into the second-level cache; the hardware follows it.
    Some,
    /// Every line 4 KiB before its use, into the first-level cache.
    All,
}

impl Fetch {
    /// All ways.
    pub(crate) const ALL: [Fetch; 3] = [Fetch::None, Fetch::Some, Fetch::All];
    /// Lines ahead.
    const FAR: usize = 256;
    const NEAR: usize = 64;
}

/// Asks for what comes some way behind a row.
///
/// What pays differs: of weights in the third-level cache Zen 5 reads a quarter more a second with
/// [`Fetch::All`], Zen 4 a fifth less; of weights in memory it is the other way round, or
/// [`Fetch::Some`] is best. So `Ahead` in [`crate::stream`] tries them.
#[inline(always)]
pub(crate) fn fetch<const W: usize>(row: &[Block; W], how: Fetch) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        let line = |ahead: usize| row.as_ptr().wrapping_add(ahead).cast();
        // SAFETY: a fetch changes nothing and never faults, wherever it points.
        unsafe {
            match how {
                Fetch::None => {}
                Fetch::Some => _mm_prefetch::<_MM_HINT_T1>(line(Fetch::FAR)),
                Fetch::All => {
                    (0..W).for_each(|w| _mm_prefetch::<_MM_HINT_T0>(line(Fetch::NEAR + w)));
                }
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (row, how, Fetch::FAR, Fetch::NEAR);
}
