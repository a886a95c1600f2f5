//! Fresh weights of the blocks: as Glorot & Bengio 2010 draw them; those that are added to the stream are
//! smaller, so that the stream of a deep network begins no wider (Radford et al. 2019).

use super::super::sizes::TransformerConfig;
use super::{Feed, Look};
use crate::Result;
use crate::layers::{Linear, Norm};
use etude_engine::{Param, Rng, Tensor, init};

/// Draws what blocks are made of.
pub(super) struct Maker<'a> {
    pub sizes: &'a TransformerConfig,
    pub rng: Rng,
    /// Factor of weights that are added to the stream, as in the decoder alone.
    pub added: f32,
}

impl Maker<'_> {
    fn linear(&mut self, name: String, from: usize, to: usize, scale: f32) -> Result<Linear> {
        let weight = init::xavier(&mut self.rng, to, from, scale)?;
        Ok(Linear::of(&name, weight, Tensor::zeros(&[to])?))
    }

    pub fn look(&mut self, name: &str, is_relative: bool) -> Result<Look> {
        let (d, sizes) = (self.sizes.hidden, self.sizes);
        let shape = [sizes.heads, sizes.reach(), sizes.head_dim()];
        let er = is_relative.then(|| init::normal(&mut self.rng, &shape, 0.0, 0.02)).transpose()?;
        Ok(Look {
            norm: Norm::new(&format!("{name}.norm"), d)?,
            q: self.linear(format!("{name}.q"), d, d, 1.0)?,
            kv: self.linear(format!("{name}.kv"), d, 2 * d, 1.0)?,
            proj: self.linear(format!("{name}.proj"), d, d, self.added)?,
            er: er.map(|er| Param::new(format!("{name}.er"), er)),
        })
    }

    pub fn feed(&mut self, name: &str) -> Result<Feed> {
        let (d, ff) = (self.sizes.hidden, self.sizes.ff);
        Ok(Feed {
            norm: Norm::new(&format!("{name}.norm"), d)?,
            up: self.linear(format!("{name}.up"), d, ff, 1.0)?,
            down: self.linear(format!("{name}.down"), ff, d, self.added)?,
        })
    }
}
