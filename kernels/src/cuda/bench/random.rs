//! Timed cases of random numbers and dropout.

use super::rows::filled;
use super::{Bench, Error};
use crate::cuda::DeviceBuffer;
use crate::cuda::random::{self, Stream};
use crate::cuda::rows::Float;

/// The cases.
///
/// # Errors
/// Those of the device.
pub fn cases(bench: &mut Bench) -> Result<(), Error> {
    let gpu = bench.gpu;
    let sizes: &[usize] = if bench.small { &[1 << 14] } else { &[1 << 24, 1 << 26] };
    let s = Stream { seed: 1, stream: 2, position: 3, moved: 0 };
    for n in sizes.iter().copied() {
        let y = DeviceBuffer::<f32>::zeros(gpu, n)?;
        let at = y.ptr();
        let bytes = 4.0 * n as f64;
        bench.case(&format!("random/uniform f32/{n}"), "", 0.0, bytes, &mut || {
            random::uniform(gpu, at, n, s)
        })?;
        bench.case(&format!("random/normal f32/{n}"), "", 0.0, bytes, &mut || {
            random::normal(gpu, at, n, s)
        })?;
        for float in [Float::F32, Float::Bf16] {
            let x = filled(gpu, float, n)?;
            let case = format!("random/dropout {}/{n}", float.name());
            let bytes = 2.0 * (n * float.bytes()) as f64;
            for per_sm in [0, 8] {
                let variant = format!("{per_sm} blocks a multiprocessor");
                bench.case(&case, &variant, 0.0, bytes, &mut || {
                    random::dropout_with(gpu, per_sm, float, x.ptr(), at, n, 0.1, s)
                })?;
            }
            if float == Float::F32 {
                bench.case(&case, "plain", 0.0, bytes, &mut || {
                    random::dropout_plain(gpu, x.ptr(), at, n, 0.1, s)
                })?;
            }
        }
    }
    Ok(())
}
