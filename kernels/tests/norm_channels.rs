//! Batch and group normalisation against their definitions in f64.

mod support;

use etude_kernels::batch_norm::*;
use etude_kernels::group_norm::*;
use etude_kernels::reference::norm as reference;
use support::*;

const U: f64 = 1.0 / 16_777_216.0;
const EPS: f32 = 1e-3;

/// Batch, channels, space: planes of one number, thin and long ones, and none.
const SIZES: [[usize; 3]; 17] = [
    [0, 3, 5],
    [2, 2, 0],
    [4, 1, 1],
    [7, 6, 1],
    [70, 130, 1],
    [5, 16, 2],
    [3, 4, 7],
    [2, 70, 15],
    [3, 4, 16],
    [2, 6, 17],
    [1, 2, 257],
    [5, 2, 63],
    [2, 2, 5000],
    [130, 2, 3],
    [1, 64, 33],
    // Channels beyond the cache.
    [1100, 11, 31],
    [2400, 23, 15],
];

fn values(seed: u64, n: usize) -> Vec<f32> {
    // A mean that is not 0.
    uniform(seed, n).into_iter().map(|x| x + 0.75).collect()
}

/// Deviations here are above 0.2, so `hat` is at most 15 and `rstd` below 5. A mean is a sum in f64 of
/// sums of at most 64 + 6 roundings in f32 (or rows of 64), of numbers below 2.
const SUM: f64 = 2.0 * 80.0 * U;
const HAT: f64 = 15.0 * 5.0 * SUM;

#[test]
fn batch_norm_equals_its_definition() {
    for [batch, channels, space] in SIZES {
        let n = batch * channels * space;
        if batch * space == 1 {
            continue;
        }
        let (x, d_y) = (values(1, n), uniform(2, n));
        let (weight, bias) = (uniform(3, channels), uniform(4, channels));
        let got = same_on_every_tier("batch_norm", || {
            let (mut y, mut d_x) = (Guarded::new(n, 3), Guarded::new(n, 1));
            let (mut mean, mut var) = (vec![0.0; channels], vec![0.0; channels]);
            batch_norm_forward(&x, &weight, &bias, y.get(), &mut mean, &mut var, EPS, space);
            let (mut d_w, mut d_b) = (vec![0.5; channels], vec![0.25; channels]);
            let d = d_x.get();
            batch_norm_backward(&x, &weight, &mean, &var, &d_y, d, &mut d_w, &mut d_b, EPS, space);
            [mean, var, d_w, d_b, y.finish("y"), d_x.finish("d_x")].concat()
        });
        let place = |c: usize| -> Vec<usize> {
            let in_plane = |b: usize| (0..space).map(move |s| (b * channels + c) * space + s);
            (0..batch).flat_map(in_plane).collect()
        };
        let (y, d_x) = got[4 * channels..].split_at(n);
        for c in 0..channels {
            let at = place(c);
            let pick = |x: &[f32]| -> Vec<f64> { at.iter().map(|i| f64::from(x[*i])).collect() };
            let pick32 = |x: &[f32]| -> Vec<f32> { at.iter().map(|i| x[*i]).collect() };
            let (w, b) = (f64::from(weight[c]), f64::from(bias[c]));
            let eps = f64::from(EPS);
            if at.is_empty() {
                continue;
            }
            let group = reference::Group::new(&pick(&x), eps);
            assert_near("mean", &[group.mean], &got[c..=c], SUM);
            assert_near("var", &[group.var], &got[channels + c..=channels + c], 4.0 * SUM);
            let want: Vec<f64> = group.hat.iter().map(|hat| hat * w + b).collect();
            assert_near("y", &want, &pick32(y), HAT);
            let d = pick(&d_y);
            let (d_w, d_b) = group.weight_gradients(&d);
            let count = at.len() as f64;
            assert_near(
                "d_weight",
                &[d_w + 0.5],
                &got[2 * channels + c..=2 * channels + c],
                count * HAT,
            );
            assert_near(
                "d_bias",
                &[d_b + 0.25],
                &got[3 * channels + c..=3 * channels + c],
                count * SUM,
            );
            let d: Vec<f64> = d.iter().map(|d| d * w).collect();
            // rstd (d - a - hat b): rstd < 5, |a|, |b| <= 1 and 15, each off by some of hat's errors.
            assert_near("d_x", &group.gradient(&d), &pick32(d_x), 5.0 * 4.0 * 15.0 * HAT);
        }
    }
}

#[test]
fn group_norm_equals_its_definition() {
    for [batch, channels, space] in SIZES {
        let groups_of = [1, 2, channels / 2, channels].into_iter();
        for groups in groups_of.filter(|g| *g > 0 && channels.is_multiple_of(*g)) {
            let s = Groups { channels, groups, space };
            let (n, rows, row) =
                (batch * channels * space, batch * groups, channels / groups * space);
            if row == 1 || (row == 0 && n > 0) {
                continue;
            }
            let (x, d_y) = (values(5, n), uniform(6, n));
            let (weight, bias) = (uniform(7, channels), uniform(8, channels));
            let got = same_on_every_tier("group_norm", || {
                let (mut y, mut d_x) = (Guarded::new(n, 3), Guarded::new(n, 1));
                let (mut mean, mut rstd) = (vec![0.0; rows], vec![0.0; rows]);
                group_norm_forward(&x, &weight, &bias, y.get(), &mut mean, &mut rstd, EPS, s);
                let (mut d_w, mut d_b) = (vec![0.5; channels], vec![0.25; channels]);
                let d = d_x.get();
                group_norm_backward(&x, &weight, &mean, &rstd, &d_y, d, &mut d_w, &mut d_b, s);
                [d_w, d_b, y.finish("y"), d_x.finish("d_x")].concat()
            });
            let (y, d_x) = got[2 * channels..].split_at(n);
            let (mut d_w, mut d_b) = (vec![0.5; channels], vec![0.25; channels]);
            let mut rstd_most = 1.0f64;
            for r in 0..if n == 0 { 0 } else { rows } {
                let at = r * row..(r + 1) * row;
                let channel = |i: usize| r % groups * (channels / groups) + i / space;
                let group = reference::Group::new(&wide(&x[at.clone()]), f64::from(EPS));
                // Small groups may lie close together: their own deviation counts.
                let rstd = 1.0 / (group.var + f64::from(EPS)).sqrt();
                rstd_most = rstd_most.max(rstd);
                let most = group.hat.iter().fold(1.0, |most: f64, hat| most.max(hat.abs()));
                let hat = (most + 1.0) * rstd * rstd * SUM;
                let weight = |i: usize| f64::from(weight[channel(i)]);
                let bias = |i: usize| f64::from(bias[channel(i)]);
                let want: Vec<f64> =
                    group.hat.iter().enumerate().map(|(i, h)| h * weight(i) + bias(i)).collect();
                assert_near("y", &want, &y[at.clone()], hat);
                let d = wide(&d_y[at.clone()]);
                for (i, d) in d.iter().enumerate() {
                    d_w[channel(i)] += d * group.hat[i];
                    d_b[channel(i)] += d;
                }
                let d: Vec<f64> = d.iter().enumerate().map(|(i, d)| d * weight(i)).collect();
                assert_near("d_x", &group.gradient(&d), &d_x[at], rstd * 8.0 * (most + 1.0) * hat);
            }
            let count = (batch * space + 1) as f64;
            let hat = 16.0 * rstd_most * rstd_most * SUM;
            assert_near("d_weight", &d_w, &got[..channels], count * hat);
            assert_near("d_bias", &d_b, &got[channels..2 * channels], count * SUM);
        }
    }
}

#[test]
fn one_group_of_channels_of_one_number_is_layer_norm() {
    let (rows, cols) = (9, 37);
    let (x, weight, bias) = (values(9, rows * cols), uniform(10, cols), uniform(11, cols));
    let (mut mean, mut rstd) = (vec![0.0; rows], vec![0.0; rows]);
    let (mut want, mut got) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    let s = Groups { channels: cols, groups: 1, space: 1 };
    etude_kernels::norm::layer_norm_forward(
        &x, &weight, &bias, &mut want, &mut mean, &mut rstd, EPS,
    );
    group_norm_forward(&x, &weight, &bias, &mut got, &mut mean, &mut rstd, EPS, s);
    assert_eq!(want, got);
}

#[test]
fn running_statistics_are_a_moving_average() {
    let (mut mean, mut var) = (vec![1.0, 0.0], vec![1.0, 4.0]);
    update_statistics(&[2.0, 4.0], &[3.0, 0.0], &mut mean, &mut var, 4, 0.25);
    // The variance of the population is 4 / 3 of that of four numbers.
    assert_eq!((mean, var), (vec![1.25, 1.0], vec![1.75, 3.0]));
    let (mut mean, mut var) = (vec![1.0], vec![1.0]);
    update_statistics(&[2.0], &[0.0], &mut mean, &mut var, 1, 0.5);
    assert_eq!((mean, var), (vec![1.5], vec![0.5]));
}

#[test]
fn a_channel_is_scaled_and_shifted() {
    for [batch, channels, space] in SIZES {
        let n = batch * channels * space;
        let (x, scale, shift) = (values(12, n), uniform(13, channels), uniform(14, channels));
        let got = same_on_every_tier("channel_affine", || {
            let mut y = Guarded::new(n, 5);
            channel_affine_forward(&x, &scale, &shift, y.get(), space);
            y.finish("channel_affine")
        });
        for (i, y) in got.iter().enumerate() {
            let c = i / space % channels;
            assert_eq!(*y, x[i].mul_add(scale[c], shift[c]));
        }
    }
}

#[test]
fn a_channel_of_nan_is_nan_and_no_other_is() {
    on_every_tier(|_| {
        for space in [1, 3, 16, 40] {
            let channels = 3;
            let mut x = values(15, 4 * channels * space);
            x[channels * space + space] = f32::NAN;
            let (weight, bias) = (vec![1.0; channels], vec![0.0; channels]);
            let (mut mean, mut var) = (vec![0.0; channels], vec![0.0; channels]);
            let mut y = vec![0.0; x.len()];
            batch_norm_forward(&x, &weight, &bias, &mut y, &mut mean, &mut var, EPS, space);
            for (i, y) in y.iter().enumerate() {
                assert_eq!(y.is_nan(), i / space % channels == 1, "{space}: {i}");
            }
        }
    });
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for [batch, channels, space] in [[40, 130, 11], [9, 40, 300], [700, 300, 1], [1100, 10, 31]] {
        let n = batch * channels * space;
        let (x, d_y) = (values(16, n), uniform(17, n));
        let (weight, bias) = (uniform(18, channels), uniform(19, channels));
        same_for_any_threads("norms", || {
            let (mut y, mut d_x, mut z) = (x.clone(), x.clone(), x.clone());
            let (mut mean, mut var) = (bias.clone(), bias.clone());
            batch_norm_forward(&x, &weight, &bias, &mut y, &mut mean, &mut var, EPS, space);
            let (mut d_w, mut d_b) = (weight.clone(), bias.clone());
            let d = &mut d_x;
            batch_norm_backward(&x, &weight, &mean, &var, &d_y, d, &mut d_w, &mut d_b, EPS, space);
            let s = Groups { channels, groups: 2, space };
            let (mut mean, mut rstd) = (vec![0.0; 2 * batch], vec![0.0; 2 * batch]);
            group_norm_forward(&x, &weight, &bias, &mut z, &mut mean, &mut rstd, EPS, s);
            let mut d_z = x.clone();
            let d = &mut d_z;
            group_norm_backward(&x, &weight, &mean, &rstd, &d_y, d, &mut d_w, &mut d_b, s);
            [y, d_x, z, d_z, d_w, d_b].concat()
        });
    }
}
