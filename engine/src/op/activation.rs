//! Activations, alone and fused with the bias before them and the residual after them.
//!
//! The gradient needs the argument alone: `d_x = f'(x) d_y`, one pass of a kernel. Where it is
//! recorded it is made of small operations, so that it can be differentiated again.

use etude_kernels::activation::{
    Activation, activation_backward, activation_forward, bias_activation_backward,
    bias_activation_forward,
};

use crate::autograd::{is_recording, twin_gradients};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::memory::Buffer;
use crate::tensor::Tensor;

impl Tensor {
    /// Computes `f(x)`.
    ///
    /// # Errors
    /// None on a processor.
    pub fn activation(&self, f: Activation) -> Result<Tensor> {
        let layout = Layout::contiguous(name(f), self.shape())?;
        let mut y = Buffer::scratch(layout.len());
        activation_forward(f, &self.compact(), &mut y);
        Ok(Tensor::from_op(name(f), &[self], y, layout, move |v| {
            let x = &v.inputs[0];
            if is_recording() {
                return Ok(vec![Some(slope(x, f)?.mul(&v.d_output)?)]);
            }
            let mut d_x = Buffer::scratch(layout.len());
            activation_backward(f, &x.compact(), &v.d_output.compact(), &mut d_x);
            Ok(vec![Some(Tensor::constant(d_x, layout))])
        }))
    }

    /// Computes the hyperbolic tangent.
    ///
    /// # Errors
    /// None on a processor.
    pub fn tanh(&self) -> Result<Tensor> {
        self.activation(Activation::Tanh)
    }

    /// Computes `1 / (1 + e^-x)`.
    ///
    /// # Errors
    /// None on a processor.
    pub fn sigmoid(&self) -> Result<Tensor> {
        self.activation(Activation::Sigmoid)
    }

    /// Computes `max(x, 0)`.
    ///
    /// # Errors
    /// None on a processor.
    pub fn relu(&self) -> Result<Tensor> {
        self.activation(Activation::Relu)
    }

    /// Computes `x` where positive, else `slope * x`.
    ///
    /// # Errors
    /// None on a processor.
    pub fn leaky_relu(&self, slope: f32) -> Result<Tensor> {
        self.activation(Activation::LeakyRelu(slope))
    }

    /// Computes `x * Phi(x)`, Phi being the normal distribution function.
    ///
    /// # Errors
    /// None on a processor.
    ///
    /// # Source
    /// Hendrycks & Gimpel 2016.
    pub fn gelu(&self) -> Result<Tensor> {
        self.activation(Activation::Gelu)
    }

    /// Computes the GELU by a hyperbolic tangent: `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
    ///
    /// # Errors
    /// None on a processor.
    ///
    /// # Source
    /// Hendrycks & Gimpel 2016.
    pub fn gelu_tanh(&self) -> Result<Tensor> {
        self.activation(Activation::GeluTanh)
    }

    /// Computes `x / (1 + e^-x)`.
    ///
    /// # Errors
    /// None on a processor.
    ///
    /// # Source
    /// Elfwing, Uchibe & Doya 2018.
    pub fn silu(&self) -> Result<Tensor> {
        self.activation(Activation::Silu)
    }

    /// Computes `x` where positive, else `alpha * (e^x - 1)`.
    ///
    /// # Errors
    /// None on a processor.
    ///
    /// # Source
    /// Clevert, Unterthiner & Hochreiter 2016.
    pub fn elu(&self, alpha: f32) -> Result<Tensor> {
        self.activation(Activation::Elu(alpha))
    }

    /// Computes `ln(1 + e^x)`.
    ///
    /// # Errors
    /// None on a processor.
    pub fn softplus(&self) -> Result<Tensor> {
        self.activation(Activation::Softplus)
    }

    /// Computes `f(x + bias)`, plus `residual` where there is one, in one pass.
    ///
    /// # Shapes
    /// `self`, `residual`, result `[.., width]`; `bias` `[width]`.
    ///
    /// # Errors
    /// If the widths or the shapes differ.
    pub fn bias_activation(
        &self,
        bias: &Tensor,
        residual: Option<&Tensor>,
        f: Activation,
    ) -> Result<Tensor> {
        self.check_bias(bias, residual)?;
        let layout = Layout::contiguous("bias_activation", self.shape())?;
        let mut y = Buffer::scratch(layout.len());
        if !y.is_empty() {
            let added = residual.map(Tensor::compact);
            let (x, b) = (self.compact(), bias.compact());
            bias_activation_forward(f, &x, &b, added.as_deref(), &mut y);
        }
        let mut inputs = vec![self, bias];
        inputs.extend(residual);
        Ok(Tensor::from_op("bias_activation", &inputs, y, layout, move |v| {
            if is_recording() {
                return twin_gradients(v, |x| x[0].bias_activation_plain(&x[1], x.get(2), f));
            }
            let (x, b) = (v.inputs[0].compact(), v.inputs[1].compact());
            let mut d_x = Buffer::scratch(x.len());
            let mut d_b = Buffer::zeros(b.len());
            if !x.is_empty() {
                bias_activation_backward(f, &x, &b, &v.d_output.compact(), &mut d_x, &mut d_b);
            }
            let row = *v.inputs[1].layout();
            let row = Layout::contiguous("bias_activation", row.dims())?;
            let mut d = vec![Some(Tensor::constant(d_x, layout)), Some(Tensor::constant(d_b, row))];
            d.resize(v.inputs.len(), Some(v.d_output));
            Ok(d)
        }))
    }

    /// The same of small operations: oracle, second derivative, lesson.
    ///
    /// # Errors
    /// As [`Tensor::bias_activation`].
    pub fn bias_activation_plain(
        &self,
        bias: &Tensor,
        residual: Option<&Tensor>,
        f: Activation,
    ) -> Result<Tensor> {
        self.check_bias(bias, residual)?;
        let y = self.add(bias)?.activation(f)?;
        residual.map_or(Ok(y.clone()), |residual| y.add(residual))
    }

    fn check_bias(&self, bias: &Tensor, residual: Option<&Tensor>) -> Result<()> {
        let fault = |other: &Tensor, why| {
            Err(Error::shape("bias_activation", self.shape(), other.shape(), why))
        };
        if self.rank() == 0 || self.shape().last() != bias.shape().first() || bias.rank() != 1 {
            return fault(bias, "the bias has the size of the last axis");
        }
        match residual {
            Some(residual) if residual.shape() != self.shape() => {
                fault(residual, "the residual has the shape of the input")
            }
            _ => Ok(()),
        }
    }
}

fn name(f: Activation) -> &'static str {
    match f {
        Activation::Identity => "identity",
        Activation::Relu => "relu",
        Activation::LeakyRelu(_) => "leaky_relu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_tanh",
        Activation::Silu => "silu",
        Activation::Tanh => "tanh",
        Activation::Sigmoid => "sigmoid",
        Activation::Elu(_) => "elu",
        Activation::Softplus => "softplus",
    }
}

/// The derivative at each element, of operations that have derivatives themselves.
fn slope(x: &Tensor, f: Activation) -> Result<Tensor> {
    match f {
        Activation::Identity => Tensor::ones(x.shape()),
        Activation::Relu => x.step(),
        Activation::LeakyRelu(slope) => x.step()?.affine(1.0 - slope, slope),
        Activation::Gelu => {
            let phi = x.mul(x)?.scale(-0.5)?.exp()?.scale(1.0 / std::f32::consts::TAU.sqrt())?;
            let cdf = x.scale(std::f32::consts::FRAC_1_SQRT_2)?.erf()?.affine(0.5, 0.5)?;
            cdf.add(&x.mul(&phi)?)
        }
        Activation::GeluTanh => {
            // x s(u) with u = 2 sqrt(2 / pi) (x + c x^3): s + x s (1 - s) u'.
            let twice = 2.0 * (2.0 / std::f32::consts::PI).sqrt();
            let square = x.mul(x)?;
            let s = square.affine(0.044_715 * twice, twice)?.mul(x)?.sigmoid()?;
            let u_slope = square.affine(3.0 * 0.044_715 * twice, twice)?;
            s.affine(-1.0, 1.0)?.mul(&u_slope)?.mul(x)?.shift(1.0)?.mul(&s)
        }
        Activation::Silu => {
            let s = x.sigmoid()?;
            s.affine(-1.0, 1.0)?.mul(x)?.shift(1.0)?.mul(&s)
        }
        Activation::Tanh => {
            let y = x.tanh()?;
            y.mul(&y)?.affine(-1.0, 1.0)
        }
        Activation::Sigmoid => {
            let y = x.sigmoid()?;
            y.affine(-1.0, 1.0)?.mul(&y)
        }
        Activation::Elu(alpha) => {
            let positive = x.step()?;
            let below = x.sub(&x.relu()?)?.exp()?.scale(alpha)?;
            positive.affine(-1.0, 1.0)?.mul(&below)?.add(&positive)
        }
        Activation::Softplus => x.sigmoid(),
    }
}
