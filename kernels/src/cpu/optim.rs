//! Parameter updates: one pass over parameters, moments and gradients.

use super::ahead::fetch;
use super::lanes::{Body, LANES, Lanes};
use crate::optim::AdamStep;

/// Numbers by which lines are asked for ahead of their use: four streams, each of which ends with its
/// piece of the work, so the hardware has to find them anew again and again.
const AHEAD: usize = 32 * LANES;

/// One Adam step for some parameters.
pub(crate) struct AdamBody<'a> {
    pub param: &'a mut [f32],
    pub m: &'a mut [f32],
    pub v: &'a mut [f32],
    pub grad: &'a [f32],
    pub s: AdamStep,
    /// `lr / (1 - beta1^step)`
    pub step_size: f32,
    /// `1 / sqrt(1 - beta2^step)`
    pub root: f32,
}

/// The constants of a step, one in every lane.
#[derive(Clone, Copy)]
struct Constants<L> {
    grad_scale: L,
    beta1: L,
    less1: L,
    beta2: L,
    less2: L,
    decay: L,
    step_size: L,
    root: L,
    eps: L,
}

#[inline(always)]
fn adam<L: Lanes>(k: Constants<L>, p: L, m: L, v: L, grad: L) -> (L, L, L) {
    let g = grad.mul(k.grad_scale);
    let m = k.beta1.mul_add(m, k.less1.mul(g));
    let v = k.beta2.mul_add(v, k.less2.mul(g).mul(g));
    let update = k.step_size.mul(m).div(v.sqrt().mul_add(k.root, k.eps));
    (p.mul(k.decay).sub(update), m, v)
}

impl Body for AdamBody<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let s = self.s;
        let k = Constants {
            grad_scale: L::splat(s.grad_scale),
            beta1: L::splat(s.beta1),
            less1: L::splat(1.0 - s.beta1),
            beta2: L::splat(s.beta2),
            less2: L::splat(1.0 - s.beta2),
            decay: L::splat(1.0 - s.lr * s.weight_decay),
            step_size: L::splat(self.step_size),
            root: L::splat(self.root),
            eps: L::splat(s.eps),
        };
        let (param, p_tail) = self.param.as_chunks_mut::<LANES>();
        let (m, m_tail) = self.m.as_chunks_mut::<LANES>();
        let (v, v_tail) = self.v.as_chunks_mut::<LANES>();
        let (grad, grad_tail) = self.grad.as_chunks::<LANES>();
        for (((p, m), v), g) in param.iter_mut().zip(m).zip(v).zip(grad) {
            for line in [p.as_ptr(), m.as_ptr(), v.as_ptr(), g.as_ptr()] {
                fetch(line.wrapping_add(AHEAD));
            }
            let (p_new, m_new, v_new) = adam(k, L::load(p), L::load(m), L::load(v), L::load(g));
            p_new.store(p);
            m_new.store(m);
            v_new.store(v);
        }
        if !p_tail.is_empty() {
            let (p, m) = (L::load_part(p_tail), L::load_part(m_tail));
            let (p, m, v) = adam(k, p, m, L::load_part(v_tail), L::load_part(grad_tail));
            p.store_part(p_tail);
            m.store_part(m_tail);
            v.store_part(v_tail);
        }
    }
}

/// One step of gradient descent with momentum for some parameters.
pub(crate) struct SgdBody<'a> {
    pub param: &'a mut [f32],
    pub u: &'a mut [f32],
    pub grad: &'a [f32],
    pub lr: f32,
    pub momentum: f32,
    pub grad_scale: f32,
}

impl Body for SgdBody<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (lr, momentum) = (L::splat(self.lr), L::splat(self.momentum));
        let grad_scale = L::splat(self.grad_scale);
        let (param, p_tail) = self.param.as_chunks_mut::<LANES>();
        let (u, u_tail) = self.u.as_chunks_mut::<LANES>();
        let (grad, grad_tail) = self.grad.as_chunks::<LANES>();
        for ((p, u), g) in param.iter_mut().zip(u).zip(grad) {
            let u_new = momentum.mul_add(L::load(u), L::load(g).mul(grad_scale));
            lr.neg_mul_add(u_new, L::load(p)).store(p);
            u_new.store(u);
        }
        if !p_tail.is_empty() {
            let g = L::load_part(grad_tail).mul(grad_scale);
            let u_new = momentum.mul_add(L::load_part(u_tail), g);
            lr.neg_mul_add(u_new, L::load_part(p_tail)).store_part(p_tail);
            u_new.store_part(u_tail);
        }
    }
}
