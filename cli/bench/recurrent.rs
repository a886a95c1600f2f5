//! Recurrent language models: a whole training step, and tokens one at a time.
//!
//! A training step is what `etude train` does: loss, gradient, clipping, Adam. Generation is what
//! `etude generate` does: one event in, one out, sampling included.

use etude_engine::{Module, Optimizer, Products, Rng, set_products};
use etude_models::data::Batch;
use etude_models::recurrent::{Cell, Recurrent, RecurrentConfig};
use etude_models::sampling::{Sampler, Sampling};
use etude_models::{Model, Precision};

use super::case::Case;
use super::{Job, Options, Sink};
use crate::error::{Error, Result};

struct Shape {
    config: RecurrentConfig,
    vocab: usize,
}

fn read(case: &Case, keys: &[&str]) -> Result<Shape> {
    const SHARED: [&str; 5] = ["kind", "vocab", "hidden", "layers", "onehot"];
    case.only(&[&SHARED[..], keys].concat())?;
    let cell = match case.word("kind", &["rnn", "gru", "lstm"], true)? {
        "rnn" => Cell::Rnn,
        "gru" => Cell::Gru,
        _ => Cell::Lstm,
    };
    let vocab = case.count("vocab", 1 << 20)?;
    let (hidden, layers) = (case.count("hidden", 1 << 14)?, case.count("layers", 64)?);
    let embedding = if case.flag("onehot", true)? { 0 } else { hidden };
    case.holds(cell.gates() * hidden * (vocab + hidden + 2 * hidden * layers))?;
    let config = RecurrentConfig { embedding, ..RecurrentConfig::plain(cell, hidden, layers) };
    Ok(Shape { config, vocab })
}

/// Operations of the matrix work of one token (a one-hot input counted as a whole product, as the
/// yardstick does); with `rows` 1 the numbers that one token reads, times 2.
fn flops_per_token(shape: &Shape, rows: usize) -> f64 {
    let (h, layers) = (shape.config.hidden as f64, shape.config.layers as f64);
    let g = shape.config.cell.gates() as f64 * h;
    2.0 * (g * (rows as f64 + h) + (layers - 1.0) * g * 2.0 * h + h * shape.vocab as f64)
}

fn inputs(shape: &Shape, one_hot: usize) -> usize {
    if shape.config.embedding > 0 { shape.config.embedding } else { one_hot }
}

fn build(shape: &Shape) -> Result<Recurrent> {
    Recurrent::new(shape.config.clone(), shape.vocab, shape.vocab, 0).map_err(failed)
}

fn failed(e: etude_models::Error) -> Error {
    Error::failed(format!("bench: {e}"))
}

const TRAIN: [&str; 3] = ["batch", "seq", "dtype"];
const GENERATE: [&str; 1] = ["tokens"];

/// Refuses a training case that cannot be run.
pub fn check_train(case: &Case) -> Result<()> {
    let shape = read(case, &TRAIN)?;
    case.word("dtype", &["f32", "bf16"], false)?;
    let cells = case.count("batch", 1 << 16)? * case.count("seq", 1 << 16)?;
    let token = shape.config.activations_per_token(shape.vocab) as usize;
    case.holds(cells.saturating_mul(token))
}

/// Refuses a generation case that cannot be run.
pub fn check_generate(case: &Case) -> Result<()> {
    read(case, &GENERATE)?;
    case.count_or("tokens", 64, 1 << 24).map(drop)
}

/// Times training steps of one case: with products of f32 as `etude`, of bf16 as `etude-bf16`.
pub fn train(case: &Case, options: &Options, sink: &mut Sink) -> Result<()> {
    let unnamed = if options.bf16 { "bf16" } else { "f32" };
    let bf16 = case.word("dtype", &[unnamed, "f32", "bf16"], false)? == "bf16";
    let shape = read(case, &TRAIN)?;
    let (batch, steps) = (case.count("batch", 1 << 16)?, case.count("seq", 1 << 16)?);
    let mut model = build(&shape)?;
    let mut rng = Rng::new(1);
    let mut tokens =
        || -> Vec<u32> { (0..steps * batch).map(|_| rng.below(shape.vocab as u32)).collect() };
    let batch = Batch { rows: tokens(), targets: tokens(), steps, batch, active: 1 };
    let mut optimizer = Optimizer::adam().clip_norm(3.0);
    let items = (steps * batch.batch) as f64;
    let flops = 3.0 * items * flops_per_token(&shape, inputs(&shape, shape.vocab));
    let job = Job { unit: "tokens", items, flops: Some(flops), bytes: None, bf16 };
    let mut fault = None;
    let (name, products) =
        if bf16 { ("etude-bf16", Products::Bf16) } else { ("etude", Products::F32) };
    sink.time(name, job, &mut || {
        let _products = set_products(products);
        let step = || -> etude_models::Result<()> {
            let grads = model.loss(&batch, None)?.backward()?;
            optimizer.step(&mut model, &grads, 1e-3)?;
            Ok(())
        };
        fault = fault.take().or({ step }().err());
    })?;
    fault.map_or(Ok(()), |e| Err(failed(e)))
}

/// Times the generation of tokens of one case: with f32 weights as `etude`, with bf16 as `etude-bf16`.
pub fn generate(case: &Case, options: &Options, sink: &mut Sink) -> Result<()> {
    let shape = read(case, &GENERATE)?;
    let tokens = case.count_or("tokens", 64, 1 << 24)?;
    let model = build(&shape)?;
    let weights = model.parameter_count();
    let precision = options.precision.unwrap_or_else(|| Precision::for_weights(weights));
    let (name, width) = match precision {
        Precision::F32 => ("etude", 2.0),
        Precision::Bf16 => ("etude-bf16", 1.0),
    };
    let mut generator = model.generator(precision).map_err(failed)?;
    drop(model);
    let mut sampler = Sampler::new(Sampling::default(), shape.vocab);
    let mut rng = Rng::new(1);
    let items = tokens as f64;
    let job = Job {
        unit: "tokens",
        items,
        flops: Some(items * flops_per_token(&shape, inputs(&shape, shape.vocab))),
        // A one-hot input reads one row of the first layer's input weight; 4 or 2 bytes a weight.
        bytes: Some(items * width * flops_per_token(&shape, inputs(&shape, 1))),
        bf16: false,
    };
    let mut fault = None;
    sink.time(name, job, &mut || {
        generator.reset();
        let mut token = 0;
        for _ in 0..tokens {
            match generator.step(&[token]) {
                Ok(logits) => token = sampler.draw(logits, rng.unit(), |_| true),
                Err(e) => fault = Some(e),
            }
        }
    })?;
    fault.map_or(Ok(()), |e| Err(failed(e)))
}
