//! The sizes of a Transformer: its keys of table `model`, what they must hold, what they cost.

use super::{Positions, Seq2SeqConfig, Transformer};
use crate::config::{Table, written};
use crate::registry::Network;
use crate::{Error, Model, Part, Result};
use etude_engine::{Activation, Mask, Module};
use serde_json::{Map, Value};
use std::sync::Arc;

/// The keys of table `model` that a Transformer reads.
pub(super) const KEYS: &[&str] = &[
    "hidden",
    "layers",
    "heads",
    "ff",
    "context",
    "positions",
    "local",
    "sparse_block",
    "sparse_stride",
    "norm",
    "activation",
    "output",
    "dropout",
    "label_smoothing",
    "recompute",
    "encoder",
];

/// The names of the activations: the exact GELU, max(x, 0), and the GELU by tanh that GPT-2 has.
const ACTIVATIONS: [&str; 3] = ["gelu", "relu", "gelu-tanh"];

/// The sizes of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct TransformerConfig {
    /// Width of the stream that the blocks add to.
    pub hidden: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads of a block; they share `hidden` equally.
    pub heads: usize,
    /// Width of a feed-forward layer.
    pub ff: usize,
    /// Tokens that a query sees at most.
    pub context: usize,
    /// How places are told.
    pub positions: Positions,
    /// The last tokens that a query sees; 0: all of the context.
    pub local: usize,
    /// Tokens of a block of sparse attention; 0: attention is not sparse.
    pub sparse_block: usize,
    /// Tokens from one column that all later queries see to the next.
    pub sparse_stride: usize,
    /// Whether the input of a layer is normalised, or else the sum that its output goes to.
    pub pre_norm: bool,
    /// Between the two feed-forward layers.
    pub activation: Activation,
    /// Whether the output matrix is the table of the tokens' vectors.
    pub tied: bool,
    /// Share that is dropped of attention weights and of what is added to the stream.
    pub dropout: f32,
    /// Share of a target's probability that is spread over all tokens in training.
    pub label_smoothing: f32,
    /// Whether training keeps the input of a block alone and runs the block again in the backward: the
    /// same numbers, in less memory and more time.
    pub recompute: bool,
}

impl TransformerConfig {
    /// A plain decoder: pre-norm, GELU, an output matrix of its own, nothing dropped.
    pub fn plain(hidden: usize, layers: usize, heads: usize, ff: usize) -> TransformerConfig {
        TransformerConfig {
            hidden,
            layers,
            heads,
            ff,
            context: 1024,
            positions: Positions::Relative,
            local: 0,
            sparse_block: 0,
            sparse_stride: 0,
            pre_norm: true,
            activation: Activation::Gelu,
            tied: false,
            dropout: 0.0,
            label_smoothing: 0.0,
            recompute: false,
        }
    }

    /// Reads the network's keys of table `model`.
    ///
    /// # Errors
    /// Names the key that cannot be used.
    pub fn read(t: &mut Table) -> Result<TransformerConfig> {
        let hidden = t.count("hidden", 256, 1..=65_536)?;
        let positions = t.choice("positions", "relative", &Positions::NAMES)?;
        let config = TransformerConfig {
            hidden,
            layers: t.count("layers", 4, 1..=256)?,
            heads: t.count("heads", 4, 1..=1024)?,
            ff: t.count("ff", 4 * hidden, 1..=1 << 20)?,
            context: t.count("context", 1024, 1..=65_536)?,
            positions: Positions::from_name(&positions).unwrap_or(Positions::Relative),
            local: t.count("local", 0, 0..=65_536)?,
            sparse_block: t.count("sparse_block", 0, 0..=65_536)?,
            sparse_stride: t.count("sparse_stride", 0, 0..=65_536)?,
            pre_norm: t.choice("norm", "pre", &["pre", "post"])? == "pre",
            activation: match t.choice("activation", "gelu", &ACTIVATIONS)?.as_str() {
                "relu" => Activation::Relu,
                "gelu-tanh" => Activation::GeluTanh,
                _ => Activation::Gelu,
            },
            tied: t.choice("output", "own", &["own", "tied"])? == "tied",
            dropout: t.number("dropout", 0.0, 0.0..=0.95)? as f32,
            label_smoothing: t.number("label_smoothing", 0.0, 0.0..=0.9)? as f32,
            recompute: t.flag("recompute", false)?,
        };
        config.check()?;
        Ok(config)
    }

    pub(super) fn entry(_: &str, t: &mut Table) -> Result<Arc<dyn Network>> {
        let encoder = t.count("encoder", 0, 0..=256)?;
        let sizes = TransformerConfig::read(t)?;
        if encoder == 0 {
            return Ok(Arc::new(sizes));
        }
        let both = Seq2SeqConfig { encoder, sizes };
        both.check()?;
        Ok(Arc::new(both))
    }

    /// Refuses sizes that do not fit together.
    ///
    /// # Errors
    /// Names the key of table `model` that cannot be used.
    pub fn check(&self) -> Result<()> {
        let fault =
            |key: &str, why: String| Err(Error::Config { key: format!("model.{key}"), why });
        let TransformerConfig { hidden, heads, local, context, .. } = *self;
        if [hidden, heads, context, self.layers, self.ff].contains(&0) {
            let why = "hidden, heads, layers, ff and context are at least 1".to_owned();
            return fault("hidden", why);
        }
        if !hidden.is_multiple_of(heads) {
            return fault("heads", format!("{heads} heads cannot share hidden = {hidden} equally"));
        }
        if self.positions == Positions::Rotary && !(hidden / heads).is_multiple_of(2) {
            let why = format!("rope turns pairs; heads of {} numbers have none", hidden / heads);
            return fault("positions", why);
        }
        if local > context {
            return fault("local", format!("{local} tokens; the context has {context}"));
        }
        let (block, stride) = (self.sparse_block, self.sparse_stride);
        if (block == 0) != (stride == 0) {
            let why = format!("sparse attention has a block and a stride; given {block}, {stride}");
            return fault("sparse_stride", why);
        }
        if block > 0 && (local > 0 || self.positions == Positions::Relative) {
            let why = "not with local attention or relative positions".to_owned();
            return fault("sparse_block", why);
        }
        Ok(())
    }

    /// Whether attention is sparse.
    pub fn is_sparse(&self) -> bool {
        self.sparse_block > 0
    }

    /// Tokens back that a query sees, itself among them.
    pub fn reach(&self) -> usize {
        if self.local > 0 { self.local } else { self.context }
    }

    /// Which keys the queries of a sequence see.
    pub fn mask(&self, steps: usize) -> Mask {
        match (self.sparse_block, self.reach()) {
            (0, reach) if steps > reach => Mask::Window { width: reach },
            (0, _) => Mask::Causal,
            (block, _) => Mask::Strided { block, stride: self.sparse_stride },
        }
    }

    /// Numbers of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }
}

impl Network for TransformerConfig {
    fn write(&self, table: &mut Map<String, Value>) {
        let activation = match self.activation {
            Activation::Relu => "relu",
            Activation::GeluTanh => "gelu-tanh",
            _ => "gelu",
        };
        let values: [(&str, Value); 15] = [
            ("hidden", self.hidden.into()),
            ("layers", self.layers.into()),
            ("heads", self.heads.into()),
            ("ff", self.ff.into()),
            ("context", self.context.into()),
            ("positions", self.positions.name().into()),
            ("local", self.local.into()),
            ("sparse_block", self.sparse_block.into()),
            ("sparse_stride", self.sparse_stride.into()),
            ("norm", if self.pre_norm { "pre" } else { "post" }.into()),
            ("activation", activation.into()),
            ("output", if self.tied { "tied" } else { "own" }.into()),
            ("dropout", written(self.dropout)),
            ("label_smoothing", written(self.label_smoothing)),
            ("recompute", self.recompute.into()),
        ];
        table.extend(values.map(|(key, value)| (key.to_owned(), value)));
    }

    fn parameter_count(&self, rows: usize, vocab: usize) -> u64 {
        let [d, ff, rows, vocab] = [self.hidden, self.ff, rows, vocab].map(|n| n as u64);
        let (context, reach) = (self.context as u64, self.reach() as u64);
        let relative = if self.positions == Positions::Relative { reach * d } else { 0 };
        let learned = if self.positions == Positions::Learned { context * d } else { 0 };
        let block = 4 * d * (d + 1) + 2 * d * ff + ff + d + 4 * d + relative;
        let out = if self.tied { 0 } else { vocab * d };
        let norm = if self.pre_norm { 2 * d } else { 0 };
        (rows + 1) * d + learned + self.layers as u64 * block + norm + out
    }

    fn activations_per_token(&self, vocab: usize) -> u64 {
        let [d, ff, layers] = [self.hidden, self.ff, self.layers].map(|n| n as u64);
        // The stream twice, both norms, q, k, v, what attention found; dropout keeps its sums.
        let block = 10 * d + 2 * ff + self.heads as u64;
        let blocks = if self.recompute { layers * d + block } else { layers * block };
        blocks + 3 * d + 2 * vocab as u64
    }

    fn width(&self) -> usize {
        self.hidden
    }

    fn context(&self) -> Option<usize> {
        Some(self.reach())
    }

    fn most_steps(&self) -> Option<usize> {
        self.is_sparse().then_some(self.context)
    }

    fn build(&self, rows: usize, vocab: usize, seed: u64) -> Result<Box<dyn Model>> {
        Ok(Box::new(Transformer::new(self.clone(), rows, vocab, seed)?))
    }
}

/// What each part of the network costs.
pub(super) fn parts(net: &Transformer) -> Vec<Part> {
    let (d, ff) = (net.config.hidden as u64, net.config.ff as u64);
    let count = |p: &dyn Module| p.parameter_count() as u64;
    let table = count(&net.embedding);
    let about = format!("a vector of {d} for each input row, and for the start");
    let mut parts = vec![Part::new("embedding".into(), about, table, 0)];
    if let Some(table) = &net.positions {
        let about = format!("a vector of {d} for each place");
        parts.push(Part::new("positions".into(), about, count(table), 0));
    }
    let mask = net.config.mask(usize::MAX);
    let seen = match mask {
        Mask::Window { width } => format!("the last {width} tokens"),
        _ => format!("{} tokens sparsely", net.config.context),
    };
    // On average a query of a whole context sees half of it.
    let sums = if net.config.positions == Positions::Relative { 3 } else { 2 };
    let looking = sums * d * (net.config.reach() as u64).div_ceil(2);
    for (l, b) in net.blocks.iter().enumerate() {
        let er = b.er.as_ref().map_or(0, |er| er.value.len() as u64);
        let weights = count(&b.qkv) + count(&b.proj) + count(&b.norm1) + er;
        let about = format!("{} heads of {} over {seen}", net.config.heads, net.config.head_dim());
        parts.push(Part::new(format!("attention.{l}"), about, weights, 4 * d * d + looking));
        let weights = count(&b.up) + count(&b.down) + count(&b.norm2);
        let about = format!("[{d}] -> [{ff}] -> [{d}]");
        parts.push(Part::new(format!("ff.{l}"), about, weights, 2 * d * ff));
    }
    let weights =
        net.out.as_ref().map_or(0, |p| count(p)) + net.norm.as_ref().map_or(0, |n| count(n));
    let about = format!("softmax(W_out x), [{d}] -> [{}]", net.vocab);
    parts.push(Part::new("out".into(), about, weights, d * net.vocab as u64));
    parts
}
