//! Element-by-element functions over contiguous slices.

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
    /// the larger
    Max,
    /// the smaller
    Min,
}

/// Applies `f` to every element.
///
/// # Shapes
/// `x`, `y` `[n]`.
pub fn unary_forward(f: Unary, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    for (x, y) in x.iter().zip(y) {
        let x = *x;
        *y = match f {
            Unary::Neg => -x,
            Unary::Exp => x.exp(),
            Unary::Log => x.ln(),
            Unary::Sqrt => x.sqrt(),
            Unary::Recip => 1.0 / x,
            Unary::Tanh => x.tanh(),
            Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Unary::Relu => x.max(0.0),
            Unary::LeakyRelu(slope) => {
                if x > 0.0 {
                    x
                } else {
                    slope * x
                }
            }
            Unary::Gelu => 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)),
            Unary::Pow(p) => x.powf(p),
            Unary::Affine(scale, shift) => scale * x + shift,
            Unary::Step => {
                if x > 0.0 {
                    1.0
                } else {
                    0.0
                }
            }
            Unary::Sin => x.sin(),
            Unary::Cos => x.cos(),
            Unary::Erf => erf(x),
            Unary::Abs => x.abs(),
        };
    }
}

/// Abramowitz & Stegun 7.1.26 in f64 is not enough for f32; this is a series/continued-fraction stand-in.
fn erf(x: f32) -> f32 {
    let x = f64::from(x);
    let (mut sum, mut term, mut n) = (x, x, 0.0);
    if x.abs() > 4.0 {
        return x.signum() as f32;
    }
    while f64::abs(term) > 1e-17 && n < 200.0 {
        n += 1.0;
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    (sum * 2.0 / std::f64::consts::PI.sqrt()) as f32
}

/// Applies `f` to every pair.
///
/// # Shapes
/// `a`, `b`, `y` `[n]`.
pub fn binary_forward(f: Binary, a: &[f32], b: &[f32], y: &mut [f32]) {
    assert!(a.len() == y.len() && b.len() == y.len());
    for ((a, b), y) in a.iter().zip(b).zip(y) {
        *y = match f {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::Max => a.max(*b),
            Binary::Min => a.min(*b),
        };
    }
}

/// Applies `f` to every element of each row of `a` and the row vector `b`.
///
/// # Shapes
/// `a`, `y` `[rows, cols]`, `b` `[cols]`.
pub fn binary_row_forward(f: Binary, a: &[f32], b: &[f32], y: &mut [f32]) {
    assert!(a.len() == y.len() && (b.is_empty() || a.len() % b.len() == 0));
    if b.is_empty() {
        return;
    }
    for (a, y) in a.chunks_exact(b.len()).zip(y.chunks_exact_mut(b.len())) {
        binary_forward(f, a, b, y);
    }
}

/// Applies `f` to every element of `a` and one number.
///
/// # Shapes
/// `a`, `y` `[n]`.
pub fn binary_scalar_forward(f: Binary, a: &[f32], b: f32, y: &mut [f32]) {
    for (a, y) in a.iter().zip(y) {
        binary_forward(f, std::slice::from_ref(a), &[b], std::slice::from_mut(y));
    }
}

/// Adds `scale * x` to `y`.
///
/// # Shapes
/// `x`, `y` `[n]`.
pub fn axpy(scale: f32, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    for (x, y) in x.iter().zip(y) {
        *y += scale * x;
    }
}

/// Sums all elements in a fixed order that does not depend on the number of threads.
pub fn sum(x: &[f32]) -> f32 {
    x.iter().map(|x| f64::from(*x)).sum::<f64>() as f32
}

/// Sums the squares of all elements (for the gradient norm), in f64, in a fixed order.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>()
}

/// Sums each row.
///
/// # Shapes
/// `x` `[rows, cols]`, `y` `[rows]`.
pub fn sum_rows(x: &[f32], y: &mut [f32], cols: usize) {
    assert_eq!(x.len(), y.len() * cols);
    for (r, y) in y.iter_mut().enumerate() {
        *y = sum(&x[r * cols..(r + 1) * cols]);
    }
}

/// Sums each column (the gradient of a bias); adds to `y` if `accumulate`.
///
/// # Shapes
/// `x` `[rows, cols]`, `y` `[cols]`.
pub fn sum_cols(x: &[f32], y: &mut [f32], accumulate: bool) {
    if !accumulate {
        y.fill(0.0);
    }
    if y.is_empty() {
        return;
    }
    assert_eq!(x.len() % y.len(), 0);
    for row in x.chunks_exact(y.len()) {
        axpy(1.0, row, y);
    }
}

/// Computes `y = gelu(x + bias) + residual` in one pass.
///
/// # Shapes
/// `x`, `residual`, `y` `[rows, cols]`, `bias` `[cols]`.
pub fn bias_gelu_residual_forward(x: &[f32], bias: &[f32], residual: &[f32], y: &mut [f32]) {
    assert!(x.len() == y.len() && residual.len() == y.len());
    binary_row_forward(Binary::Add, x, bias, y);
    for (y, r) in y.iter_mut().zip(residual) {
        *y = 0.5 * *y * (1.0 + erf(*y * std::f32::consts::FRAC_1_SQRT_2)) + r;
    }
}
