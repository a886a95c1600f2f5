//! The linear layer, fused: `y = x W^T + b`.

use etude_kernels::elementwise::sum_cols;
use etude_kernels::gemm::{MatMut, MatRef};

use crate::autograd::{Vjp, is_recording};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::memory::Buffer;
use crate::products::{Products, products};
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
        let (rows, products) = (lead.iter().product(), products());
        let mut y = Buffer::scratch(layout.len());
        if !y.is_empty() {
            let bias = bias.map(Tensor::compact);
            let (x, w) = (self.compact(), weight.compact());
            affine_rows(products, &x, &w, bias.as_deref(), &mut y, rows, inputs, outputs);
        }
        let operands = [Some(self), Some(weight), bias];
        let operands: Vec<&Tensor> = operands.into_iter().flatten().collect();
        Ok(Tensor::from_op("linear", &operands, y, layout, move |v| {
            if products == Products::Bf16 && !is_recording() {
                return backward_bf16(&v, rows, inputs, outputs);
            }
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

/// The gradients of the input, the weight and the bias, by products of bf16.
fn backward_bf16(
    v: &Vjp,
    rows: usize,
    inputs: usize,
    outputs: usize,
) -> Result<Vec<Option<Tensor>>> {
    let (x, w, d) = (v.inputs[0].compact(), v.inputs[1].compact(), v.d_output.compact());
    let d = MatRef::new(&d, rows, outputs);
    let gradient = |shape: &[usize], product: &dyn Fn(&mut [f32])| -> Result<Tensor> {
        let layout = Layout::contiguous("linear", shape)?;
        let mut y = Buffer::scratch(layout.len());
        product(&mut y);
        Ok(Tensor::constant(y, layout))
    };
    let d_x = || {
        gradient(v.inputs[0].shape(), &|y| {
            let w = MatRef::new(&w, outputs, inputs);
            Products::Bf16.gemm(d, w, &mut MatMut::new(y, rows, inputs), false);
        })
    };
    let d_w = || {
        gradient(&[outputs, inputs], &|y| {
            let x = MatRef::new(&x, rows, inputs);
            Products::Bf16.gemm(d.t(), x, &mut MatMut::new(y, outputs, inputs), false);
        })
    };
    let d_b = || gradient(&[outputs], &|y| sum_cols(d.data, y, false));
    let mut grads = vec![v.wanted[0].then(d_x).transpose()?, v.wanted[1].then(d_w).transpose()?];
    if let Some(wanted) = v.wanted.get(2) {
        grads.push(wanted.then(d_b).transpose()?);
    }
    Ok(grads)
}

/// `y = x w^T + bias` over slices: `x` `[rows, inputs]`, `w` `[outputs, inputs]`.
pub(crate) fn affine_rows(
    products: Products,
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
    rows: usize,
    inputs: usize,
    outputs: usize,
) {
    let w = products.pack(MatRef::new(w, outputs, inputs).t());
    w.apply(MatRef::new(x, rows, inputs), bias, &mut MatMut::new(y, rows, outputs));
}
