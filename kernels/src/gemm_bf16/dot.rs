//! A few rows times a weight that lies in rows of `k`: every row of it is read once, where it lies.
//!
//! Packing would write what is read once. Each sum is 16 lanes of pairs instead, added up at the end
//! in a fixed tree. Few rows mean that reading the weight takes the time; it is fetched ahead.

use super::avx512::{self, Out};
use super::pack::{self, Words};
use super::{Numbers, Operand};
use crate::threads::parallel_for;
use half::bf16;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

/// Most rows of `A`.
pub(super) const ROWS: usize = 8;
/// Numbers of a vector.
const WIDTH: usize = 32;
/// Numbers of `B` that are worth a task of their own.
const TASK: usize = 256 << 10;

/// Columns whose sums are kept in registers beside so many rows: 24 sums or fewer.
const COLUMNS: [usize; ROWS] = [8, 8, 8, 6, 4, 4, 3, 3];

/// Whether [`product`] can compute this product, and does it best.
pub(super) fn fits(a: Operand, b: Operand) -> bool {
    let in_rows =
        matches!(b.numbers, Numbers::Bf16(_)) && b.row_stride == 1 && b.col_stride >= b.rows;
    // Below a vector of `k` most lanes would idle.
    in_rows && (1..=ROWS).contains(&a.rows) && b.rows >= WIDTH
}

/// Where the sums go.
#[derive(Clone, Copy)]
pub(super) struct To {
    pub c: Out,
    pub c_row: usize,
    pub accumulate: bool,
}

// SAFETY: tasks write columns of their own.
unsafe impl Send for To {}
// SAFETY: as above.
unsafe impl Sync for To {}

thread_local! {
    /// Where this thread keeps the rows of `A` as bf16, each padded with zeros to whole vectors.
    static PACKED: RefCell<Words> = const { RefCell::new(Words::new()) };
}

/// Computes `C = A B (+ C)` where [`fits`] says so; `to` has room for it.
pub(super) fn product(a: Operand, b: Operand, to: To) {
    let Numbers::Bf16(data) = b.numbers else { unreachable!("`fits` was asked") };
    assert!(avx512::is_available() && (1..=ROWS).contains(&a.rows) && a.cols == b.rows);
    let (k, n) = (b.rows, b.cols);
    // Taken out while in use: the product may run other work on this thread, even this function.
    let mut room = PACKED.take();
    let row = k.next_multiple_of(WIDTH);
    let rows: *mut bf16 = pack::reserve(&mut room, a.rows * row / 2).cast();
    for r in 0..a.rows {
        // SAFETY: the room has `row` numbers for each row of A.
        let line = unsafe { std::slice::from_raw_parts_mut(rows.add(r * row), row) };
        let at = |l: usize| r * a.row_stride + l * a.col_stride;
        match a.numbers {
            Numbers::F32(x) => (0..k).for_each(|l| line[l] = bf16::from_f32(x[at(l)])),
            Numbers::Bf16(x) => (0..k).for_each(|l| line[l] = x[at(l)]),
        }
        line[k..].fill(bf16::ZERO);
    }
    let left = Left { data: rows.cast_const(), rows: a.rows, row };
    // Whole groups of columns; a column's sums do not depend on the cut.
    let grain = (TASK / k).next_multiple_of(24).max(24);
    parallel_for(n, grain, |columns| {
        // SAFETY: the CPU was asserted; `Operand` checked the bounds of B; columns are this task's.
        unsafe { some_columns(left, (data, b.col_stride, k), columns, to) }
    });
    PACKED.replace(room);
}

/// Rows of `A`, `row` numbers apart.
#[derive(Clone, Copy)]
struct Left {
    data: *const bf16,
    rows: usize,
    row: usize,
}

// SAFETY: tasks only read it.
unsafe impl Send for Left {}
// SAFETY: as above.
unsafe impl Sync for Left {}

/// # Safety
/// The CPU has avx512bf16; `columns` are in bounds of B and of C, and nobody else writes them.
unsafe fn some_columns(
    left: Left,
    (b, stride, k): (&[bf16], usize, usize),
    columns: Range<usize>,
    to: To,
) {
    let most = COLUMNS[left.rows - 1];
    let mut at = columns.start;
    while at < columns.end {
        let group = (columns.end - at).min(most);
        let mut sums = [[0.0; ROWS]; ROWS];
        macro_rules! pick {
            ($($m:literal: $($g:literal)+;)+) => {
                match (left.rows, group) {
                    // SAFETY: columns `at..at + group` are in bounds, as the caller vouches.
                    $($(($m, $g) => unsafe { tile::<$m, $g>(left, &b[at * stride..], stride, k, &mut sums) },)+)+
                    _ => unreachable!("no tile of {} rows and {group} columns", left.rows),
                }
            };
        }
        pick! {
            1: 1 2 3 4 5 6 7 8;
            2: 1 2 3 4 5 6 7 8;
            3: 1 2 3 4 5 6 7 8;
            4: 1 2 3 4 5 6;
            5: 1 2 3 4;
            6: 1 2 3 4;
            7: 1 2 3;
            8: 1 2 3;
        }
        for (r, sums) in sums[..left.rows].iter().enumerate() {
            for (j, sum) in sums[..group].iter().enumerate() {
                // SAFETY: element `(r, at + j)` of C is in bounds and this task's.
                unsafe {
                    match to.c.at(r * to.c_row + at + j) {
                        Out::F32(c) => *c = if to.accumulate { *c + sum } else { *sum },
                        Out::Bf16(c) => *c = bf16::from_f32(*sum),
                    }
                }
            }
        }
        at += group;
    }
}

/// The sums of `M` rows and `G` columns.
///
/// # Safety
/// The CPU has avx512bf16; `b` holds `G` columns of `k` numbers, `stride` apart.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[allow(clippy::needless_range_loop)] // `m` and `g` are places in A, B and `sum`
unsafe fn tile<const M: usize, const G: usize>(
    left: Left,
    b: &[bf16],
    stride: usize,
    k: usize,
    sums: &mut [[f32; ROWS]; ROWS],
) {
    let mut sum = [[_mm512_setzero_ps(); G]; M];
    let b = b.as_ptr();
    let pair = |x: __m512i| {
        // SAFETY: both are 512 bits without meaning of their own.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(x) }
    };
    let mut step = |l: usize, mask: u32| {
        let mut cols = [pair(_mm512_setzero_si512()); G];
        for g in 0..G {
            let at = b.wrapping_add(g * stride + l);
            // The group of columns after this one.
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(G * stride).cast());
            // SAFETY: numbers `l..k` of column `g` that the mask lets through are in bounds.
            cols[g] = pair(unsafe {
                if mask == u32::MAX {
                    _mm512_loadu_si512(at.cast())
                } else {
                    _mm512_maskz_loadu_epi16(mask, at.cast())
                }
            });
        }
        for m in 0..M {
            // SAFETY: rows of A are whole vectors.
            let x = pair(unsafe { _mm512_loadu_si512(left.data.add(m * left.row + l).cast()) });
            for g in 0..G {
                sum[m][g] = _mm512_dpbf16_ps(sum[m][g], x, cols[g]);
            }
        }
    };
    let whole = k / WIDTH * WIDTH;
    for l in (0..whole).step_by(WIDTH) {
        step(l, u32::MAX);
    }
    if whole < k {
        step(whole, u32::MAX >> (WIDTH - (k - whole)));
    }
    for m in 0..M {
        for g in 0..G {
            sums[m][g] = _mm512_reduce_add_ps(sum[m][g]);
        }
    }
}
