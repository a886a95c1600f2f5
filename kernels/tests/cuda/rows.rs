//! Checks of softmax, cross-entropy and reductions.

use super::{Check, from_bf16, to_bf16, uniform, wide, worst};
use etude_kernels::cuda::rows::reduce::{self, Reduction};
use etude_kernels::cuda::rows::{self, Float, Targets, Walk};
use etude_kernels::cuda::{DeviceBuffer, Gpu};
use etude_kernels::reference::rows as reference;
use etude_kernels::softmax::{self, NO_TARGET};

pub const CHECKS: &[Check] = &[
    Check { name: "softmax_forward", run: softmax_forward },
    Check { name: "softmax_backward", run: softmax_backward },
    Check { name: "cross_entropy", run: cross_entropy },
    Check { name: "special_values_as_on_the_cpu", run: special_values },
    Check { name: "sums_of_rows", run: sums_of_rows },
    Check { name: "argmax_of_rows", run: argmax_of_rows },
    Check { name: "sums_of_an_axis", run: sums_of_an_axis },
    Check { name: "sum_of_all", run: sum_of_all },
];

/// Half a unit in the last place of 1.
pub const U: f64 = 1.0 / 16_777_216.0;
/// The same of bf16.
pub const U_BF16: f64 = 1.0 / 256.0;

/// Columns around every border of the forms.
pub const COLS: &[usize] =
    &[1, 3, 31, 33, 127, 128, 129, 256, 257, 1000, 1023, 1024, 1025, 2048, 4097, 8192, 8200, 9001];

/// Numbers on the device in one of two types, and what they are in f32.
pub struct Typed<'a> {
    pub values: Vec<f32>,
    wide: Option<DeviceBuffer<'a, f32>>,
    narrow: Option<DeviceBuffer<'a, u16>>,
}

impl<'a> Typed<'a> {
    pub fn new(gpu: &'a dyn Gpu, float: Float, x: &[f32]) -> Typed<'a> {
        match float {
            Float::F32 => Typed {
                values: x.to_vec(),
                wide: Some(DeviceBuffer::from_slice(gpu, x).unwrap()),
                narrow: None,
            },
            Float::Bf16 => {
                let bits = to_bf16(x);
                let narrow = Some(DeviceBuffer::from_slice(gpu, &bits).unwrap());
                Typed { values: from_bf16(&bits), wide: None, narrow }
            }
        }
    }

    pub fn room(gpu: &'a dyn Gpu, float: Float, n: usize) -> Typed<'a> {
        let values = Vec::new();
        match float {
            Float::F32 => {
                let wide = Some(DeviceBuffer::poisoned(gpu, n).unwrap());
                Typed { values, wide, narrow: None }
            }
            Float::Bf16 => {
                let narrow = Some(DeviceBuffer::poisoned(gpu, n).unwrap());
                Typed { values, wide: None, narrow }
            }
        }
    }

    pub fn ptr(&self) -> u64 {
        match (&self.wide, &self.narrow) {
            (Some(wide), _) => wide.ptr(),
            (_, Some(narrow)) => narrow.ptr(),
            _ => 0,
        }
    }

    pub fn get(&self) -> Vec<f32> {
        match (&self.wide, &self.narrow) {
            (Some(wide), _) => wide.to_vec().unwrap(),
            (_, Some(narrow)) => from_bf16(&narrow.to_vec().unwrap()),
            _ => Vec::new(),
        }
    }
}

/// What storing a result costs, as a share of it.
pub fn stored(float: Float) -> f64 {
    if float == Float::F32 { U } else { U_BF16 }
}

/// Roundings of a sum over a row: a thread's share of it one after the other, then two trees of five.
pub fn depth(form: &str, cols: usize) -> f64 {
    let share = match form {
        "plain" => cols,
        "long" => cols.div_ceil(512) + 8,
        form => {
            let threads = match form {
                "w1" | "w2" | "w4" | "w8" => 32,
                _ => cols.div_ceil(16).next_multiple_of(32),
            };
            cols.div_ceil(threads) + 8
        }
    };
    share as f64 + 11.0
}

/// Every form of every type for some columns, `plain` among them.
fn each_form(mut f: impl FnMut(Float, &'static str, usize, usize)) {
    for (k, cols) in COLS.iter().enumerate() {
        let rows = [1, 5, 3][k % 3];
        for float in [Float::F32, Float::Bf16] {
            for form in Walk::forms(float, *cols) {
                f(float, form, rows, *cols);
            }
        }
        if *cols <= 1100 {
            f(Float::F32, "plain", rows, *cols);
        }
    }
}

/// Logits in `[-4, 4)`.
fn logits(seed: u64, n: usize) -> Vec<f32> {
    uniform(seed, n).iter().map(|x| 4.0 * x).collect()
}

/// Differences from the largest logit are below this.
const RANGE: f64 = 8.0;

/// A relative error of `exp(x - max)`: 2 ulp, and the rounding of the difference.
const EXP: f64 = (4.0 + RANGE) * U;

fn softmax_forward(gpu: &dyn Gpu) -> f64 {
    let mut share = 0.0f64;
    each_form(|float, form, rows, cols| {
        let x = Typed::new(gpu, float, &logits(cols as u64, rows * cols));
        for log in [false, true] {
            let y = Typed::room(gpu, float, rows * cols);
            if form == "plain" {
                rows::plain::forward(gpu, x.ptr(), y.ptr(), rows, cols, log).unwrap();
            } else {
                // A block that goes on to another row is a path of its own.
                let walk = Walk { form, blocks_per_sm: u32::from(rows == 3) };
                rows::forward(gpu, walk, float, x.ptr(), y.ptr(), rows, cols, log).unwrap();
            }
            let f = if log { reference::log_softmax } else { reference::softmax };
            let want: Vec<f64> = x.values.chunks(cols).flat_map(|row| f(&wide(row))).collect();
            // The sum of positive terms has their relative error and that of its additions.
            let sum = EXP + depth(form, cols) * U;
            let tolerance = |i: usize| {
                let w = f64::abs(want[i]);
                if log {
                    // The logarithm of the sum (2 ulp of at most 10) and two subtractions.
                    sum + 40.0 * U + (RANGE + w) * U + w * stored(float)
                } else {
                    w * (EXP + sum + 3.0 * U + stored(float))
                }
            };
            let what = format!("softmax {float:?} {form} {rows}x{cols} log {log}");
            share = f64::max(share, worst(&what, &want, &y.get(), tolerance));
        }
    });
    // In place, at an odd address.
    let x = logits(5, 3 * 33);
    let buffer = DeviceBuffer::from_slice(gpu, &[&[0.0], &x[..]].concat()).unwrap();
    rows::softmax_forward(gpu, Float::F32, buffer.ptr() + 4, buffer.ptr() + 4, 3, 33).unwrap();
    let want: Vec<f64> = x.chunks(33).flat_map(|row| reference::softmax(&wide(row))).collect();
    let bound = 2.0 * EXP + 25.0 * U;
    share.max(worst("in place", &want, &buffer.to_vec().unwrap()[1..], |i| want[i] * bound))
}

fn softmax_backward(gpu: &dyn Gpu) -> f64 {
    let mut share = 0.0f64;
    each_form(|float, form, rows, cols| {
        let n = rows * cols;
        let d_y = Typed::new(gpu, float, &uniform(7, n));
        for log in [false, true] {
            let f = if log { reference::log_softmax } else { reference::softmax };
            let y: Vec<f32> =
                logits(3, n).chunks(cols).flat_map(|row| f(&wide(row))).map(|y| y as f32).collect();
            let y = Typed::new(gpu, float, &y);
            let d_x = Typed::room(gpu, float, n);
            let (from, d) = (y.ptr(), d_y.ptr());
            if form == "plain" {
                rows::plain::backward(gpu, from, d, d_x.ptr(), rows, cols, log).unwrap();
            } else {
                let walk = Walk { form, blocks_per_sm: u32::from(rows == 3) };
                rows::backward(gpu, walk, float, from, d, d_x.ptr(), rows, cols, log).unwrap();
            }
            let f = if log { reference::log_softmax_backward } else { reference::softmax_backward };
            let pairs = y.values.chunks(cols).zip(d_y.values.chunks(cols));
            let want: Vec<f64> = pairs.flat_map(|(y, d)| f(&wide(y), &wide(d))).collect();
            // Each sum: its terms' magnitudes, a rounding for the product and one an addition.
            let sizes: Vec<f64> = y
                .values
                .chunks(cols)
                .zip(d_y.values.chunks(cols))
                .map(|(y, d)| match log {
                    true => d.iter().map(|d| f64::from(d.abs())).sum(),
                    false => y.iter().zip(d).map(|(y, d)| f64::from((y * d).abs())).sum(),
                })
                .collect();
            let tolerance = |i: usize| {
                let size = sizes[i / cols];
                let (y_i, d_i) = (f64::from(y.values[i]), f64::from(d_y.values[i]).abs());
                let factor = if log { y_i.exp() } else { y_i };
                let sum = (depth(form, cols) + 1.0) * U * size;
                // Rounded product (and exponential) and difference.
                factor * (sum + 6.0 * U * size + 2.0 * U * d_i)
                    + U * (d_i + factor * size)
                    + want[i].abs() * stored(float)
            };
            let what = format!("softmax backward {float:?} {form} {rows}x{cols} log {log}");
            share = f64::max(share, worst(&what, &want, &d_x.get(), tolerance));
        }
    });
    share
}

fn cross_entropy(gpu: &dyn Gpu) -> f64 {
    let mut share = 0.0f64;
    each_form(|float, form, rows, vocab| {
        let x = Typed::new(gpu, float, &logits(11, rows * vocab));
        let mut targets: Vec<u32> = (0..rows).map(|r| (r * 7919 % vocab) as u32).collect();
        if rows > 1 {
            targets[1] = NO_TARGET;
        }
        let ids = DeviceBuffer::from_slice(gpu, &targets).unwrap();
        for smoothing in [0.0f32, 0.125] {
            let losses = DeviceBuffer::<f32>::poisoned(gpu, rows).unwrap();
            let d = Typed::room(gpu, float, rows * vocab);
            let scale = 0.25f32;
            let t = Targets { targets: ids.ptr(), losses: losses.ptr(), scale, smoothing };
            if form == "plain" {
                rows::plain::cross_entropy(gpu, x.ptr(), t, d.ptr(), rows, vocab).unwrap();
            } else {
                let walk = Walk { form, blocks_per_sm: 0 };
                let run = |d| {
                    rows::cross_entropy(gpu, walk, float, x.ptr(), t, d, rows, vocab).unwrap();
                };
                // Without a gradient the losses are the same bits.
                run(0);
                let alone = losses.to_vec().unwrap();
                run(d.ptr());
                assert_eq!(alone, losses.to_vec().unwrap());
            }
            let (s, v) = (f64::from(smoothing), vocab as f64);
            let (mut want_losses, mut want) = (Vec::new(), Vec::new());
            for (row, target) in x.values.chunks(vocab).zip(&targets) {
                let row = wide(row);
                let (loss, gradient) = reference::cross_entropy(&row, *target);
                let even = -reference::log_softmax(&row).iter().sum::<f64>() / v;
                if *target == NO_TARGET {
                    want_losses.push(0.0);
                    want.extend(gradient);
                    continue;
                }
                want_losses.push((1.0 - s) * loss + s * even);
                want.extend(gradient.iter().enumerate().map(|(c, g)| {
                    let hot = if c == *target as usize { s } else { 0.0 };
                    f64::from(scale) * (g + hot - s / v)
                }));
            }
            let sum = EXP + depth(form, vocab) * U;
            // The logarithm of the sum, the target's difference, the mean of all differences.
            let mean = 2.0 * RANGE * (depth(form, vocab) + 2.0) * U * s.min(1.0);
            let bound = sum + 20.0 * U + 3.0 * RANGE * U + mean + (RANGE + v.ln()) * U;
            let what = format!("cross-entropy {float:?} {form} {rows}x{vocab} smoothing {s}");
            share = share.max(worst(&what, &want_losses, &losses.to_vec().unwrap(), |_| bound));
            let scale = f64::from(scale);
            let tolerance =
                |i: usize| scale * (EXP + sum + 8.0 * U) + want[i].abs() * stored(float);
            share = share.max(worst(&what, &want, &d.get(), tolerance));
        }
    });
    share
}

fn special_values(gpu: &dyn Gpu) -> f64 {
    const INF: f32 = f32::INFINITY;
    let same = |what: &str, want: &[f32], got: &[f32]| {
        for (i, (w, g)) in want.iter().zip(got).enumerate() {
            let near = (w - g).abs() <= 1e-5 * w.abs() || w == g || (w.is_nan() && g.is_nan());
            assert!(near, "{what}: {i} is {g}, on the CPU {w}");
        }
    };
    for cols in [5, 130, 1100, 9001] {
        for (a, b) in [(f32::NAN, 0.0), (INF, 1.0), (-INF, 2.0), (-INF, -INF), (1e38, -1e38)] {
            let mut x = vec![b; cols];
            x[cols / 2] = a;
            let (mut y, mut y_log) = (vec![0.0; cols], vec![0.0; cols]);
            softmax::softmax_forward(&x, &mut y, cols);
            softmax::log_softmax_forward(&x, &mut y_log, cols);
            let from = DeviceBuffer::from_slice(gpu, &x).unwrap();
            let to = DeviceBuffer::<f32>::poisoned(gpu, cols).unwrap();
            for form in Walk::forms(Float::F32, cols) {
                let walk = Walk { form, blocks_per_sm: 0 };
                for (log, want) in [(false, &y), (true, &y_log)] {
                    let (x, y) = (from.ptr(), to.ptr());
                    rows::forward(gpu, walk, Float::F32, x, y, 1, cols, log).unwrap();
                    same(&format!("{a} in {b}, {form} {cols} {log}"), want, &to.to_vec().unwrap());
                }
            }
        }
    }
    0.0
}

fn sums_of_rows(gpu: &dyn Gpu) -> f64 {
    let mut share = 0.0f64;
    for (rows, cols) in [(1, 1), (3, 33), (70, 127), (80, 1024), (5, 1025), (2, 4097), (66, 2048)] {
        for float in [Float::F32, Float::Bf16] {
            let x = Typed::new(gpu, float, &uniform(13, rows * cols));
            for kind in [Reduction::Sum, Reduction::Mean, Reduction::Max] {
                let y = DeviceBuffer::<f32>::poisoned(gpu, rows).unwrap();
                reduce::reduce_rows(gpu, float, kind, x.ptr(), y.ptr(), rows, cols).unwrap();
                let of_row = |row: &[f32]| {
                    let row = wide(row);
                    match kind {
                        Reduction::Sum => row.iter().sum::<f64>(),
                        Reduction::Mean => row.iter().sum::<f64>() / cols as f64,
                        Reduction::Max => row.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                    }
                };
                let want: Vec<f64> = x.values.chunks(cols).map(of_row).collect();
                let size = cols as f64 * U * (cols.div_ceil(32) as f64 + 14.0);
                let tolerance = match kind {
                    Reduction::Sum => size,
                    Reduction::Mean => size / cols as f64 + U,
                    Reduction::Max => 0.0,
                };
                let what = format!("{kind:?} of {float:?} {rows}x{cols}");
                share = f64::max(share, worst(&what, &want, &y.to_vec().unwrap(), |_| tolerance));
            }
            if float == Float::F32 {
                let y = DeviceBuffer::<f32>::poisoned(gpu, rows).unwrap();
                reduce::plain::sum_rows(gpu, x.ptr(), y.ptr(), rows, cols).unwrap();
                let want: Vec<f64> =
                    x.values.chunks(cols).map(|row| wide(row).iter().sum()).collect();
                let tolerance = (cols * cols) as f64 * U;
                share = share.max(worst("plain", &want, &y.to_vec().unwrap(), |_| tolerance));
            }
        }
    }
    share
}

fn argmax_of_rows(gpu: &dyn Gpu) -> f64 {
    let (rows, cols) = (7, 1000);
    let mut x = uniform(17, rows * cols);
    x[3] = 2.0;
    x[700] = 2.0; // equal to an earlier one
    x[cols + 999] = 3.0;
    x[2 * cols..3 * cols].fill(f32::NEG_INFINITY);
    x[3 * cols..4 * cols].fill(f32::NAN);
    x[4 * cols + 5] = f32::NAN;
    let from = DeviceBuffer::from_slice(gpu, &x).unwrap();
    let to = DeviceBuffer::<u32>::poisoned(gpu, rows).unwrap();
    reduce::argmax_rows(gpu, from.ptr(), to.ptr(), rows, cols).unwrap();
    let want: Vec<u32> = x
        .chunks(cols)
        .map(|row| {
            let (mut best, mut top) = (0, f32::NEG_INFINITY);
            for (c, x) in row.iter().enumerate() {
                if *x > top {
                    (best, top) = (c as u32, *x);
                }
            }
            best
        })
        .collect();
    assert_eq!(want, to.to_vec().unwrap());
    0.0
}

fn sums_of_an_axis(gpu: &dyn Gpu) -> f64 {
    let mut share = 0.0f64;
    let shapes = [
        [1, 1, 1],
        [1, 1000, 1],
        [1, 33, 127],
        [1, 1025, 128],
        [1, 7, 1000],
        [3, 40, 5],
        [2, 300, 64],
        [5, 1, 31],
        [4, 129, 1],
        [1, 0, 6],
        [1, 5000, 12],
    ];
    for [outer, dim, inner] in shapes {
        let x = uniform(19, outer * dim * inner);
        let from = DeviceBuffer::from_slice(gpu, &x).unwrap();
        let mut want = vec![0.5; outer * inner];
        for (o, plane) in x.chunks((dim * inner).max(1)).enumerate() {
            for row in plane.chunks(inner) {
                for (i, x) in row.iter().enumerate() {
                    want[o * inner + i] += f64::from(*x);
                }
            }
        }
        // A thread adds up an eighth of a long axis, one by one; then come its block's 32 threads in a
        // column and the partial sums of at most 32 blocks. Every partial sum is below dim + 1.
        let roundings = if dim < 64 { dim + 34 } else { dim / 8 + 76 };
        let tolerance = (roundings * (dim + 1)) as f64 * U;
        let bytes = reduce::sum_axis_scratch(gpu, outer, dim, inner);
        let scratch = DeviceBuffer::<u8>::poisoned(gpu, bytes).unwrap();
        let y = DeviceBuffer::from_slice(gpu, &vec![0.5f32; outer * inner]).unwrap();
        let (from, scratch) = (from.ptr(), scratch.ptr());
        reduce::sum_axis(gpu, from, y.ptr(), outer, dim, inner, true, scratch).unwrap();
        let what = format!("axis {outer}x{dim}x{inner}");
        share = f64::max(share, worst(&what, &want, &y.to_vec().unwrap(), |_| tolerance));
        want.iter_mut().for_each(|w| *w -= 0.5);
        reduce::sum_axis(gpu, from, y.ptr(), outer, dim, inner, false, scratch).unwrap();
        share = share.max(worst(&what, &want, &y.to_vec().unwrap(), |_| tolerance));
        reduce::plain::sum_axis(gpu, from, y.ptr(), outer, dim, inner).unwrap();
        let tolerance = ((dim * dim) as f64 / 2.0 + 1.0) * U;
        share = share.max(worst("plain", &want, &y.to_vec().unwrap(), |_| tolerance));
    }
    share
}

fn sum_of_all(gpu: &dyn Gpu) -> f64 {
    let mut share = 0.0f64;
    for n in [0, 1, 3, 255, 4097, 100_001] {
        let x = uniform(23, n + 1);
        let from = DeviceBuffer::from_slice(gpu, &x).unwrap();
        let y = DeviceBuffer::<f32>::poisoned(gpu, 1).unwrap();
        let bytes = reduce::sum_all_scratch(gpu, n);
        let scratch = DeviceBuffer::<u8>::poisoned(gpu, bytes).unwrap();
        for at in [0, 1] {
            let address = from.ptr() + 4 * at as u64;
            reduce::sum_all(gpu, address, y.ptr(), n, 0.5, scratch.ptr()).unwrap();
            let want = wide(&x[at..at + n]).iter().sum::<f64>() * 0.5;
            // A thread adds up at most 32 of them in f32; what comes after is f64, rounded at the end.
            let tolerance = 0.5 * n as f64 * 33.0 * U + U;
            share = f64::max(share, worst("all", &[want], &y.to_vec().unwrap(), |_| tolerance));
        }
    }
    share
}
