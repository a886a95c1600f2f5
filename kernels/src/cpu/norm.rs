//! Normalisation of rows: layer and group normalisation.

use super::bypass::before_line;
use super::lanes::{Body, LANES, Lanes};
use super::map::{self, Map, sum_row};

/// Numbers that are added up in f32 before f64 takes over.
const PIECE: usize = 4096;

/// `(x - .0)^2`
#[derive(Clone, Copy)]
pub(crate) struct SquareFrom(pub f32);

impl Map for SquareFrom {
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L) -> L {
        let d = x.sub(L::splat(self.0));
        d.mul(d)
    }
}

/// The sum of `f(x)` over a row of any length.
#[inline(always)]
pub(crate) fn sum_long<L: Lanes, F: Map>(f: F, x: &[f32]) -> f64 {
    // A loop, not a fold: a closure that is not inlined loses the instructions of the tier.
    let mut sum = 0.0;
    for x in x.chunks(PIECE) {
        sum += f64::from(sum_row::<L, F>(f, x));
    }
    sum
}

/// The mean of a row and one over its deviation.
#[inline(always)]
fn moments<L: Lanes>(x: &[f32], eps: f32) -> (f32, f32) {
    // Two passes over a row in cache: E(x^2) - E(x)^2 would cancel.
    let mean = (sum_long::<L, _>(map::Same, x) / x.len() as f64) as f32;
    let var = (sum_long::<L, _>(SquareFrom(mean), x) / x.len() as f64) as f32;
    (mean, 1.0 / (var + eps).sqrt())
}

#[inline(always)]
fn scale_blocks<L: Lanes, const PAST: bool>(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    y: &mut [f32],
    m: L,
    r: L,
) {
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (y, y_tail) = y.as_chunks_mut::<LANES>();
    let (weight, weight_tail) = weight.as_chunks::<LANES>();
    let (bias, bias_tail) = bias.as_chunks::<LANES>();
    for (((x, w), b), y) in x.iter().zip(weight).zip(bias).zip(y) {
        let value = L::load(x).sub(m).mul(r).mul_add(L::load(w), L::load(b));
        map::put::<L, PAST>(value, y);
    }
    if !x_tail.is_empty() {
        let hat = L::load_part(x_tail).sub(m).mul(r);
        hat.mul_add(L::load_part(weight_tail), L::load_part(bias_tail)).store_part(y_tail);
    }
}

/// `y = (x - mean) * rstd * weight + bias` with a weight for each number.
#[inline(always)]
pub(crate) fn scale_row<L: Lanes>(
    past: bool,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    y: &mut [f32],
    mean: f32,
    rstd: f32,
) {
    let (m, r) = (L::splat(mean), L::splat(rstd));
    if !past {
        return scale_blocks::<L, false>(x, weight, bias, y, m, r);
    }
    let head = before_line(y);
    let (first, rest) = y.split_at_mut(head);
    scale_blocks::<L, false>(&x[..head], &weight[..head], &bias[..head], first, m, r);
    scale_blocks::<L, true>(&x[head..], &weight[head..], &bias[head..], rest, m, r);
}

/// `(x - mean) * rstd * weight + bias` with one weight.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    pub mean: f32,
    pub rstd: f32,
    pub weight: f32,
    pub bias: f32,
}

impl Map for Scale {
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L) -> L {
        let hat = x.sub(L::splat(self.mean)).mul(L::splat(self.rstd));
        hat.mul_add(L::splat(self.weight), L::splat(self.bias))
    }
}

/// `y = (x - mean) * rstd * weight + bias`.
pub(crate) struct LayerNorm<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub y: &'a mut [f32],
    pub mean: &'a mut [f32],
    pub rstd: &'a mut [f32],
    pub eps: f32,
    /// Whether the result goes past the cache.
    pub past: bool,
}

impl Body for LayerNorm<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let cols = self.weight.len();
        let rows = self.x.chunks_exact(cols).zip(self.y.chunks_exact_mut(cols));
        for ((x, y), (mean, rstd)) in rows.zip(self.mean.iter_mut().zip(self.rstd)) {
            (*mean, *rstd) = moments::<L>(x, self.eps);
            scale_row::<L>(self.past, x, self.weight, self.bias, y, *mean, *rstd);
        }
    }
}

/// A row with its gradient, and what was computed forwards.
struct RowBack<'a> {
    x: &'a [f32],
    d_y: &'a [f32],
    d_x: &'a mut [f32],
    mean: f32,
    rstd: f32,
}

/// The gradients of one row with a weight for each number; `d_weight` and `d_bias` are added to.
#[inline(always)]
fn backward_row<L: Lanes>(row: RowBack, weight: &[f32], d_weight: &mut [f32], d_bias: &mut [f32]) {
    let cols = row.x.len();
    let (m, r) = (L::splat(row.mean), L::splat(row.rstd));
    let (weight, weight_tail) = weight.as_chunks::<LANES>();
    let (d_weight, d_weight_tail) = d_weight.as_chunks_mut::<LANES>();
    let (d_bias, d_bias_tail) = d_bias.as_chunks_mut::<LANES>();
    let (x, x_tail) = row.x.as_chunks::<LANES>();
    let (d_y, d_y_tail) = row.d_y.as_chunks::<LANES>();
    let (d_x, d_x_tail) = row.d_x.as_chunks_mut::<LANES>();
    // a = sum(d_y w), b = sum(d_y w hat)
    let (mut a, mut b) = (L::zero(), L::zero());
    for u in 0..x.len() {
        let (hat, d) = (L::load(&x[u]).sub(m).mul(r), L::load(&d_y[u]));
        let scaled = d.mul(L::load(&weight[u]));
        a = a.add(scaled);
        b = scaled.mul_add(hat, b);
        d.mul_add(hat, L::load(&d_weight[u])).store(&mut d_weight[u]);
        d.add(L::load(&d_bias[u])).store(&mut d_bias[u]);
    }
    if !x_tail.is_empty() {
        // Lanes past the end: d is 0 there, so they add nothing.
        let (hat, d) = (L::load_part(x_tail).sub(m).mul(r), L::load_part(d_y_tail));
        let scaled = d.mul(L::load_part(weight_tail));
        a = a.add(scaled);
        b = scaled.mul_add(hat, b);
        d.mul_add(hat, L::load_part(d_weight_tail)).store_part(d_weight_tail);
        d.add(L::load_part(d_bias_tail)).store_part(d_bias_tail);
    }
    let a = L::splat(a.reduce_add() / cols as f32);
    let b = L::splat(b.reduce_add() / cols as f32);
    for u in 0..x.len() {
        let hat = L::load(&x[u]).sub(m).mul(r);
        let d = L::load(&d_y[u]).mul(L::load(&weight[u]));
        r.mul(hat.neg_mul_add(b, d.sub(a))).store(&mut d_x[u]);
    }
    if !x_tail.is_empty() {
        let hat = L::load_part(x_tail).sub(m).mul(r);
        let d = L::load_part(d_y_tail).mul(L::load_part(weight_tail));
        r.mul(hat.neg_mul_add(b, d.sub(a))).store_part(d_x_tail);
    }
}

/// The gradients of layer normalisation for some rows; `d_weight` and `d_bias` are added to.
pub(crate) struct LayerNormBackward<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub mean: &'a [f32],
    pub rstd: &'a [f32],
    pub d_y: &'a [f32],
    pub d_x: &'a mut [f32],
    pub d_weight: &'a mut [f32],
    pub d_bias: &'a mut [f32],
}

impl Body for LayerNormBackward<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let cols = self.weight.len();
        let rows = self.x.chunks_exact(cols).zip(self.d_y.chunks_exact(cols));
        let stats = self.mean.iter().zip(self.rstd);
        for (((x, d_y), d_x), (mean, rstd)) in rows.zip(self.d_x.chunks_exact_mut(cols)).zip(stats)
        {
            let row = RowBack { x, d_y, d_x, mean: *mean, rstd: *rstd };
            backward_row::<L>(row, self.weight, self.d_weight, self.d_bias);
        }
    }
}

/// Normalises rows, each of which is one group of channels of one element of the batch.
pub(crate) struct GroupNorm<'a> {
    pub x: &'a [f32],
    /// One for each channel, or (where `space` is 1) for each place of it.
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub y: &'a mut [f32],
    pub mean: &'a mut [f32],
    pub rstd: &'a mut [f32],
    pub eps: f32,
    /// Numbers that share a weight.
    pub space: usize,
    /// Weights of a group.
    pub channels: usize,
    /// The group of the first row.
    pub first: usize,
}

impl Body for GroupNorm<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let cols = self.channels * self.space;
        let groups = self.weight.len() / self.channels;
        let rows = self.x.chunks_exact(cols).zip(self.y.chunks_exact_mut(cols));
        for (r, ((x, y), (mean, rstd))) in rows.zip(self.mean.iter_mut().zip(self.rstd)).enumerate()
        {
            let at = (self.first + r) % groups * self.channels;
            let weight = &self.weight[at..at + self.channels];
            let bias = &self.bias[at..at + self.channels];
            (*mean, *rstd) = moments::<L>(x, self.eps);
            if self.space == 1 {
                scale_row::<L>(false, x, weight, bias, y, *mean, *rstd);
                continue;
            }
            let planes = x.chunks_exact(self.space).zip(y.chunks_exact_mut(self.space));
            for ((x, y), (weight, bias)) in planes.zip(weight.iter().zip(bias)) {
                let f = Scale { mean: *mean, rstd: *rstd, weight: *weight, bias: *bias };
                map::map_row::<L, _>(f, x, y);
            }
        }
    }
}

/// Sums of `d` and of `d * (x - mean) * rstd` over a plane.
#[inline(always)]
pub(crate) fn plane_sums<L: Lanes>(x: &[f32], d: &[f32], mean: f32, rstd: f32) -> (f64, f64) {
    let (m, r) = (L::splat(mean), L::splat(rstd));
    let (mut sum, mut dot) = (0.0, 0.0);
    for (x, d) in x.chunks(PIECE).zip(d.chunks(PIECE)) {
        let (x, x_tail) = x.as_chunks::<LANES>();
        let (d, d_tail) = d.as_chunks::<LANES>();
        let (mut sums, mut dots) = ([L::zero(); 2], [L::zero(); 2]);
        for (u, (x, d)) in x.iter().zip(d).enumerate() {
            let d = L::load(d);
            sums[u % 2] = sums[u % 2].add(d);
            dots[u % 2] = d.mul_add(L::load(x).sub(m).mul(r), dots[u % 2]);
        }
        if !x_tail.is_empty() {
            // Lanes past the end: d is 0 there, so they add nothing.
            let d = L::load_part(d_tail);
            sums[1] = sums[1].add(d);
            dots[1] = d.mul_add(L::load_part(x_tail).sub(m).mul(r), dots[1]);
        }
        sum += f64::from(sums[0].add(sums[1]).reduce_add());
        dot += f64::from(dots[0].add(dots[1]).reduce_add());
    }
    (sum, dot)
}

/// `d_x = rstd * (weight * d - a - hat * b)`
#[derive(Clone, Copy)]
pub(crate) struct Slope {
    pub mean: f32,
    pub rstd: f32,
    pub weight: f32,
    pub a: f32,
    pub b: f32,
}

impl map::Zip for Slope {
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L, d: L) -> L {
        let r = L::splat(self.rstd);
        let hat = x.sub(L::splat(self.mean)).mul(r);
        let d = d.mul(L::splat(self.weight)).sub(L::splat(self.a));
        r.mul(hat.neg_mul_add(L::splat(self.b), d))
    }
}

/// The gradient of rows of [`GroupNorm`].
pub(crate) struct GroupNormBackward<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub mean: &'a [f32],
    pub rstd: &'a [f32],
    pub d_y: &'a [f32],
    pub d_x: &'a mut [f32],
    /// Where `space` is 1: for each weight, added to. Else for each channel of each row, written.
    pub d_weight: &'a mut [f32],
    pub d_bias: &'a mut [f32],
    pub space: usize,
    pub channels: usize,
    pub first: usize,
}

impl Body for GroupNormBackward<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (channels, space) = (self.channels, self.space);
        let cols = channels * space;
        let groups = self.weight.len() / channels;
        let rows = self.x.chunks_exact(cols).zip(self.d_y.chunks_exact(cols));
        let stats = self.mean.iter().zip(self.rstd);
        for (r, (((x, d_y), d_x), (mean, rstd))) in
            rows.zip(self.d_x.chunks_exact_mut(cols)).zip(stats).enumerate()
        {
            let (mean, rstd) = (*mean, *rstd);
            let at = (self.first + r) % groups * channels;
            let weight = &self.weight[at..at + channels];
            if space == 1 {
                let (d_weight, d_bias) = (&mut *self.d_weight, &mut *self.d_bias);
                let row = RowBack { x, d_y, d_x, mean, rstd };
                let (d_weight, d_bias) =
                    (&mut d_weight[at..at + channels], &mut d_bias[at..at + channels]);
                backward_row::<L>(row, weight, d_weight, d_bias);
                continue;
            }
            let (mut a, mut b) = (0.0, 0.0);
            let at = r * channels;
            for (c, (x, d)) in x.chunks_exact(space).zip(d_y.chunks_exact(space)).enumerate() {
                let (sum, dot) = plane_sums::<L>(x, d, mean, rstd);
                a += sum * f64::from(weight[c]);
                b += dot * f64::from(weight[c]);
                (self.d_bias[at + c], self.d_weight[at + c]) = (sum as f32, dot as f32);
            }
            let (a, b) = ((a / cols as f64) as f32, (b / cols as f64) as f32);
            let planes = x.chunks_exact(space).zip(d_y.chunks_exact(space));
            for (((x, d), d_x), weight) in planes.zip(d_x.chunks_exact_mut(space)).zip(weight) {
                map::zip_row::<L, _>(Slope { mean, rstd, weight: *weight, a, b }, x, d, d_x);
            }
        }
    }
}
