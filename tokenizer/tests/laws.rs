//! The laws of every encoding, on scores and token streams that nobody would write.

mod common;

use common::Random;
use etude_tokenizer::{
    Encoding, Key, Marker, Meter, Note, Pedal, Score, Speed, Tempo, TokenTime, Track, encoding,
    schemes,
};
use proptest::prelude::*;

fn all() -> Vec<Box<dyn Encoding>> {
    schemes().iter().map(|(name, _)| encoding(name).expect("a listed scheme")).collect()
}

/// Reasons that tell of changes and of things that are no notes.
fn is_note_lost(reason: &str) -> bool {
    !(reason.starts_with("octave:")
        || reason.starts_with("merged:")
        || reason.starts_with("shortened:")
        || reason.contains("not a note"))
}

fn assert_valid(score: &Score) {
    assert!(score.ticks_per_quarter > 0);
    for track in &score.tracks {
        assert!(!track.notes.is_empty() && track.program < 128);
        for note in &track.notes {
            assert!(note.duration >= 1 && note.pitch < 128 && (1..128).contains(&note.velocity));
        }
        assert!(track.notes.is_sorted_by_key(|note| (note.tick, note.pitch)));
        assert!(track.pedals.is_sorted_by_key(|pedal| pedal.tick));
    }
    assert!(score.tempos.is_sorted_by(|a, b| a.tick < b.tick));
    assert!(score.meters.is_sorted_by(|a, b| a.tick < b.tick));
}

fn note() -> impl Strategy<Value = Note> {
    // Mostly near each other, so that notes collide; sometimes at the end of time.
    let tick = prop_oneof![20 => 0u64..2_000, 4 => 0u64..3_000_000, 1 => any::<u64>()];
    let duration = prop_oneof![20 => 0u64..1_000, 3 => 0u64..2_000_000, 1 => any::<u64>()];
    (tick, duration, 0u8..=130, any::<u8>()).prop_map(|(tick, duration, pitch, velocity)| Note {
        tick,
        duration,
        pitch,
        velocity,
    })
}

fn track() -> impl Strategy<Value = Track> {
    let notes = prop::collection::vec(note(), 0..30);
    let pedals = prop::collection::vec((0u64..3_000, any::<u8>()), 0..6);
    (notes, pedals, 0u8..4, prop::bool::weighted(0.2)).prop_map(
        |(mut notes, mut pedals, program, is_drum)| {
            notes.sort();
            pedals.sort();
            let pedals = pedals.into_iter().map(|(tick, value)| Pedal { tick, value }).collect();
            Track { name: "t".into(), program, is_drum, notes, pedals }
        },
    )
}

prop_compose! {
    fn score()(
        ticks_per_quarter in prop_oneof![Just(480u32), Just(24), Just(1), 0u32..40_000],
        tracks in prop::collection::vec(track(), 0..6),
        mut tempos in prop::collection::vec((0u64..4_000, 0u32..3_000_000), 0..4),
        mut meters in prop::collection::vec((0u64..4_000, any::<u8>(), 0u32..8), 0..4),
        mut keys in prop::collection::vec((0u64..100, -7i8..=7, any::<bool>()), 0..3),
        marker in 0u64..100,
    ) -> Score {
        let mut score = Score::new(ticks_per_quarter);
        tempos.sort();
        meters.sort();
        keys.sort();
        score.tracks = tracks;
        score.tempos.extend(tempos.iter().map(|&(tick, micros_per_quarter)| {
            Tempo { tick, micros_per_quarter }
        }));
        score.meters.extend(meters.iter().map(|&(tick, numerator, power)| {
            Meter { tick, numerator, denominator: 1 << power }
        }));
        score.keys.extend(keys.iter().map(|&(tick, sharps, minor)| Key { tick, sharps, minor }));
        score.markers.push(Marker { tick: marker, text: "A".into() });
        score
    }
}

const SCORES: u32 = if cfg!(debug_assertions) { 300 } else { 4_000 };

proptest! {
    #![proptest_config(ProptestConfig {
        cases: SCORES,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn decode_undoes_encode_on_any_score(score in score()) {
        for encoding in all() {
            let quantised = encoding.quantise(&score);
            assert_valid(&quantised);
            let encoded = encoding.encode(&score).unwrap();
            prop_assert_eq!(encoding.decode(&encoded.tokens).unwrap(), quantised.clone());
            prop_assert_eq!(encoding.quantise(&quantised), quantised.clone());
            // What was lost is told, and nothing is lost twice.
            let lost: usize =
                encoded.lost.iter().filter(|(r, _)| is_note_lost(r)).map(|(_, n)| n).sum();
            prop_assert_eq!(score.note_count(), quantised.note_count() + lost);
            let again = encoding.encode(&quantised).unwrap();
            prop_assert_eq!((again.tokens, again.lost), (encoded.tokens, vec![]));
        }
    }

    #[test]
    fn any_score_writes_a_file_that_strict_readers_take(score in score()) {
        let bytes = score.to_midi();
        prop_assert_eq!(common::strict_note_ons(&bytes), score.note_count());
        let smf = midly::Smf::parse(&bytes).unwrap();
        prop_assert_eq!(smf.tracks.len(), score.tracks.len() + 1);
        let reading = Score::from_midi(&bytes).unwrap();
        prop_assert_eq!(reading.note_ons, score.note_count());
        assert_valid(&reading.score);
    }

    #[test]
    fn a_lawful_melody_encodes_to_its_own_tokens(
        pieces in prop::collection::vec((2u32..38, 0usize..6, 0usize..4), 1..40),
        before in 0usize..9,
    ) {
        // Notes of one step and more, each followed by another or by a note-off and a rest.
        let mut tokens = vec![0; before];
        for (i, &(pitch, held, rest)) in pieces.iter().enumerate() {
            tokens.push(pitch);
            tokens.extend(vec![0; held]);
            if rest > 0 && i + 1 < pieces.len() {
                tokens.push(1);
                tokens.extend(vec![0; rest - 1]);
            }
        }
        let melody = encoding("melody").unwrap();
        let score = melody.decode(&tokens).unwrap();
        prop_assert_eq!(score.note_count(), pieces.len());
        prop_assert_eq!(melody.encode(&score).unwrap().tokens, tokens);
    }
}

/// Streams of tokens drawn evenly, and of tokens that came from encoding.
#[test]
fn any_stream_of_tokens_is_music_that_every_reader_takes() {
    let runs = common::runs(1_000_000) as usize;
    let encodings = all();
    let mut random = Random(2);
    let (mut notes, mut streams) = (0, 0);
    for run in 0..runs {
        let encoding = &encodings[run % encodings.len()];
        let length = random.below(48);
        let size = encoding.vocab_size();
        let tokens: Vec<u32> = (0..length).map(|_| random.below(size) as u32).collect();
        let score = encoding.decode(&tokens).expect("known tokens");
        assert_valid(&score);
        assert!(score.note_count() <= encoding.notes_of_token() * tokens.len());
        notes += score.note_count();
        streams += 1;
        // A stream that was decoded once is lawful when encoded: from there on nothing changes.
        let lawful = encoding.encode(&score).expect("an encodable score");
        assert!(lawful.lost.is_empty(), "{:?}", lawful.lost);
        assert!(encoding.decode(&lawful.tokens).expect("known tokens") == score);
        let bytes = score.to_midi();
        assert_eq!(common::strict_note_ons(&bytes), score.note_count());
        let reading = Score::from_midi(&bytes).expect("a lawful file");
        assert_eq!(reading.note_ons, score.note_count());
        if run % 16 == 0 {
            let smf = midly::Smf::parse(&bytes).expect("a lawful file");
            assert_eq!(smf.tracks.len(), score.tracks.len() + 1);
        }
    }
    println!("{streams} token streams decoded, written and read again, {notes} notes");
}

#[test]
fn the_registry_knows_its_schemes_and_names_every_token() {
    for (name, line) in schemes() {
        let encoding = encoding(name).expect("a listed scheme");
        assert_eq!(encoding.name(), *name);
        assert!(!line.is_empty());
        let size = encoding.vocab_size() as u32;
        let names: std::collections::HashSet<_> =
            (0..size).map(|token| encoding.token_name(token)).collect();
        assert_eq!(names.len(), size as usize);
        assert!(encoding.decode(&[size]).is_err());
        assert_eq!(encoding.decode(&[]).expect("no tokens").note_count(), 0);
    }
    assert!(encoding("unheard-of").is_none());
}

/// What encodings say of themselves, on a scale in C with a beat of drums.
#[test]
fn keys_speeds_and_velocities_are_in_the_tokens_of_those_that_say_so() {
    let mut score = Score::new(4);
    let note = |tick, pitch| Note { tick, duration: 4, pitch, velocity: 60 };
    let scale = [60, 62, 64, 65, 67, 69, 71, 72, 67, 64, 60, 60];
    let scale = scale.into_iter().enumerate().map(|(t, pitch)| note(4 * t as u64, pitch));
    let beat = (0..12).map(|t| note(4 * t, if t % 2 == 0 { 36 } else { 38 }));
    score.tracks.push(Track { notes: scale.collect(), ..Track::default() });
    score.tracks.push(Track { notes: beat.collect(), is_drum: true, ..Track::default() });
    score.tempos.push(Tempo { tick: 0, micros_per_quarter: 500_000 });
    let mut louder = score.clone();
    louder.tracks.iter_mut().flat_map(|t| &mut t.notes).for_each(|n| n.velocity += 30);
    let shifted = etude_tokenizer::transpose(&score, 2).unwrap();
    let slower = etude_tokenizer::stretch(&score, 1.25).unwrap();
    for encoding in all() {
        let tokens = |score: &Score| encoding.encode(score).unwrap().tokens;
        let (name, plain) = (encoding.name(), tokens(&score));
        assert_eq!(tokens(&shifted) != plain, encoding.has_key(), "{name}");
        assert_eq!(tokens(&slower) != plain, encoding.speed() != Speed::None, "{name}");
        assert_eq!(tokens(&louder) != plain, encoding.has_velocity(), "{name}");
        let is_time = |t| matches!(encoding.token_time(t), TokenTime::Centiseconds(_));
        let in_time = (0..encoding.vocab_size() as u32).any(is_time);
        assert_eq!(in_time, encoding.speed() == Speed::Time, "{name}");
    }
}
