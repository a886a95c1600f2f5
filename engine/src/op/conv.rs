//! Convolution over one to three axes and its transpose.
//!
//! One trilinear form is behind both: `sum of x[i] w[t] y[q]` over all places `i`, taps `t` and places
//! `q` that meet. Holding two of the three gives the gradient with respect to the third, so there are
//! three operations (the forward, the data gradient, the filter gradient), each the derivative of the
//! other two: gradients of any order never leave them.

use etude_kernels::conv::{
    ConvShape, bias_backward, conv_data_backward, conv_filter_backward, conv_forward,
};

use crate::autograd::is_recording;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::memory::Buffer;
use crate::tensor::Tensor;

/// One number for each axis, or one for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PerAxis {
    values: [usize; 3],
    given: usize,
}

impl PerAxis {
    fn new(values: &[usize]) -> PerAxis {
        let mut all = PerAxis { values: [0; 3], given: values.len() };
        all.values.iter_mut().zip(values).for_each(|(to, from)| *to = *from);
        all
    }

    /// The numbers of `axes` axes, after as many `fill` as three leave.
    fn get(&self, op: &'static str, what: &str, axes: usize, fill: usize) -> Result<[usize; 3]> {
        if self.given != 1 && self.given != axes {
            let why = format!("{} sizes of {what} for {axes} axes", self.given);
            return Err(Error::argument(op, why));
        }
        Ok(std::array::from_fn(|a| match (a + axes).checked_sub(3) {
            None => fill,
            Some(a) => self.values[if self.given == 1 { 0 } else { a }],
        }))
    }
}

/// How a kernel moves over its input: the options of [`Tensor::conv`] and [`Tensor::conv_transpose`].
///
/// Each takes one number for all axes or one for each axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv {
    stride: PerAxis,
    padding: PerAxis,
    dilation: PerAxis,
    output_padding: PerAxis,
    groups: usize,
}

impl Default for Conv {
    fn default() -> Conv {
        Conv::new()
    }
}

impl Conv {
    /// Stride 1, no padding, dilation 1, one group.
    pub fn new() -> Conv {
        let (zero, one) = (PerAxis::new(&[0]), PerAxis::new(&[1]));
        Conv { stride: one, padding: zero, dilation: one, output_padding: zero, groups: 1 }
    }

    /// Input places from one output place to the next.
    #[must_use]
    pub fn stride(self, stride: &[usize]) -> Conv {
        Conv { stride: PerAxis::new(stride), ..self }
    }

    /// Zeros before and after the input (the transposed convolution cuts as much off its output).
    #[must_use]
    pub fn padding(self, padding: &[usize]) -> Conv {
        Conv { padding: PerAxis::new(padding), ..self }
    }

    /// Input places from one tap of the kernel to the next.
    #[must_use]
    pub fn dilation(self, dilation: &[usize]) -> Conv {
        Conv { dilation: PerAxis::new(dilation), ..self }
    }

    /// Places that a transposed convolution adds at the end of its output; less than the stride or the
    /// dilation.
    #[must_use]
    pub fn output_padding(self, output_padding: &[usize]) -> Conv {
        Conv { output_padding: PerAxis::new(output_padding), ..self }
    }

    /// Cuts the channels into parts that do not see each other.
    #[must_use]
    pub fn groups(self, groups: usize) -> Conv {
        Conv { groups, ..self }
    }

    /// The sizes of `x * w`; of the convolution that it transposes if `transposed`.
    fn shape(
        &self,
        op: &'static str,
        x: &Tensor,
        w: &Tensor,
        transposed: bool,
    ) -> Result<ConvShape> {
        let fault = |why: String| Error::shape(op, x.shape(), w.shape(), why);
        let axes = x.rank().wrapping_sub(2);
        if !(1..=3).contains(&axes) || w.rank() != x.rank() {
            return Err(fault("both have a batch, channels and one to three axes".into()));
        }
        let (batch, channels) = (x.shape()[0], x.shape()[1]);
        let (outer, inner) = (w.shape()[0], w.shape()[1]);
        let groups = self.groups;
        // The weight is [out, in / groups, ..]; transposed, x has its `out`.
        let (channels_in, channels_out) = (inner.checked_mul(groups), outer);
        let wanted = if transposed { Some(channels_out) } else { channels_in };
        let Some(channels_in) = channels_in.filter(|_| wanted == Some(channels)) else {
            return Err(fault(format!("{channels} channels meet a weight of {groups} groups")));
        };
        if groups == 0 || !channels_out.is_multiple_of(groups) {
            return Err(fault(format!("{channels_out} channels in {groups} groups")));
        }
        let spatial = |t: &Tensor| -> [usize; 3] {
            std::array::from_fn(|a| (a + axes).checked_sub(3).map_or(1, |a| t.shape()[a + 2]))
        };
        let (size, kernel) = (spatial(x), spatial(w));
        let stride = self.stride.get(op, "stride", axes, 1)?;
        let padding = self.padding.get(op, "padding", axes, 0)?;
        let dilation = self.dilation.get(op, "dilation", axes, 1)?;
        let extra = self.output_padding.get(op, "output padding", axes, 0)?;
        let mut other = [0; 3];
        for a in 0..3 {
            other[a] = if transposed {
                if extra[a] != 0 && extra[a] >= stride[a].max(dilation[a]) {
                    let why = format!("output padding {} is not below the stride", extra[a]);
                    return Err(Error::argument(op, why));
                }
                grown(size[a], kernel[a], stride[a], padding[a], dilation[a], extra[a])
            } else {
                if extra[a] != 0 {
                    return Err(Error::argument(op, "output padding is for the transposed one"));
                }
                ConvShape::output_size(size[a], kernel[a], stride[a], padding[a], dilation[a])
            }
            .ok_or_else(|| {
                fault(format!(
                    "no place for a kernel of {} (stride {}, padding {}, dilation {})",
                    kernel[a], stride[a], padding[a], dilation[a]
                ))
            })?;
        }
        let (input, output) = if transposed { (other, size) } else { (size, other) };
        Ok(ConvShape {
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
        })
    }
}

/// Size of the output of a transposed convolution along one axis, if the convolution back exists.
fn grown(
    size: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    dilation: usize,
    extra: usize,
) -> Option<usize> {
    let reach = kernel.checked_sub(1)?.checked_mul(dilation)?.checked_add(1)?;
    let wide = size.checked_sub(1)?.checked_mul(stride)?.checked_add(reach)?.checked_add(extra)?;
    let grown = wide.checked_sub(padding.checked_mul(2)?)?;
    ConvShape::output_size(grown, kernel, stride, padding, dilation).filter(|n| *n >= size)?;
    Some(grown)
}

impl Tensor {
    /// Convolves with `weight` (the cross-correlation, as everybody calls it) and adds `bias`.
    ///
    /// # Shapes
    /// `self` `[batch, channels_in, ..]` with one to three axes, `weight` `[channels_out, channels_in /
    /// groups, ..]`, `bias` `[channels_out]`, result `[batch, channels_out, ..]`.
    ///
    /// # Errors
    /// If the sizes do not fit.
    pub fn conv(&self, weight: &Tensor, bias: Option<&Tensor>, how: &Conv) -> Result<Tensor> {
        let shape = how.shape("conv", self, weight, false)?;
        check_bias("conv", bias, shape.channels_out)?;
        forward(self, weight, bias, shape)
    }

    /// The transposed convolution: what the gradient of [`Tensor::conv`] does with its data; adds `bias`.
    ///
    /// # Shapes
    /// `self` `[batch, channels_in, ..]` with one to three axes, `weight` `[channels_in, channels_out /
    /// groups, ..]`, `bias` `[channels_out]`, result `[batch, channels_out, ..]`.
    ///
    /// # Errors
    /// If the sizes do not fit.
    ///
    /// # Source
    /// Zeiler, Krishnan, Taylor & Fergus 2010, "Deconvolutional networks".
    pub fn conv_transpose(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        how: &Conv,
    ) -> Result<Tensor> {
        let shape = how.shape("conv_transpose", self, weight, true)?;
        check_bias("conv_transpose", bias, shape.channels_in)?;
        data(self, weight, bias, shape)
    }
}

fn check_bias(op: &'static str, bias: Option<&Tensor>, channels: usize) -> Result<()> {
    match bias {
        Some(bias) if bias.shape() != [channels] => {
            let why = "the bias has one number for each output channel";
            Err(Error::shape(op, bias.shape(), &[channels], why))
        }
        _ => Ok(()),
    }
}

/// `[batch, channels, ..]` with the last `axes` of three sizes.
fn layout(
    op: &'static str,
    batch: usize,
    channels: usize,
    sizes: &[usize; 3],
    rank: usize,
) -> Result<Layout> {
    Layout::contiguous(op, &[&[batch, channels], &sizes[5 - rank..]].concat())
}

/// `y = bias + x * w`.
fn forward(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, s: ConvShape) -> Result<Tensor> {
    let layout = layout("conv", s.batch, s.channels_out, &s.output, x.rank())?;
    let mut y = Buffer::scratch(layout.len());
    if !y.is_empty() {
        let bias = bias.map(Tensor::compact);
        conv_forward(&x.compact(), &w.compact(), bias.as_deref(), &mut y, &s);
    }
    let operands = [Some(x), Some(w), bias];
    let operands: Vec<&Tensor> = operands.into_iter().flatten().collect();
    Ok(Tensor::from_op("conv", &operands, y, layout, move |v| {
        let (x, w, d) = (&v.inputs[0], &v.inputs[1], &v.d_output);
        let d_x = v.wanted[0].then(|| data(d, w, None, s)).transpose()?;
        let bias = v.wanted.get(2).copied().unwrap_or(false);
        if bias && v.wanted[1] && !is_recording() {
            // The gradient of the bias comes along while that of the filter reads `d`.
            let (mut d_w, mut d_b) = (Buffer::scratch(w.len()), Buffer::scratch(s.channels_out));
            conv_filter_backward(&x.compact(), &d.compact(), &mut d_w, Some(&mut d_b), &s);
            let d_w = Tensor::new(d_w, w.shape())?;
            return Ok(vec![d_x, Some(d_w), Some(Tensor::new(d_b, &[s.channels_out])?)]);
        }
        let d_w = v.wanted[1].then(|| filter(x, d, s)).transpose()?;
        let mut all = vec![d_x, d_w];
        if v.wanted.len() == 3 {
            all.push(bias.then(|| d_bias(d)).transpose()?);
        }
        Ok(all)
    }))
}

/// The data gradient: `x = bias + w` transposed times `y`.
fn data(y: &Tensor, w: &Tensor, bias: Option<&Tensor>, s: ConvShape) -> Result<Tensor> {
    let layout = layout("conv_transpose", s.batch, s.channels_in, &s.input, y.rank())?;
    let mut x = Buffer::scratch(layout.len());
    if !x.is_empty() {
        let bias = bias.map(Tensor::compact);
        conv_data_backward(&y.compact(), &w.compact(), bias.as_deref(), &mut x, &s);
    }
    let operands = [Some(y), Some(w), bias];
    let operands: Vec<&Tensor> = operands.into_iter().flatten().collect();
    Ok(Tensor::from_op("conv_transpose", &operands, x, layout, move |v| {
        let (y, w, d) = (&v.inputs[0], &v.inputs[1], &v.d_output);
        let mut all = vec![
            v.wanted[0].then(|| forward(d, w, None, s)).transpose()?,
            v.wanted[1].then(|| filter(d, y, s)).transpose()?,
        ];
        if let Some(wanted) = v.wanted.get(2) {
            all.push(wanted.then(|| d_bias(d)).transpose()?);
        }
        Ok(all)
    }))
}

/// The filter gradient.
fn filter(x: &Tensor, y: &Tensor, s: ConvShape) -> Result<Tensor> {
    let channels = s.channels_in / s.groups;
    let layout = layout("conv_filter", s.channels_out, channels, &s.kernel, x.rank())?;
    let mut w = Buffer::scratch(layout.len());
    if !w.is_empty() {
        conv_filter_backward(&x.compact(), &y.compact(), &mut w, None, &s);
    }
    Ok(Tensor::from_op("conv_filter", &[x, y], w, layout, move |v| {
        let (x, y, d) = (&v.inputs[0], &v.inputs[1], &v.d_output);
        Ok(vec![
            v.wanted[0].then(|| data(y, d, None, s)).transpose()?,
            v.wanted[1].then(|| forward(x, d, None, s)).transpose()?,
        ])
    }))
}

/// Sums over samples and places.
fn d_bias(d: &Tensor) -> Result<Tensor> {
    if is_recording() {
        let axes: Vec<usize> = (0..d.rank()).filter(|a| *a != 1).collect();
        return d.sum(&axes, false);
    }
    let mut sums = Buffer::scratch(d.shape()[1]);
    if !sums.is_empty() {
        bias_backward(&d.compact(), &mut sums, d.shape()[2..].iter().product());
    }
    let channels = sums.len();
    Tensor::new(sums, &[channels])
}
