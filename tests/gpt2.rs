//! GPT-2's checkpoints (`golden/gpt2/make.py`): what transformers wrote gives its logits here, and
//! goes back as it came.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use etude_engine::{NO_ID, Tensor, WeightFile};
use etude_models::data::Batch;
use etude_models::{Loaded, Precision, gpt2};
use serde_json::{Map, Value, json};

#[path = "support/folder.rs"]
mod folder;

use folder::Folder;

const VOCAB: usize = 38;
const ENCODING: Option<&str> = Some("melody-c");
/// Tensors of a file by name.
type Tensors = Vec<(String, Tensor)>;

const NETWORKS: [&str; 2] = ["tied", "own"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gpt2").join(name)
}

fn files(folder: &Path) -> [Vec<u8>; 2] {
    [gpt2::CONFIG, gpt2::WEIGHTS].map(|name| fs::read(folder.join(name)).unwrap())
}

fn load(folder: &Path) -> Loaded {
    let [config, weights] = files(folder);
    gpt2::read(&config, &weights, ENCODING, "folder").unwrap()
}

fn json_of(bytes: &[u8]) -> Map<String, Value> {
    serde_json::from_slice(bytes).unwrap()
}

fn etude(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_etude"));
    command.args(arguments).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn good(arguments: &[&str]) {
    let output = etude(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The logits of each step, `[steps, VOCAB]`; a token beyond the encoding begins a piece.
fn logits(model: &Loaded, ids: &[u32]) -> Vec<f32> {
    let mut generator = model.model.generator(Precision::F32).unwrap();
    let row = |id: u32| if id as usize == VOCAB { NO_ID } else { id };
    ids.iter().flat_map(|id| generator.step(&[row(*id)]).unwrap().to_vec()).collect()
}

/// The tokens and the logits of transformers, without that of the token that begins a piece.
fn reference(name: &str) -> (Vec<u32>, Vec<f32>) {
    let bytes = fs::read(golden("logits.safetensors")).unwrap();
    let file = WeightFile::parse(bytes).unwrap();
    let get = |part: &str| -> Tensor { file.tensor(&format!("{name}.{part}")).unwrap() };
    let ids = get("ids").to_vec().into_iter().map(|id| id as u32).collect();
    (ids, get("logits").slice(1, 0..VOCAB).unwrap().to_vec())
}

/// The difference that is promised is 1e-4. As beside the numbers of PyTorch for the decoder, it is less:
/// rtol 1e-5 is about 80 roundings, and atol 2e-6 of the largest value about 32, since terms cancel.
#[track_caller]
fn near(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(1.0f32, |most, x| most.max(x.abs()));
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let most = (1e-5 * want.abs() + 2e-6 * size).min(1e-4);
        let near = (got - want).abs() <= most;
        assert!(near, "{what}: number {at} is {got}, transformers has {want}");
    }
}

#[test]
fn a_checkpoint_of_transformers_gives_its_logits() {
    for name in NETWORKS {
        let model = load(&golden(name));
        let (ids, want) = reference(name);
        near(&format!("{name}, step by step"), &logits(&model, &ids), &want);

        // All steps at once, as training and scoring read them: nats of the token that follows.
        let steps = ids.len() - 1;
        let rows: Vec<u32> = ids[..steps].iter().map(|id| *id % VOCAB as u32).collect();
        let rows = rows.into_iter().zip(&ids).map(
            |(row, id)| {
                if *id as usize == VOCAB { NO_ID } else { row }
            },
        );
        let (rows, targets) = (rows.collect(), ids[1..].to_vec());
        let batch =
            Batch { rows, targets: targets.clone(), keys: vec![], steps, batch: 1, active: 1 };
        let nats = targets.iter().zip(want.chunks_exact(VOCAB)).map(|(target, row)| {
            let most = row.iter().fold(f32::MIN, |a, b| a.max(*b));
            let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
            (sum.ln() + f64::from(most - row[*target as usize])) as f32
        });
        let found = model.model.score(&batch).unwrap().nats;
        near(&format!("{name}, nats"), &found, &nats.collect::<Vec<_>>());
    }
}

#[test]
fn what_is_read_goes_back_as_it_came() {
    let room = Folder::new("gpt2-back");
    for name in NETWORKS {
        let (there, file, back) = (golden(name), room.0.join(name), room.0.join("back"));
        let file = file.with_extension("safetensors");
        let [there_, file_, back_] = [&there, &file, &back].map(|path| path.to_str().unwrap());
        // By way of a file of ours.
        let from = ["export", there_, "--encoding", "melody-c", "--dtype", "f32", "--out", file_];
        good(&from);
        good(&["export", file_, "--format", "huggingface", "--out", back_]);
        let [[old, was], [new, is]] = [&there, &back].map(|folder| files(folder));
        let (was, is) = (WeightFile::parse(was).unwrap(), WeightFile::parse(is).unwrap());
        assert!(was.entries().keys().eq(is.entries().keys()), "{name}");
        for (key, entry) in was.entries() {
            let found = &is.entries()[key];
            assert_eq!((entry.dtype, &entry.shape), (found.dtype, &found.shape), "{name}: {key}");
            assert_eq!(was.bytes(key), is.bytes(key), "{name}: {key}");
        }
        assert_eq!(is.metadata()["format"], "pt");
        let (old, mut new) = (json_of(&old), json_of(&new));
        assert_eq!(new.remove("etude").unwrap()["model"]["encoding"], "melody-c");
        assert_eq!(new.remove("torch_dtype").as_ref(), old.get("dtype"));
        assert!(new.len() > 15);
        for (key, value) in &new {
            assert_eq!(old.get(key), Some(value), "{name}: {key}");
        }
        // The folder tells its encoding now: it is a model for every command.
        good(&["inspect", back_]);
        let midi = room.0.join("a.mid");
        let midi = midi.to_str().unwrap();
        good(&[
            "generate",
            back_,
            "--bars",
            "1",
            "--seed",
            "1",
            "--no-audio",
            "--no-image",
            "--out",
            midi,
        ]);
    }
}

/// A Transformer of ours, not of GPT-2's initial values, as it would lie in a run.
fn ours(change: Value) -> (Loaded, Map<String, Value>) {
    let mut model = json!({
        "id": "transformer", "encoding": "melody-c", "hidden": 24, "layers": 2, "heads": 3, "ff": 40,
        "context": 16, "positions": "learned", "activation": "gelu-tanh", "dropout": 0.1,
    });
    for (key, value) in change.as_object().unwrap() {
        model[key] = value.clone();
    }
    let settings = json!({ "model": model, "data": { "source": "folk" } });
    let mut map = settings.as_object().unwrap().clone();
    let config = etude_models::registry::ModelConfig::take(&mut map).unwrap();
    let mut model = config.build(7).unwrap();
    let mut rng = etude_engine::Rng::new(9);
    model.visit_mut(&mut |p| p.update(|x| x.iter_mut().for_each(|x| *x += rng.unit() - 0.5)));
    let written = settings.as_object().unwrap().clone();
    (Loaded { config, model, settings, step: Some(5) }, written)
}

fn write(model: &Loaded, settings: &Map<String, Value>) -> etude_models::Result<[Vec<u8>; 2]> {
    let dtype = etude_engine::Dtype::F32;
    let files = gpt2::write(&*model.model, &model.config, settings, 5, dtype)?;
    let find = |name| files.iter().find(|(key, _)| *key == name).unwrap().1.clone();
    Ok([gpt2::CONFIG, gpt2::WEIGHTS].map(find))
}

const OURS: [&str; 2] = [r#"{"output": "tied", "activation": "gelu"}"#, r#"{"output": "own"}"#];
const IDS: [u32; 8] = [VOCAB as u32, 0, 37, 5, 5, 17, 1, 30];

#[test]
fn what_is_written_is_read_whole() {
    for change in OURS {
        let (model, settings) = ours(serde_json::from_str(change).unwrap());
        let [config, weights] = write(&model, &settings).unwrap();
        assert_eq!(json_of(&config)["vocab_size"], VOCAB + 1);
        assert_eq!(json_of(&config)["bos_token_id"], VOCAB);
        let back = gpt2::read(&config, &weights, None, "folder").unwrap();
        assert_eq!(
            (&back.config, &back.settings, back.step),
            (&model.config, &model.settings, Some(5))
        );
        let bits = |model: &Loaded| {
            etude_models::save_weights(&*model.model, &settings, 5, etude_engine::Dtype::F32)
                .unwrap()
        };
        assert!(bits(&back) == bits(&model));

        // Old checkpoints have no prefix, and hold masks and the tied output.
        let file = WeightFile::parse(&weights[..]).unwrap();
        let mut tensors: Tensors = Vec::new();
        for name in file.entries().keys() {
            tensors.push((name.replacen("transformer.", "", 1), file.tensor(name).unwrap()));
        }
        for layer in 0..2 {
            let mask = Tensor::ones(&[1, 1, 16, 16]).unwrap();
            tensors.push((format!("h.{layer}.attn.bias"), mask));
            let far = Tensor::new(vec![-1e4], &[1]).unwrap();
            tensors.push((format!("h.{layer}.attn.masked_bias"), far));
        }
        if change.contains("tied") {
            tensors.push(("lm_head.weight".into(), file.tensor("transformer.wte.weight").unwrap()));
        }
        let old =
            etude_engine::write_weights(&tensors, etude_engine::Dtype::F32, &Default::default());
        let back = gpt2::read(&config, &old.unwrap(), None, "folder").unwrap();
        assert!(bits(&back) == bits(&model));
    }
}

#[test]
fn what_gpt2_does_not_hold_is_refused_by_its_key() {
    for (change, want) in [
        (
            json!({ "positions": "rope" }),
            r#"model.positions: GPT-2's layout wants "learned"; found "rope""#,
        ),
        (json!({ "norm": "post" }), r#"model.norm: GPT-2's layout wants "pre"; found "post""#),
        (json!({ "local": 8 }), "model.local: GPT-2's layout wants 0; found 8"),
        (
            json!({ "sparse_block": 8, "sparse_stride": 4 }),
            "model.sparse_block: GPT-2's layout wants 0; found 8",
        ),
        (
            json!({ "encoding": "melody", "conditions": "form" }),
            r#"model.conditions: GPT-2's layout wants "none"; found "form""#,
        ),
    ] {
        let (model, settings) = ours(change);
        assert_eq!(write(&model, &settings).unwrap_err().to_string(), want);
    }
    let room = Folder::new("gpt2-lstm");
    let out =
        etude(&["export", "lstm", "--format", "huggingface", "--out", room.0.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(2));
    let want = "error: lstm: --format huggingface: model.id: GPT-2's layout wants transformer; found lstm\n";
    assert_eq!(String::from_utf8_lossy(&out.stderr), want);
    assert_eq!(fs::read_dir(&room.0).unwrap().count(), 0);
}

#[test]
fn a_folder_that_cannot_be_used_is_refused_by_file_and_key() {
    let [config, weights] = files(&golden("own"));
    for (change, want) in [
        (json!({ "model_type": "llama" }), r#"gpt2.model_type: "llama" is not one of gpt2"#),
        (json!({ "n_head": 3 }), "model.heads: 3 heads cannot share hidden = 16 equally"),
        (json!({ "n_embd": -1 }), "gpt2.n_embd: a whole number is wanted, -1 was given"),
        (
            json!({ "n_layer": 1_000_000_000_000u64 }),
            "gpt2.n_layer: 1000000000000 is not in 1 to 256",
        ),
        (
            json!({ "n_positions": "many" }),
            r#"gpt2.n_positions: a whole number is wanted, the text "many" was given"#,
        ),
        (
            json!({ "activation_function": "silu" }),
            r#"gpt2.activation_function: "silu" is not one of relu, gelu, gelu_new, gelu_pytorch_tanh"#,
        ),
        (
            json!({ "layer_norm_epsilon": 1e-6 }),
            "gpt2.layer_norm_epsilon: 1e-5 is wanted, 1e-6 was found",
        ),
        (
            json!({ "scale_attn_weights": false }),
            "gpt2.scale_attn_weights: true is wanted, false was found",
        ),
        (
            json!({ "tie_word_embeddings": 1 }),
            "gpt2.tie_word_embeddings: true or false is wanted, 1 was given",
        ),
        (
            json!({ "attn_pdrop": 0.5 }),
            "gpt2.attn_pdrop: 0 as resid_pdrop is wanted, 0.5 was found",
        ),
        (
            json!({ "vocab_size": 50257 }),
            "gpt2.vocab_size: 50257 was found; the encoding melody-c has 38 tokens, and one more may begin a piece",
        ),
        (
            json!({ "bos_token_id": 3 }),
            "gpt2.bos_token_id: 3 was found; 38 is wanted, the last token",
        ),
        (
            json!({ "etude": { "model": { "id": "transformer", "hidden": 16 } } }),
            "model.positions: GPT-2's layout wants \"learned\"; found \"relative\"",
        ),
        (
            json!({ "etude": { "model": {
                "id": "transformer", "hidden": 32, "context": 32, "positions": "learned"
            } } }),
            "etude.model.ff: 128 was found, the keys of GPT-2 say 40",
        ),
        (json!({ "etude": 5 }), "etude: an object is wanted"),
    ] {
        let mut map = json_of(&config);
        map.extend(change.as_object().unwrap().clone());
        let text = serde_json::to_vec(&map).unwrap();
        let error = gpt2::read(&text, &weights, ENCODING, "folder").map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), format!("folder/config.json: {want}"));
    }
    for (text, want) in [("{", "not JSON: "), ("[]", "an object is wanted")] {
        let error = gpt2::read(text.as_bytes(), &weights, ENCODING, "folder").map(|_| ());
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with(&format!("folder/config.json: {want}")), "{error}");
    }
    let error = gpt2::read(&config, &weights, None, "folder").map(|_| ()).unwrap_err().to_string();
    let want =
        "folder/config.json: etude: is not there, so nothing tells the encoding of its 39 tokens";
    assert!(error.starts_with(want) && error.contains("melody-c"), "{error}");
}

#[test]
fn weights_that_do_not_fit_are_refused_by_name() {
    let [config, weights] = files(&golden("own"));
    let file = WeightFile::parse(&weights[..]).unwrap();
    let refused = |change: &dyn Fn(&mut Tensors), dtype, want: &str| {
        let mut tensors: Tensors = Vec::new();
        for name in file.entries().keys() {
            tensors.push((name.clone(), file.tensor(name).unwrap()));
        }
        change(&mut tensors);
        let bytes = etude_engine::write_weights(&tensors, dtype, &Default::default()).unwrap();
        let error = gpt2::read(&config, &bytes, ENCODING, "folder").map(|_| ()).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("folder/model.safetensors: ") && error.contains(want), "{error}");
    };
    use etude_engine::Dtype::{F32, I8};
    const ATTN: &str = "transformer.h.1.attn.c_attn.weight";
    let at = |tensors: &[(String, Tensor)]| tensors.iter().position(|(n, _)| n == ATTN).unwrap();
    refused(&|t| drop(t.remove(at(t))), F32, "h.1.attn.c_attn.weight is missing");
    let turned = format!("{ATTN} is [48, 16], [16, 48] is wanted");
    refused(
        &|t| {
            let i = at(t);
            t[i].1 = t[i].1.t().unwrap()
        },
        F32,
        &turned,
    );
    refused(
        &|t| t.push(("h.2.ln_1.bias".into(), Tensor::zeros(&[16]).unwrap())),
        F32,
        "h.2.ln_1.bias is no part of it",
    );
    refused(
        &|t| t.push(("ln_f.bias".into(), Tensor::zeros(&[16]).unwrap())),
        F32,
        "ln_f.bias stands there with and without transformer.",
    );
    let infinite = Tensor::new(vec![f32::INFINITY; 768], &[16, 48]).unwrap();
    refused(
        &|t| {
            let i = at(t);
            t[i].1 = infinite.clone()
        },
        F32,
        ATTN,
    );
    refused(&|_| (), I8, "is I8; F32, F16 or BF16 is wanted");
    for length in [0, 7, 100, weights.len() - 1] {
        let error = gpt2::read(&config, &weights[..length], ENCODING, "folder").map(|_| ());
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("folder/model.safetensors: "), "{error}");
    }
    // A tied output that says something else than the table is no tied output.
    let mut tied = json_of(&config);
    tied.insert("tie_word_embeddings".into(), true.into());
    let tied = serde_json::to_vec(&tied).unwrap();
    let error = gpt2::read(&tied, &weights, ENCODING, "folder").map(|_| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "folder/model.safetensors: data: lm_head.weight is no part of it"
    );
}

/// Writes what `golden/gpt2/make.py check FOLDER` compares with transformers.
#[test]
fn folders_for_transformers_hold_the_logits_that_are_told() {
    for (name, change) in NETWORKS.into_iter().zip(OURS) {
        let (model, settings) = ours(serde_json::from_str(change).unwrap());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gpt2-folders").join(name);
        fs::create_dir_all(&folder).unwrap();
        let dtype = etude_engine::Dtype::F32;
        let files = gpt2::write(&*model.model, &model.config, &settings, 5, dtype).unwrap();
        for (name, bytes) in files {
            fs::write(folder.join(name), bytes).unwrap();
        }
        let read = |name: &str| fs::read(folder.join(name)).unwrap();
        let (config, weights) = (read("config.json"), read("model.safetensors"));
        let again = gpt2::read(&config, &weights, None, "folder").unwrap();
        let logits = logits(&model, &IDS);
        assert_eq!(self::logits(&again, &IDS), logits, "{name}");
        let rows: Vec<&[f32]> = logits.chunks_exact(VOCAB).collect();
        fs::write(folder.join("etude.json"), json!([IDS, rows]).to_string()).unwrap();
        println!("{}", folder.display());
    }
}
