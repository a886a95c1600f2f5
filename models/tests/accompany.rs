//! Encoder and decoder: one token at a time against whole sequences, gradients, melodies that stay, and a
//! bass that follows its tune.
#![cfg(feature = "train")]

use etude_engine::{NO_ID, Rng};
use etude_models::config;
use etude_models::data::{Batch, Conditions, Dataset, Scores};
use etude_models::evaluate::{likelihood, written_likelihood};
use etude_models::generate::{Length, Request, Writer};
use etude_models::registry::{ModelConfig, model_keys, preset_config};
use etude_models::sampling::{Sampler, Sampling};
use etude_models::train::{RunConfig, Trainer, setting_keys};
use etude_models::transformer::{Seq2Seq, Seq2SeqConfig, TransformerConfig};
use etude_models::{Model, Precision};
use etude_tokenizer::{Encoding, Events, Meter, Note, Pair, Score, Tempo, Track};

#[path = "../../tests/support/folder.rs"]
mod folder;
mod support;

use folder::Folder;

const FOUR: Meter = Meter { tick: 0, numerator: 4, denominator: 4 };
/// A vocabulary of nine tokens and an end, with rows for five places.
const VOCAB: usize = 10;
const ROWS: usize = 15;

fn network(context: usize, seed: u64) -> Seq2Seq {
    let sizes = TransformerConfig { context, ..TransformerConfig::plain(12, 2, 3, 20) };
    Seq2Seq::new(&Seq2SeqConfig { encoder: 2, sizes }, ROWS, VOCAB, seed).unwrap()
}

/// The rows that are read before each token of a sequence: the token before it and a place.
fn rows_of(tokens: &[u32]) -> Vec<[u32; 2]> {
    let place = |t: usize| VOCAB as u32 + (t % 5) as u32;
    let later = tokens.iter().enumerate().map(|(t, token)| [*token, place(t)]);
    std::iter::once([NO_ID; 2]).chain(later).take(tokens.len()).collect()
}

/// A random melody of so many tokens, its end, and so many tokens beside it.
fn sequence(melody: usize, others: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed);
    let mut tokens: Vec<u32> = (0..melody + others).map(|_| rng.below(9)).collect();
    tokens.insert(melody, 9);
    tokens
}

fn batch_of(all: &[(Vec<u32>, usize)]) -> Batch {
    let (batch, active) = (all.len(), 2);
    let steps = all.iter().map(|(tokens, _)| tokens.len()).max().unwrap();
    let (mut rows, mut targets) = (vec![NO_ID; steps * batch * 2], vec![NO_ID; steps * batch]);
    for (b, (tokens, melody)) in all.iter().enumerate() {
        for (t, row) in rows_of(tokens).iter().enumerate() {
            rows[(t * batch + b) * 2..][..2].copy_from_slice(row);
            if t > *melody {
                targets[t * batch + b] = tokens[t];
            }
        }
    }
    Batch { rows, targets, keys: Vec::new(), steps, batch, active }
}

#[test]
fn the_generator_says_what_the_whole_sequence_says() {
    // Within the context and beyond it; a melody of nothing too.
    for (context, sizes) in [(64, [(9, 20), (1, 30), (0, 7)]), (6, [(12, 40), (3, 9), (30, 2)])] {
        let model = network(context, 5);
        let all = sizes.map(|(m, o)| (sequence(m, o, (m + o) as u64), m));
        let batch = batch_of(&all);
        let scored = model.score(&batch).unwrap();
        let mut generator = model.generator(Precision::F32).unwrap();
        for (column, (tokens, melody)) in all.iter().enumerate() {
            generator.reset();
            for (t, row) in rows_of(tokens).iter().enumerate() {
                let logits = generator.step(row).unwrap();
                let found = f64::from(scored.nats[t * 3 + column]);
                if t <= *melody {
                    assert_eq!(found, 0.0);
                    continue;
                }
                let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
                let nats = sum.ln() - f64::from(logits[tokens[t] as usize]);
                // As for the decoder alone: some hundred roundings of 6e-8, of numbers that a norm may
                // make some times larger; two layers more.
                assert!((nats - found).abs() < 2e-4, "{context} {column} {t}: {nats} {found}");
            }
        }
    }
}

#[test]
fn seeds_write_the_same_tokens_with_and_without_what_is_kept() {
    for seed in 0..1000 {
        let model = network(8, seed);
        let melody = 1 + seed as usize % 7;
        let mut tokens = sequence(melody, 0, seed);
        let mut generator = model.generator(Precision::F32).unwrap();
        let mut sampler = Sampler::new(Sampling::default(), VOCAB);
        let mut rng = Rng::new(seed);
        for row in &rows_of(&tokens) {
            generator.step(row).unwrap();
        }
        for _ in 0..12 {
            let unit = rng.unit();
            // What is to come does not matter to what is read.
            let all = [&tokens[..], &[0]].concat();
            let kept = generator.step(rows_of(&all).last().unwrap()).unwrap();
            let kept = sampler.draw(kept, unit, |_| true);
            let whole = model.forward(&batch_of(&[(all, melody)]), None).unwrap().0.to_vec();
            let whole = sampler.draw(&whole[whole.len() - VOCAB..], unit, |_| true);
            assert_eq!(kept, whole, "seed {seed}: {tokens:?}");
            tokens.push(kept.min(8));
        }
    }
}

#[test]
fn a_generator_goes_back_to_where_it_was_but_not_into_the_melody() {
    let model = network(64, 3);
    let mut generator = model.generator(Precision::F32).unwrap();
    let rows = rows_of(&sequence(4, 9, 1));
    let first: Vec<Vec<f32>> =
        rows.iter().map(|row| generator.step(row).unwrap().to_vec()).collect();
    assert!(generator.rewind(8) && !generator.rewind(9) && !generator.rewind(5));
    for (row, before) in rows.iter().zip(&first).skip(8) {
        assert_eq!(generator.step(row).unwrap(), before);
    }
    generator.reset();
    for (row, before) in rows.iter().zip(&first) {
        assert_eq!(generator.step(row).unwrap(), before);
    }
}

#[test]
fn gradients_agree_with_differences() {
    let mut model = network(16, 2);
    let batch = batch_of(&[(sequence(4, 8, 1), 4), (sequence(7, 3, 2), 7)]);
    support::check_gradients(&mut model, &batch, "");
}

#[test]
fn sizes_are_counted_and_what_is_not_there_is_named() {
    let config = |sets: &[&str]| {
        let mut map = preset_config("transformer/accompaniment").unwrap();
        sets.iter().for_each(|set| config::set(&mut map, set, &model_keys()).unwrap());
        ModelConfig::take(&mut map)
    };
    let preset = config(&[]).unwrap();
    let model = preset.build(1).unwrap();
    assert_eq!(preset.parameter_count().unwrap(), model.parameter_count() as u64);
    let parts: u64 = model.parts().iter().map(|part| part.parameters).sum();
    assert_eq!(parts, model.parameter_count() as u64);
    for (sets, wanted) in [
        (&["positions=rope"][..], "model.positions: a Transformer with an encoder has relative"),
        (&["local=100"], "model.local"),
        (&["output=tied"], "model.output"),
        (&["norm=post"], "model.norm"),
        (&["encoder=0"], "model.conditions: a melody"),
        (&["conditions=none"], "model.conditions: a melody"),
        (&["encoding=satb"], "model.conditions: the encoding satb has no melody"),
    ] {
        let fault = config(sets).unwrap_err().to_string();
        assert!(fault.starts_with(wanted), "{sets:?}: {fault}");
    }
}

/// A tune of quarter notes, and a bass that plays each note with it, an octave lower.
fn doubled(seed: u64, bars: u64) -> Score {
    let mut rng = Rng::new(seed);
    let note = |tick, pitch| Note { tick, duration: 24, pitch, velocity: 100 };
    let tune: Vec<Note> = (0..4 * bars).map(|i| note(24 * i, 60 + rng.below(12) as u8)).collect();
    let bass = tune.iter().map(|n| Note { pitch: n.pitch - 24, ..*n }).collect();
    let mut score = Score::new(24);
    score.tracks.push(Track { program: 73, notes: tune, ..Track::default() });
    score.tracks.push(Track { program: 32, notes: bass, ..Track::default() });
    score.tempos.push(Tempo { tick: 0, micros_per_quarter: 500_000 });
    score.meters.push(FOUR);
    score
}

fn settings(sets: &[&str]) -> RunConfig {
    let mut map = preset_config("transformer/accompaniment").unwrap();
    for set in ["transpose=0", "dropout=0"].iter().chain(sets) {
        config::set(&mut map, set, &setting_keys()).unwrap();
    }
    RunConfig::read(map).unwrap()
}

fn pieces(scores: Vec<Score>) -> Dataset {
    let named = |scores: Vec<Score>| scores.into_iter().map(|s| ("piece".into(), s)).collect();
    let scores = Scores { train: named(scores), ..Scores::default() };
    Dataset::new(&scores, &Events, Conditions::Melody, 0).unwrap()
}

#[test]
fn a_window_has_the_same_bars_of_both() {
    let data = pieces(vec![doubled(1, 40)]);
    for step in 0..40 {
        let batch = Batch::of_step(&data.train, 5, step, 3, 200).unwrap();
        assert!(batch.steps <= 200);
        for b in 0..3 {
            let at = |t: usize| (t * 3 + b) * 3;
            let rows: Vec<u32> = (0..batch.steps).map(|t| batch.rows[at(t)]).collect();
            let end = rows.iter().position(|row| *row == Pair::END).unwrap();
            let targets: Vec<u32> = batch.targets.iter().skip(b).step_by(3).copied().collect();
            assert!(targets[..end].iter().all(|t| *t == NO_ID));
            let others: Vec<u32> =
                targets[end..].iter().copied().take_while(|t| *t != Pair::END).collect();
            assert!(targets[end..].contains(&Pair::END));
            let of = |tokens: &[u32]| Events.decode(tokens).unwrap();
            let (melody, others) = (of(&rows[1..end]), of(&others));
            let pitches = |score: &Score| -> Vec<(u64, u8)> {
                score.tracks[0].notes.iter().map(|n| (n.tick, n.pitch % 12)).collect()
            };
            assert_eq!(pitches(&melody), pitches(&others));
            assert_eq!((melody.tracks[0].program, others.tracks[0].program), (73, 32));
        }
    }
}

fn request(primer: Option<Score>, sampling: Sampling, seed: u64) -> Request {
    Request { length: Length::Bars(1), meter: FOUR, tempo_bpm: 120.0, primer, sampling, seed }
}

#[test]
fn a_melody_stays_note_for_note_beside_what_is_written() {
    let config = settings(&["hidden=12", "heads=2", "layers=1", "encoder=1", "ff=8", "context=64"]);
    let model = config.model.build(3).unwrap();
    let mut writer = Writer::new(&config.model, &*model).unwrap();
    // On ticks that are none of the grid, with a metre that changes, beside drums and a bass.
    let mut score = doubled(7, 4);
    score.ticks_per_quarter = 25;
    score.meters.push(Meter { tick: 200, numerator: 3, denominator: 4 });
    score.tracks.push(Track { is_drum: true, ..score.tracks[1].clone() });
    let tune = score.tracks[0].clone();
    let mut count = 0;
    for seed in 0..6 {
        let beam = if seed == 5 { 2 } else { 1 };
        let sampling = Sampling { beam, branch: beam, iteration: 8, ..Sampling::default() };
        let request = request(Some(score.clone()), sampling, seed);
        let mut heard = 0;
        let piece = writer.write_watched(&request, None, &mut |_, _| {
            heard += 1;
            true
        });
        let piece = piece.unwrap();
        assert_eq!(piece.score.tracks[0], tune);
        assert_eq!((&piece.score.meters, &piece.score.tempos), (&score.meters, &score.tempos));
        assert_eq!(piece.tokens.last(), Some(&Pair::END));
        assert_eq!(heard, piece.tokens.len() - piece.primed - 1);
        // Its bars are those of the melody: 100 ticks each, and from 200 on 75.
        let end = 200 + 75 * (tune.notes.last().unwrap().tick - 200).div_ceil(75).max(1);
        let onsets = piece.score.tracks[1..].iter().flat_map(|t| &t.notes).map(|n| n.tick);
        assert!(onsets.clone().all(|tick| tick < end), "{end}");
        count += onsets.count();
        assert_eq!(writer.accompany(&request, &mut |_, _| true).unwrap(), piece);
    }
    assert!(count > 10, "{count}");
    let fault = |writer: &mut Writer, primer| {
        let request = request(primer, Sampling::default(), 1);
        writer.accompany(&request, &mut |_, _| true).unwrap_err().to_string()
    };
    score.tracks.remove(0);
    score.tracks.remove(0);
    assert!(fault(&mut writer, Some(score)).contains("a primer with one is wanted"));
    assert!(fault(&mut writer, None).contains("a primer with one is wanted"));
    let mut map = preset_config("transformer/musenet-small").unwrap();
    for set in ["hidden=12", "heads=2", "layers=1"] {
        config::set(&mut map, set, &model_keys()).unwrap();
    }
    let alone = ModelConfig::take(&mut map).unwrap();
    let mut writer = Writer::new(&alone, &*alone.build(1).unwrap()).unwrap();
    assert!(fault(&mut writer, Some(doubled(1, 2))).contains("this model writes by itself"));
}

/// A bass that plays what the tune plays: nothing but the tune tells its notes.
#[test]
fn a_model_learns_to_follow_a_melody() {
    let folder = Folder::new("follow");
    let config = settings(&[
        "hidden=48",
        "layers=1",
        "encoder=1",
        "heads=4",
        "ff=96",
        "context=112",
        "batch=8",
        "window=112",
        "steps=300",
        "warmup=20",
        "lr=0.005",
        "valid_every=1000",
        "save_every=1000",
    ]);
    let data = pieces((0..200).map(|seed| doubled(seed, 2)).collect());
    let mut trainer = Trainer::create(config.clone(), data, &folder.0.join("run")).unwrap();
    trainer.train(None, &|| false, &mut |_| {}).unwrap();
    let held = pieces((1000..1010).map(|seed| doubled(seed, 2)).collect());
    let whole = likelihood(trainer.model(), &held.train).unwrap();
    let written = written_likelihood(trainer.model(), Precision::F32, &held.train).unwrap();
    assert_eq!(whole.tokens, written.tokens);
    assert!((whole.per_token - written.per_token).abs() < 1e-4, "{whole:?} {written:?}");
    let mut writer = Writer::new(&config.model, trainer.model()).unwrap();
    let (mut right, mut all) = (0, 0);
    for seed in 1000..1010 {
        let score = doubled(seed, 2);
        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        let request = request(Some(score.clone()), sampling, 1);
        let written = writer.accompany(&request, &mut |_, _| true).unwrap().score;
        for note in &score.tracks[1].notes {
            let bass = written.tracks.iter().skip(1).flat_map(|track| &track.notes);
            right +=
                usize::from(bass.clone().any(|n| (n.tick, n.pitch) == (note.tick, note.pitch)));
            all += 1;
        }
    }
    // Guessing finds a twelfth.
    assert!(right * 10 >= all * 8, "{right} of {all}, {} nats a token", whole.per_token);
}
