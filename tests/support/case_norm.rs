//! Normalisation of channels.

use super::{Case, Domain, Shapes, case, given};
use crate::array::Array;

const EPS: f64 = 1e-2;

/// Inputs with channels, and their weights and biases.
const SHAPES: &[&[&[usize]]] = &[
    &[&[2, 2], &[2], &[2]],
    &[&[3, 4, 5], &[4], &[4]],
    &[&[0, 4, 3], &[4], &[4]],
    &[&[3, 2, 0], &[2], &[2]],
    &[&[5, 6], &[6], &[6]],
    &[&[2, 2, 3, 3], &[2], &[2]],
    &[&[2, 4, 16], &[4], &[4]],
    &[&[3, 2, 17], &[2], &[2]],
    &[&[9, 18], &[18], &[18]],
    &[&[1, 2, 1, 1, 33], &[2], &[2]],
];
const LARGE: &[&[usize]] = &[&[9, 14, 5, 7], &[14], &[14]];

/// `(x - mean) / sqrt(var + eps)` over places that `same` puts together.
fn normal(x: &Array, same: impl Fn(&[usize]) -> usize) -> Array {
    let places = Array::build(&x.shape, |i| same(i) as f64);
    let places: Vec<usize> = places.data.iter().map(|place| *place as usize).collect();
    let groups = places.iter().max().map_or(0, |last| last + 1);
    let mut members: Vec<Vec<f64>> = vec![Vec::new(); groups];
    places.iter().zip(&x.data).for_each(|(group, x)| members[*group].push(*x));
    let moments: Vec<(f64, f64)> = members
        .iter()
        .map(|x| {
            let n = x.len() as f64;
            let mean = x.iter().sum::<f64>() / n;
            (mean, x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n)
        })
        .collect();
    let hat = |(group, x): (&usize, &f64)| {
        let (mean, var) = moments[*group];
        (x - mean) / (var + EPS).sqrt()
    };
    Array::new(&x.shape, places.iter().zip(&x.data).map(hat).collect())
}

/// `hat * weight + bias` with one of each for each channel.
fn scaled(hat: &Array, weight: &Array, bias: &Array) -> Array {
    Array::build(&hat.shape, |i| hat.at(i) * weight.data[i[1]] + bias.data[i[1]])
}

/// The entries of this family.
pub fn cases() -> Vec<Case> {
    // Two channels a group.
    let groups = |shape: &[usize]| shape[1] / 2;
    let inference: Vec<Shapes> =
        SHAPES.iter().map(|s| [0, 1, 1, 1, 1].iter().map(|i| s[*i].to_vec()).collect()).collect();
    let large = [0, 1, 1, 1, 1].iter().map(|i| LARGE[*i].to_vec()).collect();
    vec![
        case(
            "batch_norm",
            Domain::Any,
            given(SHAPES, LARGE),
            |x| Ok(x[0].batch_norm(&x[1], &x[2], EPS as f32)?.0),
            |x| scaled(&normal(&x[0], |i| i[1]), &x[1], &x[2]),
        )
        .twin(|x| x[0].batch_norm_plain(&x[1], &x[2], EPS as f32)),
        case(
            "batch_norm_inference",
            Domain::Positive,
            (inference, large),
            |x| x[0].batch_norm_inference(&x[1], &x[2], &x[3], &x[4], EPS as f32),
            |x| {
                let hat = Array::build(&x[0].shape, |i| {
                    (x[0].at(i) - x[3].data[i[1]]) / (x[4].data[i[1]] + EPS).sqrt()
                });
                scaled(&hat, &x[1], &x[2])
            },
        ),
        case(
            "group_norm",
            Domain::Any,
            given(SHAPES, LARGE),
            move |x| x[0].group_norm(&x[1], &x[2], groups(x[0].shape()), EPS as f32),
            move |x| {
                let groups = groups(&x[0].shape);
                scaled(&normal(&x[0], |i| i[0] * groups + i[1] / 2), &x[1], &x[2])
            },
        )
        .twin(move |x| x[0].group_norm_plain(&x[1], &x[2], groups(x[0].shape()), EPS as f32)),
    ]
}
