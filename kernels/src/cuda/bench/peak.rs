//! What the device can do at most, which is what the other families are measured by.

use super::{Bench, Error};
use crate::cuda::DeviceBuffer;
use crate::cuda::peak::{Unit, arithmetic, grid_barriers, nothing, outputs};

/// The cases.
///
/// # Errors
/// Those of the device.
pub fn cases(bench: &mut Bench) -> Result<(), Error> {
    let gpu = bench.gpu;
    let rounds = if bench.small { 4 } else { 16384 };
    let out = DeviceBuffer::<f32>::zeros(gpu, outputs(gpu))?;
    for (name, unit) in [("bf16", Unit::Bf16), ("tf32", Unit::Tf32), ("f32", Unit::F32)] {
        let flops = arithmetic(gpu, unit, out.ptr(), 1)? * f64::from(rounds);
        let case = format!("peak/{name}/registers");
        bench.case(&case, "", flops, 0.0, &mut || {
            arithmetic(gpu, unit, out.ptr(), rounds).map(|_| ())
        })?;
    }
    bench.case("peak/launch/one after the other", "", 0.0, 0.0, &mut || nothing(gpu))?;
    let graph = gpu.record(&mut || (0..100).try_for_each(|_| nothing(gpu)))?;
    bench.case("peak/launch/100 in a graph", "", 0.0, 0.0, &mut || graph.launch())?;
    let count = DeviceBuffer::<u32>::zeros(gpu, 1)?;
    let barriers = if bench.small { 10 } else { 1000 };
    bench.case("peak/grid barrier/1000 of them", "", 0.0, 0.0, &mut || {
        grid_barriers(gpu, count.ptr(), barriers)
    })
}
