//! Tiles of bf16 pairs: `vdpbf16ps` adds two products to each of 16 sums.
//!
//! 8 rows by 48 columns, wider where there are fewer rows, as the f32 tiles: 24 sums in registers, 3
//! vectors of `B` and one pair of `A`. A sum is one accumulator to which pairs are added in ascending
//! `k`; one that is interrupted continues from what it left in `C`, which is exact.

use super::pack::LANE;
use crate::isa::{self, Isa};
use half::bf16;
use std::arch::x86_64::*;

/// Most rows of a tile, and rows of a packed sliver of `A`.
pub(super) const ROWS: usize = 8;

/// Slivers times pairs of the sums above which a strip of `B` (here 24 KiB) does not stay in the
/// first-level cache, so that it is fetched ahead on every pass.
const STREAMED: usize = 384;
/// How far ahead, in words of a packed sliver.
const AHEAD: usize = 16 * LANE;

/// Whether this CPU multiplies bf16 pairs.
pub(super) fn is_available() -> bool {
    Isa::Avx512.is_available() && is_x86_feature_detected!("avx512bf16")
}

/// Whether it does so on the tier in use.
pub(super) fn is_active() -> bool {
    isa::active() == Isa::Avx512 && is_available()
}

/// Slivers of the widest tile of so many rows: 24 sums or fewer.
pub(super) fn widest(rows: usize) -> usize {
    [6, 6, 6, 6, 4, 4, 3, 3][rows - 1]
}

/// Where sums go.
#[derive(Clone, Copy)]
pub(super) enum Out {
    F32(*mut f32),
    Bf16(*mut bf16),
}

impl Out {
    /// The place `at` elements further.
    pub fn at(self, at: usize) -> Out {
        match self {
            Out::F32(c) => Out::F32(c.wrapping_add(at)),
            Out::Bf16(c) => Out::Bf16(c.wrapping_add(at)),
        }
    }
}

/// One tile: where its operands lie and how its sums begin and end.
pub(super) struct Tile {
    /// A sliver of 8 rows.
    pub a: *const u32,
    /// The first of some slivers of 16 columns.
    pub b: *const u32,
    /// Words from one sliver of `B` to the next.
    pub b_sliver: usize,
    /// Element `(0, 0)` of the window of `C`.
    pub c: Out,
    /// Elements from one row of `C` to the next.
    pub c_row: usize,
    /// From `b` to the sliver that the next strip will read: fetched early.
    pub ahead: isize,
    /// Pairs in each sum.
    pub pairs: usize,
    /// Columns in the last sliver, `1..=16`.
    pub last: usize,
    /// Whether the sums start from `C` (f32) instead of zero.
    pub from_c: bool,
    /// What is added to each column at the end; null for nothing.
    pub bias: *const f32,
}

/// Computes a tile of so many rows and slivers.
///
/// # Safety
/// The CPU has avx512bf16; the pointers of `t` reach as far as its sizes say.
pub(super) unsafe fn tile(rows: usize, slivers: usize, t: &Tile) {
    macro_rules! pick {
        ($($r:literal: $($v:literal)+;)+) => {
            match (rows, slivers) {
                // SAFETY: the caller vouches for the CPU and for `t`.
                $($(($r, $v) => unsafe { shell::<$r, $v>(t) },)+)+
                _ => unreachable!("no tile of {rows} rows and {slivers} slivers"),
            }
        };
    }
    pick! {
        1: 1 2 3 4 5 6;
        2: 1 2 3 4 5 6;
        3: 1 2 3 4 5 6;
        4: 1 2 3 4 5 6;
        5: 1 2 3 4;
        6: 1 2 3 4;
        7: 1 2 3;
        8: 1 2 3;
    }
}

/// # Safety
/// As [`tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn shell<const R: usize, const V: usize>(t: &Tile) {
    // SAFETY: handed on.
    unsafe { if t.pairs * V > STREAMED { body::<R, V, true>(t) } else { body::<R, V, false>(t) } }
}

/// Computes a tile of `R` rows and `V` slivers whose `B` is fetched ahead (`STREAM`) or stays in the
/// first-level cache.
///
/// # Safety
/// As [`tile`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[allow(clippy::needless_range_loop)] // `r` and `v` are places in A, B and C as well as in `sum`
unsafe fn body<const R: usize, const V: usize, const STREAM: bool>(t: &Tile) {
    let mut sum = [[_mm512_setzero_ps(); V]; R];
    let mask = |v: usize| {
        let columns = if v + 1 == V { t.last } else { LANE };
        (0xffff_u32 >> (16 - columns)) as __mmask16
    };
    let pair = |x: __m512i| {
        // SAFETY: both are 512 bits without meaning of their own.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(x) }
    };
    // SAFETY: `pairs` words of each line of the packed operands, rows `0..R` of C and the columns
    // that the mask lets through are in bounds, as the caller vouches.
    unsafe {
        if let (true, Out::F32(c)) = (t.from_c, t.c) {
            for r in 0..R {
                for v in 0..V {
                    sum[r][v] = _mm512_maskz_loadu_ps(mask(v), c.add(r * t.c_row + v * LANE));
                }
            }
        }
        let (mut a, mut b) = (t.a, t.b);
        for _ in 0..t.pairs {
            if STREAM {
                for v in 0..V {
                    _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(v * t.b_sliver + AHEAD).cast());
                }
                _mm_prefetch::<_MM_HINT_T1>(b.wrapping_offset(t.ahead).cast());
            }
            if R >= V {
                let mut cols = [pair(_mm512_setzero_si512()); V];
                for v in 0..V {
                    cols[v] = pair(_mm512_loadu_si512(b.add(v * t.b_sliver).cast()));
                }
                for r in 0..R {
                    let x = pair(_mm512_set1_epi32(*a.add(r) as i32));
                    for v in 0..V {
                        sum[r][v] = _mm512_dpbf16_ps(sum[r][v], x, cols[v]);
                    }
                }
            } else {
                let mut rows = [pair(_mm512_setzero_si512()); R];
                for r in 0..R {
                    rows[r] = pair(_mm512_set1_epi32(*a.add(r) as i32));
                }
                for v in 0..V {
                    let col = pair(_mm512_loadu_si512(b.add(v * t.b_sliver).cast()));
                    for r in 0..R {
                        sum[r][v] = _mm512_dpbf16_ps(sum[r][v], rows[r], col);
                    }
                }
            }
            a = a.add(ROWS);
            b = b.add(LANE);
        }
        for v in 0..V {
            let mask = mask(v);
            if !t.bias.is_null() {
                let bias = _mm512_maskz_loadu_ps(mask, t.bias.add(v * LANE));
                for r in 0..R {
                    sum[r][v] = _mm512_add_ps(sum[r][v], bias);
                }
            }
            for r in 0..R {
                match t.c.at(r * t.c_row + v * LANE) {
                    Out::F32(c) => _mm512_mask_storeu_ps(c, mask, sum[r][v]),
                    Out::Bf16(c) => {
                        let rounded = _mm512_cvtneps_pbh(sum[r][v]);
                        let rounded = std::mem::transmute::<__m256bh, __m256i>(rounded);
                        _mm256_mask_storeu_epi16(c.cast(), mask, rounded);
                    }
                }
            }
        }
    }
}
