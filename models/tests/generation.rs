//! Writing: what the grammar forbids never comes, searches find likelier pieces, primers and voices are
//! kept, whatever the encoding.

use etude_models::generate::{Around, Length, Request, Writer};
use etude_models::registry::{ModelConfig, preset_config};
use etude_models::sampling::Sampling;
use etude_models::{Generator, Model, Part, Precision, Result, Scored, config, registry};
use etude_tokenizer::chord::Chord;
use etude_tokenizer::{Meter, Note, Polyphony, Satb, Score, Track, schemes};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const FOUR: Meter = Meter { tick: 0, numerator: 4, denominator: 4 };

fn config(name: &str, sets: &[&str]) -> ModelConfig {
    let mut map = preset_config(name).unwrap();
    for set in ["hidden=12", "conditions=none"].iter().chain(sets) {
        config::set(&mut map, set, &registry::model_keys()).unwrap();
    }
    ModelConfig::take(&mut map).unwrap()
}

fn speaking(encoding: &str) -> ModelConfig {
    config("gru/basic", &[&format!("encoding={encoding}")])
}

fn writer(config: &ModelConfig, seed: u64) -> Writer {
    Writer::new(config, &*config.build(seed).unwrap()).unwrap()
}

fn request(seed: u64) -> Request {
    Request {
        length: Length::Bars(4),
        meter: FOUR,
        tempo_bpm: 120.0,
        primer: None,
        sampling: Sampling::default(),
        seed,
    }
}

/// A melody in steps: tick, duration, pitch.
fn tune(notes: &[(u64, u64, u8)]) -> Score {
    let note = |&(tick, duration, pitch)| Note { tick, duration, pitch, velocity: 100 };
    let mut score = Score::new(4);
    score.tracks.push(Track { notes: notes.iter().map(note).collect(), ..Track::default() });
    score
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    /// An untrained model says anything at all; under the grammar it says what decoding keeps.
    #[test]
    fn what_is_written_is_lawful_in_every_encoding(seed: u64, temperature in 0.3f32..3.0, beam in 1usize..3) {
        for (name, _) in schemes() {
            let config = speaking(name);
            let encoding = config.encoding().unwrap();
            let sampling = Sampling { temperature, beam, branch: beam, iteration: 7, ..Sampling::default() };
            let length = if name.starts_with("performance") { Length::Seconds(6.0) } else { Length::Bars(3) };
            let request = Request { sampling, length, ..request(seed) };
            let piece = writer(&config, seed ^ 5).write(&request).unwrap();
            let mut grammar = encoding.grammar();
            for token in &piece.tokens {
                prop_assert!(grammar.allows(*token), "{}: {:?}", name, piece.tokens);
                grammar.push(*token);
            }
            let again = encoding.encode(&encoding.decode(&piece.tokens).unwrap()).unwrap();
            prop_assert_eq!(again.lost, vec![], "{}", name);
            let onsets = piece.tokens.iter().filter(|t| encoding.is_onset(**t)).count();
            // A key of a piano roll that goes on is one note, and so is that of a voice.
            let counts =
                ["drums", "melody-", "pianoroll", "satb"].iter().all(|s| !name.starts_with(s));
            if counts {
                // A note that began at the very end has no time to sound.
                prop_assert_eq!(piece.score.note_count(), onsets, "{}", name);
            }
        }
    }
}

/// The log-likelihood of a piece under its model.
fn nats(config: &ModelConfig, tokens: &[u32], seed: u64) -> f64 {
    let mut generator = config.build(seed).unwrap().generator(Precision::F32).unwrap();
    let input = config.conditions.input(config.encoding().unwrap().vocab_size(), FOUR, 0);
    let mut rows = vec![0; input.active()];
    let nats = tokens.iter().enumerate().map(|(t, token)| {
        input.fill(tokens, t, &mut rows);
        let logits = generator.step(&rows).unwrap();
        let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        f64::from(logits[*token as usize]) - sum.ln()
    });
    nats.sum()
}

#[test]
fn a_search_finds_likelier_pieces() {
    let config = speaking("melody");
    let mean = |sampling: &Sampling| -> f64 {
        let each = (0..20).map(|seed| {
            let request = Request { sampling: sampling.clone(), ..request(seed) };
            nats(&config, &writer(&config, 3).write(&request).unwrap().tokens, 3)
        });
        each.sum::<f64>() / 20.0
    };
    let plain = mean(&Sampling::default());
    let wide = mean(&Sampling { beam: 4, branch: 3, iteration: 2, ..Sampling::default() });
    let branches = mean(&Sampling { beam: 1, branch: 8, iteration: 4, ..Sampling::default() });
    // Drawn from 64 nearly even choices, one piece's sum has a spread below 3 nats: 20 pieces 0.7.
    assert!(wide > plain + 3.0 && branches > plain + 3.0, "{plain} {wide} {branches}");
}

/// A model whose generator cannot be set back to a state: a search has to read tokens again, those
/// alone that are new if it can be rewound.
struct Forgetful {
    model: Box<dyn Model>,
    rewinds: bool,
    steps: Arc<AtomicUsize>,
}
struct Replayed {
    generator: Box<dyn Generator>,
    rewinds: bool,
    steps: Arc<AtomicUsize>,
}

impl Forgetful {
    fn new(model: Box<dyn Model>, rewinds: bool) -> Forgetful {
        Forgetful { model, rewinds, steps: Arc::default() }
    }
}

impl etude_engine::Module for Forgetful {
    fn visit(&self, f: &mut dyn FnMut(&etude_engine::Param)) {
        self.model.visit(f);
    }
    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut etude_engine::Param)) {
        self.model.visit_mut(f);
    }
}

impl Model for Forgetful {
    fn loss(
        &self,
        batch: &etude_models::data::Batch,
        dropout: Option<&mut etude_engine::Rng>,
    ) -> Result<etude_engine::Tensor> {
        self.model.loss(batch, dropout)
    }
    fn score(&self, batch: &etude_models::data::Batch) -> Result<Scored> {
        self.model.score(batch)
    }
    fn generator(&self, precision: Precision) -> Result<Box<dyn Generator>> {
        let (generator, rewinds) = (self.model.generator(precision)?, self.rewinds);
        Ok(Box::new(Replayed { generator, rewinds, steps: self.steps.clone() }))
    }
    fn parts(&self) -> Vec<Part> {
        self.model.parts()
    }
}

impl Generator for Replayed {
    fn reset(&mut self) {
        self.generator.reset();
    }
    fn step(&mut self, rows: &[u32]) -> Result<&[f32]> {
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.generator.step(rows)
    }
    fn rewind(&mut self, place: usize) -> bool {
        self.rewinds && self.generator.rewind(place)
    }
}

#[test]
fn going_back_to_a_state_is_reading_the_tokens_again() {
    for (name, sets) in [
        ("rnn/basic", &[][..]),
        ("gru/basic", &["embedding=5"]),
        ("lstm/melody-basic", &[]),
        ("lstm/melody-attention", &["attention=6"]),
        ("lstm/melody-attention", &["attention=6", "layers=1"]),
        ("gru/basic", &["cell=reset-before"]),
        ("lstm/melody-basic", &["cell=peephole"]),
        ("lstm/melody-lookback", &["conditions=features"]),
        ("lstm/melody-attention", &["conditions=features", "attention=6"]),
    ] {
        let config = config(name, sets);
        let sampling = Sampling { beam: 3, branch: 2, iteration: 5, ..Sampling::default() };
        let primer = Some(tune(&[(0, 4, 60), (4, 4, 64), (8, 8, 67)]));
        let request = Request { sampling, primer, length: Length::Bars(2), ..request(4) };
        let kept = writer(&config, 8).write(&request).unwrap();
        let model = Forgetful::new(config.build(8).unwrap(), false);
        let replayed = Writer::new(&config, &model).unwrap().write(&request).unwrap();
        assert_eq!(kept, replayed, "{name} {sets:?}");
        let mut generator = config.build(8).unwrap().generator(Precision::F32).unwrap();
        let state = generator.state().unwrap();
        assert!(generator.set_state(&state[1..]).is_err(), "{name}");
        assert!(generator.set_state(&[&state[..], &[0.0]].concat()).is_err(), "{name}");
    }
}

#[test]
fn a_search_with_a_transformer_reads_what_is_new_and_finds_the_same() {
    for (sets, is_shorter) in [
        (&["heads=4"][..], true),
        (&["heads=2", "positions=rope"], true),
        (&["heads=3", "positions=learned", "sparse_block=8", "sparse_stride=4"], true),
        // Beyond the context tokens are gone, and all are read again.
        (&["heads=3", "context=20"], false),
        (&["heads=3", "context=24", "positions=rope", "sparse_block=8", "sparse_stride=4"], false),
    ] {
        let config = config("transformer/music-transformer-tiny", sets);
        let sampling = Sampling { beam: 3, branch: 2, iteration: 5, ..Sampling::default() };
        let primer = Some(tune(&[(0, 4, 60), (4, 4, 64), (8, 8, 67)]));
        let request = Request { sampling, primer, length: Length::Bars(3), ..request(4) };
        let [(fresh, all), (rewound, new)] = [false, true].map(|rewinds| {
            let model = Forgetful::new(config.build(8).unwrap(), rewinds);
            let piece = Writer::new(&config, &model).unwrap().write(&request).unwrap();
            (piece, model.steps.load(Ordering::Relaxed))
        });
        assert_eq!(rewound, fresh, "{sets:?}");
        assert!(if is_shorter { 2 * new < all } else { new <= all }, "{sets:?}: {new} of {all}");
    }
}

#[test]
fn who_listens_to_a_search_can_end_its_piece() {
    let config = speaking("melody");
    let sampling = Sampling { beam: 2, branch: 2, iteration: 8, ..Sampling::default() };
    let request = Request { sampling, ..request(1) };
    let whole = writer(&config, 3).write(&request).unwrap();
    let mut heard = Vec::new();
    let piece = writer(&config, 3)
        .write_watched(&request, None, &mut |token, at| {
            heard.push((token, at));
            heard.len() < 40
        })
        .unwrap();
    assert_eq!(piece.tokens, whole.tokens[..40]);
    assert_eq!(heard.iter().map(|h| h.0).collect::<Vec<_>>(), piece.tokens);
    let steps = piece.score.end_tick() * 4 / u64::from(piece.score.ticks_per_quarter);
    assert!(steps <= 40 && piece.score.note_count() < whole.score.note_count(), "{steps}");
    // Where the token that ends a piece is lawful, and only there, it follows.
    let config = speaking("polyphony");
    let mut ends = [0, 0];
    for count in 1..30 {
        let mut left = count;
        let mut hear = |_: u32, _: f64| {
            left -= 1;
            left > 0
        };
        let piece = writer(&config, 3).write_watched(&request, None, &mut hear).unwrap();
        let mut grammar = config.encoding().unwrap().grammar();
        piece.tokens[..count].iter().for_each(|token| grammar.push(*token));
        let end: &[u32] = if grammar.allows(Polyphony::END) { &[Polyphony::END] } else { &[] };
        assert_eq!(&piece.tokens[count..], end, "{count}: {:?}", piece.tokens);
        ends[end.len()] += 1;
    }
    assert!(ends.iter().all(|n| *n > 0), "{ends:?}");
}

#[test]
fn a_primer_is_kept_to_its_bar_and_in_its_key() {
    // In D major; its last bar is half full.
    let notes = [(0, 4, 62), (4, 4, 66), (8, 8, 69), (16, 4, 74), (20, 4, 73)];
    let primer = tune(&notes);
    for (name, _) in schemes() {
        if name.starts_with("drums") || name.starts_with("events") {
            continue;
        }
        let request = Request { primer: Some(primer.clone()), ..request(2) };
        let piece = writer(&speaking(name), 6).write(&request).unwrap();
        let steps = !name.starts_with("performance");
        // In sixteenth notes, at the tempo of the primer.
        let quarter = u64::from(piece.score.ticks_per_quarter);
        let (bars, place) = match steps {
            true => (32, &(|tick: u64| tick * 4 / quarter) as &dyn Fn(u64) -> u64),
            false => (25, &(|tick: u64| tick / 12) as &dyn Fn(u64) -> u64),
        };
        let begin: Vec<(u64, u8)> =
            piece.score.tracks[0].notes[..5].iter().map(|n| (place(n.tick), n.pitch)).collect();
        let wanted: Vec<(u64, u8)> = notes.iter().map(|(tick, _, pitch)| (*tick, *pitch)).collect();
        assert_eq!(begin, wanted, "{name}");
        let later = piece.score.tracks[0].notes.get(5);
        assert!(later.is_none_or(|n| place(n.tick) >= bars), "{name}");
        if steps {
            assert_eq!((piece.score.end_tick() * 4).div_ceil(16 * quarter).max(6), 6, "{name}");
            assert_eq!(piece.score.meters[0], FOUR);
        }
    }
}

#[test]
fn a_piece_of_many_voices_ends_and_is_as_long_as_asked() {
    let piece = writer(&speaking("polyphony"), 1).write(&request(3)).unwrap();
    assert_eq!((piece.tokens[0], piece.tokens.last()), (Polyphony::START, Some(&Polyphony::END)));
    let steps = piece.tokens.iter().filter(|t| **t == Polyphony::STEP_END).count();
    assert_eq!(steps, 64);
}

#[test]
fn a_voice_that_is_written_around_is_in_the_piece() {
    let config = speaking("polyphony");
    let voice = tune(&[(0, 4, 60), (4, 2, 64), (6, 2, 64), (8, 8, 67), (20, 4, 72)]);
    let alone = config.encoding().unwrap().encode(&voice).unwrap().tokens;
    let around = Around { voice: voice.clone(), chords: Vec::new() };
    for seed in 0..10 {
        for beam in [1, 2] {
            let sampling = Sampling { beam, ..Sampling::default() };
            let request = Request { sampling, ..request(seed) };
            let mut writer = writer(&config, seed);
            let piece = writer.write_watched(&request, Some(&around), &mut |_, _| true).unwrap();
            let steps = |tokens: &[u32]| -> Vec<Vec<u32>> {
                tokens.split(|t| *t == Polyphony::STEP_END).map(<[u32]>::to_vec).collect()
            };
            let (all, alone) = (steps(&piece.tokens), steps(&alone));
            assert_eq!(all.len(), 65);
            for (step, notes) in alone.iter().enumerate() {
                let notes = notes.iter().filter(|t| **t >= Polyphony::NEW_NOTE);
                for note in notes {
                    assert!(all[step].contains(note), "{seed} {step} {note}: {:?}", all[step]);
                }
            }
            assert!(piece.score.note_count() > voice.note_count());
        }
    }
    let error = writer(&speaking("melody"), 1)
        .write_watched(&request(1), Some(&around), &mut |_, _| true)
        .unwrap_err();
    assert!(error.to_string().contains("encodings polyphony and satb"), "{error}");
}

#[test]
fn four_parts_hold_the_voices_that_are_given_and_keep_to_the_chords() {
    let config = speaking("satb");
    let mut voice = tune(&[(0, 4, 72), (4, 8, 74), (14, 2, 71), (16, 16, 72)]);
    voice.tracks[0].name = "Soprano".into();
    let chord = |symbol: &str| Chord::parse(symbol).unwrap();
    let chords = [[chord("C"); 16], [chord("G7/F"); 16], [None; 16]].concat();
    let around = Around { voice: voice.clone(), chords };
    let told = config.encoding().unwrap().encode(&voice).unwrap().tokens;
    for seed in 0..10 {
        for beam in [1, 2] {
            let sampling = Sampling { beam, ..Sampling::default() };
            let request = Request { sampling, ..request(seed) };
            let mut writer = writer(&config, seed);
            let piece = writer.write_watched(&request, Some(&around), &mut |_, _| true).unwrap();
            assert_eq!(piece.tokens.len(), 4 * 64);
            // Notes and rests of the soprano are those of the voice; the others sing the chord.
            let mut beyond = false;
            for (step, all) in piece.tokens.chunks(4).enumerate() {
                let given = told.get(4 * step);
                assert!(given.is_none_or(|token| *token == all[0]), "{seed} {step}");
                for pitch in all[1..].iter().filter_map(|token| Satb::pitch(*token)) {
                    let fits = |classes: &[u8]| classes.contains(&(pitch % 12));
                    match step / 16 {
                        0 => assert!(fits(&[0, 4, 7]), "{step}: {pitch}"),
                        1 => assert!(fits(&[7, 11, 2, 5]), "{step}: {pitch}"),
                        _ => beyond |= !fits(&[0, 4, 7]),
                    }
                }
            }
            assert!(beyond);
        }
    }
    // A soprano and a bass: the voices between them are written.
    let mut both = voice.clone();
    both.tracks.push(tune(&[(0, 32, 48)]).tracks.remove(0));
    both.tracks[1].name = "Bass".into();
    let told = config.encoding().unwrap().encode(&both).unwrap().tokens;
    let around = Around { voice: both, chords: Vec::new() };
    let piece =
        writer(&config, 3).write_watched(&request(3), Some(&around), &mut |_, _| true).unwrap();
    for (all, given) in piece.tokens.chunks(4).zip(told.chunks(4)) {
        assert_eq!((all[0], all[3]), (given[0], given[3]));
    }
}

#[test]
fn who_listens_hears_every_token_and_can_end_the_piece() {
    let config = speaking("melody");
    let mut heard = Vec::new();
    let piece = writer(&config, 3)
        .write_watched(&request(1), None, &mut |token, at| {
            heard.push((token, at));
            heard.len() < 40
        })
        .unwrap();
    assert_eq!(heard.iter().map(|h| h.0).collect::<Vec<_>>(), piece.tokens);
    assert_eq!((heard.len(), heard[31].1), (40, 2.0));
}

#[test]
fn a_primer_without_notes_is_refused() {
    let drums = |is_drum| {
        let notes = vec![Note { tick: 0, duration: 1, pitch: 36, velocity: 90 }];
        let mut score = Score::new(4);
        score.tracks.push(Track { notes, is_drum, ..Track::default() });
        score
    };
    for (encoding, primer) in
        [("melody", Score::new(4)), ("melody", drums(true)), ("drums", drums(false))]
    {
        let request = Request { primer: Some(primer), ..request(1) };
        let error = writer(&speaking(encoding), 1).write(&request).unwrap_err().to_string();
        assert!(error.contains("the primer holds no notes"), "{error}");
    }
    let sampling = Sampling { beam: 100, branch: 100, ..Sampling::default() };
    let error = writer(&speaking("melody"), 1).write(&Request { sampling, ..request(1) });
    assert!(error.unwrap_err().to_string().starts_with("beam"));
}
