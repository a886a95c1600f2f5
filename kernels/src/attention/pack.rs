//! Brings keys (values, embeddings) into the order in which a block of scores reads them: vectors of
//! sixteen rows, number by number.

use crate::cpu::lanes::LANES;
use crate::isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::Isa;

/// Packs `count` rows of `width` numbers: row `n` is lane `n % 16` of sliver `n / 16`, `[width][16]`.
/// The lanes beyond the last row are 0.
///
/// # Panics
/// If the rows are not all in `x` or the slivers not all in `y`.
pub(super) fn slivers(x: &[f32], row: usize, count: usize, width: usize, y: &mut [f32]) {
    if count == 0 || width == 0 {
        return;
    }
    assert!((count - 1) * row + width <= x.len());
    assert!(count.div_ceil(LANES) * LANES * width <= y.len());
    for (n, sliver) in (0..count).step_by(LANES).zip(y.chunks_exact_mut(LANES * width)) {
        let lanes = (count - n).min(LANES);
        let done = match isa::active() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 if lanes == LANES => {
                let whole = width / 8 * 8;
                // SAFETY: both tiers have avx2; sixteen rows of `width` numbers are in `x`, by the
                // assertion above.
                unsafe { transpose(&x[n * row..], row, whole, sliver) };
                whole
            }
            _ => 0,
        };
        for d in done..width {
            for (lane, y) in sliver[d * LANES..(d + 1) * LANES].iter_mut().enumerate() {
                *y = if lane < lanes { x[(n + lane) * row + d] } else { 0.0 };
            }
        }
    }
}

/// Transposes the first `width` numbers (a multiple of 8) of sixteen rows, 8 by 8.
///
/// # Safety
/// The CPU has avx2, and `x` holds the rows.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn transpose(x: &[f32], row: usize, width: usize, y: &mut [f32]) {
    use std::arch::x86_64::*;
    assert!(y.len() >= LANES * width);
    for half in [0, 8] {
        for d in (0..width).step_by(8) {
            // SAFETY: rows `half..half + 8` and numbers `d..d + 8` are in `x`, as the caller vouches.
            let r: [__m256; 8] = std::array::from_fn(|r| unsafe {
                _mm256_loadu_ps(x.as_ptr().add((half + r) * row + d))
            });
            // Pairs of rows, then quadruples, then the two halves of each register.
            let pair =
                |i: usize| (_mm256_unpacklo_ps(r[i], r[i + 1]), _mm256_unpackhi_ps(r[i], r[i + 1]));
            let quads = |i: usize| {
                let ((a, b), (c, d)) = (pair(i), pair(i + 2));
                [
                    _mm256_shuffle_ps::<0x44>(a, c),
                    _mm256_shuffle_ps::<0xee>(a, c),
                    _mm256_shuffle_ps::<0x44>(b, d),
                    _mm256_shuffle_ps::<0xee>(b, d),
                ]
            };
            let (upper, lower) = (quads(0), quads(4));
            for i in 0..4 {
                let (first, last) = (
                    _mm256_permute2f128_ps::<0x20>(upper[i], lower[i]),
                    _mm256_permute2f128_ps::<0x31>(upper[i], lower[i]),
                );
                // SAFETY: number `d + i + 4` of lane `half + 7` is in `y`, by the assertion above.
                unsafe {
                    _mm256_storeu_ps(y.as_mut_ptr().add((d + i) * LANES + half), first);
                    _mm256_storeu_ps(y.as_mut_ptr().add((d + i + 4) * LANES + half), last);
                }
            }
        }
    }
}

/// Copies `count` rows of `width` numbers to rows that lie `room` apart, zeros beyond `width`.
///
/// # Panics
/// If the rows are not all in `x` and in `y`, or `room` is less than `width`.
pub(super) fn widen(x: &[f32], row: usize, count: usize, width: usize, y: &mut [f32], room: usize) {
    for (n, y) in y.chunks_exact_mut(room.max(1)).take(count).enumerate() {
        y[..width].copy_from_slice(&x[n * row..n * row + width]);
        y[width..].fill(0.0);
    }
}
