//! How a sum over kernel positions ("taps") walks through its source, axis by axis.
//!
//! A convolution and its data gradient are one thing here: position `q` of a grid sums
//! `src[step * q + from(tap)] * w[kernel(tap)]` over the taps, and both maps are arithmetic
//! progressions. The data gradient of a convolution with stride `s` falls into `s` classes of inputs
//! that meet the same taps, each a convolution with step 1 over the gradient of the output:
//! `input + padding = s * q + class`, `output = q + (class - tap * dilation) / s`.

use super::ConvShape;

/// One axis of a sum over taps.
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
    /// Number of taps.
    pub taps: usize,
    /// Source place of the first tap, relative to `step * position`, and from tap to tap.
    pub from: (isize, isize),
    /// Kernel index of the first tap, and from tap to tap.
    pub kernel: (usize, usize),
    /// Kernel indices that share a source place: they become lanes beside each other.
    pub merged: usize,
    /// Result place of position `q` and merged index `m`: `scale * q + start + m`.
    pub scale: usize,
    pub start: isize,
    /// Size of the result.
    pub out: usize,
}

impl Axis {
    /// The forward walk along axis `a`.
    pub(super) fn forward(shape: &ConvShape, a: usize) -> Axis {
        Axis {
            size: shape.input[a],
            step: shape.stride[a],
            first: 0,
            count: shape.output[a],
            taps: shape.kernel[a],
            from: (-(shape.padding[a] as isize), shape.dilation[a] as isize),
            kernel: (0, 1),
            merged: 1,
            scale: 1,
            start: 0,
            out: shape.output[a],
        }
    }

    /// Whether all classes of axis `a` meet the same source places.
    pub(super) fn can_merge(shape: &ConvShape, a: usize) -> bool {
        shape.stride[a] > 1
            && shape.dilation[a] == 1
            && shape.kernel[a].is_multiple_of(shape.stride[a])
    }

    /// The walk of the data gradient along axis `a`, all classes at once.
    pub(super) fn merged(shape: &ConvShape, a: usize) -> Axis {
        let (stride, padding) = (shape.stride[a], shape.padding[a]);
        let first = padding / stride;
        let end =
            if shape.input[a] == 0 { first } else { (shape.input[a] - 1 + padding) / stride + 1 };
        Axis {
            size: shape.output[a],
            step: 1,
            first: first as isize,
            count: end - first,
            taps: shape.kernel[a] / stride,
            from: (0, -1),
            kernel: (0, stride),
            merged: stride,
            scale: stride,
            start: -(padding as isize),
            out: shape.input[a],
        }
    }

    /// The walk of the data gradient along axis `a` for the inputs of one class.
    pub(super) fn class(shape: &ConvShape, a: usize, class: usize) -> Axis {
        let (stride, dilation) = (shape.stride[a], shape.dilation[a]);
        let start = class as isize - shape.padding[a] as isize;
        // The first position with `stride * q + start >= 0`, and the first with `>= input`.
        let reach =
            |place: isize| (place - start + stride as isize - 1).div_euclid(stride as isize);
        let (first, end) = (reach(0), reach(shape.input[a] as isize));
        // Taps with `tap * dilation = class` modulo the stride.
        let common = gcd(stride, dilation);
        let every = stride / common;
        let tap = (0..every.min(shape.kernel[a])).find(|t| t * dilation % stride == class);
        let taps = tap.map_or(0, |tap| (shape.kernel[a] - tap).div_ceil(every));
        let tap = tap.unwrap_or(0);
        Axis {
            size: shape.output[a],
            step: 1,
            first,
            count: (end - first) as usize,
            taps,
            from: (
                (class as isize - (tap * dilation) as isize).div_euclid(stride as isize),
                -((dilation / common) as isize),
            ),
            kernel: (tap, every),
            merged: 1,
            scale: stride,
            start,
            out: shape.input[a],
        }
    }

    /// The position after the last.
    pub(super) fn end(&self) -> isize {
        self.first + self.count as isize
    }

    /// The lowest and the highest source place of the taps, relative to `step * position`.
    pub(super) fn reach(&self) -> (isize, isize) {
        let last = self.from.0 + self.from.1 * (self.taps.max(1) - 1) as isize;
        (self.from.0.min(last), self.from.0.max(last))
    }

    /// Whether every tap of every position lies in the source.
    pub(super) fn is_inside(&self) -> bool {
        let (low, high) = self.reach();
        let step = self.step as isize;
        self.count == 0
            || self.taps == 0
            || (step * self.first + low >= 0 && step * (self.end() - 1) + high < self.size as isize)
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
