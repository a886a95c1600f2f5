//! The Transformer: a whole training step, a whole sequence forwards, and tokens one at a time.
//!
//! A training step is what `etude train` does: loss, gradient, clipping, Adam. Generation is what
//! `etude generate` does: one event in, one out, sampling included, after a context that was read.

use etude_engine::{Module, Rng, no_grad, set_products};
use etude_models::registry::Network;
use etude_models::sampling::{Sampler, Sampling};
use etude_models::transformer::{Positions, Transformer, TransformerConfig};
use etude_models::{Generator, Precision};

use super::case::Case;
use super::training::{self, Step};
use super::{Job, Options, Sink};
use crate::error::{Error, Result};

struct Shape {
    config: TransformerConfig,
    vocab: usize,
}

/// The sizes of the network; `keys` are those beside them.
fn read(case: &Case, keys: &[&str], context: usize) -> Result<Shape> {
    case.only(&[&["vocab", "d", "heads", "ff", "layers"][..], keys].concat())?;
    let (vocab, d) = (case.count("vocab", 1 << 20)?, case.count("d", 1 << 14)?);
    let (heads, ff) = (case.count("heads", 1 << 10)?, case.count("ff", 1 << 16)?);
    let layers = case.count("layers", 256)?;
    let positions = if case.flag("rel", false)? { Positions::Relative } else { Positions::Learned };
    let config =
        TransformerConfig { context, positions, ..TransformerConfig::plain(d, layers, heads, ff) };
    case.holds(usize::try_from(config.parameter_count(vocab, vocab)).unwrap_or(usize::MAX))?;
    Ok(Shape { config, vocab })
}

impl Shape {
    fn is_relative(&self) -> bool {
        self.config.positions == Positions::Relative
    }

    /// Numbers in the matrices that every token meets.
    fn weights(&self) -> f64 {
        let [d, ff, layers] =
            [self.config.hidden, self.config.ff, self.config.layers].map(|n| n as f64);
        layers * (4.0 * d * d + 2.0 * d * ff) + d * self.vocab as f64
    }

    /// Numbers of the keys and values that a token among `keys` meets, and of the distances to them.
    fn seen(&self, keys: f64) -> f64 {
        let products = if self.is_relative() { 3.0 } else { 2.0 };
        products * self.config.layers as f64 * keys * self.config.hidden as f64
    }

    /// Operations of the matrix work of one token that sees `keys` keys.
    fn flops(&self, keys: f64) -> f64 {
        2.0 * (self.weights() + self.seen(keys))
    }

    fn build(&self) -> Result<Transformer> {
        Transformer::new(self.config.clone(), self.vocab, self.vocab, 0).map_err(failed)
    }
}

fn failed(e: etude_models::Error) -> Error {
    Error::failed(format!("bench: {e}"))
}

const MOST_STEPS: usize = 1 << 16;

/// A case of whole sequences, with its batch and steps; `keys` are those of this workload alone.
fn read_sequences(case: &Case, keys: &[&str]) -> Result<(Shape, usize, usize)> {
    let (batch, steps) = (case.count("batch", 1 << 16)?, case.count("seq", MOST_STEPS)?);
    case.word("dtype", &["f32", "bf16"], false)?;
    let keys = [&["batch", "seq", "rel", "fused", "dtype"][..], keys].concat();
    let mut shape = read(case, &keys, steps)?;
    shape.config.recompute = case.flag("recompute", false)?;
    shape.config.check().map_err(|e| case.fault(e))?;
    // Which way PyTorch takes; here there is one.
    case.flag("fused", true)?;
    let token = shape.config.activations_per_token(shape.vocab) as usize;
    case.holds((batch * steps).saturating_mul(token))?;
    Ok((shape, batch, steps))
}

/// Refuses a training case that cannot be run.
pub fn check_train(case: &Case) -> Result<()> {
    read_sequences(case, &["recompute"]).map(drop)
}

/// Refuses a case of whole sequences forwards that cannot be run.
pub fn check_prefill(case: &Case) -> Result<()> {
    read_sequences(case, &[]).map(drop)
}

/// Times training steps of one case: with products of f32 as `etude`, of bf16 as `etude-bf16`. With
/// `recompute` blocks are computed again in the backward.
pub fn train(case: &Case, options: &Options, sink: &mut Sink) -> Result<()> {
    let (shape, pieces, steps) = read_sequences(case, &["recompute"])?;
    let step = Step {
        flops_per_token: shape.flops((steps + 1) as f64 / 2.0),
        kept_per_token: shape.config.activations_per_token(shape.vocab) as f64,
        clip: 1.0,
        lr: 1e-4,
    };
    let batch = training::random_batch(shape.vocab, pieces, steps);
    training::time(&mut shape.build()?, &batch, &step, training::products(case, options)?, sink)
}

/// Times whole sequences forwards, as training sees them, without a gradient.
pub fn prefill(case: &Case, options: &Options, sink: &mut Sink) -> Result<()> {
    let (name, products, numbers) = training::products(case, options)?;
    let (shape, pieces, steps) = read_sequences(case, &[])?;
    let model = shape.build()?;
    let batch = training::random_batch(shape.vocab, pieces, steps);
    let items = (steps * pieces) as f64;
    let flops = Some(items * shape.flops((steps + 1) as f64 / 2.0));
    let kept = items * shape.config.activations_per_token(shape.vocab) as f64;
    let bytes = Some(4.0 * model.parameter_count() as f64 + 8.0 * kept);
    let job = Job { unit: "tokens", items, flops, bytes, numbers, ..Job::default() };
    let mut fault = None;
    sink.time(name, job, &mut || {
        let _products = set_products(products);
        fault = fault.take().or(no_grad(|| model.forward(&batch, None)).err());
    })?;
    fault.map_or(Ok(()), |e| Err(failed(e)))
}

/// A generation case, with the tokens before and those that are timed.
fn read_generate(case: &Case) -> Result<(Shape, usize, usize)> {
    let ctx = case.count_from_0("ctx", MOST_STEPS)?;
    let tokens = case.count_or("tokens", 32, MOST_STEPS)?;
    let shape = read(case, &["ctx", "tokens", "rel", "dtype"], ctx + tokens)?;
    shape.config.check().map_err(|e| case.fault(e))?;
    case.holds((ctx + tokens).saturating_mul(2 * shape.config.layers * shape.config.hidden))?;
    Ok((shape, ctx, tokens))
}

/// Refuses a generation case that cannot be run.
pub fn check_generate(case: &Case) -> Result<()> {
    super::recurrent::precision(case, Precision::F32)?;
    read_generate(case).map(drop)
}

/// Times the generation of tokens of one case: with f32 weights as `etude`, with others as
/// `etude-bf16` and `etude-int8`.
pub fn generate(case: &Case, options: &Options, sink: &mut Sink) -> Result<()> {
    let (shape, ctx, tokens) = read_generate(case)?;
    let precision = super::recurrent::precision(case, options.precision)?;
    let (name, numbers) = super::recurrent::named(precision);
    let mut generator = shape.build()?.stepper(precision).map_err(failed)?;
    let mut rng = Rng::new(1);
    let before: Vec<u32> = (0..ctx).map(|_| rng.below(shape.vocab as u32)).collect();
    generator.read(&before, 1).map_err(failed)?;
    let mut sampler = Sampler::new(Sampling::default(), shape.vocab);
    let sum = |f: &dyn Fn(f64) -> f64| (0..tokens).map(|t| f((ctx + t + 1) as f64)).sum::<f64>();
    // Keys and values have the bits of the weights, but at least 16.
    let (each, kept) = (precision.bytes() as f64, precision.bytes().max(2) as f64);
    let job = Job {
        unit: "tokens",
        items: tokens as f64,
        flops: Some(sum(&|keys| shape.flops(keys))),
        bytes: Some(sum(&|keys| each * shape.weights() + kept * shape.seen(keys))),
        sweeps: tokens as f64,
        numbers,
    };
    let mut fault = None;
    sink.time(name, job, &mut || {
        let mut write = || -> etude_models::Result<()> {
            assert!(generator.rewind(ctx), "the context holds all tokens");
            let mut token = 0;
            for _ in 0..tokens {
                token = sampler.draw(generator.step(&[token])?, rng.unit(), |_| true);
            }
            Ok(())
        };
        fault = fault.take().or(write().err());
    })?;
    fault.map_or(Ok(()), |e| Err(failed(e)))
}

/// The network of a `startup` case and its tokens; whether heads share its width, it says itself.
pub fn read_startup(case: &Case) -> Result<(TransformerConfig, usize)> {
    let context = case.count("max_len", MOST_STEPS)?;
    read(case, &["kind", "max_len"], context).map(|shape| (shape.config, shape.vocab))
}
