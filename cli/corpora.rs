//! The corpora that the program carries: packed in `corpora/`, embedded, read from memory.
//!
//! `corpora/pack.py` makes the packs and says what they look like. Each folder there has a README
//! with the licence and the origin of its pieces.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use lzma_rust2::XzReader;

use etude_tokenizer::PianoRoll;

use crate::error::{Error, Result};

/// A part of a corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Split {
    /// What a model learns from.
    Train,
    /// What tells when to stop.
    Valid,
    /// What is kept for the final figures.
    Test,
}

impl Split {
    /// All parts, in the usual order.
    pub const ALL: [Split; 3] = [Split::Train, Split::Valid, Split::Test];

    /// The name that folders carry.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Valid => "valid",
            Split::Test => "test",
        }
    }

    /// Finds a part by its folder's name; `validation` and `dev` are `valid`.
    pub fn from_name(name: &str) -> Option<Split> {
        match name {
            "train" => Some(Split::Train),
            "valid" | "validation" | "dev" => Some(Split::Valid),
            "test" => Some(Split::Test),
            _ => None,
        }
    }
}

/// What is known about a corpus without unpacking it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The name that `--data` takes.
    pub name: &'static str,
    /// What is in it.
    pub about: &'static str,
    /// Under which terms it may be passed on.
    pub licence: &'static str,
    /// Where it comes from.
    pub origin: &'static str,
    /// Pieces in train, valid and test.
    pub pieces: [usize; 3],
    /// Notes in train, valid and test.
    pub notes: [usize; 3],
    packed: &'static [u8],
    documents: &'static [(&'static str, &'static str)],
}

impl Entry {
    /// Size in the program, in bytes.
    pub fn packed_bytes(&self) -> usize {
        self.packed.len()
    }
}

/// A piece of a corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The file's name without its ending.
    pub name: String,
    /// Which part it belongs to.
    pub split: Split,
    /// A Standard MIDI File.
    pub midi: Vec<u8>,
}

/// An unpacked corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpus {
    /// The corpus's name.
    pub name: &'static str,
    /// The pieces in order of split folder, then name.
    pub pieces: Vec<Piece>,
}

impl Corpus {
    /// The files that belong beside the pieces: README, licence, credits, and for the chorales their
    /// two other forms.
    ///
    /// # Errors
    /// Only if the program itself is damaged.
    pub fn documents(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let entry = find(self.name).ok_or_else(|| damaged(self.name))?;
        let mut documents: Vec<(&str, Vec<u8>)> =
            entry.documents.iter().map(|(name, text)| (*name, text.as_bytes().to_vec())).collect();
        if self.name == "chorales" {
            documents.push(("satb.json", unpack(SATB)?));
            documents.push(("quarter.json", unpack(QUARTER)?));
        }
        Ok(documents)
    }
}

const SATB: &[u8] = include_bytes!("../corpora/chorales/satb.json.xz");
const QUARTER: &[u8] = include_bytes!("../corpora/chorales/quarter.json.xz");

const CORPORA: [Entry; 7] = [
    Entry {
        name: "folk",
        about: "Irish, Scottish and American melodies, one voice",
        licence: "public domain",
        origin: "O'Neill, Ryan and Aird collections by way of music21 10.5.1",
        pieces: [3370, 192, 184],
        notes: [585_123, 33_362, 31_699],
        packed: include_bytes!("../corpora/folk/pieces.xz"),
        documents: &[("README.md", include_str!("../corpora/folk/README.md"))],
    },
    Entry {
        name: "chorales",
        about: "Bach chorales, four voices, the standard split",
        licence: "public domain",
        origin: "JSB chorales, czhuang/JSB-Chorales-dataset",
        pieces: [229, 76, 77],
        notes: [49_300, 15_897, 17_525],
        packed: include_bytes!("../corpora/chorales/pieces.xz"),
        documents: &[("README.md", include_str!("../corpora/chorales/README.md"))],
    },
    Entry {
        name: "chorales-quarter",
        about: "the same chorales as the keys of each quarter note: the published likelihood table",
        licence: "public domain",
        origin: "JSB chorales, czhuang/JSB-Chorales-dataset",
        pieces: [229, 76, 77],
        notes: [33_916, 10_721, 11_804],
        packed: QUARTER,
        documents: &[("README.md", include_str!("../corpora/chorales-quarter/README.md"))],
    },
    Entry {
        name: "leadsheets",
        about: "songs, hymns and waltzes: melodies with their chords",
        licence: "MIT; the works public domain",
        origin: "OpenEWLD",
        pieces: [103, 10, 10],
        notes: [24_344, 3_120, 2_099],
        packed: include_bytes!("../corpora/leadsheets/pieces.xz"),
        documents: &[
            ("README.md", include_str!("../corpora/leadsheets/README.md")),
            ("LICENSE.OpenEWLD.txt", include_str!("../corpora/leadsheets/LICENSE.OpenEWLD.txt")),
        ],
    },
    Entry {
        name: "bands",
        about: "band music, many tracks, drums",
        licence: "BSD-3-Clause",
        origin: "Freedoom's soundtrack",
        pieces: [92, 10, 8],
        notes: [383_710, 31_905, 30_876],
        packed: include_bytes!("../corpora/bands/pieces.xz"),
        documents: &[
            ("README.md", include_str!("../corpora/bands/README.md")),
            ("LICENSE.freedoom.txt", include_str!("../corpora/bands/LICENSE.freedoom.txt")),
            ("CREDITS-MUSIC.txt", include_str!("../corpora/bands/CREDITS-MUSIC.txt")),
        ],
    },
    Entry {
        name: "grooves",
        about: "drum grooves played by people",
        licence: "CC BY 4.0",
        origin: "Groove MIDI Dataset v1.0.0, Google LLC",
        pieces: [826, 116, 126],
        notes: [307_623, 40_153, 42_880],
        packed: include_bytes!("../corpora/grooves/pieces.xz"),
        documents: &[
            ("README.md", include_str!("../corpora/grooves/README.md")),
            ("LICENSE.txt", include_str!("../corpora/grooves/LICENSE.txt")),
        ],
    },
    Entry {
        name: "piano",
        about: "piano performances with pedal, and eight ragtime scores",
        licence: "CC BY 4.0; the scores public domain",
        origin: "GiantMIDI-Piano; Mutopia Project",
        pieces: [49, 3, 7],
        notes: [205_867, 7_244, 14_906],
        packed: include_bytes!("../corpora/piano/pieces.xz"),
        documents: &[("README.md", include_str!("../corpora/piano/README.md"))],
    },
];

/// Lists the corpora.
pub fn list() -> &'static [Entry] {
    &CORPORA
}

/// Finds a corpus by its name.
pub fn find(name: &str) -> Option<&'static Entry> {
    CORPORA.iter().find(|entry| entry.name == name)
}

/// Unpacks a corpus.
///
/// # Errors
/// If there is no corpus of that name; the message lists the names there are.
pub fn load(name: &str) -> Result<Corpus> {
    let Some(entry) = find(name) else {
        let names: Vec<&str> = CORPORA.iter().map(|entry| entry.name).collect();
        return Err(Error::input(format!("no corpus {name:?}; there are {}", names.join(", "))));
    };
    if entry.name == QUARTER_NAME {
        return Ok(Corpus { name: entry.name, pieces: quarter_pieces()? });
    }
    let unpacked = unpack(entry.packed)?;
    let pieces = read_pack(&unpacked).ok_or_else(|| damaged(entry.name))?;
    Ok(Corpus { name: entry.name, pieces })
}

/// Chorales as voices: for each piece its 16th steps, each with the pitches of soprano, alto, tenor
/// and bass, -1 for silence. In order train, valid, test.
///
/// # Errors
/// Only if the program itself is damaged.
pub fn chorales_satb() -> Result<[Vec<Vec<[i16; 4]>>; 3]> {
    chorales(SATB)
}

/// Chorales as sets of keys: for each piece its quarter steps, each with the pitches that sound. The
/// published figures in nats a frame belong to this form. In order train, valid, test.
///
/// # Errors
/// Only if the program itself is damaged.
pub fn chorales_quarter() -> Result<[Vec<Vec<Vec<u8>>>; 3]> {
    chorales(QUARTER)
}

const QUARTER_NAME: &str = "chorales-quarter";

/// The key sets as MIDI files, a tick a quarter; a key that goes on is one note.
fn quarter_pieces() -> Result<Vec<Piece>> {
    let parts = chorales_quarter()?;
    let of_part = |(split, part): (Split, Vec<Vec<Vec<u8>>>)| {
        part.into_iter().enumerate().map(move |(number, steps)| Piece {
            name: format!("{number:03}"),
            split,
            midi: PianoRoll::from_pitches(1, &steps).0.to_score().to_midi(),
        })
    };
    Ok(Split::ALL.into_iter().zip(parts).flat_map(of_part).collect())
}

/// Tells, for the corpora of chorales, which test pieces are no near copies of training pieces, in
/// the order of the pieces; `None` for other corpora.
///
/// # Errors
/// Only if the program itself is damaged.
pub fn clean_test(name: &str) -> Result<Option<Vec<bool>>> {
    Ok(match name {
        "chorales" => Some(clean_test_chorales(&chorales_satb()?)),
        QUARTER_NAME => Some(clean_test_quarter(&chorales_quarter()?)),
        _ => None,
    })
}

/// As [`clean_test_chorales`], for the key sets: the highest key stands for the soprano.
pub fn clean_test_quarter(parts: &[Vec<Vec<Vec<u8>>>; 3]) -> Vec<bool> {
    let top = |step: &Vec<u8>| step.iter().max().map_or(-1, |&pitch| i16::from(pitch));
    let phrases = |piece: &Vec<Vec<u8>>| phrases(piece.iter().map(top));
    clean(parts[0].iter().map(phrases), parts[2].iter().map(phrases))
}

/// Tells which test chorales share less than half of their soprano's phrases with any one training
/// chorale; figures on these are free of near copies.
///
/// A phrase is a run of eight intervals. A held note counts once, a note sung again after a rest
/// twice.
///
/// # Source
/// The leak of the standard split, 28 of 77, was reported in "Transposed Twins".
pub fn clean_test_chorales(satb: &[Vec<Vec<[i16; 4]>>; 3]) -> Vec<bool> {
    let phrases = |piece: &Vec<[i16; 4]>| phrases(piece.iter().map(|step| step[0]));
    clean(satb[0].iter().map(phrases), satb[2].iter().map(phrases))
}

type Phrases = Vec<[i16; 8]>;

fn clean(train: impl Iterator<Item = Phrases>, test: impl Iterator<Item = Phrases>) -> Vec<bool> {
    let train: Vec<BTreeSet<[i16; 8]>> =
        train.map(|phrases| phrases.into_iter().collect()).collect();
    let shares_half = |phrases: &Phrases| {
        let shared = |other: &BTreeSet<_>| phrases.iter().filter(|p| other.contains(*p)).count();
        train.iter().any(|other| 2 * shared(other) >= phrases.len())
    };
    test.map(|phrases| !shares_half(&phrases)).collect()
}

/// Runs of eight intervals of a voice, -1 where it is silent.
fn phrases(voice: impl Iterator<Item = i16>) -> Phrases {
    let mut melody: Vec<i16> = voice.collect();
    melody.dedup();
    melody.retain(|&pitch| pitch >= 0);
    let intervals: Vec<i16> = melody.windows(2).map(|pair| pair[1] - pair[0]).collect();
    intervals.windows(8).filter_map(|phrase| phrase.try_into().ok()).collect()
}

fn chorales<T: serde::de::DeserializeOwned>(packed: &[u8]) -> Result<[T; 3]> {
    let unpacked = unpack(packed)?;
    let mut parts: BTreeMap<String, T> =
        serde_json::from_slice(&unpacked).map_err(|_| damaged("chorales"))?;
    let mut part = |split: Split| parts.remove(split.name()).ok_or_else(|| damaged("chorales"));
    Ok([part(Split::Train)?, part(Split::Valid)?, part(Split::Test)?])
}

fn unpack(packed: &[u8]) -> Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    XzReader::new(packed, false)
        .read_to_end(&mut unpacked)
        .map_err(|_| Error::failed("corpora: a built-in pack cannot be unpacked"))?;
    Ok(unpacked)
}

fn damaged(name: &str) -> Error {
    Error::failed(format!("corpora: the built-in corpus {name} is damaged"))
}

/// Cuts a pack into its pieces; `None` if it is not laid out as `pack.py` says.
fn read_pack(unpacked: &[u8]) -> Option<Vec<Piece>> {
    let index = unpacked.strip_prefix(b"ETUDE-CORPUS 1\n")?;
    let end = index.windows(2).position(|pair| pair == b"\n\n")?;
    let (index, mut bytes) = (std::str::from_utf8(&index[..end]).ok()?, &index[end + 2..]);
    let mut pieces = Vec::new();
    for line in index.lines() {
        let (path, length) = line.split_once('\t')?;
        let (split, file) = path.split_once('/')?;
        let (midi, rest) = bytes.split_at_checked(length.parse().ok()?)?;
        pieces.push(Piece {
            name: file.strip_suffix(".mid")?.to_owned(),
            split: Split::from_name(split)?,
            midi: midi.to_vec(),
        });
        bytes = rest;
    }
    bytes.is_empty().then_some(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_corpus_holds_the_pieces_that_its_entry_and_its_readme_promise() {
        for entry in list() {
            let corpus = load(entry.name).unwrap();
            let readme = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("corpora")
                .join(entry.name)
                .join("README.md");
            let readme = std::fs::read_to_string(readme).unwrap();
            for (i, split) in Split::ALL.into_iter().enumerate() {
                let pieces = corpus.pieces.iter().filter(|p| p.split == split).count();
                assert_eq!(pieces, entry.pieces[i], "{} {}", entry.name, split.name());
                let row = format!("| {} | {} | {} |", split.name(), pieces, entry.notes[i]);
                assert!(readme.contains(&row), "corpora/{}/README.md lacks {row}", entry.name);
            }
            let unique: BTreeSet<_> = corpus.pieces.iter().map(|p| (p.split, &p.name)).collect();
            assert_eq!(unique.len(), corpus.pieces.len());
            assert!(corpus.pieces.iter().all(|p| p.midi.starts_with(b"MThd")));
        }
    }

    #[test]
    fn all_packs_together_stay_under_six_megabytes() {
        let total: usize = list().iter().map(Entry::packed_bytes).sum();
        assert!(total < 6_000_000, "{total}");
    }

    #[test]
    fn both_forms_of_the_chorales_have_the_standard_split() {
        let satb = chorales_satb().unwrap();
        assert_eq!(satb.each_ref().map(Vec::len), [229, 76, 77]);
        let quarter = chorales_quarter().unwrap();
        assert_eq!(quarter.each_ref().map(Vec::len), [229, 76, 77]);
        let frames = quarter.map(|part| part.iter().map(Vec::len).sum::<usize>());
        assert_eq!(frames, [13_807, 4_602, 4_725]);
    }

    #[test]
    fn forty_nine_of_the_test_chorales_are_no_near_copies() {
        // The published count: 28 of 77 are near copies.
        let clean = clean_test_chorales(&chorales_satb().unwrap());
        assert_eq!(clean.iter().filter(|&&clean| clean).count(), 49);
    }

    #[test]
    fn an_unknown_corpus_is_told_with_the_known_names() {
        let error = load("folks").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("chorales"), "{error}");
    }

    #[test]
    fn a_damaged_pack_is_refused() {
        let good = b"ETUDE-CORPUS 1\ntest/a.mid\t2\ntrain/b.mid\t1\n\nxyz";
        assert_eq!(read_pack(good).unwrap().len(), 2);
        for end in 0..good.len() {
            assert_eq!(read_pack(&good[..end]), None, "cut at {end}");
        }
    }
}
