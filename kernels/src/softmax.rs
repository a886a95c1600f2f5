//! Softmax, log-softmax and cross-entropy over the last axis.

/// Marks a row that has no target (padding): its loss and its gradient are 0.
pub const NO_TARGET: u32 = u32::MAX;

/// Computes `y = exp(x - max) / sum` for each row.
///
/// # Shapes
/// `x`, `y` `[rows, cols]`.
pub fn softmax_forward(x: &[f32], y: &mut [f32], cols: usize) {
    assert_eq!(x.len(), y.len());
    for (x, y) in x.chunks_exact(cols.max(1)).zip(y.chunks_exact_mut(cols.max(1))) {
        // Subtract the row maximum first: exp overflows f32 above 88.7.
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for (x, y) in x.iter().zip(y.iter_mut()) {
            *y = (x - max).exp();
            sum += *y;
        }
        y.iter_mut().for_each(|y| *y /= sum);
    }
}

/// Computes `d_x = y * (d_y - sum(d_y * y))` for each row.
///
/// # Shapes
/// `y`, `d_y`, `d_x` `[rows, cols]`.
pub fn softmax_backward(y: &[f32], d_y: &[f32], d_x: &mut [f32], cols: usize) {
    for r in 0..y.len() / cols.max(1) {
        let at = r * cols..(r + 1) * cols;
        let dot: f32 = y[at.clone()].iter().zip(&d_y[at.clone()]).map(|(y, d)| y * d).sum();
        for i in at {
            d_x[i] = y[i] * (d_y[i] - dot);
        }
    }
}

/// Computes `y = x - max - log(sum(exp(x - max)))` for each row.
///
/// # Shapes
/// `x`, `y` `[rows, cols]`.
pub fn log_softmax_forward(x: &[f32], y: &mut [f32], cols: usize) {
    for (x, y) in x.chunks_exact(cols.max(1)).zip(y.chunks_exact_mut(cols.max(1))) {
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let log_sum = x.iter().map(|x| (x - max).exp()).sum::<f32>().ln();
        for (x, y) in x.iter().zip(y) {
            *y = x - max - log_sum;
        }
    }
}

/// Computes `d_x = d_y - exp(y) * sum(d_y)` for each row, `y` being the log-probabilities.
///
/// # Shapes
/// `y`, `d_y`, `d_x` `[rows, cols]`.
pub fn log_softmax_backward(y: &[f32], d_y: &[f32], d_x: &mut [f32], cols: usize) {
    for r in 0..y.len() / cols.max(1) {
        let at = r * cols..(r + 1) * cols;
        let sum: f32 = d_y[at.clone()].iter().sum();
        for i in at {
            d_x[i] = d_y[i] - y[i].exp() * sum;
        }
    }
}

/// Computes `-log softmax(x)[target]` for each row and, in the same pass, its gradient.
///
/// Rows with [`NO_TARGET`] give loss 0 and gradient 0. `d_logits` is the gradient of the **sum** of
/// the losses times `scale`; pass an empty slice where no gradient is wanted.
///
/// # Shapes
/// `logits`, `d_logits` `[rows, vocab]`; `targets`, `losses` `[rows]`.
///
/// # Panics
/// If a target is not below `vocab` (and not [`NO_TARGET`]).
pub fn cross_entropy_forward(
    logits: &[f32],
    targets: &[u32],
    losses: &mut [f32],
    d_logits: &mut [f32],
    scale: f32,
    vocab: usize,
) {
    assert!(targets.len() == losses.len() && logits.len() == targets.len() * vocab);
    assert!(d_logits.is_empty() || d_logits.len() == logits.len());
    for (r, target) in targets.iter().enumerate() {
        let x = &logits[r * vocab..(r + 1) * vocab];
        if *target == NO_TARGET {
            losses[r] = 0.0;
            if !d_logits.is_empty() {
                d_logits[r * vocab..(r + 1) * vocab].fill(0.0);
            }
            continue;
        }
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum = x.iter().map(|x| (x - max).exp()).sum::<f32>();
        losses[r] = max + sum.ln() - x[*target as usize];
        if !d_logits.is_empty() {
            let d = &mut d_logits[r * vocab..(r + 1) * vocab];
            for (j, (x, d)) in x.iter().zip(d.iter_mut()).enumerate() {
                let hit = f32::from(u8::from(j == *target as usize));
                *d = ((x - max).exp() / sum - hit) * scale;
            }
        }
    }
}
