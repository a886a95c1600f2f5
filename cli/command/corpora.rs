//! `etude corpora`: the built-in corpora, as a list or as files.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::console::{Console, show_path};
use crate::corpora::{Entry, Split, list, load};
use crate::error::{Error, Result, reason};
use crate::output::Staged;

/// Arguments of `etude corpora`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  etude corpora
  etude corpora --export folk --out folk-midi")]
pub struct Args {
    /// Write the MIDI files of this corpus, with its licence
    #[arg(long, value_name = "NAME", requires = "out")]
    export: Option<String>,

    /// The folder to write to
    #[arg(long, value_name = "FOLDER", requires = "export")]
    out: Option<PathBuf>,
}

/// Lists or exports corpora.
///
/// # Errors
/// If there is no such corpus, or the output cannot be written.
pub fn run(args: &Args, console: &Console) -> Result<()> {
    match (&args.export, &args.out) {
        (Some(name), Some(folder)) => export(name, folder, console),
        _ => show(console),
    }
}

fn show(console: &Console) -> Result<()> {
    console.say(format!(
        "{:<10} {:>7} {:>6} {:>6} {:>9}  {:<36} about",
        "name", "train", "valid", "test", "notes", "licence"
    ))?;
    for entry in list() {
        let [train, valid, test] = entry.pieces;
        let notes: usize = entry.notes.iter().sum();
        console.say(format!(
            "{:<10} {train:>7} {valid:>6} {test:>6} {notes:>9}  {:<36} {}",
            entry.name, entry.licence, entry.about
        ))?;
    }
    let describe = |entry: &Entry| {
        json!({
            "name": entry.name,
            "about": entry.about,
            "licence": entry.licence,
            "origin": entry.origin,
            "pieces": parts(entry.pieces),
            "notes": parts(entry.notes),
            "bytes": entry.packed_bytes(),
        })
    };
    let corpora: Vec<Value> = list().iter().map(describe).collect();
    console.report(&json!({ "corpora": corpora }))
}

fn parts(counts: [usize; 3]) -> Value {
    let named = Split::ALL.iter().zip(counts).map(|(split, n)| (split.name().to_owned(), json!(n)));
    Value::Object(named.collect())
}

fn export(name: &str, folder: &Path, console: &Console) -> Result<()> {
    let corpus = load(name)?;
    if folder.exists() && !folder.is_dir() {
        return Err(Error::unwritable(folder, "it is not a folder"));
    }
    let put = |path: PathBuf, bytes: &[u8]| {
        let mut file = Staged::create(&path)?;
        file.write_all(bytes).map_err(|e| Error::unwritable(&path, reason(&e)))?;
        // Thousands of small files that can be written again: no wait for the disk at each.
        file.publish()
    };
    for piece in &corpus.pieces {
        let path = folder.join(piece.split.name()).join(format!("{}.mid", piece.name));
        put(path, &piece.midi)?;
    }
    for (file, bytes) in corpus.documents()? {
        put(folder.join(file), &bytes)?;
    }
    let count = corpus.pieces.len();
    console
        .say(format!("{}: {count} MIDI files of {name}, and their licence", show_path(folder)))?;
    console.report(&json!({ "corpus": name, "folder": folder.to_string_lossy(), "pieces": count }))
}
