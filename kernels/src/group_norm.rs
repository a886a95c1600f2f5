//! Group normalisation of images and sequences: the channels of a group share mean and variance.
//!
//! A group of one element of the batch is one stretch of memory; its later passes find it in cache.

use crate::cpu::lanes::dispatch;
use crate::cpu::norm::{GroupNorm, GroupNormBackward};
use crate::cpu::shared::{Shared, with_scratch};
use crate::elementwise::{axpy, rows_of_cut, sum_cols};
use crate::threads::parallel_for;

/// Planes below this many numbers take a copy of their channel's weight for each number: vectors then
/// run on over the borders of planes.
const THIN: usize = 16;

/// Sizes of a group normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    /// Channels in all.
    pub channels: usize,
    /// Groups that they are parted into.
    pub groups: usize,
    /// Numbers of one channel of one element of the batch.
    pub space: usize,
}

impl Groups {
    /// Numbers in one group of one element of the batch.
    fn row(self) -> usize {
        self.channels / self.groups * self.space
    }

    fn check(self, x: usize, rows: usize, weight: usize) {
        assert!(self.groups > 0 && self.channels.is_multiple_of(self.groups));
        assert!(weight == self.channels && x == rows * self.row());
        assert!(rows.is_multiple_of(self.groups));
    }
}

/// Repeats each number of `x` for the `space` places of its channel.
pub(crate) fn widen(x: &[f32], wide: &mut [f32], space: usize) {
    wide.chunks_exact_mut(space).zip(x).for_each(|(wide, x)| wide.fill(*x));
}

/// Adds up the places of each channel.
fn narrow(wide: &[f32], x: &mut [f32], space: usize) {
    wide.chunks_exact(space).zip(x).for_each(|(wide, x)| *x += wide.iter().sum::<f32>());
}

/// Computes `y = (x - mean) / sqrt(var + eps) * weight + bias`, mean and variance being those of a
/// group of channels of one element of the batch.
///
/// # Shapes
/// `x`, `y` `[batch, channels, space]`; `weight`, `bias` `[channels]`; `mean`, `rstd`
/// `[batch, groups]`, kept for the backward.
///
/// # Source
/// Wu & He 2018.
pub fn group_norm_forward(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    y: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
    eps: f32,
    s: Groups,
) {
    s.check(x.len(), mean.len(), weight.len());
    assert!(y.len() == x.len() && bias.len() == weight.len() && rstd.len() == mean.len());
    if x.is_empty() {
        return;
    }
    let (cols, rows) = (s.row(), mean.len());
    let (y, mean, rstd) = (Shared::new(y), Shared::new(mean), Shared::new(rstd));
    let run = |weight: &[f32], bias: &[f32], space: usize| {
        let channels = cols / space;
        parallel_for(rows, rows_of_cut(cols), |rows| {
            let at = rows.start * cols..rows.end * cols;
            let first = rows.start;
            // SAFETY: pieces do not overlap.
            let (y, mean, rstd) =
                unsafe { (y.slice(at.clone()), mean.slice(rows.clone()), rstd.slice(rows)) };
            let x = &x[at];
            dispatch(GroupNorm { x, weight, bias, y, mean, rstd, eps, space, channels, first });
        });
    };
    if s.space >= THIN || s.space == 1 {
        return run(weight, bias, s.space);
    }
    let wide = s.channels * s.space;
    with_scratch(2 * wide, |room| {
        let (wide_weight, wide_bias) = room.split_at_mut(wide);
        widen(weight, wide_weight, s.space);
        widen(bias, wide_bias, s.space);
        run(wide_weight, wide_bias, 1);
    });
}

/// Computes the gradients of group normalisation; `d_weight` and `d_bias` are added to.
///
/// # Shapes
/// As in [`group_norm_forward`]; `d_x`, `d_y` as `x`; `d_weight`, `d_bias` `[channels]`.
pub fn group_norm_backward(
    x: &[f32],
    weight: &[f32],
    mean: &[f32],
    rstd: &[f32],
    d_y: &[f32],
    d_x: &mut [f32],
    d_weight: &mut [f32],
    d_bias: &mut [f32],
    s: Groups,
) {
    s.check(x.len(), mean.len(), weight.len());
    assert!(d_y.len() == x.len() && d_x.len() == x.len() && rstd.len() == mean.len());
    assert!(d_weight.len() == s.channels && d_bias.len() == s.channels);
    if x.is_empty() {
        return;
    }
    let (cols, rows) = (s.row(), mean.len());
    let d_x = Shared::new(d_x);
    // Rows `rows` with their sums, which lie in `d_weight` and `d_bias`.
    let run = |rows: std::ops::Range<usize>,
               weight: &[f32],
               d_weight: &mut [f32],
               d_bias: &mut [f32],
               space: usize| {
        let at = rows.start * cols..rows.end * cols;
        let (channels, first) = (cols / space, rows.start);
        // SAFETY: callers keep their rows apart.
        let d_x = unsafe { d_x.slice(at.clone()) };
        let (x, d_y) = (&x[at.clone()], &d_y[at]);
        let (mean, rstd) = (&mean[rows.clone()], &rstd[rows]);
        dispatch(GroupNormBackward {
            x,
            weight,
            mean,
            rstd,
            d_y,
            d_x,
            d_weight,
            d_bias,
            space,
            channels,
            first,
        });
    };
    if s.space >= THIN {
        // Each row has places of its own for the sums of its channels.
        let channels = s.channels / s.groups;
        return with_scratch(2 * rows * channels, |sums| {
            let (weights, biases) = sums.split_at_mut(rows * channels);
            let (shared_weights, shared_biases) = (Shared::new(weights), Shared::new(biases));
            parallel_for(rows, rows_of_cut(cols), |rows| {
                let place = rows.start * channels..rows.end * channels;
                // SAFETY: pieces do not overlap.
                let (d_weight, d_bias) =
                    unsafe { (shared_weights.slice(place.clone()), shared_biases.slice(place)) };
                run(rows, weight, d_weight, d_bias, s.space);
            });
            sum_cols(weights, d_weight, true);
            sum_cols(biases, d_bias, true);
        });
    }
    // At most 32 parts of the batch, each with sums of its own, added in order at the end.
    let (batch, wide) = (rows / s.groups, s.channels * s.space);
    let grain = rows_of_cut(wide).max(batch.div_ceil(32));
    let parts = batch.div_ceil(grain);
    with_scratch((2 * parts + 1) * wide, |room| {
        let (wide_weight, sums) = room.split_at_mut(wide);
        widen(weight, wide_weight, s.space);
        let wide_weight = &*wide_weight;
        sums.fill(0.0);
        let shared = Shared::new(sums);
        parallel_for(batch, grain, |at| {
            let place = at.start / grain * 2 * wide;
            // SAFETY: each part has a place of its own.
            let sums = unsafe { shared.slice(place..place + 2 * wide) };
            let (d_weight, d_bias) = sums.split_at_mut(wide);
            run(at.start * s.groups..at.end * s.groups, wide_weight, d_weight, d_bias, 1);
        });
        let (first, rest) = sums.split_at_mut(2 * wide);
        rest.chunks_exact(2 * wide).for_each(|part| axpy(1.0, part, first));
        narrow(&first[..wide], d_weight, s.space);
        narrow(&first[wide..], d_bias, s.space);
    });
}
