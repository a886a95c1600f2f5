//! `etude export`: one file that holds a trained model and needs nothing else.

use std::path::PathBuf;

use etude_engine::Dtype;
use etude_models::save_weights;
use serde_json::{Value, json};

use crate::console::{Console, show_path};
use crate::error::{Error, Result};
use crate::{model, output};

/// Arguments of `etude export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  etude export run --out tunes.safetensors\n  \
                  etude export run --out tunes.safetensors --dtype int8\n  \
                  etude export lstm --adapter run/adapter.safetensors --out tuned.safetensors\n\n\
                  Then: etude generate tunes.safetensors")]
pub struct Args {
    /// A run directory, a .safetensors file or a bundled model
    #[arg(value_name = "NAME")]
    name: PathBuf,

    /// An adapter that is added to the weights: what `train --lora` or `blend` made
    #[arg(long, value_name = "F")]
    adapter: Option<PathBuf>,

    /// The file to write
    #[arg(long, short, value_name = "F.safetensors")]
    out: PathBuf,

    /// How numbers are stored: bf16 halves the file; int8 (a scale for each row) quarters it
    #[arg(long, value_name = "DTYPE", default_value = "bf16", value_parser = ["f32", "bf16", "f16", "int8"])]
    dtype: String,
}

/// Writes a model as one file.
///
/// # Errors
/// If the model cannot be read or the file cannot be written.
pub fn run(args: &Args, console: &Console) -> Result<()> {
    let trained = model::load_with(&args.name, args.adapter.as_deref())?;
    let dtype = match args.dtype.as_str() {
        "f32" => Dtype::F32,
        "f16" => Dtype::F16,
        "int8" => Dtype::I8,
        _ => Dtype::Bf16,
    };
    let Value::Object(settings) = &trained.settings else {
        return Err(Error::file(&args.name, "its configuration is not an object"));
    };
    let step = trained.step.unwrap_or(0);
    let bytes = save_weights(&*trained.model, settings, step, dtype)
        .map_err(|e| Error::failed(e.to_string()))?;
    let place = output::within(&args.out, "model.safetensors");
    output::write(&place, &bytes)?;
    let (weights, shown) = (trained.model.parameter_count(), show_path(&place));
    console.say(format!(
        "wrote  {shown}: {weights} weights as {}, {} bytes",
        args.dtype,
        bytes.len()
    ))?;
    console.report(&json!({
        "file": shown, "parameters": weights, "dtype": args.dtype, "bytes": bytes.len(),
        "step": trained.step,
    }))
}
