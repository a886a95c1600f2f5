//! The Transformer one token at a time: keys and values of earlier tokens are kept, so a token costs
//! one row of each product, and one query against the rows that are kept. Nothing is allocated.

use super::positions::{Turn, sinusoid};
use super::{Block, Positions, Transformer, TransformerConfig};
use crate::layers::{Linear, NORM_EPS, Norm, add, add_rows};
use crate::{Generator, Result};
use etude_engine::{KeyValueCache, LinearStep, NO_ID, Precision, Tensor};
use etude_engine::{activation_row, layer_norm_row, read_in_turn};

/// A norm and the row that it makes.
struct NormStep {
    weight: Vec<f32>,
    bias: Vec<f32>,
    y: Vec<f32>,
}

impl NormStep {
    fn new(norm: &Norm) -> NormStep {
        let (weight, bias) = (norm.weight.value.to_vec(), norm.bias.value.to_vec());
        NormStep { y: vec![0.0; weight.len()], weight, bias }
    }

    fn apply(&mut self, x: &[f32]) -> &[f32] {
        layer_norm_row(x, &self.weight, &self.bias, NORM_EPS, &mut self.y);
        &self.y
    }
}

/// A block and the keys and values that it has seen.
struct BlockStep {
    norm1: NormStep,
    qkv: LinearStep,
    er: Vec<f32>,
    cache: KeyValueCache,
    proj: LinearStep,
    norm2: NormStep,
    up: LinearStep,
    down: LinearStep,
}

impl BlockStep {
    fn new(b: &Block, config: &TransformerConfig, precision: Precision) -> Result<BlockStep> {
        let linear =
            |l: &Linear| LinearStep::new(&l.weight.value, Some(&l.bias.value), 1, precision);
        let capacity = config.reach() + config.reach().div_ceil(8);
        Ok(BlockStep {
            norm1: NormStep::new(&b.norm1),
            qkv: linear(&b.qkv)?,
            er: b.er.as_ref().map_or_else(Vec::new, |er| er.value.to_vec()),
            cache: KeyValueCache::new(config.heads, config.head_dim(), capacity, precision)?,
            proj: linear(&b.proj)?,
            norm2: NormStep::new(&b.norm2),
            up: linear(&b.up)?,
            down: linear(&b.down)?,
        })
    }

    fn linears(&mut self) -> [&mut LinearStep; 4] {
        [&mut self.qkv, &mut self.proj, &mut self.up, &mut self.down]
    }
}

/// What the blocks share.
struct Room {
    /// The stream of this token.
    x: Vec<f32>,
    /// Query, key and value.
    qkv: Vec<f32>,
    /// What the heads found.
    a: Vec<f32>,
    /// The inside of the feed-forward layer.
    h: Vec<f32>,
    /// By which queries and keys are turned at this place, where they are.
    turn: Option<Turn>,
}

/// Writes one token after the other.
pub struct TransformerGenerator {
    config: TransformerConfig,
    /// `[rows + 1, hidden]`, scaled as the input wants it.
    embedding: Vec<f32>,
    /// Learned positions, `[context, hidden]`.
    positions: Option<Tensor>,
    blocks: Vec<BlockStep>,
    norm: Option<NormStep>,
    out: LinearStep,
    room: Room,
    /// Tokens read.
    place: usize,
}

impl Transformer {
    /// The network one token at a time.
    ///
    /// # Errors
    /// If the weights do not fit together.
    pub fn stepper(&self, precision: Precision) -> Result<TransformerGenerator> {
        let (config, d) = (self.config.clone(), self.config.hidden);
        let blocks = self.blocks.iter().map(|b| BlockStep::new(b, &config, precision));
        let mut blocks = blocks.collect::<Result<Vec<_>>>()?;
        let mut out = LinearStep::new(&self.w_out()?, None, 1, precision)?;
        read_in_turn(blocks.iter_mut().flat_map(BlockStep::linears).chain([&mut out]));
        let mut embedding = self.embedding.value.to_vec();
        embedding.iter_mut().for_each(|x| *x *= self.input_scale());
        Ok(TransformerGenerator {
            embedding,
            positions: self.positions.as_ref().map(|p| p.value.clone()),
            blocks,
            norm: self.norm.as_ref().map(NormStep::new),
            out,
            room: Room {
                x: vec![0.0; d],
                qkv: vec![0.0; 3 * d],
                a: vec![0.0; d],
                h: vec![0.0; config.ff],
                turn: (config.positions == Positions::Rotary)
                    .then(|| Turn::new(config.head_dim() / 2)),
            },
            place: 0,
            config,
        })
    }
}

impl TransformerGenerator {
    /// Makes room for one more token where there is none: what lies beyond the reach goes first.
    fn make_room(&mut self) {
        let (reach, block, stride) =
            (self.config.reach(), self.config.sparse_block, self.config.sparse_stride);
        let Some(cache) = self.blocks.first().map(|b| &b.cache) else { return };
        let (len, full) = (cache.len(), cache.len() == cache.capacity());
        let gone = match self.config.is_sparse() {
            false if full => len + 1 - reach,
            // The older half, in whole patterns: which columns are seen depends on the place.
            true if len == reach => {
                let pattern = block / gcd(block, stride) * stride;
                (reach / 2).next_multiple_of(pattern).min(reach)
            }
            _ => return,
        };
        self.blocks.iter_mut().for_each(|b| b.cache.forget(gone));
    }

    fn input(&mut self, rows: &[u32]) -> Result<()> {
        let x = &mut self.room.x;
        let d = x.len();
        match self.config.positions {
            Positions::Sinusoidal => sinusoid(self.place, x),
            Positions::Learned => {
                let at = self.place % self.config.context * d;
                let table = self.positions.as_ref().and_then(Tensor::as_contiguous);
                x.copy_from_slice(&table.unwrap_or_default()[at..at + d]);
            }
            _ => x.fill(0.0),
        }
        let (table, start) = self.embedding.split_at(self.embedding.len() - d);
        add_rows(x, table, rows, "transformer")?;
        if rows.iter().all(|row| *row == NO_ID) {
            add(x, start);
        }
        if let Some(turn) = &mut self.room.turn {
            turn.go_to(self.place);
        }
        Ok(())
    }
}

impl BlockStep {
    fn step(&mut self, room: &mut Room, config: &TransformerConfig) -> Result<()> {
        let Room { x, qkv, a, h, turn } = room;
        let d = x.len();
        qkv.copy_from_slice(match config.pre_norm {
            true => self.qkv.apply(self.norm1.apply(x))?,
            false => self.qkv.apply(x)?,
        });
        if let Some(turn) = turn {
            turn.turn(&mut qkv[..2 * d]);
        }
        let (q, kv) = qkv.split_at(d);
        self.cache.push(&kv[..d], &kv[d..])?;
        let mask = config.mask(self.cache.len());
        self.cache.attend(q, &self.er, mask, a)?;
        add(x, self.proj.apply(a)?);
        if !config.pre_norm {
            let y = self.norm1.apply(x);
            x.copy_from_slice(y);
        }
        let up = match config.pre_norm {
            true => self.up.apply(self.norm2.apply(x))?,
            false => self.up.apply(x)?,
        };
        activation_row(config.activation, up, h);
        add(x, self.down.apply(h)?);
        if !config.pre_norm {
            let y = self.norm2.apply(x);
            x.copy_from_slice(y);
        }
        Ok(())
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Generator for TransformerGenerator {
    fn reset(&mut self) {
        self.blocks.iter_mut().for_each(|b| b.cache.truncate(0));
        self.place = 0;
    }

    fn rewind(&mut self, place: usize) -> bool {
        // Where tokens have gone, what is left of those before is less than reading would leave.
        let is_whole = self.blocks.iter().all(|b| b.cache.len() == self.place);
        if place > self.place || !is_whole {
            return false;
        }
        self.blocks.iter_mut().for_each(|b| b.cache.truncate(place));
        self.place = place;
        true
    }

    fn step(&mut self, rows: &[u32]) -> Result<&[f32]> {
        self.input(rows)?;
        self.make_room();
        for block in &mut self.blocks {
            block.step(&mut self.room, &self.config)?;
        }
        self.place += 1;
        let x = &self.room.x;
        Ok(match &mut self.norm {
            Some(norm) => self.out.apply(norm.apply(x))?,
            None => self.out.apply(x)?,
        })
    }
}
