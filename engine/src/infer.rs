//! Inference: one step after another, without a graph and without allocating.
//!
//! Weights are packed once. Every step reuses the same buffers and runs the kernels of training, so
//! its numbers are those of training.

use etude_kernels::embedding::{NO_ID, embedding_forward};
use etude_kernels::gemm::{MatMut, MatRef, PackedB, gemm_packed_forward};
use etude_kernels::recurrent::{Nonlinearity, Sizes, gru_forward, lstm_forward, rnn_forward};

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

/// How the input of a step reaches the first layer.
enum FirstProduct {
    /// `W_ih^T` `[inputs, gates * hidden]`, whose rows are gathered.
    Table(Vec<f32>),
    Packed(PackedB),
}

struct Layer {
    product: FirstProduct,
    inputs: usize,
    hidden: usize,
    w_hh: PackedB,
    bias: Vec<f32>,
    b_hh: Vec<f32>,
    gates: Vec<f32>,
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
    /// # Errors
    /// If a shape does not fit or there is no layer.
    pub fn for_ids(cell: Cell, layers: &[LayerWeights], batch: usize) -> Result<RecurrentStep> {
        RecurrentStep::new(cell, layers, batch, true)
    }

    /// Packs layers whose first one reads vectors ([`RecurrentStep::step_dense`]); states begin at 0.
    ///
    /// # Errors
    /// If a shape does not fit or there is no layer.
    pub fn for_dense(cell: Cell, layers: &[LayerWeights], batch: usize) -> Result<RecurrentStep> {
        RecurrentStep::new(cell, layers, batch, false)
    }

    fn new(cell: Cell, weights: &[LayerWeights], batch: usize, ids: bool) -> Result<RecurrentStep> {
        let mut layers: Vec<Layer> = Vec::new();
        for w in weights {
            let below = layers.last().map(|layer| layer.hidden);
            layers.push(Layer::new(cell, w, batch, below, ids && below.is_none())?);
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
        let FirstProduct::Table(table) = &first.product else {
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
        if matches!(first.product, FirstProduct::Table(_)) {
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
            above[0].step(self.cell, self.batch, x);
        }
        &self.layers[self.layers.len() - 1].h
    }
}

impl Layer {
    fn new(
        cell: Cell,
        w: &LayerWeights,
        batch: usize,
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
        let w_ih = w.w_ih.values();
        let w_ih_t = MatRef::new(&w_ih, outputs, inputs).t();
        let product = if ids {
            FirstProduct::Table(w.w_ih.t()?.to_vec())
        } else {
            FirstProduct::Packed(PackedB::new(w_ih_t))
        };
        let w_hh = PackedB::new(MatRef::new(&w.w_hh.values(), outputs, hidden).t());
        let (mut bias, b_hh) = (w.b_ih.to_vec(), w.b_hh.to_vec());
        if cell != Cell::Gru {
            bias.iter_mut().zip(&b_hh).for_each(|(b, hh)| *b += hh);
        }
        let state = batch * hidden;
        let if_cell = |is: bool| vec![0.0; if is { state } else { 0 }];
        Ok(Layer {
            product,
            inputs,
            hidden,
            w_hh,
            bias,
            b_hh,
            gates: vec![0.0; batch * outputs],
            h: vec![0.0; state],
            h_next: vec![0.0; state],
            c: if_cell(cell == Cell::Lstm),
            c_next: if_cell(cell == Cell::Lstm),
            h_n: if_cell(cell == Cell::Gru),
        })
    }

    /// Advances by one step. Without `x` the input part lies in the gates already.
    fn step(&mut self, cell: Cell, batch: usize, x: Option<&[f32]>) {
        let outputs = self.bias.len();
        if let (FirstProduct::Packed(w), Some(x)) = (&self.product, x) {
            let x = MatRef::new(x, batch, self.inputs);
            let mut gates = MatMut::new(&mut self.gates, batch, outputs);
            gemm_packed_forward(x, w, Some(&self.bias), &mut gates, false);
        }
        let s = Sizes { steps: 1, batch, hidden: self.hidden };
        let (gates, w_hh) = (&mut self.gates[..], &self.w_hh);
        match cell {
            Cell::Lstm => {
                lstm_forward(gates, w_hh, &self.h, &self.c, &mut self.h_next, &mut self.c_next, s);
                std::mem::swap(&mut self.c, &mut self.c_next);
            }
            Cell::Gru => {
                let (next, h_n) = (&mut self.h_next, &mut self.h_n);
                gru_forward(gates, w_hh, &self.b_hh, &self.h, next, h_n, s);
            }
            Cell::Rnn(f) => {
                rnn_forward(gates, w_hh, &self.h, f, s);
                self.h_next.copy_from_slice(gates);
            }
        }
        std::mem::swap(&mut self.h, &mut self.h_next);
    }
}

/// A linear layer that is applied to one batch after another.
pub struct LinearStep {
    w: PackedB,
    bias: Vec<f32>,
    inputs: usize,
    y: Vec<f32>,
}

impl LinearStep {
    /// Packs a weight `[outputs, inputs]` and a bias `[outputs]` for batches of `batch` rows.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, batch: usize) -> Result<LinearStep> {
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
        let w = PackedB::new(MatRef::new(&weight.values(), outputs, inputs).t());
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
        let x = MatRef::new(x, batch, self.inputs);
        let mut y = MatMut::new(&mut self.y, batch, outputs);
        gemm_packed_forward(x, &self.w, Some(&self.bias), &mut y, false);
        Ok(&self.y)
    }
}
