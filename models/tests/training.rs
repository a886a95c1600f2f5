//! Training: batches by the step alone, resume bit for bit, any number of threads, faults told.
#![cfg(feature = "train")]

use std::path::Path;

use etude_engine::Pool;
use etude_models::data::{Augment, Batch, Dataset, Pieces, Scores};
use etude_models::registry::preset_config;
use etude_models::run::RunDir;
use etude_models::train::{End, RunConfig, Trainer, setting_keys};
use etude_models::{Error, config};
use etude_tokenizer::{Drums, Encoded, Encoding, Guide, Melody, Note, Score, Track};

#[path = "../../tests/support/folder.rs"]
mod folder;

use folder::Folder;

/// Tunes that walk up and down a scale, each from its own note.
fn tunes(count: u8) -> Vec<(String, Score)> {
    let scale = [60, 62, 64, 65, 67, 69, 71, 72];
    (0..count)
        .map(|i| {
            let mut score = Score::new(4);
            let notes = (0..48u64).map(|t| Note {
                tick: 2 * t,
                duration: 2,
                pitch: scale[((t + u64::from(i) * 3) % 8).abs_diff(4) as usize],
                velocity: 90,
            });
            score.tracks.push(Track { notes: notes.collect(), ..Track::default() });
            (format!("tune {i}"), score)
        })
        .collect()
}

fn settings(name: &str, sets: &[&str]) -> RunConfig {
    let mut map = preset_config(name).unwrap();
    let keys = setting_keys();
    let small =
        ["hidden=24", "batch=6", "window=40", "log_every=1", "valid_every=4", "save_every=3"];
    for set in small.iter().chain(sets) {
        config::set(&mut map, set, &keys).unwrap();
    }
    RunConfig::read(map).unwrap()
}

fn data(config: &RunConfig) -> Dataset {
    let all = tunes(9);
    let scores = Scores { train: all[..7].to_vec(), valid: all[7..].to_vec(), test: Vec::new() };
    let encoding = config.model.encoding().unwrap();
    Dataset::new(&scores, &*encoding, config.model.conditions, config.train.transpose).unwrap()
}

fn weights(path: &Path) -> Vec<Vec<u8>> {
    ["model.safetensors", "optimizer.safetensors", "best.safetensors"]
        .map(|name| std::fs::read(path.join(name)).unwrap())
        .to_vec()
}

fn train(config: &RunConfig, path: &Path) -> Trainer {
    let mut trainer = Trainer::create(config.clone(), data(config), path).unwrap();
    assert_eq!(trainer.train(None, &|| false, &mut |_| {}).unwrap(), End::Done);
    trainer
}

#[test]
fn a_resumed_run_ends_with_the_same_bytes() {
    let folder = Folder::new("resume");
    for (name, sets) in [
        ("lstm/melody-form", &["steps=11", "dropout=0.4"][..]),
        ("gru/basic", &["steps=11", "weight_decay=0.01"][..]),
        ("rnn/basic", &["steps=11", "schedule=exponential"][..]),
        ("gru/basic", &["steps=11", "dtype=bf16"][..]),
    ] {
        for seed in 1..=3 {
            let seed = format!("seed={seed}");
            let config = settings(name, &[sets, &[&seed]].concat());
            let whole = folder.0.join("whole");
            train(&config, &whole);
            let parts = folder.0.join("parts");
            let mut trainer = Trainer::create(config.clone(), data(&config), &parts).unwrap();
            for stop_at in [2, 5, 6, 11] {
                let reached = std::cell::Cell::new(trainer.step());
                let stop = || reached.get() >= stop_at;
                trainer.train(None, &stop, &mut |r| reached.set(r.step)).unwrap();
                drop(trainer);
                let run = RunDir::open(&parts, true).unwrap();
                trainer = Trainer::resume(config.clone(), data(&config), run).unwrap();
                assert_eq!(trainer.step(), stop_at);
            }
            assert!(weights(&whole) == weights(&parts), "{name} {seed}");
            std::fs::remove_dir_all(&whole).unwrap();
            std::fs::remove_dir_all(&parts).unwrap();
        }
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let folder = Folder::new("threads");
    let mut each = Vec::new();
    for dtype in ["dtype=f32", "dtype=bf16"] {
        let sets = ["steps=6", "hidden=48", "batch=40", "dropout=0.2", dtype];
        let config = settings("lstm/melody-form", &sets);
        let mut first = None;
        for threads in [1, 2, 3, 8] {
            let path = folder.0.join(format!("{dtype} {threads}"));
            Pool::new(threads).unwrap().run(|| train(&config, &path));
            let bytes = weights(&path);
            assert!(*first.get_or_insert_with(|| bytes.clone()) == bytes, "{dtype} {threads}");
        }
        each.extend(first);
    }
    assert!(each[0] != each[1], "the numbers of the products make a difference");
}

#[test]
fn a_regular_tune_is_learned_below_both_baselines() {
    let folder = Folder::new("learn");
    for dtype in ["dtype=f32", "dtype=bf16"] {
        let sets = ["steps=250", "lr=0.01", "dropout=0", "hidden=32", "warmup=0", dtype];
        let config = settings("lstm/melody-form", &sets);
        let trainer = train(&config, &folder.0.join(dtype));
        let (best, _) = trainer.best();
        let b = trainer.baselines();
        assert!(best < b.markov && b.markov < b.marginal, "{dtype}: {best} {b:?}");
    }
}

#[test]
fn batches_are_a_function_of_seed_and_step() {
    let config = settings("lstm/melody-form", &[]);
    let pieces = data(&config).train;
    let batch = |seed, step| Batch::of_step(&pieces, seed, step, 5, 30).unwrap();
    assert_eq!(batch(1, 7), batch(1, 7));
    assert_ne!(batch(1, 7), batch(2, 7));
    assert_ne!(batch(1, 7), batch(1, 8));
    // Seven steps of five windows visit each of the seven pieces five times.
    let mut seen = std::collections::BTreeMap::new();
    for step in 0..7 {
        let order: Vec<_> = (0..5).map(|b| batch(3, step).targets[b]).collect();
        order.into_iter().for_each(|token| *seen.entry(token).or_insert(0) += 1);
    }
    assert_eq!(seen.values().sum::<i32>(), 35);
}

#[test]
fn a_learning_rate_that_explodes_is_told_and_never_saved_over_the_good_weights() {
    let folder = Folder::new("explode");
    let config = settings("rnn/basic", &["steps=60", "lr=10", "clip=0", "save_every=1000"]);
    let path = folder.0.join("run");
    let mut trainer = Trainer::create(config.clone(), data(&config), &path).unwrap();
    let before = std::fs::read(path.join("model.safetensors")).unwrap();
    // A planted weight that is not finite.
    trainer.model_mut().visit_mut(&mut |p| {
        if p.name == "rnn.1.w_hh" {
            p.update(|w| w[3] = f32::NAN);
        }
    });
    match trainer.train(None, &|| false, &mut |_| {}) {
        Err(Error::NotFinite { step: 1, tensor }) => {
            assert!(tensor.contains("rnn.1.w_hh"), "{tensor}")
        }
        other => panic!("{other:?}"),
    }
    drop(trainer);
    assert_eq!(std::fs::read(path.join("model.safetensors")).unwrap(), before);
    RunDir::open(&path, true).unwrap();
}

#[test]
fn every_flipped_bit_of_a_run_is_found() {
    let folder = Folder::new("flip");
    let config = settings("rnn/basic", &["steps=4", "hidden=4", "layers=1"]);
    let path = folder.0.join("run");
    train(&config, &path);
    let mut tried = 0;
    for name in [
        "state.json",
        "config.toml",
        "model.safetensors",
        "optimizer.safetensors",
        "best.safetensors",
        "metrics.jsonl",
    ] {
        let file = path.join(name);
        let good = std::fs::read(&file).unwrap();
        let every = (good.len() / 40).max(1);
        for at in (0..good.len()).step_by(every) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            std::fs::write(&file, &bad).unwrap();
            let fault = RunDir::open(&path, false).err().map(|e| e.to_string());
            let fault = fault.unwrap_or_else(|| panic!("{name} byte {at} went unnoticed"));
            assert!(fault.contains(name), "{name}: {fault}");
            tried += 1;
        }
        std::fs::write(&file, &good).unwrap();
    }
    RunDir::open(&path, false).unwrap();
    println!("{tried} flipped bits, all found");
}

#[test]
fn a_save_cut_off_at_any_move_opens_as_the_old_or_the_new_one() {
    let folder = Folder::new("cut");
    let config = settings("rnn/basic", &["steps=3", "hidden=4", "layers=1", "save_every=1"]);
    let (old, new) = (folder.0.join("old"), folder.0.join("new"));
    train(&config, &old);
    let longer = settings("rnn/basic", &["steps=5", "hidden=4", "layers=1", "save_every=1"]);
    train(&longer, &new);
    let files = ["config.toml", "model.safetensors", "optimizer.safetensors", "best.safetensors"];
    // The moves of a save, in order: every .new file, the state, then rename after rename.
    for cut in 0..=files.len() * 2 + 1 {
        let place = folder.0.join("place");
        let _ = std::fs::remove_dir_all(&place);
        std::fs::create_dir_all(&place).unwrap();
        for entry in std::fs::read_dir(&old).unwrap().flatten() {
            if entry.path().is_file() {
                std::fs::copy(entry.path(), place.join(entry.file_name())).unwrap();
            }
        }
        let put = |name: &str, as_name: String| {
            std::fs::copy(new.join(name), place.join(as_name)).unwrap();
        };
        for (i, name) in files.iter().enumerate() {
            if i < cut {
                put(name, format!("{name}.new"));
            }
        }
        let committed = cut > files.len();
        if committed {
            put("state.json", "state.json".into());
            put("metrics.jsonl", "metrics.jsonl".into());
        }
        for (i, name) in files.iter().enumerate() {
            if cut > files.len() + 1 + i {
                std::fs::rename(place.join(format!("{name}.new")), place.join(name)).unwrap();
            }
        }
        let run = RunDir::open(&place, true).unwrap_or_else(|e| panic!("cut {cut}: {e}"));
        let wanted = if committed { 5 } else { 3 };
        assert_eq!(run.state()["step"], wanted, "cut {cut}");
        let from = if committed { &new } else { &old };
        for name in files {
            let saved = std::fs::read(from.join(name)).unwrap();
            assert!(run.file(name).unwrap().unwrap() == saved, "cut {cut}: {name}");
        }
    }
}

#[test]
fn settings_out_of_range_are_named() {
    let keys = setting_keys();
    for (set, wanted) in [
        ("hidden=0", "model.hidden"),
        ("hidden=99999999", "model.hidden"),
        ("batch=2.5", "train.batch"),
        ("batch=\"64\"", "train.batch"),
        ("batch=65536", "train.batch"),
        ("lr=-1", "train.lr"),
        ("dropout=1.5", "model.dropout"),
        ("encoding=abc", "model.encoding"),
        ("schedule=up", "train.schedule"),
        ("dtype=f16", "train.dtype"),
    ] {
        let mut map = preset_config("lstm/performance").unwrap();
        config::set(&mut map, set, &keys).unwrap();
        let fault = RunConfig::read(map).unwrap_err().to_string();
        assert!(fault.starts_with(wanted), "{set}: {fault}");
    }
    let mut map = preset_config("lstm").unwrap();
    for set in ["hiden=3", "hidden", "data.hidden=3"] {
        assert!(config::set(&mut map, set, &keys).is_err(), "{set}");
    }
}

#[test]
fn bf16_is_refused_for_what_has_f32_alone() {
    let mut map = preset_config("lstm/melody-attention").unwrap();
    config::set(&mut map, "dtype=bf16", &[("train", "dtype")]).unwrap();
    let fault = RunConfig::read(map).unwrap_err().to_string();
    assert!(fault.starts_with("train.dtype: bf16") && fault.contains("attention"), "{fault}");
}

#[test]
fn configurations_survive_toml() {
    for entry in etude_models::registry::MODELS {
        for preset in entry.presets {
            let map = preset_config(&format!("{}/{}", entry.id, preset.name)).unwrap();
            let config = RunConfig::read(map).unwrap();
            let text = config::to_toml(&config.write());
            assert_eq!(RunConfig::read(config::from_toml(&text).unwrap()).unwrap(), config);
        }
    }
}

/// A folder's worth of pieces on the disk.
fn stored(config: &RunConfig) -> Dataset {
    use etude_models::data::Stored;
    use etude_models::store::Store;
    let encoding = config.model.encoding().unwrap();
    let mut store = Store::scratch(encoding.name(), encoding.vocab_size()).unwrap();
    let memory = data(config);
    let mut parts = [&memory.train, &memory.valid].map(|part| {
        let all = part.iter().enumerate().map(|(i, piece)| {
            let piece = piece.unwrap();
            let mut add =
                |key: u128, words: &[u32]| store.add(key, &serde_json::Value::Null, words).unwrap();
            let place = add(i as u128, &piece.tokens);
            let chords = match piece.input.guide() {
                Some((_, Guide::Chords(track))) => {
                    let words: Vec<u32> = track.to_text().bytes().map(u32::from).collect();
                    Some(add(1 << 100 | i as u128, &words))
                }
                _ => None,
            };
            Stored {
                name: piece.name.as_str().into(),
                place,
                chords,
                meter: etude_tokenizer::Meter { tick: 0, numerator: 4, denominator: 4 },
                notes: piece.notes,
                frames: piece.frames,
                seconds: piece.seconds,
            }
        });
        all.collect::<Vec<_>>()
    });
    let (store, conditions) = (std::sync::Arc::new(store), config.model.conditions);
    let mut part = |at: usize| {
        let pieces = std::mem::take(&mut parts[at]);
        Pieces::stored(&store, pieces, conditions, encoding.vocab_size())
    };
    let (train, valid) = (part(0), part(1));
    Dataset { train, valid, ..Dataset::default() }
        .changed(&*encoding, 7, config.train.augment())
        .unwrap()
}

#[test]
fn tokens_on_the_disk_train_the_same_weights_as_in_memory() {
    let folder = Folder::new("disk");
    let sets = ["steps=8", "transpose=2", "encoding=melody"];
    for name in ["lstm/melody-form", "lstm/improv-basic"] {
        let config = settings(name, &sets);
        let [memory, disk] = ["memory", "disk"].map(|part| folder.0.join(name).join(part));
        train(&config, &memory);
        let mut trainer = Trainer::create(config.clone(), stored(&config), &disk).unwrap();
        trainer.train(None, &|| false, &mut |_| {}).unwrap();
        assert!(weights(&memory) == weights(&disk), "{name}");
    }
}

#[test]
fn every_key_of_a_piece_comes_once_an_epoch() {
    let config = settings("lstm/melody-form", &["transpose=3", "encoding=melody"]);
    let pieces = data(&config).train;
    // Seven pieces in seven keys: as many windows of a step are an epoch. The first tokens are the
    // first pitches.
    let first = |step| {
        let batch = Batch::of_step(&pieces, 1, step, 49, 200).unwrap();
        let mut first = batch.targets[..49].to_vec();
        first.sort_unstable();
        first
    };
    let mut expected: Vec<u32> = pieces
        .iter()
        .flat_map(|piece| {
            let token = piece.unwrap().tokens[0];
            token - 3..=token + 3
        })
        .collect();
    expected.sort_unstable();
    assert_eq!(first(0), expected);
    assert_eq!(first(1), expected);
}

#[test]
fn speed_and_loudness_change_where_the_encoding_has_them() {
    let sets = ["encoding=performance-dynamics", "stretch=5", "velocity=9", "conditions=none"];
    let config = settings("lstm/melody-basic", &sets);
    let all = tunes(1);
    let encoding = config.model.encoding().unwrap();
    let scores = Scores { train: all, ..Scores::default() };
    let plain = Dataset::new(&scores, &*encoding, config.model.conditions, 0).unwrap();
    let tokens = plain.train.get(0).unwrap().tokens.clone();
    let data = plain.changed(&*encoding, 1, config.train.augment()).unwrap();
    let heard = |tokens: &[u32]| {
        let score = encoding.decode(tokens).unwrap();
        let notes = &score.tracks[0].notes;
        (score.end_tick(), notes.len(), notes[0].velocity)
    };
    let (end, notes, velocity) = heard(&tokens);
    let (mut ends, mut velocities) = (std::collections::BTreeSet::new(), Vec::new());
    for step in 0..60 {
        let batch = Batch::of_step(&data.train, 1, step, 1, 10_000).unwrap();
        let other = heard(&batch.targets);
        assert_eq!(other.1, notes);
        ends.insert(other.0);
        velocities.push(other.2);
    }
    // Five speeds from 5 % faster to 5 % slower; velocities within 9 and what a bin of 4 adds.
    let wanted = [0.95, 0.975, 1.0, 1.025, 1.05].map(|f| (end as f64 * f).round() as u64);
    assert_eq!(ends.into_iter().collect::<Vec<_>>(), wanted);
    let near = |v: &u8| (i32::from(*v) - i32::from(velocity)).abs() <= 9 + 3;
    assert!(velocities.iter().all(near) && velocities.iter().any(|v| v.abs_diff(velocity) >= 6));
    for (set, key) in [
        ("transpose=2", "train.transpose"),
        ("stretch=5", "train.stretch"),
        ("velocity=5", "train.velocity"),
    ] {
        let mut map = preset_config("lstm/melody-basic").unwrap();
        let keys = setting_keys();
        config::set(&mut map, set, &keys).unwrap();
        let error = RunConfig::read(map).unwrap_err().to_string();
        assert!(error.starts_with(key) && error.contains("melody-c"), "{error}");
    }
}

/// A melody under a name of its own.
struct Own(Melody);

impl Encoding for Own {
    fn name(&self) -> &str {
        "own"
    }
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }
    fn token_name(&self, token: u32) -> String {
        self.0.token_name(token)
    }
    fn quantise(&self, score: &Score) -> Score {
        self.0.quantise(score)
    }
    fn encode(&self, score: &Score) -> etude_tokenizer::Result<Encoded> {
        self.0.encode(score)
    }
    fn decode(&self, tokens: &[u32]) -> etude_tokenizer::Result<Score> {
        self.0.decode(tokens)
    }
}

#[test]
fn a_change_that_cannot_be_made_is_an_error() {
    let change = |encoding: &dyn Encoding, augment| {
        let changed = Pieces::default().changed(encoding, augment);
        changed.err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert_eq!(change(&Melody::basic(), Augment::by(1)), "");
    let fault = change(&Melody::basic_in_c(), Augment::by(1));
    assert!(fault.starts_with("train.transpose: the encoding melody-c holds no key"), "{fault}");
    let fault = change(&Drums::kit(), Augment::by(1));
    assert!(fault.starts_with("train.transpose: the encoding drums holds no key"), "{fault}");
    // Training pieces are decoded by the encoding of that name.
    assert_eq!(change(&Own(Melody::basic()), Augment::default()), "");
    let fault = change(&Own(Melody::basic()), Augment::by(1));
    assert!(fault.contains("no encoding own"), "{fault}");
}

#[test]
fn a_run_does_not_go_on_with_another_adapter() {
    let folder = Folder::new("adapter");
    let path = folder.0.join("run");
    train(&settings("gru/basic", &["steps=2", "lora=2"]), &path);
    let resume = |sets: &[&str]| {
        let config = settings("gru/basic", &[&["steps=3"], sets].concat());
        let run = RunDir::open(&path, true).unwrap();
        Trainer::resume(config.clone(), data(&config), run)
    };
    for (sets, wanted) in [
        (
            &["lora=0"][..],
            "no adapter is wanted; the run began with an adapter of rank 2, alpha 16",
        ),
        (&["lora=3"], "an adapter of rank 3, alpha 16 is wanted; the run"),
        (&["lora=2", "lora_alpha=8"], "an adapter of rank 2, alpha 8 is wanted; the run"),
    ] {
        let fault = resume(sets).err().unwrap().to_string();
        assert!(fault.starts_with(&format!("train.lora: {wanted}")), "{fault}");
    }
    assert_eq!(resume(&["lora=2"]).unwrap().step(), 2);
}
