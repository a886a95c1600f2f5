//! Views: other shapes over the same numbers, and the operations that undo them.

use std::ops::Range;

use crate::autograd::no_grad;
use crate::error::{Error, Result};
use crate::layout::{Layout, copy_strided, for_each_index};
use crate::memory::Buffer;
use crate::tensor::{Compact, Tensor};

impl Tensor {
    /// The same values in row-major order: this tensor itself if they lie so already.
    ///
    /// # Errors
    /// None on a processor.
    pub fn contiguous(&self) -> Result<Tensor> {
        match self.compact() {
            Compact::Borrowed(_) => Ok(self.clone()),
            Compact::Copied(buffer) => {
                let layout = Layout::contiguous("contiguous", self.shape())?;
                Ok(Tensor::from_op("contiguous", &[self], buffer, layout, |v| {
                    Ok(vec![Some(v.d_output)])
                }))
            }
        }
    }

    /// The same values under another shape with as many elements.
    ///
    /// # Errors
    /// If the counts differ.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        let wanted = Layout::contiguous("reshape", shape)?;
        if wanted.len() != self.len() {
            let why = format!("{} elements and {}", self.len(), wanted.len());
            return Err(Error::shape("reshape", self.shape(), shape, why));
        }
        let Some(layout) = self.layout().reshape(shape) else {
            return self.contiguous()?.reshape(shape);
        };
        Ok(self
            .view("reshape", layout, |v| Ok(vec![Some(v.d_output.reshape(v.inputs[0].shape())?)])))
    }

    /// Reorders the axes: axis `i` of the result is axis `axes[i]` of this.
    ///
    /// # Errors
    /// If `axes` does not name each axis once.
    pub fn permute(&self, axes: &[usize]) -> Result<Tensor> {
        let mut inverse = vec![usize::MAX; self.rank()];
        for (to, from) in axes.iter().enumerate() {
            if let Some(slot) = inverse.get_mut(*from) {
                *slot = to;
            }
        }
        if axes.len() != self.rank() || inverse.contains(&usize::MAX) {
            return Err(Error::shape("permute", self.shape(), axes, "each axis is named once"));
        }
        let layout = self.layout().permute(axes);
        Ok(self.view("permute", layout, move |v| Ok(vec![Some(v.d_output.permute(&inverse)?)])))
    }

    /// Swaps two axes.
    ///
    /// # Errors
    /// If there is no such axis.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Tensor> {
        self.check_axis("transpose", a.max(b))?;
        let mut axes: Vec<usize> = (0..self.rank()).collect();
        axes.swap(a, b);
        self.permute(&axes)
    }

    /// Swaps the last two axes: the transpose of each matrix.
    ///
    /// # Errors
    /// If there are fewer than two axes.
    pub fn t(&self) -> Result<Tensor> {
        match self.rank() {
            0 | 1 => Err(Error::shape("t", self.shape(), &[], "two axes are wanted")),
            rank => self.transpose(rank - 2, rank - 1),
        }
    }

    /// Keeps a range of one axis.
    ///
    /// # Errors
    /// If there is no such axis or the range leaves it.
    pub fn slice(&self, axis: usize, range: Range<usize>) -> Result<Tensor> {
        self.check_axis("slice", axis)?;
        let dim = self.shape()[axis];
        if range.start > range.end || range.end > dim {
            let why = format!("{}..{} of an axis of size {dim}", range.start, range.end);
            return Err(Error::argument("slice", why));
        }
        let (before, after) = (range.start, dim - range.end);
        let layout = self.layout().slice(axis, range.start, range.len());
        Ok(self
            .view("slice", layout, move |v| Ok(vec![Some(v.d_output.pad(axis, before, after)?)])))
    }

    /// Takes one index of one axis away: `[.., n, ..]` becomes `[.., ..]`.
    ///
    /// # Errors
    /// If there is no such axis or index.
    pub fn select(&self, axis: usize, index: usize) -> Result<Tensor> {
        let slice = self.slice(axis, index..index + 1)?;
        let mut shape = slice.shape().to_vec();
        shape.remove(axis);
        slice.reshape(&shape)
    }

    /// Adds zeros before and after along one axis.
    ///
    /// # Errors
    /// If there is no such axis.
    pub fn pad(&self, axis: usize, before: usize, after: usize) -> Result<Tensor> {
        self.check_axis("pad", axis)?;
        let dim = self.shape()[axis];
        let mut shape = self.shape().to_vec();
        // Saturated sizes are refused as too many elements.
        shape[axis] = dim.saturating_add(before).saturating_add(after);
        let layout = Layout::contiguous("pad", &shape)?;
        let inner: usize = shape[axis + 1..].iter().product();
        let mut y = Buffer::scratch(layout.len());
        let x = self.compact();
        if !y.is_empty() {
            let rows = y.chunks_exact_mut((dim + before + after) * inner);
            for (r, row) in rows.enumerate() {
                let (head, rest) = row.split_at_mut(before * inner);
                let (body, tail) = rest.split_at_mut(dim * inner);
                head.fill(0.0);
                body.copy_from_slice(&x[r * dim * inner..(r + 1) * dim * inner]);
                tail.fill(0.0);
            }
        }
        drop(x);
        Ok(Tensor::from_op("pad", &[self], y, layout, move |v| {
            Ok(vec![Some(v.d_output.slice(axis, before..before + dim)?)])
        }))
    }

    /// Repeats axes of size 1 (and adds leading axes) without copying.
    ///
    /// # Errors
    /// If another axis would have to change.
    pub fn expand(&self, shape: &[usize]) -> Result<Tensor> {
        if self.shape() == shape {
            return Ok(self.clone());
        }
        let layout = self.layout().expand("expand", shape)?;
        Ok(self.view("expand", layout, |v| Ok(vec![Some(v.d_output.sum_to(v.inputs[0].shape())?)])))
    }

    /// Joins tensors along one axis.
    ///
    /// # Errors
    /// If there is none, no such axis, or another axis differs.
    pub fn concat(parts: &[&Tensor], axis: usize) -> Result<Tensor> {
        let Some(first) = parts.first() else {
            return Err(Error::argument("concat", "at least one tensor is wanted"));
        };
        first.check_axis("concat", axis)?;
        let mut shape = first.shape().to_vec();
        shape[axis] = 0;
        for part in parts {
            let same = part.rank() == shape.len()
                && (0..shape.len()).all(|i| i == axis || part.shape()[i] == shape[i]);
            if !same {
                let why = format!("all axes but {axis} must agree");
                return Err(Error::shape("concat", first.shape(), part.shape(), why));
            }
            shape[axis] = shape[axis].saturating_add(part.shape()[axis]);
        }
        let layout = Layout::contiguous("concat", &shape)?;
        let mut y = Buffer::scratch(layout.len());
        let stride: usize = shape[axis..].iter().product();
        let mut at = 0;
        for part in parts {
            let x = part.compact();
            let width: usize = part.shape()[axis..].iter().product();
            if !x.is_empty() {
                for (y, x) in y.chunks_exact_mut(stride).zip(x.chunks_exact(width)) {
                    y[at..at + width].copy_from_slice(x);
                }
            }
            at += width;
        }
        Ok(Tensor::from_op("concat", parts, y, layout, move |v| {
            let mut start = 0;
            let mut d_parts = Vec::with_capacity(v.inputs.len());
            for (part, wanted) in v.inputs.iter().zip(v.wanted) {
                let end = start + part.shape()[axis];
                let d = wanted.then(|| v.d_output.slice(axis, start..end)).transpose()?;
                d_parts.push(d);
                start = end;
            }
            Ok(d_parts)
        }))
    }

    /// Joins tensors of one shape along a new first axis.
    ///
    /// # Errors
    /// If there is none or the shapes differ.
    pub fn stack(parts: &[&Tensor]) -> Result<Tensor> {
        let wide: Vec<Tensor> =
            parts.iter().map(|t| t.reshape(&[&[1], t.shape()].concat())).collect::<Result<_>>()?;
        Tensor::concat(&wide.iter().collect::<Vec<_>>(), 0)
    }

    pub(crate) fn check_axis(&self, op: &'static str, axis: usize) -> Result<()> {
        if axis < self.rank() {
            return Ok(());
        }
        Err(Error::argument(op, format!("axis {axis} of {} axes", self.rank())))
    }

    /// Writes the elements of this view into a slice, row-major.
    ///
    /// # Errors
    /// If the lengths differ.
    pub fn copy_to(&self, y: &mut [f32]) -> Result<()> {
        if y.len() != self.len() {
            return Err(Error::shape("copy_to", self.shape(), &[y.len()], "the lengths differ"));
        }
        copy_strided(self.storage(), self.layout(), y);
        Ok(())
    }

    /// The lower triangle of `[steps, steps]` as a mask: 1 where the column is after the row.
    ///
    /// # Errors
    /// If `steps * steps` elements do not fit into memory.
    pub fn causal_mask(steps: usize) -> Result<Tensor> {
        let layout = Layout::contiguous("causal_mask", &[steps, steps])?;
        let mut y = Buffer::zeros(layout.len());
        for_each_index(layout.dims(), [&[steps, 1], &[0, 1], &[1, 0]], |[at, column, row]| {
            y[at] = f32::from(u8::from(column > row));
        });
        Ok(no_grad(|| Tensor::constant(y, layout)))
    }
}
