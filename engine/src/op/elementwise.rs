//! Functions of one number and of two, element by element, with broadcasting.
//!
//! Shapes are matched from the last axis; an axis of size 1 repeats. The gradient of a repeated
//! operand is summed back to its shape.

use etude_kernels::elementwise::{
    Binary, Unary, binary_forward, binary_row_forward, binary_scalar_forward, unary_forward,
};

use crate::autograd::{Vjp, no_grad};
use crate::error::Result;
use crate::layout::{Layout, broadcast, coalesce, for_each_index};
use crate::memory::Buffer;
use crate::tensor::{Compact, Tensor};

impl Tensor {
    fn unary(
        &self,
        name: &'static str,
        f: Unary,
        vjp: impl Fn(Vjp) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Result<Tensor> {
        let layout = Layout::contiguous(name, self.shape())?;
        let mut y = Buffer::scratch(layout.len());
        unary_forward(f, &self.compact(), &mut y);
        Ok(Tensor::from_op(name, &[self], y, layout, move |v| Ok(vec![Some(vjp(v)?)])))
    }

    fn binary(
        &self,
        name: &'static str,
        f: Binary,
        other: &Tensor,
        vjp: impl Fn(Vjp) -> Result<[Option<Tensor>; 2]> + Send + Sync + 'static,
    ) -> Result<Tensor> {
        let layout = broadcast(name, self.shape(), other.shape())?;
        let mut y = Buffer::scratch(layout.len());
        broadcast_forward(name, f, self, other, &layout, &mut y)?;
        Ok(Tensor::from_op(name, &[self, other], y, layout, move |v| {
            let shapes = [v.inputs[0].0.layout, v.inputs[1].0.layout];
            let [d_a, d_b] = vjp(v)?;
            let back = |d: Option<Tensor>, to: &Layout| d.map(|d| d.sum_to(to.dims())).transpose();
            Ok(vec![back(d_a, &shapes[0])?, back(d_b, &shapes[1])?])
        }))
    }

    /// Computes `self + other`.
    ///
    /// # Errors
    /// If the shapes do not broadcast.
    pub fn add(&self, other: &Tensor) -> Result<Tensor> {
        self.binary("add", Binary::Add, other, |v| {
            let d_b = v.wanted[1].then(|| v.d_output.clone());
            Ok([Some(v.d_output), d_b])
        })
    }

    /// Computes `self - other`.
    ///
    /// # Errors
    /// If the shapes do not broadcast.
    pub fn sub(&self, other: &Tensor) -> Result<Tensor> {
        self.binary("sub", Binary::Sub, other, |v| {
            let d_b = v.wanted[1].then(|| v.d_output.neg()).transpose()?;
            Ok([Some(v.d_output), d_b])
        })
    }

    /// Computes `self * other`.
    ///
    /// # Errors
    /// If the shapes do not broadcast.
    pub fn mul(&self, other: &Tensor) -> Result<Tensor> {
        self.binary("mul", Binary::Mul, other, |v| {
            let d_a = v.wanted[0].then(|| v.d_output.mul(&v.inputs[1])).transpose()?;
            let d_b = v.wanted[1].then(|| v.d_output.mul(&v.inputs[0])).transpose()?;
            Ok([d_a, d_b])
        })
    }

    /// Computes `self / other`.
    ///
    /// # Errors
    /// If the shapes do not broadcast.
    pub fn div(&self, other: &Tensor) -> Result<Tensor> {
        self.binary("div", Binary::Div, other, |v| {
            let d_a = v.d_output.div(&v.inputs[1])?;
            let d_b = v.wanted[1].then(|| d_a.mul(v.output)?.neg()).transpose()?;
            Ok([Some(d_a), d_b])
        })
    }

    /// Computes the larger of each pair. Where both are equal each gets half of the gradient.
    ///
    /// # Errors
    /// If the shapes do not broadcast.
    pub fn maximum(&self, other: &Tensor) -> Result<Tensor> {
        self.binary("maximum", Binary::Max, other, |v| split(v, 1.0))
    }

    /// Computes the smaller of each pair. Where both are equal each gets half of the gradient.
    ///
    /// # Errors
    /// If the shapes do not broadcast.
    pub fn minimum(&self, other: &Tensor) -> Result<Tensor> {
        self.binary("minimum", Binary::Min, other, |v| split(v, -1.0))
    }

    /// Computes `-x`.
    ///
    /// # Errors
    /// None on a processor.
    pub fn neg(&self) -> Result<Tensor> {
        self.unary("neg", Unary::Neg, |v| v.d_output.neg())
    }

    /// Computes `e^x`.
    ///
    /// # Errors
    /// None on a processor.
    pub fn exp(&self) -> Result<Tensor> {
        self.unary("exp", Unary::Exp, |v| v.d_output.mul(v.output))
    }

    /// Computes the natural logarithm.
    ///
    /// # Errors
    /// None on a processor.
    pub fn log(&self) -> Result<Tensor> {
        self.unary("log", Unary::Log, |v| v.d_output.div(&v.inputs[0]))
    }

    /// Computes the square root.
    ///
    /// # Errors
    /// None on a processor.
    pub fn sqrt(&self) -> Result<Tensor> {
        self.unary("sqrt", Unary::Sqrt, |v| v.d_output.div(v.output)?.scale(0.5))
    }

    /// Computes `1 / x`.
    ///
    /// # Errors
    /// None on a processor.
    pub fn recip(&self) -> Result<Tensor> {
        self.unary("recip", Unary::Recip, |v| v.d_output.mul(v.output)?.mul(v.output)?.neg())
    }

    /// Computes `x^p`.
    ///
    /// # Errors
    /// None on a processor.
    pub fn pow(&self, p: f32) -> Result<Tensor> {
        self.unary("pow", Unary::Pow(p), move |v| {
            v.inputs[0].pow(p - 1.0)?.scale(p)?.mul(&v.d_output)
        })
    }

    /// Computes `scale * x + shift`.
    ///
    /// # Errors
    /// None on a processor.
    pub fn affine(&self, scale: f32, shift: f32) -> Result<Tensor> {
        self.unary("affine", Unary::Affine(scale, shift), move |v| v.d_output.scale(scale))
    }

    /// Computes `scale * x`.
    ///
    /// # Errors
    /// None on a processor.
    pub fn scale(&self, scale: f32) -> Result<Tensor> {
        self.affine(scale, 0.0)
    }

    /// Computes `x + shift`.
    ///
    /// # Errors
    /// None on a processor.
    pub fn shift(&self, shift: f32) -> Result<Tensor> {
        self.affine(1.0, shift)
    }

    /// Computes `|x|`; its derivative at 0 is 0.
    ///
    /// # Errors
    /// None on a processor.
    pub fn abs(&self) -> Result<Tensor> {
        self.unary("abs", Unary::Abs, |v| v.d_output.mul(&v.inputs[0].sign()?))
    }

    /// Computes the sine.
    ///
    /// # Errors
    /// None on a processor.
    pub fn sin(&self) -> Result<Tensor> {
        self.unary("sin", Unary::Sin, |v| v.inputs[0].cos()?.mul(&v.d_output))
    }

    /// Computes the cosine.
    ///
    /// # Errors
    /// None on a processor.
    pub fn cos(&self) -> Result<Tensor> {
        self.unary("cos", Unary::Cos, |v| v.inputs[0].sin()?.mul(&v.d_output)?.neg())
    }

    /// Computes the Gauss error function.
    ///
    /// # Errors
    /// None on a processor.
    pub fn erf(&self) -> Result<Tensor> {
        self.unary("erf", Unary::Erf, |v| {
            let x = &v.inputs[0];
            let slope = x.mul(x)?.neg()?.exp()?.scale(std::f32::consts::FRAC_2_SQRT_PI)?;
            slope.mul(&v.d_output)
        })
    }

    /// Computes 1 where `x > 0`, else 0: a constant, no gradient flows through.
    ///
    /// # Errors
    /// None on a processor.
    pub fn step(&self) -> Result<Tensor> {
        no_grad(|| self.unary("step", Unary::Step, |v| Ok(v.d_output)))
    }

    /// Computes -1, 0 or 1: a constant, no gradient flows through.
    ///
    /// # Errors
    /// None on a processor.
    pub fn sign(&self) -> Result<Tensor> {
        no_grad(|| self.step()?.sub(&self.neg()?.step()?))
    }

    /// Takes `a` where `mask` is not 0, else `b`. The mask is a constant.
    ///
    /// # Errors
    /// If the shapes do not broadcast.
    pub fn where_mask(mask: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let ab = broadcast("where_mask", a.shape(), b.shape())?;
        let layout = broadcast("where_mask", mask.shape(), ab.dims())?;
        let dims = layout.dims();
        let mask = no_grad(|| mask.expand(dims)?.contiguous())?;
        let (wide_a, wide_b) = no_grad(|| Ok((a.expand(dims)?, b.expand(dims)?)))?;
        let mut y = Buffer::scratch(layout.len());
        {
            let (m, a, b) = (mask.compact(), wide_a.compact(), wide_b.compact());
            for (i, y) in y.iter_mut().enumerate() {
                *y = if m[i] != 0.0 { a[i] } else { b[i] };
            }
        }
        Ok(Tensor::from_op("where_mask", &[a, b], y, layout, move |v| {
            let zero = Tensor::scalar(0.0);
            let d_a = Tensor::where_mask(&mask, &v.d_output, &zero)?;
            let d_b = Tensor::where_mask(&mask, &zero, &v.d_output)?;
            Ok(vec![Some(d_a.sum_to(v.inputs[0].shape())?), Some(d_b.sum_to(v.inputs[1].shape())?)])
        }))
    }

    /// Writes `value` where `mask` is not 0. The mask is a constant.
    ///
    /// # Errors
    /// If the mask does not broadcast to this shape.
    pub fn masked_fill(&self, mask: &Tensor, value: f32) -> Result<Tensor> {
        Tensor::where_mask(mask, &Tensor::scalar(value), self)
    }
}

/// Hands the gradient of a maximum (`sign` 1) or minimum (-1) to the operand that was taken.
fn split(v: Vjp, sign: f32) -> Result<[Option<Tensor>; 2]> {
    let share = no_grad(|| v.inputs[0].sub(&v.inputs[1])?.sign()?.affine(0.5 * sign, 0.5))?;
    let d_b = v.wanted[1].then(|| v.d_output.mul(&share.affine(-1.0, 1.0)?)).transpose()?;
    Ok([Some(v.d_output.mul(&share)?), d_b])
}

/// Chooses the fastest kernel for two operands that broadcast to `layout`.
fn broadcast_forward(
    name: &'static str,
    f: Binary,
    a: &Tensor,
    b: &Tensor,
    layout: &Layout,
    y: &mut [f32],
) -> Result<()> {
    if layout.is_empty() {
        return Ok(());
    }
    let whole = |t: &Tensor| t.len() == layout.len() && t.layout().is_contiguous();
    if whole(a) {
        if whole(b) {
            binary_forward(f, &a.compact(), &b.compact(), y);
            return Ok(());
        }
        if b.len() == 1 {
            binary_scalar_forward(f, &a.compact(), b.compact()[0], y);
            return Ok(());
        }
        if b.layout().is_contiguous() && layout.dims().ends_with(b.shape()) {
            binary_row_forward(f, &a.compact(), &b.compact(), y);
            return Ok(());
        }
    }
    let mut layouts =
        [a.layout().expand(name, layout.dims())?, b.layout().expand(name, layout.dims())?];
    let mut sources = [Compact::Borrowed(a.storage()), Compact::Borrowed(b.storage())];
    // Kernels run along rows, so a row must be contiguous or one repeated number.
    for (i, operand) in [a, b].into_iter().enumerate() {
        let long = operand.layout().dims().iter().zip(operand.layout().strides()).rev();
        let inner = long.filter(|(dim, _)| **dim > 1).map(|(_, stride)| *stride).next();
        if inner.is_some_and(|stride| stride > 1) {
            let copy = match operand.compact() {
                Compact::Copied(buffer) => Compact::Copied(buffer),
                Compact::Borrowed(slice) => Compact::Copied(Buffer::copy(slice)),
            };
            layouts[i] = Layout::contiguous(name, operand.shape())?.expand(name, layout.dims())?;
            sources[i] = copy;
        }
    }
    let (dims, strides) = coalesce([&layouts[0], &layouts[1]]);
    let (cols, outer) = dims.split_last().map_or((1, &dims[..]), |(cols, outer)| (*cols, outer));
    let inner = [0, 1].map(|i| strides[i].get(outer.len()).copied().unwrap_or(0));
    let from = [&sources[0][layouts[0].offset()..], &sources[1][layouts[1].offset()..]];
    let mut repeated = Buffer::scratch(if inner[0] == 0 { cols } else { 0 });
    let mut rows = y.chunks_exact_mut(cols);
    for_each_index(outer, [&strides[0][..outer.len()], &strides[1][..outer.len()]], |at| {
        let Some(row) = rows.next() else { return };
        let a = match inner[0] {
            0 => {
                repeated.fill(from[0][at[0]]);
                &repeated[..]
            }
            _ => &from[0][at[0]..at[0] + cols],
        };
        match inner[1] {
            0 => binary_scalar_forward(f, a, from[1][at[1]], row),
            _ => binary_forward(f, a, &from[1][at[1]..at[1] + cols], row),
        }
    });
    Ok(())
}
