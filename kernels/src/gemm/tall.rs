//! A weight's gradient: long sums over rows of two matrices, `C = A^T B`, where `A` is the wider one.
//!
//! Of the two operands the left one is copied whole into the order in which tiles read it, the right one
//! is read in place by the first tile of a strip. So the wider matrix had better stand on the right: `C^T = B^T A`
//! is computed in a room of its own and transposed. Each sum is the same chain of multiply-adds, so the bits
//! are the same.

use super::drive::{self, Right};
use super::finish::Finish;
use super::{MatMut, MatRef};
use crate::cpu::shared::with_scratch;

/// How many times as wide the left operand is at least.
const RATIO: usize = 2;
/// Shortest sums that repay the transposition.
const SHORTEST: usize = 256;
/// Side of a square of `C` that is transposed at a time: a line of either side is touched once.
const SIDE: usize = 16;

/// Whether [`product`] takes `C = A B` (`a` as given, its columns contiguous).
pub(super) fn fits(a: &MatRef, b: &MatRef, finish: &Finish) -> bool {
    a.row_stride == 1
        && b.col_stride == 1
        && b.cols > 1
        && a.rows >= RATIO * b.cols
        && a.cols >= SHORTEST
        && finish.is_nothing()
}

/// Computes `C = A B (+ C)` where [`fits`] says so; sizes agree.
pub(super) fn product(a: MatRef, b: MatRef, c: &mut MatMut, accumulate: bool) {
    let (m, n) = (a.rows, b.cols);
    with_scratch(m * n, |room| {
        if accumulate {
            transpose((c.data, c.row_stride), (m, n), (room, m));
        }
        let turned = &mut MatMut::new(room, n, m);
        drive::product(b.t(), Right::Plain(a.t()), Finish::default(), turned, accumulate);
        transpose((room, m), (n, m), (c.data, c.row_stride));
    });
}

/// `to[c][r] = from[r][c]` for `[rows, cols]` numbers of `from`; each side with the distance of its rows.
fn transpose(
    (from, from_row): (&[f32], usize),
    (rows, cols): (usize, usize),
    (to, to_row): (&mut [f32], usize),
) {
    for r in (0..rows).step_by(SIDE) {
        for c in (0..cols).step_by(SIDE) {
            for r in r..(r + SIDE).min(rows) {
                for c in c..(c + SIDE).min(cols) {
                    to[c * to_row + r] = from[r * from_row + c];
                }
            }
        }
    }
}
