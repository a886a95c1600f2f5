//! Softmax, log-softmax and cross-entropy over the last axis.

use std::sync::Mutex;

use etude_kernels::elementwise::{Binary, binary_scalar_forward};
use etude_kernels::softmax::{
    cross_entropy_forward, log_softmax_backward, log_softmax_forward, softmax_backward,
    softmax_forward,
};

use crate::autograd::{is_recording, twin_gradients};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::memory::Buffer;
use crate::op::index::{Ids, NO_ID};
use crate::tensor::Tensor;

/// A row-wise kernel: inputs, output, columns.
type Backward = fn(&[f32], &[f32], &mut [f32], usize);

impl Tensor {
    /// Computes `exp(x) / sum(exp(x))` over the last axis.
    ///
    /// # Errors
    /// If there is no axis.
    pub fn softmax(&self) -> Result<Tensor> {
        let cols = self.last_axis("softmax")?;
        let layout = Layout::contiguous("softmax", self.shape())?;
        let mut y = Buffer::scratch(layout.len());
        softmax_forward(&self.compact(), &mut y, cols);
        Ok(Tensor::from_op("softmax", &[self], y, layout, move |v| {
            let d = if is_recording() {
                let axis = v.output.rank() - 1;
                let dot = v.d_output.mul(v.output)?.sum(&[axis], true)?;
                v.d_output.sub(&dot)?.mul(v.output)?
            } else {
                rowwise(softmax_backward, v.output, &v.d_output, cols)
            };
            Ok(vec![Some(d)])
        }))
    }

    /// Computes `x - log(sum(exp(x)))` over the last axis.
    ///
    /// # Errors
    /// If there is no axis.
    pub fn log_softmax(&self) -> Result<Tensor> {
        let cols = self.last_axis("log_softmax")?;
        let layout = Layout::contiguous("log_softmax", self.shape())?;
        let mut y = Buffer::scratch(layout.len());
        log_softmax_forward(&self.compact(), &mut y, cols);
        Ok(Tensor::from_op("log_softmax", &[self], y, layout, move |v| {
            let d = if is_recording() {
                let sum = v.d_output.sum(&[v.output.rank() - 1], true)?;
                v.d_output.sub(&v.output.exp()?.mul(&sum)?)?
            } else {
                rowwise(log_softmax_backward, v.output, &v.d_output, cols)
            };
            Ok(vec![Some(d)])
        }))
    }

    /// The softmax of small operations; it overflows where logits differ by more than 88.
    ///
    /// # Errors
    /// If there is no axis.
    pub fn softmax_plain(&self) -> Result<Tensor> {
        self.last_axis("softmax")?;
        let e = self.exp()?;
        e.div(&e.sum(&[self.rank() - 1], true)?)
    }

    /// The log-softmax of small operations; it overflows where logits exceed 88.
    ///
    /// # Errors
    /// If there is no axis.
    pub fn log_softmax_plain(&self) -> Result<Tensor> {
        self.last_axis("log_softmax")?;
        self.sub(&self.exp()?.sum(&[self.rank() - 1], true)?.log()?)
    }

    /// Computes the mean of `-log softmax(x)[target]` over all rows that have a target.
    ///
    /// Rows whose target is [`NO_ID`] do not count; without any other the loss is 0. The gradient is
    /// made in the same pass.
    ///
    /// # Shapes
    /// `self` `[rows, vocab]`, `targets` `[rows]`, result `[]`.
    ///
    /// # Errors
    /// If the rows differ or a target is not below `vocab`.
    pub fn cross_entropy(&self, targets: &Ids) -> Result<Tensor> {
        let vocab = self.check_targets(targets)?;
        let count = targets.as_slice().iter().filter(|t| **t != NO_ID).count().max(1);
        let mut losses = Buffer::scratch(targets.rows());
        let wants_grad = self.needs_grad() && is_recording();
        let mut d_logits = Buffer::scratch(if wants_grad { self.len() } else { 0 });
        let scale = 1.0 / count as f32;
        let (x, ids) = (self.compact(), targets.as_slice());
        cross_entropy_forward(&x, ids, &mut losses, &mut d_logits, scale, vocab);
        // In f64, or a million small losses would lose their last digits.
        let total: f64 = losses.iter().map(|loss| f64::from(*loss)).sum();
        let loss = Tensor::scalar((total / count as f64) as f32);
        let targets = targets.clone();
        let saved = Mutex::new(Some(d_logits));
        Ok(Tensor::custom("cross_entropy", &[self], &loss, move |v| {
            if is_recording() {
                return twin_gradients(v, |x| x[0].cross_entropy_plain(&targets));
            }
            let mut saved = saved.lock().unwrap_or_else(|e| e.into_inner());
            let d_loss = v.d_output.item()?;
            let taken = if v.last { saved.take() } else { None };
            let d_logits = match (taken, &*saved) {
                (Some(d), _) if d_loss == 1.0 => d,
                (Some(mut d), _) => {
                    d.iter_mut().for_each(|d| *d *= d_loss);
                    d
                }
                (None, Some(kept)) => {
                    let mut d = Buffer::scratch(kept.len());
                    binary_scalar_forward(Binary::Mul, kept, d_loss, &mut d);
                    d
                }
                (None, None) => return Err(Error::argument("cross_entropy", "gradient is gone")),
            };
            let layout = Layout::contiguous("cross_entropy", v.inputs[0].shape())?;
            Ok(vec![Some(Tensor::constant(d_logits, layout))])
        }))
    }

    /// The cross-entropy of small operations: oracle, second derivative, lesson.
    ///
    /// # Errors
    /// As [`Tensor::cross_entropy`].
    pub fn cross_entropy_plain(&self, targets: &Ids) -> Result<Tensor> {
        self.check_targets(targets)?;
        let count = targets.as_slice().iter().filter(|t| **t != NO_ID).count().max(1);
        self.log_softmax()?.gather(targets)?.sum_all()?.scale(-1.0 / count as f32)
    }

    /// Computes `-log softmax(x)[target]` of each row, 0 where there is none; no gradient flows.
    ///
    /// # Shapes
    /// `self` `[rows, vocab]`, `targets` `[rows]`, result `[rows]`.
    ///
    /// # Errors
    /// As [`Tensor::cross_entropy`].
    pub fn cross_entropy_rows(&self, targets: &Ids) -> Result<Tensor> {
        let vocab = self.check_targets(targets)?;
        let layout = Layout::contiguous("cross_entropy", &[targets.rows()])?;
        let mut losses = Buffer::scratch(layout.len());
        let x = self.compact();
        cross_entropy_forward(&x, targets.as_slice(), &mut losses, &mut [], 1.0, vocab);
        Ok(Tensor::constant(losses, layout))
    }

    /// Computes the mean of the binary cross-entropy of `sigmoid(self)` against `targets` in `[0, 1]`:
    /// `max(x, 0) - x * target + log(1 + e^-|x|)`.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn binary_cross_entropy(&self, targets: &Tensor) -> Result<Tensor> {
        if self.shape() != targets.shape() {
            let why = "one target for each logit is wanted";
            return Err(Error::shape("binary_cross_entropy", self.shape(), targets.shape(), why));
        }
        let tail = self.abs()?.neg()?.exp()?.shift(1.0)?.log()?;
        self.relu()?.sub(&self.mul(targets)?)?.add(&tail)?.mean_all()
    }

    fn last_axis(&self, op: &'static str) -> Result<usize> {
        let last = self.shape().last().copied();
        last.ok_or_else(|| Error::shape(op, self.shape(), &[], "at least one axis is wanted"))
    }

    fn check_targets(&self, targets: &Ids) -> Result<usize> {
        let sides = [targets.rows(), targets.active()];
        let fault = |why| Error::shape("cross_entropy", self.shape(), &sides, why);
        let &[rows, vocab] = self.shape() else { return Err(fault("logits have two axes")) };
        if rows != targets.rows() || targets.active() != 1 {
            return Err(fault("one target for each row is wanted"));
        }
        targets.check("cross_entropy", vocab)?;
        Ok(vocab)
    }
}

/// Runs a backward kernel over the rows of an operation's own result, which is contiguous.
fn rowwise(kernel: Backward, y: &Tensor, d_y: &Tensor, cols: usize) -> Tensor {
    let mut d_x = Buffer::scratch(y.len());
    kernel(&y.compact(), &d_y.compact(), &mut d_x, cols);
    Tensor::constant(d_x, *y.layout())
}
