//! Layer normalisation. Source: `kernels/cuda/norm.cu`.

use super::rows::reduce::sum_axis_of_two;
use super::rows::{Float, Walk, columns};
use super::{Args, Error, Gpu, Launch};

pub mod channels;

/// What layer normalisation keeps for its gradient: addresses of `[rows]`, f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moments {
    /// The mean of each row.
    pub mean: u64,
    /// One over its deviation.
    pub rstd: u64,
}

/// Computes `y = (x - mean) / sqrt(var + eps) * weight + bias` for each row.
///
/// # Shapes
/// `x`, `y` `[rows, cols]`; they may be the same. `weight`, `bias` `[cols]` in f32.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
///
/// # Source
/// Ba, Kiros & Hinton 2016.
pub fn layer_norm_forward(
    gpu: &dyn Gpu,
    float: Float,
    x: u64,
    weight: u64,
    bias: u64,
    y: u64,
    moments: Moments,
    eps: f32,
    rows: usize,
    cols: usize,
) -> Result<(), Error> {
    forward(gpu, Walk::of(float, cols), float, x, weight, bias, y, moments, eps, rows, cols)
}

/// [`layer_norm_forward`] in a form of one's choice.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn forward(
    gpu: &dyn Gpu,
    walk: Walk,
    float: Float,
    x: u64,
    weight: u64,
    bias: u64,
    y: u64,
    moments: Moments,
    eps: f32,
    rows: usize,
    cols: usize,
) -> Result<(), Error> {
    if rows * cols == 0 {
        return Ok(());
    }
    let bytes = rows * cols * float.bytes();
    let args = Args::new().span(x, bytes).span(weight, cols * 4).span(bias, cols * 4);
    let args = args.span(y, bytes).span(moments.mean, rows * 4).span(moments.rstd, rows * 4);
    let args = columns(args.f32(eps).i64(rows as i64), walk, cols);
    let kernel = format!("layer_norm_forward_{}_{}", float.name(), walk.form);
    // SAFETY: the kernel takes x, weight, bias, y, mean, rstd, eps, rows, cols and touches what their
    // shapes say.
    unsafe { gpu.launch(&kernel, &walk.launch(gpu, rows, cols), &args) }
}

/// How the gradient goes over rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackwardWalk {
    /// The end of the kernel's name: packs of 16 bytes that a thread has of a row, rows at a time; `long`
    /// for a row of any length.
    pub form: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks for each multiprocessor.
    pub blocks_per_sm: u32,
}

impl BackwardWalk {
    /// The ways that can take rows of `cols` numbers, the preferred one first.
    pub fn all(float: Float, cols: usize) -> Vec<BackwardWalk> {
        let wide = 16 / float.bytes();
        let threads = cols.div_ceil(wide).next_multiple_of(32) as u32;
        let way = |form, blocks_per_sm| BackwardWalk { form, threads, blocks_per_sm };
        let fill = (1024 / threads.max(1)).clamp(1, 16);
        match (float, threads) {
            (Float::F32, ..=1024) => vec![way("p1r2", fill)],
            (Float::F32, ..=2048) => {
                vec![BackwardWalk { form: "p2r1", threads: 1024, blocks_per_sm: 1 }]
            }
            // A warp a row has no barrier to share.
            (Float::Bf16, ..=32) => vec![way("p1r2", fill), way("p1r1", 32)],
            (Float::Bf16, ..=1024) => vec![way("p1r1", fill)],
            _ => vec![BackwardWalk { form: "long", threads: 512, blocks_per_sm: 2 }],
        }
    }

    /// Blocks for so many rows.
    fn blocks(self, gpu: &dyn Gpu, rows: usize) -> usize {
        let at_once = if self.form == "p1r2" { 2 } else { 1 };
        rows.div_ceil(at_once).min((self.blocks_per_sm * gpu.properties().sms) as usize)
    }
}

/// Rows that one sum of a weight's gradient takes, where rows are long.
fn chunk(gpu: &dyn Gpu, rows: usize, cols: usize) -> usize {
    let tiles = cols.div_ceil(256);
    let parts = (8 * gpu.properties().sms as usize).div_ceil(tiles).clamp(1, rows.div_ceil(16));
    rows.div_ceil(parts)
}

/// Bytes of the scratch memory that [`layer_norm_backward`] wants.
pub fn layer_norm_backward_scratch(gpu: &dyn Gpu, float: Float, rows: usize, cols: usize) -> usize {
    if rows * cols == 0 {
        return 0;
    }
    let parts = |way: BackwardWalk| match way.form {
        "long" => rows.div_ceil(chunk(gpu, rows, cols)),
        _ => way.blocks(gpu, rows),
    };
    let parts = BackwardWalk::all(float, cols).into_iter().map(parts).max().unwrap_or(1);
    // The blocks' sums, and those of a first pass over them.
    2 * parts * cols * 4 + super::rows::reduce::sum_axis_scratch(gpu, 2, parts, cols)
}

/// Computes the gradients of layer normalisation; `d_weight` and `d_bias` are added to.
///
/// # Shapes
/// As in [`layer_norm_forward`]; `d_x`, `d_y` `[rows, cols]`; `d_weight`, `d_bias` `[cols]` in f32;
/// `scratch` [`layer_norm_backward_scratch`] bytes.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn layer_norm_backward(
    gpu: &dyn Gpu,
    float: Float,
    x: u64,
    weight: u64,
    moments: Moments,
    d_y: u64,
    d_x: u64,
    d_weight: u64,
    d_bias: u64,
    scratch: u64,
    rows: usize,
    cols: usize,
) -> Result<(), Error> {
    let way = BackwardWalk::all(float, cols)[0];
    let d = Gradients { d_y, d_x, d_weight, d_bias };
    backward(gpu, way, float, x, weight, moments, d, scratch, rows, cols)
}

/// Addresses of the gradients of layer normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gradients {
    /// Of the result, `[rows, cols]`.
    pub d_y: u64,
    /// Of the numbers, `[rows, cols]`; written.
    pub d_x: u64,
    /// Of the weight, `[cols]`; added to.
    pub d_weight: u64,
    /// Of the bias, `[cols]`; added to.
    pub d_bias: u64,
}

/// [`layer_norm_backward`] in a form of one's choice.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn backward(
    gpu: &dyn Gpu,
    way: BackwardWalk,
    float: Float,
    x: u64,
    weight: u64,
    moments: Moments,
    d: Gradients,
    scratch: u64,
    rows: usize,
    cols: usize,
) -> Result<(), Error> {
    if rows * cols == 0 {
        return Ok(());
    }
    let bytes = rows * cols * float.bytes();
    let args = Args::new().span(x, bytes).span(weight, cols * 4).span(moments.mean, rows * 4);
    let args = args.span(moments.rstd, rows * 4).span(d.d_y, bytes).span(d.d_x, bytes);
    let kernel = format!("layer_norm_backward_{}_{}", float.name(), way.form);
    let blocks = way.blocks(gpu, rows);
    let room = 2 * 8 * 32 * 4;
    let launch = Launch::linear(blocks as u32, way.threads).shared(room);
    let parts = if way.form == "long" {
        let args = args.i64(rows as i64).i64(cols as i64);
        // SAFETY: the kernel takes x, weight, mean, rstd, d_y, d_x, rows, cols and touches what their
        // shapes say.
        unsafe { gpu.launch(&kernel, &launch, &args) }?;
        weights(gpu, float, x, moments, d.d_y, scratch, rows, cols)?
    } else {
        let args = args.span(scratch, 2 * blocks * cols * 4).i64(rows as i64).i32(cols as i32);
        // SAFETY: the kernel takes x, weight, mean, rstd, d_y, d_x, partial, rows, cols; it touches
        // `[2, blocks, cols]` of partial and of the others what their shapes say.
        unsafe { gpu.launch(&kernel, &launch, &args) }?;
        blocks
    };
    let rest = scratch + (2 * parts * cols * 4) as u64;
    sum_axis_of_two(gpu, scratch, d.d_weight, d.d_bias, 2, parts, cols, true, rest)
}

/// Leaves sums for the gradients of weight and bias in `partial` `[2, parts, cols]`; returns `parts`.
fn weights(
    gpu: &dyn Gpu,
    float: Float,
    x: u64,
    moments: Moments,
    d_y: u64,
    partial: u64,
    rows: usize,
    cols: usize,
) -> Result<usize, Error> {
    let (chunk, bytes) = (chunk(gpu, rows, cols), rows * cols * float.bytes());
    let parts = rows.div_ceil(chunk);
    let args = Args::new().span(x, bytes).span(moments.mean, rows * 4);
    let args = args.span(moments.rstd, rows * 4).span(d_y, bytes);
    let args = args.span(partial, 2 * parts * cols * 4);
    let args = args.i64(rows as i64).i64(cols as i64).i64(chunk as i64);
    let launch = Launch::linear((cols.div_ceil(256) * parts) as u32, 256);
    let kernel = format!("layer_norm_weights_{}", float.name());
    // SAFETY: the kernel takes x, mean, rstd, d_y, partial, rows, cols, chunk and touches
    // `[2, parts, cols]` of partial and of the others what their shapes say.
    unsafe { gpu.launch(&kernel, &launch, &args) }?;
    Ok(parts)
}

/// The simplest forms, for comparison: f32, a thread a row.
pub mod plain {
    use super::{Args, Error, Float, Gpu, Gradients, Launch, Moments, sum_axis_of_two, weights};

    /// Layer normalisation.
    ///
    /// # Errors
    /// If the spans are not allocated, or the driver refuses.
    pub fn forward(
        gpu: &dyn Gpu,
        x: u64,
        weight: u64,
        bias: u64,
        y: u64,
        moments: Moments,
        eps: f32,
        rows: usize,
        cols: usize,
    ) -> Result<(), Error> {
        let bytes = rows * cols * 4;
        let args = Args::new().span(x, bytes).span(weight, cols * 4).span(bias, cols * 4);
        let args = args.span(y, bytes).span(moments.mean, rows * 4).span(moments.rstd, rows * 4);
        let args = args.f32(eps).i64(rows as i64).i64(cols as i64);
        let launch = Launch::linear(rows.div_ceil(128) as u32, 128);
        // SAFETY: the kernel takes x, weight, bias, y, mean, rstd, eps, rows, cols and touches what their
        // shapes say.
        unsafe { gpu.launch("layer_norm_forward_plain", &launch, &args) }
    }

    /// Its gradients.
    ///
    /// # Errors
    /// If the spans are not allocated, or the driver refuses.
    pub fn backward(
        gpu: &dyn Gpu,
        x: u64,
        weight: u64,
        moments: Moments,
        d: Gradients,
        scratch: u64,
        rows: usize,
        cols: usize,
    ) -> Result<(), Error> {
        let bytes = rows * cols * 4;
        let args = Args::new().span(x, bytes).span(weight, cols * 4).span(moments.mean, rows * 4);
        let args = args.span(moments.rstd, rows * 4).span(d.d_y, bytes).span(d.d_x, bytes);
        let args = args.i64(rows as i64).i64(cols as i64);
        let launch = Launch::linear(rows.div_ceil(128) as u32, 128);
        // SAFETY: the kernel takes x, weight, mean, rstd, d_y, d_x, rows, cols and touches what their
        // shapes say.
        unsafe { gpu.launch("layer_norm_backward_plain", &launch, &args) }?;
        let parts = weights(gpu, Float::F32, x, moments, d.d_y, scratch, rows, cols)?;
        let rest = scratch + (2 * parts * cols * 4) as u64;
        sum_axis_of_two(gpu, scratch, d.d_weight, d.d_bias, 2, parts, cols, true, rest)
    }
}
