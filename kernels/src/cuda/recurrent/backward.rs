//! Backwards of recurrent sequences.

use super::variant::{Pass, Plan};
use super::{Sequence, Variant, plain, prepare};
use crate::cuda::{Args, Error, Gpu};
use crate::step::Cell;

/// The addresses of a backward; what a cell has no use for is none.
pub(super) struct Backward {
    pub gates: u64,
    pub d_rec: Option<u64>,
    pub w_hh: u64,
    /// `c0` of an LSTM, `h0` of a GRU.
    pub first: Option<u64>,
    /// `c` of an LSTM, else `h`.
    pub states: u64,
    pub h_n: Option<u64>,
    pub d_h: Option<u64>,
    pub d_c: Option<u64>,
    pub d_h0: u64,
    pub d_c0: Option<u64>,
    pub deltas: u64,
    pub workspace: u64,
}

/// Runs an LSTM backwards through time.
///
/// # Shapes
/// `gates` `[steps, batch, 4 * hidden]`: on entry the activated gates of the forward, on return the
/// gradient of the pre-activations. `w_hh` `[4 * hidden, hidden]`. `c0` `[batch, hidden]`, none: zero.
/// `c`, `d_h`, `d_c` `[steps, batch, hidden]` (`d_c`, the gradient that reaches each cell state from
/// outside, may be none). `d_h0`, `d_c0` `[batch, hidden]`, written. `deltas` `[steps, batch, 4, pitch]`,
/// written: `gates` as they are multiplied. `workspace`: [`Sequence::workspace_bytes`].
///
/// # Errors
/// If `variant` finds no room on the device, a span is not allocated, or the driver refuses.
pub fn lstm_backward(
    gpu: &dyn Gpu,
    q: &Sequence,
    gates: u64,
    w_hh: u64,
    c0: Option<u64>,
    c: u64,
    d_h: u64,
    d_c: Option<u64>,
    d_h0: u64,
    d_c0: u64,
    deltas: u64,
    workspace: u64,
    variant: Option<Variant>,
) -> Result<(), Error> {
    assert_eq!(q.cell, Cell::Lstm);
    let b = Backward {
        gates,
        d_rec: None,
        w_hh,
        first: c0,
        states: c,
        h_n: None,
        d_h: Some(d_h),
        d_c,
        d_h0,
        d_c0: Some(d_c0),
        deltas,
        workspace,
    };
    run(gpu, q, &b, variant)
}

/// Runs a GRU backwards through time.
///
/// # Shapes
/// `gates` `[steps, batch, 3 * hidden]`: activated r, z, n on entry; on return the gradient of the input
/// pre-activations. `d_rec` `[steps, batch, 3 * hidden]`, written: the gradient of `W_hh h + b_hh`.
/// `w_hh` `[3 * hidden, hidden]`. `h0` `[batch, hidden]`, none: zero. `h`, `h_n`, `d_h`
/// `[steps, batch, hidden]`. `d_h0` `[batch, hidden]`, written. `deltas` `[steps, batch, 3, pitch]`,
/// written: `d_rec` as it is multiplied. `workspace`: [`Sequence::workspace_bytes`].
///
/// # Errors
/// If `variant` finds no room on the device, a span is not allocated, or the driver refuses.
pub fn gru_backward(
    gpu: &dyn Gpu,
    q: &Sequence,
    gates: u64,
    d_rec: u64,
    w_hh: u64,
    h0: Option<u64>,
    h: u64,
    h_n: u64,
    d_h: u64,
    d_h0: u64,
    deltas: u64,
    workspace: u64,
    variant: Option<Variant>,
) -> Result<(), Error> {
    assert_eq!(q.cell, Cell::Gru);
    let b = Backward {
        gates,
        d_rec: Some(d_rec),
        w_hh,
        first: h0,
        states: h,
        h_n: Some(h_n),
        d_h: Some(d_h),
        d_c: None,
        d_h0,
        d_c0: None,
        deltas,
        workspace,
    };
    run(gpu, q, &b, variant)
}

/// Runs an Elman network backwards through time.
///
/// # Shapes
/// `h` `[steps, batch, hidden]`, the states of the forward. `d_h` likewise: on entry the gradient that
/// reaches each output, on return the gradient of the sums before the nonlinearity. `w_hh`
/// `[hidden, hidden]`. `d_h0` `[batch, hidden]`, written. `deltas` `[steps, batch, pitch]`, written:
/// `d_h` as it is multiplied. `workspace`: [`Sequence::workspace_bytes`].
///
/// # Errors
/// If `variant` finds no room on the device, a span is not allocated, or the driver refuses.
pub fn rnn_backward(
    gpu: &dyn Gpu,
    q: &Sequence,
    h: u64,
    d_h: u64,
    w_hh: u64,
    d_h0: u64,
    deltas: u64,
    workspace: u64,
    variant: Option<Variant>,
) -> Result<(), Error> {
    assert!(matches!(q.cell, Cell::Rnn(_)));
    let b = Backward {
        gates: d_h,
        d_rec: None,
        w_hh,
        first: None,
        states: h,
        h_n: None,
        d_h: None,
        d_c: None,
        d_h0,
        d_c0: None,
        deltas,
        workspace,
    };
    run(gpu, q, &b, variant)
}

fn run(gpu: &dyn Gpu, q: &Sequence, b: &Backward, variant: Option<Variant>) -> Result<(), Error> {
    if q.is_empty() {
        return Ok(());
    }
    let (hidden, gates) = (q.sizes.hidden, q.cell.gates());
    let (first, all) = q.row_bytes(hidden);
    let Some(plan) = Plan::choose(gpu, q, Pass::Backward, variant)? else {
        return plain::backward(gpu, q, b);
    };
    prepare(gpu, q, (b.deltas, q.deltas_bytes()), None, None, b.workspace)?;
    let flags = q.flags() + plan.flags();
    let weights = q.room(b.workspace);
    let packed = plan.pack(gpu, q, b.w_hh, weights)?;
    let args = Args::new()
        .span(b.gates, gates * all)
        .optional(b.d_rec, gates * all)
        .span(weights, packed)
        .span(b.deltas, q.deltas_bytes())
        .optional(b.first, first)
        .span(b.states, all)
        .optional(b.h_n, all)
        .optional(b.d_h, all)
        .optional(b.d_c, all)
        .span(b.d_h0, first)
        .optional(b.d_c0, first)
        .span(b.workspace, 4 * q.counters())
        .i32(q.sizes.steps as i32)
        .i32(q.sizes.batch as i32)
        .i32(hidden as i32)
        .i32(q.pitch() as i32)
        .i32(plan.span as i32)
        .i32(plan.passes as i32)
        .i32(flags);
    // SAFETY: the kernel's parameters; recurrent_backward.cuh tells the shapes, which the spans have.
    unsafe { gpu.launch(&plan.kernel, &plan.launch, &args) }
}
