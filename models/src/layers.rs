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
        Ok(Linear {
            weight: Param::new(format!("{name}.weight"), weight),
            bias: Param::new(format!("{name}.bias"), bias),
        })
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
