//! Input files: regular, of bounded size, with errors that name them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use etude_tokenizer::{Reading, read_file};

use crate::console::Console;
use crate::error::{Error, Result, reason};

/// Warnings about one file that are shown.
const MOST_WARNINGS: usize = 10;

/// Reads a MIDI file and warns about what had to be mended in it.
///
/// # Errors
/// If it cannot be read, or is no MIDI file; the message names it.
pub fn read_midi(path: &Path, console: &Console) -> Result<Reading> {
    let reading = read_file(path).map_err(|e| of_tokenizer(path, &e))?;
    console.warn_file(path, &reading.warnings, MOST_WARNINGS);
    Ok(reading)
}

/// Turns an error about a file's content into one that names the file.
pub fn of_tokenizer(path: &Path, error: &etude_tokenizer::Error) -> Error {
    let why = match error {
        etude_tokenizer::Error::File { why, .. } => why.clone(),
        other => other.to_string(),
    };
    Error::file(path, why.split(" (os error").next().unwrap_or_default())
}

/// Reads a whole file, or stdin for `-`, up to a ceiling in bytes.
///
/// # Errors
/// If this is no regular file, cannot be read, or is larger than the ceiling.
pub fn read_bytes(path: &Path, ceiling: u64) -> Result<Vec<u8>> {
    let too_large =
        || Error::file(path, format!("larger than {} MB, the most that is read", ceiling >> 20));
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        let stdin = io::stdin().lock();
        stdin
            .take(ceiling + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::file(path, reason(&e)))?;
    } else {
        // Asked before opening: opening a FIFO waits for somebody who writes to it.
        let check = |kind: io::Result<fs::Metadata>| match kind {
            Err(e) => Err(Error::file(path, reason(&e))),
            Ok(kind) if kind.is_dir() => Err(Error::file(path, "a folder where a file is wanted")),
            Ok(kind) if !kind.is_file() => Err(Error::file(path, "not a regular file")),
            Ok(kind) if kind.len() > ceiling => Err(too_large()),
            Ok(_) => Ok(()),
        };
        check(fs::metadata(path))?;
        let file = File::open(path).map_err(|e| Error::file(path, reason(&e)))?;
        check(file.metadata())?;
        file.take(ceiling + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::file(path, reason(&e)))?;
    }
    if bytes.len() as u64 > ceiling { Err(too_large()) } else { Ok(bytes) }
}
