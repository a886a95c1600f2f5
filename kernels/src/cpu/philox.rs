//! Sixteen blocks of Philox at a time: lane `l` of four vectors holds the words of block `l`.

use super::lanes::{Body, LANES, Lanes};
use super::math::{log, sin_cos_near};
use crate::philox;

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
    fn words<L: Lanes>(self, at: u64) -> [L::Ints; 4] {
        let (mut low, mut high) = ([0.0; LANES], [0.0; LANES]);
        for l in 0..LANES {
            let position = self.position.wrapping_add(at).wrapping_add(l as u64);
            low[l] = f32::from_bits(position as u32);
            high[l] = f32::from_bits((position >> 32) as u32);
        }
        let mut c0 = L::load(&low).bits();
        let mut c1 = L::load(&high).bits();
        let mut c2 = L::ints(self.stream as i32);
        let mut c3 = L::ints(0);
        let mut key = [self.seed as u32, (self.seed >> 32) as u32];
        for round in 0..10 {
            if round > 0 {
                key = philox::next_key(key);
            }
            let (high_0, low_0) = L::mul_wide(c0, philox::M0);
            let (high_1, low_1) = L::mul_wide(c2, philox::M1);
            c0 = L::xor(L::xor(high_1, c1), L::ints(key[0] as i32));
            c2 = L::xor(L::xor(high_0, c3), L::ints(key[1] as i32));
            (c1, c3) = (low_1, low_0);
        }
        [c0, c1, c2, c3]
    }
}

/// Four vectors of words or numbers, in the order of the stream.
#[inline(always)]
fn in_order<L: Lanes>(x: [L; 4]) -> [f32; GROUP] {
    let mut y = [0.0; GROUP];
    let (blocks, _) = y.as_chunks_mut();
    for (x, y) in L::interleave(x).into_iter().zip(blocks) {
        x.store(y);
    }
    y
}

/// [`to_unit`](philox::to_unit) of sixteen words.
#[inline(always)]
fn units<L: Lanes>(words: L::Ints) -> L {
    let upper = L::and(L::shift_right::<8>(words), L::ints(0x00ff_ffff));
    L::floats(upper).mul(L::splat(1.0 / 16_777_216.0))
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
            let [a, b, c, d] = self.from.words::<L>((g * LANES) as u64);
            let numbers = in_order::<L>([units(a), units(b), units(c), units(d)]);
            if let Ok(y) = <&mut [f32; GROUP]>::try_from(&mut *y) {
                *y = numbers;
            } else {
                y.copy_from_slice(&numbers[..y.len()]);
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

/// All bits of a lane where `a < b`, both without sign.
#[inline(always)]
fn below<L: Lanes>(a: L::Ints, b: L::Ints) -> L::Ints {
    // What `a - b` borrows: the sign of b where the signs differ, that of the difference elsewhere.
    let differ = L::xor(a, b);
    let borrow = L::or(L::and(differ, b), L::and(not::<L>(differ), L::int_sub(a, b)));
    L::shift_right::<31>(borrow)
}

#[inline(always)]
fn not<L: Lanes>(a: L::Ints) -> L::Ints {
    L::xor(a, L::ints(-1))
}

impl Body for Dropout<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        // A threshold of 2^32 drops everything: no word reaches it.
        if self.threshold > u64::from(u32::MAX) {
            return self.y.fill(0.0);
        }
        let (threshold, scale) = (L::ints(self.threshold as u32 as i32), L::splat(self.scale));
        for (g, (x, y)) in self.x.chunks(GROUP).zip(self.y.chunks_mut(GROUP)).enumerate() {
            let [a, b, c, d] = self.from.words::<L>((g * LANES) as u64);
            let words = [L::from_bits(a), L::from_bits(b), L::from_bits(c), L::from_bits(d)];
            let words = L::interleave(words);
            let mut numbers = [0.0; GROUP];
            numbers[..x.len()].copy_from_slice(x);
            let (blocks, _) = numbers.as_chunks_mut();
            for (word, x) in words.into_iter().zip(blocks) {
                let dropped = below::<L>(word.bits(), threshold);
                let scaled = L::load(x).mul(scale).bits();
                L::from_bits(L::and(scaled, not::<L>(dropped))).store(x);
            }
            y.copy_from_slice(&numbers[..x.len()]);
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
fn pairs<L: Lanes>(u: L::Ints, v: L::Ints) -> (L, L) {
    // u in (0, 1]: the logarithm of 0 must not come up.
    let u = units::<L>(u).add(L::splat(1.0 / 16_777_216.0));
    let radius = log(u).mul(L::splat(-2.0)).sqrt();
    let (sin, cos) = sin_cos_near(units::<L>(v).mul(L::splat(std::f32::consts::TAU)));
    (radius.mul(cos), radius.mul(sin))
}

impl Body for Normal<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (g, y) in self.y.chunks_mut(GROUP).enumerate() {
            let words = self.from.words::<L>((g * LANES) as u64);
            let (a, b) = pairs::<L>(words[0], words[1]);
            let (c, d) = pairs::<L>(words[2], words[3]);
            y.copy_from_slice(&in_order([a, b, c, d])[..y.len()]);
        }
    }
}
