//! Damaged MIDI files by the million: nothing panics, nothing is taken without bound, and what is
//! read goes through every encoding and back.

mod common;

use common::Random;
use etude_tokenizer::{Note, Pedal, Score, Tempo, Track, encoding, schemes};

/// Small files of many kinds, as they are before the damage.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for part in ["corpus/weird", "bad_inputs/midi"] {
        let files = common::shared(part).map(|folder| common::midi_files(&folder));
        for path in files.unwrap_or_default() {
            let bytes = std::fs::read(&path).expect("a readable file");
            if bytes.len() <= 1500 {
                seeds.push(bytes);
            }
        }
    }
    // And some of our own, so that there is a test without the shared files.
    for ticks_per_quarter in [1, 24, 480, 32_767] {
        let mut random = Random(u64::from(ticks_per_quarter));
        let mut score = Score::new(ticks_per_quarter);
        for program in 0..3 {
            let note = |i: u64| Note {
                tick: i * 12,
                duration: 12,
                pitch: 40 + random.below(40) as u8,
                velocity: 1 + random.below(127) as u8,
            };
            let notes = (0..12).map(note).collect();
            let pedals = vec![Pedal { tick: 3, value: 127 }, Pedal { tick: 90, value: 0 }];
            let (name, is_drum) = (format!("part {program}"), program == 2);
            score.tracks.push(Track { name, program, is_drum, notes, pedals });
        }
        score.tempos.push(Tempo { tick: 24, micros_per_quarter: 400_000 });
        seeds.push(score.to_midi());
    }
    seeds
}

/// Damages a file in one to four ways.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            return;
        }
        let (size, at) = (bytes.len(), random.below(bytes.len()));
        let telling = [0, 1, 0x7f, 0x80, 0x81, 0x90, 0xb0, 0xc9, 0xf0, 0xf7, 0xfe, 0xff];
        match random.below(9) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes[at] = telling[random.below(telling.len())],
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..size.min(at + 1 + random.below(8)))),
            5 => {
                let put: Vec<u8> = (0..random.below(8)).map(|_| random.next() as u8).collect();
                drop(bytes.splice(at..at, put));
            }
            6 => {
                let copied = bytes[at..size.min(at + 1 + random.below(32))].to_vec();
                let to = random.below(size);
                drop(bytes.splice(to..to, copied));
            }
            7 => {
                let end = size.min(at + 1 + random.below(16));
                bytes[at..end].fill(if random.below(2) == 0 { 0 } else { 0xff });
            }
            _ => {
                let other = random.below(size);
                bytes.swap(at, other);
            }
        }
    }
}

fn items(score: &Score) -> usize {
    let pedals: usize = score.tracks.iter().map(|track| track.pedals.len()).sum();
    score.note_count() + pedals + score.tempos.len() + score.meters.len() + score.keys.len()
}

#[test]
fn a_million_damaged_files_are_refused_or_read_and_encoded() {
    let runs = common::runs(1_000_000);
    let seeds = seeds();
    let encodings: Vec<_> =
        schemes().iter().map(|(name, _)| encoding(name).expect("a listed scheme")).collect();
    let (mut read, mut warned, mut tokens, mut most_per_item) = (0u64, 0u64, 0u64, 0usize);
    for run in 0..runs {
        let mut random = Random(run);
        let mut bytes = seeds[random.below(seeds.len())].clone();
        damage(&mut bytes, &mut random);
        let Ok(reading) = Score::from_midi(&bytes) else { continue };
        read += 1;
        warned += u64::from(!reading.warnings.is_empty());
        for line in &reading.warnings {
            assert!(line.len() < 400 && !line.chars().any(char::is_control), "run {run}: {line}");
        }
        assert_eq!(reading.note_ons, reading.score.note_count(), "run {run}");
        // Tokens that tell each step of silence cost the most: those schemes take turns.
        let encoding = &encodings[run as usize % encodings.len()];
        let encoded = encoding.encode(&reading.score).expect("an encodable score");
        if encoding.name() == "events" {
            let per_item = encoded.tokens.len() / (items(&reading.score) + 2);
            most_per_item = most_per_item.max(per_item);
        }
        tokens += encoded.tokens.len() as u64;
        // Long silences in a scheme without a token for them: once in a while is enough.
        if encoded.tokens.len() < 5_000 || run % 64 == 0 {
            let decoded = encoding.decode(&encoded.tokens).expect("known tokens");
            assert!(decoded == encoding.quantise(&reading.score), "run {run}");
        }
        if run % 8 == 0 {
            let again = Score::from_midi(&reading.score.to_midi()).expect("a lawful file");
            assert_eq!(again.note_ons, reading.note_ons, "run {run}");
        }
    }
    println!(
        "{runs} damaged files from {} seeds: {read} read, {warned} of them with a warning; \
         {tokens} tokens, in events at most {most_per_item} a note or signature",
        seeds.len()
    );
    // Skips, bar, position, instrument, voice, pitch, velocity, holds, duration, with their powers
    // of two: 28 + 1 + 4 + 1 + 1 + 1 + 1 + 1 + 23 + 1.
    assert!(most_per_item <= 62);
}
