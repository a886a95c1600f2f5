//! Convolution and its gradients: every tile and way to multiply against sums in f64, and the second
//! derivative by the same three functions.

#[path = "../support/conv.rs"]
mod shapes;

use super::{Check, uniform, worst};
use etude_kernels::conv::ConvShape;
use etude_kernels::cuda::conv::{
    Factors, Plan, Tile, bias_backward, conv_data_backward, conv_filter_backward, conv_forward,
    conv_transpose_backward, conv_transpose_forward,
};
use etude_kernels::cuda::gemm::Scratch;
use etude_kernels::cuda::{DeviceBuffer, Gpu};
use etude_kernels::reference::conv as reference;
use shapes::{NONE, ONE, plane, shape};

pub const CHECKS: &[Check] = &[
    Check { name: "the_plain_form_equals_the_definition", run: plain_equals_the_definition },
    Check { name: "every_tile_equals_the_definition", run: every_tile_equals_the_definition },
    Check { name: "chosen_tiles_equal_the_definition", run: chosen_tiles_equal_the_definition },
    Check { name: "cut_sums_equal_the_definition", run: cut_sums_equal_the_definition },
    Check { name: "the_transpose_has_its_gradients", run: the_transpose_has_its_gradients },
    Check { name: "a_gradient_of_a_gradient_is_one_of_three", run: second_order },
    Check { name: "the_bias_gradient_is_a_sum", run: the_bias_gradient_is_a_sum },
    Check { name: "a_cut_sum_has_the_same_bits_twice", run: a_cut_sum_has_the_same_bits_twice },
];

const U: f64 = 1.0 / 16_777_216.0;

/// Shapes that each take another way through the code.
fn shapes() -> Vec<ConvShape> {
    vec![
        plane((1, 1, 1, 1), [1, 1], [1, 1], [1, 1], [0, 0]),
        plane((2, 3, 5, 1), [7, 9], [3, 3], [1, 1], [1, 1]),
        plane((2, 16, 17, 1), [6, 11], [3, 3], [1, 1], [1, 1]),
        plane((3, 5, 64, 1), [6, 24], [1, 12], [1, 12], [0, 0]),
        plane((2, 33, 15, 1), [24, 7], [4, 1], [4, 1], [0, 0]),
        plane((2, 7, 9, 1), [13, 11], [4, 4], [2, 2], [1, 1]),
        plane((2, 3, 32, 1), [17, 19], [5, 5], [2, 3], [2, 0]),
        plane((2, 4, 6, 1), [9, 9], [1, 1], [2, 3], [0, 0]),
        plane((2, 4, 6, 1), [9, 10], [2, 3], [4, 5], [1, 2]),
        plane((2, 4, 6, 1), [9, 10], [9, 10], [1, 1], [0, 0]),
        plane((2, 8, 12, 4), [6, 7], [3, 2], [2, 1], [1, 0]),
        plane((2, 6, 6, 6), [6, 7], [3, 3], [1, 1], [1, 1]),
        plane((2, 1, 1, 1), [16, 16], [3, 3], [1, 1], [2, 2]),
        plane((1, 130, 3, 1), [5, 6], [3, 3], [1, 1], [1, 1]),
        // No sample, no channel, no place.
        plane((0, 3, 5, 1), [7, 9], [3, 3], [1, 1], [1, 1]),
        plane((2, 0, 5, 1), [7, 9], [3, 3], [1, 1], [1, 1]),
        plane((2, 3, 0, 1), [7, 9], [3, 3], [1, 1], [1, 1]),
        plane((2, 3, 4, 1), [0, 9], [1, 3], [1, 1], [1, 1]),
        // Three axes, as in a critic of piano rolls.
        shape((2, 1, 16, 1), [4, 12, 24], [1, 1, 12], [1, 1, 12], NONE, ONE),
        shape((2, 16, 16, 1), [4, 12, 2], [1, 4, 1], [1, 4, 1], NONE, ONE),
        shape((2, 20, 9, 1), [4, 3, 7], [1, 1, 4], ONE, NONE, ONE),
        shape((2, 20, 9, 1), [4, 1, 1], [2, 1, 1], ONE, NONE, ONE),
        shape((2, 20, 9, 1), [3, 1, 1], [3, 1, 1], [3, 1, 1], NONE, ONE),
        // Strides and dilations on one axis, and on different ones.
        shape((2, 3, 5, 1), [5, 6, 7], [3, 3, 3], [2, 1, 2], [1, 2, 0], [1, 2, 3]),
        shape((2, 3, 5, 1), [5, 6, 7], [3, 3, 3], [2, 1, 2], [1, 2, 0], [1, 2, 1]),
        shape((2, 4, 6, 2), [4, 6, 6], [2, 2, 2], [2, 2, 2], [0, 1, 1], ONE),
        // One axis.
        shape((2, 3, 5, 1), [1, 1, 40], [1, 1, 5], [1, 1, 2], [0, 0, 2], ONE),
        shape((2, 3, 5, 1), [1, 1, 40], [1, 1, 3], ONE, [0, 0, 8], [1, 1, 8]),
        shape((3, 9, 48, 1), [1, 1, 33], [1, 1, 4], [1, 1, 4], [0, 0, 1], ONE),
        // Less of the output than there could be.
        ConvShape { output: [1, 2, 2], ..plane((2, 3, 5, 1), [7, 9], [3, 3], [2, 2], [1, 1]) },
    ]
}

struct Numbers {
    x: Vec<f32>,
    w: Vec<f32>,
    d_y: Vec<f32>,
    bias_in: Vec<f32>,
    bias_out: Vec<f32>,
}

impl Numbers {
    fn new(s: &ConvShape) -> Numbers {
        Numbers {
            x: uniform(1, s.x_len()),
            w: uniform(2, s.w_len()),
            d_y: uniform(3, s.y_len()),
            bias_in: uniform(4, s.channels_in),
            bias_out: uniform(5, s.channels_out),
        }
    }
}

fn size(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| x.abs()).collect()
}

/// The relative error of a product of two factors; `cuda/gemm.rs` derives the numbers.
fn product_error(factors: Factors) -> f64 {
    match factors {
        Factors::Plain => U,
        Factors::Tf32 => 2.0 / 2048.0 + U,
        Factors::Split => 3.0 / 4_194_304.0 + 3.0 * U,
    }
}

/// Largest error of forward, data gradient, filter gradient and bias gradient, computed as `plan` says.
///
/// A sum of `terms` products of size `s` together errs by the error of a product and by an ulp for each
/// term (tensor cores cut where others round), of partial sums that are at most `s`.
fn share(gpu: &dyn Gpu, s: &ConvShape, plan: Plan) -> f64 {
    let n = Numbers::new(s);
    let up = |x: &[f32]| DeviceBuffer::from_slice(gpu, x).unwrap();
    let (x, w, d_y) = (up(&n.x), up(&n.w), up(&n.d_y));
    let (bias_in, bias_out) = (up(&n.bias_in), up(&n.bias_out));
    let room = |len: usize| DeviceBuffer::<f32>::poisoned(gpu, len).unwrap();
    let (y, d_x, d_w) = (room(s.y_len()), room(s.x_len()), room(s.w_len()));
    let d_b = room(s.channels_out);
    conv_forward(gpu, x.ptr(), w.ptr(), Some(bias_out.ptr()), y.ptr(), s, plan).unwrap();
    conv_data_backward(gpu, d_y.ptr(), w.ptr(), Some(bias_in.ptr()), d_x.ptr(), s, plan).unwrap();
    conv_filter_backward(gpu, x.ptr(), d_y.ptr(), d_w.ptr(), Some(d_b.ptr()), s, plan).unwrap();

    let sizes = Numbers {
        x: size(&n.x),
        w: size(&n.w),
        d_y: size(&n.d_y),
        bias_in: size(&n.bias_in),
        bias_out: size(&n.bias_out),
    };
    let taps: usize = s.kernel.iter().product();
    let places: usize = s.output.iter().product();
    let cases = [
        (
            "forward",
            reference::conv(&n.x, &n.w, Some(&n.bias_out), s),
            reference::conv(&sizes.x, &sizes.w, Some(&sizes.bias_out), s),
            y.to_vec().unwrap(),
            s.channels_in / s.groups * taps,
        ),
        (
            "data",
            reference::conv_data(&n.d_y, &n.w, Some(&n.bias_in), s),
            reference::conv_data(&sizes.d_y, &sizes.w, Some(&sizes.bias_in), s),
            d_x.to_vec().unwrap(),
            s.channels_out / s.groups * taps,
        ),
        (
            "filter",
            reference::conv_filter(&n.x, &n.d_y, s),
            reference::conv_filter(&sizes.x, &sizes.d_y, s),
            d_w.to_vec().unwrap(),
            s.batch * places,
        ),
        (
            "bias",
            bias_sums(&n.d_y, s.channels_out, places),
            bias_sums(&sizes.d_y, s.channels_out, places),
            d_b.to_vec().unwrap(),
            s.batch * places,
        ),
    ];
    let mut largest = 0.0;
    for (what, want, size, got, terms) in cases {
        let error = product_error(plan.factors) + 2.0 * (terms + 2) as f64 * U;
        let what = format!("{what} of {s:?}, {:?} {:?}", plan.factors, plan.tile);
        largest = f64::max(largest, worst(&what, &want, &got, |i| error * size[i]));
    }
    largest
}

fn bias_sums(d_y: &[f32], channels: usize, places: usize) -> Vec<f64> {
    let mut sums = vec![0.0; channels];
    for (i, d) in d_y.iter().enumerate() {
        sums[i / places % channels] += f64::from(*d);
    }
    sums
}

fn over_shapes(gpu: &dyn Gpu, plan: Plan) -> f64 {
    shapes().iter().map(|s| share(gpu, s, plan)).fold(0.0, f64::max)
}

fn plain_equals_the_definition(gpu: &dyn Gpu) -> f64 {
    over_shapes(gpu, Plan { factors: Factors::Plain, ..Plan::default() })
}

fn every_tile_equals_the_definition(gpu: &dyn Gpu) -> f64 {
    let mut largest = 0.0;
    for tile in Tile::ALL {
        for factors in [Factors::Tf32, Factors::Split] {
            if !tile.has(factors) {
                continue;
            }
            let plan = Plan { factors, tile: Some(tile), ..Plan::default() };
            largest = f64::max(largest, over_shapes(gpu, plan));
        }
    }
    largest
}

fn chosen_tiles_equal_the_definition(gpu: &dyn Gpu) -> f64 {
    let scratch = DeviceBuffer::<f32>::poisoned(gpu, 1 << 20).unwrap();
    let scratch = Scratch { address: scratch.ptr(), bytes: scratch.bytes() };
    let plan = Plan { factors: Factors::Tf32, scratch, ..Plan::default() };
    over_shapes(gpu, plan).max(over_shapes(gpu, Plan { factors: Factors::Split, ..plan }))
}

fn cut_sums_equal_the_definition(gpu: &dyn Gpu) -> f64 {
    let scratch = DeviceBuffer::<f32>::poisoned(gpu, 1 << 20).unwrap();
    let scratch = Scratch { address: scratch.ptr(), bytes: scratch.bytes() };
    let plan = Plan { factors: Factors::Tf32, splits: Some(3), scratch, ..Plan::default() };
    over_shapes(gpu, plan)
}

fn the_transpose_has_its_gradients(gpu: &dyn Gpu) -> f64 {
    let mut largest = 0.0;
    let plan = Plan::default();
    for s in [
        plane((2, 5, 7, 1), [12, 10], [4, 4], [2, 2], [1, 1]),
        shape((2, 3, 16, 1), [4, 6, 24], [1, 1, 12], [1, 1, 12], NONE, ONE),
    ] {
        let n = Numbers::new(&s);
        let d = uniform(6, s.x_len());
        let up = |x: &[f32]| DeviceBuffer::from_slice(gpu, x).unwrap();
        let (x, w, d_out, bias) = (up(&n.d_y), up(&n.w), up(&d), up(&n.bias_in));
        let room = |len: usize| DeviceBuffer::<f32>::poisoned(gpu, len).unwrap();
        let (y, d_x) = (room(s.x_len()), room(s.y_len()));
        let (d_w, d_b) = (room(s.w_len()), room(s.channels_in));
        conv_transpose_forward(gpu, x.ptr(), w.ptr(), Some(bias.ptr()), y.ptr(), &s, plan).unwrap();
        let [d_x_at, d_w_at, d_b_at] = [d_x.ptr(), d_w.ptr(), d_b.ptr()];
        conv_transpose_backward(
            gpu,
            x.ptr(),
            w.ptr(),
            d_out.ptr(),
            d_x_at,
            d_w_at,
            d_b_at,
            &s,
            plan,
        )
        .unwrap();
        let places: usize = s.input.iter().product();
        let sizes = [&n.d_y, &n.w, &d, &n.bias_in].map(|x| size(x));
        let cases = [
            (
                reference::conv_data(&n.d_y, &n.w, Some(&n.bias_in), &s),
                reference::conv_data(&sizes[0], &sizes[1], Some(&sizes[3]), &s),
                y,
            ),
            (
                reference::conv(&d, &n.w, None, &s),
                reference::conv(&sizes[2], &sizes[1], None, &s),
                d_x,
            ),
            (
                reference::conv_filter(&d, &n.d_y, &s),
                reference::conv_filter(&sizes[2], &sizes[0], &s),
                d_w,
            ),
            (
                bias_sums(&d, s.channels_in, places),
                bias_sums(&sizes[2], s.channels_in, places),
                d_b,
            ),
        ];
        for (want, size, got) in cases {
            // No sum here has more terms than there are places or taps and channels: 1000.
            let error = product_error(plan.factors) + 1000.0 * U;
            let got = got.to_vec().unwrap();
            largest = f64::max(largest, worst("transpose", &want, &got, |i| error * size[i]));
        }
    }
    largest
}

/// With `L = <v, conv_data(d_y, w)>`, as in a gradient penalty, the gradients of `L` are
/// `conv_forward(v, w)` for `d_y` and `conv_filter(v, d_y)` for `w`; both are linear, so
/// `<d_y, dL/dd_y> = <w, dL/dw> = L`.
fn second_order(gpu: &dyn Gpu) -> f64 {
    let mut largest = 0.0;
    for s in [
        plane((2, 5, 7, 1), [11, 9], [3, 3], [2, 1], [1, 1]),
        shape((2, 4, 8, 1), [4, 6, 24], [1, 2, 12], [1, 1, 12], NONE, ONE),
    ] {
        let (n, v) = (Numbers::new(&s), uniform(7, s.x_len()));
        let up = |x: &[f32]| DeviceBuffer::from_slice(gpu, x).unwrap();
        let (d_v, w, d_y) = (up(&v), up(&n.w), up(&n.d_y));
        let room = |len: usize| DeviceBuffer::<f32>::poisoned(gpu, len).unwrap();
        let (d_x, dd_y, d_w) = (room(s.x_len()), room(s.y_len()), room(s.w_len()));
        let plan = Plan::default();
        conv_data_backward(gpu, d_y.ptr(), w.ptr(), None, d_x.ptr(), &s, plan).unwrap();
        conv_forward(gpu, d_v.ptr(), w.ptr(), None, dd_y.ptr(), &s, plan).unwrap();
        conv_filter_backward(gpu, d_v.ptr(), d_y.ptr(), d_w.ptr(), None, &s, plan).unwrap();
        let dot = |a: &[f32], b: &DeviceBuffer<f32>| -> f64 {
            let b = b.to_vec().unwrap();
            a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let loss = dot(&v, &d_x);
        // Sizes of all products together, of which each of the three sums errs by at most this share.
        let sizes = reference::conv(&size(&v), &size(&n.w), None, &s);
        let total: f64 = sizes.iter().zip(size(&n.d_y)).map(|(a, b)| a * f64::from(b)).sum();
        let tolerance = 2.0 * total * (product_error(plan.factors) + 300.0 * U);
        for other in [dot(&n.d_y, &dd_y), dot(&n.w, &d_w)] {
            largest = f64::max(largest, (loss - other).abs() / tolerance);
        }
    }
    largest
}

fn the_bias_gradient_is_a_sum(gpu: &dyn Gpu) -> f64 {
    let mut largest = 0.0;
    for (batch, channels, places) in [(1, 1, 1), (3, 5, 77), (4, 3, 4000)] {
        let d_y = uniform(8, batch * channels * places);
        let up = DeviceBuffer::from_slice(gpu, &d_y).unwrap();
        let scratch = DeviceBuffer::<f32>::poisoned(gpu, 64 * channels).unwrap();
        let scratch = Scratch { address: scratch.ptr(), bytes: scratch.bytes() };
        let d_b = DeviceBuffer::<f32>::poisoned(gpu, channels).unwrap();
        bias_backward(gpu, up.ptr(), d_b.ptr(), batch, channels, places, scratch).unwrap();
        let want = bias_sums(&d_y, channels, places);
        let sizes = bias_sums(&size(&d_y), channels, places);
        let error = |i: usize| (batch * places) as f64 * U * sizes[i];
        largest = f64::max(largest, worst("bias", &want, &d_b.to_vec().unwrap(), error));
    }
    largest
}

fn a_cut_sum_has_the_same_bits_twice(gpu: &dyn Gpu) -> f64 {
    let s = plane((4, 3, 5, 1), [30, 20], [3, 3], [1, 1], [1, 1]);
    let n = Numbers::new(&s);
    let up = |x: &[f32]| DeviceBuffer::from_slice(gpu, x).unwrap();
    let (x, d_y) = (up(&n.x), up(&n.d_y));
    let scratch = DeviceBuffer::<f32>::poisoned(gpu, 64 * s.w_len()).unwrap();
    let scratch = Scratch { address: scratch.ptr(), bytes: scratch.bytes() };
    let plan = Plan { splits: Some(8), scratch, ..Plan::default() };
    let run = || {
        let d_w = DeviceBuffer::<f32>::poisoned(gpu, s.w_len()).unwrap();
        conv_filter_backward(gpu, x.ptr(), d_y.ptr(), d_w.ptr(), None, &s, plan).unwrap();
        d_w.to_vec().unwrap()
    };
    assert_eq!(run(), run());
    0.0
}
