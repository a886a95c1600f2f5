//! Every model by name: `id` or `id/preset`.
//!
//! A new architecture is one file and one entry here. A preset is the JSON form of a configuration;
//! what it leaves out has the model's defaults.

use crate::config::{self, Table};
use crate::data::{Conditions, KEYS};
use crate::{Error, Model, Result};
use crate::{recurrent, transformer};
use etude_engine::Tensor;
use etude_tokenizer::step_input::StepInput;
use serde_json::{Map, Value};
use std::fmt::Debug;
use std::sync::Arc;

/// One published or built-in set of sizes.
pub struct Preset {
    /// Its name: `melody-basic`.
    pub name: &'static str,
    /// What it is and where it was published.
    pub about: &'static str,
    /// Tables `model` and `train` as JSON.
    pub settings: &'static str,
}

/// One architecture.
pub struct Entry {
    /// Its id: `lstm`.
    pub id: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// Its presets; the first is the default.
    pub presets: &'static [Preset],
    /// The keys of table `model` that its network reads.
    pub keys: &'static [&'static str],
    /// Reads those keys, told the id.
    pub read: fn(&str, &mut Table) -> Result<Arc<dyn Network>>,
}

/// The sizes of a network: what an architecture makes of its keys of table `model`.
///
/// A network reads `rows` input rows, of which a step names a few, and writes the logits of `vocab`
/// tokens.
pub trait Network: Debug + Send + Sync {
    /// Writes the keys that [`Entry::read`] reads.
    fn write(&self, table: &mut Map<String, Value>);

    /// Numbers in all weights.
    fn parameter_count(&self, rows: usize, vocab: usize) -> u64;

    /// Numbers kept for the backward pass, for each token.
    fn activations_per_token(&self, vocab: usize) -> u64;

    /// Numbers of the vector that a step is told in.
    fn width(&self) -> usize;

    /// Tells whether it writes all keys of a step at once rather than tokens.
    fn writes_keys(&self) -> bool {
        false
    }

    /// Tells whether it writes the six parts of a note at once.
    fn writes_notes(&self) -> bool {
        false
    }

    /// Tells whether it reads a melody first, and writes what goes with it.
    fn reads_melody(&self) -> bool {
        false
    }

    /// The part that multiplies in f32 alone, if there is one.
    fn f32_alone(&self) -> Option<String> {
        None
    }

    /// The longest sequence that it reads, if it has an end.
    fn most_steps(&self) -> Option<usize> {
        None
    }

    /// The last tokens that a prediction depends on, where the network says how many they are.
    fn context(&self) -> Option<usize> {
        None
    }

    /// Builds the network with fresh weights.
    ///
    /// # Errors
    /// If the sizes cannot be allocated.
    fn build(&self, rows: usize, vocab: usize, seed: u64) -> Result<Box<dyn Model>>;

    /// Builds the network for inputs that are sums of rows of a fixed table `[rows, width]`.
    ///
    /// # Errors
    /// If the sizes cannot be allocated, or the network does not read features.
    fn build_for_features(&self, table: Tensor, vocab: usize, seed: u64) -> Result<Box<dyn Model>> {
        let _ = (table, vocab, seed);
        let why = "features: this network reads tokens".into();
        Err(Error::Config { key: "model.conditions".into(), why })
    }
}

/// Every architecture there is.
pub const MODELS: &[Entry] =
    &[recurrent::RNN, recurrent::GRU, recurrent::LSTM, transformer::TRANSFORMER];

/// A model's part of a configuration.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The architecture.
    pub id: String,
    /// The preset that the sizes began from.
    pub preset: String,
    /// The scheme that turns scores into tokens.
    pub encoding: String,
    /// What is fed at each step beside the last token.
    pub conditions: Conditions,
    /// The sizes of the network.
    pub network: Arc<dyn Network>,
}

/// Configurations are equal if they are written alike.
impl PartialEq for ModelConfig {
    fn eq(&self, other: &ModelConfig) -> bool {
        self.write() == other.write()
    }
}

/// The keys of table `model` that some architecture knows, for `--set`.
pub fn model_keys() -> Vec<(&'static str, &'static str)> {
    let mut keys = vec!["encoding", "conditions"];
    for key in MODELS.iter().flat_map(|e| e.keys) {
        if !keys.contains(key) {
            keys.push(key);
        }
    }
    keys.into_iter().map(|key| ("model", key)).collect()
}

/// Finds `id` or `id/preset`.
///
/// # Errors
/// If there is no such model or preset; the message lists what there is.
pub fn find(name: &str) -> Result<(&'static Entry, &'static Preset)> {
    let (id, preset) = name.split_once('/').map_or((name, None), |(i, p)| (i, Some(p)));
    let entry = MODELS.iter().find(|e| e.id == id).ok_or_else(|| Error::Unknown {
        what: "model",
        name: config::plain(name),
        known: MODELS.iter().map(|e| e.id.into()).collect(),
    })?;
    let preset = match preset {
        None => &entry.presets[0],
        Some(wanted) => {
            entry.presets.iter().find(|p| p.name == wanted).ok_or_else(|| Error::Unknown {
                what: "preset",
                name: config::plain(name),
                known: entry.presets.iter().map(|p| format!("{id}/{}", p.name)).collect(),
            })?
        }
    };
    Ok((entry, preset))
}

/// The whole configuration of a preset, in the common form.
///
/// # Errors
/// If there is no such model or preset.
pub fn preset_config(name: &str) -> Result<Map<String, Value>> {
    let (entry, preset) = find(name)?;
    let fault = |e: serde_json::Error| Error::Config {
        key: format!("preset {}", preset.name),
        why: e.to_string(),
    };
    let mut config: Map<String, Value> = serde_json::from_str(preset.settings).map_err(fault)?;
    let model = config.entry("model").or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(model) = model {
        model.insert("id".into(), entry.id.into());
        model.insert("preset".into(), preset.name.into());
    }
    Ok(config)
}

impl ModelConfig {
    /// Takes table `model` out of a configuration and reads it.
    ///
    /// # Errors
    /// Names the key that cannot be used.
    pub fn take(config: &mut Map<String, Value>) -> Result<ModelConfig> {
        let mut table = Table::take(config, "model")?;
        let ids: Vec<&str> = MODELS.iter().map(|e| e.id).collect();
        let id = table.choice("id", "", &ids)?;
        let (entry, _) = find(&id)?;
        let preset = table.text("preset", entry.presets[0].name)?;
        let schemes: Vec<&str> = etude_tokenizer::schemes().iter().map(|(name, _)| *name).collect();
        let encoding = table.choice("encoding", "melody", &schemes)?;
        let conditions = table.choice("conditions", "none", &Conditions::NAMES)?;
        let network = (entry.read)(&id, &mut table)?;
        table.finish()?;
        let Some(conditions) = Conditions::from_name(&conditions, &encoding) else {
            let why = match conditions.as_str() {
                "features" => format!("the encoding {encoding} has no features but its tokens"),
                "chords" | "chord-pitches" => format!(
                    "{conditions} stand beside the steps of a melody; the encoding {encoding} has none"
                ),
                "melody" => format!("the encoding {encoding} has no melody"),
                _ => format!(
                    "{conditions}: asked of the encodings performance and performance-dynamics; \
                     {encoding} was given"
                ),
            };
            return Err(Error::Config { key: "model.conditions".into(), why });
        };
        if conditions == Conditions::Form && !encoding.starts_with("melody") {
            let why = format!(
                "form counts sixteenth-note steps of a melody; the encoding {encoding} has none"
            );
            return Err(Error::Config { key: "model.conditions".into(), why });
        }
        if conditions != Conditions::None && encoding.ends_with(etude_tokenizer::Infill::SUFFIX) {
            let why = format!(
                "{} follows a piece from its beginning; in the encoding {encoding} bars are missing",
                conditions.name()
            );
            return Err(Error::Config { key: "model.conditions".into(), why });
        }
        let is_roll = encoding.starts_with("pianoroll");
        if (conditions == Conditions::Keys) != network.writes_keys()
            || (network.writes_keys() && !is_roll)
        {
            let why = format!(
                "all keys of a step are read with conditions = keys, written with head = bernoulli \
                 or nade, of an encoding pianoroll or pianoroll-quarter: all three together or none; \
                 conditions = {}, encoding = {encoding}, and the head writes {} were given",
                conditions.name(),
                if network.writes_keys() { "keys" } else { "tokens" }
            );
            return Err(Error::Config { key: "model.conditions".into(), why });
        }
        let notes = network.writes_notes();
        if (conditions == Conditions::Notes) != notes || (notes && encoding != "performance-note") {
            let why = format!(
                "notes are read with conditions = notes, written with head = notes, of the encoding \
                 performance-note: all three together or none of the first two; conditions = {}, \
                 encoding = {encoding}, and a head that writes {} were given",
                conditions.name(),
                if notes { "notes" } else { "none" }
            );
            return Err(Error::Config { key: "model.conditions".into(), why });
        }
        if conditions.is_pair() != network.reads_melody() {
            let why = format!(
                "a melody (conditions = melody) is read by an encoder (encoder, its blocks, at least 1): \
                 both or none; conditions = {} was given, and a network {} an encoder",
                conditions.name(),
                if network.reads_melody() { "with" } else { "without" }
            );
            return Err(Error::Config { key: "model.conditions".into(), why });
        }
        let model = ModelConfig { id, preset, encoding, conditions, network };
        model.check_size()?;
        Ok(model)
    }

    /// Writes table `model`.
    pub fn write(&self) -> Map<String, Value> {
        let mut table = Map::new();
        table.insert("id".into(), self.id.as_str().into());
        table.insert("preset".into(), self.preset.as_str().into());
        table.insert("encoding".into(), self.encoding.as_str().into());
        table.insert("conditions".into(), self.conditions.name().into());
        self.network.write(&mut table);
        table
    }

    /// The encoding that this model speaks.
    ///
    /// # Errors
    /// If the name is unknown.
    pub fn encoding(&self) -> Result<Box<dyn etude_tokenizer::Encoding>> {
        etude_tokenizer::encoding(&self.encoding).ok_or_else(|| Error::Unknown {
            what: "encoding",
            name: config::plain(&self.encoding),
            known: etude_tokenizer::schemes().iter().map(|(name, _)| (*name).into()).collect(),
        })
    }

    /// Numbers that a step reads, and output tokens or keys.
    ///
    /// # Errors
    /// If the encoding is unknown.
    pub fn widths(&self) -> Result<(usize, usize)> {
        if self.conditions == Conditions::Keys {
            return Ok((KEYS, KEYS));
        }
        let vocab = self.encoding()?.vocab_size();
        // What ends a melody, and what goes with it, is none of the encoding's tokens.
        Ok((self.any_input(vocab).width(), vocab + usize::from(self.conditions.is_pair())))
    }

    /// The input of a piece of any length in any metre: its rows are the same for all.
    fn any_input(&self, vocab: usize) -> StepInput {
        let four = etude_tokenizer::Meter { tick: 0, numerator: 4, denominator: 4 };
        self.conditions.input(vocab, four, 1)
    }

    /// Numbers in all weights.
    ///
    /// # Errors
    /// If the encoding is unknown.
    pub fn parameter_count(&self) -> Result<u64> {
        let (rows, vocab) = self.widths()?;
        Ok(self.network.parameter_count(rows, vocab))
    }

    /// Refuses a model that no machine of today holds, before anything is allocated.
    fn check_size(&self) -> Result<()> {
        const MOST: u64 = 2_000_000_000;
        let count = self.parameter_count()?;
        if count > MOST {
            let why = format!("{count} weights ({} GB); at most {MOST}", count / 250_000_000);
            return Err(Error::Config { key: "model".into(), why });
        }
        Ok(())
    }

    /// Builds the network with fresh weights.
    ///
    /// # Errors
    /// If the encoding is unknown.
    pub fn build(&self, seed: u64) -> Result<Box<dyn Model>> {
        let (rows, vocab) = self.widths()?;
        let input = self.any_input(vocab);
        match input.table() {
            Some(table) => {
                let table = Tensor::new(table, &[input.rows(), rows])?;
                self.network.build_for_features(table, vocab, seed)
            }
            None => self.network.build(rows, vocab, seed),
        }
    }
}
