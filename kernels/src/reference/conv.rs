//! Convolution by its definition, with sums in f64.
//!
//! `y[b][o][q] = bias[o] + sum over i, t of w[o][i][t] * x[b][i][stride q + dilation t - padding]`

use crate::conv::ConvShape;

/// Calls `f` with the places in `x`, `w` and `y` of every product of the sum above.
fn for_each_product(shape: &ConvShape, mut f: impl FnMut(usize, usize, usize)) {
    let [(di, dk, dq), (hi, hk, hq), (wi, wk, wq)] =
        [0, 1, 2].map(|a| (shape.input[a], shape.kernel[a], shape.output[a]));
    // The input place of output place `q` and tap `t` along axis `a`, if there is one.
    let place = |a: usize, q: usize, t: usize| {
        let padded = q * shape.stride[a] + t * shape.dilation[a];
        padded.checked_sub(shape.padding[a]).filter(|i| *i < shape.input[a])
    };
    let (inputs, outputs) = (shape.channels_in / shape.groups, shape.channels_out / shape.groups);
    for b in 0..shape.batch {
        for o in 0..shape.channels_out {
            for i in 0..inputs {
                for (q0, t0) in pairs(dq, dk) {
                    let Some(i0) = place(0, q0, t0) else { continue };
                    for (q1, t1) in pairs(hq, hk) {
                        let Some(i1) = place(1, q1, t1) else { continue };
                        for (q2, t2) in pairs(wq, wk) {
                            let Some(i2) = place(2, q2, t2) else { continue };
                            let channel = o / outputs * inputs + i;
                            let x = (((b * shape.channels_in + channel) * di + i0) * hi + i1) * wi;
                            let w = (((o * inputs + i) * dk + t0) * hk + t1) * wk + t2;
                            let y = (((b * shape.channels_out + o) * dq + q0) * hq + q1) * wq + q2;
                            f(x + i2, w, y);
                        }
                    }
                }
            }
        }
    }
}

/// Every `(q, t)`.
fn pairs(positions: usize, taps: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..positions).flat_map(move |q| (0..taps).map(move |t| (q, t)))
}

/// The convolution of `x` with `w`, plus `bias`.
pub fn conv(x: &[f32], w: &[f32], bias: Option<&[f32]>, shape: &ConvShape) -> Vec<f64> {
    let mut y = vec![0.0; shape.y_len()];
    for_each_product(shape, |at, t, q| y[q] += f64::from(x[at]) * f64::from(w[t]));
    add_bias(&mut y, bias, shape.output);
    y
}

/// The gradient of the data, plus `bias`: the transposed convolution of `d_y`.
pub fn conv_data(d_y: &[f32], w: &[f32], bias: Option<&[f32]>, shape: &ConvShape) -> Vec<f64> {
    let mut d_x = vec![0.0; shape.x_len()];
    for_each_product(shape, |at, t, q| d_x[at] += f64::from(d_y[q]) * f64::from(w[t]));
    add_bias(&mut d_x, bias, shape.input);
    d_x
}

/// The gradient of the filter.
pub fn conv_filter(x: &[f32], d_y: &[f32], shape: &ConvShape) -> Vec<f64> {
    let mut d_w = vec![0.0; shape.w_len()];
    for_each_product(shape, |at, t, q| d_w[t] += f64::from(x[at]) * f64::from(d_y[q]));
    d_w
}

/// Adds one number to all places of a channel.
fn add_bias(y: &mut [f64], bias: Option<&[f32]>, places: [usize; 3]) {
    let places = places.iter().product::<usize>();
    let Some(bias) = bias else { return };
    if places == 0 || bias.is_empty() {
        return;
    }
    for sample in y.chunks_exact_mut(bias.len() * places) {
        for (row, bias) in sample.chunks_exact_mut(places).zip(bias) {
            row.iter_mut().for_each(|y| *y += f64::from(*bias));
        }
    }
}
