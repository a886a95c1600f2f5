//! One token at a time: a query of each head against the keys and values that came before.
//!
//! Every key and value is read once, in the order in which it lies, so the time is that of reading
//! them; stored as bf16 they are half as many bytes. Relative embeddings are a matrix of columns, one
//! for each distance, that the query streams like any other weights, in f32, bf16 or int8.
//!
//! Several tokens, a primer, take one query after another while a head's keys are near: each finds,
//! bit for bit, what it would find alone.

use super::Room;
use super::decode_rows::{Score, Soften, Weigh};
use super::mask::Mask;
use crate::cpu::lanes::dispatch;
use crate::cpu::shared::{Shared, with_scratch};
use crate::isa::{self, Isa};
use crate::stream::{Row, StreamedB};
use crate::threads::parallel_for;
use half::bf16;

/// Bytes of keys and values that are worth a task of their own.
const TASK: usize = 512 << 10;

/// A number format of cached keys and values.
pub trait Stored: Copy + Send + Sync + sealed::Sealed {
    /// Numbers in 32 bits.
    #[doc(hidden)]
    const EACH: usize;

    /// The f32 that this number is.
    fn widen(self) -> f32;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

impl Stored for f32 {
    const EACH: usize = 1;
    fn widen(self) -> f32 {
        self
    }
}

impl Stored for bf16 {
    const EACH: usize = 2;
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// Sizes of a cache of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cache {
    /// Heads.
    pub heads: usize,
    /// Rows that there is room for.
    pub capacity: usize,
    /// Rows that are there; the query is at the last of them.
    pub len: usize,
    /// Numbers of a row.
    pub head_dim: usize,
}

/// Computes the attention of the last tokens in a cache, with a query of each head for each of them:
/// what came later is not seen.
///
/// `relative` holds a matrix of embeddings for each head, its columns the distances, the nearest last:
/// row `max_len - 1 - t` of an embedding `[max_len, head_dim]` is for a key `t` steps back.
///
/// # Shapes
/// `q`, `o` `[queries, heads, head_dim]`; `k`, `v` `[heads, capacity, head_dim]`, of which the first
/// `len` rows of each head are read; `relative` `[heads]` of `[head_dim, max_len]`. An empty cache
/// gives 0.
///
/// # Panics
/// If the sizes disagree, there are more queries than rows, or the mask reaches further back than
/// there are embeddings.
pub fn attention_step<T: Stored>(
    q: &[f32],
    k: &[T],
    v: &[T],
    relative: Option<&[StreamedB]>,
    o: &mut [f32],
    cache: Cache,
    mask: Mask,
    scale: f32,
) {
    let Cache { heads, capacity, len, head_dim: d } = cache;
    let queries = q.len().checked_div(heads * d).unwrap_or(0);
    assert!(q.len() == queries * heads * d && o.len() == q.len() && len <= capacity);
    assert!(k.len() == heads * capacity * d && v.len() == k.len());
    assert!(mask.is_valid());
    if let Some(r) = relative {
        assert!(matches!(mask, Mask::Causal | Mask::Window { .. }));
        assert!(r.len() == heads && r.iter().all(|r| r.k() == d && mask.reach(len) <= r.n()));
    }
    if len == 0 || d == 0 {
        return o.fill(0.0);
    }
    assert!(queries <= len);
    let bytes = 2 * mask.reach(len) * d * size_of::<T>() * queries;
    let o = Shared::new(o);
    parallel_for(heads, TASK.div_ceil(bytes.max(1)), |heads_here| {
        for h in heads_here {
            let relative = relative.map(|r| &r[h]);
            for query in 0..queries {
                let rows = h * capacity * d..(h * capacity + len - queries + query + 1) * d;
                let at = (query * heads + h) * d..(query * heads + h + 1) * d;
                // SAFETY: neither heads nor queries overlap.
                let o = unsafe { o.slice(at.clone()) };
                one(&q[at], &k[rows.clone()], &v[rows], relative, o, mask, scale);
            }
        }
    });
}

/// Computes one head: `k`, `v` `[len, head_dim]`.
fn one<T: Stored>(
    q: &[f32],
    k: &[T],
    v: &[T],
    relative: Option<&StreamedB>,
    o: &mut [f32],
    mask: Mask,
    scale: f32,
) {
    let (d, len) = (q.len(), k.len() / q.len());
    let runs = mask.runs(len);
    let seen = || runs.iter().map(|run| (*run, run.range(len - 1)));
    let count = seen().map(|(_, (from, to))| to - from).sum();
    let words = d.div_ceil(T::EACH);
    let whole = relative.map_or(0, |r| Row::room(d, r.precision()));
    let wanted = Room::size(count) + 2 * Room::size(T::EACH * words) + Room::size(whole);
    with_scratch(wanted, |room| {
        let mut room = Room(room);
        let scores = room.take(count);
        let (planes, sums) = (room.take(T::EACH * words), room.take(T::EACH * words));
        // Even numbers, then odd ones: the two halves of each word.
        planes.fill(0.0);
        for (i, x) in q.iter().enumerate() {
            planes[i % T::EACH * words + i / T::EACH] = *x;
        }
        sums.fill(0.0);
        let mut at = 0;
        for (run, (from, to)) in seen() {
            let s = &mut scores[at..at + to - from];
            at += to - from;
            if let Some(rows) = as_words(k, d) {
                let (first, step) = ((run.first + run.step * from) * words, run.step * words);
                let rows = rows.get(first..).unwrap_or_default();
                Score { q: planes, rows, words, step, s }.run(T::EACH);
            } else {
                for (n, s) in s.iter_mut().enumerate() {
                    let row = (run.first + run.step * (from + n)) * d;
                    *s = q.iter().zip(&k[row..row + d]).map(|(q, k)| q * k.widen()).sum();
                }
            }
        }
        if let Some(relative) = relative {
            // What is seen ends at the query, and so do the distances.
            relative.add_last(Row::new(q, relative.precision(), room.take(whole)), scores);
        }
        let sum = dispatch(Soften { s: scores, scale });
        let mut at = 0;
        for (run, (from, to)) in seen() {
            let p = &scores[at..at + to - from];
            at += to - from;
            if let Some(rows) = as_words(v, d) {
                let (first, step) = ((run.first + run.step * from) * words, run.step * words);
                let rows = rows.get(first..).unwrap_or_default();
                let weigh = Weigh { p, rows, words, step, o: sums };
                weigh.run(T::EACH);
            } else {
                for (n, p) in p.iter().enumerate() {
                    let row = (run.first + run.step * (from + n)) * d;
                    for (i, v) in v[row..row + d].iter().enumerate() {
                        sums[i % T::EACH * words + i / T::EACH] += p * v.widen();
                    }
                }
            }
        }
        for (i, o) in o.iter_mut().enumerate() {
            *o = sums[i % T::EACH * words + i / T::EACH] / sum;
        }
    });
}

/// Rows of `d` numbers as rows of 32-bit words, if they are.
fn as_words<T: Stored>(x: &[T], d: usize) -> Option<&[f32]> {
    let is_whole = d.is_multiple_of(T::EACH) && x.as_ptr().cast::<f32>().is_aligned();
    // SAFETY: an f32 is any 32 bits; the words are aligned and as many as the numbers fill.
    is_whole.then(|| unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), x.len() / T::EACH) })
}

/// Whether the tier has registers for the sums of eight vectors and more.
pub(super) fn is_wide() -> bool {
    isa::active() == Isa::Avx512
}
