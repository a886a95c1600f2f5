//! Products where the CPU has none of bf16 pairs: rounded to bf16, widened to f32, multiplied as f32.
//!
//! Few rows times a `B` that is stored as bf16 widen its numbers as they read them: the order of adds,
//! and the bits, are the same.

use super::{Numbers, Operand};
#[cfg(target_arch = "x86_64")]
use crate::gemm::few;
use crate::gemm::{MatMut, MatRef, PackedB, gemm_forward, gemm_packed_alone, gemm_packed_forward};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use std::cell::RefCell;

thread_local! {
    /// Room for the two operands and a result; it keeps its size.
    static WIDE: RefCell<[Vec<f32>; 3]> = const { RefCell::new([const { Vec::new() }; 3]) };
}

/// Lends `f` the room of this thread.
fn with_room<R>(f: impl FnOnce(&mut [Vec<f32>; 3]) -> R) -> R {
    // Taken out while in use: the product may run other work on this thread, even this function.
    let mut room = WIDE.take();
    let result = f(&mut room);
    WIDE.replace(room);
    result
}

/// The first numbers of a room that only grows.
fn at_least(room: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if room.len() < len {
        room.resize(len, 0.0);
    }
    &mut room[..len]
}

/// Rounds to bf16, to nearest even, and widens again. NaN stays NaN.
#[inline(always)]
fn round(x: f32) -> f32 {
    let bits = x.to_bits();
    let up = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    f32::from_bits(if x.is_nan() { bits | 0x40_0000 } else { up } & 0xffff_0000)
}

/// Copies an operand, rounded, in the order of its shorter stride, so that rows or columns stay
/// contiguous.
fn rounded<'a>(x: Operand, room: &'a mut Vec<f32>) -> MatRef<'a> {
    if x.col_stride > x.row_stride {
        return rounded(x.t(), room).t();
    }
    let to = at_least(room, x.rows * x.cols);
    for (r, row) in to.chunks_exact_mut(x.cols.max(1)).enumerate() {
        let at = r * x.row_stride;
        match x.numbers {
            Numbers::F32(from) if x.col_stride == 1 => {
                row.iter_mut().zip(&from[at..]).for_each(|(y, x)| *y = round(*x));
            }
            Numbers::Bf16(from) if x.col_stride == 1 => {
                from[at..at + row.len()].convert_to_f32_slice(row);
            }
            Numbers::F32(from) => {
                row.iter_mut()
                    .enumerate()
                    .for_each(|(c, y)| *y = round(from[at + c * x.col_stride]));
            }
            Numbers::Bf16(from) => {
                row.iter_mut()
                    .enumerate()
                    .for_each(|(c, y)| *y = from[at + c * x.col_stride].to_f32());
            }
        }
    }
    MatRef::new(to, x.rows, x.cols)
}

/// Packs `b`, rounded.
pub(super) fn pack(b: Operand, packed: &mut PackedB) {
    with_room(|[_, room, _]| packed.pack(rounded(b, room)));
}

pub(super) fn product(a: Operand, b: Operand, c: &mut MatMut, accumulate: bool) {
    with_room(|[x, y, _]| some_product(a, b, [x, y], c, accumulate));
}

/// [`product`] with room for the operands.
fn some_product(
    a: Operand,
    b: Operand,
    [x, y]: [&mut Vec<f32>; 2],
    c: &mut MatMut,
    accumulate: bool,
) {
    let a = rounded(a, x);
    #[cfg(target_arch = "x86_64")]
    if let Numbers::Bf16(data) = b.numbers
        && few::fits(a.rows, b.row_stride, b.col_stride)
    {
        // Few rows: to widen all of B would take far longer than to multiply.
        let columns = if a.rows == 1 && a.col_stride == 1 {
            &a.data[..a.cols]
        } else {
            let y = at_least(y, a.rows * a.cols);
            for (l, column) in y.chunks_exact_mut(a.rows.max(1)).enumerate() {
                for (r, x) in column.iter_mut().enumerate() {
                    *x = a.data[r * a.row_stride + l * a.col_stride];
                }
            }
            y
        };
        let b = few::Narrow { data, row: b.row_stride, col: b.col_stride };
        return few::bf16_product(columns, b, c, accumulate);
    }
    gemm_forward(a, rounded(b, y), c, accumulate);
}

pub(super) fn rounded_product(a: Operand, b: Operand, c: &mut [bf16]) {
    with_room(|[x, y, z]| {
        let z = at_least(z, c.len());
        some_product(a, b, [x, y], &mut MatMut::new(z, a.rows, b.cols), false);
        c.convert_from_f32_slice(z);
    });
}

pub(super) fn packed_product(
    a: Operand,
    b: &PackedB,
    bias: Option<&[f32]>,
    c: &mut MatMut,
    accumulate: bool,
) {
    with_room(|[x, ..]| gemm_packed_forward(rounded(a, x), b, bias, c, accumulate));
}

pub(super) fn packed_product_alone(
    a: Operand,
    b: &PackedB,
    bias: Option<&[f32]>,
    c: &mut MatMut,
    accumulate: bool,
    before_tile: &dyn Fn(),
) {
    with_room(|[x, ..]| gemm_packed_alone(rounded(a, x), b, bias, c, accumulate, before_tile));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_format() {
        let numbers = (0..=u32::MAX).step_by(65_521).chain([0x7f7f_ffff, 0x3f80_8000, 0x3f81_8000]);
        for x in numbers.map(f32::from_bits) {
            let (got, want) = (round(x), bf16::from_f32(x).to_f32());
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{x:e}");
        }
    }
}
