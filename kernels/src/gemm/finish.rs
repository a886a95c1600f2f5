//! What happens to finished sums while their tile is still in the first-level cache.

use super::MatRef;
use crate::activation::{Activation, with_activation};
use crate::cpu::lanes::{Body, LANES, Lanes, dispatch};
use crate::cpu::map::Map;

/// What follows the sums of a product.
#[derive(Clone, Copy, Default)]
pub(super) struct Finish<'a> {
    /// Added to each row, in the store of a tile.
    pub bias: Option<&'a [f32]>,
    /// Applied to what a tile stored.
    pub activation: Option<Activation>,
    /// Added last; its rows are contiguous.
    pub residual: Option<MatRef<'a>>,
}

impl Finish<'_> {
    /// Whether the sums are all there is.
    pub(super) fn is_nothing(&self) -> bool {
        self.bias.is_none() && self.activation.is_none() && self.residual.is_none()
    }

    /// Applies all but the bias to a window of `C` at `c`, whose element `(0, 0)` is `(row, col)`.
    ///
    /// # Safety
    /// The window can be read and written, and lies inside of `C`.
    pub(super) unsafe fn apply(
        &self,
        c: *mut f32,
        c_row: usize,
        (row, col): (usize, usize),
        (rows, cols): (usize, usize),
    ) {
        if self.activation.is_none() && self.residual.is_none() {
            return;
        }
        for r in 0..rows {
            // SAFETY: the caller vouches for the window.
            let c = unsafe { std::slice::from_raw_parts_mut(c.add(r * c_row), cols) };
            let residual = self.residual.map(|x| &x.data[(row + r) * x.row_stride + col..][..cols]);
            let f = self.activation.unwrap_or(Activation::Identity);
            with_activation!(f, |f| dispatch(Row { f, residual, c }));
        }
    }
}

/// `c = f(c) (+ residual)`.
struct Row<'a, F> {
    f: F,
    residual: Option<&'a [f32]>,
    c: &'a mut [f32],
}

impl<F: Map> Body for Row<'_, F> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (c, c_tail) = self.c.as_chunks_mut::<LANES>();
        let Some(residual) = self.residual else {
            for c in c {
                self.f.apply(L::load(c)).store(c);
            }
            if !c_tail.is_empty() {
                self.f.apply(L::load_part(c_tail)).store_part(c_tail);
            }
            return;
        };
        let (residual, residual_tail) = residual.as_chunks::<LANES>();
        for (c, residual) in c.iter_mut().zip(residual) {
            self.f.apply(L::load(c)).add(L::load(residual)).store(c);
        }
        if !c_tail.is_empty() {
            let y = self.f.apply(L::load_part(c_tail)).add(L::load_part(residual_tail));
            y.store_part(c_tail);
        }
    }
}
