//! Sequences step by step: a product and a cell each. For weights that find no room on the chip.
//! Source: `kernels/cuda/recurrent_plain.cu`.

use super::backward::Backward;
use super::forward::Forward;
use super::{RECTIFIER, Sequence};
use crate::cuda::{Args, Error, Gpu, Launch};
use crate::step::Cell;

/// Rows and columns of a product's tile, and how deep it reaches at a time.
const TILE: (usize, usize, usize) = (16, 64, 32);

/// The steps in the order in which the forward takes them: place in time, and that of the one before.
fn steps(q: &Sequence) -> Vec<(usize, Option<usize>)> {
    let order = |step| match q.backwards_in_time {
        false => step,
        true => q.sizes.steps - 1 - step,
    };
    (0..q.sizes.steps).map(|step| (order(step), step.checked_sub(1).map(order))).collect()
}

/// Runs `kernel` with a thread for each cell.
fn cells(gpu: &dyn Gpu, q: &Sequence, kernel: &str, args: Args) -> Result<(), Error> {
    let (batch, hidden) = (q.sizes.batch, q.sizes.hidden);
    let launch = Launch::linear((batch * hidden).div_ceil(256) as u32, 256);
    let args = args.i32(batch as i32).i32(hidden as i32);
    // SAFETY: the callers give the kernel's parameters, with spans of a step's numbers.
    unsafe { gpu.launch(kernel, &launch, &args) }
}

/// Computes `c [batch, n] (+)= a [batch, k] w`, of `w` `[n, k]` or, turned, `[k, n]`.
fn product(
    gpu: &dyn Gpu,
    q: &Sequence,
    (a, w, bias, c): (u64, u64, Option<u64>, u64),
    (n, k): (usize, usize),
    (turned, add): (bool, bool),
) -> Result<(), Error> {
    let m = q.sizes.batch;
    let launch =
        Launch::new([n.div_ceil(TILE.1) as u32, m.div_ceil(TILE.0) as u32, 1], [256, 1, 1])
            .shared((4 * TILE.2 * (TILE.0 + 1 + TILE.1 + 1)) as u32);
    let args = Args::new()
        .span(a, 4 * m * k)
        .span(w, n * k * q.element())
        .optional(bias, 4 * n)
        .span(c, 4 * m * n)
        .i32(m as i32)
        .i32(n as i32)
        .i32(k as i32)
        .i32(i32::from(add));
    let kernel =
        format!("recurrent_product_{}{}_plain", if turned { "turned_" } else { "" }, q.suffix());
    // SAFETY: the kernel's parameters; it touches m x k, n x k, n and m x n numbers.
    unsafe { gpu.launch(&kernel, &launch, &args) }
}

/// Writes rows of `hidden` floats as rows of an exchange.
fn pack(gpu: &dyn Gpu, q: &Sequence, x: u64, y: u64, rows: usize) -> Result<(), Error> {
    if rows == 0 {
        return Ok(());
    }
    let (width, pitch) = (q.sizes.hidden, q.pitch());
    let args = Args::new()
        .span(x, 4 * rows * width)
        .span(y, rows * pitch * q.element())
        .i64(rows as i64)
        .i32(width as i32)
        .i32(pitch as i32);
    let blocks = (rows * pitch).div_ceil(256).min(8 * gpu.properties().sms as usize);
    let kernel = format!("recurrent_pack_{}_plain", q.suffix());
    // SAFETY: the kernel's parameters; it reads rows x width and writes rows x pitch numbers.
    unsafe { gpu.launch(&kernel, &Launch::linear(blocks as u32, 256), &args) }
}

/// Clears the workspace; returns room for `[batch, 3 * hidden]` and zeros `[batch, hidden]` in it.
fn rooms(gpu: &dyn Gpu, q: &Sequence, workspace: u64) -> Result<(u64, u64), Error> {
    let (three, one) = (q.row_bytes(3 * q.sizes.hidden).0, q.row_bytes(q.sizes.hidden).0);
    gpu.memset(workspace, 0, 4 * q.counters() + three + one)?;
    Ok((q.room(workspace), q.room(workspace) + three as u64))
}

pub(super) fn forward(gpu: &dyn Gpu, q: &Sequence, f: &Forward) -> Result<(), Error> {
    let (hidden, gates) = (q.sizes.hidden, q.cell.gates());
    let (one, _) = q.row_bytes(hidden);
    let (rec, zeros) = rooms(gpu, q, f.workspace)?;
    let (h0, c0) = (f.h0.unwrap_or(zeros), f.c0.unwrap_or(zeros));
    // An Elman network's sums become its states in place.
    let h = f.h.unwrap_or(f.gates);
    let at = |x: u64, t: usize| x + (t * one) as u64;
    for (t, before) in steps(q) {
        let mine = f.gates + (t * gates * one) as u64;
        let (h_t, h_prev) = (at(h, t), before.map_or(h0, |t| at(h, t)));
        let kept = f.kept.map(|kept| (at(kept, t), before.map_or(c0, |t| at(kept, t))));
        let (n, k) = (gates * hidden, hidden);
        match (q.cell, kept) {
            (Cell::Lstm, Some((c, c_prev))) => {
                product(gpu, q, (h_prev, f.w_hh, None, mine), (n, k), (false, true))?;
                let args = Args::new().span(mine, 4 * one).span(c_prev, one).span(c, one);
                cells(gpu, q, "lstm_cell_forward_plain", args.span(h_t, one))?;
            }
            (Cell::Gru, Some((h_n, _))) => {
                product(gpu, q, (h_prev, f.w_hh, f.b_hh, rec), (n, k), (false, false))?;
                let args = Args::new().span(mine, 3 * one).span(rec, 3 * one).span(h_prev, one);
                cells(gpu, q, "gru_cell_forward_plain", args.span(h_t, one).span(h_n, one))?;
            }
            _ => {
                product(gpu, q, (h_prev, f.w_hh, None, mine), (n, k), (false, true))?;
                let args = Args::new().span(mine, one).i32(q.flags() & RECTIFIER);
                cells(gpu, q, "rnn_cell_forward_plain", args)?;
            }
        }
    }
    let slot = q.slot_bytes() as u64;
    let (first, others) = match q.backwards_in_time {
        false => (f.states, f.states + slot),
        true => (f.states + q.sizes.steps as u64 * slot, f.states),
    };
    pack(gpu, q, h0, first, q.sizes.batch)?;
    pack(gpu, q, h, others, q.sizes.steps * q.sizes.batch)
}

pub(super) fn backward(gpu: &dyn Gpu, q: &Sequence, b: &Backward) -> Result<(), Error> {
    let (hidden, gates) = (q.sizes.hidden, q.cell.gates());
    let (one, _) = q.row_bytes(hidden);
    let (_, zeros) = rooms(gpu, q, b.workspace)?;
    let first = b.first.unwrap_or(zeros);
    let at = |x: u64, t: usize| x + (t * one) as u64;
    gpu.memset(b.d_h0, 0, one)?;
    if let Some(d_c0) = b.d_c0 {
        gpu.memset(d_c0, 0, one)?;
    }
    let sent = b.d_rec.unwrap_or(b.gates);
    for (t, before) in steps(q).into_iter().rev() {
        let of_step = |x: u64| x + (t * gates * one) as u64;
        let (mine, now) = (of_step(b.gates), at(b.states, t));
        let past = before.map_or(first, |t| at(b.states, t));
        let d_h = b.d_h.map_or(mine, |d_h| at(d_h, t));
        match (q.cell, b.d_c0, b.h_n) {
            (Cell::Lstm, Some(d_c0), _) => {
                let args = Args::new().span(mine, 4 * one).span(past, one).span(now, one);
                let args = args.span(d_h, one).optional(b.d_c.map(|d_c| at(d_c, t)), one);
                cells(gpu, q, "lstm_cell_backward_plain", args.span(b.d_h0, one).span(d_c0, one))?;
            }
            (Cell::Gru, _, Some(h_n)) => {
                let args = Args::new().span(mine, 3 * one).span(of_step(sent), 3 * one);
                let args = args.span(past, one).span(at(h_n, t), one).span(d_h, one);
                cells(gpu, q, "gru_cell_backward_plain", args.span(b.d_h0, one))?;
            }
            _ => {
                let args = Args::new().span(now, one).span(mine, one).span(b.d_h0, one);
                cells(gpu, q, "rnn_cell_backward_plain", args.i32(q.flags() & RECTIFIER))?;
            }
        }
        let operands = (of_step(sent), b.w_hh, None, b.d_h0);
        product(gpu, q, operands, (hidden, gates * hidden), (true, q.cell == Cell::Gru))?;
    }
    pack(gpu, q, sent, b.deltas, q.sizes.steps * q.sizes.batch * gates)
}
