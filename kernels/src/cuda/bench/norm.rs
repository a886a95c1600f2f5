//! Timed cases of the normalisations.

use super::rows::{filled, shapes, walk_name, walks};
use super::{Bench, Error};
use crate::cuda::DeviceBuffer;
use crate::cuda::norm::channels::{self, Planes};
use crate::cuda::norm::{self, BackwardWalk, Gradients, Moments};
use crate::cuda::rows::Float;

/// The cases.
///
/// # Errors
/// Those of the device.
pub fn cases(bench: &mut Bench) -> Result<(), Error> {
    for (rows, cols) in shapes(bench.small).iter().copied() {
        for float in [Float::F32, Float::Bf16] {
            layer_norm(bench, float, rows, cols)?;
        }
    }
    let images: &[[usize; 3]] = if bench.small {
        &[[2, 8, 64]]
    } else {
        &[[64, 256, 1024], [256, 128, 256], [65_536, 512, 1]]
    };
    for [batch, channels, space] in images.iter().copied() {
        for groups in [0, 8] {
            channel_norm(bench, Planes { batch, channels, space, groups })?;
        }
    }
    Ok(())
}

fn layer_norm(bench: &mut Bench, float: Float, rows: usize, cols: usize) -> Result<(), Error> {
    let gpu = bench.gpu;
    let (n, bytes) = (rows * cols, (rows * cols * float.bytes()) as f64);
    let name = |op: &str| format!("norm/layer norm {op} {}/{rows}x{cols}", float.name());
    if !["forward", "backward"].iter().any(|op| bench.wants(&name(op))) {
        return Ok(());
    }
    let (x, d) = (filled(gpu, float, n)?, filled(gpu, float, n)?);
    let y = DeviceBuffer::<u8>::zeros(gpu, n * float.bytes())?;
    let zeros = |n| DeviceBuffer::<f32>::zeros(gpu, n);
    let (w, b, d_w, d_b) = (zeros(cols)?, zeros(cols)?, zeros(cols)?, zeros(cols)?);
    let (mean, rstd) = (zeros(rows)?, zeros(rows)?);
    let m = Moments { mean: mean.ptr(), rstd: rstd.ptr() };
    let room = norm::layer_norm_backward_scratch(gpu, float, rows, cols);
    let scratch = DeviceBuffer::<u8>::zeros(gpu, room)?;
    let (x, y, w, s) = (x.ptr(), y.ptr(), w.ptr(), scratch.ptr());
    let moments = 8.0 * rows as f64;
    for walk in walks(float, cols) {
        bench.case(&name("forward"), &walk_name(walk), 0.0, 2.0 * bytes + moments, &mut || {
            norm::forward(gpu, walk, float, x, w, b.ptr(), y, m, 1e-5, rows, cols)
        })?;
    }
    let grads = Gradients { d_y: d.ptr(), d_x: y, d_weight: d_w.ptr(), d_bias: d_b.ptr() };
    for way in BackwardWalk::all(float, cols) {
        let variant = format!(
            "{} {} threads, {} blocks a multiprocessor",
            way.form, way.threads, way.blocks_per_sm
        );
        bench.case(&name("backward"), &variant, 0.0, 3.0 * bytes + moments, &mut || {
            norm::backward(gpu, way, float, x, w, m, grads, s, rows, cols)
        })?;
    }
    if float == Float::Bf16 {
        return Ok(());
    }
    bench.case(&name("forward"), "plain", 0.0, 2.0 * bytes + moments, &mut || {
        norm::plain::forward(gpu, x, w, b.ptr(), y, m, 1e-5, rows, cols)
    })
}

fn channel_norm(bench: &mut Bench, s: Planes) -> Result<(), Error> {
    let gpu = bench.gpu;
    let kind = if s.groups == 0 { "batch norm" } else { "group norm" };
    let name = |op: &str| format!("norm/{kind} {op} f32/{}x{}x{}", s.batch, s.channels, s.space);
    if !["forward", "backward"].iter().any(|op| bench.wants(&name(op))) {
        return Ok(());
    }
    let n = s.batch * s.channels * s.space;
    let (x, d) = (filled(gpu, Float::F32, n)?, filled(gpu, Float::F32, n)?);
    let zeros = |n| DeviceBuffer::<f32>::zeros(gpu, n);
    let (y, w, b) = (zeros(n)?, zeros(s.channels)?, zeros(s.channels)?);
    let (d_w, d_b) = (zeros(s.channels)?, zeros(s.channels)?);
    let (mean, spread) = (zeros(s.statistics())?, zeros(s.statistics())?);
    let m = Moments { mean: mean.ptr(), rstd: spread.ptr() };
    let scratch = DeviceBuffer::<u8>::zeros(gpu, channels::channel_norm_scratch(gpu, s))?;
    let (x, y, w, room) = (x.ptr(), y.ptr(), w.ptr(), scratch.ptr());
    let bytes = 4.0 * n as f64;
    // Statistics come before the first result: what does not stay in cache is read twice.
    bench.case(&name("forward"), "", 0.0, 2.0 * bytes, &mut || {
        channels::channel_norm_forward(gpu, x, w, b.ptr(), y, m, 1e-5, room, s)
    })?;
    let grads = Gradients { d_y: d.ptr(), d_x: y, d_weight: d_w.ptr(), d_bias: d_b.ptr() };
    bench.case(&name("backward"), "", 0.0, 3.0 * bytes, &mut || {
        channels::channel_norm_backward(gpu, x, w, m, grads, 1e-5, room, s)
    })
}
