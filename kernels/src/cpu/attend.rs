//! One row's look at its last outputs, forward and backward.
//!
//! ```text
//! s_i = v . tanh(key_i + query)
//! found = sum over i of softmax(s)_i value_i
//! ```
//! No tanh is kept: the backward computes it again, where keeping it would be a number for each unit
//! of each output at each step.

use super::lanes::{Body, LANES, Lanes};
use super::math::{exp, tanh};

/// Looks at some outputs: writes the softmax of their scores and the weighted sum of their values.
pub(crate) struct Attend<'a> {
    /// `[hidden]`, as are `v` and `found`.
    pub query: &'a [f32],
    /// `[length, hidden]`, as are the values.
    pub keys: &'a [f32],
    pub values: &'a [f32],
    pub v: &'a [f32],
    /// `[length]`, written.
    pub shares: &'a mut [f32],
    /// Written.
    pub found: &'a mut [f32],
}

/// `v . tanh(key + query)`
#[inline(always)]
fn score<L: Lanes>(key: &[f32], query: &[f32], v: &[f32]) -> f32 {
    let (key, key_tail) = key.as_chunks::<LANES>();
    let (query, query_tail) = query.as_chunks::<LANES>();
    let (v, v_tail) = v.as_chunks::<LANES>();
    let mut sum = L::zero();
    for ((key, query), v) in key.iter().zip(query).zip(v) {
        sum = tanh(L::load(key).add(L::load(query))).mul_add(L::load(v), sum);
    }
    if !key_tail.is_empty() {
        // Beyond the end all three are 0.
        let x = L::load_part(key_tail).add(L::load_part(query_tail));
        sum = tanh(x).mul_add(L::load_part(v_tail), sum);
    }
    sum.reduce_add()
}

/// Replaces scores by their softmax.
#[inline(always)]
fn soften<L: Lanes>(scores: &mut [f32]) {
    let top = L::splat(scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let (blocks, tail) = scores.as_chunks_mut::<LANES>();
    let mut sum = L::zero();
    for x in &mut *blocks {
        let e = exp(L::load(x).sub(top));
        e.store(x);
        sum = sum.add(e);
    }
    if !tail.is_empty() {
        exp(L::load_part(tail).sub(top)).store_part(tail);
        sum = sum.add(L::load_part(tail));
    }
    let total = L::splat(sum.reduce_add());
    for x in blocks {
        L::load(x).div(total).store(x);
    }
    if !tail.is_empty() {
        L::load_part(tail).div(total).store_part(tail);
    }
}

/// `y = y + a x`
#[inline(always)]
fn add_scaled<L: Lanes>(a: f32, x: &[f32], y: &mut [f32]) {
    let a = L::splat(a);
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (y, y_tail) = y.as_chunks_mut::<LANES>();
    for (x, y) in x.iter().zip(y) {
        a.mul_add(L::load(x), L::load(y)).store(y);
    }
    if !x_tail.is_empty() {
        a.mul_add(L::load_part(x_tail), L::load_part(y_tail)).store_part(y_tail);
    }
}

#[inline(always)]
fn dot<L: Lanes>(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    let mut sum = L::zero();
    for (a, b) in a.iter().zip(b) {
        sum = L::load(a).mul_add(L::load(b), sum);
    }
    if !a_tail.is_empty() {
        sum = L::load_part(a_tail).mul_add(L::load_part(b_tail), sum);
    }
    sum.reduce_add()
}

impl Body for Attend<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let hidden = self.v.len();
        if hidden == 0 {
            return;
        }
        for (share, key) in self.shares.iter_mut().zip(self.keys.chunks_exact(hidden)) {
            *share = score::<L>(key, self.query, self.v);
        }
        soften::<L>(self.shares);
        self.found.fill(0.0);
        for (share, value) in self.shares.iter().zip(self.values.chunks_exact(hidden)) {
            add_scaled::<L>(*share, value, self.found);
        }
    }
}

/// The gradients of [`Attend`].
pub(crate) struct AttendBackward<'a> {
    pub query: &'a [f32],
    pub keys: &'a [f32],
    pub values: &'a [f32],
    pub v: &'a [f32],
    /// What the forward wrote, as is `found`.
    pub shares: &'a [f32],
    pub found: &'a [f32],
    pub d_found: &'a [f32],
    /// `[length]`: room to work in.
    pub d_scores: &'a mut [f32],
    /// Written.
    pub d_query: &'a mut [f32],
    /// Added to, as are the two that follow.
    pub d_keys: &'a mut [f32],
    pub d_values: &'a mut [f32],
    pub d_v: &'a mut [f32],
}

/// Sixteen units of one output's gradients: of `v`, of the key's and the query's sum, of the value.
#[inline(always)]
fn slopes<L: Lanes>(sum: L, v: L, d_found: L, d_score: L, share: L, d_v: L, d_value: L) -> [L; 3] {
    let u = tanh(sum);
    let d_sum = d_score.mul(v).mul(u.neg_mul_add(u, L::splat(1.0)));
    [d_score.mul_add(u, d_v), d_sum, share.mul_add(d_found, d_value)]
}

impl AttendBackward<'_> {
    /// Adds what the score and the share of output `i` send back.
    #[inline(always)]
    fn add_output<L: Lanes>(&mut self, i: usize) {
        let hidden = self.v.len();
        let at = i * hidden..(i + 1) * hidden;
        let (d_score, share) = (L::splat(self.d_scores[i]), L::splat(self.shares[i]));
        let (key, key_tail) = self.keys[at.clone()].as_chunks::<LANES>();
        let (query, query_tail) = self.query.as_chunks::<LANES>();
        let (v, v_tail) = self.v.as_chunks::<LANES>();
        let (d_found, d_found_tail) = self.d_found.as_chunks::<LANES>();
        let (d_query, d_query_tail) = self.d_query.as_chunks_mut::<LANES>();
        let (d_key, d_key_tail) = self.d_keys[at.clone()].as_chunks_mut::<LANES>();
        let (d_value, d_value_tail) = self.d_values[at].as_chunks_mut::<LANES>();
        let (d_v, d_v_tail) = self.d_v.as_chunks_mut::<LANES>();
        for u in 0..key.len() {
            let sum = L::load(&key[u]).add(L::load(&query[u]));
            let (before_v, before_value) = (L::load(&d_v[u]), L::load(&d_value[u]));
            let (v, d_found) = (L::load(&v[u]), L::load(&d_found[u]));
            let [v_new, d_sum, value_new] =
                slopes(sum, v, d_found, d_score, share, before_v, before_value);
            v_new.store(&mut d_v[u]);
            value_new.store(&mut d_value[u]);
            L::load(&d_key[u]).add(d_sum).store(&mut d_key[u]);
            L::load(&d_query[u]).add(d_sum).store(&mut d_query[u]);
        }
        if !key_tail.is_empty() {
            let sum = L::load_part(key_tail).add(L::load_part(query_tail));
            let (before_v, before_value) = (L::load_part(d_v_tail), L::load_part(d_value_tail));
            let (v, d_found) = (L::load_part(v_tail), L::load_part(d_found_tail));
            let [v_new, d_sum, value_new] =
                slopes(sum, v, d_found, d_score, share, before_v, before_value);
            v_new.store_part(d_v_tail);
            value_new.store_part(d_value_tail);
            L::load_part(d_key_tail).add(d_sum).store_part(d_key_tail);
            L::load_part(d_query_tail).add(d_sum).store_part(d_query_tail);
        }
    }
}

impl Body for AttendBackward<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        let hidden = self.v.len();
        if hidden == 0 {
            return;
        }
        // Through the softmax: d_s_i = p_i (d_p_i - sum of p d_p) with d_p_i = d_found . value_i, and
        // that sum is d_found . found.
        let mean = dot::<L>(self.d_found, self.found);
        let shares = self.d_scores.iter_mut().zip(self.shares);
        for ((d, share), value) in shares.zip(self.values.chunks_exact(hidden)) {
            *d = share * (dot::<L>(self.d_found, value) - mean);
        }
        self.d_query.fill(0.0);
        for i in 0..self.shares.len() {
            self.add_output::<L>(i);
        }
    }
}
