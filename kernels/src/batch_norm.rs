//! Batch normalisation: each channel has the mean and the variance of the whole batch.
//!
//! Channels are cut for the threads, and a channel's bits depend on nothing but the channel.

use crate::cpu::batch_norm::{
    BatchNorm, BatchNormBackward, ChannelAffine, Long, MOST, Planes, Thin,
};
use crate::cpu::lanes::dispatch;
use crate::cpu::shared::{Shared, with_scratch};
use crate::elementwise::{CUT, rows_of_cut};
use crate::group_norm::widen;
use crate::threads::{parallel_for, threads};

/// Planes below this many numbers are worked on down the columns, not along.
const THIN: usize = 16;
/// Columns that a task has at least, so that it reads memory in runs: of thin planes, and of any whose
/// channel does not stay in cache from one pass to the next.
const COLUMNS: usize = 64;
const FAR_COLUMNS: usize = 256;

/// Runs `f` over channels, a part at a time.
fn over_channels(
    numbers: usize,
    channels: usize,
    space: usize,
    f: impl Fn(Planes, &mut [f32]) + Sync,
) {
    if numbers == 0 {
        return;
    }
    assert!(numbers.is_multiple_of(channels * space));
    let batch = numbers / (channels * space);
    let least = match space {
        // The longer the runs, the better: one task for each thread. It may have a say here, as a
        // channel does not depend on those beside it.
        _ if batch * space > CUT => FAR_COLUMNS.div_ceil(space).max(channels.div_ceil(threads())),
        ..THIN => COLUMNS.div_ceil(space),
        _ => 1,
    };
    let grain = (CUT / (batch * space)).max(least).min(MOST);
    parallel_for(channels, grain, |at| {
        let at = Planes { batch, channels, space, from: at.start, to: at.end };
        let columns = if space < THIN { (at.to - at.from) * space } else { 0 };
        with_scratch(6 * columns, |room| f(at, room));
    });
}

/// Computes `y = (x - mean) / sqrt(var + eps) * weight + bias` with the mean and the variance of each
/// channel over batch and space, which it writes: they are kept for the backward, and
/// [`update_statistics`] makes running ones of them. The variance is that of the batch, `/ n`.
///
/// # Shapes
/// `x`, `y` `[batch, channels, space]`; `weight`, `bias`, `mean`, `var` `[channels]`.
///
/// # Source
/// Ioffe & Szegedy 2015.
pub fn batch_norm_forward(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    y: &mut [f32],
    mean: &mut [f32],
    var: &mut [f32],
    eps: f32,
    space: usize,
) {
    let channels = weight.len();
    assert!(x.len() == y.len() && bias.len() == channels);
    assert!(mean.len() == channels && var.len() == channels);
    let (y, mean, var) = (Shared::new(y), Shared::new(mean), Shared::new(var));
    over_channels(x.len(), channels, space, |at, room| {
        let range = at.from..at.to;
        // SAFETY: each task has channels of its own.
        let (mean, var) = unsafe { (mean.slice(range.clone()), var.slice(range.clone())) };
        let (weight, bias) = (&weight[range.clone()], &bias[range]);
        let body = BatchNorm { x, weight, bias, y, mean, var, eps, at, room };
        if space < THIN { dispatch(Thin(body)) } else { dispatch(Long(body)) }
    });
}

/// Computes the gradients of [`batch_norm_forward`], through its statistics too; `d_weight` and
/// `d_bias` are added to.
///
/// # Shapes
/// `x`, `d_y`, `d_x` `[batch, channels, space]`; the others `[channels]`.
pub fn batch_norm_backward(
    x: &[f32],
    weight: &[f32],
    mean: &[f32],
    var: &[f32],
    d_y: &[f32],
    d_x: &mut [f32],
    d_weight: &mut [f32],
    d_bias: &mut [f32],
    eps: f32,
    space: usize,
) {
    let channels = weight.len();
    assert!(x.len() == d_y.len() && x.len() == d_x.len());
    assert!(mean.len() == channels && var.len() == channels);
    assert!(d_weight.len() == channels && d_bias.len() == channels);
    let d_x = Shared::new(d_x);
    let (d_weight, d_bias) = (Shared::new(d_weight), Shared::new(d_bias));
    over_channels(x.len(), channels, space, |at, room| {
        let range = at.from..at.to;
        // SAFETY: each task has channels of its own.
        let (d_weight, d_bias) =
            unsafe { (d_weight.slice(range.clone()), d_bias.slice(range.clone())) };
        let (weight, mean, var) = (&weight[range.clone()], &mean[range.clone()], &var[range]);
        let body =
            BatchNormBackward { x, weight, mean, var, d_y, d_x, d_weight, d_bias, eps, at, room };
        if space < THIN { dispatch(Thin(body)) } else { dispatch(Long(body)) }
    });
}

/// Moves running statistics towards those of a batch of `count` numbers a channel:
/// `running = (1 - momentum) * running + momentum * new`. The running variance is that of the
/// population, `/ (n - 1)`.
///
/// # Shapes
/// All `[channels]`.
pub fn update_statistics(
    mean: &[f32],
    var: &[f32],
    running_mean: &mut [f32],
    running_var: &mut [f32],
    count: usize,
    momentum: f32,
) {
    assert!(mean.len() == var.len() && mean.len() == running_mean.len());
    assert_eq!(running_mean.len(), running_var.len());
    // One number has no variance; it counts as the 0 that it is.
    let unbiased = count as f32 / count.saturating_sub(1).max(1) as f32;
    let blend = |old: &mut f32, new: f32| *old += momentum * (new - *old);
    running_mean.iter_mut().zip(mean).for_each(|(old, new)| blend(old, *new));
    running_var.iter_mut().zip(var).for_each(|(old, new)| blend(old, *new * unbiased));
}

/// Computes `y = x * scale + shift` with a scale and a shift for each channel, rounded once: what is
/// left of a batch normalisation when its statistics are given.
///
/// # Shapes
/// `x`, `y` `[batch, channels, space]`; `scale`, `shift` `[channels]`.
pub fn channel_affine_forward(
    x: &[f32],
    scale: &[f32],
    shift: &[f32],
    y: &mut [f32],
    space: usize,
) {
    let channels = scale.len();
    assert!(x.len() == y.len() && shift.len() == channels);
    if x.is_empty() {
        return;
    }
    let row = channels * space;
    assert!(x.len().is_multiple_of(row));
    let y = Shared::new(y);
    let run = |scale: &[f32], shift: &[f32], space: usize| {
        parallel_for(x.len() / row, rows_of_cut(row), |rows| {
            let at = rows.start * row..rows.end * row;
            // SAFETY: pieces do not overlap.
            let y = unsafe { y.slice(at.clone()) };
            dispatch(ChannelAffine { x: &x[at], scale, shift, y, space });
        });
    };
    if space >= THIN || space == 1 {
        return run(scale, shift, space);
    }
    with_scratch(2 * row, |room| {
        let (wide_scale, wide_shift) = room.split_at_mut(row);
        widen(scale, wide_scale, space);
        widen(shift, wide_shift, space);
        run(wide_scale, wide_shift, 1);
    });
}
