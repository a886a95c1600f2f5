//! What a recurrent network makes of its state `h`: the probabilities of what comes next.
//!
//! ```text
//! softmax     one token of many:      p(x) = softmax(W h + b)
//!
//! bernoulli   each key of a step for itself:   p(v_i = 1) = sigmoid(W h + b)_i
//!
//! nade        each key of a step, told the keys below it:
//!             b_dec, b_enc = W h + b
//!             p(v_i = 1 | v_1 .. v_{i-1}) = sigmoid(b_dec_i + V_i . sigmoid(a_i))
//!             a_1 = b_enc,    a_{i+1} = a_i + v_i W_i
//!
//! notes       the six parts of a note, each by a softmax of its own: see `notes.rs`
//! ```
//!
//! A Bernoulli head cannot say that a chord is one of two, only that each of its keys is likely.
//! NADE can, at the cost of a chain over the keys. The chain moves only where a key sounds: a step
//! of `k` keys has `k + 1` different `a`, each the sum of the `W_i` of the keys so far, and all the
//! keys up to the next one are told by the same product `V sigmoid(a)`. So the chains of a whole
//! batch are one sum of rows and one matrix product.
//!
//! Source: Larochelle & Murray 2011 for NADE; Boulanger-Lewandowski, Bengio & Vincent 2012 for both
//! on recurrent networks; the sizes are Magenta's Pianoroll RNN-NADE.

use super::notes;
use crate::data::{Batch, KEYS, NO_TARGET};
use crate::layers::{Linear, scored};
use crate::{Part, Result, Scored};
use etude_engine::{Activation, Ids, Module, NO_ID, Param, Rng, Tensor, init};

/// Which head a network has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadKind {
    /// One token of many.
    Softmax,
    /// Each key for itself.
    Bernoulli,
    /// Keys in a chain, through so many hidden units.
    Nade(usize),
    /// The six parts of a note.
    Notes,
}

impl HeadKind {
    /// The names in a configuration.
    pub const NAMES: [&str; 4] = ["softmax", "bernoulli", "nade", "notes"];

    /// The name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            HeadKind::Softmax => "softmax",
            HeadKind::Bernoulli => "bernoulli",
            HeadKind::Nade(_) => "nade",
            HeadKind::Notes => "notes",
        }
    }

    /// Tells whether it writes all keys of a step at once.
    pub fn writes_keys(self) -> bool {
        matches!(self, HeadKind::Bernoulli | HeadKind::Nade(_))
    }

    /// Hidden units of the chain; 0 without one.
    pub fn units(self) -> usize {
        if let HeadKind::Nade(units) = self { units } else { 0 }
    }

    /// Numbers in its weights, over a state of `hidden` and `outputs` tokens or keys.
    pub fn parameter_count(self, hidden: u64, outputs: u64) -> u64 {
        let units = self.units() as u64;
        (hidden + 1) * (outputs + units) + 2 * outputs * units
    }
}

/// The weights of a head.
pub(super) struct Head {
    /// `W` and `b`.
    pub out: Linear,
    kind: HeadKind,
    /// `W_i` and `V_i` of a NADE, `[keys, units]` each.
    chain: Option<(Param, Param)>,
}

impl Head {
    pub fn new(kind: HeadKind, hidden: usize, outputs: usize, rng: &mut Rng) -> Result<Head> {
        let units = kind.units();
        let out = Linear::new("out", hidden, outputs + units, rng)?;
        let mut keys = |name: &str| {
            let value = init::by_fan(rng, &[outputs, units], units)?;
            Ok::<_, crate::Error>(Param::new(format!("nade.{name}"), value))
        };
        let chain = if units > 0 { Some((keys("w")?, keys("v")?)) } else { None };
        Ok(Head { out, kind, chain })
    }

    /// The mean negative log-likelihood of the batch's targets, in nats.
    ///
    /// # Shapes
    /// `h` `[steps * batch, hidden]`.
    pub fn loss(&self, h: &Tensor, batch: &Batch) -> Result<Tensor> {
        match self.kind {
            HeadKind::Softmax => {
                let targets = Ids::new(batch.targets.as_slice());
                return Ok(self.out.forward(h)?.cross_entropy(&targets)?);
            }
            HeadKind::Notes => return notes::loss(&self.out.forward(h)?, batch),
            HeadKind::Bernoulli | HeadKind::Nade(_) => {}
        }
        let (nats, _) = self.key_nats(h, batch)?;
        Ok(nats.sum_all()?.scale(1.0 / batch.target_count().max(1) as f32)?)
    }

    /// Scores every target of the batch.
    ///
    /// # Shapes
    /// `h` `[steps * batch, hidden]`.
    pub fn score(&self, h: &Tensor, batch: &Batch) -> Result<Scored> {
        match self.kind {
            HeadKind::Softmax => scored(&self.out.forward(h)?, &batch.targets),
            HeadKind::Notes => notes::score(&self.out.forward(h)?, batch),
            HeadKind::Bernoulli | HeadKind::Nade(_) => self.score_keys(h, batch),
        }
    }

    /// A step is a hit if each of its keys was on the likelier side.
    fn score_keys(&self, h: &Tensor, batch: &Batch) -> Result<Scored> {
        let (nats, rows) = self.key_nats(h, batch)?;
        let nats = nats.to_vec();
        let (mut sums, mut missed) =
            (vec![0.0; batch.targets.len()], vec![false; batch.targets.len()]);
        for (step, nats) in rows.iter().zip(nats.chunks_exact(KEYS)) {
            sums[*step as usize] += nats.iter().map(|n| f64::from(*n)).sum::<f64>();
            missed[*step as usize] |= nats.iter().any(|n| *n > std::f32::consts::LN_2);
        }
        let hit = |(missed, target): (&bool, &u32)| !missed && *target != NO_TARGET;
        let hits = missed.iter().zip(&batch.targets).filter(|pair| hit(*pair)).count();
        Ok(Scored { nats: sums.iter().map(|nats| *nats as f32).collect(), hits })
    }

    /// The negative log-likelihood of each key, in rows of one link of a chain each, and the step
    /// that each row belongs to. Keys that another row of the step tells are 0.
    fn key_nats(&self, h: &Tensor, batch: &Batch) -> Result<(Tensor, Vec<u32>)> {
        let links = Links::new(batch, self.chain.is_some());
        let both = self.out.forward(h)?.embedding(&Ids::new(links.steps.as_slice()))?;
        let logits = match &self.chain {
            None => both,
            Some((w, v)) => {
                let b_dec = both.slice(1, 0..KEYS)?;
                let b_enc = both.slice(1, KEYS..KEYS + v.value.shape()[1])?;
                let a = b_enc.add(&w.value.embedding(&Ids::bags(links.below, links.active)?)?)?;
                b_dec.add(&a.sigmoid()?.linear(&v.value, None)?)?
            }
        };
        // -log p(v) = softplus(-x) where the key sounds, softplus(x) where it does not.
        let shape = logits.shape().to_vec();
        let sides = Tensor::new(links.sides, &shape)?;
        let nats = logits.mul(&sides)?.activation(Activation::Softplus)?.mul(&sides.abs()?)?;
        Ok((nats, links.steps))
    }

    /// The keys of a step one after another, without a graph; none for heads that write tokens.
    pub fn key_chain(&self) -> Option<KeyChain> {
        let units = self.kind.units();
        let of = |param: &Param| param.value.to_vec();
        let (w, v) = self.chain.as_ref().map_or_else(Default::default, |(w, v)| (of(w), of(v)));
        self.kind.writes_keys().then(|| KeyChain {
            w,
            v,
            outputs: vec![0.0; KEYS + units],
            hidden: vec![0.0; units],
        })
    }

    pub fn parts(&self) -> Vec<Part> {
        let mut parts = vec![self.out.part("out")];
        if let Some((w, _)) = &self.chain {
            let units = self.kind.units();
            parts.push(Part {
                name: "nade".into(),
                about: format!("a chain over {KEYS} keys through [{units}]"),
                parameters: 2 * w.value.len() as u64,
                flops_per_token: 2 * 2 * w.value.len() as u64,
            });
        }
        parts
    }
}

impl Module for Head {
    fn visit(&self, f: &mut dyn FnMut(&Param)) {
        self.out.visit(f);
        self.chain.iter().flat_map(|(w, v)| [w, v]).for_each(f);
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param)) {
        self.out.visit_mut(f);
        self.chain.iter_mut().flat_map(|(w, v)| [w, v]).for_each(f);
    }
}

/// The links of all chains of a batch: from one key that sounds to the next.
struct Links {
    /// The row of the batch that each link belongs to.
    steps: Vec<u32>,
    /// The keys that sound below each link `[links, active]`.
    below: Vec<u32>,
    active: usize,
    /// For each key of a link 1 if it is silent, -1 if it sounds, 0 if it is not of this link.
    sides: Vec<f32>,
}

impl Links {
    fn new(batch: &Batch, chained: bool) -> Links {
        let most = batch.keys.iter().map(|keys| keys.count_ones()).max().unwrap_or(0);
        let active = most.max(1) as usize;
        let (mut steps, mut below, mut sides) = (Vec::new(), Vec::new(), Vec::new());
        let counted = batch.keys.iter().zip(&batch.targets).enumerate();
        for (row, (keys, _)) in counted.filter(|(_, (_, target))| **target != NO_TARGET) {
            let mut told = Vec::with_capacity(active);
            let mut open = |told: &[u32], sides: &mut Vec<f32>| {
                steps.push(row as u32);
                below.extend_from_slice(told);
                below.resize(steps.len() * active, NO_ID);
                sides.resize(steps.len() * KEYS, 0.0);
            };
            open(&told, &mut sides);
            for key in 0..KEYS {
                let sounds = keys >> key & 1 == 1;
                let link = sides.len() - KEYS;
                sides[link + key] = if sounds { -1.0 } else { 1.0 };
                if sounds && chained {
                    told.push(key as u32);
                    open(&told, &mut sides);
                }
            }
        }
        Links { steps, below, active, sides }
    }
}

/// The keys of a step, drawn from the lowest up.
pub(super) struct KeyChain {
    w: Vec<f32>,
    v: Vec<f32>,
    /// `b_dec` and `a`.
    outputs: Vec<f32>,
    hidden: Vec<f32>,
}

impl KeyChain {
    /// Walks over the keys: `draw` is told the logit of each and says whether it sounds.
    ///
    /// # Shapes
    /// `outputs` `[keys + units]`, what the output layer gave.
    pub fn draw(&mut self, outputs: &[f32], draw: &mut dyn FnMut(f32) -> bool) -> u128 {
        self.outputs.copy_from_slice(outputs);
        let units = self.hidden.len();
        let (b_dec, a) = self.outputs.split_at_mut(KEYS);
        let sigmoid = |a: &[f32], hidden: &mut [f32]| {
            hidden.iter_mut().zip(a).for_each(|(h, a)| *h = 1.0 / (1.0 + (-a).exp()));
        };
        sigmoid(a, &mut self.hidden);
        let mut keys = 0;
        for (key, b_dec) in b_dec.iter().enumerate() {
            let of_key = key * units..(key + 1) * units;
            let v = self.v[of_key.clone()].iter().zip(&self.hidden);
            if draw(b_dec + v.map(|(v, h)| v * h).sum::<f32>()) {
                keys |= 1 << key;
                a.iter_mut().zip(&self.w[of_key]).for_each(|(a, w)| *a += w);
                sigmoid(a, &mut self.hidden);
            }
        }
        keys
    }
}
