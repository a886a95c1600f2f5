//! Softmax, log-softmax and cross-entropy over the last axis.
//!
//! A row is read from memory once: its later passes find it in cache. Rows are cut for the threads by
//! size alone, and a row's bits depend on nothing but the row.

use crate::cpu::bypass::write_rows;
use crate::cpu::lanes::dispatch;
use crate::cpu::rows::{CrossEntropy, LogSoftmax, Softmax, SoftmaxBackward};
use crate::cpu::shared::Shared;
use crate::elementwise::rows_of_cut;
use crate::threads::parallel_for;
use std::ops::Range;

/// Marks a row that has no target (padding): its loss and its gradient are 0.
pub const NO_TARGET: u32 = u32::MAX;

/// Computes `y = exp(x - max) / sum` for each row.
///
/// # Shapes
/// `x`, `y` `[rows, cols]`.
pub fn softmax_forward(x: &[f32], y: &mut [f32], cols: usize) {
    assert_eq!(x.len(), y.len());
    // Not past the cache: the row's second pass finds its exponentials there.
    write_rows(y, cols, rows_of_cut(cols), |rows, y, _| {
        dispatch(Softmax { x: &x[rows.start * cols..rows.end * cols], y, cols });
    });
}

/// Computes `d_x = y * (d_y - sum(d_y * y))` for each row.
///
/// # Shapes
/// `y`, `d_y`, `d_x` `[rows, cols]`.
pub fn softmax_backward(y: &[f32], d_y: &[f32], d_x: &mut [f32], cols: usize) {
    softmax_gradient(y, d_y, d_x, cols, false);
}

fn softmax_gradient(y: &[f32], d_y: &[f32], d_x: &mut [f32], cols: usize, log: bool) {
    assert!(y.len() == d_y.len() && y.len() == d_x.len());
    write_rows(d_x, cols, rows_of_cut(cols), |rows, d_x, past| {
        let at = rows.start * cols..rows.end * cols;
        dispatch(SoftmaxBackward { y: &y[at.clone()], d_y: &d_y[at], d_x, cols, log, past });
    });
}

/// Computes `y = x - max - log(sum(exp(x - max)))` for each row.
///
/// # Shapes
/// `x`, `y` `[rows, cols]`.
pub fn log_softmax_forward(x: &[f32], y: &mut [f32], cols: usize) {
    assert_eq!(x.len(), y.len());
    write_rows(y, cols, rows_of_cut(cols), |rows, y, past| {
        dispatch(LogSoftmax { x: &x[rows.start * cols..rows.end * cols], y, cols, past });
    });
}

/// Computes `d_x = d_y - exp(y) * sum(d_y)` for each row, `y` being the log-probabilities.
///
/// # Shapes
/// `y`, `d_y`, `d_x` `[rows, cols]`.
pub fn log_softmax_backward(y: &[f32], d_y: &[f32], d_x: &mut [f32], cols: usize) {
    softmax_gradient(y, d_y, d_x, cols, true);
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
    let losses = Shared::new(losses);
    let run = |rows: Range<usize>, d_logits: &mut [f32], _| {
        // SAFETY: pieces do not overlap.
        let losses = unsafe { losses.slice(rows.clone()) };
        let logits = &logits[rows.start * vocab..rows.end * vocab];
        let targets = &targets[rows];
        dispatch(CrossEntropy { logits, targets, losses, d_logits, scale, vocab });
    };
    if d_logits.is_empty() {
        return parallel_for(targets.len(), rows_of_cut(vocab), |rows| run(rows, &mut [], false));
    }
    write_rows(d_logits, vocab, rows_of_cut(vocab), run);
}
