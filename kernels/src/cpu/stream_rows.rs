//! Some rows times the lines of a panel of f32 or bf16 weights ([`crate::stream`]): each line is loaded
//! once for all of them.

use super::lanes::{Block, Body, Lanes, dispatch};
use super::stream_lines::{Fetch, add_lines, high, low};
use crate::isa::{self, Isa};

/// Rows that share a line: four of them fill half of the registers of AVX-512 with sums.
pub(crate) const TOGETHER: usize = 4;
/// Most blocks of a panel.
const PANEL: usize = 4;

/// Adds each row times the weights to its sums, in ascending `k`: the bits of
/// [`add_lines`] for each row.
///
/// # Shapes
/// `x` `[TOGETHER][k]`; `lines` as in [`add_lines`]; `sums` `[TOGETHER][blocks]`, one to four.
pub(crate) fn add_lines_together(
    x: [&[f32]; TOGETHER],
    lines: &[Block],
    bf16: bool,
    blocks: usize,
    sums: &mut [[Block; PANEL]; TOGETHER],
) {
    let k = x[0].len();
    let words = if bf16 { k.div_ceil(2) } else { k };
    assert!(x.iter().all(|x| x.len() == k) && lines.len() == words * blocks);
    match (isa::active(), bf16) {
        (Isa::Avx512, false) => dispatch(Together::<false> { x, lines, blocks, sums }),
        (Isa::Avx512, true) => dispatch(Together::<true> { x, lines, blocks, sums }),
        // Elsewhere the sums of one row fill the registers.
        _ => {
            for (x, sums) in x.into_iter().zip(sums) {
                add_lines(x, lines, bf16, Fetch::None, &mut sums[..blocks]);
            }
        }
    }
}

struct Together<'a, const BF16: bool> {
    x: [&'a [f32]; TOGETHER],
    lines: &'a [Block],
    blocks: usize,
    sums: &'a mut [[Block; PANEL]; TOGETHER],
}

impl<const BF16: bool> Body for Together<'_, BF16> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        match self.blocks {
            1 => self.columns::<L, 1>(),
            2 => self.columns::<L, 2>(),
            3 => self.columns::<L, 3>(),
            4 => self.columns::<L, 4>(),
            blocks => unreachable!("a panel has one to four blocks, not {blocks}"),
        }
    }
}

impl<const BF16: bool> Together<'_, BF16> {
    #[inline(always)]
    fn columns<L: Lanes, const W: usize>(self) {
        let mut sums = [[L::zero(); W]; TOGETHER];
        for (sums, before) in sums.iter_mut().zip(&*self.sums) {
            for (sum, before) in sums.iter_mut().zip(before) {
                *sum = L::load(before);
            }
        }
        let k = self.x[0].len();
        let [x0, x1, x2, x3] = self.x;
        // One length for all: no place is checked in the loop.
        let x = [&x0[..k], &x1[..k], &x2[..k], &x3[..k]];
        let (rows, _) = self.lines.as_chunks::<W>();
        if BF16 {
            for (pair, row) in rows[..k / 2].iter().enumerate() {
                let mut words = [L::zero().bits(); W];
                for (words, line) in words.iter_mut().zip(row) {
                    *words = L::load(line).bits();
                }
                for (x, sums) in x.iter().zip(&mut sums) {
                    let (x, next) = (L::splat(x[2 * pair]), L::splat(x[2 * pair + 1]));
                    for (sum, words) in sums.iter_mut().zip(words) {
                        *sum = x.mul_add(low(words), *sum);
                        *sum = next.mul_add(high(words), *sum);
                    }
                }
            }
            if let (Some(row), true) = (rows.last(), k % 2 == 1) {
                for (x, sums) in x.iter().zip(&mut sums) {
                    for (sum, line) in sums.iter_mut().zip(row) {
                        *sum = L::splat(x[k - 1]).mul_add(low(L::load(line).bits()), *sum);
                    }
                }
            }
        } else {
            for (l, row) in rows[..k].iter().enumerate() {
                let mut line = [L::zero(); W];
                for (line, row) in line.iter_mut().zip(row) {
                    *line = L::load(row);
                }
                for (x, sums) in x.iter().zip(&mut sums) {
                    let x = L::splat(x[l]);
                    for (sum, line) in sums.iter_mut().zip(line) {
                        *sum = x.mul_add(line, *sum);
                    }
                }
            }
        }
        for (sums, finished) in sums.into_iter().zip(self.sums) {
            for (sum, finished) in sums.into_iter().zip(finished) {
                sum.store(finished);
            }
        }
    }
}
