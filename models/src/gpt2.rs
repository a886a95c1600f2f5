//! GPT-2's checkpoint in the layout of Hugging Face: a folder of `config.json` and `model.safetensors`.
//!
//! A [`crate::transformer`] with learned positions, its norms first, full attention and the last token
//! as its only input is GPT-2, number for number:
//!
//! ```text
//! here                                there
//! embedding      [vocab + 1, d]       transformer.wte.weight          [vocab_size, d]
//! positions      [context, d]         transformer.wpe.weight          [n_positions, d]
//! block.N.norm1, norm2                transformer.h.N.ln_1, ln_2
//! block.N.qkv, proj   [out, in]       transformer.h.N.attn.c_attn, attn.c_proj   [in, out]
//! block.N.up, down    [out, in]       transformer.h.N.mlp.c_fc, mlp.c_proj       [in, out]
//! norm                                transformer.ln_f
//! out.weight     [vocab, d]           lm_head.weight                  [vocab_size, d]
//! ```
//!
//! The last row of our table begins a piece, where there is no token yet. There it is one more token,
//! `bos_token_id`; its logit means nothing and is left out here. A row of zeros is none, and is not
//! written: so a checkpoint without such a token comes back as it was.
//!
//! Source: Radford et al. 2019; the names are those of the library transformers.

use crate::config::{Table, plain};
use crate::layers::NORM_EPS;
use crate::registry::ModelConfig;
use crate::transformer::TransformerConfig;
use crate::weights::STEP;
use crate::{Error, Loaded, Model, Result};
use etude_engine::{Activation, Dtype, Tensor, WeightFile};
use etude_engine::{named_parameters, write_weights};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The file of the sizes.
pub const CONFIG: &str = "config.json";
/// The file of the weights.
pub const WEIGHTS: &str = "model.safetensors";
/// The file that tells who samples that the token which begins a piece stands nowhere else.
pub const GENERATION: &str = "generation_config.json";
/// The key of `config.json` that holds our whole configuration.
const OURS: &str = "etude";
/// Before the names of all weights but the output's.
const PREFIX: &str = "transformer.";
/// Names of the activations, here and there.
const ACTIVATIONS: [(&str, &str); 4] = [
    ("relu", "relu"),
    ("gelu", "gelu"),
    ("gelu-tanh", "gelu_new"),
    ("gelu-tanh", "gelu_pytorch_tanh"),
];

/// The name of a weight there, without the prefix, and whether it lies turned.
fn there(name: &str) -> (String, bool) {
    let parts: Vec<&str> = name.split('.').collect();
    match parts[..] {
        ["embedding"] => ("wte.weight".into(), false),
        ["positions"] => ("wpe.weight".into(), false),
        ["norm", kind] => (format!("ln_f.{kind}"), false),
        ["block", layer, part, kind] => {
            let (part, is_linear) = match part {
                "norm1" => ("ln_1", false),
                "norm2" => ("ln_2", false),
                "qkv" => ("attn.c_attn", true),
                "proj" => ("attn.c_proj", true),
                "up" => ("mlp.c_fc", true),
                _ => ("mlp.c_proj", true),
            };
            (format!("h.{layer}.{part}.{kind}"), is_linear && kind == "weight")
        }
        _ => ("lm_head.weight".into(), false),
    }
}

/// Writes a model as the files of a folder, names and bytes.
///
/// `settings` is its whole configuration, which [`read`] finds again under the key `etude`; `dtype` is
/// F32, F16 or BF16.
///
/// # Errors
/// If the layout does not hold such a model; the message names the key, what is wanted and what was
/// found.
pub fn write(
    model: &dyn Model,
    config: &ModelConfig,
    settings: &Map<String, Value>,
    step: u64,
    dtype: Dtype,
) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let sizes = written_there(config)?;
    let number = match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
        other => return fault("dtype", "f32, f16 or bf16", other.name()),
    };
    let (vocab, named) = (config.widths()?.1, named_parameters(model));
    let mut begins = false;
    if let Some((_, table)) = named.iter().find(|(name, _)| name == "embedding") {
        begins = table.slice(0, vocab..vocab + 1)?.to_vec().iter().any(|x| *x != 0.0);
    }
    let mut tensors = Vec::new();
    for (name, value) in named {
        let (short, is_turned) = there(&name);
        let value = match name.as_str() {
            "embedding" if !begins => value.slice(0, 0..vocab)?,
            "out.weight" if begins => {
                Tensor::concat(&[&value, &Tensor::zeros(&[1, sizes.hidden])?], 0)?
            }
            _ if is_turned => value.t()?,
            _ => value,
        };
        let prefix = if name == "out.weight" { "" } else { PREFIX };
        tensors.push((format!("{prefix}{short}"), value));
    }
    let metadata = BTreeMap::from([
        ("format".to_string(), "pt".to_string()),
        (STEP.to_string(), step.to_string()),
    ]);
    let bytes = write_weights(&tensors, dtype, &metadata)?;

    let activation = match sizes.activation {
        Activation::Relu => "relu",
        Activation::GeluTanh => "gelu_new",
        _ => "gelu",
    };
    let bos = if begins { json!(vocab) } else { Value::Null };
    let inner = if sizes.ff == 4 * sizes.hidden { Value::Null } else { json!(sizes.ff) };
    let dropout = crate::config::written(sizes.dropout);
    let mut there = json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": vocab + usize::from(begins),
        "bos_token_id": bos,
        "eos_token_id": null,
        "n_embd": sizes.hidden,
        "n_layer": sizes.layers,
        "n_head": sizes.heads,
        "n_inner": inner,
        "n_positions": sizes.context,
        "activation_function": activation,
        "layer_norm_epsilon": crate::config::written(NORM_EPS),
        "tie_word_embeddings": sizes.tied,
        "resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout,
        "scale_attn_weights": true,
        "scale_attn_by_inverse_layer_idx": false,
        "reorder_and_upcast_attn": false,
        "add_cross_attention": false,
        "torch_dtype": number,
    });
    there[OURS] = Value::Object(settings.clone());
    let generation = if begins {
        json!({ "bos_token_id": bos, "suppress_tokens": [bos] })
    } else {
        json!({ "bos_token_id": null })
    };
    let text = |value: &Value| format!("{value:#}\n").into_bytes();
    Ok(vec![(WEIGHTS, bytes), (GENERATION, text(&generation)), (CONFIG, text(&there))])
}

fn fault<T>(key: &str, wanted: &str, found: &str) -> Result<T> {
    let why = format!("GPT-2's layout wants {wanted}; found {found}");
    Err(Error::Config { key: key.into(), why })
}

/// The sizes of a model that the layout holds.
fn written_there(config: &ModelConfig) -> Result<TransformerConfig> {
    if config.id != "transformer" {
        return fault("model.id", "transformer", &config.id);
    }
    let ours = config.write();
    let wanted: [(&str, Value); 6] = [
        ("conditions", "none".into()),
        ("positions", "learned".into()),
        ("norm", "pre".into()),
        ("local", 0.into()),
        ("sparse_block", 0.into()),
        ("sparse_stride", 0.into()),
    ];
    for (key, wanted) in wanted {
        let found = ours.get(key).unwrap_or(&Value::Null);
        if *found != wanted {
            return fault(&format!("model.{key}"), &wanted.to_string(), &found.to_string());
        }
    }
    let mut table = Map::new();
    config.network.write(&mut table);
    let mut tables = Map::from_iter([("model".to_owned(), Value::Object(table))]);
    TransformerConfig::read(&mut Table::take(&mut tables, "model")?)
}

/// What `config.json` says.
struct There {
    /// The keys of our table `model` that follow.
    network: Map<String, Value>,
    vocab: usize,
    /// The token that begins a text, where the vocabulary has it.
    bos: Option<usize>,
}

impl There {
    /// Reads the keys of GPT-2 with the defaults of GPT-2; others do not change the logits.
    fn read(map: &Map<String, Value>) -> Result<There> {
        let given = map.iter().filter(|(key, value)| !value.is_null() && *key != OURS);
        let given = given.map(|(key, value)| (key.clone(), value.clone())).collect();
        let mut tables = Map::from_iter([("gpt2".to_owned(), Value::Object(given))]);
        let mut t = Table::take(&mut tables, "gpt2")?;
        t.choice("model_type", "", &["gpt2"])?;
        for (key, wanted) in [
            ("scale_attn_weights", true),
            ("scale_attn_by_inverse_layer_idx", false),
            ("add_cross_attention", false),
        ] {
            let found = t.flag(key, wanted)?;
            if found != wanted {
                let why = format!("{wanted} is wanted, {found} was found");
                return Err(Error::Config { key: format!("gpt2.{key}"), why });
            }
        }
        let eps = t.number("layer_norm_epsilon", 1e-5, 0.0..=1.0)?;
        if eps as f32 != NORM_EPS {
            let why = format!("{NORM_EPS:e} is wanted, {eps:e} was found");
            return Err(Error::Config { key: "gpt2.layer_norm_epsilon".into(), why });
        }
        let dropout = t.number("resid_pdrop", 0.1, 0.0..=0.95)?;
        for key in ["embd_pdrop", "attn_pdrop"] {
            let found = t.number(key, 0.1, 0.0..=0.95)?;
            if found != dropout {
                let why = format!("{dropout} as resid_pdrop is wanted, {found} was found");
                return Err(Error::Config { key: format!("gpt2.{key}"), why });
            }
        }
        let activations = ACTIVATIONS.map(|(_, there)| there);
        let activation = t.choice("activation_function", "gelu_new", &activations)?;
        let activation = ACTIVATIONS.iter().find(|(_, there)| *there == activation);
        let hidden = t.count("n_embd", 768, 1..=65_536)?;
        let tied = t.flag("tie_word_embeddings", true)?;
        let vocab = t.count("vocab_size", 50_257, 1..=1 << 24)?;
        let bos = t.count("bos_token_id", 50_256, 0..=usize::MAX)?;
        let network: [(&str, Value); 10] = [
            ("hidden", hidden.into()),
            ("layers", t.count("n_layer", 12, 1..=256)?.into()),
            ("heads", t.count("n_head", 12, 1..=1024)?.into()),
            ("ff", t.count("n_inner", 4 * hidden, 1..=1 << 20)?.into()),
            ("context", t.count("n_positions", 1024, 1..=65_536)?.into()),
            ("positions", "learned".into()),
            ("norm", "pre".into()),
            ("activation", activation.map_or("gelu", |(here, _)| here).into()),
            ("output", if tied { "tied" } else { "own" }.into()),
            ("dropout", dropout.into()),
        ];
        let network = network.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
        // Only what is told counts: the default lies beyond most vocabularies, and null is none.
        let bos = map.get("bos_token_id").is_some_and(|bos| !bos.is_null()).then_some(bos);
        Ok(There { network, vocab, bos: bos.filter(|bos| *bos < vocab) })
    }

    /// Our configuration for these sizes: the one that the folder holds, or one made for an encoding.
    fn settings(&self, map: &Map<String, Value>, encoding: Option<&str>) -> Result<Value> {
        let Some(ours) = map.get(OURS) else {
            let Some(encoding) = encoding else { return self.without_encoding() };
            let mut model = self.network.clone();
            for (key, value) in [("id", "transformer"), ("preset", "gpt2"), ("encoding", encoding)]
            {
                model.insert(key.into(), value.into());
            }
            return Ok(json!({ "model": model }));
        };
        Ok(ours.clone())
    }

    /// Refuses a configuration of ours that says something else.
    fn compare(&self, config: &ModelConfig) -> Result<()> {
        let ours = config.write();
        for (key, there) in &self.network {
            let here = ours.get(key).unwrap_or(&Value::Null);
            // What is dropped in training is told in two ways, and either is good.
            if here != there && key != "dropout" {
                let why = format!("{here} was found, the keys of GPT-2 say {there}");
                return Err(Error::Config { key: format!("{OURS}.model.{key}"), why });
            }
        }
        Ok(())
    }

    fn without_encoding<T>(&self) -> Result<T> {
        let fits = |vocab: usize| vocab == self.vocab || vocab + 1 == self.vocab;
        let names = etude_tokenizer::schemes().iter().map(|(name, _)| *name);
        let names = names.filter(|name| {
            etude_tokenizer::encoding(name).is_some_and(|encoding| fits(encoding.vocab_size()))
        });
        let names: Vec<&str> = names.collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let why = format!(
            "is not there, so nothing tells the encoding of its {} tokens; etude export FOLDER \
             --encoding NAME --out FILE makes a model of it (encodings of this size: {names})",
            self.vocab
        );
        Err(Error::Config { key: OURS.into(), why })
    }
}

/// Builds the model of a folder from the bytes of its [`CONFIG`] and [`WEIGHTS`].
///
/// `encoding` is that of the tokens where the folder does not tell it.
///
/// # Errors
/// If the files break their formats, describe what a Transformer here is not, tell no encoding or one
/// of another size, or tensors are missing, extra, misshapen or not finite; the message names the file.
pub fn read(config: &[u8], weights: &[u8], encoding: Option<&str>, folder: &str) -> Result<Loaded> {
    let bad = |file: &str, why: String| Error::File { path: format!("{folder}/{file}"), why };
    let map: Value =
        serde_json::from_slice(config).map_err(|e| bad(CONFIG, format!("not JSON: {e}")))?;
    let Value::Object(map) = map else {
        return Err(bad(CONFIG, "an object is wanted".into()));
    };
    let described = There::read(&map).and_then(|there| {
        let settings = there.settings(&map, encoding)?;
        let Value::Object(mut tables) = settings.clone() else {
            let why = "an object is wanted".into();
            return Err(Error::Config { key: OURS.into(), why });
        };
        let config = ModelConfig::take(&mut tables)?;
        written_there(&config)?;
        there.compare(&config)?;
        Ok((there, settings, config))
    });
    let (there, settings, config) = described.map_err(|e| bad(CONFIG, e.to_string()))?;
    let vocab = config.widths()?.1;
    if there.vocab != vocab && there.vocab != vocab + 1 {
        let why = format!(
            "gpt2.vocab_size: {} was found; the encoding {} has {vocab} tokens, and one more may begin \
             a piece",
            there.vocab, config.encoding
        );
        return Err(bad(CONFIG, why));
    }
    let begins = there.vocab > vocab;
    if let Some(bos) = there.bos.filter(|bos| begins && *bos != vocab) {
        let why = format!("gpt2.bos_token_id: {bos} was found; {vocab} is wanted, the last token");
        return Err(bad(CONFIG, why));
    }
    // Weights take two bytes each: a configuration that asks for more is refused unbuilt.
    let count = config.parameter_count()?;
    if count > weights.len() as u64 {
        let why = format!("{} bytes; {CONFIG} asks for {count} weights", weights.len());
        return Err(bad(WEIGHTS, why));
    }
    let mut model = config.build(0)?;
    let begin = Begin { vocab, begins, bos: there.bos };
    let file = WeightFile::parse(weights).map_err(|e| bad(WEIGHTS, e.to_string()))?;
    begin.fill(&mut *model, &file).map_err(|e| bad(WEIGHTS, e.to_string()))?;
    let step = file.metadata().get(STEP).and_then(|step| step.parse().ok());
    Ok(Loaded { config, model, settings, step })
}

/// How the row that begins a piece is told in a file.
struct Begin {
    /// Tokens of the encoding.
    vocab: usize,
    /// Whether a row after those of the tokens begins a piece.
    begins: bool,
    /// The token that does so otherwise, if there is one.
    bos: Option<usize>,
}

impl Begin {
    /// Gives every parameter its value; the model has not changed if that fails.
    fn fill(&self, model: &mut dyn Model, file: &WeightFile) -> Result<()> {
        let (mut names, mut faults) = (BTreeMap::new(), Vec::new());
        for name in file.entries().keys() {
            let short = name.strip_prefix(PREFIX).unwrap_or(name);
            // Masks that old checkpoints hold: which keys a query sees is no weight.
            if short.ends_with(".attn.bias") || short.ends_with(".attn.masked_bias") {
                continue;
            }
            if names.insert(short, name.as_str()).is_some() {
                faults.push(format!("{} stands there with and without {PREFIX}", plain(short)));
            }
        }
        let mut wanted = Vec::new();
        model.visit(&mut |p| {
            let (short, is_turned) = there(&p.name);
            let mut shape = p.value.shape().to_vec();
            match p.name.as_str() {
                "embedding" if !self.begins => shape[0] -= 1,
                "out.weight" if self.begins => shape[0] += 1,
                _ if is_turned => shape.reverse(),
                _ => {}
            }
            let Some(name) = names.remove(short.as_str()) else {
                return faults.push(format!("{short} is missing"));
            };
            let entry = &file.entries()[name];
            if entry.shape != shape {
                let found = &entry.shape;
                faults.push(format!("{} is {found:?}, {shape:?} is wanted", plain(name)));
            } else if !matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16) {
                let found = entry.dtype.name();
                faults.push(format!("{} is {found}; F32, F16 or BF16 is wanted", plain(name)));
            }
            wanted.push((name, is_turned));
        });
        // A tied output may stand there as well, if it says the same.
        let bytes = |short: &str| names.get(short).and_then(|name| file.bytes(name));
        let table = wanted.first().and_then(|(name, _)| file.bytes(name));
        if bytes("lm_head.weight").is_some_and(|output| Some(output) == table) {
            names.remove("lm_head.weight");
        }
        faults.extend(names.values().map(|name| format!("{} is no part of it", plain(name))));
        const SHOWN: usize = 6;
        if !faults.is_empty() {
            let more = faults.len().saturating_sub(SHOWN);
            faults.truncate(SHOWN);
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            return Err(Error::Data { why: format!("{}{more}", faults.join("; ")) });
        }
        let mut values = Vec::with_capacity(wanted.len());
        for (name, is_turned) in wanted {
            let value = file.tensor(name)?;
            value.check_finite(&plain(name))?;
            values.push(if is_turned { value.t()? } else { value });
        }
        let (mut values, mut result) = (values.into_iter(), Ok(()));
        model.visit_mut(&mut |p| {
            if let (Ok(()), Some(value)) = (&result, values.next()) {
                result = self.here(&p.name, value).and_then(|value| Ok(p.set(&value)?));
            }
        });
        result
    }

    /// A tensor of the file as a parameter here has it.
    fn here(&self, name: &str, value: Tensor) -> Result<Tensor> {
        match name {
            "embedding" if !self.begins => {
                let row = match self.bos {
                    Some(bos) => value.slice(0, bos..bos + 1)?,
                    None => Tensor::zeros(&[1, value.shape()[1]])?,
                };
                Ok(Tensor::concat(&[&value, &row], 0)?)
            }
            "out.weight" if self.begins => Ok(value.slice(0, 0..self.vocab)?),
            _ => Ok(value),
        }
    }
}
