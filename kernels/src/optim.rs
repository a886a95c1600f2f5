//! Parameter updates, one pass over memory each.

use crate::cpu::lanes::dispatch;
use crate::cpu::optim::{AdamBody, SgdBody};
use crate::cpu::shared::Shared;
use crate::elementwise::CUT;
use crate::threads::parallel_for;

/// The constants of one Adam step.
#[derive(Debug, Clone, Copy)]
pub struct AdamStep {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay (AdamW); 0 for Adam.
    pub weight_decay: f32,
    /// The number of this step, from 1: for the bias correction.
    pub step: u64,
    /// Multiplies every gradient first (global-norm clipping).
    pub grad_scale: f32,
}

/// Updates parameters and moments in place.
///
/// # Shapes
/// All `[n]`.
///
/// # Source
/// Kingma & Ba 2015, algorithm 1; decoupled decay from Loshchilov & Hutter 2019.
pub fn adam(param: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], s: AdamStep) {
    assert!(param.len() == m.len() && m.len() == v.len() && v.len() == grad.len());
    let c1 = 1.0 - f64::from(s.beta1).powf(s.step as f64);
    let c2 = 1.0 - f64::from(s.beta2).powf(s.step as f64);
    let (step_size, root) = ((f64::from(s.lr) / c1) as f32, (1.0 / c2.sqrt()) as f32);
    let (param, m, v) = (Shared::new(param), Shared::new(m), Shared::new(v));
    // Seven streams: half a cut is as much traffic as a whole one of two.
    parallel_for(grad.len(), CUT / 2, |at| {
        // SAFETY: pieces do not overlap.
        let (param, m, v) =
            unsafe { (param.slice(at.clone()), m.slice(at.clone()), v.slice(at.clone())) };
        dispatch(AdamBody { param, m, v, grad: &grad[at], s, step_size, root });
    });
}

/// Updates parameters by gradient descent with momentum: `u = momentum * u + g; p = p - lr * u`.
///
/// # Shapes
/// All `[n]`.
pub fn sgd(
    param: &mut [f32],
    u: &mut [f32],
    grad: &[f32],
    lr: f32,
    momentum: f32,
    grad_scale: f32,
) {
    assert!(param.len() == u.len() && u.len() == grad.len());
    let (param, u) = (Shared::new(param), Shared::new(u));
    parallel_for(grad.len(), CUT / 2, |at| {
        // SAFETY: pieces do not overlap.
        let (param, u) = unsafe { (param.slice(at.clone()), u.slice(at.clone())) };
        dispatch(SgdBody { param, u, grad: &grad[at], lr, momentum, grad_scale });
    });
}
