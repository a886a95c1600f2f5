//! A matrix product from three loops to the machine's limit, one idea a step.
//!
//! Every step computes `C = A B` for row-major `a` `[m, k]`, `b` `[k, n]`, `c` `[m, n]`. Each is a plain
//! function that a bench can time: what an idea buys on a machine is the step's share of its peak.

use super::Step;
use crate::cpu::lanes::{Body, LANES, Lanes, dispatch};
use crate::gemm::{MatMut, MatRef, gemm_forward};
use std::ops::Range;

/// A product: `a`, `b`, `c`, `m`, `n`, `k`.
pub type Product = fn(&[f32], &[f32], &mut [f32], usize, usize, usize);

/// The steps, slowest first. The last is [`gemm_forward`], which uses the threads at hand.
pub const STEPS: &[Step<Product>] = &[
    Step {
        name: "naive",
        why: "the definition: each element is the sum over a row of A and a column of B",
        run: naive,
    },
    Step {
        name: "loop order",
        why: "the innermost loop runs along rows of B and C, so cache lines are used whole",
        run: loop_order,
    },
    Step {
        name: "blocked",
        why: "a block of B is used by all rows of A while it is in the cache",
        run: blocked,
    },
    Step {
        name: "packed",
        why: "the block is copied to where it is contiguous: few pages, no conflicts",
        run: packed,
    },
    Step {
        name: "vectorised",
        why: "a tile of C stays in registers, so a number that was loaded is used many times",
        run: tiled,
    },
    Step {
        name: "threaded",
        why: "windows of C go to the threads, and tiles and blocks fit the machine: the kernel itself",
        run: threaded,
    },
];

/// Rows and columns of a block of `B`: 128 KiB, part of the second-level cache.
const BLOCK: (usize, usize) = (256, 128);
/// Rows and columns of a tile: its sums, a row of `B` and a number of `A` fit 32 registers of any width.
const TILE: (usize, usize) = (6, LANES);

/// The definition. Neighbours in a column of `B` lie `n` apart: each costs a cache line.
fn naive(a: &[f32], b: &[f32], c: &mut [f32], m: usize, n: usize, k: usize) {
    for i in 0..m {
        for j in 0..n {
            c[i * n + j] = (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
        }
    }
}

/// `C` grows by one row of `B` at a time, which the compiler can vectorise.
fn loop_order(a: &[f32], b: &[f32], c: &mut [f32], m: usize, n: usize, k: usize) {
    c.fill(0.0);
    for i in 0..m {
        for l in 0..k {
            add_row(a[i * k + l], &b[l * n..(l + 1) * n], &mut c[i * n..(i + 1) * n]);
        }
    }
}

/// `c += a * b`.
fn add_row(a: f32, b: &[f32], c: &mut [f32]) {
    for (c, b) in c.iter_mut().zip(b) {
        *c += a * b;
    }
}

/// Calls `f` with the rows and columns of each block of `B`.
fn blocks(n: usize, k: usize, mut f: impl FnMut(Range<usize>, Range<usize>)) {
    for l in (0..k).step_by(BLOCK.0) {
        for j in (0..n).step_by(BLOCK.1) {
            f(l..(l + BLOCK.0).min(k), j..(j + BLOCK.1).min(n));
        }
    }
}

/// The same for a block of `B` at a time.
fn blocked(a: &[f32], b: &[f32], c: &mut [f32], m: usize, n: usize, k: usize) {
    c.fill(0.0);
    blocks(n, k, |rows, cols| {
        for i in 0..m {
            let c = &mut c[i * n..][cols.clone()];
            for l in rows.clone() {
                add_row(a[i * k + l], &b[l * n..][cols.clone()], c);
            }
        }
    });
}

/// The same with the block copied first.
fn packed(a: &[f32], b: &[f32], c: &mut [f32], m: usize, n: usize, k: usize) {
    c.fill(0.0);
    let mut block = Vec::with_capacity(BLOCK.0 * BLOCK.1);
    blocks(n, k, |rows, cols| {
        block.clear();
        rows.clone().for_each(|l| block.extend_from_slice(&b[l * n..][cols.clone()]));
        for i in 0..m {
            let c = &mut c[i * n..][cols.clone()];
            for (l, b) in rows.clone().zip(block.chunks_exact(cols.len())) {
                add_row(a[i * k + l], b, c);
            }
        }
    });
}

/// Blocks are packed in slivers as wide as a tile, and tiles are computed in vector registers.
fn tiled(a: &[f32], b: &[f32], c: &mut [f32], m: usize, n: usize, k: usize) {
    c.fill(0.0);
    let mut slivers = Vec::with_capacity(BLOCK.0 * BLOCK.1 / LANES);
    blocks(n, k, |rows, cols| {
        slivers.clear();
        for j in cols.clone().step_by(LANES) {
            let width = LANES.min(cols.end - j);
            for l in rows.clone() {
                let mut line = [0.0; LANES];
                line[..width].copy_from_slice(&b[l * n + j..][..width]);
                slivers.push(line);
            }
        }
        for (j, b) in cols.clone().step_by(LANES).zip(slivers.chunks_exact(rows.len())) {
            for i in (0..m).step_by(TILE.0) {
                let a = &a[i * k + rows.start..];
                let c = &mut c[i * n + j..];
                let height = TILE.0.min(m - i);
                dispatch(Tile { a, b, c, height, width: LANES.min(cols.end - j), k, n });
            }
        }
    });
}

/// A tile of up to 6 rows by 16 columns: `c += a b`.
struct Tile<'a> {
    a: &'a [f32],
    b: &'a [[f32; LANES]],
    c: &'a mut [f32],
    height: usize,
    width: usize,
    k: usize,
    n: usize,
}

impl Body for Tile<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let mut sums = [L::zero(); TILE.0];
        // Rows beyond the last repeat it, so that there is one loop for all heights.
        let rows: [&[f32]; TILE.0] =
            std::array::from_fn(|r| &self.a[r.min(self.height - 1) * self.k..][..self.b.len()]);
        for (l, b) in self.b.iter().enumerate() {
            let b = L::load(b);
            for (sum, row) in sums.iter_mut().zip(rows) {
                *sum = L::splat(row[l]).mul_add(b, *sum);
            }
        }
        for (r, sum) in sums.into_iter().enumerate().take(self.height) {
            let mut line = [0.0; LANES];
            sum.store(&mut line);
            for (c, x) in self.c[r * self.n..][..self.width].iter_mut().zip(line) {
                *c += x;
            }
        }
    }
}

/// The product itself.
fn threaded(a: &[f32], b: &[f32], c: &mut [f32], m: usize, n: usize, k: usize) {
    gemm_forward(MatRef::new(a, m, k), MatRef::new(b, k, n), &mut MatMut::new(c, m, n), false);
}
