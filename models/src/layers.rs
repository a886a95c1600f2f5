//! Layers that several architectures share.

use crate::{Part, Result, Scored};
use etude_engine::{Ids, Module, NO_ID, Param, Rng, Tensor, init};

/// An affine map: `y = x W^T + b`.
///
/// # Shapes
/// `weight` `[out, in]`, `bias` `[out]`.
#[derive(Clone)]
pub struct Linear {
    /// The matrix.
    pub weight: Param,
    /// The shift.
    pub bias: Param,
}

impl Linear {
    /// Makes a layer with uniform weights in `±1 / sqrt(in)`.
    ///
    /// # Errors
    /// If the sizes cannot be allocated.
    pub fn new(name: &str, from: usize, to: usize, rng: &mut Rng) -> Result<Linear> {
        let weight = init::by_fan(rng, &[to, from], from)?;
        let bias = init::by_fan(rng, &[to], from)?;
        Ok(Linear::of(name, weight, bias))
    }

    /// Makes a layer of a weight and a bias.
    pub fn of(name: &str, weight: Tensor, bias: Tensor) -> Linear {
        Linear {
            weight: Param::new(format!("{name}.weight"), weight),
            bias: Param::new(format!("{name}.bias"), bias),
        }
    }

    /// Applies the map to the last axis.
    ///
    /// # Errors
    /// If the last axis is not `in` wide.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.linear(&self.weight.value, Some(&self.bias.value))?)
    }

    /// What the layer costs.
    pub fn part(&self, name: &str) -> Part {
        let shape = self.weight.value.shape();
        let (to, from) = (shape[0] as u64, shape[1] as u64);
        Part {
            name: name.into(),
            about: format!("y = x W^T + b, [{from}] -> [{to}]"),
            parameters: to * from + to,
            flops_per_token: 2 * to * from,
        }
    }
}

impl Module for Linear {
    fn visit(&self, f: &mut dyn FnMut(&Param)) {
        f(&self.weight);
        f(&self.bias);
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param)) {
        f(&mut self.weight);
        f(&mut self.bias);
    }
}

/// What keeps the layer norm from dividing by 0.
pub const NORM_EPS: f32 = 1e-5;

/// The layer norm: `(x - mean) / sqrt(var + eps) * weight + bias`, over the last axis.
///
/// # Shapes
/// `weight`, `bias` `[width]`.
///
/// # Source
/// Ba, Kiros & Hinton 2016.
#[derive(Clone)]
pub struct Norm {
    /// The scale.
    pub weight: Param,
    /// The shift.
    pub bias: Param,
}

impl Norm {
    /// Makes a norm that neither scales nor shifts.
    ///
    /// # Errors
    /// If the width cannot be allocated.
    pub fn new(name: &str, width: usize) -> Result<Norm> {
        Ok(Norm {
            weight: Param::new(format!("{name}.weight"), Tensor::ones(&[width])?),
            bias: Param::new(format!("{name}.bias"), Tensor::zeros(&[width])?),
        })
    }

    /// Normalises the last axis.
    ///
    /// # Errors
    /// If it has another width.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.layer_norm(&self.weight.value, &self.bias.value, NORM_EPS)?)
    }
}

impl Module for Norm {
    fn visit(&self, f: &mut dyn FnMut(&Param)) {
        f(&self.weight);
        f(&self.bias);
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param)) {
        f(&mut self.weight);
        f(&mut self.bias);
    }
}

/// The first choice among logits: the first of the largest.
pub fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (at, x) in logits.iter().enumerate() {
        if *x > logits[best] {
            best = at;
        }
    }
    best as u32
}

/// Scores the target of each row of logits `[rows, vocab]`.
pub(crate) fn scored(logits: &Tensor, targets: &[u32]) -> Result<Scored> {
    let nats = logits.cross_entropy_rows(&Ids::new(targets))?.to_vec();
    let (values, vocab) = (logits.values(), logits.shape()[1]);
    let rows = values.chunks_exact(vocab).zip(targets);
    let hits = rows.filter(|(row, target)| likeliest(row) == **target).count();
    Ok(Scored { nats, hits })
}

/// The cross entropy of logits `[rows, vocab]` with targets of which a share of the probability is
/// spread evenly over all tokens (Szegedy et al. 2016); the mean over the targets that count.
pub(crate) fn smoothed_cross_entropy(logits: &Tensor, targets: &Ids, share: f32) -> Result<Tensor> {
    if share == 0.0 {
        return Ok(logits.cross_entropy(targets)?);
    }
    let counts = targets.as_slice().iter().map(|t| if *t == NO_ID { 0.0 } else { 1.0 });
    let counts = Tensor::new(counts.collect::<Vec<f32>>(), &[targets.rows(), 1])?;
    let count = counts.sum_all()?.item()?.max(1.0);
    let log_p = logits.log_softmax()?;
    let even = log_p.mul(&counts)?.sum_all()?.scale(-share / logits.shape()[1] as f32 / count)?;
    Ok(log_p.gather(targets)?.sum_all()?.scale(-(1.0 - share) / count)?.add(&even)?)
}

/// `x + y`, in the place of `x`.
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Adds rows of a table `[count, width]` to `x` `[width]`; [`NO_ID`] stands for none.
///
/// # Errors
/// If the table has no such row; the message names `op`.
pub(crate) fn add_rows(x: &mut [f32], table: &[f32], rows: &[u32], op: &'static str) -> Result<()> {
    let count = table.len() / x.len().max(1);
    for &id in rows.iter().filter(|id| **id != NO_ID) {
        if id as usize >= count {
            return Err(etude_engine::Error::Id { op, id, rows: count }.into());
        }
        let width = x.len();
        add(x, &table[id as usize * width..][..width]);
    }
    Ok(())
}
