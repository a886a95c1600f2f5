//! Layer normalisation.

/// Computes `y = (x - mean) / sqrt(var + eps) * weight + bias` for each row.
///
/// # Shapes
/// `x`, `y` `[rows, cols]`; `weight`, `bias` `[cols]`; `mean`, `rstd` `[rows]`, kept for the backward.
///
/// # Source
/// Ba, Kiros & Hinton 2016.
pub fn layer_norm_forward(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    y: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
    eps: f32,
) {
    let cols = weight.len();
    assert!(x.len() == y.len() && bias.len() == cols && mean.len() * cols == x.len());
    for r in 0..mean.len() {
        let x = &x[r * cols..(r + 1) * cols];
        let m = x.iter().sum::<f32>() / cols as f32;
        let var = x.iter().map(|x| (x - m) * (x - m)).sum::<f32>() / cols as f32;
        (mean[r], rstd[r]) = (m, 1.0 / (var + eps).sqrt());
        for (j, y) in y[r * cols..(r + 1) * cols].iter_mut().enumerate() {
            *y = (x[j] - m) * rstd[r] * weight[j] + bias[j];
        }
    }
}

/// Computes the gradients of layer normalisation; `d_weight` and `d_bias` are added to.
///
/// # Shapes
/// As in [`layer_norm_forward`]; `d_x`, `d_y` `[rows, cols]`; `d_weight`, `d_bias` `[cols]`.
pub fn layer_norm_backward(
    x: &[f32],
    weight: &[f32],
    mean: &[f32],
    rstd: &[f32],
    d_y: &[f32],
    d_x: &mut [f32],
    d_weight: &mut [f32],
    d_bias: &mut [f32],
) {
    let cols = weight.len();
    for r in 0..mean.len() {
        let at = r * cols;
        let (mut a, mut b) = (0.0, 0.0);
        for j in 0..cols {
            let hat = (x[at + j] - mean[r]) * rstd[r];
            let d = d_y[at + j] * weight[j];
            a += d;
            b += d * hat;
            d_weight[j] += d_y[at + j] * hat;
            d_bias[j] += d_y[at + j];
        }
        for j in 0..cols {
            let hat = (x[at + j] - mean[r]) * rstd[r];
            let d = d_y[at + j] * weight[j];
            d_x[at + j] = rstd[r] * (d - (a + hat * b) / cols as f32);
        }
    }
}
