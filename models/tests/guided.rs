//! Networks that are told something beside the events: what they are told reaches them, and they do as
//! they are told.

use etude_engine::{Optimizer, Rng};
use etude_models::data::{Augment, Batch, Dataset, Pieces, Scores};
use etude_models::generate::{Length, Request, Writer};
use etude_models::registry::{ModelConfig, model_keys, preset_config};
use etude_models::sampling::{Sampler, Sampling};
use etude_models::wishes::Wishes;
use etude_models::{Model, Precision, config};
use etude_tokenizer::chord::Progression;
use etude_tokenizer::step_input::NO_ROW;
use etude_tokenizer::{Guide, Marker, Meter, Note, Score, Tempo, Track};

const FOUR: Meter = Meter { tick: 0, numerator: 4, denominator: 4 };

fn sized(name: &str, sets: &[&str]) -> ModelConfig {
    let mut map = preset_config(name).unwrap();
    for set in ["hidden=16", "layers=1", "dropout=0"].iter().chain(sets) {
        config::set(&mut map, set, &model_keys()).unwrap();
    }
    ModelConfig::take(&mut map).unwrap()
}

fn request(length: Length, seed: u64) -> Request {
    let sampling = Sampling { temperature: 0.7, ..Sampling::default() };
    Request { length, meter: FOUR, tempo_bpm: 120.0, primer: None, sampling, seed }
}

fn dataset(scores: Vec<Score>, config: &ModelConfig) -> Pieces {
    let train = scores.into_iter().enumerate().map(|(i, s)| (format!("piece {i}"), s)).collect();
    let scores = Scores { train, ..Scores::default() };
    Dataset::new(&scores, &*config.encoding().unwrap(), config.conditions, 0).unwrap().train
}

fn learned(config: &ModelConfig, pieces: &Pieces, steps: u64) -> Box<dyn Model> {
    let mut model = config.build(1).unwrap();
    let mut optimizer = Optimizer::adam().clip_norm(1.0);
    for step in 0..steps {
        let batch = Batch::of_step(pieces, 1, step, 8, 96).unwrap();
        let grads = model.loss(&batch, None).unwrap().backward().unwrap();
        optimizer.step(&mut *model, &grads, 0.02).unwrap();
    }
    model
}

fn notes(notes: &[(u64, u64, u8)], ticks_per_quarter: u32) -> Score {
    let mut score = Score::new(ticks_per_quarter);
    let note = |&(tick, duration, pitch)| Note { tick, duration, pitch, velocity: 90 };
    score.tracks.push(Track { notes: notes.iter().map(note).collect(), ..Track::default() });
    score
}

/// So many quarters over each chord, which markers tell: each the chord's root.
fn over(chords: &[&str], quarters: u64) -> Score {
    let roots = [("C", 60), ("F", 65), ("G", 67), ("Am", 69), ("Dm", 62)];
    let mut all = Vec::new();
    let mut markers = Vec::new();
    for (at, chord) in (0..).step_by(4 * quarters as usize).zip(chords) {
        let root = roots.iter().find(|(name, _)| name == chord).unwrap().1;
        all.extend((0..quarters).map(|quarter| (at + 4 * quarter, 4, root)));
        markers.push(Marker { tick: at, text: (*chord).into() });
    }
    Score { markers, ..notes(&all, 4) }
}

#[test]
fn a_melody_follows_its_chords() {
    let config = sized("lstm/improv-basic", &[]);
    let names = ["C", "F", "G", "Am", "Dm"];
    let mut rng = Rng::new(7);
    let mut tune = |quarters| over(&[0; 6].map(|_| names[rng.below(5) as usize]), quarters);
    let tunes = (0..32).map(|i| tune(2 + 2 * (i % 2))).collect();
    let model = learned(&config, &dataset(tunes, &config), 120);
    let mut writer = Writer::new(&config, &*model).unwrap();
    for (chords, roots) in [("C F Dm G", [0, 5, 2, 7]), ("Am | G F", [9, 9, 7, 5])] {
        let chords = Progression::parse(chords).ok();
        writer.ask(Wishes { chords: chords.clone(), ..Wishes::default() }).unwrap();
        let by_halves = chords.unwrap().bars.len() == 2;
        let (mut onsets, mut on_root) = (0, 0);
        for seed in 0..4 {
            let piece = writer.write(&request(Length::Bars(8), seed)).unwrap();
            for note in &piece.score.tracks[0].notes {
                let place = note.tick as usize / if by_halves { 8 } else { 16 };
                onsets += 1;
                on_root += usize::from(note.pitch % 12 == roots[place % 4]);
            }
            // The chords stand in the score, so that it is a lead sheet.
            assert_eq!(piece.score.markers[0].tick, 0);
            assert!(piece.score.markers.len() >= 6);
        }
        // A melody that does not hear the chords is on one of five roots: right once in five times.
        assert!(onsets > 60 && 4 * on_root > 3 * onsets, "{on_root} of {onsets}");
    }
}

/// Seconds of a performance with so many notes a second, all of one pitch class.
fn played(seconds: u64, each_second: u64, pitch: u8) -> Score {
    let gap = 100 / each_second;
    let all: Vec<_> = (0..seconds * each_second).map(|i| (gap * i, gap * 9 / 10, pitch)).collect();
    let mut score = notes(&all, 100);
    score.tempos.push(Tempo { tick: 0, micros_per_quarter: 1_000_000 });
    score
}

#[test]
fn a_performance_is_as_dense_and_in_the_pitch_classes_that_are_asked_for() {
    let config = sized("lstm/performance-controls", &["encoding=performance"]);
    let kinds = [(2, 60), (20, 60), (2, 66), (20, 66)];
    let pieces = kinds.map(|(dense, pitch)| played(12, dense, pitch)).to_vec();
    let model = learned(&config, &dataset(pieces, &config), 90);
    let mut writer = Writer::new(&config, &*model).unwrap();
    for (dense, pitch) in kinds {
        let only: [f32; 12] = std::array::from_fn(|class| f32::from(class == pitch as usize % 12));
        let (density, pitch_histogram) = (Some(dense as f64), Some(only));
        writer.ask(Wishes { density, pitch_histogram, ..Wishes::default() }).unwrap();
        let (mut count, mut right) = (0.0, 0.0);
        for seed in 0..3 {
            let piece = writer.write(&request(Length::Seconds(6.0), seed)).unwrap().score;
            let all = piece.tracks.iter().flat_map(|track| &track.notes);
            count += piece.note_count() as f64;
            right += all.filter(|note| note.pitch % 12 == pitch % 12).count() as f64;
        }
        let each_second = count / 18.0;
        let near = each_second > 0.6 * dense as f64 && each_second < 1.6 * dense as f64;
        assert!(near && right > 0.9 * count, "{dense} {pitch}: {each_second}, {right} of {count}");
    }
}

#[test]
fn chords_are_moved_with_the_melody() {
    let config = sized("lstm/improv-basic", &[]);
    let encoding = config.encoding().unwrap();
    let pieces = dataset(vec![over(&["Am", "F", "G", "C"], 4)], &config);
    let pieces = pieces.changed(&*encoding, Augment::by(2)).unwrap();
    let batch = Batch::of_step(&pieces, 3, 0, 5, 64).unwrap();
    let mut roots = Vec::new();
    for b in 0..5 {
        for bar in 0..4 {
            let at = 16 * bar * 5 + b;
            let chord = batch.rows[at * batch.active];
            // Pitches begin at token 2 with 48; triads at row 1, minor ones at row 13.
            let pitch = batch.targets[at] - 2 + 48;
            assert_eq!((chord - 1) % 12, pitch % 12, "window {b} bar {bar}");
            assert_eq!((chord - 1) / 12, u32::from(bar == 0));
        }
        roots.push((batch.rows[b * batch.active] - 1) % 12);
    }
    roots.sort_unstable();
    assert_eq!(roots, [7, 8, 9, 10, 11]);
}

#[test]
fn optional_controls_are_left_out_of_every_other_window() {
    let config = sized("lstm/performance-optional", &[]);
    let pieces = dataset(vec![played(12, 2, 60)], &config);
    let batch = Batch::of_step(&pieces, 1, 0, 6, 30).unwrap();
    for (at, rows) in batch.rows.chunks(batch.active).enumerate() {
        let told = &rows[..batch.active - 1];
        let step = told.iter().filter(|row| **row != NO_ROW).count();
        match at % 6 % 2 {
            1 => assert_eq!((told[0], step), (0, 1), "nothing but the flag"),
            // Row 1 is the first bin of density: 2 notes a second are in the third, and in the last
            // half second of the piece, where the window is shorter, perhaps in another.
            _ => assert!((1..9).contains(&told[0]) && step > 1, "{told:?}"),
        }
    }
    // What is scored is told.
    let whole = Batch::new(&[(&pieces.get(0).unwrap(), 0)], 30);
    assert!(whole.rows.chunks(whole.active).all(|rows| rows[0] == 3));
}

/// What is written from kept states is what is written when all is read anew for each token.
#[test]
fn pieces_are_the_same_with_and_without_kept_states() {
    for (name, attention) in [
        ("lstm/improv-basic", 0),
        ("lstm/improv-attention", 3),
        ("lstm/improv-chord-pitches", 0),
        ("lstm/performance-controls", 0),
        ("lstm/performance-optional", 0),
        ("lstm/performance-note", 0),
    ] {
        let config = sized(name, &["layers=2", &format!("attention={attention}")]);
        let (encoding, mut wishes) = (config.encoding().unwrap(), Wishes::default());
        match name {
            "lstm/performance-controls" => wishes.density = Some(3.0),
            _ if name.contains("improv") => wishes.chords = Progression::parse("Dm | G7 C").ok(),
            _ => {}
        }
        let guide = wishes.guide(config.conditions, 16).unwrap();
        let input = config.conditions.input(encoding.vocab_size(), FOUR, 32).told(guide);
        for seed in 0..5 {
            let model = config.build(seed).unwrap();
            let mut writer = Writer::with_precision(&config, &*model, Precision::F32).unwrap();
            writer.ask(wishes.clone()).unwrap();
            let mut rng = Rng::stream(seed, 4);
            let request = request(Length::Bars(2), seed);
            let piece = writer.write(&request).unwrap();
            let mut sampler = Sampler::new(request.sampling.clone(), encoding.vocab_size());
            let mut generator = model.generator(Precision::F32).unwrap();
            let mut grammar = encoding.grammar();
            let mut rows = vec![0; input.active()];
            for (count, &token) in piece.tokens.iter().take(40).enumerate() {
                generator.reset();
                let mut logits = Vec::new();
                for t in 0..=count {
                    input.fill(&piece.tokens[..count], t, &mut rows);
                    logits = generator.step(&rows).unwrap().to_vec();
                }
                let drawn = sampler.draw(&logits, rng.unit(), |token| grammar.allows(token));
                assert_eq!(drawn, token, "{name} seed {seed} token {count}");
                grammar.push(token);
                sampler.heard(encoding.is_onset(token).then_some(token));
            }
        }
    }
}

#[test]
fn a_search_and_a_primer_know_the_chords_too() {
    let config = sized("lstm/improv-basic", &["encoding=melody-c"]);
    let model = config.build(2).unwrap();
    let mut writer = Writer::new(&config, &*model).unwrap();
    let chords = Progression::parse("D A").ok();
    writer.ask(Wishes { chords, ..Wishes::default() }).unwrap();
    // In D major: read in C, where the chords are C and G; told again in D.
    let scale = [62, 64, 66, 67, 69, 71, 73, 74];
    let primer: Vec<_> = (0..8).zip(scale).map(|(i, pitch)| (2 * i, 2, pitch)).collect();
    for beam in [1, 2] {
        let mut request = request(Length::Bars(3), 5);
        request.sampling.beam = beam;
        request.primer = Some(notes(&primer, 4));
        let piece = writer.write(&request).unwrap();
        assert_eq!((piece.primed, piece.tokens.len()), (16, 64));
        let markers: Vec<&str> = piece.score.markers.iter().map(|m| m.text.as_str()).collect();
        assert_eq!(markers[..2], ["D", "A"]);
    }
}

#[test]
fn a_piece_can_be_asked_to_be_like_another() {
    let config = sized("lstm/performance-controls", &["encoding=performance"]);
    let model = config.build(2).unwrap();
    let mut writer = Writer::new(&config, &*model).unwrap();
    let request = request(Length::Seconds(3.0), 1);
    let free = writer.write(&request).unwrap();
    writer.ask_like(&played(10, 20, 66));
    let like = writer.write(&request).unwrap();
    // The same as asked in numbers: all of F sharp, twenty notes of 0.04 s a second.
    let only = std::array::from_fn(|class| f32::from(class == 6));
    let (density, pitch_histogram) = (Some(20.0), Some(only));
    writer.ask(Wishes { density, pitch_histogram, ..Wishes::default() }).unwrap();
    assert_eq!(writer.write(&request).unwrap(), like);
    assert!(like != free);
    writer.ask(Wishes::default()).unwrap();
    assert_eq!(writer.write(&request).unwrap(), free);
    assert_eq!(Guide::Nothing.transpose(3), Guide::Nothing);
}

#[test]
fn notes_of_six_heads_are_told_apart() {
    let config = sized("lstm/performance-note", &[]);
    let pieces = dataset(vec![played(6, 2, 60)], &config);
    let piece = pieces.get(0).unwrap();
    let model = config.build(3).unwrap();
    // A batch that ends within a note, beside one that does not: the nats of a token are the same.
    let whole = model.score(&Batch::new(&[(&piece, 0)], 60)).unwrap();
    let cut = model.score(&Batch::new(&[(&piece, 0)], 40)).unwrap();
    assert_eq!(whole.nats[..40], cut.nats);
    let loss = |steps| model.loss(&Batch::new(&[(&piece, 0)], steps), None).unwrap();
    let mean = cut.nats.iter().sum::<f32>() / 40.0;
    // Sums of 40 numbers of about 3 in two orders.
    assert!((loss(40).item().unwrap() - mean).abs() < 1e-4);
    // From the seventh token on the piece is read as from the first, but for what is remembered.
    for from in [6, 12] {
        let batch = Batch::new(&[(&piece, from)], 12);
        assert_eq!(batch.rows[..6], piece.tokens[from - 6..from]);
        assert!(batch.rows[6..36].iter().all(|row| *row == NO_ROW));
    }
    let off = Batch::new(&[(&piece, 1)], 12);
    let said = model.score(&off).unwrap_err().to_string();
    assert!(said.contains("of head 0 of a note is due"), "{said}");
    // Windows of training begin where a note does.
    for step in 0..20 {
        let batch = Batch::of_step(&pieces, 1, step, 4, 31).unwrap();
        assert!(model.score(&batch).is_ok(), "{step}");
    }
}

#[test]
fn settings_that_do_not_belong_together_are_refused() {
    for (name, set, part) in [
        ("lstm/performance-note", "head=softmax", "a head that writes none were given"),
        ("lstm/performance-note", "conditions=none", "a head that writes notes were given"),
        ("lstm/performance-note", "encoding=performance", "encoding = performance"),
        ("lstm/improv-basic", "encoding=drums", "chords stand beside the steps of a melody"),
        ("lstm/improv-basic", "conditions=density", "density: asked of the encodings performance"),
        (
            "lstm/performance-density",
            "conditions=chords",
            "the encoding performance-dynamics has none",
        ),
        ("lstm/performance-density", "encoding=performance-note", "performance-note was given"),
    ] {
        let mut map = preset_config(name).unwrap();
        config::set(&mut map, set, &model_keys()).unwrap();
        let said = ModelConfig::take(&mut map).unwrap_err().to_string();
        assert!(said.starts_with("model.conditions: ") && said.contains(part), "{set}: {said}");
    }
}
