//! Keys and values of the tokens so far: what makes one more token cost one row of attention.
//!
//! With f32 weights they are kept as they are; where weights have fewer bits, as bf16, half the bytes
//! that a token reads.

use etude_kernels::attention::{Cache, Mask, attention_step};
use etude_kernels::gemm::MatRef;
use etude_kernels::stream::{Precision, StreamedB};
use half::bf16;
use half::vec::HalfBitsVecExt;

use super::LinearStep;
use super::rows::Weight;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Relative position embeddings, packed for the queries that meet them: of each head a matrix with a
/// column for each distance.
pub struct RelativeStep {
    heads: Vec<StreamedB>,
}

impl RelativeStep {
    /// Packs embeddings `[heads, max_len, head_dim]`, the nearest last, in this precision.
    ///
    /// # Errors
    /// If there are not three axes.
    pub fn new(er: &Tensor, precision: Precision) -> Result<RelativeStep> {
        let &[heads, max_len, d] = er.shape() else {
            let why = "relative embeddings are [heads, max_len, head_dim]";
            return Err(Error::shape("key-value cache", er.shape(), &[], why));
        };
        let values = er.values();
        let head = |h: usize| &values[h * max_len * d..(h + 1) * max_len * d];
        let packed = |h| StreamedB::new(MatRef::new(head(h), max_len, d).t(), precision);
        Ok(RelativeStep { heads: (0..heads).map(packed).collect() })
    }

    /// Tells that these embeddings are read once a token, as the weights of `layer` are
    /// ([`read_in_turn`](crate::read_in_turn)).
    pub fn read_beside(&mut self, layer: &LinearStep) {
        if let Weight::Streamed(w) = &layer.w {
            self.heads.iter_mut().for_each(|head| head.read_beside(w));
        }
    }
}

/// The keys and values of one attention layer, `[heads, capacity, head_dim]` each.
pub struct KeyValueCache {
    rows: Rows,
    cache: Cache,
}

enum Rows {
    F32([Vec<f32>; 2]),
    Bf16([Vec<bf16>; 2]),
}

impl KeyValueCache {
    /// Makes an empty cache for `capacity` tokens.
    ///
    /// # Errors
    /// If the sizes are more than memory can number.
    pub fn new(
        heads: usize,
        head_dim: usize,
        capacity: usize,
        precision: Precision,
    ) -> Result<KeyValueCache> {
        let sizes = heads.checked_mul(head_dim).and_then(|row| row.checked_mul(capacity));
        let Some(len) = sizes.filter(|len| *len <= isize::MAX as usize / size_of::<f32>()) else {
            let why = format!("{heads} heads of {head_dim} numbers for {capacity} tokens");
            return Err(Error::argument("key-value cache", why));
        };
        // Of whole numbers the system has zeros; those of another type would be written, all of them.
        let rows = match precision {
            Precision::F32 => Rows::F32([vec![0.0; len], vec![0.0; len]]),
            _ => Rows::Bf16([(); 2].map(|()| vec![0u16; len].reinterpret_into())),
        };
        Ok(KeyValueCache { rows, cache: Cache { heads, capacity, len: 0, head_dim } })
    }

    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.cache.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.cache.len == 0
    }

    /// Tokens that there is room for.
    pub fn capacity(&self) -> usize {
        self.cache.capacity
    }

    /// Forgets all tokens but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.cache.len = self.cache.len.min(len);
    }

    /// Forgets the first `count` tokens; those after them move to the front.
    pub fn forget(&mut self, count: usize) {
        let count = count.min(self.cache.len);
        match &mut self.rows {
            Rows::F32(rows) => to_front(rows, &self.cache, count),
            Rows::Bf16(rows) => to_front(rows, &self.cache, count),
        }
        self.cache.len -= count;
    }

    /// Adds the key and the value of one more token.
    ///
    /// # Shapes
    /// `k`, `v` `[heads, head_dim]`.
    ///
    /// # Errors
    /// If the cache is full or a length differs.
    pub fn push(&mut self, k: &[f32], v: &[f32]) -> Result<()> {
        let Cache { heads, capacity, len, head_dim: d } = self.cache;
        if len == capacity {
            return Err(Error::argument(
                "key-value cache",
                format!("all {capacity} rows are full"),
            ));
        }
        self.check(k)?;
        self.check(v)?;
        for (at, x) in [k, v].into_iter().enumerate() {
            for h in 0..heads {
                let (from, to) = (h * d..(h + 1) * d, (h * capacity + len) * d);
                match &mut self.rows {
                    Rows::F32(rows) => rows[at][to..to + d].copy_from_slice(&x[from]),
                    Rows::Bf16(rows) => {
                        let row = rows[at][to..to + d].iter_mut().zip(&x[from]);
                        row.for_each(|(y, x)| *y = bf16::from_f32(*x));
                    }
                }
            }
        }
        self.cache.len += 1;
        Ok(())
    }

    /// Computes what the queries of the last tokens find, each among all tokens up to its own.
    ///
    /// # Shapes
    /// `q`, `o` `[queries, heads, head_dim]`; `er` as wide as the heads.
    ///
    /// # Errors
    /// If a length differs, there are more queries than tokens, the mask has a size of 0, is none for
    /// these embeddings or reaches further back.
    pub fn attend(
        &self,
        q: &[f32],
        er: Option<&RelativeStep>,
        mask: Mask,
        o: &mut [f32],
    ) -> Result<()> {
        let Cache { heads, len, head_dim: d, .. } = self.cache;
        let queries = q.len().checked_div(heads * d).unwrap_or(0);
        if q.len() != queries * heads * d || o.len() != q.len() || queries > len.max(1) {
            let why = format!("queries and results are [up to {len}, {heads}, {d}]");
            return Err(Error::shape("key-value cache", &[q.len()], &[o.len()], why));
        }
        if !mask.is_valid() {
            let why = format!("{mask:?}: its sizes are at least 1");
            return Err(Error::argument("key-value cache", why));
        }
        if let Some(RelativeStep { heads: all }) = er {
            let looks_back = matches!(mask, Mask::Causal | Mask::Window { .. });
            let fits = |e: &StreamedB| e.k() == d && mask.reach(len) <= e.n();
            if all.len() != heads || !all.iter().all(fits) || !looks_back {
                let max_len = all.first().map_or(0, StreamedB::n);
                let why = format!("{max_len} relative embeddings, {mask:?}, {len} tokens");
                return Err(Error::argument("key-value cache", why));
            }
        }
        let relative = er.map(|er| &er.heads[..]);
        let scale = 1.0 / (d as f32).sqrt();
        match &self.rows {
            Rows::F32([k, v]) => attention_step(q, k, v, relative, o, self.cache, mask, scale),
            Rows::Bf16([k, v]) => attention_step(q, k, v, relative, o, self.cache, mask, scale),
        }
        Ok(())
    }

    fn check(&self, row: &[f32]) -> Result<()> {
        let wanted = [self.cache.heads, self.cache.head_dim];
        if row.len() == wanted[0] * wanted[1] {
            return Ok(());
        }
        Err(Error::shape("key-value cache", &[row.len()], &wanted, "the lengths differ"))
    }
}

/// Moves the rows of each head after the first `count` to the front.
fn to_front<T: Copy>(rows: &mut [Vec<T>; 2], cache: &Cache, count: usize) {
    let &Cache { heads, capacity, len, head_dim: d } = cache;
    for x in rows {
        for first in (0..heads).map(|h| h * capacity) {
            x.copy_within((first + count) * d..(first + len) * d, first * d);
        }
    }
}
