//! Activations after a bias, with a residual, and their gradients: one pass over memory each.
//!
//! What an activation needs for its gradient is its argument, which the linear layer before it has
//! just written: nothing else is kept.

use crate::cpu::activation as cpu;
use crate::cpu::bypass::write_rows;
use crate::cpu::lanes::dispatch;
use crate::cpu::shared::{Shared, with_scratch};
use crate::elementwise::{axpy, rows_of_cut, zip};

/// A function between two layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `x`
    Identity,
    /// `max(x, 0)`
    Relu,
    /// `x` where positive, else `slope * x`
    LeakyRelu(f32),
    /// `x * Phi(x)`, Phi the normal distribution function
    Gelu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`
    GeluTanh,
    /// `x / (1 + e^-x)`
    Silu,
    /// hyperbolic tangent
    Tanh,
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// `x` where positive, else `alpha * (e^x - 1)`
    Elu(f32),
    /// `ln(1 + e^x)`
    Softplus,
}

/// Calls `$go` with the type that stands for an activation.
macro_rules! with_activation {
    ($f:expr, $go:expr) => {
        match $f {
            Activation::Identity => $go($crate::cpu::map::Same),
            Activation::Relu => $go($crate::cpu::map::Relu),
            Activation::LeakyRelu(slope) => $go($crate::cpu::map::LeakyRelu(slope)),
            Activation::Gelu => $go($crate::cpu::map::Gelu),
            Activation::GeluTanh => $go($crate::cpu::map::GeluTanh),
            Activation::Silu => $go($crate::cpu::map::Silu),
            Activation::Tanh => $go($crate::cpu::map::Tanh),
            Activation::Sigmoid => $go($crate::cpu::map::Sigmoid),
            Activation::Elu(alpha) => $go($crate::cpu::map::Elu(alpha)),
            Activation::Softplus => $go($crate::cpu::map::Softplus),
        }
    };
}

pub(crate) use with_activation;

/// Calls `$go` with the type that stands for its derivative.
macro_rules! with_slope {
    ($f:expr, $go:expr) => {
        match $f {
            Activation::Identity => $go(cpu::IdentitySlope),
            Activation::Relu => $go(cpu::ReluSlope),
            Activation::LeakyRelu(slope) => $go(cpu::LeakyReluSlope(slope)),
            Activation::Gelu => $go(cpu::GeluSlope),
            Activation::GeluTanh => $go(cpu::GeluTanhSlope),
            Activation::Silu => $go(cpu::SiluSlope),
            Activation::Tanh => $go(cpu::TanhSlope),
            Activation::Sigmoid => $go(cpu::SigmoidSlope),
            Activation::Elu(alpha) => $go(cpu::EluSlope(alpha)),
            Activation::Softplus => $go(cpu::SoftplusSlope),
        }
    };
}

/// Computes `y = f(x)`.
///
/// # Shapes
/// `x`, `y` `[n]`.
pub fn activation_forward(f: Activation, x: &[f32], y: &mut [f32]) {
    with_activation!(f, |f| crate::elementwise::map(f, x, y))
}

/// Computes `d_x = f'(x) * d_y`.
///
/// # Shapes
/// `x`, `d_y`, `d_x` `[n]`.
pub fn activation_backward(f: Activation, x: &[f32], d_y: &[f32], d_x: &mut [f32]) {
    with_slope!(f, |f| zip(f, x, d_y, d_x))
}

/// Computes `y = f(x + bias)`, plus `residual` where there is one.
///
/// # Shapes
/// `x`, `residual`, `y` `[rows, cols]`, `bias` `[cols]`.
pub fn bias_activation_forward(
    f: Activation,
    x: &[f32],
    bias: &[f32],
    residual: Option<&[f32]>,
    y: &mut [f32],
) {
    let cols = bias.len();
    assert!(x.len() == y.len() && residual.is_none_or(|r| r.len() == y.len()));
    assert!(cols > 0 || x.is_empty());
    write_rows(y, cols, rows_of_cut(cols), |rows, y, past| {
        let at = rows.start * cols..rows.end * cols;
        let (x, residual) = (&x[at.clone()], residual.map_or(&[][..], |r| &r[at]));
        with_activation!(f, |f| dispatch(cpu::BiasActivation { f, x, bias, residual, y, past }))
    });
}

/// Computes `d_x = f'(x + bias) * d_y` and adds its column sums to `d_bias`. The gradient of the
/// residual is `d_y` itself.
///
/// # Shapes
/// `x`, `d_y`, `d_x` `[rows, cols]`; `bias`, `d_bias` `[cols]`.
pub fn bias_activation_backward(
    f: Activation,
    x: &[f32],
    bias: &[f32],
    d_y: &[f32],
    d_x: &mut [f32],
    d_bias: &mut [f32],
) {
    let cols = bias.len();
    assert!(x.len() == d_y.len() && x.len() == d_x.len() && d_bias.len() == cols);
    if cols == 0 {
        return assert!(x.is_empty());
    }
    assert!(x.len().is_multiple_of(cols));
    let rows = x.len() / cols;
    // At most 32 groups of rows, each with sums of its own, added in order at the end.
    let grain = rows_of_cut(cols).max(rows.div_ceil(32));
    with_scratch(rows.div_ceil(grain) * cols, |sums| {
        sums.fill(0.0);
        let shared = Shared::new(sums);
        write_rows(d_x, cols, grain, |rows, d_x, past| {
            let at = rows.start * cols..rows.end * cols;
            let place = rows.start / grain * cols;
            // SAFETY: each piece has a place of its own for its sums.
            let d_bias = unsafe { shared.slice(place..place + cols) };
            let (x, d_y) = (&x[at.clone()], &d_y[at]);
            with_slope!(f, |slope| dispatch(cpu::BiasActivationBackward {
                slope,
                x,
                bias,
                d_y,
                d_x,
                d_bias,
                past
            }))
        });
        for group in sums.chunks_exact(cols) {
            axpy(1.0, group, d_bias);
        }
    });
}
