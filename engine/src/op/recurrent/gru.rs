//! Gated recurrent units.
//!
//! ```text
//! r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)      z likewise
//! n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
//! h = (1 - z) * n + z * h
//! ```
//! The rows of the weights are ordered r, z, n. The reset gate acts after the recurrent product, as
//! in cuDNN and PyTorch; in the paper it acts before.
//!
//! Source: Cho et al. 2014.

use std::sync::Mutex;

use etude_kernels::gemm::MatRef;
use etude_kernels::recurrent::{gru_backward, gru_forward};

use super::{Input, Layer, bias_gradient, hidden_gradient, no_gradients, project_backward};
use crate::autograd::{is_recording, twin_gradients};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::memory::Buffer;
use crate::tensor::Tensor;

/// Runs a GRU layer over a whole sequence, as one node.
///
/// # Shapes
/// `x` `[steps, batch, inputs]`; `w_ih` `[3 * hidden, inputs]`, `w_hh` `[3 * hidden, hidden]`,
/// `b_ih`, `b_hh` `[3 * hidden]`; `h0` `[batch, hidden]`; result `[steps, batch, hidden]`.
///
/// # Errors
/// If the sizes do not fit or an id is not below `inputs`.
///
/// # Source
/// Cho et al. 2014, in the form of cuDNN.
pub fn gru_layer(
    x: &Input,
    w_ih: &Tensor,
    w_hh: &Tensor,
    b_ih: &Tensor,
    b_hh: &Tensor,
    h0: &Tensor,
) -> Result<Tensor> {
    let states = [h0];
    let layer = Layer::check("gru", 3, x, [w_ih, w_hh, b_ih, b_hh], &states)?;
    let (s, products) = (layer.sizes, layer.products);
    let layout = Layout::contiguous("gru", &[s.steps, s.batch, s.hidden])?;
    let mut h = Buffer::scratch(layout.len());
    if h.is_empty() {
        return Ok(Tensor::from_op(layer.op, &layer.operands(), h, layout, |v| {
            no_gradients(v.inputs)
        }));
    }
    let mut gates = layer.project(false);
    let mut h_n = Buffer::scratch(h.len());
    {
        let w = w_hh.compact();
        let packed = products.pack(MatRef::new(&w, 3 * s.hidden, s.hidden).t());
        let (b_hh, h0) = (b_hh.compact(), h0.compact());
        gru_forward(&mut gates, &packed, &b_hh, &h0, &mut h, &mut h_n, s);
    }
    let saved = Mutex::new(Some(gates));
    let x = x.with(None);
    Ok(Tensor::from_op(layer.op, &layer.operands(), h, layout, move |v| {
        let x = x.with(v.inputs.get(5));
        if is_recording() {
            return twin_gradients(v, |t| {
                gru_plain(&x.with(t.get(5)), &t[0], &t[1], &t[2], &t[3], &t[4])
            });
        }
        let mut gates = {
            let mut saved = saved.lock().unwrap_or_else(|e| e.into_inner());
            let gates = if v.last { saved.take() } else { saved.clone() };
            gates.ok_or_else(|| Error::argument("gru", "its gates are gone"))?
        };
        let (w_ih, w_hh, h0) = (&v.inputs[0], v.inputs[1].compact(), v.inputs[4].compact());
        let (h, d_h) = (v.output.compact(), v.d_output.compact());
        let mut d_rec = Buffer::scratch(gates.len());
        let mut d_h0 = Buffer::scratch(h0.len());
        {
            let w_hh_t = products.pack(MatRef::new(&w_hh, 3 * s.hidden, s.hidden));
            gru_backward(&mut gates, &mut d_rec, &w_hh_t, &h0, &h, &h_n, &d_h, &mut d_h0, s);
        }
        let wants_x = v.wanted.get(5) == Some(&true);
        let d = project_backward(products, &x, w_ih, &gates, v.wanted[0], wants_x)?;
        let d_w_hh =
            v.wanted[1].then(|| hidden_gradient(products, &d_rec, &h, &h0, s)).transpose()?;
        let d_b_hh = bias_gradient(&d_rec, 3 * s.hidden)?;
        let state = Layout::contiguous("gru", v.inputs[4].shape())?;
        let mut grads = vec![d.w_ih, d_w_hh, Some(d.bias), Some(d_b_hh)];
        grads.push(Some(Tensor::constant(d_h0, state)));
        if v.inputs.len() > 5 {
            grads.push(d.x);
        }
        Ok(grads)
    }))
}

/// The GRU of small operations: oracle, second derivative, lesson.
///
/// # Shapes
/// As in [`gru_layer`].
///
/// # Errors
/// As [`gru_layer`].
pub fn gru_plain(
    x: &Input,
    w_ih: &Tensor,
    w_hh: &Tensor,
    b_ih: &Tensor,
    b_hh: &Tensor,
    h0: &Tensor,
) -> Result<Tensor> {
    let states = [h0];
    let layer = Layer::check("gru", 3, x, [w_ih, w_hh, b_ih, b_hh], &states)?;
    let s = layer.sizes;
    let input_part = x.project_plain(w_ih, Some(b_ih))?;
    let w_hh_t = w_hh.t()?;
    let mut h = h0.clone();
    let mut hs = Vec::new();
    for t in 0..s.steps {
        let from_x = input_part.select(0, t)?;
        let from_h = h.matmul(&w_hh_t)?.add(b_hh)?;
        let gate = |part: &Tensor, k: usize| part.slice(1, k * s.hidden..(k + 1) * s.hidden);
        let r = gate(&from_x, 0)?.add(&gate(&from_h, 0)?)?.sigmoid()?;
        let z = gate(&from_x, 1)?.add(&gate(&from_h, 1)?)?.sigmoid()?;
        let n = gate(&from_x, 2)?.add(&r.mul(&gate(&from_h, 2)?)?)?.tanh()?;
        h = z.affine(-1.0, 1.0)?.mul(&n)?.add(&z.mul(&h)?)?;
        hs.push(h.clone());
    }
    if hs.is_empty() {
        return Tensor::zeros(&[0, s.batch, s.hidden]);
    }
    Tensor::stack(&hs.iter().collect::<Vec<_>>())
}
