//! Layer normalisation, fused: `(x - mean) / sqrt(var + eps) * weight + bias` over the last axis.

use etude_kernels::norm::{layer_norm_backward, layer_norm_forward};

use crate::autograd::{is_recording, twin_gradients};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::memory::Buffer;
use crate::tensor::Tensor;

impl Tensor {
    /// Normalises each row to mean 0 and variance 1, then scales and shifts it.
    ///
    /// # Shapes
    /// `self` `[.., width]`; `weight`, `bias` `[width]`.
    ///
    /// # Errors
    /// If the widths differ.
    ///
    /// # Source
    /// Ba, Kiros & Hinton 2016.
    pub fn layer_norm(&self, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
        let width = self.check_norm(weight, bias)?;
        let layout = Layout::contiguous("layer_norm", self.shape())?;
        let rows = self.shape()[..self.rank() - 1].iter().product();
        let mut y = Buffer::scratch(layout.len());
        let (mut mean, mut rstd) = (Buffer::scratch(rows), Buffer::scratch(rows));
        if !y.is_empty() {
            let (x, w, b) = (self.compact(), weight.compact(), bias.compact());
            layer_norm_forward(&x, &w, &b, &mut y, &mut mean, &mut rstd, eps);
        }
        Ok(Tensor::from_op("layer_norm", &[self, weight, bias], y, layout, move |v| {
            if is_recording() {
                return twin_gradients(v, |x| x[0].layer_norm_plain(&x[1], &x[2], eps));
            }
            let (x, w, d) = (v.inputs[0].compact(), v.inputs[1].compact(), v.d_output.compact());
            let mut d_x = Buffer::scratch(x.len());
            let (mut d_w, mut d_b) = (Buffer::zeros(width), Buffer::zeros(width));
            if !x.is_empty() {
                layer_norm_backward(&x, &w, &mean, &rstd, &d, &mut d_x, &mut d_w, &mut d_b);
            }
            let row = Layout::contiguous("layer_norm", &[width])?;
            Ok(vec![
                Some(Tensor::constant(d_x, layout)),
                Some(Tensor::constant(d_w, row)),
                Some(Tensor::constant(d_b, row)),
            ])
        }))
    }

    /// Layer normalisation of small operations: oracle, second derivative, lesson.
    ///
    /// # Errors
    /// If the widths differ.
    pub fn layer_norm_plain(&self, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
        self.check_norm(weight, bias)?;
        let axis = self.rank() - 1;
        let centred = self.sub(&self.mean(&[axis], true)?)?;
        let variance = centred.mul(&centred)?.mean(&[axis], true)?;
        centred.div(&variance.shift(eps)?.sqrt()?)?.mul(weight)?.add(bias)
    }

    fn check_norm(&self, weight: &Tensor, bias: &Tensor) -> Result<usize> {
        let width = self.shape().last().copied().unwrap_or(0);
        if self.rank() == 0 || weight.shape() != [width] || bias.shape() != [width] {
            let why = "weight and bias have the size of the last axis";
            return Err(Error::shape("layer_norm", self.shape(), weight.shape(), why));
        }
        Ok(width)
    }
}
