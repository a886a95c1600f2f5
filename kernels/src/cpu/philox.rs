//! Sixteen blocks of Philox at a time.
//!
//! Plain loops over arrays of sixteen: inside a tier's shell the compiler makes vector code of them,
//! and integers have no rounding that could differ.

use super::lanes::{Body, LANES, Lanes};
use super::math::{log, sin_cos_near};
use crate::philox::{self, to_unit};

/// Numbers that sixteen blocks give.
const GROUP: usize = 4 * LANES;

/// Where a stream is read.
#[derive(Clone, Copy)]
pub(crate) struct Stream {
    pub seed: u64,
    pub stream: u32,
    /// The first block.
    pub position: u64,
}

impl Stream {
    /// Words 0, 1, 2, 3 of the sixteen blocks from block `at` on.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // one index through all four arrays: lanes side by side
    fn words(self, at: u64) -> [[u32; LANES]; 4] {
        let mut c = [[0; LANES], [0; LANES], [self.stream; LANES], [0; LANES]];
        for l in 0..LANES {
            let position = self.position.wrapping_add(at).wrapping_add(l as u64);
            c[0][l] = position as u32;
            c[1][l] = (position >> 32) as u32;
        }
        let mut key = [self.seed as u32, (self.seed >> 32) as u32];
        for round in 0..10 {
            if round > 0 {
                key = philox::next_key(key);
            }
            for l in 0..LANES {
                let block = philox::round([c[0][l], c[1][l], c[2][l], c[3][l]], key);
                (c[0][l], c[1][l], c[2][l], c[3][l]) = (block[0], block[1], block[2], block[3]);
            }
        }
        c
    }

    /// The same in the order of the stream.
    #[inline(always)]
    fn group(self, at: u64) -> [u32; GROUP] {
        let c = self.words(at);
        let mut words = [0; GROUP];
        for l in 0..LANES {
            for w in 0..4 {
                words[4 * l + w] = c[w][l];
            }
        }
        words
    }
}

/// Uniform numbers in `[0, 1)`.
pub(crate) struct Uniform<'a> {
    pub y: &'a mut [f32],
    pub from: Stream,
}

impl Body for Uniform<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (g, y) in self.y.chunks_mut(GROUP).enumerate() {
            let words = self.from.group((g * LANES) as u64);
            for (y, word) in y.iter_mut().zip(words) {
                *y = to_unit(word);
            }
        }
    }
}

/// `x * scale` where the word is not below the threshold, else 0.
pub(crate) struct Dropout<'a> {
    pub x: &'a [f32],
    pub y: &'a mut [f32],
    pub threshold: u64,
    pub scale: f32,
    pub from: Stream,
}

impl Body for Dropout<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        // A threshold of 2^32 drops everything: no word reaches it.
        let all = self.threshold > u64::from(u32::MAX);
        let threshold = self.threshold as u32;
        for (g, (x, y)) in self.x.chunks(GROUP).zip(self.y.chunks_mut(GROUP)).enumerate() {
            let words = self.from.group((g * LANES) as u64);
            for ((x, y), word) in x.iter().zip(y).zip(words) {
                *y = if all || word < threshold { 0.0 } else { x * self.scale };
            }
        }
    }
}

/// Numbers from the normal distribution: words 0, 1 and 2, 3 of a block give two each.
pub(crate) struct Normal<'a> {
    pub y: &'a mut [f32],
    pub from: Stream,
}

/// Sixteen pairs by Box & Muller: `sqrt(-2 ln u) (cos, sin)(2 pi v)`.
#[inline(always)]
fn pairs<L: Lanes>(u: &[u32; LANES], v: &[u32; LANES]) -> (L, L) {
    // u in (0, 1]: the logarithm of 0 must not come up.
    let u: [f32; LANES] = std::array::from_fn(|l| to_unit(u[l]) + 1.0 / 16_777_216.0);
    let v: [f32; LANES] = std::array::from_fn(|l| to_unit(v[l]));
    let radius = log(L::load(&u)).mul(L::splat(-2.0)).sqrt();
    let (sin, cos) = sin_cos_near(L::load(&v).mul(L::splat(std::f32::consts::TAU)));
    (radius.mul(cos), radius.mul(sin))
}

impl Body for Normal<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (g, y) in self.y.chunks_mut(GROUP).enumerate() {
            let words = self.from.words((g * LANES) as u64);
            let mut values = [[0.0; LANES]; 4];
            for half in [0, 2] {
                let (a, b) = pairs::<L>(&words[half], &words[half + 1]);
                a.store(&mut values[half]);
                b.store(&mut values[half + 1]);
            }
            let mut ordered = [0.0; GROUP];
            for l in 0..LANES {
                for w in 0..4 {
                    ordered[4 * l + w] = values[w][l];
                }
            }
            y.copy_from_slice(&ordered[..y.len()]);
        }
    }
}
