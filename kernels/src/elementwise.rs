//! Element-by-element functions over contiguous slices, and sums.
//!
//! Each call reads and writes memory once. Big slices are cut into pieces of `CUT` numbers for the
//! threads: results are the same bits for any number of threads, and on every tier.

use crate::cpu::bypass::{exceeds_cache, settle, stream_out, write_rows};
use crate::cpu::lanes::dispatch;
use crate::cpu::map::{self, Map, Zip};
use crate::cpu::shared::{Shared, with_scratch};
use crate::threads::parallel_for;

/// Numbers in a piece of work: 128 KiB in, as much out, some 10 microseconds.
pub(crate) const CUT: usize = 32_768;

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unary {
    /// `-x`
    Neg,
    /// `e^x`
    Exp,
    /// natural logarithm
    Log,
    /// square root
    Sqrt,
    /// `1 / x`
    Recip,
    /// hyperbolic tangent
    Tanh,
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// `max(x, 0)`
    Relu,
    /// `x` where positive, else `slope * x`
    LeakyRelu(f32),
    /// `x * Phi(x)`, Phi the normal distribution function, by erf (Hendrycks & Gimpel 2016)
    Gelu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`
    GeluTanh,
    /// `x / (1 + e^-x)` (Elfwing, Uchibe & Doya 2018)
    Silu,
    /// `x` where positive, else `alpha * (e^x - 1)` (Clevert, Unterthiner & Hochreiter 2016)
    Elu(f32),
    /// `ln(1 + e^x)`
    Softplus,
    /// `x^p`
    Pow(f32),
    /// `scale * x + shift`
    Affine(f32, f32),
    /// 1 where `x > 0`, else 0
    Step,
    /// sine
    Sin,
    /// cosine
    Cos,
    /// Gauss error function
    Erf,
    /// absolute value
    Abs,
}

/// A function of two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`
    Div,
    /// the larger; NaN where either is NaN
    Max,
    /// the smaller; NaN where either is NaN
    Min,
}

pub(crate) fn map(f: impl Map, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    write_rows(y, 1, CUT, |at, y, past| dispatch(map::MapBody { f, x: &x[at], y, past }));
}

pub(crate) fn zip(f: impl Zip, a: &[f32], b: &[f32], y: &mut [f32]) {
    assert!(a.len() == y.len() && b.len() == y.len());
    write_rows(y, 1, CUT, |at, y, past| {
        dispatch(map::ZipBody { f, a: &a[at.clone()], b: &b[at], y, past });
    });
}

fn zip_rows(f: impl Zip, a: &[f32], b: &[f32], y: &mut [f32]) {
    let cols = b.len();
    assert!(a.len() == y.len() && (cols == 0 && a.is_empty() || a.len().is_multiple_of(cols)));
    write_rows(y, cols, rows_of_cut(cols), |rows, y, past| {
        let a = &a[rows.start * cols..rows.end * cols];
        dispatch(map::ZipRowsBody { f, a, b, y, past });
    });
}

/// Rows of `cols` numbers that make up a piece of work.
pub(crate) fn rows_of_cut(cols: usize) -> usize {
    (CUT / cols.max(1)).max(1)
}

/// Calls `$go` with the type that stands for a function of two numbers.
macro_rules! with_binary {
    ($f:expr, $go:expr) => {
        match $f {
            Binary::Add => $go(map::Add),
            Binary::Sub => $go(map::Sub),
            Binary::Mul => $go(map::Mul),
            Binary::Div => $go(map::Div),
            Binary::Max => $go(map::Max),
            Binary::Min => $go(map::Min),
        }
    };
}

/// Applies `f` to every element.
///
/// # Shapes
/// `x`, `y` `[n]`.
pub fn unary_forward(f: Unary, x: &[f32], y: &mut [f32]) {
    match f {
        Unary::Neg => map(map::Neg, x, y),
        Unary::Exp => map(map::Exp, x, y),
        Unary::Log => map(map::Log, x, y),
        Unary::Sqrt => map(map::Sqrt, x, y),
        Unary::Recip => map(map::Recip, x, y),
        Unary::Tanh => map(map::Tanh, x, y),
        Unary::Sigmoid => map(map::Sigmoid, x, y),
        Unary::Relu => map(map::Relu, x, y),
        Unary::LeakyRelu(slope) => map(map::LeakyRelu(slope), x, y),
        Unary::Gelu => map(map::Gelu, x, y),
        Unary::GeluTanh => map(map::GeluTanh, x, y),
        Unary::Silu => map(map::Silu, x, y),
        Unary::Elu(alpha) => map(map::Elu(alpha), x, y),
        Unary::Softplus => map(map::Softplus, x, y),
        Unary::Pow(1.0) => copy_forward(x, y),
        Unary::Pow(2.0) => map(map::Square, x, y),
        Unary::Pow(3.0) => map(map::Cube, x, y),
        Unary::Pow(-1.0) => map(map::Recip, x, y),
        Unary::Pow(p) => map(map::Pow(p), x, y),
        Unary::Affine(scale, shift) => map(map::Affine(scale, shift), x, y),
        Unary::Step => map(map::Step, x, y),
        Unary::Sin => map(map::Sin, x, y),
        Unary::Cos => map(map::Cos, x, y),
        Unary::Erf => map(map::Erf, x, y),
        Unary::Abs => map(map::Abs, x, y),
    }
}

/// Copies `x` to `y`.
///
/// # Shapes
/// `x`, `y` `[n]`.
pub fn copy_forward(x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    let (past, y) = (exceeds_cache(y.len()), Shared::new(y));
    parallel_for(x.len(), CUT, |at| {
        // SAFETY: pieces do not overlap.
        let y = unsafe { y.slice(at.clone()) };
        if past {
            stream_out(&x[at], y);
            settle();
        } else {
            y.copy_from_slice(&x[at]);
        }
    });
}

/// Applies `f` to every pair.
///
/// # Shapes
/// `a`, `b`, `y` `[n]`.
pub fn binary_forward(f: Binary, a: &[f32], b: &[f32], y: &mut [f32]) {
    with_binary!(f, |f| zip(f, a, b, y))
}

/// Applies `f` to every element of each row of `a` and the row vector `b`.
///
/// # Shapes
/// `a`, `y` `[rows, cols]`, `b` `[cols]`.
pub fn binary_row_forward(f: Binary, a: &[f32], b: &[f32], y: &mut [f32]) {
    with_binary!(f, |f| zip_rows(f, a, b, y))
}

/// Applies `f` to every element of `a` and one number.
///
/// # Shapes
/// `a`, `y` `[n]`.
pub fn binary_scalar_forward(f: Binary, a: &[f32], b: f32, y: &mut [f32]) {
    with_binary!(f, |f| map(map::With(f, b), a, y))
}

/// Adds `scale * x` to `y`.
///
/// # Shapes
/// `x`, `y` `[n]`.
pub fn axpy(scale: f32, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    let y = Shared::new(y);
    parallel_for(x.len(), CUT, |at| {
        // SAFETY: pieces do not overlap.
        let y = unsafe { y.slice(at.clone()) };
        dispatch(map::UpdateBody { f: map::Axpy(scale), x: &x[at], y });
    });
}

/// Numbers that are added up in f32 before f64 takes over.
const SUM_PIECE: usize = 4096;

/// Sums `f(x)`: 4096 numbers at a time in a tree of f32, those sums in f64, in order.
fn sum_of(f: impl Map, x: &[f32]) -> f64 {
    x.chunks(SUM_PIECE).fold(0.0, |sum, x| sum + f64::from(dispatch(map::SumBody { f, x })))
}

/// The sum of the squares of a piece of work.
pub(crate) fn squares_of(x: &[f32]) -> f64 {
    sum_of(map::Square, x)
}

/// Sums all elements in a fixed order that does not depend on the number of threads.
///
/// Off by at most 23 roundings of the sum of magnitudes: 4096 numbers at a time are added in 64 lanes
/// and a tree, in f32; the rest is f64.
pub fn sum(x: &[f32]) -> f32 {
    let piece = |x: &[f32]| sum_of(map::Same, x);
    let cuts = x.len().div_ceil(CUT);
    if cuts <= 1 {
        return piece(x) as f32;
    }
    // At most 64 partial sums, which fit on the stack.
    let grain = CUT * cuts.div_ceil(64);
    let mut sums = [0.0; 64];
    let shared = Shared::new(&mut sums);
    parallel_for(x.len(), grain, |at| {
        let place = at.start / grain;
        // SAFETY: each piece has a place of its own.
        let sum = unsafe { shared.slice(place..place + 1) };
        sum[0] = piece(&x[at]);
    });
    sums.iter().sum::<f64>() as f32
}

/// Sums each row.
///
/// # Shapes
/// `x` `[rows, cols]`, `y` `[rows]`.
pub fn sum_rows(x: &[f32], y: &mut [f32], cols: usize) {
    assert_eq!(x.len(), y.len() * cols);
    if cols == 0 {
        return y.fill(0.0);
    }
    let (rows, y) = (y.len(), Shared::new(y));
    parallel_for(rows, rows_of_cut(cols), |rows| {
        // SAFETY: pieces do not overlap.
        let y = unsafe { y.slice(rows.clone()) };
        dispatch(map::SumRowsBody { x: &x[rows.start * cols..rows.end * cols], y, cols });
    });
}

/// Sums each column (the gradient of a bias); adds to `y` if `accumulate`.
///
/// # Shapes
/// `x` `[rows, cols]`, `y` `[cols]`.
pub fn sum_cols(x: &[f32], y: &mut [f32], accumulate: bool) {
    if !accumulate {
        y.fill(0.0);
    }
    let cols = y.len();
    if cols == 0 {
        return;
    }
    assert!(x.len().is_multiple_of(cols));
    let rows = x.len() / cols;
    // At most 32 groups of rows, each with sums of its own, added in order at the end.
    let grain = rows_of_cut(cols).max(rows.div_ceil(32)).next_multiple_of(8);
    if rows <= grain {
        return dispatch(map::SumColsBody { x, y });
    }
    with_scratch(rows.div_ceil(grain) * cols, |sums| {
        sums.fill(0.0);
        let shared = Shared::new(sums);
        parallel_for(rows, grain, |rows| {
            let place = rows.start / grain * cols;
            // SAFETY: each group has a place of its own.
            let y = unsafe { shared.slice(place..place + cols) };
            dispatch(map::SumColsBody { x: &x[rows.start * cols..rows.end * cols], y });
        });
        for group in sums.chunks_exact(cols) {
            dispatch(map::UpdateBody { f: map::Add, x: group, y });
        }
    });
}
