//! Cells in forms that the fused kernels do not have: as small operations, and one step at a time.
//!
//! ```text
//! GRU, reset before   n  = tanh(W_in x + b_in + W_hn (r * h) + b_hn)      the past is reset before
//!                                                                         W_hn sees it
//!
//! LSTM, peepholes     i  = sigmoid(W_ii x + W_hi h + p_i * c + b_i)       the gates see the memory:
//!                     f  = sigmoid(W_if x + W_hf h + p_f * c + b_f)       i and f the old one,
//!                     o  = sigmoid(W_io x + W_ho h + p_o * c' + b_o)      o the new one
//! ```
//!
//! Source: Cho et al. 2014 for the GRU as it was published first; Gers & Schmidhuber 2000.

use crate::layers::{add, add_rows};
use crate::{Result, of_another_model};
use etude_engine::{Input, LinearStep, Precision, Tensor};

/// `x W_ih^T + b`, `[steps, batch, gates * hidden]`.
fn project(x: &Input, w_ih: &Tensor, b: &Tensor) -> Result<(Tensor, usize, usize)> {
    let (y, steps, batch) = match x {
        Input::OneHot { ids, steps, batch } => (w_ih.t()?.embedding(ids)?, *steps, *batch),
        Input::Dense(x) => {
            let (steps, batch) = (x.shape()[0], x.shape()[1]);
            (x.reshape(&[steps * batch, x.shape()[2]])?.linear(w_ih, None)?, steps, batch)
        }
    };
    Ok((y.add(b)?.reshape(&[steps, batch, w_ih.shape()[0]])?, steps, batch))
}

/// A GRU that resets the state before it is multiplied, from a zero state: `[steps, batch, hidden]`.
pub(super) fn gru_before(x: &Input, [w_ih, w_hh, b_ih, _]: &[Tensor; 4]) -> Result<Tensor> {
    let n = w_hh.shape()[1];
    let (from_x, steps, batch) = project(x, w_ih, b_ih)?;
    let (w_rz, w_n) = (w_hh.slice(0, 0..2 * n)?, w_hh.slice(0, 2 * n..3 * n)?);
    let mut h = Tensor::zeros(&[batch, n])?;
    let mut all = Vec::with_capacity(steps);
    for t in 0..steps {
        let x_t = from_x.select(0, t)?;
        let rz = x_t.slice(1, 0..2 * n)?.add(&h.linear(&w_rz, None)?)?.sigmoid()?;
        let (r, z) = (rz.slice(1, 0..n)?, rz.slice(1, n..2 * n)?);
        let new = x_t.slice(1, 2 * n..3 * n)?.add(&r.mul(&h)?.linear(&w_n, None)?)?.tanh()?;
        h = new.add(&z.mul(&h.sub(&new)?)?)?;
        all.push(h.clone());
    }
    Ok(Tensor::stack(&all.iter().collect::<Vec<_>>())?)
}

/// An LSTM whose gates see its memory through `p` `[3 * hidden]`, from a zero state:
/// `[steps, batch, hidden]`.
pub(super) fn lstm_peephole(
    x: &Input,
    [w_ih, w_hh, b_ih, _]: &[Tensor; 4],
    p: &Tensor,
) -> Result<Tensor> {
    let n = w_hh.shape()[1];
    let (from_x, steps, batch) = project(x, w_ih, b_ih)?;
    let eye = |k: usize| p.slice(0, k * n..(k + 1) * n);
    let (p_i, p_f, p_o) = (eye(0)?, eye(1)?, eye(2)?);
    let (mut h, mut c) = (Tensor::zeros(&[batch, n])?, Tensor::zeros(&[batch, n])?);
    let mut all = Vec::with_capacity(steps);
    for t in 0..steps {
        let gates = from_x.select(0, t)?.add(&h.linear(w_hh, None)?)?;
        let gate = |k: usize| gates.slice(1, k * n..(k + 1) * n);
        let i = gate(0)?.add(&c.mul(&p_i)?)?.sigmoid()?;
        let f = gate(1)?.add(&c.mul(&p_f)?)?.sigmoid()?;
        c = f.mul(&c)?.add(&i.mul(&gate(2)?.tanh()?)?)?;
        let o = gate(3)?.add(&c.mul(&p_o)?)?.sigmoid()?;
        h = o.mul(&c.tanh()?)?;
        all.push(h.clone());
    }
    Ok(Tensor::stack(&all.iter().collect::<Vec<_>>())?)
}

/// How the input of a step reaches its cell.
enum Entrance {
    /// `W_ih^T`, whose rows are added up, and the bias.
    Rows(Vec<f32>, Vec<f32>),
    /// `W_ih` and the bias.
    Vector(LinearStep),
}

/// One layer of such a cell, one step at a time.
pub(super) struct CellStep {
    entrance: Entrance,
    /// `W_hh`; of the GRU its part for `r` and `z`.
    w_hh: LinearStep,
    /// `W_hn` of the GRU.
    w_n: Option<LinearStep>,
    /// The peepholes of the LSTM.
    p: Vec<f32>,
    gates: Vec<f32>,
    reset: Vec<f32>,
    h: Vec<f32>,
    /// The memory of the LSTM.
    c: Vec<f32>,
}

impl CellStep {
    /// Packs a layer; `p` makes it an LSTM with peepholes, else it is a GRU. The first layer reads
    /// ids.
    pub fn new(
        [w_ih, w_hh, b_ih, _]: &[Tensor; 4],
        p: Option<&Tensor>,
        is_first: bool,
        precision: Precision,
    ) -> Result<CellStep> {
        let n = w_hh.shape()[1];
        let entrance = match is_first {
            true => Entrance::Rows(w_ih.t()?.to_vec(), b_ih.to_vec()),
            false => Entrance::Vector(LinearStep::new(w_ih, Some(b_ih), 1, precision)?),
        };
        let part = |rows| LinearStep::new(&w_hh.slice(0, rows)?.contiguous()?, None, 1, precision);
        let gates = w_ih.shape()[0];
        Ok(CellStep {
            entrance,
            w_hh: part(0..if p.is_some() { gates } else { 2 * n })?,
            w_n: if p.is_some() { None } else { Some(part(2 * n..gates)?) },
            p: p.map_or_else(Vec::new, Tensor::to_vec),
            gates: vec![0.0; gates],
            reset: vec![0.0; n],
            h: vec![0.0; n],
            c: vec![0.0; if p.is_some() { n } else { 0 }],
        })
    }

    /// Forgets the piece.
    pub fn reset(&mut self) {
        self.h.fill(0.0);
        self.c.fill(0.0);
    }

    /// The state `[hidden]`.
    pub fn h(&self) -> &[f32] {
        &self.h
    }

    /// All that the next step reads of the steps before it.
    pub fn state(&self) -> Vec<f32> {
        [&self.h[..], &self.c].concat()
    }

    /// Goes back to a [`CellStep::state`] at the beginning of `state`; returns what follows it.
    ///
    /// # Errors
    /// If it is shorter.
    pub fn set_state<'a>(&mut self, state: &'a [f32]) -> Result<&'a [f32]> {
        let n = self.h.len();
        let (own, rest) = state.split_at_checked(n + self.c.len()).ok_or_else(of_another_model)?;
        self.h.copy_from_slice(&own[..n]);
        self.c.copy_from_slice(&own[n..]);
        Ok(rest)
    }

    /// Reads rows, or the state of the layer below.
    pub fn step(&mut self, rows: &[u32], below: &[f32]) -> Result<()> {
        let n = self.h.len();
        match &mut self.entrance {
            Entrance::Vector(w) => self.gates.copy_from_slice(w.apply(below)?),
            Entrance::Rows(table, bias) => {
                self.gates.copy_from_slice(bias);
                add_rows(&mut self.gates, table, rows, "cell")?;
            }
        }
        add(&mut self.gates, self.w_hh.apply(&self.h)?);
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        if let Some(w_n) = &mut self.w_n {
            let (rz, new) = self.gates.split_at_mut(2 * n);
            rz.iter_mut().for_each(|x| *x = sigmoid(*x));
            (0..n).for_each(|j| self.reset[j] = rz[j] * self.h[j]);
            add(new, w_n.apply(&self.reset)?);
            for j in 0..n {
                let new = new[j].tanh();
                self.h[j] = new + rz[n + j] * (self.h[j] - new);
            }
            return Ok(());
        }
        let gate = |k: usize, j: usize| self.gates[k * n + j];
        for j in 0..n {
            let i = sigmoid(gate(0, j) + self.p[j] * self.c[j]);
            let f = sigmoid(gate(1, j) + self.p[n + j] * self.c[j]);
            self.c[j] = f * self.c[j] + i * gate(2, j).tanh();
            let o = sigmoid(gate(3, j) + self.p[2 * n + j] * self.c[j]);
            self.h[j] = o * self.c[j].tanh();
        }
        Ok(())
    }
}
