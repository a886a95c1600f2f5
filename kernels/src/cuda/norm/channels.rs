//! Batch and group normalisation of `[batch, channels, space]`. Source: `kernels/cuda/channels.cu`.

use super::Moments;
use crate::cuda::rows::reduce::{sum_axis, sum_axis_scratch};
use crate::cuda::{Args, Error, Gpu, Launch};

/// Sizes of a normalisation of channels, f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planes {
    /// Elements of the batch.
    pub batch: usize,
    /// Channels in all.
    pub channels: usize,
    /// Numbers of one channel of one element.
    pub space: usize,
    /// Groups that the channels are parted into; 0: each channel is normalised over the batch.
    pub groups: usize,
}

impl Planes {
    fn planes(self) -> usize {
        self.batch * self.channels
    }

    fn len(self) -> usize {
        self.planes() * self.space
    }

    /// Channels of a group; 0 for batch normalisation.
    fn per(self) -> usize {
        self.channels.checked_div(self.groups).unwrap_or(0)
    }

    /// Number of means: of channels, or of groups of elements.
    pub fn statistics(self) -> usize {
        if self.groups == 0 { self.channels } else { self.batch * self.groups }
    }

    /// Where the planes of a statistic lie: its first one for each statistic before, the way from one
    /// plane to the next, and how many there are.
    fn members(self) -> [usize; 3] {
        match self.groups {
            0 => [1, self.channels, self.batch],
            _ => [self.per(), 1, self.per()],
        }
    }

    /// Threads that work on one plane.
    fn lanes(self) -> usize {
        match self.space {
            ..16 => 1,
            16..4096 => 32,
            _ => 256,
        }
    }

    fn over_planes(self) -> Launch {
        Launch::linear((self.planes() * self.lanes()).div_ceil(256) as u32, 256).shared(128)
    }

    fn over_statistics(self) -> Launch {
        Launch::linear(self.statistics().div_ceil(4) as u32, 128)
    }

    /// A thread for four numbers each, twice.
    fn over_numbers(self, gpu: &dyn Gpu) -> Launch {
        let blocks = self.len().div_ceil(2048).min(16 * gpu.properties().sms as usize);
        Launch::linear(blocks.max(1) as u32, 256)
    }
}

/// Bytes of the scratch memory that the functions of this module want.
pub fn channel_norm_scratch(gpu: &dyn Gpu, s: Planes) -> usize {
    let sums = 2 * s.planes() * 4 + 2 * s.statistics() * 4;
    sums.next_multiple_of(16) + sum_axis_scratch(gpu, 1, s.batch, s.channels)
}

/// Computes `y = (x - mean) / sqrt(var + eps) * weight + bias`.
///
/// `moments.rstd` takes the variance for batch normalisation, as on the CPU, and one over the deviation
/// for group normalisation.
///
/// # Shapes
/// `x`, `y` `[batch, channels, space]`; `weight`, `bias` `[channels]`; moments
/// `[s.statistics()]`; `scratch` [`channel_norm_scratch`] bytes.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
///
/// # Source
/// Ioffe & Szegedy 2015; Wu & He 2018.
pub fn channel_norm_forward(
    gpu: &dyn Gpu,
    x: u64,
    weight: u64,
    bias: u64,
    y: u64,
    moments: Moments,
    eps: f32,
    scratch: u64,
    s: Planes,
) -> Result<(), Error> {
    if s.len() == 0 {
        return Ok(());
    }
    let (bytes, plane_bytes) = (s.len() * 4, s.planes() * 4);
    let m2 = scratch + plane_bytes as u64;
    let args = Args::new().span(x, bytes).span(scratch, plane_bytes).span(m2, plane_bytes);
    let args = args.i64(s.planes() as i64).i64(s.space as i64).i32(s.lanes() as i32);
    // SAFETY: the kernel takes x, mean, m2, planes, space, lanes and touches two numbers for each plane.
    unsafe { gpu.launch("plane_moments_f32", &s.over_planes(), &args) }?;
    let (statistics, [first, stride, count]) = (s.statistics(), s.members());
    let args = Args::new().span(scratch, plane_bytes).span(m2, plane_bytes);
    let args = args.span(moments.mean, statistics * 4).span(moments.rstd, statistics * 4);
    let args = args.i64(statistics as i64).i64(first as i64).i64(stride as i64);
    let args = args.i64(count as i64).i64(s.space as i64);
    let args = args.f32(if s.groups == 0 { -1.0 } else { eps });
    // SAFETY: the kernel takes the planes' moments, mean, spread, statistics, first, stride, count, space,
    // eps; planes `k first + j stride` are all planes.
    unsafe { gpu.launch("join_moments", &s.over_statistics(), &args) }?;
    let args = Args::new().span(x, bytes).span(weight, s.channels * 4).span(bias, s.channels * 4);
    let args = args.span(y, bytes).span(moments.mean, statistics * 4);
    let args = args.span(moments.rstd, statistics * 4).f32(eps).i64(s.len() as i64);
    let args = args.i64(s.channels as i64).i64(s.space as i64).i64(s.per() as i64);
    // SAFETY: the kernel takes x, weight, bias, y, mean, spread, eps, n, channels, space, per and touches
    // what their shapes say.
    unsafe { gpu.launch("channel_norm_f32", &s.over_numbers(gpu), &args) }
}

/// Computes the gradients of [`channel_norm_forward`], through its statistics too; `d_weight` and
/// `d_bias` are added to.
///
/// # Shapes
/// As there; `d_y`, `d_x` as `x`; `d_weight`, `d_bias` `[channels]`.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn channel_norm_backward(
    gpu: &dyn Gpu,
    x: u64,
    weight: u64,
    moments: Moments,
    d: super::Gradients,
    eps: f32,
    scratch: u64,
    s: Planes,
) -> Result<(), Error> {
    if s.len() == 0 {
        return Ok(());
    }
    let (bytes, statistics) = (s.len() * 4, s.statistics());
    let sum_bytes = 2 * s.planes() * 4;
    let args = Args::new().span(x, bytes).span(moments.mean, statistics * 4);
    let args = args.span(moments.rstd, statistics * 4).span(d.d_y, bytes).span(scratch, sum_bytes);
    let args = args.f32(eps).i64(s.planes() as i64).i64(s.channels as i64).i64(s.space as i64);
    let args = args.i64(s.per() as i64).i32(s.lanes() as i32);
    // SAFETY: the kernel takes x, mean, spread, d_y, sums, eps, planes, channels, space, per, lanes and
    // touches two sums for each plane.
    unsafe { gpu.launch("plane_sums_f32", &s.over_planes(), &args) }?;
    let means = scratch + sum_bytes as u64;
    let [first, stride, count] = s.members();
    let args = Args::new().span(scratch, sum_bytes).span(weight, s.channels * 4);
    let args = args.span(means, 2 * statistics * 4).span(d.d_weight, s.channels * 4);
    let args = args.span(d.d_bias, s.channels * 4).i64(statistics as i64).i64(first as i64);
    let args = args.i64(stride as i64).i64(count as i64).i64(s.planes() as i64);
    let args = args.i64(s.space as i64).i64(s.channels as i64).i64(s.per() as i64);
    // SAFETY: the kernel takes sums, weight, means, d_weight, d_bias, statistics, first, stride, count,
    // planes, space, channels, per; planes `k first + j stride` are all planes.
    unsafe { gpu.launch("join_sums", &s.over_statistics(), &args) }?;
    let args = Args::new().span(x, bytes).span(weight, s.channels * 4);
    let args = args.span(moments.mean, statistics * 4).span(moments.rstd, statistics * 4);
    let args = args.span(d.d_y, bytes).span(d.d_x, bytes).span(means, 2 * statistics * 4).f32(eps);
    let args = args.i64(s.len() as i64).i64(s.channels as i64).i64(s.space as i64);
    let args = args.i64(s.per() as i64).i64(statistics as i64);
    // SAFETY: the kernel takes x, weight, mean, spread, d_y, d_x, means, eps, n, channels, space, per,
    // statistics and touches what their shapes say.
    unsafe { gpu.launch("channel_norm_backward_f32", &s.over_numbers(gpu), &args) }?;
    if s.groups == 0 {
        return Ok(());
    }
    // Each element of the batch has its share in the gradients of a channel.
    let rest = scratch + (sum_bytes + 2 * statistics * 4).next_multiple_of(16) as u64;
    let dots = scratch + (s.planes() * 4) as u64;
    sum_axis(gpu, dots, d.d_weight, 1, s.batch, s.channels, true, rest)?;
    sum_axis(gpu, scratch, d.d_bias, 1, s.batch, s.channels, true, rest)
}

/// Computes `y = x * scale + shift` with a scale and a shift for each channel.
///
/// # Shapes
/// `x`, `y` `[batch, channels, space]`; `scale`, `shift` `[channels]`.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn channel_affine_forward(
    gpu: &dyn Gpu,
    x: u64,
    scale: u64,
    shift: u64,
    y: u64,
    s: Planes,
) -> Result<(), Error> {
    if s.len() == 0 {
        return Ok(());
    }
    let args = Args::new().span(x, s.len() * 4).span(scale, s.channels * 4);
    let args = args.span(shift, s.channels * 4).span(y, s.len() * 4);
    let args = args.i64(s.len() as i64).i64(s.channels as i64).i64(s.space as i64);
    // SAFETY: the kernel takes x, scale, shift, y, n, channels, space and touches what their shapes say.
    unsafe { gpu.launch("channel_affine_f32", &s.over_numbers(gpu), &args) }
}

/// Moves running statistics towards those of a batch of `count` numbers a channel:
/// `running = (1 - momentum) * running + momentum * new`. The running variance is that of the
/// population, `/ (n - 1)`.
///
/// # Shapes
/// All `[channels]`.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn update_statistics(
    gpu: &dyn Gpu,
    mean: u64,
    var: u64,
    running_mean: u64,
    running_var: u64,
    channels: usize,
    count: usize,
    momentum: f32,
) -> Result<(), Error> {
    // One number has no variance; it counts as the 0 that it is.
    let unbiased = count as f32 / count.saturating_sub(1).max(1) as f32;
    let bytes = channels * 4;
    let args = Args::new().span(mean, bytes).span(var, bytes).span(running_mean, bytes);
    let args = args.span(running_var, bytes).i64(channels as i64).f32(unbiased).f32(momentum);
    let launch = Launch::linear(channels.div_ceil(128).max(1) as u32, 128);
    // SAFETY: the kernel takes mean, var, running_mean, running_var, count, unbiased, momentum and touches
    // `count` numbers of each.
    unsafe { gpu.launch("update_statistics_f32", &launch, &args) }
}

/// The simplest form, for comparison: a thread a statistic.
///
/// # Shapes
/// As in [`channel_norm_forward`].
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn channel_norm_forward_plain(
    gpu: &dyn Gpu,
    x: u64,
    weight: u64,
    bias: u64,
    y: u64,
    moments: Moments,
    eps: f32,
    s: Planes,
) -> Result<(), Error> {
    let (statistics, [first, stride, count]) = (s.statistics(), s.members());
    let args = Args::new().span(x, s.len() * 4).span(weight, s.channels * 4);
    let args = args.span(bias, s.channels * 4).span(y, s.len() * 4);
    let args = args.span(moments.mean, statistics * 4).span(moments.rstd, statistics * 4).f32(eps);
    let args = args.i64(statistics as i64).i64(first as i64).i64(stride as i64);
    let args = args.i64(count as i64).i64(s.channels as i64).i64(s.space as i64);
    let launch = Launch::linear(statistics.div_ceil(128) as u32, 128);
    // SAFETY: the kernel takes x, weight, bias, y, mean, spread, eps, statistics, first, stride, planes,
    // channels, space, per; planes `k first + j stride` are all planes.
    unsafe { gpu.launch("channel_norm_forward_plain", &launch, &args.i64(s.per() as i64)) }
}
