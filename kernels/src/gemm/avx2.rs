//! Tiles of 256-bit vectors with fused multiply-add: 6 rows by 16 columns.
//!
//! 6 x 2 vectors of sums, 2 of `B` and 1 of `A` fill 15 of 16 registers. Fewer rows take more
//! columns, so that 8 chains or more hide an add's latency. Half a sliver takes 10 rows: 11 loads beside
//! 10 multiply-adds.

use super::LANE;
use super::blocks::Blocks;
use super::tile::{Direct, Kernels, Tile};
use super::turned::Turned;
use super::{few, pack};
use std::arch::x86_64::*;

pub(super) static KERNELS: Kernels = Kernels {
    rows: 6,
    slivers: &[4, 2, 2, 1, 1, 1],
    tile: dispatch,
    copied: None,
    direct: Some(Direct { rows: few::ROWS, packs: false, tile: few::product::<f32> }),
    pack: pack::avx2,
    pack_a: pack::avx2_a,
    turned: Some(Turned { rows: few::ROWS + 1..=96, half_rows: 10, half: dispatch_half }),
    blocks: Blocks::NEAR,
};

/// Picks the code for a tile's size.
///
/// # Safety
/// The CPU has avx2 and fma; the pointers of `t` reach as far as its sizes say.
unsafe fn dispatch(rows: usize, slivers: usize, t: &Tile) {
    macro_rules! pick {
        ($($r:literal: $($v:literal)+;)+) => {
            match (rows, slivers) {
                // SAFETY: the caller vouches for the CPU and for `t`.
                $($(($r, $v) => unsafe { tile::<$r, $v>(t) },)+)+
                _ => unreachable!("no tile of {rows} rows and {slivers} slivers"),
            }
        };
    }
    pick! {
        1: 1 2 3 4;
        2: 1 2;
        3: 1 2;
        4: 1;
        5: 1;
        6: 1;
    }
}

/// The first `count` of 8 lanes.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn first(count: usize) -> __m256i {
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lanes)
}

/// Computes a tile of `R` rows and `S` slivers.
///
/// # Safety
/// As [`dispatch`].
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const R: usize, const S: usize>(t: &Tile) {
    // SAFETY: handed on; only a tile with a short last sliver needs masks.
    unsafe { if t.last == LANE { body::<R, S, false>(t) } else { body::<R, S, true>(t) } }
}

/// Computes a tile whose last sliver is short (`MASK`) or whole.
///
/// # Safety
/// As [`dispatch`].
#[inline]
#[target_feature(enable = "avx2,fma")]
#[allow(clippy::needless_range_loop)] // `s` is a place in B as well as in `sum`
unsafe fn body<const R: usize, const S: usize, const MASK: bool>(t: &Tile) {
    let masks = [first(t.last.min(8)), first(t.last.saturating_sub(8))];
    let load = |at: *const f32, s: usize, half: usize| {
        // SAFETY: the lanes that the masks let through are in bounds; masked lanes are not touched.
        unsafe {
            if MASK && s + 1 == S {
                _mm256_maskload_ps(at.wrapping_add(half * 8), masks[half])
            } else {
                _mm256_loadu_ps(at.add(half * 8))
            }
        }
    };
    let store = |at: *mut f32, s: usize, half: usize, x: __m256| {
        // SAFETY: as for `load`.
        unsafe {
            if MASK && s + 1 == S {
                _mm256_maskstore_ps(at.wrapping_add(half * 8), masks[half], x)
            } else {
                _mm256_storeu_ps(at.add(half * 8), x)
            }
        }
    };
    let mut sum = [[[_mm256_setzero_ps(); 2]; S]; R];
    // SAFETY: rows `0..R` of A and C, rows `0..k` of B, and the columns of each sliver are in
    // bounds, as the caller vouches.
    unsafe {
        if t.from_c {
            for (r, row) in sum.iter_mut().enumerate() {
                for (s, sliver) in row.iter_mut().enumerate() {
                    for (half, x) in sliver.iter_mut().enumerate() {
                        *x = load(t.c.add(r * t.c_row + s * LANE), s, half);
                    }
                }
            }
        }
        let mut a = [t.a; R];
        for (r, a) in a.iter_mut().enumerate() {
            *a = t.a.add(r * t.a_row);
        }
        // What the sums will replace; the sums of the tile below, if they are read at once.
        let below = if t.from_c { R } else { 0 };
        for r in below..below + R {
            // 16 columns may lie on two lines.
            let c = t.c.wrapping_add(r * t.c_row);
            _mm_prefetch::<_MM_HINT_T0>(c.cast());
            _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(S * LANE - 1).cast());
        }
        let (mut b, mut at) = (t.b, 0);
        for _ in 0..t.k {
            // One row reads its weights once, at the pace of the hardware.
            if R > 1 {
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_offset(t.ahead).cast());
            }
            for s in 0..S {
                let cols = [load(b.add(s * t.b_sliver), s, 0), load(b.add(s * t.b_sliver), s, 1)];
                for (row, a) in sum.iter_mut().zip(a) {
                    let x = _mm256_set1_ps(*a.add(at));
                    row[s][0] = _mm256_fmadd_ps(x, cols[0], row[s][0]);
                    row[s][1] = _mm256_fmadd_ps(x, cols[1], row[s][1]);
                }
            }
            b = b.add(t.b_row);
            at += t.a_col;
        }
        for (r, row) in sum.iter().enumerate() {
            for (s, sliver) in row.iter().enumerate() {
                for (half, &x) in sliver.iter().enumerate() {
                    let mut x = x;
                    if !t.bias.is_null() {
                        x = _mm256_add_ps(x, load(t.bias.add(s * LANE), s, half));
                    }
                    store(t.c.add(r * t.c_row + s * LANE), s, half, x);
                }
            }
        }
    }
}

/// Picks the code for a tile of so many rows and half a sliver.
///
/// # Safety
/// As [`dispatch`].
unsafe fn dispatch_half(rows: usize, t: &Tile) {
    macro_rules! pick {
        ($($r:literal)+) => {
            match rows {
                // SAFETY: the caller vouches for the CPU and for `t`.
                $($r => unsafe { half::<$r>(t) },)+
                _ => unreachable!("no tile of {rows} rows and half a sliver"),
            }
        };
    }
    pick! { 1 2 3 4 5 6 7 8 9 10 }
}

/// Computes a tile of `R` rows and the first 8 columns of a sliver, without a bias.
///
/// # Safety
/// As [`dispatch`].
#[target_feature(enable = "avx2,fma")]
#[allow(clippy::needless_range_loop)] // `r` is a place in A and C as well as in `sum`
unsafe fn half<const R: usize>(t: &Tile) {
    let mut sum = [_mm256_setzero_ps(); R];
    // SAFETY: rows `0..R` of A and C, rows `0..k` of B, and 8 columns are in bounds, as the caller
    // vouches.
    unsafe {
        if t.from_c {
            for r in 0..R {
                sum[r] = _mm256_loadu_ps(t.c.add(r * t.c_row));
            }
        }
        let a: [*const f32; R] = std::array::from_fn(|r| t.a.add(r * t.a_row));
        let (mut b, mut at) = (t.b, 0);
        for _ in 0..t.k {
            let columns = _mm256_loadu_ps(b);
            for r in 0..R {
                sum[r] = _mm256_fmadd_ps(_mm256_set1_ps(*a[r].add(at)), columns, sum[r]);
            }
            b = b.add(t.b_row);
            at += t.a_col;
        }
        for r in 0..R {
            _mm256_storeu_ps(t.c.add(r * t.c_row), sum[r]);
        }
    }
}
