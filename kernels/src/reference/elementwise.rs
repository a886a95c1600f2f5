//! Functions of one and two numbers, in f64.

use crate::activation::Activation;
use crate::elementwise::{Binary, Unary};
use std::f64::consts::{PI, SQRT_2};

/// Applies a function of one number.
pub fn unary(f: Unary, x: f64) -> f64 {
    match f {
        Unary::Neg => -x,
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Sqrt => x.sqrt(),
        Unary::Recip => 1.0 / x,
        Unary::Tanh => x.tanh(),
        Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Unary::Relu if x < 0.0 => 0.0,
        Unary::Relu => x,
        Unary::LeakyRelu(slope) if x < 0.0 => f64::from(slope) * x,
        Unary::LeakyRelu(_) => x,
        Unary::Gelu if x < -38.0 => 0.0,
        Unary::Gelu => 0.5 * x * erfc(-x / SQRT_2),
        Unary::GeluTanh if x < -38.0 => 0.0,
        Unary::GeluTanh => x * unary(Unary::Sigmoid, 2.0 * tanh_argument(x)),
        Unary::Silu if x < -745.0 => 0.0,
        Unary::Silu => x * unary(Unary::Sigmoid, x),
        Unary::Elu(alpha) if x < 0.0 => f64::from(alpha) * x.exp_m1(),
        Unary::Elu(_) => x,
        Unary::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        Unary::Pow(p) => x.powf(f64::from(p)),
        Unary::Affine(scale, shift) => f64::from(scale) * x + f64::from(shift),
        Unary::Step => f64::from(u8::from(x > 0.0)),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Erf => erf(x),
        Unary::Abs => x.abs(),
    }
}

/// `sqrt(2 / pi) (x + 0.044715 x^3)`
fn tanh_argument(x: f64) -> f64 {
    (2.0 / PI).sqrt() * (x + 0.044_715 * x.powi(3))
}

/// The derivative of an activation; 0 or the slope below where it has a kink at 0.
pub fn activation_slope(f: Activation, x: f64) -> f64 {
    let sigmoid = |x| unary(Unary::Sigmoid, x);
    let positive = f64::from(u8::from(x > 0.0));
    match f {
        Activation::Identity => 1.0,
        Activation::Relu => positive,
        Activation::LeakyRelu(slope) => positive + (1.0 - positive) * f64::from(slope),
        Activation::Gelu => 0.5 * erfc(-x / SQRT_2) + x * (-x * x / 2.0).exp() / (2.0 * PI).sqrt(),
        Activation::GeluTanh => {
            let s = sigmoid(2.0 * tanh_argument(x));
            let slope = 2.0 * (2.0 / PI).sqrt() * (1.0 + 3.0 * 0.044_715 * x * x);
            s + x * s * (1.0 - s) * slope
        }
        Activation::Silu => sigmoid(x) * (1.0 + x * sigmoid(-x)),
        Activation::Tanh => 4.0 * sigmoid(2.0 * x) * sigmoid(-2.0 * x),
        Activation::Sigmoid => sigmoid(x) * sigmoid(-x),
        Activation::Elu(alpha) if x <= 0.0 => f64::from(alpha) * x.exp(),
        Activation::Elu(_) => 1.0,
        Activation::Softplus => sigmoid(x),
    }
}

/// Applies a function of two numbers.
pub fn binary(f: Binary, a: f64, b: f64) -> f64 {
    match f {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Max => a.max(b),
        Binary::Min => a.min(b),
    }
}

/// The error function: a series near 0, one less [`erfc`] beyond.
///
/// # Source
/// Abramowitz & Stegun 1964, 7.1.6.
pub fn erf(x: f64) -> f64 {
    if x.abs() >= 2.0 {
        return (1.0 - erfc(x.abs())) * x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while term.abs() > 1e-18 * sum.abs() {
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
        n += 1.0;
    }
    sum * 2.0 / PI.sqrt() * (-x * x).exp()
}

/// `1 - erf(x)` without cancellation: a continued fraction from 2 on.
///
/// # Source
/// Abramowitz & Stegun 1964, 7.1.14.
pub fn erfc(x: f64) -> f64 {
    if x < 2.0 {
        return if x < -2.0 { 2.0 - erfc(-x) } else { 1.0 - erf(x) };
    }
    let fraction = (1..200).rev().fold(x, |fraction, k| x + f64::from(k) / 2.0 / fraction);
    (-x * x).exp() / PI.sqrt() / fraction
}
