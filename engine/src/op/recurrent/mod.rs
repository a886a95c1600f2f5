//! Recurrent layers: a whole sequence is one node of the graph.
//!
//! Everything is time-major: `[steps, batch, ..]`. The input part of all steps is one big product
//! (or, for tokens, rows gathered from `W_ih^T`); the part that runs step after step is a kernel;
//! the weight gradients are big products again. Beside each layer stands its plain twin of small
//! operations, which is also what a second derivative goes through.

mod attended;
mod gru;
mod lstm;
mod rnn;
mod stack;

pub use attended::{Attended, attended_lstm, attended_lstm_plain};
pub use etude_kernels::recurrent::Nonlinearity;
pub use gru::{gru_layer, gru_plain};
pub use lstm::{lstm_layer, lstm_plain};
pub use rnn::{rnn_layer, rnn_plain};
pub use stack::{Stacked, recurrent_stack};

use etude_kernels::elementwise::{axpy, sum_cols};
use etude_kernels::embedding::{embedding_backward, embedding_forward};
use etude_kernels::gemm::{MatMut, MatRef};
use etude_kernels::recurrent::Sizes;

use crate::error::{Error, Result};
use crate::layout::{Layout, copy_strided};
use crate::memory::Buffer;
use crate::op::index::Ids;
use crate::op::linear::affine_rows;
use crate::products::{Products, products};
use crate::tensor::Tensor;

/// What a recurrent layer reads.
#[derive(Clone, Debug)]
pub enum Input {
    /// Vectors `[steps, batch, inputs]`.
    Dense(Tensor),
    /// One-hot or multi-hot vectors, given by the ids that are hot: no product, rows are gathered.
    OneHot {
        /// Bags `[steps * batch, active]`.
        ids: Ids,
        /// Time steps.
        steps: usize,
        /// Rows of a step.
        batch: usize,
    },
}

impl Input {
    /// Time steps and rows of a step.
    ///
    /// # Errors
    /// If a dense input does not have three axes, or there is not one bag for each row.
    fn sizes(&self, op: &'static str) -> Result<(usize, usize)> {
        match self {
            Input::Dense(x) => match *x.shape() {
                [steps, batch, _] => Ok((steps, batch)),
                _ => Err(Error::shape(op, x.shape(), &[], "[steps, batch, inputs] is wanted")),
            },
            Input::OneHot { ids, steps, batch } => {
                if steps.checked_mul(*batch) != Some(ids.rows()) {
                    let why = "one bag of ids for each row of each step is wanted";
                    return Err(Error::shape(op, &[ids.rows()], &[*steps, *batch], why));
                }
                Ok((*steps, *batch))
            }
        }
    }

    /// The tensors through which a gradient can flow: the dense input, if it is one.
    fn tensor(&self) -> Option<&Tensor> {
        match self {
            Input::Dense(x) => Some(x),
            Input::OneHot { .. } => None,
        }
    }

    /// The same input with the dense tensor replaced.
    fn with(&self, x: Option<&Tensor>) -> Input {
        match (self, x) {
            (Input::Dense(_), Some(x)) => Input::Dense(x.clone()),
            _ => self.clone(),
        }
    }

    /// The input part of small operations: `x W_ih^T (+ b)`, `[steps, batch, outputs]`.
    fn project_plain(&self, w_ih: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let (steps, batch) = self.sizes("input")?;
        let y = match self {
            Input::Dense(x) => x.matmul(&w_ih.t()?)?,
            Input::OneHot { ids, .. } => w_ih.t()?.embedding(ids)?,
        };
        let y = y.reshape(&[steps, batch, w_ih.shape()[0]])?;
        bias.map_or(Ok(y.clone()), |bias| y.add(bias))
    }
}

/// The tensors of a recurrent layer, checked.
struct Layer<'a> {
    op: &'static str,
    x: &'a Input,
    w_ih: &'a Tensor,
    w_hh: &'a Tensor,
    b_ih: &'a Tensor,
    b_hh: &'a Tensor,
    states: &'a [&'a Tensor],
    sizes: Sizes,
    inputs: usize,
    outputs: usize,
    products: Products,
}

impl<'a> Layer<'a> {
    fn check(
        op: &'static str,
        gates: usize,
        x: &'a Input,
        [w_ih, w_hh, b_ih, b_hh]: [&'a Tensor; 4],
        states: &'a [&'a Tensor],
    ) -> Result<Layer<'a>> {
        let (steps, batch) = x.sizes(op)?;
        let &[outputs, inputs] = w_ih.shape() else {
            return Err(Error::shape(op, w_ih.shape(), &[], "W_ih has two axes"));
        };
        let hidden = outputs / gates;
        if w_hh.shape() != [outputs, hidden] || outputs != gates * hidden {
            let why =
                format!("W_ih [{gates} * hidden, inputs] and W_hh [{gates} * hidden, hidden]");
            return Err(Error::shape(op, w_ih.shape(), w_hh.shape(), why));
        }
        for b in [b_ih, b_hh] {
            if b.shape() != [outputs] {
                return Err(Error::shape(op, b.shape(), w_ih.shape(), "a bias for each gate row"));
            }
        }
        for state in states {
            if state.shape() != [batch, hidden] {
                let why = "a state is [batch, hidden]";
                return Err(Error::shape(op, state.shape(), &[batch, hidden], why));
            }
        }
        match x {
            Input::Dense(x) if x.shape()[2] != inputs => {
                let why = "the last size of the input and of W_ih must agree";
                return Err(Error::shape(op, x.shape(), w_ih.shape(), why));
            }
            Input::Dense(_) => {}
            Input::OneHot { ids, .. } => ids.check(op, inputs)?,
        }
        let sizes = Sizes { steps, batch, hidden };
        Ok(Layer {
            op,
            x,
            w_ih,
            w_hh,
            b_ih,
            b_hh,
            states,
            sizes,
            inputs,
            outputs,
            products: products(),
        })
    }

    /// The order in which the graph sees the tensors: weights, states, then the dense input.
    fn operands(&self) -> Vec<&'a Tensor> {
        let mut all = vec![self.w_ih, self.w_hh, self.b_ih, self.b_hh];
        all.extend(self.states);
        all.extend(self.x.tensor());
        all
    }

    /// Computes the input part of all steps: `x W_ih^T + b_ih (+ b_hh)`.
    fn project(&self, with_b_hh: bool) -> Buffer {
        let rows = self.sizes.steps * self.sizes.batch;
        let mut y = Buffer::scratch(rows * self.outputs);
        let mut bias = Buffer::copy(&self.b_ih.compact());
        if with_b_hh {
            axpy(1.0, &self.b_hh.compact(), &mut bias);
        }
        match self.x {
            Input::Dense(x) => {
                let (x, w) = (x.compact(), self.w_ih.compact());
                affine_rows(
                    self.products,
                    &x,
                    &w,
                    Some(&bias),
                    &mut y,
                    rows,
                    self.inputs,
                    self.outputs,
                );
            }
            Input::OneHot { ids, .. } => {
                let table = transposed(self.w_ih);
                let (ids, active) = (ids.as_slice(), ids.active());
                embedding_forward(&table, ids, Some(&bias), &mut y, active, self.outputs);
            }
        }
        y
    }
}

/// Copies the transpose of a matrix.
fn transposed(w: &Tensor) -> Buffer {
    let mut y = Buffer::scratch(w.len());
    copy_strided(w.storage(), &w.layout().permute(&[1, 0]), &mut y);
    y
}

/// The gradients of `x W_ih^T + b` from those of its result, `d_gates` `[steps * batch, outputs]`.
struct ProjectionGrads {
    w_ih: Option<Tensor>,
    bias: Tensor,
    x: Option<Tensor>,
}

fn project_backward(
    products: Products,
    x: &Input,
    w_ih: &Tensor,
    d_gates: &[f32],
    wants_w: bool,
    wants_x: bool,
) -> Result<ProjectionGrads> {
    let &[outputs, inputs] = w_ih.shape() else { unreachable!("checked by the forward") };
    let rows = d_gates.len() / outputs.max(1);
    let weight_layout = Layout::contiguous("recurrent", &[outputs, inputs])?;
    let d = MatRef::new(d_gates, rows, outputs);
    let mut w = None;
    if wants_w {
        let mut d_w = Buffer::scratch(weight_layout.len());
        match x {
            Input::Dense(x) => {
                let x = x.compact();
                let x = MatRef::new(&x, rows, inputs);
                products.gemm(d.t(), x, &mut MatMut::new(&mut d_w, outputs, inputs), false);
            }
            Input::OneHot { ids, .. } => {
                let mut d_table = Buffer::zeros(weight_layout.len());
                let active = ids.active();
                embedding_backward(ids.as_slice(), d_gates, &mut d_table, active, outputs);
                let table = Layout::contiguous("recurrent", &[inputs, outputs])?;
                copy_strided(&d_table, &table.permute(&[1, 0]), &mut d_w);
            }
        }
        w = Some(Tensor::constant(d_w, weight_layout));
    }
    let mut d_x = None;
    if let (Input::Dense(x), true) = (x, wants_x) {
        let mut buffer = Buffer::scratch(x.len());
        let w = w_ih.compact();
        let w = MatRef::new(&w, outputs, inputs);
        products.gemm(d, w, &mut MatMut::new(&mut buffer, rows, inputs), false);
        d_x = Some(Tensor::constant(buffer, Layout::contiguous("recurrent", x.shape())?));
    }
    Ok(ProjectionGrads { w_ih: w, bias: bias_gradient(d_gates, outputs)?, x: d_x })
}

/// Sums the rows of a gradient.
fn bias_gradient(d: &[f32], outputs: usize) -> Result<Tensor> {
    let mut d_bias = Buffer::scratch(outputs);
    sum_cols(d, &mut d_bias, false);
    Ok(Tensor::constant(d_bias, Layout::contiguous("recurrent", &[outputs])?))
}

/// The gradient of `W_hh`: `d_rec^T h_before` over all steps, where the first step read `h0`.
fn hidden_gradient(
    products: Products,
    d_rec: &[f32],
    h: &[f32],
    h0: &[f32],
    s: Sizes,
) -> Result<Tensor> {
    let outputs = d_rec.len() / (s.steps * s.batch);
    let layout = Layout::contiguous("recurrent", &[outputs, s.hidden])?;
    let mut d_w = Buffer::scratch(layout.len());
    let (first, rest) = d_rec.split_at(s.batch * outputs);
    let later = (s.steps - 1) * s.batch;
    let mut d_w_mat = MatMut::new(&mut d_w, outputs, s.hidden);
    let h = MatRef::new(&h[..later * s.hidden], later, s.hidden);
    products.gemm(MatRef::new(rest, later, outputs).t(), h, &mut d_w_mat, false);
    let h0 = MatRef::new(h0, s.batch, s.hidden);
    products.gemm(MatRef::new(first, s.batch, outputs).t(), h0, &mut d_w_mat, true);
    Ok(Tensor::constant(d_w, layout))
}

/// The zeros that flow back out of a sequence without a step, a row or a unit.
fn no_gradients(inputs: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
    inputs.iter().map(|t| Tensor::zeros(t.shape()).map(Some)).collect()
}
