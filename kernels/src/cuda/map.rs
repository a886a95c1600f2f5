//! Functions of one and two numbers, element by element, and activations with bias and residual. Source:
//! `kernels/cuda/map.cu`.

use super::rows::Float;
use super::rows::reduce::{sum_axis, sum_axis_scratch};
use super::{Args, Error, Gpu, Launch};
use crate::activation::Activation;
use crate::elementwise::{Binary, Unary};

pub mod layout;

/// A function's number in `rows_math.cuh`, and its constants.
fn unary_code(f: Unary) -> (i32, f32, f32) {
    match f {
        Unary::Neg => (0, 0.0, 0.0),
        Unary::Exp => (1, 0.0, 0.0),
        Unary::Log => (2, 0.0, 0.0),
        Unary::Sqrt => (3, 0.0, 0.0),
        Unary::Recip | Unary::Pow(-1.0) => (4, 0.0, 0.0),
        Unary::Tanh => (5, 0.0, 0.0),
        Unary::Sigmoid => (6, 0.0, 0.0),
        Unary::Relu => (7, 0.0, 0.0),
        Unary::LeakyRelu(slope) => (8, slope, 0.0),
        Unary::Gelu => (9, 0.0, 0.0),
        Unary::GeluTanh => (10, 0.0, 0.0),
        Unary::Silu => (11, 0.0, 0.0),
        Unary::Elu(alpha) => (12, alpha, 0.0),
        Unary::Softplus => (13, 0.0, 0.0),
        Unary::Pow(1.0) => (23, 0.0, 0.0),
        Unary::Pow(2.0) => (21, 0.0, 0.0),
        Unary::Pow(3.0) => (22, 0.0, 0.0),
        Unary::Pow(p) => (POW, p, 0.0),
        Unary::Affine(scale, shift) => (15, scale, shift),
        Unary::Step => (16, 0.0, 0.0),
        Unary::Sin => (17, 0.0, 0.0),
        Unary::Cos => (18, 0.0, 0.0),
        Unary::Erf => (19, 0.0, 0.0),
        Unary::Abs => (20, 0.0, 0.0),
    }
}

const POW: i32 = 14;
/// Sine, cosine and error function.
const RARE: std::ops::RangeInclusive<i32> = 17..=19;

fn activation_code(f: Activation) -> (i32, f32) {
    let (code, p, _) = unary_code(match f {
        Activation::Identity => Unary::Pow(1.0),
        Activation::Relu => Unary::Relu,
        Activation::LeakyRelu(slope) => Unary::LeakyRelu(slope),
        Activation::Gelu => Unary::Gelu,
        Activation::GeluTanh => Unary::GeluTanh,
        Activation::Silu => Unary::Silu,
        Activation::Tanh => Unary::Tanh,
        Activation::Sigmoid => Unary::Sigmoid,
        Activation::Elu(alpha) => Unary::Elu(alpha),
        Activation::Softplus => Unary::Softplus,
    });
    (code, p)
}

/// 256 threads over `n` numbers, `each` a thread: blocks for all of them at once, or `per_sm` for each
/// multiprocessor, which go on.
pub(super) fn over(gpu: &dyn Gpu, n: usize, each: usize, per_sm: u32) -> Launch {
    let blocks = n.div_ceil(256 * each).max(1);
    let most = match per_sm {
        0 => i32::MAX as usize,
        per_sm => (per_sm * gpu.properties().sms) as usize,
    };
    Launch::linear(blocks.min(most) as u32, 256)
}

/// Applies `f` to every element.
///
/// # Shapes
/// `x`, `y` `[n]`; they may be the same. `Pow` of other powers than 1, 2, 3 and -1 is there in f32 only.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn unary_forward(
    gpu: &dyn Gpu,
    float: Float,
    f: Unary,
    x: u64,
    y: u64,
    n: usize,
) -> Result<(), Error> {
    unary(gpu, float, f, x, y, n, unary_blocks(float, unary_code(f).0))
}

/// Blocks for each multiprocessor, as measured on an H200: in bf16 a block's share of a function that
/// takes more than a few steps is so small that going on beats a new block.
fn unary_blocks(float: Float, code: i32) -> u32 {
    // Logarithm, tanh and sigmoid, GELU to softplus.
    let long = matches!(code, 2 | 5 | 6 | 9..=13);
    if float == Float::Bf16 && long { 16 } else { 0 }
}

/// [`unary_forward`] with so many blocks for each multiprocessor; 0: as many as there is work for.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn unary(
    gpu: &dyn Gpu,
    float: Float,
    f: Unary,
    x: u64,
    y: u64,
    n: usize,
    per_sm: u32,
) -> Result<(), Error> {
    if n == 0 {
        return Ok(());
    }
    let (code, p, q) = unary_code(f);
    let bytes = n * float.bytes();
    if code == POW {
        let args = Args::new().f32(p).span(x, bytes).span(y, bytes).i64(n as i64);
        // SAFETY: the kernel takes p, x, y, n and touches `n` numbers of both.
        return unsafe { gpu.launch("pow_forward_f32", &over(gpu, n, 1, 0), &args) };
    }
    if RARE.contains(&code) {
        let args = Args::new().i32(code).span(x, bytes).span(y, bytes).i64(n as i64);
        let kernel = format!("unary_rare_{}", float.name());
        // SAFETY: the kernel takes op, x, y, n and touches `n` numbers of both.
        return unsafe { gpu.launch(&kernel, &over(gpu, n, 1, per_sm), &args) };
    }
    by_code(gpu, float, (code, p, q), x, y, n, per_sm)
}

/// Computes `y` by the function of a code and its two numbers.
fn by_code(
    gpu: &dyn Gpu,
    float: Float,
    (code, p, q): (i32, f32, f32),
    x: u64,
    y: u64,
    n: usize,
    per_sm: u32,
) -> Result<(), Error> {
    let bytes = n * float.bytes();
    let args = Args::new().i32(code).f32(p).f32(q).span(x, bytes).span(y, bytes).i64(n as i64);
    let kernel = format!("unary_forward_{}", float.name());
    // SAFETY: the kernel takes op, p, q, x, y, n and touches `n` numbers of both.
    unsafe { gpu.launch(&kernel, &over(gpu, n, 8, per_sm), &args) }
}

/// Computes `y = f(x)`.
///
/// # Shapes
/// `x`, `y` `[n]`; they may be the same.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn activation_forward(
    gpu: &dyn Gpu,
    float: Float,
    f: Activation,
    x: u64,
    y: u64,
    n: usize,
) -> Result<(), Error> {
    if n == 0 {
        return Ok(());
    }
    let (code, p) = activation_code(f);
    by_code(gpu, float, (code, p, 0.0), x, y, n, unary_blocks(float, code))
}

/// Computes `d_x = f'(x) * d_y`.
///
/// # Shapes
/// `x`, `d_y`, `d_x` `[n]`; `d_x` may be one of the others.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn activation_backward(
    gpu: &dyn Gpu,
    float: Float,
    f: Activation,
    x: u64,
    d_y: u64,
    d_x: u64,
    n: usize,
) -> Result<(), Error> {
    if n == 0 {
        return Ok(());
    }
    let (code, p) = activation_code(f);
    let bytes = n * float.bytes();
    let args = Args::new().i32(code).f32(p).span(x, bytes).span(d_y, bytes).span(d_x, bytes);
    let kernel = format!("activation_backward_{}", float.name());
    // SAFETY: the kernel takes op, p, x, d_y, d_x, n and touches `n` numbers of each.
    unsafe { gpu.launch(&kernel, &over(gpu, n, 8, 0), &args.i64(n as i64)) }
}

/// Applies `f` to every pair.
///
/// # Shapes
/// `a`, `b`, `y` `[n]`, f32; `y` may be one of the others.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn binary_forward(
    gpu: &dyn Gpu,
    f: Binary,
    a: u64,
    b: u64,
    y: u64,
    n: usize,
) -> Result<(), Error> {
    if n == 0 {
        return Ok(());
    }
    let args = Args::new().i32(f as i32).span(a, n * 4).span(b, n * 4).span(y, n * 4);
    // SAFETY: the kernel takes op, a, b, y, n and touches `n` numbers of each.
    unsafe { gpu.launch("binary_forward_f32", &over(gpu, n, 8, 0), &args.i64(n as i64)) }
}

/// Applies `f` to every element of `a` and one number.
///
/// # Shapes
/// `a`, `y` `[n]`, f32; they may be the same.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn binary_scalar_forward(
    gpu: &dyn Gpu,
    f: Binary,
    a: u64,
    b: f32,
    y: u64,
    n: usize,
) -> Result<(), Error> {
    if n == 0 {
        return Ok(());
    }
    let args = Args::new().i32(f as i32).span(a, n * 4).f32(b).span(y, n * 4).i64(n as i64);
    // SAFETY: the kernel takes op, a, b, y, n and touches `n` numbers of a and y.
    unsafe { gpu.launch("binary_scalar_forward_f32", &over(gpu, n, 16, 0), &args) }
}

/// Adds `scale * x` to `y`.
///
/// # Shapes
/// `x`, `y` `[n]`, f32.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn axpy(gpu: &dyn Gpu, scale: f32, x: u64, y: u64, n: usize) -> Result<(), Error> {
    if n == 0 {
        return Ok(());
    }
    let args = Args::new().f32(scale).span(x, n * 4).span(y, n * 4).i64(n as i64);
    // SAFETY: the kernel takes scale, x, y, n and touches `n` numbers of both.
    unsafe { gpu.launch("axpy_f32", &over(gpu, n, 16, 0), &args) }
}

/// How blocks lie on a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tile {
    /// Threads side by side, a power of two.
    lanes: usize,
    /// Blocks side by side.
    tiles: usize,
    /// Rows of blocks.
    parts: usize,
    wide: bool,
}

impl Tile {
    /// `aligned`: all addresses lie on 16 bytes; `at_once`: rows that a thread has in flight; `per_sm`: 0
    /// for as many blocks as there is work for.
    fn new(
        gpu: &dyn Gpu,
        float: Float,
        rows: usize,
        cols: usize,
        aligned: bool,
        at_once: usize,
        per_sm: u32,
    ) -> Tile {
        let pack = 16 / float.bytes();
        let wide = aligned && cols.is_multiple_of(pack);
        let v = if wide { pack } else { 1 };
        let packs = cols.div_ceil(v);
        let widest = packs.next_power_of_two().clamp(1, 256);
        // The widest of those that leave the fewest threads beyond the last column.
        let lanes = [widest, widest / 2, widest / 4]
            .into_iter()
            .filter(|lanes| *lanes >= 32)
            .min_by_key(|lanes| packs.next_multiple_of(*lanes))
            .unwrap_or(widest);
        let tiles = packs.div_ceil(lanes);
        let most = rows.div_ceil(256 / lanes * at_once).max(1);
        let parts = match per_sm {
            0 => most,
            per_sm => ((per_sm * gpu.properties().sms) as usize).div_ceil(tiles).min(most),
        };
        Tile { lanes, tiles, parts, wide }
    }

    fn launch(self) -> Launch {
        Launch::linear((self.tiles * self.parts) as u32, 256)
    }

    fn args(self, args: Args, rows: usize, cols: usize) -> Args {
        let args = args.i64(rows as i64).i64(cols as i64);
        args.i32(self.lanes as i32).i32(i32::from(self.wide))
    }
}

fn aligned(addresses: &[u64]) -> bool {
    addresses.iter().all(|address| address.is_multiple_of(16))
}

/// Applies `f` to every element of each row of `a` and the row vector `b`.
///
/// # Shapes
/// `a`, `y` `[rows, cols]`, `b` `[cols]`, f32; `y` may be `a`.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn binary_row_forward(
    gpu: &dyn Gpu,
    f: Binary,
    a: u64,
    b: u64,
    y: u64,
    rows: usize,
    cols: usize,
) -> Result<(), Error> {
    if rows * cols == 0 {
        return Ok(());
    }
    let tile = Tile::new(gpu, Float::F32, rows, cols, aligned(&[a, b, y]), 4, 0);
    let bytes = rows * cols * 4;
    let args = Args::new().i32(f as i32).span(a, bytes).span(b, cols * 4).span(y, bytes);
    // SAFETY: the kernel takes op, a, b, y, rows, cols, lanes, wide and touches what their shapes say.
    unsafe { gpu.launch("binary_row_forward_f32", &tile.launch(), &tile.args(args, rows, cols)) }
}

/// Computes `y = f(x + bias)`, plus `residual` where there is one (its address is not 0).
///
/// # Shapes
/// `x`, `residual`, `y` `[rows, cols]`; `y` may be one of the others. `bias` `[cols]`. All of one type.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn bias_activation_forward(
    gpu: &dyn Gpu,
    float: Float,
    f: Activation,
    x: u64,
    bias: u64,
    residual: u64,
    y: u64,
    rows: usize,
    cols: usize,
) -> Result<(), Error> {
    let per_sm = if float == Float::F32 { 0 } else { 16 };
    bias_activation(gpu, float, f, x, bias, residual, y, rows, cols, per_sm)
}

/// [`bias_activation_forward`] with so many blocks for each multiprocessor; 0: as many as there is work
/// for.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn bias_activation(
    gpu: &dyn Gpu,
    float: Float,
    f: Activation,
    x: u64,
    bias: u64,
    residual: u64,
    y: u64,
    rows: usize,
    cols: usize,
    per_sm: u32,
) -> Result<(), Error> {
    if rows * cols == 0 {
        return Ok(());
    }
    let (code, p) = activation_code(f);
    let bytes = rows * cols * float.bytes();
    let at_once = if float == Float::F32 { 2 } else { 1 };
    let on_packs = aligned(&[x, bias, residual, y]);
    let tile = Tile::new(gpu, float, rows, cols, on_packs, at_once, per_sm);
    let args = Args::new().i32(code).f32(p).span(x, bytes).span(bias, cols * float.bytes());
    let args = args.optional((residual != 0).then_some(residual), bytes).span(y, bytes);
    let kernel = format!("bias_activation_forward_{}", float.name());
    // SAFETY: the kernel takes op, p, x, bias, residual or null, y, rows, cols, lanes, wide and touches what
    // their shapes say.
    unsafe { gpu.launch(&kernel, &tile.launch(), &tile.args(args, rows, cols)) }
}

/// Blocks of the gradient for each multiprocessor.
const BACKWARD_BLOCKS: u32 = 4;

/// Bytes of the scratch memory that [`bias_activation_backward`] wants.
pub fn bias_activation_backward_scratch(
    gpu: &dyn Gpu,
    float: Float,
    rows: usize,
    cols: usize,
) -> usize {
    if rows * cols == 0 {
        return 0;
    }
    let parts = |aligned| Tile::new(gpu, float, rows, cols, aligned, 1, BACKWARD_BLOCKS).parts;
    let parts = parts(true).max(parts(false));
    (parts * cols * 4).next_multiple_of(16) + sum_axis_scratch(gpu, 1, parts, cols)
}

/// Computes `d_x = f'(x + bias) * d_y` and adds its column sums to `d_bias`. The gradient of the residual
/// is `d_y` itself.
///
/// # Shapes
/// `x`, `d_y`, `d_x` `[rows, cols]`; `d_x` may be one of the others. `bias` `[cols]`; `d_bias` `[cols]` in
/// f32; `scratch` [`bias_activation_backward_scratch`] bytes.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn bias_activation_backward(
    gpu: &dyn Gpu,
    float: Float,
    f: Activation,
    x: u64,
    bias: u64,
    d_y: u64,
    d_x: u64,
    d_bias: u64,
    scratch: u64,
    rows: usize,
    cols: usize,
) -> Result<(), Error> {
    if rows * cols == 0 {
        return Ok(());
    }
    let (code, p) = activation_code(f);
    let bytes = rows * cols * float.bytes();
    let on_packs = aligned(&[x, bias, d_y, d_x]);
    let tile = Tile::new(gpu, float, rows, cols, on_packs, 1, BACKWARD_BLOCKS);
    let partial = tile.parts * cols * 4;
    let args = Args::new().i32(code).f32(p).span(x, bytes).span(bias, cols * float.bytes());
    let args = args.span(d_y, bytes).span(d_x, bytes).span(scratch, partial);
    let kernel = format!("bias_activation_backward_{}", float.name());
    let launch =
        tile.launch().shared(256 * 4 * if tile.wide { 16 / float.bytes() as u32 } else { 1 });
    // SAFETY: the kernel takes op, p, x, bias, d_y, d_x, partial, rows, cols, lanes, wide; it touches
    // `[parts, cols]` of partial and of the others what their shapes say.
    unsafe { gpu.launch(&kernel, &launch, &tile.args(args, rows, cols)) }?;
    let rest = scratch + partial.next_multiple_of(16) as u64;
    sum_axis(gpu, scratch, d_bias, 1, tile.parts, cols, true, rest)
}

/// The simplest forms, for comparison: f32, a thread a number.
pub mod plain {
    use super::{Activation, Args, Error, Gpu, Unary, activation_code, over, unary_code};

    /// Applies `f` (not a power) to every element.
    ///
    /// # Errors
    /// If the spans are not allocated, or the driver refuses.
    pub fn unary(gpu: &dyn Gpu, f: Unary, x: u64, y: u64, n: usize) -> Result<(), Error> {
        let (code, p, q) = unary_code(f);
        let args = Args::new().i32(code).f32(p).f32(q).span(x, n * 4).span(y, n * 4);
        // SAFETY: the kernel takes op, p, q, x, y, n and touches `n` numbers of both.
        unsafe { gpu.launch("unary_forward_plain", &over(gpu, n, 1, 0), &args.i64(n as i64)) }
    }

    /// The gradient of an activation.
    ///
    /// # Errors
    /// If the spans are not allocated, or the driver refuses.
    pub fn backward(
        gpu: &dyn Gpu,
        f: Activation,
        x: u64,
        d_y: u64,
        d_x: u64,
        n: usize,
    ) -> Result<(), Error> {
        let (code, p) = activation_code(f);
        let args = Args::new().i32(code).f32(p).span(x, n * 4).span(d_y, n * 4).span(d_x, n * 4);
        // SAFETY: the kernel takes op, p, x, d_y, d_x, n and touches `n` numbers of each.
        unsafe { gpu.launch("activation_backward_plain", &over(gpu, n, 1, 0), &args.i64(n as i64)) }
    }
}
