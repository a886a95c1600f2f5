//! Activations with bias and residual, and their gradients, against f64 and against their parts.

mod support;

use etude_kernels::activation::*;
use etude_kernels::elementwise::{Binary, Unary, binary_forward, binary_row_forward, sum_cols};
use etude_kernels::reference::elementwise as reference;
use support::*;

const U: f64 = 1.0 / 16_777_216.0;

const ACTIVATIONS: [Activation; 10] = [
    Activation::Identity,
    Activation::Relu,
    Activation::LeakyRelu(0.2),
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Silu,
    Activation::Tanh,
    Activation::Sigmoid,
    Activation::Elu(1.5),
    Activation::Softplus,
];

/// Numbers in `[-6, 6)`, and now and then a special one.
fn mixed(seed: u64, n: usize) -> Vec<f32> {
    let special = [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-41, -1e-41, 1e30];
    let mut x = uniform(seed, n);
    for (i, x) in x.iter_mut().enumerate() {
        *x = if i % 11 == 7 { special[i / 11 % special.len()] } else { 6.0 * *x };
    }
    x
}

/// The same function as the table of unary functions has it.
fn unary(f: Activation) -> Unary {
    match f {
        Activation::Identity => Unary::Affine(1.0, 0.0),
        Activation::Relu => Unary::Relu,
        Activation::LeakyRelu(slope) => Unary::LeakyRelu(slope),
        Activation::Gelu => Unary::Gelu,
        Activation::GeluTanh => Unary::GeluTanh,
        Activation::Silu => Unary::Silu,
        Activation::Tanh => Unary::Tanh,
        Activation::Sigmoid => Unary::Sigmoid,
        Activation::Elu(alpha) => Unary::Elu(alpha),
        Activation::Softplus => Unary::Softplus,
    }
}

#[test]
fn the_reference_slopes_are_slopes() {
    for f in ACTIVATIONS {
        for k in -400..400 {
            let x = (f64::from(k) + 0.5) / 50.0;
            // Central differences: truncation 1e-10 times a third derivative below 10, rounding 1e-11.
            let (above, below) =
                (reference::unary(unary(f), x + 1e-5), reference::unary(unary(f), x - 1e-5));
            let error = reference::activation_slope(f, x) - (above - below) / 2e-5;
            assert!(error.abs() < 1e-8, "{f:?} at {x}: {error:e}");
        }
    }
}

#[test]
fn gradients_are_the_slopes_at_every_length_offset_and_tier() {
    let (x, d_y) = (mixed(1, 4097), uniform(2, 4097));
    for f in ACTIVATIONS {
        let whole = same_on_every_tier(&format!("{f:?}"), || {
            let mut d_x = vec![0.0; x.len()];
            activation_backward(f, &x, &d_y, &mut d_x);
            d_x
        });
        for i in 0..x.len() {
            let want = match x[i] {
                x if x.is_nan() => f64::NAN,
                // Their formulas are infinity less infinity there; the slope has long been flat.
                x if x.abs() > 1e20 => reference::activation_slope(f, 30.0 * f64::from(x.signum())),
                x => reference::activation_slope(f, f64::from(x)),
            };
            // Slopes are sums of two terms of size 1, each off by some 4 roundings.
            let near = (f64::from(whole[i]) - want * f64::from(d_y[i])).abs() <= 8.0 * U;
            // The kinked functions pass a gradient on where the argument is not a number.
            let nan = want.is_nan();
            assert!(near || nan, "{f:?}'({}) d {} is {}, not {want}", x[i], d_y[i], whole[i]);
        }
        on_every_tier(|isa| {
            for n in lengths() {
                let what = format!("{f:?} of {n} on {}", isa.name());
                let mut d_x = Guarded::new(n, 1 + n % 16);
                activation_backward(f, &x[..n], &d_y[..n], d_x.get());
                assert_same(&what, &whole[..n], &d_x.finish(&what));
            }
        });
    }
}

#[test]
fn smooth_activations_hand_nan_on() {
    use Activation::{
        Elu, Gelu, GeluTanh, Identity, LeakyRelu, Relu, Sigmoid, Silu, Softplus, Tanh,
    };
    on_every_tier(|_| {
        for f in [Gelu, GeluTanh, Silu, Tanh, Sigmoid, Elu(1.0), Softplus] {
            let mut d_x = [0.0];
            activation_backward(f, &[f32::NAN], &[1.0], &mut d_x);
            assert!(d_x[0].is_nan(), "{f:?}");
        }
        for f in [Identity, Relu, LeakyRelu(0.1), Gelu, GeluTanh, Silu, Softplus] {
            let mut y = [0.0];
            activation_forward(f, &[f32::NAN], &mut y);
            assert!(y[0].is_nan(), "{f:?}");
        }
    });
}

#[test]
fn bias_activation_and_residual_are_their_three_parts() {
    for (rows, cols) in [(0, 5), (1, 1), (3, 16), (5, 37), (2, 1025), (150, 300)] {
        let (x, bias, residual) =
            (mixed(10, rows * cols), uniform(11, cols), uniform(12, rows * cols));
        for f in ACTIVATIONS {
            on_every_tier(|_| {
                let mut inner = vec![0.0; x.len()];
                binary_row_forward(Binary::Add, &x, &bias, &mut inner);
                let mut want = vec![0.0; x.len()];
                activation_forward(f, &inner, &mut want);
                let mut y = Guarded::new(x.len(), 5);
                bias_activation_forward(f, &x, &bias, None, y.get());
                assert_same("without a residual", &want, &y.finish("y"));
                binary_forward(Binary::Add, &want.clone(), &residual, &mut want);
                let mut y = Guarded::new(x.len(), 5);
                bias_activation_forward(f, &x, &bias, Some(&residual), y.get());
                assert_same("with a residual", &want, &y.finish("y"));
            });
        }
    }
}

#[test]
fn bias_activation_gradients_are_those_of_the_parts() {
    for (rows, cols) in [(0, 5), (1, 1), (3, 16), (5, 37), (2, 1025), (150, 300)] {
        let (x, bias, d_y) =
            (uniform(13, rows * cols), uniform(14, cols), uniform(15, rows * cols));
        for f in ACTIVATIONS {
            let mut inner = vec![0.0; x.len()];
            binary_row_forward(Binary::Add, &x, &bias, &mut inner);
            let mut want = vec![0.0; x.len()];
            activation_backward(f, &inner, &d_y, &mut want);
            let mut sums = vec![0.0; cols];
            sum_cols(&want, &mut sums, false);
            let got = same_on_every_tier("bias_activation_backward", || {
                let mut d_x = Guarded::new(x.len(), 3);
                let mut d_bias = vec![0.5; cols];
                bias_activation_backward(f, &x, &bias, &d_y, d_x.get(), &mut d_bias);
                [d_x.finish("d_x"), d_bias].concat()
            });
            assert_same("d_x", &want, &got[..x.len()]);
            let sums: Vec<f64> = sums.iter().map(|s| f64::from(*s) + 0.5).collect();
            // Two orders of adding `rows` numbers below 1.2, both off by at most rows^2 U.
            let rows = rows as f64;
            assert_near("d_bias", &sums, &got[x.len()..], 3.0 * (rows + 1.0) * (rows + 1.0) * U);
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let (rows, cols) = (700, 300);
    let (x, b, d_y) = (uniform(16, rows * cols), uniform(17, cols), uniform(18, rows * cols));
    same_for_any_threads("activations", || {
        let (mut y, mut d_x, mut d_b) = (x.clone(), x.clone(), b.clone());
        bias_activation_forward(Activation::Gelu, &x, &b, Some(&d_y), &mut y);
        bias_activation_backward(Activation::Silu, &x, &b, &d_y, &mut d_x, &mut d_b);
        let mut z = y.clone();
        activation_backward(Activation::GeluTanh, &y, &d_y, &mut z);
        [y, d_x, d_b, z].concat()
    });
}
