//! Timed cases of functions of one and two numbers, activations, layouts and casts.

use super::rows::filled;
use super::{Bench, Error};
use crate::activation::Activation;
use crate::cuda::DeviceBuffer;
use crate::cuda::map::{self, layout};
use crate::cuda::rows::Float;
use crate::elementwise::{Binary, Unary};

/// Blocks for each multiprocessor; 0: as many as there is work for.
const BLOCKS: [u32; 3] = [0, 8, 16];

fn variant(per_sm: u32) -> String {
    if per_sm == 0 { String::new() } else { format!("{per_sm} blocks a multiprocessor") }
}

/// The cases.
///
/// # Errors
/// Those of the device.
pub fn cases(bench: &mut Bench) -> Result<(), Error> {
    let shapes: &[(usize, usize)] = match bench.small {
        true => &[(16, 1024)],
        false => &[(16_384, 1024), (65_536, 1024), (65_536, 3072)],
    };
    for (rows, cols) in shapes.iter().copied() {
        for float in [Float::F32, Float::Bf16] {
            of_type(bench, float, rows, cols)?;
        }
        of_f32(bench, rows, cols)?;
    }
    Ok(())
}

fn of_type(bench: &mut Bench, float: Float, rows: usize, cols: usize) -> Result<(), Error> {
    let gpu = bench.gpu;
    let (n, bytes) = (rows * cols, (rows * cols * float.bytes()) as f64);
    let name = |op: &str| format!("map/{op} {}/{rows}x{cols}", float.name());
    let (x, d) = (filled(gpu, float, n)?, filled(gpu, float, n)?);
    let y = DeviceBuffer::<u8>::zeros(gpu, n * float.bytes())?;
    let bias = filled(gpu, float, cols)?;
    let d_bias = DeviceBuffer::<f32>::zeros(gpu, cols)?;
    let room = map::bias_activation_backward_scratch(gpu, float, rows, cols);
    let scratch = DeviceBuffer::<u8>::zeros(gpu, room)?;
    let (x, d, y, b, room) = (x.ptr(), d.ptr(), y.ptr(), bias.ptr(), scratch.ptr());
    for (op, f) in [
        ("exp", Unary::Exp),
        ("gelu", Unary::Gelu),
        ("gelu tanh", Unary::GeluTanh),
        ("silu", Unary::Silu),
        ("tanh", Unary::Tanh),
        ("affine", Unary::Affine(0.5, 0.25)),
    ] {
        for per_sm in BLOCKS {
            bench.case(&name(op), &variant(per_sm), 0.0, 2.0 * bytes, &mut || {
                map::unary(gpu, float, f, x, y, n, per_sm)
            })?;
        }
    }
    for (op, f) in [("gelu", Activation::Gelu), ("silu", Activation::Silu)] {
        bench.case(&name(&format!("{op} backward")), "", 0.0, 3.0 * bytes, &mut || {
            map::activation_backward(gpu, float, f, x, d, y, n)
        })?;
        for per_sm in BLOCKS {
            let case = name(&format!("bias, {op} and residual"));
            bench.case(&case, &variant(per_sm), 0.0, 3.0 * bytes, &mut || {
                map::bias_activation(gpu, float, f, x, b, d, y, rows, cols, per_sm)
            })?;
        }
        let case = name(&format!("bias and {op} backward"));
        bench.case(&case, "", 0.0, 3.0 * bytes, &mut || {
            let sums = d_bias.ptr();
            map::bias_activation_backward(gpu, float, f, x, b, d, y, sums, room, rows, cols)
        })?;
    }
    if float == Float::Bf16 {
        return Ok(());
    }
    bench.case(&name("gelu"), "plain", 0.0, 2.0 * bytes, &mut || {
        map::plain::unary(gpu, Unary::Gelu, x, y, n)
    })
}

fn of_f32(bench: &mut Bench, rows: usize, cols: usize) -> Result<(), Error> {
    let gpu = bench.gpu;
    let (n, bytes) = (rows * cols, (rows * cols * 4) as f64);
    let name = |op: &str| format!("map/{op}/{rows}x{cols}");
    let (x, d) = (filled(gpu, Float::F32, n)?, filled(gpu, Float::F32, n)?);
    let y = DeviceBuffer::<f32>::zeros(gpu, n)?;
    let (x, d, y) = (x.ptr(), d.ptr(), y.ptr());
    bench.case(&name("add f32"), "", 0.0, 3.0 * bytes, &mut || {
        map::binary_forward(gpu, Binary::Add, x, d, y, n)
    })?;
    bench.case(&name("add a row f32"), "", 0.0, 2.0 * bytes, &mut || {
        map::binary_row_forward(gpu, Binary::Add, x, d, y, rows, cols)
    })?;
    bench.case(&name("times a number f32"), "", 0.0, 2.0 * bytes, &mut || {
        map::binary_scalar_forward(gpu, Binary::Mul, x, 0.5, y, n)
    })?;
    bench.case(&name("axpy f32"), "", 0.0, 3.0 * bytes, &mut || map::axpy(gpu, 0.5, x, y, n))?;
    bench.case(&name("to bf16"), "", 0.0, 1.5 * bytes, &mut || layout::to_bf16(gpu, x, y, n))?;
    bench
        .case(&name("from bf16"), "", 0.0, 1.5 * bytes, &mut || layout::from_bf16(gpu, x, y, n))?;
    bench.case(&name("fill"), "", 0.0, bytes, &mut || layout::fill(gpu, y, 0, n))?;
    bench.case(&name("transpose"), "", 0.0, 2.0 * bytes, &mut || {
        layout::transpose(gpu, x, y, 1, rows, cols)
    })?;
    // Heads of 64 come before the steps: [rows, heads, 64] to [heads, rows, 64].
    let heads = cols / 64;
    let (from, to) = ([64, cols, 1], [rows * 64, 64, 1]);
    bench.case(&name("heads first"), "", 0.0, 2.0 * bytes, &mut || {
        let a = layout::View { address: x, strides: &from };
        let b = layout::View { address: y, strides: &to };
        layout::copy_strided(gpu, 4, a, b, &[heads, rows, 64])
    })?;
    let (by_row, by_number) = ([1, 0], [cols, 1]);
    bench.case(&name("times a column"), "", 0.0, 2.0 * bytes, &mut || {
        let a = layout::View { address: x, strides: &by_number };
        let b = layout::View { address: d, strides: &by_row };
        layout::binary_strided_forward(gpu, Binary::Mul, a, b, y, &[rows, cols])
    })
}
