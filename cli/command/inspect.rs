//! `etude inspect`: what a model is made of and what it costs.

use std::path::PathBuf;

use etude_models::train::RunConfig;
use etude_models::{Part, registry};
use serde_json::{Value, json};

use crate::console::Console;
use crate::error::{Error, Result};
use crate::model;

/// Arguments of `etude inspect`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  etude inspect lstm\n  etude inspect lstm/performance\n  etude inspect run --json"
)]
pub struct Args {
    /// A bundled model, a run directory, a .safetensors file, or a model to be trained
    #[arg(value_name = "NAME")]
    name: PathBuf,
}

/// Shows sizes, work and memory of a model.
///
/// # Errors
/// If there is no such model, or its files are damaged.
pub fn run(args: &Args, console: &Console) -> Result<()> {
    let preset = args.name.to_str().map(registry::preset_config);
    let (name, config, parts, trained_on) = match (model::load(&args.name), preset) {
        (Ok(m), _) => (m.name, m.config, m.model.parts(), m.source),
        (Err(_), Some(Ok(map))) if !args.name.exists() => {
            let config = RunConfig::read(map).map_err(|e| Error::input(e.to_string()))?.model;
            let built = config.build(1).map_err(|e| Error::input(e.to_string()))?;
            let name = format!("{}/{} (not trained)", config.id, config.preset);
            (name, config, built.parts(), None)
        }
        (Err(e), _) => return Err(e),
    };
    let (rows, vocab) = config.widths().map_err(|e| Error::input(e.to_string()))?;
    let parameters: u64 = parts.iter().map(|p| p.parameters).sum();
    let flops: u64 = parts.iter().map(|p| p.flops_per_token).sum();
    console.say(format!("model      {name}"))?;
    console.say(format!("encoding   {}: {vocab} tokens; {rows} input rows", config.encoding))?;
    if let Some(source) = &trained_on {
        console.say(format!("trained on {}", crate::console::clean(source)))?;
    }
    console
        .say(format!("\n{:<12} {:>12} {:>14}  {}", "part", "weights", "flops a token", "what"))?;
    for part in &parts {
        let Part { name, about, parameters, flops_per_token } = part;
        console.say(format!("{name:<12} {parameters:>12} {flops_per_token:>14}  {about}"))?;
    }
    console.say(format!("{:<12} {parameters:>12} {flops:>14}", "all"))?;
    console.say(format!(
        "\nmemory     {:.2} MB of weights in f32, {:.2} MB in bf16; training holds about {:.2} MB \
         of weights, gradient and moments",
        parameters as f64 * 4e-6,
        parameters as f64 * 2e-6,
        parameters as f64 * 16e-6
    ))?;
    let list: Vec<Value> = parts
        .iter()
        .map(|p| {
            json!({ "name": p.name, "about": p.about, "parameters": p.parameters,
                    "flops_per_token": p.flops_per_token })
        })
        .collect();
    console.report(&json!({
        "model": name, "encoding": config.encoding, "vocab": vocab, "input_rows": rows,
        "parameters": parameters, "flops_per_token": flops, "bytes_f32": parameters * 4,
        "source": trained_on, "parts": list,
    }))
}
