//! Activations of `x + bias`, and the gradients of that.

use super::lanes::{Body, LANES, Lanes};
use super::map::{self, Map, Zip, update_row, zip_row};
use super::math;

/// Defines `d_x = f'(x) d_y` as functions of two numbers.
macro_rules! slopes {
    ($($name:ident($x:ident, $d:ident) = $value:expr;)+) => {$(
        #[derive(Clone, Copy)]
        pub(crate) struct $name;
        impl Zip for $name {
            #[inline(always)]
            fn apply<L: Lanes>(self, $x: L, $d: L) -> L {
                $value
            }
        }
    )+};
}

slopes! {
    IdentitySlope(_x, d) = d;
    ReluSlope(x, d) = L::select(x.gt(L::zero()), d, L::zero());
    GeluSlope(x, d) = math::gelu_slope(x).mul(d);
    GeluTanhSlope(x, d) = math::gelu_tanh_slope(x).mul(d);
    SiluSlope(x, d) = math::silu_slope(x).mul(d);
    SoftplusSlope(x, d) = math::sigmoid(x).mul(d);
    SigmoidSlope(x, d) = {
        let (s, rest) = math::sigmoid_and_rest(x);
        s.mul(rest).mul(d)
    };
    TanhSlope(x, d) = {
        // 1 - tanh(x)^2 = 4 s (1 - s) with s = sigmoid(2 x): nothing cancels.
        let (s, rest) = math::sigmoid_and_rest(x.add(x));
        s.mul(rest).mul(L::splat(4.0)).mul(d)
    };
}

/// `d` where `x` is positive, else `.0 * d`.
#[derive(Clone, Copy)]
pub(crate) struct LeakyReluSlope(pub f32);

impl Zip for LeakyReluSlope {
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L, d: L) -> L {
        L::select(x.gt(L::zero()), d, d.mul(L::splat(self.0)))
    }
}

/// `d` where `x` is positive, else `.0 * e^x d`.
#[derive(Clone, Copy)]
pub(crate) struct EluSlope(pub f32);

impl Zip for EluSlope {
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L, d: L) -> L {
        let below = math::exp(x).mul(L::splat(self.0));
        L::select(x.gt(L::zero()), L::splat(1.0), below).mul(d)
    }
}

/// `f(x + bias)` with the bias beside `x`.
#[derive(Clone, Copy)]
struct Biased<F>(F);

impl<F: Map> Zip for Biased<F> {
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L, bias: L) -> L {
        self.0.apply(x.add(bias))
    }
}

/// `y = f(x + bias)` for each row, and `+ residual` where there is one.
pub(crate) struct BiasActivation<'a, F> {
    pub f: F,
    pub x: &'a [f32],
    pub bias: &'a [f32],
    /// As long as `x`, or empty.
    pub residual: &'a [f32],
    pub y: &'a mut [f32],
}

impl<F: Map> Body for BiasActivation<'_, F> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let cols = self.bias.len();
        if self.residual.is_empty() {
            for (x, y) in self.x.chunks_exact(cols).zip(self.y.chunks_exact_mut(cols)) {
                zip_row::<L, _>(Biased(self.f), x, self.bias, y);
            }
            return;
        }
        let (bias, bias_tail) = self.bias.as_chunks::<LANES>();
        let rows = self.x.chunks_exact(cols).zip(self.residual.chunks_exact(cols));
        for ((x, residual), y) in rows.zip(self.y.chunks_exact_mut(cols)) {
            let (x, x_tail) = x.as_chunks::<LANES>();
            let (residual, residual_tail) = residual.as_chunks::<LANES>();
            let (y, y_tail) = y.as_chunks_mut::<LANES>();
            for (((x, bias), residual), y) in x.iter().zip(bias).zip(residual).zip(y) {
                let value = self.f.apply(L::load(x).add(L::load(bias)));
                value.add(L::load(residual)).store(y);
            }
            if !x_tail.is_empty() {
                let value = self.f.apply(L::load_part(x_tail).add(L::load_part(bias_tail)));
                value.add(L::load_part(residual_tail)).store_part(y_tail);
            }
        }
    }
}

/// `d_x = f'(x + bias) d_y` for some rows; its column sums are added to `d_bias`.
pub(crate) struct BiasActivationBackward<'a, F> {
    pub slope: F,
    pub x: &'a [f32],
    pub bias: &'a [f32],
    pub d_y: &'a [f32],
    pub d_x: &'a mut [f32],
    pub d_bias: &'a mut [f32],
}

impl<F: Zip> Body for BiasActivationBackward<'_, F> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let cols = self.bias.len();
        let (bias, bias_tail) = self.bias.as_chunks::<LANES>();
        let rows = self.x.chunks_exact(cols).zip(self.d_y.chunks_exact(cols));
        for ((x, d_y), d_x) in rows.zip(self.d_x.chunks_exact_mut(cols)) {
            let (x, x_tail) = x.as_chunks::<LANES>();
            let (d_y, d_y_tail) = d_y.as_chunks::<LANES>();
            let (d, d_tail) = d_x.as_chunks_mut::<LANES>();
            for (((x, bias), d_y), d) in x.iter().zip(bias).zip(d_y).zip(d) {
                self.slope.apply(L::load(x).add(L::load(bias)), L::load(d_y)).store(d);
            }
            if !x_tail.is_empty() {
                let x = L::load_part(x_tail).add(L::load_part(bias_tail));
                self.slope.apply(x, L::load_part(d_y_tail)).store_part(d_tail);
            }
            // The row is in the first-level cache.
            update_row::<L, _>(map::Add, d_x, self.d_bias);
        }
    }
}
