//! Copies operands into the order in which tiles read them.
//!
//! `B` becomes slivers of 16 columns: `sliver[k][16]`, one after the other, zeros beyond the last
//! column. A tile reads some neighbouring slivers downwards, so every line that is fetched is used
//! whole, and the same packed matrix serves tiles of any width on any tier.
//! `A` becomes `tile[k][rows]`, unless its rows are contiguous and too few columns of `B` meet them for
//! that to pay ([`Blocks::pack_a_cols`](super::blocks::Blocks::pack_a_cols)): then it is read in place.

use super::LANE;
use super::tile::even;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// A window of a matrix to pack.
pub(super) struct Source {
    /// Element `(0, 0)`.
    pub data: *const f32,
    /// Elements from one row to the next.
    pub row: usize,
    /// Elements from one column to the next.
    pub col: usize,
    /// Number of rows: the length of the sums.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// From an element to the one that will be packed some hundred cycles later: fetched early.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // only its transposes do so
    pub ahead: usize,
}

/// Packs `src` into slivers that lie `stride` elements apart.
///
/// # Safety
/// `src` is in bounds, and `dst` holds `stride` elements for each sliver, at least `16 * rows`.
pub(super) unsafe fn plain(src: &Source, dst: *mut f32, stride: usize) {
    // SAFETY: handed on.
    unsafe { any(src, dst, stride) }
}

/// [`plain`] with 256-bit transposes.
///
/// # Safety
/// As [`plain`]; the CPU has avx2.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn avx2(src: &Source, dst: *mut f32, stride: usize) {
    #[target_feature(enable = "avx2")]
    unsafe fn shell(src: &Source, dst: *mut f32, stride: usize) {
        // SAFETY: handed on.
        unsafe { if src.row == 1 { transpose(src, dst, stride) } else { any(src, dst, stride) } }
    }
    // SAFETY: handed on.
    unsafe { shell(src, dst, stride) }
}

/// [`avx2`] with 512-bit copies.
///
/// # Safety
/// As [`plain`]; the CPU has avx2 and avx512f.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn avx512(src: &Source, dst: *mut f32, stride: usize) {
    #[target_feature(enable = "avx2,avx512f")]
    unsafe fn shell(src: &Source, dst: *mut f32, stride: usize) {
        // SAFETY: handed on.
        unsafe {
            // 256-bit shuffles have two ports where 512-bit ones have one.
            if src.row == 1 { transpose(src, dst, stride) } else { any(src, dst, stride) }
        }
    }
    // SAFETY: handed on.
    unsafe { shell(src, dst, stride) }
}

/// Any strides: whole slivers of contiguous columns are copied, the rest goes element by element.
///
/// # Safety
/// As [`plain`].
#[inline(always)]
unsafe fn any(src: &Source, dst: *mut f32, stride: usize) {
    // Four slivers at a time: a row gives whole cache lines, and the writes are few streams.
    for group in (0..src.cols).step_by(4 * LANE) {
        let cols = (src.cols - group).min(4 * LANE);
        let full = if src.col == 1 { cols / LANE } else { 0 };
        for l in 0..src.rows {
            // SAFETY: row `l` and columns `group..group + cols` are in bounds of `src`; sliver
            // `group / 16 + s` has room for row `l`, as the caller vouches.
            unsafe {
                let from = src.data.add(l * src.row + group * src.col);
                let to = dst.add(group / LANE * stride + l * LANE);
                for s in 0..full {
                    let line = from.add(s * LANE).cast::<[f32; LANE]>().read_unaligned();
                    to.add(s * stride).cast::<[f32; LANE]>().write_unaligned(line);
                }
                for s in full..cols.div_ceil(LANE) {
                    for lane in 0..LANE {
                        let c = s * LANE + lane;
                        *to.add(s * stride + lane) =
                            if c < cols { *from.add(c * src.col) } else { 0.0 };
                    }
                }
            }
        }
    }
}

/// Transposes 8 lines of 4 numbers into 4 vectors of 8.
///
/// # Safety
/// 4 numbers can be read at each line; the CPU has avx2.
#[cfg(target_arch = "x86_64")]
#[inline(always)] // it takes on the features of the loop that it stands in
pub(crate) unsafe fn columns_of(lines: [*const f32; 8]) -> [__m256; 4] {
    // SAFETY: the caller vouches for the CPU and for 4 numbers at each line.
    unsafe {
        let x: [__m256; 4] = std::array::from_fn(|j| {
            let low = _mm256_castps128_ps256(_mm_loadu_ps(lines[j]));
            _mm256_insertf128_ps(low, _mm_loadu_ps(lines[j + 4]), 1)
        });
        let (y0, y1) = (_mm256_unpacklo_ps(x[0], x[1]), _mm256_unpackhi_ps(x[0], x[1]));
        let (y2, y3) = (_mm256_unpacklo_ps(x[2], x[3]), _mm256_unpackhi_ps(x[2], x[3]));
        let [y0, y1, y2, y3] = [y0, y1, y2, y3].map(|y| _mm256_castps_pd(y));
        [
            _mm256_castpd_ps(_mm256_unpacklo_pd(y0, y2)),
            _mm256_castpd_ps(_mm256_unpackhi_pd(y0, y2)),
            _mm256_castpd_ps(_mm256_unpacklo_pd(y1, y3)),
            _mm256_castpd_ps(_mm256_unpackhi_pd(y1, y3)),
        ]
    }
}

/// Columns that are contiguous (`src.row == 1`): transposes blocks of 8 columns by 4 rows.
///
/// 8 columns, not 16: columns a power of two apart share a set of the first-level cache, which
/// holds 12 lines on the machines that this was measured on.
///
/// # Safety
/// As [`plain`]; the CPU has avx2.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn transpose(src: &Source, dst: *mut f32, stride: usize) {
    for group in (0..src.cols.next_multiple_of(LANE)).step_by(8) {
        // SAFETY: lane `group % 16` of sliver `group / 16` exists for every group below.
        let to = unsafe { dst.add(group / LANE * stride + group % LANE) };
        let whole = if group + 8 <= src.cols { src.rows / 4 * 4 } else { 0 };
        let column = |j: usize| src.data.wrapping_add((group + j) * src.col);
        let columns: [*const f32; 8] = std::array::from_fn(column);
        for line in (0..whole).step_by(LANE) {
            for column in columns {
                _mm_prefetch(column.wrapping_add(line + src.ahead).cast(), _MM_HINT_T1);
            }
            for l in (line..whole.min(line + LANE)).step_by(4) {
                // SAFETY: columns `group..group + 8` and rows `l..l + 4` are in bounds.
                unsafe {
                    let lines = columns.map(|column| column.add(l));
                    for (i, x) in columns_of(lines).into_iter().enumerate() {
                        _mm256_storeu_ps(to.add((l + i) * LANE), x);
                    }
                }
            }
        }
        for l in whole..src.rows {
            for j in 0..8 {
                // SAFETY: only columns below `cols` are read; the lane exists.
                unsafe {
                    *to.add(l * LANE + j) = if group + j < src.cols {
                        *src.data.add((group + j) * src.col + l)
                    } else {
                        0.0
                    };
                }
            }
        }
    }
}

/// Floats that packing `A` may write beyond its end.
pub(super) const SLACK: usize = 8;

/// Packs rows of `A` into tiles as [`even`] cuts them: tile `i`, which starts at row `r`, lies at
/// `dst + r * cols` as `[cols][rows of the tile]`. Here `src.cols` is the length of the sums.
///
/// # Safety
/// `src` is in bounds, and `dst` holds `src.rows * src.cols + SLACK` elements.
pub(super) unsafe fn plain_a(src: &Source, tiles: usize, dst: *mut f32) {
    // SAFETY: handed on.
    unsafe { any_a(src, tiles, dst) }
}

/// [`plain_a`] with 256-bit transposes; tiles have at most 8 rows.
///
/// # Safety
/// As [`plain_a`]; the CPU has avx2.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn avx2_a(src: &Source, tiles: usize, dst: *mut f32) {
    #[target_feature(enable = "avx2")]
    unsafe fn shell(src: &Source, tiles: usize, dst: *mut f32) {
        // SAFETY: handed on.
        unsafe { if src.col == 1 { transpose_a(src, tiles, dst) } else { any_a(src, tiles, dst) } }
    }
    // SAFETY: handed on.
    unsafe { shell(src, tiles, dst) }
}

/// Any strides.
///
/// # Safety
/// As [`plain_a`].
#[inline(always)]
unsafe fn any_a(src: &Source, tiles: usize, dst: *mut f32) {
    // 16 rows of the sums at a time: their lines stay near while all tiles take their part.
    for from in (0..src.cols).step_by(16) {
        let to = (from + 16).min(src.cols);
        for i in 0..tiles {
            let (start, end) = (even(src.rows, tiles, i), even(src.rows, tiles, i + 1));
            let height = end - start;
            for l in from..to {
                // SAFETY: rows `start..end` and column `l` are in bounds of `src`, and tile `i`
                // has room for them.
                unsafe {
                    let a = src.data.add(start * src.row + l * src.col);
                    let out = dst.add(start * src.cols + l * height);
                    if src.row == 1 && height == 8 {
                        out.cast::<[f32; 8]>()
                            .write_unaligned(a.cast::<[f32; 8]>().read_unaligned());
                    } else {
                        for r in 0..height {
                            *out.add(r) = *a.add(r * src.row);
                        }
                    }
                }
            }
        }
    }
}

/// Rows that are contiguous (`src.col == 1`).
///
/// 8 numbers are written for each column of a tile; what is too much for a lower tile is
/// overwritten by the next column, the next tile, or lies in the slack.
///
/// # Safety
/// As [`plain_a`]; the CPU has avx2; tiles have at most 8 rows.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn transpose_a(src: &Source, tiles: usize, dst: *mut f32) {
    for i in 0..tiles {
        let (start, end) = (even(src.rows, tiles, i), even(src.rows, tiles, i + 1));
        let height = end - start;
        // Rows beyond the last are replaced by the last.
        let row = |j: usize| src.data.wrapping_add((start + j).min(src.rows - 1) * src.row);
        let rows = [row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)];
        let out = dst.wrapping_add(start * src.cols);
        let whole = src.cols / 4 * 4;
        // SAFETY: columns `l..l + 4` of those rows are in bounds, and so are 8 numbers at
        // `l * height` of the tile's room or the slack.
        unsafe {
            for l in (0..whole).step_by(4) {
                for (i, x) in columns_of(rows.map(|row| row.add(l))).into_iter().enumerate() {
                    _mm256_storeu_ps(out.add((l + i) * height), x);
                }
            }
            for l in whole..src.cols {
                for (j, row) in rows[..height].iter().enumerate() {
                    *out.add(l * height + j) = *row.add(l);
                }
            }
        }
    }
}
