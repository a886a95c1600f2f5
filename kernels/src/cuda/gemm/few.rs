//! Products of a few rows with a weight matrix, as every generated token needs them.

use super::{Element, Epilogue, Matrix, activation_code, check, flags};
use crate::cuda::{Args, Error, Gpu, Launch};

/// Most rows that these kernels take.
const MOST: usize = 8;

/// A weight matrix in int8: row `r` is `numbers[r] * scales[r]`.
#[derive(Debug, Clone, Copy)]
pub struct QuantisedRows {
    /// int8 `[rows, cols]`.
    pub numbers: u64,
    /// f32 `[rows]`.
    pub scales: u64,
    /// Rows: outputs of the product.
    pub rows: usize,
    /// Columns: terms of its sums.
    pub cols: usize,
}

/// Whether [`gemv_forward`] takes these factors: few rows, both contiguous along the sum.
pub(super) fn fits(a: &Matrix, b: &Matrix) -> bool {
    let along = |x: &Matrix| x.col_stride == 1 || x.cols <= 1;
    a.rows <= MOST && along(a) && along(&b.t())
}

/// Computes `C = activation(A B (+ C) + bias) + residual` for up to eight rows, with a `B` that is stored
/// as its transpose `[n, k]`. Reads `B` once.
///
/// # Shapes
/// `a` `[m, k]`, f32 or of `b`'s type; `b` `[k, n]`, `c` `[m, n]`.
///
/// # Errors
/// Those of the device.
///
/// # Panics
/// If the sizes or types disagree, or the factors are not contiguous along the sum.
pub fn gemv_forward(
    gpu: &dyn Gpu,
    a: Matrix,
    b: Matrix,
    epilogue: Epilogue,
    c: Matrix,
) -> Result<(), Error> {
    assert!(fits(&a, &b), "gemv: {a:?} and {b:?}");
    let kind = match (a.element, b.element) {
        (Element::F32, Element::F32) => "gemv_f32",
        (Element::Bf16, Element::Bf16) => "gemv_bf16",
        (Element::F32, Element::Bf16) => "gemv_f32_bf16",
        (Element::Bf16, Element::F32) => panic!("gemv: bf16 rows with f32 weights"),
    };
    check(&Matrix { element: b.element, ..a }, &b, &epilogue, &c);
    let w = b.t();
    let bytes = b.element.bytes();
    let weights = Weights {
        address: w.address,
        scales: None,
        span: w.span(1, 0),
        row_bytes: w.row_stride * bytes,
        bytes,
    };
    launch(gpu, kind, &a, &weights, &epilogue, &c)
}

/// Computes [`gemv_forward`] with int8 weights `[n, k]` and f32 rows.
///
/// # Errors
/// Those of the device.
///
/// # Panics
/// As [`gemv_forward`].
pub fn gemv_int8_forward(
    gpu: &dyn Gpu,
    a: Matrix,
    w: QuantisedRows,
    epilogue: Epilogue,
    c: Matrix,
) -> Result<(), Error> {
    let b = Matrix::new(w.numbers, Element::F32, w.rows, w.cols).t();
    assert!(a.element == Element::F32 && fits(&a, &b), "gemv: {a:?} and {w:?}");
    check(&a, &b, &epilogue, &c);
    let weights = Weights {
        address: w.numbers,
        scales: Some(w.scales),
        span: w.rows * w.cols,
        row_bytes: w.cols,
        bytes: 1,
    };
    launch(gpu, "gemv_f32_int8", &a, &weights, &epilogue, &c)
}

/// Weights as the kernels take them.
struct Weights {
    address: u64,
    scales: Option<u64>,
    span: usize,
    row_bytes: usize,
    bytes: usize,
}

fn launch(
    gpu: &dyn Gpu,
    kind: &str,
    a: &Matrix,
    w: &Weights,
    epilogue: &Epilogue,
    c: &Matrix,
) -> Result<(), Error> {
    let (m, n, k) = (c.rows, c.cols, a.cols);
    if m == 0 || n == 0 {
        return Ok(());
    }
    let (most, rows_per_warp) = match m {
        1 => (1, 2),
        2..=4 => (4, 4),
        _ => (8, 4),
    };
    let groups = n.div_ceil(rows_per_warp);
    // 16 warps on every multiprocessor keep the memory busy, if a lane still has a piece of its own.
    let wanted = 16 * gpu.properties().sms as usize;
    let mut warps_per_row = 1;
    while warps_per_row < 8
        && groups * warps_per_row < wanted
        && k * w.bytes >= 2 * warps_per_row * 32 * 16
    {
        warps_per_row *= 2;
    }
    let x_bytes = a.element.bytes();
    let x_row = if m == 1 { 0 } else { a.row_stride };
    let aligned = (w.address | w.row_bytes as u64).is_multiple_of(16)
        && (a.address | (x_row * x_bytes) as u64).is_multiple_of(4 * x_bytes as u64);
    let residual = epilogue.residual;
    let (activation, slope) = activation_code(epilogue.activation);
    let args = Args::new()
        .span(a.address, a.span(1, 0))
        .span(w.address, w.span)
        .optional(w.scales, n * 4)
        .span(c.address, c.span(1, 0))
        .optional(epilogue.bias, n * 4)
        .optional(residual.map(|x| x.address), residual.map_or(0, |x| x.span(1, 0)))
        .i32(m as i32)
        .i32(n as i32)
        .i32(k as i32)
        .i64(x_row as i64)
        .i64((w.row_bytes / w.bytes) as i64)
        .i64(c.row_stride as i64)
        .i64(residual.map_or(0, |x| x.row_stride as i64))
        .i32(warps_per_row as i32)
        .i32(flags(epilogue.accumulate, c.element))
        .i32(activation)
        .f32(slope)
        .i32(i32::from(aligned));
    let blocks = groups.div_ceil(8 / warps_per_row);
    let launch = Launch::linear(blocks as u32, 256).shared(1024);
    // SAFETY: these are the parameters of the kernels in gemv.cu, which touch elements of the matrices
    // only.
    unsafe { gpu.launch(&format!("{kind}_{most}"), &launch, &args) }
}
