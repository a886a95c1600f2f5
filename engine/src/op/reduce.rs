//! Sums over axes, in an order that depends on the shape only.

use etude_kernels::elementwise::{sum, sum_cols, sum_rows};

use crate::error::{Error, Result};
use crate::layout::{Layout, MAX_RANK, copy_strided};
use crate::memory::Buffer;
use crate::tensor::{Compact, Tensor};

impl Tensor {
    /// Sums over the named axes. With `keep` they stay as axes of size 1.
    ///
    /// # Errors
    /// If an axis does not exist or is named twice.
    pub fn sum(&self, axes: &[usize], keep: bool) -> Result<Tensor> {
        let mut reduced = [false; MAX_RANK];
        for axis in axes {
            self.check_axis("sum", *axis)?;
            if std::mem::replace(&mut reduced[*axis], true) {
                return Err(Error::argument("sum", format!("axis {axis} is named twice")));
            }
        }
        let rank = self.rank();
        let mut kept_dims = [1; MAX_RANK];
        let mut order = [0; MAX_RANK];
        let mut kept = 0;
        for axis in (0..rank).filter(|axis| !reduced[*axis]) {
            kept_dims[axis] = self.shape()[axis];
            order[kept] = axis;
            kept += 1;
        }
        for (at, axis) in (kept..).zip((0..rank).filter(|axis| reduced[*axis])) {
            order[at] = axis;
        }
        let wide = Layout::contiguous("sum", &kept_dims[..rank])?;
        let layout = if keep {
            wide
        } else {
            let dims: Vec<usize> = order[..kept].iter().map(|axis| self.shape()[*axis]).collect();
            Layout::contiguous("sum", &dims)?
        };
        let cols: usize = order[kept..rank].iter().map(|axis| self.shape()[*axis]).product();
        let mut y = Buffer::scratch(layout.len());
        let leading = (0..rank - kept).all(|axis| reduced[axis]);
        if cols == 0 || y.is_empty() {
            y.fill(0.0);
        } else if kept == 0 {
            y[0] = sum(&self.compact());
        } else if leading {
            sum_cols(&self.compact(), &mut y, false);
        } else {
            let permuted = self.layout().permute(&order[..rank]);
            let x = if permuted == *self.layout() {
                self.compact()
            } else {
                let mut x = Buffer::scratch(self.len());
                copy_strided(self.storage(), &permuted, &mut x);
                Compact::Copied(x)
            };
            sum_rows(&x, &mut y, cols);
        }
        Ok(Tensor::from_op("sum", &[self], y, layout, move |v| {
            Ok(vec![Some(v.d_output.reshape(wide.dims())?.expand(v.inputs[0].shape())?)])
        }))
    }

    /// Sums all elements to one number `[]`.
    ///
    /// # Errors
    /// None on a processor.
    pub fn sum_all(&self) -> Result<Tensor> {
        let axes: [usize; MAX_RANK] = std::array::from_fn(|i| i);
        self.sum(&axes[..self.rank()], false)
    }

    /// Averages over the named axes; an average over nothing is NaN.
    ///
    /// # Errors
    /// As [`Tensor::sum`].
    pub fn mean(&self, axes: &[usize], keep: bool) -> Result<Tensor> {
        let sum = self.sum(axes, keep)?;
        let count: usize = axes.iter().map(|axis| self.shape()[*axis]).product();
        // Multiplying by 1 / n would be one rounding more than dividing.
        sum.div(&Tensor::scalar(count as f32))
    }

    /// Averages all elements to one number `[]`; the average of nothing is NaN.
    ///
    /// # Errors
    /// None on a processor.
    pub fn mean_all(&self) -> Result<Tensor> {
        let axes: [usize; MAX_RANK] = std::array::from_fn(|i| i);
        self.mean(&axes[..self.rank()], false)
    }

    /// Sums a gradient back to a shape that was broadcast to this one.
    ///
    /// # Errors
    /// If `shape` does not broadcast to this shape.
    pub fn sum_to(&self, shape: &[usize]) -> Result<Tensor> {
        if self.shape() == shape {
            return Ok(self.clone());
        }
        let fault = || Error::shape("sum_to", self.shape(), shape, "the second does not broadcast");
        let lead = self.rank().checked_sub(shape.len()).ok_or_else(fault)?;
        let mut axes: Vec<usize> = (0..lead).collect();
        for (axis, dim) in shape.iter().enumerate() {
            match self.shape()[lead + axis] {
                same if same == *dim => {}
                _ if *dim == 1 => axes.push(lead + axis),
                _ => return Err(fault()),
            }
        }
        self.sum(&axes, true)?.reshape(shape)
    }
}
