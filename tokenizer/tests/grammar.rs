//! Grammars and encodings agree: what is drawn under a mask loses nothing in decoding and encodes
//! to itself, and what encoding writes is lawful.

mod common;

use common::Random;
use etude_tokenizer::grammar::{Grammar, PerformanceGrammar};
use etude_tokenizer::{
    Encoding, Key, Meter, Note, Pedal, PianoRollTokens, Polyphony, Satb, Score, Tempo, Track,
    encoding, schemes,
};

fn all() -> impl Iterator<Item = Box<dyn Encoding>> {
    schemes().iter().map(|(name, _)| encoding(name).expect("a listed scheme"))
}

/// A family of tokens with one meaning: the name up to its number.
fn family(encoding: &dyn Encoding, token: u32) -> String {
    let name = encoding.token_name(token);
    name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '/').to_string()
}

/// The families of a vocabulary, as numbers.
fn families(encoding: &dyn Encoding) -> Vec<usize> {
    let mut known: Vec<String> = Vec::new();
    let mut place = |name: String| match known.iter().position(|other| *other == name) {
        Some(place) => place,
        None => {
            known.push(name);
            known.len() - 1
        }
    };
    // Combinations of drums are one family.
    let is_drums = encoding.name().starts_with("drums");
    let tokens = 0..encoding.vocab_size() as u32;
    tokens.map(|token| if is_drums { 0 } else { place(family(encoding, token)) }).collect()
}

/// Draws a lawful token: first a family, so that rare families come up, then one of it.
fn draw(allowed: &[bool], families: &[usize], random: &mut Random) -> Option<u32> {
    let count = families.iter().max().map_or(0, |last| last + 1);
    let mut there = vec![false; count];
    families
        .iter()
        .zip(allowed)
        .filter(|(_, allowed)| **allowed)
        .for_each(|(f, _)| there[*f] = true);
    let there: Vec<usize> = (0..count).filter(|&family| there[family]).collect();
    if there.is_empty() {
        return None;
    }
    let family = there[random.below(there.len())];
    let tokens: Vec<usize> =
        (0..allowed.len()).filter(|&token| allowed[token] && families[token] == family).collect();
    Some(tokens[random.below(tokens.len())] as u32)
}

/// Goes on with what ends things until the sequence is complete.
fn complete(encoding: &dyn Encoding, grammar: &mut dyn Grammar, tokens: &mut Vec<u32>) {
    let ends = ["END", "STEP_END", "NOTE_OFF", "TIME_SHIFT", "NOTE_ON", "DURATION", "VELOCITY"];
    let opens = [
        "START",
        "BAR",
        "POSITION",
        "TIME_SIGNATURE",
        "TEMPO",
        "PITCH",
        "VOICE",
        "PROGRAM",
        "ALTO",
        "TENOR",
        "BASS",
    ];
    let heads = ["SHIFT_MAJOR", "SHIFT_MINOR"];
    // Voices drawn at random need not be the first ones, which nothing mends later.
    let is_events = encoding.name().starts_with("events");
    let most = if is_events { 8 } else { 10_000 };
    for _ in 0..most {
        if grammar.is_complete() {
            return;
        }
        let next = ends.iter().chain(&opens).chain(&heads).find_map(|start| {
            (0..grammar.vocab_size() as u32)
                .find(|&t| grammar.allows(t) && encoding.token_name(t).starts_with(start))
        });
        let Some(next) = next else { return };
        tokens.push(next);
        grammar.push(next);
    }
    assert!(is_events, "no end");
}

/// What encoding writes of tokens that are complete.
fn canonical(encoding: &dyn Encoding, tokens: &[u32]) -> Vec<u32> {
    let mut tokens = tokens.to_vec();
    match encoding.name() {
        "drums" | "drums-one" => {
            tokens
                .truncate(tokens.iter().rposition(|&token| token != 0).map_or(0, |last| last + 1));
        }
        "pianoroll" | "pianoroll-quarter" => {
            let silent = [PianoRollTokens::STEP_END; 2];
            while tokens.ends_with(&silent) || tokens == silent[..1] {
                tokens.pop();
            }
        }
        "satb" | "satb-infill" => {
            while tokens.ends_with(&[0, 1, 2, 3].map(|voice| voice * Satb::EACH)) {
                tokens.truncate(tokens.len() - 4);
            }
        }
        "polyphony" => {
            let steps = |end: &[u32]| end.ends_with(&[Polyphony::STEP_END, Polyphony::STEP_END]);
            tokens.pop();
            while steps(&tokens) || tokens == [Polyphony::START, Polyphony::STEP_END] {
                tokens.pop();
            }
            tokens.push(Polyphony::END);
        }
        _ => {}
    }
    tokens
}

/// The length of a melody up to the end of its last note, in tokens.
fn melody_end(encoding: &dyn Encoding, tokens: &[u32]) -> usize {
    let score = encoding.decode(tokens).expect("known tokens");
    score.end_tick() as usize
}

#[test]
fn what_is_drawn_under_a_mask_encodes_to_itself() {
    let mut random = Random(5);
    let runs = common::runs(400);
    for encoding in all() {
        let families = families(&*encoding);
        let mut allowed = vec![false; encoding.vocab_size()];
        let (mut drawn, mut whole) = (0, 0);
        for run in 0..runs {
            let mut grammar = encoding.grammar();
            let mut tokens = Vec::new();
            // Half of the pieces have one voice to a program, and no pedal.
            let is_left_out = |token: usize| {
                let name = encoding.token_name(token as u32);
                run % 2 == 0 && (name.starts_with("VOICE_") || name.starts_with("PEDAL_"))
            };
            let left_out: Vec<usize> = match encoding.name() {
                "events" | "events-infill" => {
                    (0..allowed.len()).filter(|&token| is_left_out(token)).collect()
                }
                _ => Vec::new(),
            };
            for _ in 0..random.below(120) {
                grammar.mask(&mut allowed);
                left_out.iter().for_each(|&token| allowed[token] = false);
                let Some(token) = draw(&allowed, &families, &mut random) else { break };
                tokens.push(token);
                grammar.push(token);
            }
            complete(&*encoding, &mut *grammar, &mut tokens);
            let onsets = tokens.iter().filter(|&&token| encoding.is_onset(token)).count();
            let score = encoding.decode(&tokens).expect("known tokens");
            let name = encoding.name();
            let one_token_a_note = !["drums", "melody-", "pianoroll", "satb"]
                .iter()
                .any(|start| name.starts_with(start));
            if one_token_a_note {
                assert_eq!(score.note_count(), onsets, "{name}: {tokens:?}");
            }
            let again = encoding.encode(&score).expect("an encodable score");
            assert_eq!(again.lost, []);
            drawn += 1;
            // Voices drawn at random need not be the first ones; then only the notes count.
            if !grammar.is_complete() {
                continue;
            }
            whole += 1;
            let expected = match name.starts_with("melody") {
                true => tokens[..melody_end(&*encoding, &tokens)].to_vec(),
                false => canonical(&*encoding, &tokens),
            };
            assert_eq!(again.tokens, expected, "{name}: {tokens:?}");
        }
        println!("{}: {drawn} drawn, {whole} complete", encoding.name());
        assert!(whole > drawn / 3, "{}", encoding.name());
    }
}

fn score(random: &mut Random) -> Score {
    let mut score = Score::new([4, 24, 96, 480][random.below(4)]);
    let quarter = score.ticks_per_quarter as usize;
    for _ in 0..random.below(5) {
        let mut notes: Vec<Note> = (0..random.below(40))
            .map(|_| Note {
                tick: random.below(quarter * 16) as u64,
                duration: 1 + random.below(quarter * 8) as u64,
                pitch: 30 + random.below(60) as u8,
                velocity: 1 + random.below(127) as u8,
            })
            .collect();
        notes.sort();
        let mut pedals: Vec<Pedal> = (0..random.below(8))
            .map(|_| Pedal {
                tick: random.below(quarter * 20) as u64,
                value: random.below(128) as u8,
            })
            .collect();
        pedals.sort_by_key(|pedal| pedal.tick);
        let (program, is_drum) = (random.below(4) as u8, random.below(5) == 0);
        score.tracks.push(Track { program, is_drum, notes, pedals, ..Track::default() });
    }
    for _ in 0..random.below(4) {
        let tick = random.below(quarter * 16) as u64;
        let (numerator, denominator) = (1 + random.below(16) as u8, 1 << random.below(5));
        score.meters.push(Meter { tick, numerator, denominator });
        score.keys.push(Key {
            tick,
            sharps: random.below(15) as i8 - 7,
            minor: tick.is_multiple_of(2),
        });
        let micros_per_quarter = 200_000 + random.below(800_000) as u32;
        score.tempos.push(Tempo { tick, micros_per_quarter });
    }
    score.meters.sort_by_key(|meter| meter.tick);
    score.keys.sort_by_key(|key| key.tick);
    score.tempos.sort_by_key(|tempo| tempo.tick);
    score
}

fn assert_lawful(encoding: &dyn Encoding, grammar: &mut dyn Grammar, tokens: &[u32]) {
    for (place, &token) in tokens.iter().enumerate() {
        let (name, said) = (encoding.name(), encoding.token_name(token));
        assert!(grammar.allows(token), "{name}: {said} at place {place} of {tokens:?}");
        grammar.push(token);
    }
    assert!(grammar.is_complete(), "{}: {tokens:?}", encoding.name());
}

#[test]
fn what_encoding_writes_is_lawful() {
    let mut random = Random(6);
    for _ in 0..common::runs(400) {
        let score = score(&mut random);
        for encoding in all() {
            let tokens = encoding.encode(&score).expect("an encodable score").tokens;
            match encoding.name() {
                name @ ("performance" | "performance-dynamics") => {
                    let dynamics = name == "performance-dynamics";
                    let mut grammar = PerformanceGrammar::new(dynamics).with_restrikes();
                    assert_lawful(&*encoding, &mut grammar, &tokens);
                }
                _ => assert_lawful(&*encoding, &mut *encoding.grammar(), &tokens),
            }
        }
    }
}

#[test]
fn what_is_drawn_with_restrikes_encodes_to_itself() {
    let mut random = Random(7);
    let encoding = encoding("performance").expect("a scheme");
    let families = families(&*encoding);
    let mut allowed = vec![false; encoding.vocab_size()];
    for _ in 0..common::runs(200) {
        let mut grammar = PerformanceGrammar::new(false).with_restrikes();
        let mut tokens = Vec::new();
        for _ in 0..random.below(200) {
            grammar.mask(&mut allowed);
            // Few pitches, so that they are struck again.
            for pitch in (0..256).filter(|token| token % 128 > 3) {
                allowed[pitch] = false;
            }
            let Some(token) = draw(&allowed, &families, &mut random) else { break };
            tokens.push(token);
            grammar.push(token);
        }
        complete(&*encoding, &mut grammar, &mut tokens);
        let score = encoding.decode(&tokens).expect("known tokens");
        assert_eq!(encoding.encode(&score).expect("an encodable score").tokens, tokens);
    }
}

#[test]
fn any_tokens_can_be_pushed_and_a_copy_goes_its_own_way() {
    let mut random = Random(8);
    for encoding in all() {
        let size = encoding.vocab_size();
        let (mut mask, mut again) = (vec![false; size], vec![false; size]);
        for _ in 0..common::runs(200) {
            let mut grammar = encoding.grammar();
            assert_eq!(grammar.vocab_size(), size);
            for _ in 0..random.below(200) {
                grammar.push(random.below(size) as u32);
            }
            assert!(!grammar.allows(size as u32) && !grammar.allows(u32::MAX));
            grammar.mask(&mut mask);
            let mut other = grammar.copy();
            other.push(random.below(size) as u32);
            grammar.mask(&mut again);
            assert_eq!(mask, again);
            other.reset();
            other.mask(&mut mask);
            encoding.grammar().mask(&mut again);
            assert_eq!(mask, again);
        }
    }
}
