//! `etude export`: a trained model as one file that needs nothing else, or as a folder that others read.

use std::path::{Path, PathBuf};

use etude_engine::Dtype;
use etude_models::{gpt2, save_weights};
use serde_json::{Map, Value, json};

use crate::console::{Console, show_path};
use crate::error::{Error, Result};
use crate::model::{self, Trained};
use crate::output;

/// Arguments of `etude export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  etude export run --out tunes.safetensors\n  \
                  etude export run --out tunes.safetensors --dtype int8\n  \
                  etude export lstm --adapter run/adapter.safetensors --out tuned.safetensors\n  \
                  etude export run --format huggingface --out folder\n  \
                  etude export folder --encoding melody-c --out tunes.safetensors\n\n\
                  Then: etude generate tunes.safetensors\n\n\
                  --format huggingface writes GPT-2's config.json and model.safetensors, as transformers \
                  reads them: a\ntransformer trained with --set positions=learned, its norms first, \
                  attention neither local nor sparse.\nOne more token than the encoding has begins a \
                  piece: bos_token_id. Such a folder is also a NAME, of\nthis and of every other \
                  command; --encoding is for one that another program wrote.")]
pub struct Args {
    /// A run directory, a .safetensors file, a bundled model or a folder in GPT-2's layout
    #[arg(value_name = "NAME")]
    name: PathBuf,

    /// An adapter that is added to the weights: what `train --lora` or `blend` made
    #[arg(long, value_name = "F")]
    adapter: Option<PathBuf>,

    /// The encoding of the tokens, for a folder of another program that does not tell it
    #[arg(long, value_name = "ENCODING")]
    encoding: Option<String>,

    /// The file to write; the folder for --format huggingface
    #[arg(long, short, value_name = "PATH")]
    out: PathBuf,

    /// One file for this program, or a folder in the layout of Hugging Face's GPT-2
    #[arg(long, value_name = "FORMAT", default_value = "etude", value_parser = ["etude", "huggingface"])]
    format: String,

    /// How numbers are stored: bf16 (usual in one file) halves the file; int8 (a scale for each row)
    /// quarters it; f32 is usual in a folder, which has no int8
    #[arg(long, value_name = "DTYPE", value_parser = ["f32", "bf16", "f16", "int8"])]
    dtype: Option<String>,
}

/// Writes a model as one file or as a folder.
///
/// # Errors
/// If the model cannot be read, the format does not hold it, or a file cannot be written.
pub fn run(args: &Args, console: &Console) -> Result<()> {
    let is_folder = args.format == "huggingface";
    let dtype = args.dtype.as_deref().unwrap_or(if is_folder { "f32" } else { "bf16" });
    let stored = match dtype {
        "f32" => Dtype::F32,
        "f16" => Dtype::F16,
        "int8" if is_folder => {
            let why = "--dtype int8: the layout of GPT-2 has none; f32, bf16 or f16 is wanted";
            return Err(Error::input(why));
        }
        "int8" => Dtype::I8,
        _ => Dtype::Bf16,
    };
    let mut trained = model::load_as(&args.name, args.encoding.as_deref())?;
    trained.adapt(args.adapter.as_deref())?;
    let Value::Object(settings) = &trained.settings else {
        return Err(Error::file(&args.name, "its configuration is not an object"));
    };
    let (place, bytes) = if is_folder {
        (args.out.clone(), write_folder(args, &trained, settings, stored)?)
    } else {
        let step = trained.step.unwrap_or(0);
        let bytes = save_weights(&*trained.model, settings, step, stored)
            .map_err(|e| Error::failed(e.to_string()))?;
        let place = output::within(&args.out, "model.safetensors");
        output::write(&place, &bytes)?;
        (place, bytes.len())
    };
    let (weights, shown) = (trained.model.parameter_count(), show_path(&place));
    console.say(format!("wrote  {shown}: {weights} weights as {dtype}, {bytes} bytes"))?;
    console.report(&json!({
        "file": shown, "format": args.format, "parameters": weights, "dtype": dtype, "bytes": bytes,
        "step": trained.step,
    }))
}

/// Writes a folder in the layout of GPT-2 and returns its bytes.
fn write_folder(
    args: &Args,
    trained: &Trained,
    settings: &Map<String, Value>,
    dtype: Dtype,
) -> Result<usize> {
    let folder: &Path = &args.out;
    if folder.join("state.json").exists() {
        return Err(Error::file(folder, "a run directory; name another folder for --out"));
    }
    let step = trained.step.unwrap_or(0);
    let files = gpt2::write(&*trained.model, &trained.config, settings, step, dtype)
        .map_err(|e| Error::file(&args.name, format!("--format huggingface: {e}")))?;
    for (name, bytes) in &files {
        output::write(&folder.join(name), bytes)?;
    }
    Ok(files.iter().map(|(_, bytes)| bytes.len()).sum())
}
