//! Timed cases of the optimizers.

use super::rows::filled;
use super::{Bench, Error};
use crate::cuda::DeviceBuffer;
use crate::cuda::optim::{self, Part, Pieces, State};
use crate::cuda::rows::Float;

/// The cases.
///
/// # Errors
/// Those of the device.
pub fn cases(bench: &mut Bench) -> Result<(), Error> {
    let gpu = bench.gpu;
    // One tensor, and the many of a model.
    let models: &[(usize, usize)] =
        if bench.small { &[(2, 9000)] } else { &[(1, 1 << 26), (150, 600_000)] };
    for (tensors, count) in models.iter().copied() {
        let n = tensors * count;
        let names = ["adam", "adam without shadow", "sgd", "norm of gradients"]
            .map(|op| format!("optim/{op}/{tensors} tensors of {count}"));
        if !names.iter().any(|name| bench.wants(name)) {
            continue;
        }
        let grad = filled(gpu, Float::F32, n)?;
        let (param, m, v) = (
            DeviceBuffer::<f32>::zeros(gpu, n)?,
            DeviceBuffer::<f32>::zeros(gpu, n)?,
            DeviceBuffer::<f32>::zeros(gpu, n)?,
        );
        let shadow = DeviceBuffer::<u16>::zeros(gpu, n)?;
        let part = |k: usize, with: bool| {
            let at = |address: u64| address + (k * count * 4) as u64;
            Part {
                param: at(param.ptr()),
                grad: at(grad.ptr()),
                m: at(m.ptr()),
                v: at(v.ptr()),
                shadow: if with { shadow.ptr() + (k * count * 2) as u64 } else { 0 },
                count,
            }
        };
        let state = State {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            momentum: 0.9,
            max_norm: 1.0,
            step: 0,
            norm: 0.0,
            finite: true,
            grad_scale: 1.0,
        };
        let state = DeviceBuffer::from_slice(gpu, &state.to_bytes())?;
        let bytes = n as f64;
        for (with, name) in [(true, &names[0]), (false, &names[1])] {
            let parts: Vec<Part> = (0..tensors).map(|k| part(k, with)).collect();
            let pieces = Pieces::new(&parts);
            let table = DeviceBuffer::from_slice(gpu, pieces.words())?;
            let scratch = DeviceBuffer::<f64>::zeros(gpu, pieces.len())?;
            let (t, s) = (table.ptr(), state.ptr());
            // The update finds the constants of a step.
            optim::step_begin(gpu, &pieces, t, s, scratch.ptr())?;
            let moved = bytes * if with { 30.0 } else { 28.0 };
            for per_sm in [0, 4] {
                let variant = format!("{per_sm} blocks a multiprocessor");
                bench.case(name, &variant, 0.0, moved, &mut || {
                    optim::adam_all_with(gpu, per_sm, &pieces, t, s)
                })?;
            }
            if with {
                bench.case(&names[3], "", 0.0, 4.0 * bytes, &mut || {
                    optim::step_begin(gpu, &pieces, t, s, scratch.ptr())
                })?;
                bench.case(&names[2], "", 0.0, 22.0 * bytes, &mut || {
                    optim::sgd_all(gpu, &pieces, t, s)
                })?;
            } else if tensors == 1 {
                bench
                    .case(name, "plain", 0.0, moved, &mut || optim::adam_plain(gpu, parts[0], s))?;
            }
        }
    }
    Ok(())
}
