//! The Transformer as a language model of music: a decoder with causal attention.
//!
//! Each token is a vector `x` of a stream that every block adds to. With `LN` the layer norm:
//!
//! ```text
//! x = x + Attention(LN(x))        a block, norm first (pre), as in GPT-2
//! x = x + FF(LN(x))
//!
//! x = LN(x + Attention(x))        a block as in the paper (post)
//! x = LN(x + FF(x))
//!
//! FF(x) = W_down gelu(W_up x + b_up) + b_down
//!
//! q, k, v = W_qkv x + b_qkv, each cut into heads of D numbers; in every head
//! a_i = sum over j <= i of softmax_j((q_i . k_j + q_i . e_(j - i)) / sqrt(D)) v_j
//! Attention(x) = W_proj [a of all heads] + b_proj
//!
//! p(x_(t+1) | x_1 ... x_t) = softmax(W_out LN(x_t))
//! ```
//!
//! `e_(j - i)` is a learned vector for each distance: the relative attention of the Music Transformer,
//! which knows that two notes lie a bar apart wherever they stand. The other ways to tell positions
//! leave it out and add a vector of the place to the input, or turn `q` and `k` (see [`Positions`]).
//!
//! Source: Vaswani et al. 2017; pre-norm as in Radford et al. 2019; relative attention from Shaw et al.
//! 2018 and Huang et al. 2018; sparse attention from Child et al. 2019 and MuseNet (Payne 2019).

mod block;
mod block_step;
mod positions;
mod presets;
mod seq2seq;
mod sizes;
mod step;

pub use positions::Positions;
pub use presets::TRANSFORMER;
pub use seq2seq::{Seq2Seq, Seq2SeqConfig};
pub use sizes::TransformerConfig;
pub use step::TransformerGenerator;

use crate::data::Batch;
use crate::layers::{Norm, scored, smoothed_cross_entropy};
use crate::{Generator, Model, Part, Precision, Result, Scored};
use block::{Block, Pass};
use etude_engine::{Ids, Module, NO_ID, Param, Rng, Tensor, init, no_grad};
use positions::Turns;
use std::sync::Arc;

/// A Transformer language model.
pub struct Transformer {
    config: TransformerConfig,
    vocab: usize,
    /// `[rows + 1, hidden]`: a vector for each input row, and one for the start of a piece, where
    /// there is none. (A norm of nothing would have a slope of `1 / sqrt(eps)`.)
    embedding: Param,
    /// Learned vectors of the places, `[context, hidden]`.
    positions: Option<Param>,
    blocks: Vec<Block>,
    norm: Option<Norm>,
    out: Option<Param>,
}

impl Transformer {
    /// Makes a network with fresh weights: `rows` inputs, `vocab` outputs.
    ///
    /// # Errors
    /// If the sizes do not fit together or cannot be allocated.
    pub fn new(
        config: TransformerConfig,
        rows: usize,
        vocab: usize,
        seed: u64,
    ) -> Result<Transformer> {
        config.check()?;
        let (mut rng, d) = (Rng::stream(seed, 0), config.hidden);
        // Scaled to 1 beside sinusoids, whose numbers are about 1 too.
        let deviation = 1.0 / (d as f32).sqrt();
        let embedding =
            Param::new("embedding", init::normal(&mut rng, &[rows + 1, d], 0.0, deviation)?);
        let positions = (config.positions == Positions::Learned)
            .then(|| init::normal(&mut rng, &[config.context, d], 0.0, 0.02))
            .transpose()?
            .map(|p| Param::new("positions", p));
        let blocks = (0..config.layers)
            .map(|l| Block::new(&config, &format!("block.{l}"), &mut rng))
            .collect::<Result<_>>()?;
        let norm = config.pre_norm.then(|| Norm::new("norm", d)).transpose()?;
        let out = (!config.tied).then(|| init::xavier(&mut rng, vocab, d, 1.0)).transpose()?;
        let out = out.map(|w| Param::new("out.weight", w));
        Ok(Transformer { config, vocab, embedding, positions, blocks, norm, out })
    }

    /// The matrix of the output layer, `[vocab, hidden]`.
    fn w_out(&self) -> Result<Tensor> {
        match &self.out {
            Some(out) => Ok(out.value.clone()),
            None => Ok(self.embedding.value.slice(0, 0..self.vocab)?),
        }
    }

    /// Factor of the tokens' vectors (Vaswani et al. 2017, section 3.4).
    fn input_scale(&self) -> f32 {
        match self.config.positions {
            Positions::Sinusoidal => (self.config.hidden as f32).sqrt(),
            _ => 1.0,
        }
    }

    /// The logits of every step, piece after piece: `[batch * steps, vocab]`.
    ///
    /// # Errors
    /// If the batch does not fit the network.
    pub fn forward(&self, batch: &Batch, dropout: Option<&mut Rng>) -> Result<Tensor> {
        let (steps, pieces, d) = (batch.steps, batch.batch, self.config.hidden);
        if let Some(most) = self.config.is_sparse().then_some(self.config.context)
            && steps > most
        {
            let why = format!("{steps} steps; this sparse attention ends at {most}");
            return Err(crate::Error::Data { why });
        }
        let rng = &mut dropout.filter(|_| self.config.dropout > 0.0);
        let start = self.embedding.value.shape()[0] as u32 - 1;
        let mut rows = by_piece(&batch.rows, steps, pieces, batch.active);
        if let Some(id) = rows.iter().find(|id| **id != NO_ID && **id >= start) {
            let rows = start as usize;
            return Err(etude_engine::Error::Id { op: "transformer", id: *id, rows }.into());
        }
        for bag in rows.chunks_exact_mut(batch.active.max(1)) {
            if bag.iter().all(|row| *row == NO_ID) {
                bag[0] = start;
            }
        }
        let ids = Ids::bags(rows, batch.active)?;
        let mut x = self.embedding.value.embedding(&ids)?;
        if self.input_scale() != 1.0 {
            x = x.scale(self.input_scale())?;
        }
        if let Some(places) = self.places(steps)? {
            x = x.reshape(&[pieces, steps, d])?.add(&places)?.reshape(&[pieces * steps, d])?;
        }
        if let Some(rng) = rng.as_deref_mut() {
            x = x.dropout(self.config.dropout, rng)?;
        }
        let turns = (self.config.positions == Positions::Rotary)
            .then(|| Turns::new(steps, self.config.head_dim() / 2))
            .transpose()?;
        let pass = Arc::new(Pass { config: self.config.clone(), batch: pieces, steps, turns });
        for block in &self.blocks {
            x = match self.config.recompute {
                true => block.forward_again(&x, &pass, rng)?,
                false => block.forward(&x, &pass, rng)?,
            };
        }
        if let Some(norm) = &self.norm {
            x = norm.forward(&x)?;
        }
        Ok(x.linear(&self.w_out()?, None)?)
    }

    /// What is added to the input at each step, `[steps, hidden]`.
    fn places(&self, steps: usize) -> Result<Option<Tensor>> {
        Ok(match (&self.positions, self.config.positions) {
            (Some(table), _) => {
                let places = (0..steps).map(|t| (t % self.config.context) as u32);
                Some(table.value.embedding(&Ids::new(places.collect::<Vec<u32>>()))?)
            }
            (None, Positions::Sinusoidal) => Some(positions::sinusoids(steps, self.config.hidden)?),
            _ => None,
        })
    }
}

/// What stands step after step in a batch, `[steps, pieces, width]`, put piece after piece.
fn by_piece<T: Copy>(x: &[T], steps: usize, pieces: usize, width: usize) -> Vec<T> {
    let at = |piece: usize, step: usize| (step * pieces + piece) * width;
    let rows = (0..pieces).flat_map(|p| (0..steps).map(move |t| at(p, t)));
    rows.flat_map(|at| &x[at..at + width]).copied().collect()
}

impl Module for Transformer {
    fn visit(&self, f: &mut dyn FnMut(&Param)) {
        f(&self.embedding);
        self.positions.iter().for_each(&mut *f);
        self.blocks.visit(f);
        self.norm.iter().for_each(|n| n.visit(f));
        self.out.iter().for_each(f);
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param)) {
        f(&mut self.embedding);
        self.positions.iter_mut().for_each(&mut *f);
        self.blocks.visit_mut(f);
        self.norm.iter_mut().for_each(|n| n.visit_mut(f));
        self.out.iter_mut().for_each(f);
    }
}

impl Model for Transformer {
    fn loss(&self, batch: &Batch, dropout: Option<&mut Rng>) -> Result<Tensor> {
        let share = if dropout.is_some() { self.config.label_smoothing } else { 0.0 };
        let logits = self.forward(batch, dropout)?;
        let targets = Ids::new(by_piece(&batch.targets, batch.steps, batch.batch, 1));
        smoothed_cross_entropy(&logits, &targets, share)
    }

    fn score(&self, batch: &Batch) -> Result<Scored> {
        let pieces = batch.batch;
        // Sparse attention begins anew at the end of its context.
        let most = if self.config.is_sparse() { self.config.context } else { batch.steps.max(1) };
        let mut all = Scored { nats: Vec::with_capacity(batch.targets.len()), hits: 0 };
        for first in (0..batch.steps).step_by(most) {
            let steps = first..(first + most).min(batch.steps);
            let part = |x: &[u32], width: usize| x[steps.start * width..steps.end * width].to_vec();
            let part = Batch {
                rows: part(&batch.rows, pieces * batch.active),
                targets: part(&batch.targets, pieces),
                keys: Vec::new(),
                steps: steps.len(),
                ..*batch
            };
            let logits = no_grad(|| self.forward(&part, None))?;
            let found = scored(&logits, &by_piece(&part.targets, part.steps, pieces, 1))?;
            // Back to step after step.
            all.nats.extend(by_piece(&found.nats, pieces, part.steps, 1));
            all.hits += found.hits;
        }
        Ok(all)
    }

    fn generator(&self, precision: Precision) -> Result<Box<dyn Generator>> {
        Ok(Box::new(self.stepper(precision)?))
    }

    fn parts(&self) -> Vec<Part> {
        sizes::parts(self)
    }
}
