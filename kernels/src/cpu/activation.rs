//! Activations of `x + bias`, and the gradients of that.

use super::bypass::before_line;
use super::lanes::{Body, LANES, Lanes, Numbers};
use super::map::{Map, Zip, load_three, put, put_three, zip_out};
use super::math;
use super::three::{Three, threes, threes_mut};

/// Defines `d_x = f'(x) d_y` as functions of two numbers.
macro_rules! slopes {
    ($long:literal: $($name:ident($x:ident, $d:ident) = $value:expr;)+) => {$(
        #[derive(Clone, Copy)]
        pub(crate) struct $name;
        impl $name {
            #[inline(always)]
            fn of<L: Numbers>($x: L, $d: L) -> L {
                $value
            }
        }
        impl Zip for $name {
            const LONG: bool = $long;
            #[inline(always)]
            fn apply<L: Lanes>(self, x: L, d: L) -> L {
                Self::of(x, d)
            }
            #[inline(always)]
            fn apply_three<L: Lanes>(self, x: Three<L>, d: Three<L>) -> Three<L> {
                Self::of(x, d)
            }
        }
    )+};
}

slopes! { false:
    IdentitySlope(_x, d) = d;
    ReluSlope(x, d) = L::select(x.gt(L::zero()), d, L::zero());
}

slopes! { true:
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

#[inline(always)]
fn elu_slope<L: Numbers>(alpha: f32, x: L, d: L) -> L {
    let below = math::exp(x).mul(L::splat(alpha));
    L::select(x.gt(L::zero()), L::splat(1.0), below).mul(d)
}

impl Zip for EluSlope {
    const LONG: bool = true;
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L, d: L) -> L {
        elu_slope(self.0, x, d)
    }
    #[inline(always)]
    fn apply_three<L: Lanes>(self, x: Three<L>, d: Three<L>) -> Three<L> {
        elu_slope(self.0, x, d)
    }
}

/// `f(x + bias)` with the bias beside `x`.
#[derive(Clone, Copy)]
struct Biased<F>(F);

impl<F: Map> Zip for Biased<F> {
    const LONG: bool = F::LONG;
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L, bias: L) -> L {
        self.0.apply(x.add(bias))
    }
    #[inline(always)]
    fn apply_three<L: Lanes>(self, x: Three<L>, bias: Three<L>) -> Three<L> {
        self.0.apply_three(x.add(bias))
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
    /// Whether the result goes past the cache.
    pub past: bool,
}

/// `y = f(x + bias) + residual`
#[inline(always)]
fn residual_blocks<L: Lanes, F: Map, const PAST: bool>(
    f: F,
    x: &[f32],
    bias: &[f32],
    residual: &[f32],
    y: &mut [f32],
) {
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (bias, bias_tail) = bias.as_chunks::<LANES>();
    let (residual, residual_tail) = residual.as_chunks::<LANES>();
    let (y, y_tail) = y.as_chunks_mut::<LANES>();
    let (x_threes, x) = threes(L::ROWS_IN_TURN && F::LONG, x);
    let (bias_threes, bias) = threes(L::ROWS_IN_TURN && F::LONG, bias);
    let (residual_threes, residual) = threes(L::ROWS_IN_TURN && F::LONG, residual);
    let (y_threes, y) = threes_mut(L::ROWS_IN_TURN && F::LONG, y);
    for (((x, bias), residual), y) in
        x_threes.iter().zip(bias_threes).zip(residual_threes).zip(y_threes)
    {
        let value = f.apply_three(load_three::<L>(x).add(load_three(bias)));
        put_three::<L, PAST>(value.add(load_three(residual)), y);
    }
    for (((x, bias), residual), y) in x.iter().zip(bias).zip(residual).zip(y) {
        let value = f.apply(L::load(x).add(L::load(bias)));
        put::<L, PAST>(value.add(L::load(residual)), y);
    }
    if !x_tail.is_empty() {
        let value = f.apply(L::load_part(x_tail).add(L::load_part(bias_tail)));
        value.add(L::load_part(residual_tail)).store_part(y_tail);
    }
}

impl<F: Map> Body for BiasActivation<'_, F> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (f, bias, cols) = (self.f, self.bias, self.bias.len());
        let rows = self.x.chunks_exact(cols).zip(self.y.chunks_exact_mut(cols));
        if self.residual.is_empty() {
            for (x, y) in rows {
                zip_out::<L, _>(self.past, Biased(f), x, bias, y);
            }
            return;
        }
        for ((x, y), residual) in rows.zip(self.residual.chunks_exact(cols)) {
            let head = if self.past { before_line(y) } else { cols };
            let ((x, x_rest), (b, b_rest)) = (x.split_at(head), bias.split_at(head));
            let ((r, r_rest), (y, y_rest)) = (residual.split_at(head), y.split_at_mut(head));
            residual_blocks::<L, F, false>(f, x, b, r, y);
            if self.past {
                residual_blocks::<L, F, true>(f, x_rest, b_rest, r_rest, y_rest);
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
    /// Whether the result goes past the cache.
    pub past: bool,
}

#[inline(always)]
fn backward_blocks<L: Lanes, F: Zip, const PAST: bool>(
    slope: F,
    x: &[f32],
    bias: &[f32],
    d_y: &[f32],
    d_x: &mut [f32],
    d_bias: &mut [f32],
) {
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (bias, bias_tail) = bias.as_chunks::<LANES>();
    let (d_y, d_y_tail) = d_y.as_chunks::<LANES>();
    let (d_x, d_x_tail) = d_x.as_chunks_mut::<LANES>();
    let (d_bias, d_bias_tail) = d_bias.as_chunks_mut::<LANES>();
    let (x_threes, x) = threes(L::ROWS_IN_TURN && F::LONG, x);
    let (bias_threes, bias) = threes(L::ROWS_IN_TURN && F::LONG, bias);
    let (d_y_threes, d_y) = threes(L::ROWS_IN_TURN && F::LONG, d_y);
    let (d_x_threes, d_x) = threes_mut(L::ROWS_IN_TURN && F::LONG, d_x);
    let (d_bias_threes, d_bias) = threes_mut(L::ROWS_IN_TURN && F::LONG, d_bias);
    for ((((x, bias), d_y), d_x), d_bias) in
        x_threes.iter().zip(bias_threes).zip(d_y_threes).zip(d_x_threes).zip(d_bias_threes)
    {
        let d = slope.apply_three(load_three::<L>(x).add(load_three(bias)), load_three(d_y));
        put_three::<L, PAST>(d, d_x);
        put_three::<L, false>(d.add(load_three(d_bias)), d_bias);
    }
    for ((((x, bias), d_y), d_x), d_bias) in x.iter().zip(bias).zip(d_y).zip(d_x).zip(d_bias) {
        let d = slope.apply(L::load(x).add(L::load(bias)), L::load(d_y));
        put::<L, PAST>(d, d_x);
        d.add(L::load(d_bias)).store(d_bias);
    }
    if !x_tail.is_empty() {
        let x = L::load_part(x_tail).add(L::load_part(bias_tail));
        let d = slope.apply(x, L::load_part(d_y_tail));
        d.store_part(d_x_tail);
        d.add(L::load_part(d_bias_tail)).store_part(d_bias_tail);
    }
}

impl<F: Zip> Body for BiasActivationBackward<'_, F> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (slope, cols) = (self.slope, self.bias.len());
        let rows = self.x.chunks_exact(cols).zip(self.d_y.chunks_exact(cols));
        for ((x, d_y), d_x) in rows.zip(self.d_x.chunks_exact_mut(cols)) {
            let head = if self.past { before_line(d_x) } else { cols };
            let ((x, x_rest), (b, b_rest)) = (x.split_at(head), self.bias.split_at(head));
            let ((d, d_rest), (d_x, d_x_rest)) = (d_y.split_at(head), d_x.split_at_mut(head));
            let (sums, sums_rest) = self.d_bias.split_at_mut(head);
            backward_blocks::<L, F, false>(slope, x, b, d, d_x, sums);
            if self.past {
                backward_blocks::<L, F, true>(slope, x_rest, b_rest, d_rest, d_x_rest, sums_rest);
            }
        }
    }
}
