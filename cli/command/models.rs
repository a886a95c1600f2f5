//! `etude models`: the weights in the box, and the models that can be trained.

use etude_models::registry::MODELS;
use etude_models::{Loaded, bundled, read_model};
use serde_json::{Value, json};

use crate::console::Console;
use crate::error::{Error, Result};

/// Arguments of `etude models`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  etude models\n  etude models --json")]
pub struct Args {}

/// Lists models.
///
/// # Errors
/// If the weights in the box are damaged.
pub fn run(_: &Args, console: &Console) -> Result<()> {
    console.say("In the box:")?;
    let mut list: Vec<Value> = Vec::new();
    for b in bundled::BUNDLED {
        let Loaded { config, model, settings, .. } =
            read_model(b.bytes, b.name).map_err(|e| Error::failed(e.to_string()))?;
        let (weights, source) = (model.parameter_count(), &settings["data"]["source"]);
        console.say(format!(
            "  {:<12} {}/{}, encoding {}, {weights} weights in {} KB, corpus {}, \
             validation {:.4} nats a token\n  {:<12} made by: {}",
            b.name,
            config.id,
            config.preset,
            config.encoding,
            b.bytes.len() / 1000,
            source.as_str().unwrap_or("?"),
            b.valid_nll,
            "",
            b.command
        ))?;
        list.push(json!({
            "name": b.name, "architecture": config.id, "preset": config.preset,
            "encoding": config.encoding, "parameters": weights, "bytes": b.bytes.len(),
            "corpus": source, "command": b.command, "seed": settings["train"]["seed"],
            "valid_nll": b.valid_nll,
        }));
    }
    console.say("\nTo be trained, as `etude train NAME`:")?;
    let mut presets: Vec<Value> = Vec::new();
    for entry in MODELS {
        console.say(format!("  {:<12} {}", entry.id, entry.about))?;
        for preset in entry.presets {
            let name = format!("{}/{}", entry.id, preset.name);
            console.say(format!("    {name:<24} {}", preset.about))?;
            presets.push(json!({ "name": name, "about": preset.about }));
        }
    }
    console.report(&json!({ "bundled": list, "presets": presets }))
}
