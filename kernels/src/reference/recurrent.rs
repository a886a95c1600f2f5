//! Recurrent sequences by their definition, in f64: the oracle.
//!
//! Shapes and gate orders as in [`crate::recurrent`]; weights are PyTorch's `w_hh`
//! `[gates * hidden, hidden]`.

use crate::recurrent::{Nonlinearity, Sizes};

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `W x` for row-major `w` `[rows, x.len()]`.
fn product(w: &[f64], x: &[f64]) -> Vec<f64> {
    w.chunks_exact(x.len().max(1)).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

/// `W^T y` for row-major `w` `[y.len(), cols]`.
fn product_t(w: &[f64], y: &[f64], cols: usize) -> Vec<f64> {
    let mut x = vec![0.0; cols];
    for (row, y) in w.chunks_exact(cols.max(1)).zip(y) {
        x.iter_mut().zip(row).for_each(|(x, w)| *x += w * y);
    }
    x
}

/// LSTM: returns the activated gates, `h` and `c` from the pre-activations of the input part.
pub fn lstm_forward(
    x: &[f64],
    w_hh: &[f64],
    h0: &[f64],
    c0: &[f64],
    s: Sizes,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (n, g) = (s.hidden, 4 * s.hidden);
    let mut gates = x.to_vec();
    let (mut h, mut c) = (vec![0.0; s.steps * s.batch * n], vec![0.0; s.steps * s.batch * n]);
    for b in 0..s.batch {
        let mut h_prev = h0[b * n..(b + 1) * n].to_vec();
        let mut c_prev = c0[b * n..(b + 1) * n].to_vec();
        for t in 0..s.steps {
            let rec = product(w_hh, &h_prev);
            let row = t * s.batch + b;
            for j in 0..n {
                let sum = |gate: usize| x[row * g + gate * n + j] + rec[gate * n + j];
                let (i, f) = (sigmoid(sum(0)), sigmoid(sum(1)));
                let (cell, o) = (sum(2).tanh(), sigmoid(sum(3)));
                for (gate, value) in [i, f, cell, o].into_iter().enumerate() {
                    gates[row * g + gate * n + j] = value;
                }
                c[row * n + j] = f * c_prev[j] + i * cell;
                h[row * n + j] = o * c[row * n + j].tanh();
            }
            h_prev.copy_from_slice(&h[row * n..(row + 1) * n]);
            c_prev.copy_from_slice(&c[row * n..(row + 1) * n]);
        }
    }
    (gates, h, c)
}

/// LSTM: returns the gradients of the pre-activations, of `h0` and of `c0` (`d_c` may be empty).
pub fn lstm_backward(
    gates: &[f64],
    w_hh: &[f64],
    c0: &[f64],
    c: &[f64],
    d_h: &[f64],
    d_c: &[f64],
    s: Sizes,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (n, g) = (s.hidden, 4 * s.hidden);
    let mut d_gates = vec![0.0; gates.len()];
    let (mut d_h0, mut d_c0) = (vec![0.0; s.batch * n], vec![0.0; s.batch * n]);
    for b in 0..s.batch {
        let (mut dh_next, mut dc_next) = (vec![0.0; n], vec![0.0; n]);
        for t in (0..s.steps).rev() {
            let row = t * s.batch + b;
            for j in 0..n {
                let gate = |k: usize| gates[row * g + k * n + j];
                let (i, f, cell, o) = (gate(0), gate(1), gate(2), gate(3));
                let before = if t == 0 { c0[b * n + j] } else { c[(row - s.batch) * n + j] };
                let tanh_c = c[row * n + j].tanh();
                let dh = d_h[row * n + j] + dh_next[j];
                let outside = if d_c.is_empty() { 0.0 } else { d_c[row * n + j] };
                let dc = dc_next[j] + outside + dh * o * (1.0 - tanh_c * tanh_c);
                d_gates[row * g + j] = dc * cell * i * (1.0 - i);
                d_gates[row * g + n + j] = dc * before * f * (1.0 - f);
                d_gates[row * g + 2 * n + j] = dc * i * (1.0 - cell * cell);
                d_gates[row * g + 3 * n + j] = dh * tanh_c * o * (1.0 - o);
                dc_next[j] = dc * f;
            }
            dh_next = product_t(w_hh, &d_gates[row * g..(row + 1) * g], n);
        }
        d_h0[b * n..(b + 1) * n].copy_from_slice(&dh_next);
        d_c0[b * n..(b + 1) * n].copy_from_slice(&dc_next);
    }
    (d_gates, d_h0, d_c0)
}

/// GRU: returns the activated gates, `h`, and `W_hn h + b_hn`.
pub fn gru_forward(
    x: &[f64],
    w_hh: &[f64],
    b_hh: &[f64],
    h0: &[f64],
    s: Sizes,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (n, g) = (s.hidden, 3 * s.hidden);
    let mut gates = x.to_vec();
    let (mut h, mut h_n) = (vec![0.0; s.steps * s.batch * n], vec![0.0; s.steps * s.batch * n]);
    for b in 0..s.batch {
        let mut h_prev = h0[b * n..(b + 1) * n].to_vec();
        for t in 0..s.steps {
            let mut rec = product(w_hh, &h_prev);
            rec.iter_mut().zip(b_hh).for_each(|(x, b)| *x += b);
            let row = t * s.batch + b;
            for j in 0..n {
                let input = |gate: usize| x[row * g + gate * n + j];
                let (r, z) = (sigmoid(input(0) + rec[j]), sigmoid(input(1) + rec[n + j]));
                let new = (input(2) + r * rec[2 * n + j]).tanh();
                for (gate, value) in [r, z, new].into_iter().enumerate() {
                    gates[row * g + gate * n + j] = value;
                }
                h_n[row * n + j] = rec[2 * n + j];
                h[row * n + j] = (1.0 - z) * new + z * h_prev[j];
            }
            h_prev.copy_from_slice(&h[row * n..(row + 1) * n]);
        }
    }
    (gates, h, h_n)
}

/// GRU: returns the gradients of the input part, of the recurrent part and of `h0`.
pub fn gru_backward(
    gates: &[f64],
    w_hh: &[f64],
    h0: &[f64],
    h: &[f64],
    h_n: &[f64],
    d_h: &[f64],
    s: Sizes,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (n, g) = (s.hidden, 3 * s.hidden);
    let (mut d_x, mut d_rec) = (vec![0.0; gates.len()], vec![0.0; gates.len()]);
    let mut d_h0 = vec![0.0; s.batch * n];
    for b in 0..s.batch {
        let mut dh_next = vec![0.0; n];
        for t in (0..s.steps).rev() {
            let row = t * s.batch + b;
            let mut past = vec![0.0; n];
            for j in 0..n {
                let gate = |k: usize| gates[row * g + k * n + j];
                let (r, z, new) = (gate(0), gate(1), gate(2));
                let before = if t == 0 { h0[b * n + j] } else { h[(row - s.batch) * n + j] };
                let dh = d_h[row * n + j] + dh_next[j];
                let d_new = dh * (1.0 - z) * (1.0 - new * new);
                let d_r = d_new * h_n[row * n + j] * r * (1.0 - r);
                let d_z = dh * (before - new) * z * (1.0 - z);
                for (gate, value) in [d_r, d_z, d_new].into_iter().enumerate() {
                    d_x[row * g + gate * n + j] = value;
                }
                for (gate, value) in [d_r, d_z, d_new * r].into_iter().enumerate() {
                    d_rec[row * g + gate * n + j] = value;
                }
                past[j] = dh * z;
            }
            dh_next = product_t(w_hh, &d_rec[row * g..(row + 1) * g], n);
            dh_next.iter_mut().zip(past).for_each(|(x, past)| *x += past);
        }
        d_h0[b * n..(b + 1) * n].copy_from_slice(&dh_next);
    }
    (d_x, d_rec, d_h0)
}

/// Elman network: returns the states from the input part of the sums.
pub fn rnn_forward(x: &[f64], w_hh: &[f64], h0: &[f64], f: Nonlinearity, s: Sizes) -> Vec<f64> {
    let n = s.hidden;
    let mut h = x.to_vec();
    for b in 0..s.batch {
        let mut h_prev = h0[b * n..(b + 1) * n].to_vec();
        for t in 0..s.steps {
            let rec = product(w_hh, &h_prev);
            let row = t * s.batch + b;
            for j in 0..n {
                let sum = x[row * n + j] + rec[j];
                h[row * n + j] = match f {
                    Nonlinearity::Tanh => sum.tanh(),
                    Nonlinearity::Relu => sum.max(0.0),
                };
            }
            h_prev.copy_from_slice(&h[row * n..(row + 1) * n]);
        }
    }
    h
}

/// Elman network: returns the gradients of the sums and of `h0`.
pub fn rnn_backward(
    h: &[f64],
    d_h: &[f64],
    w_hh: &[f64],
    f: Nonlinearity,
    s: Sizes,
) -> (Vec<f64>, Vec<f64>) {
    let n = s.hidden;
    let mut d_sum = vec![0.0; h.len()];
    let mut d_h0 = vec![0.0; s.batch * n];
    for b in 0..s.batch {
        let mut dh_next = vec![0.0; n];
        for t in (0..s.steps).rev() {
            let row = t * s.batch + b;
            for j in 0..n {
                let y = h[row * n + j];
                let slope = match f {
                    Nonlinearity::Tanh => 1.0 - y * y,
                    Nonlinearity::Relu => f64::from(u8::from(y > 0.0)),
                };
                d_sum[row * n + j] = (d_h[row * n + j] + dh_next[j]) * slope;
            }
            dh_next = product_t(w_hh, &d_sum[row * n..(row + 1) * n], n);
        }
        d_h0[b * n..(b + 1) * n].copy_from_slice(&dh_next);
    }
    (d_sum, d_h0)
}

/// One query's look at some outputs: the softmax of `v . tanh(key_i + query)` over `i`, and the sum of
/// the values that it weighs.
pub fn attend_forward(
    query: &[f64],
    keys: &[f64],
    values: &[f64],
    v: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let hidden = v.len();
    let score = |key: &[f64]| -> f64 {
        key.iter().zip(query).zip(v).map(|((k, q), v)| v * (k + q).tanh()).sum()
    };
    let terms: Vec<f64> = keys.chunks_exact(hidden).map(|key| score(key).exp()).collect();
    let total: f64 = terms.iter().sum();
    let shares: Vec<f64> = terms.iter().map(|e| e / total).collect();
    let mut found = vec![0.0; hidden];
    for (share, value) in shares.iter().zip(values.chunks_exact(hidden)) {
        found.iter_mut().zip(value).for_each(|(found, value)| *found += share * value);
    }
    (shares, found)
}
