//! The recurrent language model: published sizes, one step at a time against whole sequences.

use etude_engine::{Dtype, Rng};
use etude_models::data::{Batch, Conditions, Piece};
use etude_models::recurrent::{Cell, Recurrent, RecurrentConfig};
use etude_models::registry::{MODELS, ModelConfig, preset_config};
use etude_models::sampling::{Sampler, Sampling};
use etude_models::{Model, Precision, generate, load_weights, read_model, save_weights};
use etude_tokenizer::Meter;

const FOUR: Meter = Meter { tick: 0, numerator: 4, denominator: 4 };

fn config(name: &str) -> ModelConfig {
    ModelConfig::take(&mut preset_config(name).unwrap()).unwrap()
}

fn piece(length: usize, vocab: u32, conditions: Conditions, seed: u64) -> Piece {
    let mut rng = Rng::new(seed);
    let tokens: Vec<u32> = (0..length).map(|_| rng.below(vocab)).collect();
    Piece {
        name: "random".into(),
        input: conditions.input(vocab as usize, FOUR, length),
        tokens,
        notes: length,
        frames: length,
        seconds: length as f64,
    }
}

#[test]
fn parameter_counts_are_the_published_ones() {
    for (name, count) in [
        ("lstm/melody-basic", 221_990),
        ("lstm/melody-mono", 280_962),
        ("lstm/performance", 6_242_692),
    ] {
        let config = config(name);
        assert_eq!(config.parameter_count().unwrap(), count, "{name}");
        assert_eq!(config.build(1).unwrap().parameter_count() as u64, count, "{name}");
    }
}

#[test]
fn every_preset_builds_and_counts_its_weights_right() {
    for entry in MODELS {
        for preset in entry.presets {
            let name = format!("{}/{}", entry.id, preset.name);
            let config = config(&name);
            let model = config.build(3).unwrap();
            assert_eq!(model.parameter_count() as u64, config.parameter_count().unwrap(), "{name}");
            let parts: u64 = model.parts().iter().map(|p| p.parameters).sum();
            assert_eq!(parts, model.parameter_count() as u64, "{name}");
        }
    }
}

/// Teacher-forced scores and scores of the generator, step by step, must be the same numbers.
#[test]
fn the_generator_says_what_the_whole_sequence_says() {
    for (cell, attention, embedding, conditions) in [
        (Cell::Rnn, 0, 0, Conditions::None),
        (Cell::Gru, 0, 0, Conditions::Form),
        (Cell::Gru, 0, 6, Conditions::None),
        (Cell::Lstm, 0, 0, Conditions::Form),
        (Cell::Lstm, 5, 0, Conditions::None),
        (Cell::Lstm, 5, 7, Conditions::Form),
    ] {
        let vocab = 11;
        let rows = conditions.input(vocab, FOUR, 40).rows();
        let sizes = RecurrentConfig { attention, embedding, ..RecurrentConfig::plain(cell, 19, 2) };
        let model = Recurrent::new(sizes, rows, vocab, 5).unwrap();
        let piece = piece(40, vocab as u32, conditions, 9);
        let batch = Batch::new(&[(&piece, 0)], 40);
        let scored = model.score(&batch).unwrap();
        let mut generator = model.generator(Precision::F32).unwrap();
        for round in 0..2 {
            generator.reset();
            let mut rows = vec![0; piece.input.active()];
            for (t, &token) in piece.tokens.iter().enumerate() {
                piece.input.fill(&piece.tokens, t, &mut rows);
                let logits = generator.step(&rows).unwrap();
                let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
                let nats = sum.ln() - f64::from(logits[token as usize]);
                // Sums of at most 19 + 291 products of numbers below 1, in two orders, through two
                // layers: some hundred roundings of 6e-8 each.
                let off = (nats - f64::from(scored.nats[t])).abs();
                assert!(
                    off < 1e-4,
                    "{cell:?} {attention} {embedding} round {round} step {t}: {off}"
                );
            }
        }
    }
}

#[test]
fn gradients_agree_with_differences() {
    for (cell, attention, embedding) in [
        (Cell::Rnn, 0, 0),
        (Cell::Gru, 0, 4),
        (Cell::Lstm, 0, 0),
        (Cell::Lstm, 3, 0),
        (Cell::Lstm, 3, 4),
    ] {
        let sizes = RecurrentConfig { attention, embedding, ..RecurrentConfig::plain(cell, 5, 2) };
        gradient_agrees_with_differences(sizes);
    }
}

fn gradient_agrees_with_differences(sizes: RecurrentConfig) {
    let mut model = Recurrent::new(sizes, 7, 7, 2).unwrap();
    let piece = piece(12, 7, Conditions::None, 4);
    let batch = Batch::new(&[(&piece, 0)], 12);
    let loss = model.loss(&batch, None).unwrap();
    let grads = loss.backward().unwrap();
    let mut analytic = Vec::new();
    use etude_engine::Module;
    model.visit(&mut |p| {
        let d = grads.get(&p.value).expect("every weight has a gradient");
        analytic.push((p.name.clone(), d.to_vec()));
    });
    let mut value = |name: &str, at: usize, by: f32| {
        model.visit_mut(&mut |p| {
            if p.name == name {
                p.update(|w| w[at] += by);
            }
        });
        let loss = f64::from(model.loss(&batch, None).unwrap().item().unwrap());
        model.visit_mut(&mut |p| {
            if p.name == name {
                p.update(|w| w[at] -= by);
            }
        });
        loss
    };
    for (name, d) in &analytic {
        for at in [0, d.len() / 2, d.len() - 1] {
            let by = 1e-2;
            let difference = (value(name, at, by) - value(name, at, -by)) / (2.0 * f64::from(by));
            // Loss about 2 known to 2e-7: 2e-5 from rounding, and by^2 = 1e-4 of curvature.
            let off = (difference - f64::from(d[at])).abs();
            assert!(off < 3e-4, "{name}[{at}]: {difference} against {}", d[at]);
        }
    }
}

#[test]
fn weights_survive_a_file_and_misfits_are_named() {
    let config = config("lstm/melody-basic");
    let model = config.build(7).unwrap();
    let mut map = serde_json::Map::new();
    map.insert("model".into(), serde_json::Value::Object(config.write()));
    let bytes = save_weights(&*model, &map, 3, Dtype::F32).unwrap();
    let again = read_model(&bytes, "x.safetensors").unwrap();
    assert_eq!((again.config.clone(), again.step), (config, Some(3)));
    assert_eq!(save_weights(&*again.model, &map, 3, Dtype::F32).unwrap(), bytes);
    let mut other = self::config("lstm/melody-mono").build(1).unwrap();
    let fault = load_weights(&mut *other, &bytes, "x.safetensors").unwrap_err().to_string();
    assert!(fault.contains("x.safetensors") && fault.contains("lstm.0.w_ih"), "{fault}");
}

#[test]
fn the_same_seed_writes_the_same_piece_and_another_seed_another() {
    let config = config("lstm/melody-form");
    let model = config.build(7).unwrap();
    let mut writer = generate::Writer::new(&config, &*model).unwrap();
    let mut request = generate::Request {
        length: generate::Length::Bars(8),
        meter: Meter { tick: 0, numerator: 6, denominator: 8 },
        tempo_bpm: 120.0,
        primer: None,
        sampling: Sampling::default(),
        seed: 1,
    };
    let first = writer.write(&request).unwrap();
    assert_eq!(first.tokens.len(), 8 * 12);
    assert_eq!(writer.write(&request).unwrap(), first);
    request.seed = 2;
    assert_ne!(writer.write(&request).unwrap().tokens, first.tokens);
    // Going on from the piece keeps it whole and adds what was asked for.
    request.primer = Some(first.score.clone());
    let longer = writer.write(&request).unwrap();
    assert_eq!(longer.tokens.len(), 16 * 12);
    request.length = generate::Length::Seconds(6.0);
    request.primer = None;
    // 120 quarters a minute: 8 steps a second.
    assert_eq!(writer.write(&request).unwrap().tokens.len(), 48);
}

#[test]
fn a_token_is_written_without_one_allocation() {
    for (attention, conditions) in [(0, Conditions::Form), (4, Conditions::None)] {
        let vocab = 38;
        let rows = conditions.input(vocab, FOUR, 400).rows();
        let sizes = RecurrentConfig { attention, ..RecurrentConfig::plain(Cell::Lstm, 40, 2) };
        let model = Recurrent::new(sizes, rows, vocab, 5).unwrap();
        let mut generator = model.generator(Precision::F32).unwrap();
        let controls = Sampling { top_k: 9, top_p: 0.9, repeat_limit: 3, ..Sampling::default() };
        let mut sampler = Sampler::new(controls, vocab);
        let mut rng = Rng::new(2);
        let input = conditions.input(vocab, FOUR, 400);
        let (mut tokens, mut rows) = (Vec::with_capacity(400), vec![0; input.active()]);
        let mut write = |count: usize| {
            for _ in 0..count {
                input.fill(&tokens, tokens.len(), &mut rows);
                let token = sampler.draw(generator.step(&rows).unwrap(), rng.unit(), |_| true);
                sampler.heard(Some(token));
                tokens.push(token);
            }
        };
        write(3); // what lives as long as the thread is set up
        assert_eq!(allocation_counter::measure(|| write(300)).count_total, 0);
    }
}
