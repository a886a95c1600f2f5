//! Recurrent language models: a whole training step, and tokens one at a time.
//!
//! A training step is what `etude train` does: loss, gradient, clipping, Adam. Generation is what
//! `etude generate` does: one event in, one out, sampling included.

use etude_engine::Rng;
use etude_models::recurrent::{Cell, Recurrent, RecurrentConfig};
use etude_models::registry::Network;
use etude_models::sampling::{Sampler, Sampling};
use etude_models::{Model, Precision};

use super::case::Case;
use super::training::{self, Step};
use super::{Job, Numbers, Options, Sink};
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
const GENERATE: [&str; 2] = ["tokens", "dtype"];

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
    precision(case, Precision::F32)?;
    case.count_or("tokens", 64, 1 << 24).map(drop)
}

/// How a generation case stores its weights: as it says, else as the command line does.
pub fn precision(case: &Case, otherwise: Precision) -> Result<Precision> {
    if !case.has("dtype") {
        return Ok(otherwise);
    }
    let name = case.word("dtype", &Precision::ALL.map(Precision::name), true)?;
    Ok(Precision::from_name(name).unwrap_or(otherwise))
}

/// What a generator with weights of this precision is called, and the numbers of its products.
pub fn named(precision: Precision) -> (&'static str, Numbers) {
    match precision {
        Precision::F32 => ("etude", Numbers::F32),
        Precision::Bf16 => ("etude-bf16", Numbers::Bf16),
        Precision::Int8 => ("etude-int8", Numbers::Int8),
    }
}

/// Times training steps of one case: with products of f32 as `etude`, of bf16 as `etude-bf16`.
pub fn train(case: &Case, options: &Options, sink: &mut Sink) -> Result<()> {
    let shape = read(case, &TRAIN)?;
    let (batch, steps) = (case.count("batch", 1 << 16)?, case.count("seq", 1 << 16)?);
    let step = Step {
        flops_per_token: flops_per_token(&shape, inputs(&shape, shape.vocab)),
        kept_per_token: shape.config.activations_per_token(shape.vocab) as f64,
        clip: 3.0,
        lr: 1e-3,
    };
    let batch = training::random_batch(shape.vocab, batch, steps);
    training::time(&mut build(&shape)?, &batch, &step, training::products(case, options)?, sink)
}

/// Times the generation of tokens of one case: with f32 weights as `etude`, with others as
/// `etude-bf16` and `etude-int8`.
pub fn generate(case: &Case, options: &Options, sink: &mut Sink) -> Result<()> {
    let shape = read(case, &GENERATE)?;
    let tokens = case.count_or("tokens", 64, 1 << 24)?;
    let model = build(&shape)?;
    let precision = precision(case, options.precision)?;
    let (name, numbers) = named(precision);
    let mut generator = model.generator(precision).map_err(failed)?;
    drop(model);
    let mut sampler = Sampler::new(Sampling::default(), shape.vocab);
    let mut rng = Rng::new(1);
    let items = tokens as f64;
    let job = Job {
        unit: "tokens",
        items,
        flops: Some(items * flops_per_token(&shape, inputs(&shape, shape.vocab))),
        // A one-hot input, or a learned vector for each, reads one row of the first layer's table.
        bytes: Some(items * precision.bytes() as f64 * flops_per_token(&shape, 1) / 2.0),
        sweeps: items,
        numbers,
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
