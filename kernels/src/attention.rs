//! Attention: `o = softmax(scale * (q k^T + r)) v`, forward and backward, without the square matrix.
//!
//! A block of 48 queries meets the keys 96 at a time. Scores live in a small buffer; of a row only its
//! maximum and its sum are kept while further blocks come ("online softmax"), and of the whole forward
//! only the logarithm of that sum, from which the backward makes the scores again. Blocks that the
//! mask hides are never visited.
//!
//! Music Transformer's relative logits `r_ij = q_i . e_(j - i + max_len - 1)` are made in the same
//! buffer: with rows one number shorter than they were written with, row `i` of `q e^T` begins `i`
//! numbers later. That is the skew, for nothing.
//!
//! # Source
//! Vaswani et al. 2017; online softmax from Milakov & Gimelshein 2018; tiles and the backward from
//! Dao, Fu, Ermon, Rudra & Re 2022; relative logits and the skew from Huang et al. 2018.
mod backward;
mod backward_head;
mod decode;
mod decode_rows;
mod drop;
mod forward;
mod mask;
mod pack;
mod relative;
mod rows;
mod tile;

pub use backward::{attention_backward, attention_backward_room};
pub use decode::{Cache, Stored, attention_step};
pub use forward::attention_forward;
pub use mask::Mask;

use crate::cpu::lanes::LANES;

/// Queries of a block: a multiple of every tile's height.
const QUERIES: usize = 48;
/// Keys of a block: 96 keys of 64 numbers are 24 KiB, most of the first-level cache.
const KEYS: usize = 96;

/// The sizes of an attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Sequences.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Queries of a sequence.
    pub queries: usize,
    /// Keys of a sequence.
    pub keys: usize,
    /// Numbers of a query, a key and a value of one head.
    pub head_dim: usize,
}

/// How scores become weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// Which keys a query sees.
    pub mask: Mask,
    /// What scores are multiplied by: `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Weights to drop, if any.
    pub dropout: Option<Dropout>,
}

/// Weights that are set to 0, by their place in a random stream; the others grow by `1 / (1 - p)`.
///
/// Weight `(b, h, i, j)` is word `((b * heads + h) * queries + i) * width + j`, where `width` is `keys`
/// rounded up to a multiple of 4.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability to drop, in `[0, 1)`.
    pub p: f32,
    /// Seed of the stream.
    pub seed: u64,
    /// Number of the stream.
    pub stream: u32,
    /// First block of four words.
    pub position: u64,
}

/// Distances between elements of `[batch, heads, rows, head_dim]`; the last axis is contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strides {
    /// From one sequence to the next.
    pub batch: usize,
    /// From one head to the next.
    pub head: usize,
    /// From one row to the next.
    pub row: usize,
}

impl Strides {
    /// Those of `[batch, heads, rows, head_dim]`.
    pub fn by_head(heads: usize, rows: usize, head_dim: usize) -> Strides {
        Strides { batch: heads * rows * head_dim, head: rows * head_dim, row: head_dim }
    }

    /// Those of `[batch, rows, heads, head_dim]`, what a projection gives.
    pub fn by_row(heads: usize, rows: usize, head_dim: usize) -> Strides {
        Strides { batch: heads * rows * head_dim, head: head_dim, row: heads * head_dim }
    }

    /// Where a row begins.
    fn at(self, b: usize, h: usize, row: usize) -> usize {
        b * self.batch + h * self.head + row * self.row
    }

    /// Elements from the first to one past the last.
    pub(crate) fn extent(self, batch: usize, heads: usize, rows: usize, head_dim: usize) -> usize {
        match batch * heads * rows * head_dim {
            0 => 0,
            _ => self.at(batch - 1, heads - 1, rows - 1) + head_dim,
        }
    }

    /// Whether no two rows share an element: each axis steps over all that lies inside of it.
    pub(crate) fn is_apart(self, batch: usize, heads: usize, rows: usize, head_dim: usize) -> bool {
        if batch * heads * rows * head_dim == 0 {
            return true;
        }
        let mut axes = [(self.batch, batch), (self.head, heads), (self.row, rows)];
        axes.sort_unstable();
        let mut inside = head_dim;
        axes.iter().filter(|(_, count)| *count > 1).all(|(stride, count)| {
            let fits = *stride >= inside;
            inside += stride * (count - 1);
            fits
        })
    }
}

/// Rows that are read, `[batch, heads, rows, head_dim]`.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// How they lie.
    pub strides: Strides,
}

/// Rows that are written, `[batch, heads, rows, head_dim]`.
pub struct RowsMut<'a> {
    /// The elements.
    pub data: &'a mut [f32],
    /// How they lie; no two rows share an element.
    pub strides: Strides,
}

/// Relative position embeddings `[heads, max_len, head_dim]`; row `max_len - 1 - d` is for a key `d`
/// steps back.
#[derive(Clone, Copy)]
pub struct Relative<'a> {
    /// The elements, contiguous.
    pub er: &'a [f32],
    /// Distances that have an embedding.
    pub max_len: usize,
}

impl<'a> Rows<'a> {
    fn check(&self, s: Sizes, rows: usize) {
        assert!(self.strides.extent(s.batch, s.heads, rows, s.head_dim) <= self.data.len());
    }

    /// The elements from a row of one head on.
    fn from(&self, (b, h): (usize, usize), row: usize) -> &'a [f32] {
        self.data.get(self.strides.at(b, h, row)..).unwrap_or_default()
    }
}

impl RowsMut<'_> {
    fn check(&self, s: Sizes, rows: usize) {
        assert!(self.strides.extent(s.batch, s.heads, rows, s.head_dim) <= self.data.len());
        assert!(self.strides.is_apart(s.batch, s.heads, rows, s.head_dim));
    }
}

impl<'a> Relative<'a> {
    /// The embeddings of one head.
    fn head(&self, h: usize, head_dim: usize) -> &'a [f32] {
        &self.er[h * self.max_len * head_dim..(h + 1) * self.max_len * head_dim]
    }
}

/// Asserts what every call has in common.
fn check(s: Sizes, rule: &Rule, relative: Option<Relative>) {
    assert!(rule.mask.is_valid());
    assert!(!rule.mask.is_causal() || s.queries <= s.keys);
    assert!(rule.dropout.is_none_or(|d| (0.0..1.0).contains(&d.p)));
    if let Some(r) = relative {
        // Keys that come later have no embedding, and a gathered run is not in the order of distances.
        assert!(matches!(rule.mask, Mask::Causal | Mask::Window { .. }));
        assert!(r.er.len() == s.heads * r.max_len * s.head_dim);
        assert!(rule.mask.reach(s.keys) <= r.max_len);
    }
}

/// Hands out pieces of a scratch slice, each on a cache line.
struct Room<'a>(&'a mut [f32]);

impl<'a> Room<'a> {
    /// What a piece of `len` numbers takes at most.
    fn size(len: usize) -> usize {
        len + 2 * LANES
    }

    fn take(&mut self, len: usize) -> &'a mut [f32] {
        let room = std::mem::take(&mut self.0);
        let start = room.as_ptr().align_offset(64).min(LANES);
        let (piece, rest) = room.split_at_mut(start + len);
        self.0 = rest;
        &mut piece[start..]
    }
}
