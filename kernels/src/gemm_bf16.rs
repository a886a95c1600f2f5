//! Matrix products of bf16 numbers with sums in f32: half the memory, twice the products.
//!
//! An operand is bf16, or f32 that is rounded to bf16 (to nearest even) on the way in: so a training
//! step keeps f32 weights and activations and still multiplies in bf16. Where the CPU multiplies bf16
//! pairs (avx512bf16, on the AVX-512 tier) that is used; elsewhere both operands are widened to f32,
//! which is exact, and go through the f32 product. The two round differently: a pair's products are
//! added to each other before they reach the sum, and pairs treat denormals as zero. The matrix tiles
//! of AMX are not used.
//!
//! An element of `C` has the same bits (on one machine and tier) for any number of threads. With a
//! packed `B` they do not depend on how many rows `A` has either.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod dot;
#[cfg(target_arch = "x86_64")]
mod drive;
#[cfg(target_arch = "x86_64")]
mod pack;
mod wide;

use crate::gemm::{MatMut, MatRef, PackedB};
use half::bf16;
use half::slice::HalfFloatSliceExt;

/// Tells whether products of bf16 pairs are in use, rather than of widened f32.
pub fn has_pairs() -> bool {
    #[cfg(target_arch = "x86_64")]
    return avx512::is_active();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Rounds to bf16, to nearest even.
pub fn to_bf16(x: &[f32]) -> Vec<bf16> {
    let mut y = vec![bf16::ZERO; x.len()];
    y.convert_from_f32_slice(x);
    y
}

/// The numbers of an operand.
#[derive(Clone, Copy)]
enum Numbers<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

/// A matrix that is read as bf16: any strides, in elements. A [`MatRef`] is one whose numbers are
/// rounded on the way in.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    numbers: Numbers<'a>,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Operand<'a> {
    /// Views a contiguous row-major `[rows, cols]` slice.
    ///
    /// # Panics
    /// If the last element lies outside of `data`.
    pub fn new(data: &'a [bf16], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols, 1)
    }

    /// Views a slice with strides.
    ///
    /// # Panics
    /// If the last element lies outside of `data`.
    pub fn strided(
        data: &'a [bf16],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Self {
        Operand { numbers: Numbers::Bf16(data), rows, cols, row_stride, col_stride }.checked()
    }

    fn checked(self) -> Self {
        let len = match self.numbers {
            Numbers::F32(x) => x.len(),
            Numbers::Bf16(x) => x.len(),
        };
        if self.rows > 0 && self.cols > 0 {
            let last = (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride;
            assert!(last < len, "[{}, {}] in {len} numbers", self.rows, self.cols);
        }
        self
    }

    /// The transpose, without moving anything.
    pub fn t(self) -> Self {
        Operand {
            numbers: self.numbers,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

impl<'a> From<MatRef<'a>> for Operand<'a> {
    fn from(x: MatRef<'a>) -> Self {
        let MatRef { data, rows, cols, row_stride, col_stride } = x;
        Operand { numbers: Numbers::F32(data), rows, cols, row_stride, col_stride }.checked()
    }
}

/// A weight matrix `B` of bf16 numbers in the order in which the kernel reads it.
///
/// Pack a weight once, use it for every step of a sequence. Slivers of 16 columns, each `[k / 2, 16]`
/// pairs of neighbours in `k`, zeros beyond column `n` and row `k`. Where the CPU has no products of
/// pairs, the rounded numbers are kept as f32.
#[derive(Clone, Default)]
pub struct PackedBf16 {
    k: usize,
    n: usize,
    form: Form,
}

#[derive(Clone)]
enum Form {
    #[cfg(target_arch = "x86_64")]
    Pairs(pack::Words),
    Wide(PackedB),
}

impl Default for Form {
    fn default() -> Form {
        Form::Wide(PackedB::default())
    }
}

impl PackedBf16 {
    /// Packs `b` `[k, n]`.
    pub fn new<'a>(b: impl Into<Operand<'a>>) -> PackedBf16 {
        let mut packed = PackedBf16::default();
        packed.pack(b);
        packed
    }

    /// Packs another matrix into the same memory: allocates nothing when it fits.
    pub fn pack<'a>(&mut self, b: impl Into<Operand<'a>>) {
        let b = b.into();
        (self.k, self.n) = (b.rows, b.cols);
        #[cfg(target_arch = "x86_64")]
        if avx512::is_active() {
            if !matches!(self.form, Form::Pairs(_)) {
                self.form = Form::Pairs(pack::Words::default());
            }
            if let Form::Pairs(words) = &mut self.form {
                drive::pack_whole(b, words);
            }
            return;
        }
        if !matches!(self.form, Form::Wide(_)) {
            self.form = Form::default();
        }
        #[allow(irrefutable_let_patterns)] // the only form on some architectures
        if let Form::Wide(packed) = &mut self.form {
            wide::pack(b, packed);
        }
    }

    /// Rows of the packed matrix.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of the packed matrix.
    pub fn n(&self) -> usize {
        self.n
    }
}

/// Computes `C = A B`, or `C = A B^T` if `trans_b`, and rounds the sums to bf16.
///
/// # Shapes
/// `a` `[m, k]`, `b` `[k, n]` or `[n, k]`, `c` `[m, n]`, all contiguous.
///
/// # Panics
/// If a length disagrees with its sizes.
pub fn gemm_bf16_forward(
    a: &[bf16],
    b: &[bf16],
    c: &mut [bf16],
    m: usize,
    k: usize,
    n: usize,
    trans_b: bool,
) {
    assert_eq!((a.len(), b.len(), c.len()), (m * k, k * n, m * n));
    let b = if trans_b { Operand::new(b, n, k).t() } else { Operand::new(b, k, n) };
    gemm_bf16_rounded_forward(Operand::new(a, m, k), b, c);
}

/// Computes `C = A B` and rounds the sums to bf16.
///
/// # Shapes
/// `a` `[m, k]`, `b` `[k, n]`, any strides; `c` `[m, n]`, contiguous.
///
/// # Panics
/// If the sizes disagree.
pub fn gemm_bf16_rounded_forward<'a>(
    a: impl Into<Operand<'a>>,
    b: impl Into<Operand<'a>>,
    c: &mut [bf16],
) {
    let (a, b) = (a.into(), b.into());
    assert_eq!((a.rows * b.cols, a.cols), (c.len(), b.rows));
    #[cfg(target_arch = "x86_64")]
    if avx512::is_active() {
        return drive::rounded_product(a, b, c);
    }
    wide::rounded_product(a, b, c);
}

/// Computes `C = A B` in f32, or `C = C + A B` if `accumulate`.
///
/// # Shapes
/// `a` `[m, k]`, `b` `[k, n]`, any strides; `c` `[m, n]`. `k = 0` gives zeros (or leaves `c` when
/// accumulating).
///
/// # Panics
/// If the sizes disagree.
pub fn gemm_bf16_f32_forward<'a>(
    a: impl Into<Operand<'a>>,
    b: impl Into<Operand<'a>>,
    c: &mut MatMut,
    accumulate: bool,
) {
    let (a, b) = (a.into(), b.into());
    assert_eq!((a.rows, b.cols, a.cols), (c.rows, c.cols, b.rows));
    #[cfg(target_arch = "x86_64")]
    if avx512::is_active() {
        return drive::product(a, b, c, accumulate);
    }
    wide::product(a, b, c, accumulate);
}

/// Computes `C = A B + bias` with a packed `B` in f32, or `C = C + A B + bias` if `accumulate`.
///
/// The bias is added last, to the finished sum.
///
/// # Shapes
/// `a` `[m, k]`, any strides; `b` `[k, n]`, `bias` `[n]`, `c` `[m, n]`.
///
/// # Panics
/// If the sizes disagree.
pub fn gemm_bf16_packed_forward<'a>(
    a: impl Into<Operand<'a>>,
    b: &PackedBf16,
    bias: Option<&[f32]>,
    c: &mut MatMut,
    accumulate: bool,
) {
    let a = a.into();
    assert_eq!((a.rows, b.n, a.cols), (c.rows, c.cols, b.k));
    assert!(bias.is_none_or(|bias| bias.len() == b.n));
    match &b.form {
        #[cfg(target_arch = "x86_64")]
        Form::Pairs(words) => drive::packed_product(a, words, bias, c, accumulate),
        Form::Wide(packed) => wide::packed_product(a, packed, bias, c, accumulate),
    }
}

/// [`gemm_bf16_packed_forward`] on the calling thread alone, with a call to `before_tile` before each
/// tile; the same bits.
pub(crate) fn gemm_bf16_packed_alone(
    a: MatRef,
    b: &PackedBf16,
    bias: Option<&[f32]>,
    c: &mut MatMut,
    accumulate: bool,
    before_tile: &dyn Fn(),
) {
    assert_eq!((a.rows, b.n, a.cols), (c.rows, c.cols, b.k));
    assert!(bias.is_none_or(|bias| bias.len() == b.n));
    let a = a.into();
    match &b.form {
        #[cfg(target_arch = "x86_64")]
        Form::Pairs(words) => {
            drive::packed_product_alone(a, words, bias, c, accumulate, before_tile);
        }
        Form::Wide(packed) => {
            wide::packed_product_alone(a, packed, bias, c, accumulate, before_tile)
        }
    }
}
