//! Every architecture that writes music: one file each, with its presets, its loss and its sampling.
//!
//! Read [`recurrent`] first: a whole language model of music, from the paper's equations to the
//! next note. [`registry`] finds a model by name; [`generate`] makes a piece with it; [`train`] makes
//! the weights. With `default-features = false` what is left is the embedded generator.
#![forbid(unsafe_code)]

mod attention_cell;
pub mod augment;
pub mod beam;
pub mod bundled;
pub mod config;
pub mod data;
mod error;
pub mod evaluate;
mod frames;
pub mod generate;
pub mod gpt2;
mod infill;
pub mod layers;
pub mod lora;
mod pairs;
mod pieces;
pub mod recurrent;
pub mod registry;
#[cfg(feature = "train")]
pub mod run;
pub mod sampling;
#[cfg(feature = "train")]
pub mod settings;
#[cfg(feature = "train")]
pub mod store;
#[cfg(feature = "train")]
pub mod tasks;
#[cfg(feature = "train")]
pub mod train;
pub mod transformer;
mod weights;
pub mod wishes;

pub use error::Error;
pub use weights::{Loaded, load_weights, read_model, save_weights};

use data::Batch;
use etude_engine::{Module, Rng, Tensor};

pub use etude_engine::Precision;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What a teacher-forced pass over a batch says about every target.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// Negative log-likelihood of each target, in nats `[steps, batch]`; 0 where there is none.
    pub nats: Vec<f32>,
    /// Targets that were the model's first choice.
    pub hits: usize,
}

/// What every architecture can do.
pub trait Model: Module + Send + Sync {
    /// The mean negative log-likelihood of the batch's targets, in nats, with its graph.
    ///
    /// `dropout` gives the random numbers of a training pass; without it nothing is dropped.
    ///
    /// # Errors
    /// If the batch does not fit the model.
    fn loss(&self, batch: &Batch, dropout: Option<&mut Rng>) -> Result<Tensor>;

    /// Scores every target of the batch, without a graph.
    ///
    /// # Errors
    /// If the batch does not fit the model.
    fn score(&self, batch: &Batch) -> Result<Scored>;

    /// A form of the model that writes one token after the other: weights packed, nothing allocated
    /// while it runs.
    ///
    /// `precision` is that of the packed weights. The states of recurrent layers are f32 in each;
    /// the keys and values that a Transformer keeps are bf16 beside weights of bf16 or int8.
    /// [`Precision::for_weights`] names the one that suits the network's size.
    ///
    /// # Errors
    /// If the weights do not fit together.
    fn generator(&self, precision: Precision) -> Result<Box<dyn Generator>>;

    /// What each part of the network costs.
    fn parts(&self) -> Vec<Part>;
}

/// What a network of tokens says to whom asks it for keys.
fn writes_tokens() -> Error {
    Error::Config { key: "model.head".into(), why: "it writes tokens, not keys".into() }
}

/// What a generator says to a state that is not one of its own.
fn of_another_model() -> Error {
    Error::Data { why: "a state of another model".into() }
}

/// One part of a network: what it holds and what it costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Its name, as in the names of its weights.
    pub name: String,
    /// What it computes, with shapes.
    pub about: String,
    /// Numbers in its weights.
    pub parameters: u64,
    /// Multiply-adds for one token, times 2.
    pub flops_per_token: u64,
}

impl Part {
    /// A part of so many `parameters`, which makes so many multiply-adds for one token.
    pub(crate) fn new(name: String, about: String, parameters: u64, multiplies: u64) -> Part {
        Part { name, about, parameters, flops_per_token: 2 * multiplies }
    }
}

/// Writes one token after the other, for one piece.
pub trait Generator: Send {
    /// Forgets the piece: states back to zero.
    fn reset(&mut self);

    /// Reads the input rows of a step and returns the logits of the token to come.
    ///
    /// # Shapes
    /// `rows` `[active]`; the result `[vocab]`.
    ///
    /// # Errors
    /// If a row lies outside of the input matrix.
    fn step(&mut self, rows: &[u32]) -> Result<&[f32]>;

    /// Reads the input rows of several steps, of which nothing is to be said: what they leave behind is
    /// what [`Generator::step`] leaves of each in turn, bit for bit.
    ///
    /// # Shapes
    /// `rows` `[steps, active]`.
    ///
    /// # Errors
    /// If a row lies outside of the input matrix.
    fn read(&mut self, rows: &[u32], active: usize) -> Result<()> {
        rows.chunks_exact(active.max(1)).try_for_each(|rows| self.step(rows).map(drop))
    }

    /// Reads the input rows of a step and writes the keys that sound in it, bit 0 the lowest.
    ///
    /// `draw` is told the logit of each key, from the lowest up, and says whether it sounds.
    ///
    /// # Errors
    /// If a row lies outside of the input matrix, or the network writes tokens.
    fn step_keys(&mut self, rows: &[u32], draw: &mut dyn FnMut(f32) -> bool) -> Result<u128> {
        let _ = (rows, draw);
        Err(writes_tokens())
    }

    /// Goes back to where `place` steps were read, if that leaves what reading them leaves, bit for
    /// bit; `false`, and nothing happens, where they have to be read again instead.
    fn rewind(&mut self, place: usize) -> bool {
        let _ = place;
        false
    }

    /// A copy of what the steps so far have left behind, for a search that goes several ways from one
    /// place; `None` where the tokens have to be read again instead.
    fn state(&self) -> Option<Vec<f32>> {
        None
    }

    /// Goes back to a place whose [`Generator::state`] was kept.
    ///
    /// # Errors
    /// If the state is that of another model.
    fn set_state(&mut self, state: &[f32]) -> Result<()> {
        let _ = state;
        Err(of_another_model())
    }
}
