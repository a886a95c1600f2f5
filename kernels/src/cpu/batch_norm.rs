//! Normalisation of channels over a whole batch.
//!
//! A task has some channels of all elements of the batch: few enough that its passes after the first
//! find them in cache, or, if that cannot be, so many that memory is read in long runs. Where a plane
//! (one channel of one element) is long, vectors run along it; where it is thin they run across
//! channels, down the columns `[batch, channels * space]`.

use super::lanes::{Body, LANES, Lanes};
use super::map::{self, Add, map_row, update_row, zip_row};
use super::norm::{Scale, Slope, SquareFrom, plane_sums, scale_row, sum_long};
use super::shared::Shared;
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
    /// Over thin planes: room for six numbers a column.
    pub room: &'a mut [f32],
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
        let channels = s.at.from..s.at.to;
        let mut totals: Totals = [0.0; MOST];
        for b in 0..s.at.batch {
            for (total, c) in totals.iter_mut().zip(channels.clone()) {
                *total += sum_long::<L, _>(map::Same, &s.x[s.at.plane(b, c)]);
            }
        }
        for (mean, total) in s.mean.iter_mut().zip(totals) {
            *mean = (total / s.at.count()) as f32;
        }
        totals.fill(0.0);
        for b in 0..s.at.batch {
            for ((total, mean), c) in totals.iter_mut().zip(&*s.mean).zip(channels.clone()) {
                *total += sum_long::<L, _>(SquareFrom(*mean), &s.x[s.at.plane(b, c)]);
            }
        }
        for (var, total) in s.var.iter_mut().zip(totals) {
            *var = (total / s.at.count()) as f32;
        }
        for b in 0..s.at.batch {
            for (k, c) in channels.clone().enumerate() {
                let (weight, bias) = (s.weight[k], s.bias[k]);
                let f = Scale { mean: s.mean[k], rstd: rstd(s.var[k], s.eps), weight, bias };
                // SAFETY: no other task has this channel, and one plane is alive at a time.
                let y = unsafe { s.y.slice(s.at.plane(b, c)) };
                map_row::<L, _>(f, &s.x[s.at.plane(b, c)], y);
            }
        }
    }
}

/// Channels of a task, at most.
pub(crate) const MOST: usize = 256;

/// A sum for each channel of a task.
type Totals = [f64; MOST];

/// A row of columns, to be added to their sums.
trait Term: Copy {
    fn add<L: Lanes>(self, row: Range<usize>, sums: &mut [f32]);
}

/// Adds up columns for each channel: 64 rows at a time in f32, the rest in f64.
#[inline(always)]
fn columns<L: Lanes>(at: Planes, sums: &mut [f32], term: impl Term) -> Totals {
    let mut totals = [0.0; MOST];
    for begin in (0..at.batch).step_by(ROWS) {
        sums.fill(0.0);
        for b in begin..at.batch.min(begin + ROWS) {
            term.add::<L>(at.row(b), sums);
        }
        for (total, sums) in totals.iter_mut().zip(sums.chunks_exact(at.space)) {
            *total += sums.iter().map(|sum| f64::from(*sum)).sum::<f64>();
        }
    }
    totals
}

/// `x`
#[derive(Clone, Copy)]
struct Plain<'a>(&'a [f32]);

impl Term for Plain<'_> {
    #[inline(always)]
    fn add<L: Lanes>(self, row: Range<usize>, sums: &mut [f32]) {
        update_row::<L, _>(Add, &self.0[row], sums);
    }
}

/// `(x - mean)^2`
#[derive(Clone, Copy)]
struct Squares<'a> {
    x: &'a [f32],
    means: &'a [f32],
}

impl Term for Squares<'_> {
    #[inline(always)]
    fn add<L: Lanes>(self, row: Range<usize>, sums: &mut [f32]) {
        let (x, mut u) = (&self.x[row], 0);
        while u < x.len() {
            let end = x.len().min(u + LANES);
            let d = part::<L>(&x[u..end]).sub(part(&self.means[u..end]));
            store(d.mul_add(d, part(&sums[u..end])), &mut sums[u..end]);
            u = end;
        }
    }
}

/// `d hat`
#[derive(Clone, Copy)]
struct Dots<'a> {
    x: &'a [f32],
    d: &'a [f32],
    means: &'a [f32],
    rstds: &'a [f32],
}

impl Term for Dots<'_> {
    #[inline(always)]
    fn add<L: Lanes>(self, row: Range<usize>, sums: &mut [f32]) {
        let (x, d, mut u) = (&self.x[row.clone()], &self.d[row], 0);
        while u < x.len() {
            let end = x.len().min(u + LANES);
            let hat = part::<L>(&x[u..end]).sub(part(&self.means[u..end]));
            let hat = hat.mul(part(&self.rstds[u..end]));
            let sum = part::<L>(&d[u..end]).mul_add(hat, part(&sums[u..end]));
            store(sum, &mut sums[u..end]);
            u = end;
        }
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
        let (sums, room) = s.room.split_at_mut(width);
        let (means, room) = room.split_at_mut(width);
        let (rstds, room) = room.split_at_mut(width);
        let (weights, biases) = room.split_at_mut(width);
        let totals = columns::<L>(at, sums, Plain(s.x));
        for (k, mean) in s.mean.iter_mut().enumerate() {
            *mean = (totals[k] / at.count()) as f32;
            widen(means, k, space, *mean);
        }
        let totals = columns::<L>(at, sums, Squares { x: s.x, means });
        for (k, var) in s.var.iter_mut().enumerate() {
            *var = (totals[k] / at.count()) as f32;
            widen(rstds, k, space, rstd(*var, s.eps));
            widen(weights, k, space, s.weight[k]);
            widen(biases, k, space, s.bias[k]);
        }
        for b in 0..at.batch {
            // SAFETY: no other task has these channels, and one row is alive at a time.
            let y = unsafe { s.y.slice(at.row(b)) };
            let (x, mut u) = (&s.x[at.row(b)], 0);
            while u < width {
                let end = width.min(u + LANES);
                let hat = part::<L>(&x[u..end]).sub(part(&means[u..end]));
                let hat = hat.mul(part(&rstds[u..end]));
                let value = hat.mul_add(part(&weights[u..end]), part(&biases[u..end]));
                store(value, &mut y[u..end]);
                u = end;
            }
        }
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
    /// Over thin planes: room for six numbers a column.
    pub room: &'a mut [f32],
}

impl Body for Long<BatchNormBackward<'_>> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let s = self.0;
        let channels = s.at.from..s.at.to;
        let mut totals = [(0.0, 0.0); MOST];
        for b in 0..s.at.batch {
            for (k, c) in channels.clone().enumerate() {
                let (at, rstd) = (s.at.plane(b, c), rstd(s.var[k], s.eps));
                let parts = plane_sums::<L>(&s.x[at.clone()], &s.d_y[at], s.mean[k], rstd);
                totals[k].0 += parts.0;
                totals[k].1 += parts.1;
            }
        }
        for (k, (sum, dot)) in totals[..channels.len()].iter().enumerate() {
            s.d_bias[k] += *sum as f32;
            s.d_weight[k] += *dot as f32;
        }
        for b in 0..s.at.batch {
            for (k, c) in channels.clone().enumerate() {
                let (at, weight, (sum, dot)) = (s.at.plane(b, c), s.weight[k], totals[k]);
                let scale = f64::from(weight) / s.at.count();
                let (mean, rstd) = (s.mean[k], rstd(s.var[k], s.eps));
                let (a, b) = ((sum * scale) as f32, (dot * scale) as f32);
                let f = Slope { mean, rstd, weight, a, b };
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
        let (sums, room) = s.room.split_at_mut(width);
        let (means, room) = room.split_at_mut(width);
        let (rstds, room) = room.split_at_mut(width);
        let (weights, room) = room.split_at_mut(width);
        let (a, b) = room.split_at_mut(width);
        for k in 0..s.mean.len() {
            widen(means, k, space, s.mean[k]);
            widen(rstds, k, space, rstd(s.var[k], s.eps));
            widen(weights, k, space, s.weight[k]);
        }
        let totals = columns::<L>(at, sums, Plain(s.d_y));
        for (k, d_bias) in s.d_bias.iter_mut().enumerate() {
            *d_bias += totals[k] as f32;
            widen(a, k, space, (totals[k] * f64::from(s.weight[k]) / at.count()) as f32);
        }
        let totals = columns::<L>(at, sums, Dots { x: s.x, d: s.d_y, means, rstds });
        for (k, d_weight) in s.d_weight.iter_mut().enumerate() {
            *d_weight += totals[k] as f32;
            widen(b, k, space, (totals[k] * f64::from(s.weight[k]) / at.count()) as f32);
        }
        for row in 0..at.batch {
            // SAFETY: no other task has these channels, and one row is alive at a time.
            let d_x = unsafe { s.d_x.slice(at.row(row)) };
            let (x, d, mut u) = (&s.x[at.row(row)], &s.d_y[at.row(row)], 0);
            while u < width {
                let end = width.min(u + LANES);
                let r = part::<L>(&rstds[u..end]);
                let hat = part::<L>(&x[u..end]).sub(part(&means[u..end])).mul(r);
                let d = part::<L>(&d[u..end]).mul(part(&weights[u..end]));
                let d = d.sub(part(&a[u..end]));
                store(r.mul(hat.neg_mul_add(part(&b[u..end]), d)), &mut d_x[u..end]);
                u = end;
            }
        }
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
                scale_row::<L>(false, x, self.scale, self.shift, y, 0.0, 1.0);
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
