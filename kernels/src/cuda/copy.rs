//! `y = a x + y`, the smallest launcher, and a copy that gives the memory's ceiling. Source:
//! `kernels/cuda/copy.cu`.

use super::{Args, Error, Gpu, Launch};

/// Adds `a` times `x` to `y`.
///
/// # Shapes
/// `x`, `y` `[count]`, f32.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn axpy(gpu: &dyn Gpu, x: u64, y: u64, a: f32, count: usize) -> Result<(), Error> {
    if count == 0 {
        return Ok(());
    }
    let launch = Launch::linear(count.div_ceil(256) as u32, 256);
    let args = Args::new().span(x, count * 4).span(y, count * 4).f32(a).u64(count as u64);
    // SAFETY: the kernel takes x, y, a, count and touches `count` floats of both.
    unsafe { gpu.launch("axpy_plain", &launch, &args) }
}

/// Copies `bytes` bytes, 16 at a time.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
///
/// # Panics
/// If `bytes` is no multiple of 16.
pub fn copy(gpu: &dyn Gpu, x: u64, y: u64, bytes: usize) -> Result<(), Error> {
    assert_eq!(bytes % 16, 0);
    if bytes == 0 {
        return Ok(());
    }
    // 8 blocks of 256 threads fill a multiprocessor; more would only wait.
    let blocks = (bytes / 16).div_ceil(1024).min(8 * gpu.properties().sms as usize);
    let args = Args::new().span(x, bytes).span(y, bytes).u64(bytes as u64 / 16);
    // SAFETY: the kernel takes x, y, words and touches `words` times 16 bytes of both.
    unsafe { gpu.launch("copy_16", &Launch::linear(blocks as u32, 256), &args) }
}
