//! The pointwise half of an LSTM step, forward and backward, for some rows of a batch.
//!
//! `c = f * c_prev + i * g`, `h = o * tanh(c)`, with `i`, `f`, `o` through the logistic function and
//! `g` through tanh. Rows are handed over right after their product, while they are in cache.

use super::lanes::{Body, LANES, Lanes};
use super::math::{sigmoid, tanh};
use super::three::Three;

/// Activates the gates of some rows and advances their states.
pub(crate) struct LstmCell<'a> {
    /// `[rows, 4 * hidden]`: pre-activations on entry, activated gates on return.
    pub gates: &'a mut [f32],
    /// `[rows, hidden]`
    pub c_prev: &'a [f32],
    /// `[rows, hidden]`, written.
    pub c: &'a mut [f32],
    /// `[rows, hidden]`, written.
    pub h: &'a mut [f32],
    pub hidden: usize,
}

/// Sixteen units: gates `i`, `f`, `g`, `o`, then `c` and `h`.
#[inline(always)]
fn forward<L: Lanes>(gates: [L; 4], c_prev: L) -> ([L; 4], L, L) {
    let [i, f, g, o] = gates;
    let (Three([i, f, o]), g) = (sigmoid(Three([i, f, o])), tanh(g));
    let c = f.mul_add(c_prev, i.mul(g));
    ([i, f, g, o], c, o.mul(tanh(c)))
}

impl Body for LstmCell<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let hidden = self.hidden;
        if hidden == 0 {
            return;
        }
        let rows = self.gates.chunks_exact_mut(4 * hidden);
        let states = self.c.chunks_exact_mut(hidden).zip(self.h.chunks_exact_mut(hidden));
        for ((row, c_prev), (c, h)) in rows.zip(self.c_prev.chunks_exact(hidden)).zip(states) {
            let (i, rest) = row.split_at_mut(hidden);
            let (f, rest) = rest.split_at_mut(hidden);
            let (g, o) = rest.split_at_mut(hidden);
            let (i, i_tail) = i.as_chunks_mut::<LANES>();
            let (f, f_tail) = f.as_chunks_mut::<LANES>();
            let (g, g_tail) = g.as_chunks_mut::<LANES>();
            let (o, o_tail) = o.as_chunks_mut::<LANES>();
            let (c_prev, c_prev_tail) = c_prev.as_chunks::<LANES>();
            let (c, c_tail) = c.as_chunks_mut::<LANES>();
            let (h, h_tail) = h.as_chunks_mut::<LANES>();
            for u in 0..i.len() {
                let gates = [L::load(&i[u]), L::load(&f[u]), L::load(&g[u]), L::load(&o[u])];
                let (gates, c_new, h_new) = forward(gates, L::load(&c_prev[u]));
                gates[0].store(&mut i[u]);
                gates[1].store(&mut f[u]);
                gates[2].store(&mut g[u]);
                gates[3].store(&mut o[u]);
                c_new.store(&mut c[u]);
                h_new.store(&mut h[u]);
            }
            if !i_tail.is_empty() {
                let gates = [&*i_tail, f_tail, g_tail, o_tail].map(|x| L::load_part(x));
                let (gates, c_new, h_new) = forward(gates, L::load_part(c_prev_tail));
                gates[0].store_part(i_tail);
                gates[1].store_part(f_tail);
                gates[2].store_part(g_tail);
                gates[3].store_part(o_tail);
                c_new.store_part(c_tail);
                h_new.store_part(h_tail);
            }
        }
    }
}

/// `y (1 - y)`, the slope of the logistic function where its value is `y`.
#[inline(always)]
pub(crate) fn slope<L: Lanes>(y: L) -> L {
    y.neg_mul_add(y, y)
}

/// Turns activated gates into the gradients of their pre-activations, for some rows.
pub(crate) struct LstmCellBackward<'a> {
    /// `[rows, 4 * hidden]`: activated gates on entry, gradients on return.
    pub gates: &'a mut [f32],
    /// `[rows, hidden]`, as are all that follow.
    pub c_prev: &'a [f32],
    pub c: &'a [f32],
    /// What reaches `h` from above.
    pub d_h: &'a [f32],
    /// What reaches `c` from outside; may be empty.
    pub d_c: &'a [f32],
    /// What reaches `h` from the next step.
    pub d_h_next: &'a [f32],
    /// What reaches `c` from the next step; on return what reaches `c_prev`.
    pub d_c_next: &'a mut [f32],
    pub hidden: usize,
}

/// Sixteen units: `i`, `f`, `g`, `o`, `c_prev`, `c`, `d_h`, `d_c` to the gates' gradients and `d_c_prev`.
#[inline(always)]
fn backward<L: Lanes>(gates: [L; 4], c_prev: L, c: L, d_h: L, d_c: L) -> ([L; 4], L) {
    let [i, f, g, o] = gates;
    let one = L::splat(1.0);
    // Computed again: keeping tanh(c) would cost a store and a load from far memory.
    let tanh_c = tanh(c);
    let d_c = d_h.mul(o).mul_add(tanh_c.neg_mul_add(tanh_c, one), d_c);
    let d_i = d_c.mul(g).mul(slope(i));
    let d_f = d_c.mul(c_prev).mul(slope(f));
    let d_g = d_c.mul(i).mul(g.neg_mul_add(g, one));
    let d_o = d_h.mul(tanh_c).mul(slope(o));
    ([d_i, d_f, d_g, d_o], d_c.mul(f))
}

impl Body for LstmCellBackward<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let hidden = self.hidden;
        if hidden == 0 {
            return;
        }
        for (r, row) in self.gates.chunks_exact_mut(4 * hidden).enumerate() {
            let at = r * hidden..(r + 1) * hidden;
            let (i, rest) = row.split_at_mut(hidden);
            let (f, rest) = rest.split_at_mut(hidden);
            let (g, o) = rest.split_at_mut(hidden);
            let (i, i_tail) = i.as_chunks_mut::<LANES>();
            let (f, f_tail) = f.as_chunks_mut::<LANES>();
            let (g, g_tail) = g.as_chunks_mut::<LANES>();
            let (o, o_tail) = o.as_chunks_mut::<LANES>();
            let (c_prev, c_prev_tail) = self.c_prev[at.clone()].as_chunks::<LANES>();
            let (c, c_tail) = self.c[at.clone()].as_chunks::<LANES>();
            let (d_h, d_h_tail) = self.d_h[at.clone()].as_chunks::<LANES>();
            let (next, next_tail) = self.d_h_next[at.clone()].as_chunks::<LANES>();
            let outside = if self.d_c.is_empty() { &[] } else { &self.d_c[at.clone()] };
            let (outside, outside_tail) = outside.as_chunks::<LANES>();
            let (d_c, d_c_tail) = self.d_c_next[at].as_chunks_mut::<LANES>();
            for u in 0..i.len() {
                let gates = [L::load(&i[u]), L::load(&f[u]), L::load(&g[u]), L::load(&o[u])];
                let dh = L::load(&d_h[u]).add(L::load(&next[u]));
                let mut dc = L::load(&d_c[u]);
                if !outside.is_empty() {
                    dc = dc.add(L::load(&outside[u]));
                }
                let (gates, dc) = backward(gates, L::load(&c_prev[u]), L::load(&c[u]), dh, dc);
                gates[0].store(&mut i[u]);
                gates[1].store(&mut f[u]);
                gates[2].store(&mut g[u]);
                gates[3].store(&mut o[u]);
                dc.store(&mut d_c[u]);
            }
            if !i_tail.is_empty() {
                let gates = [&*i_tail, f_tail, g_tail, o_tail].map(|x| L::load_part(x));
                let dh = L::load_part(d_h_tail).add(L::load_part(next_tail));
                let mut dc = L::load_part(d_c_tail);
                if !outside_tail.is_empty() {
                    dc = dc.add(L::load_part(outside_tail));
                }
                let (c_prev, c) = (L::load_part(c_prev_tail), L::load_part(c_tail));
                let (gates, dc) = backward(gates, c_prev, c, dh, dc);
                gates[0].store_part(i_tail);
                gates[1].store_part(f_tail);
                gates[2].store_part(g_tail);
                gates[3].store_part(o_tail);
                dc.store_part(d_c_tail);
            }
        }
    }
}
