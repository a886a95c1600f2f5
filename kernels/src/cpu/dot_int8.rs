//! Whole numbers: a row in 255 steps, and its products with int8 weights ([`crate::stream`]).
//!
//! Sums are exact in 32 bits (up to 133,000 products), so every tier gives the same. Where the CPU
//! multiplies and adds four bytes at once (VNNI: AVX-512 or AVX) that is used; its left operand has no
//! sign, so the row is shifted up by 128, and `offsets` takes out what that adds.

use super::lanes::{Block, LANES};
use super::stream_lines::Fetch;
use crate::isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::Isa;

/// What is added to a number of at most 2^22, so that the last bits of the sum are the nearest whole
/// number, of two as near ones the even one.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// Rounds a row to whole numbers in `[-127, 127]` and returns their unit: the largest number is 127
/// of it. `bytes` may be longer than `x`; the rest becomes 0. Where a number is not finite the unit
/// is NaN.
///
/// # Shapes
/// `x` `[k]`, `bytes` `[k]` or more, written.
pub(crate) fn quantise(x: &[f32], bytes: &mut [i8]) -> f32 {
    match isa::active() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the tier in use is one that this CPU reported.
        Isa::Avx512 | Isa::Avx2 => unsafe { quantise_avx2(x, bytes) },
        _ => quantise_body(x, bytes),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn quantise_avx2(x: &[f32], bytes: &mut [i8]) -> f32 {
    quantise_body(x, bytes)
}

#[inline(always)]
fn quantise_body(x: &[f32], bytes: &mut [i8]) -> f32 {
    // Numbers without sign are in the order of their bits; NaN is above all others.
    let largest = x.iter().map(|x| x.to_bits() & 0x7fff_ffff).fold(0, u32::max);
    let largest = f32::from_bits(largest);
    // Where 127 / largest would overflow every number rounds to 0, as all of them nearly are.
    let (unit, steps) = if largest >= 1e-30 && largest.is_finite() {
        (largest / 127.0, 127.0 / largest)
    } else if largest < 1e-30 {
        (0.0, 0.0)
    } else {
        (f32::NAN, 0.0)
    };
    let (now, rest) = bytes.split_at_mut(x.len());
    for (byte, x) in now.iter_mut().zip(x) {
        *byte = (x * steps + ROUND).to_bits() as i8;
    }
    rest.fill(0);
    unit
}

/// Computes `sums[c] = sum over l and i of x[l][i] * w[l][c][i]`.
///
/// # Shapes
/// `x` `[k]` words of four whole numbers in `[-127, 127]`; `lines` `[k][blocks]`, each sixteen such
/// words; `offsets` `[blocks]`, -128 times the sum of each column; `sums` `[blocks]`, one to four,
/// written. `how`: see [`fetch`](super::stream_lines::fetch).
pub(crate) fn dot_int8(
    x: &[f32],
    lines: &[Block],
    offsets: &[[i32; LANES]],
    how: Fetch,
    sums: &mut [[i32; LANES]],
) {
    assert_eq!((lines.len(), offsets.len()), (x.len() * sums.len(), sums.len()));
    match sums.len() {
        1 => width::<1>(x, lines, offsets, how, sums),
        2 => width::<2>(x, lines, offsets, how, sums),
        3 => width::<3>(x, lines, offsets, how, sums),
        4 => width::<4>(x, lines, offsets, how, sums),
        blocks => unreachable!("a panel has one to four blocks, not {blocks}"),
    }
}

/// A loop for each way, so that none asks in every row which one it is.
#[inline]
fn width<const W: usize>(
    x: &[f32],
    lines: &[Block],
    offsets: &[[i32; LANES]],
    how: Fetch,
    sums: &mut [[i32; LANES]],
) {
    match how {
        Fetch::None => columns::<W, 0>(x, lines, offsets, sums),
        Fetch::Some => columns::<W, 1>(x, lines, offsets, sums),
        Fetch::All => columns::<W, 2>(x, lines, offsets, sums),
    }
}

/// `HOW` is a place in [`Fetch::ALL`].
#[inline]
fn columns<const W: usize, const HOW: usize>(
    x: &[f32],
    lines: &[Block],
    offsets: &[[i32; LANES]],
    sums: &mut [[i32; LANES]],
) {
    let ((rows, _), (offsets, _)) = (lines.as_chunks::<W>(), offsets.as_chunks::<W>());
    let (sums, _) = sums.as_chunks_mut::<W>();
    let (offsets, sums) = (&offsets[0], &mut sums[0]);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = offsets;
    match isa::active() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if is_x86_feature_detected!("avx512vnni") => {
            // SAFETY: this CPU has the instructions.
            unsafe { x86::vnni512::<W, HOW>(x, rows, offsets, sums) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 if is_x86_feature_detected!("avxvnni") => {
            // SAFETY: as above.
            unsafe { x86::vnni256::<W, HOW>(x, rows, offsets, sums) }
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the tier in use is one that this CPU reported, and both have AVX2.
        Isa::Avx512 | Isa::Avx2 => unsafe { x86::widened::<W, HOW>(x, rows, sums) },
        _ => plain(x, rows, sums),
    }
}

/// One number at a time: the lesson, and what compilers make vectors of.
fn plain<const W: usize>(x: &[f32], rows: &[[Block; W]], sums: &mut [[i32; LANES]; W]) {
    *sums = [[0; LANES]; W];
    let bytes = |word: f32| word.to_ne_bytes().map(|byte| i32::from(byte as i8));
    for (x, row) in x.iter().zip(rows) {
        let x = bytes(*x);
        for (sums, words) in sums.iter_mut().zip(row) {
            for (sum, word) in sums.iter_mut().zip(words) {
                let w = bytes(*word);
                *sum += x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3];
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Block, LANES};
    use crate::cpu::stream_lines::{Fetch, fetch};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn vnni512<const W: usize, const HOW: usize>(
        x: &[f32],
        rows: &[[Block; W]],
        offsets: &[[i32; LANES]; W],
        sums: &mut [[i32; LANES]; W],
    ) {
        let up = _mm512_set1_epi8(i8::MIN);
        // SAFETY: sixteen numbers are 64 bytes.
        let mut acc = offsets.map(|x| unsafe { _mm512_loadu_epi32(x.as_ptr()) });
        for (x, row) in x.iter().zip(rows) {
            fetch(row, Fetch::ALL[HOW]);
            let x = _mm512_xor_si512(_mm512_set1_epi32(x.to_bits() as i32), up);
            for w in 0..W {
                // SAFETY: as above.
                let weights = unsafe { _mm512_loadu_epi32(row[w].as_ptr().cast()) };
                acc[w] = _mm512_dpbusd_epi32(acc[w], x, weights);
            }
        }
        for w in 0..W {
            // SAFETY: as above.
            unsafe { _mm512_storeu_epi32(sums[w].as_mut_ptr(), acc[w]) };
        }
    }

    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) fn vnni256<const W: usize, const HOW: usize>(
        x: &[f32],
        rows: &[[Block; W]],
        offsets: &[[i32; LANES]; W],
        sums: &mut [[i32; LANES]; W],
    ) {
        let up = _mm256_set1_epi8(i8::MIN);
        let mut acc = offsets.map(|x| halves(&x));
        for (x, row) in x.iter().zip(rows) {
            fetch(row, Fetch::ALL[HOW]);
            let x = _mm256_xor_si256(_mm256_set1_epi32(x.to_bits() as i32), up);
            for w in 0..W {
                let weights = halves(&row[w]);
                acc[w][0] = _mm256_dpbusd_avx_epi32(acc[w][0], x, weights[0]);
                acc[w][1] = _mm256_dpbusd_avx_epi32(acc[w][1], x, weights[1]);
            }
        }
        store(acc, sums);
    }

    /// Without instructions for it: products of a number without and one with sign, in pairs, which
    /// fit into 16 bits because neither is beyond 127.
    #[target_feature(enable = "avx2")]
    pub(super) fn widened<const W: usize, const HOW: usize>(
        x: &[f32],
        rows: &[[Block; W]],
        sums: &mut [[i32; LANES]; W],
    ) {
        let ones = _mm256_set1_epi16(1);
        let mut acc = [[_mm256_setzero_si256(); 2]; W];
        for (x, row) in x.iter().zip(rows) {
            fetch(row, Fetch::ALL[HOW]);
            let x = _mm256_set1_epi32(x.to_bits() as i32);
            let size = _mm256_abs_epi8(x);
            for w in 0..W {
                let weights = halves(&row[w]);
                for half in 0..2 {
                    let pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(weights[half], x));
                    acc[w][half] = _mm256_add_epi32(acc[w][half], _mm256_madd_epi16(pairs, ones));
                }
            }
        }
        store(acc, sums);
    }

    /// Sixteen words of 32 bits.
    #[target_feature(enable = "avx2")]
    fn halves<T: Copy>(words: &[T; LANES]) -> [__m256i; 2] {
        const { assert!(size_of::<T>() == 4) };
        let start = words.as_ptr().cast::<__m256i>();
        // SAFETY: sixteen words are two vectors.
        unsafe { [_mm256_loadu_si256(start), _mm256_loadu_si256(start.add(1))] }
    }

    #[target_feature(enable = "avx2")]
    fn store<const W: usize>(acc: [[__m256i; 2]; W], sums: &mut [[i32; LANES]; W]) {
        for (acc, sums) in acc.into_iter().zip(sums) {
            let start = sums.as_mut_ptr().cast::<__m256i>();
            // SAFETY: as above.
            unsafe {
                _mm256_storeu_si256(start, acc[0]);
                _mm256_storeu_si256(start.add(1), acc[1]);
            }
        }
    }
}
