//! The pointwise half of a GRU step, forward and backward, for some rows of a batch.
//!
//! `n = tanh(x_n + r * rec_n)`, `h = (1 - z) * n + z * h_prev`, where `rec = W_hh h_prev + b_hh`.

use super::cell_lstm::slope;
use super::lanes::{Body, LANES, Lanes};
use super::math::{sigmoid, tanh};

/// Activates the gates of some rows and advances their states.
pub(crate) struct GruCell<'a> {
    /// `[rows, 3 * hidden]`: the input part on entry, activated r, z, n on return.
    pub gates: &'a mut [f32],
    /// `[rows, 3 * hidden]`: the recurrent part.
    pub rec: &'a [f32],
    /// `[rows, hidden]`
    pub h_prev: &'a [f32],
    /// `[rows, hidden]`, written.
    pub h: &'a mut [f32],
    /// `[rows, hidden]`, written: the recurrent part of n.
    pub h_n: &'a mut [f32],
    pub hidden: usize,
}

/// Sixteen units: the input and the recurrent part of r, z, n and `h_prev` to r, z, n and `h`.
#[inline(always)]
fn forward<L: Lanes>(x: [L; 3], rec: [L; 3], h_prev: L) -> ([L; 3], L) {
    let r = sigmoid(x[0].add(rec[0]));
    let z = sigmoid(x[1].add(rec[1]));
    let n = tanh(r.mul_add(rec[2], x[2]));
    ([r, z, n], z.mul_add(h_prev.sub(n), n))
}

impl Body for GruCell<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let hidden = self.hidden;
        if hidden == 0 {
            return;
        }
        let rows = self.gates.chunks_exact_mut(3 * hidden).zip(self.rec.chunks_exact(3 * hidden));
        for (row_at, (row, rec)) in rows.enumerate() {
            let at = row_at * hidden..(row_at + 1) * hidden;
            let (r, rest) = row.split_at_mut(hidden);
            let (z, n) = rest.split_at_mut(hidden);
            let (r, r_tail) = r.as_chunks_mut::<LANES>();
            let (z, z_tail) = z.as_chunks_mut::<LANES>();
            let (n, n_tail) = n.as_chunks_mut::<LANES>();
            let (rec_r, rec_r_tail) = rec[..hidden].as_chunks::<LANES>();
            let (rec_z, rec_z_tail) = rec[hidden..2 * hidden].as_chunks::<LANES>();
            let (rec_n, rec_n_tail) = rec[2 * hidden..].as_chunks::<LANES>();
            let (h_prev, h_prev_tail) = self.h_prev[at.clone()].as_chunks::<LANES>();
            let (h, h_tail) = self.h[at.clone()].as_chunks_mut::<LANES>();
            let (h_n, h_n_tail) = self.h_n[at].as_chunks_mut::<LANES>();
            for u in 0..r.len() {
                let x = [L::load(&r[u]), L::load(&z[u]), L::load(&n[u])];
                let rec = [L::load(&rec_r[u]), L::load(&rec_z[u]), L::load(&rec_n[u])];
                let (gates, h_new) = forward(x, rec, L::load(&h_prev[u]));
                gates[0].store(&mut r[u]);
                gates[1].store(&mut z[u]);
                gates[2].store(&mut n[u]);
                h_new.store(&mut h[u]);
                rec[2].store(&mut h_n[u]);
            }
            if !r_tail.is_empty() {
                let x = [&*r_tail, z_tail, n_tail].map(|x| L::load_part(x));
                let rec = [rec_r_tail, rec_z_tail, rec_n_tail].map(|x| L::load_part(x));
                let (gates, h_new) = forward(x, rec, L::load_part(h_prev_tail));
                gates[0].store_part(r_tail);
                gates[1].store_part(z_tail);
                gates[2].store_part(n_tail);
                h_new.store_part(h_tail);
                rec[2].store_part(h_n_tail);
            }
        }
    }
}

/// Turns activated gates into the gradients of both parts of their sums, for some rows.
pub(crate) struct GruCellBackward<'a> {
    /// `[rows, 3 * hidden]`: activated r, z, n on entry, the gradient of the input part on return.
    pub gates: &'a mut [f32],
    /// `[rows, 3 * hidden]`, written: the gradient of the recurrent part.
    pub d_rec: &'a mut [f32],
    /// `[rows, hidden]`, as are all that follow.
    pub h_prev: &'a [f32],
    pub h_n: &'a [f32],
    /// What reaches `h` from above.
    pub d_h: &'a [f32],
    /// What reaches `h` from the next step; on return what reaches `h_prev` past the gates.
    pub d_h_next: &'a mut [f32],
    pub hidden: usize,
}

/// Sixteen units: r, z, n, `h_prev`, `h_n`, `d_h` to `d_r`, `d_z`, `d_n`, the recurrent `d_n`, `d_h_prev`.
#[inline(always)]
fn backward<L: Lanes>(gates: [L; 3], h_prev: L, h_n: L, d_h: L) -> ([L; 3], L, L) {
    let [r, z, n] = gates;
    let one = L::splat(1.0);
    let d_n = d_h.mul(one.sub(z)).mul(n.neg_mul_add(n, one));
    let d_r = d_n.mul(h_n).mul(slope(r));
    let d_z = d_h.mul(h_prev.sub(n)).mul(slope(z));
    ([d_r, d_z, d_n], d_n.mul(r), d_h.mul(z))
}

impl Body for GruCellBackward<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let hidden = self.hidden;
        if hidden == 0 {
            return;
        }
        let rows =
            self.gates.chunks_exact_mut(3 * hidden).zip(self.d_rec.chunks_exact_mut(3 * hidden));
        for (row_at, (row, rec)) in rows.enumerate() {
            let at = row_at * hidden..(row_at + 1) * hidden;
            let (r, rest) = row.split_at_mut(hidden);
            let (z, n) = rest.split_at_mut(hidden);
            let (rec_r, rest) = rec.split_at_mut(hidden);
            let (rec_z, rec_n) = rest.split_at_mut(hidden);
            let (r, r_tail) = r.as_chunks_mut::<LANES>();
            let (z, z_tail) = z.as_chunks_mut::<LANES>();
            let (n, n_tail) = n.as_chunks_mut::<LANES>();
            let (rec_r, rec_r_tail) = rec_r.as_chunks_mut::<LANES>();
            let (rec_z, rec_z_tail) = rec_z.as_chunks_mut::<LANES>();
            let (rec_n, rec_n_tail) = rec_n.as_chunks_mut::<LANES>();
            let (h_prev, h_prev_tail) = self.h_prev[at.clone()].as_chunks::<LANES>();
            let (h_n, h_n_tail) = self.h_n[at.clone()].as_chunks::<LANES>();
            let (d_h, d_h_tail) = self.d_h[at.clone()].as_chunks::<LANES>();
            let (next, next_tail) = self.d_h_next[at].as_chunks_mut::<LANES>();
            for u in 0..r.len() {
                let gates = [L::load(&r[u]), L::load(&z[u]), L::load(&n[u])];
                let dh = L::load(&d_h[u]).add(L::load(&next[u]));
                let (d, d_rec_n, d_prev) =
                    backward(gates, L::load(&h_prev[u]), L::load(&h_n[u]), dh);
                d[0].store(&mut r[u]);
                d[1].store(&mut z[u]);
                d[2].store(&mut n[u]);
                d[0].store(&mut rec_r[u]);
                d[1].store(&mut rec_z[u]);
                d_rec_n.store(&mut rec_n[u]);
                d_prev.store(&mut next[u]);
            }
            if !r_tail.is_empty() {
                let gates = [&*r_tail, z_tail, n_tail].map(|x| L::load_part(x));
                let dh = L::load_part(d_h_tail).add(L::load_part(next_tail));
                let (h_prev, h_n) = (L::load_part(h_prev_tail), L::load_part(h_n_tail));
                let (d, d_rec_n, d_prev) = backward(gates, h_prev, h_n, dh);
                d[0].store_part(r_tail);
                d[1].store_part(z_tail);
                d[2].store_part(n_tail);
                d[0].store_part(rec_r_tail);
                d[1].store_part(rec_z_tail);
                d_rec_n.store_part(rec_n_tail);
                d_prev.store_part(next_tail);
            }
        }
    }
}
