//! Fine-tuning with few numbers: a matrix stays as it is, and a product of two thin ones is learned
//! that is added to it.
//!
//! ```text
//! W' = W + (alpha / r) B A        W [out, in], B [out, r], A [r, in]
//! ```
//!
//! `A` begins random and `B` at 0, so training begins from the model as it is. Every matrix of a model
//! has its pair, whatever the architecture; vectors stay. An adapter file holds the pairs alone, with
//! a fingerprint of the weights that they were learned on; added to those it is the tuned model
//! ([`add_adapter`]). Two adapters of one model blend as
//! `(1 - w) (alpha_1 / r_1) B_1 A_1 + w (alpha_2 / r_2) B_2 A_2`, which is an adapter of rank
//! `r_1 + r_2` ([`blend`]).
//!
//! # Source
//! Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".

use crate::data::Batch;
use crate::registry::ModelConfig;
use crate::{Error, Generator, Model, Part, Precision, Result, Scored};
use etude_engine::{Dtype, Module, Param, Rng, Tensor, WeightFile, init, no_grad};
use etude_engine::{named_parameters, write_weights};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

/// The metadata key of an adapter file.
const ADAPTER: &str = "etude.adapter";
const A: &str = ".lora_a";
const B: &str = ".lora_b";
const LORA_STREAM: u32 = 5;

/// How large an adapter is and how much it counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lora {
    /// Rows of `A` and columns of `B`; 0: no adapter.
    pub rank: usize,
    /// The sum of all rows counts `alpha / rank`.
    pub alpha: f64,
}

impl Lora {
    /// Reads the adapter of a configuration.
    pub fn of(settings: &Value) -> Lora {
        let train = &settings["train"];
        let rank = train["lora"].as_u64().unwrap_or(0) as usize;
        Lora { rank, alpha: train["lora_alpha"].as_f64().unwrap_or(Lora::ALPHA) }
    }

    /// The usual `alpha`.
    pub const ALPHA: f64 = 16.0;
    /// The largest `alpha`.
    pub const MOST_ALPHA: f64 = 1e6;

    fn scale(self) -> f32 {
        (self.alpha / self.rank.max(1) as f64) as f32
    }
}

/// The pair of one matrix.
struct Pair {
    /// Which of the model's parameters it belongs to, counted as they are visited.
    of: usize,
    a: Param,
    b: Param,
}

/// A model whose matrices stay, with a pair for each.
pub struct Adapted {
    /// Behind a lock, because its weights are exchanged while it runs.
    base: Mutex<Box<dyn Model>>,
    pairs: Vec<Pair>,
    scale: f32,
}

impl Adapted {
    /// Puts fresh pairs beside the matrices of a model.
    ///
    /// # Errors
    /// If the rank is 0, or no matrix is larger than it in both directions.
    pub fn new(base: Box<dyn Model>, lora: Lora, seed: u64) -> Result<Adapted> {
        let mut rng = Rng::stream(seed, LORA_STREAM);
        let mut shapes = Vec::new();
        base.visit(&mut |p| shapes.push((p.name.clone(), p.value.shape().to_vec())));
        let mut pairs = Vec::new();
        for (of, (name, shape)) in shapes.iter().enumerate() {
            let &[out, inputs] = &shape[..] else { continue };
            if out.min(inputs) <= lora.rank {
                continue;
            }
            let a = init::by_fan(&mut rng, &[lora.rank, inputs], inputs)?;
            let (a, b) = (Param::new(format!("{name}{A}"), a), Tensor::zeros(&[out, lora.rank])?);
            pairs.push(Pair { of, a, b: Param::new(format!("{name}{B}"), b) });
        }
        if lora.rank == 0 || pairs.is_empty() {
            let why = format!("a rank of {}: no matrix of this model is larger", lora.rank);
            return Err(Error::Config { key: "train.lora".into(), why });
        }
        Ok(Adapted { base: Mutex::new(base), pairs, scale: lora.scale() })
    }

    fn base(&self) -> MutexGuard<'_, Box<dyn Model>> {
        // Whoever failed while holding it has put the weights back: see `Summed`.
        self.base.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Runs `f` on the model with the sums of matrices and pairs as its weights. Gradients go to the
    /// pairs alone.
    fn with_sums<R>(&self, f: impl FnOnce(&dyn Model) -> Result<R>) -> Result<R> {
        let mut summed = Summed { base: self.base(), kept: Vec::new() };
        let Summed { base, kept } = &mut summed;
        let mut fault = None;
        let mut pairs = self.pairs.iter().peekable();
        base.visit_mut(&mut |p| {
            let mut sum = Ok(p.value.detach());
            if let Some(pair) = pairs.next_if(|pair| pair.of == kept.len()) {
                sum = sum.and_then(|w| added(&w, &pair.a.value, &pair.b.value, self.scale));
            }
            let value = sum.unwrap_or_else(|e| {
                fault = Some(e);
                p.value.clone()
            });
            kept.push(std::mem::replace(&mut p.value, value));
        });
        fault.map_or_else(|| f(&**summed.base), Err)
    }

    /// The model with the pairs added to its matrices.
    ///
    /// # Errors
    /// None with pairs of its own.
    pub fn merged(self) -> Result<Box<dyn Model>> {
        let mut base = self.base.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (mut at, mut result) = (0, Ok(()));
        let mut pairs = self.pairs.iter().peekable();
        base.visit_mut(&mut |p| {
            if let Some(pair) = pairs.next_if(|pair| pair.of == at) {
                result = result
                    .clone()
                    .and_then(|()| merge(p, &pair.a.value, &pair.b.value, self.scale));
            }
            at += 1;
        });
        result.map(|()| base)
    }
}

/// A model with sums as its weights. Its own come back when this goes, after a panic too.
struct Summed<'a> {
    base: MutexGuard<'a, Box<dyn Model>>,
    /// The weights that were exchanged, in the order of the model.
    kept: Vec<Tensor>,
}

impl Drop for Summed<'_> {
    fn drop(&mut self) {
        let mut kept = self.kept.drain(..);
        self.base.visit_mut(&mut |p| kept.next().into_iter().for_each(|value| p.value = value));
    }
}

/// `W + scale B A`.
fn added(w: &Tensor, a: &Tensor, b: &Tensor, scale: f32) -> Result<Tensor> {
    Ok(w.add(&b.matmul(a)?.scale(scale)?)?)
}

fn merge(p: &mut Param, a: &Tensor, b: &Tensor, scale: f32) -> Result<()> {
    let sum = no_grad(|| added(&p.value, a, b, scale))?;
    Ok(p.set(&sum)?)
}

impl Module for Adapted {
    fn visit(&self, f: &mut dyn FnMut(&Param)) {
        self.base().visit(f);
        self.pairs.iter().for_each(|pair| [&pair.a, &pair.b].into_iter().for_each(&mut *f));
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param)) {
        self.base.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()).visit_mut(f);
        for pair in &mut self.pairs {
            f(&mut pair.a);
            f(&mut pair.b);
        }
    }
}

impl Model for Adapted {
    fn loss(&self, batch: &Batch, dropout: Option<&mut Rng>) -> Result<Tensor> {
        self.with_sums(|model| model.loss(batch, dropout))
    }

    fn score(&self, batch: &Batch) -> Result<Scored> {
        no_grad(|| self.with_sums(|model| model.score(batch)))
    }

    fn generator(&self, precision: Precision) -> Result<Box<dyn Generator>> {
        no_grad(|| self.with_sums(|model| model.generator(precision)))
    }

    fn parts(&self) -> Vec<Part> {
        self.base().parts()
    }
}

/// A number that other weights do not share.
fn fingerprint(mut weights: Vec<(String, Tensor)>) -> String {
    weights.sort_by(|a, b| a.0.cmp(&b.0));
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |word: u32| {
        hash = (hash ^ u64::from(word)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
    };
    for (name, tensor) in &weights {
        name.bytes().for_each(|byte| add(byte.into()));
        tensor.to_vec().iter().for_each(|number| add(number.to_bits()));
    }
    format!("{hash:016x}")
}

fn fault(path: &str, why: impl std::fmt::Display) -> Error {
    Error::File { path: path.into(), why: why.to_string() }
}

/// Takes the adapter out of the weights of a run, which hold the model's matrices and their pairs.
///
/// # Errors
/// If the file is damaged or holds no pairs.
pub fn extract(bytes: &[u8], config: &ModelConfig, lora: Lora, path: &str) -> Result<Vec<u8>> {
    let file = WeightFile::parse(bytes).map_err(|e| fault(path, e))?;
    let (mut base, mut pairs) = (Vec::new(), Vec::new());
    for name in file.entries().keys() {
        let tensor = file.tensor(name).map_err(|e| fault(path, e))?;
        let is_pair = name.ends_with(A) || name.ends_with(B);
        if is_pair { &mut pairs } else { &mut base }.push((name.clone(), tensor));
    }
    if pairs.is_empty() {
        return Err(fault(path, "holds no adapter: it was not trained with --lora"));
    }
    write(&pairs, lora, &fingerprint(base), &Value::Object(config.write()))
}

fn write(pairs: &[(String, Tensor)], lora: Lora, base: &str, model: &Value) -> Result<Vec<u8>> {
    let about = json!({ "rank": lora.rank, "alpha": lora.alpha, "base": base, "model": model });
    let metadata = BTreeMap::from([
        ("format".to_string(), "pt".to_string()),
        (ADAPTER.to_string(), about.to_string()),
    ]);
    Ok(write_weights(pairs, Dtype::F32, &metadata)?)
}

/// An adapter as it stands in a file.
struct Adapter {
    lora: Lora,
    base: String,
    model: Value,
    /// `A` and `B` by the names of their matrices.
    pairs: BTreeMap<String, [Tensor; 2]>,
}

impl Adapter {
    fn read(bytes: &[u8], path: &str) -> Result<Adapter> {
        let file = WeightFile::parse(bytes).map_err(|e| fault(path, e))?;
        file.check_finite().map_err(|e| fault(path, e))?;
        let text = file.metadata().get(ADAPTER).ok_or_else(|| {
            fault(path, format!("no {ADAPTER} in its metadata: not an adapter of this program"))
        })?;
        let mut about: Value =
            serde_json::from_str(text).map_err(|e| fault(path, format!("{ADAPTER}: {e}")))?;
        let (rank, alpha) = (about["rank"].as_u64(), about["alpha"].as_f64());
        let (Some(rank), Some(alpha), Some(base)) = (rank, alpha, about["base"].as_str()) else {
            return Err(fault(path, format!("{ADAPTER}: rank, alpha and base are wanted")));
        };
        let (lora, base) = (Lora { rank: rank as usize, alpha }, base.to_string());
        if lora.rank == 0 || !(0.0..=Lora::MOST_ALPHA).contains(&alpha) {
            let (from, to) = ("at least 1 and an alpha of 0 to", Lora::MOST_ALPHA);
            let why =
                format!("{ADAPTER}: rank {rank}, alpha {alpha}; a rank of {from} {to} is wanted");
            return Err(fault(path, why));
        }
        let mut pairs = BTreeMap::new();
        for name in file.entries().keys() {
            let Some(of) = name.strip_suffix(A) else {
                let partner = name.strip_suffix(B).map(|of| format!("{of}{A}"));
                match partner.is_some_and(|a| file.entries().contains_key(&a)) {
                    true => continue,
                    false => {
                        let name = crate::config::plain(name);
                        return Err(fault(path, format!("{name} is not half of a pair")));
                    }
                }
            };
            let read = |name: &str| file.tensor(name).map_err(|e| fault(path, e));
            let (a, b) = (read(name)?, read(&format!("{of}{B}"))?);
            match (a.shape(), b.shape()) {
                ([r, n], [m, s]) if [*r, *s] == [lora.rank; 2] && *n > 0 && *m > 0 => {}
                (a, b) => {
                    let of = crate::config::plain(of);
                    let why = format!("{of}: A {a:?} and B {b:?} are not of rank {}", lora.rank);
                    return Err(fault(path, why));
                }
            }
            pairs.insert(of.to_string(), [a, b]);
        }
        if pairs.is_empty() {
            return Err(fault(path, "an adapter without a pair: it changes nothing"));
        }
        Ok(Adapter { lora, base, model: about["model"].take(), pairs })
    }
}

/// Adds the adapter of a file to the model that it was made for.
///
/// # Errors
/// If the file is no adapter, or one for other sizes or other weights; the message names `path` and
/// says what was expected and what was found. If a sum is not finite, which leaves the model of no
/// use.
pub fn add_adapter(
    model: &mut dyn Model,
    config: &ModelConfig,
    bytes: &[u8],
    path: &str,
) -> Result<()> {
    let adapter = Adapter::read(bytes, path)?;
    let ours = Value::Object(config.write());
    for (key, wanted) in ours.as_object().into_iter().flatten() {
        let theirs = &adapter.model[key];
        if key != "preset" && theirs != wanted {
            return Err(fault(
                path,
                format!("an adapter for another model: {key} {theirs}; this model has {wanted}"),
            ));
        }
    }
    let base = fingerprint(named_parameters(model));
    if adapter.base != base {
        let theirs = crate::config::plain(&adapter.base);
        return Err(fault(
            path,
            format!(
                "an adapter for other weights of this model: made for {theirs}, these are {base}"
            ),
        ));
    }
    let (mut pairs, mut result) = (adapter.pairs, Ok(()));
    model.visit_mut(&mut |p| {
        if let (Ok(()), Some([a, b])) = (&result, pairs.remove(&p.name)) {
            result = merge(p, &a, &b, adapter.lora.scale()).map_err(|e| fault(path, e));
        }
    });
    match pairs.keys().next() {
        Some(name) if result.is_ok() => {
            let name = crate::config::plain(name);
            Err(fault(path, format!("{name}: the model has no matrix of this name")))
        }
        _ => result.and_then(|()| model.check_finite().map_err(|e| fault(path, e))),
    }
}

/// Blends two adapters of one model: the first counts `1 - weight`, the second `weight`.
///
/// # Errors
/// If a file is no adapter, they belong to different weights, the weight is not in 0 to 1, or a
/// blended number is not finite.
pub fn blend(first: (&[u8], &str), second: (&[u8], &str), weight: f64) -> Result<Vec<u8>> {
    if !(0.0..=1.0).contains(&weight) {
        let why = format!("{weight} is not in 0 to 1");
        return Err(Error::Config { key: "weight".into(), why });
    }
    let [one, two] = [Adapter::read(first.0, first.1)?, Adapter::read(second.0, second.1)?];
    if one.base != two.base {
        let [a, b] = [&one.base, &two.base].map(|base| crate::config::plain(base));
        let why = format!("made for weights {b}; {} is made for {a}", first.1);
        return Err(fault(second.1, why));
    }
    let rank = one.lora.rank + two.lora.rank;
    let mut names: Vec<&String> = one.pairs.keys().chain(two.pairs.keys()).collect();
    names.sort();
    names.dedup();
    let mut pairs = Vec::new();
    for name in names {
        let shares = [(&one, 1.0 - weight), (&two, weight)];
        let shape = shares.iter().find_map(|(adapter, _)| {
            let [a, b] = adapter.pairs.get(name)?;
            Some((a.shape()[1], b.shape()[0]))
        });
        let (inputs, out) = shape.unwrap_or((0, 0));
        let (mut a, mut b) = (Vec::new(), vec![Vec::new(); out]);
        for (adapter, share) in shares {
            let r = adapter.lora.rank;
            let scale = share as f32 * adapter.lora.scale();
            match adapter.pairs.get(name) {
                Some([of_a, of_b]) if of_a.shape()[1] == inputs && of_b.shape()[0] == out => {
                    a.extend(of_a.to_vec());
                    for (row, more) in b.iter_mut().zip(of_b.to_vec().chunks(r.max(1))) {
                        row.extend(more.iter().map(|x| x * scale));
                    }
                }
                Some(_) => {
                    let name = crate::config::plain(name);
                    return Err(fault(
                        second.1,
                        format!("{name}: other sizes than in {}", first.1),
                    ));
                }
                None => {
                    a.extend(vec![0.0; r * inputs]);
                    b.iter_mut().for_each(|row| row.extend(vec![0.0; r]));
                }
            }
        }
        let b = b.concat();
        if b.iter().any(|x| !x.is_finite()) {
            let name = crate::config::plain(name);
            let why = format!("{name}: blended with {} it is not finite", first.1);
            return Err(fault(second.1, why));
        }
        pairs.push((format!("{name}{A}"), Tensor::from_slice(&a, &[rank, inputs])?));
        pairs.push((format!("{name}{B}"), Tensor::from_slice(&b, &[out, rank])?));
    }
    // The scales are in B.
    write(&pairs, Lora { rank, alpha: rank as f64 }, &one.base, &one.model)
}
