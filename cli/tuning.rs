//! Fine-tuning: a run that begins from trained weights, and what it did to what they knew.
//!
//! Before the first step and at the end the model is scored on data that it does not learn from: the
//! test part of the new data and of the data that it was trained on before.

use std::path::Path;

use etude_models::data::Dataset;
use etude_models::evaluate::likelihood;
use etude_models::lora;
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
    let train = map.entry("train").or_insert_with(|| json!({}));
    if let Value::Object(train) = train {
        let lr = train.get("lr").and_then(Value::as_f64).unwrap_or(1e-3);
        let lr = if rank > 0 { lr } else { lr / 4.0 };
        let fewer = json!({
            "lr": lr, "steps": 400, "warmup": 20, "valid_every": 50, "save_every": 50, "lora": rank,
        });
        train.extend(fewer.as_object().cloned().unwrap_or_default());
    }
    Ok(map)
}

/// Refuses a configuration whose network is not that of the trained weights.
///
/// # Errors
/// Names the first key that differs, what it says and what the weights have.
pub fn check_sizes(config: &RunConfig, from: &Trained) -> Result<()> {
    let (ours, theirs) = (config.model.write(), from.config.write());
    let differs = |key: &&String| ours.get(*key) != theirs.get(*key);
    let Some(key) = ours.keys().chain(theirs.keys()).find(differs) else { return Ok(()) };
    let shown = |of: &Map<String, Value>| of.get(key).map_or("nothing".into(), Value::to_string);
    Err(Error::input(format!(
        "model.{key} is {}; the weights of {} were trained with {}, and their network stays",
        shown(&ours),
        from.name,
        shown(&theirs)
    )))
}

/// The scores from before.
pub struct Tuning {
    before: Value,
}

impl Tuning {
    /// Scores trained weights before the first step.
    ///
    /// # Errors
    /// If the weights do not fit the data.
    pub fn begin(
        from: &Trained,
        config: &RunConfig,
        data: &Dataset,
        cached: bool,
        console: &Console,
    ) -> Result<Tuning> {
        let source = from.source.as_deref();
        let old = old(config, source, cached, console);
        let before = json!({
            "from": from.name, "old_data": source,
            "new": score(&*from.model, Some(data))?, "old": score(&*from.model, old.as_ref())?,
        });
        Ok(Tuning { before })
    }

    /// Writes the scores into the run directory.
    ///
    /// # Errors
    /// Names the file and what the system said.
    pub fn save(&self, path: &Path) -> Result<()> {
        output::write(&path.join(FILE), format!("{}\n", self.before).as_bytes())
    }

    /// Finds what a run that goes on began with; `None` if it is no fine-tuning.
    ///
    /// # Errors
    /// If the file with the scores is damaged.
    pub fn resume(path: &Path) -> Result<Option<Tuning>> {
        let file = path.join(FILE);
        if !file.exists() {
            return Ok(None);
        }
        let bytes = read_bytes(&file, 1 << 20)?;
        let before = serde_json::from_slice(&bytes)
            .map_err(|e| Error::file(&file, format!("damaged: {e}")))?;
        Ok(Some(Tuning { before }))
    }

    /// Scores the best weights of the run and says what changed.
    fn compare(
        &self,
        trainer: &Trainer,
        (path, cached): (&Path, bool),
        console: &Console,
    ) -> Result<Value> {
        let tuned = model::load(path)?;
        let new = score(&*tuned.model, Some(trainer.data()))?;
        let old = old(trainer.config(), self.before["old_data"].as_str(), cached, console);
        let old = score(&*tuned.model, old.as_ref())?;
        console.say("tuned      nats a token        before    after")?;
        for (name, before, after) in
            [("new data", &self.before["new"], &new), ("old data", &self.before["old"], &old)]
        {
            let shown = |of: &Value| {
                of["nll_per_token"].as_f64().map_or("-".into(), |nats| format!("{nats:.4}"))
            };
            let part = [after, before].into_iter().find_map(|of| of["part"].as_str());
            let name = format!("{name} ({})", part.unwrap_or("not there"));
            console.say(format!(
                "           {name:<18} {:>8} {:>8}",
                shown(before),
                shown(after)
            ))?;
        }
        Ok(json!({
            "from": self.before["from"],
            "new": { "before": self.before["new"], "after": new },
            "old": { "before": self.before["old"], "after": old },
        }))
    }
}

/// What came of a run that is done: what fine-tuning changed, and the adapter that was learned, written
/// beside the weights; `null` if it is neither.
///
/// # Errors
/// If the run cannot be read, or the adapter not be written.
pub fn end(
    tuning: Option<&Tuning>,
    trainer: &Trainer,
    place: (&Path, bool),
    console: &Console,
) -> Result<Value> {
    let mut tuned = tuning.map_or(Ok(Value::Null), |t| t.compare(trainer, place, console))?;
    let adapter = write_adapter(trainer.config(), place.0, console)?;
    if tuning.is_some() || !adapter.is_null() {
        tuned["adapter"] = adapter;
    }
    Ok(tuned)
}

/// The data that the model was trained on before, where they are still there.
fn old(
    config: &RunConfig,
    source: Option<&str>,
    cached: bool,
    console: &Console,
) -> Option<Dataset> {
    match dataset::open(config, &sources_of(source?), cached, console) {
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
    let (bytes, _) = model::best_weights(path)?;
    let adapter = lora::extract(&bytes, &config.model, lora, &show_path(path))
        .map_err(|e| from_models(e, path))?;
    let place = path.join(ADAPTER);
    output::write(&place, &adapter)?;
    let shown = show_path(&place);
    console.say(format!("adapter    {shown}: rank {}, {} bytes", lora.rank, adapter.len()))?;
    Ok(json!({ "file": shown, "rank": lora.rank, "bytes": adapter.len() }))
}
