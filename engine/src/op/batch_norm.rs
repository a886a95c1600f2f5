//! Batch normalisation, fused: each channel has the mean and the variance of the whole batch; for
//! inference those of the training.

use etude_kernels::batch_norm::{
    batch_norm_backward, batch_norm_forward, channel_affine_forward, update_statistics,
};

use crate::autograd::{is_recording, twin_gradients};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::memory::Buffer;
use crate::tensor::Tensor;

/// What a batch normalisation measured: constants, no gradient flows through.
#[derive(Debug, Clone)]
pub struct BatchStatistics {
    /// The mean of each channel, `[channels]`.
    pub mean: Tensor,
    /// The variance of each channel over the batch, `[channels]`.
    pub var: Tensor,
    /// Numbers that a channel had.
    pub count: usize,
}

impl BatchStatistics {
    /// Moves running statistics towards these: `running = (1 - momentum) * running + momentum * new`,
    /// the variance being that of the population, `/ (n - 1)`.
    ///
    /// # Shapes
    /// `running_mean`, `running_var` `[channels]`.
    ///
    /// # Errors
    /// If their shapes differ from these.
    pub fn update(
        &self,
        running_mean: &mut Tensor,
        running_var: &mut Tensor,
        momentum: f32,
    ) -> Result<()> {
        for running in [&*running_mean, &*running_var] {
            if running.shape() != self.mean.shape() {
                let why = "running statistics have one number a channel";
                let (ours, theirs) = (self.mean.shape(), running.shape());
                return Err(Error::shape("batch_norm", ours, theirs, why));
            }
        }
        let (mean, var) = (self.mean.compact(), self.var.compact());
        running_mean.update(|running_mean| {
            running_var.update(|running_var| {
                update_statistics(&mean, &var, running_mean, running_var, self.count, momentum);
            });
        });
        Ok(())
    }
}

impl Tensor {
    /// Normalises each channel over the whole batch to mean 0 and variance 1, then scales and shifts
    /// it; returns what it measured, too. Gradients flow through mean and variance.
    ///
    /// # Shapes
    /// `self` `[batch, channels, ..]`; `weight`, `bias` `[channels]`.
    ///
    /// # Errors
    /// If there are less than two axes, or the weights do not have the number of the channels.
    ///
    /// # Source
    /// Ioffe & Szegedy 2015.
    pub fn batch_norm(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        eps: f32,
    ) -> Result<(Tensor, BatchStatistics)> {
        let (channels, space) = self.check_channels("batch_norm", &[weight, bias])?;
        let layout = Layout::contiguous("batch_norm", self.shape())?;
        let row = Layout::contiguous("batch_norm", &[channels])?;
        let mut y = Buffer::scratch(layout.len());
        let (mut mean, mut var) = (Buffer::zeros(channels), Buffer::zeros(channels));
        {
            let (x, w, b) = (self.compact(), weight.compact(), bias.compact());
            batch_norm_forward(&x, &w, &b, &mut y, &mut mean, &mut var, eps, space);
        }
        let (mean, var) = (Tensor::constant(mean, row), Tensor::constant(var, row));
        let count = self.shape()[0] * space;
        let statistics = BatchStatistics { mean: mean.clone(), var: var.clone(), count };
        let y = Tensor::from_op("batch_norm", &[self, weight, bias], y, layout, move |v| {
            if is_recording() {
                return twin_gradients(v, |x| x[0].batch_norm_plain(&x[1], &x[2], eps));
            }
            let (x, w, d) = (v.inputs[0].compact(), v.inputs[1].compact(), v.d_output.compact());
            let mut d_x = Buffer::scratch(x.len());
            let (mut d_w, mut d_b) = (Buffer::zeros(channels), Buffer::zeros(channels));
            let (mean, var) = (mean.compact(), var.compact());
            let (d_w_out, d_b_out) = (&mut d_w, &mut d_b);
            batch_norm_backward(&x, &w, &mean, &var, &d, &mut d_x, d_w_out, d_b_out, eps, space);
            Ok(vec![
                Some(Tensor::constant(d_x, layout)),
                Some(Tensor::constant(d_w, row)),
                Some(Tensor::constant(d_b, row)),
            ])
        });
        Ok((y, statistics))
    }

    /// Batch normalisation of small operations: oracle, second derivative, lesson.
    ///
    /// # Errors
    /// As [`Tensor::batch_norm`].
    pub fn batch_norm_plain(&self, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
        self.check_channels("batch_norm", &[weight, bias])?;
        let rank = self.rank();
        let axes: Vec<usize> = (0..rank).filter(|axis| *axis != 1).collect();
        let centred = self.sub(&self.mean(&axes, true)?)?;
        let variance = centred.mul(&centred)?.mean(&axes, true)?;
        let hat = centred.div(&variance.shift(eps)?.sqrt()?)?;
        hat.mul(&weight.beside_channels(rank)?)?.add(&bias.beside_channels(rank)?)
    }

    /// Normalises each channel by statistics that are given, as a model does that has learned.
    ///
    /// # Shapes
    /// `self` `[batch, channels, ..]`; `weight`, `bias`, `mean`, `var` `[channels]`.
    ///
    /// # Errors
    /// As [`Tensor::batch_norm`].
    pub fn batch_norm_inference(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        mean: &Tensor,
        var: &Tensor,
        eps: f32,
    ) -> Result<Tensor> {
        self.check_channels("batch_norm_inference", &[weight, bias, mean, var])?;
        let scale = weight.div(&var.shift(eps)?.sqrt()?)?;
        let shift = bias.sub(&mean.mul(&scale)?)?;
        self.channel_affine(&scale, &shift)
    }

    /// Computes `x * scale + shift` with a scale and a shift for each channel.
    ///
    /// # Shapes
    /// `self` `[batch, channels, ..]`; `scale`, `shift` `[channels]`.
    ///
    /// # Errors
    /// If there are less than two axes, or not one scale and shift a channel.
    pub fn channel_affine(&self, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
        let (channels, space) = self.check_channels("channel_affine", &[scale, shift])?;
        let layout = Layout::contiguous("channel_affine", self.shape())?;
        let mut y = Buffer::scratch(layout.len());
        channel_affine_forward(&self.compact(), &scale.compact(), &shift.compact(), &mut y, space);
        Ok(Tensor::from_op("channel_affine", &[self, scale, shift], y, layout, move |v| {
            let (x, scale, d) = (&v.inputs[0], &v.inputs[1], v.d_output);
            let axes: Vec<usize> = (0..x.rank()).filter(|axis| *axis != 1).collect();
            let zeros = || Tensor::zeros(&[channels]);
            let d_x = v.wanted[0].then(|| d.channel_affine(scale, &zeros()?)).transpose()?;
            let d_scale = v.wanted[1].then(|| d.mul(x)?.sum(&axes, false)).transpose()?;
            let d_shift = v.wanted[2].then(|| d.sum(&axes, false)).transpose()?;
            Ok(vec![d_x, d_scale, d_shift])
        }))
    }
}
