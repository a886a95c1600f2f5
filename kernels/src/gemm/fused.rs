//! Tiles of 512-bit vectors that pack `B` while they compute.
//!
//! Multiply-adds leave half of the vector ports idle, and shuffles use the other half: the first tile
//! of a strip of columns lays the strip out block by block, one block ahead of its sums, at little
//! more than the time of the sums. Tiles below it find the strip packed. The order of adds is that
//! of every other tile.

use super::avx512::{Sums, begin, finish};
use super::pack::columns_of;
use super::tile::{BLOCK, FRESH_SLIVERS, Fresh, Tile};
use std::arch::x86_64::*;

/// How many rows ahead a `B` with contiguous columns is fetched.
const AHEAD: usize = 4 * BLOCK;
/// How many rows ahead a `B` with contiguous rows is fetched.
const ROWS_AHEAD: usize = 16;

/// Picks the code for a tile's size.
///
/// # Safety
/// The CPU has avx512f and avx2; the pointers of `t` and `f` reach as far as their sizes say; `t.k`
/// is at least [`BLOCK`], the rows of `A` are packed.
pub(super) unsafe fn dispatch(rows: usize, slivers: usize, t: &Tile, f: &Fresh) {
    macro_rules! pick {
        ($($r:literal: $($v:literal)+;)+) => {
            match (rows, slivers) {
                // SAFETY: the caller vouches for the CPU, for `t` and for `f`.
                $($(($r, $v) => unsafe {
                    if f.col == 1 { copied::<$r, $v>(t, f) } else { transposed::<$r, $v>(t, f) }
                },)+)+
                _ => unreachable!("no tile of {rows} rows and {slivers} slivers"),
            }
        };
    }
    pick! {
        2: 1 2 3 4;
        3: 1 2 3 4;
        4: 1 2 3 4;
        5: 1 2 3 4;
        6: 1 2 3 4;
        7: 1 2 3;
        8: 1 2 3;
    }
}

/// Adds the products of one row of packed `B` at `b` and one column of packed `A` at `a`.
///
/// # Safety
/// As [`dispatch`].
#[inline(always)]
#[allow(clippy::needless_range_loop)] // `r` and `v` are places in A and B as well as in `sum`
unsafe fn step<const R: usize, const V: usize>(
    sum: &mut Sums<R, V>,
    a: *const f32,
    b: *const f32,
    sliver: usize,
) {
    // SAFETY: the caller vouches for the CPU and for both places.
    unsafe {
        if R >= V {
            let mut cols = [_mm512_setzero_ps(); V];
            for v in 0..V {
                cols[v] = _mm512_loadu_ps(b.add(v * sliver));
            }
            for r in 0..R {
                let x = _mm512_set1_ps(*a.add(r));
                for v in 0..V {
                    sum[r][v] = _mm512_fmadd_ps(x, cols[v], sum[r][v]);
                }
            }
        } else {
            let mut rows = [_mm512_setzero_ps(); R];
            for r in 0..R {
                rows[r] = _mm512_set1_ps(*a.add(r));
            }
            for v in 0..V {
                let col = _mm512_loadu_ps(b.add(v * sliver));
                for r in 0..R {
                    sum[r][v] = _mm512_fmadd_ps(rows[r], col, sum[r][v]);
                }
            }
        }
    }
}

/// Lays out columns of `B` that are contiguous.
struct Layout {
    /// Element 0 of each column; those beyond the last repeat it, nobody stores their sums.
    columns: [*const f32; FRESH_SLIVERS * 16],
    sliver: usize,
    k: usize,
    /// From a column to what the next strip begins with.
    next: isize,
}

impl Layout {
    /// Packs 16 rows from row `l` on of the 8 columns of unit `u` at `to`.
    ///
    /// # Safety
    /// As [`dispatch`].
    #[inline(always)]
    unsafe fn pack(&self, l: usize, u: usize, to: *mut f32) {
        // Beyond the last row the next strip begins.
        let ahead = (l + AHEAD) as isize;
        let ahead = if l + AHEAD < self.k { ahead } else { ahead - self.k as isize + self.next };
        // SAFETY: rows `l..l + 16` of the columns are in bounds, and so is their place.
        unsafe {
            let columns = self.columns.as_ptr().add(8 * u).cast::<[*const f32; 8]>().read();
            let to = to.add(u / 2 * self.sliver + u % 2 * 8);
            for column in columns {
                _mm_prefetch::<_MM_HINT_T0>(column.wrapping_offset(ahead).cast());
            }
            for q in (0..BLOCK).step_by(4) {
                for (i, x) in
                    columns_of(columns.map(|column| column.add(l + q))).into_iter().enumerate()
                {
                    _mm256_storeu_ps(to.add((q + i) * 16), x);
                }
            }
        }
    }

    /// Packs the last rows, from `l` on and fewer than 17, at `to`; up to three rows before `to` are
    /// written as well.
    ///
    /// # Safety
    /// As [`dispatch`].
    #[inline(never)]
    #[target_feature(enable = "avx2")]
    unsafe fn pack_last(&self, l: usize, units: usize, to: *mut f32) {
        for (u, columns) in self.columns.chunks_exact(8).take(units).enumerate() {
            let to = to.wrapping_add(u / 2 * self.sliver + u % 2 * 8);
            for q in (l..self.k).step_by(4) {
                // The last four rows once more, rather than fewer.
                let q = q.min(self.k - 4);
                // SAFETY: rows `q..q + 4 <= k` are in bounds, and so is their place.
                unsafe {
                    let lines = std::array::from_fn(|j| columns[j].add(q));
                    for (i, x) in columns_of(lines).into_iter().enumerate() {
                        let row = (q + i) as isize - l as isize;
                        _mm256_storeu_ps(to.wrapping_offset(row * 16), x);
                    }
                }
            }
        }
    }
}

/// A tile whose columns of `B` are contiguous: they are transposed.
///
/// # Safety
/// As [`dispatch`].
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn transposed<const R: usize, const V: usize>(t: &Tile, f: &Fresh) {
    let mut layout =
        Layout { columns: [f.data; FRESH_SLIVERS * 16], sliver: t.b_sliver, k: t.k, next: f.next };
    for (j, column) in layout.columns[..V * 16].iter_mut().enumerate() {
        *column = f.data.wrapping_add(j.min(f.cols - 1) * f.col);
    }
    let room = t.b.cast_mut();
    let place = |block: usize| {
        let block = if f.ring { block % 2 } else { block };
        room.wrapping_add(block * BLOCK * 16)
    };
    // Whole blocks that are packed ahead; the rest is at most a block.
    let whole = (t.k - 1) / BLOCK;
    // SAFETY: the caller vouches for A, B and C.
    unsafe {
        let mut sum = begin::<R, V>(t);
        let mut a = t.a;
        if whole > 0 {
            for u in 0..2 * V {
                layout.pack(0, u, place(0));
            }
        }
        for block in 0..whole {
            let mut b = place(block).cast_const();
            let (l, to) = ((block + 1) * BLOCK, place(block + 1));
            let more = block + 1 < whole;
            if !more {
                layout.pack_last(l, 2 * V, to);
            }
            for u in 0..2 * V {
                if more {
                    layout.pack(l, u, to);
                }
                for _ in 0..BLOCK / (2 * V) {
                    step(&mut sum, a, b, t.b_sliver);
                    a = a.add(R);
                    b = b.add(16);
                }
            }
            for _ in 0..BLOCK % (2 * V) {
                step(&mut sum, a, b, t.b_sliver);
                a = a.add(R);
                b = b.add(16);
            }
        }
        if whole == 0 {
            layout.pack_last(0, 2 * V, place(0));
        }
        let mut b = place(whole).cast_const();
        for _ in whole * BLOCK..t.k {
            step(&mut sum, a, b, t.b_sliver);
            a = a.add(R);
            b = b.add(16);
        }
        finish(t, &sum);
    }
}

/// A tile whose rows of `B` are contiguous: they are copied.
///
/// # Safety
/// As [`dispatch`].
#[target_feature(enable = "avx512f,avx2,fma")]
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
                *col = if v + 1 == V {
                    _mm512_maskz_loadu_ps(mask, at)
                } else {
                    _mm512_loadu_ps(at)
                };
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
