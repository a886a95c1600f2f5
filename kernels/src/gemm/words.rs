//! Packs bf16 matrices as 32-bit words, each a pair of neighbours in `k`.

use super::LANE;
use super::pack::{SLACK, Source};
use super::tile::{even, kernels, slivers};
use half::bf16;

/// A pair as one word, the earlier number in the lower half.
fn pair(low: bf16, high: bf16) -> u32 {
    u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16
}

/// Packs the first `n` columns of `b` into slivers `[k / 2][16]`; an odd `k` gets a zero.
///
/// # Shapes
/// `b` `[k, n]` with strides `(row, column)`, one of which is 1.
///
/// # Panics
/// If `b` is too short.
pub(crate) fn pack_b(
    b: &[bf16],
    (row, col): (usize, usize),
    (k, n): (usize, usize),
    room: &mut Vec<u32>,
) {
    let pairs = k.div_ceil(2);
    room.resize(slivers(n) * LANE * pairs, 0);
    if k == 0 || n == 0 {
        return;
    }
    assert!((k - 1) * row + (n - 1) * col < b.len());
    let whole =
        k.is_multiple_of(2) && col.is_multiple_of(2) && b.as_ptr().cast::<u32>().is_aligned();
    if row == 1 && whole {
        // Columns of whole words: the transposition of f32 moves them without looking at them.
        let source = Source {
            data: b.as_ptr().cast(),
            row: 1,
            col: col / 2,
            rows: pairs,
            cols: n,
            ahead: 4 * col,
        };
        // SAFETY: bounds were asserted above, the words are aligned, and the room has a sliver for
        // every 16 columns.
        unsafe { (kernels().pack)(&source, room.as_mut_ptr().cast(), pairs * LANE) };
        return;
    }
    for (s, sliver) in room.chunks_exact_mut(pairs * LANE).enumerate() {
        let cols = (n - s * LANE).min(LANE);
        for (l, line) in sliver.chunks_exact_mut(LANE).enumerate() {
            let at = |l: usize, j: usize| {
                if l < k { b[l * row + (s * LANE + j) * col] } else { bf16::ZERO }
            };
            if col == 1 && cols == LANE && 2 * l + 1 < k {
                let first = &b[2 * l * row + s * LANE..][..LANE];
                let second = &b[(2 * l + 1) * row + s * LANE..][..LANE];
                for ((word, x), y) in line.iter_mut().zip(first).zip(second) {
                    *word = pair(*x, *y);
                }
                continue;
            }
            for (j, word) in line.iter_mut().enumerate() {
                *word = if j < cols { pair(at(2 * l, j), at(2 * l + 1, j)) } else { 0 };
            }
        }
    }
}

/// Packs contiguous rows of `a` `[m, k]` into tiles of `rows` rows (the last may be lower), each
/// `[k / 2][rows of the tile]`.
///
/// # Panics
/// If `a` is too short.
pub(crate) fn pack_a(a: &[bf16], k: usize, m: usize, rows: usize, room: &mut Vec<u32>) {
    let pairs = k.div_ceil(2);
    room.resize(m * pairs + SLACK, 0);
    assert!(a.len() >= m * k);
    let full = m / rows * rows;
    for (top, height) in [(0, full), (full, m - full)] {
        if height == 0 || k == 0 {
            continue;
        }
        let tiles = height.div_ceil(rows);
        let data = a[top * k..].as_ptr().cast::<f32>();
        if k.is_multiple_of(2) && data.is_aligned() {
            let source = Source { data, row: pairs, col: 1, rows: height, cols: pairs, ahead: 0 };
            // SAFETY: `a` holds `m` rows of `pairs` aligned words, the room has a word for each and
            // the slack.
            unsafe {
                (kernels().pack_a)(&source, tiles, room[top * pairs..].as_mut_ptr().cast());
            }
            continue;
        }
        for i in 0..tiles {
            let (start, end) = (even(height, tiles, i), even(height, tiles, i + 1));
            for l in 0..pairs {
                for r in start..end {
                    let row = &a[(top + r) * k..(top + r + 1) * k];
                    let high = row.get(2 * l + 1).copied().unwrap_or(bf16::ZERO);
                    room[(top + start) * pairs + l * (end - start) + (r - start)] =
                        pair(row[2 * l], high);
                }
            }
        }
    }
}
