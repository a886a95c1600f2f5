//! Normalisation of channels over a whole batch.
//!
//! A task has some channels of all elements of the batch, so that its passes after the first find
//! them in cache. Where a plane (one channel of one element) is long, vectors run along it; where it
//! is thin they run across channels, down the columns `[batch, channels * space]`.

use super::lanes::{Body, LANES, Lanes};
use super::map::{self, Add, map_row, update_row, zip_row};
use super::norm::{Scale, Slope, SquareFrom, plane_sums, scale_row, sum_long};
use super::shared::{Shared, with_scratch};
use std::ops::Range;

/// Rows whose columns are added up in f32 before f64 takes over.
const ROWS: usize = 64;

/// Where the planes of some channels lie.
#[derive(Clone, Copy)]
pub(crate) struct Planes {
    pub batch: usize,
    pub channels: usize,
    pub space: usize,
    /// First and one past the last channel.
    pub from: usize,
    pub to: usize,
}

impl Planes {
    /// Numbers in a channel.
    fn count(self) -> f64 {
        self.batch as f64 * self.space as f64
    }

    fn plane(self, b: usize, c: usize) -> Range<usize> {
        let at = (b * self.channels + c) * self.space;
        at..at + self.space
    }

    /// What one element of the batch has of these channels.
    fn row(self, b: usize) -> Range<usize> {
        self.plane(b, self.from).start..self.plane(b, self.to - 1).end
    }

    fn width(self) -> usize {
        (self.to - self.from) * self.space
    }
}

/// One over the deviation.
#[inline(always)]
fn rstd(var: f32, eps: f32) -> f32 {
    1.0 / (var + eps).sqrt()
}

/// `y = (x - mean) / sqrt(var + eps) * weight + bias`; statistics are those of the channels at hand.
pub(crate) struct BatchNorm<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub y: Shared<'a, f32>,
    pub mean: &'a mut [f32],
    pub var: &'a mut [f32],
    pub eps: f32,
    pub at: Planes,
}

/// Vectors along planes.
pub(crate) struct Long<T>(pub T);
/// Vectors down columns.
pub(crate) struct Thin<T>(pub T);

impl Body for Long<BatchNorm<'_>> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let s = self.0;
        for c in s.at.from..s.at.to {
            let k = c - s.at.from;
            let planes = || (0..s.at.batch).map(|b| &s.x[s.at.plane(b, c)]);
            let sum: f64 = planes().map(|x| sum_long::<L, _>(map::Same, x)).sum();
            let mean = (sum / s.at.count()) as f32;
            let squares: f64 = planes().map(|x| sum_long::<L, _>(SquareFrom(mean), x)).sum();
            let var = (squares / s.at.count()) as f32;
            (s.mean[k], s.var[k]) = (mean, var);
            let (weight, bias) = (s.weight[k], s.bias[k]);
            let f = Scale { mean, rstd: rstd(var, s.eps), weight, bias };
            for b in 0..s.at.batch {
                // SAFETY: no other task has this channel, and one plane is alive at a time.
                let y = unsafe { s.y.slice(s.at.plane(b, c)) };
                map_row::<L, _>(f, &s.x[s.at.plane(b, c)], y);
            }
        }
    }
}

/// Adds `(x - mean)^2` to `sums`.
#[inline(always)]
fn add_squares<L: Lanes>(x: &[f32], means: &[f32], sums: &mut [f32]) {
    let mut u = 0;
    while u < x.len() {
        let end = x.len().min(u + LANES);
        let d = part::<L>(&x[u..end]).sub(part(&means[u..end]));
        store(d.mul_add(d, part(&sums[u..end])), &mut sums[u..end]);
        u = end;
    }
}

/// Adds up rows of columns for each channel: 64 rows at a time in f32, the rest in f64.
///
/// `add` adds one row to the sums of the columns; `done` gets each channel's number and its sum.
#[inline(always)]
fn columns(
    at: Planes,
    sums: &mut [f32],
    mut add: impl FnMut(usize, &mut [f32]),
    mut done: impl FnMut(usize, f64),
) {
    with_totals(at.to - at.from, |totals| {
        for begin in (0..at.batch).step_by(ROWS) {
            sums.fill(0.0);
            for b in begin..at.batch.min(begin + ROWS) {
                add(b, sums);
            }
            for (total, sums) in totals.iter_mut().zip(sums.chunks_exact(at.space)) {
                *total += sums.iter().map(|sum| f64::from(*sum)).sum::<f64>();
            }
        }
        totals.iter().enumerate().for_each(|(k, total)| done(k, *total));
    });
}

/// Lends zeros for the sums of some channels: on the stack for as many as a task usually has.
#[inline(always)]
fn with_totals(len: usize, f: impl FnOnce(&mut [f64])) {
    let mut few = [0.0; 256];
    match few.get_mut(..len) {
        Some(few) => f(few),
        None => f(&mut vec![0.0; len]),
    }
}

/// Writes `value` to all places of channel `k`.
#[inline(always)]
fn widen(wide: &mut [f32], k: usize, space: usize, value: f32) {
    wide[k * space..(k + 1) * space].fill(value);
}

impl Body for Thin<BatchNorm<'_>> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let s = self.0;
        let (at, width, space) = (s.at, s.at.width(), s.at.space);
        with_scratch(5 * width, |room| {
            let (sums, room) = room.split_at_mut(width);
            let (means, room) = room.split_at_mut(width);
            let (rstds, room) = room.split_at_mut(width);
            let (weights, biases) = room.split_at_mut(width);
            let add = |b: usize, sums: &mut [f32]| update_row::<L, _>(Add, &s.x[at.row(b)], sums);
            columns(at, sums, add, |k, sum| s.mean[k] = (sum / at.count()) as f32);
            (0..s.mean.len()).for_each(|k| widen(means, k, space, s.mean[k]));
            let add = |b: usize, sums: &mut [f32]| add_squares::<L>(&s.x[at.row(b)], means, sums);
            columns(at, sums, add, |k, sum| s.var[k] = (sum / at.count()) as f32);
            for k in 0..s.mean.len() {
                widen(rstds, k, space, rstd(s.var[k], s.eps));
                widen(weights, k, space, s.weight[k]);
                widen(biases, k, space, s.bias[k]);
            }
            for b in 0..at.batch {
                // SAFETY: no other task has these channels, and one row is alive at a time.
                let y = unsafe { s.y.slice(at.row(b)) };
                let x = &s.x[at.row(b)];
                let mut u = 0;
                while u < width {
                    let end = width.min(u + LANES);
                    let hat = part::<L>(&x[u..end]).sub(part(&means[u..end]));
                    let hat = hat.mul(part(&rstds[u..end]));
                    let value = hat.mul_add(part(&weights[u..end]), part(&biases[u..end]));
                    store(value, &mut y[u..end]);
                    u = end;
                }
            }
        });
    }
}

/// Loads at most sixteen numbers.
#[inline(always)]
fn part<L: Lanes>(x: &[f32]) -> L {
    match x.as_array::<LANES>() {
        Some(block) => L::load(block),
        None => L::load_part(x),
    }
}

/// Stores at most sixteen numbers.
#[inline(always)]
fn store<L: Lanes>(value: L, y: &mut [f32]) {
    match y.len() {
        LANES => {
            if let Some(block) = y.as_mut_array::<LANES>() {
                value.store(block);
            }
        }
        _ => value.store_part(y),
    }
}

/// The gradients for some channels; `d_weight` and `d_bias` are added to.
pub(crate) struct BatchNormBackward<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub mean: &'a [f32],
    pub var: &'a [f32],
    pub d_y: &'a [f32],
    pub d_x: Shared<'a, f32>,
    pub d_weight: &'a mut [f32],
    pub d_bias: &'a mut [f32],
    pub eps: f32,
    pub at: Planes,
}

impl Body for Long<BatchNormBackward<'_>> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let s = self.0;
        for c in s.at.from..s.at.to {
            let k = c - s.at.from;
            let (mean, rstd) = (s.mean[k], rstd(s.var[k], s.eps));
            let (mut sum, mut dot) = (0.0, 0.0);
            for b in 0..s.at.batch {
                let at = s.at.plane(b, c);
                let parts = plane_sums::<L>(&s.x[at.clone()], &s.d_y[at], mean, rstd);
                sum += parts.0;
                dot += parts.1;
            }
            s.d_bias[k] += sum as f32;
            s.d_weight[k] += dot as f32;
            let weight = s.weight[k];
            let scale = f64::from(weight) / s.at.count();
            let f = Slope { mean, rstd, weight, a: (sum * scale) as f32, b: (dot * scale) as f32 };
            for b in 0..s.at.batch {
                let at = s.at.plane(b, c);
                // SAFETY: no other task has this channel, and one plane is alive at a time.
                let d_x = unsafe { s.d_x.slice(at.clone()) };
                zip_row::<L, _>(f, &s.x[at.clone()], &s.d_y[at], d_x);
            }
        }
    }
}

impl Body for Thin<BatchNormBackward<'_>> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let s = self.0;
        let (at, width, space) = (s.at, s.at.width(), s.at.space);
        with_scratch(6 * width, |room| {
            let (sums, room) = room.split_at_mut(width);
            let (means, room) = room.split_at_mut(width);
            let (rstds, room) = room.split_at_mut(width);
            let (weights, room) = room.split_at_mut(width);
            let (a, b_means) = room.split_at_mut(width);
            for k in 0..s.mean.len() {
                widen(means, k, space, s.mean[k]);
                widen(rstds, k, space, rstd(s.var[k], s.eps));
                widen(weights, k, space, s.weight[k]);
            }
            let add = |b: usize, sums: &mut [f32]| update_row::<L, _>(Add, &s.d_y[at.row(b)], sums);
            columns(at, sums, add, |k, sum| {
                s.d_bias[k] += sum as f32;
                widen(a, k, space, (sum * f64::from(s.weight[k]) / at.count()) as f32);
            });
            let add = |b: usize, sums: &mut [f32]| {
                let (x, d) = (&s.x[at.row(b)], &s.d_y[at.row(b)]);
                let mut u = 0;
                while u < width {
                    let end = width.min(u + LANES);
                    let hat = part::<L>(&x[u..end]).sub(part(&means[u..end]));
                    let hat = hat.mul(part(&rstds[u..end]));
                    let sum = part::<L>(&d[u..end]).mul_add(hat, part(&sums[u..end]));
                    store(sum, &mut sums[u..end]);
                    u = end;
                }
            };
            columns(at, sums, add, |k, sum| {
                s.d_weight[k] += sum as f32;
                widen(b_means, k, space, (sum * f64::from(s.weight[k]) / at.count()) as f32);
            });
            for b in 0..at.batch {
                // SAFETY: no other task has these channels, and one row is alive at a time.
                let d_x = unsafe { s.d_x.slice(at.row(b)) };
                let (x, d) = (&s.x[at.row(b)], &s.d_y[at.row(b)]);
                let mut u = 0;
                while u < width {
                    let end = width.min(u + LANES);
                    let r = part::<L>(&rstds[u..end]);
                    let hat = part::<L>(&x[u..end]).sub(part(&means[u..end])).mul(r);
                    let d = part::<L>(&d[u..end]).mul(part(&weights[u..end]));
                    let d = d.sub(part(&a[u..end]));
                    let value = r.mul(hat.neg_mul_add(part(&b_means[u..end]), d));
                    store(value, &mut d_x[u..end]);
                    u = end;
                }
            }
        });
    }
}

/// `y = x * scale + shift` with a pair for each channel, for some elements of the batch.
pub(crate) struct ChannelAffine<'a> {
    pub x: &'a [f32],
    pub scale: &'a [f32],
    pub shift: &'a [f32],
    pub y: &'a mut [f32],
    /// Numbers that share a pair.
    pub space: usize,
}

impl Body for ChannelAffine<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        if self.space == 1 {
            let cols = self.scale.len();
            for (x, y) in self.x.chunks_exact(cols).zip(self.y.chunks_exact_mut(cols)) {
                scale_row::<L>(x, self.scale, self.shift, y, 0.0, 1.0);
            }
            return;
        }
        let planes = self.x.chunks_exact(self.space).zip(self.y.chunks_exact_mut(self.space));
        let pairs = self.scale.iter().zip(self.shift).cycle();
        for ((x, y), (scale, shift)) in planes.zip(pairs) {
            map_row::<L, _>(map::Affine(*scale, *shift), x, y);
        }
    }
}
