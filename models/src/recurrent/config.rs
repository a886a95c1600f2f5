//! The sizes of a recurrent network: read, written, counted.

use super::{Cell, HeadKind, Recurrent};
use crate::attention_cell::AttentionCell;
use crate::config::{Table, written};
use crate::registry::Network;
use crate::{Error, Model, Result};
use etude_engine::Tensor;
use serde_json::{Map, Value};
use std::sync::Arc;

/// The keys of table `model` that a recurrent network reads.
pub(super) const KEYS: &[&str] =
    &["hidden", "layers", "dropout", "attention", "embedding", "head", "nade", "cell"];

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
    /// What the outputs are probabilities of.
    pub head: HeadKind,
}

impl RecurrentConfig {
    /// Reads the network's keys of table `model`.
    ///
    /// # Errors
    /// Names the key that cannot be used.
    pub fn read(id: &str, t: &mut Table) -> Result<RecurrentConfig> {
        let kinds = Cell::kinds(id);
        let kind = t.choice("cell", kinds[0].kind(), &kinds.map(Cell::kind))?;
        let cell = if kind == kinds[1].kind() { kinds[1] } else { kinds[0] };
        let units = t.count("nade", 128, 1..=65_536)?;
        let head = match t.choice("head", "softmax", &HeadKind::NAMES)?.as_str() {
            "bernoulli" => HeadKind::Bernoulli,
            "nade" => HeadKind::Nade(units),
            "notes" => HeadKind::Notes,
            _ => HeadKind::Softmax,
        };
        let most_attention = if cell == Cell::Lstm { 4096 } else { 0 };
        Ok(RecurrentConfig {
            cell,
            hidden: t.count("hidden", 128, 1..=65_536)?,
            layers: t.count("layers", 2, 1..=64)?,
            dropout: t.number("dropout", 0.0, 0.0..=0.95)? as f32,
            attention: t.count("attention", 0, 0..=most_attention)?,
            embedding: t.count("embedding", 0, 0..=65_536)?,
            head,
        })
    }

    pub(super) fn entry(id: &str, t: &mut Table) -> Result<Arc<dyn Network>> {
        Ok(Arc::new(RecurrentConfig::read(id, t)?))
    }

    /// A plain network: one-hot input, no dropout, no attention.
    pub fn plain(cell: Cell, hidden: usize, layers: usize) -> RecurrentConfig {
        let (attention, embedding, head) = (0, 0, HeadKind::Softmax);
        RecurrentConfig { cell, hidden, layers, dropout: 0.0, attention, embedding, head }
    }

    /// Numbers that the first layer reads at a step.
    pub(super) fn inputs(&self, rows: usize) -> usize {
        if self.embedding > 0 { self.embedding } else { rows }
    }
}

impl Network for RecurrentConfig {
    fn write(&self, table: &mut Map<String, Value>) {
        table.insert("hidden".into(), self.hidden.into());
        table.insert("layers".into(), self.layers.into());
        table.insert("dropout".into(), written(self.dropout));
        table.insert("attention".into(), self.attention.into());
        table.insert("embedding".into(), self.embedding.into());
        if self.cell != Cell::kinds(self.cell.name())[0] {
            table.insert("cell".into(), self.cell.kind().into());
        }
        if self.head != HeadKind::Softmax {
            table.insert("head".into(), self.head.name().into());
        }
        if let HeadKind::Nade(units) = self.head {
            table.insert("nade".into(), units.into());
        }
    }

    fn width(&self) -> usize {
        self.hidden
    }

    fn parameter_count(&self, rows: usize, vocab: usize) -> u64 {
        let (h, g) = (self.hidden as u64, self.cell.gates() as u64);
        let (table, rows) = ((rows * self.embedding) as u64, self.inputs(rows) as u64);
        let biases = if self.cell == Cell::Gru { 2 } else { 1 };
        let peepholes = if self.cell == Cell::LstmPeephole { 3 * h } else { 0 };
        let layer = |inputs: u64| g * h * (inputs + h + biases) + peepholes;
        let attention =
            if self.attention > 0 { AttentionCell::parameter_count(rows, h) } else { 0 };
        let head = self.head.parameter_count(h, vocab as u64);
        table + layer(rows) + (self.layers as u64 - 1) * layer(h) + head + attention
    }

    fn activations_per_token(&self, vocab: usize) -> u64 {
        let (h, g) = (self.hidden as u64, self.cell.gates() as u64);
        // State, what was found, query, output and key, with their gradients, the zeros before the
        // first step as many as the window at most; and a share for each output that is attended to.
        let attention = if self.attention > 0 { 13 * h + self.attention as u64 } else { 0 };
        // A step of `k` keys is `k + 1` rows of a NADE; 8 stand for the chords of four voices.
        let units = self.head.units() as u64;
        let nade = if units > 0 { 8 * (4 * units + 6 * vocab as u64) } else { 0 };
        self.layers as u64 * (2 * g + 6) * h + 2 * vocab as u64 + attention + nade
    }

    fn writes_keys(&self) -> bool {
        self.head.writes_keys()
    }

    fn writes_notes(&self) -> bool {
        self.head == HeadKind::Notes
    }

    fn f32_alone(&self) -> Option<String> {
        (self.attention > 0).then(|| format!("attention (model.attention = {})", self.attention))
    }

    fn build(&self, rows: usize, vocab: usize, seed: u64) -> Result<Box<dyn Model>> {
        Ok(Box::new(Recurrent::new(self.clone(), rows, vocab, seed)?))
    }

    fn build_for_features(&self, table: Tensor, vocab: usize, seed: u64) -> Result<Box<dyn Model>> {
        if self.embedding > 0 {
            let why = format!("{}: features have no learned vectors", self.embedding);
            return Err(Error::Config { key: "model.embedding".into(), why });
        }
        let network = Recurrent::new(self.clone(), table.shape()[1], vocab, seed)?;
        Ok(Box::new(network.with_features(table)))
    }
}
