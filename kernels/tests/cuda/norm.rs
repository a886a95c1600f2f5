//! Checks of layer, batch and group normalisation.

use super::rows::{COLS, Typed, U, depth, stored};
use super::{Check, uniform, wide, worst};
use etude_kernels::cuda::norm::channels::{self, Planes};
use etude_kernels::cuda::norm::{self, BackwardWalk, Gradients, Moments};
use etude_kernels::cuda::rows::{Float, Walk};
use etude_kernels::cuda::{DeviceBuffer, Gpu};
use etude_kernels::reference::norm::Group;

pub const CHECKS: &[Check] = &[
    Check { name: "layer_norm_forward", run: layer_norm_forward },
    Check { name: "layer_norm_backward", run: layer_norm_backward },
    Check { name: "batch_and_group_norm", run: batch_and_group_norm },
    Check { name: "running_statistics", run: running_statistics },
    Check { name: "a_far_mean_does_not_cancel", run: far_mean },
];

const EPS: f32 = 1e-5;

/// Numbers in `[-1, 1)` about a mean of 0.5.
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    uniform(seed, n).iter().map(|x| x + 0.5).collect()
}

/// Largest `|hat|`, of a row of numbers of range 2 that are not all alike.
const HAT: f64 = 8.0;

/// The error of `hat`, relative to `1 + |hat|`: the mean's (a sum of `depth` additions of numbers below
/// 1.5, in deviations), the difference's, and that of the root of the mean square.
fn hat_error(depth: f64, rstd: f64) -> f64 {
    let mean = 1.5 * (depth + 2.0) * U * rstd;
    mean + 1.5 * U * rstd + (0.5 * (depth + 4.0) + 4.0) * U + 2.0 * mean
}

fn layer_norm_forward(gpu: &dyn Gpu) -> f64 {
    let mut share = 0.0f64;
    for (k, cols) in COLS.iter().copied().enumerate() {
        let rows = [1, 5, 3][k % 3];
        let (w, b) = (uniform(1, cols), uniform(2, cols));
        let (d_w, d_b) = (
            DeviceBuffer::from_slice(gpu, &w).unwrap(),
            DeviceBuffer::from_slice(gpu, &b).unwrap(),
        );
        for float in [Float::F32, Float::Bf16] {
            let x = Typed::new(gpu, float, &numbers(3, rows * cols));
            let plain = if float == Float::F32 && cols < 1100 { &["plain"][..] } else { &[] };
            for form in Walk::forms(float, cols).iter().chain(plain) {
                let y = Typed::room(gpu, float, rows * cols);
                let (mean, rstd) = (
                    DeviceBuffer::<f32>::poisoned(gpu, rows).unwrap(),
                    DeviceBuffer::<f32>::poisoned(gpu, rows).unwrap(),
                );
                let m = Moments { mean: mean.ptr(), rstd: rstd.ptr() };
                let (x_at, w_at, b_at, y_at) = (x.ptr(), d_w.ptr(), d_b.ptr(), y.ptr());
                if *form == "plain" {
                    norm::plain::forward(gpu, x_at, w_at, b_at, y_at, m, EPS, rows, cols).unwrap();
                } else {
                    let walk = Walk { form, blocks_per_sm: u32::from(rows == 3) };
                    norm::forward(gpu, walk, float, x_at, w_at, b_at, y_at, m, EPS, rows, cols)
                        .unwrap();
                }
                let what = format!("layer norm {float:?} {form} {rows}x{cols}");
                let (y, mean, rstd) = (y.get(), mean.to_vec().unwrap(), rstd.to_vec().unwrap());
                for (r, row) in x.values.chunks(cols).enumerate() {
                    let group = Group::new(&wide(row), f64::from(EPS));
                    let want_rstd = 1.0 / (group.var + f64::from(EPS)).sqrt();
                    let error = hat_error(depth(form, cols), want_rstd);
                    let bound = 1.5 * (depth(form, cols) + 2.0) * U;
                    share = share.max(worst(&what, &[group.mean], &[mean[r]], |_| bound));
                    // Against the mean square, of which eps is a part.
                    let bound = want_rstd * error;
                    share = share.max(worst(&what, &[want_rstd], &[rstd[r]], |_| bound));
                    let want: Vec<f64> = (0..cols)
                        .map(|c| group.hat[c] * f64::from(w[c]) + f64::from(b[c]))
                        .collect();
                    let tolerance = |c: usize| {
                        let hat = group.hat[c].abs();
                        f64::from(w[c].abs()) * (1.0 + hat) * (error + 2.0 * U)
                            + U
                            + want[c].abs() * stored(float)
                    };
                    let got = &y[r * cols..(r + 1) * cols];
                    share = share.max(worst(&what, &want, got, tolerance));
                }
            }
        }
    }
    share
}

fn layer_norm_backward(gpu: &dyn Gpu) -> f64 {
    let mut share = 0.0f64;
    for (k, cols) in COLS.iter().copied().enumerate() {
        // More rows than blocks for narrow ones: blocks go on to further rows.
        let rows = if cols <= 129 { 300 } else { [1, 37, 6][k % 3] };
        let w = uniform(1, cols);
        let d_w_in = DeviceBuffer::from_slice(gpu, &w).unwrap();
        for float in [Float::F32, Float::Bf16] {
            let x = Typed::new(gpu, float, &numbers(3, rows * cols));
            let d_y = Typed::new(gpu, float, &uniform(5, rows * cols));
            let groups: Vec<Group> =
                x.values.chunks(cols).map(|row| Group::new(&wide(row), f64::from(EPS))).collect();
            let moments = |f: &dyn Fn(&Group) -> f64| {
                let of: Vec<f32> = groups.iter().map(|g| f(g) as f32).collect();
                DeviceBuffer::from_slice(gpu, &of).unwrap()
            };
            let rstd_of = |g: &Group| 1.0 / (g.var + f64::from(EPS)).sqrt();
            let (mean, rstd) = (moments(&|g| g.mean), moments(&rstd_of));
            let m = Moments { mean: mean.ptr(), rstd: rstd.ptr() };
            let (mut want, mut want_w, mut want_b) =
                (Vec::new(), vec![0.25; cols], vec![-0.25; cols]);
            for (group, d) in groups.iter().zip(d_y.values.chunks(cols)) {
                let d_hat: Vec<f64> =
                    d.iter().zip(&w).map(|(d, w)| f64::from(*d) * f64::from(*w)).collect();
                want.extend(group.gradient(&d_hat));
                for c in 0..cols {
                    want_w[c] += f64::from(d[c]) * group.hat[c];
                    want_b[c] += f64::from(d[c]);
                }
            }
            let mut ways = BackwardWalk::all(float, cols);
            ways.push(BackwardWalk { form: "long", threads: 512, blocks_per_sm: 2 });
            if float == Float::F32 && cols < 1100 {
                ways.push(BackwardWalk { form: "plain", threads: 0, blocks_per_sm: 0 });
            }
            let bytes = norm::layer_norm_backward_scratch(gpu, float, rows, cols).max(
                // The form for long rows is tried for all.
                4 * rows * cols * 4 + 65536,
            );
            let scratch = DeviceBuffer::<u8>::poisoned(gpu, bytes).unwrap();
            for way in ways {
                let d_x = Typed::room(gpu, float, rows * cols);
                let (d_w, d_b) = (
                    DeviceBuffer::from_slice(gpu, &vec![0.25f32; cols]).unwrap(),
                    DeviceBuffer::from_slice(gpu, &vec![-0.25f32; cols]).unwrap(),
                );
                let d = Gradients {
                    d_y: d_y.ptr(),
                    d_x: d_x.ptr(),
                    d_weight: d_w.ptr(),
                    d_bias: d_b.ptr(),
                };
                let (x_at, w_at, s_at) = (x.ptr(), d_w_in.ptr(), scratch.ptr());
                if way.form == "plain" {
                    norm::plain::backward(gpu, x_at, w_at, m, d, s_at, rows, cols).unwrap();
                } else {
                    norm::backward(gpu, way, float, x_at, w_at, m, d, s_at, rows, cols).unwrap();
                }
                let what = format!("layer norm backward {float:?} {} {rows}x{cols}", way.form);
                // hat from given moments: the rounding of the mean and of the difference by the deviation,
                // and two more of the product. a and b are means of numbers below 1 and below |hat|.
                let sums = match way.form {
                    "plain" => cols as f64 + 1.0,
                    "long" => depth("long", cols),
                    _ => 16.0 + 11.0,
                };
                let tolerance = |i: usize| {
                    let g = &groups[i / cols];
                    let (r, hat) = (rstd_of(g), g.hat[i % cols].abs());
                    let hat_off = (3.0 * r + 3.0 * (1.0 + hat)) * U;
                    let mean_off = (sums + 4.0) * U;
                    r * (mean_off * (1.0 + hat * 2.0)
                        + hat_off * (1.0 + hat)
                        + 6.0 * U * (1.0 + hat))
                        + want[i].abs() * stored(float)
                };
                share = share.max(worst(&what, &want, &d_x.get(), tolerance));
                // Below `rows` terms of at most `HAT`, each off as above, and an addition for each.
                let r = groups.iter().map(rstd_of).fold(0.0, f64::max).min(400.0);
                let largest = groups.iter().flat_map(|g| &g.hat).fold(1.0, |a, b| b.abs().max(a));
                assert!(largest < HAT.max(1.0));
                let bound = rows as f64 * U * (largest * (rows as f64 + 2.0) + 3.0 * r + 4.0) + U;
                share = share.max(worst(&what, &want_w, &d_w.to_vec().unwrap(), |_| bound));
                let bound = rows as f64 * U * (rows as f64 + 2.0) + U;
                share = share.max(worst(&what, &want_b, &d_b.to_vec().unwrap(), |_| bound));
            }
        }
    }
    share
}

fn batch_and_group_norm(gpu: &dyn Gpu) -> f64 {
    let mut share = 0.0f64;
    let shapes = [
        (1, 4, 1, 2),
        (33, 6, 1, 3),
        (3, 6, 5, 2),
        (4, 8, 16, 4),
        (2, 12, 31, 3),
        (2, 4, 300, 1),
        (2, 3, 4100, 3),
        (5, 7, 64, 7),
        (1, 2, 5000, 2),
    ];
    for (batch, channels, space, groups) in shapes {
        for groups in [0, groups] {
            let s = Planes { batch, channels, space, groups };
            share = share.max(one_channel_norm(gpu, s));
        }
    }
    share
}

/// The statistic of a plane.
fn statistic(s: Planes, plane: usize) -> usize {
    match s.groups {
        0 => plane % s.channels,
        groups => plane / (s.channels / groups),
    }
}

fn one_channel_norm(gpu: &dyn Gpu, s: Planes) -> f64 {
    let mut share = 0.0f64;
    let n = s.batch * s.channels * s.space;
    let (x, d) = (numbers(n as u64, n), uniform(9, n));
    let (w, b) = (uniform(1, s.channels), uniform(2, s.channels));
    let up = |x: &[f32]| DeviceBuffer::from_slice(gpu, x).unwrap();
    let (x_in, d_in, w_in, b_in) = (up(&x), up(&d), up(&w), up(&b));
    let members =
        |at: usize| -> Vec<usize> { (0..n).filter(|i| statistic(s, i / s.space) == at).collect() };
    let count = s.statistics();
    let all: Vec<Vec<usize>> = (0..count).map(members).collect();
    let groups: Vec<Group> = all
        .iter()
        .map(|at| Group::new(&at.iter().map(|i| f64::from(x[*i])).collect::<Vec<_>>(), EPS.into()))
        .collect();
    let rstd = |g: &Group| 1.0 / (g.var + f64::from(EPS)).sqrt();
    let (mut want, mut want_x) = (vec![0.0; n], vec![0.0; n]);
    let (mut want_w, mut want_b) = (vec![0.25; s.channels], vec![-0.25; s.channels]);
    let mut hats = vec![0.0; n];
    for (at, group) in all.iter().zip(&groups) {
        let channel = |i: usize| i / s.space % s.channels;
        let d_hat: Vec<f64> =
            at.iter().map(|i| f64::from(d[*i]) * f64::from(w[channel(*i)])).collect();
        for ((i, hat), g) in at.iter().zip(&group.hat).zip(group.gradient(&d_hat)) {
            let c = channel(*i);
            hats[*i] = *hat;
            want[*i] = hat * f64::from(w[c]) + f64::from(b[c]);
            want_x[*i] = g;
            want_w[c] += f64::from(d[*i]) * hat;
            want_b[c] += f64::from(d[*i]);
        }
    }
    let bytes = channels::channel_norm_scratch(gpu, s);
    let scratch = DeviceBuffer::<u8>::poisoned(gpu, bytes).unwrap();
    let room = |n| DeviceBuffer::<f32>::poisoned(gpu, n).unwrap();
    // A statistic is joined from planes, a plane from threads, a thread from packs: in all not more
    // roundings than this, each three deep.
    let per = all[0].len() as f64;
    let depth = 3.0 * ((per / 16.0).min(40.0) + 16.0 + 12.0);
    let at = |i: usize| &groups[statistic(s, i / s.space)];
    for plain in [false, true] {
        let (y, mean, spread) = (room(n), room(count), room(count));
        let m = Moments { mean: mean.ptr(), rstd: spread.ptr() };
        let (x, w, b) = (x_in.ptr(), w_in.ptr(), b_in.ptr());
        let mut depth = depth;
        if plain {
            channels::channel_norm_forward_plain(gpu, x, w, b, y.ptr(), m, EPS, s).unwrap();
            depth = per;
        } else {
            channels::channel_norm_forward(gpu, x, w, b, y.ptr(), m, EPS, scratch.ptr(), s)
                .unwrap();
        }
        let what = format!("{s:?} plain {plain}");
        let means: Vec<f64> = groups.iter().map(|g| g.mean).collect();
        let bound = 1.5 * (depth + 2.0) * U;
        share = share.max(worst(&what, &means, &mean.to_vec().unwrap(), |_| bound));
        let spreads: Vec<f64> =
            groups.iter().map(|g| if s.groups == 0 { g.var } else { rstd(g) }).collect();
        let tolerance = |k: usize| match s.groups {
            0 => 4.0 * (depth + 8.0) * U,
            _ => spreads[k] * hat_error(depth, rstd(&groups[k])),
        };
        share = share.max(worst(&what, &spreads, &spread.to_vec().unwrap(), tolerance));
        let tolerance =
            |i: usize| (1.0 + hats[i].abs()) * (hat_error(depth, rstd(at(i))) + 2.0 * U) + 2.0 * U;
        share = share.max(worst(&what, &want, &y.to_vec().unwrap(), tolerance));
    }
    // Backwards, from exact moments.
    let of =
        |f: &dyn Fn(&Group) -> f64| -> Vec<f32> { groups.iter().map(|g| f(g) as f32).collect() };
    let spread = |g: &Group| if s.groups == 0 { g.var } else { rstd(g) };
    let (mean, spread) = (up(&of(&|g| g.mean)), up(&of(&spread)));
    let (d_x, d_w, d_b) = (room(n), up(&vec![0.25; s.channels]), up(&vec![-0.25; s.channels]));
    let m = Moments { mean: mean.ptr(), rstd: spread.ptr() };
    let grads =
        Gradients { d_y: d_in.ptr(), d_x: d_x.ptr(), d_weight: d_w.ptr(), d_bias: d_b.ptr() };
    channels::channel_norm_backward(gpu, x_in.ptr(), w_in.ptr(), m, grads, EPS, scratch.ptr(), s)
        .unwrap();
    let what = format!("{s:?} backward");
    let tolerance = |i: usize| {
        let (r, hat) = (rstd(at(i)), hats[i].abs());
        let hat_off = (3.0 * r + 5.0 * (1.0 + hat)) * U;
        let mean_off = (depth + 4.0) * U;
        r * (mean_off * (1.0 + hat * 2.0) + hat_off * (1.0 + hat) + 8.0 * U * (1.0 + hat))
    };
    share = share.max(worst(&what, &want_x, &d_x.to_vec().unwrap(), tolerance));
    let terms = (s.batch * s.space) as f64;
    let r = groups.iter().map(rstd).fold(0.0, f64::max);
    let largest = hats.iter().fold(1.0, |a: f64, b| a.max(b.abs()));
    let bound = terms * U * (largest * (depth + 4.0) + 3.0 * r + 4.0) + U;
    share = share.max(worst(&what, &want_w, &d_w.to_vec().unwrap(), |_| bound));
    let bound = terms * U * (depth + 2.0) + U;
    share.max(worst(&what, &want_b, &d_b.to_vec().unwrap(), |_| bound))
}

fn running_statistics(gpu: &dyn Gpu) -> f64 {
    let c = 131;
    let [mean, var, mut old_mean, mut old_var] = [1, 2, 3, 4].map(|seed| uniform(seed, c));
    let up = |x: &[f32]| DeviceBuffer::from_slice(gpu, x).unwrap();
    let (a, b, m, v) = (up(&mean), up(&var), up(&old_mean), up(&old_var));
    channels::update_statistics(gpu, a.ptr(), b.ptr(), m.ptr(), v.ptr(), c, 5, 0.1).unwrap();
    etude_kernels::batch_norm::update_statistics(&mean, &var, &mut old_mean, &mut old_var, 5, 0.1);
    // A contraction may save one rounding of a product below 0.3.
    let share = worst("mean", &wide(&old_mean), &m.to_vec().unwrap(), |_| 2.0 * U);
    let share = share.max(worst("var", &wide(&old_var), &v.to_vec().unwrap(), |_| 2.0 * U));
    let s = Planes { batch: 3, channels: c, space: 7, groups: 0 };
    let x = uniform(8, 3 * c * 7);
    let (x_in, y) = (up(&x), DeviceBuffer::<f32>::poisoned(gpu, x.len()).unwrap());
    channels::channel_affine_forward(gpu, x_in.ptr(), a.ptr(), b.ptr(), y.ptr(), s).unwrap();
    let want: Vec<f64> = (0..x.len())
        .map(|i| {
            let k = i / 7 % c;
            f64::from(x[i]) * f64::from(mean[k]) + f64::from(var[k])
        })
        .collect();
    share.max(worst("affine", &want, &y.to_vec().unwrap(), |_| 2.0 * U))
}

fn far_mean(gpu: &dyn Gpu) -> f64 {
    // Deviations of 1 about a mean of 4096: the square of the mean has no digits left for them.
    let (rows, cols) = (4, 1000);
    let x: Vec<f32> = uniform(6, rows * cols).iter().map(|x| 4096.0 + x).collect();
    let up = |x: &[f32]| DeviceBuffer::from_slice(gpu, x).unwrap();
    let (x_in, w, b) = (up(&x), up(&vec![1.0; cols]), up(&vec![0.0; cols]));
    let room = |n| DeviceBuffer::<f32>::poisoned(gpu, n).unwrap();
    let (y, mean, rstd) = (room(rows * cols), room(rows), room(rows));
    let m = Moments { mean: mean.ptr(), rstd: rstd.ptr() };
    let mut share = 0.0f64;
    let want: Vec<f64> =
        x.chunks(cols).flat_map(|row| Group::new(&wide(row), EPS.into()).hat).collect();
    // The mean is off by half a unit of 4096 for each of some 50 additions; the deviation is above 0.5.
    let bound = 55.0 * 4096.0 * U * 2.0;
    for form in Walk::forms(Float::F32, cols) {
        let walk = Walk { form, blocks_per_sm: 0 };
        let (x, w, b, y_at) = (x_in.ptr(), w.ptr(), b.ptr(), y.ptr());
        norm::forward(gpu, walk, Float::F32, x, w, b, y_at, m, EPS, rows, cols).unwrap();
        share = share.max(worst(form, &want, &y.to_vec().unwrap(), |_| bound));
    }
    let s = Planes { batch: 1, channels: rows, space: cols, groups: rows };
    let scratch = room(channels::channel_norm_scratch(gpu, s) / 4 + 1);
    let (w, b) = (up(&vec![1.0; rows]), up(&vec![0.0; rows]));
    channels::channel_norm_forward(
        gpu,
        x_in.ptr(),
        w.ptr(),
        b.ptr(),
        y.ptr(),
        m,
        EPS,
        scratch.ptr(),
        s,
    )
    .unwrap();
    share.max(worst("groups", &want, &y.to_vec().unwrap(), |_| bound))
}
