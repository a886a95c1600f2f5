//! The same matrix products by other crates, for comparison.

use etude_kernels::gemm::MatRef;

/// Computes `C = A B` with the crate `gemm` on one thread.
///
/// # Panics
/// If the sizes disagree.
pub fn gemm(a: MatRef, b: MatRef, c: &mut [f32]) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert!(b.rows == k && c.len() == m * n);
    let c = c.as_mut_ptr();
    let (a_row, a_col) = (a.row_stride as isize, a.col_stride as isize);
    let (b_row, b_col) = (b.row_stride as isize, b.col_stride as isize);
    let (a, b) = (a.data.as_ptr(), b.data.as_ptr());
    let alone = gemm::Parallelism::None;
    // SAFETY: `MatRef` checked the bounds of A and B; C has `m` rows of `n` numbers.
    unsafe {
        gemm::gemm(
            m, n, k, c, 1, n as isize, false, a, a_col, a_row, b, b_col, b_row, 0.0f32, 1.0f32,
            false, false, false, alone,
        );
    }
}

/// Computes `C = A B` with the crate `faer` on one thread.
///
/// # Panics
/// If the sizes disagree, or neither rows nor columns of an operand are contiguous.
pub fn faer(a: MatRef, b: MatRef, c: &mut [f32]) {
    fn view(x: MatRef<'_>) -> faer::MatRef<'_, f32> {
        if x.col_stride == 1 {
            faer::MatRef::from_row_major_slice(x.data, x.rows, x.cols)
        } else {
            faer::MatRef::from_column_major_slice(x.data, x.rows, x.cols)
        }
    }
    let c = faer::MatMut::from_row_major_slice_mut(c, a.rows, b.cols);
    let alone = faer::Par::Seq;
    faer::linalg::matmul::matmul(c, faer::Accum::Replace, view(a), view(b), 1.0f32, alone);
}
