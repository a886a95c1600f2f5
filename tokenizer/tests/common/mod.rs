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

/// Numbers that look random and are the same every time (SplitMix64).
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below a bound above 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Reads a MIDI file as strictly as the standard allows and counts its note-ons.
pub fn strict_note_ons(bytes: &[u8]) -> usize {
    assert_eq!(&bytes[..8], b"MThd\0\0\0\x06");
    let tracks = usize::from(u16::from_be_bytes([bytes[10], bytes[11]]));
    assert!(bytes[12] < 0x80 && (bytes[12], bytes[13]) != (0, 0), "no division");
    let (mut at, mut note_ons) = (14, 0);
    for _ in 0..tracks {
        assert_eq!(&bytes[at..at + 4], b"MTrk");
        let length = u32::from_be_bytes(bytes[at + 4..at + 8].try_into().expect("4 bytes"));
        let end = at + 8 + length as usize;
        note_ons += strict_track(&bytes[at + 8..end]);
        at = end;
    }
    assert_eq!(at, bytes.len(), "bytes after the last track");
    note_ons
}

fn strict_track(mut rest: &[u8]) -> usize {
    fn take<'a>(rest: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (head, tail) = rest.split_at(count);
        *rest = tail;
        head
    }
    fn length(rest: &mut &[u8]) -> usize {
        let mut value = 0;
        for _ in 0..4 {
            let byte = take(rest, 1)[0];
            value = value << 7 | usize::from(byte & 0x7f);
            if byte < 0x80 {
                return value;
            }
        }
        panic!("a number of more than 4 bytes");
    }
    let (mut running, mut note_ons) = (None, 0);
    loop {
        length(&mut rest);
        let status = match rest[0] {
            0x80.. => take(&mut rest, 1)[0],
            _ => running.expect("a running status"),
        };
        match status {
            0x80..=0xef => {
                running = Some(status);
                let data = take(&mut rest, if matches!(status, 0xc0..=0xdf) { 1 } else { 2 });
                assert!(data.iter().all(|&b| b < 0x80), "a data byte of 0x80 or more");
                note_ons += usize::from(status >> 4 == 9 && data[1] > 0);
            }
            0xff => {
                running = None;
                let kind = take(&mut rest, 1)[0];
                let count = length(&mut rest);
                take(&mut rest, count);
                match kind {
                    0x2f => {
                        assert!(count == 0 && rest.is_empty(), "an early end of track");
                        return note_ons;
                    }
                    0x51 => assert_eq!(count, 3),
                    0x58 => assert_eq!(count, 4),
                    0x59 => assert_eq!(count, 2),
                    0..0x80 => {}
                    _ => panic!("a meta event of type {kind}"),
                }
            }
            _ => panic!("a status of {status}"),
        }
    }
}

/// How often a random test runs: `ETUDE_FUZZ_RUNS`, else `full`, less with debug assertions on.
pub fn runs(full: u64) -> u64 {
    let told = std::env::var("ETUDE_FUZZ_RUNS").ok().and_then(|runs| runs.parse().ok());
    told.unwrap_or(if cfg!(debug_assertions) { full / 20 } else { full })
}
