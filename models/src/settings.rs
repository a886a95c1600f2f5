//! How a model is trained: the configuration of a run, read strictly and checked against the memory
//! that is free before anything is allocated.

use crate::augment::Augment;
use crate::config::{self, Table};
use crate::lora::{Adapted, Lora};
use crate::registry::{ModelConfig, model_keys};
use crate::run::RunDir;
use crate::{Error, Model, Result};
use etude_engine::{Products, Schedule};
use serde_json::{Map, Value, json};

/// How a model is trained: table `train`.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainConfig {
    /// Start of all random numbers.
    pub seed: u64,
    /// Steps in all.
    pub steps: u64,
    /// Windows of a step.
    pub batch: usize,
    /// Parts of a step's windows that are learned from one after another, to save memory.
    pub accumulate: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// `constant`, `cosine`, `exponential`, or `noam`: Vaswani et al. 2017, where `lr` is the factor
    /// before their formula.
    pub schedule: String,
    /// Steps in which the learning rate rises from 0.
    pub warmup: u64,
    /// Largest norm of the whole gradient; 0: not clipped.
    pub clip: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// `f32` or `bf16`: the numbers of matrix products. Weights, sums and everything else stay f32.
    pub dtype: String,
    /// Semitones up and down by which training pieces are shifted as well, where the encoding has
    /// keys.
    pub transpose: usize,
    /// Percent by which training windows are played faster or slower, where the encoding has time.
    pub stretch: f64,
    /// What is added to or taken from the velocities of a training window at most, where the encoding
    /// has velocities.
    pub velocity: usize,
    /// Probability that a training window has a hole of some bars, which come after what stands around
    /// them; 0.5 where the encoding has holes and nothing is said.
    pub fill: f64,
    /// The adapter that is learned beside weights that stay; rank 0: none, all weights learn.
    pub lora: Lora,
    /// Steps between two lines of `metrics.jsonl`.
    pub log_every: u64,
    /// Steps between two validations.
    pub valid_every: u64,
    /// Steps between two saves.
    pub save_every: u64,
    /// Validations without a new best after which training stops; 0: never.
    pub patience: u64,
}

/// The keys of tables `train` and `data`, for `--set`.
pub const TRAIN_KEYS: &[(&str, &str)] = &[
    ("train", "seed"),
    ("train", "steps"),
    ("train", "batch"),
    ("train", "accumulate"),
    ("train", "window"),
    ("train", "lr"),
    ("train", "schedule"),
    ("train", "warmup"),
    ("train", "clip"),
    ("train", "weight_decay"),
    ("train", "dtype"),
    ("train", "transpose"),
    ("train", "stretch"),
    ("train", "velocity"),
    ("train", "fill"),
    ("train", "lora"),
    ("train", "lora_alpha"),
    ("train", "log_every"),
    ("train", "valid_every"),
    ("train", "save_every"),
    ("train", "patience"),
    ("data", "source"),
];

/// Every key of a configuration that some architecture, training or the data know, for `--set`.
pub fn setting_keys() -> Vec<(&'static str, &'static str)> {
    let mut keys = model_keys();
    keys.extend(TRAIN_KEYS);
    keys
}

impl TrainConfig {
    /// How training pieces are changed from window to window.
    pub fn augment(&self) -> Augment {
        let TrainConfig { transpose, stretch, velocity, fill, .. } = *self;
        Augment { transpose, stretch, velocity, fill }
    }

    /// The numbers of matrix products.
    pub fn products(&self) -> Products {
        if self.dtype == "bf16" { Products::Bf16 } else { Products::F32 }
    }
}

const DTYPES: [&str; 2] = ["f32", "bf16"];
const SCHEDULES: [&str; 4] = ["constant", "cosine", "exponential", "noam"];

/// A whole configuration: what `config.toml` of a run holds.
#[derive(Debug, Clone, PartialEq)]
pub struct RunConfig {
    /// Table `model`.
    pub model: ModelConfig,
    /// Table `train`.
    pub train: TrainConfig,
    /// Table `data`: a built-in corpus, a folder or files.
    pub source: String,
}

impl RunConfig {
    /// The learning rate of a step, counted from 0.
    pub fn learning_rate(&self, step: u64) -> f32 {
        let c = &self.train;
        let (lr, warmup) = (c.lr, c.warmup);
        let schedule = match c.schedule.as_str() {
            "cosine" => Schedule::Cosine { lr, floor: 0.02 * lr, warmup, total: c.steps },
            "noam" => Schedule::Noam { scale: lr, width: self.model.network.width(), warmup },
            "exponential" => Schedule::Exponential { lr, floor: 0.01 * lr, decay: 0.9999 },
            _ => Schedule::Constant { lr },
        };
        schedule.at(step)
    }

    /// Reads a configuration in its common form.
    ///
    /// # Errors
    /// Names the key that cannot be used.
    pub fn read(mut config: Map<String, Value>) -> Result<RunConfig> {
        let model = ModelConfig::take(&mut config)?;
        let mut t = Table::take(&mut config, "train")?;
        let fill = if model.encoding()?.infill().is_some() { 0.5 } else { 0.0 };
        let train = TrainConfig {
            seed: t.count("seed", 1, 0..=usize::MAX)? as u64,
            steps: t.count("steps", 2000, 0..=1_000_000_000)? as u64,
            batch: t.count("batch", 64, 1..=65_536)?,
            accumulate: t.count("accumulate", 1, 1..=65_536)?,
            window: t.count("window", 256, 2..=65_536)?,
            lr: t.number("lr", 1e-3, 0.0..=10.0)?,
            schedule: t.choice("schedule", "cosine", &SCHEDULES)?,
            warmup: t.count("warmup", 0, 0..=1_000_000_000)? as u64,
            clip: t.number("clip", 5.0, 0.0..=1e9)?,
            weight_decay: t.number("weight_decay", 0.0, 0.0..=1.0)?,
            dtype: t.choice("dtype", "f32", &DTYPES)?,
            transpose: t.count("transpose", 0, 0..=11)?,
            stretch: t.number("stretch", 0.0, 0.0..=50.0)?,
            velocity: t.count("velocity", 0, 0..=64)?,
            fill: t.number("fill", fill, 0.0..=1.0)?,
            lora: Lora {
                rank: t.count("lora", 0, 0..=4096)?,
                alpha: t.number("lora_alpha", Lora::ALPHA, 0.0..=Lora::MOST_ALPHA)?,
            },
            log_every: t.count("log_every", 10, 1..=1_000_000)? as u64,
            valid_every: t.count("valid_every", 200, 1..=1_000_000_000)? as u64,
            save_every: t.count("save_every", 200, 1..=1_000_000_000)? as u64,
            patience: t.count("patience", 0, 0..=1_000_000)? as u64,
        };
        t.finish()?;
        let mut d = Table::take(&mut config, "data")?;
        let source = d.text("source", "folk")?;
        d.finish()?;
        config::finish(&config)?;
        let config = RunConfig { model, train, source };
        if let Some((key, why)) = config.train.augment().unheard(&*config.model.encoding()?) {
            return Err(Error::Config { key: key.into(), why });
        }
        config.check_products()?;
        config.check_window()?;
        config.check_memory()?;
        Ok(config)
    }

    /// Writes the configuration in its common form.
    pub fn write(&self) -> Map<String, Value> {
        let t = &self.train;
        let train = json!({
            "seed": t.seed, "steps": t.steps, "batch": t.batch,
            "accumulate": t.accumulate, "window": t.window, "lr": t.lr,
            "schedule": t.schedule, "warmup": t.warmup, "clip": t.clip,
            "weight_decay": t.weight_decay, "dtype": t.dtype, "transpose": t.transpose, "stretch": t.stretch,
            "velocity": t.velocity, "fill": t.fill, "lora": t.lora.rank, "lora_alpha": t.lora.alpha,
            "log_every": t.log_every, "valid_every": t.valid_every, "save_every": t.save_every, "patience": t.patience,
        });
        let mut config = Map::new();
        config.insert("model".into(), Value::Object(self.model.write()));
        config.insert("train".into(), train);
        config.insert("data".into(), json!({ "source": self.source }));
        config
    }

    /// Builds the network with fresh weights, and with its adapter if it learns one.
    ///
    /// # Errors
    /// If the encoding is unknown, or the rank of the adapter fits no matrix.
    pub fn build(&self) -> Result<Box<dyn Model>> {
        self.with_adapter(self.model.build(self.train.seed)?)
    }

    /// Puts a fresh adapter beside the weights of a model, if the configuration says so.
    ///
    /// # Errors
    /// If its rank fits no matrix.
    pub fn with_adapter(&self, model: Box<dyn Model>) -> Result<Box<dyn Model>> {
        let lora = self.train.lora;
        if lora.rank == 0 {
            return Ok(model);
        }
        Ok(Box::new(Adapted::new(model, lora, self.train.seed)?))
    }

    /// Bytes that training needs at most, weights, moments, gradient and activations.
    ///
    /// # Errors
    /// If the encoding is unknown.
    pub fn memory_bytes(&self) -> Result<u64> {
        let (_, vocab) = self.model.widths()?;
        let windows = self.train.batch.div_ceil(self.train.accumulate) as u64;
        let cells = windows.saturating_mul(self.train.window as u64);
        let token = self.model.network.activations_per_token(vocab);
        Ok(self
            .model
            .parameter_count()?
            .saturating_mul(16)
            .saturating_add(cells.saturating_mul(token).saturating_mul(4)))
    }

    /// Refuses bf16 for what multiplies in f32 alone.
    fn check_products(&self) -> Result<()> {
        match self.model.network.f32_alone() {
            Some(part) if self.train.products() == Products::Bf16 => {
                let why = format!("bf16: {part} has f32 alone");
                Err(Error::Config { key: "train.dtype".into(), why })
            }
            _ => Ok(()),
        }
    }

    /// Refuses windows that are longer than what the network reads.
    fn check_window(&self) -> Result<()> {
        let window = self.train.window;
        match self.model.network.most_steps() {
            Some(most) if window > most => {
                let why = format!("{window} tokens; this network reads at most {most}");
                Err(Error::Config { key: "train.window".into(), why })
            }
            _ => Ok(()),
        }
    }

    /// Refuses a training that does not fit the memory that is free, before anything is allocated.
    fn check_memory(&self) -> Result<()> {
        let wanted = self.memory_bytes()?;
        let free = free_memory().unwrap_or(1 << 40);
        if wanted > free {
            let why = format!(
                "training needs about {} MB ({} weights, batch {} x window {}); {} MB are free",
                wanted >> 20,
                self.model.parameter_count()?,
                self.train.batch,
                self.train.window,
                free >> 20
            );
            return Err(Error::Config { key: "train.batch".into(), why });
        }
        Ok(())
    }
}

/// What the system says is free, in bytes.
fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

/// The configuration that a run was last saved with.
///
/// # Errors
/// If it is missing or cannot be read.
pub fn saved_config(run: &RunDir) -> Result<RunConfig> {
    let path = run.path().join("config.toml").display().to_string();
    let fault = |why: String| Error::File { path: path.clone(), why };
    let bytes = run.file("config.toml")?.ok_or_else(|| fault("missing from the save".into()))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| fault("not UTF-8".into()))?;
    let map = config::from_toml(text).map_err(|e| fault(e.to_string()))?;
    RunConfig::read(map).map_err(|e| fault(e.to_string()))
}
