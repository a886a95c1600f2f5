//! Matrix products: `C = A B`, `C = C + A B`, with packed weights, and with a bias, an activation and
//! a residual applied while the sums are near.
//!
//! An element of `C` has the same bits (on one tier) whatever `m` and `n` are, however `A` and `B`
//! are stored, packed or not, and for any number of threads: `gemm/tile.rs` says why. A sequence may
//! therefore be cut by batch rows without changing a bit. The one exception is a single row times columns
//! that are contiguous and not packed: those are scalar products, see `gemm/one.rs`.
//!
//! # Source
//! Loops and packing after Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication".

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod blocks;
#[cfg(target_arch = "x86_64")]
mod direct;
mod drive;
#[cfg(target_arch = "x86_64")]
pub(crate) mod few;
mod finish;
#[cfg(target_arch = "aarch64")]
mod neon;
mod one;
mod pack;
mod scalar;
mod tall;
mod tile;
#[cfg(target_arch = "x86_64")]
mod turned;

use crate::activation::Activation;
use crate::pages::Pages;
#[cfg(target_arch = "x86_64")]
pub(crate) use drive::Grain;
use drive::{Right, Shared};
use finish::Finish;
#[cfg(target_arch = "x86_64")]
pub(crate) use pack::columns_of;

/// Columns of a sliver: one 512-bit vector, two of AVX2, four of NEON.
const LANE: usize = 16;

/// A cache line of floats: what packed matrices are made of, so that they are aligned.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANE]);

impl Line {
    const ZERO: Line = Line([0.0; LANE]);
}

/// A matrix that is read: any strides, in elements.
#[derive(Clone, Copy)]
pub struct MatRef<'a> {
    /// The elements; element `(r, c)` is `data[r * row_stride + c * col_stride]`.
    pub data: &'a [f32],
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one column to the next.
    pub col_stride: usize,
}

impl<'a> MatRef<'a> {
    /// Views a contiguous row-major `[rows, cols]` slice.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols, 1)
    }

    /// Views a slice with strides.
    ///
    /// # Panics
    /// If the last element lies outside of `data`.
    pub fn strided(
        data: &'a [f32],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Self {
        if rows > 0 && cols > 0 {
            assert!((rows - 1) * row_stride + (cols - 1) * col_stride < data.len());
        }
        MatRef { data, rows, cols, row_stride, col_stride }
    }

    /// The transpose, without moving anything.
    pub fn t(self) -> Self {
        MatRef {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

/// A matrix that is written: rows are contiguous.
pub struct MatMut<'a> {
    /// The elements; element `(r, c)` is `data[r * row_stride + c]`.
    pub data: &'a mut [f32],
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Elements from one row to the next.
    pub row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// Views a contiguous row-major `[rows, cols]` slice.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Views a slice whose rows lie `row_stride` apart.
    ///
    /// # Panics
    /// If rows overlap or the last element lies outside of `data`.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(row_stride >= cols || rows <= 1);
        if rows > 0 && cols > 0 {
            assert!((rows - 1) * row_stride + cols <= data.len());
        }
        MatMut { data, rows, cols, row_stride }
    }
}

/// A weight matrix `B` laid out in the order in which the kernel reads it.
///
/// Pack a weight once, use it for every step of a sequence and every token of a generation. The
/// layout is the same on every tier: slivers of 16 columns, each `[k, 16]`, zeros beyond column `n`.
#[derive(Clone)]
pub struct PackedB {
    k: usize,
    n: usize,
    /// May be longer than what is packed. On huge pages if large: a strip of 48 columns touches three
    /// ordinary pages for every 21 rows.
    lines: Pages,
}

impl Default for PackedB {
    fn default() -> Self {
        PackedB { k: 0, n: 0, lines: Pages::new(0) }
    }
}

impl PackedB {
    /// Packs `b` `[k, n]`.
    pub fn new(b: MatRef) -> PackedB {
        let mut packed = PackedB::default();
        packed.pack(b);
        packed
    }

    /// Packs another matrix into the same memory: allocates nothing when it fits.
    pub fn pack(&mut self, b: MatRef) {
        (self.k, self.n) = (b.rows, b.cols);
        let lines = tile::slivers(b.cols) * b.rows;
        if self.lines.len() < lines {
            self.lines = Pages::new(lines);
        }
        let data = Shared(self.lines.as_mut_ptr().cast());
        drive::pack_whole(b, data);
    }

    /// Rows of the packed matrix.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of the packed matrix.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The slivers, one after the other.
    fn slivers(&self) -> &[f32] {
        self.lines.as_flattened()
    }
}

/// The right operand of [`gemm_fused_forward`].
#[derive(Clone, Copy)]
pub enum Operand<'a> {
    /// As it lies.
    Plain(MatRef<'a>),
    /// Packed beforehand.
    Packed(&'a PackedB),
}

/// What a product does with its sums before they leave the cache; nothing by default.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Whether the sums start from `C` instead of zero.
    pub accumulate: bool,
    /// Added to each row of the sums.
    pub bias: Option<&'a [f32]>,
    /// Applied to that.
    pub activation: Option<Activation>,
    /// Added last.
    pub residual: Option<MatRef<'a>>,
}

/// Computes `C = A B`, or `C = C + A B` if `accumulate`.
///
/// # Shapes
/// `a` `[m, k]`, `b` `[k, n]`, `c` `[m, n]`. `k = 0` gives zeros (or leaves `c` when accumulating).
///
/// # Panics
/// If the sizes disagree.
pub fn gemm_forward(a: MatRef, b: MatRef, c: &mut MatMut, accumulate: bool) {
    gemm_fused_forward(a, Operand::Plain(b), Epilogue { accumulate, ..Epilogue::default() }, c);
}

/// Computes `C = A B + bias` with a packed `B`, or `C = C + A B + bias` if `accumulate`.
///
/// The bias is added last, to the finished sum.
///
/// # Shapes
/// `a` `[m, k]`, `b` `[k, n]`, `bias` `[n]`, `c` `[m, n]`.
///
/// # Panics
/// If the sizes disagree.
pub fn gemm_packed_forward(
    a: MatRef,
    b: &PackedB,
    bias: Option<&[f32]>,
    c: &mut MatMut,
    accumulate: bool,
) {
    let epilogue = Epilogue { accumulate, bias, ..Epilogue::default() };
    gemm_fused_forward(a, Operand::Packed(b), epilogue, c);
}

/// Computes `C = activation(A B (+ C) + bias) + residual`, each part where `epilogue` has it.
///
/// # Shapes
/// `a` `[m, k]`, `b` `[k, n]`, bias `[n]`, residual `[m, n]` with contiguous rows, `c` `[m, n]`.
///
/// # Panics
/// If the sizes disagree, or rows of the residual are not contiguous.
pub fn gemm_fused_forward(a: MatRef, b: Operand, epilogue: Epilogue, c: &mut MatMut) {
    let (k, n) = match b {
        Operand::Plain(b) => (b.rows, b.cols),
        Operand::Packed(b) => (b.k, b.n),
    };
    assert_eq!((a.rows, n, a.cols), (c.rows, c.cols, k));
    let Epilogue { accumulate, bias, activation, residual } = epilogue;
    assert!(bias.is_none_or(|bias| bias.len() == n));
    assert!(residual.is_none_or(|x| (x.rows, x.cols) == (c.rows, n)));
    assert!(residual.is_none_or(|x| x.col_stride == 1 || x.cols <= 1));
    let right = match b {
        Operand::Plain(b) => Right::Plain(b),
        Operand::Packed(b) => Right::Packed(b.slivers()),
    };
    drive::product(a, right, Finish { bias, activation, residual }, c, accumulate);
}

/// [`gemm_packed_forward`] on the calling thread alone, with a call to `before_tile` before each
/// tile; the same bits.
pub(crate) fn gemm_packed_alone(
    a: MatRef,
    b: &PackedB,
    bias: Option<&[f32]>,
    c: &mut MatMut,
    accumulate: bool,
    before_tile: &dyn Fn(),
) {
    assert_eq!((a.rows, b.n, a.cols), (c.rows, c.cols, b.k));
    assert!(bias.is_none_or(|bias| bias.len() == b.n));
    let finish = Finish { bias, ..Finish::default() };
    drive::product_alone(a, Right::Packed(b.slivers()), finish, c, accumulate, before_tile);
}

/// Packs the columns of a matrix whose columns are contiguous, `col` elements apart, into slivers
/// `[rows, 16]` that lie `stride` elements apart in `room`; zeros beyond the last column.
pub(crate) fn pack_slivers(
    b: &[f32],
    col: usize,
    (rows, cols): (usize, usize),
    room: &mut [f32],
    stride: usize,
) {
    if rows == 0 || cols == 0 {
        return;
    }
    assert!((cols - 1) * col + rows <= b.len() && rows * LANE <= stride);
    assert!((tile::slivers(cols) - 1) * stride + rows * LANE <= room.len());
    let ahead = 8 * col;
    let source = pack::Source { data: b.as_ptr(), row: 1, col, rows, cols, ahead };
    // SAFETY: both sides are in bounds, by the lines above.
    unsafe { (tile::kernels().pack)(&source, room.as_mut_ptr(), stride) };
}
