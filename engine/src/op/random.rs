//! Dropout: its mask is a function of the position in the random stream and never stored.

use etude_kernels::philox;

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::memory::Buffer;
use crate::rng::Rng;
use crate::tensor::Tensor;

impl Tensor {
    /// Sets each element to 0 with probability `p` and scales the others by `1 / (1 - p)`.
    ///
    /// # Errors
    /// If `p` is not in `[0, 1)`.
    ///
    /// # Source
    /// Srivastava, Hinton, Krizhevsky, Sutskever & Salakhutdinov 2014.
    pub fn dropout(&self, p: f32, rng: &mut Rng) -> Result<Tensor> {
        if !(0.0..1.0).contains(&p) {
            return Err(Error::argument("dropout", format!("probability {p} is not in [0, 1)")));
        }
        if p == 0.0 {
            return Ok(self.clone());
        }
        let at = rng.reserve(self.len());
        self.dropout_at(p, at)
    }

    /// The same mask whenever the position is the same: so this is linear, and its own gradient.
    pub(crate) fn dropout_at(&self, p: f32, at: Position) -> Result<Tensor> {
        let layout = Layout::contiguous("dropout", self.shape())?;
        let mut y = Buffer::scratch(layout.len());
        philox::dropout(&self.compact(), &mut y, p, at.seed, at.stream, at.block);
        Ok(Tensor::from_op("dropout", &[self], y, layout, move |v| {
            Ok(vec![Some(v.d_output.dropout_at(p, at)?)])
        }))
    }
}

/// A place in a random stream, in blocks of four words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub seed: u64,
    pub stream: u32,
    pub block: u64,
}
