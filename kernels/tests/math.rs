//! Vector functions against f64: the largest error over all arguments, and the special ones.
//!
//! Every sign and exponent is sampled at some thousand mantissas (a step through the bit patterns
//! that is prime, so that mantissas differ from one exponent to the next).

mod support;

use etude_kernels::elementwise::{Unary, unary_forward};
use etude_kernels::reference::elementwise::{erf, erfc, unary};
use support::*;

/// Bit patterns of all signs and exponents: 2.8 million numbers.
fn every_exponent() -> Vec<f32> {
    (0..u32::MAX).step_by(1531).map(f32::from_bits).collect()
}

fn apply(f: Unary, x: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    unary_forward(f, x, &mut y);
    y
}

/// The distance between neighbouring f32 at the size of `x`, at least the smallest number.
fn ulp(x: f64) -> f64 {
    let exponent = (x.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor()) as i32;
    f64::from(2f32).powi(exponent - 23)
}

/// Asserts that `f` is within `bound` ulp of `exact`, and that no bits differ between tiers.
fn check(name: &str, f: Unary, bound: f64, x: &[f32], exact: impl Fn(f64) -> f64) {
    let y = same_on_every_tier(name, || apply(f, x));
    let (mut worst, mut at) = (0.0, 0.0);
    for (x, y) in x.iter().zip(&y) {
        let want = exact(f64::from(*x));
        // Rounded to f32 first, to know what overflows, underflows or is not a number.
        let nearest = want as f32;
        if nearest.is_nan() || nearest.is_infinite() {
            let same = nearest.is_nan() && y.is_nan() || nearest == *y;
            // An exact result less than an ulp beyond the largest number may round to it.
            let edge = want.is_finite() && y.abs() == f32::MAX;
            assert!(same || edge, "{name}({x:e}) is {y:e}, should be {nearest:e}");
            continue;
        }
        let error = (f64::from(*y) - want).abs() / ulp(want);
        assert!(!error.is_nan(), "{name}({x:e}) is {y:e}, should be {want:e}");
        if error > worst {
            (worst, at) = (error, *x);
        }
    }
    println!("{name}: {worst:.3} ulp at {at:e}");
    assert!(worst <= bound, "{name}: {worst} ulp at {at:e}");
}

/// The largest absolute error of `f`.
fn check_absolute(name: &str, f: Unary, bound: f64, x: &[f32], exact: impl Fn(f64) -> f64) {
    let y = apply(f, x);
    let worst = x.iter().zip(&y).filter(|(x, _)| !x.is_nan()).map(|(x, y)| {
        let error = (f64::from(*y) - exact(f64::from(*x))).abs();
        if error.is_nan() { f64::INFINITY } else { error }
    });
    let worst = worst.fold(0.0, f64::max);
    println!("{name}: absolute error {worst:.2e}");
    assert!(worst <= bound, "{name}: absolute error {worst:e}");
}

#[test]
fn the_oracle_of_erf_is_right() {
    // Abramowitz & Stegun, table 7.1.
    for (x, y) in [(0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (1.9, 0.992_790_429_2)] {
        assert!((erf(x) - y).abs() < 1e-10 && (1.0 - erfc(x) - y).abs() < 1e-10);
    }
    assert!((erfc(2.0) - 0.004_677_734_981).abs() < 1e-12);
}

#[test]
fn functions_are_within_their_stated_ulps() {
    let x = every_exponent();
    check("exp", Unary::Exp, 2.0, &x, f64::exp);
    check("tanh", Unary::Tanh, 3.0, &x, f64::tanh);
    check("sigmoid", Unary::Sigmoid, 3.0, &x, |x| unary(Unary::Sigmoid, x));
    check("log", Unary::Log, 2.0, &x, f64::ln);
    check("erf", Unary::Erf, 2.0, &x, erf);
    // Below -87 its second factor is denormal: few bits, 88 times magnified.
    let normal: Vec<f32> = x.iter().copied().filter(|x| *x > -87.0 || x.is_nan()).collect();
    check("silu", Unary::Silu, 4.0, &normal, |x| unary(Unary::Silu, x));
    check("elu", Unary::Elu(1.0), 3.0, &x, |x| unary(Unary::Elu(1.0), x));
    check("softplus", Unary::Softplus, 4.0, &x, |x| unary(Unary::Softplus, x));
    check("sin", Unary::Sin, 2.0, &x, f64::sin);
    check("cos", Unary::Cos, 2.0, &x, f64::cos);
    check("sqrt", Unary::Sqrt, 0.5, &x, f64::sqrt);
    check("recip", Unary::Recip, 0.5, &x, |x| 1.0 / x);
}

#[test]
fn functions_are_dense_where_models_use_them() {
    // Every 1/4096 within [-20, 20], off the grid by a little.
    let x: Vec<f32> = (-81_920..81_920).map(|i| i as f32 / 4096.0 + 1e-5).collect();
    check("exp", Unary::Exp, 2.0, &x, f64::exp);
    check("tanh", Unary::Tanh, 3.0, &x, f64::tanh);
    check("sigmoid", Unary::Sigmoid, 3.0, &x, |x| unary(Unary::Sigmoid, x));
    check("sin", Unary::Sin, 2.0, &x, f64::sin);
    check("cos", Unary::Cos, 2.0, &x, f64::cos);
    check("erf", Unary::Erf, 2.0, &x, erf);
    check("log", Unary::Log, 2.0, &x, f64::ln);
    check_absolute("tanh", Unary::Tanh, 2e-7, &x, f64::tanh);
    check_absolute("sigmoid", Unary::Sigmoid, 2e-7, &x, |x| unary(Unary::Sigmoid, x));
    // Half an ulp at 16 is 1e-6; the error counts relative to max(1, |x|).
    let small: Vec<f32> = x.iter().copied().filter(|x| *x < 1.0).collect();
    check_absolute("gelu", Unary::Gelu, 2e-7, &small, |x| unary(Unary::Gelu, x));
    check_absolute("gelu_tanh", Unary::GeluTanh, 2e-7, &small, |x| unary(Unary::GeluTanh, x));
    check("gelu_tanh", Unary::GeluTanh, 4.0, &x[81_920..], |x| unary(Unary::GeluTanh, x));
    check("gelu", Unary::Gelu, 4.0, &x[81_920..], |x| unary(Unary::Gelu, x));
}

#[test]
fn the_left_tail_of_gelu_keeps_its_relative_precision() {
    // Without cancellation what is left is the rounding of the exponent: a^2 U, a = x / sqrt(2),
    // and 1e-4 of the polynomial; down to where the result is no longer normal.
    for k in 0..1200 {
        let x = -f64::from(k as f32 / 100.0 + 0.01) as f32;
        let want = unary(Unary::Gelu, f64::from(x));
        let got = f64::from(apply(Unary::Gelu, &[x])[0]);
        assert!((got - want).abs() <= 1.5e-4 * want.abs(), "gelu({x}) is {got:e}, not {want:e}");
    }
}

#[test]
fn special_arguments_give_special_results() {
    const INF: f32 = f32::INFINITY;
    let tiny = f32::from_bits(1);
    let cases: &[(Unary, f32, f32)] = &[
        (Unary::Exp, INF, INF),
        (Unary::Exp, -INF, 0.0),
        (Unary::Exp, 0.0, 1.0),
        (Unary::Exp, -0.0, 1.0),
        (Unary::Exp, tiny, 1.0),
        (Unary::Exp, 88.8, INF),
        (Unary::Exp, -104.1, 0.0),
        (Unary::Tanh, INF, 1.0),
        (Unary::Tanh, -INF, -1.0),
        (Unary::Tanh, 0.0, 0.0),
        (Unary::Tanh, -0.0, -0.0),
        (Unary::Tanh, tiny, tiny),
        (Unary::Tanh, -tiny, -tiny),
        (Unary::Tanh, 3e38, 1.0),
        (Unary::Sigmoid, INF, 1.0),
        (Unary::Sigmoid, -INF, 0.0),
        (Unary::Sigmoid, 0.0, 0.5),
        (Unary::Sigmoid, -0.0, 0.5),
        (Unary::Sigmoid, -3e38, 0.0),
        (Unary::Log, INF, INF),
        (Unary::Log, 0.0, -INF),
        (Unary::Log, -0.0, -INF),
        (Unary::Log, 1.0, 0.0),
        (Unary::Log, -1.0, f32::NAN),
        (Unary::Log, -INF, f32::NAN),
        (Unary::Sin, 0.0, 0.0),
        (Unary::Sin, -0.0, -0.0),
        (Unary::Sin, INF, f32::NAN),
        (Unary::Cos, 0.0, 1.0),
        (Unary::Cos, -INF, f32::NAN),
        (Unary::Erf, INF, 1.0),
        (Unary::Erf, -INF, -1.0),
        (Unary::Erf, -0.0, -0.0),
        (Unary::Gelu, INF, INF),
        (Unary::Gelu, -INF, -0.0),
        (Unary::Gelu, 0.0, 0.0),
        (Unary::Gelu, -0.0, -0.0),
        (Unary::Relu, -INF, 0.0),
        (Unary::Relu, INF, INF),
        (Unary::LeakyRelu(0.5), -2.0, -1.0),
        (Unary::Step, 0.0, 0.0),
        (Unary::Step, tiny, 1.0),
        (Unary::Sqrt, -1.0, f32::NAN),
        (Unary::Recip, -0.0, -INF),
        (Unary::Abs, -INF, INF),
        (Unary::Neg, 0.0, -0.0),
        (Unary::Pow(0.5), 4.0, 2.0),
        (Unary::Pow(2.5), -1.0, f32::NAN),
        (Unary::Pow(0.0), 0.0, 1.0),
        (Unary::Pow(-2.0), 0.0, INF),
        (Unary::Pow(3.0), -2.0, -8.0),
    ];
    on_every_tier(|isa| {
        for (f, x, want) in cases {
            // In the first lane of a whole block, and alone in a part of one.
            let mut block = [1.0; 16];
            block[0] = *x;
            let what = format!("{f:?}({x:e}) on {}", isa.name());
            assert_same(&what, &[*want], &apply(*f, &block)[..1]);
            assert_same(&what, &[*want], &apply(*f, &[*x]));
        }
        let keep_nan = [
            Unary::Exp,
            Unary::Tanh,
            Unary::Sigmoid,
            Unary::Log,
            Unary::Sin,
            Unary::Cos,
            Unary::Erf,
            Unary::Gelu,
            Unary::Relu,
            Unary::LeakyRelu(0.1),
            Unary::Sqrt,
            Unary::Pow(0.3),
            Unary::Affine(2.0, 1.0),
        ];
        for f in keep_nan {
            for nan in [f32::NAN, -f32::NAN] {
                assert!(apply(f, &[nan])[0].is_nan(), "{f:?}(NaN) on {}", isa.name());
            }
        }
    });
}
