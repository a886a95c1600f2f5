//! Tiles in plain Rust: what the vector tiers do, one number at a time.
//!
//! A tile of 4 rows by 16 columns keeps its 64 sums close by; a step of `k` reads 4 numbers of `A`
//! and 16 of `B` and does 64 multiply-adds with them. That reuse is all there is to a fast product.

use super::LANE;
use super::blocks::Blocks;
use super::pack;
use super::tile::{Kernels, Tile};

pub(super) static KERNELS: Kernels = Kernels {
    rows: 4,
    slivers: &[1, 1, 1, 1],
    tile: dispatch,
    copied: None,
    direct: None,
    pack: pack::plain,
    pack_a: pack::plain_a,
    #[cfg(target_arch = "x86_64")]
    turned: None,
    blocks: Blocks::WIDE,
};

/// Picks the code for a tile's size.
///
/// # Safety
/// The pointers of `t` reach as far as its sizes say.
unsafe fn dispatch(rows: usize, slivers: usize, t: &Tile) {
    // SAFETY: handed on.
    unsafe {
        match (rows, slivers) {
            (1, 1) => tile::<1>(t),
            (2, 1) => tile::<2>(t),
            (3, 1) => tile::<3>(t),
            (4, 1) => tile::<4>(t),
            _ => unreachable!("no tile of {rows} rows and {slivers} slivers"),
        }
    }
}

/// Computes a tile of `R` rows and one sliver.
///
/// # Safety
/// As [`dispatch`].
unsafe fn tile<const R: usize>(t: &Tile) {
    let mut sum = [[0.0f32; LANE]; R];
    // SAFETY: rows `0..R`, sums `0..k` and columns `0..last` are in bounds, as the caller vouches.
    unsafe {
        if t.from_c {
            for (r, row) in sum.iter_mut().enumerate() {
                for (j, s) in row[..t.last].iter_mut().enumerate() {
                    *s = *t.c.add(r * t.c_row + j);
                }
            }
        }
        for l in 0..t.k {
            let mut b = [0.0; LANE];
            for (j, b) in b[..t.last].iter_mut().enumerate() {
                *b = *t.b.add(l * t.b_row + j);
            }
            for (r, row) in sum.iter_mut().enumerate() {
                let a = *t.a.add(r * t.a_row + l * t.a_col);
                for (s, b) in row.iter_mut().zip(b) {
                    // Not `mul_add`: without a fused instruction it is a call of hundreds of cycles.
                    *s += a * b;
                }
            }
        }
        for (r, row) in sum.iter().enumerate() {
            for (j, s) in row[..t.last].iter().enumerate() {
                let bias = if t.bias.is_null() { 0.0 } else { *t.bias.add(j) };
                *t.c.add(r * t.c_row + j) = s + bias;
            }
        }
    }
}
