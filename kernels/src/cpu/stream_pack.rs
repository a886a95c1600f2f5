//! Weights brought into the order of a stream ([`crate::stream`]), sixteen columns at a time.

use super::dot_int8::ROUND;
use super::lanes::{Block, Body, LANES, Lanes, dispatch};
use crate::gemm::{MatRef, pack_slivers};
use crate::stream::Precision;
use std::ops::Range;

/// Rows of sixteen columns that are brought together at a time (8 KiB): a multiple of those in a line.
const ROWS: usize = 128;

/// Where the lines of sixteen columns lie: one of each `step`.
pub(crate) struct Lines<'a> {
    pub lines: &'a mut [Block],
    pub first: usize,
    pub step: usize,
}

/// Rows of sixteen columns side by side, while they are packed.
pub(crate) type Room = [Block; ROWS];

/// Room for [`pack_columns`], for any number of its calls.
pub(crate) fn room() -> Room {
    [[0.0; LANES]; ROWS]
}

/// What whole numbers need beside their lines: the units of the columns, and their sums.
pub(crate) type Units = (Block, [i32; LANES]);

/// Packs sixteen columns of `b`, or fewer, and zeros in their place; of whole numbers returns the
/// units and the sums.
pub(crate) fn pack_columns(
    b: &MatRef,
    columns: Range<usize>,
    precision: Precision,
    room: &mut Room,
    to: Lines,
) -> Units {
    let (mut units, mut sums) = ([0.0; LANES], [0; LANES]);
    if precision == Precision::Int8 {
        let mut largest = [0.0; LANES];
        for from in (0..b.rows).step_by(ROWS) {
            let rows = gather(b, columns.clone(), from, room);
            dispatch(Largest { rows, largest: &mut largest });
        }
        units = largest.map(|x| x / 127.0);
    }
    for from in (0..b.rows).step_by(ROWS) {
        let rows = gather(b, columns.clone(), from, room).len();
        // Zeros make the last line whole.
        let each = precision.rows();
        let whole = rows.next_multiple_of(each);
        room[rows..whole].fill([0.0; LANES]);
        let to = to.lines[to.first..].iter_mut().step_by(to.step).skip(from / each);
        let rows = &room[..whole];
        match precision {
            Precision::F32 => to.zip(rows).for_each(|(line, row)| *line = *row),
            Precision::Bf16 => dispatch(Halves { rows, to }),
            Precision::Int8 => dispatch(Bytes { rows, units: &units, sums: &mut sums, to }),
        }
    }
    (units, sums)
}

/// Copies rows `from..` of some columns, as many as there are and as have room.
fn gather<'a>(b: &MatRef, columns: Range<usize>, from: usize, room: &'a mut Room) -> &'a [Block] {
    let count = (b.rows - from).min(ROWS);
    let rows = &mut room[..count];
    if columns.len() < LANES {
        rows.fill([0.0; LANES]);
    }
    if b.row_stride == 1 {
        let data = &b.data[columns.start * b.col_stride + from..];
        let (sizes, room) = ((count, columns.len()), rows.as_flattened_mut());
        pack_slivers(data, b.col_stride, sizes, room, count * LANES);
    } else {
        for (l, row) in rows.iter_mut().enumerate() {
            let at = (from + l) * b.row_stride + columns.start * b.col_stride;
            if b.col_stride == 1 {
                row[..columns.len()].copy_from_slice(&b.data[at..at + columns.len()]);
            } else {
                let column = |lane| b.data[at + lane * b.col_stride];
                (0..columns.len()).for_each(|lane| row[lane] = column(lane));
            }
        }
    }
    rows
}

/// The largest number of each column without its sign; NaN if there is one.
struct Largest<'a> {
    rows: &'a [Block],
    largest: &'a mut Block,
}

impl Body for Largest<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let mut largest = L::load(self.largest);
        for row in self.rows {
            let x = L::load(row).abs();
            // `max` keeps a NaN on its right alone.
            largest = L::select(x.eq(x), x.max(largest), x);
        }
        largest.store(self.largest);
    }
}

/// Two rows in a line: rounded to bf16, to nearest even, the first in the low halves.
struct Halves<'a, T> {
    rows: &'a [Block],
    to: T,
}

/// The bits of a bf16 in the upper half of each lane; the lower half is anything.
#[inline(always)]
fn rounded<L: Lanes>(x: L) -> L::Ints {
    let bits = x.bits();
    let odd = L::and(L::shift_right::<16>(bits), L::ints(1));
    let up = L::int_add(L::int_add(bits, L::ints(0x7fff)), odd);
    let nan = L::or(bits, L::ints(0x0040_0000));
    L::select(x.eq(x), L::from_bits(up), L::from_bits(nan)).bits()
}

impl<'a, T: Iterator<Item = &'a mut Block>> Body for Halves<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (pairs, _) = self.rows.as_chunks::<2>();
        for ([low, high], line) in pairs.iter().zip(self.to) {
            let (low, high) = (rounded(L::load(low)), rounded(L::load(high)));
            let low = L::and(L::shift_right::<16>(low), L::ints(0xffff));
            let high = L::and(high, L::ints(0xffff_0000_u32 as i32));
            L::from_bits(L::or(low, high)).store(line);
        }
    }
}

/// Four rows in a line: whole numbers in units of their columns; nothing is 0 in units of nothing.
struct Bytes<'a, T> {
    rows: &'a [Block],
    units: &'a Block,
    sums: &'a mut [i32; LANES],
    to: T,
}

impl<'a, T: Iterator<Item = &'a mut Block>> Body for Bytes<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let units = L::load(self.units);
        let some = units.gt(L::zero());
        let mut sums = L::load(&self.sums.map(|x| f32::from_bits(x as u32))).bits();
        let (quads, _) = self.rows.as_chunks::<4>();
        for (quad, line) in quads.iter().zip(self.to) {
            let mut word = L::ints(0);
            for row in quad.iter().rev() {
                // As weight files are written, so that what was read from one is packed without loss.
                let x = L::load(row).div(units).add(L::splat(ROUND));
                let x = L::select(some, x, L::zero()).bits();
                // A byte at the upper end of its lane: with its sign, and in its place.
                let x = L::shift_left::<24>(x);
                sums = L::int_add(sums, L::shift_right::<24>(x));
                let byte = L::and(L::shift_right::<24>(x), L::ints(0xff));
                word = L::or(L::shift_left::<8>(word), byte);
            }
            L::from_bits(word).store(line);
        }
        let mut block = [0.0; LANES];
        L::from_bits(sums).store(&mut block);
        *self.sums = block.map(|x| x.to_bits() as i32);
    }
}
