//! Steps of several rows at once, layer after layer, with the matrix products of training.

use etude_kernels::embedding::embedding_forward;
use etude_kernels::gemm::{MatMut, MatRef, PackedB, gemm_packed_forward};
use etude_kernels::recurrent::{gru_cell_forward, lstm_cell_forward, rnn_cell_forward};
use etude_kernels::step::{Cell, StepInput};
use etude_kernels::stream::{Precision, StreamedB, stream_forward};

use super::LayerWeights;
use crate::error::Result;
use crate::tensor::Tensor;

/// A weight `[outputs, inputs]`, laid out for the number of rows that meet it.
pub(super) enum Weight {
    /// For one row.
    Streamed(StreamedB),
    /// For several.
    Packed(PackedB),
}

impl Weight {
    pub(super) fn new(
        w: &Tensor,
        outputs: usize,
        inputs: usize,
        batch: usize,
        precision: Precision,
    ) -> Weight {
        let values = w.values();
        let w_t = MatRef::new(&values, outputs, inputs).t();
        if batch == 1 {
            Weight::Streamed(StreamedB::new(w_t, precision))
        } else {
            Weight::Packed(PackedB::new(w_t))
        }
    }

    /// The weight of one row.
    pub(super) fn stream(&mut self) -> Option<&mut StreamedB> {
        match self {
            Weight::Streamed(w) => Some(w),
            Weight::Packed(_) => None,
        }
    }

    /// `y = x W^T + bias`, or `y += x W^T + bias`; `x` `[batch, inputs]`, `y` `[batch, outputs]`.
    #[inline]
    pub(super) fn apply(&self, x: &[f32], bias: Option<&[f32]>, y: &mut [f32], accumulate: bool) {
        match self {
            Weight::Streamed(w) => stream_forward(x, w, bias, y, accumulate),
            Weight::Packed(w) => {
                let batch = y.len().checked_div(w.n()).unwrap_or(0);
                let x = MatRef::new(x, batch, w.k());
                gemm_packed_forward(x, w, bias, &mut MatMut::new(y, batch, w.n()), accumulate);
            }
        }
    }
}

/// How the input of a step reaches a layer of several rows.
enum Entrance {
    /// `W_ih^T` `[inputs, gates * hidden]`, whose rows are gathered.
    Table(Vec<f32>),
    Dense(Weight),
}

/// A layer that advances several rows.
pub(super) struct Layer {
    entrance: Entrance,
    pub(super) inputs: usize,
    hidden: usize,
    w_hh: Weight,
    bias: Vec<f32>,
    b_hh: Vec<f32>,
    gates: Vec<f32>,
    /// The recurrent part of a GRU, which its reset gate meets alone.
    rec: Vec<f32>,
    pub(super) h: Vec<f32>,
    h_next: Vec<f32>,
    pub(super) c: Vec<f32>,
    c_next: Vec<f32>,
    h_n: Vec<f32>,
}

impl Layer {
    /// Packs weights that fit together.
    pub(super) fn new(cell: Cell, w: &LayerWeights, batch: usize, ids: bool) -> Result<Layer> {
        let (outputs, hidden) = (w.w_hh.shape()[0], w.w_hh.shape()[1]);
        let inputs = w.w_ih.shape()[1];
        let entrance = if ids {
            Entrance::Table(w.w_ih.t()?.to_vec())
        } else {
            Entrance::Dense(Weight::new(w.w_ih, outputs, inputs, batch, Precision::F32))
        };
        let w_hh = Weight::new(w.w_hh, outputs, hidden, batch, Precision::F32);
        let (mut bias, b_hh) = (w.b_ih.to_vec(), w.b_hh.to_vec());
        if cell != Cell::Gru {
            bias.iter_mut().zip(&b_hh).for_each(|(b, hh)| *b += hh);
        }
        let state = batch * hidden;
        let if_cell = |is: bool| vec![0.0; if is { state } else { 0 }];
        Ok(Layer {
            entrance,
            inputs,
            hidden,
            w_hh,
            bias,
            b_hh,
            gates: vec![0.0; batch * outputs],
            rec: vec![0.0; if cell == Cell::Gru { batch * outputs } else { 0 }],
            h: vec![0.0; state],
            h_next: vec![0.0; if matches!(cell, Cell::Rnn(_)) { 0 } else { state }],
            c: if_cell(cell == Cell::Lstm),
            c_next: if_cell(cell == Cell::Lstm),
            h_n: if_cell(cell == Cell::Gru),
        })
    }

    /// Advances by one step.
    pub(super) fn step(&mut self, cell: Cell, batch: usize, input: StepInput) {
        let (hidden, gates) = (self.hidden, &mut self.gates[..]);
        match (&self.entrance, input) {
            (Entrance::Dense(w), StepInput::Dense(x)) => w.apply(x, Some(&self.bias), gates, false),
            (Entrance::Table(table), StepInput::Ids(ids)) => {
                let (active, width) = (ids.len() / batch, self.bias.len());
                embedding_forward(table, ids, Some(&self.bias), gates, active, width);
            }
            _ => unreachable!("checked before the step"),
        }
        match cell {
            Cell::Lstm => {
                self.w_hh.apply(&self.h, None, gates, true);
                lstm_cell_forward(gates, &self.c, &mut self.c_next, &mut self.h_next, hidden);
                std::mem::swap(&mut self.c, &mut self.c_next);
                std::mem::swap(&mut self.h, &mut self.h_next);
            }
            Cell::Gru => {
                self.w_hh.apply(&self.h, Some(&self.b_hh), &mut self.rec, false);
                let (next, h_n) = (&mut self.h_next, &mut self.h_n);
                gru_cell_forward(gates, &self.rec, &self.h, next, h_n, hidden);
                std::mem::swap(&mut self.h, &mut self.h_next);
            }
            Cell::Rnn(f) => {
                self.w_hh.apply(&self.h, None, gates, true);
                rnn_cell_forward(gates, f);
                std::mem::swap(&mut self.h, &mut self.gates);
            }
        }
    }
}
