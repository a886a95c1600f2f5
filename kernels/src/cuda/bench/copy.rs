//! The copy within device memory, which is the ceiling of every kernel that moves bytes.

use super::{Bench, Error};
use crate::cuda::{DeviceBuffer, copy};

/// The cases.
///
/// # Errors
/// Those of the device.
pub fn cases(bench: &mut Bench) -> Result<(), Error> {
    // Far beyond the L2 cache.
    let bytes: usize = if bench.small { 1 << 20 } else { 1 << 30 };
    let case = format!("copy/16 bytes a thread/{} MiB", bytes >> 20);
    if !bench.wants(&case) {
        return Ok(());
    }
    let gpu = bench.gpu;
    let (x, y) =
        (DeviceBuffer::<u8>::poisoned(gpu, bytes)?, DeviceBuffer::<u8>::zeros(gpu, bytes)?);
    let moved = 2.0 * bytes as f64;
    bench.case(&case, "copy_16", 0.0, moved, &mut || copy::copy(gpu, x.ptr(), y.ptr(), bytes))?;
    bench.case(&case, "driver", 0.0, moved, &mut || gpu.copy(y.ptr(), x.ptr(), bytes))
}
