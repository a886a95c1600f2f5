//! Training: batches, gradient, clipping, Adam; validation; saves that resume bit for bit.
//!
//! Everything random in step `s` (which windows, which units drop out) is a function of the seed
//! and `s`. Everything else that a step needs is in the save: weights, moments, the step's number.
//! So a run that was stopped and resumed ends with the same bytes as one that was not.

use crate::config;
use crate::data::{Baselines, Batch, Dataset};
use crate::evaluate::{Likelihood, likelihood};
use crate::lora::Lora;
use crate::run::RunDir;
pub use crate::settings::{RunConfig, TRAIN_KEYS, TrainConfig, saved_config, setting_keys};
use crate::{Error, Model, Result};
use crate::{load_weights, save_weights};
use etude_engine::{Dtype, Grads, Optimizer, Rng, WeightFile};
use etude_engine::{no_grad, set_products, write_weights};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a step tells whoever watches.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Mean training loss since the last report, nats for a token.
    pub loss: f64,
    /// Norm of the last gradient, before clipping.
    pub grad_norm: f64,
    /// Learning rate of the last step.
    pub lr: f32,
    /// Tokens learned from, a second, since the last report.
    pub tokens_per_second: f64,
    /// The validation made at this step, if one was.
    pub valid: Option<Likelihood>,
    /// Lowest validation loss so far, nats for a token.
    pub best: f64,
}

/// How a training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All steps are done.
    Done,
    /// The validation loss stopped falling.
    Patience,
    /// The time is up.
    Time,
    /// Somebody asked to stop; the run can be resumed.
    Stopped,
}

/// A training in progress.
pub struct Trainer {
    config: RunConfig,
    model: Box<dyn Model>,
    optimizer: Optimizer,
    run: RunDir,
    data: Dataset,
    baselines: Baselines,
    step: u64,
    best: f64,
    best_step: u64,
    stale: u64,
    train_loss: f64,
    seconds: f64,
}

impl Trainer {
    /// Begins a run: builds the model and makes the run directory with a first save.
    ///
    /// # Errors
    /// If the data are empty, the directory cannot be made, or it holds a run already.
    pub fn create(config: RunConfig, data: Dataset, path: &Path) -> Result<Trainer> {
        let model = config.build()?;
        Trainer::with_model(config, model, data, path)
    }

    /// Begins a run from a given model (fine-tuning).
    ///
    /// # Errors
    /// As in [`Trainer::create`].
    pub fn with_model(
        config: RunConfig,
        model: Box<dyn Model>,
        data: Dataset,
        path: &Path,
    ) -> Result<Trainer> {
        let baselines = baselines(&config, &data)?;
        let optimizer = optimizer(&config.train);
        let mut trainer = Trainer {
            run: RunDir::create(path)?,
            config,
            model,
            optimizer,
            data,
            baselines,
            step: 0,
            best: f64::INFINITY,
            best_step: 0,
            stale: 0,
            train_loss: f64::NAN,
            seconds: 0.0,
        };
        let text = config::to_toml(&trainer.config.write());
        trainer.save(vec![("config.toml", text.into_bytes())])?;
        trainer.run.publish()?;
        Ok(trainer)
    }

    /// Goes on with a run. `config` is its configuration, perhaps with more steps.
    ///
    /// # Errors
    /// If the directory is damaged, or the sizes of the model or of its adapter were changed.
    pub fn resume(config: RunConfig, data: Dataset, mut run: RunDir) -> Result<Trainer> {
        let at = |name: &str| run.path().join(name).display().to_string();
        let saved = saved_config(&run)?;
        if saved.model != config.model {
            let why = "the model's sizes differ from those that the run began with".into();
            return Err(Error::File { path: at("config.toml"), why });
        }
        let (was, is) = (saved.train.lora, config.train.lora);
        if was != is && was.rank.max(is.rank) > 0 {
            let say = |lora: Lora| match lora.rank {
                0 => "no adapter".to_owned(),
                rank => format!("an adapter of rank {rank}, alpha {}", lora.alpha),
            };
            let why = format!("{} is wanted; the run began with {}", say(is), say(was));
            return Err(Error::Config { key: "train.lora".into(), why });
        }
        let mut model = config.build()?;
        let mut optimizer = optimizer(&config.train);
        let missing =
            |name: &str| Error::File { path: at(name), why: "missing from the save".into() };
        let weights = run.file("model.safetensors")?.ok_or_else(|| missing("model.safetensors"))?;
        load_weights(&mut *model, &weights, &at("model.safetensors"))?;
        let moments =
            run.file("optimizer.safetensors")?.ok_or_else(|| missing("optimizer.safetensors"))?;
        let step = run.state()["step"].as_u64().unwrap_or(0);
        load_moments(&mut optimizer, &*model, &moments, step)
            .map_err(|e| Error::File { path: at("optimizer.safetensors"), why: e.to_string() })?;
        let state = run.state().clone();
        let number = |key: &str| state[key].as_f64();
        let whole = |key: &str| state[key].as_u64().unwrap_or(0);
        let baselines = baselines(&config, &data)?;
        if saved != config {
            let text = config::to_toml(&config.write());
            run.save(&[("config.toml", text.into_bytes())], state.clone())?;
        }
        Ok(Trainer {
            config,
            model,
            optimizer,
            run,
            data,
            baselines,
            step: whole("step"),
            best: number("best").unwrap_or(f64::INFINITY),
            best_step: whole("best_step"),
            stale: whole("stale"),
            train_loss: number("train_loss").unwrap_or(f64::NAN),
            seconds: number("seconds").unwrap_or(0.0),
        })
    }

    /// The tables of counts that the loss is compared with.
    pub fn baselines(&self) -> Baselines {
        self.baselines
    }

    /// The configuration.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// The model as it stands.
    pub fn model(&self) -> &dyn Model {
        &*self.model
    }

    /// The model, to be changed between steps.
    pub fn model_mut(&mut self) -> &mut dyn Model {
        &mut *self.model
    }

    /// The data.
    pub fn data(&self) -> &Dataset {
        &self.data
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Lowest validation loss and the step of it; infinite before the first validation.
    pub fn best(&self) -> (f64, u64) {
        (self.best, self.best_step)
    }

    /// Mean training loss at the last report, nats for a token.
    pub fn train_loss(&self) -> f64 {
        self.train_loss
    }

    /// Seconds spent in training, over all sessions of the run.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Trains until the steps or the time are up, the loss stops falling or `stop` says so.
    ///
    /// # Errors
    /// If a loss or gradient is not finite (the last save stays), or a save fails.
    pub fn train(
        &mut self,
        time: Option<Duration>,
        stop: &dyn Fn() -> bool,
        watch: &mut dyn FnMut(&Report),
    ) -> Result<End> {
        let (start, mut mark) = (Instant::now(), Instant::now());
        let (mut loss_sum, mut loss_steps, mut tokens) = (0.0f64, 0u64, 0usize);
        let seconds_before = self.seconds;
        let mut saved_at = self.step;
        let end = loop {
            let c = &self.config.train;
            if self.step >= c.steps {
                break End::Done;
            }
            if c.patience > 0 && self.stale >= c.patience {
                break End::Patience;
            }
            if stop() {
                break End::Stopped;
            }
            if time.is_some_and(|time| start.elapsed() >= time) {
                break End::Time;
            }
            let batch = Batch::of_step(&self.data.train, c.seed, self.step, c.batch, c.window)?;
            let lr = self.config.learning_rate(self.step);
            let (loss, grad_norm) =
                learn(&mut *self.model, &mut self.optimizer, &batch, &self.config, self.step)?;
            self.step += 1;
            (loss_sum, loss_steps) = (loss_sum + loss, loss_steps + 1);
            tokens += batch.target_count();
            self.seconds = seconds_before + start.elapsed().as_secs_f64();
            let (step, last) = (self.step, self.step == self.config.train.steps);
            let due = |every: u64| last || step % every == 0;
            let validates = due(self.config.train.valid_every) && !self.data.valid.is_empty();
            if due(self.config.train.log_every) || validates {
                self.train_loss = loss_sum / loss_steps as f64;
                let rate = tokens as f64 / mark.elapsed().as_secs_f64().max(1e-9);
                let mut files = Vec::new();
                let valid = if validates { Some(self.validate(&mut files)?) } else { None };
                let report = Report {
                    step: self.step,
                    steps: self.config.train.steps,
                    loss: self.train_loss,
                    grad_norm,
                    lr,
                    tokens_per_second: rate,
                    valid,
                    best: self.best,
                };
                self.run.log(&metrics_line(&report))?;
                watch(&report);
                if !files.is_empty() {
                    saved_at = self.step;
                    self.save(files)?;
                }
                (loss_sum, loss_steps, tokens, mark) = (0.0, 0, 0, Instant::now());
            }
            if due(self.config.train.save_every) && saved_at != self.step {
                saved_at = self.step;
                self.save(Vec::new())?;
            }
        };
        if saved_at != self.step {
            self.save(Vec::new())?;
        }
        Ok(end)
    }

    /// Scores the validation part; a new best is put among the `files` to save.
    fn validate(&mut self, files: &mut Vec<(&'static str, Vec<u8>)>) -> Result<Likelihood> {
        let valid = likelihood(&*self.model, &self.data.valid)?;
        if valid.per_token < self.best {
            (self.best, self.best_step, self.stale) = (valid.per_token, self.step, 0);
            files.push(("best.safetensors", self.weights()?));
        } else {
            self.stale += 1;
        }
        Ok(valid)
    }

    fn weights(&self) -> Result<Vec<u8>> {
        save_weights(&*self.model, &self.config.write(), self.step, Dtype::F32)
    }

    fn save(&mut self, mut files: Vec<(&'static str, Vec<u8>)>) -> Result<()> {
        files.push(("model.safetensors", self.weights()?));
        let moments = write_weights(&self.optimizer.state()?, Dtype::F32, &BTreeMap::new())?;
        files.push(("optimizer.safetensors", moments));
        let finite = |x: f64| if x.is_finite() { json!(x) } else { Value::Null };
        let state = json!({
            "step": self.step,
            "seed": self.config.train.seed,
            "data_position": self.step * self.config.train.batch as u64,
            "best": finite(self.best),
            "best_step": self.best_step,
            "stale": self.stale,
            "train_loss": finite(self.train_loss),
            "seconds": self.seconds,
        });
        self.run.save(&files, state)
    }
}

const DROPOUT_STREAM: u32 = 3;

/// Step number `step`, from 0: loss, gradient, clipping, update. Returns the loss and the gradient's
/// norm.
///
/// # Errors
/// If the loss or the gradient is not finite; the weights have not changed then.
pub(crate) fn learn(
    model: &mut dyn Model,
    optimizer: &mut Optimizer,
    batch: &Batch,
    config: &RunConfig,
    step: u64,
) -> Result<(f64, f64)> {
    let c = &config.train;
    let mut rng = Rng { seed: c.seed, stream: DROPOUT_STREAM, position: step << 36 };
    let _products = set_products(c.products());
    let (mut value, mut sum) = (0.0, None);
    for part in batch.parts(c.accumulate) {
        // So that the parts add up to the mean over the whole batch.
        let share = part.target_count() as f32 / batch.target_count().max(1) as f32;
        let loss = model.loss(&part, Some(&mut rng))?;
        let loss = if share == 1.0 { loss } else { loss.scale(share)? };
        value += f64::from(loss.item()?);
        check_loss(model, value, step)?;
        let grads = loss.backward()?;
        sum = Some(match sum {
            None => grads,
            Some(sum) => add_grads(model, sum, grads)?,
        });
    }
    let Some(grads) = sum else { return Ok((0.0, 0.0)) };
    match optimizer.step(model, &grads, config.learning_rate(step)) {
        Ok(norm) => Ok((value, norm)),
        Err(etude_engine::Error::NotFinite { what, .. }) => {
            Err(Error::NotFinite { step: step + 1, tensor: what })
        }
        Err(e) => Err(e.into()),
    }
}

fn check_loss(model: &dyn Model, value: f64, step: u64) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    // A weight that is not finite is the usual cause: name it rather than the loss.
    let cause = model.check_finite().err();
    let tensor = cause.map_or_else(|| "the loss".into(), |e| e.to_string());
    Err(Error::NotFinite { step: step + 1, tensor })
}

pub(crate) fn optimizer(c: &TrainConfig) -> Optimizer {
    let optimizer = Optimizer::adamw(c.weight_decay as f32);
    if c.clip > 0.0 { optimizer.clip_norm(c.clip as f32) } else { optimizer }
}

/// Adds the gradients of one part of a batch to those of the parts before.
fn add_grads(model: &dyn Model, mut sum: Grads, mut grads: Grads) -> Result<Grads> {
    let mut result = Ok(());
    model.visit(&mut |p| {
        let Some(d) = grads.take(&p.value) else { return };
        let added = no_grad(|| sum.take(&p.value).map_or(Ok(d.clone()), |before| before.add(&d)));
        match added {
            Ok(d) => sum.insert(&p.value, d),
            Err(e) => result = Err(e),
        }
    });
    result?;
    Ok(sum)
}

fn load_moments(
    optimizer: &mut Optimizer,
    model: &dyn Model,
    bytes: &[u8],
    step: u64,
) -> etude_engine::Result<()> {
    let file = WeightFile::parse(bytes)?;
    let names = file.entries().keys();
    let state = names
        .map(|n| Ok((n.clone(), file.tensor(n)?)))
        .collect::<etude_engine::Result<Vec<_>>>()?;
    optimizer.load_state(model, step, &state)
}

fn baselines(config: &RunConfig, data: &Dataset) -> Result<Baselines> {
    let (_, vocab) = config.model.widths()?;
    let held = if data.valid.is_empty() { &data.train } else { &data.valid };
    Baselines::new(&data.train, held, vocab)
}

fn metrics_line(r: &Report) -> Value {
    let mut line = json!({
        "step": r.step, "loss": r.loss, "grad_norm": r.grad_norm, "lr": r.lr,
        "tokens_per_second": r.tokens_per_second.round(),
    });
    if let Some(valid) = r.valid {
        line["valid_nll"] = valid.per_token.into();
        line["valid_nll_per_note"] = valid.per_note.into();
        line["valid_accuracy"] = valid.accuracy.into();
    }
    line
}
