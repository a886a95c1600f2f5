//! Tiles of 512-bit vectors: 8 rows by 48 columns, wider where there are fewer rows.
//!
//! 8 x 3 vectors of sums, 3 of `B` and 1 of `A` fill 28 of 32 registers; a step of `k` is 24
//! multiply-adds against 11 loads, so two FMA units stay busy on two load ports. Fewer rows take
//! more columns: a sum is one chain of adds, and 8 chains or more hide an add's latency.

use super::tile::{Direct, Fresh, Kernels, Tile};
use super::{direct, pack};
use std::arch::x86_64::*;

pub(super) static KERNELS: Kernels = Kernels {
    rows: 8,
    slivers: &[8, 8, 8, 6, 5, 4, 3, 3],
    tile: dispatch,
    copied: Some(dispatch_copied),
    direct: Some(Direct { rows: 8, packs: true, tile: direct::avx512 }),
    pack: pack::avx512,
    pack_a: pack::avx2_a,
    pack_rows: true,
};

/// Slivers times length of the sums above which a strip of `B` (here 40 KiB) does not stay in the
/// first-level cache, so that it is fetched ahead on every pass.
const STREAMED: usize = 640;
/// How far ahead, in elements of a packed sliver: 32 rows are 400 cycles, a third-level latency.
const AHEAD: usize = 32 * 16;
/// How many rows ahead a `B` that is not packed yet is fetched: each may be on another page.
const ROWS_AHEAD: usize = 16;

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

/// Picks the code for the size of a tile that copies its columns of `B`.
///
/// # Safety
/// As [`dispatch`], and the rows of `A` are packed.
unsafe fn dispatch_copied(rows: usize, slivers: usize, t: &Tile, f: &Fresh) {
    macro_rules! pick {
        ($($r:literal: $($v:literal)+;)+) => {
            match (rows, slivers) {
                // SAFETY: the caller vouches for the CPU, for `t` and for `f`.
                $($(($r, $v) => unsafe { copied::<$r, $v>(t, f) },)+)+
                _ => unreachable!("no tile of {rows} rows and {slivers} slivers"),
            }
        };
    }
    // Where there is a tile below it, the first has five rows or more.
    pick! {
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
unsafe fn tile<const R: usize, const V: usize>(t: &Tile) {
    // SAFETY: handed on. A masked load takes a slot of a multiply-add (4 % of a tile's time), and so
    // does each address that must be calculated (1 %), hence three forms of one body.
    unsafe {
        if t.last != 16 && !t.padded {
            body::<R, V, true, false, false>(t)
        } else if (t.a_row, t.a_col) == (1, R) {
            if t.k * V > STREAMED {
                body::<R, V, false, true, true>(t)
            } else {
                body::<R, V, false, true, false>(t)
            }
        } else {
            body::<R, V, false, false, false>(t)
        }
    }
}

/// Computes a tile whose last sliver is short (`SHORT`) or whole, whose rows of `A` are packed
/// (`PACKED`) or lie anywhere, and whose `B` is fetched ahead (`STREAM`) or stays in the first-level
/// cache.
///
/// # Safety
/// As [`dispatch`].
#[inline]
#[target_feature(enable = "avx512f")]
#[allow(clippy::needless_range_loop)] // `r` and `v` are places in A, B and C as well as in `sum`
unsafe fn body<
    const R: usize,
    const V: usize,
    const SHORT: bool,
    const PACKED: bool,
    const STREAM: bool,
>(
    t: &Tile,
) {
    let (a_row, a_col) = if PACKED { (1, R) } else { (t.a_row, t.a_col) };
    let mask = (0xffff_u32 >> (16 - t.last)) as __mmask16;
    let load = |at: *const f32, v: usize| {
        // SAFETY: the lanes that the mask lets through are in bounds; others are not touched.
        unsafe {
            if SHORT && v + 1 == V { _mm512_maskz_loadu_ps(mask, at) } else { _mm512_loadu_ps(at) }
        }
    };
    // SAFETY: rows `0..R` of A and C, rows `0..k` of B, and all columns that the mask lets through
    // are in bounds, as the caller vouches.
    unsafe {
        let mut sum = begin::<R, V>(t);
        let (mut a, mut b) = (t.a, t.b);
        for _ in 0..t.k {
            if R >= V {
                if STREAM {
                    for v in 0..V {
                        _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(v * t.b_sliver + AHEAD).cast());
                    }
                    _mm_prefetch::<_MM_HINT_T1>(b.wrapping_offset(t.ahead).cast());
                }
                let mut cols = [_mm512_setzero_ps(); V];
                for v in 0..V {
                    cols[v] = load(b.add(v * t.b_sliver), v);
                }
                for r in 0..R {
                    let x = _mm512_set1_ps(*a.add(r * a_row));
                    for v in 0..V {
                        sum[r][v] = _mm512_fmadd_ps(x, cols[v], sum[r][v]);
                    }
                }
            } else {
                let mut rows = [_mm512_setzero_ps(); R];
                for r in 0..R {
                    rows[r] = _mm512_set1_ps(*a.add(r * a_row));
                }
                for v in 0..V {
                    let col = load(b.add(v * t.b_sliver), v);
                    for r in 0..R {
                        sum[r][v] = _mm512_fmadd_ps(rows[r], col, sum[r][v]);
                    }
                }
            }
            b = b.add(t.b_row);
            a = a.add(a_col);
        }
        finish(t, &sum);
    }
}

/// The sums of a tile.
pub(super) type Sums<const R: usize, const V: usize> = [[__m512; V]; R];

/// Where the sums begin.
///
/// # Safety
/// As [`dispatch`].
#[inline(always)]
pub(super) unsafe fn begin<const R: usize, const V: usize>(t: &Tile) -> Sums<R, V> {
    // SAFETY: the lanes that the mask lets through are in bounds; the caller vouches for the CPU.
    unsafe {
        let mut sum = [[_mm512_setzero_ps(); V]; R];
        if t.from_c {
            let mask = (0xffff_u32 >> (16 - t.last)) as __mmask16;
            for (r, row) in sum.iter_mut().enumerate() {
                for (v, x) in row.iter_mut().enumerate() {
                    let lanes = if v + 1 == V { mask } else { 0xffff };
                    *x = _mm512_maskz_loadu_ps(lanes, t.c.add(r * t.c_row + v * 16));
                }
            }
        }
        sum
    }
}

/// Adds the bias and writes the sums.
///
/// # Safety
/// As [`dispatch`].
#[inline(always)]
pub(super) unsafe fn finish<const R: usize, const V: usize>(t: &Tile, sum: &Sums<R, V>) {
    let mask = (0xffff_u32 >> (16 - t.last)) as __mmask16;
    // SAFETY: the lanes that the mask lets through are in bounds; the caller vouches for the CPU.
    unsafe {
        for v in 0..V {
            let short = v + 1 == V && t.last != 16;
            let bias = if t.bias.is_null() {
                None
            } else {
                let lanes = if short { mask } else { 0xffff };
                Some(_mm512_maskz_loadu_ps(lanes, t.bias.add(v * 16)))
            };
            for (r, row) in sum.iter().enumerate() {
                let x = bias.map_or(row[v], |bias| _mm512_add_ps(row[v], bias));
                let c = t.c.add(r * t.c_row + v * 16);
                if short {
                    _mm512_mask_storeu_ps(c, mask, x);
                } else {
                    _mm512_storeu_ps(c, x);
                }
            }
        }
    }
}

/// Computes the first tile of a strip whose rows of `B` are contiguous, and packs them for the tiles
/// below: the stores are free beside so many multiply-adds.
///
/// # Safety
/// As [`dispatch`].
#[target_feature(enable = "avx512f")]
unsafe fn copied<const R: usize, const V: usize>(t: &Tile, f: &Fresh) {
    let mask = (0xffff_u32 >> (16 - t.last)) as __mmask16;
    // SAFETY: the caller vouches for A, B and C; lanes beyond the last column are not touched.
    unsafe {
        let mut sum = begin::<R, V>(t);
        let (mut a, mut b, mut from) = (t.a, t.b.cast_mut(), f.data);
        for _ in 0..t.k {
            let mut cols = [_mm512_setzero_ps(); V];
            for (v, col) in cols.iter_mut().enumerate() {
                let at = from.wrapping_add(v * 16);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(ROWS_AHEAD * f.row).cast());
                *col =
                    if v + 1 == V { _mm512_maskz_loadu_ps(mask, at) } else { _mm512_loadu_ps(at) };
                _mm512_storeu_ps(b.add(v * t.b_sliver), *col);
            }
            for (r, row) in sum.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(r));
                for (s, col) in row.iter_mut().zip(cols) {
                    *s = _mm512_fmadd_ps(x, col, *s);
                }
            }
            a = a.add(R);
            b = b.add(16);
            from = from.wrapping_add(f.row);
        }
        finish(t, &sum);
    }
}
