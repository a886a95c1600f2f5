//! Models as one file: weights with the configuration in the metadata.

use crate::lora::{Adapted, Lora};
use crate::registry::ModelConfig;
use crate::{Error, Model, Result};
use etude_engine::Module as _;
use etude_engine::{Dtype, WeightFile, named_parameters, write_weights};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The metadata key that holds the configuration as JSON.
const CONFIG: &str = "etude.config";
/// The metadata key that holds the step at which the weights were saved.
pub(crate) const STEP: &str = "etude.step";

/// Writes a model's weights with its configuration: one file that needs nothing else.
///
/// # Errors
/// If two weights have one name.
pub fn save_weights(
    model: &dyn Model,
    config: &Map<String, Value>,
    step: u64,
    dtype: Dtype,
) -> Result<Vec<u8>> {
    let metadata = BTreeMap::from([
        // What other readers of the layout look for.
        ("format".to_string(), "pt".to_string()),
        (CONFIG.to_string(), Value::Object(config.clone()).to_string()),
        (STEP.to_string(), step.to_string()),
    ]);
    Ok(write_weights(&named_parameters(model), dtype, &metadata)?)
}

/// Puts the weights of a file into a model of the same sizes.
///
/// # Errors
/// If the file breaks the format, or tensors are missing, extra, misshapen or not finite; the
/// message names `path` and every one of them.
pub fn load_weights(model: &mut dyn Model, bytes: &[u8], path: &str) -> Result<()> {
    let fault = |e: etude_engine::Error| Error::File { path: path.into(), why: e.to_string() };
    WeightFile::parse(bytes)
        .and_then(|file| file.load_into(model))
        .and_then(|()| model.check_finite())
        .map_err(fault)
}

/// A model that was read from a file.
pub struct Loaded {
    /// Its sizes and its encoding.
    pub config: ModelConfig,
    /// The network.
    pub model: Box<dyn Model>,
    /// The whole configuration as it stands in the file, training and data included.
    pub settings: Value,
    /// The training step at which it was saved.
    pub step: Option<u64>,
}

/// Builds the model that a weight file describes.
///
/// # Errors
/// If the file breaks the format, holds no configuration of ours, or its tensors do not fit it;
/// the message names `path`.
pub fn read_model(bytes: &[u8], path: &str) -> Result<Loaded> {
    let fault = |why: String| Error::File { path: path.into(), why };
    let file = WeightFile::parse(bytes).map_err(|e| fault(e.to_string()))?;
    let Some(text) = file.metadata().get(CONFIG) else {
        let names = file.entries().keys().take(3);
        let names: Vec<String> = names.map(|n| crate::config::plain(n)).collect();
        let more = if file.entries().len() > 3 { ", ..." } else { "" };
        return Err(fault(format!(
            "no {CONFIG} in its metadata: not a model of this program (its tensors: {}{more})",
            names.join(", ")
        )));
    };
    let mut settings: Value =
        serde_json::from_str(text).map_err(|e| fault(format!("{CONFIG}: not JSON: {e}")))?;
    let Value::Object(mut map) = settings.clone() else {
        return Err(fault(format!("{CONFIG}: an object is wanted")));
    };
    let config = ModelConfig::take(&mut map).map_err(|e| fault(e.to_string()))?;
    // Weights take at least one byte each: a configuration that asks for more is refused unbuilt.
    let count = config.parameter_count()?;
    if count > bytes.len() as u64 {
        return Err(fault(format!(
            "its configuration asks for {count} weights; the file has {} bytes",
            bytes.len()
        )));
    }
    let mut model = config.build(0)?;
    let lora = Lora::of(&settings);
    if lora.rank > 0 {
        // A run that learned an adapter holds it beside the weights: what is used is their sum.
        let mut adapted = Adapted::new(model, lora, 0).map_err(|e| fault(e.to_string()))?;
        file.load_into(&mut adapted)
            .and_then(|()| adapted.check_finite())
            .map_err(|e| fault(e.to_string()))?;
        settings["train"]["lora"] = 0.into();
        model = adapted.merged()?;
    } else {
        file.load_into(&mut *model).map_err(|e| fault(e.to_string()))?;
    }
    model.check_finite().map_err(|e| fault(e.to_string()))?;
    let step = file.metadata().get(STEP).and_then(|s| s.parse().ok());
    Ok(Loaded { config, model, settings, step })
}
