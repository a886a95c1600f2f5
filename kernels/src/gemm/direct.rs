//! Few rows times a matrix whose columns are contiguous, such as a linear layer's weight, with 512-bit
//! vectors.
//!
//! Blocks of 16 columns of `B` are transposed in registers and multiplied at once: shuffles
//! run on ports that multiply-adds leave idle. Nothing is packed for a product of few rows; for more
//! rows the first tile of a strip also writes what it transposed, packed, for those below. The order
//! of adds is that of every other tile, and so are the bits.

use super::tile::{Fresh, Tile};
use std::arch::x86_64::*;

/// Rows of a column in a cache line: how far a loop goes before it fetches again.
const LINE: usize = 16;
/// How many rows ahead columns are fetched.
const AHEAD: usize = 8 * LINE;
/// From this many rows on shuffles are in the way of multiply-adds.
const QUARTERS: usize = 5;

/// Computes a tile of so many rows, which are packed; `f` says where `f.cols` columns of `B` begin.
/// They are packed at `t.b` as well unless that is null.
///
/// # Safety
/// The CPU has avx512f; the pointers of `t` and `f` reach as far as their sizes say.
pub(super) unsafe fn avx512(rows: usize, t: &Tile, f: &Fresh) {
    // SAFETY: handed on.
    unsafe {
        match rows {
            1 => tile::<1>(t, f),
            2 => tile::<2>(t, f),
            3 => tile::<3>(t, f),
            4 => tile::<4>(t, f),
            5 => tile::<5>(t, f),
            6 => tile::<6>(t, f),
            7 => tile::<7>(t, f),
            8 => tile::<8>(t, f),
            _ => unreachable!("no tile of {rows} rows"),
        }
    }
}

/// Computes `R` rows.
///
/// # Safety
/// As [`avx512`].
#[target_feature(enable = "avx512f")]
unsafe fn tile<const R: usize>(t: &Tile, f: &Fresh) {
    // 16 columns whose lines all belong into one set of the first-level cache, which holds 8 or 12.
    let crowded = f.col.is_multiple_of(1024);
    for col in (0..f.cols).step_by(16) {
        // SAFETY: handed on.
        unsafe {
            match (f.cols - col >= 16, R < QUARTERS || crowded, t.b.is_null()) {
                (true, true, true) => sliver::<R, true, false, false>(t, f, col),
                (true, true, false) => sliver::<R, true, false, true>(t, f, col),
                (true, false, true) => sliver::<R, true, true, false>(t, f, col),
                (true, false, false) => sliver::<R, true, true, true>(t, f, col),
                (false, _, true) => sliver::<R, false, false, false>(t, f, col),
                (false, _, false) => sliver::<R, false, false, true>(t, f, col),
            }
        }
    }
}

/// Rows 0 to 3 of 16 columns, which `quarter` reads.
///
/// # Safety
/// The CPU has avx512f; `quarter` reads what may be read.
#[inline(always)] // it takes on the features of the loop that it stands in
unsafe fn four_rows(quarter: impl Fn(usize) -> __m128) -> [__m512; 4] {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let x: [__m512; 4] = std::array::from_fn(|j| {
            let x = _mm512_castps128_ps512(quarter(j));
            // A load that spreads and a blend, neither of which needs the ports of shuffles.
            let x = _mm512_mask_broadcast_f32x4(x, 0x00f0, quarter(j + 4));
            let x = _mm512_mask_broadcast_f32x4(x, 0x0f00, quarter(j + 8));
            _mm512_mask_broadcast_f32x4(x, 0xf000, quarter(j + 12))
        });
        let (y0, y1) = (_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
        let (y2, y3) = (_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
        let (y0, y1) = (_mm512_castps_pd(y0), _mm512_castps_pd(y1));
        let (y2, y3) = (_mm512_castps_pd(y2), _mm512_castps_pd(y3));
        [
            _mm512_castpd_ps(_mm512_unpacklo_pd(y0, y2)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(y0, y2)),
            _mm512_castpd_ps(_mm512_unpacklo_pd(y1, y3)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(y1, y3)),
        ]
    }
}

/// Transposes 16 lines of 16 numbers.
///
/// # Safety
/// The CPU has avx512f.
#[inline(always)] // it takes on the features of the loop that it stands in
#[allow(clippy::needless_range_loop)] // four places of one pattern
unsafe fn transposed(x: [__m512; 16]) -> [__m512; 16] {
    let (mut y, mut z, mut out) = (x, x, x);
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        for i in 0..8 {
            y[2 * i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]);
            y[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
        }
        for i in (0..16).step_by(4) {
            let pairs = |j: usize| _mm512_castps_pd(y[i + j]);
            z[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs(0), pairs(2)));
            z[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs(0), pairs(2)));
            z[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs(1), pairs(3)));
            z[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs(1), pairs(3)));
        }
        for i in 0..4 {
            let even = _mm512_shuffle_f32x4::<0x88>(z[i], z[4 + i]);
            let odd = _mm512_shuffle_f32x4::<0xdd>(z[i], z[4 + i]);
            let even_2 = _mm512_shuffle_f32x4::<0x88>(z[8 + i], z[12 + i]);
            let odd_2 = _mm512_shuffle_f32x4::<0xdd>(z[8 + i], z[12 + i]);
            out[i] = _mm512_shuffle_f32x4::<0x88>(even, even_2);
            out[4 + i] = _mm512_shuffle_f32x4::<0x88>(odd, odd_2);
            out[8 + i] = _mm512_shuffle_f32x4::<0xdd>(even, even_2);
            out[12 + i] = _mm512_shuffle_f32x4::<0xdd>(odd, odd_2);
        }
    }
    out
}

/// Computes the sliver from column `col` on, which is `WHOLE` or short, and packs it at `t.b` if
/// `PACK`.
///
/// Lines are loaded whole and once, or in quarters if `QUARTER`: that takes half of the shuffles but
/// four visits to a line, between which columns a multiple of 4 KiB apart push each other out of the
/// first-level cache.
///
/// # Safety
/// As [`avx512`].
#[target_feature(enable = "avx512f")]
#[allow(clippy::needless_range_loop)] // `r` is a place in A and C as well as in `sum`
unsafe fn sliver<const R: usize, const WHOLE: bool, const QUARTER: bool, const PACK: bool>(
    t: &Tile,
    f: &Fresh,
    col: usize,
) {
    let data = f.data.wrapping_add(col * f.col);
    let left = f.cols - col;
    // Columns beyond the last repeat it; nobody stores their sums.
    let column = |j: usize| data.wrapping_add(if WHOLE { j } else { j.min(left - 1) } * f.col);
    let room = t.b.cast_mut().wrapping_add(col / 16 * t.b_sliver);
    let lanes = (0xffff_u32 >> (if WHOLE { 0 } else { 16 - left })) as __mmask16;
    let whole = t.k / LINE * LINE;
    // SAFETY: rows `0..k` of those columns, the room, and what A and C hold for them are in bounds,
    // and so are the lanes that masks let through.
    unsafe {
        let c = |r: usize| t.c.wrapping_add(r * t.c_row + col);
        let mut sum = [_mm512_setzero_ps(); R];
        if t.from_c {
            for r in 0..R {
                sum[r] = _mm512_maskz_loadu_ps(lanes, c(r));
            }
        }
        let multiply = |sum: &mut [__m512; R], rows: &[__m512], a: *const f32, l: usize| {
            for (i, x) in rows.iter().enumerate() {
                if PACK {
                    _mm512_storeu_ps(room.add((l + i) * 16), *x);
                }
                for r in 0..R {
                    let a = _mm512_set1_ps(*a.add(i * R + r));
                    sum[r] = _mm512_fmadd_ps(a, *x, sum[r]);
                }
            }
        };
        let mut a = t.a;
        for l in (0..whole).step_by(LINE) {
            // Beyond the last row the next sliver begins.
            let past = if l + AHEAD < t.k { l } else { (16 * f.col + l).wrapping_sub(t.k) };
            for j in 0..LINE {
                let ahead = column(j).wrapping_add(past).wrapping_add(AHEAD);
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            }
            if QUARTER {
                for l in (l..l + LINE).step_by(4) {
                    let rows = four_rows(|j| _mm_loadu_ps(column(j).add(l)));
                    multiply(&mut sum, &rows, a, l);
                    a = a.wrapping_add(4 * R);
                }
            } else {
                let lines = std::array::from_fn(|j| _mm512_loadu_ps(column(j).add(l)));
                multiply(&mut sum, &transposed(lines), a, l);
                a = a.wrapping_add(LINE * R);
            }
        }
        if whole < t.k {
            let rows = (0xffff_u32 >> (16 - (t.k - whole))) as __mmask16;
            let lines = std::array::from_fn(|j| _mm512_maskz_loadu_ps(rows, column(j).add(whole)));
            multiply(&mut sum, &transposed(lines)[..t.k - whole], a, whole);
        }
        for r in 0..R {
            let mut x = sum[r];
            if !t.bias.is_null() {
                x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(lanes, t.bias.add(col)));
            }
            if WHOLE {
                _mm512_storeu_ps(c(r), x);
            } else {
                _mm512_mask_storeu_ps(c(r), lanes, x);
            }
        }
    }
}
