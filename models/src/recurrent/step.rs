//! The network one step at a time.

use super::cells::CellStep;
use super::heads::KeyChain;
use super::notes::NoteTurn;
use crate::attention_cell::AttentionStep;
use crate::{Generator, Result, of_another_model};
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
    /// For heads that write notes.
    pub notes: Option<NoteTurn>,
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
        self.notes.iter_mut().for_each(NoteTurn::reset);
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
        let Some(notes) = &mut self.notes else { return self.layers.step(rows) };
        if notes.is_due() {
            notes.begin(self.layers.step(rows)?);
        }
        Ok(notes.next())
    }

    fn state(&self) -> Option<Vec<f32>> {
        let mut state = match &self.layers {
            Layers::Plain(layers) => layer_states(layers),
            Layers::Cells(layers, _) => layers.iter().flat_map(CellStep::state).collect(),
            Layers::Attention(first, _) => first.state(),
            Layers::Joined(first, rest) => [first.state(), layer_states(rest)].concat(),
        };
        state.extend(self.notes.iter().flat_map(NoteTurn::state));
        Some(state)
    }

    fn set_state(&mut self, state: &[f32]) -> Result<()> {
        let rest = match &mut self.layers {
            Layers::Plain(layers) => set_layer_states(layers, state)?,
            Layers::Cells(layers, _) => {
                layers.iter_mut().try_fold(state, |rest, layer| layer.set_state(rest))?
            }
            Layers::Attention(first, _) => first.set_state(state)?,
            Layers::Joined(first, rest) => set_layer_states(rest, first.set_state(state)?)?,
        };
        let rest = self.notes.iter_mut().try_fold(rest, |rest, notes| notes.set_state(rest))?;
        match rest {
            [] => Ok(()),
            _ => Err(of_another_model()),
        }
    }

    fn step_keys(&mut self, rows: &[u32], draw: &mut dyn FnMut(f32) -> bool) -> Result<u128> {
        let outputs = self.layers.step(rows)?;
        match &mut self.keys {
            Some(keys) => Ok(keys.draw(outputs, draw)),
            None => Err(crate::writes_tokens()),
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
        let (own, rest) = state.split_at_checked(h + c).ok_or_else(of_another_model)?;
        layers.set_state(l, &own[..h], &own[h..])?;
        state = rest;
    }
    Ok(state)
}
