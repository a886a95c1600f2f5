//! Recurrent sequences: the part of RNN, GRU and LSTM that runs step after step.
//!
//! The caller computes the input part of every step at once (one big product), then calls these with
//! `gates` holding it. Everything is time-major: `[steps, batch, ...]`. Gate order is PyTorch's:
//! LSTM i, f, g, o; GRU r, z, n. Weight gradients are big products again, made by the caller from
//! `d_gates`.

use crate::gemm::{MatMut, MatRef, PackedB, gemm_packed_forward};

/// The sizes of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Time steps.
    pub steps: usize,
    /// Rows of a step.
    pub batch: usize,
    /// Hidden units.
    pub hidden: usize,
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Runs an LSTM over a sequence.
///
/// # Shapes
/// `gates` `[steps, batch, 4 * hidden]`: on entry `x W_ih^T + b_ih + b_hh`, on return the activated
/// gates i, f, g, o. `w_hh` packs `W_hh^T` `[hidden, 4 * hidden]`. `h0`, `c0` `[batch, hidden]`.
/// `h`, `c` `[steps, batch, hidden]`, written.
///
/// # Source
/// Hochreiter & Schmidhuber 1997; forget gate from Gers, Schmidhuber & Cummins 2000.
pub fn lstm_forward(
    gates: &mut [f32],
    w_hh: &PackedB,
    h0: &[f32],
    c0: &[f32],
    h: &mut [f32],
    c: &mut [f32],
    s: Sizes,
) {
    let (bh, g) = (s.batch * s.hidden, 4 * s.hidden);
    assert!(gates.len() == s.steps * s.batch * g && h.len() == s.steps * bh && c.len() == h.len());
    assert!(h0.len() == bh && c0.len() == bh && w_hh.k() == s.hidden && w_hh.n() == g);
    for t in 0..s.steps {
        let gates = &mut gates[t * s.batch * g..(t + 1) * s.batch * g];
        let (h_past, h_now) = h.split_at_mut(t * bh);
        let (c_past, c_now) = c.split_at_mut(t * bh);
        let h_prev = if t == 0 { h0 } else { &h_past[(t - 1) * bh..] };
        let c_prev = if t == 0 { c0 } else { &c_past[(t - 1) * bh..] };
        let a = MatRef::new(h_prev, s.batch, s.hidden);
        gemm_packed_forward(a, w_hh, None, &mut MatMut::new(gates, s.batch, g), true);
        for b in 0..s.batch {
            let row = &mut gates[b * g..(b + 1) * g];
            for j in 0..s.hidden {
                let (i, f) = (sigmoid(row[j]), sigmoid(row[s.hidden + j]));
                let (n, o) = (row[2 * s.hidden + j].tanh(), sigmoid(row[3 * s.hidden + j]));
                (row[j], row[s.hidden + j]) = (i, f);
                (row[2 * s.hidden + j], row[3 * s.hidden + j]) = (n, o);
                let at = b * s.hidden + j;
                c_now[at] = f * c_prev[at] + i * n;
                h_now[at] = o * c_now[at].tanh();
            }
        }
    }
}

/// Runs an LSTM backwards through time.
///
/// # Shapes
/// `gates` `[steps, batch, 4 * hidden]`: on entry the activated gates of the forward, on return the
/// gradient of the pre-activations. `w_hh_t` packs `W_hh` `[4 * hidden, hidden]`. `c`, `d_h`
/// `[steps, batch, hidden]` (`d_h` is the gradient that reaches each output); `d_c` likewise or
/// empty (the gradient that reaches each cell state from outside). `c0`, `d_h0`, `d_c0`
/// `[batch, hidden]`, the last two written.
pub fn lstm_backward(
    gates: &mut [f32],
    w_hh_t: &PackedB,
    c0: &[f32],
    c: &[f32],
    d_h: &[f32],
    d_c: &[f32],
    d_h0: &mut [f32],
    d_c0: &mut [f32],
    s: Sizes,
) {
    let (bh, g) = (s.batch * s.hidden, 4 * s.hidden);
    assert!(gates.len() == s.steps * s.batch * g && c.len() == s.steps * bh);
    assert!(d_h.len() == c.len() && (d_c.is_empty() || d_c.len() == c.len()));
    assert!(c0.len() == bh && d_h0.len() == bh && d_c0.len() == bh);
    assert!(w_hh_t.k() == g && w_hh_t.n() == s.hidden);
    d_h0.fill(0.0);
    d_c0.fill(0.0);
    for t in (0..s.steps).rev() {
        let gates = &mut gates[t * s.batch * g..(t + 1) * s.batch * g];
        let c_prev = if t == 0 { c0 } else { &c[(t - 1) * bh..t * bh] };
        for b in 0..s.batch {
            let row = &mut gates[b * g..(b + 1) * g];
            for j in 0..s.hidden {
                let at = b * s.hidden + j;
                let (i, f) = (row[j], row[s.hidden + j]);
                let (n, o) = (row[2 * s.hidden + j], row[3 * s.hidden + j]);
                let tanh_c = c[t * bh + at].tanh();
                let dh = d_h[t * bh + at] + d_h0[at];
                let mut dc = d_c0[at] + dh * o * (1.0 - tanh_c * tanh_c);
                if !d_c.is_empty() {
                    dc += d_c[t * bh + at];
                }
                row[j] = dc * n * i * (1.0 - i);
                row[s.hidden + j] = dc * c_prev[at] * f * (1.0 - f);
                row[2 * s.hidden + j] = dc * i * (1.0 - n * n);
                row[3 * s.hidden + j] = dh * tanh_c * o * (1.0 - o);
                d_c0[at] = dc * f;
            }
        }
        let a = MatRef::new(gates, s.batch, g);
        gemm_packed_forward(a, w_hh_t, None, &mut MatMut::new(d_h0, s.batch, s.hidden), false);
    }
}

/// Runs a GRU over a sequence (PyTorch's form: the reset gate acts after the recurrent product).
///
/// `n = tanh(x_n + r * (W_hn h + b_hn))`, `h = (1 - z) * n + z * h`.
///
/// # Shapes
/// `gates` `[steps, batch, 3 * hidden]`: on entry `x W_ih^T + b_ih`, on return the activated r, z, n.
/// `w_hh` packs `W_hh^T` `[hidden, 3 * hidden]`; `b_hh` `[3 * hidden]`. `h0` `[batch, hidden]`;
/// `h`, `h_n` `[steps, batch, hidden]`, written (`h_n` is `W_hn h + b_hn`, kept for the backward).
///
/// # Source
/// Cho et al. 2014, in the form of cuDNN.
pub fn gru_forward(
    gates: &mut [f32],
    w_hh: &PackedB,
    b_hh: &[f32],
    h0: &[f32],
    h: &mut [f32],
    h_n: &mut [f32],
    s: Sizes,
) {
    let (bh, g) = (s.batch * s.hidden, 3 * s.hidden);
    assert!(gates.len() == s.steps * s.batch * g && h.len() == s.steps * bh);
    assert!(h_n.len() == h.len() && h0.len() == bh && b_hh.len() == g);
    assert!(w_hh.k() == s.hidden && w_hh.n() == g);
    let mut part = vec![0.0; s.batch * g];
    for t in 0..s.steps {
        let gates = &mut gates[t * s.batch * g..(t + 1) * s.batch * g];
        let (h_past, h_now) = h.split_at_mut(t * bh);
        let h_prev = if t == 0 { h0 } else { &h_past[(t - 1) * bh..] };
        let a = MatRef::new(h_prev, s.batch, s.hidden);
        gemm_packed_forward(a, w_hh, Some(b_hh), &mut MatMut::new(&mut part, s.batch, g), false);
        for b in 0..s.batch {
            let (row, rec) = (&mut gates[b * g..(b + 1) * g], &part[b * g..(b + 1) * g]);
            for j in 0..s.hidden {
                let at = b * s.hidden + j;
                let r = sigmoid(row[j] + rec[j]);
                let z = sigmoid(row[s.hidden + j] + rec[s.hidden + j]);
                h_n[t * bh + at] = rec[2 * s.hidden + j];
                let n = (row[2 * s.hidden + j] + r * rec[2 * s.hidden + j]).tanh();
                (row[j], row[s.hidden + j], row[2 * s.hidden + j]) = (r, z, n);
                h_now[at] = (1.0 - z) * n + z * h_prev[at];
            }
        }
    }
}

/// Runs a GRU backwards through time.
///
/// # Shapes
/// `gates` `[steps, batch, 3 * hidden]`: activated r, z, n on entry; on return the gradient of the
/// input pre-activations (`d_gates_x`). `d_rec` `[steps, batch, 3 * hidden]`, written: the gradient
/// of `W_hh h + b_hh` (differs in the n part by the factor r). `w_hh_t` packs `W_hh`
/// `[3 * hidden, hidden]`. `h0` `[batch, hidden]`; `h`, `h_n`, `d_h` `[steps, batch, hidden]`;
/// `d_h0` `[batch, hidden]`, written.
pub fn gru_backward(
    gates: &mut [f32],
    d_rec: &mut [f32],
    w_hh_t: &PackedB,
    h0: &[f32],
    h: &[f32],
    h_n: &[f32],
    d_h: &[f32],
    d_h0: &mut [f32],
    s: Sizes,
) {
    let (bh, g) = (s.batch * s.hidden, 3 * s.hidden);
    assert!(gates.len() == s.steps * s.batch * g && d_rec.len() == gates.len());
    assert!(h.len() == s.steps * bh && h_n.len() == h.len() && d_h.len() == h.len());
    assert!(h0.len() == bh && d_h0.len() == bh && w_hh_t.k() == g && w_hh_t.n() == s.hidden);
    d_h0.fill(0.0);
    for t in (0..s.steps).rev() {
        let at_t = t * s.batch * g..(t + 1) * s.batch * g;
        let (gates, d_rec) = (&mut gates[at_t.clone()], &mut d_rec[at_t]);
        let h_prev = if t == 0 { h0 } else { &h[(t - 1) * bh..t * bh] };
        for b in 0..s.batch {
            let (row, rec) = (&mut gates[b * g..(b + 1) * g], &mut d_rec[b * g..(b + 1) * g]);
            for j in 0..s.hidden {
                let at = b * s.hidden + j;
                let (r, z, n) = (row[j], row[s.hidden + j], row[2 * s.hidden + j]);
                let dh = d_h[t * bh + at] + d_h0[at];
                let d_n = dh * (1.0 - z) * (1.0 - n * n);
                let d_r = d_n * h_n[t * bh + at] * r * (1.0 - r);
                let d_z = dh * (h_prev[at] - n) * z * (1.0 - z);
                (row[j], row[s.hidden + j], row[2 * s.hidden + j]) = (d_r, d_z, d_n);
                (rec[j], rec[s.hidden + j], rec[2 * s.hidden + j]) = (d_r, d_z, d_n * r);
                d_h0[at] = dh * z;
            }
        }
        let a = MatRef::new(d_rec, s.batch, g);
        gemm_packed_forward(a, w_hh_t, None, &mut MatMut::new(d_h0, s.batch, s.hidden), true);
    }
}

/// What an Elman network puts its sum through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nonlinearity {
    /// Hyperbolic tangent.
    Tanh,
    /// Rectifier.
    Relu,
}

/// Runs an Elman network over a sequence: `h = f(x W_ih^T + b + h W_hh^T)`.
///
/// # Shapes
/// `h` `[steps, batch, hidden]`: on entry the input part with both biases, on return the states.
/// `w_hh` packs `W_hh^T` `[hidden, hidden]`. `h0` `[batch, hidden]`.
///
/// # Source
/// Elman 1990.
pub fn rnn_forward(h: &mut [f32], w_hh: &PackedB, h0: &[f32], f: Nonlinearity, s: Sizes) {
    let bh = s.batch * s.hidden;
    assert!(h.len() == s.steps * bh && h0.len() == bh);
    assert!(w_hh.k() == s.hidden && w_hh.n() == s.hidden);
    for t in 0..s.steps {
        let (h_past, h_now) = h.split_at_mut(t * bh);
        let h_prev = if t == 0 { h0 } else { &h_past[(t - 1) * bh..] };
        let h_now = &mut h_now[..bh];
        let a = MatRef::new(h_prev, s.batch, s.hidden);
        gemm_packed_forward(a, w_hh, None, &mut MatMut::new(h_now, s.batch, s.hidden), true);
        for x in h_now {
            *x = match f {
                Nonlinearity::Tanh => x.tanh(),
                Nonlinearity::Relu => x.max(0.0),
            };
        }
    }
}

/// Runs an Elman network backwards through time.
///
/// # Shapes
/// `h` `[steps, batch, hidden]`, the states of the forward. `d_h` likewise: on entry the gradient
/// that reaches each output, on return the gradient of the sums before the nonlinearity.
/// `w_hh_t` packs `W_hh` `[hidden, hidden]`. `d_h0` `[batch, hidden]`, written.
pub fn rnn_backward(
    h: &[f32],
    d_h: &mut [f32],
    w_hh_t: &PackedB,
    d_h0: &mut [f32],
    f: Nonlinearity,
    s: Sizes,
) {
    let bh = s.batch * s.hidden;
    assert!(h.len() == s.steps * bh && d_h.len() == h.len() && d_h0.len() == bh);
    d_h0.fill(0.0);
    for t in (0..s.steps).rev() {
        let d_now = &mut d_h[t * bh..(t + 1) * bh];
        for (at, d) in d_now.iter_mut().enumerate() {
            let y = h[t * bh + at];
            let slope = match f {
                Nonlinearity::Tanh => 1.0 - y * y,
                Nonlinearity::Relu => f32::from(u8::from(y > 0.0)),
            };
            *d = (*d + d_h0[at]) * slope;
        }
        let a = MatRef::new(d_now, s.batch, s.hidden);
        gemm_packed_forward(a, w_hh_t, None, &mut MatMut::new(d_h0, s.batch, s.hidden), false);
    }
}
