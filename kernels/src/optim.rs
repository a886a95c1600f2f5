//! Parameter updates: one pass over memory and one fork for all arrays of a model.

use crate::cpu::lanes::dispatch;
use crate::cpu::optim::{AdamBody, SgdBody};
use crate::cpu::shared::Shared;
use crate::elementwise::{CUT, squares_of};
use crate::threads::parallel_for;
use std::cell::RefCell;
use std::ops::Range;

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

/// One array of parameters with its gradient and what the optimizer keeps for it.
pub struct Part<'a> {
    param: Shared<'a, f32>,
    kept: [Shared<'a, f32>; 2],
    grad: &'a [f32],
    /// The number of its first piece among those of all parts.
    first: usize,
}

impl<'a> Part<'a> {
    /// Joins what a step of Adam changes and reads.
    ///
    /// # Shapes
    /// All `[n]`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn adam(
        param: &'a mut [f32],
        m: &'a mut [f32],
        v: &'a mut [f32],
        grad: &'a [f32],
    ) -> Part<'a> {
        assert!(param.len() == m.len() && m.len() == v.len() && v.len() == grad.len());
        let kept = [Shared::new(m), Shared::new(v)];
        Part { param: Shared::new(param), kept, grad, first: 0 }
    }

    /// Joins what a step of gradient descent with momentum changes and reads.
    ///
    /// # Shapes
    /// All `[n]`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn sgd(param: &'a mut [f32], u: &'a mut [f32], grad: &'a [f32]) -> Part<'a> {
        assert!(param.len() == u.len() && u.len() == grad.len());
        let kept = [Shared::new(u), Shared::new(&mut [])];
        Part { param: Shared::new(param), kept, grad, first: 0 }
    }
}

/// Numbers in a piece of work: seven streams, so half a cut is as much traffic as a whole one of two.
const PIECE: usize = CUT / 2;

/// Runs `f` over pieces of all parts: one fork, whatever their number.
fn over_all(parts: &mut [Part], f: impl Fn(&Part, Range<usize>) + Sync) {
    let mut pieces = 0;
    for part in &mut *parts {
        part.first = pieces;
        pieces += part.grad.len().div_ceil(PIECE);
    }
    let parts = &*parts;
    parallel_for(pieces, 1, |at| {
        // The last part that begins at or before the piece; empty ones begin where the next does.
        let part = &parts[parts.partition_point(|part| part.first <= at.start) - 1];
        let from = (at.start - part.first) * PIECE;
        f(part, from..part.grad.len().min(from + PIECE));
    });
}

/// Updates parameters and moments of all parts in place.
///
/// # Source
/// Kingma & Ba 2015, algorithm 1; decoupled decay from Loshchilov & Hutter 2019.
pub fn adam_all(parts: &mut [Part], s: AdamStep) {
    let c1 = 1.0 - f64::from(s.beta1).powf(s.step as f64);
    let c2 = 1.0 - f64::from(s.beta2).powf(s.step as f64);
    let (step_size, root) = ((f64::from(s.lr) / c1) as f32, (1.0 / c2.sqrt()) as f32);
    over_all(parts, |part, at| {
        // SAFETY: pieces do not overlap.
        let (param, m, v) = unsafe {
            (
                part.param.slice(at.clone()),
                part.kept[0].slice(at.clone()),
                part.kept[1].slice(at.clone()),
            )
        };
        dispatch(AdamBody { param, m, v, grad: &part.grad[at], s, step_size, root });
    });
}

/// Updates one array of parameters and its moments in place: [`adam_all`] of one part.
///
/// # Shapes
/// All `[n]`.
pub fn adam(param: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], s: AdamStep) {
    adam_all(&mut [Part::adam(param, m, v, grad)], s);
}

/// Updates all parts by gradient descent with momentum: `u = momentum * u + g; p = p - lr * u`.
pub fn sgd_all(parts: &mut [Part], lr: f32, momentum: f32, grad_scale: f32) {
    over_all(parts, |part, at| {
        // SAFETY: pieces do not overlap.
        let (param, u) = unsafe { (part.param.slice(at.clone()), part.kept[0].slice(at.clone())) };
        dispatch(SgdBody { param, u, grad: &part.grad[at], lr, momentum, grad_scale });
    });
}

/// Updates one array of parameters: [`sgd_all`] of one part.
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
    sgd_all(&mut [Part::sgd(param, u, grad)], lr, momentum, grad_scale);
}

thread_local! {
    /// One sum for each piece of all gradients; it keeps its size.
    static SUMS: RefCell<Vec<f64>> = const { RefCell::new(Vec::new()) };
}

/// Sums the squares of several arrays (the norm of all gradients), in one fork and a fixed order.
pub fn sum_of_squares_all<'a>(arrays: impl Iterator<Item = &'a [f32]> + Clone + Sync) -> f64 {
    let pieces = |x: &[f32]| x.len().div_ceil(CUT);
    let mut sums = SUMS.take();
    sums.clear();
    sums.resize(arrays.clone().map(pieces).sum(), 0.0);
    let shared = Shared::new(&mut sums);
    let count = shared.len();
    parallel_for(count, count.div_ceil(64), |range| {
        let mut first = 0;
        for x in arrays.clone() {
            let (begin, end) = (range.start.max(first), range.end.min(first + pieces(x)));
            for piece in begin..end {
                let from = (piece - first) * CUT;
                // SAFETY: each piece has a place of its own.
                let sum = unsafe { shared.slice(piece..piece + 1) };
                sum[0] = squares_of(&x[from..x.len().min(from + CUT)]);
            }
            first += pieces(x);
        }
    });
    let sum = sums.iter().sum();
    SUMS.set(sums);
    sum
}
