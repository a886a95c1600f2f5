//! Every music file of the corpora: read, written, read again, and through every scheme.

mod common;

use etude_tokenizer::{Score, encoding, read_file, schemes};
use std::collections::BTreeMap;

/// Counts of one scheme over one corpus.
#[derive(Default)]
struct Tally {
    notes: usize,
    kept: usize,
    tokens: usize,
    lost: BTreeMap<String, usize>,
}

fn scores(corpus: &str) -> Option<Vec<(String, Score)>> {
    let folder = common::shared("corpus")?.join(corpus);
    let (mut note_ons, mut warned) = (0, 0);
    let mut scores = Vec::new();
    for path in common::midi_files(&folder) {
        let reading = read_file(&path).expect("a readable file");
        assert_eq!(reading.note_ons, reading.score.note_count(), "{}", path.display());
        note_ons += reading.note_ons;
        warned += usize::from(!reading.warnings.is_empty());
        scores.push((path.display().to_string(), reading.score));
    }
    println!("{corpus}: {} files, {note_ons} notes, {warned} files with warnings", scores.len());
    Some(scores)
}

#[test]
fn every_file_reads_back_as_it_was_written() {
    for corpus in common::CORPORA {
        let Some(scores) = scores(corpus) else { return };
        for (path, score) in scores {
            let again = Score::from_midi(&score.to_midi()).expect("a lawful file");
            assert!(again.score == score, "{path} changed");
        }
    }
}

#[test]
fn decode_undoes_encode_on_every_file_and_scheme() {
    for corpus in common::CORPORA {
        let Some(scores) = scores(corpus) else { return };
        for (scheme, _) in schemes() {
            let encoding = encoding(scheme).expect("a listed scheme");
            let mut tally = Tally::default();
            for (path, score) in &scores {
                let quantised = encoding.quantise(score);
                let encoded = encoding.encode(score).expect("an encodable score");
                let decoded = encoding.decode(&encoded.tokens).expect("known tokens");
                assert!(decoded == quantised, "{scheme}: {path}: decode(encode(x)) != quantise(x)");
                let again = encoding.encode(&quantised).expect("an encodable score");
                assert!(again.lost.is_empty(), "{scheme}: {path}: lost twice: {:?}", again.lost);
                assert!(again.tokens == encoded.tokens, "{scheme}: {path}: tokens changed");
                tally.notes += score.note_count();
                tally.kept += quantised.note_count();
                tally.tokens += encoded.tokens.len();
                for (reason, count) in encoded.lost {
                    *tally.lost.entry(reason).or_default() += count;
                }
            }
            let Tally { notes, kept, tokens, lost } = tally;
            println!("  {scheme}: {kept} of {notes} notes, {tokens} tokens, lost: {lost:?}");
        }
    }
}
