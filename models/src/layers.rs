//! Layers that several architectures share.

use crate::{Part, Result};
use etude_engine::{Module, Param, Rng, Tensor, init};

/// An affine map: `y = x W^T + b`.
///
/// # Shapes
/// `weight` `[out, in]`, `bias` `[out]`.
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
