//! Adapters: gradients reach the pairs alone, sums are what is written with, files fit one model.
#![cfg(feature = "train")]

use etude_engine::{
    Dtype, Module, Param, Rng, Tensor, WeightFile, named_parameters, write_weights,
};
use etude_models::data::{Batch, Conditions, Piece, Pieces};
use etude_models::evaluate::{likelihood, written_likelihood};
use etude_models::lora::{Adapted, Lora, add_adapter, blend, extract};
use etude_models::registry::{self, ModelConfig, preset_config};
use etude_models::{Generator, Model, Part, Precision, Result, Scored};
use etude_models::{config, read_model, save_weights};
use etude_tokenizer::Meter;
use serde_json::{Map, Value, json};

const LORA: Lora = Lora { rank: 3, alpha: 16.0 };

fn config(name: &str, sets: &[&str]) -> ModelConfig {
    let mut map = preset_config(name).unwrap();
    for set in ["hidden=12", "conditions=none", "dropout=0"].iter().chain(sets) {
        config::set(&mut map, set, &registry::model_keys()).unwrap();
    }
    ModelConfig::take(&mut map).unwrap()
}

fn all() -> Vec<ModelConfig> {
    vec![
        config("rnn/basic", &[]),
        config("gru/basic", &["embedding=7"]),
        config("lstm/melody-basic", &[]),
        config("lstm/melody-attention", &["attention=5"]),
    ]
}

fn piece(vocab: u32, seed: u64) -> Piece {
    let mut rng = Rng::new(seed);
    let meter = Meter { tick: 0, numerator: 4, denominator: 4 };
    Piece {
        name: "random".into(),
        tokens: (0..30).map(|_| rng.below(vocab)).collect(),
        input: Conditions::None.input(vocab as usize, meter, 30),
        meter: Meter { tick: 0, numerator: 4, denominator: 4 },
        notes: 30,
        frames: 30,
        seconds: 30.0,
    }
}

fn vocab(config: &ModelConfig) -> u32 {
    config.encoding().unwrap().vocab_size() as u32
}

fn weights(model: &dyn Model) -> Vec<(String, Vec<f32>)> {
    named_parameters(model).into_iter().map(|(name, t)| (name, t.to_vec())).collect()
}

/// A model with pairs that are not 0, as if it had learned.
fn adapted(config: &ModelConfig, seed: u64) -> Adapted {
    let mut model = Adapted::new(config.build(1).unwrap(), LORA, seed).unwrap();
    let mut rng = Rng::new(seed);
    model.visit_mut(&mut |p| {
        if p.name.ends_with(".lora_b") {
            p.update(|b| rng.fill_uniform(b, -0.1, 0.1));
        }
    });
    model
}

/// The file of a run: configuration, weights and pairs.
fn file(config: &ModelConfig, model: &dyn Model) -> Vec<u8> {
    let train = json!({ "lora": LORA.rank, "lora_alpha": LORA.alpha });
    let settings = Map::from_iter([
        ("model".to_string(), Value::Object(config.write())),
        ("train".to_string(), train),
    ]);
    save_weights(model, &settings, 7, Dtype::F32).unwrap()
}

fn adapter(config: &ModelConfig, seed: u64) -> Vec<u8> {
    extract(&file(config, &adapted(config, seed)), config, LORA, "run").unwrap()
}

#[test]
fn a_fresh_adapter_changes_nothing_and_only_its_pairs_learn() {
    for config in all() {
        let piece = piece(vocab(&config), 3);
        let batch = Batch::new(&[(&piece, 0)], 100);
        let base = config.build(1).unwrap();
        let plain = base.loss(&batch, None).unwrap().item().unwrap();
        let before = weights(&*base);
        let mut model = Adapted::new(base, LORA, 5).unwrap();
        let loss = model.loss(&batch, None).unwrap();
        assert_eq!(loss.item().unwrap(), plain, "{}", config.id);
        let grads = loss.backward().unwrap();
        let mut pairs = 0;
        model.visit(&mut |p| {
            let learns = grads.get(&p.value).is_some();
            let is_pair = p.name.contains(".lora_");
            assert_eq!(learns, is_pair, "{}", p.name);
            // B is 0, so that nothing reaches A in the first step; B itself has a gradient.
            if p.name.ends_with(".lora_b") {
                pairs += 1;
                assert!(
                    grads.get(&p.value).unwrap().to_vec().iter().any(|d| *d != 0.0),
                    "{}",
                    p.name
                );
            }
        });
        assert!(pairs >= 3, "{}", config.id);
        // Every matrix with more than 3 rows and columns has a pair, and nothing else has.
        let matrices = named_parameters(&model);
        let is_matrix = |s: &[usize]| s.len() == 2 && s.iter().all(|n| *n > LORA.rank);
        let wanted =
            matrices.iter().filter(|(name, t)| !name.contains(".lora_") && is_matrix(t.shape()));
        assert_eq!(pairs, wanted.count());
        // Ten steps of training move the pairs and leave the weights bit for bit.
        let mut optimizer = etude_engine::Optimizer::adam();
        for _ in 0..10 {
            let grads = model.loss(&batch, None).unwrap().backward().unwrap();
            optimizer.step(&mut model, &grads, 0.01).unwrap();
        }
        let after = weights(&model);
        assert_eq!(after[..before.len()], before, "{}", config.id);
        assert!(model.loss(&batch, None).unwrap().item().unwrap() < plain - 0.05, "{}", config.id);
    }
}

#[test]
fn gradients_of_the_pairs_are_the_slopes_of_the_loss() {
    let config = config("gru/basic", &["layers=1"]);
    let piece = piece(vocab(&config), 3);
    let batch = Batch::new(&[(&piece, 0)], 12);
    let mut model = adapted(&config, 4);
    let loss = |model: &Adapted| f64::from(model.loss(&batch, None).unwrap().item().unwrap());
    let grads = model.loss(&batch, None).unwrap().backward().unwrap();
    let mut slopes = Vec::new();
    model.visit(&mut |p| {
        if p.name.contains(".lora_") {
            slopes.push((p.name.clone(), grads.get(&p.value).unwrap().to_vec()));
        }
    });
    let move_by = |model: &mut Adapted, name: &str, step: f32| {
        model.visit_mut(&mut |p| {
            if p.name == name {
                p.update(|x| x[1] += step);
            }
        });
    };
    for (name, slope) in slopes {
        let step = 2e-2f32;
        move_by(&mut model, &name, step);
        let up = loss(&model);
        move_by(&mut model, &name, -2.0 * step);
        let down = loss(&model);
        move_by(&mut model, &name, step);
        let central = (up - down) / (2.0 * f64::from(step));
        // A loss near 3.6 is rounded to 2^-22 or so: 1e-5 in the quotient. The cubic term of the
        // loss adds step^2 / 6 times a third derivative of at most about 5.
        assert!((central - f64::from(slope[1])).abs() < 1e-3, "{name}: {central} {}", slope[1]);
    }
}

#[test]
fn what_is_written_with_and_what_is_merged_is_the_sum() {
    for config in all() {
        let model = adapted(&config, 2);
        let pieces = Pieces::from(vec![piece(vocab(&config), 9)]);
        let whole = likelihood(&model, &pieces).unwrap().per_token;
        let base = likelihood(&*config.build(1).unwrap(), &pieces).unwrap().per_token;
        assert!((whole - base).abs() > 1e-3, "{}", config.id);
        let written = written_likelihood(&model, Precision::F32, &pieces).unwrap().per_token;
        // The generator adds in another order: f32 sums of a few dozen terms near 1.
        assert!((whole - written).abs() < 1e-5, "{}", config.id);
        // Through the file of a run, and through base and adapter.
        let bytes = file(&config, &model);
        let loaded = read_model(&bytes, "run").unwrap();
        assert_eq!(loaded.settings["train"]["lora"], 0);
        let mut other = config.build(1).unwrap();
        let adapter = extract(&bytes, &config, LORA, "run").unwrap();
        assert!(adapter.len() < bytes.len());
        add_adapter(&mut *other, &config, &adapter, "adapter").unwrap();
        let merged = weights(&*model.merged().unwrap());
        assert_eq!(weights(&*loaded.model), merged);
        assert_eq!(weights(&*other), merged);
        assert_eq!(likelihood(&*other, &pieces).unwrap().per_token, whole);
    }
}

#[test]
fn a_blend_is_the_weighted_sum_of_what_two_adapters_add() {
    let config = config("lstm/melody-basic", &[]);
    let base = weights(&*config.build(1).unwrap());
    let with = |adapter: &[u8]| {
        let mut model = config.build(1).unwrap();
        add_adapter(&mut *model, &config, adapter, "adapter").unwrap();
        weights(&*model)
    };
    let (one, two) = (adapter(&config, 2), adapter(&config, 3));
    let (of_one, of_two) = (with(&one), with(&two));
    for weight in [0.0, 0.3, 1.0] {
        let mixed = with(&blend((&one, "one"), (&two, "two"), weight).unwrap());
        let mut largest = 0.0f64;
        for (((_, w), (_, a)), ((_, b), (_, m))) in
            base.iter().zip(&of_one).zip(of_two.iter().zip(&mixed))
        {
            for (((w, a), b), m) in w.iter().zip(a).zip(b).zip(m) {
                let [w, a, b, m] = [w, a, b, m].map(|x| f64::from(*x));
                let wanted = w + (1.0 - weight) * (a - w) + weight * (b - w);
                // Sums of at most six products below 1, each rounded: some 10 units of 2^-24.
                assert!((m - wanted).abs() < 2e-6, "{m} {wanted}");
                largest = largest.max((m - w).abs());
            }
        }
        assert!(largest > 0.05);
    }
    assert!(blend((&one, "one"), (&two, "two"), 1.5).unwrap_err().to_string().contains("1.5"));
}

#[test]
fn an_adapter_for_another_model_is_refused() {
    let config = config("lstm/melody-basic", &[]);
    let good = adapter(&config, 2);
    let refusal = |model: &ModelConfig, seed, bytes: &[u8]| {
        let mut model_ = model.build(seed).unwrap();
        let before = weights(&*model_);
        let error = add_adapter(&mut *model_, model, bytes, "f.safetensors").unwrap_err();
        assert_eq!(weights(&*model_), before);
        let text = error.to_string();
        assert!(text.starts_with("f.safetensors: "), "{text}");
        text
    };
    let wider = self::config("lstm/melody-basic", &["hidden=13"]);
    let text = refusal(&wider, 1, &good);
    assert!(text.contains("hidden 12; this model has 13"), "{text}");
    let text = refusal(&self::config("gru/basic", &[]), 1, &good);
    assert!(text.contains("another model"), "{text}");
    let text = refusal(&config, 2, &good);
    assert!(text.contains("other weights"), "{text}");
    let text = refusal(&config, 1, &file(&config, &*config.build(1).unwrap()));
    assert!(text.contains("not an adapter"), "{text}");
    let plain = save_weights(&*config.build(1).unwrap(), &Map::new(), 0, Dtype::F32).unwrap();
    assert!(extract(&plain, &config, LORA, "run").unwrap_err().to_string().contains("no adapter"));
    // Every cut and many flipped bytes: an error or an adapter, never a panic.
    for cut in (0..good.len()).step_by(97) {
        refusal(&config, 1, &good[..cut]);
        let mut bytes = good.clone();
        bytes[cut] ^= 0x41;
        let mut model = config.build(1).unwrap();
        let _ = add_adapter(&mut *model, &config, &bytes, "f.safetensors");
    }
    let other = self::config("lstm/melody-basic", &["layers=1"]);
    let error = blend((&good, "one"), (&adapter(&other, 1), "two"), 0.5).unwrap_err().to_string();
    assert!(error.starts_with("two: made for weights"), "{error}");
    let none = Lora { rank: 500, alpha: 1.0 };
    assert!(Adapted::new(config.build(1).unwrap(), none, 1).is_err());
}

/// An adapter file with other numbers and with what it says of itself changed.
fn forged(
    bytes: &[u8],
    change: impl Fn(&mut Value),
    pairs: impl Fn(&str, f32) -> Option<f32>,
) -> Vec<u8> {
    let file = WeightFile::parse(bytes).unwrap();
    let mut metadata = file.metadata().clone();
    let mut about = serde_json::from_str(&metadata["etude.adapter"]).unwrap();
    change(&mut about);
    metadata.insert("etude.adapter".into(), about.to_string());
    let tensors = file.entries().keys().filter_map(|name| {
        let tensor = file.tensor(name).unwrap();
        let values: Option<Vec<f32>> = tensor.to_vec().iter().map(|x| pairs(name, *x)).collect();
        Some((name.clone(), Tensor::new(values?, tensor.shape()).unwrap()))
    });
    write_weights(&tensors.collect::<Vec<_>>(), Dtype::F32, &metadata).unwrap()
}

#[test]
fn an_adapter_that_says_what_cannot_be_is_refused() {
    let config = config("lstm/melody-basic", &[]);
    let good = adapter(&config, 2);
    let refusal = |bytes: &[u8]| {
        let mut model = config.build(1).unwrap();
        let text = add_adapter(&mut *model, &config, bytes, "f").unwrap_err().to_string();
        assert!(text.starts_with("f: "), "{text}");
        text
    };
    let same = |_: &str, x: f32| Some(x);
    add_adapter(&mut *config.build(1).unwrap(), &config, &forged(&good, |_| (), same), "f")
        .unwrap();
    for (key, value) in
        [("rank", json!(0)), ("alpha", json!(-1.0)), ("alpha", json!(1e7)), ("alpha", json!(1e300))]
    {
        let text = refusal(&forged(&good, |about| about[key] = value.clone(), same));
        assert!(text.contains("a rank of at least 1 and an alpha of 0 to 1000000"), "{text}");
    }
    let text = refusal(&forged(&good, |_| (), |_, _| None));
    assert!(text.contains("without a pair"), "{text}");
    // Each number is finite, their product is not.
    let large = forged(&good, |_| (), |_, _| Some(1e30));
    let text = refusal(&large);
    assert!(text.contains("finite"), "{text}");
    let nearly = |about: &mut Value| about["alpha"] = json!(1e6);
    let nearly = forged(&good, nearly, |name, x| Some(if name.ends_with("_b") { 3e38 } else { x }));
    let text = blend((&good, "one"), (&nearly, "two"), 0.5).unwrap_err().to_string();
    assert!(text.starts_with("two: ") && text.contains("finite"), "{text}");
}

#[test]
fn a_run_whose_sum_is_not_finite_is_refused() {
    let config = config("lstm/melody-basic", &[]);
    let mut model = adapted(&config, 2);
    model.visit_mut(&mut |p| {
        if p.name.contains(".lora_") {
            p.update(|x| x.fill(1e30));
        }
    });
    let text = read_model(&file(&config, &model), "run").err().unwrap().to_string();
    assert!(text.starts_with("run: ") && text.contains("finite"), "{text}");
}

/// A model that fails in the middle of its work.
struct Failing(Box<dyn Model>);

impl Module for Failing {
    fn visit(&self, f: &mut dyn FnMut(&Param)) {
        self.0.visit(f);
    }
    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param)) {
        self.0.visit_mut(f);
    }
}

impl Model for Failing {
    fn loss(&self, _: &Batch, _: Option<&mut Rng>) -> Result<Tensor> {
        panic!("in the middle of its work")
    }
    fn score(&self, batch: &Batch) -> Result<Scored> {
        self.0.score(batch)
    }
    fn generator(&self, precision: Precision) -> Result<Box<dyn Generator>> {
        self.0.generator(precision)
    }
    fn parts(&self) -> Vec<Part> {
        self.0.parts()
    }
}

#[test]
fn weights_come_back_after_a_panic() {
    let config = config("lstm/melody-basic", &[]);
    let failing = Failing(config.build(1).unwrap());
    let mut model = Adapted::new(Box::new(failing), LORA, 2).unwrap();
    model.visit_mut(&mut |p| {
        if p.name.ends_with(".lora_b") {
            p.update(|b| b.fill(0.1));
        }
    });
    let before = weights(&model);
    let piece = piece(vocab(&config), 3);
    let batch = Batch::new(&[(&piece, 0)], 100);
    let failed =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| model.loss(&batch, None)));
    assert!(failed.is_err());
    assert_eq!(weights(&model), before);
}
