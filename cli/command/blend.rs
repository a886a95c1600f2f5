//! `etude blend`: one adapter out of two, for a style between them.

use std::path::PathBuf;

use etude_models::lora;
use serde_json::json;

use crate::console::{Console, show_path};
use crate::error::{Error, Result};
use crate::input::read_bytes;
use crate::model::{ADAPTER_BYTES, from_models};
use crate::output;

/// Arguments of `etude blend`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  etude blend jigs.safetensors waltzes.safetensors --weight 0.3 --out mixed.safetensors\n\nThen: etude generate lstm --adapter mixed.safetensors"
)]
pub struct Args {
    /// An adapter, as `train --lora` makes it
    #[arg(value_name = "A")]
    first: PathBuf,

    /// Another adapter for the same weights
    #[arg(value_name = "B")]
    second: PathBuf,

    /// How much B counts, from 0 (A alone) to 1 (B alone)
    #[arg(long, value_name = "W", default_value_t = 0.5)]
    weight: f64,

    /// The file to write
    #[arg(long, short, value_name = "F.safetensors")]
    out: PathBuf,
}

/// Blends two adapters.
///
/// # Errors
/// If a file is no adapter, they belong to different weights, or the file cannot be written.
pub fn run(args: &Args, console: &Console) -> Result<()> {
    let read = |path: &PathBuf| read_bytes(path, ADAPTER_BYTES);
    let (first, second) = (read(&args.first)?, read(&args.second)?);
    let (a, b) = (show_path(&args.first), show_path(&args.second));
    let bytes = lora::blend((&first, &a), (&second, &b), args.weight).map_err(|e| match e {
        e @ etude_models::Error::File { .. } => from_models(e, &args.first),
        e => Error::input(e.to_string()),
    })?;
    let place = output::within(&args.out, "adapter.safetensors");
    output::write(&place, &bytes)?;
    let shown = show_path(&place);
    console.say(format!(
        "wrote  {shown}: {:.0} % {a}, {:.0} % {b}, {} bytes",
        100.0 * (1.0 - args.weight),
        100.0 * args.weight,
        bytes.len()
    ))?;
    console.report(&json!({ "file": shown, "weight": args.weight, "bytes": bytes.len() }))
}
