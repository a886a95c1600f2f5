//! The pointwise half of an Elman step, forward and backward, for some rows of a batch.

use super::lanes::{Body, LANES, Lanes, Numbers};
use super::math::tanh;
use super::three::{Three, threes_mut};
use crate::recurrent::Nonlinearity;

/// Puts sums through the nonlinearity, in place.
pub(crate) struct RnnCell<'a> {
    pub h: &'a mut [f32],
    pub f: Nonlinearity,
}

#[inline(always)]
fn forward<L: Numbers>(f: Nonlinearity, x: L) -> L {
    match f {
        Nonlinearity::Tanh => tanh(x),
        Nonlinearity::Relu => L::zero().max(x),
    }
}

impl Body for RnnCell<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (h, tail) = self.h.as_chunks_mut::<LANES>();
        let (threes, h) = threes_mut(L::IN_TURN && self.f == Nonlinearity::Tanh, h);
        for h in threes {
            let x = Three([L::load(&h[0]), L::load(&h[1]), L::load(&h[2])]);
            let Three(y) = forward(self.f, x);
            y.into_iter().zip(h).for_each(|(y, h)| y.store(h));
        }
        for h in h {
            forward(self.f, L::load(h)).store(h);
        }
        if !tail.is_empty() {
            forward(self.f, L::load_part(tail)).store_part(tail);
        }
    }
}

/// Turns gradients of states into gradients of the sums before the nonlinearity.
pub(crate) struct RnnCellBackward<'a> {
    /// The states.
    pub h: &'a [f32],
    /// What reaches `h` from above on entry; the gradient of the sums on return.
    pub d_h: &'a mut [f32],
    /// What reaches `h` from the next step.
    pub d_h_next: &'a [f32],
    pub f: Nonlinearity,
}

#[inline(always)]
fn backward<L: Lanes>(f: Nonlinearity, y: L, d: L) -> L {
    match f {
        Nonlinearity::Tanh => d.mul(y.neg_mul_add(y, L::splat(1.0))),
        Nonlinearity::Relu => L::select(y.gt(L::zero()), d, L::zero()),
    }
}

impl Body for RnnCellBackward<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (h, h_tail) = self.h.as_chunks::<LANES>();
        let (d, d_tail) = self.d_h.as_chunks_mut::<LANES>();
        let (next, next_tail) = self.d_h_next.as_chunks::<LANES>();
        for ((h, d), next) in h.iter().zip(d).zip(next) {
            backward(self.f, L::load(h), L::load(d).add(L::load(next))).store(d);
        }
        if !d_tail.is_empty() {
            let d = L::load_part(d_tail).add(L::load_part(next_tail));
            backward(self.f, L::load_part(h_tail), d).store_part(d_tail);
        }
    }
}
