//! Convolution of two axes, or its transpose: forward, or forward and all gradients.

use etude_kernels::conv::{
    ConvShape, conv_data_backward, conv_filter_backward, conv_forward, conv_transpose_backward,
    conv_transpose_forward,
};

use super::aligned::Aligned;
use super::case::Case;
use super::{Job, Options, Sink, random};
use crate::error::Result;

struct Call {
    shape: ConvShape,
    transposed: bool,
    train: bool,
}

fn read(case: &Case) -> Result<Call> {
    const MOST: usize = 1 << 24;
    case.only(&[
        "batch",
        "cin",
        "cout",
        "h",
        "w",
        "kernel",
        "stride",
        "pad",
        "transposed",
        "train",
    ])?;
    let count = |key: &str| case.count(key, MOST);
    let (batch, cin, cout) = (count("batch")?, count("cin")?, count("cout")?);
    let size = [1, count("h")?, count("w")?];
    let wide = |[h, w]: [usize; 2], first: usize| [first, h, w];
    let kernel = wide(case.pair("kernel", 1, MOST)?, 1);
    let stride = wide(case.pair("stride", 1, MOST)?, 1);
    let padding = wide(case.pair("pad", 0, MOST)?, 0);
    let transposed = case.flag("transposed", false)?;
    let mut other = [1; 3];
    for a in 0..3 {
        let grown = ((size[a] - 1) * stride[a] + kernel[a]).checked_sub(2 * padding[a]);
        other[a] = if transposed {
            grown.filter(|n| *n > 0)
        } else {
            ConvShape::output_size(size[a], kernel[a], stride[a], padding[a], 1)
        }
        .ok_or_else(|| case.fault(format!("no place for a kernel of {}", kernel[a])))?;
    }
    let (input, output) = if transposed { (other, size) } else { (size, other) };
    let (channels_in, channels_out) = if transposed { (cout, cin) } else { (cin, cout) };
    for sizes in [
        [batch, channels_in, input[1], input[2]],
        [batch, channels_out, output[1], output[2]],
        [channels_in, channels_out, kernel[1], kernel[2]],
    ] {
        case.holds(sizes.into_iter().fold(1, usize::saturating_mul))?;
    }
    let shape = ConvShape {
        batch,
        channels_in,
        channels_out,
        groups: 1,
        input,
        output,
        kernel,
        stride,
        padding,
        dilation: [1; 3],
    };
    Ok(Call { shape, transposed, train: case.flag("train", true)? })
}

/// Refuses a case that cannot be run.
pub fn check(case: &Case) -> Result<()> {
    read(case).map(drop)
}

/// Times one case.
pub fn run(case: &Case, _: &Options, sink: &mut Sink) -> Result<()> {
    let Call { shape, transposed, train } = read(case)?;
    let (w, small, large) = (shape.w_len(), shape.y_len(), shape.x_len());
    let (inputs, outputs) = if transposed { (small, large) } else { (large, small) };
    let channels = if transposed { shape.channels_in } else { shape.channels_out };
    let (x, w, bias) = (random(1, inputs), random(2, w), random(3, channels));
    let mut y = Aligned::filled(0.0, outputs);
    let places: usize = shape.output.iter().product();
    let flops = 2.0 * shape.batch as f64 * places as f64 * w.len() as f64;
    let passes = if train { 3.0 } else { 1.0 };
    let job = Job {
        unit: "samples",
        items: shape.batch as f64,
        flops: Some(passes * flops),
        // Each pass reads two of input, weight and output, and writes the third.
        bytes: Some(passes * 4.0 * (inputs + w.len() + outputs) as f64),
        ..Job::default()
    };
    let forward = if transposed { conv_transpose_forward } else { conv_forward };
    if !train {
        return sink.time("etude", job, &mut || forward(&x, &w, Some(&bias), &mut y, &shape));
    }
    let d_y = random(4, outputs);
    let mut d_x = Aligned::filled(0.0, x.len());
    let mut d_w = Aligned::filled(0.0, w.len());
    let mut d_bias = Aligned::filled(0.0, channels);
    sink.time("etude", job, &mut || {
        forward(&x, &w, Some(&bias), &mut y, &shape);
        if transposed {
            conv_transpose_backward(&x, &w, &d_y, &mut d_x, &mut d_w, &mut d_bias, &shape);
        } else {
            conv_data_backward(&d_y, &w, None, &mut d_x, &shape);
            conv_filter_backward(&x, &d_y, &mut d_w, Some(&mut d_bias), &shape);
        }
    })
}
