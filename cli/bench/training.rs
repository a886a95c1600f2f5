//! What timings of training share: a batch of random tokens, and the step that `etude train` takes.

use etude_engine::{Optimizer, Products, Rng, set_products};
use etude_models::Model;
use etude_models::data::Batch;

use super::case::Case;
use super::{Job, Numbers, Options, Sink};
use crate::error::{Error, Result};

/// The products of a case: as it says, else as the command line does; with the name that they go by.
pub fn products(case: &Case, options: &Options) -> Result<(&'static str, Products, Numbers)> {
    let unnamed = if options.bf16 { "bf16" } else { "f32" };
    Ok(match case.word("dtype", &[unnamed, "f32", "bf16"], false)? {
        "bf16" => ("etude-bf16", Products::Bf16, Numbers::Bf16),
        _ => ("etude", Products::F32, Numbers::F32),
    })
}

/// Random tokens in a batch, and as targets.
pub fn random_batch(vocab: usize, batch: usize, steps: usize) -> Batch {
    let mut rng = Rng::new(1);
    let mut tokens =
        || -> Vec<u32> { (0..steps * batch).map(|_| rng.below(vocab as u32)).collect() };
    let (rows, targets, keys) = (tokens(), tokens(), Vec::new());
    Batch { rows, targets, keys, steps, batch, active: 1 }
}

/// What a training step costs, and how far it goes.
pub struct Step {
    /// Operations of the matrix work of a token forwards; a step has three times as many.
    pub flops_per_token: f64,
    /// Numbers kept for the backward pass, for each token.
    pub kept_per_token: f64,
    /// Norm that the gradient is clipped to.
    pub clip: f32,
    /// Learning rate.
    pub lr: f32,
}

/// Times training steps: loss, gradient, clipping, Adam.
pub fn time(
    model: &mut impl Model,
    batch: &Batch,
    step: &Step,
    (name, products, numbers): (&'static str, Products, Numbers),
    sink: &mut Sink,
) -> Result<()> {
    let mut optimizer = Optimizer::adam().clip_norm(step.clip);
    let items = (batch.steps * batch.batch) as f64;
    let flops = Some(3.0 * items * step.flops_per_token);
    // A parameter is read twice by the network, its gradient is written, and Adam reads and writes
    // seven numbers; what the backward pass needs is written once and read once.
    let bytes = Some(40.0 * model.parameter_count() as f64 + 8.0 * items * step.kept_per_token);
    let job = Job { unit: "tokens", items, flops, bytes, numbers, ..Job::default() };
    let mut fault = None;
    sink.time(name, job, &mut || {
        let _products = set_products(products);
        let mut once = || -> etude_models::Result<()> {
            let grads = model.loss(batch, None)?.backward()?;
            optimizer.step(model, &grads, step.lr)?;
            Ok(())
        };
        fault = fault.take().or(once().err());
    })?;
    fault.map_or(Ok(()), |e| Err(Error::failed(format!("bench: {e}"))))
}
