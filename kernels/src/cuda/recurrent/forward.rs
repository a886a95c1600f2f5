//! Forwards of recurrent sequences.

use super::variant::{Pass, Plan};
use super::{Sequence, Variant, WITHOUT_GATES, plain, prepare};
use crate::cuda::{Args, Error, Gpu};
use crate::step::Cell;

/// The addresses of a forward; what a cell has no use for is none.
pub(super) struct Forward {
    pub gates: u64,
    pub w_hh: u64,
    pub b_hh: Option<u64>,
    pub h0: Option<u64>,
    pub c0: Option<u64>,
    pub h: Option<u64>,
    /// `c` of an LSTM, the recurrent part of n of a GRU.
    pub kept: Option<u64>,
    pub states: u64,
    pub workspace: u64,
    pub keep_gates: bool,
}

/// Runs an LSTM over a sequence.
///
/// # Shapes
/// `gates` `[steps, batch, 4 * hidden]`: on entry `x W_ih^T + b_ih + b_hh`, on return the activated
/// gates i, f, g, o if `keep_gates`. `w_hh` `[4 * hidden, hidden]`. `h0`, `c0` `[batch, hidden]`, none:
/// zero. `h`, `c` `[steps, batch, hidden]`, written. `states` `[steps + 1, batch, pitch]`, written: `h0`
/// and all `h` (`h0` last if the sequence is read from its end). `workspace`:
/// [`Sequence::workspace_bytes`].
///
/// # Errors
/// If `variant` finds no room on the device, a span is not allocated, or the driver refuses.
pub fn lstm_forward(
    gpu: &dyn Gpu,
    q: &Sequence,
    gates: u64,
    w_hh: u64,
    h0: Option<u64>,
    c0: Option<u64>,
    h: u64,
    c: u64,
    states: u64,
    workspace: u64,
    keep_gates: bool,
    variant: Option<Variant>,
) -> Result<(), Error> {
    assert_eq!(q.cell, Cell::Lstm);
    let (h, kept) = (Some(h), Some(c));
    let f = Forward { gates, w_hh, b_hh: None, h0, c0, h, kept, states, workspace, keep_gates };
    run(gpu, q, &f, variant)
}

/// Runs a GRU over a sequence (PyTorch's form: the reset gate acts after the recurrent product).
///
/// # Shapes
/// `gates` `[steps, batch, 3 * hidden]`: on entry `x W_ih^T + b_ih`, on return the activated r, z, n if
/// `keep_gates`. `w_hh` `[3 * hidden, hidden]`; `b_hh` `[3 * hidden]`. `h0` `[batch, hidden]`, none: zero.
/// `h`, `h_n` `[steps, batch, hidden]`, written (`h_n` is `W_hn h + b_hn`). `states`, `workspace`: as in
/// [`lstm_forward`].
///
/// # Errors
/// If `variant` finds no room on the device, a span is not allocated, or the driver refuses.
pub fn gru_forward(
    gpu: &dyn Gpu,
    q: &Sequence,
    gates: u64,
    w_hh: u64,
    b_hh: u64,
    h0: Option<u64>,
    h: u64,
    h_n: u64,
    states: u64,
    workspace: u64,
    keep_gates: bool,
    variant: Option<Variant>,
) -> Result<(), Error> {
    assert_eq!(q.cell, Cell::Gru);
    let (b_hh, h, kept) = (Some(b_hh), Some(h), Some(h_n));
    let f = Forward { gates, w_hh, b_hh, h0, c0: None, h, kept, states, workspace, keep_gates };
    run(gpu, q, &f, variant)
}

/// Runs an Elman network over a sequence.
///
/// # Shapes
/// `h` `[steps, batch, hidden]`: on entry the input part with both biases, on return the states. `w_hh`
/// `[hidden, hidden]`. `h0` `[batch, hidden]`, none: zero. `states`, `workspace`: as in [`lstm_forward`].
///
/// # Errors
/// If `variant` finds no room on the device, a span is not allocated, or the driver refuses.
pub fn rnn_forward(
    gpu: &dyn Gpu,
    q: &Sequence,
    h: u64,
    w_hh: u64,
    h0: Option<u64>,
    states: u64,
    workspace: u64,
    variant: Option<Variant>,
) -> Result<(), Error> {
    assert!(matches!(q.cell, Cell::Rnn(_)));
    let (b_hh, c0, kept) = (None, None, None);
    let f = Forward {
        gates: h,
        w_hh,
        b_hh,
        h0,
        c0,
        h: None,
        kept,
        states,
        workspace,
        keep_gates: true,
    };
    run(gpu, q, &f, variant)
}

fn run(gpu: &dyn Gpu, q: &Sequence, f: &Forward, variant: Option<Variant>) -> Result<(), Error> {
    if q.is_empty() {
        return Ok(());
    }
    let Some(plan) = Plan::choose(gpu, q, Pass::Forward, variant)? else {
        return plain::forward(gpu, q, f);
    };
    let others = q.states_bytes() - q.slot_bytes();
    let (filler, slot) = match q.backwards_in_time {
        false => (f.states + q.slot_bytes() as u64, f.states),
        true => (f.states, f.states + others as u64),
    };
    prepare(gpu, q, (filler, others), Some(slot), f.h0, f.workspace)?;
    if q.sizes.steps == 0 {
        return Ok(());
    }
    let (hidden, gates) = (q.sizes.hidden, q.cell.gates());
    let (first, all) = q.row_bytes(hidden);
    let flags = q.flags() + plan.flags() + i32::from(!f.keep_gates) * WITHOUT_GATES;
    let weights = q.room(f.workspace);
    let packed = plan.pack(gpu, q, f.w_hh, weights)?;
    let args = Args::new()
        .span(f.gates, gates * all)
        .span(weights, packed)
        .optional(f.b_hh, 4 * gates * hidden)
        .span(f.states, q.states_bytes())
        .optional(if q.cell == Cell::Lstm { f.c0 } else { f.h0 }, first)
        .optional(f.h, all)
        .optional(f.kept, all)
        .span(f.workspace, 4 * q.counters())
        .i32(q.sizes.steps as i32)
        .i32(q.sizes.batch as i32)
        .i32(hidden as i32)
        .i32(q.pitch() as i32)
        .i32(plan.span as i32)
        .i32(plan.passes as i32)
        .i32(flags);
    // SAFETY: the kernel's parameters; recurrent_forward.cuh tells the shapes, which the spans have.
    unsafe { gpu.launch(&plan.kernel, &plan.launch, &args) }
}
