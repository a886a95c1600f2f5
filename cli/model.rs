//! Finding a trained model: a bundled one by name, a run directory, a weight file, or a folder in the
//! layout of GPT-2.

use std::path::{Path, PathBuf};

use etude_models::registry::ModelConfig;
use etude_models::run::RunDir;
use etude_models::{Loaded, Model, bundled, config, gpt2, lora, read_model, registry};

use crate::console::show_path;
use crate::error::{Error, Result};
use crate::input::read_bytes;

/// A trained model, ready to be used.
pub struct Trained {
    /// What it is called: a bundled name or a path, as given.
    pub name: String,
    /// Its sizes and its encoding.
    pub config: ModelConfig,
    /// The network.
    pub model: Box<dyn Model>,
    /// The data it was trained on, if the file says so.
    pub source: Option<String>,
    /// The whole configuration in its file, training and data included.
    pub settings: serde_json::Value,
    /// The training step at which the weights were saved.
    pub step: Option<u64>,
}

/// Bytes of the largest weight file that is read.
const MAX_BYTES: u64 = 1 << 33;

/// Bytes of the largest adapter that is read.
pub const ADAPTER_BYTES: u64 = 1 << 30;

/// Loads a trained model, and adds the adapter of a file to it if there is one.
///
/// # Errors
/// As [`load`], or if the adapter is none for these weights.
pub fn load_with(name: &Path, adapter: Option<&Path>) -> Result<Trained> {
    let mut trained = load(name)?;
    trained.adapt(adapter)?;
    Ok(trained)
}

/// Loads a trained model by name, run directory, weight file or folder in the layout of GPT-2.
///
/// Of a run the weights with the lowest validation loss are taken; those of the last save before
/// the first validation.
///
/// # Errors
/// If there is no such model, or its files are damaged or do not fit together.
pub fn load(name: &Path) -> Result<Trained> {
    load_as(name, None)
}

/// Loads a trained model whose encoding may have to be told.
///
/// # Errors
/// As [`load`], or if it tells another encoding itself.
pub fn load_as(name: &Path, encoding: Option<&str>) -> Result<Trained> {
    let trained = find(name, encoding)?;
    match encoding {
        Some(wanted) if wanted != trained.config.encoding => Err(Error::input(format!(
            "--encoding {wanted}: the model speaks {}, and says so itself",
            trained.config.encoding
        ))),
        _ => Ok(trained),
    }
}

fn find(name: &Path, encoding: Option<&str>) -> Result<Trained> {
    let text = name.to_str().unwrap_or_default();
    if !name.exists() {
        if let Some(model) = bundled::find(text) {
            let loaded = read_model(model.bytes, model.name).map_err(failed)?;
            return Ok(Trained::new(text.into(), loaded));
        }
        return Err(unknown(name));
    }
    let shown = show_path(name);
    if name.is_dir() && name.join(gpt2::CONFIG).exists() && !name.join("state.json").exists() {
        let sizes = read_bytes(&name.join(gpt2::CONFIG), config::MAX_BYTES)?;
        let weights = read_bytes(&name.join(gpt2::WEIGHTS), MAX_BYTES)?;
        let loaded = gpt2::read(&sizes, &weights, encoding, &shown);
        return Ok(Trained::new(shown, loaded.map_err(|e| from_models(e, name))?));
    }
    if name.is_dir() {
        let (bytes, path) = best_weights(name)?;
        let loaded = read_model(&bytes, &show_path(&path)).map_err(|e| from_models(e, &path))?;
        return Ok(Trained::new(shown, loaded));
    }
    let bytes = read_bytes(name, MAX_BYTES)?;
    let loaded = read_model(&bytes, &shown).map_err(|e| from_models(e, name))?;
    Ok(Trained::new(shown, loaded))
}

/// The weights of a run with the lowest validation loss, or those of the last save before the first
/// validation; and their path.
///
/// # Errors
/// If it is no run directory, or the file is missing or damaged.
pub fn best_weights(run: &Path) -> Result<(Vec<u8>, PathBuf)> {
    let fault = |e| from_models(e, run);
    let saved = RunDir::open(run, false).map_err(fault)?;
    let (bytes, name) = match saved.file("best.safetensors").map_err(fault)? {
        Some(bytes) => (bytes, "best.safetensors"),
        None => {
            let last = saved.file("model.safetensors").map_err(fault)?;
            (last.unwrap_or_default(), "model.safetensors")
        }
    };
    Ok((bytes, run.join(name)))
}

impl Trained {
    fn new(name: String, loaded: Loaded) -> Trained {
        let Loaded { config, model, settings, step } = loaded;
        let source = settings["data"]["source"].as_str().map(str::to_owned);
        Trained { name, config, model, source, settings, step }
    }

    /// Adds the adapter of a file to the weights, if there is one.
    ///
    /// # Errors
    /// If it cannot be read, or is none for these weights.
    pub fn adapt(&mut self, adapter: Option<&Path>) -> Result<()> {
        let Some(path) = adapter else { return Ok(()) };
        let bytes = read_bytes(path, ADAPTER_BYTES)?;
        lora::add_adapter(&mut *self.model, &self.config, &bytes, &show_path(path))
            .map_err(|e| from_models(e, path))
    }
}

fn failed(e: etude_models::Error) -> Error {
    Error::failed(e.to_string())
}

fn unknown(name: &Path) -> Error {
    let names = bundled::BUNDLED.iter().map(|b| b.name).collect::<Vec<_>>().join(", ");
    match name.to_str().map(registry::find) {
        Some(Ok(_)) => Error::input(format!(
            "{}: no trained weights of this model are in the box; train some: \
             etude train {0} --out RUN (bundled: {names})",
            show_path(name)
        )),
        _ => Error::file(
            name,
            format!("no such model, run directory or weight file (bundled: {names})"),
        ),
    }
}

/// Turns a fault of the models into one of the program, with the file that it is about.
pub fn from_models(error: etude_models::Error, fallback: &Path) -> Error {
    match error {
        etude_models::Error::File { path, why } => Error::file(Path::new(&path), why),
        other => Error::file(fallback, other),
    }
}
