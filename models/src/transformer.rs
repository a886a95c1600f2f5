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

mod sizes;
mod step;

pub use sizes::{Positions, TRANSFORMER, TransformerConfig};
pub use step::TransformerGenerator;

use crate::data::Batch;
use crate::layers::{Linear, Norm};
use crate::{Generator, Model, Part, Precision, Result, Scored};
use etude_engine::{Attention, Ids, Module, Param, Rng, Tensor, attention, init, no_grad};
use etude_engine::{NO_ID, self_attention};

/// One block: attention and feed-forward layer, each with its norm.
struct Block {
    norm1: Norm,
    qkv: Linear,
    /// `e`, `[heads, reach, head_dim]`, the nearest last.
    er: Option<Param>,
    proj: Linear,
    norm2: Norm,
    up: Linear,
    down: Linear,
}

impl Block {
    /// Weights as Glorot & Bengio 2010 draw them; those that are added to the stream are smaller, so
    /// that the stream of a deep network begins no wider (Radford et al. 2019).
    fn new(config: &TransformerConfig, name: &str, rng: &mut Rng) -> Result<Block> {
        let (d, ff) = (config.hidden, config.ff);
        let added = 1.0 / (2.0 * config.layers as f32).sqrt();
        let mut linear = |part: &str, from, to, scale| -> Result<Linear> {
            let weight = init::xavier(rng, to, from)?.scale(scale)?;
            Ok(Linear::of(&format!("{name}.{part}"), weight, Tensor::zeros(&[to])?))
        };
        let qkv = linear("qkv", d, 3 * d, 1.0)?;
        let proj = linear("proj", d, d, added)?;
        let (up, down) = (linear("up", d, ff, 1.0)?, linear("down", ff, d, added)?);
        let shape = [config.heads, config.reach(), config.head_dim()];
        let er = (config.positions == Positions::Relative)
            .then(|| init::normal(rng, &shape, 0.0, 0.02))
            .transpose()?
            .map(|e| Param::new(format!("{name}.er"), e));
        let norm = |part: &str| Norm::new(&format!("{name}.{part}"), d);
        Ok(Block { norm1: norm("norm1")?, qkv, er, proj, norm2: norm("norm2")?, up, down })
    }

    /// Runs the block on the stream `[batch * steps, hidden]`.
    fn forward(
        &self,
        x: &Tensor,
        config: &TransformerConfig,
        [batch, steps]: [usize; 2],
        rng: &mut Option<&mut Rng>,
    ) -> Result<Tensor> {
        let drop = |x: Tensor, rng: &mut Option<&mut Rng>| match rng.as_deref_mut() {
            Some(rng) => Ok::<_, crate::Error>(x.dropout(config.dropout, rng)?),
            None => Ok(x),
        };
        let normed = |norm: &Norm, x: &Tensor, wanted: bool| {
            if wanted { norm.forward(x) } else { Ok(x.clone()) }
        };
        let (pre, post) = (config.pre_norm, !config.pre_norm);
        let a = self.attend(&normed(&self.norm1, x, pre)?, config, [batch, steps], rng)?;
        let x = x.add(&drop(self.proj.forward(&a)?, rng)?)?;
        let x = normed(&self.norm1, &x, post)?;
        let h = normed(&self.norm2, &x, pre)?.linear(&self.up.weight.value, None)?;
        let h = h.bias_activation(&self.up.bias.value, None, config.activation)?;
        let x = x.add(&drop(self.down.forward(&h)?, rng)?)?;
        normed(&self.norm2, &x, post)
    }

    /// What all heads find: `[batch * steps, hidden]` to the same.
    fn attend(
        &self,
        x: &Tensor,
        config: &TransformerConfig,
        [batch, steps]: [usize; 2],
        rng: &mut Option<&mut Rng>,
    ) -> Result<Tensor> {
        let (heads, d) = (config.heads, config.head_dim());
        let mut none = Rng::new(0);
        let (dropout, rng) = match rng.as_deref_mut() {
            Some(rng) => (config.dropout, rng),
            None => (0.0, &mut none),
        };
        let how = Attention { dropout, ..Attention::new(config.mask(steps)) };
        let qkv = self.qkv.forward(x)?.reshape(&[batch, steps, 3, heads, d])?;
        let er = self.er.as_ref().map(|er| &er.value);
        let a = if config.positions == Positions::Rotary {
            let part = |at| Ok::<_, crate::Error>(qkv.select(2, at)?.permute(&[0, 2, 1, 3])?);
            let (q, k) = (turned(&part(0)?)?, turned(&part(1)?)?);
            attention(&q, &k, &part(2)?, er, &how, rng)?.permute(&[0, 2, 1, 3])?
        } else {
            self_attention(&qkv, er, &how, rng)?
        };
        Ok(a.reshape(&[batch * steps, config.hidden])?)
    }

    fn params(&self) -> [&dyn Module; 6] {
        [&self.norm1, &self.qkv, &self.proj, &self.norm2, &self.up, &self.down]
    }
}

impl Module for Block {
    fn visit(&self, f: &mut dyn FnMut(&Param)) {
        self.params().into_iter().for_each(|p| p.visit(f));
        self.er.iter().for_each(f);
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param)) {
        let Block { norm1, qkv, er, proj, norm2, up, down } = self;
        let all: [&mut dyn Module; 6] = [norm1, qkv, proj, norm2, up, down];
        all.into_iter().for_each(|p| p.visit_mut(f));
        er.iter_mut().for_each(f);
    }
}

/// The angle by which pair `i` of `pairs` is turned at a place (Su et al. 2021), and the wave of the
/// sinusoids (Vaswani et al. 2017).
fn angle(place: usize, i: usize, pairs: usize) -> f64 {
    place as f64 * 10_000f64.powf(-(i as f64) / pairs as f64)
}

/// Turns each pair `(x_i, x_(i + D/2))` of `[batch, heads, steps, D]` by the angle of its step.
fn turned(x: &Tensor) -> Result<Tensor> {
    let (steps, pairs) = (x.shape()[2], x.shape()[3] / 2);
    let table = |f: fn(f64) -> f64| {
        let values = (0..steps * pairs).map(|at| f(angle(at / pairs, at % pairs, pairs)) as f32);
        Tensor::new(values.collect::<Vec<f32>>(), &[steps, pairs])
    };
    let (cos, sin) = (table(f64::cos)?, table(f64::sin)?);
    let (a, b) = (x.slice(3, 0..pairs)?, x.slice(3, pairs..2 * pairs)?);
    let first = a.mul(&cos)?.sub(&b.mul(&sin)?)?;
    Ok(Tensor::concat(&[&first, &b.mul(&cos)?.add(&a.mul(&sin)?)?], 3)?)
}

/// The vector of a place: sines, then cosines, of waves from 2 pi to 10,000 times as long.
fn sinusoid(place: usize, y: &mut [f32]) {
    let pairs = y.len().div_ceil(2);
    for (i, y) in y.iter_mut().enumerate() {
        let phase = angle(place, i % pairs, pairs);
        *y = if i < pairs { phase.sin() } else { phase.cos() } as f32;
    }
}

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
        let out = (!config.tied).then(|| init::xavier(&mut rng, vocab, d)).transpose()?;
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
        for block in &self.blocks {
            x = block.forward(&x, &self.config, [pieces, steps], rng)?;
        }
        if let Some(norm) = &self.norm {
            x = norm.forward(&x)?;
        }
        Ok(x.linear(&self.w_out()?, None)?)
    }

    /// What is added to the input at each step, `[steps, hidden]`.
    fn places(&self, steps: usize) -> Result<Option<Tensor>> {
        let d = self.config.hidden;
        match (&self.positions, self.config.positions) {
            (Some(table), _) => {
                let places = (0..steps).map(|t| (t % self.config.context) as u32);
                Ok(Some(table.value.embedding(&Ids::new(places.collect::<Vec<u32>>()))?))
            }
            (None, Positions::Sinusoidal) => {
                let mut values = vec![0.0; steps * d];
                values.chunks_exact_mut(d).enumerate().for_each(|(t, row)| sinusoid(t, row));
                Ok(Some(Tensor::new(values, &[steps, d])?))
            }
            _ => Ok(None),
        }
    }
}

/// Ids of a batch, step after step, put piece after piece.
fn by_piece(ids: &[u32], steps: usize, pieces: usize, active: usize) -> Vec<u32> {
    let at = |piece: usize, step: usize| (step * pieces + piece) * active;
    let rows = (0..pieces).flat_map(|p| (0..steps).map(move |t| at(p, t)));
    rows.flat_map(|at| &ids[at..at + active]).copied().collect()
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
        let training = dropout.is_some();
        let logits = self.forward(batch, dropout)?;
        let targets = Ids::new(by_piece(&batch.targets, batch.steps, batch.batch, 1));
        let share = self.config.label_smoothing;
        if share == 0.0 || !training {
            return Ok(logits.cross_entropy(&targets)?);
        }
        // (1 - share) of a target is itself; the rest is spread evenly (Szegedy et al. 2016).
        let counts =
            targets.as_slice().iter().map(|t| f32::from(u8::from(*t != crate::data::NO_TARGET)));
        let counts = Tensor::new(counts.collect::<Vec<f32>>(), &[targets.rows(), 1])?;
        let log_p = logits.log_softmax()?;
        let spread = share / (self.vocab * batch.target_count().max(1)) as f32;
        let even = log_p.mul(&counts)?.sum_all()?.scale(-spread)?;
        let kept = (1.0 - share) / batch.target_count().max(1) as f32;
        Ok(log_p.gather(&targets)?.sum_all()?.scale(-kept)?.add(&even)?)
    }

    fn score(&self, batch: &Batch) -> Result<Scored> {
        let (pieces, vocab) = (batch.batch, self.vocab);
        let most = if self.config.is_sparse() { self.config.context } else { batch.steps.max(1) };
        let mut scored = Scored { nats: Vec::with_capacity(batch.targets.len()), hits: 0 };
        for first in (0..batch.steps).step_by(most) {
            // Sparse attention begins anew at the end of its context.
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
            let targets = by_piece(&part.targets, part.steps, pieces, 1);
            let nats = logits.cross_entropy_rows(&Ids::new(targets.as_slice()))?.to_vec();
            let row = |t: usize, p: usize| nats[p * part.steps + t];
            scored.nats.extend(
                (0..part.steps)
                    .flat_map(|t| (0..pieces).map(move |p| (t, p)))
                    .map(|(t, p)| row(t, p)),
            );
            let values = logits.values();
            let rows = values.chunks_exact(vocab).zip(&targets);
            scored.hits +=
                rows.filter(|(row, target)| crate::layers::likeliest(row) == **target).count();
        }
        Ok(scored)
    }

    fn generator(&self, precision: Precision) -> Result<Box<dyn Generator>> {
        Ok(Box::new(self.stepper(precision)?))
    }

    fn parts(&self) -> Vec<Part> {
        sizes::parts(self)
    }
}
