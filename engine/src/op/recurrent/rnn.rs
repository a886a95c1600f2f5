//! Elman's recurrent network: `h = f(W_ih x + b_ih + W_hh h + b_hh)`.
//!
//! Source: Elman 1990.

use etude_kernels::gemm::MatRef;
use etude_kernels::recurrent::{Nonlinearity, rnn_backward, rnn_forward};

use super::{Input, Layer, hidden_gradient, no_gradients, project_backward};
use crate::autograd::{is_recording, twin_gradients};
use crate::error::Result;
use crate::layout::Layout;
use crate::memory::Buffer;
use crate::tensor::Tensor;

/// Runs an Elman layer over a whole sequence, as one node.
///
/// # Shapes
/// `x` `[steps, batch, inputs]`; `w_ih` `[hidden, inputs]`, `w_hh` `[hidden, hidden]`, `b_ih`, `b_hh`
/// `[hidden]`; `h0` `[batch, hidden]`; result `[steps, batch, hidden]`.
///
/// # Errors
/// If the sizes do not fit or an id is not below `inputs`.
///
/// # Source
/// Elman 1990.
pub fn rnn_layer(
    x: &Input,
    f: Nonlinearity,
    w_ih: &Tensor,
    w_hh: &Tensor,
    b_ih: &Tensor,
    b_hh: &Tensor,
    h0: &Tensor,
) -> Result<Tensor> {
    let states = [h0];
    let layer = Layer::check("rnn", 1, x, [w_ih, w_hh, b_ih, b_hh], &states)?;
    let (s, products) = (layer.sizes, layer.products);
    let layout = Layout::contiguous("rnn", &[s.steps, s.batch, s.hidden])?;
    if layout.is_empty() {
        let h = Buffer::zeros(0);
        return Ok(Tensor::from_op(layer.op, &layer.operands(), h, layout, |v| {
            no_gradients(v.inputs)
        }));
    }
    let mut h = layer.project(true);
    {
        let w = w_hh.compact();
        let packed = products.pack(MatRef::new(&w, s.hidden, s.hidden).t());
        rnn_forward(&mut h, &packed, &h0.compact(), f, s);
    }
    let x = x.with(None);
    Ok(Tensor::from_op(layer.op, &layer.operands(), h, layout, move |v| {
        let x = x.with(v.inputs.get(5));
        if is_recording() {
            return twin_gradients(v, |t| {
                rnn_plain(&x.with(t.get(5)), f, &t[0], &t[1], &t[2], &t[3], &t[4])
            });
        }
        let (w_ih, w_hh, h0) = (&v.inputs[0], v.inputs[1].compact(), v.inputs[4].compact());
        let h = v.output.compact();
        let mut d_sums = v.d_output;
        let mut d_h0 = Buffer::scratch(h0.len());
        d_sums.update(|d| {
            let w_hh_t = products.pack(MatRef::new(&w_hh, s.hidden, s.hidden));
            rnn_backward(&h, d, &w_hh_t, &mut d_h0, f, s);
        });
        let d_sums = d_sums.compact();
        let wants_x = v.wanted.get(5) == Some(&true);
        let d = project_backward(products, &x, w_ih, &d_sums, v.wanted[0], wants_x)?;
        let d_w_hh =
            v.wanted[1].then(|| hidden_gradient(products, &d_sums, &h, &h0, s)).transpose()?;
        let state = Layout::contiguous("rnn", v.inputs[4].shape())?;
        let mut grads = vec![d.w_ih, d_w_hh, Some(d.bias.clone()), Some(d.bias)];
        grads.push(Some(Tensor::constant(d_h0, state)));
        if v.inputs.len() > 5 {
            grads.push(d.x);
        }
        Ok(grads)
    }))
}

/// The Elman network of small operations: oracle, second derivative, lesson.
///
/// # Shapes
/// As in [`rnn_layer`].
///
/// # Errors
/// As [`rnn_layer`].
pub fn rnn_plain(
    x: &Input,
    f: Nonlinearity,
    w_ih: &Tensor,
    w_hh: &Tensor,
    b_ih: &Tensor,
    b_hh: &Tensor,
    h0: &Tensor,
) -> Result<Tensor> {
    let states = [h0];
    let layer = Layer::check("rnn", 1, x, [w_ih, w_hh, b_ih, b_hh], &states)?;
    let s = layer.sizes;
    let input_part = x.project_plain(w_ih, Some(&b_ih.add(b_hh)?))?;
    let w_hh_t = w_hh.t()?;
    let mut h = h0.clone();
    let mut hs = Vec::new();
    for t in 0..s.steps {
        let sum = input_part.select(0, t)?.add(&h.matmul(&w_hh_t)?)?;
        h = match f {
            Nonlinearity::Tanh => sum.tanh()?,
            Nonlinearity::Relu => sum.relu()?,
        };
        hs.push(h.clone());
    }
    if hs.is_empty() {
        return Tensor::zeros(&[0, s.batch, s.hidden]);
    }
    Tensor::stack(&hs.iter().collect::<Vec<_>>())
}
