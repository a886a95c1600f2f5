//! Random numbers: Philox, a function of seed, stream and position.
//!
//! An [`Rng`] is three numbers and a copy of it repeats what the original draws. Streams of one seed
//! are independent: give one to the weights, one to the data, one to dropout.

use etude_kernels::philox;

use crate::op::random::Position;

/// A place in a random stream. Its state is public: three numbers that a checkpoint keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rng {
    /// What the whole run was started with.
    pub seed: u64,
    /// Which of the independent streams of this seed.
    pub stream: u32,
    /// How many words were drawn so far.
    pub position: u64,
}

impl Rng {
    /// Starts the first stream of a seed.
    pub fn new(seed: u64) -> Rng {
        Rng::stream(seed, 0)
    }

    /// Starts a stream of a seed.
    pub fn stream(seed: u64, stream: u32) -> Rng {
        Rng { seed, stream, position: 0 }
    }

    /// Draws 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        let block = philox::block(self.seed, self.stream, self.position / 4);
        let word = block[(self.position % 4) as usize];
        self.position = self.position.wrapping_add(1);
        word
    }

    /// Draws 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) << 32 | u64::from(self.next_u32())
    }

    /// Draws a number in `[0, 1)` with 24 random bits: the same on every machine.
    pub fn unit(&mut self) -> f32 {
        philox::to_unit(self.next_u32())
    }

    /// Draws a whole number below `limit`, all equally likely.
    ///
    /// # Panics
    /// If `limit` is 0.
    pub fn below(&mut self, limit: u32) -> u32 {
        assert!(limit > 0, "there is no number below 0");
        // Lemire 2019: the product's upper half is uniform once its lower half is not too small.
        let reject = limit.wrapping_neg() % limit;
        loop {
            let product = u64::from(self.next_u32()) * u64::from(limit);
            if product as u32 >= reject {
                return (product >> 32) as u32;
            }
        }
    }

    /// Draws from the normal distribution with mean 0 and variance 1.
    pub fn normal(&mut self) -> f32 {
        let mut y = [0.0];
        self.fill_normal(&mut y, 0.0, 1.0);
        y[0]
    }

    /// Fills a slice with numbers in `[low, high)`.
    pub fn fill_uniform(&mut self, y: &mut [f32], low: f32, high: f32) {
        let at = self.reserve(y.len());
        philox::uniform_between(y, (low, high), at.seed, at.stream, at.block);
    }

    /// Fills a slice with normal numbers.
    ///
    /// # Source
    /// Box & Muller 1958.
    pub fn fill_normal(&mut self, y: &mut [f32], mean: f32, deviation: f32) {
        let at = self.reserve(y.len());
        philox::normal_around(y, mean, deviation, at.seed, at.stream, at.block);
    }

    /// Brings a slice into random order.
    ///
    /// # Source
    /// Fisher & Yates 1938, in Durstenfeld's form.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let limit = u32::try_from(i + 1).unwrap_or(u32::MAX);
            items.swap(i, self.below(limit) as usize);
        }
    }

    /// Reserves whole blocks for `words` words and tells where they start.
    pub(crate) fn reserve(&mut self, words: usize) -> Position {
        let block = self.position.div_ceil(4);
        self.position = block.wrapping_add(words.div_ceil(4) as u64).wrapping_mul(4);
        Position { seed: self.seed, stream: self.stream, block }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawing_one_by_one_equals_filling_a_slice() {
        let mut one = Rng::stream(7, 3);
        let mut all = one;
        let mut y = [0.0; 11];
        all.fill_uniform(&mut y, 0.0, 1.0);
        for y in y {
            assert_eq!(y, one.unit());
        }
        assert_eq!(all.position, 12);
    }

    #[test]
    fn a_copy_repeats_the_original_and_streams_differ() {
        let mut a = Rng::new(1);
        a.next_u32();
        let mut b = a;
        assert_eq!(a.next_u64(), b.next_u64());
        assert_ne!(Rng::stream(1, 0).next_u64(), Rng::stream(1, 1).next_u64());
        assert_ne!(Rng::new(1).next_u64(), Rng::new(2).next_u64());
    }

    #[test]
    fn the_end_of_a_stream_is_its_beginning() {
        // Positions come from files, so the last one must not overflow.
        let mut rng = Rng { seed: 1, stream: 0, position: u64::MAX };
        let mut y = [0.0; 9];
        rng.next_u32();
        assert_eq!(rng.position, 0);
        rng.position = u64::MAX - 3;
        rng.fill_uniform(&mut y, 0.0, 1.0);
        rng.position = u64::MAX;
        rng.fill_normal(&mut y, 0.0, 1.0);
        assert!(y.iter().all(|y| y.is_finite()));
    }

    #[test]
    fn below_is_uniform() {
        let mut rng = Rng::new(3);
        let mut counts = [0u32; 6];
        (0..60_000).for_each(|_| counts[rng.below(6) as usize] += 1);
        // Chi-squared with 5 degrees of freedom stays under 25.7 with probability 0.9999.
        let chi: f64 = counts.iter().map(|n| (f64::from(*n) - 1e4).powi(2) / 1e4).sum();
        assert!(chi < 25.7, "{counts:?}");
    }

    #[test]
    fn normals_have_the_moments_of_a_normal_distribution() {
        let mut y = vec![0.0; 200_001];
        Rng::new(5).fill_normal(&mut y, 1.0, 2.0);
        let n = y.len() as f64;
        let z: Vec<f64> = y.iter().map(|y| (f64::from(*y) - 1.0) / 2.0).collect();
        let moment = |p: i32| z.iter().map(|z| z.powi(p)).sum::<f64>() / n;
        // Standard errors are sqrt(1, 2, 15, 96) / sqrt(n); five of them are allowed.
        let bound = |variance: f64| 5.0 * (variance / n).sqrt();
        assert!(moment(1).abs() < bound(1.0) && (moment(2) - 1.0).abs() < bound(2.0));
        assert!(moment(3).abs() < bound(15.0) && (moment(4) - 3.0).abs() < bound(96.0));
    }

    #[test]
    fn shuffling_keeps_all_items() {
        let mut items: Vec<u32> = (0..100).collect();
        Rng::new(9).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
