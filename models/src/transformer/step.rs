//! The Transformer one token at a time: keys and values of earlier tokens are kept, so a token costs
//! one row of each product, and one query against the rows that are kept. Nothing is allocated.
//!
//! Tokens that are known beforehand, a primer, go through the blocks side by side: weights are read
//! once for [`CHUNK`] of them, and what is kept is the same, bit for bit.

use super::block_step::{BlockStep, NormStep, Room};
use super::positions::sinusoid;
use super::{Positions, Transformer, TransformerConfig};
use crate::layers::{add, add_rows};
use crate::{Generator, Result};
use etude_engine::{LinearStep, NO_ID, Precision, Tensor, read_in_turn};

/// Most tokens that go through the blocks side by side: their rows stay in the second-level cache.
const CHUNK: usize = 64;

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
    /// For one token.
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
        let config = self.config.clone();
        let blocks = self.blocks.iter().map(|b| BlockStep::new(b, &config, precision));
        let mut blocks = blocks.collect::<Result<Vec<_>>>()?;
        let mut out = LinearStep::new(&self.w_out()?, None, 1, precision)?;
        read_in_turn(blocks.iter_mut().flat_map(BlockStep::linears).chain([&mut out]));
        blocks.iter_mut().for_each(BlockStep::read_beside);
        let mut embedding = self.embedding.value.to_vec();
        embedding.iter_mut().for_each(|x| *x *= self.input_scale());
        Ok(TransformerGenerator {
            embedding,
            positions: self.positions.as_ref().map(|p| p.value.clone()),
            blocks,
            norm: self.norm.as_ref().map(NormStep::new),
            out,
            room: Room::new(&config, 1),
            place: 0,
            config,
        })
    }
}

impl TransformerGenerator {
    /// Makes room for one more token where there is none: what lies beyond the reach goes first.
    /// Returns for how many there is room now.
    fn make_room(&mut self) -> usize {
        let (reach, block, stride) =
            (self.config.reach(), self.config.sparse_block, self.config.sparse_stride);
        let Some(cache) = self.blocks.first().map(|b| &b.cache) else { return 0 };
        let most = if self.config.is_sparse() { reach } else { cache.capacity() };
        let mut len = cache.len();
        if len == most {
            let gone = if self.config.is_sparse() {
                // The older half, in whole patterns: which columns are seen depends on the place.
                let pattern = block / gcd(block, stride) * stride;
                (reach / 2).next_multiple_of(pattern).min(reach)
            } else {
                len + 1 - reach
            };
            self.blocks.iter_mut().for_each(|b| b.cache.forget(gone));
            len -= gone;
        }
        most - len
    }

    /// Writes the input of the token at `place` to the stream `x` `[hidden]`.
    fn input(&self, place: usize, rows: &[u32], x: &mut [f32]) -> Result<()> {
        let d = x.len();
        match self.config.positions {
            Positions::Sinusoidal => sinusoid(place, x),
            Positions::Learned => {
                let at = place % self.config.context * d;
                let table = self.positions.as_ref().map(Tensor::values).unwrap_or_default();
                x.copy_from_slice(&table[at..at + d]);
            }
            _ => x.fill(0.0),
        }
        let (table, start) = self.embedding.split_at(self.embedding.len() - d);
        add_rows(x, table, rows, "transformer")?;
        if rows.iter().all(|row| *row == NO_ID) {
            add(x, start);
        }
        Ok(())
    }

    /// Takes tokens through the blocks, as many as the room is for; their inputs are `rows`
    /// `[tokens, active]`. Where they are `known`, what the last block would say of them is left out.
    fn advance(&mut self, room: &mut Room, rows: &[u32], known: bool) -> Result<()> {
        let d = self.config.hidden;
        let tokens = room.x.len() / d;
        let active = rows.len() / tokens;
        for (t, x) in room.x.chunks_exact_mut(d).enumerate() {
            self.input(self.place + t, &rows[t * active..(t + 1) * active], x)?;
        }
        for (t, turn) in room.turns.iter_mut().enumerate() {
            turn.go_to(self.place + t);
        }
        let last = self.blocks.len() - 1;
        for (at, block) in self.blocks.iter_mut().enumerate() {
            block.project(room, &self.config)?;
            if !(known && at == last) {
                block.transform(room, &self.config)?;
            }
        }
        self.place += tokens;
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
        self.make_room();
        let mut room = std::mem::take(&mut self.room);
        let advanced = self.advance(&mut room, rows, false);
        self.room = room;
        advanced?;
        let Room { x, y, .. } = &mut self.room;
        Ok(match &self.norm {
            Some(norm) => {
                norm.apply(x, y);
                self.out.apply(y)?
            }
            None => self.out.apply(x)?,
        })
    }

    fn read(&mut self, rows: &[u32], active: usize) -> Result<()> {
        let (mut rest, active) = (rows, active.max(1));
        let mut room = Room::new(&self.config, CHUNK.min(rows.len() / active));
        while rest.len() >= active {
            let tokens = CHUNK.min(rest.len() / active).min(self.make_room());
            // The last ones, or those up to the end of the context.
            if tokens * self.config.hidden != room.x.len() {
                room = Room::new(&self.config, tokens);
            }
            let (now, later) = rest.split_at(tokens * active);
            self.advance(&mut room, now, true)?;
            rest = later;
        }
        Ok(())
    }
}
