//! Inference: one step after another, without a graph and without allocating.
//!
//! Weights are packed once and every step reuses the same buffers. With f32 weights the numbers are
//! those of training. A single row streams its weights ([`etude_kernels::stream`]), and may keep them
//! as bf16: memory is what limits it. Several rows use the matrix products of training.

use etude_kernels::embedding::{NO_ID, embedding_forward};
use etude_kernels::gemm::{MatMut, MatRef, PackedB, gemm_packed_forward};
use etude_kernels::recurrent::{
    Nonlinearity, gru_cell_forward, lstm_cell_forward, rnn_cell_forward,
};
use etude_kernels::stream::{Precision, StreamedB, stream_forward};

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Which recurrent layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// Elman's network.
    Rnn(Nonlinearity),
    /// Gated recurrent unit.
    Gru,
    /// Long short-term memory.
    Lstm,
}

impl Cell {
    /// Rows of the weights for each hidden unit.
    pub fn gates(self) -> usize {
        match self {
            Cell::Rnn(_) => 1,
            Cell::Gru => 3,
            Cell::Lstm => 4,
        }
    }
}

/// The weights of one recurrent layer, as the training layers take them.
#[derive(Debug, Clone, Copy)]
pub struct LayerWeights<'a> {
    /// `[gates * hidden, inputs]`
    pub w_ih: &'a Tensor,
    /// `[gates * hidden, hidden]`
    pub w_hh: &'a Tensor,
    /// `[gates * hidden]`
    pub b_ih: &'a Tensor,
    /// `[gates * hidden]`
    pub b_hh: &'a Tensor,
}

/// A weight `[outputs, inputs]`, laid out for the number of rows that meet it.
enum Weight {
    /// For one row.
    Streamed(StreamedB),
    /// For several.
    Packed(PackedB),
}

impl Weight {
    fn new(
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

    /// `y = x W^T + bias`, or `y += x W^T + bias`; `x` `[batch, inputs]`, `y` `[batch, outputs]`.
    #[inline]
    fn apply(&self, x: &[f32], bias: Option<&[f32]>, y: &mut [f32], accumulate: bool) {
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

/// How the input of a step reaches a layer.
enum Entrance {
    /// `W_ih^T` `[inputs, gates * hidden]`, whose rows are gathered.
    Table(Vec<f32>),
    Dense(Weight),
}

struct Layer {
    entrance: Entrance,
    inputs: usize,
    hidden: usize,
    w_hh: Weight,
    bias: Vec<f32>,
    b_hh: Vec<f32>,
    gates: Vec<f32>,
    /// The recurrent part of a GRU, which its reset gate meets alone.
    rec: Vec<f32>,
    h: Vec<f32>,
    h_next: Vec<f32>,
    c: Vec<f32>,
    c_next: Vec<f32>,
    h_n: Vec<f32>,
}

/// Recurrent layers that advance by one step at a time.
pub struct RecurrentStep {
    cell: Cell,
    batch: usize,
    layers: Vec<Layer>,
}

impl RecurrentStep {
    /// Packs layers whose first one reads ids ([`RecurrentStep::step_ids`]); states begin at 0.
    ///
    /// `precision` is that of the weights of a batch of one row; with more rows, and in the table of
    /// the first layer, of which a step reads a few rows, they stay f32.
    ///
    /// # Errors
    /// If a shape does not fit or there is no layer.
    pub fn for_ids(
        cell: Cell,
        layers: &[LayerWeights],
        batch: usize,
        precision: Precision,
    ) -> Result<RecurrentStep> {
        RecurrentStep::new(cell, layers, batch, precision, true)
    }

    /// Packs layers whose first one reads vectors ([`RecurrentStep::step_dense`]); states begin at 0.
    ///
    /// `precision` is that of the weights of a batch of one row; with more rows they stay f32.
    ///
    /// # Errors
    /// If a shape does not fit or there is no layer.
    pub fn for_dense(
        cell: Cell,
        layers: &[LayerWeights],
        batch: usize,
        precision: Precision,
    ) -> Result<RecurrentStep> {
        RecurrentStep::new(cell, layers, batch, precision, false)
    }

    fn new(
        cell: Cell,
        weights: &[LayerWeights],
        batch: usize,
        precision: Precision,
        ids: bool,
    ) -> Result<RecurrentStep> {
        let mut layers: Vec<Layer> = Vec::new();
        for w in weights {
            let below = layers.last().map(|layer| layer.hidden);
            layers.push(Layer::new(cell, w, batch, precision, below, ids && below.is_none())?);
        }
        if layers.is_empty() {
            return Err(Error::argument("recurrent step", "at least one layer is wanted"));
        }
        Ok(RecurrentStep { cell, batch, layers })
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Rows of a step.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Sets all states to 0.
    pub fn reset(&mut self) {
        for layer in &mut self.layers {
            layer.h.fill(0.0);
            layer.c.fill(0.0);
        }
    }

    /// The hidden state of a layer, `[batch, hidden]`.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn h(&self, layer: usize) -> &[f32] {
        &self.layers[layer].h
    }

    /// The cell state of an LSTM layer, `[batch, hidden]`; empty for the other cells.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn c(&self, layer: usize) -> &[f32] {
        &self.layers[layer].c
    }

    /// Sets the state of a layer; `c` is empty for all cells but the LSTM.
    ///
    /// # Errors
    /// If there is no such layer or a length differs.
    pub fn set_state(&mut self, layer: usize, h: &[f32], c: &[f32]) -> Result<()> {
        let count = self.layers.len();
        let Some(to) = self.layers.get_mut(layer) else {
            return Err(Error::argument("set_state", format!("layer {layer} of {count}")));
        };
        if (h.len(), c.len()) != (to.h.len(), to.c.len()) {
            let (left, right) = ([h.len(), c.len()], [to.h.len(), to.c.len()]);
            return Err(Error::shape("set_state", &left, &right, "lengths of h and c differ"));
        }
        to.h.copy_from_slice(h);
        to.c.copy_from_slice(c);
        Ok(())
    }

    /// Copies the states of another run of the same layers: a branch of a search.
    ///
    /// # Errors
    /// If the layers differ in number or size.
    pub fn copy_state(&mut self, from: &RecurrentStep) -> Result<()> {
        for (i, layer) in from.layers.iter().enumerate() {
            self.set_state(i, &layer.h, &layer.c)?;
        }
        Ok(())
    }

    /// Advances by one step and returns the hidden state of the last layer, `[batch, hidden]`.
    ///
    /// # Shapes
    /// `ids` `[batch, active]`; [`NO_ID`](crate::NO_ID) fills what is not used.
    ///
    /// # Errors
    /// If there are not as many bags as rows, an id is too large, or the first layer reads vectors.
    pub fn step_ids(&mut self, ids: &[u32]) -> Result<&[f32]> {
        let first = &mut self.layers[0];
        let Entrance::Table(table) = &first.entrance else {
            return Err(Error::argument("step_ids", "the first layer reads vectors"));
        };
        if self.batch == 0 || ids.is_empty() || !ids.len().is_multiple_of(self.batch) {
            let why = "one bag of ids for each row is wanted";
            return Err(Error::shape("step_ids", &[ids.len()], &[self.batch], why));
        }
        if let Some(id) = ids.iter().find(|id| **id != NO_ID && **id as usize >= first.inputs) {
            return Err(Error::Id { op: "step_ids", id: *id, rows: first.inputs });
        }
        let (active, width) = (ids.len() / self.batch, first.bias.len());
        embedding_forward(table, ids, Some(&first.bias), &mut first.gates, active, width);
        Ok(self.advance(None))
    }

    /// Advances by one step and returns the hidden state of the last layer, `[batch, hidden]`.
    ///
    /// # Shapes
    /// `x` `[batch, inputs]`.
    ///
    /// # Errors
    /// If the length differs or the first layer reads ids.
    pub fn step_dense(&mut self, x: &[f32]) -> Result<&[f32]> {
        let first = &self.layers[0];
        if matches!(first.entrance, Entrance::Table(_)) {
            return Err(Error::argument("step_dense", "the first layer reads ids"));
        }
        if x.len() != self.batch * first.inputs {
            let right = [self.batch, first.inputs];
            return Err(Error::shape("step_dense", &[x.len()], &right, "the lengths differ"));
        }
        Ok(self.advance(Some(x)))
    }

    fn advance(&mut self, x: Option<&[f32]>) -> &[f32] {
        for at in 0..self.layers.len() {
            let (below, above) = self.layers.split_at_mut(at);
            let x = below.last().map_or(x, |layer| Some(&layer.h[..]));
            above[0].step(self.cell, x);
        }
        &self.layers[self.layers.len() - 1].h
    }
}

impl Layer {
    fn new(
        cell: Cell,
        w: &LayerWeights,
        batch: usize,
        precision: Precision,
        below: Option<usize>,
        ids: bool,
    ) -> Result<Layer> {
        let fault = |why| Error::shape("recurrent step", w.w_ih.shape(), w.w_hh.shape(), why);
        let &[outputs, inputs] = w.w_ih.shape() else { return Err(fault("W_ih has two axes")) };
        let hidden = outputs / cell.gates();
        if w.w_hh.shape() != [outputs, hidden] || outputs != hidden * cell.gates() {
            return Err(fault("W_ih [gates * hidden, inputs] and W_hh [gates * hidden, hidden]"));
        }
        if w.b_ih.shape() != [outputs] || w.b_hh.shape() != [outputs] {
            return Err(fault("a bias has a number for each row of the weights"));
        }
        if below.is_some_and(|below| below != inputs) {
            return Err(fault("a layer reads what the one below it gives"));
        }
        let entrance = if ids {
            Entrance::Table(w.w_ih.t()?.to_vec())
        } else {
            Entrance::Dense(Weight::new(w.w_ih, outputs, inputs, batch, precision))
        };
        let w_hh = Weight::new(w.w_hh, outputs, hidden, batch, precision);
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

    /// Advances by one step. Without `x` the input part lies in the gates already.
    fn step(&mut self, cell: Cell, x: Option<&[f32]>) {
        let (hidden, gates) = (self.hidden, &mut self.gates[..]);
        if let (Entrance::Dense(w), Some(x)) = (&self.entrance, x) {
            w.apply(x, Some(&self.bias), gates, false);
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

/// A linear layer that is applied to one batch after another.
pub struct LinearStep {
    w: Weight,
    bias: Vec<f32>,
    inputs: usize,
    y: Vec<f32>,
}

impl LinearStep {
    /// Packs a weight `[outputs, inputs]` and a bias `[outputs]` for batches of `batch` rows.
    ///
    /// `precision` is that of the weight of a batch of one row; with more rows it stays f32.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn new(
        weight: &Tensor,
        bias: Option<&Tensor>,
        batch: usize,
        precision: Precision,
    ) -> Result<LinearStep> {
        let fault = |right: &[usize]| {
            let why = "weight [outputs, inputs] and bias [outputs]";
            Error::shape("linear step", weight.shape(), right, why)
        };
        let &[outputs, inputs] = weight.shape() else { return Err(fault(&[])) };
        let bias = match bias {
            Some(bias) if bias.shape() != [outputs] => return Err(fault(bias.shape())),
            Some(bias) => bias.to_vec(),
            None => vec![0.0; outputs],
        };
        let w = Weight::new(weight, outputs, inputs, batch, precision);
        Ok(LinearStep { w, bias, inputs, y: vec![0.0; batch * outputs] })
    }

    /// Computes `x W^T + b` and returns it, `[batch, outputs]`.
    ///
    /// # Shapes
    /// `x` `[batch, inputs]`.
    ///
    /// # Errors
    /// If the length differs.
    pub fn apply(&mut self, x: &[f32]) -> Result<&[f32]> {
        let outputs = self.bias.len();
        let batch = self.y.len().checked_div(outputs).unwrap_or(0);
        if x.len() != batch * self.inputs {
            let right = [batch, self.inputs];
            return Err(Error::shape("linear step", &[x.len()], &right, "the lengths differ"));
        }
        self.w.apply(x, Some(&self.bias), &mut self.y, false);
        Ok(&self.y)
    }
}
