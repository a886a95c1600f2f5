//! The sizes of a Transformer with encoder and decoder, and what its parts cost.

use super::super::Positions;
use super::super::sizes::TransformerConfig;
use super::{Feed, Look, Seq2Seq};
use crate::registry::Network;
use crate::{Error, Model, Part, Result};
use etude_engine::{Module, Param};
use serde_json::{Map, Value};

/// The sizes of an encoder and a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Seq2SeqConfig {
    /// Blocks of the encoder.
    pub encoder: usize,
    /// Sizes of all blocks; its layers are those of the decoder.
    pub sizes: TransformerConfig,
}

impl Seq2SeqConfig {
    /// Refuses what this network does not have.
    ///
    /// # Errors
    /// Names the key of table `model` that cannot be used.
    pub fn check(&self) -> Result<()> {
        let sizes = &self.sizes;
        sizes.check()?;
        let known = [
            (sizes.positions == Positions::Relative, "positions", "relative positions"),
            (sizes.local == 0, "local", "no local attention"),
            (sizes.pre_norm, "norm", "norms before its layers"),
            (!sizes.tied, "output", "an output matrix of its own"),
            (self.encoder > 0, "encoder", "blocks in its encoder"),
        ];
        match known.into_iter().find(|(holds, ..)| !holds) {
            None => Ok(()),
            Some((_, key, what)) => {
                let why = format!("a Transformer with an encoder has {what}");
                Err(Error::Config { key: format!("model.{key}"), why })
            }
        }
    }
}

impl Network for Seq2SeqConfig {
    fn write(&self, table: &mut Map<String, Value>) {
        self.sizes.write(table);
        table.insert("encoder".into(), self.encoder.into());
    }

    fn parameter_count(&self, rows: usize, vocab: usize) -> u64 {
        let sizes = &self.sizes;
        let [d, ff, rows, vocab] = [sizes.hidden, sizes.ff, rows, vocab].map(|n| n as u64);
        let (look, feed) = (4 * d * (d + 1) + 2 * d, 2 * d * ff + ff + d + 2 * d);
        let decoder = 2 * look + sizes.reach() as u64 * d + feed;
        let blocks = self.encoder as u64 * (look + feed) + sizes.layers as u64 * decoder;
        rows * d + blocks + 4 * d + vocab * d
    }

    fn activations_per_token(&self, vocab: usize) -> u64 {
        let [d, ff] = [self.sizes.hidden, self.sizes.ff].map(|n| n as u64);
        // The stream and its norm twice or three times, q, k, v, what attention found.
        let blocks = (self.encoder + self.sizes.layers) as u64;
        blocks * (18 * d + 2 * ff + 2 * self.sizes.heads as u64) + 4 * d + 2 * vocab as u64
    }

    fn width(&self) -> usize {
        self.sizes.hidden
    }

    fn reads_melody(&self) -> bool {
        true
    }

    fn context(&self) -> Option<usize> {
        Some(self.sizes.reach())
    }

    fn build(&self, rows: usize, vocab: usize, seed: u64) -> Result<Box<dyn Model>> {
        Ok(Box::new(Seq2Seq::new(self, rows, vocab, seed)?))
    }
}

impl Seq2Seq {
    /// What each part of the network costs.
    pub(super) fn costs(&self) -> Vec<Part> {
        let sizes = &self.encoder.sizes;
        let (d, ff) = (sizes.hidden as u64, sizes.ff as u64);
        let count = |p: &dyn Module| p.parameter_count() as u64;
        let heads = format!("{} heads of {}", sizes.heads, sizes.head_dim());
        let feed = format!("[{d}] -> [{ff}] -> [{d}]");
        // On average a query of a whole context sees half of it; the melody may be as long.
        let half = (sizes.reach() as u64).div_ceil(2);
        let rows = self.encoder.embedding.value.len() as u64;
        let mut all = vec![Part::new(
            "embedding".into(),
            format!("a vector of {d} for each input row"),
            rows,
            0,
        )];
        for (l, (own, ff_of)) in self.encoder.blocks.iter().enumerate() {
            let about = format!("{heads} over the melody");
            let work = 4 * d * d + 4 * d * half;
            all.push(Part::new(format!("encoder.{l}.self"), about, count(own), work));
            all.push(Part::new(format!("encoder.{l}.ff"), feed.clone(), count(ff_of), 2 * d * ff));
        }
        for (l, (own, cross, ff_of)) in self.blocks.iter().enumerate() {
            let about = format!("{heads} over the last {} tokens", sizes.reach());
            let work = 4 * d * d + 3 * d * half;
            all.push(Part::new(format!("decoder.{l}.self"), about, count(own), work));
            let about = format!("{heads} over the melody");
            let work = 2 * d * d + 4 * d * half;
            all.push(Part::new(format!("decoder.{l}.cross"), about, count(cross), work));
            all.push(Part::new(format!("decoder.{l}.ff"), feed.clone(), count(ff_of), 2 * d * ff));
        }
        let vocab = self.out.value.shape()[0] as u64;
        let weights = vocab * d + count(&self.norm) + count(&self.encoder.norm);
        let about = format!("softmax(W_out y), [{d}] -> [{vocab}]");
        all.push(Part::new("out".into(), about, weights, d * vocab));
        all
    }
}

impl Module for Look {
    fn visit(&self, f: &mut dyn FnMut(&Param)) {
        let parts: [&dyn Module; 4] = [&self.norm, &self.q, &self.kv, &self.proj];
        parts.into_iter().for_each(|p| p.visit(f));
        self.er.iter().for_each(f);
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param)) {
        let Look { norm, q, kv, proj, er } = self;
        let parts: [&mut dyn Module; 4] = [norm, q, kv, proj];
        parts.into_iter().for_each(|p| p.visit_mut(f));
        er.iter_mut().for_each(f);
    }
}

impl Module for Feed {
    fn visit(&self, f: &mut dyn FnMut(&Param)) {
        let parts: [&dyn Module; 3] = [&self.norm, &self.up, &self.down];
        parts.into_iter().for_each(|p| p.visit(f));
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param)) {
        let parts: [&mut dyn Module; 3] = [&mut self.norm, &mut self.up, &mut self.down];
        parts.into_iter().for_each(|p| p.visit_mut(f));
    }
}

impl Module for Seq2Seq {
    fn visit(&self, f: &mut dyn FnMut(&Param)) {
        f(&self.encoder.embedding);
        for (own, feed) in &self.encoder.blocks {
            own.visit(f);
            feed.visit(f);
        }
        self.encoder.norm.visit(f);
        for (own, cross, feed) in &self.blocks {
            own.visit(f);
            cross.visit(f);
            feed.visit(f);
        }
        self.norm.visit(f);
        f(&self.out);
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param)) {
        f(&mut self.encoder.embedding);
        for (own, feed) in &mut self.encoder.blocks {
            own.visit_mut(f);
            feed.visit_mut(f);
        }
        self.encoder.norm.visit_mut(f);
        for (own, cross, feed) in &mut self.blocks {
            own.visit_mut(f);
            cross.visit_mut(f);
            feed.visit_mut(f);
        }
        self.norm.visit_mut(f);
        f(&mut self.out);
    }
}
