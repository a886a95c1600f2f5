//! Long short-term memory.
//!
//! ```text
//! i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)      f, o likewise
//! g = tanh   (W_ig x + b_ig + W_hg h + b_hg)
//! c = f * c + i * g
//! h = o * tanh(c)
//! ```
//! The rows of the weights are ordered i, f, g, o.
//!
//! Source: Hochreiter & Schmidhuber 1997; forget gate from Gers, Schmidhuber & Cummins 2000.

use std::sync::Mutex;

use etude_kernels::gemm::MatRef;
use etude_kernels::recurrent::{lstm_backward, lstm_forward};

use super::{Input, Layer, hidden_gradient, no_gradients, project_backward};
use crate::autograd::{is_recording, twin_gradients};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::memory::Buffer;
use crate::tensor::Tensor;

/// Runs an LSTM layer over a whole sequence, as one node.
///
/// # Shapes
/// `x` `[steps, batch, inputs]`; `w_ih` `[4 * hidden, inputs]`, `w_hh` `[4 * hidden, hidden]`,
/// `b_ih`, `b_hh` `[4 * hidden]`; `h0`, `c0` `[batch, hidden]`. The result is
/// `[2, steps, batch, hidden]`: all `h`, then all `c`; take them apart with [`Tensor::select`].
///
/// # Errors
/// If the sizes do not fit or an id is not below `inputs`.
///
/// # Source
/// Hochreiter & Schmidhuber 1997; gate order as in PyTorch.
pub fn lstm_layer(
    x: &Input,
    w_ih: &Tensor,
    w_hh: &Tensor,
    b_ih: &Tensor,
    b_hh: &Tensor,
    h0: &Tensor,
    c0: &Tensor,
) -> Result<Tensor> {
    let states = [h0, c0];
    let layer = Layer::check("lstm", 4, x, [w_ih, w_hh, b_ih, b_hh], &states)?;
    let (s, products) = (layer.sizes, layer.products);
    let layout = Layout::contiguous("lstm", &[2, s.steps, s.batch, s.hidden])?;
    let mut y = Buffer::scratch(layout.len());
    if y.is_empty() {
        return Ok(Tensor::from_op(layer.op, &layer.operands(), y, layout, |v| {
            no_gradients(v.inputs)
        }));
    }
    let mut gates = layer.project(true);
    {
        let w = w_hh.compact();
        let packed = products.pack(MatRef::new(&w, 4 * s.hidden, s.hidden).t());
        let half = y.len() / 2;
        let (h, c) = y.split_at_mut(half);
        lstm_forward(&mut gates, &packed, &h0.compact(), &c0.compact(), h, c, s);
    }
    let saved = Mutex::new(Some(gates));
    let x = x.with(None);
    Ok(Tensor::from_op(layer.op, &layer.operands(), y, layout, move |v| {
        let x = x.with(v.inputs.get(6));
        if is_recording() {
            return twin_gradients(v, |t| {
                lstm_plain(&x.with(t.get(6)), &t[0], &t[1], &t[2], &t[3], &t[4], &t[5])
            });
        }
        let mut gates = {
            let mut saved = saved.lock().unwrap_or_else(|e| e.into_inner());
            let gates = if v.last { saved.take() } else { saved.clone() };
            gates.ok_or_else(|| Error::argument("lstm", "its gates are gone"))?
        };
        let (w_ih, w_hh) = (&v.inputs[0], v.inputs[1].compact());
        let (h0, c0) = (v.inputs[4].compact(), v.inputs[5].compact());
        let (y, d_y) = (v.output.compact(), v.d_output.compact());
        let (h, c) = y.split_at(y.len() / 2);
        let (d_h, d_c) = d_y.split_at(y.len() / 2);
        let (mut d_h0, mut d_c0) = (Buffer::scratch(h0.len()), Buffer::scratch(c0.len()));
        {
            let w_hh_t = products.pack(MatRef::new(&w_hh, 4 * s.hidden, s.hidden));
            lstm_backward(&mut gates, &w_hh_t, &c0, c, d_h, d_c, &mut d_h0, &mut d_c0, s);
        }
        let wants_x = v.wanted.get(6) == Some(&true);
        let d = project_backward(products, &x, w_ih, &gates, v.wanted[0], wants_x)?;
        let d_w_hh =
            v.wanted[1].then(|| hidden_gradient(products, &gates, h, &h0, s)).transpose()?;
        let state = *v.inputs[4].layout();
        let state = Layout::contiguous("lstm", state.dims())?;
        let mut grads = vec![d.w_ih, d_w_hh, Some(d.bias.clone()), Some(d.bias)];
        grads.push(Some(Tensor::constant(d_h0, state)));
        grads.push(Some(Tensor::constant(d_c0, state)));
        if v.inputs.len() > 6 {
            grads.push(d.x);
        }
        Ok(grads)
    }))
}

/// The LSTM of small operations: oracle, second derivative, lesson.
///
/// # Shapes
/// As in [`lstm_layer`].
///
/// # Errors
/// As [`lstm_layer`].
pub fn lstm_plain(
    x: &Input,
    w_ih: &Tensor,
    w_hh: &Tensor,
    b_ih: &Tensor,
    b_hh: &Tensor,
    h0: &Tensor,
    c0: &Tensor,
) -> Result<Tensor> {
    let states = [h0, c0];
    let layer = Layer::check("lstm", 4, x, [w_ih, w_hh, b_ih, b_hh], &states)?;
    let s = layer.sizes;
    let input_part = x.project_plain(w_ih, Some(&b_ih.add(b_hh)?))?;
    let (mut h, mut c) = (h0.clone(), c0.clone());
    let (mut hs, mut cs) = (Vec::new(), Vec::new());
    let w_hh_t = w_hh.t()?;
    for t in 0..s.steps {
        let gates = input_part.select(0, t)?.add(&h.matmul(&w_hh_t)?)?;
        let gate = |k: usize| gates.slice(1, k * s.hidden..(k + 1) * s.hidden);
        let (i, f) = (gate(0)?.sigmoid()?, gate(1)?.sigmoid()?);
        let (g, o) = (gate(2)?.tanh()?, gate(3)?.sigmoid()?);
        c = f.mul(&c)?.add(&i.mul(&g)?)?;
        h = o.mul(&c.tanh()?)?;
        hs.push(h.clone());
        cs.push(c.clone());
    }
    let all: Vec<&Tensor> = hs.iter().chain(&cs).collect();
    if all.is_empty() {
        return Tensor::zeros(&[2, 0, s.batch, s.hidden]);
    }
    Tensor::stack(&all)?.reshape(&[2, s.steps, s.batch, s.hidden])
}
