//! Philox4x32-10: random numbers as a function of their position.
//!
//! Element `e` of a stream is lane `e % 4` of block `e / 4`, so neither the number of threads nor
//! the device changes a bit of it.
//!
//! Source: Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

/// Computes one block of four random words from a counter and a key, in ten rounds.
#[inline]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for round in 0..10 {
        if round > 0 {
            k0 = k0.wrapping_add(W0);
            k1 = k1.wrapping_add(W1);
        }
        let p0 = u64::from(M0) * u64::from(c0);
        let p1 = u64::from(M1) * u64::from(c2);
        (c0, c1, c2, c3) =
            ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
    }
    [c0, c1, c2, c3]
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

/// Fills `y` with uniform numbers in `[0, 1)`, beginning at block `position` of the stream.
pub fn uniform(y: &mut [f32], seed: u64, stream: u32, position: u64) {
    for (b, four) in y.chunks_mut(4).enumerate() {
        let words = block(seed, stream, position + b as u64);
        for (value, word) in four.iter_mut().zip(words) {
            *value = to_unit(word);
        }
    }
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
    for (b, (xs, ys)) in x.chunks(4).zip(y.chunks_mut(4)).enumerate() {
        let words = block(seed, stream, position + b as u64);
        for ((value, out), word) in xs.iter().zip(ys).zip(words) {
            *out = if u64::from(word) < threshold { 0.0 } else { value * scale };
        }
    }
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
