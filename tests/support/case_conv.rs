//! Convolutions of one, two and three axes, and their transposes.

use etude_engine::Conv;

use super::{Case, Domain, Shapes, case};
use crate::array::Array;

/// One call: shapes of the input and of the weight, and the options along each axis.
struct Call {
    x: &'static [usize],
    w: &'static [usize],
    stride: &'static [usize],
    padding: &'static [usize],
    dilation: &'static [usize],
    output_padding: &'static [usize],
    groups: usize,
}

/// Stride 1, no padding, dilation 1.
const fn plain(x: &'static [usize], w: &'static [usize]) -> Call {
    const ONE: &[usize] = &[1];
    const NONE: &[usize] = &[0];
    Call { x, w, stride: ONE, padding: NONE, dilation: ONE, output_padding: NONE, groups: 1 }
}

impl Call {
    const fn stride(self, stride: &'static [usize]) -> Call {
        Call { stride, ..self }
    }
    const fn padding(self, padding: &'static [usize]) -> Call {
        Call { padding, ..self }
    }
    const fn dilation(self, dilation: &'static [usize]) -> Call {
        Call { dilation, ..self }
    }
    const fn output_padding(self, output_padding: &'static [usize]) -> Call {
        Call { output_padding, ..self }
    }
    const fn groups(self, groups: usize) -> Call {
        Call { groups, ..self }
    }
}

/// The last call of each list is the large one; no two have the same shapes.
const CONV1: &[Call] = &[
    plain(&[1, 1, 1], &[1, 1, 1]),
    plain(&[2, 3, 7], &[4, 3, 3]).padding(&[1]),
    plain(&[2, 2, 11], &[3, 2, 5]).stride(&[2]).padding(&[2]),
    plain(&[1, 3, 12], &[2, 3, 4]).stride(&[4]),
    plain(&[2, 2, 9], &[3, 2, 3]).dilation(&[3]).padding(&[2]),
    plain(&[0, 2, 5], &[3, 2, 3]),
    plain(&[2, 4, 6], &[6, 2, 2]).groups(2),
    plain(&[1, 2, 5], &[17, 2, 2]).stride(&[3]).padding(&[1]).dilation(&[2]),
    plain(&[3, 20, 130], &[33, 20, 5]).stride(&[2]).padding(&[2]),
];
const CONV2: &[Call] = &[
    plain(&[1, 1, 1, 1], &[1, 1, 1, 1]),
    plain(&[2, 2, 4, 5], &[3, 2, 3, 3]).padding(&[1]),
    plain(&[1, 3, 5, 4], &[2, 3, 2, 3]).stride(&[2, 1]).padding(&[1, 0]),
    plain(&[2, 2, 2, 12], &[3, 2, 1, 6]).stride(&[1, 6]),
    plain(&[1, 2, 8, 3], &[4, 2, 4, 1]).stride(&[4, 1]),
    plain(&[1, 2, 5, 6], &[2, 2, 2, 2]).dilation(&[2, 3]).padding(&[0, 2]),
    plain(&[0, 2, 4, 4], &[3, 2, 3, 3]),
    plain(&[2, 4, 3, 3], &[4, 1, 2, 2]).groups(4),
    plain(&[1, 2, 4, 4], &[1, 2, 1, 1]).stride(&[2, 3]),
    plain(&[2, 19, 23, 21], &[35, 19, 3, 3]).padding(&[1]),
];
const CONV3: &[Call] = &[
    plain(&[1, 1, 1, 1, 1], &[1, 1, 1, 1, 1]),
    plain(&[1, 2, 2, 3, 3], &[2, 2, 2, 2, 2]).padding(&[1, 0, 1]),
    plain(&[2, 1, 2, 2, 12], &[3, 1, 1, 1, 12]).stride(&[1, 1, 12]),
    plain(&[1, 2, 2, 4, 2], &[3, 2, 1, 4, 1]).stride(&[1, 4, 1]),
    plain(&[2, 2, 4, 1, 1], &[3, 2, 2, 1, 1]),
    plain(&[2, 2, 3, 1, 1], &[3, 2, 3, 1, 1]).stride(&[3, 1, 1]),
    plain(&[1, 1, 3, 4, 5], &[2, 1, 2, 2, 2]).stride(&[1, 2, 3]).dilation(&[2, 1, 2]),
    plain(&[0, 1, 2, 2, 2], &[1, 1, 2, 2, 2]),
    plain(&[1, 4, 2, 2, 2], &[2, 2, 1, 2, 2]).groups(2),
    plain(&[3, 7, 4, 12, 24], &[18, 7, 1, 1, 12]).stride(&[1, 1, 12]),
];
const TRANSPOSE1: &[Call] = &[
    plain(&[1, 1, 1], &[1, 1, 1]),
    plain(&[2, 3, 5], &[3, 2, 3]).padding(&[1]),
    plain(&[2, 2, 4], &[2, 3, 4]).stride(&[2]).padding(&[1]),
    plain(&[1, 3, 3], &[3, 2, 4]).stride(&[4]),
    plain(&[2, 2, 4], &[2, 2, 3]).stride(&[2]).output_padding(&[1]),
    plain(&[0, 2, 3], &[2, 3, 3]),
    plain(&[2, 4, 3], &[4, 3, 2]).groups(2),
    plain(&[1, 2, 4], &[2, 1, 2]).stride(&[3]).dilation(&[2]).output_padding(&[2]),
    plain(&[3, 21, 65], &[21, 34, 4]).stride(&[2]).padding(&[1]),
];
const TRANSPOSE2: &[Call] = &[
    plain(&[1, 1, 1, 1], &[1, 1, 1, 1]),
    plain(&[2, 2, 3, 3], &[2, 3, 3, 3]).padding(&[1]),
    plain(&[1, 2, 3, 2], &[2, 2, 4, 4]).stride(&[2]).padding(&[1]),
    plain(&[2, 3, 2, 3], &[3, 1, 1, 6]).stride(&[1, 6]),
    plain(&[1, 3, 2, 3], &[3, 2, 4, 1]).stride(&[4, 1]),
    plain(&[1, 2, 3, 2], &[2, 2, 3, 2]).stride(&[2, 3]).padding(&[1, 0]).output_padding(&[1, 2]),
    plain(&[0, 2, 3, 3], &[2, 3, 3, 3]),
    plain(&[1, 4, 2, 2], &[4, 2, 2, 2]).groups(2),
    plain(&[2, 23, 11, 13], &[23, 19, 4, 4]).stride(&[2]).padding(&[1]),
];
const TRANSPOSE3: &[Call] = &[
    plain(&[1, 1, 1, 1, 1], &[1, 1, 1, 1, 1]),
    plain(&[2, 3, 1, 1, 1], &[3, 2, 4, 1, 1]).stride(&[4, 1, 1]),
    plain(&[1, 3, 2, 1, 1], &[3, 2, 1, 4, 1]).stride(&[1, 4, 1]),
    plain(&[1, 2, 2, 2, 1], &[2, 2, 1, 1, 4]).stride(&[1, 1, 4]),
    plain(&[1, 2, 1, 2, 4], &[2, 2, 1, 1, 3]),
    plain(&[1, 2, 2, 2, 2], &[2, 1, 2, 2, 2]).stride(&[2, 1, 2]).padding(&[1, 0, 0]),
    plain(&[0, 2, 2, 2, 2], &[2, 1, 2, 2, 2]),
    plain(&[1, 2, 2, 2, 2], &[2, 2, 2, 1, 2]).dilation(&[1, 1, 2]).groups(2),
    plain(&[3, 17, 4, 3, 7], &[17, 9, 1, 4, 1]).stride(&[1, 4, 1]),
];

/// The call that has these shapes.
fn find(calls: &'static [Call], x: &[usize], w: &[usize]) -> &'static Call {
    calls.iter().find(|call| call.x == x && call.w == w).expect("a call of the table")
}

fn how(call: &Call) -> Conv {
    Conv::new()
        .stride(call.stride)
        .padding(call.padding)
        .dilation(call.dilation)
        .output_padding(call.output_padding)
        .groups(call.groups)
}

/// Shapes of input, weight and bias.
fn shapes(calls: &'static [Call], transposed: bool) -> (Vec<Shapes>, Shapes) {
    let of = |call: &Call| {
        let outputs = if transposed { call.w[1] * call.groups } else { call.w[0] };
        vec![call.x.to_vec(), call.w.to_vec(), vec![outputs]]
    };
    let mut all: Vec<Shapes> = calls.iter().map(of).collect();
    let large = all.pop().expect("a large call");
    (all, large)
}

/// The convolution by its definition, in f64.
fn conv(call: &Call, x: &Array, w: &Array, bias: &Array) -> Array {
    let axes = call.x.len() - 2;
    let at = |values: &[usize], a: usize| values[a % values.len()];
    let size = |a: usize| {
        let reach = at(call.dilation, a) * (w.shape[a + 2] - 1) + 1;
        (x.shape[a + 2] + 2 * at(call.padding, a) - reach) / at(call.stride, a) + 1
    };
    let (outputs, inputs) = (w.shape[0] / call.groups, w.shape[1]);
    let sizes: Vec<usize> = (0..axes).map(size).collect();
    Array::build(&[&[x.shape[0], w.shape[0]], &sizes[..]].concat(), |index| {
        let mut sum = bias.data[index[1]];
        for_each_tap(&w.shape[1..], |tap| {
            let mut from = vec![index[0], index[1] / outputs * inputs + tap[0]];
            for a in 0..axes {
                let place = index[a + 2] * at(call.stride, a) + tap[a + 1] * at(call.dilation, a);
                match place.checked_sub(at(call.padding, a)) {
                    Some(place) if place < x.shape[a + 2] => from.push(place),
                    _ => return,
                }
            }
            sum += x.at(&from) * w.at(&[&[index[1]], tap].concat());
        });
        sum
    })
}

/// The transposed convolution by its definition: what each place of the result receives.
fn transpose(call: &Call, x: &Array, w: &Array, bias: &Array) -> Array {
    let axes = call.x.len() - 2;
    let at = |values: &[usize], a: usize| values[a % values.len()];
    let size = |a: usize| {
        (x.shape[a + 2] - 1) * at(call.stride, a)
            + at(call.dilation, a) * (w.shape[a + 2] - 1)
            + 1
            + at(call.output_padding, a)
            - 2 * at(call.padding, a)
    };
    let (inputs, outputs) = (w.shape[0] / call.groups, w.shape[1]);
    let sizes: Vec<usize> = (0..axes).map(size).collect();
    let taps = [&[inputs], &w.shape[2..]].concat();
    Array::build(&[&[x.shape[0], outputs * call.groups], &sizes[..]].concat(), |index| {
        let mut sum = bias.data[index[1]];
        for_each_tap(&taps, |tap| {
            let channel = index[1] / outputs * inputs + tap[0];
            let mut from = vec![index[0], channel];
            for a in 0..axes {
                let place = index[a + 2] + at(call.padding, a);
                let Some(place) = place.checked_sub(tap[a + 1] * at(call.dilation, a)) else {
                    return;
                };
                let (place, rest) = (place / at(call.stride, a), place % at(call.stride, a));
                if rest != 0 || place >= x.shape[a + 2] {
                    return;
                }
                from.push(place);
            }
            sum += x.at(&from) * w.at(&[&[channel, index[1] % outputs], &tap[1..]].concat());
        });
        sum
    })
}

/// Every index of an array of these sizes.
fn for_each_tap(sizes: &[usize], mut f: impl FnMut(&[usize])) {
    let mut tap = vec![0; sizes.len()];
    if sizes.contains(&0) {
        return;
    }
    loop {
        f(&tap);
        let Some(axis) = (0..sizes.len()).rev().find(|a| tap[*a] + 1 < sizes[*a]) else { return };
        tap[axis] += 1;
        tap[axis + 1..].fill(0);
    }
}

/// The entries of this family.
pub fn cases() -> Vec<Case> {
    let forward = |name, calls: &'static [Call]| {
        case(
            name,
            Domain::Any,
            shapes(calls, false),
            move |x| x[0].conv(&x[1], Some(&x[2]), &how(find(calls, x[0].shape(), x[1].shape()))),
            move |x| conv(find(calls, &x[0].shape, &x[1].shape), &x[0], &x[1], &x[2]),
        )
    };
    let transposed = |name, calls: &'static [Call]| {
        case(
            name,
            Domain::Any,
            shapes(calls, true),
            move |x| {
                let how = how(find(calls, x[0].shape(), x[1].shape()));
                x[0].conv_transpose(&x[1], Some(&x[2]), &how)
            },
            move |x| transpose(find(calls, &x[0].shape, &x[1].shape), &x[0], &x[1], &x[2]),
        )
    };
    vec![
        forward("conv1d", CONV1),
        forward("conv2d", CONV2),
        forward("conv3d", CONV3),
        transposed("conv_transpose1d", TRANSPOSE1),
        transposed("conv_transpose2d", TRANSPOSE2),
        transposed("conv_transpose3d", TRANSPOSE3),
    ]
}
