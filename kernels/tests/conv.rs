//! Convolution, its data gradient and its filter gradient: every tier against the definition in f64, the
//! same bits for any number of threads, and nothing written outside.

mod support;

#[path = "support/conv.rs"]
mod shapes;

use etude_kernels::conv::*;
use etude_kernels::reference::conv as reference;
use proptest::prelude::*;
use shapes::{NONE, ONE, plane, shape};
use support::*;

/// Shapes that each take another way through the code.
fn shapes() -> Vec<ConvShape> {
    vec![
        plane((1, 1, 1, 1), [1, 1], [1, 1], [1, 1], [0, 0]),
        plane((2, 3, 5, 1), [7, 9], [3, 3], [1, 1], [1, 1]),
        plane((2, 16, 17, 1), [12, 21], [3, 3], [1, 1], [1, 1]),
        plane((3, 5, 64, 1), [6, 84], [1, 12], [1, 12], [0, 0]),
        plane((2, 33, 15, 1), [24, 7], [4, 1], [4, 1], [0, 0]),
        plane((2, 7, 9, 1), [13, 11], [4, 4], [2, 2], [1, 1]),
        plane((2, 3, 32, 1), [17, 19], [5, 5], [2, 3], [2, 0]),
        plane((1, 20, 20, 1), [9, 9], [1, 1], [1, 1], [0, 0]),
        plane((2, 4, 6, 1), [9, 9], [1, 1], [2, 3], [0, 0]),
        plane((2, 4, 6, 1), [9, 10], [2, 3], [4, 5], [1, 2]),
        plane((2, 4, 6, 1), [9, 10], [9, 10], [1, 1], [0, 0]),
        plane((2, 8, 12, 4), [6, 7], [3, 2], [2, 1], [1, 0]),
        plane((2, 6, 6, 6), [6, 7], [3, 3], [1, 1], [1, 1]),
        plane((2, 1, 1, 1), [16, 16], [3, 3], [1, 1], [2, 2]),
        // Channels 4096 bytes apart.
        plane((1, 32, 8, 1), [32, 32], [1, 1], [1, 1], [0, 0]),
        // A sum that is interrupted, and a row longer than a block.
        plane((1, 130, 3, 1), [5, 6], [3, 3], [1, 1], [1, 1]),
        plane((1, 2, 50, 1), [1, 3000], [1, 3], [1, 1], [0, 1]),
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
        shape((2, 3, 5, 1), [5, 6, 7], [3, 3, 3], [2, 1, 2], [1, 2, 0], [1, 2, 3]),
        shape((1, 2, 3, 1), [4, 5, 6], [2, 2, 3], [3, 2, 4], [2, 1, 3], [2, 3, 2]),
        shape((2, 4, 6, 2), [4, 6, 6], [2, 2, 2], [2, 2, 2], [0, 1, 1], ONE),
        // One axis.
        shape((2, 3, 5, 1), [1, 1, 40], [1, 1, 5], [1, 1, 2], [0, 0, 2], ONE),
        shape((2, 3, 5, 1), [1, 1, 40], [1, 1, 3], ONE, [0, 0, 8], [1, 1, 8]),
        shape((3, 9, 48, 1), [1, 1, 33], [1, 1, 4], [1, 1, 4], [0, 0, 1], ONE),
    ]
}

struct Numbers {
    x: Vec<f32>,
    w: Vec<f32>,
    bias_in: Vec<f32>,
    bias_out: Vec<f32>,
    d_y: Vec<f32>,
}

impl Numbers {
    fn new(seed: u64, s: &ConvShape) -> Numbers {
        Numbers {
            x: uniform(seed, s.x_len()),
            w: uniform(seed + 1, s.w_len()),
            bias_in: uniform(seed + 2, s.channels_in),
            bias_out: uniform(seed + 3, s.channels_out),
            d_y: uniform(seed + 4, s.y_len()),
        }
    }
}

/// All results: the forward, the data gradient (with a bias, as the transposed convolution), the filter
/// gradient, the bias gradient. Each is written between canaries, at an odd place.
fn run(s: &ConvShape, n: &Numbers) -> [Vec<f32>; 4] {
    let (mut y, mut d_x) = (Guarded::new(s.y_len(), 3), Guarded::new(s.x_len(), 5));
    let (mut d_w, mut d_b) = (Guarded::new(s.w_len(), 1), Guarded::new(s.channels_out, 7));
    conv_forward(&n.x, &n.w, Some(&n.bias_out), y.get(), s);
    conv_transpose_forward(&n.d_y, &n.w, Some(&n.bias_in), d_x.get(), s);
    conv_filter_backward(&n.x, &n.d_y, d_w.get(), Some(d_b.get()), s);
    [y.finish("y"), d_x.finish("d_x"), d_w.finish("d_w"), d_b.finish("d_bias")]
}

/// The largest error of a sum of `terms` products, all factors in `[-1, 1]`: each of at most
/// `2 terms + 2` roundings (products are rounded too where there is no fused multiply-add) errs by half
/// an ulp of a partial sum that is at most `terms + 1`.
fn tolerance(terms: usize) -> f64 {
    (2 * terms + 2) as f64 * (terms + 1) as f64 * f64::from(f32::EPSILON) / 2.0
}

fn check(s: &ConvShape, seed: u64) {
    let n = Numbers::new(seed, s);
    let y = reference::conv(&n.x, &n.w, Some(&n.bias_out), s);
    let d_x = reference::conv_data(&n.d_y, &n.w, Some(&n.bias_in), s);
    let d_w = reference::conv_filter(&n.x, &n.d_y, s);
    let places: usize = s.output.iter().product();
    let mut d_b = vec![0.0; s.channels_out];
    for (i, d) in n.d_y.iter().enumerate() {
        d_b[i / places % s.channels_out] += f64::from(*d);
    }
    let taps: usize = s.kernel.iter().product();
    on_every_tier(|tier| {
        let at = |what: &str| format!("{what} of {s:?} on {}", tier.name());
        let got = run(s, &n);
        let per_group = |channels: usize| tolerance(channels / s.groups * taps);
        assert_near(&at("y"), &y, &got[0], per_group(s.channels_in));
        assert_near(&at("d_x"), &d_x, &got[1], per_group(s.channels_out));
        assert_near(&at("d_w"), &d_w, &got[2], tolerance(s.batch * places));
        assert_near(&at("d_bias"), &d_b, &got[3], tolerance(s.batch * places));
    });
}

#[test]
fn convolutions_and_their_gradients_equal_their_definition() {
    for (i, s) in shapes().iter().enumerate() {
        check(s, i as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn convolutions_of_any_size_equal_their_definition(
        (batch, groups, ins, outs) in (1usize..4, 1usize..3, 1usize..20, 1usize..40),
        input in [1usize..5, 1usize..9, 1usize..30],
        kernel in [1usize..4, 1usize..5, 1usize..7],
        stride in [1usize..4, 1usize..4, 1usize..6],
        padding in [0usize..3, 0usize..3, 0usize..4],
        dilation in [1usize..3, 1usize..3, 1usize..4],
        shorter in [0usize..2, 0usize..2, 0usize..2],
        seed: u32,
    ) {
        let fits = |a: usize| {
            ConvShape::output_size(input[a], kernel[a], stride[a], padding[a], dilation[a]).is_some()
        };
        prop_assume!((0..3).all(fits));
        let channels = (batch, groups * ins, groups * outs, groups);
        let mut s = shape(channels, input, kernel, stride, padding, dilation);
        // The output may stop early: a transposed convolution has rows that nothing reaches then.
        s.output = [0, 1, 2].map(|a| (s.output[a] - shorter[a]).max(1));
        check(&s, u64::from(seed));
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let large = [
        plane((16, 5, 64, 1), [48, 84], [1, 12], [1, 12], [0, 0]),
        plane((3, 24, 130, 1), [40, 41], [3, 3], [1, 1], [1, 1]),
        plane((5, 70, 33, 1), [24, 21], [4, 4], [2, 2], [1, 1]),
        plane((1, 200, 300, 2), [9, 9], [3, 3], [1, 1], [1, 1]),
        shape((40, 64, 100, 1), [4, 1, 1], [2, 1, 1], ONE, NONE, ONE),
    ];
    for (i, s) in large.iter().enumerate() {
        let n = Numbers::new(i as u64, s);
        on_every_tier(|tier| {
            let what = format!("{s:?} on {}", tier.name());
            same_for_any_threads(&what, || run(s, &n).concat());
        });
    }
}

#[test]
fn nan_and_infinity_reach_what_they_touch_and_nothing_else() {
    let s = plane((1, 2, 3, 1), [6, 7], [3, 3], [1, 1], [1, 1]);
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        on_every_tier(|tier| {
            let mut n = Numbers::new(9, &s);
            // Row 2, column 3 of channel 1.
            n.x[6 * 7 + 2 * 7 + 3] = odd;
            let [y, ..] = run(&s, &n);
            for (i, y) in y.iter().enumerate() {
                let (h, w) = (i / 7 % 6, i % 7);
                let touched = (1..=3).contains(&h) && (2..=4).contains(&w);
                assert_eq!(!y.is_finite(), touched, "{odd} on {}: {h} {w} is {y}", tier.name());
            }
        });
    }
}

#[test]
fn denormals_are_not_flushed() {
    let s = plane((1, 1, 1, 1), [3, 3], [1, 1], [1, 1], [0, 0]);
    let x = [1e-40f32; 9];
    on_every_tier(|_| {
        let mut y = [0.0; 9];
        conv_forward(&x, &[1.0], None, &mut y, &s);
        assert_eq!(bits(&x), bits(&y));
    });
}

#[test]
fn kernels_that_do_not_fit_have_no_output_size() {
    assert_eq!(ConvShape::output_size(7, 3, 2, 1, 1), Some(4));
    assert_eq!(ConvShape::output_size(2, 5, 1, 1, 1), None);
    assert_eq!(ConvShape::output_size(4, 5, 1, 1, 1), Some(2));
    assert_eq!(ConvShape::output_size(9, 3, 0, 0, 1), None);
    assert_eq!(ConvShape::output_size(9, 0, 1, 0, 1), None);
    assert_eq!(ConvShape::output_size(9, usize::MAX, 1, 0, usize::MAX), None);
    assert_eq!(ConvShape::output_size(9, 3, 1, usize::MAX, 1), None);
}
