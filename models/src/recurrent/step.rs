//! The network one step at a time.

use super::cells::CellStep;
use super::heads::KeyChain;
use crate::attention_cell::AttentionStep;
use crate::{Generator, Result};
use etude_engine::{LinearStep, RecurrentStep};

/// The layers and the output layer.
pub(super) enum Layers {
    /// Layers without attention.
    Plain(RecurrentStep),
    /// Cells without a fused kernel.
    Cells(Vec<CellStep>, LinearStep),
    /// One layer with attention.
    Attention(AttentionStep, LinearStep),
    /// A layer with attention and more layers.
    Joined(AttentionStep, RecurrentStep),
}

/// The network one step at a time.
pub(super) struct RecurrentGenerator {
    pub layers: Layers,
    /// For heads that write keys.
    pub keys: Option<KeyChain>,
}

impl Layers {
    fn step(&mut self, rows: &[u32]) -> Result<&[f32]> {
        Ok(match self {
            Layers::Plain(layers) => layers.step_ids(rows)?,
            Layers::Cells(layers, out) => {
                for l in 0..layers.len() {
                    let (below, above) = layers.split_at_mut(l);
                    above[0].step(rows, below.last().map_or(&[], CellStep::h))?;
                }
                out.apply(layers[layers.len() - 1].h())?
            }
            Layers::Attention(first, out) => out.apply(first.step(rows)?)?,
            Layers::Joined(first, rest) => rest.step_dense(first.step(rows)?)?,
        })
    }
}

impl Generator for RecurrentGenerator {
    fn reset(&mut self) {
        match &mut self.layers {
            Layers::Plain(layers) => layers.reset(),
            Layers::Cells(layers, _) => layers.iter_mut().for_each(CellStep::reset),
            Layers::Attention(first, _) => first.reset(),
            Layers::Joined(first, rest) => {
                first.reset();
                rest.reset();
            }
        }
    }

    fn step(&mut self, rows: &[u32]) -> Result<&[f32]> {
        self.layers.step(rows)
    }

    fn step_keys(&mut self, rows: &[u32], draw: &mut dyn FnMut(f32) -> bool) -> Result<u128> {
        let outputs = self.layers.step(rows)?;
        match &mut self.keys {
            Some(keys) => Ok(keys.draw(outputs, draw)),
            None => Err(crate::writes_tokens()),
        }
    }
}
