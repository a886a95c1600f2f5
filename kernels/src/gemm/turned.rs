//! Some rows times a matrix whose columns are contiguous: computed as `C^T = B^T A^T`.
//!
//! To pack such a `B` its numbers are shuffled, which up to 96 rows do not repay. Its columns are rows of
//! `B^T`, which a tile reads in place, one number at a time; the vectors come from the rows of `A`,
//! which are packed instead. The sums of some columns gather in a room of their own, `[columns][rows]`,
//! and are transposed into `C` when they are done. Each is the same chain of multiply-adds as in any
//! other tile, so the bits are the same.

use super::drive::{Window, reserve};
use super::finish::Finish;
use super::pack::{Source, columns_of};
use super::tile::{Kernels, Tile, even, slivers};
use super::{LANE, Line, MatRef};
use crate::cpu::ahead::fetch;
use std::arch::x86_64::*;
use std::ops::RangeInclusive;

/// Columns of `B` whose sums gather: whole tiles of 6 (those of half slivers are cut evenly), and whole
/// vectors.
const COLUMNS: usize = 48;
/// Rows of a column that are fetched before its tile begins; the hardware follows from there.
const AHEAD: usize = 64;

/// Most floats of `A` that are packed (1 MiB): the room for them is never given back.
const MOST_A: usize = 1 << 18;

/// The code of a tier for this.
pub(super) struct Turned {
    /// How many rows of `A` may have.
    pub rows: RangeInclusive<usize>,
    /// Most columns of `B` in a tile of half a sliver: its rows.
    pub half_rows: usize,
    /// Computes a tile of so many rows and half a sliver.
    pub half: unsafe fn(usize, &Tile),
}

impl Turned {
    /// Tells whether `A` `[m, k]` is better multiplied like this. Short sums do not repay that they are
    /// transposed, and all of `A` is packed at once.
    pub(super) fn pays(&self, m: usize, k: usize) -> bool {
        self.rows.contains(&m) && (m..=MOST_A / (slivers(m) * LANE)).contains(&k)
    }
}

/// Computes a window of `C = A B (+ C)` and what follows.
///
/// # Safety
/// The CPU has what `code` needs, and avx2; the window lies inside of `C`; columns of `b` are contiguous.
pub(super) unsafe fn window(
    code: &Kernels,
    turned: &Turned,
    w: &Window,
    a: MatRef,
    b: MatRef,
    finish: Finish,
    (sums_room, a_room): (&mut Vec<Line>, &mut Vec<Line>),
) {
    let (m, k) = (w.rows.1 - w.rows.0, a.cols);
    // A last sliver of 8 rows or fewer is half as wide.
    let width = m.next_multiple_of(LANE / 2);
    let sums = reserve(sums_room, COLUMNS * width);
    let packed = reserve(a_room, slivers(m) * k * LANE);
    let source = Source {
        data: a.data.as_ptr().wrapping_add(w.rows.0 * a.row_stride),
        row: a.col_stride,
        col: a.row_stride,
        rows: k,
        cols: m,
        ahead: 8 * a.row_stride,
    };
    // SAFETY: `MatRef` checked the bounds of A; the room was made for these slivers.
    unsafe { (code.pack)(&source, packed, k * LANE) };
    let k_blocks = k.div_ceil(code.blocks.kc).max(1);
    // Columns whose lines all belong into one set of the first-level cache, which holds 8.
    let half_rows = if b.col_stride.is_multiple_of(1024) { code.rows } else { turned.half_rows };
    for n0 in (w.cols.0..w.cols.1).step_by(COLUMNS) {
        let n1 = (n0 + COLUMNS).min(w.cols.1);
        let c = w.c.wrapping_add(w.rows.0 * w.c_row + n0);
        if w.accumulate {
            // SAFETY: the window lies inside of C; the room holds `n1 - n0` rows of `width`.
            unsafe { transpose((c, w.c_row), (m, n1 - n0), (sums, width), std::ptr::null()) };
        }
        for block in 0..k_blocks {
            let (k0, k1) = (even(k, k_blocks, block), even(k, k_blocks, block + 1));
            for sliver in 0..slivers(m) {
                let half = m - sliver * LANE <= LANE / 2;
                let most = if half { half_rows } else { code.rows };
                let tiles = (n1 - n0).div_ceil(most);
                for i in 0..tiles {
                    let (from, to) = (even(n1 - n0, tiles, i), even(n1 - n0, tiles, i + 1));
                    let column = |j: usize, l: usize| {
                        b.data.as_ptr().wrapping_add((n0 + j) * b.col_stride + l)
                    };
                    if sliver == 0 {
                        // The columns of the next tile, in this block, the next one or the first.
                        let (next, top) = match (to < n1 - n0, block + 1 < k_blocks) {
                            (true, _) => (to, k0),
                            (false, true) => (0, k1),
                            (false, false) => (to, 0),
                        };
                        for j in next..next + to - from {
                            for l in (0..AHEAD.min(k1 - k0)).step_by(LANE) {
                                fetch(column(j, top + l));
                            }
                        }
                    }
                    let tile = Tile {
                        a: column(from, k0),
                        a_row: b.col_stride,
                        a_col: 1,
                        b: packed.wrapping_add((sliver * k + k0) * LANE),
                        b_row: LANE,
                        b_sliver: 0,
                        c: sums.wrapping_add(from * width + sliver * LANE),
                        c_row: width,
                        ahead: 0,
                        k: k1 - k0,
                        last: LANE,
                        from_c: w.accumulate || block > 0,
                        bias: std::ptr::null(),
                        padded: true,
                    };
                    (w.before_tile)();
                    // SAFETY: columns `from..to` of B are in bounds, and the room has a row for each.
                    unsafe {
                        if half {
                            (turned.half)(to - from, &tile);
                        } else {
                            (code.tile)(to - from, 1, &tile);
                        }
                    }
                }
            }
        }
        let bias = finish.bias.map_or(std::ptr::null(), |bias| bias[n0..n1].as_ptr());
        // SAFETY: as above; the window can be written, and so read by what follows.
        unsafe {
            transpose((sums, width), (n1 - n0, m), (c, w.c_row), bias);
            finish.apply(c, w.c_row, (w.rows.0, n0), (m, n1 - n0));
        }
    }
}

/// `to[c][r] = from[r][c] + bias[r]` for `[rows, cols]` numbers of `from`; no bias if it is null.
///
/// # Safety
/// The CPU has avx2; both sides are in bounds for rows as far apart as said, and so is the bias.
#[target_feature(enable = "avx2")]
unsafe fn transpose(
    (from, from_row): (*const f32, usize),
    (rows, cols): (usize, usize),
    (to, to_row): (*mut f32, usize),
    bias: *const f32,
) {
    let (whole_rows, whole_cols) = (rows / 8 * 8, cols / 4 * 4);
    // SAFETY: all places are below `rows` and `cols`.
    unsafe {
        let one = |r: usize, c: usize| {
            let x = *from.add(r * from_row + c);
            *to.add(c * to_row + r) = if bias.is_null() { x } else { x + *bias.add(r) };
        };
        for r in (0..whole_rows).step_by(8) {
            let at = from.add(r * from_row);
            for c in (0..whole_cols).step_by(4) {
                let lines = std::array::from_fn(|j| at.add(j * from_row + c));
                for (i, mut x) in columns_of(lines).into_iter().enumerate() {
                    if !bias.is_null() {
                        x = _mm256_add_ps(x, _mm256_loadu_ps(bias.add(r)));
                    }
                    _mm256_storeu_ps(to.add((c + i) * to_row + r), x);
                }
            }
            for c in whole_cols..cols {
                (r..r + 8).for_each(|r| one(r, c));
            }
        }
        for r in whole_rows..rows {
            (0..cols).for_each(|c| one(r, c));
        }
    }
}
