//! An LSTM that looks back at its own last outputs, over a sequence.
//!
//! ```text
//! c, h  = LSTM(input part + W_hd [h, d] of the step before)
//! q     = W_q [c, h] + b_q
//! s_i   = v . tanh(k_i + q)                 for each of the last `length` outputs
//! d     = sum over i of softmax(s)_i y_i
//! y     = W_o [h, d] + b_o                  the output, remembered with its key k = W_k y
//! ```
//! Before the first step the memory holds zeros, keys too. Outputs and keys lie row by row, in the
//! order of time behind those zeros, so what a step looks at is one slice, and a key is computed once.
//! `c`, `h` and `d` of a row lie side by side: `[c, h]` and `[h, d]` are two views of one matrix.
//!
//! Source: Bahdanau, Cho & Bengio 2015 for the score; the wrapper of Magenta's attention RNN (Waite
//! 2016).

use super::{Sizes, Weight};
use crate::cpu::attend::{Attend, AttendBackward};
use crate::cpu::cell_lstm::{LstmCell, LstmCellBackward};
use crate::cpu::lanes::dispatch;
use crate::cpu::shared::{Shared, with_scratch};
use crate::gemm::{MatMut, MatRef};

/// The weights of an attended LSTM after its input part, packed: for the forward their transposes,
/// for the backward as they are.
#[derive(Clone, Copy)]
pub struct AttendedWeights<'a> {
    /// `[4 * hidden, 2 * hidden]`: from `[h, d]` to the gates.
    pub w_hd: Weight<'a>,
    /// `[hidden, 2 * hidden]`: from `[c, h]` to the query.
    pub w_q: Weight<'a>,
    /// `[hidden]`
    pub b_q: &'a [f32],
    /// `[hidden]`
    pub v: &'a [f32],
    /// `[hidden, hidden]`: from an output to its key.
    pub w_k: Weight<'a>,
    /// `[hidden, 2 * hidden]`: from `[h, d]` to the output.
    pub w_o: Weight<'a>,
    /// `[hidden]`
    pub b_o: &'a [f32],
}

/// Looks at some outputs with one query.
///
/// # Shapes
/// `query`, `v`, `found` `[hidden]`; `keys`, `values` `[length, hidden]`; `shares` `[length]`.
/// `shares`, the softmax of the scores, and `found` are written.
///
/// # Source
/// Bahdanau, Cho & Bengio 2015.
pub fn attend_forward(
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    v: &[f32],
    shares: &mut [f32],
    found: &mut [f32],
) {
    assert!(query.len() == v.len() && found.len() == v.len());
    assert!(keys.len() == shares.len() * v.len() && values.len() == keys.len());
    dispatch(Attend { query, keys, values, v, shares, found });
}

/// The gradients of [`attend_forward`], with its `shares` and `found`.
///
/// # Shapes
/// As there; `d_scores` `[length]` is room to work in. `d_query` is written; what belongs to `keys`,
/// `values` and `v` is added to `d_keys`, `d_values` and `d_v`.
pub fn attend_backward(
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    v: &[f32],
    shares: &[f32],
    found: &[f32],
    d_found: &[f32],
    d_scores: &mut [f32],
    d_query: &mut [f32],
    d_keys: &mut [f32],
    d_values: &mut [f32],
    d_v: &mut [f32],
) {
    let (hidden, length) = (v.len(), shares.len());
    assert!(query.len() == hidden && found.len() == hidden && d_found.len() == hidden);
    assert!(d_query.len() == hidden && d_v.len() == hidden && d_scores.len() == length);
    assert!(keys.len() == length * hidden && values.len() == keys.len());
    assert!(d_keys.len() == keys.len() && d_values.len() == keys.len());
    dispatch(AttendBackward {
        query,
        keys,
        values,
        v,
        shares,
        found,
        d_found,
        d_scores,
        d_query,
        d_keys,
        d_values,
        d_v,
    });
}

/// Runs an attended LSTM over a sequence from a zero state.
///
/// # Shapes
/// `gates` `[steps, batch, 4 * hidden]`: on entry the input part with its bias, on return the activated
/// gates i, f, g, o. Written: `states` `[steps, batch, 3 * hidden]`, which are `c`, `h` and `d`;
/// `queries`, `y` `[steps, batch, hidden]`; `shares` `[steps, batch, length]`; `memory` and `keys`
/// `[batch, length + steps, hidden]`, zeros and then the outputs and their keys.
///
/// # Source
/// Bahdanau, Cho & Bengio 2015; Waite 2016.
pub fn attended_lstm_forward(
    gates: &mut [f32],
    w: &AttendedWeights,
    states: &mut [f32],
    queries: &mut [f32],
    shares: &mut [f32],
    memory: &mut [f32],
    keys: &mut [f32],
    y: &mut [f32],
    length: usize,
    s: Sizes,
) {
    let (n, g, width, slots) = (s.hidden, 4 * s.hidden, 3 * s.hidden, length + s.steps);
    let rows = s.steps * s.batch;
    assert!(gates.len() == rows * g && states.len() == rows * width && y.len() == rows * n);
    assert!(queries.len() == y.len() && shares.len() == rows * length);
    assert!(memory.len() == s.batch * slots * n && keys.len() == memory.len());
    assert!(w.b_q.len() == n && w.b_o.len() == n && w.v.len() == n);
    if y.is_empty() {
        return;
    }
    let [gates, states, queries, shares, memory, keys, y] =
        [gates, states, queries, shares, memory, keys, y].map(Shared::new);
    s.for_rows(|rows| {
        let (m, own) = (rows.len(), rows.start * slots * n..rows.end * slots * n);
        // SAFETY: this task alone touches these rows.
        let (memory, keys) = unsafe { (memory.slice(own.clone()), keys.slice(own)) };
        for piece in memory.chunks_exact_mut(slots * n).chain(keys.chunks_exact_mut(slots * n)) {
            piece[..length * n].fill(0.0);
        }
        with_scratch(n, |zeros| {
            zeros.fill(0.0);
            let mut before: Option<&[f32]> = None;
            for t in 0..s.steps {
                // SAFETY: as above, and each step of them once.
                let (gates, states, queries, shares, y) = unsafe {
                    (
                        gates.slice(s.at(t, &rows, g)),
                        states.slice(s.at(t, &rows, width)),
                        queries.slice(s.at(t, &rows, n)),
                        shares.slice(s.at(t, &rows, length)),
                        y.slice(s.at(t, &rows, n)),
                    )
                };
                if let Some(before) = before {
                    let h_d = MatRef::strided(&before[n..], m, 2 * n, width, 1);
                    s.add_product(t, h_d, w.w_hd, gates);
                }
                for (r, gates) in gates.chunks_exact_mut(g).enumerate() {
                    let c_prev = before.map_or(&*zeros, |b| &b[r * width..][..n]);
                    let (c, rest) = states[r * width..(r + 1) * width].split_at_mut(n);
                    dispatch(LstmCell { gates, c_prev, c, h: &mut rest[..n], hidden: n });
                }
                let c_h = MatRef::strided(states, m, 2 * n, width, 1);
                s.product_of(c_h, w.w_q, Some(w.b_q), &mut MatMut::new(queries, m, n), false);
                for (r, query) in queries.chunks_exact(n).enumerate() {
                    let at = (r * slots + t) * n..(r * slots + t + length) * n;
                    dispatch(Attend {
                        query,
                        keys: &keys[at.clone()],
                        values: &memory[at],
                        v: w.v,
                        shares: &mut shares[r * length..(r + 1) * length],
                        found: &mut states[r * width + 2 * n..(r + 1) * width],
                    });
                }
                let h_d = MatRef::strided(&states[n..], m, 2 * n, width, 1);
                s.product_of(h_d, w.w_o, Some(w.b_o), &mut MatMut::new(y, m, n), false);
                let newest = (length + t) * n;
                let to = &mut MatMut::strided(&mut keys[newest..], m, n, slots * n);
                s.product_of(MatRef::new(y, m, n), w.w_k, None, to, false);
                for (piece, y) in memory.chunks_exact_mut(slots * n).zip(y.chunks_exact(n)) {
                    piece[newest..newest + n].copy_from_slice(y);
                }
                before = Some(states);
            }
        });
    });
}

/// Runs an attended LSTM backwards through time.
///
/// Weight gradients are products that the caller makes: of `gates` and `[h, d]` of the step before, of
/// `d_queries` and `[c, h]`, of `d_y` and `[h, d]`, of `d_keys` and `memory`; that of `v` is the sum
/// of the rows of `d_v`.
///
/// # Shapes
/// As in [`attended_lstm_forward`], whose results are read. `gates`: on return the gradients of the
/// pre-activations. `d_y`: on entry the gradient that reaches each output from outside, on return all
/// of it. Written: `d_queries` `[steps, batch, hidden]`; `d_memory` (room to work in) and `d_keys`
/// `[batch, length + steps, hidden]`; `d_v` `[batch, hidden]`.
pub fn attended_lstm_backward(
    gates: &mut [f32],
    w: &AttendedWeights,
    states: &[f32],
    queries: &[f32],
    shares: &[f32],
    memory: &[f32],
    keys: &[f32],
    d_y: &mut [f32],
    d_queries: &mut [f32],
    d_memory: &mut [f32],
    d_keys: &mut [f32],
    d_v: &mut [f32],
    length: usize,
    s: Sizes,
) {
    let (n, g, width, slots) = (s.hidden, 4 * s.hidden, 3 * s.hidden, length + s.steps);
    let rows = s.steps * s.batch;
    assert!(gates.len() == rows * g && states.len() == rows * width && d_y.len() == rows * n);
    assert!(queries.len() == d_y.len() && shares.len() == rows * length);
    assert!(memory.len() == s.batch * slots * n && keys.len() == memory.len());
    assert!(d_queries.len() == d_y.len() && d_v.len() == s.batch * n && w.v.len() == n);
    assert!(d_memory.len() == memory.len() && d_keys.len() == keys.len());
    if d_y.is_empty() {
        return;
    }
    let [gates, d_y, d_queries, d_memory, d_keys, d_v] =
        [gates, d_y, d_queries, d_memory, d_keys, d_v].map(Shared::new);
    s.for_rows(|rows| {
        let (m, own) = (rows.len(), rows.start * slots * n..rows.end * slots * n);
        let (memory, keys) = (&memory[own.clone()], &keys[own.clone()]);
        // SAFETY: this task alone touches these rows.
        let (d_memory, d_keys, d_v) = unsafe {
            (
                d_memory.slice(own.clone()),
                d_keys.slice(own),
                d_v.slice(rows.start * n..rows.end * n),
            )
        };
        [&mut *d_memory, &mut *d_keys, &mut *d_v].into_iter().for_each(|x| x.fill(0.0));
        with_scratch(m * width + n + length, |room| {
            room.fill(0.0);
            // What reaches `c`, `h` and `d` of the step at hand.
            let (d_states, rest) = room.split_at_mut(m * width);
            let (zeros, d_scores) = rest.split_at_mut(n);
            for t in (0..s.steps).rev() {
                // SAFETY: as above, and each step of them once.
                let (gates, d_y, d_queries) = unsafe {
                    (
                        gates.slice(s.at(t, &rows, g)),
                        d_y.slice(s.at(t, &rows, n)),
                        d_queries.slice(s.at(t, &rows, n)),
                    )
                };
                let before = (t > 0).then(|| &states[s.at(t - 1, &rows, width)]);
                let states = &states[s.at(t, &rows, width)];
                let queries = &queries[s.at(t, &rows, n)];
                let shares = &shares[s.at(t, &rows, length)];
                // The output, as what later steps found and through its key.
                let newest = (length + t) * n;
                for (piece, d_y) in d_memory.chunks_exact(slots * n).zip(d_y.chunks_exact_mut(n)) {
                    d_y.iter_mut().zip(&piece[newest..newest + n]).for_each(|(d, x)| *d += x);
                }
                let d_key = MatRef::strided(&d_keys[newest..], m, n, slots * n, 1);
                s.product_of(d_key, w.w_k, None, &mut MatMut::new(d_y, m, n), true);
                let h_d = &mut MatMut::strided(&mut d_states[n..], m, 2 * n, width);
                s.product_of(MatRef::new(d_y, m, n), w.w_o, None, h_d, true);
                for (r, query) in queries.chunks_exact(n).enumerate() {
                    let at = (r * slots + t) * n..(r * slots + t + length) * n;
                    dispatch(AttendBackward {
                        query,
                        keys: &keys[at.clone()],
                        values: &memory[at.clone()],
                        v: w.v,
                        shares: &shares[r * length..(r + 1) * length],
                        found: &states[r * width + 2 * n..(r + 1) * width],
                        d_found: &d_states[r * width + 2 * n..(r + 1) * width],
                        d_scores: &mut *d_scores,
                        d_query: &mut d_queries[r * n..(r + 1) * n],
                        d_keys: &mut d_keys[at.clone()],
                        d_values: &mut d_memory[at],
                        d_v: &mut d_v[r * n..(r + 1) * n],
                    });
                }
                let c_h = &mut MatMut::strided(d_states, m, 2 * n, width);
                s.product_of(MatRef::new(d_queries, m, n), w.w_q, None, c_h, true);
                for (r, gates) in gates.chunks_exact_mut(g).enumerate() {
                    let (d_c, rest) = d_states[r * width..(r + 1) * width].split_at_mut(n);
                    let c_prev = before.map_or(&*zeros, |b| &b[r * width..][..n]);
                    dispatch(LstmCellBackward {
                        gates,
                        c_prev,
                        c: &states[r * width..][..n],
                        d_h: &rest[..n],
                        d_c: &[],
                        d_h_next: zeros,
                        d_c_next: d_c,
                        hidden: n,
                    });
                }
                if before.is_some() {
                    let h_d = &mut MatMut::strided(&mut d_states[n..], m, 2 * n, width);
                    s.product_of(MatRef::new(gates, m, g), w.w_hd, None, h_d, false);
                }
            }
        });
    });
}
