//! Convolution over one to three axes, its transpose, and all their gradients.
//!
//! `y[b][o][q] = bias[o] + sum over i, t of w[o][i][t] * x[b][i][stride q + dilation t - padding]`
//!
//! Three sums are all there is: the forward, the gradient of the data and that of the filter. The
//! transposed convolution is the gradient of the data of a mirrored one (`input` and `output` change
//! places), so its own gradients are the other two; derivatives of any order stay among the three.
//!
//! All are products of matrices, one of them an image that is unrolled in thought only: a table of
//! offsets says where a position lies, another where a tap lies (`conv/tile.rs`). Channels of the
//! result are vector lanes, so strides, dilation and thin images cost nothing extra.
//!
//! Results have the same bits for any number of threads: a sum runs over channels and taps (over
//! samples and positions in the gradient of the filter) in one order, wherever the work is cut.
//!
//! # Source
//! Chellapilla, Puri & Simard 2006, "High performance convolutional neural networks", for the product;
//! Dukhan 2019, "The indirect convolution algorithm", for offsets instead of unrolling.

/// Names the code of each size of tile: `$name(rows, vectors, tile)`. Fewer vectors are for the end of
/// a run.
macro_rules! by_size {
    ($name:ident, $tile:ident, $($r:literal: $($v:literal)+;)+) => {
        /// Picks the code for a tile's size.
        ///
        /// # Safety
        /// As `body`; this CPU has the tier's instructions.
        unsafe fn $name(rows: usize, vectors: usize, t: &Tile) {
            match (rows, vectors) {
                // SAFETY: the caller vouches for the CPU and for `t`.
                $($(($r, $v) => unsafe { $tile::<$r, $v>(t) },)+)+
                _ => unreachable!("no tile of {rows} rows and {vectors} vectors"),
            }
        }
    };
}

mod axis;
mod filter;
mod image;
mod product;
mod room;
mod store;
mod strip;
mod tile;

use crate::cpu::shared::Shared;
use crate::threads::parallel_for;

/// Sizes of a convolution. Fewer than three axes are three with sizes of 1 in front.
///
/// For a transposed convolution these are the sizes of the convolution that it transposes: its
/// `channels_out` and `output` are what the transposed one reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvShape {
    /// Number of samples.
    pub batch: usize,
    /// Channels of the input.
    pub channels_in: usize,
    /// Channels of the output.
    pub channels_out: usize,
    /// Independent parts that both kinds of channels are cut into.
    pub groups: usize,
    /// Size of the input along each axis.
    pub input: [usize; 3],
    /// Size of the output along each axis.
    pub output: [usize; 3],
    /// Size of the kernel along each axis.
    pub kernel: [usize; 3],
    /// Input places from one output place to the next.
    pub stride: [usize; 3],
    /// Zeros in thought before and after the input.
    pub padding: [usize; 3],
    /// Input places from one tap to the next.
    pub dilation: [usize; 3],
}

impl ConvShape {
    /// Size of the output along one axis: `None` if the kernel does not fit into the padded input, or
    /// a size is 0 that must not be, or out of range.
    pub fn output_size(
        input: usize,
        kernel: usize,
        stride: usize,
        padding: usize,
        dilation: usize,
    ) -> Option<usize> {
        let wide = padding.checked_mul(2)?.checked_add(input)?;
        let reach = kernel.checked_sub(1)?.checked_mul(dilation)?.checked_add(1)?;
        if stride == 0 || dilation == 0 || wide > isize::MAX as usize / 2 {
            return None;
        }
        Some(wide.checked_sub(reach)? / stride + 1)
    }

    /// Elements of `x`.
    pub fn x_len(&self) -> usize {
        self.batch * self.channels_in * self.input.iter().product::<usize>()
    }

    /// Elements of `w`.
    pub fn w_len(&self) -> usize {
        self.channels_out * (self.channels_in / self.groups) * self.kernel.iter().product::<usize>()
    }

    /// Elements of `y`.
    pub fn y_len(&self) -> usize {
        self.batch * self.channels_out * self.output.iter().product::<usize>()
    }

    /// Channels of the input and of the output in a group.
    fn group_channels(&self) -> (usize, usize) {
        (self.channels_in / self.groups, self.channels_out / self.groups)
    }

    /// Asserts that the sizes make sense and the arrays have them.
    fn check(&self, x: usize, w: usize, y: usize) {
        assert!(self.groups > 0 && self.channels_in.is_multiple_of(self.groups));
        assert!(self.channels_out.is_multiple_of(self.groups));
        for a in 0..3 {
            let most = ConvShape::output_size(
                self.input[a],
                self.kernel[a],
                self.stride[a],
                self.padding[a],
                self.dilation[a],
            );
            assert!(most.is_some_and(|most| self.output[a] <= most), "conv: {self:?}");
        }
        assert_eq!((x, w, y), (self.x_len(), self.w_len(), self.y_len()), "conv: lengths");
    }
}

/// Computes a convolution.
///
/// # Shapes
/// `x` `[batch, channels_in, d, h, w]`, `w` `[channels_out, channels_in / groups, kd, kh, kw]`,
/// `bias` `[channels_out]`, `y` `[batch, channels_out, d', h', w']`.
///
/// # Panics
/// If a length disagrees with `shape`, or `output` is larger than the sizes allow.
pub fn conv_forward(x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32], shape: &ConvShape) {
    shape.check(x.len(), w.len(), y.len());
    assert!(bias.is_none_or(|bias| bias.len() == shape.channels_out));
    let shape = axis::folded(shape);
    product::compute(&shape, false, x, w, bias, y);
}

/// Computes the gradient of the data: the transposed convolution of `d_y`, plus `bias` if there is one.
///
/// # Shapes
/// As in [`conv_forward`]: `d_y` as `y`, `d_x` as `x`; `bias` `[channels_in]`.
///
/// # Panics
/// As [`conv_forward`].
pub fn conv_data_backward(
    d_y: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    d_x: &mut [f32],
    shape: &ConvShape,
) {
    shape.check(d_x.len(), w.len(), d_y.len());
    assert!(bias.is_none_or(|bias| bias.len() == shape.channels_in));
    let shape = axis::folded(shape);
    product::compute(&shape, true, d_y, w, bias, d_x);
}

/// Computes the gradient of the filter and, if it is wanted, of the bias.
///
/// # Shapes
/// As in [`conv_forward`]: `d_y` as `y`, `d_w` as `w`; `d_bias` `[channels_out]`.
///
/// # Panics
/// As [`conv_forward`].
pub fn conv_filter_backward(
    x: &[f32],
    d_y: &[f32],
    d_w: &mut [f32],
    d_bias: Option<&mut [f32]>,
    shape: &ConvShape,
) {
    shape.check(x.len(), d_w.len(), d_y.len());
    assert!(d_bias.as_ref().is_none_or(|bias| bias.len() == shape.channels_out));
    filter::compute(&axis::folded(shape), x, d_y, d_w, d_bias);
}

/// Computes a transposed convolution. `shape` is that of the convolution whose transpose it is.
///
/// # Shapes
/// `x` `[batch, channels_out, d', h', w']`, `w` `[channels_out, channels_in / groups, kd, kh, kw]`,
/// `bias` `[channels_in]`, `y` `[batch, channels_in, d, h, w]`, in the words of `shape`.
///
/// # Panics
/// As [`conv_forward`].
pub fn conv_transpose_forward(
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
    shape: &ConvShape,
) {
    conv_data_backward(x, w, bias, y, shape);
}

/// Computes the gradients of a transposed convolution: of its data (which is [`conv_forward`]), its
/// filter and its bias.
///
/// # Shapes
/// As in [`conv_transpose_forward`].
///
/// # Panics
/// As [`conv_forward`].
pub fn conv_transpose_backward(
    x: &[f32],
    w: &[f32],
    d_y: &[f32],
    d_x: &mut [f32],
    d_w: &mut [f32],
    d_bias: &mut [f32],
    shape: &ConvShape,
) {
    conv_forward(d_y, w, None, d_x, shape);
    conv_filter_backward(d_y, x, d_w, None, shape);
    bias_backward(d_y, d_bias, shape.input.iter().product());
}

/// Sums `d_y` over samples and places.
///
/// # Shapes
/// `d_y` `[batch, channels, places]`, `d_bias` `[channels]`.
///
/// # Panics
/// If the lengths disagree.
pub fn bias_backward(d_y: &[f32], d_bias: &mut [f32], places: usize) {
    let channels = d_bias.len();
    if channels * places == 0 {
        return d_bias.fill(0.0);
    }
    assert!(d_y.len().is_multiple_of(channels * places));
    let d_bias = Shared::new(d_bias);
    parallel_for(channels, 1, |range| {
        // SAFETY: pieces do not overlap.
        let d_bias = unsafe { d_bias.slice(range.clone()) };
        for (channel, sum) in range.zip(d_bias) {
            let rows = d_y.chunks_exact(channels * places);
            let rows = rows.map(|sample| &sample[channel * places..(channel + 1) * places]);
            *sum = rows.map(|row| f64::from(store::sum(row))).sum::<f64>() as f32;
        }
    });
}
