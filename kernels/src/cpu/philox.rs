//! Sixteen blocks of Philox at a time: lane `l` of four vectors holds the words of block `l`.

use super::lanes::{Body, LANES, Lanes};
use super::math::{log, sin_cos_near};
use crate::philox::{self, Word};

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
        let first = self.position.wrapping_add(at);
        let (low, high) = if first as u32 <= u32::MAX - LANES as u32 {
            const STEPS: [f32; LANES] = {
                let mut steps = [0.0; LANES];
                let mut l = 0;
                while l < LANES {
                    steps[l] = f32::from_bits(l as u32);
                    l += 1;
                }
                steps
            };
            let low = L::int_add(L::ints(first as i32), L::load(&STEPS).bits());
            (low, L::ints((first >> 32) as i32))
        } else {
            // The lower half of the position overflows in one of the lanes.
            let (mut low, mut high) = ([0.0; LANES], [0.0; LANES]);
            for l in 0..LANES {
                let position = first.wrapping_add(l as u64);
                low[l] = f32::from_bits(position as u32);
                high[l] = f32::from_bits((position >> 32) as u32);
            }
            (L::load(&low).bits(), L::load(&high).bits())
        };
        let counter: [Words<L>; 4] =
            [Words(low), Words(high), Words(L::ints(self.stream as i32)), Words(L::ints(0))];
        let [a, b, c, d] = philox::rounds(counter, [self.seed as u32, (self.seed >> 32) as u32]);
        [a.0, b.0, c.0, d.0]
    }
}

/// The same word of sixteen blocks.
struct Words<L: Lanes>(L::Ints);

impl<L: Lanes> Clone for Words<L> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<L: Lanes> Copy for Words<L> {}

impl<L: Lanes> Word for Words<L> {
    #[inline(always)]
    fn mul_wide(self, b: u32) -> (Self, Self) {
        let (high, low) = L::mul_wide(self.0, b);
        (Words(high), Words(low))
    }
    #[inline(always)]
    fn xor(self, b: Self) -> Self {
        Words(L::xor(self.0, b.0))
    }
    #[inline(always)]
    fn xor_key(self, key: u32) -> Self {
        Words(L::xor(self.0, L::ints(key as i32)))
    }
}

/// Writes four vectors of words or numbers in the order of the stream.
#[inline(always)]
fn put<L: Lanes>(x: [L; 4], y: &mut [f32; GROUP]) {
    let (blocks, _) = y.as_chunks_mut();
    for (x, y) in L::interleave(x).into_iter().zip(blocks) {
        x.store(y);
    }
}

/// Four vectors in the order of the stream.
#[inline(always)]
fn in_order<L: Lanes>(x: [L; 4]) -> [f32; GROUP] {
    let mut y = [0.0; GROUP];
    put(x, &mut y);
    y
}

/// [`to_unit`](philox::to_unit) of sixteen words.
#[inline(always)]
fn units<L: Lanes>(words: L::Ints) -> L {
    let upper = L::and(L::shift_right::<8>(words), L::ints(0x00ff_ffff));
    L::floats(upper).mul(L::splat(1.0 / 16_777_216.0))
}

/// The words of group `g`, one vector for each word of a block.
#[inline(always)]
fn word_group<L: Lanes>(from: Stream, g: usize) -> [L; 4] {
    let [a, b, c, d] = from.words::<L>((g * LANES) as u64);
    [L::from_bits(a), L::from_bits(b), L::from_bits(c), L::from_bits(d)]
}

/// How numbers are made of the words of a stream.
pub(crate) trait Draw: Copy {
    /// The numbers of group `g`, one vector for each word of a block.
    fn group<L: Lanes>(self, from: Stream, g: usize) -> [L; 4];
}

/// Fills a slice with drawn numbers.
pub(crate) struct Fill<'a, D> {
    pub y: &'a mut [f32],
    pub draw: D,
    pub from: Stream,
}

impl<D: Draw> Body for Fill<'_, D> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (groups, tail) = self.y.as_chunks_mut();
        let whole = groups.len();
        for (g, y) in groups.iter_mut().enumerate() {
            put::<L>(self.draw.group(self.from, g), y);
        }
        if !tail.is_empty() {
            let last = in_order::<L>(self.draw.group(self.from, whole));
            tail.copy_from_slice(&last[..tail.len()]);
        }
    }
}

/// Uniform numbers in `[0, 1)`.
#[derive(Clone, Copy)]
pub(crate) struct Uniform;

impl Draw for Uniform {
    #[inline(always)]
    fn group<L: Lanes>(self, from: Stream, g: usize) -> [L; 4] {
        let [a, b, c, d] = from.words::<L>((g * LANES) as u64);
        [units(a), units(b), units(c), units(d)]
    }
}

/// What another draw gives, `offset + scale * x` of it.
#[derive(Clone, Copy)]
pub(crate) struct Scaled<D> {
    pub draw: D,
    pub offset: f32,
    pub scale: f32,
}

impl<D: Draw> Draw for Scaled<D> {
    #[inline(always)]
    fn group<L: Lanes>(self, from: Stream, g: usize) -> [L; 4] {
        let (offset, scale) = (L::splat(self.offset), L::splat(self.scale));
        self.draw.group::<L>(from, g).map(|x| offset.add(scale.mul(x)))
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
        let (groups, tail) = self.x.as_chunks::<GROUP>();
        let (y_groups, y_tail) = self.y.as_chunks_mut::<GROUP>();
        let (scale, whole) = (L::splat(self.scale), groups.len());
        for (g, (x, y)) in groups.iter().zip(y_groups).enumerate() {
            let words = word_group::<L>(self.from, g);
            let (x, y) = (x.as_chunks().0, y.as_chunks_mut().0);
            for ((x, y), word) in x.iter().zip(y).zip(L::interleave(words)) {
                let kept = if all { L::ints(0) } else { not_below::<L>(word.bits(), threshold) };
                L::from_bits(L::and(L::load(x).mul(scale).bits(), kept)).store(y);
            }
        }
        if !tail.is_empty() {
            let words = word_group::<L>(self.from, whole);
            for ((x, y), word) in tail.iter().zip(y_tail).zip(in_order(words)) {
                *y = if all || word.to_bits() < threshold { 0.0 } else { x * self.scale };
            }
        }
    }
}

/// All bits of a lane where its word, a number without sign, is not below the threshold, else none.
#[inline(always)]
fn not_below<L: Lanes>(word: L::Ints, threshold: u32) -> L::Ints {
    let (t, not_t) = (L::ints(threshold as i32), L::ints(!threshold as i32));
    // The sign bit of the last line is the borrow of `word - t`.
    let not_word = L::xor(word, L::ints(-1));
    let same = L::xor(word, not_t);
    let borrow = L::or(L::and(not_word, t), L::and(same, L::int_sub(word, t)));
    L::xor(L::shift_right::<31>(borrow), L::ints(-1))
}

/// Numbers from the normal distribution: words 0, 1 and 2, 3 of a block give two each.
#[derive(Clone, Copy)]
pub(crate) struct Normal;

/// Sixteen pairs by Box & Muller: `sqrt(-2 ln u) (cos, sin)(2 pi v)`.
#[inline(always)]
fn pairs<L: Lanes>(u: L::Ints, v: L::Ints) -> (L, L) {
    // u in (0, 1]: the logarithm of 0 must not come up.
    let u = units::<L>(u).add(L::splat(1.0 / 16_777_216.0));
    let radius = log(u).mul(L::splat(-2.0)).sqrt();
    let (sin, cos) = sin_cos_near(units::<L>(v).mul(L::splat(std::f32::consts::TAU)));
    (radius.mul(cos), radius.mul(sin))
}

impl Draw for Normal {
    #[inline(always)]
    fn group<L: Lanes>(self, from: Stream, g: usize) -> [L; 4] {
        let words = from.words::<L>((g * LANES) as u64);
        let (a, b) = pairs::<L>(words[0], words[1]);
        let (c, d) = pairs::<L>(words[2], words[3]);
        [a, b, c, d]
    }
}
