//! The Transformer with an encoder and a decoder: what goes with a melody, written under attention to
//! all of it.
//!
//! With `LN` the layer norm and `FF` the feed-forward layer of [`super`]:
//!
//! ```text
//! x = x + Attention(LN(x), LN(x))         a block of the encoder; every token sees every other
//! x = x + FF(LN(x))
//! m = LN(x)                               what the decoder looks at
//!
//! y = y + Attention(LN(y), LN(y))         a block of the decoder; causal and relative
//! y = y + Attention(LN(y), m)
//! y = y + FF(LN(y))
//!
//! Attention(y, m): q = W_q y, (k, v) = W_kv m
//! p(y_(t+1) | y_1 ... y_t, melody) = softmax(W_out LN(y_t))
//! ```
//!
//! Both read the same vectors of tokens, bars and sixteenths; the encoder's order is told by sinusoids.
//! In a sequence `melody END others END` the decoder begins at the first `END`; keys and values of `m`
//! are computed there, once.
//!
//! Source: Vaswani et al. 2017, figure 1; for a given melody Huang et al. 2018, section 4.2.2; norms first
//! and relative attention as in [`super`].

mod make;
mod sizes;
mod step;

pub use sizes::Seq2SeqConfig;

use super::by_piece;
use super::positions::sinusoids;
use super::sizes::TransformerConfig;
use crate::data::Batch;
use crate::layers::{Linear, Norm, scored, smoothed_cross_entropy};
use crate::{Error, Generator, Model, Part, Precision, Result, Scored};
use etude_engine::{Attention, Ids, Mask, NO_ID, Param, Rng, Tensor};
use etude_engine::{attention, init, no_grad};
use make::Maker;

/// Attention of one sequence to another, or to itself.
#[derive(Clone)]
struct Look {
    norm: Norm,
    q: Linear,
    kv: Linear,
    proj: Linear,
    /// `e`, `[heads, reach, head_dim]`, the nearest last.
    er: Option<Param>,
}

#[derive(Clone)]
struct Feed {
    norm: Norm,
    up: Linear,
    down: Linear,
}

/// What all blocks of a pass share.
struct Pass<'a, 'b> {
    sizes: &'a TransformerConfig,
    rng: Option<&'b mut Rng>,
}

impl Pass<'_, '_> {
    fn drop(&mut self, x: Tensor) -> Result<Tensor> {
        match self.rng.as_deref_mut() {
            Some(rng) if self.sizes.dropout > 0.0 => Ok(x.dropout(self.sizes.dropout, rng)?),
            _ => Ok(x),
        }
    }
}

impl Look {
    /// Adds to `x` `[queries, hidden]` what its tokens find among those of `memory` `[keys, hidden]`, or
    /// among each other.
    fn forward(
        &self,
        x: &Tensor,
        memory: Option<&Tensor>,
        mask: Mask,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        let (heads, d) = (pass.sizes.heads, pass.sizes.head_dim());
        let y = self.norm.forward(x)?;
        let cut = |x: Tensor, parts: usize| -> Result<Vec<Tensor>> {
            let x = x.reshape(&[1, x.shape()[0], parts, heads, d])?;
            (0..parts).map(|at| Ok(x.select(2, at)?.permute(&[0, 2, 1, 3])?)).collect()
        };
        let q = cut(self.q.forward(&y)?, 1)?;
        let kv = cut(self.kv.forward(memory.unwrap_or(&y))?, 2)?;
        let mut none = Rng::new(0);
        let (dropout, rng) = match pass.rng.as_deref_mut() {
            Some(rng) => (pass.sizes.dropout, rng),
            None => (0.0, &mut none),
        };
        let how = Attention { dropout, ..Attention::new(mask) };
        let er = self.er.as_ref().map(|er| &er.value);
        let a = attention(&q[0], &kv[0], &kv[1], er, &how, rng)?.permute(&[0, 2, 1, 3])?;
        let a = self.proj.forward(&a.reshape(x.shape())?)?;
        Ok(x.add(&pass.drop(a)?)?)
    }
}

impl Feed {
    fn forward(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let h = self.norm.forward(x)?.linear(&self.up.weight.value, None)?;
        let h = h.bias_activation(&self.up.bias.value, None, pass.sizes.activation)?;
        Ok(x.add(&pass.drop(self.down.forward(&h)?)?)?)
    }
}

/// The half that reads the melody.
#[derive(Clone)]
struct Encoder {
    sizes: TransformerConfig,
    /// `[rows, hidden]`, of the decoder too.
    embedding: Param,
    blocks: Vec<(Look, Feed)>,
    norm: Norm,
}

impl Encoder {
    /// The vectors of rows, `active` to a step: `[steps, hidden]`.
    fn embed(&self, rows: &[u32], active: usize) -> Result<Tensor> {
        let x = self.embedding.value.embedding(&Ids::bags(rows.to_vec(), active)?)?;
        Ok(x.scale(self.input_scale())?)
    }

    /// Factor of the tokens' vectors beside sinusoids (Vaswani et al. 2017, section 3.4).
    fn input_scale(&self) -> f32 {
        (self.sizes.hidden as f32).sqrt()
    }

    /// `m`, `[steps, hidden]`.
    fn forward(&self, rows: &[u32], active: usize, pass: &mut Pass) -> Result<Tensor> {
        let x = self.embed(rows, active)?;
        let mut x = x.add(&sinusoids(x.shape()[0], self.sizes.hidden)?)?;
        x = pass.drop(x)?;
        for (look, feed) in &self.blocks {
            x = feed.forward(&look.forward(&x, None, Mask::Full, pass)?, pass)?;
        }
        self.norm.forward(&x)
    }
}

/// A Transformer with encoder and decoder.
pub struct Seq2Seq {
    encoder: Encoder,
    blocks: Vec<(Look, Look, Feed)>,
    norm: Norm,
    out: Param,
}

impl Seq2Seq {
    /// Makes a network with fresh weights: `rows` inputs, `vocab` outputs, of which the last ends a
    /// sequence.
    ///
    /// # Errors
    /// If the sizes do not fit together or cannot be allocated.
    pub fn new(config: &Seq2SeqConfig, rows: usize, vocab: usize, seed: u64) -> Result<Seq2Seq> {
        config.check()?;
        let (sizes, d) = (&config.sizes, config.sizes.hidden);
        let added = 1.0 / (2.0 * sizes.layers as f32).sqrt();
        let mut make = Maker { sizes, rng: Rng::stream(seed, 0), added };
        let embedding = init::normal(&mut make.rng, &[rows, d], 0.0, 1.0 / (d as f32).sqrt())?;
        let encoder = |l: usize, make: &mut Maker| -> Result<(Look, Feed)> {
            let name = format!("encoder.{l}");
            Ok((make.look(&format!("{name}.self"), false)?, make.feed(&format!("{name}.ff"))?))
        };
        let decoder = |l: usize, make: &mut Maker| -> Result<(Look, Look, Feed)> {
            let name = format!("decoder.{l}");
            let own = make.look(&format!("{name}.self"), true)?;
            let cross = make.look(&format!("{name}.cross"), false)?;
            Ok((own, cross, make.feed(&format!("{name}.ff"))?))
        };
        let blocks = (0..config.encoder).map(|l| encoder(l, &mut make)).collect::<Result<_>>()?;
        let encoder = Encoder {
            sizes: sizes.clone(),
            embedding: Param::new("embedding", embedding),
            blocks,
            norm: Norm::new("encoder.norm", d)?,
        };
        let blocks = (0..sizes.layers).map(|l| decoder(l, &mut make)).collect::<Result<_>>()?;
        let out = Param::new("out.weight", init::xavier(&mut make.rng, vocab, d, 1.0)?);
        Ok(Seq2Seq { encoder, blocks, norm: Norm::new("decoder.norm", d)?, out })
    }

    /// The row of the token that ends a sequence.
    fn end(&self) -> u32 {
        self.out.value.shape()[0] as u32 - 1
    }

    /// The logits of the decoder's steps, piece after piece `[_, vocab]`, and which steps those are.
    ///
    /// # Errors
    /// If the batch does not fit the network, or a melody in it does not end.
    pub fn forward(
        &self,
        batch: &Batch,
        dropout: Option<&mut Rng>,
    ) -> Result<(Tensor, Vec<Vec<usize>>)> {
        let Batch { steps, batch: pieces, active, .. } = *batch;
        let rows = by_piece(&batch.rows, steps, pieces, active);
        let mut pass = Pass { sizes: &self.encoder.sizes, rng: dropout };
        let (mut found, mut places) = (Vec::new(), Vec::new());
        // One after the other: pieces are of any length, and none looks at what fills up the others.
        for rows in rows.chunks_exact((steps * active).max(1)) {
            let bag = |t: usize| &rows[t * active..][..active];
            let Some(end) = (1..steps).find(|t| bag(*t)[0] == self.end()) else {
                return Err(Error::Data { why: "a melody that does not end".into() });
            };
            let last = (end..steps).rfind(|t| bag(*t)[0] != NO_ID).unwrap_or(end);
            // Its end is a token of the melody too, so that there is one.
            let memory =
                self.encoder.forward(&rows[active..(end + 1) * active], active, &mut pass)?;
            let mut y = self.encoder.embed(&rows[end * active..(last + 1) * active], active)?;
            y = pass.drop(y)?;
            let mask = pass.sizes.mask(y.shape()[0]);
            for (own, cross, feed) in &self.blocks {
                y = own.forward(&y, None, mask, &mut pass)?;
                y = cross.forward(&y, Some(&memory), Mask::Full, &mut pass)?;
                y = feed.forward(&y, &mut pass)?;
            }
            found.push(self.norm.forward(&y)?);
            places.push((end..last + 1).collect());
        }
        let found = Tensor::concat(&found.iter().collect::<Vec<_>>(), 0)?;
        Ok((found.linear(&self.out.value, None)?, places))
    }

    /// The targets of those steps.
    fn targets(batch: &Batch, places: &[Vec<usize>]) -> Vec<u32> {
        let of_piece = |(piece, steps): (usize, &Vec<usize>)| {
            steps.iter().map(|t| batch.targets[t * batch.batch + piece]).collect::<Vec<u32>>()
        };
        places.iter().enumerate().flat_map(of_piece).collect()
    }
}

impl Model for Seq2Seq {
    fn loss(&self, batch: &Batch, dropout: Option<&mut Rng>) -> Result<Tensor> {
        let sizes = &self.encoder.sizes;
        let share = if dropout.is_some() { sizes.label_smoothing } else { 0.0 };
        let (logits, places) = self.forward(batch, dropout)?;
        smoothed_cross_entropy(&logits, &Ids::new(Seq2Seq::targets(batch, &places)), share)
    }

    fn score(&self, batch: &Batch) -> Result<Scored> {
        let (logits, places) = no_grad(|| self.forward(batch, None))?;
        let found = scored(&logits, &Seq2Seq::targets(batch, &places))?;
        let mut all = Scored { nats: vec![0.0; batch.targets.len()], hits: found.hits };
        let at = |(piece, steps): (usize, &Vec<usize>)| {
            steps.iter().map(|t| t * batch.batch + piece).collect::<Vec<usize>>()
        };
        let places = places.iter().enumerate().flat_map(at);
        places.zip(found.nats).for_each(|(at, nats)| all.nats[at] = nats);
        Ok(all)
    }

    fn generator(&self, precision: Precision) -> Result<Box<dyn Generator>> {
        Ok(Box::new(self.stepper(precision)?))
    }

    fn parts(&self) -> Vec<Part> {
        self.costs()
    }
}
