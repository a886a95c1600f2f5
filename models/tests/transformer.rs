//! The Transformer: one token at a time against whole sequences, gradients, threads, faults.

use etude_engine::{Activation, Module, Pool, Products, Rng, no_grad, set_products};
use etude_models::data::{Batch, Conditions, NO_TARGET, Piece};
use etude_models::registry::{ModelConfig, preset_config};
use etude_models::sampling::{Sampler, Sampling};
use etude_models::transformer::{Positions, Transformer, TransformerConfig};
use etude_models::{Generator, Model, Precision, config};
use etude_tokenizer::Meter;

mod support;

const FOUR: Meter = Meter { tick: 0, numerator: 4, denominator: 4 };

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

/// One of each kind: every way to tell places, every mask, both norms, both outputs.
fn kinds() -> Vec<TransformerConfig> {
    let plain = TransformerConfig { context: 16, ..TransformerConfig::plain(12, 2, 3, 20) };
    let with = |positions| TransformerConfig { positions, ..plain.clone() };
    let sparse = TransformerConfig { context: 48, ..with(Positions::Learned) };
    vec![
        plain.clone(),
        with(Positions::Learned),
        with(Positions::Sinusoidal),
        with(Positions::Rotary),
        TransformerConfig { local: 5, tied: true, ..plain.clone() },
        TransformerConfig { local: 7, pre_norm: false, ..with(Positions::Sinusoidal) },
        TransformerConfig { pre_norm: false, activation: Activation::Relu, ..plain.clone() },
        TransformerConfig { sparse_block: 8, sparse_stride: 3, ..sparse },
        TransformerConfig { heads: 1, layers: 1, tied: true, ..with(Positions::Rotary) },
    ]
}

/// Teacher-forced scores and scores of the generator, step by step, must be the same numbers, beyond
/// the context too.
#[test]
fn the_generator_says_what_the_whole_sequence_says() {
    let vocab = 11;
    for (at, sizes) in kinds().into_iter().enumerate() {
        let conditions = if at % 2 == 0 { Conditions::Form } else { Conditions::None };
        let rows = conditions.input(vocab, FOUR, 40).rows();
        let model = Transformer::new(sizes, rows, vocab, 5).unwrap();
        let (one, two) = (piece(40, 11, conditions, 9), piece(33, 11, conditions, 10));
        let batch = Batch::new(&[(&one, 0), (&two, 0)], 40);
        let scored = model.score(&batch).unwrap();
        let mut generator = model.generator(Precision::F32).unwrap();
        for (column, piece) in [&one, &two, &one].into_iter().enumerate() {
            generator.reset();
            let mut rows = vec![0; piece.input.active()];
            for (t, &token) in piece.tokens.iter().enumerate() {
                piece.input.fill(&piece.tokens, t, &mut rows);
                let logits = generator.step(&rows).unwrap();
                let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
                let nats = sum.ln() - f64::from(logits[token as usize]);
                // Two orders of at most 40 products a sum, in two layers: some hundred roundings of
                // 6e-8 each, of numbers that a norm may make some times larger.
                let off = (nats - f64::from(scored.nats[t * 2 + column % 2])).abs();
                assert!(off < 1e-4, "kind {at} piece {column} step {t}: {off}");
            }
        }
    }
}

/// What comes next is drawn from the whole sequence alike: the bits of the two differ in the last place,
/// so what is drawn may differ once in some million tokens.
#[test]
fn a_thousand_seeds_write_the_same_tokens_with_and_without_a_cache() {
    let (vocab, length) = (9, 14);
    for (kind, sizes) in kinds().into_iter().enumerate() {
        for seed in 0..1000 {
            let model = Transformer::new(sizes.clone(), vocab, vocab, seed).unwrap();
            let mut generator = model.generator(Precision::F32).unwrap();
            let mut sampler = Sampler::new(Sampling::default(), vocab);
            let mut rng = Rng::new(seed);
            let units: Vec<f32> = (0..length).map(|_| rng.unit()).collect();
            // What a step reads: nothing, a primer, what was drawn.
            let mut rows = vec![etude_engine::NO_ID];
            rows.extend((0..seed % 8).map(|_| rng.below(vocab as u32)));
            let primed = rows.len() - 1;
            generator.read(&rows[..primed], 1).unwrap();
            for unit in &units[primed..] {
                let row = &rows[rows.len() - 1..];
                rows.push(sampler.draw(generator.step(row).unwrap(), *unit, |_| true));
            }
            let (targets, keys) = (vec![0; length], Vec::new());
            let drawn = rows[1..].to_vec();
            rows.pop();
            let batch = Batch { rows, targets, keys, steps: length, batch: 1, active: 1 };
            let logits = no_grad(|| model.forward(&batch, None)).unwrap().to_vec();
            for t in primed..length {
                let whole = sampler.draw(&logits[t * vocab..(t + 1) * vocab], units[t], |_| true);
                assert_eq!(drawn[t], whole, "kind {kind} seed {seed} token {t}");
            }
        }
    }
}

/// In one go, in two, past the end of the context: what a primer leaves behind does not depend on how it
/// was read.
#[test]
fn tokens_read_side_by_side_leave_the_bits_of_tokens_read_one_by_one() {
    let mut all = kinds();
    // Several panels of weights, more tokens than go side by side.
    let wide = TransformerConfig { context: 96, ..TransformerConfig::plain(80, 2, 2, 144) };
    all.push(TransformerConfig { positions: Positions::Rotary, ..wide.clone() });
    all.push(wide);
    for (kind, sizes) in all.into_iter().enumerate() {
        let model = Transformer::new(sizes, 11, 11, 5).unwrap();
        let tokens = piece(140, 11, Conditions::None, 9).tokens;
        for precision in Precision::ALL {
            let mut one = model.stepper(precision).unwrap();
            let wanted: Vec<Vec<f32>> =
                tokens.iter().map(|t| one.step(&[*t]).unwrap().to_vec()).collect();
            let mut some = model.stepper(precision).unwrap();
            for (first, second) in [(1, 0), (2, 3), (16, 1), (64, 66), (0, 131), (139, 0)] {
                some.reset();
                some.read(&tokens[..first], 1).unwrap();
                some.read(&tokens[first..first + second], 1).unwrap();
                for t in (first + second..tokens.len()).take(9) {
                    let logits = some.step(&tokens[t..t + 1]).unwrap();
                    assert!(logits == wanted[t], "kind {kind} {precision:?} {first} {second} {t}");
                }
            }
        }
        let mut some = model.stepper(Precision::F32).unwrap();
        assert!(some.read(&[3, 11, 4], 1).is_err(), "kind {kind}");
    }
}

/// Loss and gradients have the bits of a training that keeps everything, and random numbers go on from
/// the same place.
#[test]
fn a_block_that_is_computed_again_has_the_same_bits() {
    for (kind, sizes) in kinds().into_iter().enumerate() {
        let sizes = TransformerConfig { dropout: 0.3, context: sizes.context.max(20), ..sizes };
        let pieces: Vec<Piece> = (0..3).map(|s| piece(20, 9, Conditions::None, s)).collect();
        let windows: Vec<(&Piece, usize)> = pieces.iter().map(|p| (p, 0)).collect();
        let batch = Batch::new(&windows, 20);
        for products in [Products::F32, Products::Bf16] {
            let _products = set_products(products);
            let [kept, again] = [false, true].map(|recompute| {
                let sizes = TransformerConfig { recompute, ..sizes.clone() };
                let model = Transformer::new(sizes, 9, 9, 4).unwrap();
                let mut all = Vec::new();
                for mut rng in [None, Some(Rng::new(8))] {
                    let loss = model.loss(&batch, rng.as_mut()).unwrap();
                    all.push(loss.to_vec());
                    let grads = loss.backward().unwrap();
                    model.visit(&mut |p| all.push(grads.get(&p.value).unwrap().to_vec()));
                    all.push(rng.iter().map(|rng| rng.position as f32).collect());
                }
                all
            });
            assert!(kept == again, "kind {kind} {products:?}");
        }
    }
}

#[test]
fn a_generator_goes_back_to_where_it_was() {
    let sizes = kinds().swap_remove(0);
    let model = Transformer::new(sizes, 9, 9, 3).unwrap();
    let mut generator = model.stepper(Precision::F32).unwrap();
    let mut steps = |tokens: &[u32]| -> Vec<Vec<f32>> {
        tokens.iter().map(|t| generator.step(&[*t]).unwrap().to_vec()).collect()
    };
    let first = steps(&[1, 2, 3, 4, 5]);
    assert!(generator.rewind(2));
    assert!(!generator.rewind(3));
    let mut steps = |tokens: &[u32]| -> Vec<Vec<f32>> {
        tokens.iter().map(|t| generator.step(&[*t]).unwrap().to_vec()).collect()
    };
    assert_eq!(steps(&[3, 4, 5]), first[2..]);
    // Its context are 16 tokens: of those before, too few are left.
    steps(&[6; 20]);
    assert!(!generator.rewind(24));
}

/// Where the context ends the older half goes, in whole patterns: what follows is what a sequence says
/// that begins where the kept tokens begin. One layer, so that these know of nothing before, and places
/// by distance alone.
#[test]
fn sparse_attention_goes_on_beyond_its_context() {
    let sizes = TransformerConfig {
        context: 48,
        positions: Positions::Rotary,
        ..TransformerConfig::plain(12, 1, 3, 20)
    };
    let sizes = TransformerConfig { sparse_block: 8, sparse_stride: 3, ..sizes };
    let model = Transformer::new(sizes, 11, 11, 5).unwrap();
    let mut generator = model.generator(Precision::F32).unwrap();
    let tokens = piece(130, 11, Conditions::None, 9).tokens;
    let inputs: Vec<u32> = [etude_engine::NO_ID].iter().chain(&tokens).copied().collect();
    let mut cuts = 0;
    for t in 0..130 {
        let logits = generator.step(&inputs[t..t + 1]).unwrap().to_vec();
        // 24 tokens are a whole pattern of blocks of 8 and columns 3 apart.
        let from = if t < 48 { 0 } else { (t / 24 - 1) * 24 };
        cuts += usize::from(t >= 48 && t % 24 == 0);
        let rows = inputs[from..=t].to_vec();
        let steps = rows.len();
        let batch =
            Batch { rows, targets: vec![0; steps], keys: Vec::new(), steps, batch: 1, active: 1 };
        let whole = model.forward(&batch, None).unwrap().to_vec();
        for (a, b) in logits.iter().zip(&whole[(steps - 1) * 11..]) {
            // Angles up to 130 are known to 4e-6; some hundred roundings of 6e-8 beside that.
            assert!((a - b).abs() < 1e-4, "step {t}: {a} against {b}");
        }
    }
    assert_eq!(cuts, 4);
}

#[test]
fn gradients_agree_with_differences() {
    for (at, sizes) in kinds().into_iter().enumerate() {
        // Smooth: a kink has no slope that a difference could tell; PyTorch's numbers have one.
        let activation = Activation::Gelu;
        let sizes = TransformerConfig { context: sizes.context.max(14), activation, ..sizes };
        let mut model = Transformer::new(sizes, 7, 7, 2).unwrap();
        let piece = piece(12, 7, Conditions::None, 4);
        let batch = Batch::new(&[(&piece, 0)], 12);
        support::check_gradients(&mut model, &batch, &format!("kind {at}"));
    }
}

#[test]
fn a_token_is_written_without_one_allocation() {
    for precision in Precision::ALL {
        for sizes in kinds() {
            let model = Transformer::new(sizes, 20, 20, 5).unwrap();
            let mut generator = model.generator(precision).unwrap();
            let mut write = |count: u32| {
                for t in 0..count {
                    generator.step(&[t % 20]).unwrap();
                }
            };
            write(60); // what lives as long as the thread is set up
            assert_eq!(allocation_counter::measure(|| write(100)).count_total, 0);
        }
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let sizes = TransformerConfig { dropout: 0.2, ..TransformerConfig::plain(64, 2, 4, 128) };
    let model = Transformer::new(sizes, 30, 30, 1).unwrap();
    let pieces: Vec<Piece> = (0..3).map(|s| piece(150, 30, Conditions::None, s)).collect();
    let windows: Vec<(&Piece, usize)> = pieces.iter().map(|p| (p, 0)).collect();
    let batch = Batch::new(&windows, 150);
    let run = |threads: usize| -> Vec<Vec<f32>> {
        Pool::new(threads).unwrap().run(|| {
            let loss = model.loss(&batch, Some(&mut Rng::new(3))).unwrap();
            let mut all = vec![loss.to_vec()];
            let grads = loss.backward().unwrap();
            model.visit(&mut |p| all.push(grads.get(&p.value).unwrap().to_vec()));
            let mut generator = model.generator(Precision::F32).unwrap();
            all.extend((0..40).map(|t| generator.step(&[t % 30]).unwrap().to_vec()));
            all
        })
    };
    let one = run(1);
    for threads in [2, 3] {
        assert!(run(threads) == one, "{threads} threads");
    }
}

#[test]
fn parts_of_a_batch_add_up_to_its_gradient() {
    let model = Transformer::new(kinds().swap_remove(0), 9, 9, 1).unwrap();
    let pieces: Vec<Piece> =
        (0..5).map(|s| piece(8 + 2 * s as usize, 9, Conditions::None, s)).collect();
    let windows: Vec<(&Piece, usize)> = pieces.iter().map(|p| (p, 0)).collect();
    let batch = Batch::new(&windows, 16);
    let gradient = |batch: &Batch| -> Vec<f32> {
        let grads = model.loss(batch, None).unwrap().backward().unwrap();
        let mut all = Vec::new();
        model.visit(&mut |p| all.extend(grads.get(&p.value).unwrap().to_vec()));
        all
    };
    let whole = gradient(&batch);
    let parts = batch.parts(3);
    assert_eq!(parts.iter().map(|p| p.batch).collect::<Vec<_>>(), [1, 2, 2]);
    let mut sum = vec![0.0; whole.len()];
    for part in &parts {
        let share = part.target_count() as f32 / batch.target_count() as f32;
        sum.iter_mut().zip(gradient(part)).for_each(|(sum, d)| *sum += share * d);
    }
    // Sums of 60 terms of at most 1 in another order.
    let off = whole.iter().zip(&sum).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off < 60.0 * f32::EPSILON, "{off}");
}

#[test]
fn label_smoothing_is_a_mean_over_all_tokens() {
    let sizes = TransformerConfig { label_smoothing: 0.3, ..kinds().swap_remove(0) };
    let model = Transformer::new(sizes, 9, 9, 1).unwrap();
    let (one, two) = (piece(12, 9, Conditions::None, 1), piece(7, 9, Conditions::None, 2));
    let batch = Batch::new(&[(&one, 0), (&two, 0)], 12);
    let smooth = model.loss(&batch, Some(&mut Rng::new(1))).unwrap().item().unwrap();
    let logits = model.forward(&batch, None).unwrap().to_vec();
    let mut wanted = 0.0;
    for (row, logits) in logits.chunks_exact(9).enumerate() {
        let target = batch.targets[row % 12 * 2 + row / 12];
        if target == NO_TARGET {
            continue;
        }
        let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        let nats = |x: f32| sum.ln() - f64::from(x);
        let all: f64 = logits.iter().map(|x| nats(*x)).sum();
        wanted += 0.7 * nats(logits[target as usize]) + 0.3 * all / 9.0;
    }
    // Some roundings of a loss of about 2.
    assert!((f64::from(smooth) - wanted / 19.0).abs() < 2e-6, "{smooth} {}", wanted / 19.0);
    // Without random numbers it is the plain likelihood: what is told and validated.
    let plain = model.loss(&batch, None).unwrap().item().unwrap();
    let nats: f32 = model.score(&batch).unwrap().nats.iter().sum();
    assert!((plain - nats / 19.0).abs() < 1e-5 && plain != smooth);
}

#[test]
fn sizes_that_do_not_fit_together_are_named() {
    for (sets, wanted) in [
        (&["heads=5"][..], "model.heads: 5 heads"),
        (&["positions=rope", "hidden=12", "heads=4"], "model.positions"),
        (&["local=600"], "model.local"),
        (&["sparse_block=8"], "model.sparse_stride"),
        (&["sparse_block=8", "sparse_stride=4"], "model.sparse_block"),
        (&["norm=both"], "model.norm"),
        (&["attention=40"], "model.attention: unknown key"),
    ] {
        let mut map = preset_config("transformer/music-transformer-tiny").unwrap();
        let keys = etude_models::registry::model_keys();
        sets.iter().for_each(|set| config::set(&mut map, set, &keys).unwrap());
        let fault = ModelConfig::take(&mut map).unwrap_err().to_string();
        assert!(fault.starts_with(wanted), "{sets:?}: {fault}");
    }
    let odd = TransformerConfig::plain(10, 1, 3, 8);
    assert!(Transformer::new(odd, 4, 4, 1).is_err());
    let model = Transformer::new(kinds().swap_remove(0), 4, 4, 1).unwrap();
    assert!(model.generator(Precision::F32).unwrap().step(&[4]).is_err());
    let (rows, targets, keys) = (vec![4], vec![0], Vec::new());
    let outside = Batch { rows, targets, keys, steps: 1, batch: 1, active: 1 };
    assert!(model.loss(&outside, None).is_err());
}
