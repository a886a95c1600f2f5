//! An LSTM layer that looks back at its own last outputs.
//!
//! Before each step the input is joined with what attention found at the step before; after it, the
//! new state asks the last `n` outputs `a_i` and what it finds, `d`, shapes the output:
//!
//! ```text
//! x'  = W_x x + W_a d + b                  input and the last answer
//! c, h = LSTM(x', c, h)
//! s_i = v . tanh(W_k a_i + W_q [c, h] + b_q)
//! d   = sum over i of softmax(s)_i a_i
//! o   = W_o [h, d] + b_o                   the layer's output, remembered as the newest a
//! ```
//!
//! Source: Bahdanau, Cho & Bengio 2015 for the score; the cell is the attention wrapper that
//! Magenta's attention RNN puts around its first layer (Waite 2016).

use crate::layers::{Linear, add_rows};
use crate::{Part, Result};
use etude_engine::{Attended, Input, Module, Param, Rng, Tensor, attended_lstm, init};
use etude_engine::{LinearStep, Precision, RecurrentStep, attend_row};

/// The weights of the attention around an LSTM layer.
pub struct AttentionCell {
    length: usize,
    w_x: Param,
    w_a: Linear,
    w_k: Param,
    w_q: Linear,
    v: Param,
    w_o: Linear,
}

impl AttentionCell {
    /// Makes the weights: `rows` inputs, a memory of `length` outputs of `hidden` numbers.
    ///
    /// # Errors
    /// If the sizes cannot be allocated.
    pub fn new(rows: usize, hidden: usize, length: usize, rng: &mut Rng) -> Result<AttentionCell> {
        let mut param = |name: &str, shape: &[usize]| {
            let value = init::by_fan(rng, shape, hidden)?;
            Ok::<_, crate::Error>(Param::new(format!("attention.{name}"), value))
        };
        let w_x = param("w_x", &[rows, rows])?;
        let w_k = param("w_k", &[hidden, hidden])?;
        let v = param("v", &[hidden])?;
        Ok(AttentionCell {
            length,
            w_x,
            w_a: Linear::new("attention.w_a", hidden, rows, rng)?,
            w_k,
            w_q: Linear::new("attention.w_q", 2 * hidden, hidden, rng)?,
            v,
            w_o: Linear::new("attention.w_o", 2 * hidden, hidden, rng)?,
        })
    }

    /// Numbers in all weights.
    pub fn parameter_count(rows: u64, hidden: u64) -> u64 {
        rows * rows + rows * (hidden + 1) + hidden * hidden + 2 * hidden * (2 * hidden + 1) + hidden
    }

    /// What the attention costs.
    pub fn part(&self) -> Part {
        let (rows, h) = (self.w_x.value.shape()[0] as u64, self.v.value.len() as u64);
        let memory = self.length as u64 * h;
        Part {
            name: "attention".into(),
            about: format!("attention of lstm.0 over its last {} outputs", self.length),
            parameters: AttentionCell::parameter_count(rows, h),
            flops_per_token: 2 * (rows * rows + rows * h + 5 * h * h + 2 * memory),
        }
    }

    /// Runs the layer over a sequence from a zero state: `[steps, batch, hidden]`.
    ///
    /// # Shapes
    /// `x` `[steps, batch, rows]`; `lstm` holds `w_ih` `[4 * hidden, rows]`, `w_hh` `[4 * hidden, hidden]`, `b_ih`, `b_hh`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, x: &Input, lstm: &[Tensor; 4]) -> Result<Tensor> {
        let [w_ih, w_hh, b_ih, b_hh] = lstm;
        let gates = b_ih.shape()[0];
        // The gates read W_ih x' + b_ih = (W_ih W_x) x + (W_ih W_a) d + (W_ih b + b_ih): three products
        // of weights in place of two products of activations.
        let shift = self.w_a.bias.value.reshape(&[self.w_x.value.shape()[0], 1])?;
        let b_ih = w_ih.matmul(&shift)?.reshape(&[gates])?.add(b_ih)?;
        let w = Attended {
            w_ih: &w_ih.matmul(&self.w_x.value)?,
            w_hh,
            b_ih: &b_ih,
            b_hh,
            w_d: &w_ih.matmul(&self.w_a.weight.value)?,
            w_q: &self.w_q.weight.value,
            b_q: &self.w_q.bias.value,
            w_k: &self.w_k.value,
            v: &self.v.value,
            w_o: &self.w_o.weight.value,
            b_o: &self.w_o.bias.value,
        };
        Ok(attended_lstm(x, &w, self.length)?)
    }

    /// The layer one token at a time, around its LSTM.
    ///
    /// # Errors
    /// If the weights do not fit together.
    pub fn stepper(
        &self,
        vectors: Option<&Tensor>,
        lstm: RecurrentStep,
        precision: Precision,
    ) -> Result<AttentionStep> {
        // As a row of numbers for each input row, whether through a learned vector or not.
        let w_x = match vectors {
            None => self.w_x.value.t()?,
            Some(table) => table.matmul(&self.w_x.value.t()?)?,
        };
        let (rows, hidden) = (self.w_x.value.shape()[0], self.v.value.len());
        let linear =
            |l: &Linear| LinearStep::new(&l.weight.value, Some(&l.bias.value), 1, precision);
        Ok(AttentionStep {
            lstm,
            w_x: w_x.to_vec(),
            w_a: linear(&self.w_a)?,
            w_k: LinearStep::new(&self.w_k.value, None, 1, precision)?,
            w_q: linear(&self.w_q)?,
            v: self.v.value.to_vec(),
            w_o: linear(&self.w_o)?,
            x: vec![0.0; rows],
            d: vec![0.0; hidden],
            joined: vec![0.0; 2 * hidden],
            memory: vec![0.0; self.length * hidden],
            keys: vec![0.0; self.length * hidden],
            shares: vec![0.0; self.length],
            output: vec![0.0; hidden],
            oldest: 0,
        })
    }
}

impl Module for AttentionCell {
    fn visit(&self, f: &mut dyn FnMut(&Param)) {
        f(&self.w_x);
        self.w_a.visit(f);
        f(&self.w_k);
        self.w_q.visit(f);
        f(&self.v);
        self.w_o.visit(f);
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param)) {
        f(&mut self.w_x);
        self.w_a.visit_mut(f);
        f(&mut self.w_k);
        self.w_q.visit_mut(f);
        f(&mut self.v);
        self.w_o.visit_mut(f);
    }
}

/// The layer one token at a time: a ring of the last outputs, nothing allocated.
pub struct AttentionStep {
    lstm: RecurrentStep,
    /// `W_x^T` (after the embedding): a row for each input row.
    w_x: Vec<f32>,
    w_a: LinearStep,
    w_k: LinearStep,
    w_q: LinearStep,
    v: Vec<f32>,
    w_o: LinearStep,
    x: Vec<f32>,
    d: Vec<f32>,
    joined: Vec<f32>,
    memory: Vec<f32>,
    keys: Vec<f32>,
    shares: Vec<f32>,
    output: Vec<f32>,
    oldest: usize,
}

impl AttentionStep {
    /// Forgets the piece.
    pub fn reset(&mut self) {
        self.lstm.reset();
        [&mut self.d, &mut self.memory, &mut self.keys].into_iter().for_each(|x| x.fill(0.0));
        self.oldest = 0;
    }

    /// All that the next step reads of the steps before it.
    pub fn state(&self) -> Vec<f32> {
        // An index far below 2^24, so exact.
        let oldest = [self.oldest as f32];
        let parts = [self.lstm.h(0), self.lstm.c(0), &self.d, &self.memory, &self.keys, &oldest];
        parts.concat()
    }

    /// Goes back to a [`AttentionStep::state`] at the beginning of `state`; returns what follows it.
    ///
    /// # Errors
    /// If it is shorter.
    pub fn set_state<'a>(&mut self, state: &'a [f32]) -> Result<&'a [f32]> {
        let (h, memory) = (self.d.len(), self.memory.len());
        let all = 3 * h + 2 * memory + 1;
        let (own, rest) = state.split_at_checked(all).ok_or_else(crate::of_another_model)?;
        self.lstm.set_state(0, &own[..h], &own[h..2 * h])?;
        self.d.copy_from_slice(&own[2 * h..3 * h]);
        self.memory.copy_from_slice(&own[3 * h..][..memory]);
        self.keys.copy_from_slice(&own[3 * h + memory..][..memory]);
        self.oldest = own[all - 1] as usize % self.shares.len().max(1);
        Ok(rest)
    }

    /// Reads the input rows of a step and returns the layer's output `[hidden]`.
    ///
    /// # Errors
    /// If a row lies outside of the input matrix.
    pub fn step(&mut self, rows: &[u32]) -> Result<&[f32]> {
        let hidden = self.d.len();
        self.x.copy_from_slice(self.w_a.apply(&self.d)?);
        add_rows(&mut self.x, &self.w_x, rows, "attention cell")?;
        self.joined[hidden..].copy_from_slice(self.lstm.step_dense(&self.x)?);
        self.joined[..hidden].copy_from_slice(self.lstm.c(0));
        let query = self.w_q.apply(&self.joined)?;
        // The order of the ring does not matter to a sum over it.
        attend_row(query, &self.keys, &self.memory, &self.v, &mut self.shares, &mut self.d);
        self.joined.copy_within(hidden.., 0);
        self.joined[hidden..].copy_from_slice(&self.d);
        self.output.copy_from_slice(self.w_o.apply(&self.joined)?);
        let at = self.oldest * hidden;
        self.memory[at..at + hidden].copy_from_slice(&self.output);
        self.keys[at..at + hidden].copy_from_slice(self.w_k.apply(&self.output)?);
        self.oldest = (self.oldest + 1) % self.shares.len();
        Ok(&self.output)
    }
}
