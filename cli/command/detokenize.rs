//! `etude detokenize FILE`: tokens back to a MIDI file.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::json;

use super::tokenize::find_encoding;
use crate::console::{Console, show_path};
use crate::error::{Error, Result};
use crate::input::{of_tokenizer, read_bytes};
use crate::output;

/// Largest file of tokens.
const MAX_BYTES: u64 = 64 << 20;
/// Most tokens: hours of music in any scheme.
const MAX_TOKENS: usize = 4_000_000;

/// Arguments of `etude detokenize`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  etude detokenize song.json --out song.mid
  etude tokenize song.mid --scheme melody --json | etude detokenize - --out melody.mid")]
pub struct Args {
    /// The object that `etude tokenize --json` prints, in a file; - is standard input
    file: PathBuf,

    /// Where to write the MIDI file; - is standard output
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// What is read of the object; its other keys are for people.
#[derive(Deserialize)]
struct Tokens {
    scheme: String,
    #[serde(deserialize_with = "bounded")]
    tokens: Vec<u32>,
}

/// Reads a list, but no longer than [`MAX_TOKENS`].
fn bounded<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<u32>, D::Error> {
    struct Bounded;
    impl<'de> Visitor<'de> for Bounded {
        type Value = Vec<u32>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list of token numbers")
        }

        fn visit_seq<A: SeqAccess<'de>>(
            self,
            mut list: A,
        ) -> std::result::Result<Vec<u32>, A::Error> {
            let mut tokens = Vec::new();
            while let Some(token) = list.next_element()? {
                if tokens.len() == MAX_TOKENS {
                    let why = format!("more than {MAX_TOKENS} tokens, the most that are read");
                    return Err(serde::de::Error::custom(why));
                }
                tokens.push(token);
            }
            Ok(tokens)
        }
    }
    deserializer.deserialize_seq(Bounded)
}

/// Turns tokens into a MIDI file.
///
/// # Errors
/// If the object, the scheme or a token is bad, or the output cannot be written.
pub fn run(args: &Args, console: &Console) -> Result<()> {
    let bytes = read_bytes(&args.file, MAX_BYTES)?;
    let object: Tokens = serde_json::from_slice(&bytes).map_err(|e| {
        // The parser quotes what it met, which may be megabytes.
        let why: String = e.to_string().chars().take(200).collect();
        Error::file(&args.file, format!("not an object of tokens: {why}"))
    })?;
    drop(bytes);
    let encoding = find_encoding(&object.scheme).map_err(|e| Error::file(&args.file, e))?;
    let score = encoding.decode(&object.tokens).map_err(|e| of_tokenizer(&args.file, &e))?;
    let out = output::place(&args.out, "piece.mid", console);
    output::write(&out, &score.to_midi())?;
    if out.as_os_str() == "-" {
        return Ok(());
    }
    console.say(format!(
        "{}: {} notes, {:.1} s, from {} tokens of {}",
        show_path(&out),
        score.note_count(),
        score.seconds(),
        object.tokens.len(),
        encoding.name()
    ))?;
    console.report(&json!({
        "files": [{ "midi": out.to_string_lossy() }],
        "notes": score.note_count(),
        "seconds": score.seconds(),
    }))
}
