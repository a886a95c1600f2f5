//! Random numbers as a function of their position, and dropout. Source: `kernels/cuda/random.cu`.

use super::map::over;
use super::rows::Float;
use super::{Args, Error, Gpu};

/// Where a random stream is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    /// The key.
    pub seed: u64,
    /// One of the streams of that key.
    pub stream: u32,
    /// The first block of four words.
    pub position: u64,
    /// Address of a count of blocks that is added to the position, or 0: what a recording that is run
    /// again changes from run to run.
    pub moved: u64,
}

impl Stream {
    pub(super) fn args(self, args: Args) -> Args {
        let args = args.u64(self.seed).u32(self.stream).u64(self.position);
        args.optional((self.moved != 0).then_some(self.moved), 8)
    }
}

/// The word below which numbers are dropped, or are 1, with probability `p`.
fn threshold(p: f32) -> u64 {
    (f64::from(p) * 4_294_967_296.0) as u64
}

/// Fills `y` with uniform numbers in `[0, 1)`, the CPU's bits.
///
/// # Shapes
/// `y` `[n]`, f32.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn uniform(gpu: &dyn Gpu, y: u64, n: usize, stream: Stream) -> Result<(), Error> {
    if n == 0 {
        return Ok(());
    }
    let args = stream.args(Args::new().span(y, n * 4)).i64(n as i64);
    // SAFETY: the kernel takes y, the stream, n and touches `n` numbers.
    unsafe { gpu.launch("uniform_f32", &over(gpu, n, 8, 0), &args) }
}

/// Fills `y` with numbers from the standard normal distribution.
///
/// # Shapes
/// `y` `[n]`, f32.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
///
/// # Source
/// Box & Muller 1958.
pub fn normal(gpu: &dyn Gpu, y: u64, n: usize, stream: Stream) -> Result<(), Error> {
    if n == 0 {
        return Ok(());
    }
    let args = stream.args(Args::new().span(y, n * 4)).i64(n as i64);
    // SAFETY: the kernel takes y, the stream, n and touches `n` numbers.
    unsafe { gpu.launch("normal_f32", &over(gpu, n, 8, 0), &args) }
}

/// Fills `y` with 1 with probability `p`, else 0: 1 where [`dropout`] drops.
///
/// # Shapes
/// `y` `[n]`, f32.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn bernoulli(gpu: &dyn Gpu, y: u64, n: usize, p: f32, stream: Stream) -> Result<(), Error> {
    if n == 0 {
        return Ok(());
    }
    let args = stream.args(Args::new().span(y, n * 4).u64(threshold(p))).i64(n as i64);
    // SAFETY: the kernel takes y, threshold, the stream, n and touches `n` numbers.
    unsafe { gpu.launch("bernoulli_f32", &over(gpu, n, 8, 0), &args) }
}

/// Keeps each element of `x` with probability `1 - p` and scales it by `1 / (1 - p)`, else writes 0.
///
/// The mask is a function of the position, so the gradient is this same call on `d_y`.
///
/// # Shapes
/// `x`, `y` `[n]`; they may be the same.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
///
/// # Source
/// Srivastava, Hinton, Krizhevsky, Sutskever & Salakhutdinov 2014.
pub fn dropout(
    gpu: &dyn Gpu,
    float: Float,
    x: u64,
    y: u64,
    n: usize,
    p: f32,
    stream: Stream,
) -> Result<(), Error> {
    let per_sm = if float == Float::F32 { 0 } else { 8 };
    dropout_with(gpu, per_sm, float, x, y, n, p, stream)
}

/// [`dropout`] with so many blocks for each multiprocessor; 0: as many as there is work for.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn dropout_with(
    gpu: &dyn Gpu,
    per_sm: u32,
    float: Float,
    x: u64,
    y: u64,
    n: usize,
    p: f32,
    stream: Stream,
) -> Result<(), Error> {
    if n == 0 {
        return Ok(());
    }
    let bytes = n * float.bytes();
    let args = Args::new().span(x, bytes).span(y, bytes).u64(threshold(p)).f32(1.0 / (1.0 - p));
    let args = stream.args(args).i64(n as i64);
    let kernel = format!("dropout_{}", float.name());
    let launch = over(gpu, n, 32 / float.bytes(), per_sm);
    // SAFETY: the kernel takes x, y, threshold, scale, the stream, n and touches `n` numbers of both.
    unsafe { gpu.launch(&kernel, &launch, &args) }
}

/// [`dropout`] in its simplest form, for comparison: f32, a thread a number.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn dropout_plain(
    gpu: &dyn Gpu,
    x: u64,
    y: u64,
    n: usize,
    p: f32,
    stream: Stream,
) -> Result<(), Error> {
    let args = Args::new().span(x, n * 4).span(y, n * 4).u64(threshold(p)).f32(1.0 / (1.0 - p));
    let args = stream.args(args).i64(n as i64);
    // SAFETY: the kernel takes x, y, threshold, scale, the stream, n and touches `n` numbers of both.
    unsafe { gpu.launch("dropout_plain", &over(gpu, n, 1, 0), &args) }
}
