//! Several rows with the weights of a stream: each row has the bits that it has alone.
//!
//! A panel of weights comes from memory once and meets all rows while it is near. So reading a
//! primer costs its arithmetic, not a stream of all weights for each of its tokens.

use super::{Ahead, PANEL, Precision, Row, StreamedB};
use crate::cpu::dot_int8::{dot_int8, quantise};
use crate::cpu::lanes::{Block, LANES};
use crate::cpu::shared::{Shared, with_scratch};
use crate::cpu::stream_lines::{Fetch, add_lines};
use crate::cpu::stream_rows::{TOGETHER, add_lines_together};
use crate::threads::parallel_for;

/// Computes [`stream_forward`](super::stream_forward) of several rows.
pub(super) fn forward(
    x: &[f32],
    w: &StreamedB,
    bias: Option<&[f32]>,
    y: &mut [f32],
    accumulate: bool,
) {
    let (k, n) = (w.k(), w.n);
    let rows = y.len().checked_div(n).unwrap_or(0);
    assert_eq!((x.len(), y.len()), (rows * k, rows * n));
    let each = Row::room(k, w.precision);
    let y = Shared::new(y);
    with_scratch(rows * (each + 1), |room| {
        let (scales, whole) = room.split_at_mut(rows);
        let (mut numbers, mut width) = (x, k);
        if w.precision == Precision::Int8 {
            for (row, scale) in scales.iter_mut().enumerate() {
                let bytes = &mut whole[row * each..(row + 1) * each];
                *scale = quantise(&x[row * k..(row + 1) * k], bytemuck::cast_slice_mut(bytes));
            }
            numbers = whole;
            width = each;
        }
        let rows = Numbers { numbers, width, scales };
        parallel_for(w.panels(), 1, |panels| {
            for panel in panels {
                w.panel_of_rows(panel, &rows, bias, &y, accumulate);
            }
        });
    });
}

/// Rows as a product reads them ([`Row`]).
struct Numbers<'a> {
    /// `[rows][width]`
    numbers: &'a [f32],
    width: usize,
    /// The units of the rows, for int8 weights.
    scales: &'a [f32],
}

impl Numbers<'_> {
    fn row(&self, at: usize) -> Row<'_> {
        let numbers = &self.numbers[at * self.width..(at + 1) * self.width];
        Row { numbers, scale: self.scales[at] }
    }
}

impl StreamedB {
    /// Computes the columns of a panel for all rows.
    fn panel_of_rows(
        &self,
        panel: usize,
        rows: &Numbers,
        bias: Option<&[f32]>,
        y: &Shared<f32>,
        accumulate: bool,
    ) {
        let blocks = self.blocks_of(panel);
        let columns = blocks.start * LANES..(blocks.end * LANES).min(self.n);
        let count = rows.scales.len();
        for first in (0..count).step_by(TOGETHER) {
            let mut sums = [[[0.0; LANES]; PANEL]; TOGETHER];
            let sums = &mut sums[..TOGETHER.min(count - first)];
            let of = |row: usize| {
                let start = (first + row) * self.n;
                // SAFETY: tasks take panels of their own, and rows come one after another.
                unsafe { y.slice(start + columns.start..start + columns.end) }
            };
            if accumulate {
                for (row, sums) in sums.iter_mut().enumerate() {
                    sums.as_flattened_mut()[..columns.len()].copy_from_slice(of(row));
                }
            }
            self.add_rows(panel, rows, first, sums);
            for (row, sums) in sums.iter().enumerate() {
                let y = of(row);
                y.copy_from_slice(&sums.as_flattened()[..columns.len()]);
                if let Some(bias) = bias {
                    y.iter_mut().zip(&bias[columns.clone()]).for_each(|(y, bias)| *y += bias);
                }
            }
        }
    }

    /// Adds rows from `first` on, times the matrix, to the sums of a panel, one for each row.
    fn add_rows(&self, panel: usize, rows: &Numbers, first: usize, sums: &mut [[Block; PANEL]]) {
        let lines = &self.lines[self.lines_of(panel, 0)];
        let blocks = self.blocks_of(panel).len();
        let bf16 = self.precision == Precision::Bf16;
        if self.precision == Precision::Int8 {
            for (at, sums) in sums.iter_mut().enumerate() {
                self.add_whole(panel, rows.row(first + at), Fetch::None, &mut sums[..blocks]);
            }
        } else if let Ok(sums) = <&mut [_; TOGETHER]>::try_from(&mut *sums) {
            let x = std::array::from_fn(|at| rows.row(first + at).numbers);
            add_lines_together(x, lines, bf16, blocks, sums);
        } else {
            for (at, sums) in sums.iter_mut().enumerate() {
                let x = rows.row(first + at).numbers;
                add_lines(x, lines, bf16, Fetch::None, &mut sums[..blocks]);
            }
        }
    }

    /// Adds a row of whole numbers times the matrix to the sums of a panel.
    fn add_whole(&self, panel: usize, x: Row, how: Fetch, sums: &mut [Block]) {
        let (lines, columns) = (&self.lines[self.lines_of(panel, 0)], self.blocks_of(panel));
        let mut whole = [[0; LANES]; PANEL];
        let whole = &mut whole[..columns.len()];
        dot_int8(x.numbers, lines, &self.offsets[columns.clone()], how, whole);
        for ((sums, whole), scales) in sums.iter_mut().zip(whole).zip(&self.scales[columns]) {
            for lane in 0..LANES {
                sums[lane] += whole[lane] as f32 * (x.scale * scales[lane]);
            }
        }
    }

    /// Is asked for as `other` is from now on, between whose rounds it is read.
    pub fn read_beside(&mut self, other: &StreamedB) {
        (self.ahead, self.leads) = (other.ahead.clone(), false);
    }

    /// Adds a row times the last `y.len()` columns to `y`: whoever looks back some steps wants so many
    /// distances, the nearest last.
    ///
    /// # Panics
    /// If there are fewer columns, or several matrices or gates.
    pub(crate) fn add_last(&self, x: Row, y: &mut [f32]) {
        assert_eq!((self.k.len(), self.gates), (1, 1));
        let from = self.n - y.len();
        let how = self.ahead.as_deref().map_or(Fetch::None, Ahead::how);
        // From the panel on that holds the first of them.
        let first = self.firsts.partition_point(|block| block * LANES <= from) - 1;
        for panel in first..self.panels() {
            let blocks = self.blocks_of(panel);
            let start = blocks.start * LANES;
            let columns = start.max(from)..(blocks.end * LANES).min(self.n);
            let mut sums = [[0.0; LANES]; PANEL];
            let sums = &mut sums[..blocks.len()];
            match self.precision {
                Precision::Int8 => self.add_whole(panel, x, how, sums),
                precision => {
                    let lines = &self.lines[self.lines_of(panel, 0)];
                    let bf16 = precision == Precision::Bf16;
                    add_lines(x.numbers, lines, bf16, how, sums);
                }
            }
            let found = &sums.as_flattened()[columns.start - start..columns.end - start];
            let y = &mut y[columns.start - from..columns.end - from];
            y.iter_mut().zip(found).for_each(|(y, found)| *y += found);
        }
    }
}
