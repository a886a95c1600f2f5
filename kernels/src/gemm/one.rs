//! One row times a matrix as it lies: every number of it is read once and used once, so the time is
//! that of reading, and the order of reading is all that counts.
//!
//! Where rows of `B` are contiguous, sums of all columns gather in the first-level cache while eight rows
//! at a time pass by; the order of adds is that of every tile. Where columns are contiguous, as those
//! of a linear layer's weight, a sum in that order would visit sixteen or more columns line by line, at
//! half of what the caches deliver (a transposition, one chain of adds); so each is a scalar product,
//! read from end to end in sixteen partial sums. This is the one product whose bits differ from those
//! of the others; they are the same on every tier of vectors and for any number of threads.

use super::finish::Finish;
use super::{MatMut, MatRef};
use crate::cpu::lanes::{Block, Body, LANES, Lanes, dispatch};
use crate::cpu::shared::{Shared, with_scratch};
use crate::isa::{self, Isa};
use crate::threads::{parallel_for, threads};

/// Shortest columns and rows that repay this.
const SHORTEST: usize = 64;
/// Numbers of `B` that are worth a task of their own.
const TASK: usize = 1 << 17;
/// Most columns of a task whose rows are contiguous: 8 KiB of sums.
const TASK_COLS: usize = 2048;
/// Rows that pass at a time, and columns that are multiplied side by side.
const ROWS: usize = 8;
const COLUMNS: usize = 4;
/// Vectors of a row that are read in one go.
const WIDE: usize = 4;

/// Whether [`product`] takes a row times such a matrix.
pub(super) fn fits(rows: usize, b: &MatRef) -> bool {
    let fits = match (b.row_stride, b.col_stride) {
        (_, 1) => b.cols >= SHORTEST && b.rows > 0,
        (1, _) => b.rows >= SHORTEST,
        _ => false,
    };
    // The plain tier multiplies and adds in two steps, which a vector body would not.
    rows == 1 && fits && isa::active() != Isa::Scalar
}

/// Computes `C = A B (+ C)` and what follows, where [`fits`] says so; sizes agree.
pub(super) fn product(a: MatRef, b: MatRef, finish: Finish, c: &mut MatMut, accumulate: bool) {
    let (k, n) = (a.cols, c.cols);
    with_scratch(if a.col_stride == 1 { 0 } else { k }, |room| {
        room.iter_mut().enumerate().for_each(|(l, x)| *x = a.data[l * a.col_stride]);
        let x = if a.col_stride == 1 { &a.data[..k] } else { &*room };
        let along = b.col_stride == 1;
        let each = if threads() == 1 { n } else { (TASK / k.max(1)).max(n / (4 * threads())) };
        let each = if along { each.next_multiple_of(LANES).min(TASK_COLS) } else { each.max(1) };
        let y = Shared::new(&mut c.data[..n]);
        parallel_for(n, each, |range| {
            // SAFETY: tasks have columns of their own.
            let y = unsafe { y.slice(range.clone()) };
            if !accumulate {
                y.fill(0.0);
            }
            let data = &b.data[range.start * b.col_stride..];
            if along {
                dispatch(Along { x, b: data, row: b.row_stride, y: &mut *y });
            } else {
                dispatch(Dots { x, b: data, col: b.col_stride, y: &mut *y });
            }
            if let Some(bias) = finish.bias {
                y.iter_mut().zip(&bias[range.clone()]).for_each(|(y, bias)| *y += bias);
            }
            // SAFETY: as above.
            unsafe { finish.apply(y.as_mut_ptr(), y.len(), (0, range.start), (1, y.len())) };
        });
    });
}

/// `y += x B` for some columns, rows of `B` being contiguous.
struct Along<'a> {
    x: &'a [f32],
    b: &'a [f32],
    row: usize,
    y: &'a mut [f32],
}

impl Body for Along<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (many, few) = self.x.as_chunks::<ROWS>();
        let mut at = 0;
        for x in many {
            rows::<L, ROWS>(x, &self.b[at..], self.row, self.y);
            at += ROWS * self.row;
        }
        for x in few {
            rows::<L, 1>(&[*x], &self.b[at..], self.row, self.y);
            at += self.row;
        }
    }
}

/// Adds `N` numbers times as many rows, four vectors of each row at a time: what is read in one go is
/// long enough for the hardware to see where it leads.
#[inline(always)]
fn rows<L: Lanes, const N: usize>(x: &[f32; N], b: &[f32], row: usize, y: &mut [f32]) {
    let mut b: [&[f32]; N] = std::array::from_fn(|i| &b[i * row..][..y.len()]);
    let x = x.map(L::splat);
    let (blocks, tail) = y.as_chunks_mut::<LANES>();
    let (wide, narrow) = blocks.as_chunks_mut::<WIDE>();
    for y in wide {
        passing(&x, &mut b, y);
    }
    for y in narrow {
        passing(&x, &mut b, std::array::from_mut(y));
    }
    if !tail.is_empty() {
        let mut sum = L::load_part(tail);
        for (x, b) in x.iter().zip(b) {
            sum = x.mul_add(L::load_part(b), sum);
        }
        sum.store_part(tail);
    }
}

/// Adds the first `W` vectors of each row, and moves on behind them.
#[inline(always)]
fn passing<L: Lanes, const N: usize, const W: usize>(
    x: &[L; N],
    rows: &mut [&[f32]; N],
    y: &mut [Block; W],
) {
    let mut sums: [L; W] = std::array::from_fn(|w| L::load(&y[w]));
    for (x, row) in x.iter().zip(rows) {
        let (now, rest) = row.split_at(W * LANES);
        let (now, _) = now.as_chunks::<LANES>();
        for (sum, now) in sums.iter_mut().zip(now) {
            *sum = x.mul_add(L::load(now), *sum);
        }
        *row = rest;
    }
    for (sum, y) in sums.iter().zip(y) {
        sum.store(y);
    }
}

/// `y += x B` for some columns, which are contiguous.
struct Dots<'a> {
    x: &'a [f32],
    b: &'a [f32],
    col: usize,
    y: &'a mut [f32],
}

impl Body for Dots<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (many, few) = self.y.as_chunks_mut::<COLUMNS>();
        let mut at = 0;
        for y in many {
            dots::<L, COLUMNS>(self.x, &self.b[at..], self.col, y);
            at += COLUMNS * self.col;
        }
        for y in few {
            dots::<L, 1>(self.x, &self.b[at..], self.col, std::array::from_mut(y));
            at += self.col;
        }
    }
}

/// Adds `N` scalar products.
#[inline(always)]
fn dots<L: Lanes, const N: usize>(x: &[f32], b: &[f32], col: usize, y: &mut [f32; N]) {
    let b: [&[f32]; N] = std::array::from_fn(|j| &b[j * col..][..x.len()]);
    let (blocks, tail) = x.as_chunks::<LANES>();
    let lines: [&[Block]; N] = b.map(|b| &b.as_chunks::<LANES>().0[..blocks.len()]);
    let mut sums = [L::zero(); N];
    for (l, x) in blocks.iter().enumerate() {
        let x = L::load(x);
        for (sum, lines) in sums.iter_mut().zip(&lines) {
            *sum = x.mul_add(L::load(&lines[l]), *sum);
        }
    }
    if !tail.is_empty() {
        let (x, from) = (L::load_part(tail), blocks.len() * LANES);
        for (sum, b) in sums.iter_mut().zip(&b) {
            *sum = x.mul_add(L::load_part(&b[from..]), *sum);
        }
    }
    for (y, sum) in y.iter_mut().zip(sums) {
        *y += sum.reduce_add();
    }
}
