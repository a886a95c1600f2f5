//! How a sum over kernel positions ("taps") walks through its source, axis by axis.
//!
//! A convolution and its data gradient are one thing here: position `q` of a grid sums
//! `src[step * q + from(tap)] * w[kernel(tap)]` over the taps, and both maps are arithmetic
//! progressions. Inputs of a convolution with stride `s` whose places have the same remainder meet the
//! same taps; each such class is a convolution with step 1 over the gradient of the output, because
//! `output = (input + padding - tap * dilation) / s`.
//!
//! Where all classes meet the same source places they may become vector lanes beside each other
//! ("merged").

use super::ConvShape;

/// The grid of positions along one axis.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    /// Size of the source.
    pub size: usize,
    /// From the source place of one position to that of the next.
    pub step: usize,
    /// First position.
    pub first: isize,
    /// Number of positions.
    pub count: usize,
    /// Lowest and highest source place of any tap, relative to `step * position`.
    pub reach: (isize, isize),
    /// Classes that are computed one after the other.
    pub classes: usize,
    /// Classes that are computed side by side: neighbours in the result.
    pub merged: usize,
    /// Result place of position 0.
    pub start: isize,
    /// Size of the result.
    pub out: usize,
}

/// What the positions of one class meet along one axis.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taps {
    /// Number of taps.
    pub count: usize,
    /// Source place of the first, relative to `step * position`, and from one to the next.
    pub from: (isize, isize),
    /// Kernel index of tap `t` for merged class `m`: `a + b t + c m`.
    kernel: (usize, usize, usize),
}

impl Taps {
    /// The kernel index of tap `t` for merged class `m`.
    pub(super) fn kernel(&self, t: usize, m: usize) -> usize {
        self.kernel.0 + self.kernel.1 * t + self.kernel.2 * m
    }

    /// The lowest and the highest source place.
    fn reach(&self) -> (isize, isize) {
        let last = self.from.0 + self.from.1 * (self.count.max(1) - 1) as isize;
        (self.from.0.min(last), self.from.0.max(last))
    }
}

/// How one axis is walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The forward.
    Forward,
    /// The data gradient, class after class.
    Classes,
    /// The data gradient, all classes side by side: see [`Way::can_merge`].
    Merged,
}

impl Way {
    /// Whether all classes of axis `a` meet the same source places.
    pub(super) fn can_merge(shape: &ConvShape, a: usize) -> bool {
        shape.stride[a] > 1
            && shape.dilation[a] == 1
            && shape.kernel[a].is_multiple_of(shape.stride[a])
    }

    /// The grid along axis `a`.
    pub(super) fn axis(self, shape: &ConvShape, a: usize) -> Axis {
        let (input, output) = (shape.input[a], shape.output[a]);
        let (stride, padding) = (shape.stride[a], shape.padding[a]);
        let axis = |merged: usize, classes: usize| Axis {
            size: output,
            step: 1,
            first: 0,
            count: input.div_ceil(classes * merged),
            reach: (0, 0),
            classes,
            merged,
            start: 0,
            out: input,
        };
        let mut axis = match self {
            Way::Forward => {
                Axis { size: input, step: stride, count: output, out: output, ..axis(1, 1) }
            }
            Way::Classes => axis(1, stride.min(input.max(1))),
            Way::Merged => {
                let first = padding / stride;
                let end = if input == 0 { first } else { (input - 1 + padding) / stride + 1 };
                Axis {
                    first: first as isize,
                    count: end - first,
                    start: -(padding as isize),
                    ..axis(stride, 1)
                }
            }
        };
        let reach = (0..axis.classes).map(|class| self.taps(shape, a, class));
        let reach = reach.filter(|taps| taps.count > 0).map(|taps| taps.reach());
        axis.reach = reach.reduce(|x, y| (x.0.min(y.0), x.1.max(y.1))).unwrap_or((0, 0));
        axis
    }

    /// The taps of one class along axis `a`.
    pub(super) fn taps(self, shape: &ConvShape, a: usize, class: usize) -> Taps {
        let (kernel, stride) = (shape.kernel[a], shape.stride[a]);
        let (padding, dilation) = (shape.padding[a], shape.dilation[a]);
        match self {
            Way::Forward => Taps {
                count: kernel,
                from: (-(padding as isize), dilation as isize),
                kernel: (0, 1, 0),
            },
            Way::Merged => Taps { count: kernel / stride, from: (0, -1), kernel: (0, stride, 1) },
            Way::Classes => {
                let place = class + padding;
                // Taps with `tap * dilation = place` modulo the stride.
                let common = gcd(stride, dilation);
                let every = stride / common;
                let meets = |tap: &usize| tap * dilation % stride == place % stride;
                let Some(tap) = (0..every.min(kernel)).find(meets) else {
                    return Taps { count: 0, from: (0, 0), kernel: (0, 0, 0) };
                };
                let first = (place as isize - (tap * dilation) as isize) / stride as isize;
                Taps {
                    count: (kernel - tap).div_ceil(every),
                    from: (first, -((dilation / common) as isize)),
                    kernel: (tap, every, 0),
                }
            }
        }
    }
}
impl Axis {
    /// From the result place of one position to that of the next.
    pub(super) fn scale(&self) -> usize {
        self.classes * self.merged
    }

    /// Whether every tap of every position lies in the source.
    pub(super) fn is_inside(&self) -> bool {
        let (low, high) = self.reach;
        let step = self.step as isize;
        let last = self.first + self.count as isize - 1;
        self.count == 0 || step * self.first + low >= 0 && step * last + high < self.size as isize
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The same convolution with fewer, longer axes: neighbours that nothing slides along become one,
/// and axes of one place move to the front, where they cost nothing.
pub(super) fn folded(shape: &ConvShape) -> ConvShape {
    let mut axes: [(usize, usize, usize, usize, usize, usize); 3] = [(1, 1, 1, 1, 0, 1); 3];
    let mut kept = 0;
    for a in 0..3 {
        let axis = (
            shape.input[a],
            shape.output[a],
            shape.kernel[a],
            // One output never steps; one tap is never dilated.
            if shape.output[a] == 1 && shape.padding[a] == 0 && shape.input[a] == shape.kernel[a] {
                shape.kernel[a]
            } else {
                shape.stride[a]
            },
            shape.padding[a],
            if shape.kernel[a] == 1 { 1 } else { shape.dilation[a] },
        );
        let flat = |axis: &(usize, usize, usize, usize, usize, usize)| {
            axis.2 == 1 && axis.3 == 1 && axis.4 == 0 && axis.0 == axis.1
        };
        if flat(&axis) && kept > 0 && flat(&axes[kept - 1]) {
            axes[kept - 1].0 *= axis.0;
            axes[kept - 1].1 *= axis.1;
        } else if !(flat(&axis) && axis.0 == 1) {
            axes[kept] = axis;
            kept += 1;
        }
    }
    axes.rotate_right(3 - kept);
    for axis in &mut axes[..3 - kept] {
        *axis = (1, 1, 1, 1, 0, 1);
    }
    ConvShape {
        input: axes.map(|a| a.0),
        output: axes.map(|a| a.1),
        kernel: axes.map(|a| a.2),
        stride: axes.map(|a| a.3),
        padding: axes.map(|a| a.4),
        dilation: axes.map(|a| a.5),
        ..*shape
    }
}
