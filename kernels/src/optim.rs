//! Parameter updates, one pass over memory each.

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
    let (step_size, c2_sqrt) = ((f64::from(s.lr) / c1) as f32, c2.sqrt() as f32);
    for i in 0..param.len() {
        let g = grad[i] * s.grad_scale;
        m[i] = s.beta1 * m[i] + (1.0 - s.beta1) * g;
        v[i] = s.beta2 * v[i] + (1.0 - s.beta2) * g * g;
        let p = param[i] * (1.0 - s.lr * s.weight_decay);
        param[i] = p - step_size * m[i] / (v[i].sqrt() / c2_sqrt + s.eps);
    }
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
    for i in 0..param.len() {
        u[i] = momentum * u[i] + grad[i] * grad_scale;
        param[i] -= lr * u[i];
    }
}
