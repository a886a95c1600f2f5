//! Views, joins and sums.

use etude_engine::Tensor;

use super::{Case, Domain, boxes, case, given, last, matrices, one};
use crate::array::Array;

/// The entries of this family.
pub fn cases() -> Vec<Case> {
    use Domain::Any;
    let mut all = vec![
        case(
            "reshape",
            Any,
            one(),
            |x| x[0].reshape(&[x[0].len(), 1]),
            |x| x[0].reshape(&[x[0].data.len(), 1]),
        ),
        case("permute", Any, boxes(), |x| x[0].permute(&[2, 0, 1]), |x| x[0].permute(&[2, 0, 1])),
        case("transpose", Any, boxes(), |x| x[0].transpose(0, 2), |x| x[0].permute(&[2, 1, 0])),
        case("t", Any, boxes(), |x| x[0].t(), |x| x[0].t()),
        case("contiguous", Any, matrices(), |x| x[0].t()?.contiguous(), |x| x[0].t()),
        case(
            "slice",
            Any,
            boxes(),
            |x| x[0].slice(1, x[0].shape()[1] / 2..x[0].shape()[1]),
            |x| x[0].slice(1, x[0].shape[1] / 2, x[0].shape[1]),
        ),
        case(
            "select",
            Any,
            given(
                &[
                    &[&[1, 1]],
                    &[&[2, 3]],
                    &[&[3, 0]],
                    &[&[3, 2, 2]],
                    &[&[5, 1]],
                    &[&[4, 17]],
                    &[&[1, 2, 3]],
                    &[&[2, 1, 7]],
                ],
                &[&[7, 129]],
            ),
            |x| x[0].select(0, x[0].shape()[0] - 1),
            |x| {
                let n = x[0].shape[0];
                x[0].slice(0, n - 1, n).reshape(&x[0].shape[1..])
            },
        ),
        case("pad", Any, boxes(), |x| x[0].pad(1, 2, 1), |x| x[0].pad(1, 2, 1)),
        case(
            "expand",
            Any,
            given(
                &[
                    &[&[]],
                    &[&[1]],
                    &[&[4, 1]],
                    &[&[4, 0]],
                    &[&[3, 1, 2]],
                    &[&[1, 1, 1]],
                    &[&[2, 5]],
                    &[&[1, 7]],
                ],
                &[&[33, 1, 65]],
            ),
            |x| {
                let shape: Vec<usize> =
                    x[0].shape().iter().map(|d| if *d == 1 { 3 } else { *d }).collect();
                x[0].expand(&[&[2], &shape[..]].concat())
            },
            |x| {
                let shape: Vec<usize> =
                    x[0].shape.iter().map(|d| if *d == 1 { 3 } else { *d }).collect();
                x[0].expand(&[&[2], &shape[..]].concat())
            },
        ),
        case(
            "sum_to",
            Any,
            boxes(),
            |x| x[0].sum_to(&[x[0].shape()[1], 1]),
            |x| x[0].sum(&[0, 2], false).reshape(&[x[0].shape[1], 1]),
        ),
        case(
            "sum_all",
            Any,
            one(),
            |x| x[0].sum_all(),
            |x| Array::new(&[], vec![x[0].data.iter().sum()]),
        ),
        case("sum 0", Any, boxes(), |x| x[0].sum(&[0], false), |x| x[0].sum(&[0], false)),
        case("sum 1", Any, boxes(), |x| x[0].sum(&[1], true), |x| x[0].sum(&[1], true)),
        case("sum 2", Any, boxes(), |x| x[0].sum(&[2], false), |x| x[0].sum(&[2], false)),
        case("sum 0 2", Any, boxes(), |x| x[0].sum(&[2, 0], true), |x| x[0].sum(&[0, 2], true)),
        case(
            "mean",
            Any,
            given(
                &[
                    &[&[1]],
                    &[&[7]],
                    &[&[3, 5]],
                    &[&[0, 3]],
                    &[&[2, 3, 4]],
                    &[&[17]],
                    &[&[1, 16]],
                    &[&[33, 1]],
                ],
                &[&[65, 131]],
            ),
            |x| x[0].mean(&[last(x[0].rank())], false),
            |x| {
                let axis = last(x[0].shape.len());
                let n = x[0].shape[axis] as f64;
                x[0].sum(&[axis], false).map(|x| x / n)
            },
        ),
    ];
    let parts: &[&[&[usize]]] = &[
        &[&[1, 1], &[1, 1]],
        &[&[2, 3], &[2, 1]],
        &[&[2, 0], &[2, 5]],
        &[&[0, 3], &[0, 4]],
        &[&[3, 7], &[3, 17]],
        &[&[1, 2, 3], &[1, 2, 3]],
        &[&[2, 2, 1], &[2, 3, 1]],
        &[&[4, 0, 2], &[4, 1, 2]],
    ];
    let concat =
        |a: &[usize], b: &[usize]| if a.len() == 2 || a == b { 1.min(a.len() - 1) } else { 1 };
    all.push(case(
        "concat",
        Any,
        given(parts, &[&[33, 65], &[33, 7]]),
        move |x| Tensor::concat(&[&x[0], &x[1], &x[0]], concat(x[0].shape(), x[1].shape())),
        move |x| Array::concat(&[&x[0], &x[1], &x[0]], concat(&x[0].shape, &x[1].shape)),
    ));
    all.push(case(
        "stack",
        Any,
        given(
            &[
                &[&[], &[]],
                &[&[1], &[1]],
                &[&[0], &[0]],
                &[&[7], &[7]],
                &[&[2, 3], &[2, 3]],
                &[&[1, 5], &[1, 5]],
                &[&[3, 0], &[3, 0]],
                &[&[2, 2, 2], &[2, 2, 2]],
            ],
            &[&[65, 33], &[65, 33]],
        ),
        |x| Tensor::stack(&[&x[0], &x[1]]),
        |x| {
            let wide = |a: &Array| a.reshape(&[&[1], &a.shape[..]].concat());
            Array::concat(&[&wide(&x[0]), &wide(&x[1])], 0)
        },
    ));
    all
}
