//! The loops around the tiles: what is packed when, how large the blocks are, how work is cut.

use super::Operand;
use super::avx512::{self, Out, ROWS, Tile, widest};
use super::dot;
use super::pack::{self, LANE, Part, Words, reserve};
use crate::gemm::{Grain, MatMut};
use crate::threads::{parallel_for, threads};
use half::bf16;
use std::cell::RefCell;
use std::ops::Range;

/// Longest sum of one block: a strip of `B` (48 x 1024 numbers, 96 KiB) then streams from the
/// second-level cache beside the rows of `A`.
const KC: usize = 1024;
/// Numbers of `A` packed at a time (384 KiB), and most rows.
const A_BLOCK: usize = 192 << 10;
/// Numbers of `B` packed at a time where many rows pass over them (4 MiB), and where few do (256 KiB,
/// which stay in the second-level cache until they are used).
const B_BLOCK: usize = 2 << 20;
const B_BLOCK_NEAR: usize = 128 << 10;
/// Words between the slivers of a packed block: a cache line, so that slivers whose length is a power
/// of two do not all begin in the same set of a cache.
const PAD: usize = LANE;
/// Twice the work of f32 in the same time, and packing that costs more beside it: fewer tasks.
const GRAIN: Grain = Grain { task: 4 << 20, tasks_per_thread: 2, tall: 256 };

/// The right operand.
#[derive(Clone, Copy)]
enum Right<'a> {
    /// As the caller stores it.
    Plain(Operand<'a>),
    /// Slivers of all of `k`.
    Packed(&'a Words),
}

/// A whole product: `C = A B (+ bias) (+ C)`.
#[derive(Clone, Copy)]
struct Job<'a> {
    a: Operand<'a>,
    b: Right<'a>,
    bias: Option<&'a [f32]>,
    c: Out,
    c_row: usize,
    n: usize,
    accumulate: bool,
}

// SAFETY: tasks write windows of `C` that do not overlap, and read the rest.
unsafe impl Send for Job<'_> {}
// SAFETY: as above.
unsafe impl Sync for Job<'_> {}

/// A pointer that tasks share; each writes slivers of its own.
#[derive(Clone, Copy)]
struct Room(*mut u32);
// SAFETY: as above.
unsafe impl Send for Room {}
// SAFETY: as above.
unsafe impl Sync for Room {}

impl Room {
    fn get(self) -> *mut u32 {
        self.0
    }
}

thread_local! {
    /// Where this thread packs a block of `A` and one of `B`. They keep their size.
    static PACKED: RefCell<[Words; 2]> = const { RefCell::new([const { Words::new() }; 2]) };
    /// Sums of a product that is rounded after several blocks of `k`.
    static SUMS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Cuts `len` into pieces as even as can be: the start of piece `i`.
#[inline]
fn even(len: usize, pieces: usize, i: usize) -> usize {
    len / pieces * i + (len % pieces).min(i)
}

/// Packs all of `b`.
pub(super) fn pack_whole(b: Operand, words: &mut Words) {
    assert!(avx512::is_available());
    let (slivers, stride) = (b.cols.div_ceil(LANE), b.rows.div_ceil(2) * LANE);
    let room = Room(reserve(words, slivers * stride));
    // Pieces of whole slivers, 128 Ki numbers or more.
    let grain = (1_usize << 16).div_ceil(stride.max(1)).next_multiple_of(4);
    parallel_for(slivers, grain, |range| {
        let lines = range.start * LANE..(range.end * LANE).min(b.cols);
        let to = room.get().wrapping_add(range.start * stride);
        // SAFETY: `Operand` checked its bounds, the assertion above the CPU; pieces write slivers of
        // their own.
        unsafe { pack::columns(b, Part { lines, k: 0..b.rows }, to, stride) };
    });
}

pub(super) fn product(a: Operand, b: Operand, c: &mut MatMut, accumulate: bool) {
    let (n, c_row) = (c.cols, c.row_stride);
    let c = Out::F32(c.data.as_mut_ptr());
    if dot::fits(a, b) {
        return dot::product(a, b, dot::To { c, c_row, accumulate });
    }
    run(Job { a, b: Right::Plain(b), bias: None, c, c_row, n, accumulate });
}

pub(super) fn rounded_product(a: Operand, b: Operand, c: &mut [bf16]) {
    let n = b.cols;
    if dot::fits(a, b) {
        let c = Out::Bf16(c.as_mut_ptr());
        return dot::product(a, b, dot::To { c, c_row: n, accumulate: false });
    }
    if a.cols <= KC {
        let c = Out::Bf16(c.as_mut_ptr());
        return run(Job { a, b: Right::Plain(b), bias: None, c, c_row: n, n, accumulate: false });
    }
    // Taken out while in use: the product may run other work on this thread, even this function.
    let mut sums = SUMS.take();
    if sums.len() < c.len() {
        sums.resize(c.len(), 0.0);
    }
    product(a, b, &mut MatMut::new(&mut sums, a.rows, n), false);
    round(&sums[..c.len()], c);
    SUMS.replace(sums);
}

/// Rounds sums that are done.
fn round(sums: &[f32], c: &mut [bf16]) {
    let len = c.len();
    let c = crate::cpu::shared::Shared::new(c);
    parallel_for(len, 1 << 16, |range| {
        // SAFETY: pieces do not overlap.
        let to = unsafe { c.slice(range.clone()) };
        half::slice::HalfFloatSliceExt::convert_from_f32_slice(to, &sums[range]);
    });
}

pub(super) fn packed_product(
    a: Operand,
    b: &Words,
    bias: Option<&[f32]>,
    c: &mut MatMut,
    accumulate: bool,
) {
    let (n, c_row) = (c.cols, c.row_stride);
    let c = Out::F32(c.data.as_mut_ptr());
    run(Job { a, b: Right::Packed(b), bias, c, c_row, n, accumulate });
}

pub(super) fn packed_product_alone(
    a: Operand,
    b: &Words,
    bias: Option<&[f32]>,
    c: &mut MatMut,
    accumulate: bool,
    before_tile: &dyn Fn(),
) {
    let (n, c_row) = (c.cols, c.row_stride);
    let c = Out::F32(c.data.as_mut_ptr());
    let job = Job { a, b: Right::Packed(b), bias, c, c_row, n, accumulate };
    window(&job, 0..a.rows, 0..n, before_tile);
}

/// Cuts a product into windows for the threads at hand: a sum does not depend on its window.
fn run(job: Job) {
    let (m, n) = (job.a.rows, job.n);
    let (row_cuts, col_cuts) = GRAIN.cuts(m, n, job.a.cols, threads());
    parallel_for(row_cuts * col_cuts, 1, |tasks| {
        for task in tasks {
            let (i, j) = (task / col_cuts, task % col_cuts);
            // Cuts of columns lie between slivers.
            let col = |j| (even(n.div_ceil(LANE), col_cuts, j) * LANE).min(n);
            let rows = even(m, row_cuts, i)..even(m, row_cuts, i + 1);
            window(&job, rows, col(j)..col(j + 1), &|| {});
        }
    });
}

/// Computes rows `rows` and columns `cols` of a product.
fn window(job: &Job, rows: Range<usize>, cols: Range<usize>, before_tile: &dyn Fn()) {
    assert!(avx512::is_available());
    let (m, n, k) = (rows.len(), cols.len(), job.a.cols);
    if m == 0 || n == 0 {
        return;
    }
    let k_blocks = k.div_ceil(KC).max(1);
    // Cuts of `k` lie between pairs.
    let k_at = |block: usize| (2 * even(k.div_ceil(2), k_blocks, block)).min(k);
    let kc = k_at(1).max(1);
    let m_blocks = m.div_ceil((A_BLOCK / kc).clamp(ROWS, 512) / ROWS * ROWS);
    let nc = match job.b {
        Right::Packed(_) => n,
        Right::Plain(_) => {
            let most = if m_blocks == 1 { B_BLOCK_NEAR } else { B_BLOCK };
            (most / kc / 48 * 48).max(48)
        }
    };
    let n_blocks = n.div_ceil(nc);
    // Taken out while in use, as above.
    let [mut a_room, mut b_room] = PACKED.take();
    let mut in_room = None;
    for n_block in 0..n_blocks {
        let n_at =
            |block: usize| cols.start + (even(n.div_ceil(LANE), n_blocks, block) * LANE).min(n);
        let (n0, n1) = (n_at(n_block), n_at(n_block + 1));
        for block in 0..k_blocks {
            let k_range = k_at(block)..k_at(block + 1);
            let pairs = k_range.len().div_ceil(2);
            let (b, b_sliver) = match job.b {
                Right::Packed(words) => {
                    let whole = k.div_ceil(2) * LANE;
                    let at = n0 / LANE * whole + k_range.start / 2 * LANE;
                    (words.as_ptr().cast::<u32>().wrapping_add(at), whole)
                }
                Right::Plain(b) => {
                    let stride = pairs * LANE + PAD;
                    let room = reserve(&mut b_room, (n1 - n0).div_ceil(LANE) * stride);
                    let part = Part { lines: n0..n1, k: k_range.clone() };
                    // SAFETY: the CPU by the assertion, the bounds by `Operand`; the room was made
                    // for these slivers.
                    unsafe { pack::columns(b, part, room, stride) };
                    (room.cast_const(), stride)
                }
            };
            for m_block in 0..m_blocks {
                let top = rows.start + even(m, m_blocks, m_block);
                let height = rows.start + even(m, m_blocks, m_block + 1) - top;
                let tiles = height.div_ceil(ROWS);
                let a_sliver = pairs * ROWS + PAD;
                let room = reserve(&mut a_room, tiles * a_sliver);
                if in_room != Some((block, m_block)) {
                    in_room = Some((block, m_block));
                    let part = Part { lines: top..top + height, k: k_range.clone() };
                    // SAFETY: as above; `even` gives each tile at most 8 rows.
                    unsafe {
                        pack::rows(job.a, part, tiles, |i| even(height, tiles, i), room, a_sliver)
                    };
                }
                let step = Step {
                    a: room,
                    a_sliver,
                    rows: top..top + height,
                    tiles,
                    b,
                    b_sliver,
                    cols: n0..n1,
                    pairs,
                    from_c: job.accumulate || block > 0,
                    bias: job.bias.filter(|_| block + 1 == k_blocks),
                };
                step.run(job.c, job.c_row, before_tile);
            }
        }
    }
    PACKED.replace([a_room, b_room]);
}

/// Packed rows times packed columns.
struct Step<'a> {
    a: *const u32,
    a_sliver: usize,
    rows: Range<usize>,
    tiles: usize,
    b: *const u32,
    b_sliver: usize,
    cols: Range<usize>,
    pairs: usize,
    from_c: bool,
    bias: Option<&'a [f32]>,
}

impl Step<'_> {
    /// Runs the tiles: strips of columns one after the other, so that a strip of `B` stays near while
    /// the rows pass by.
    fn run(&self, c: Out, c_row: usize, before_tile: &dyn Fn()) {
        let slivers = self.cols.len().div_ceil(LANE);
        let height = self.rows.len();
        let strips = slivers.div_ceil(widest(height.div_ceil(self.tiles)));
        for strip in 0..strips {
            let first = even(slivers, strips, strip);
            let width = even(slivers, strips, strip + 1) - first;
            let col = self.cols.start + first * LANE;
            let mut tile = Tile {
                a: self.a,
                b: self.b.wrapping_add(first * self.b_sliver),
                b_sliver: self.b_sliver,
                c: c.at(self.rows.start * c_row + col),
                c_row,
                ahead: 0,
                pairs: self.pairs,
                last: (self.cols.end - col).min(width * LANE) - (width - 1) * LANE,
                from_c: self.from_c,
                bias: self.bias.map_or(std::ptr::null(), |bias| bias[col..].as_ptr()),
            };
            let (low, taller) = (height / self.tiles, height % self.tiles);
            for i in 0..self.tiles {
                // As `even` cuts them, without a division for each tile.
                let here = low + usize::from(i < taller);
                // The first tiles fetch one sliver each of what the next strip will read.
                tile.ahead = if strip + 1 < strips && i < width {
                    ((width + i) * self.b_sliver) as isize
                } else {
                    0
                };
                before_tile();
                // SAFETY: `window` asserted the CPU; the tile lies inside of the window, which lies
                // inside of C, and the packed operands hold its rows and columns.
                unsafe { avx512::tile(here, width, &tile) };
                tile.a = tile.a.wrapping_add(self.a_sliver);
                tile.c = tile.c.at(here * c_row);
            }
        }
    }
}
