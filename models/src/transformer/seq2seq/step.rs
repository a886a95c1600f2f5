//! Encoder and decoder one token at a time: the melody is gathered until it ends; then the encoder runs
//! once, and keys and values of what it says stay for all tokens of the decoder.

use super::super::block_step::NormStep;
use super::{Encoder, Feed, Look, Pass, Seq2Seq};
use crate::layers::{Linear, add, add_rows};
use crate::{Error, Generator, Precision, Result};
use etude_engine::{KeyValueCache, LinearStep, Mask, NO_ID, RelativeStep, no_grad};
use etude_engine::{activation_row, read_in_turn};

/// Attention to what is kept: the tokens before, or the melody.
struct LookStep {
    norm: NormStep,
    q: LinearStep,
    /// That of one more token; none where all keys and values come from the encoder.
    kv: Option<LinearStep>,
    proj: LinearStep,
    er: Option<RelativeStep>,
    cache: Option<KeyValueCache>,
}

/// What the blocks share.
struct Room {
    /// The stream of this token.
    x: Vec<f32>,
    /// What a norm makes of it.
    y: Vec<f32>,
    q: Vec<f32>,
    /// What the heads found.
    a: Vec<f32>,
    /// The inside of the feed-forward layer.
    h: Vec<f32>,
}

struct BlockStep {
    own: LookStep,
    cross: LookStep,
    norm: NormStep,
    up: LinearStep,
    down: LinearStep,
}

/// Writes one token after the other.
pub struct Seq2SeqGenerator {
    encoder: Encoder,
    /// The weights of the keys and values of the melody, by block.
    kv: Vec<Linear>,
    /// `[rows, hidden]`, scaled as the input wants it.
    embedding: Vec<f32>,
    blocks: Vec<BlockStep>,
    norm: NormStep,
    out: LinearStep,
    room: Room,
    precision: Precision,
    /// The row that ends a melody.
    end: u32,
    /// The melody's rows so far, and how many stand at a step.
    melody: Vec<u32>,
    active: usize,
    has_melody: bool,
    /// Steps read, and those of them before the decoder's first.
    place: usize,
    before: usize,
    /// What is said while the melody is read.
    silence: Vec<f32>,
}

fn linear(l: &Linear, precision: Precision) -> Result<LinearStep> {
    Ok(LinearStep::new(&l.weight.value, Some(&l.bias.value), 1, precision)?)
}

impl LookStep {
    fn new(look: &Look, is_own: bool, precision: Precision) -> Result<LookStep> {
        Ok(LookStep {
            norm: NormStep::new(&look.norm),
            q: linear(&look.q, precision)?,
            kv: is_own.then(|| linear(&look.kv, precision)).transpose()?,
            proj: linear(&look.proj, precision)?,
            er: look.er.as_ref().map(|er| RelativeStep::new(&er.value, precision)).transpose()?,
            cache: None,
        })
    }

    /// Adds what this token finds; `reach` are the tokens back that it sees of its own.
    fn step(&mut self, room: &mut Room, reach: usize) -> Result<()> {
        let Some(cache) = &mut self.cache else {
            return Err(Error::Data { why: "no melody was read".into() });
        };
        let d = room.x.len();
        let y = &mut room.y;
        self.norm.apply(&room.x, y);
        room.q.copy_from_slice(self.q.apply(y)?);
        let mut mask = Mask::Full;
        if let Some(kv) = &mut self.kv {
            let kv = kv.apply(y)?;
            if cache.len() == cache.capacity() {
                cache.forget(cache.len() + 1 - reach);
            }
            cache.push(&kv[..d], &kv[d..])?;
            mask = if cache.len() > reach { Mask::Window { width: reach } } else { Mask::Causal };
        }
        cache.attend(&room.q, self.er.as_ref(), mask, &mut room.a)?;
        add(&mut room.x, self.proj.apply(&room.a)?);
        Ok(())
    }
}

impl Seq2Seq {
    /// The network one token at a time.
    ///
    /// # Errors
    /// If the weights do not fit together.
    pub fn stepper(&self, precision: Precision) -> Result<Seq2SeqGenerator> {
        let encoder = self.encoder.clone();
        let (d, ff) = (encoder.sizes.hidden, encoder.sizes.ff);
        let (heads, reach) = (encoder.sizes.heads, encoder.sizes.reach());
        let block = |(own, cross, feed): &(Look, Look, Feed)| -> Result<BlockStep> {
            let capacity = reach + reach.div_ceil(8);
            let kept = KeyValueCache::new(heads, d / heads, capacity, precision)?;
            Ok(BlockStep {
                own: LookStep { cache: Some(kept), ..LookStep::new(own, true, precision)? },
                cross: LookStep::new(cross, false, precision)?,
                norm: NormStep::new(&feed.norm),
                up: linear(&feed.up, precision)?,
                down: linear(&feed.down, precision)?,
            })
        };
        let mut blocks = self.blocks.iter().map(block).collect::<Result<Vec<_>>>()?;
        let mut out = LinearStep::new(&self.out.value, None, 1, precision)?;
        read_in_turn(blocks.iter_mut().flat_map(BlockStep::linears).chain([&mut out]));
        let mut embedding = encoder.embedding.value.to_vec();
        embedding.iter_mut().for_each(|x| *x *= encoder.input_scale());
        let [x, y, q, a] = [(); 4].map(|()| vec![0.0; d]);
        let room = Room { x, y, q, a, h: vec![0.0; ff] };
        Ok(Seq2SeqGenerator {
            kv: self.blocks.iter().map(|(_, cross, _)| cross.kv.clone()).collect(),
            embedding,
            blocks,
            norm: NormStep::new(&self.norm),
            out,
            room,
            precision,
            end: self.end(),
            melody: Vec::new(),
            active: 0,
            has_melody: false,
            place: 0,
            before: 0,
            silence: vec![0.0; self.out.value.shape()[0]],
            encoder,
        })
    }
}

impl BlockStep {
    fn linears(&mut self) -> impl Iterator<Item = &mut LinearStep> {
        let (own, cross) = (&mut self.own, &mut self.cross);
        let own = [Some(&mut own.q), own.kv.as_mut(), Some(&mut own.proj)];
        let rest = [&mut cross.q, &mut cross.proj, &mut self.up, &mut self.down];
        own.into_iter().flatten().chain(rest)
    }
}

impl Seq2SeqGenerator {
    /// Reads the whole melody, and keeps what the decoder looks at.
    fn encode(&mut self) -> Result<()> {
        let sizes = self.encoder.sizes.clone();
        let mut pass = Pass { sizes: &sizes, rng: None };
        let memory = no_grad(|| self.encoder.forward(&self.melody, self.active, &mut pass))?;
        let (steps, d) = (memory.shape()[0], sizes.hidden);
        for (block, kv) in self.blocks.iter_mut().zip(&self.kv) {
            let kv = no_grad(|| kv.forward(&memory))?.to_vec();
            let mut cache =
                KeyValueCache::new(sizes.heads, sizes.head_dim(), steps, self.precision)?;
            for row in kv.chunks_exact(2 * d) {
                cache.push(&row[..d], &row[d..])?;
            }
            block.cross.cache = Some(cache);
        }
        (self.has_melody, self.before) = (true, self.place);
        Ok(())
    }
}

impl Generator for Seq2SeqGenerator {
    fn reset(&mut self) {
        self.blocks.iter_mut().for_each(|block| {
            block.own.cache.iter_mut().for_each(|cache| cache.truncate(0));
            block.cross.cache = None;
        });
        self.melody.clear();
        (self.has_melody, self.place, self.before) = (false, 0, 0);
    }

    fn rewind(&mut self, place: usize) -> bool {
        let len = |b: &BlockStep| b.own.cache.as_ref().map_or(0, KeyValueCache::len);
        let is_whole = self.blocks.iter().all(|b| len(b) == self.place - self.before);
        if place > self.place || place <= self.before || !self.has_melody || !is_whole {
            return false;
        }
        let kept = place - self.before;
        let caches = self.blocks.iter_mut().filter_map(|block| block.own.cache.as_mut());
        caches.for_each(|cache| cache.truncate(kept));
        self.place = place;
        true
    }

    fn step(&mut self, rows: &[u32]) -> Result<&[f32]> {
        if !self.has_melody {
            let first = rows.first().copied().unwrap_or(NO_ID);
            if first != NO_ID {
                self.melody.extend(rows);
                self.active = rows.len();
            }
            if first != self.end {
                self.place += 1;
                return Ok(&self.silence);
            }
            self.encode()?;
        }
        self.room.x.fill(0.0);
        add_rows(&mut self.room.x, &self.embedding, rows, "seq2seq")?;
        let reach = self.encoder.sizes.reach();
        for block in &mut self.blocks {
            block.own.step(&mut self.room, reach)?;
            block.cross.step(&mut self.room, reach)?;
            let Room { x, y, h, .. } = &mut self.room;
            block.norm.apply(x, y);
            activation_row(self.encoder.sizes.activation, block.up.apply(y)?, h);
            add(x, block.down.apply(h)?);
        }
        self.place += 1;
        self.norm.apply(&self.room.x, &mut self.room.y);
        self.out.apply(&self.room.y).map_err(Error::from)
    }
}
