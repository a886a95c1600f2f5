//! Timed cases of softmax, cross-entropy and reductions.

use super::{Bench, Error};
use crate::cuda::map::layout;
use crate::cuda::random::{self, Stream};
use crate::cuda::rows::reduce::{self, Reduction};
use crate::cuda::rows::{self, Float, Targets, Walk};
use crate::cuda::{DeviceBuffer, Gpu};

/// Uniform numbers on the device, as bytes.
pub(super) fn filled(gpu: &dyn Gpu, float: Float, n: usize) -> Result<DeviceBuffer<'_, u8>, Error> {
    let x = DeviceBuffer::<u8>::zeros(gpu, n * 4)?;
    random::uniform(gpu, x.ptr(), n, Stream { seed: 1, stream: 0, position: 0, moved: 0 })?;
    if float == Float::F32 {
        return Ok(x);
    }
    let y = DeviceBuffer::<u8>::zeros(gpu, n * 2)?;
    layout::to_bf16(gpu, x.ptr(), y.ptr(), n)?;
    gpu.sync()?;
    Ok(y)
}

/// Shapes beyond the L2 cache; small ones for the emulator.
pub(super) fn shapes(small: bool) -> &'static [(usize, usize)] {
    match small {
        true => &[(16, 1024)],
        false => &[(16_384, 1024), (65_536, 1024), (131_072, 256), (8192, 8192), (2048, 32_768)],
    }
}

/// Forms and numbers of blocks to compare.
pub(super) fn walks(float: Float, cols: usize) -> Vec<Walk> {
    let forms = Walk::forms(float, cols).iter().take(2);
    forms
        .flat_map(|form| {
            // As many blocks as there are rows, or two and eight for each multiprocessor.
            [0, 2, 8].map(|blocks_per_sm| Walk { form, blocks_per_sm })
        })
        .collect()
}

/// What a walk is called in a record.
pub(super) fn walk_name(walk: Walk) -> String {
    match walk.blocks_per_sm {
        0 => walk.form.to_string(),
        per_sm => format!("{}, {per_sm} blocks a multiprocessor", walk.form),
    }
}

/// The cases.
///
/// # Errors
/// Those of the device.
pub fn cases(bench: &mut Bench) -> Result<(), Error> {
    for (rows, cols) in shapes(bench.small).iter().copied() {
        for float in [Float::F32, Float::Bf16] {
            of_shape(bench, float, rows, cols)?;
        }
        sums(bench, rows, cols)?;
    }
    Ok(())
}

fn of_shape(bench: &mut Bench, float: Float, rows: usize, cols: usize) -> Result<(), Error> {
    let gpu = bench.gpu;
    let n = rows * cols;
    let bytes = (n * float.bytes()) as f64;
    let name = |op: &str| format!("rows/{op} {}/{rows}x{cols}", float.name());
    let ops = ["softmax forward", "softmax backward", "log-softmax forward", "cross-entropy"];
    if !ops.iter().any(|op| bench.wants(&name(op))) {
        return Ok(());
    }
    let (x, d) = (filled(gpu, float, n)?, filled(gpu, float, n)?);
    let y = DeviceBuffer::<u8>::zeros(gpu, n * float.bytes())?;
    let targets: Vec<u32> = (0..rows).map(|r| (r * 7919 % cols) as u32).collect();
    let targets = DeviceBuffer::from_slice(gpu, &targets)?;
    let losses = DeviceBuffer::<f32>::zeros(gpu, rows)?;
    let (x, d, y) = (x.ptr(), d.ptr(), y.ptr());
    let t = Targets { targets: targets.ptr(), losses: losses.ptr(), scale: 1.0, smoothing: 0.0 };
    for walk in walks(float, cols) {
        let variant = walk_name(walk);
        bench.case(&name(ops[0]), &variant, 0.0, 2.0 * bytes, &mut || {
            rows::forward(gpu, walk, float, x, y, rows, cols, false)
        })?;
        bench.case(&name(ops[2]), &variant, 0.0, 2.0 * bytes, &mut || {
            rows::forward(gpu, walk, float, x, y, rows, cols, true)
        })?;
        bench.case(&name(ops[1]), &variant, 0.0, 3.0 * bytes, &mut || {
            rows::backward(gpu, walk, float, x, d, y, rows, cols, false)
        })?;
        let with_losses = 2.0 * bytes + 8.0 * rows as f64;
        bench.case(&name(ops[3]), &variant, 0.0, with_losses, &mut || {
            rows::cross_entropy(gpu, walk, float, x, t, y, rows, cols)
        })?;
    }
    if float == Float::Bf16 {
        return Ok(());
    }
    bench.case(&name(ops[0]), "plain", 0.0, 2.0 * bytes, &mut || {
        rows::plain::forward(gpu, x, y, rows, cols, false)
    })?;
    bench.case(&name(ops[3]), "plain", 0.0, 2.0 * bytes + 8.0 * rows as f64, &mut || {
        rows::plain::cross_entropy(gpu, x, t, y, rows, cols)
    })
}

fn sums(bench: &mut Bench, rows: usize, cols: usize) -> Result<(), Error> {
    let gpu = bench.gpu;
    let name = |op: &str| format!("rows/{op} f32/{rows}x{cols}");
    let ops = ["sum of rows", "argmax of rows", "sum of columns", "sum of all"];
    if !ops.iter().any(|op| bench.wants(&name(op))) {
        return Ok(());
    }
    let n = rows * cols;
    let bytes = (n * 4) as f64;
    let x = filled(gpu, Float::F32, n)?;
    let y = DeviceBuffer::<f32>::zeros(gpu, rows.max(cols))?;
    let room = reduce::sum_axis_scratch(gpu, 1, rows, cols).max(reduce::sum_all_scratch(gpu, n));
    let scratch = DeviceBuffer::<u8>::zeros(gpu, room)?;
    let (x, y, scratch) = (x.ptr(), y.ptr(), scratch.ptr());
    bench.case(&name(ops[0]), "", 0.0, bytes, &mut || {
        reduce::reduce_rows(gpu, Float::F32, Reduction::Sum, x, y, rows, cols)
    })?;
    bench
        .case(&name(ops[1]), "", 0.0, bytes, &mut || reduce::argmax_rows(gpu, x, y, rows, cols))?;
    bench.case(&name(ops[2]), "", 0.0, bytes, &mut || {
        reduce::sum_axis(gpu, x, y, 1, rows, cols, false, scratch)
    })?;
    bench.case(&name(ops[2]), "plain", 0.0, bytes, &mut || {
        reduce::plain::sum_axis(gpu, x, y, 1, rows, cols)
    })?;
    bench.case(&name(ops[3]), "", 0.0, bytes, &mut || reduce::sum_all(gpu, x, y, n, 1.0, scratch))
}
