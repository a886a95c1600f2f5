//! Sums, means and maxima of rows, of one axis and of everything, in an order that depends on the sizes
//! only. Source: `kernels/cuda/reduce.cu`.

use super::Float;
use crate::cuda::{Args, Error, Gpu, Launch};

/// What becomes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// Its sum.
    Sum,
    /// Its sum by its length.
    Mean,
    /// Its largest number; NaN is passed over.
    Max,
}

/// Columns up to which a warp works on a row.
const WARP_COLS: usize = 2048;

/// Reduces each row.
///
/// # Shapes
/// `x` `[rows, cols]`, `y` `[rows]` in f32.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn reduce_rows(
    gpu: &dyn Gpu,
    float: Float,
    kind: Reduction,
    x: u64,
    y: u64,
    rows: usize,
    cols: usize,
) -> Result<(), Error> {
    if rows == 0 {
        return Ok(());
    }
    // Few rows leave warps without work: a block each then.
    let warps = cols <= WARP_COLS && rows >= 8 * gpu.properties().sms as usize;
    let (form, launch) = match warps {
        true => ("warp", Launch::linear(rows.div_ceil(4) as u32, 128)),
        false => ("block", Launch::linear(rows as u32, 256).shared(256)),
    };
    let args = Args::new().i32(kind as i32).span(x, rows * cols * float.bytes());
    let args = args.span(y, rows * 4).i64(rows as i64).i64(cols as i64);
    let kernel = format!("reduce_rows_{}_{form}", float.name());
    // SAFETY: the kernel takes kind, x, y, rows, cols and touches `[rows, cols]` of x and `[rows]` of y.
    unsafe { gpu.launch(&kernel, &launch, &args) }
}

/// Finds the place of the largest number of each row, the first of equal ones; NaN is passed over.
///
/// # Shapes
/// `x` `[rows, cols]` in f32, `y` `[rows]` of `u32`.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn argmax_rows(gpu: &dyn Gpu, x: u64, y: u64, rows: usize, cols: usize) -> Result<(), Error> {
    if rows == 0 {
        return Ok(());
    }
    let args = Args::new().span(x, rows * cols * 4).span(y, rows * 4);
    let args = args.i64(rows as i64).i64(cols as i64);
    let launch = Launch::linear(rows.div_ceil(4) as u32, 128);
    // SAFETY: the kernel takes x, y, rows, cols and touches `[rows, cols]` of x and `[rows]` of y.
    unsafe { gpu.launch("argmax_rows_f32", &launch, &args) }
}

/// How the sums over an axis are shared among blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Split {
    /// Threads side by side on `inner`, a power of two.
    lanes: usize,
    /// Blocks side by side.
    tiles: usize,
    /// Numbers of the axis for one block.
    chunk: usize,
    /// Blocks one after the other on the axis.
    parts: usize,
    wide: bool,
}

impl Split {
    fn new(gpu: &dyn Gpu, outer: usize, dim: usize, inner: usize, wide: bool) -> Split {
        let v = if wide { 4 } else { 1 };
        // At least 8 threads down the axis where it is long; 32 bytes and more side by side.
        let most = if dim >= 64 { 32 } else { 256 };
        let lanes = inner.div_ceil(v).next_power_of_two().clamp(8, most);
        let tiles = inner.div_ceil(lanes * v);
        let height = 256 / lanes;
        let blocks = 4 * gpu.properties().sms as usize;
        // A thread sums up at least 16 numbers, or another pass does not pay.
        let parts = (blocks / (tiles * outer)).clamp(1, dim.div_ceil(16 * height).max(1));
        let chunk = dim.div_ceil(parts).max(1);
        Split { lanes, tiles, chunk, parts: dim.div_ceil(chunk).max(1), wide }
    }
}

/// Bytes of the scratch memory that [`sum_axis`] wants.
pub fn sum_axis_scratch(gpu: &dyn Gpu, outer: usize, dim: usize, inner: usize) -> usize {
    // Whether a thread has four columns or one depends on addresses, too: room for both.
    let parts = |wide| Split::new(gpu, outer, dim, inner, wide).parts;
    parts(true).max(parts(false)) * outer * inner * 4
}

/// Sums over the middle axis; adds to `y` if `accumulate`.
///
/// # Shapes
/// `x` `[outer, dim, inner]`, `y` `[outer, inner]`, f32; `scratch` [`sum_axis_scratch`] bytes.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn sum_axis(
    gpu: &dyn Gpu,
    x: u64,
    y: u64,
    outer: usize,
    dim: usize,
    inner: usize,
    accumulate: bool,
    scratch: u64,
) -> Result<(), Error> {
    if inner == 1 && outer > 1 && !accumulate && dim > 0 {
        return reduce_rows(gpu, Float::F32, Reduction::Sum, x, y, outer, dim);
    }
    sum_axis_of_two(gpu, x, y, 0, outer, dim, inner, accumulate, scratch)
}

/// [`sum_axis`] where `outer` is 2 and the second sums go elsewhere: those of weights and of biases.
pub(in crate::cuda) fn sum_axis_of_two(
    gpu: &dyn Gpu,
    x: u64,
    y: u64,
    second: u64,
    outer: usize,
    dim: usize,
    inner: usize,
    accumulate: bool,
    scratch: u64,
) -> Result<(), Error> {
    if outer * inner == 0 {
        return Ok(());
    }
    let wide = inner.is_multiple_of(4) && x.is_multiple_of(16);
    let s = Split::new(gpu, outer, dim, inner, wide);
    if s.parts == 1 {
        return axis_pass(gpu, x, y, second, [outer, dim, inner], s, accumulate);
    }
    axis_pass(gpu, x, scratch, 0, [outer, dim, inner], s, false)?;
    let all = outer * inner;
    let half_wide = second == 0 || (all / 2).is_multiple_of(4);
    let wide = all.is_multiple_of(4) && half_wide && scratch.is_multiple_of(16);
    let last = Split::whole(s.parts, all, wide);
    axis_pass(gpu, scratch, y, second, [1, s.parts, all], last, accumulate)
}

impl Split {
    /// All of the axis in one block: 32 numbers side by side, 8 threads down.
    fn whole(dim: usize, inner: usize, wide: bool) -> Split {
        let lanes = if wide { 8 } else { 32 };
        let tiles = inner.div_ceil(lanes * if wide { 4 } else { 1 });
        Split { lanes, tiles, chunk: dim.max(1), parts: 1, wide }
    }
}

fn axis_pass(
    gpu: &dyn Gpu,
    x: u64,
    y: u64,
    second: u64,
    [outer, dim, inner]: [usize; 3],
    s: Split,
    accumulate: bool,
) -> Result<(), Error> {
    let results = outer * inner / if second == 0 { 1 } else { 2 };
    let args = Args::new().span(x, outer * dim * inner * 4).span(y, s.parts * results * 4);
    let args = args.optional((second != 0).then_some(second), results * 4);
    let args = args.i64(outer as i64).i64(dim as i64).i64(inner as i64).i32(s.lanes as i32);
    let args = args.i64(s.chunk as i64).i32(i32::from(accumulate)).i32(i32::from(s.wide));
    let room = 256 * 4 * if s.wide { 4 } else { 1 };
    let launch = Launch::linear((s.tiles * s.parts * outer) as u32, 256).shared(room);
    // SAFETY: the kernel takes x, y, second or null, the sizes, lanes, chunk, accumulate, wide; it touches
    // x `[outer, dim, inner]` and `[parts, outer, inner]` of y or, if parts is 1, half of that and second.
    unsafe { gpu.launch("sum_axis_f32", &launch, &args) }
}

/// Blocks that share the sum of `n` numbers.
fn sum_blocks(gpu: &dyn Gpu, n: usize) -> usize {
    n.div_ceil(4096).clamp(1, 8 * gpu.properties().sms as usize)
}

/// Bytes of the scratch memory that [`sum_all`] wants.
pub fn sum_all_scratch(gpu: &dyn Gpu, n: usize) -> usize {
    sum_blocks(gpu, n) * 8
}

/// Computes `scale` times the sum of all numbers.
///
/// # Shapes
/// `x` `[n]`, `y` `[1]`, f32; `scratch` [`sum_all_scratch`] bytes.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn sum_all(
    gpu: &dyn Gpu,
    x: u64,
    y: u64,
    n: usize,
    scale: f64,
    scratch: u64,
) -> Result<(), Error> {
    let blocks = sum_blocks(gpu, n);
    let args = Args::new().span(x, n * 4).span(scratch, blocks * 8).i64(n as i64);
    let launch = Launch::linear(blocks as u32, 256).shared(64);
    // SAFETY: the kernel takes x, partial, n and touches `n` floats of x and a double for each block.
    unsafe { gpu.launch("sum_all_f32", &launch, &args) }?;
    let args = Args::new().span(scratch, blocks * 8).span(y, 4).i32(blocks as i32).plain(&scale);
    // SAFETY: the kernel takes partial, y, count, scale and touches `count` doubles and one float.
    unsafe { gpu.launch("sum_all_finish", &Launch::linear(1, 32), &args) }
}

/// The simplest forms, for comparison: a thread a sum.
pub mod plain {
    use super::{Args, Error, Gpu, Launch};

    /// Sums over the middle axis of `[outer, dim, inner]`.
    ///
    /// # Errors
    /// If the spans are not allocated, or the driver refuses.
    pub fn sum_axis(
        gpu: &dyn Gpu,
        x: u64,
        y: u64,
        outer: usize,
        dim: usize,
        inner: usize,
    ) -> Result<(), Error> {
        let args = Args::new().span(x, outer * dim * inner * 4).span(y, outer * inner * 4);
        let args = args.i64(outer as i64).i64(dim as i64).i64(inner as i64);
        let launch = Launch::linear((outer * inner).div_ceil(128) as u32, 128);
        // SAFETY: the kernel takes x, y, outer, dim, inner and touches what their shapes say.
        unsafe { gpu.launch("sum_axis_plain", &launch, &args) }
    }

    /// Sums each row.
    ///
    /// # Errors
    /// If the spans are not allocated, or the driver refuses.
    pub fn sum_rows(gpu: &dyn Gpu, x: u64, y: u64, rows: usize, cols: usize) -> Result<(), Error> {
        let args = Args::new().span(x, rows * cols * 4).span(y, rows * 4);
        let launch = Launch::linear(rows.div_ceil(128) as u32, 128);
        // SAFETY: the kernel takes x, y, rows, cols and touches what their shapes say.
        unsafe { gpu.launch("sum_rows_plain", &launch, &args.i64(rows as i64).i64(cols as i64)) }
    }
}
