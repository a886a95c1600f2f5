//! A block of the Transformer: attention and a feed-forward layer, each with its norm.
//!
//! Source of what is computed again: Chen, Xu, Zhang & Guestrin 2016.

use super::positions::Turns;
use super::{Positions, TransformerConfig};
use crate::Result;
use crate::layers::{Linear, Norm};
use etude_engine::{Attention, Module, Param, Rng, Tensor, attention, init, self_attention};
use etude_engine::{Error, recompute};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What all blocks of a pass share.
pub(super) struct Pass {
    pub config: TransformerConfig,
    pub batch: usize,
    pub steps: usize,
    /// By which queries and keys are turned, where they are.
    pub turns: Option<Turns>,
}

/// One block: attention and feed-forward layer, each with its norm.
#[derive(Clone)]
pub(super) struct Block {
    pub norm1: Norm,
    pub qkv: Linear,
    /// `e`, `[heads, reach, head_dim]`, the nearest last.
    pub er: Option<Param>,
    pub proj: Linear,
    pub norm2: Norm,
    pub up: Linear,
    pub down: Linear,
}

impl Block {
    /// Weights as Glorot & Bengio 2010 draw them; those that are added to the stream are smaller, so
    /// that the stream of a deep network begins no wider (Radford et al. 2019).
    pub fn new(config: &TransformerConfig, name: &str, rng: &mut Rng) -> Result<Block> {
        let (d, ff) = (config.hidden, config.ff);
        let added = 1.0 / (2.0 * config.layers as f32).sqrt();
        let mut linear = |part: &str, from, to, scale| -> Result<Linear> {
            let weight = init::xavier(rng, to, from, scale)?;
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
    pub fn forward(&self, x: &Tensor, pass: &Pass, rng: &mut Option<&mut Rng>) -> Result<Tensor> {
        let config = &pass.config;
        let drop = |x: Tensor, rng: &mut Option<&mut Rng>| match rng.as_deref_mut() {
            Some(rng) => Ok::<_, crate::Error>(x.dropout(config.dropout, rng)?),
            None => Ok(x),
        };
        let normed = |norm: &Norm, x: &Tensor, wanted: bool| {
            if wanted { norm.forward(x) } else { Ok(x.clone()) }
        };
        let (pre, post) = (config.pre_norm, !config.pre_norm);
        let a = self.attend(&normed(&self.norm1, x, pre)?, pass, rng)?;
        let x = x.add(&drop(self.proj.forward(&a)?, rng)?)?;
        let x = normed(&self.norm1, &x, post)?;
        let h = normed(&self.norm2, &x, pre)?.linear(&self.up.weight.value, None)?;
        let h = h.bias_activation(&self.up.bias.value, None, config.activation)?;
        let x = x.add(&drop(self.down.forward(&h)?, rng)?)?;
        normed(&self.norm2, &x, post)
    }

    /// [`Block::forward`] of which the input alone is kept: the backward runs it again, with the same
    /// random numbers.
    pub fn forward_again(
        &self,
        x: &Tensor,
        pass: &Arc<Pass>,
        rng: &mut Option<&mut Rng>,
    ) -> Result<Tensor> {
        // A gradient flows to what is named as an input alone.
        let mut inputs = vec![x.clone()];
        self.visit(&mut |p| inputs.push(p.value.clone()));
        let (block, pass) = (self.clone(), pass.clone());
        let (start, end) = (rng.as_deref().copied(), Arc::new(AtomicU64::new(0)));
        let ended = end.clone();
        let run = move |x: &[Tensor]| {
            let (mut block, mut weights, mut rng) = (block.clone(), x[1..].iter(), start);
            block.visit_mut(&mut |p| weights.next().into_iter().for_each(|w| p.value = w.clone()));
            let y = block.forward(&x[0], &pass, &mut rng.as_mut()).map_err(|e| match e {
                crate::Error::Engine(e) => e,
                e => Error::argument("block", e.to_string()),
            })?;
            end.store(rng.map_or(0, |rng| rng.position), Relaxed);
            Ok(y)
        };
        let y = recompute(&inputs.iter().collect::<Vec<_>>(), run)?;
        if let Some(rng) = rng {
            rng.position = ended.load(Relaxed);
        }
        Ok(y)
    }

    /// What all heads find: `[batch * steps, hidden]` to the same.
    fn attend(&self, x: &Tensor, pass: &Pass, rng: &mut Option<&mut Rng>) -> Result<Tensor> {
        let &Pass { ref config, batch, steps, .. } = pass;
        let (heads, d) = (config.heads, config.head_dim());
        let mut none = Rng::new(0);
        let (dropout, rng) = match rng.as_deref_mut() {
            Some(rng) => (config.dropout, rng),
            None => (0.0, &mut none),
        };
        let how = Attention { dropout, ..Attention::new(config.mask(steps)) };
        let qkv = self.qkv.forward(x)?.reshape(&[batch, steps, 3, heads, d])?;
        let er = self.er.as_ref().map(|er| &er.value);
        let a = match &pass.turns {
            Some(turns) => {
                let part = |at| Ok::<_, crate::Error>(qkv.select(2, at)?.permute(&[0, 2, 1, 3])?);
                let (q, k) = (turns.of(&part(0)?)?, turns.of(&part(1)?)?);
                attention(&q, &k, &part(2)?, er, &how, rng)?.permute(&[0, 2, 1, 3])?
            }
            None => self_attention(&qkv, er, &how, rng)?,
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
