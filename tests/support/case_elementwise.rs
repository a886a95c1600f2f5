//! Functions of one number and of two.

use etude_engine::{Activation, Result, Rng, Tensor, recompute};

use super::{Case, Domain, case, given, one, sigmoid, two};
use crate::array::{Array, erf};

type Unary = (&'static str, Domain, fn(&Tensor) -> Result<Tensor>, fn(f64) -> f64);
type Binary = (&'static str, Domain, fn(&Tensor, &Tensor) -> Result<Tensor>, fn(f64, f64) -> f64);

/// The entries of this family.
pub fn cases() -> Vec<Case> {
    use Domain::{Any, Distinct, NoZero, Positive};
    let unary: [Unary; 24] = [
        ("neg", Any, |x| x.neg(), |x| -x),
        ("exp", Any, |x| x.exp(), f64::exp),
        ("log", Positive, |x| x.log(), f64::ln),
        ("sqrt", Positive, |x| x.sqrt(), f64::sqrt),
        ("recip", Positive, |x| x.recip(), |x| 1.0 / x),
        ("tanh", Any, |x| x.tanh(), f64::tanh),
        ("sigmoid", Any, |x| x.sigmoid(), sigmoid),
        ("relu", NoZero, |x| x.relu(), |x| x.max(0.0)),
        ("leaky_relu", NoZero, |x| x.leaky_relu(0.25), |x| if x > 0.0 { x } else { 0.25 * x }),
        ("gelu", Any, |x| x.gelu(), |x| 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))),
        ("gelu_tanh", Any, |x| x.gelu_tanh(), gelu_tanh),
        ("silu", Any, |x| x.silu(), silu),
        ("elu", NoZero, |x| x.elu(1.5), |x| if x > 0.0 { x } else { 1.5 * x.exp_m1() }),
        ("softplus", Any, |x| x.softplus(), |x| x.exp().ln_1p()),
        ("pow 3", Any, |x| x.pow(3.0), |x| x.powi(3)),
        ("pow 1.5", Positive, |x| x.pow(1.5), |x| x.powf(1.5)),
        ("pow -0.5", Positive, |x| x.pow(-0.5), |x| x.powf(-0.5)),
        ("affine", Any, |x| x.affine(-1.75, 0.5), |x| -1.75 * x + 0.5),
        ("abs", NoZero, |x| x.abs(), f64::abs),
        ("sin", Any, |x| x.sin(), f64::sin),
        ("cos", Any, |x| x.cos(), f64::cos),
        ("erf", Any, |x| x.erf(), erf),
        (
            "recompute",
            Any,
            |x| recompute(&[x], |x| x[0].tanh()?.mul(&x[0])?.exp()),
            |x| (x.tanh() * x).exp(),
        ),
        ("x * x", Any, |x| x.mul(x), |x| x * x),
    ];
    let binary: [Binary; 7] = [
        ("add", Any, |a, b| a.add(b), |a, b| a + b),
        ("sub", Any, |a, b| a.sub(b), |a, b| a - b),
        ("mul", Any, |a, b| a.mul(b), |a, b| a * b),
        ("div", Positive, |a, b| a.div(b), |a, b| a / b),
        ("maximum", Distinct, |a, b| a.maximum(b), f64::max),
        ("minimum", Distinct, |a, b| a.minimum(b), f64::min),
        (
            "recompute of two",
            Any,
            |a, b| recompute(&[a, b], |x| x[0].mul(&x[1])?.sin()),
            |a, b| (a * b).sin(),
        ),
    ];
    let mut all = Vec::new();
    for (name, domain, op, f) in unary {
        all.push(case(name, domain, one(), move |x| op(&x[0]), move |x| x[0].map(f)));
    }
    for (name, domain, op, f) in binary {
        let reference = move |x: &[Array]| x[0].zip(&x[1], f);
        all.push(case(name, domain, two(), move |x| op(&x[0], &x[1]), reference));
    }
    // Every third element is taken from the first operand.
    let mask = |shape: &[usize]| {
        Array::build(shape, |i| f64::from(u8::from(i.iter().sum::<usize>() % 3 == 0)))
    };
    let wide = |x: &[Array]| x[0].zip(&x[1], |_, _| 0.0).shape;
    all.push(case(
        "where_mask",
        Any,
        two(),
        move |x| {
            let shape = x[0].add(&x[1])?.shape().to_vec();
            let m: Vec<f32> = mask(&shape).data.iter().map(|x| *x as f32).collect();
            Tensor::where_mask(&Tensor::from_slice(&m, &shape)?, &x[0], &x[1])
        },
        move |x| {
            let shape = wide(x);
            let m = mask(&shape);
            Array::build(&shape, |i| if m.at(i) != 0.0 { x[0].at(i) } else { x[1].at(i) })
        },
    ));
    all.push(case(
        "masked_fill",
        Any,
        given(
            &[
                &[&[1, 1]],
                &[&[2, 2]],
                &[&[3, 3]],
                &[&[0, 0]],
                &[&[2, 5, 5]],
                &[&[0, 4, 4]],
                &[&[7, 7]],
                &[&[1, 2, 3, 3]],
            ],
            &[&[3, 65, 65]],
        ),
        |x| x[0].masked_fill(&Tensor::causal_mask(x[0].shape()[x[0].rank() - 1])?, -2.0),
        |x| {
            let rank = x[0].shape.len();
            Array::build(&x[0].shape, |i| if i[rank - 1] > i[rank - 2] { -2.0 } else { x[0].at(i) })
        },
    ));
    all.push(case(
        "dropout",
        Any,
        one(),
        |x| x[0].dropout(0.3, &mut Rng::stream(5, 2)),
        |x| {
            let ones =
                Tensor::ones(&x[0].shape).and_then(|t| t.dropout(0.3, &mut Rng::stream(5, 2)));
            // The mask is what dropout makes of ones; that it keeps 70 % is another test's matter.
            let mask = ones.map(|t| t.to_vec()).unwrap_or_default();
            let kept = |(x, m): (&f64, &f32)| if *m == 0.0 { 0.0 } else { x / 0.7 };
            Array::new(&x[0].shape, x[0].data.iter().zip(&mask).map(kept).collect())
        },
    ));
    all.extend(fused());
    all
}

fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
}

fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}

/// An activation with the bias before it and the residual after it.
fn fused() -> Vec<Case> {
    let shapes: &[&[&[usize]]] = &[
        &[&[1, 1], &[1], &[1, 1]],
        &[&[3, 5], &[5], &[3, 5]],
        &[&[0, 3], &[3], &[0, 3]],
        &[&[3, 0], &[0], &[3, 0]],
        &[&[7], &[7], &[7]],
        &[&[2, 3, 4], &[4], &[2, 3, 4]],
        &[&[2, 16], &[16], &[2, 16]],
        &[&[2, 17], &[17], &[2, 17]],
        &[&[1, 33], &[33], &[1, 33]],
    ];
    let pairs: Vec<Vec<&[usize]>> = shapes.iter().map(|s| s[..2].to_vec()).collect();
    let pairs: Vec<&[&[usize]]> = pairs.iter().map(Vec::as_slice).collect();
    vec![
        case(
            "bias_activation, gelu, residual",
            Domain::Any,
            given(shapes, &[&[65, 131], &[131], &[65, 131]]),
            |x| x[0].bias_activation(&x[1], Some(&x[2]), Activation::Gelu),
            |x| {
                let gelu = |x: f64| 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2));
                x[0].zip(&x[1], |x, b| gelu(x + b)).zip(&x[2], |y, r| y + r)
            },
        )
        .twin(|x| x[0].bias_activation_plain(&x[1], Some(&x[2]), Activation::Gelu)),
        case(
            "bias_activation, silu",
            Domain::Any,
            given(&pairs, &[&[65, 131], &[131]]),
            |x| x[0].bias_activation(&x[1], None, Activation::Silu),
            |x| x[0].zip(&x[1], |x, b| silu(x + b)),
        )
        .twin(|x| x[0].bias_activation_plain(&x[1], None, Activation::Silu)),
    ]
}
