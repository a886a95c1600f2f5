//! The loops around the tiles: which operand is packed, how large the blocks are, how work is cut.

use super::blocks::FEW_ROWS;
use super::finish::Finish;
use super::one;
use super::pack::{self, Source};
use super::tall;
use super::tile::{Fresh, Kernels, Tile, even, kernels, slivers};
#[cfg(target_arch = "x86_64")]
use super::turned;
use super::{LANE, Line, MatMut, MatRef};
use crate::cpu::ahead::fetch;
use crate::threads::{parallel_for, threads};
use std::cell::RefCell;

/// Slivers of a strip that is not packed: what follows its sums finds them in the cache.
const ONCE: usize = 32;
/// Longest sum of few rows, which nothing is packed for, times their number (16 KiB of `A`).
const KC_FEW: usize = 4096;
/// Several tasks for each thread, so that a late one does not hold up all.
const GRAIN: Grain = Grain { task: 1 << 20, tasks_per_thread: 4, tall: 512 };

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

/// Computes `C = A B (+ C)` and what follows; sizes agree.
pub(super) fn product(a: MatRef, b: Right, finish: Finish, c: &mut MatMut, accumulate: bool) {
    let (m, n, k) = (c.rows, c.cols, a.cols);
    if m == 0 || n == 0 {
        return;
    }
    if let Right::Plain(b) = b
        && one::fits(m, &b)
    {
        return one::product(a, b, finish, c, accumulate);
    }
    if let Right::Plain(b) = b
        && tall::fits(&a, &b, &finish)
    {
        return tall::product(a, b, c, accumulate);
    }
    if threads() == 1 {
        // Cuts cost a packing of `A` each and a strip that is not fetched ahead.
        return product_alone(a, b, finish, c, accumulate, &|| {});
    }
    let code = kernels();
    let (row_cuts, col_cuts) = GRAIN.cuts(m, n, k, threads());
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
                before_tile: &|| {},
            };
            window.compute(code, a, b, finish);
        }
    });
}

/// [`product`] on the calling thread alone, with a call to `before_tile` before each tile.
pub(super) fn product_alone(
    a: MatRef,
    b: Right,
    finish: Finish,
    c: &mut MatMut,
    accumulate: bool,
    before_tile: &dyn Fn(),
) {
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    let (rows, cols, c_row) = ((0, c.rows), (0, c.cols), c.row_stride);
    let window = Window { rows, cols, c: c.data.as_mut_ptr(), c_row, accumulate, before_tile };
    window.compute(kernels(), a, b, finish);
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
            ahead: 8 * b.col_stride,
        };
        // SAFETY: `MatRef` checked its bounds; pieces write slivers of their own.
        unsafe { (code.pack)(&source, data.get().add(range.start * stride), stride) };
    });
}

/// What a product is cut into for the threads.
pub(crate) struct Grain {
    /// Multiply-adds that are worth a task of their own, counting a row as at least 8: fewer rows wait
    /// for memory instead.
    pub task: usize,
    /// Most tasks of one product for each thread.
    pub tasks_per_thread: usize,
    /// Rows from which on a window that is as tall as it is wide is cut across its rows.
    pub tall: usize,
}

impl Grain {
    /// Into how many pieces the rows and the columns are cut for so many threads.
    ///
    /// The number of threads may have a say here, unlike elsewhere: a sum does not depend on the window
    /// it lies in. Each window packs its own rows and columns, so there are few, and they are wide.
    pub(crate) fn cuts(&self, m: usize, n: usize, k: usize, threads: usize) -> (usize, usize) {
        let work = m.max(8).saturating_mul(n).saturating_mul(k);
        let tasks = (work / self.task).min(self.tasks_per_thread * threads);
        let (mut rows, mut cols) = (1, 1);
        while threads > 1 && rows * cols * 2 <= tasks {
            let (height, width) = (m / rows, n / cols);
            if height >= self.tall && height >= width {
                rows *= 2;
            } else if width >= 192 {
                cols *= 2;
            } else if height >= 64 {
                rows *= 2;
            } else {
                break;
            }
        }
        (rows, cols)
    }
}

/// The part of `C` that one task computes.
pub(super) struct Window<'a> {
    pub rows: (usize, usize),
    pub cols: (usize, usize),
    pub c: *mut f32,
    pub c_row: usize,
    pub accumulate: bool,
    /// Called before each tile.
    pub before_tile: &'a dyn Fn(),
}

thread_local! {
    /// Where this thread packs a block of `B` and one of `A`. They keep their size.
    static PACKED: RefCell<(Vec<Line>, Vec<Line>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// At least `len` floats of a buffer that only grows.
pub(super) fn reserve(buffer: &mut Vec<Line>, len: usize) -> *mut f32 {
    let lines = len.div_ceil(LANE);
    if buffer.len() < lines {
        buffer.resize(lines, Line::ZERO);
    }
    buffer.as_mut_ptr().cast()
}

impl Window<'_> {
    fn compute(&self, code: &Kernels, a: MatRef, b: Right, finish: Finish) {
        let (m, n, k) = (self.rows.1 - self.rows.0, self.cols.1 - self.cols.0, a.cols);
        let blocks = &code.blocks;
        let direct = code.direct.as_ref();
        #[cfg(target_arch = "x86_64")]
        if let (Right::Plain(b), Some(turned)) = (b, &code.turned)
            && b.row_stride == 1
            && turned.pays(m, k)
        {
            return PACKED.with_borrow_mut(|(sums, packed)| {
                // SAFETY: only tiers with avx2 have this code; the window lies inside of C.
                unsafe { turned::window(code, turned, self, a, b, finish, (sums, packed)) }
            });
        }
        // Few rows, which nothing of B is packed for.
        let in_place = direct.is_some_and(|direct| !direct.packs && m <= direct.rows);
        let plain_a = m == 1 || a.col_stride == 1 && n < blocks.pack_a_cols;
        let (fresh, pack_a) = match b {
            Right::Plain(b) if b.col_stride == 1 => {
                // A single tile of rows reads contiguous rows of B in place.
                (code.copied.is_some() && !plain_a && m > code.rows, !plain_a)
            }
            Right::Plain(b) if b.row_stride == 1 => match direct {
                Some(direct) if in_place || direct.packs => (true, m > 1 || a.col_stride != 1),
                _ => (false, !plain_a),
            },
            _ => (false, !plain_a),
        };
        let keep_a = pack_a && m * k <= blocks.keep_a;
        let widest = code.slivers[m.div_ceil(m.div_ceil(code.rows)) - 1] * LANE;
        let mc = if fresh { blocks.mc_fresh } else { blocks.mc };
        let kc = blocks.kc;
        let (pack_b, kc, nc) = match b {
            Right::Packed(_) => (false, kc, if keep_a { n.min(blocks.packed_nc) } else { n }),
            Right::Plain(_) if fresh => (false, if in_place { KC_FEW / m } else { kc }, n),
            Right::Plain(b) if b.col_stride == 1 && m < blocks.pack_b_rows => (false, kc, n),
            Right::Plain(b) if b.col_stride != 1 && m < FEW_ROWS => {
                (true, (blocks.few_rows_pack / widest).next_multiple_of(16), widest)
            }
            Right::Plain(_) => (true, kc, if keep_a { blocks.narrow } else { blocks.nc }),
        };
        let (k_blocks, n_blocks) = (k.div_ceil(kc).max(1), n.div_ceil(nc));
        // Between lines of contiguous columns.
        let k_at = |block| (even(k.div_ceil(LANE), k_blocks, block) * LANE).min(k);
        PACKED.with_borrow_mut(|(b_room, a_room)| {
            let whole = |block| (self.rows.0, m, k_at(block), k_at(block + 1));
            if keep_a {
                let room = reserve(a_room, m * k + pack::SLACK);
                for block in 0..k_blocks {
                    // SAFETY: block `k0..k1` starts at `m * k0`; the room holds all of them.
                    unsafe { pack_rows(code, a, whole(block), room.add(m * k_at(block))) };
                }
            }
            for n_block in 0..n_blocks {
                let n0 = self.cols.0 + n_block * nc;
                let n1 = (n0 + nc).min(self.cols.1);
                for block in 0..k_blocks {
                    let (k0, k1) = (k_at(block), k_at(block + 1));
                    let step = Step {
                        code,
                        n: (n0, n1),
                        k: k1 - k0,
                        padded: pack_b || fresh || matches!(b, Right::Packed(_)),
                        fresh: match b {
                            Right::Plain(b) if fresh => {
                                let at = k0 * b.row_stride + n0 * b.col_stride;
                                Some((b.data.as_ptr().wrapping_add(at), b.row_stride, b.col_stride))
                            }
                            _ => None,
                        },
                        b: match b {
                            Right::Plain(_) if fresh && m <= code.rows => {
                                (std::ptr::null(), LANE, 0)
                            }
                            Right::Plain(_) if fresh => {
                                let room = reserve(b_room, widest * (k1 - k0));
                                (room.cast_const(), LANE, (k1 - k0) * LANE)
                            }
                            Right::Packed(data) => {
                                (data[n0 * k + k0 * LANE..].as_ptr(), LANE, k * LANE)
                            }
                            Right::Plain(b) if pack_b => {
                                let ahead = if nc == widest { (k1 - k0) * b.row_stride } else { 0 };
                                pack_columns(code, b, (n0, n1, k0, k1), ahead, b_room)
                            }
                            Right::Plain(b) => {
                                let at = k0 * b.row_stride + n0 * b.col_stride;
                                (b.data.as_ptr().wrapping_add(at), b.row_stride, LANE)
                            }
                        },
                        from_c: self.accumulate || block > 0,
                        finish: Some(finish).filter(|_| block + 1 == k_blocks),
                    };
                    if keep_a {
                        let packed = a_room.as_ptr().cast::<f32>().wrapping_add(m * k0);
                        self.tiles(&step, &Rows::packed(packed, self.rows.0, m, code));
                    } else if pack_a {
                        let blocks = m.div_ceil(mc);
                        for block in 0..blocks {
                            let top = self.rows.0 + even(m, blocks, block);
                            let height = self.rows.0 + even(m, blocks, block + 1) - top;
                            let room = reserve(a_room, height * step.k + pack::SLACK);
                            // SAFETY: the room was made for these rows.
                            unsafe { pack_rows(code, a, (top, height, k0, k1), room) };
                            self.tiles(&step, &Rows::packed(room, top, height, code));
                        }
                    } else {
                        let at = self.rows.0 * a.row_stride + k0 * a.col_stride;
                        let rows = Rows {
                            at: a.data.as_ptr().wrapping_add(at),
                            strides: Some((a.row_stride, a.col_stride)),
                            ..Rows::packed(std::ptr::null(), self.rows.0, m, code)
                        };
                        self.tiles(&step, &rows);
                    }
                }
            }
        });
    }

    /// Runs the tiles of some rows: strips of columns one after the other, so that a strip of `B`
    /// stays in the first-level cache while the rows pass by.
    fn tiles(&self, step: &Step, rows: &Rows) {
        let (n0, n1) = step.n;
        let (height, taller) = (rows.height / rows.tiles, rows.height % rows.tiles);
        let most = step.code.slivers[rows.height.div_ceil(rows.tiles) - 1];
        let once = step.fresh.is_some() && step.b.0.is_null();
        let most = if once { ONCE } else { most };
        let strips = slivers(n1 - n0).div_ceil(most);
        for strip in 0..strips {
            let first = even(slivers(n1 - n0), strips, strip);
            let width = even(slivers(n1 - n0), strips, strip + 1) - first;
            let col = n0 + first * LANE;
            let bias = step.finish.and_then(|finish| finish.bias);
            let mut tile = Tile {
                a: rows.at,
                a_row: 1,
                a_col: 1,
                b: step.b.0.wrapping_add(if step.fresh.is_some() { 0 } else { first * step.b.2 }),
                b_row: step.b.1,
                b_sliver: step.b.2,
                c: self.c.wrapping_add(rows.top * self.c_row + col),
                c_row: self.c_row,
                ahead: 0,
                k: step.k,
                last: (n1 - col).min(width * LANE) - (width - 1) * LANE,
                from_c: step.from_c,
                bias: bias.map_or(std::ptr::null(), |bias| bias[col..].as_ptr()),
                padded: step.padded,
            };
            let cols = (width - 1) * LANE + tile.last;
            let mut fresh = step.fresh.map(|(data, row, col)| Fresh {
                data: data.wrapping_add(first * LANE * col),
                row,
                col,
                cols,
            });
            let mut row = rows.top;
            for i in 0..rows.tiles {
                // As `even` cuts them, without a division for each tile.
                let here = height + usize::from(i < taller);
                let a_step;
                (tile.a_row, tile.a_col, a_step) = match rows.strides {
                    Some((row, col)) => (row, col, here * row),
                    None => (1, here, here * step.k),
                };
                // The first tiles fetch one sliver each of what the next strip will read.
                tile.ahead = if step.fresh.is_none() && strip + 1 < strips && i < width {
                    ((width + i) * step.b.2) as isize
                } else {
                    0
                };
                if step.from_c && i + 1 < rows.tiles {
                    // The sums that the next tile goes on with: they may come from memory.
                    for r in here..2 * here {
                        for v in 0..width {
                            fetch(tile.c.wrapping_add(r * self.c_row + v * LANE));
                        }
                    }
                }
                (self.before_tile)();
                // SAFETY: the tile lies inside of the window, which lies inside of C; its rows of A
                // and columns of B are in bounds; `kernels` gave code that this CPU runs.
                unsafe {
                    match (fresh.take(), step.code.copied, &step.code.direct) {
                        (Some(f), Some(copied), _) if f.col == 1 => copied(here, width, &tile, &f),
                        (Some(f), _, Some(direct)) => (direct.tile)(here, &tile, &f),
                        _ => (step.code.tile)(here, width, &tile),
                    }
                    if let Some(finish) = step.finish {
                        finish.apply(tile.c, self.c_row, (row, col), (here, cols));
                    }
                }
                row += here;
                tile.a = tile.a.wrapping_add(a_step);
                tile.c = tile.c.wrapping_add(here * self.c_row);
            }
        }
    }
}

/// Packs columns `n0..n1` of rows `k0..k1` of `b`: where the slivers lie, and their strides.
///
/// `ahead` as in [`Source`]; 0 for the next columns.
fn pack_columns(
    code: &Kernels,
    b: MatRef,
    (n0, n1, k0, k1): (usize, usize, usize, usize),
    ahead: usize,
    room: &mut Vec<Line>,
) -> (*const f32, usize, usize) {
    let stride = (k1 - k0) * LANE;
    let room = reserve(room, slivers(n1 - n0) * stride);
    let source = Source {
        data: b.data.as_ptr().wrapping_add(k0 * b.row_stride + n0 * b.col_stride),
        row: b.row_stride,
        col: b.col_stride,
        rows: k1 - k0,
        cols: n1 - n0,
        ahead: if ahead > 0 { ahead } else { 8 * b.col_stride },
    };
    // SAFETY: `MatRef` checked its bounds; the room was made for these slivers.
    unsafe { (code.pack)(&source, room, stride) };
    (room.cast_const(), LANE, stride)
}

/// Packs columns `k0..k1` of `height` rows of `a` from row `top` on into tiles.
///
/// # Safety
/// `room` holds `height * (k1 - k0) + SLACK` elements.
unsafe fn pack_rows(
    code: &Kernels,
    a: MatRef,
    (top, height, k0, k1): (usize, usize, usize, usize),
    room: *mut f32,
) {
    let source = Source {
        data: a.data.as_ptr().wrapping_add(top * a.row_stride + k0 * a.col_stride),
        row: a.row_stride,
        col: a.col_stride,
        rows: height,
        cols: k1 - k0,
        ahead: 0,
    };
    // SAFETY: `MatRef` checked its bounds; the caller vouches for the room.
    unsafe { (code.pack_a)(&source, height.div_ceil(code.rows), room) };
}

/// The rows of `A` of one block, cut into tiles.
struct Rows {
    at: *const f32,
    /// As in `A`; `None` if packed.
    strides: Option<(usize, usize)>,
    top: usize,
    height: usize,
    tiles: usize,
}

impl Rows {
    fn packed(at: *const f32, top: usize, height: usize, code: &Kernels) -> Rows {
        Rows { at, strides: None, top, height, tiles: height.div_ceil(code.rows) }
    }
}

/// One block of columns and of `k`: where `B` lies, how the sums begin and end.
struct Step<'a> {
    code: &'a Kernels,
    n: (usize, usize),
    k: usize,
    b: (*const f32, usize, usize),
    from_c: bool,
    /// What follows the sums, if this is the last block of them.
    finish: Option<Finish<'a>>,
    padded: bool,
    /// A `B` that is not packed yet, which the first tile of a strip reads, and packs for those below it:
    /// element `(0, 0)` and strides.
    fresh: Option<(*const f32, usize, usize)>,
}
