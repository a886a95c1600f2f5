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
//! sum of rows of `W_ih^T`. Layers are stacked; dropout acts on each layer's output. The sizes of the
//! presets are Magenta's Melody RNN and Performance RNN (Waite 2016; Simon & Oore 2017).

use crate::attention_cell::{AttentionCell, AttentionStep};
use crate::config::Table;
use crate::data::Batch;
use crate::layers::{Linear, likeliest};
use crate::registry::{Entry, Network, Preset};
use crate::{Generator, Model, Part, Result, Scored};
use etude_engine::{Ids, Input, Module, Nonlinearity, Param, Rng, Tensor};
use etude_engine::{LayerWeights, LinearStep, Precision, RecurrentStep};
use etude_engine::{gru_layer, init, lstm_layer, no_grad, rnn_layer};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Which equations a layer follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// Elman's.
    Rnn,
    /// The gated recurrent unit.
    Gru,
    /// The long short-term memory.
    Lstm,
}

impl Cell {
    /// Rows of `W_ih`, in units of `hidden`.
    pub fn gates(self) -> usize {
        match self {
            Cell::Rnn => 1,
            Cell::Gru => 3,
            Cell::Lstm => 4,
        }
    }

    /// The name in weight files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Cell::Rnn => "rnn",
            Cell::Gru => "gru",
            Cell::Lstm => "lstm",
        }
    }
}

const KEYS: &[&str] = &["hidden", "layers", "dropout", "attention", "embedding"];

/// The Elman network.
pub const RNN: Entry = Entry {
    id: "rnn",
    about: "Elman network: one tanh layer of memory; forgets within a bar or two",
    presets: &[Preset {
        name: "basic",
        about: "2 x 128 units over the 38-class melody encoding",
        settings: r#"{"model": {"encoding": "melody-c", "hidden": 128, "layers": 2, "dropout": 0.2},
            "train": {"steps": 2000, "batch": 64, "lr": 0.001, "clip": 1}}"#,
    }],
    keys: KEYS,
    read: RecurrentConfig::entry,
};

/// The gated recurrent unit.
pub const GRU: Entry = Entry {
    id: "gru",
    about: "gated recurrent unit: two gates decide what stays",
    presets: &[Preset {
        name: "basic",
        about: "2 x 128 units over the 38-class melody encoding",
        settings: r#"{"model": {"encoding": "melody-c", "hidden": 128, "layers": 2, "dropout": 0.2},
            "train": {"steps": 2000, "batch": 64, "lr": 0.002, "clip": 5}}"#,
    }],
    keys: KEYS,
    read: RecurrentConfig::entry,
};

/// The long short-term memory.
pub const LSTM: Entry = Entry {
    id: "lstm",
    about: "long short-term memory: a cell that keeps what its gates let in",
    presets: &[
        Preset {
            name: "melody-form",
            about: "the bundled model: melodies, told the metre, the place and what was played \
                    1, 2, 4 and 8 bars ago",
            settings: r#"{"model": {"encoding": "melody-c", "conditions": "form", "hidden": 192,
                "layers": 2, "dropout": 0.3},
                "train": {"steps": 2400, "batch": 32, "window": 384, "lr": 0.004, "clip": 5,
                "warmup": 50, "valid_every": 100, "save_every": 100}}"#,
        },
        Preset {
            name: "melody-basic",
            about: "Magenta's basic_rnn: 2 x 128 units, 38 classes, 221,990 weights",
            settings: r#"{"model": {"encoding": "melody-c", "hidden": 128, "layers": 2,
                "dropout": 0.5}, "train": {"steps": 2000, "batch": 128, "lr": 0.001, "clip": 5}}"#,
        },
        Preset {
            name: "melody-mono",
            about: "Magenta's mono_rnn: 2 x 128 units over all 128 pitches, 280,962 weights",
            settings: r#"{"model": {"encoding": "melody-mono", "hidden": 128, "layers": 2,
                "dropout": 0.5}, "train": {"steps": 2000, "batch": 128, "lr": 0.001, "clip": 5}}"#,
        },
        Preset {
            name: "melody-attention",
            about: "2 x 128 units, the first with attention over its last 40 outputs, as in \
                    Magenta's attention_rnn, over the plain 38 classes",
            settings: r#"{"model": {"encoding": "melody-c", "hidden": 128, "layers": 2,
                "dropout": 0.5, "attention": 40},
                "train": {"steps": 2000, "batch": 128, "window": 96, "lr": 0.001, "clip": 3}}"#,
        },
        Preset {
            name: "performance",
            about: "Magenta's performance_with_dynamics: 3 x 512 units, 388 events of 10 ms, \
                    6,242,692 weights",
            settings: r#"{"model": {"encoding": "performance-dynamics", "hidden": 512, "layers": 3,
                "dropout": 0.0}, "train": {"steps": 2000, "batch": 64, "window": 256, "lr": 0.001,
                "clip": 3, "transpose": 3}, "data": {"source": "piano"}}"#,
        },
        Preset {
            name: "events",
            about: "2 x 256 units over the multi-track events of any MIDI file",
            settings: r#"{"model": {"encoding": "events", "hidden": 256, "layers": 2,
                "dropout": 0.2}, "train": {"steps": 2000, "batch": 32, "window": 256, "lr": 0.002,
                "clip": 5}, "data": {"source": "bands"}}"#,
        },
    ],
    keys: KEYS,
    read: RecurrentConfig::entry,
};

/// The sizes of a recurrent language model.
#[derive(Debug, Clone, PartialEq)]
pub struct RecurrentConfig {
    /// Which cell.
    pub cell: Cell,
    /// Units of each layer.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Share of a layer's outputs that is dropped in training.
    pub dropout: f32,
    /// Outputs that the first layer attends to; 0: none.
    pub attention: usize,
    /// Width of a learned vector for each input row, read by the first layer; 0: one-hot input.
    pub embedding: usize,
}

impl RecurrentConfig {
    /// Reads the network's keys of table `model`.
    ///
    /// # Errors
    /// Names the key that cannot be used.
    pub fn read(id: &str, t: &mut Table) -> Result<RecurrentConfig> {
        let cell = match id {
            "rnn" => Cell::Rnn,
            "gru" => Cell::Gru,
            _ => Cell::Lstm,
        };
        let most_attention = if cell == Cell::Lstm { 4096 } else { 0 };
        Ok(RecurrentConfig {
            cell,
            hidden: t.count("hidden", 128, 1..=65_536)?,
            layers: t.count("layers", 2, 1..=64)?,
            dropout: t.number("dropout", 0.0, 0.0..=0.95)? as f32,
            attention: t.count("attention", 0, 0..=most_attention)?,
            embedding: t.count("embedding", 0, 0..=65_536)?,
        })
    }

    fn entry(id: &str, t: &mut Table) -> Result<Arc<dyn Network>> {
        Ok(Arc::new(RecurrentConfig::read(id, t)?))
    }

    /// A plain network: one-hot input, no dropout, no attention.
    pub fn plain(cell: Cell, hidden: usize, layers: usize) -> RecurrentConfig {
        RecurrentConfig { cell, hidden, layers, dropout: 0.0, attention: 0, embedding: 0 }
    }

    /// Numbers that the first layer reads at a step.
    fn inputs(&self, rows: usize) -> usize {
        if self.embedding > 0 { self.embedding } else { rows }
    }
}

impl Network for RecurrentConfig {
    fn write(&self, table: &mut Map<String, Value>) {
        table.insert("hidden".into(), self.hidden.into());
        table.insert("layers".into(), self.layers.into());
        // Through text: 0.3f32 as f64 has digits that nobody wrote.
        let dropout: f64 = self.dropout.to_string().parse().unwrap_or(0.0);
        table.insert("dropout".into(), dropout.into());
        table.insert("attention".into(), self.attention.into());
        table.insert("embedding".into(), self.embedding.into());
    }

    fn parameter_count(&self, rows: usize, vocab: usize) -> u64 {
        let (h, g) = (self.hidden as u64, self.cell.gates() as u64);
        let (table, rows) = ((rows * self.embedding) as u64, self.inputs(rows) as u64);
        let vocab = vocab as u64;
        let biases = if self.cell == Cell::Gru { 2 } else { 1 };
        let layer = |inputs: u64| g * h * (inputs + h + biases);
        let attention =
            if self.attention > 0 { AttentionCell::parameter_count(rows, h) } else { 0 };
        table + layer(rows) + (self.layers as u64 - 1) * layer(h) + vocab * (h + 1) + attention
    }

    fn activations_per_token(&self, vocab: usize) -> u64 {
        let (h, g) = (self.hidden as u64, self.cell.gates() as u64);
        let attention = if self.attention > 0 { 3 * self.attention as u64 * h } else { 0 };
        self.layers as u64 * (2 * g + 6) * h + 2 * vocab as u64 + attention
    }

    fn width(&self) -> usize {
        self.hidden
    }

    fn f32_alone(&self) -> Option<String> {
        (self.attention > 0).then(|| format!("attention (model.attention = {})", self.attention))
    }

    fn build(&self, rows: usize, vocab: usize, seed: u64) -> Result<Box<dyn Model>> {
        Ok(Box::new(Recurrent::new(self.clone(), rows, vocab, seed)?))
    }
}

/// The weights of one layer, named as in the equations above.
struct Layer {
    cell: Cell,
    w_ih: Param,
    w_hh: Param,
    b_ih: Param,
    /// The recurrent bias: only a GRU tells it from the other.
    b_hh: Option<Param>,
}

impl Layer {
    /// Uniform weights in `±1 / sqrt(hidden)`; the forget gate starts open (bias 1), so that the
    /// memory lasts before anything is learned (Jozefowicz, Zaremba & Sutskever 2015).
    fn new(name: &str, cell: Cell, inputs: usize, hidden: usize, rng: &mut Rng) -> Result<Layer> {
        let rows = cell.gates() * hidden;
        let mut param = |part: &str, shape: &[usize]| {
            Ok::<_, crate::Error>(Param::new(
                format!("{name}.{part}"),
                init::by_fan(rng, shape, hidden)?,
            ))
        };
        let mut layer = Layer {
            cell,
            w_ih: param("w_ih", &[rows, inputs])?,
            w_hh: param("w_hh", &[rows, hidden])?,
            b_ih: param("b_ih", &[rows])?,
            b_hh: (cell == Cell::Gru).then(|| param("b_hh", &[rows])).transpose()?,
        };
        if cell == Cell::Lstm {
            layer.b_ih.update(|bias| bias[hidden..2 * hidden].fill(1.0));
        }
        Ok(layer)
    }

    /// `w_ih`, `w_hh`, `b_ih`, `b_hh`.
    fn weights(&self) -> Result<[Tensor; 4]> {
        let b_hh = match &self.b_hh {
            Some(b_hh) => b_hh.value.clone(),
            None => Tensor::zeros(self.b_ih.value.shape())?,
        };
        Ok([self.w_ih.value.clone(), self.w_hh.value.clone(), self.b_ih.value.clone(), b_hh])
    }

    /// Runs the layer over a sequence from a zero state: `[steps, batch, hidden]`.
    fn forward(&self, x: &Input, batch: usize) -> Result<Tensor> {
        let [w_ih, w_hh, b_ih, b_hh] = self.weights()?;
        let zero = Tensor::zeros(&[batch, w_hh.shape()[1]])?;
        Ok(match self.cell {
            Cell::Rnn => rnn_layer(x, Nonlinearity::Tanh, &w_ih, &w_hh, &b_ih, &b_hh, &zero)?,
            Cell::Gru => gru_layer(x, &w_ih, &w_hh, &b_ih, &b_hh, &zero)?,
            Cell::Lstm => lstm_layer(x, &w_ih, &w_hh, &b_ih, &b_hh, &zero, &zero)?.select(0, 0)?,
        })
    }
}

impl Module for Layer {
    fn visit(&self, f: &mut dyn FnMut(&Param)) {
        [&self.w_ih, &self.w_hh, &self.b_ih].into_iter().chain(&self.b_hh).for_each(f);
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param)) {
        let all = [&mut self.w_ih, &mut self.w_hh, &mut self.b_ih];
        all.into_iter().chain(&mut self.b_hh).for_each(f);
    }
}

/// A recurrent language model.
pub struct Recurrent {
    config: RecurrentConfig,
    embedding: Option<Param>,
    attention: Option<AttentionCell>,
    layers: Vec<Layer>,
    out: Linear,
}

impl Recurrent {
    /// Makes a network with fresh weights: `rows` inputs, `vocab` outputs.
    ///
    /// # Errors
    /// If the sizes cannot be allocated.
    pub fn new(config: RecurrentConfig, rows: usize, vocab: usize, seed: u64) -> Result<Recurrent> {
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
        let out = Linear::new("out", config.hidden, vocab, &mut rng)?;
        let embedding = (config.embedding > 0)
            .then(|| init::normal(&mut rng, &[rows, config.embedding], 0.0, 1.0))
            .transpose()?
            .map(|table| Param::new("embedding", table));
        Ok(Recurrent { config, embedding, attention, layers, out })
    }

    /// The logits of every step: `[steps * batch, vocab]`.
    ///
    /// # Errors
    /// If the batch does not fit the network.
    pub fn forward(&self, batch: &Batch, mut dropout: Option<&mut Rng>) -> Result<Tensor> {
        let ids = Ids::bags(batch.rows.as_slice(), batch.active)?;
        let (steps, batch) = (batch.steps, batch.batch);
        let mut x = match &self.embedding {
            None => Input::OneHot { ids, steps, batch },
            Some(table) => {
                let x = table.value.embedding(&ids)?;
                Input::Dense(x.reshape(&[steps, batch, self.config.embedding])?)
            }
        };
        for (l, layer) in self.layers.iter().enumerate() {
            let mut h = match &self.attention {
                Some(attention) if l == 0 => {
                    attention.forward(&x, steps, batch, &layer.weights()?)?
                }
                _ => layer.forward(&x, batch)?,
            };
            if let Some(rng) = dropout.as_deref_mut().filter(|_| self.config.dropout > 0.0) {
                h = h.dropout(self.config.dropout, rng)?;
            }
            x = Input::Dense(h);
        }
        match x {
            Input::Dense(h) => self.out.forward(&h.reshape(&[steps * batch, self.config.hidden])?),
            Input::OneHot { .. } => unreachable!("a network has at least one layer"),
        }
    }
}

impl Module for Recurrent {
    fn visit(&self, f: &mut dyn FnMut(&Param)) {
        self.embedding.iter().for_each(&mut *f);
        self.layers.iter().for_each(|l| l.visit(f));
        self.attention.iter().for_each(|a| a.visit(f));
        self.out.visit(f);
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param)) {
        self.embedding.iter_mut().for_each(&mut *f);
        self.layers.iter_mut().for_each(|l| l.visit_mut(f));
        self.attention.iter_mut().for_each(|a| a.visit_mut(f));
        self.out.visit_mut(f);
    }
}

impl Model for Recurrent {
    fn loss(&self, batch: &Batch, dropout: Option<&mut Rng>) -> Result<Tensor> {
        let logits = self.forward(batch, dropout)?;
        Ok(logits.cross_entropy(&Ids::new(batch.targets.as_slice()))?)
    }

    fn score(&self, batch: &Batch) -> Result<Scored> {
        no_grad(|| {
            let logits = self.forward(batch, None)?;
            let nats = logits.cross_entropy_rows(&Ids::new(batch.targets.as_slice()))?.to_vec();
            let vocab = self.out.bias.value.len();
            let logits = logits.to_vec();
            let rows = logits.chunks_exact(vocab).zip(&batch.targets);
            let hits = rows.filter(|(row, target)| likeliest(row) == **target).count();
            Ok(Scored { nats, hits })
        })
    }

    fn generator(&self, precision: Precision) -> Result<Box<dyn Generator>> {
        let mut all = self.layers.iter().map(Layer::weights).collect::<Result<Vec<_>>>()?;
        if let (Some(table), None) = (&self.embedding, &self.attention) {
            // W_ih (E x) = (W_ih E) x: with the product made once, a step reads ids again.
            all[0][0] = all[0][0].matmul(&table.value.t()?)?.detach();
        }
        let packed: Vec<LayerWeights> = all
            .iter()
            .map(|[w_ih, w_hh, b_ih, b_hh]| LayerWeights { w_ih, w_hh, b_ih, b_hh })
            .collect();
        let cell = match self.config.cell {
            Cell::Rnn => etude_engine::Cell::Rnn(Nonlinearity::Tanh),
            Cell::Gru => etude_engine::Cell::Gru,
            Cell::Lstm => etude_engine::Cell::Lstm,
        };
        let out = Some((&self.out.weight.value, &self.out.bias.value));
        let Some(attention) = &self.attention else {
            let layers = RecurrentStep::for_ids(cell, &packed, out, 1, precision)?;
            return Ok(Box::new(RecurrentGenerator::Plain(layers)));
        };
        let (first, rest) = packed.split_at(1);
        let lstm = RecurrentStep::for_dense(cell, first, None, 1, precision)?;
        let first = attention.stepper(self.embedding.as_ref(), lstm, precision)?;
        Ok(Box::new(if rest.is_empty() {
            let bias = Some(&self.out.bias.value);
            let out = LinearStep::new(&self.out.weight.value, bias, 1, precision)?;
            RecurrentGenerator::Attention(first, out)
        } else {
            let rest = RecurrentStep::for_dense(cell, rest, out, 1, precision)?;
            RecurrentGenerator::Joined(first, rest)
        }))
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
                parameters: (g * (inputs + h + 1 + usize::from(layer.b_hh.is_some()))) as u64,
                flops_per_token: 2 * (g * (inputs + h)) as u64,
            });
        }
        parts.extend(self.attention.iter().map(AttentionCell::part));
        parts.push(self.out.part("out"));
        parts
    }
}

/// The network one token at a time.
enum RecurrentGenerator {
    /// Layers and the output layer.
    Plain(RecurrentStep),
    /// One layer with attention and the output layer.
    Attention(AttentionStep, LinearStep),
    /// A layer with attention, more layers, and the output layer.
    Joined(AttentionStep, RecurrentStep),
}

impl Generator for RecurrentGenerator {
    fn reset(&mut self) {
        match self {
            RecurrentGenerator::Plain(layers) => layers.reset(),
            RecurrentGenerator::Attention(first, _) => first.reset(),
            RecurrentGenerator::Joined(first, rest) => {
                first.reset();
                rest.reset();
            }
        }
    }

    fn step(&mut self, rows: &[u32]) -> Result<&[f32]> {
        Ok(match self {
            RecurrentGenerator::Plain(layers) => layers.step_ids(rows)?,
            RecurrentGenerator::Attention(first, out) => out.apply(first.step(rows)?)?,
            RecurrentGenerator::Joined(first, rest) => rest.step_dense(first.step(rows)?)?,
        })
    }
    fn state(&self) -> Option<Vec<f32>> {
        Some(match self {
            RecurrentGenerator::Plain(layers) => layer_states(layers),
            RecurrentGenerator::Attention(first, _) => first.state(),
            RecurrentGenerator::Joined(first, rest) => [first.state(), layer_states(rest)].concat(),
        })
    }

    fn set_state(&mut self, state: &[f32]) -> Result<()> {
        let rest = match self {
            RecurrentGenerator::Plain(layers) => set_layer_states(layers, state)?,
            RecurrentGenerator::Attention(first, _) => first.set_state(state)?,
            RecurrentGenerator::Joined(first, rest) => {
                set_layer_states(rest, first.set_state(state)?)?
            }
        };
        match rest {
            [] => Ok(()),
            _ => Err(crate::Error::Data { why: "a state of another model".into() }),
        }
    }
}

/// `h` and `c` of every layer, one after the other.
fn layer_states(layers: &RecurrentStep) -> Vec<f32> {
    (0..layers.layers()).flat_map(|l| [layers.h(l), layers.c(l)].concat()).collect()
}

/// Puts [`layer_states`] back; returns what follows them.
fn set_layer_states<'a>(layers: &mut RecurrentStep, mut state: &'a [f32]) -> Result<&'a [f32]> {
    for l in 0..layers.layers() {
        let (h, c) = (layers.h(l).len(), layers.c(l).len());
        let Some((own, rest)) = state.split_at_checked(h + c) else {
            return Err(crate::Error::Data { why: "a state of another model".into() });
        };
        layers.set_state(l, &own[..h], &own[h..])?;
        state = rest;
    }
    Ok(state)
}
