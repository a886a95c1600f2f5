//! Timed cases of the family `conv`: every tile, and the one that is chosen.

use super::gemm::random;
use super::{Bench, Error};
use crate::conv::ConvShape;
use crate::cuda::DeviceBuffer;
use crate::cuda::conv::{
    Factors, Plan, Tile, conv_data_backward, conv_filter_backward, conv_forward,
};
use crate::cuda::gemm::{Element, Scratch};

/// Batch, channels in and out, then size, kernel, stride and padding of each axis. Of MuseGAN the
/// critic's; the data gradients of the same shapes are the generator's transposed convolutions.
type Case = (usize, usize, usize, &'static [[usize; 4]]);

const CASES: &[Case] = &[
    (16, 16, 64, &[[96, 3, 1, 1], [84, 3, 1, 1]]),
    (16, 64, 64, &[[48, 3, 1, 1], [42, 3, 1, 1]]),
    (16, 128, 128, &[[24, 3, 1, 1], [21, 3, 1, 1]]),
    (16, 1, 16, &[[4, 1, 1, 0], [48, 1, 1, 0], [84, 12, 12, 0]]),
    (16, 16, 16, &[[4, 1, 1, 0], [48, 4, 4, 0], [7, 1, 1, 0]]),
    (16, 16, 32, &[[4, 1, 1, 0], [48, 4, 4, 0], [7, 1, 1, 0]]),
    (16, 80, 64, &[[4, 1, 1, 0], [12, 1, 1, 0], [7, 4, 1, 0]]),
    (16, 32, 64, &[[4, 1, 1, 0], [12, 1, 1, 0], [7, 4, 1, 0]]),
    (16, 64, 64, &[[4, 1, 1, 0], [12, 3, 3, 0], [4, 1, 1, 0]]),
    (16, 64, 64, &[[4, 1, 1, 0], [4, 1, 1, 0], [4, 4, 4, 0]]),
    (16, 128, 256, &[[4, 1, 1, 0], [4, 4, 4, 0], [1, 1, 1, 0]]),
    (16, 128, 256, &[[4, 2, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]]),
    (16, 64, 128, &[[48, 4, 2, 1], [42, 4, 2, 1]]),
    (16, 64, 128, &[[4, 1, 1, 0], [48, 4, 4, 0], [7, 1, 1, 0]]),
    (16, 90, 128, &[[256, 5, 1, 2]]),
];

/// The cases.
///
/// # Errors
/// Those of the device.
pub fn cases(bench: &mut Bench) -> Result<(), Error> {
    for case in CASES {
        for factors in [Factors::Tf32, Factors::Split] {
            convolution(bench, case, factors)?;
        }
    }
    Ok(())
}

fn shape(&(batch, channels_in, channels_out, axes): &Case, small: bool) -> ConvShape {
    let first = 3 - axes.len();
    let axis = |a: usize, what: usize| match (a.checked_sub(first), what) {
        (Some(a), 0) if small => axes[a][0].min(axes[a][1].max(4)),
        (Some(a), _) => axes[a][what],
        (None, 3) => 0,
        (None, _) => 1,
    };
    let [input, kernel, stride, padding] =
        [0, 1, 2, 3].map(|what| [0, 1, 2].map(|a| axis(a, what)));
    let output = [0, 1, 2].map(|a| {
        ConvShape::output_size(input[a], kernel[a], stride[a], padding[a], 1)
            .expect("the kernel fits into the image")
    });
    ConvShape {
        batch: if small { 1 } else { batch },
        channels_in,
        channels_out,
        groups: 1,
        input,
        output,
        kernel,
        stride,
        padding,
        dilation: [1; 3],
    }
}

/// The case's name without the sum: kernel and stride from the first axis on that is not 1.
fn name(&(batch, channels_in, channels_out, axes): &Case, factors: Factors) -> String {
    let text = |sizes: &[usize]| sizes.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
    let of = |what: usize| axes.iter().map(|axis| axis[what]).collect::<Vec<_>>();
    let from_first = |sizes: Vec<usize>| {
        let start = sizes.iter().position(|x| *x != 1).unwrap_or(sizes.len() - 1);
        text(&sizes[start..])
    };
    let kind = if factors == Factors::Tf32 { "" } else { " f32" };
    format!(
        "{}/{}-{channels_in}x{channels_out}-{} b{batch}{kind}",
        from_first(of(1)),
        from_first(of(2)),
        text(&of(0)),
    )
}

fn convolution(bench: &mut Bench, case: &Case, factors: Factors) -> Result<(), Error> {
    let (gpu, s, name) = (bench.gpu, shape(case, bench.small), name(case, factors));
    let cases = ["forward", "data", "filter"].map(|sum| format!("conv/{sum} {name}"));
    if !cases.iter().any(|case| bench.wants(case)) {
        return Ok(());
    }
    let x = random(gpu, Element::F32, s.x_len())?;
    let w = random(gpu, Element::F32, s.w_len())?;
    let y = random(gpu, Element::F32, s.y_len())?;
    let largest = s.x_len().max(s.y_len()).max(s.w_len());
    let result = DeviceBuffer::<f32>::poisoned(gpu, largest)?;
    let room = DeviceBuffer::<u8>::zeros(gpu, 1 << 26)?;
    let scratch = Scratch { address: room.ptr(), bytes: room.bytes() };
    let taps: usize = s.kernel.iter().product();
    let flops = 2.0 * (s.y_len() * s.channels_in * taps) as f64;
    let bytes = 4.0 * (s.x_len() + s.w_len() + s.y_len()) as f64;

    let chosen = Plan { factors, scratch, ..Plan::default() };
    let mut plans = vec![("chosen".to_string(), chosen)];
    for tile in Tile::ALL.into_iter().filter(|tile| tile.has(factors)) {
        for splits in [1, 4, 16, 64] {
            let plan = Plan { tile: Some(tile), splits: Some(splits), ..chosen };
            plans.push((format!("{tile:?} in {splits}"), plan));
        }
    }
    let (x, w, y, to) = (x.ptr(), w.ptr(), y.ptr(), result.ptr());
    for (variant, plan) in plans {
        let whole = plan.splits.unwrap_or(1) == 1;
        // Cut sums are for filters and for the few positions of deep layers.
        if whole || s.y_len() < 1 << 18 {
            bench.case(&cases[0], &variant, flops, bytes, &mut || {
                conv_forward(gpu, x, w, None, to, &s, plan)
            })?;
        }
        if whole || s.x_len() < 1 << 18 {
            bench.case(&cases[1], &variant, flops, bytes, &mut || {
                conv_data_backward(gpu, y, w, None, to, &s, plan)
            })?;
        }
        bench.case(&cases[2], &variant, flops, bytes, &mut || {
            conv_filter_backward(gpu, x, y, to, None, &s, plan)
        })?;
    }
    Ok(())
}
