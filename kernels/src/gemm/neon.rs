//! Tiles of 128-bit vectors of aarch64: 6 rows by 16 columns.
//!
//! 6 x 4 vectors of sums, 4 of `B` and 1 of `A` fill 29 of 32 registers. There are no masks: a
//! short last sliver goes through 16 numbers on the stack.

use super::LANE;
use super::blocks::Blocks;
use super::pack;
use super::tile::{Kernels, Tile};
use std::arch::aarch64::*;

pub(super) static KERNELS: Kernels = Kernels {
    rows: 6,
    slivers: &[4, 3, 2, 1, 1, 1],
    tile: dispatch,
    copied: None,
    direct: None,
    pack: pack::plain,
    pack_a: pack::plain_a,
    blocks: Blocks::WIDE,
};

/// A sliver of one row.
type Quads = [float32x4_t; 4];

/// Picks the code for a tile's size.
///
/// # Safety
/// The CPU has NEON; the pointers of `t` reach as far as its sizes say.
unsafe fn dispatch(rows: usize, slivers: usize, t: &Tile) {
    macro_rules! pick {
        ($($r:literal: $($v:literal)+;)+) => {
            match (rows, slivers) {
                // SAFETY: the caller vouches for the CPU and for `t`.
                $($(($r, $v) => unsafe { tile::<$r, $v>(t) },)+)+
                _ => unreachable!("no tile of {rows} rows and {slivers} slivers"),
            }
        };
    }
    pick! {
        1: 1 2 3 4;
        2: 1 2 3;
        3: 1 2;
        4: 1;
        5: 1;
        6: 1;
    }
}

/// Reads the first `count` numbers of a sliver, zeros beyond.
///
/// # Safety
/// `count` numbers can be read at `at`; the CPU has NEON.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load(at: *const f32, count: usize) -> Quads {
    let mut room = [0.0f32; LANE];
    // SAFETY: all 16 numbers are in bounds, or `count` are copied to where 16 are.
    unsafe {
        let mut from = at;
        if count < LANE {
            std::ptr::copy_nonoverlapping(at, room.as_mut_ptr(), count);
            from = room.as_ptr();
        }
        [vld1q_f32(from), vld1q_f32(from.add(4)), vld1q_f32(from.add(8)), vld1q_f32(from.add(12))]
    }
}

/// Writes the first `count` numbers of a sliver.
///
/// # Safety
/// `count` numbers can be written at `at`; the CPU has NEON.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn store(at: *mut f32, count: usize, x: Quads) {
    let mut room = [0.0f32; LANE];
    // SAFETY: all 16 numbers are in bounds, or `count` are copied from where 16 are.
    unsafe {
        let to = if count < LANE { room.as_mut_ptr() } else { at };
        for (q, x) in x.into_iter().enumerate() {
            vst1q_f32(to.add(4 * q), x);
        }
        if count < LANE {
            std::ptr::copy_nonoverlapping(room.as_ptr(), at, count);
        }
    }
}

/// Computes a tile of `R` rows and `S` slivers.
///
/// # Safety
/// As [`dispatch`].
#[target_feature(enable = "neon")]
unsafe fn tile<const R: usize, const S: usize>(t: &Tile) {
    let count = |s: usize| if s + 1 == S { t.last } else { LANE };
    let mut sum = [[[vdupq_n_f32(0.0); 4]; S]; R];
    // SAFETY: rows `0..R` of A and C, rows `0..k` of B, and the columns of each sliver are in
    // bounds, as the caller vouches.
    unsafe {
        if t.from_c {
            for (r, row) in sum.iter_mut().enumerate() {
                for (s, quads) in row.iter_mut().enumerate() {
                    *quads = load(t.c.add(r * t.c_row + s * LANE), count(s));
                }
            }
        }
        let mut a = [t.a; R];
        for (r, a) in a.iter_mut().enumerate() {
            *a = t.a.add(r * t.a_row);
        }
        for l in 0..t.k {
            for s in 0..S {
                let b = load(t.b.add(l * t.b_row + s * t.b_sliver), count(s));
                for (row, a) in sum.iter_mut().zip(a) {
                    let x = vdupq_n_f32(*a.add(l * t.a_col));
                    for (sum, b) in row[s].iter_mut().zip(b) {
                        *sum = vfmaq_f32(*sum, x, b);
                    }
                }
            }
        }
        for (r, row) in sum.into_iter().enumerate() {
            for (s, mut quads) in row.into_iter().enumerate() {
                if !t.bias.is_null() {
                    let bias = load(t.bias.add(s * LANE), count(s));
                    for (x, b) in quads.iter_mut().zip(bias) {
                        *x = vaddq_f32(*x, b);
                    }
                }
                store(t.c.add(r * t.c_row + s * LANE), count(s), quads);
            }
        }
    }
}
