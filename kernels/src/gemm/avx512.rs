//! Tiles of 512-bit vectors: 8 rows by 48 columns, wider where there are fewer rows.
//!
//! 8 x 3 vectors of sums, 3 of `B` and 1 of `A` fill 28 of 32 registers; a step of `k` is 24
//! multiply-adds against 11 loads, so two FMA units stay busy on two load ports. Fewer rows take
//! more columns: a sum is one chain of adds, and 8 chains or more hide an add's latency.

use super::pack;
use super::tile::{Kernels, Tile};
use std::arch::x86_64::*;

pub(super) static KERNELS: Kernels =
    Kernels { rows: 8, slivers: &[8, 8, 8, 6, 5, 4, 3, 3], tile: dispatch, pack: pack::avx512 };

/// Picks the code for a tile's size.
///
/// # Safety
/// The CPU has avx512f; the pointers of `t` reach as far as its sizes say.
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
        1: 1 2 3 4 5 6 7 8;
        2: 1 2 3 4 5 6 7 8;
        3: 1 2 3 4 5 6 7 8;
        4: 1 2 3 4 5 6;
        5: 1 2 3 4 5;
        6: 1 2 3 4;
        7: 1 2 3;
        8: 1 2 3;
    }
}

/// Computes a tile of `R` rows and `V` slivers.
///
/// # Safety
/// As [`dispatch`].
#[target_feature(enable = "avx512f")]
#[allow(clippy::needless_range_loop)] // `v` is a place in B as well as in `sum`
unsafe fn tile<const R: usize, const V: usize>(t: &Tile) {
    let mask = |v: usize| if v + 1 == V { (0xffff_u32 >> (16 - t.last)) as __mmask16 } else { !0 };
    let mut sum = [[_mm512_setzero_ps(); V]; R];
    // SAFETY: rows `0..R` of A and C, rows `0..k` of B, and all columns that the masks let through
    // are in bounds, as the caller vouches; masked lanes are not touched.
    unsafe {
        if t.from_c {
            for (r, row) in sum.iter_mut().enumerate() {
                for (v, s) in row.iter_mut().enumerate() {
                    *s = _mm512_maskz_loadu_ps(mask(v), t.c.add(r * t.c_row + v * 16));
                }
            }
        }
        let mut a = [t.a; R];
        for (r, a) in a.iter_mut().enumerate() {
            *a = t.a.add(r * t.a_row);
        }
        let (mut b, mut at) = (t.b, 0);
        for _ in 0..t.k {
            if R >= V {
                let mut cols = [_mm512_setzero_ps(); V];
                for (v, col) in cols.iter_mut().enumerate() {
                    *col = _mm512_maskz_loadu_ps(mask(v), b.add(v * t.b_sliver));
                }
                for (row, a) in sum.iter_mut().zip(a) {
                    let x = _mm512_set1_ps(*a.add(at));
                    for (s, col) in row.iter_mut().zip(cols) {
                        *s = _mm512_fmadd_ps(x, col, *s);
                    }
                }
            } else {
                let mut rows = [_mm512_setzero_ps(); R];
                for (r, x) in rows.iter_mut().enumerate() {
                    *x = _mm512_set1_ps(*a[r].add(at));
                }
                for v in 0..V {
                    let col = _mm512_maskz_loadu_ps(mask(v), b.add(v * t.b_sliver));
                    for (row, x) in sum.iter_mut().zip(rows) {
                        row[v] = _mm512_fmadd_ps(x, col, row[v]);
                    }
                }
            }
            b = b.add(t.b_row);
            at += t.a_col;
        }
        for v in 0..V {
            if !t.bias.is_null() {
                let bias = _mm512_maskz_loadu_ps(mask(v), t.bias.add(v * 16));
                for row in &mut sum {
                    row[v] = _mm512_add_ps(row[v], bias);
                }
            }
            for (r, row) in sum.iter().enumerate() {
                _mm512_mask_storeu_ps(t.c.add(r * t.c_row + v * 16), mask(v), row[v]);
            }
        }
    }
}
