//! The products of one block: `C = A B` or `C = C + A B`, row group by row group.
//!
//! A block of scores is ragged (a causal edge, a window, a skew), so each group of rows says which
//! columns it wants and over which part of the sum. Inside of a group the sums of a few rows by a few
//! vectors stay in registers; every sum is one chain of multiply-adds in ascending order, so its bits
//! do not depend on how a block is cut.

use crate::cpu::lanes::{Block, Body, LANES, Lanes, dispatch};
use crate::isa::{self, Isa};

/// Some rows of `C`, the part of the sum that they need, and the vectors of columns.
#[derive(Clone, Copy)]
pub(super) struct Group {
    pub row: usize,
    /// First and one past the last product of each sum.
    pub sum: (usize, usize),
    /// First and one past the last vector of columns.
    pub slivers: (usize, usize),
}

/// Where the matrices of a block lie.
pub(super) struct Product<'a> {
    pub a: &'a [f32],
    /// Elements from a row of `A` to the next, and from a product to the next: one of them is 1.
    pub a_row: usize,
    pub a_col: usize,
    pub b: &'a [f32],
    /// Elements from a row of `B` to the next, and from a vector of columns to the next.
    pub b_row: usize,
    pub b_sliver: usize,
    pub c: &'a mut [f32],
    pub c_row: usize,
    /// Whether `C` is added to.
    pub accumulate: bool,
}

/// Rows of a group, where the columns are `slivers` vectors wide (a multiple of it divides 48).
pub(super) fn height(slivers: usize) -> usize {
    match isa::active() {
        // 8 x 3 or 6 x 4 sums fill 24 of 32 registers.
        Isa::Avx512 if slivers.is_multiple_of(4) => 6,
        Isa::Avx512 => 8,
        // A vector is two or four registers there: 6 x 1.
        Isa::Avx2 | Isa::Neon => 6,
        Isa::Scalar => 2,
    }
}

impl Product<'_> {
    /// Computes all groups; each has [`height`]`(slivers)` rows.
    pub(super) fn run(self, groups: &[Group], slivers: usize) {
        match (isa::active(), self.a_row == 1, slivers.is_multiple_of(4)) {
            (Isa::Avx512, true, true) => dispatch(Tiles::<6, 4, true, true>(self, groups)),
            (Isa::Avx512, false, true) => dispatch(Tiles::<6, 4, false, true>(self, groups)),
            (Isa::Avx512, true, false) => dispatch(Tiles::<8, 3, true, true>(self, groups)),
            (Isa::Avx512, false, false) => dispatch(Tiles::<8, 3, false, true>(self, groups)),
            (Isa::Scalar, true, _) => dispatch(Tiles::<2, 1, true, false>(self, groups)),
            (Isa::Scalar, false, _) => dispatch(Tiles::<2, 1, false, false>(self, groups)),
            (_, true, _) => dispatch(Tiles::<6, 1, true, true>(self, groups)),
            (_, false, _) => dispatch(Tiles::<6, 1, false, true>(self, groups)),
        }
    }
}

/// Groups of `R` rows by at most `V` vectors at a time. `ACROSS`: rows of `A` are neighbours, else
/// its products are. `FUSED`: without a fused instruction a multiply-add is a slow call.
struct Tiles<'a, const R: usize, const V: usize, const ACROSS: bool, const FUSED: bool>(
    Product<'a>,
    &'a [Group],
);

impl<const R: usize, const V: usize, const ACROSS: bool, const FUSED: bool> Body
    for Tiles<'_, R, V, ACROSS, FUSED>
{
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Tiles(mut p, groups) = self;
        for group in groups {
            let (first, last) = group.slivers;
            if first >= last || (group.sum.0 >= group.sum.1 && p.accumulate) {
                continue;
            }
            p.check(group, R);
            let strips = (last - first).div_ceil(V);
            let (width, wider) = ((last - first) / strips, (last - first) % strips);
            let mut sliver = first;
            for strip in 0..strips {
                let here = width + usize::from(strip < wider);
                // SAFETY: `check` found all operands of the group in bounds.
                unsafe {
                    match here {
                        1 => p.tile::<L, R, 1, ACROSS, FUSED>(group, sliver),
                        2 if V >= 2 => p.tile::<L, R, 2, ACROSS, FUSED>(group, sliver),
                        3 if V >= 3 => p.tile::<L, R, 3, ACROSS, FUSED>(group, sliver),
                        4 if V >= 4 => p.tile::<L, R, 4, ACROSS, FUSED>(group, sliver),
                        _ => unreachable!("no tile of {here} vectors"),
                    }
                }
                sliver += here;
            }
        }
    }
}

impl Product<'_> {
    /// Asserts that what a group of `rows` rows touches lies inside of the operands.
    #[inline(always)]
    fn check(&self, group: &Group, rows: usize) {
        let last = group.slivers.1 - 1;
        let row = group.row + rows - 1;
        assert!(row * self.c_row + (last + 1) * LANES <= self.c.len());
        if group.sum.0 < group.sum.1 {
            let sum = group.sum.1 - 1;
            assert!(row * self.a_row + sum * self.a_col < self.a.len());
            assert!(sum * self.b_row + last * self.b_sliver + LANES <= self.b.len());
        }
    }

    /// Computes `R` rows by `V` vectors from `sliver` on.
    ///
    /// # Safety
    /// [`Product::check`] accepted the group, and the vectors are among its own.
    #[inline(always)]
    unsafe fn tile<
        L: Lanes,
        const R: usize,
        const V: usize,
        const ACROSS: bool,
        const FUSED: bool,
    >(
        &mut self,
        group: &Group,
        sliver: usize,
    ) {
        let (a_row, a_col) = if ACROSS { (1, self.a_col) } else { (self.a_row, 1) };
        let (from, to) = group.sum;
        let mut sum = [[L::zero(); V]; R];
        // SAFETY: rows, columns and products are in bounds, as the caller vouches.
        unsafe {
            let c = self.c.as_mut_ptr().add(group.row * self.c_row + sliver * LANES);
            if self.accumulate {
                for (r, row) in sum.iter_mut().enumerate() {
                    for (v, sum) in row.iter_mut().enumerate() {
                        *sum = L::load(&*c.add(r * self.c_row + v * LANES).cast::<Block>());
                    }
                }
            }
            let mut a = self.a.as_ptr().wrapping_add(group.row * a_row + from * a_col);
            let mut b = self.b.as_ptr().wrapping_add(from * self.b_row + sliver * self.b_sliver);
            for _ in from..to {
                let mut columns = [L::zero(); V];
                for (v, column) in columns.iter_mut().enumerate() {
                    *column = L::load(&*b.add(v * self.b_sliver).cast::<Block>());
                }
                for (r, row) in sum.iter_mut().enumerate() {
                    let x = L::splat(*a.add(r * a_row));
                    for (sum, column) in row.iter_mut().zip(columns) {
                        *sum = if FUSED { x.mul_add(column, *sum) } else { sum.add(x.mul(column)) };
                    }
                }
                a = a.wrapping_add(a_col);
                b = b.wrapping_add(self.b_row);
            }
            for (r, row) in sum.into_iter().enumerate() {
                for (v, sum) in row.into_iter().enumerate() {
                    sum.store(&mut *c.add(r * self.c_row + v * LANES).cast::<Block>());
                }
            }
        }
    }
}
