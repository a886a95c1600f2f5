//! Dropout of weights, by their place in the square that is never made.

use super::forward::Ranges;
use super::mask::Run;
use super::{Dropout, KEYS, Sizes};
use crate::cpu::lanes::dispatch;
use crate::cpu::philox::{Dropout as Drop, Stream};
use crate::philox;

/// A block of weights: queries of head `at` from `query` on, keys of `run` from `key` on.
pub(super) struct Weights<'a> {
    pub s: Sizes,
    pub at: (usize, usize),
    pub query: usize,
    pub run: &'a Run,
    pub key: usize,
    pub ranges: &'a Ranges,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl Dropout {
    /// Sets weights (or their gradients) of a block to 0, or scales them.
    pub(super) fn apply(&self, block: &Weights, x: &mut [f32]) {
        // The same arithmetic as `philox::dropout`.
        let threshold = (f64::from(self.p) * 4_294_967_296.0) as u64;
        let scale = 1.0 / (1.0 - self.p);
        let (s, run) = (block.s, block.run);
        let width = s.keys.next_multiple_of(4) as u64 / 4;
        let plane = (block.at.0 * s.heads + block.at.1) * s.queries + block.query;
        for (r, &(from, to)) in block.ranges.each().iter().enumerate() {
            let row = &mut x[r * block.stride + from..r * block.stride + to];
            let start = self.position.wrapping_add((plane + r) as u64 * width);
            let key = run.first + run.step * (block.key + from);
            if run.step == 1 {
                let lead = key % 4;
                let (mut before, mut after) = ([0.0; KEYS + 4], [0.0; KEYS + 4]);
                let len = lead + row.len();
                before[lead..len].copy_from_slice(row);
                let position = start.wrapping_add((key / 4) as u64);
                let from = Stream { seed: self.seed, stream: self.stream, position };
                dispatch(Drop { x: &before[..len], y: &mut after[..len], threshold, scale, from });
                row.copy_from_slice(&after[lead..len]);
                continue;
            }
            for (n, x) in row.iter_mut().enumerate() {
                let key = key + n * run.step;
                let block =
                    philox::block(self.seed, self.stream, start.wrapping_add((key / 4) as u64));
                let is_kept = u64::from(block[key % 4]) >= threshold;
                *x = if is_kept { *x * scale } else { 0.0 };
            }
        }
    }
}
