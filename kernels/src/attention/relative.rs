//! Where relative embeddings meet a block of scores.
//!
//! Query position `p` and key `j` meet in embedding `j - p + max_len - 1`. Within a block that is a
//! function of `u = key - query` alone, so the block needs a band of neighbouring embeddings.

use super::pack;
use crate::cpu::lanes::LANES;

/// The embeddings that are used at all, packed as columns.
#[derive(Clone, Copy)]
pub(super) struct Span {
    /// The first embedding that is used.
    low: usize,
    /// Columns before it.
    pad: usize,
    /// Embeddings that are used: those for 0 to `reach - 1` steps back.
    reach: usize,
}

impl Span {
    /// For queries that are `shift` keys behind their number.
    pub fn new(max_len: usize, reach: usize, shift: usize) -> Span {
        // The band of a group of 8 queries then begins at a vector or at its middle.
        let pad = (shift as isize - reach as isize).rem_euclid(8) as usize;
        Span { low: max_len - reach, pad, reach }
    }

    /// Packed columns: whole vectors.
    pub fn count(&self) -> usize {
        (self.pad + self.reach).next_multiple_of(LANES)
    }

    /// Packs the embeddings `er` `[max_len, d]` of a head.
    pub fn pack(&self, er: &[f32], d: usize, y: &mut [f32]) {
        if d == 0 || self.reach == 0 {
            return;
        }
        let (first, rest) = y.split_at_mut(LANES * d);
        for (n, x) in first.iter_mut().enumerate() {
            let (at, lane) = (n / LANES, n % LANES);
            let row = (lane.checked_sub(self.pad)).filter(|row| *row < self.reach);
            *x = row.map_or(0.0, |row| er[(self.low + row) * d + at]);
        }
        let done = LANES - self.pad;
        if done < self.reach {
            pack::slivers(&er[(self.low + done) * d..], d, self.reach - done, d, rest);
        }
    }

    /// Where the block of queries from position `p` on and keys `from..` lies.
    pub fn place(&self, from: usize, p: usize) -> Place {
        let back = from as isize - p as isize;
        Place { base: back + (self.reach - 1 + self.pad) as isize, pad: self.pad, span: *self }
    }
}

/// A block among the embeddings.
#[derive(Clone, Copy)]
pub(super) struct Place {
    base: isize,
    pad: usize,
    span: Span,
}

impl Place {
    /// The packed column for `u = key - query`, which may lie outside.
    pub fn column(&self, u: isize) -> isize {
        self.base + u
    }

    /// Packed columns.
    pub fn columns(&self) -> isize {
        self.span.count() as isize
    }

    /// The embedding for `u`, counted from the first that is used; it may lie outside.
    pub fn embedding(&self, u: isize) -> isize {
        self.base + u - self.pad as isize
    }
}
