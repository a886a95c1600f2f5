//! Networks that write all keys of a step at once: Bernoulli and NADE heads.

use etude_engine::{Module, NO_ID, Precision, Rng, no_grad};
use etude_models::data::{Baselines, Batch, Conditions, KEYS, Piece, Pieces};
use etude_models::evaluate::{likelihood, written_likelihood};
use etude_models::recurrent::{Cell, HeadKind, Recurrent, RecurrentConfig};
use etude_models::registry::{ModelConfig, preset_config};
use etude_models::sampling::Sampling;
use etude_models::{Model, generate};
use etude_tokenizer::{Meter, PianoRollTokens, Score};

const FOUR: Meter = Meter { tick: 0, numerator: 4, denominator: 4 };

/// A piece of random chords; the first steps hold nothing, one key and all keys.
fn piece(steps: usize, seed: u64) -> Piece {
    let mut rng = Rng::new(seed);
    let mut frames = vec![0u128, 1 << 40, (1 << KEYS) - 1];
    frames.extend(
        (3..steps)
            .map(|_| (0..rng.below(5)).fold(0u128, |keys, _| keys | 1 << (20 + rng.below(40)))),
    );
    let tokens: Vec<u32> = frames.into_iter().flat_map(PianoRollTokens::tokens_of).collect();
    Piece {
        name: "random".into(),
        input: Conditions::Keys.input(KEYS, FOUR, steps),
        tokens,
        meter: FOUR,
        notes: steps,
        frames: steps - 1,
        seconds: steps as f64,
    }
}

fn network(head: HeadKind, cell: Cell, attention: usize) -> Recurrent {
    let sizes = RecurrentConfig { head, attention, ..RecurrentConfig::plain(cell, 13, 2) };
    Recurrent::new(sizes, KEYS, KEYS, 5).unwrap()
}

/// The chain as it is published, in f64: one key after another.
fn nade_by_hand(model: &Recurrent, outputs: &[f32], keys: u128, units: usize) -> f64 {
    let (mut w, mut v) = (Vec::new(), Vec::new());
    model.visit(&mut |p| match p.name.as_str() {
        "nade.w" => w = p.value.to_vec(),
        "nade.v" => v = p.value.to_vec(),
        _ => {}
    });
    let (b_dec, b_enc) = outputs.split_at(KEYS);
    let mut a: Vec<f64> = b_enc.iter().map(|x| f64::from(*x)).collect();
    let mut nats = 0.0;
    for (key, b_dec) in b_dec.iter().enumerate() {
        let row = key * units..(key + 1) * units;
        let hidden = a.iter().map(|a| 1.0 / (1.0 + (-a).exp()));
        let product: f64 = v[row.clone()].iter().zip(hidden).map(|(v, h)| f64::from(*v) * h).sum();
        let p = 1.0 / (1.0 + (-(f64::from(*b_dec) + product)).exp());
        let sounds = keys >> key & 1 == 1;
        nats -= if sounds { p.ln() } else { (1.0 - p).ln() };
        if sounds {
            a.iter_mut().zip(&w[row]).for_each(|(a, w)| *a += f64::from(*w));
        }
    }
    nats
}

#[test]
fn the_pieces_of_a_chain_are_the_chain() {
    let units = 9;
    let model = network(HeadKind::Nade(units), Cell::Lstm, 0);
    let piece = piece(30, 3);
    let scored = model.score(&Batch::new(&[(&piece, 0)], 10_000)).unwrap();
    let mut generator = model.generator(Precision::F32).unwrap();
    let mut before = 0u128;
    for (t, keys) in PianoRollTokens::frames(&piece.tokens).into_iter().enumerate() {
        let mut rows: Vec<u32> = (0..KEYS as u32).filter(|key| before >> key & 1 == 1).collect();
        rows.push(etude_engine::NO_ID);
        let outputs = generator.step(&rows).unwrap().to_vec();
        let nats = nade_by_hand(&model, &outputs, keys, units);
        // 88 terms of order 1, each off by some ten roundings of 6e-8.
        let off = (nats - f64::from(scored.nats[t])).abs();
        assert!(off < 1e-4, "step {t}: {nats} against {}", scored.nats[t]);
        before = keys;
    }
}

/// Keys are drawn step by step, and from whole sequences by the published chain: the bits of the two
/// differ in the last place, so what is drawn may differ once in some million keys.
#[test]
fn a_thousand_seeds_write_the_same_keys_with_and_without_a_state() {
    let (steps, units) = (3, 5);
    for (head, cell, attention) in [
        (HeadKind::Bernoulli, Cell::Gru, 0),
        (HeadKind::Bernoulli, Cell::Lstm, 3),
        (HeadKind::Nade(units), Cell::Rnn, 0),
        (HeadKind::Nade(units), Cell::Lstm, 3),
    ] {
        let sizes = RecurrentConfig { head, attention, ..RecurrentConfig::plain(cell, 6, 2) };
        for seed in 0..1000 {
            let model = Recurrent::new(sizes.clone(), KEYS, KEYS, seed).unwrap();
            let mut generator = model.generator(Precision::F32).unwrap();
            let (mut rng, mut before) = (Rng::new(seed), 0u128);
            let (mut rows, mut drawn) = (Vec::new(), Vec::new());
            for _ in 0..steps {
                let mut of_step = vec![NO_ID; KEYS];
                let sounding = (0..KEYS as u32).filter(|key| before >> key & 1 == 1);
                of_step.iter_mut().zip(sounding).for_each(|(row, key)| *row = key);
                let mut draw = |logit: f32| rng.unit() < 1.0 / (1.0 + (-logit).exp());
                before = generator.step_keys(&of_step, &mut draw).unwrap();
                drawn.push(before);
                rows.extend(of_step);
            }
            let (targets, keys) = (vec![0; steps], Vec::new());
            let batch = Batch { rows, targets, keys, steps, batch: 1, active: KEYS };
            let (mut weights, mut rng) = (Vec::new(), Rng::new(seed));
            model.visit(&mut |p| weights.push((p.name.clone(), p.value.clone())));
            let weight = |name: &str| &weights.iter().find(|(n, _)| n == name).unwrap().1;
            let (w, b) = (weight("out.weight"), weight("out.bias"));
            let h = no_grad(|| model.forward(&batch, None)).unwrap();
            let outputs = no_grad(|| h.linear(w, Some(b))).unwrap();
            for (step, outputs) in outputs.to_vec().chunks_exact(b.len()).enumerate() {
                let (b_dec, b_enc) = outputs.split_at(KEYS);
                let mut a: Vec<f64> = b_enc.iter().map(|x| f64::from(*x)).collect();
                let chain =
                    (!a.is_empty()).then(|| ["nade.w", "nade.v"].map(|n| weight(n).to_vec()));
                let mut keys = 0u128;
                for (key, b_dec) in b_dec.iter().enumerate() {
                    let row = key * units..(key + 1) * units;
                    let told = chain.as_ref().map_or(0.0, |[_, v]| {
                        let hidden = a.iter().map(|a| 1.0 / (1.0 + (-a).exp()));
                        v[row.clone()].iter().zip(hidden).map(|(v, h)| f64::from(*v) * h).sum()
                    });
                    let p = 1.0 / (1.0 + (-(f64::from(*b_dec) + told)).exp());
                    if f64::from(rng.unit()) < p {
                        keys |= 1 << key;
                        chain.iter().for_each(|[w, _]| {
                            a.iter_mut()
                                .zip(&w[row.clone()])
                                .for_each(|(a, w)| *a += f64::from(*w));
                        });
                    }
                }
                assert_eq!(drawn[step], keys, "{head:?} {cell:?} seed {seed} step {step}");
            }
        }
    }
}

#[test]
fn whole_pieces_and_single_steps_have_the_same_likelihood() {
    for (head, cell, attention) in [
        (HeadKind::Bernoulli, Cell::Rnn, 0),
        (HeadKind::Bernoulli, Cell::Lstm, 4),
        (HeadKind::Nade(7), Cell::Gru, 0),
        (HeadKind::Nade(7), Cell::Lstm, 4),
    ] {
        let model = network(head, cell, attention);
        // Of several lengths, so that a batch has steps that do not count.
        let pieces: Vec<Piece> = [20, 5, 33].into_iter().map(|n| piece(n, n as u64)).collect();
        let pieces = Pieces::from(pieces);
        let whole = likelihood(&model, &pieces).unwrap();
        let steps = written_likelihood(&model, Precision::F32, &pieces).unwrap();
        assert_eq!((whole.tokens, steps.tokens), (55, 55));
        assert_eq!(whole.accuracy, steps.accuracy);
        let off = (whole.per_frame - steps.per_frame).abs();
        assert!(off < 1e-4, "{head:?} {cell:?}: {whole:?} against {steps:?}");
    }
}

#[test]
fn gradients_agree_with_differences() {
    for head in [HeadKind::Bernoulli, HeadKind::Nade(6)] {
        let mut model = network(head, Cell::Gru, 0);
        let pieces = [piece(9, 4), piece(6, 5)];
        let batch = Batch::new(&[(&pieces[0], 0), (&pieces[1], 0)], 10_000);
        let grads = model.loss(&batch, None).unwrap().backward().unwrap();
        let mut analytic = Vec::new();
        model.visit(&mut |p| {
            let d = grads.get(&p.value).expect("every weight has a gradient");
            analytic.push((p.name.clone(), d.to_vec()));
        });
        let mut shifted = |name: &str, at: usize, by: f32| {
            model.visit_mut(&mut |p| {
                if p.name == name {
                    p.update(|w| w[at] += by);
                }
            });
            f64::from(model.loss(&batch, None).unwrap().item().unwrap())
        };
        for (name, d) in &analytic {
            for at in [0, d.len() / 3, d.len() / 2, d.len() - 1] {
                let by = 0.03;
                let above = shifted(name, at, by);
                let below = shifted(name, at, -2.0 * by);
                shifted(name, at, by);
                let difference = (above - below) / (2.0 * f64::from(by));
                // A loss of 60 known to 4e-6: 1.3e-4 from rounding; by^2 / 6 of a third derivative
                // of at most some units: 1e-3.
                let off = (difference - f64::from(d[at])).abs();
                assert!(off < 2e-3, "{head:?} {name}[{at}]: {difference} against {}", d[at]);
            }
        }
    }
}

#[test]
fn windows_begin_at_whole_steps() {
    let piece = piece(40, 8);
    let frames = PianoRollTokens::frames(&piece.tokens);
    let is_end = |at: &usize| piece.tokens[*at] == PianoRollTokens::STEP_END;
    let ends: Vec<usize> = (0..piece.tokens.len()).filter(is_end).collect();
    let begins: Vec<usize> = [0].into_iter().chain(ends.iter().map(|end| end + 1)).collect();
    let mut without = 0;
    for from in 0..piece.tokens.len() {
        let batch = Batch::new(&[(&piece, from)], 30);
        let is_whole = |step: &usize| begins[*step] >= from && ends[*step] < from + 30;
        let mut wanted: Vec<usize> = (0..frames.len()).filter(is_whole).collect();
        if wanted.is_empty() {
            // The one in which it begins.
            wanted.push(ends.iter().filter(|end| **end < from).count());
            without += 1;
        }
        let keys: Vec<u128> = wanted.iter().map(|step| frames[*step]).collect();
        assert_eq!(batch.keys, keys, "{from}");
        for (t, step) in wanted.into_iter().enumerate() {
            let rows = &batch.rows[t * batch.active..(t + 1) * batch.active];
            let read = rows.iter().filter(|r| **r != etude_engine::NO_ID);
            let read = read.fold(0u128, |keys, row| keys | 1 << row);
            let before = step.checked_sub(1).map_or(0, |before| frames[before]);
            assert_eq!(read, before, "{from} {t}");
        }
    }
    // In the step of all keys, and at the end of the piece.
    assert!((50..90).contains(&without), "{without}");
}

#[test]
fn baselines_count_keys_and_keys_after_themselves() {
    // One key, on in steps 2 and 3 of 4 (the first is not counted): 2 of 3; off after off never.
    let tokens: Vec<u32> =
        [0u128, 1, 1, 0].into_iter().flat_map(PianoRollTokens::tokens_of).collect();
    let mut piece = piece(4, 1);
    piece.tokens = tokens;
    let pieces = Pieces::from(vec![piece]);
    let baselines = Baselines::new(&pieces, &pieces, KEYS).unwrap();
    let others = 87.0 * (4.0f64 / 3.5).ln();
    let marginal = (2.0 * (4.0f64 / 2.5).ln() + (4.0f64 / 1.5).ln()) / 3.0 + others;
    // After silence 1 of 1 sounds; after sound 1 of 2.
    let markov = ((2.0f64 / 1.5).ln() + 2.0 * (3.0f64 / 1.5).ln()) / 3.0 + others;
    assert!((baselines.marginal - marginal).abs() < 1e-9, "{baselines:?} {marginal}");
    assert!((baselines.markov - markov).abs() < 1e-9, "{baselines:?} {markov}");
}

#[test]
fn pieces_of_keys_are_written_and_continued() {
    for name in ["rnn/pianoroll", "gru/pianoroll", "lstm/pianoroll", "lstm/pianoroll-nade"] {
        let config = ModelConfig::take(&mut preset_config(name).unwrap()).unwrap();
        let model = config.build(7).unwrap();
        let mut writer = generate::Writer::new(&config, &*model).unwrap();
        let mut request = generate::Request {
            length: generate::Length::Bars(3),
            meter: FOUR,
            tempo_bpm: 90.0,
            primer: None,
            sampling: Sampling::default(),
            seed: 1,
        };
        let steps = |tokens: &[u32]| PianoRollTokens::frames(tokens).len();
        let bar = if name.ends_with("nade") { 16 } else { 4 };
        let first = writer.write(&request).unwrap();
        assert_eq!(steps(&first.tokens), 3 * bar, "{name}");
        assert!(first.score.note_count() > 0);
        assert_eq!(writer.write(&request).unwrap(), first);
        let mut heard = Vec::new();
        let mut hear = |token, at| {
            heard.push((token, at));
            heard.len() < 20
        };
        let short = writer.write_watched(&request, None, &mut hear).unwrap();
        // It ends with the step in which the listener had enough.
        assert_eq!(heard.iter().map(|h| h.0).collect::<Vec<_>>(), first.tokens[..20]);
        assert_eq!(short.tokens[..20], first.tokens[..20]);
        assert_eq!(steps(&short.tokens), 1 + steps(&first.tokens[..19]), "{name}");
        assert_eq!(heard[19].1, steps(&first.tokens[..20]) as f64 / bar as f64);
        request.sampling.beam = 2;
        assert!(writer.write(&request).unwrap_err().to_string().starts_with("beam: a search"));
        request.sampling.beam = 1;
        request.seed = 2;
        assert_ne!(writer.write(&request).unwrap().tokens, first.tokens);
        request.primer = Some(first.score.clone());
        let longer = writer.write(&request).unwrap();
        let primed = config.encoding().unwrap().encode(&first.score).unwrap().tokens;
        assert_eq!(longer.tokens[..longer.primed], primed);
        assert_eq!(steps(&longer.tokens[longer.primed..]), 3 * bar, "{name}");
        let silence = Score::new(4);
        request.primer = Some(silence);
        assert!(writer.write(&request).unwrap_err().to_string().contains("holds no notes"));
    }
}

#[test]
fn heads_inputs_and_encodings_that_do_not_fit_are_told() {
    for (set, wanted) in [
        ("head=softmax", "model.conditions: all keys"),
        ("conditions=none", "conditions = none"),
        ("encoding=melody", "encoding = melody"),
        ("head=rbm", "model.head: \"rbm\" is not one of softmax, bernoulli, nade"),
        ("nade=0", "model.nade"),
    ] {
        let mut map = preset_config("lstm/pianoroll-nade").unwrap();
        let keys = etude_models::registry::model_keys();
        etude_models::config::set(&mut map, set, &keys).unwrap();
        let fault = ModelConfig::take(&mut map).unwrap_err().to_string();
        assert!(fault.contains(wanted), "{set}: {fault}");
    }
}
