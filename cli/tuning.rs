//! Fine-tuning: a run that begins from trained weights, and what it did to what they knew.
//!
//! Before the first step and at the end the model is scored on data that it does not learn from: the
//! test part of the new data and of the data that it was trained on before.

use std::path::Path;

use etude_models::data::Dataset;
use etude_models::evaluate::likelihood;
use etude_models::lora;
use etude_models::run::RunDir;
use etude_models::train::{RunConfig, Trainer};
use etude_models::{Model, lora::Lora};
use serde_json::{Map, Value, json};

use crate::command::train::sources_of;
use crate::console::{Console, show_path};
use crate::error::{Error, Result};
use crate::input::read_bytes;
use crate::model::{self, Trained, from_models};
use crate::{dataset, output};

/// The file of a run that holds the scores from before.
const FILE: &str = "fine_tuning.json";
/// The file of a run that holds its adapter.
pub const ADAPTER: &str = "adapter.safetensors";

/// The configuration that a fine-tuning begins from: that of the trained model, with fewer steps,
/// and for whole weights a quarter of the learning rate.
///
/// # Errors
/// If the model's file holds no configuration.
pub fn settings(trained: &Trained, rank: Option<usize>) -> Result<Map<String, Value>> {
    let Value::Object(mut map) = trained.settings.clone() else {
        return Err(Error::input(format!("{}: its configuration is not an object", trained.name)));
    };
    let rank = rank.unwrap_or(0);
    if let Some(train) = map.get_mut("train").and_then(Value::as_object_mut) {
        let lr = train.get("lr").and_then(Value::as_f64).unwrap_or(1e-3);
        let lr = if rank > 0 { lr } else { lr / 4.0 };
        let fewer = json!({
            "lr": lr, "steps": 400, "warmup": 20, "valid_every": 50, "save_every": 50, "lora": rank,
        });
        train.extend(fewer.as_object().cloned().unwrap_or_default());
    }
    Ok(map)
}

/// The scores from before, and the old data.
pub struct Tuning {
    before: Value,
    old: Option<Dataset>,
}

impl Tuning {
    /// Scores the model before the first step.
    ///
    /// # Errors
    /// If the scores cannot be written into the run directory.
    pub fn begin(
        trainer: &Trainer,
        from: &Trained,
        path: &Path,
        cached: bool,
        console: &Console,
    ) -> Result<Tuning> {
        let source = from.source.clone();
        let old = old(trainer.config(), source.as_deref(), cached, console);
        let before = json!({
            "from": from.name, "old_data": source,
            "new": score(trainer.model(), Some(trainer.data()))?,
            "old": score(trainer.model(), old.as_ref())?,
        });
        output::write(&path.join(FILE), format!("{before}\n").as_bytes())?;
        Ok(Tuning { before, old })
    }

    /// Finds what a run that goes on began with; `None` if it is no fine-tuning.
    ///
    /// # Errors
    /// If the file with the scores is damaged.
    pub fn resume(
        config: &RunConfig,
        path: &Path,
        cached: bool,
        console: &Console,
    ) -> Result<Option<Tuning>> {
        let file = path.join(FILE);
        if !file.exists() {
            return Ok(None);
        }
        let bytes = read_bytes(&file, 1 << 20)?;
        let before: Value = serde_json::from_slice(&bytes)
            .map_err(|e| Error::file(&file, format!("damaged: {e}")))?;
        let old = old(config, before["old_data"].as_str(), cached, console);
        Ok(Some(Tuning { before, old }))
    }

    /// Scores the best weights of the run, says what changed, and writes the adapter if there is one.
    ///
    /// # Errors
    /// If the run cannot be read, or the adapter not be written.
    pub fn end(&self, trainer: &Trainer, path: &Path, console: &Console) -> Result<Value> {
        let tuned = model::load(path)?;
        let new = score(&*tuned.model, Some(trainer.data()))?;
        let old = score(&*tuned.model, self.old.as_ref())?;
        console.say("tuned      nats a token        before    after")?;
        for (name, before, after) in
            [("new data", &self.before["new"], &new), ("old data", &self.before["old"], &old)]
        {
            let Some(number) = after["nll_per_token"].as_f64() else {
                console.say(format!("           {name}: not there any more"))?;
                continue;
            };
            console.say(format!(
                "           {:<18} {:>8.4} {number:>8.4}",
                format!("{name} ({})", after["part"].as_str().unwrap_or_default()),
                before["nll_per_token"].as_f64().unwrap_or(f64::NAN),
            ))?;
        }
        let adapter = write_adapter(trainer.config(), path, console)?;
        Ok(json!({
            "from": self.before["from"],
            "new": { "before": self.before["new"], "after": new },
            "old": { "before": self.before["old"], "after": old },
            "adapter": adapter,
        }))
    }
}

/// The data that the model was trained on before, where they are still there.
fn old(
    config: &RunConfig,
    source: Option<&str>,
    cached: bool,
    console: &Console,
) -> Option<Dataset> {
    let mut config = config.clone();
    config.train.transpose = 0;
    match dataset::open(&config, &sources_of(source?), cached, console) {
        Ok(data) => Some(data),
        Err(e) => {
            console.note(format!("the data that the model was trained on before: {e}"));
            None
        }
    }
}

/// Nats a token on the part that is furthest from learning.
fn score(model: &dyn Model, data: Option<&Dataset>) -> Result<Value> {
    let parts = data.map(|d| [("test", &d.test), ("valid", &d.valid), ("train", &d.train)]);
    let part = parts.iter().flatten().find(|(_, pieces)| !pieces.is_empty());
    let Some((part, pieces)) = part else { return Ok(Value::Null) };
    let nll = likelihood(model, pieces).map_err(|e| Error::failed(e.to_string()))?;
    Ok(json!({ "part": part, "nll_per_token": nll.per_token, "tokens": nll.tokens }))
}

/// Writes the adapter of the best weights; `null` for a run without one.
fn write_adapter(config: &RunConfig, path: &Path, console: &Console) -> Result<Value> {
    let lora: Lora = config.train.lora;
    if lora.rank == 0 {
        return Ok(Value::Null);
    }
    let run = RunDir::open(path, false).map_err(|e| from_models(e, path))?;
    let file = |name: &str| run.file(name).map_err(|e| from_models(e, path));
    let bytes = match file("best.safetensors")? {
        Some(bytes) => bytes,
        None => file("model.safetensors")?.unwrap_or_default(),
    };
    let adapter = lora::extract(&bytes, &config.model, lora, &show_path(path))
        .map_err(|e| from_models(e, path))?;
    let place = path.join(ADAPTER);
    output::write(&place, &adapter)?;
    let shown = show_path(&place);
    console.say(format!("adapter    {shown}: rank {}, {} bytes", lora.rank, adapter.len()))?;
    Ok(json!({ "file": shown, "rank": lora.rank, "bytes": adapter.len() }))
}
