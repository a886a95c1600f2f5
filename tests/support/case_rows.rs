//! Products, and functions of rows: softmax, losses, norms, tables.

use etude_engine::{Ids, Tensor};

use super::{Case, Domain, bags, case, given, last, matrices, sigmoid};
use crate::array::Array;

/// The entries of this family.
pub fn cases() -> Vec<Case> {
    products().into_iter().chain(rows()).collect()
}

fn products() -> Vec<Case> {
    use Domain::Any;
    let pairs: &[&[&[usize]]] = &[
        &[&[1, 1], &[1, 1]],
        &[&[3, 4], &[4, 5]],
        &[&[1, 7], &[7, 1]],
        &[&[0, 3], &[3, 2]],
        &[&[2, 0], &[0, 3]],
        &[&[2, 3], &[3, 0]],
        &[&[9, 5], &[5, 17]],
        &[&[2, 3, 4], &[4, 2]],
        &[&[2, 3, 4], &[2, 4, 5]],
        &[&[2, 1, 3, 2], &[3, 2, 2]],
        &[&[3, 4], &[2, 4, 3]],
        &[&[0, 2, 3], &[0, 3, 2]],
    ];
    let layers: &[&[&[usize]]] = &[
        &[&[1, 1], &[1, 1], &[1]],
        &[&[3, 4], &[5, 4], &[5]],
        &[&[0, 4], &[5, 4], &[5]],
        &[&[3, 0], &[2, 0], &[2]],
        &[&[3, 2], &[0, 2], &[0]],
        &[&[2, 3, 4], &[7, 4], &[7]],
        &[&[4], &[3, 4], &[3]],
        &[&[9, 17], &[16, 17], &[16]],
    ];
    let affine = |x: &[Array]| {
        let rows: usize = x[0].shape[..x[0].shape.len() - 1].iter().product();
        let shape = [&x[0].shape[..x[0].shape.len() - 1], &[x[1].shape[0]]].concat();
        let y = x[0].reshape(&[rows, x[1].shape[1]]).matmul(&x[1].t());
        y.zip(&x[2], |y, b| y + b).reshape(&shape)
    };
    vec![
        case(
            "matmul",
            Any,
            given(pairs, &[&[65, 129], &[129, 67]]),
            |x| x[0].matmul(&x[1]),
            |x| x[0].matmul(&x[1]),
        ),
        case(
            "linear",
            Any,
            given(layers, &[&[65, 129], &[67, 129], &[67]]),
            |x| x[0].linear(&x[1], Some(&x[2])),
            affine,
        )
        .twin(|x| match x[0].rank() {
            1 => x[0]
                .reshape(&[1, x[0].len()])?
                .linear_plain(&x[1], Some(&x[2]))?
                .reshape(&[x[1].shape()[0]]),
            _ => x[0].linear_plain(&x[1], Some(&x[2])),
        }),
    ]
}

fn rows() -> Vec<Case> {
    use Domain::Any;
    let softmax = |x: &Array| {
        let axis = last(x.shape.len());
        let e = x.zip(&x.row_max(), |x, m| (x - m).exp());
        e.zip(&e.sum(&[axis], true), |e, s| e / s)
    };
    // The mean of -log softmax over the rows with a target.
    let cross_entropy = move |x: &Array| {
        let (_, bags) = bags(x.shape[0], 1, x.shape[1]);
        let p = softmax(x);
        let cols = x.shape[1];
        let hits: Vec<f64> = bags
            .iter()
            .enumerate()
            .filter_map(|(r, bag)| bag[0].map(|id| -p.data[r * cols + id].ln()))
            .collect();
        Array::new(&[], vec![hits.iter().sum::<f64>() / hits.len().max(1) as f64])
    };
    let targets = |x: &Tensor| Ids::new(bags(x.shape()[0], 1, x.shape()[1]).0);
    let with_cols = || {
        let mut shapes = matrices();
        shapes.0.retain(|s| s[0][1] > 0);
        shapes.0.push(vec![vec![6, 3]]);
        shapes
    };
    let norm: &[&[&[usize]]] = &[
        &[&[1, 2], &[2], &[2]],
        &[&[3, 5], &[5], &[5]],
        &[&[0, 3], &[3], &[3]],
        &[&[7], &[7], &[7]],
        &[&[2, 3, 4], &[4], &[4]],
        &[&[4, 16], &[16], &[16]],
        &[&[2, 17], &[17], &[17]],
        &[&[1, 33], &[33], &[33]],
    ];
    let normal = |x: &[Array]| {
        let axis = last(x[0].shape.len());
        let n = x[0].shape[axis] as f64;
        let mean = x[0].sum(&[axis], true).map(|s| s / n);
        let centred = x[0].zip(&mean, |x, m| x - m);
        let var = centred.map(|x| x * x).sum(&[axis], true).map(|s| s / n);
        let hat = centred.zip(&var, |x, v| x / (v + 1e-2).sqrt());
        hat.zip(&x[1], |x, w| x * w).zip(&x[2], |x, b| x + b)
    };
    vec![
        case("softmax", Any, with_cols(), |x| x[0].softmax(), move |x| softmax(&x[0]))
            .twin(|x| x[0].softmax_plain()),
        case(
            "log_softmax",
            Any,
            with_cols(),
            |x| x[0].log_softmax(),
            move |x| softmax(&x[0]).map(f64::ln),
        )
        .twin(|x| x[0].log_softmax_plain()),
        case(
            "cross_entropy",
            Any,
            with_cols(),
            move |x| x[0].cross_entropy(&targets(&x[0])),
            move |x| cross_entropy(&x[0]),
        )
        .twin(move |x| x[0].cross_entropy_plain(&targets(&x[0]))),
        case(
            "cross_entropy, halved",
            Any,
            with_cols(),
            move |x| x[0].cross_entropy(&targets(&x[0]))?.scale(0.5),
            move |x| cross_entropy(&x[0]).map(|x| 0.5 * x),
        ),
        case(
            "binary_cross_entropy",
            Domain::NoZero,
            given(
                &[
                    &[&[1]],
                    &[&[7]],
                    &[&[3, 5]],
                    &[&[2, 3, 4]],
                    &[&[17]],
                    &[&[1, 16]],
                    &[&[33, 1]],
                    &[&[2, 2]],
                ],
                &[&[65, 131]],
            ),
            |x| {
                let y: Vec<f32> = (0..x[0].len()).map(|i| (i % 3) as f32 * 0.5).collect();
                x[0].binary_cross_entropy(&Tensor::from_slice(&y, x[0].shape())?)
            },
            |x| {
                let n = x[0].data.len() as f64;
                let loss = |(i, x): (usize, &f64)| {
                    let y = (i % 3) as f64 * 0.5;
                    -(y * sigmoid(*x).ln() + (1.0 - y) * sigmoid(-x).ln())
                };
                Array::new(&[], vec![x[0].data.iter().enumerate().map(loss).sum::<f64>() / n])
            },
        ),
        case(
            "layer_norm",
            Any,
            given(norm, &[&[33, 131], &[131], &[131]]),
            |x| x[0].layer_norm(&x[1], &x[2], 1e-2),
            normal,
        )
        .twin(|x| x[0].layer_norm_plain(&x[1], &x[2], 1e-2)),
        case(
            "embedding",
            Any,
            matrices(),
            |x| x[0].embedding(&Ids::bags(bags(6, 3, x[0].shape()[0]).0, 3)?),
            |x| x[0].rows(&bags(6, 3, x[0].shape[0]).1),
        ),
        case(
            "scatter_add",
            Any,
            matrices(),
            |x| x[0].scatter_add(&Ids::bags(bags(x[0].shape()[0], 2, 4).0, 2)?, 4),
            |x| {
                let (_, bags) = bags(x[0].shape[0], 2, 4);
                Array::build(&[4, x[0].shape[1]], |i| {
                    let hits = bags
                        .iter()
                        .enumerate()
                        .flat_map(|(r, bag)| bag.iter().map(move |id| (r, *id)));
                    hits.filter(|(_, id)| *id == Some(i[0])).map(|(r, _)| x[0].at(&[r, i[1]])).sum()
                })
            },
        ),
        case(
            "gather",
            Any,
            matrices(),
            |x| x[0].gather(&Ids::new(bags(x[0].shape()[0], 1, x[0].shape()[1]).0)),
            |x| {
                let (_, bags) = bags(x[0].shape[0], 1, x[0].shape[1]);
                Array::build(&[x[0].shape[0]], |i| {
                    bags[i[0]][0].map_or(0.0, |id| x[0].at(&[i[0], id]))
                })
            },
        ),
    ]
}
