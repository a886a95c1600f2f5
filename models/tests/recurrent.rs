//! The recurrent language model: published sizes, one step at a time against whole sequences.

use etude_engine::{Dtype, Module, Rng, no_grad};
use etude_models::data::{Batch, Conditions, Dataset, Piece, Pieces, Scores, piece as piece_of};
use etude_models::evaluate::{likelihood, written_likelihood};
use etude_models::recurrent::{Cell, Recurrent, RecurrentConfig};
use etude_models::registry::{MODELS, ModelConfig, model_keys, preset_config};
use etude_models::sampling::{Sampler, Sampling};
use etude_models::{Model, Precision, generate, load_weights, read_model, save_weights};
use etude_tokenizer::{Meter, Note, Score, Track};

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
        meter: FOUR,
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
        ("lstm/melody-lookback", 264_744),
        ("lstm/melody-attention", 240_680),
        ("lstm/drums-one", 198_914),
        ("lstm/drums", 1_975_808),
        ("lstm/polyphony", 1_645_571),
        ("lstm/performance-plain", 6_160_740),
        ("lstm/performance", 6_242_692),
        // Not in the published table; by hand from the sizes in it.
        ("lstm/performance-modulo", 5_480_836),
        ("lstm/improv-basic", 74_406),
        ("lstm/improv-attention", 397_352),
        ("lstm/improv-chord-pitches", 1_400_358),
        // 6,242,692 and 2,048 for each number that is told beside the events: 8, 12, 20 and 21.
        ("lstm/performance-density", 6_259_076),
        ("lstm/performance-pitches", 6_267_268),
        ("lstm/performance-controls", 6_283_652),
        ("lstm/performance-optional", 6_285_700),
        // 4 x 512 x (315 + 512 + 1), twice 4 x 512 x (512 + 512 + 1), 315 x (512 + 1).
        ("lstm/performance-note", 6_055_739),
        ("lstm/pianoroll-nade", 424_664),
        // Those of the likelihood table of JSB chorales.
        ("rnn/pianoroll", 293_108),
        ("gru/pianoroll", 295_968),
        ("lstm/pianoroll", 291_368),
        ("lstm/pianoroll-nade-quarter", 275_824),
    ] {
        // The published counts leave the attention out: W_x, W_a, b, W_k, W_q, b_q, v, W_o, b_o.
        let config = config(name);
        let (x, h) = (config.widths().unwrap().0 as u64, if count > 500_000 { 256 } else { 128 });
        let attention = match name {
            "lstm/melody-attention" | "lstm/drums" | "lstm/improv-attention" => {
                x * x + x * h + x + h * h + 2 * (2 * h * h + h) + h
            }
            _ => 0,
        };
        let count = count + attention;
        assert_eq!(config.parameter_count().unwrap(), count, "{name}");
        assert_eq!(config.build(1).unwrap().parameter_count() as u64, count, "{name}");
    }
}

#[test]
fn counts_in_the_texts_of_presets_are_those_of_their_weights() {
    let mut told = 0;
    for entry in MODELS {
        for preset in entry.presets {
            let Some((text, after)) = preset.about.split_once(" weights") else { continue };
            let name = format!("{}/{}", entry.id, preset.name);
            let number = text.rsplit(' ').next().unwrap().replace(',', "");
            let parts = config(&name).build(1).unwrap().parts().into_iter();
            let apart = after.starts_with(" and those of the attention");
            let counted = parts.filter(|part| !(apart && part.name.starts_with("attention")));
            assert_eq!(
                number.parse(),
                Ok(counted.map(|part| part.parameters).sum::<u64>()),
                "{name}"
            );
            told += 1;
        }
    }
    assert!(told >= 13, "{told}");
}

#[test]
fn attention_stands_around_a_plain_lstm_alone() {
    for cell in [Cell::Rnn, Cell::RnnRelu, Cell::Gru, Cell::GruBefore, Cell::LstmPeephole] {
        let sizes = RecurrentConfig { attention: 3, ..RecurrentConfig::plain(cell, 5, 2) };
        let fault = Recurrent::new(sizes, 7, 7, 1).err().unwrap().to_string();
        assert!(fault.starts_with("model.attention: "), "{cell:?}: {fault}");
    }
}

#[test]
fn a_row_outside_of_the_input_matrix_is_an_error() {
    for (cell, attention, embedding) in [
        (Cell::Rnn, 0, 0),
        (Cell::RnnRelu, 0, 3),
        (Cell::Gru, 0, 0),
        (Cell::GruBefore, 0, 0),
        (Cell::GruBefore, 0, 3),
        (Cell::Lstm, 0, 0),
        (Cell::Lstm, 4, 0),
        (Cell::Lstm, 4, 3),
        (Cell::LstmPeephole, 0, 0),
    ] {
        let sizes = RecurrentConfig { attention, embedding, ..RecurrentConfig::plain(cell, 5, 2) };
        let model = Recurrent::new(sizes, 7, 6, 1).unwrap();
        let mut generator = model.generator(Precision::F32).unwrap();
        for rows in [&[7][..], &[1, 4_000_000_000]] {
            assert!(generator.step(rows).is_err(), "{cell:?} {attention} {embedding} {rows:?}");
        }
        generator.reset();
        generator.step(&[6, etude_engine::NO_ID]).unwrap();
    }
}

/// Music that every encoding has something to write of: a melody over chords, and drums.
fn band() -> Score {
    let mut score = Score::new(4);
    let note = |tick, duration, pitch| Note { tick, duration, pitch, velocity: 80 };
    let scale = [60, 62, 64, 65, 67, 69, 71, 72];
    let melody = (0..64u64).map(|t| note(2 * t, 2, scale[(t * t % 8) as usize]));
    let chords = (0..8).flat_map(|bar| [48, 52, 55].map(|pitch| note(16 * bar, 16, pitch)));
    let drums = (0..64u64).map(|t| note(2 * t, 1, [36, 42, 38, 42][(t % 4) as usize]));
    score.tracks.push(Track { notes: melody.collect(), ..Track::default() });
    score.tracks.push(Track { notes: chords.collect(), ..Track::default() });
    score.tracks.push(Track { is_drum: true, notes: drums.collect(), ..Track::default() });
    score
}

#[test]
fn every_preset_learns_a_step_and_writes() {
    for entry in MODELS {
        for preset in entry.presets {
            let name = format!("{}/{}", entry.id, preset.name);
            let mut map = preset_config(&name).unwrap();
            // Small, so that the test is fast; inputs, heads and attention stay.
            for set in ["hidden=24", "layers=2"] {
                set_key(&mut map, set);
            }
            let config = ModelConfig::take(&mut map).unwrap();
            let encoding = config.encoding().unwrap();
            let scores = Scores { train: vec![("band".into(), band())], ..Scores::default() };
            let data = Dataset::new(&scores, &*encoding, config.conditions, 0).unwrap();
            let mut model = config.build(3).unwrap();
            let batch = Batch::new(&[(&data.train.get(0).unwrap(), 0)], 48);
            let mut optimizer = etude_engine::Optimizer::adam();
            let mut losses = Vec::new();
            for _ in 0..6 {
                let loss = model.loss(&batch, None).unwrap();
                losses.push(loss.item().unwrap());
                let grads = loss.backward().unwrap();
                optimizer.step(&mut *model, &grads, 3e-3).unwrap();
            }
            assert!(losses[5] < losses[0], "{name}: {losses:?}");
            let mut writer = generate::Writer::new(&config, &*model).unwrap();
            // What goes with a melody is written with one alone.
            let is_pair = config.conditions.is_pair();
            let mut request = generate::Request {
                length: generate::Length::Bars(2),
                meter: FOUR,
                tempo_bpm: 120.0,
                primer: is_pair.then(band),
                sampling: Sampling::default(),
                seed: 4,
            };
            let piece = writer.write(&request).unwrap();
            assert!(!piece.tokens.is_empty(), "{name}");
            assert_eq!(writer.write(&request).unwrap(), piece, "{name}");
            if is_pair {
                continue;
            }
            request.primer = Some(band());
            let longer = writer.write(&request).unwrap();
            assert!(longer.tokens.len() > longer.primed && longer.primed > 0, "{name}");
        }
    }
}

/// Teacher-forced scores and scores step by step are the same numbers with features as inputs.
#[test]
fn features_are_read_alike_in_whole_pieces_and_step_by_step() {
    for (name, attention) in [
        ("lstm/melody-lookback", 0),
        ("lstm/melody-attention", 5),
        ("lstm/drums", 0),
        ("lstm/drums", 4),
        ("lstm/performance-modulo", 0),
        ("lstm/improv-basic", 0),
        ("lstm/improv-attention", 5),
        ("lstm/improv-chord-pitches", 0),
        ("lstm/performance-density", 0),
        ("lstm/performance-pitches", 3),
        ("lstm/performance-controls", 0),
        ("lstm/performance-optional", 0),
        ("lstm/performance-note", 0),
        ("lstm/performance-note", 4),
    ] {
        let mut map = preset_config(name).unwrap();
        for set in ["hidden=20", "layers=2", &format!("attention={attention}")] {
            set_key(&mut map, set);
        }
        let config = ModelConfig::take(&mut map).unwrap();
        let (encoding, model) = (config.encoding().unwrap(), config.build(3).unwrap());
        let lost = None;
        let piece = piece_of("band", &band(), &*encoding, config.conditions, lost).unwrap();
        let pieces = Pieces::from(vec![piece]);
        let whole = likelihood(&*model, &pieces).unwrap();
        let steps = written_likelihood(&*model, Precision::F32, &pieces).unwrap();
        // Some hundred roundings of 6e-8 in numbers of order 1, in two orders.
        let off = (whole.per_token - steps.per_token).abs();
        assert!(off < 1e-4, "{name}: {whole:?} against {steps:?}");
    }
}

fn set_key(map: &mut serde_json::Map<String, serde_json::Value>, assignment: &str) {
    etude_models::config::set(map, assignment, &model_keys()).unwrap();
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
        (Cell::RnnRelu, 0, 0, Conditions::None),
        (Cell::GruBefore, 0, 0, Conditions::Form),
        (Cell::GruBefore, 0, 6, Conditions::None),
        (Cell::LstmPeephole, 0, 0, Conditions::Form),
        (Cell::LstmPeephole, 0, 6, Conditions::None),
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

/// After a primer what comes next is drawn step by step, and from whole sequences: the bits of the two
/// differ in the last place, so what is drawn may differ once in some million tokens.
#[test]
fn a_thousand_seeds_write_the_same_tokens_with_and_without_a_state() {
    let (vocab, length) = (9, 12);
    for (cell, attention, embedding) in [
        (Cell::Rnn, 0, 0),
        (Cell::RnnRelu, 0, 0),
        (Cell::Gru, 0, 0),
        (Cell::GruBefore, 0, 0),
        (Cell::Lstm, 0, 0),
        (Cell::LstmPeephole, 0, 0),
        (Cell::Lstm, 4, 0),
        (Cell::Lstm, 4, 3),
    ] {
        let sizes = RecurrentConfig { attention, embedding, ..RecurrentConfig::plain(cell, 7, 2) };
        for seed in 0..1000 {
            let model = Recurrent::new(sizes.clone(), vocab, vocab, seed).unwrap();
            let mut generator = model.generator(Precision::F32).unwrap();
            let mut sampler = Sampler::new(Sampling::default(), vocab);
            let mut rng = Rng::new(seed);
            let units: Vec<f32> = (0..length).map(|_| rng.unit()).collect();
            // What a step reads: nothing, a primer, what was drawn.
            let mut rows = vec![etude_engine::NO_ID];
            rows.extend((0..seed % 6).map(|_| rng.below(vocab as u32)));
            let primed = rows.len() - 1;
            generator.read(&rows[..primed], 1).unwrap();
            for unit in &units[primed..] {
                let row = &rows[rows.len() - 1..];
                rows.push(sampler.draw(generator.step(row).unwrap(), *unit, |_| true));
            }
            let drawn = rows[1..].to_vec();
            rows.pop();
            let logits = outputs(&model, rows, length, 1);
            for t in primed..length {
                let whole = sampler.draw(&logits[t * vocab..(t + 1) * vocab], units[t], |_| true);
                assert_eq!(drawn[t], whole, "{cell:?} {attention} seed {seed} token {t}");
            }
        }
    }
}

/// What the output layer says of a whole sequence, `[steps, outputs]`.
fn outputs(model: &Recurrent, rows: Vec<u32>, steps: usize, active: usize) -> Vec<f32> {
    let batch = Batch { rows, targets: vec![0; steps], keys: Vec::new(), steps, batch: 1, active };
    let mut out = Vec::new();
    model.visit(&mut |p| out.extend(p.name.starts_with("out.").then(|| p.value.clone())));
    let h = no_grad(|| model.forward(&batch, None)).unwrap();
    no_grad(|| h.linear(&out[0], Some(&out[1]))).unwrap().to_vec()
}

/// Where the two forms of a cell say the same they must be equal: a GRU's with a gate that does not
/// reset, an LSTM's with closed peepholes.
#[test]
fn the_two_forms_of_a_cell_meet_where_they_say_the_same() {
    for cells in [[Cell::Gru, Cell::GruBefore], [Cell::Lstm, Cell::LstmPeephole]] {
        let mut weights = std::collections::BTreeMap::new();
        let piece = piece(20, 7, Conditions::None, 4);
        let batch = Batch::new(&[(&piece, 0)], 20);
        let [usual, other] = cells.map(|cell| {
            let mut model = Recurrent::new(RecurrentConfig::plain(cell, 6, 2), 7, 7, 2).unwrap();
            model.visit_mut(&mut |p| {
                let kept = weights.entry(p.name.clone()).or_insert_with(|| p.value.to_vec());
                let recurrent = p.name.ends_with("b_hh");
                p.update(|w| {
                    if w.len() == kept.len() {
                        w.copy_from_slice(kept);
                    }
                });
                // Zero where the forms differ; a bias of 40 opens the reset gate all the way.
                match p.name.as_str() {
                    name if name.ends_with("peepholes") || recurrent => p.update(|w| w.fill(0.0)),
                    name if name.starts_with("gru") && name.ends_with("b_ih") => {
                        p.update(|w| w[..6].fill(40.0));
                    }
                    _ => {}
                }
            });
            model.score(&batch).unwrap().nats
        });
        for (a, b) in usual.iter().zip(&other) {
            // Sums of some ten products in another order, through 20 steps.
            assert!((a - b).abs() < 1e-5, "{cells:?}: {a} against {b}");
        }
    }
}

/// A ReLU is left to the cases of the engine: a step of a difference may cross its corner.
#[test]
fn gradients_agree_with_differences() {
    for (cell, attention, embedding) in [
        (Cell::Rnn, 0, 0),
        (Cell::Gru, 0, 4),
        (Cell::Lstm, 0, 0),
        (Cell::Lstm, 3, 0),
        (Cell::Lstm, 3, 4),
        (Cell::GruBefore, 0, 4),
        (Cell::LstmPeephole, 0, 0),
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
