//! Where the shared test files are, and what several tests do with them.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::{Path, PathBuf};

/// The folder of shared test files, or `None`, told, where it is missing.
pub fn shared(part: &str) -> Option<PathBuf> {
    let root = std::env::var_os("ETUDE_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let folder = root.join(part);
    if !folder.is_dir() {
        println!("skipped: no folder {} (set ETUDE_SHARED)", folder.display());
        return None;
    }
    Some(folder)
}

/// All MIDI files below a folder, in order of name.
pub fn midi_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).expect("a readable folder");
        for path in entries.map(|entry| entry.expect("a readable entry").path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "mid" || e == "rmi") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
/// The corpora of real music, without the folder of odd files.
pub const CORPORA: [&str; 8] = [
    "folk",
    "jsb",
    "leadsheets",
    "band",
    "groove",
    "piano_performance",
    "piano_scores_pd",
    "piano_sequenced_ccbysa",
];
