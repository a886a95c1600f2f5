//! Timed cases of sampling.

use super::rows::filled;
use super::{Bench, Error};
use crate::cuda::DeviceBuffer;
use crate::cuda::random::Stream;
use crate::cuda::rows::Float;
use crate::cuda::sample::{self, Controls, Draw};

/// The cases.
///
/// # Errors
/// Those of the device.
pub fn cases(bench: &mut Bench) -> Result<(), Error> {
    let gpu = bench.gpu;
    let shapes: &[(usize, usize)] = match bench.small {
        true => &[(1, 388)],
        false => &[(1, 388), (1, 32_768), (256, 4096)],
    };
    let plain = Controls { temperature: 1.0, top_p: 1.0, min_p: 0.0, top_k: 0 };
    for (rows, vocab) in shapes.iter().copied() {
        let logits = filled(gpu, Float::F32, rows * vocab)?;
        let tokens = DeviceBuffer::<u32>::zeros(gpu, rows)?;
        let stream = Stream { seed: 1, stream: 0, position: 0, moved: 0 };
        let draw = Draw { allowed: 0, struck: 0, units: 0, stream };
        for (variant, controls) in [
            ("temperature", plain),
            ("top-k", Controls { top_k: 40, ..plain }),
            ("top-p", Controls { top_p: 0.9, ..plain }),
            ("all cuts", Controls { top_k: 40, top_p: 0.9, min_p: 0.01, ..plain }),
        ] {
            let bytes = (rows * vocab * 4) as f64;
            let case = format!("sample/rows/{rows}x{vocab}");
            bench.case(&case, variant, 0.0, bytes, &mut || {
                sample::sample_rows(gpu, logits.ptr(), draw, controls, tokens.ptr(), rows, vocab)
            })?;
        }
    }
    Ok(())
}
