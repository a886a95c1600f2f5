//! The loops around the tiles: which operand is packed, how large the blocks are, how work is cut.

use super::pack::{self, Source};
use super::tile::{Kernels, Tile, even, kernels, slivers};
use super::{LANE, Line, MatMut, MatRef};
use crate::threads::parallel_for;
use std::cell::RefCell;

/// Longest sum of one block: a strip of `B` (48 x 512 floats, 96 KiB) then streams from the
/// second-level cache, and `C` is seldom read again.
const KC: usize = 512;
/// Columns of `B` packed at a time: `KC * NC` floats are 1 MiB, half of that cache.
const NC: usize = 480;
/// Rows of `A` packed at a time (256 KiB).
const MC: usize = 128;
/// From this many columns on, packing contiguous rows of `A` pays where the tier asks for it.
const PACK_A_COLS: usize = 128;
/// From this many rows on, a `B` with contiguous rows is worth packing.
const PACK_B_ROWS: usize = 96;
/// Below this many rows a `B` with contiguous columns is packed in pieces that stay in the
/// first-level cache.
const FEW_ROWS: usize = 48;
/// Floats of such a piece (24 KiB of 32 or more).
const FEW_ROWS_PACK: usize = 6144;
/// Multiply-adds that are worth a task of their own, counting a row as at least 8: fewer rows wait
/// for memory instead.
const TASK: usize = 2 << 20;
/// Most tasks of one product.
const TASKS: usize = 64;

/// The right operand.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    /// As the caller stores it.
    Plain(MatRef<'a>),
    /// Slivers of `k` rows.
    Packed(&'a [f32]),
}

/// A pointer that tasks share; each writes a window of its own.
#[derive(Clone, Copy)]
pub(super) struct Shared(pub *mut f32);
// SAFETY: `Shared` is made only where the tasks that use it write windows that do not overlap.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// The pointer. A method, so that closures take the whole of `Shared` with them.
    pub(super) fn get(self) -> *mut f32 {
        self.0
    }
}

/// Computes `C = A B (+ bias) (+ C)`; sizes agree.
pub(super) fn product(a: MatRef, b: Right, bias: Option<&[f32]>, c: &mut MatMut, accumulate: bool) {
    let (m, n, k) = (c.rows, c.cols, a.cols);
    if m == 0 || n == 0 {
        return;
    }
    let code = kernels();
    let (row_cuts, col_cuts) = cuts(m, n, k);
    let c_data = Shared(c.data.as_mut_ptr());
    let c_row = c.row_stride;
    parallel_for(row_cuts * col_cuts, 1, |tasks| {
        for task in tasks {
            let (i, j) = (task / col_cuts, task % col_cuts);
            // Cuts of columns lie between slivers.
            let col = |j| (even(slivers(n), col_cuts, j) * LANE).min(n);
            let window = Window {
                rows: (even(m, row_cuts, i), even(m, row_cuts, i + 1)),
                cols: (col(j), col(j + 1)),
                c: c_data.get(),
                c_row,
                accumulate,
            };
            window.compute(code, a, b, bias);
        }
    });
}

/// Packs all of `b` into slivers of `b.rows` rows at `data`, which has room for them.
pub(super) fn pack_whole(b: MatRef, data: Shared) {
    let code = kernels();
    let stride = b.rows * LANE;
    // Pieces of whole slivers, 64 Ki elements or more.
    let grain = 65536_usize.div_ceil(stride.max(1)).next_multiple_of(4);
    parallel_for(slivers(b.cols), grain, |range| {
        let (from, to) = (range.start * LANE, (range.end * LANE).min(b.cols));
        let source = Source {
            data: b.data.as_ptr().wrapping_add(from * b.col_stride),
            row: b.row_stride,
            col: b.col_stride,
            rows: b.rows,
            cols: to - from,
        };
        // SAFETY: `MatRef` checked its bounds; pieces write slivers of their own.
        unsafe { (code.pack)(&source, data.get().add(range.start * stride), stride) };
    });
}

/// Into how many pieces the rows and the columns are cut: a matter of the sizes alone.
fn cuts(m: usize, n: usize, k: usize) -> (usize, usize) {
    let work = m.max(8).saturating_mul(n).saturating_mul(k);
    let tasks = (work / TASK).clamp(1, TASKS);
    let (mut rows, mut cols) = (1, 1);
    while rows * cols * 2 <= tasks {
        let (height, width) = (m / rows, n / cols);
        if width >= 192 && (width >= height || height < 128) {
            cols *= 2;
        } else if height >= 64 {
            rows *= 2;
        } else {
            break;
        }
    }
    (rows, cols)
}

/// The part of `C` that one task computes.
struct Window {
    rows: (usize, usize),
    cols: (usize, usize),
    c: *mut f32,
    c_row: usize,
    accumulate: bool,
}

thread_local! {
    /// Where this thread packs a block of `B` and one of `A`. They keep their size.
    static PACKED: RefCell<(Vec<Line>, Vec<Line>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// At least `len` floats of a buffer that only grows.
fn reserve(buffer: &mut Vec<Line>, len: usize) -> *mut f32 {
    let lines = len.div_ceil(LANE);
    if buffer.len() < lines {
        buffer.resize(lines, Line::ZERO);
    }
    buffer.as_mut_ptr().cast()
}

impl Window {
    fn compute(&self, code: &Kernels, a: MatRef, b: Right, bias: Option<&[f32]>) {
        let (m, k) = (self.rows.1 - self.rows.0, a.cols);
        let tiles = m.div_ceil(code.rows);
        let widest = code.slivers[m.div_ceil(tiles) - 1] * LANE;
        let (pack_b, kc, nc) = match b {
            Right::Packed(_) => (false, KC, usize::MAX),
            Right::Plain(b) if b.col_stride == 1 && m < PACK_B_ROWS => (false, KC, usize::MAX),
            Right::Plain(b) if b.col_stride != 1 && m < FEW_ROWS => {
                (true, (FEW_ROWS_PACK / widest).next_multiple_of(16), widest)
            }
            Right::Plain(_) => (true, KC, NC),
        };
        let pack_a = m > 1
            && (a.col_stride != 1 || code.pack_rows && self.cols.1 - self.cols.0 >= PACK_A_COLS);
        PACKED.with_borrow_mut(|(b_room, a_room)| {
            let mut n0 = self.cols.0;
            while n0 < self.cols.1 {
                let n1 = n0.saturating_add(nc).min(self.cols.1);
                // The last block takes what is left, so that none is short.
                let blocks = k.div_ceil(kc).max(1);
                for block in 0..blocks {
                    let (k0, k1) = (even(k, blocks, block), even(k, blocks, block + 1));
                    let kb = k1 - k0;
                    // SAFETY: the pointers made here reach rows `k0..k1` and columns `n0..n1` of B,
                    // which `MatRef` checked or the packed slivers hold.
                    let (b_at, b_row, b_sliver) = unsafe {
                        match b {
                            Right::Packed(data) => {
                                (data.as_ptr().add(n0 * k + k0 * LANE), LANE, k * LANE)
                            }
                            Right::Plain(b) => {
                                let at = b
                                    .data
                                    .as_ptr()
                                    .wrapping_add(k0 * b.row_stride + n0 * b.col_stride);
                                if pack_b {
                                    let room = reserve(b_room, kb * slivers(n1 - n0) * LANE);
                                    let source = Source {
                                        data: at,
                                        row: b.row_stride,
                                        col: b.col_stride,
                                        rows: kb,
                                        cols: n1 - n0,
                                    };
                                    (code.pack)(&source, room, kb * LANE);
                                    (room.cast_const(), LANE, kb * LANE)
                                } else {
                                    (at, b.row_stride, LANE)
                                }
                            }
                        }
                    };
                    let step = Step {
                        code,
                        n: (n0, n1),
                        k: (k0, k1),
                        b: (b_at, b_row, b_sliver),
                        from_c: self.accumulate || block > 0,
                        bias: bias.filter(|_| block + 1 == blocks),
                    };
                    self.step(&step, a, pack_a, a_room);
                }
                n0 = n1;
            }
        });
    }

    /// Adds the products of one block of `k` to the columns `n` of the window.
    fn step(&self, step: &Step, a: MatRef, pack_a: bool, room: &mut Vec<Line>) {
        let m = self.rows.1 - self.rows.0;
        let kb = step.k.1 - step.k.0;
        let blocks = if pack_a { m.div_ceil(MC) } else { 1 };
        for block in 0..blocks {
            let (m0, m1) = (even(m, blocks, block), even(m, blocks, block + 1));
            let (top, height) = (self.rows.0 + m0, m1 - m0);
            let tiles = height.div_ceil(step.code.rows);
            let at = a.data.as_ptr().wrapping_add(top * a.row_stride + step.k.0 * a.col_stride);
            let packed = pack_a.then(|| {
                let room = reserve(room, height * kb + pack::SLACK);
                let source = Source {
                    data: at,
                    row: a.row_stride,
                    col: a.col_stride,
                    rows: height,
                    cols: kb,
                };
                // SAFETY: rows `top..top + height` and columns `k` of A are in bounds; the room was
                // made for them.
                unsafe { (step.code.pack_a)(&source, tiles, room) };
                room.cast_const()
            });
            let rows =
                Rows { at, packed, row: a.row_stride, col: a.col_stride, top, height, tiles };
            self.tiles(step, &rows);
        }
    }

    /// Runs the tiles of some rows: strips of columns one after the other, so that a strip of `B`
    /// stays in the first-level cache while the rows pass by.
    fn tiles(&self, step: &Step, rows: &Rows) {
        let (n0, n1) = step.n;
        let (height, taller) = (rows.height / rows.tiles, rows.height % rows.tiles);
        let most = step.code.slivers[rows.height.div_ceil(rows.tiles) - 1];
        let strips = slivers(n1 - n0).div_ceil(most);
        let kb = step.k.1 - step.k.0;
        for strip in 0..strips {
            let first = even(slivers(n1 - n0), strips, strip);
            let width = even(slivers(n1 - n0), strips, strip + 1) - first;
            let col = n0 + first * LANE;
            let mut tile = Tile {
                a: rows.packed.unwrap_or(rows.at),
                a_row: rows.row,
                a_col: rows.col,
                b: step.b.0.wrapping_add(first * step.b.2),
                b_row: step.b.1,
                b_sliver: step.b.2,
                c: self.c.wrapping_add(rows.top * self.c_row + col),
                c_row: self.c_row,
                ahead: 0,
                k: kb,
                last: (n1 - col).min(width * LANE) - (width - 1) * LANE,
                from_c: step.from_c,
                bias: step.bias.map_or(std::ptr::null(), |bias| bias[col..].as_ptr()),
            };
            for i in 0..rows.tiles {
                // As `even` cuts them, without a division for each tile.
                let here = height + usize::from(i < taller);
                let a_step = if rows.packed.is_some() {
                    (tile.a_row, tile.a_col) = (1, here);
                    here * kb
                } else {
                    here * rows.row
                };
                // The first tiles fetch one sliver each of what the next strip will read.
                tile.ahead = if strip + 1 < strips && i < width {
                    ((width + i) * step.b.2) as isize
                } else {
                    0
                };
                // SAFETY: the tile lies inside of the window, which lies inside of C; its rows of A
                // and columns of B are in bounds; `kernels` gave code that this CPU runs.
                unsafe { (step.code.tile)(here, width, &tile) };
                tile.a = tile.a.wrapping_add(a_step);
                tile.c = tile.c.wrapping_add(here * self.c_row);
            }
        }
    }
}

/// The rows of `A` of one block.
struct Rows {
    at: *const f32,
    packed: Option<*const f32>,
    row: usize,
    col: usize,
    top: usize,
    height: usize,
    tiles: usize,
}

/// One block of columns and of `k`: where `B` lies, how the sums begin and end.
struct Step<'a> {
    code: &'a Kernels,
    n: (usize, usize),
    k: (usize, usize),
    b: (*const f32, usize, usize),
    from_c: bool,
    bias: Option<&'a [f32]>,
}
