//! One row times a matrix whose columns are contiguous: a linear layer's weight, used once.
//!
//! Packing would write what is read only once. Blocks of 8 columns by 4 rows are transposed in
//! registers instead; 4 such groups at a time, because a sum is one chain of adds. The order of adds
//! is that of every other path, and so are the bits.

use super::pack::columns_of;
use super::tile::Tile;
use std::arch::x86_64::*;

/// Groups of 8 columns whose sums run side by side.
const GROUPS: usize = 4;

/// Computes one row of `C`; `t.b_sliver` is the step from a column of `B` to the next, and columns
/// `0..columns` are computed.
///
/// # Safety
/// The CPU has avx2 and fma; the pointers of `t` reach as far as its sizes say.
pub(super) unsafe fn product(t: &Tile, columns: usize) {
    // SAFETY: handed on.
    unsafe { shell(t, columns) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn shell(t: &Tile, columns: usize) {
    let mut at = 0;
    while columns - at >= 8 {
        let groups = ((columns - at) / 8).min(GROUPS);
        // SAFETY: columns `at..at + 8 * groups` are in bounds, as the caller vouches.
        unsafe {
            match groups {
                4 => body::<4>(t, at),
                3 => body::<3>(t, at),
                2 => body::<2>(t, at),
                _ => body::<1>(t, at),
            }
        }
        at += 8 * groups;
    }
    for j in at..columns {
        // SAFETY: column `j` is in bounds.
        unsafe {
            let b = t.b.add(j * t.b_sliver);
            let mut sum = if t.from_c { *t.c.add(j) } else { 0.0 };
            for l in 0..t.k {
                sum = (*t.a.add(l * t.a_col)).mul_add(*b.add(l), sum);
            }
            *t.c.add(j) = if t.bias.is_null() { sum } else { sum + *t.bias.add(j) };
        }
    }
}

/// Computes columns `at..at + 8 * G`.
///
/// # Safety
/// As [`product`].
#[inline]
#[target_feature(enable = "avx2,fma")]
#[allow(clippy::needless_range_loop)] // `g` is a place in B and C as well as in `sum`
unsafe fn body<const G: usize>(t: &Tile, at: usize) {
    let mut sum = [_mm256_setzero_ps(); G];
    let whole = t.k / 4 * 4;
    // SAFETY: rows `0..k` of those columns, and what A and C hold for them, are in bounds.
    unsafe {
        if t.from_c {
            for g in 0..G {
                sum[g] = _mm256_loadu_ps(t.c.add(at + 8 * g));
            }
        }
        let column = |g: usize, j: usize| t.b.wrapping_add((at + 8 * g + j) * t.b_sliver);
        for l in (0..whole).step_by(4) {
            let a: [__m256; 4] =
                std::array::from_fn(|i| _mm256_set1_ps(*t.a.add((l + i) * t.a_col)));
            for g in 0..G {
                let lines = std::array::from_fn(|j| column(g, j).wrapping_add(l));
                for (a, x) in a.into_iter().zip(columns_of(lines)) {
                    sum[g] = _mm256_fmadd_ps(a, x, sum[g]);
                }
            }
        }
        for l in whole..t.k {
            let a = _mm256_set1_ps(*t.a.add(l * t.a_col));
            for g in 0..G {
                let x: [f32; 8] = std::array::from_fn(|j| *column(g, j).add(l));
                sum[g] = _mm256_fmadd_ps(a, _mm256_loadu_ps(x.as_ptr()), sum[g]);
            }
        }
        for g in 0..G {
            if !t.bias.is_null() {
                sum[g] = _mm256_add_ps(sum[g], _mm256_loadu_ps(t.bias.add(at + 8 * g)));
            }
            _mm256_storeu_ps(t.c.add(at + 8 * g), sum[g]);
        }
    }
}
