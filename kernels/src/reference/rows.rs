//! Softmax and its kin, cross-entropy and layer normalisation by their definitions, in f64.

use super::norm::Group;
use crate::softmax::NO_TARGET;

/// `exp(x) / sum(exp(x))`, the maximum subtracted first.
pub fn softmax(x: &[f64]) -> Vec<f64> {
    log_softmax(x).into_iter().map(f64::exp).collect()
}

/// `x - ln(sum(exp(x)))`, the maximum subtracted first.
pub fn log_softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = x.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
    x.iter().map(|x| x - max - log_sum).collect()
}

/// The gradient of softmax from its result.
pub fn softmax_backward(y: &[f64], d_y: &[f64]) -> Vec<f64> {
    let dot: f64 = y.iter().zip(d_y).map(|(y, d)| y * d).sum();
    y.iter().zip(d_y).map(|(y, d)| y * (d - dot)).collect()
}

/// The gradient of log-softmax from its result.
pub fn log_softmax_backward(y: &[f64], d_y: &[f64]) -> Vec<f64> {
    let sum: f64 = d_y.iter().sum();
    y.iter().zip(d_y).map(|(y, d)| d - y.exp() * sum).collect()
}

/// `-ln softmax(x)[target]` and its gradient.
pub fn cross_entropy(x: &[f64], target: u32) -> (f64, Vec<f64>) {
    if target == NO_TARGET {
        return (0.0, vec![0.0; x.len()]);
    }
    let mut gradient = softmax(x);
    gradient[target as usize] -= 1.0;
    (-log_softmax(x)[target as usize], gradient)
}

/// `(x - mean) / sqrt(var + eps) * weight + bias`.
pub fn layer_norm(x: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
    let hat = Group::new(x, eps).hat;
    hat.iter().zip(weight).zip(bias).map(|((hat, w), b)| hat * w + b).collect()
}

/// The gradient of layer normalisation with respect to `x`, `weight` and `bias`, for one row.
pub fn layer_norm_backward(
    x: &[f64],
    weight: &[f64],
    d_y: &[f64],
    eps: f64,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let group = Group::new(x, eps);
    let d_hat: Vec<f64> = d_y.iter().zip(weight).map(|(d, w)| d * w).collect();
    let d_weight = d_y.iter().zip(&group.hat).map(|(d, hat)| d * hat).collect();
    (group.gradient(&d_hat), d_weight, d_y.to_vec())
}
