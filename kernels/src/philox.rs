//! Philox4x32-10: random numbers as a function of their position.
//!
//! Element `e` of a stream is lane `e % 4` of block `e / 4`, so neither the number of threads nor
//! the device changes a bit of it.
//!
//! Source: Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

use crate::cpu::lanes::dispatch;
use crate::cpu::philox::{Draw, Dropout, Fill, Normal, Scaled, Stream, Uniform};
use crate::cpu::shared::Shared;
use crate::elementwise::CUT;
use crate::threads::parallel_for;

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

/// One word of a block, or the same word of several.
pub(crate) trait Word: Copy {
    /// The upper and the lower half of the product.
    fn mul_wide(self, b: u32) -> (Self, Self);
    fn xor(self, b: Self) -> Self;
    fn xor_key(self, key: u32) -> Self;
}

impl Word for u32 {
    #[inline(always)]
    fn mul_wide(self, b: u32) -> (u32, u32) {
        let product = u64::from(self) * u64::from(b);
        ((product >> 32) as u32, product as u32)
    }
    #[inline(always)]
    fn xor(self, b: u32) -> u32 {
        self ^ b
    }
    #[inline(always)]
    fn xor_key(self, key: u32) -> u32 {
        self ^ key
    }
}

/// One round of a block.
#[inline(always)]
fn round<W: Word>([c0, c1, c2, c3]: [W; 4], [k0, k1]: [u32; 2]) -> [W; 4] {
    let (high_0, low_0) = c0.mul_wide(M0);
    let (high_1, low_1) = c2.mul_wide(M1);
    [high_1.xor(c1).xor_key(k0), low_1, high_0.xor(c3).xor_key(k1), low_0]
}

/// Ten rounds.
#[inline(always)]
pub(crate) fn rounds<W: Word>(counter: [W; 4], mut key: [u32; 2]) -> [W; 4] {
    let mut counter = round(counter, key);
    for _ in 1..10 {
        key = [key[0].wrapping_add(W0), key[1].wrapping_add(W1)];
        counter = round(counter, key);
    }
    counter
}

/// Computes one block of four random words from a counter and a key, in ten rounds.
#[inline]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    rounds(counter, key)
}

/// The block of a stream at a position: key = seed, counter = (position low, position high, stream, 0).
#[inline]
pub fn block(seed: u64, stream: u32, position: u64) -> [u32; 4] {
    philox4x32(
        [position as u32, (position >> 32) as u32, stream, 0],
        [seed as u32, (seed >> 32) as u32],
    )
}

/// A uniform number in `[0, 1)` with 24 bits: the same on every machine.
#[inline]
pub fn to_unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Cuts `len` elements into pieces of whole blocks and hands each its place in the stream.
fn pieces(
    len: usize,
    seed: u64,
    stream: u32,
    position: u64,
    f: impl Fn(std::ops::Range<usize>, Stream) + Sync,
) {
    parallel_for(len, CUT, |at| {
        let position = position.wrapping_add((at.start / 4) as u64);
        f(at, Stream { seed, stream, position });
    });
}

/// Fills `y` with drawn numbers.
fn fill(y: &mut [f32], draw: impl Draw + Sync, seed: u64, stream: u32, position: u64) {
    let (len, y) = (y.len(), Shared::new(y));
    pieces(len, seed, stream, position, |at, from| {
        // SAFETY: pieces do not overlap.
        let y = unsafe { y.slice(at) };
        dispatch(Fill { y, draw, from });
    });
}

/// Fills `y` with uniform numbers in `[0, 1)`, beginning at block `position` of the stream.
pub fn uniform(y: &mut [f32], seed: u64, stream: u32, position: u64) {
    fill(y, Uniform, seed, stream, position);
}

/// Fills `y` with uniform numbers in `[low, high)`, beginning at block `position` of the stream:
/// `low + (high - low) * u`, rounded, so `high` itself may come up.
pub fn uniform_between(
    y: &mut [f32],
    (low, high): (f32, f32),
    seed: u64,
    stream: u32,
    position: u64,
) {
    let draw = Scaled { draw: Uniform, offset: low, scale: high - low };
    fill(y, draw, seed, stream, position);
}

/// Fills `y` with numbers from the standard normal distribution, beginning at block `position`.
///
/// # Source
/// Box & Muller 1958.
pub fn normal(y: &mut [f32], seed: u64, stream: u32, position: u64) {
    fill(y, Normal, seed, stream, position);
}

/// Fills `y` with numbers from a normal distribution, beginning at block `position`.
pub fn normal_around(
    y: &mut [f32],
    mean: f32,
    deviation: f32,
    seed: u64,
    stream: u32,
    position: u64,
) {
    let draw = Scaled { draw: Normal, offset: mean, scale: deviation };
    fill(y, draw, seed, stream, position);
}

/// Keeps each element of `x` with probability `1 - p` and scales it by `1 / (1 - p)`, else writes 0.
///
/// The mask is a function of the position, so the gradient is this same call on `d_y`.
///
/// # Shapes
/// `x`, `y` `[n]`.
///
/// # Source
/// Srivastava, Hinton, Krizhevsky, Sutskever & Salakhutdinov 2014.
pub fn dropout(x: &[f32], y: &mut [f32], p: f32, seed: u64, stream: u32, position: u64) {
    assert_eq!(x.len(), y.len());
    let threshold = (f64::from(p) * 4_294_967_296.0) as u64;
    let scale = 1.0 / (1.0 - p);
    let y = Shared::new(y);
    pieces(x.len(), seed, stream, position, |at, from| {
        // SAFETY: pieces do not overlap.
        let y = unsafe { y.slice(at.clone()) };
        dispatch(Dropout { x: &x[at], y, threshold, scale, from });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_known_answers() {
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }
}
