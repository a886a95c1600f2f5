//! The built-in corpora are what their sources say: counts, bytes, parts.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use etude::corpora::{Split, list, load};
use etude_tokenizer::Score;

#[test]
fn every_corpus_holds_as_many_notes_as_its_entry_promises() {
    for entry in list() {
        let mut notes = [0; 3];
        for piece in load(entry.name).unwrap().pieces {
            let reading = Score::from_midi(&piece.midi).unwrap();
            notes[piece.split as usize] += reading.score.note_count();
        }
        assert_eq!(notes, entry.notes, "{}", entry.name);
    }
}

#[test]
fn every_piece_is_byte_for_byte_the_file_of_its_source() {
    let given = std::env::var_os("ETUDE_SHARED").map(PathBuf::from);
    let shared = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    let sources = shared.join("corpus");
    if !sources.is_dir() {
        println!("skipped: no folder of test material");
        return;
    }
    let folders = [
        ("folk", "folk"),
        ("chorales", "jsb"),
        ("leadsheets", "leadsheets"),
        ("bands", "band"),
        ("grooves", "groove"),
        ("piano", "piano_performance"),
    ];
    for (name, folder) in folders {
        let corpus = load(name).unwrap();
        for piece in &corpus.pieces {
            let file = match piece.name.strip_prefix("score_") {
                Some(score) => format!("piano_scores_pd/{score}.mid"),
                None => format!("{folder}/{}/{}.mid", piece.split.name(), piece.name),
            };
            let bytes = std::fs::read(sources.join(&file)).expect(&file);
            assert!(bytes == piece.midi, "{file}");
        }
        for split in Split::ALL {
            let there = std::fs::read_dir(sources.join(folder).join(split.name())).unwrap().count();
            let own = |p: &&etude::corpora::Piece| !p.name.starts_with("score_");
            let packed = corpus.pieces.iter().filter(|p| p.split == split).filter(own).count();
            assert_eq!(packed, there, "{name} {}", split.name());
        }
    }
}
