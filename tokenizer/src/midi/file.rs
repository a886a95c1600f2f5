//! Reading a file by its path, bounded: no FIFO that waits for ever, no endless device.

use super::read::Reading;
use crate::{Error, Result, Score};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Larger files are refused.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

/// Reads a MIDI file by its path.
///
/// # Errors
/// [`Error::File`], with the path and the fault, if this is no regular file, is larger than
/// [`MAX_FILE_BYTES`], cannot be read, or is refused by [`Score::from_midi`].
pub fn read_file(path: &Path) -> Result<Reading> {
    let bytes = read_bytes(path).map_err(|why| named(path, why))?;
    Score::from_midi(&bytes).map_err(|error| match error {
        Error::Midi { why } => named(path, why),
        other => other,
    })
}

fn read_bytes(path: &Path) -> std::result::Result<Vec<u8>, String> {
    // The kind is asked before opening: opening a FIFO waits for someone to write to it.
    let asked = std::fs::metadata(path).map_err(|e| e.to_string())?;
    check(&asked)?;
    let file = File::open(path).map_err(|e| e.to_string())?;
    // Asked again of what was opened: the path may have come to mean another file.
    let opened = file.metadata().map_err(|e| e.to_string())?;
    check(&opened)?;
    let mut bytes = Vec::with_capacity(opened.len() as usize);
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

fn check(metadata: &std::fs::Metadata) -> std::result::Result<(), String> {
    if metadata.is_dir() {
        return Err("a folder where a file is wanted".to_string());
    }
    if !metadata.is_file() {
        return Err("not a regular file".to_string());
    }
    match metadata.len() {
        bytes if bytes > MAX_FILE_BYTES => Err(too_large(bytes)),
        _ => Ok(()),
    }
}

fn too_large(bytes: u64) -> String {
    format!("{bytes} bytes; at most {MAX_FILE_BYTES} are read")
}

/// The path may hold anything but NUL: control characters are shown escaped.
fn named(path: &Path, why: String) -> Error {
    let mut shown = String::new();
    for c in path.to_string_lossy().chars() {
        match c {
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    Error::File { path: shown, why }
}
