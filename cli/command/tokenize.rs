//! `etude tokenize FILE`: a MIDI file as tokens of an encoding.

use std::path::PathBuf;

use etude_tokenizer::{Encoding, encoding, schemes};
use serde_json::json;

use crate::console::{Console, show_path};
use crate::error::{Error, Result};
use crate::input::{of_tokenizer, read_midi};
use crate::output;

/// Arguments of `etude tokenize`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  etude tokenize song.mid --scheme melody
  etude tokenize song.mid --scheme events --out song.json
  etude tokenize song.mid --scheme performance --json")]
pub struct Args {
    /// The MIDI file
    file: PathBuf,

    #[arg(long, value_name = "NAME", default_value = "events", help = scheme_help())]
    scheme: String,

    /// Write the tokens to a file, as `etude detokenize` reads them
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// The help text of `--scheme`: every encoding with its line.
pub fn scheme_help() -> String {
    let names: Vec<&str> = schemes().iter().map(|(name, _)| *name).collect();
    format!("The encoding: {}", names.join(", "))
}

/// Finds an encoding.
///
/// # Errors
/// If there is none of that name; the message lists the names there are.
pub fn find_encoding(name: &str) -> Result<Box<dyn Encoding>> {
    encoding(name).ok_or_else(|| {
        let names: Vec<&str> = schemes().iter().map(|(name, _)| *name).collect();
        let shown: String = name.chars().take(60).collect();
        Error::input(format!("unknown scheme {shown}; there are {}", names.join(", ")))
    })
}

/// Tokenizes a file.
///
/// # Errors
/// If the file or the scheme is bad, or the output cannot be written.
pub fn run(args: &Args, console: &Console) -> Result<()> {
    let encoding = find_encoding(&args.scheme)?;
    let reading = read_midi(&args.file, console)?;
    let encoded = encoding.encode(&reading.score).map_err(|e| of_tokenizer(&args.file, &e))?;
    for (reason, count) in &encoded.lost {
        console.warn(format!("{}: {}: {count} x {reason}", show_path(&args.file), args.scheme));
    }
    let names: Vec<String> = encoded.tokens.iter().map(|&t| encoding.token_name(t)).collect();
    let mut object = json!({
        "scheme": args.scheme,
        "tokens": encoded.tokens,
        "names": names,
        "notes": reading.note_ons,
        "ticks_per_quarter": reading.ticks_per_quarter,
        "warnings": reading.warnings,
        "lost": encoded.lost.iter().map(|(reason, count)| json!({ "reason": reason, "count": count })).collect::<Vec<_>>(),
    });
    let summary = format!(
        "{}: {} tokens of {} ({} different ones there are), {} notes, {} ticks a quarter",
        show_path(&args.file),
        encoded.tokens.len(),
        args.scheme,
        encoding.vocab_size(),
        reading.note_ons,
        reading.ticks_per_quarter
    );
    if let Some(out) = &args.out {
        let out = output::place(out, "tokens.json", console);
        output::write(&out, format!("{object}\n").as_bytes())?;
        console.say(summary)?;
        console.say(format!("written to {}", show_path(&out)))?;
        if let Some(map) = object.as_object_mut() {
            map.remove("tokens");
            map.remove("names");
            map.insert("files".to_owned(), json!([{ "tokens": out.to_string_lossy() }]));
        }
        return console.report(&object);
    }
    if console.json {
        return console.report(&object);
    }
    console.say(summary)?;
    let mut line = String::new();
    for name in &names {
        if !line.is_empty() && line.len() + name.len() >= 100 {
            console.say(&line)?;
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += name;
    }
    console.say(line)
}
