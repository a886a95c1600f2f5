//! `etude accompany`: a model with an encoder writes what goes with a melody.

use std::path::PathBuf;

use crate::command::generate::{Controls, Source, write};
use crate::console::Console;
use crate::error::{Error, Result};
use crate::input::read_midi;

/// Arguments of `etude accompany`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  etude accompany tune.mid --model run --out band.mid\n  etude accompany tune.mid --model run --temperature 0.8 --seed 3 --no-audio\n\nThe melody is the highest track that is not drums. It stays note for note and is the first track of the result; the other tracks of the file are left out. What is written is as long as the melody. A model for this: etude train transformer/accompaniment --data bands --out run"
)]
pub struct Args {
    /// The melody
    #[arg(value_name = "MELODY.mid")]
    file: PathBuf,

    /// The model that accompanies (conditions = melody): a run directory or a .safetensors file
    #[arg(long, value_name = "NAME", default_value = "transformer/accompaniment")]
    model: PathBuf,

    #[command(flatten)]
    controls: Controls,
}

/// Accompanies a melody.
///
/// # Errors
/// If the file holds no melody, the model accompanies nothing, a length is asked for, or as in
/// [`crate::command::generate::run`].
pub fn run(args: &Args, console: &Console) -> Result<()> {
    if args.controls.has_length() {
        return Err(Error::input("--bars, --seconds: an accompaniment is as long as its melody"));
    }
    let score = read_midi(&args.file, console)?.score;
    if score.tracks.iter().all(|track| track.is_drum || track.notes.is_empty()) {
        return Err(Error::file(&args.file, "no notes but drums; a melody is wanted"));
    }
    let source = Source { primer: Some(score), accompanies: true, ..Source::of_file(&args.file) };
    args.controls.machine.pool()?.run(|| write(&args.controls, &args.model, source, console))
}
