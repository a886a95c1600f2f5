//! The likelihood table of JSB chorales by quarter notes: data, baselines and budget are those of
//! the published figures.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use etude::command::train::scores;
use etude::{corpora, data};
use etude_models::data::{Baselines, Conditions, Dataset, KEYS, Pieces};
use etude_models::registry::{ModelConfig, preset_config};
use etude_tokenizer::PianoRollTokens;

#[test]
fn counting_keys_reaches_the_published_baselines() {
    let loaded = data::load(&[PathBuf::from("chorales-quarter")]).unwrap();
    let encoding = PianoRollTokens::quarters();
    let set = Dataset::new(&scores(loaded), &encoding, Conditions::Keys, 0).unwrap();
    assert_eq!(set.lost, []);
    let steps = |pieces: &Pieces| -> usize {
        pieces.iter().map(|piece| PianoRollTokens::frames(&piece.unwrap().tokens).len()).sum()
    };
    assert_eq!([&set.train, &set.valid, &set.test].map(steps), [13_807, 4_602, 4_725]);
    // Known to three digits after the point.
    let baselines = Baselines::new(&set.train, &set.test, KEYS).unwrap();
    assert!((baselines.marginal - 11.091).abs() < 0.0006, "{baselines:?}");
    assert!((baselines.markov - 10.491).abs() < 0.0006, "{baselines:?}");
}

#[test]
fn the_networks_of_the_table_have_at_most_300_000_weights() {
    for name in [
        "rnn/pianoroll",
        "gru/pianoroll",
        "lstm/pianoroll",
        "rnn/pianoroll-nade",
        "lstm/pianoroll-nade-quarter",
    ] {
        let config = ModelConfig::take(&mut preset_config(name).unwrap()).unwrap();
        let count = config.parameter_count().unwrap();
        assert!((200_000..=300_000).contains(&count), "{name}: {count}");
    }
}

#[test]
fn key_sets_come_back_from_their_files_and_near_copies_are_known() {
    let parts = corpora::chorales_quarter().unwrap();
    let corpus = corpora::load("chorales-quarter").unwrap();
    assert_eq!(corpus.pieces.len(), parts.iter().map(Vec::len).sum::<usize>());
    for (piece, steps) in corpus.pieces.iter().zip(parts.iter().flatten()) {
        let score = etude_tokenizer::Score::from_midi(&piece.midi).unwrap().score;
        let heard = etude_tokenizer::PianoRoll::of(&score, 1, etude_tokenizer::Repeats::Held);
        let wanted = etude_tokenizer::PianoRoll::from_pitches(1, steps).0;
        assert_eq!(heard, (wanted, vec![]));
    }
    // At quarter notes more sopranos are alike than the 28 of the sixteenths.
    let clean = corpora::clean_test("chorales-quarter").unwrap().unwrap();
    assert_eq!((clean.len(), clean.iter().filter(|clean| **clean).count()), (77, 40));
    assert_eq!(corpora::clean_test("folk").unwrap(), None);
}
