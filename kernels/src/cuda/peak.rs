//! What a device can do at most: matrix products and multiply-adds that wait for no memory, and the cost of
//! a launch and of a barrier over the grid. Source: `kernels/cuda/peak.cu`.

use super::{Args, DeviceBuffer, Error, Gpu, Launch, copy};

/// The kernels that do arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Tensor cores, bf16 with sums in f32, by `mma.sync`.
    Bf16,
    /// Tensor cores, tf32, by `mma.sync`.
    Tf32,
    /// f32 multiply-adds.
    F32,
}

/// Blocks per multiprocessor: 32 warps, enough to hide the latency of the arithmetic.
const BLOCKS_PER_SM: u32 = 4;

/// Runs `rounds` rounds on all multiprocessors and returns the floating-point operations of that. `out`
/// has [`outputs`] floats.
///
/// # Errors
/// If the driver refuses.
pub fn arithmetic(gpu: &dyn Gpu, unit: Unit, out: u64, rounds: i32) -> Result<f64, Error> {
    let blocks = BLOCKS_PER_SM * gpu.properties().sms;
    let args = Args::new().span(out, outputs(gpu) * 4);
    let (kernel, args, flops_per_warp) = match unit {
        // Eight products of 16 x 8 x 16, two operations each.
        Unit::Bf16 => ("mma_peak_bf16", args, 8 * 2 * 16 * 8 * 16),
        Unit::Tf32 => ("mma_peak_tf32", args, 8 * 2 * 16 * 8 * 8),
        Unit::F32 => ("fma_peak", args.f32(0.999).f32(0.5), 32 * 16 * 2),
    };
    // SAFETY: the kernels take out, (factor, addend,) rounds and write one float per thread.
    unsafe { gpu.launch(kernel, &Launch::linear(blocks, 256), &args.i32(rounds)) }?;
    Ok(f64::from(blocks) * 8.0 * f64::from(rounds) * f64::from(flops_per_warp))
}

/// Floats that [`arithmetic`] writes.
pub fn outputs(gpu: &dyn Gpu) -> usize {
    (BLOCKS_PER_SM * gpu.properties().sms) as usize * 256
}

/// Launches a kernel that does nothing.
///
/// # Errors
/// If the driver refuses.
pub fn nothing(gpu: &dyn Gpu) -> Result<(), Error> {
    // SAFETY: the kernel has no parameters and touches nothing.
    unsafe { gpu.launch("launch_nothing", &Launch::linear(1, 32), &Args::new()) }
}

/// Passes `rounds` barriers over one block per multiprocessor. `count` is a `u32`.
///
/// # Errors
/// If the driver refuses.
pub fn grid_barriers(gpu: &dyn Gpu, count: u64, rounds: i32) -> Result<(), Error> {
    gpu.memset(count, 0, 4)?;
    let launch = Launch::linear(gpu.properties().sms, 256).cooperative();
    // SAFETY: the kernel takes count and rounds and touches `count` alone.
    unsafe { gpu.launch("grid_barrier_cost", &launch, &Args::new().span(count, 4).i32(rounds)) }
}

/// What a device was measured to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Bytes read and written per second by a large copy.
    pub copy_bytes_per_second: f64,
    /// Floating-point operations per second of bf16 matrix products by `mma.sync`.
    pub bf16_flops_per_second: f64,
}

/// Measures both in about a tenth of a second.
///
/// # Errors
/// If the device has no room for two buffers of 256 MiB, or refuses.
pub fn measure(gpu: &dyn Gpu) -> Result<Ceilings, Error> {
    let bytes = 256 << 20;
    let x = DeviceBuffer::<u8>::zeros(gpu, bytes)?;
    let y = DeviceBuffer::<u8>::poisoned(gpu, bytes)?;
    let out = DeviceBuffer::<f32>::zeros(gpu, outputs(gpu))?;
    let (mut copied, mut computed) = (f64::INFINITY, f64::INFINITY);
    let mut flops = 0.0;
    for _ in 0..10 {
        copied = copied.min(gpu.time(&mut || copy::copy(gpu, x.ptr(), y.ptr(), bytes))?);
        let arithmetic = &mut || {
            flops = arithmetic(gpu, Unit::Bf16, out.ptr(), 4096)?;
            Ok(())
        };
        computed = computed.min(gpu.time(arithmetic)?);
    }
    Ok(Ceilings {
        copy_bytes_per_second: 2.0 * bytes as f64 / (copied * 1e-3),
        bf16_flops_per_second: flops / (computed * 1e-3),
    })
}
