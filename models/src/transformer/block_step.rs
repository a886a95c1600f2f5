//! A block of the Transformer for tokens of one piece that come after those that it has seen: one token,
//! or several side by side, which leave the same bits behind.

use super::positions::Turn;
use super::{Block, Positions, TransformerConfig};
use crate::Result;
use crate::layers::{Linear, NORM_EPS, Norm, add};
use etude_engine::{KeyValueCache, LinearStep, Precision, RelativeStep};
use etude_engine::{activation_row, layer_norm_row};

/// A norm of one row after the other.
pub(super) struct NormStep {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl NormStep {
    pub fn new(norm: &Norm) -> NormStep {
        NormStep { weight: norm.weight.value.to_vec(), bias: norm.bias.value.to_vec() }
    }

    pub fn apply(&self, x: &[f32], y: &mut [f32]) {
        let width = self.weight.len();
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            layer_norm_row(x, &self.weight, &self.bias, NORM_EPS, y);
        }
    }
}

/// What the blocks share, each `[tokens, ..]`.
#[derive(Default)]
pub(super) struct Room {
    /// The stream.
    pub x: Vec<f32>,
    /// What a layer reads or gives, as wide as the stream.
    pub y: Vec<f32>,
    /// Query, key and value.
    qkv: Vec<f32>,
    /// What the heads found.
    a: Vec<f32>,
    /// The inside of the feed-forward layer, before and behind its activation.
    up: Vec<f32>,
    h: Vec<f32>,
    /// By which queries and keys are turned at these places, where they are.
    pub turns: Vec<Turn>,
}

impl Room {
    pub fn new(config: &TransformerConfig, tokens: usize) -> Room {
        let of = |width: usize| vec![0.0; tokens * width];
        let (d, ff) = (config.hidden, config.ff);
        let turns = if config.positions == Positions::Rotary { tokens } else { 0 };
        let turns = (0..turns).map(|_| Turn::new(config.head_dim() / 2)).collect();
        Room { x: of(d), y: of(d), qkv: of(3 * d), a: of(d), up: of(ff), h: of(ff), turns }
    }
}

/// A block and the keys and values that it has seen.
pub(super) struct BlockStep {
    norm1: NormStep,
    qkv: LinearStep,
    er: Option<RelativeStep>,
    pub cache: KeyValueCache,
    proj: LinearStep,
    norm2: NormStep,
    up: LinearStep,
    down: LinearStep,
}

impl BlockStep {
    pub fn new(b: &Block, config: &TransformerConfig, precision: Precision) -> Result<BlockStep> {
        let linear =
            |l: &Linear| LinearStep::new(&l.weight.value, Some(&l.bias.value), 1, precision);
        let capacity = config.reach() + config.reach().div_ceil(8);
        let er = b.er.as_ref().map(|er| RelativeStep::new(&er.value, precision)).transpose()?;
        Ok(BlockStep {
            norm1: NormStep::new(&b.norm1),
            qkv: linear(&b.qkv)?,
            er,
            cache: KeyValueCache::new(config.heads, config.head_dim(), capacity, precision)?,
            proj: linear(&b.proj)?,
            norm2: NormStep::new(&b.norm2),
            up: linear(&b.up)?,
            down: linear(&b.down)?,
        })
    }

    pub fn linears(&mut self) -> [&mut LinearStep; 4] {
        [&mut self.qkv, &mut self.proj, &mut self.up, &mut self.down]
    }

    /// Tells the embeddings how the weights are read, of which that was told.
    pub fn read_beside(&mut self) {
        self.er.iter_mut().for_each(|er| er.read_beside(&self.qkv));
    }

    /// Makes queries, keys and values of the tokens, and keeps the latter two.
    pub fn project(&mut self, room: &mut Room, config: &TransformerConfig) -> Result<()> {
        let Room { x, y, qkv, turns, .. } = room;
        let d = config.hidden;
        if config.pre_norm {
            self.norm1.apply(x, y);
            self.qkv.apply_to(y, qkv)?;
        } else {
            self.qkv.apply_to(x, qkv)?;
        }
        for (t, row) in qkv.chunks_exact_mut(3 * d).enumerate() {
            if let Some(turn) = turns.get(t) {
                turn.turn(&mut row[..2 * d]);
            }
            self.cache.push(&row[d..2 * d], &row[2 * d..])?;
        }
        Ok(())
    }

    /// Adds what the heads find and what the feed-forward layer says to the stream.
    pub fn transform(&mut self, room: &mut Room, config: &TransformerConfig) -> Result<()> {
        let Room { x, y, qkv, a, up, h, .. } = room;
        let d = config.hidden;
        for (q, row) in y.chunks_exact_mut(d).zip(qkv.chunks_exact(3 * d)) {
            q.copy_from_slice(&row[..d]);
        }
        let mask = config.mask(self.cache.len());
        self.cache.attend(y, self.er.as_ref(), mask, a)?;
        self.proj.apply_to(a, y)?;
        add(x, y);
        if config.pre_norm {
            self.norm2.apply(x, y);
            self.up.apply_to(y, up)?;
        } else {
            self.norm1.apply(x, y);
            x.copy_from_slice(y);
            self.up.apply_to(x, up)?;
        }
        activation_row(config.activation, up, h);
        self.down.apply_to(h, y)?;
        add(x, y);
        if !config.pre_norm {
            self.norm2.apply(x, y);
            x.copy_from_slice(y);
        }
        Ok(())
    }
}
