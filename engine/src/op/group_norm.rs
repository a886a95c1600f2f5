//! Group normalisation, fused: the channels of a group of one element share mean and variance.

use etude_kernels::group_norm::{Groups, group_norm_backward, group_norm_forward};

use crate::autograd::{is_recording, twin_gradients};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::memory::Buffer;
use crate::tensor::Tensor;

impl Tensor {
    /// Normalises each group of channels of each element of the batch to mean 0 and variance 1, then
    /// scales and shifts each channel.
    ///
    /// # Shapes
    /// `self` `[batch, channels, ..]`; `weight`, `bias` `[channels]`.
    ///
    /// # Errors
    /// If there are less than two axes, `groups` does not divide the channels, or the weights do not
    /// have their number.
    ///
    /// # Source
    /// Wu & He 2018.
    pub fn group_norm(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        groups: usize,
        eps: f32,
    ) -> Result<Tensor> {
        let sizes = self.check_groups(weight, bias, groups)?;
        let layout = Layout::contiguous("group_norm", self.shape())?;
        let rows = self.shape()[0] * groups;
        let mut y = Buffer::scratch(layout.len());
        let (mut mean, mut rstd) = (Buffer::scratch(rows), Buffer::scratch(rows));
        if !y.is_empty() {
            let (x, w, b) = (self.compact(), weight.compact(), bias.compact());
            group_norm_forward(&x, &w, &b, &mut y, &mut mean, &mut rstd, eps, sizes);
        }
        Ok(Tensor::from_op("group_norm", &[self, weight, bias], y, layout, move |v| {
            if is_recording() {
                return twin_gradients(v, |x| x[0].group_norm_plain(&x[1], &x[2], groups, eps));
            }
            let (x, w, d) = (v.inputs[0].compact(), v.inputs[1].compact(), v.d_output.compact());
            let mut d_x = Buffer::scratch(x.len());
            let (mut d_w, mut d_b) = (Buffer::zeros(w.len()), Buffer::zeros(w.len()));
            if !x.is_empty() {
                let (d_w, d_b) = (&mut d_w, &mut d_b);
                group_norm_backward(&x, &w, &mean, &rstd, &d, &mut d_x, d_w, d_b, sizes);
            }
            let row = Layout::contiguous("group_norm", &[w.len()])?;
            Ok(vec![
                Some(Tensor::constant(d_x, layout)),
                Some(Tensor::constant(d_w, row)),
                Some(Tensor::constant(d_b, row)),
            ])
        }))
    }

    /// Group normalisation of small operations: oracle, second derivative, lesson.
    ///
    /// # Errors
    /// As [`Tensor::group_norm`].
    pub fn group_norm_plain(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        groups: usize,
        eps: f32,
    ) -> Result<Tensor> {
        let s = self.check_groups(weight, bias, groups)?;
        let x = self.reshape(&[self.shape()[0], groups, s.channels / groups * s.space])?;
        let centred = x.sub(&x.mean(&[2], true)?)?;
        let variance = centred.mul(&centred)?.mean(&[2], true)?;
        let hat = centred.div(&variance.shift(eps)?.sqrt()?)?.reshape(self.shape())?;
        hat.mul(&weight.beside_channels(self.rank())?)?.add(&bias.beside_channels(self.rank())?)
    }

    /// `[channels]` as `[channels, 1, ..]`, to be broadcast over `[batch, channels, ..]`.
    pub(crate) fn beside_channels(&self, rank: usize) -> Result<Tensor> {
        let mut shape = vec![1; rank - 1];
        shape[0] = self.len();
        self.reshape(&shape)
    }

    fn check_groups(&self, weight: &Tensor, bias: &Tensor, groups: usize) -> Result<Groups> {
        let (channels, space) = self.check_channels("group_norm", &[weight, bias])?;
        if groups == 0 || !channels.is_multiple_of(groups) {
            let why = format!("{channels} channels in {groups} groups");
            return Err(Error::argument("group_norm", why));
        }
        Ok(Groups { channels, groups, space })
    }

    /// The channels and what each has of one element, if all of `each` have one number a channel.
    pub(crate) fn check_channels(
        &self,
        op: &'static str,
        each: &[&Tensor],
    ) -> Result<(usize, usize)> {
        let &[_, channels, ref space @ ..] = self.shape() else {
            let why = "a batch of channels is wanted";
            return Err(Error::shape(op, self.shape(), &[], why));
        };
        match each.iter().find(|t| t.shape() != [channels]) {
            Some(t) => {
                Err(Error::shape(op, self.shape(), t.shape(), "one number a channel is wanted"))
            }
            None => Ok((channels, space.iter().product())),
        }
    }
}
