//! Recurrent language models of music: RNN, GRU and LSTM, one network with three cells.
//!
//! A melody, a drum pattern, a performance is a sequence of tokens `x_1, x_2, ...`. The network
//! reads one token at a time, keeps what matters in a state `h`, and says how likely every token is
//! to come next:
//!
//! ```text
//! p(x_1 ... x_T) = product over t of p(x_t | x_1 ... x_{t-1}) = softmax(W_out h_t + b_out)[x_t]
//! ```
//!
//! The cells, with `x` the input of a step (`*` between vectors is element by element):
//!
//! ```text
//! RNN    h' = tanh(W_ih x + W_hh h + b)                                             Elman 1990
//!
//! GRU    r  = sigmoid(W_ir x + b_ir + W_hr h + b_hr)      how much of the past n sees
//!        z  = sigmoid(W_iz x + b_iz + W_hz h + b_hz)      how much of the past stays
//!        n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))   the only place that needs two biases
//!        h' = (1 - z) * n + z * h                                              Cho et al. 2014
//!
//! LSTM   i  = sigmoid(W_ii x + W_hi h + b_i)      input gate: what is written
//!        f  = sigmoid(W_if x + W_hf h + b_f)      forget gate: what stays
//!        g  = tanh   (W_ig x + W_hg h + b_g)      what could be written
//!        o  = sigmoid(W_io x + W_ho h + b_o)      output gate: what is shown
//!        c' = f * c + i * g                               the memory: a sum, so gradients last
//!        h' = o * tanh(c')                  Hochreiter & Schmidhuber 1997, Gers et al. 2000
//! ```
//!
//! The input is one-hot (multi-hot with [`conditions`](crate::data::Conditions)), so `W_ih x` is a
//! sum of rows of `W_ih^T`. Layers are stacked; dropout acts on each layer's output. What stands in
//! place of the softmax for piano rolls is in [`HeadKind`], further forms of the cells in [`Cell`].
//! The sizes of the presets are Magenta's Melody RNN and its kin (Waite 2016; Simon & Oore 2017).

mod cells;
mod config;
mod guided;
mod heads;
mod layer;
mod notes;
mod presets;
mod step;

pub use config::RecurrentConfig;
pub use heads::HeadKind;
pub use layer::Cell;
pub use presets::{GRU, LSTM, RNN};

use crate::attention_cell::AttentionCell;
use crate::data::Batch;
use crate::{Error, Generator, Model, Part, Result, Scored};
use cells::CellStep;
use etude_engine::{Ids, Input, Module, Param, Rng, Tensor};
use etude_engine::{LayerWeights, LinearStep, Precision, RecurrentStep};
use etude_engine::{init, no_grad};
use heads::Head;
use layer::Layer;
use notes::NoteTurn;
use step::{Layers, RecurrentGenerator};

/// A recurrent language model.
pub struct Recurrent {
    config: RecurrentConfig,
    embedding: Option<Param>,
    /// The fixed vectors of input rows `[rows, width]`, where they stand for features.
    features: Option<Tensor>,
    attention: Option<AttentionCell>,
    layers: Vec<Layer>,
    head: Head,
}

impl Recurrent {
    /// Makes a network with fresh weights: `rows` inputs, `vocab` outputs.
    ///
    /// # Errors
    /// If the sizes cannot be allocated, or attention is wanted around another cell than the plain
    /// LSTM.
    pub fn new(config: RecurrentConfig, rows: usize, vocab: usize, seed: u64) -> Result<Recurrent> {
        if config.attention > 0 && config.cell != Cell::Lstm {
            let (name, kind) = (config.cell.name(), config.cell.kind());
            let why = format!("attention stands around a plain lstm; this cell is {name}, {kind}");
            return Err(Error::Config { key: "model.attention".into(), why });
        }
        let mut rng = Rng::stream(seed, 0);
        let first = config.inputs(rows);
        let mut layers = Vec::with_capacity(config.layers);
        for l in 0..config.layers {
            let inputs = if l == 0 { first } else { config.hidden };
            let name = format!("{}.{l}", config.cell.name());
            layers.push(Layer::new(&name, config.cell, inputs, config.hidden, &mut rng)?);
        }
        let attention = (config.attention > 0)
            .then(|| AttentionCell::new(first, config.hidden, config.attention, &mut rng))
            .transpose()?;
        let head = Head::new(config.head, config.hidden, vocab, &mut rng)?;
        let embedding = (config.embedding > 0)
            .then(|| init::normal(&mut rng, &[rows, config.embedding], 0.0, 1.0))
            .transpose()?
            .map(|table| Param::new("embedding", table));
        Ok(Recurrent { config, embedding, features: None, attention, layers, head })
    }

    /// Reads sums of rows of a fixed table `[rows, width]` from now on; the network was made for
    /// `width` inputs.
    pub fn with_features(self, table: Tensor) -> Recurrent {
        Recurrent { features: Some(table), ..self }
    }

    /// The vectors of input rows, learned or fixed; without any the rows are positions.
    fn vectors(&self) -> Option<&Tensor> {
        self.embedding.as_ref().map(|table| &table.value).or(self.features.as_ref())
    }

    /// The last layer's state at every step: `[steps * batch, hidden]`; at every note where six heads
    /// write notes.
    ///
    /// # Errors
    /// If the batch does not fit the network.
    pub fn forward(&self, batch: &Batch, mut dropout: Option<&mut Rng>) -> Result<Tensor> {
        let notes = (self.config.head == HeadKind::Notes).then(|| notes::of_notes(batch));
        let batch = notes.as_ref().unwrap_or(batch);
        let ids = Ids::bags(batch.rows.as_slice(), batch.active)?;
        let (steps, batch) = (batch.steps, batch.batch);
        let mut x = match self.vectors() {
            None => Input::OneHot { ids, steps, batch },
            Some(table) => {
                let x = table.embedding(&ids)?;
                Input::Dense(x.reshape(&[steps, batch, table.shape()[1]])?)
            }
        };
        for (l, layer) in self.layers.iter().enumerate() {
            let mut h = match &self.attention {
                Some(attention) if l == 0 => attention.forward(&x, &layer.weights()?)?,
                _ => layer.forward(&x, batch)?,
            };
            if let Some(rng) = dropout.as_deref_mut().filter(|_| self.config.dropout > 0.0) {
                h = h.dropout(self.config.dropout, rng)?;
            }
            x = Input::Dense(h);
        }
        match x {
            Input::Dense(h) => Ok(h.reshape(&[steps * batch, self.config.hidden])?),
            Input::OneHot { .. } => unreachable!("a network has at least one layer"),
        }
    }
}

impl Module for Recurrent {
    fn visit(&self, f: &mut dyn FnMut(&Param)) {
        self.embedding.iter().for_each(&mut *f);
        self.layers.iter().for_each(|l| l.visit(f));
        self.attention.iter().for_each(|a| a.visit(f));
        self.head.visit(f);
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param)) {
        self.embedding.iter_mut().for_each(&mut *f);
        self.layers.iter_mut().for_each(|l| l.visit_mut(f));
        self.attention.iter_mut().for_each(|a| a.visit_mut(f));
        self.head.visit_mut(f);
    }
}

impl Model for Recurrent {
    fn loss(&self, batch: &Batch, dropout: Option<&mut Rng>) -> Result<Tensor> {
        self.head.loss(&self.forward(batch, dropout)?, batch)
    }

    fn score(&self, batch: &Batch) -> Result<Scored> {
        no_grad(|| self.head.score(&self.forward(batch, None)?, batch))
    }

    fn generator(&self, precision: Precision) -> Result<Box<dyn Generator>> {
        let mut all = self.layers.iter().map(Layer::weights).collect::<Result<Vec<_>>>()?;
        if let (Some(table), None) = (self.vectors(), &self.attention) {
            // W_ih (E x) = (W_ih E) x: with the product made once, a step reads ids again.
            all[0][0] = all[0][0].matmul(&table.t()?)?.detach();
        }
        let packed: Vec<LayerWeights> = all
            .iter()
            .map(|[w_ih, w_hh, b_ih, b_hh]| LayerWeights { w_ih, w_hh, b_ih, b_hh })
            .collect();
        let (weight, bias) = (&self.head.out.weight.value, &self.head.out.bias.value);
        let out = Some((weight, bias));
        let layers = match (&self.attention, self.config.cell.fused()) {
            (_, None) => {
                let peepholes = self.layers.iter().map(|l| l.peepholes.as_ref().map(|p| &p.value));
                let layers = all.iter().zip(peepholes).enumerate();
                let layers = layers.map(|(l, (w, p))| CellStep::new(w, p, l == 0, precision));
                let out = LinearStep::new(weight, Some(bias), 1, precision)?;
                Layers::Cells(layers.collect::<Result<Vec<_>>>()?, out)
            }
            (None, Some(cell)) => {
                Layers::Plain(RecurrentStep::for_ids(cell, &packed, out, 1, precision)?)
            }
            (Some(attention), Some(cell)) => {
                let (first, rest) = packed.split_at(1);
                let lstm = RecurrentStep::for_dense(cell, first, None, 1, precision)?;
                let first = attention.stepper(self.vectors(), lstm, precision)?;
                if rest.is_empty() {
                    let out = LinearStep::new(weight, Some(bias), 1, precision)?;
                    Layers::Attention(first, out)
                } else {
                    let rest = RecurrentStep::for_dense(cell, rest, out, 1, precision)?;
                    Layers::Joined(first, rest)
                }
            }
        };
        let notes = (self.config.head == HeadKind::Notes).then(NoteTurn::new);
        Ok(Box::new(RecurrentGenerator { layers, keys: self.head.key_chain(), notes }))
    }

    fn parts(&self) -> Vec<Part> {
        let mut parts = Vec::new();
        if let Some(table) = &self.embedding {
            parts.push(Part {
                name: "embedding".into(),
                about: format!("a vector of {} for each input row", self.config.embedding),
                parameters: table.value.len() as u64,
                flops_per_token: 0,
            });
        }
        for (l, layer) in self.layers.iter().enumerate() {
            let (g, h) = (self.config.cell.gates() * self.config.hidden, self.config.hidden);
            let inputs = layer.w_ih.value.shape()[1];
            parts.push(Part {
                name: format!("{}.{l}", self.config.cell.name()),
                about: format!(
                    "{} cell, [{inputs}] and state [{h}] -> [{h}]",
                    self.config.cell.name()
                ),
                parameters: (g * (inputs + h + 1 + usize::from(layer.b_hh.is_some()))
                    + layer.peepholes.as_ref().map_or(0, |p| p.value.len()))
                    as u64,
                flops_per_token: 2 * (g * (inputs + h)) as u64,
            });
        }
        parts.extend(self.attention.iter().map(AttentionCell::part));
        parts.extend(self.head.parts());
        parts
    }
}
