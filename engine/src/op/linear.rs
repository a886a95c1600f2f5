//! The linear layer, fused: `y = x W^T + b`.

use etude_kernels::gemm::{MatMut, MatRef, gemm_packed_forward};

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::memory::{Buffer, Packed};
use crate::tensor::Tensor;

impl Tensor {
    /// Computes `x W^T + b` for each row of `x`.
    ///
    /// # Shapes
    /// `self` `[.., inputs]`, `weight` `[outputs, inputs]`, `bias` `[outputs]`, result `[.., outputs]`.
    ///
    /// # Errors
    /// If the sizes do not fit.
    pub fn linear(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let fault = |why| Error::shape("linear", self.shape(), weight.shape(), why);
        let &[outputs, inputs] = weight.shape() else {
            return Err(fault("the weight has two axes"));
        };
        let Some((last, lead)) = self.shape().split_last() else {
            return Err(fault("the input has at least one axis"));
        };
        if *last != inputs {
            return Err(fault("the last size of both must agree"));
        }
        if let Some(bias) = bias
            && bias.shape() != [outputs]
        {
            let why = "the bias has one number for each output";
            return Err(Error::shape("linear", bias.shape(), weight.shape(), why));
        }
        let layout = Layout::contiguous("linear", &[lead, &[outputs]].concat())?;
        let rows = lead.iter().product();
        let mut y = Buffer::scratch(layout.len());
        if !y.is_empty() {
            let bias = bias.map(Tensor::compact);
            let (x, w) = (self.compact(), weight.compact());
            affine_rows(&x, &w, bias.as_deref(), &mut y, rows, inputs, outputs);
        }
        let operands = [Some(self), Some(weight), bias];
        let operands: Vec<&Tensor> = operands.into_iter().flatten().collect();
        Ok(Tensor::from_op("linear", &operands, y, layout, move |v| {
            let (x, w) = (&v.inputs[0], &v.inputs[1]);
            let d = v.d_output.reshape(&[rows, outputs])?;
            let d_x = || d.matmul(w)?.reshape(x.shape());
            let d_w = || d.t()?.matmul(&x.reshape(&[rows, inputs])?);
            let mut grads =
                vec![v.wanted[0].then(d_x).transpose()?, v.wanted[1].then(d_w).transpose()?];
            if let Some(wanted) = v.wanted.get(2) {
                grads.push(wanted.then(|| d.sum(&[0], false)).transpose()?);
            }
            Ok(grads)
        }))
    }

    /// The linear layer of small operations: oracle, second derivative, lesson.
    ///
    /// # Errors
    /// If the sizes do not fit.
    pub fn linear_plain(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let y = self.matmul(&weight.t()?)?;
        bias.map_or(Ok(y.clone()), |bias| y.add(bias))
    }
}

/// `y = x w^T + bias` over slices: `x` `[rows, inputs]`, `w` `[outputs, inputs]`.
pub(crate) fn affine_rows(
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
    rows: usize,
    inputs: usize,
    outputs: usize,
) {
    let w = Packed::new(MatRef::new(w, outputs, inputs).t());
    let x = MatRef::new(x, rows, inputs);
    gemm_packed_forward(x, &w, bias, &mut MatMut::new(y, rows, outputs), false);
}
