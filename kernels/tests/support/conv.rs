//! Convolutions for tests.

use etude_kernels::conv::ConvShape;

/// One convolution in the words of PyTorch.
pub fn shape(
    (batch, channels_in, channels_out, groups): (usize, usize, usize, usize),
    input: [usize; 3],
    kernel: [usize; 3],
    stride: [usize; 3],
    padding: [usize; 3],
    dilation: [usize; 3],
) -> ConvShape {
    let output = [0, 1, 2].map(|a| {
        ConvShape::output_size(input[a], kernel[a], stride[a], padding[a], dilation[a])
            .expect("a kernel that fits")
    });
    ConvShape {
        batch,
        channels_in,
        channels_out,
        groups,
        input,
        output,
        kernel,
        stride,
        padding,
        dilation,
    }
}

/// A stride, a kernel, a dilation of nothing.
pub const ONE: [usize; 3] = [1; 3];
/// No padding.
pub const NONE: [usize; 3] = [0; 3];

/// Two axes: the sizes of the yardstick and what lies around them.
pub fn plane(
    channels: (usize, usize, usize, usize),
    input: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
) -> ConvShape {
    let wide = |x: [usize; 2], first: usize| [first, x[0], x[1]];
    shape(channels, wide(input, 1), wide(kernel, 1), wide(stride, 1), wide(padding, 0), ONE)
}
