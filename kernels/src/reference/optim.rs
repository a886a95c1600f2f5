//! Optimizer steps by their definition, in f64.

use crate::optim::AdamStep;

/// One step of Adam (with decoupled decay) for one parameter: the new parameter and moments.
pub fn adam(param: f64, m: f64, v: f64, grad: f64, s: AdamStep) -> (f64, f64, f64) {
    let (beta1, beta2) = (f64::from(s.beta1), f64::from(s.beta2));
    let g = grad * f64::from(s.grad_scale);
    let m = beta1 * m + (1.0 - beta1) * g;
    let v = beta2 * v + (1.0 - beta2) * g * g;
    let m_hat = m / (1.0 - beta1.powf(s.step as f64));
    let v_hat = v / (1.0 - beta2.powf(s.step as f64));
    let decayed = param * (1.0 - f64::from(s.lr) * f64::from(s.weight_decay));
    (decayed - f64::from(s.lr) * m_hat / (v_hat.sqrt() + f64::from(s.eps)), m, v)
}
