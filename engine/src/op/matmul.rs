//! Matrix products, batched, over any strides: a transpose costs nothing.

use etude_kernels::gemm::{MatMut, MatRef, gemm_forward};

use crate::error::{Error, Result};
use crate::layout::{Layout, broadcast, for_each_index};
use crate::memory::Buffer;
use crate::tensor::Tensor;

impl Tensor {
    /// Computes the product of each pair of matrices; leading axes broadcast.
    ///
    /// # Shapes
    /// `self` `[.., m, k]`, `other` `[.., k, n]`, result `[.., m, n]`.
    ///
    /// # Errors
    /// If the inner sizes differ, the leading axes do not broadcast, or there are fewer than two axes.
    pub fn matmul(&self, other: &Tensor) -> Result<Tensor> {
        let fault = |why: String| Error::shape("matmul", self.shape(), other.shape(), why);
        let (ra, rb) = (self.rank(), other.rank());
        if ra < 2 || rb < 2 {
            return Err(fault("two axes are wanted on each side".into()));
        }
        let (lead_a, lead_b) = (&self.shape()[..ra - 2], &other.shape()[..rb - 2]);
        let (m, k, n) = (self.shape()[ra - 2], self.shape()[ra - 1], other.shape()[rb - 1]);
        if k != other.shape()[rb - 2] {
            return Err(fault(format!("inner sizes {k} and {} differ", other.shape()[rb - 2])));
        }
        if ra > 2 && rb == 2 {
            // One matrix on the right for all on the left: one tall product.
            let rows: usize = lead_a.iter().product::<usize>() * m;
            let shape = [lead_a, &[m, n]].concat();
            return self.reshape(&[rows, k])?.matmul(other)?.reshape(&shape);
        }
        let lead = broadcast("matmul", lead_a, lead_b)?;
        let shape = [lead.dims(), &[m, n]].concat();
        let layout = Layout::contiguous("matmul", &shape)?;
        let a = self.layout().expand("matmul", &[lead.dims(), &[m, k]].concat())?;
        let b = other.layout().expand("matmul", &[lead.dims(), &[k, n]].concat())?;
        let mut y = Buffer::scratch(layout.len());
        if !y.is_empty() {
            let mut planes = y.chunks_exact_mut(m * n);
            let axes = lead.rank();
            let strides = [&a.strides()[..axes], &b.strides()[..axes]];
            for_each_index(lead.dims(), strides, |[at_a, at_b]| {
                let Some(plane) = planes.next() else { return };
                let a = matrix(&self.storage()[a.offset()..], at_a, m, k, &a.strides()[axes..]);
                let b = matrix(&other.storage()[b.offset()..], at_b, k, n, &b.strides()[axes..]);
                gemm_forward(a, b, &mut MatMut::new(plane, m, n), false);
            });
        }
        Ok(Tensor::from_op("matmul", &[self, other], y, layout, |v| {
            let (a, b) = (&v.inputs[0], &v.inputs[1]);
            let d_a = || v.d_output.matmul(&b.t()?)?.sum_to(a.shape());
            let d_b = || a.t()?.matmul(&v.d_output)?.sum_to(b.shape());
            Ok(vec![v.wanted[0].then(d_a).transpose()?, v.wanted[1].then(d_b).transpose()?])
        }))
    }
}

/// The matrix that starts `at` elements into `x`.
fn matrix<'a>(x: &'a [f32], at: usize, rows: usize, cols: usize, strides: &[usize]) -> MatRef<'a> {
    if rows == 0 || cols == 0 {
        return MatRef::new(&[], rows, cols);
    }
    MatRef::strided(&x[at..], rows, cols, strides[0], strides[1])
}
