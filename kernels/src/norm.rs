//! Layer normalisation.

use crate::cpu::bypass::write_rows;
use crate::cpu::lanes::dispatch;
use crate::cpu::norm::{LayerNorm, LayerNormBackward};
use crate::cpu::shared::{Shared, with_scratch};
use crate::elementwise::{axpy, rows_of_cut};

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
    let (rows, cols) = (mean.len(), weight.len());
    assert!(x.len() == y.len() && bias.len() == cols && x.len() == rows * cols);
    assert_eq!(rstd.len(), rows);
    let (mean, rstd) = (Shared::new(mean), Shared::new(rstd));
    write_rows(y, cols, rows_of_cut(cols), |rows, y, past| {
        let x = &x[rows.start * cols..rows.end * cols];
        // SAFETY: pieces do not overlap.
        let (mean, rstd) = unsafe { (mean.slice(rows.clone()), rstd.slice(rows)) };
        dispatch(LayerNorm { x, weight, bias, y, mean, rstd, eps, past });
    });
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
    let (rows, cols) = (mean.len(), weight.len());
    assert!(x.len() == rows * cols && d_y.len() == x.len() && d_x.len() == x.len());
    assert!(rstd.len() == rows && d_weight.len() == cols && d_bias.len() == cols);
    if cols == 0 {
        return;
    }
    // At most 32 groups of rows, each with sums of its own, added in order at the end.
    let grain = rows_of_cut(cols).max(rows.div_ceil(32));
    with_scratch(rows.div_ceil(grain) * 2 * cols, |sums| {
        sums.fill(0.0);
        let shared = Shared::new(sums);
        write_rows(d_x, cols, grain, |rows, d_x, _| {
            let at = rows.start * cols..rows.end * cols;
            let place = rows.start / grain * 2 * cols;
            // SAFETY: each piece has a place of its own for its sums.
            let sums = unsafe { shared.slice(place..place + 2 * cols) };
            let (d_weight, d_bias) = sums.split_at_mut(cols);
            let (x, d_y) = (&x[at.clone()], &d_y[at]);
            let (mean, rstd) = (&mean[rows.clone()], &rstd[rows]);
            dispatch(LayerNormBackward { x, weight, mean, rstd, d_y, d_x, d_weight, d_bias });
        });
        for group in sums.chunks_exact(2 * cols) {
            axpy(1.0, &group[..cols], d_weight);
            axpy(1.0, &group[cols..], d_bias);
        }
    });
}
