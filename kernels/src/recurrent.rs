//! Recurrent sequences: the part of RNN, GRU and LSTM that runs step after step.
//!
//! The caller computes the input part of every step at once (one big product), then calls these with
//! `gates` holding it. Everything is time-major: `[steps, batch, ...]`. Gate order is PyTorch's:
//! LSTM i, f, g, o; GRU r, z, n. Weight gradients are big products again, made by the caller from
//! `d_gates`.
//!
//! Rows of a batch never meet inside of a sequence, so each task takes some rows through all steps:
//! one fork per sequence. A row's bits depend on nothing but the row (the product's sums do not
//! depend on how many rows it has, and the rest is pointwise), so it does not matter for them how
//! many rows a task takes.

mod attended;

pub use attended::*;

use crate::cpu::ahead::Ahead;
use crate::cpu::cell_gru::{GruCell, GruCellBackward};
use crate::cpu::cell_lstm::{LstmCell, LstmCellBackward};
use crate::cpu::cell_rnn::{RnnCell, RnnCellBackward};
use crate::cpu::lanes::dispatch;
use crate::cpu::shared::{Shared, with_scratch};
use crate::gemm::{MatMut, MatRef, PackedB, gemm_packed_alone, gemm_packed_forward};
use crate::gemm_bf16::{PackedBf16, gemm_bf16_packed_alone, gemm_bf16_packed_forward};
use crate::threads::{parallel_for, threads};
use std::ops::Range;

/// A packed recurrent weight: its numbers are those in which it is multiplied, sums are f32.
#[derive(Clone, Copy)]
pub enum Weight<'a> {
    /// Products of f32.
    F32(&'a PackedB),
    /// Products of bf16: states and gradients are rounded at each step, for the product alone.
    Bf16(&'a PackedBf16),
}

impl<'a> From<&'a PackedB> for Weight<'a> {
    fn from(w: &'a PackedB) -> Self {
        Weight::F32(w)
    }
}

impl<'a> From<&'a PackedBf16> for Weight<'a> {
    fn from(w: &'a PackedBf16) -> Self {
        Weight::Bf16(w)
    }
}

impl Weight<'_> {
    fn k(self) -> usize {
        match self {
            Weight::F32(w) => w.k(),
            Weight::Bf16(w) => w.k(),
        }
    }

    fn n(self) -> usize {
        match self {
            Weight::F32(w) => w.n(),
            Weight::Bf16(w) => w.n(),
        }
    }

    /// Longest part of `k` that a tile runs through at once.
    fn block(self) -> usize {
        match self {
            Weight::F32(_) => 512,
            Weight::Bf16(_) => 1024,
        }
    }

    /// Computes `C = A W (+ bias) (+ C)`, all threads together.
    fn product(self, a: MatRef, bias: Option<&[f32]>, c: &mut MatMut, add: bool) {
        match self {
            Weight::F32(w) => gemm_packed_forward(a, w, bias, c, add),
            Weight::Bf16(w) => gemm_bf16_packed_forward(a, w, bias, c, add),
        }
    }

    /// [`Weight::product`] on this thread alone; `before_tile` is called before each tile.
    fn product_alone(
        self,
        a: MatRef,
        bias: Option<&[f32]>,
        c: &mut MatMut,
        add: bool,
        before_tile: &dyn Fn(),
    ) {
        match self {
            Weight::F32(w) => gemm_packed_alone(a, w, bias, c, add, before_tile),
            Weight::Bf16(w) => gemm_bf16_packed_alone(a, w, bias, c, add, before_tile),
        }
    }
}

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

impl Sizes {
    /// Where rows `rows` of step `t` lie in `[steps, batch, width]`.
    fn at(self, t: usize, rows: &Range<usize>, width: usize) -> Range<usize> {
        (t * self.batch + rows.start) * width..(t * self.batch + rows.end) * width
    }

    /// Runs `f` on all rows of the batch, some rows a task.
    fn for_rows(self, f: impl Fn(Range<usize>) + Sync) {
        // As many rows as threads leave to each: a task streams all of the weights at every step.
        // 8 rows are one tile of the product.
        parallel_for(self.batch, self.batch.div_ceil(threads()).next_multiple_of(8), f);
    }

    /// Whether the rows keep all threads busy; else threads share each product.
    fn is_wide(self) -> bool {
        self.batch > 8 || threads() == 1
    }

    /// Computes `C = A W (+ bias) (+ C)` for the rows that `a` and `c` hold.
    fn product(self, a: &[f32], w: Weight, bias: Option<&[f32]>, c: &mut [f32], add: bool) {
        let m = c.len() / w.n().max(1);
        self.product_of(MatRef::new(a, m, w.k()), w, bias, &mut MatMut::new(c, m, w.n()), add);
    }

    /// [`Sizes::product`] of matrices that lie in larger ones.
    fn product_of(self, a: MatRef, w: Weight, bias: Option<&[f32]>, c: &mut MatMut, add: bool) {
        if self.is_wide() {
            w.product_alone(a, bias, c, add, &|| {});
        } else {
            w.product(a, bias, c, add);
        }
    }

    /// Computes `C = C + A W` for some rows of step `t` of `[steps, batch, w.n()]`, and fetches the
    /// same rows of the next step (12 % of a forward at hidden 512: `benches/recurrent.rs`).
    fn add_product(self, t: usize, a: MatRef, w: Weight, c: &mut [f32]) {
        let (m, len) = (a.rows, c.len());
        if !self.is_wide() || t + 1 == self.steps {
            return self.product_of(a, w, None, &mut MatMut::new(c, m, w.n()), true);
        }
        // Tiles of 8 x 48.
        let tiles = m.div_ceil(8) * w.n().div_ceil(48) * w.k().div_ceil(w.block());
        let ahead = Ahead::new(c.as_ptr().wrapping_add(self.batch * w.n()), len, tiles);
        w.product_alone(a, None, &mut MatMut::new(c, m, w.n()), true, &|| ahead.fetch());
    }
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
pub fn lstm_forward<'w>(
    gates: &mut [f32],
    w_hh: impl Into<Weight<'w>>,
    h0: &[f32],
    c0: &[f32],
    h: &mut [f32],
    c: &mut [f32],
    s: Sizes,
) {
    let w_hh = w_hh.into();
    let (bh, g) = (s.batch * s.hidden, 4 * s.hidden);
    assert!(gates.len() == s.steps * s.batch * g && h.len() == s.steps * bh && c.len() == h.len());
    assert!(h0.len() == bh && c0.len() == bh && w_hh.k() == s.hidden && w_hh.n() == g);
    let (gates, h, c) = (Shared::new(gates), Shared::new(h), Shared::new(c));
    s.for_rows(|rows| {
        let first = s.at(0, &rows, s.hidden);
        let (mut h_prev, mut c_prev) = (&h0[first.clone()], &c0[first]);
        for t in 0..s.steps {
            let at = s.at(t, &rows, s.hidden);
            // SAFETY: this task alone touches these rows, and each step of them once.
            let (gates, h, c) =
                unsafe { (gates.slice(s.at(t, &rows, g)), h.slice(at.clone()), c.slice(at)) };
            s.add_product(t, MatRef::new(h_prev, rows.len(), s.hidden), w_hh, gates);
            dispatch(LstmCell { gates, c_prev, c, h, hidden: s.hidden });
            (h_prev, c_prev) = (h, c);
        }
    });
}

/// Activates the gates of one LSTM step and advances its states: `c = f * c_prev + i * g`,
/// `h = o * tanh(c)`.
///
/// # Shapes
/// `gates` `[batch, 4 * hidden]`: on entry the finished sums, on return the activated i, f, g, o.
/// `c_prev`, `c`, `h` `[batch, hidden]`, the last two written.
pub fn lstm_cell_forward(
    gates: &mut [f32],
    c_prev: &[f32],
    c: &mut [f32],
    h: &mut [f32],
    hidden: usize,
) {
    assert!(gates.len() == 4 * c.len() && c_prev.len() == c.len() && h.len() == c.len());
    dispatch(LstmCell { gates, c_prev, c, h, hidden });
}

/// Runs an LSTM backwards through time.
///
/// # Shapes
/// `gates` `[steps, batch, 4 * hidden]`: on entry the activated gates of the forward, on return the
/// gradient of the pre-activations. `w_hh_t` packs `W_hh` `[4 * hidden, hidden]`. `c`, `d_h`
/// `[steps, batch, hidden]` (`d_h` is the gradient that reaches each output); `d_c` likewise or
/// empty (the gradient that reaches each cell state from outside). `c0`, `d_h0`, `d_c0`
/// `[batch, hidden]`, the last two written.
pub fn lstm_backward<'w>(
    gates: &mut [f32],
    w_hh_t: impl Into<Weight<'w>>,
    c0: &[f32],
    c: &[f32],
    d_h: &[f32],
    d_c: &[f32],
    d_h0: &mut [f32],
    d_c0: &mut [f32],
    s: Sizes,
) {
    let w_hh_t = w_hh_t.into();
    let (bh, g) = (s.batch * s.hidden, 4 * s.hidden);
    assert!(gates.len() == s.steps * s.batch * g && c.len() == s.steps * bh);
    assert!(d_h.len() == c.len() && (d_c.is_empty() || d_c.len() == c.len()));
    assert!(c0.len() == bh && d_h0.len() == bh && d_c0.len() == bh);
    assert!(w_hh_t.k() == g && w_hh_t.n() == s.hidden);
    let (gates, d_h0, d_c0) = (Shared::new(gates), Shared::new(d_h0), Shared::new(d_c0));
    s.for_rows(|rows| {
        let first = s.at(0, &rows, s.hidden);
        // SAFETY: this task alone touches these rows.
        let (d_h_next, d_c_next) =
            unsafe { (d_h0.slice(first.clone()), d_c0.slice(first.clone())) };
        d_h_next.fill(0.0);
        d_c_next.fill(0.0);
        for t in (0..s.steps).rev() {
            let at = s.at(t, &rows, s.hidden);
            // SAFETY: as above, and each step of them once.
            let gates = unsafe { gates.slice(s.at(t, &rows, g)) };
            dispatch(LstmCellBackward {
                gates,
                c_prev: if t == 0 { &c0[first.clone()] } else { &c[s.at(t - 1, &rows, s.hidden)] },
                c: &c[at.clone()],
                d_h: &d_h[at.clone()],
                d_c: if d_c.is_empty() { &[] } else { &d_c[at] },
                d_h_next,
                d_c_next,
                hidden: s.hidden,
            });
            s.product(gates, w_hh_t, None, d_h_next, false);
        }
    });
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
pub fn gru_forward<'w>(
    gates: &mut [f32],
    w_hh: impl Into<Weight<'w>>,
    b_hh: &[f32],
    h0: &[f32],
    h: &mut [f32],
    h_n: &mut [f32],
    s: Sizes,
) {
    let w_hh = w_hh.into();
    let (bh, g) = (s.batch * s.hidden, 3 * s.hidden);
    assert!(gates.len() == s.steps * s.batch * g && h.len() == s.steps * bh);
    assert!(h_n.len() == h.len() && h0.len() == bh && b_hh.len() == g);
    assert!(w_hh.k() == s.hidden && w_hh.n() == g);
    let (gates, h, h_n) = (Shared::new(gates), Shared::new(h), Shared::new(h_n));
    s.for_rows(|rows| {
        with_scratch(rows.len() * g, |rec| {
            let mut h_prev = &h0[s.at(0, &rows, s.hidden)];
            for t in 0..s.steps {
                let at = s.at(t, &rows, s.hidden);
                // SAFETY: this task alone touches these rows, and each step of them once.
                let (gates, h, h_n) =
                    unsafe { (gates.slice(s.at(t, &rows, g)), h.slice(at.clone()), h_n.slice(at)) };
                s.product(h_prev, w_hh, Some(b_hh), rec, false);
                dispatch(GruCell { gates, rec, h_prev, h, h_n, hidden: s.hidden });
                h_prev = h;
            }
        });
    });
}

/// Activates the gates of one GRU step and advances its state.
///
/// # Shapes
/// `gates` `[batch, 3 * hidden]`: on entry the input part, on return the activated r, z, n. `rec`
/// `[batch, 3 * hidden]`: the recurrent part with its bias. `h_prev`, `h`, `h_n` `[batch, hidden]`,
/// the last two written (`h_n` is the recurrent part of n).
pub fn gru_cell_forward(
    gates: &mut [f32],
    rec: &[f32],
    h_prev: &[f32],
    h: &mut [f32],
    h_n: &mut [f32],
    hidden: usize,
) {
    assert!(gates.len() == 3 * h.len() && rec.len() == gates.len());
    assert!(h_prev.len() == h.len() && h_n.len() == h.len());
    dispatch(GruCell { gates, rec, h_prev, h, h_n, hidden });
}

/// Runs a GRU backwards through time.
///
/// # Shapes
/// `gates` `[steps, batch, 3 * hidden]`: activated r, z, n on entry; on return the gradient of the
/// input pre-activations (`d_gates_x`). `d_rec` `[steps, batch, 3 * hidden]`, written: the gradient
/// of `W_hh h + b_hh` (differs in the n part by the factor r). `w_hh_t` packs `W_hh`
/// `[3 * hidden, hidden]`. `h0` `[batch, hidden]`; `h`, `h_n`, `d_h` `[steps, batch, hidden]`;
/// `d_h0` `[batch, hidden]`, written.
pub fn gru_backward<'w>(
    gates: &mut [f32],
    d_rec: &mut [f32],
    w_hh_t: impl Into<Weight<'w>>,
    h0: &[f32],
    h: &[f32],
    h_n: &[f32],
    d_h: &[f32],
    d_h0: &mut [f32],
    s: Sizes,
) {
    let w_hh_t = w_hh_t.into();
    let (bh, g) = (s.batch * s.hidden, 3 * s.hidden);
    assert!(gates.len() == s.steps * s.batch * g && d_rec.len() == gates.len());
    assert!(h.len() == s.steps * bh && h_n.len() == h.len() && d_h.len() == h.len());
    assert!(h0.len() == bh && d_h0.len() == bh && w_hh_t.k() == g && w_hh_t.n() == s.hidden);
    let (gates, d_rec, d_h0) = (Shared::new(gates), Shared::new(d_rec), Shared::new(d_h0));
    s.for_rows(|rows| {
        let first = s.at(0, &rows, s.hidden);
        // SAFETY: this task alone touches these rows.
        let d_h_next = unsafe { d_h0.slice(first.clone()) };
        d_h_next.fill(0.0);
        for t in (0..s.steps).rev() {
            let at = s.at(t, &rows, s.hidden);
            // SAFETY: as above, and each step of them once.
            let (gates, d_rec) =
                unsafe { (gates.slice(s.at(t, &rows, g)), d_rec.slice(s.at(t, &rows, g))) };
            dispatch(GruCellBackward {
                gates,
                d_rec,
                h_prev: if t == 0 { &h0[first.clone()] } else { &h[s.at(t - 1, &rows, s.hidden)] },
                h_n: &h_n[at.clone()],
                d_h: &d_h[at],
                d_h_next,
                hidden: s.hidden,
            });
            s.product(d_rec, w_hh_t, None, d_h_next, true);
        }
    });
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
pub fn rnn_forward<'w>(
    h: &mut [f32],
    w_hh: impl Into<Weight<'w>>,
    h0: &[f32],
    f: Nonlinearity,
    s: Sizes,
) {
    let w_hh = w_hh.into();
    let bh = s.batch * s.hidden;
    assert!(h.len() == s.steps * bh && h0.len() == bh);
    assert!(w_hh.k() == s.hidden && w_hh.n() == s.hidden);
    let h = Shared::new(h);
    s.for_rows(|rows| {
        let mut h_prev = &h0[s.at(0, &rows, s.hidden)];
        for t in 0..s.steps {
            // SAFETY: this task alone touches these rows, and each step of them once.
            let h = unsafe { h.slice(s.at(t, &rows, s.hidden)) };
            s.add_product(t, MatRef::new(h_prev, rows.len(), s.hidden), w_hh, h);
            dispatch(RnnCell { h, f });
            h_prev = h;
        }
    });
}

/// Puts the finished sums of one Elman step through the nonlinearity, in place.
pub fn rnn_cell_forward(h: &mut [f32], f: Nonlinearity) {
    dispatch(RnnCell { h, f });
}

/// Runs an Elman network backwards through time.
///
/// # Shapes
/// `h` `[steps, batch, hidden]`, the states of the forward. `d_h` likewise: on entry the gradient
/// that reaches each output, on return the gradient of the sums before the nonlinearity.
/// `w_hh_t` packs `W_hh` `[hidden, hidden]`. `d_h0` `[batch, hidden]`, written.
pub fn rnn_backward<'w>(
    h: &[f32],
    d_h: &mut [f32],
    w_hh_t: impl Into<Weight<'w>>,
    d_h0: &mut [f32],
    f: Nonlinearity,
    s: Sizes,
) {
    let w_hh_t = w_hh_t.into();
    let bh = s.batch * s.hidden;
    assert!(h.len() == s.steps * bh && d_h.len() == h.len() && d_h0.len() == bh);
    assert!(w_hh_t.k() == s.hidden && w_hh_t.n() == s.hidden);
    let (d_h, d_h0) = (Shared::new(d_h), Shared::new(d_h0));
    s.for_rows(|rows| {
        // SAFETY: this task alone touches these rows.
        let d_h_next = unsafe { d_h0.slice(s.at(0, &rows, s.hidden)) };
        d_h_next.fill(0.0);
        for t in (0..s.steps).rev() {
            let at = s.at(t, &rows, s.hidden);
            // SAFETY: as above, and each step of them once.
            let d_h = unsafe { d_h.slice(at.clone()) };
            dispatch(RnnCellBackward { h: &h[at], d_h, d_h_next, f });
            s.product(d_h, w_hh_t, None, d_h_next, false);
        }
    });
}
