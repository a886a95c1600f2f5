//! How a token knows where it stands.
//!
//! With pairs `i` of the `d` numbers of a vector and the angle `w = place / 10000^(2 i / d)`:
//!
//! ```text
//! sinusoidal    x_i + sin w, x_(i + d/2) + cos w                          added to the input
//! rope          x_i cos w - x_(i + d/2) sin w, x_(i + d/2) cos w + x_i sin w      q and k, turned
//! ```
//!
//! The angle between a turned query and a turned key grows with their distance alone.
//!
//! Source: Vaswani et al. 2017, section 3.5; Su et al. 2021.

use crate::Result;
use etude_engine::Tensor;

/// How a token knows where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// A learned vector for each distance, added to keys where a query meets them (Shaw et al. 2018;
    /// Huang et al. 2018).
    Relative,
    /// A learned vector for each place, added to the input; beyond the context places begin anew.
    Learned,
    /// Sines and cosines of each place, added to the input (Vaswani et al. 2017).
    Sinusoidal,
    /// Queries and keys turned by angles that grow with the place (Su et al. 2021).
    Rotary,
}

impl Positions {
    const ALL: [Positions; 4] =
        [Positions::Relative, Positions::Learned, Positions::Sinusoidal, Positions::Rotary];
    /// The names in a configuration, the usual one first.
    pub(super) const NAMES: [&str; 4] = ["relative", "learned", "sinusoidal", "rope"];

    /// The name in a configuration.
    pub(super) fn name(self) -> &'static str {
        Positions::NAMES[self as usize]
    }

    pub(super) fn from_name(name: &str) -> Option<Positions> {
        Positions::ALL.into_iter().find(|positions| positions.name() == name)
    }
}

/// The angle of pair `i` of `pairs` at a place.
fn angle(place: usize, i: usize, pairs: usize) -> f64 {
    place as f64 * 10_000f64.powf(-(i as f64) / pairs as f64)
}

/// The vector of a place: sines, then cosines, of waves from 2 pi to 10,000 times as long.
pub(super) fn sinusoid(place: usize, y: &mut [f32]) {
    let pairs = y.len().div_ceil(2);
    for (i, y) in y.iter_mut().enumerate() {
        let phase = angle(place, i % pairs, pairs);
        *y = if i < pairs { phase.sin() } else { phase.cos() } as f32;
    }
}

/// The vectors of the first places, `[steps, width]`.
pub(super) fn sinusoids(steps: usize, width: usize) -> Result<Tensor> {
    let mut values = vec![0.0; steps * width];
    values.chunks_exact_mut(width).enumerate().for_each(|(t, row)| sinusoid(t, row));
    Ok(Tensor::new(values, &[steps, width])?)
}

/// The turns of the first places: what all heads of all blocks share.
pub(super) struct Turns {
    /// `[steps, pairs]` each.
    cos: Tensor,
    sin: Tensor,
}

impl Turns {
    pub fn new(steps: usize, pairs: usize) -> Result<Turns> {
        let table = |f: fn(f64) -> f64| {
            let values =
                (0..steps * pairs).map(|at| f(angle(at / pairs, at % pairs, pairs)) as f32);
            Tensor::new(values.collect::<Vec<f32>>(), &[steps, pairs])
        };
        Ok(Turns { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }

    /// Turns `[batch, heads, steps, 2 * pairs]`, each step by its angles.
    pub fn of(&self, x: &Tensor) -> Result<Tensor> {
        let pairs = self.cos.shape()[1];
        let (a, b) = (x.slice(3, 0..pairs)?, x.slice(3, pairs..2 * pairs)?);
        let first = a.mul(&self.cos)?.sub(&b.mul(&self.sin)?)?;
        let second = b.mul(&self.cos)?.add(&a.mul(&self.sin)?)?;
        Ok(Tensor::concat(&[&first, &second], 3)?)
    }
}

/// The turn of one place at a time.
pub(super) struct Turn {
    /// Cosine and sine of each pair.
    pairs: Vec<(f32, f32)>,
}

impl Turn {
    pub fn new(pairs: usize) -> Turn {
        Turn { pairs: vec![(1.0, 0.0); pairs] }
    }

    /// Goes to a place.
    pub fn go_to(&mut self, place: usize) {
        let count = self.pairs.len();
        for (i, pair) in self.pairs.iter_mut().enumerate() {
            let (sin, cos) = angle(place, i, count).sin_cos();
            *pair = (cos as f32, sin as f32);
        }
    }

    /// Turns every head of `[heads, 2 * pairs]`.
    pub fn turn(&self, heads: &mut [f32]) {
        for head in heads.chunks_exact_mut(2 * self.pairs.len()) {
            let (first, second) = head.split_at_mut(self.pairs.len());
            for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(&self.pairs) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}
