//! First values of parameters.

use crate::error::Result;
use crate::layout::Layout;
use crate::memory::Buffer;
use crate::rng::Rng;
use crate::tensor::Tensor;

fn filled(op: &'static str, shape: &[usize], fill: impl FnOnce(&mut [f32])) -> Result<Tensor> {
    let layout = Layout::contiguous(op, shape)?;
    let mut buffer = Buffer::scratch(layout.len());
    fill(&mut buffer);
    Ok(Tensor::constant(buffer, layout))
}

/// Draws from `[low, high)`.
///
/// # Errors
/// If there are more than six axes.
pub fn uniform(rng: &mut Rng, shape: &[usize], low: f32, high: f32) -> Result<Tensor> {
    filled("uniform", shape, |y| rng.fill_uniform(y, low, high))
}

/// Draws from a normal distribution.
///
/// # Errors
/// If there are more than six axes.
pub fn normal(rng: &mut Rng, shape: &[usize], mean: f32, deviation: f32) -> Result<Tensor> {
    filled("normal", shape, |y| rng.fill_normal(y, mean, deviation))
}

/// Draws from `[-1 / sqrt(fan), 1 / sqrt(fan))`: PyTorch's choice for linear layers (`fan` = inputs)
/// and for recurrent layers (`fan` = hidden), weights and biases alike.
///
/// # Errors
/// If there are more than six axes.
pub fn by_fan(rng: &mut Rng, shape: &[usize], fan: usize) -> Result<Tensor> {
    let bound = 1.0 / (fan.max(1) as f32).sqrt();
    uniform(rng, shape, -bound, bound)
}

/// Draws a weight `[outputs, inputs]` from `[-a, a)` with `a = sqrt(6 / (inputs + outputs))`, and
/// multiplies it by `gain`.
///
/// # Errors
/// If there are more than six axes.
///
/// # Source
/// Glorot & Bengio 2010.
pub fn xavier(rng: &mut Rng, outputs: usize, inputs: usize, gain: f32) -> Result<Tensor> {
    let bound = (6.0 / (inputs + outputs).max(1) as f32).sqrt();
    filled("xavier", &[outputs, inputs], |y| {
        rng.fill_uniform(y, -bound, bound);
        if gain != 1.0 {
            y.iter_mut().for_each(|y| *y *= gain);
        }
    })
}
