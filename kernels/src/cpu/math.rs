//! Vector forms of the functions of analysis, for f32.
//!
//! Each is a reduction to a small interval and a polynomial fitted to the least largest error on it
//! (coefficients rounded to f32 one after the other, the rest fitted again). The same operations in
//! the same order on every tier: bit-equal results. The stated errors are the largest ones over all
//! arguments, measured against f64 by `kernels/tests/math.rs`.

use super::lanes::{Lanes, Numbers};
use std::f32::consts::{LN_2, LOG2_E};

/// ln 2 less its f32 value: the second word of a product that must not lose its tail.
const LN_2_TAIL: f32 = -1.904_654_3e-9;
/// Adding 1.5 * 2^23 rounds to a whole number and leaves it in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Splits `x` into `n ln 2 + r` with whole `n` and `|r| <= ln(2) / 2`; returns `n + ROUND`, `n`, `r`.
#[inline(always)]
fn reduce<L: Numbers>(x: L) -> (L, L, L) {
    let shifted = x.mul_add(L::splat(LOG2_E), L::splat(ROUND));
    let n = shifted.sub(L::splat(ROUND));
    let r = n.neg_mul_add(L::splat(LN_2), x);
    (shifted, n, n.neg_mul_add(L::splat(LN_2_TAIL), r))
}

/// Computes the polynomial `c[0] + c[1] x + ...` by Horner's rule.
#[inline(always)]
fn polynomial<L: Numbers, const N: usize>(x: L, c: [f32; N]) -> L {
    let mut sum = L::splat(c[N - 1]);
    let mut k = N - 1;
    while k > 0 {
        k -= 1;
        sum = sum.mul_add(x, L::splat(c[k])).meet();
    }
    sum
}

/// `e^x` for `-104 <= x <= 89` or NaN.
#[inline(always)]
fn exp_inside<L: Numbers>(x: L) -> L {
    let (_, n, r) = reduce(x);
    // exp(r), relative error of the polynomial 3.2e-9.
    let c = [1.0, 1.0, 0.499_999_94, 0.166_665_21, 0.041_668_266, 0.008_368_676, 0.001_382_069];
    polynomial(r, c).scale(n)
}

/// `e^x`, within 2 ulp.
#[inline(always)]
pub(crate) fn exp<L: Numbers>(x: L) -> L {
    // Beyond these bounds the result is 0 or infinite; the order of operands lets NaN through.
    exp_inside(L::splat(-104.0).max(L::splat(89.0).min(x)))
}

/// `1 / (1 + e^-x)`, within 3 ulp, absolute error 1e-7.
#[inline(always)]
pub(crate) fn sigmoid<L: Numbers>(x: L) -> L {
    // With z = exp(-|x|) <= 1 nothing overflows: 1 / (1 + z), or z / (1 + z) for negative x.
    let negative = L::from_bits(L::or(x.bits(), L::ints(i32::MIN)));
    let z = exp_inside(L::splat(-104.0).max(negative));
    let above = L::select(x.lt(L::zero()), z, L::splat(1.0));
    above.div(z.add(L::splat(1.0)))
}

/// `tanh x`, within 3 ulp, absolute error 1.5e-7.
#[inline(always)]
pub(crate) fn tanh<L: Numbers>(x: L) -> L {
    // -m / (m + 2) with m = exp(-2|x|) - 1, which keeps the relative precision near 0.
    // tanh(9.2) rounds to 1; the order of operands lets NaN through.
    let t = L::splat(9.2).min(x.abs()).mul(L::splat(-2.0));
    let (shifted, _, r) = reduce(t);
    // exp(r) - 1, relative error of the polynomial 1.4e-8.
    let c = [0.499_999_97, 0.166_665_46, 0.041_667_435, 0.008_366_262, 0.001_387_065_6];
    let less_one = polynomial(r, c).mul(r).mul_add(r, r);
    let power = L::from_bits(L::int_add(L::shift_left::<23>(shifted.bits()), L::ints(0x3f80_0000)));
    let m = power.mul_add(less_one, power.sub(L::splat(1.0)));
    let y = m.abs().div(m.add(L::splat(2.0)));
    L::from_bits(L::or(y.bits(), x.sign()))
}

/// `ln x`, within 2 ulp; NaN below 0.
#[inline(always)]
pub(crate) fn log<L: Numbers>(x: L) -> L {
    // Denormal numbers have no exponent: scaled by 2^23, they get one.
    let tiny = x.lt(L::splat(f32::MIN_POSITIVE));
    let scaled = L::select(tiny, x.mul(L::splat(8_388_608.0)), x);
    let less = L::select(tiny, L::splat(-23.0), L::zero());
    // x = 2^n m with sqrt(1/2) <= m < sqrt(2), so that ln m has no jump at 1.
    let root_half = L::ints(0x3f35_04f3);
    let bits = L::int_sub(scaled.bits(), root_half);
    let n = L::int_add(L::shift_right::<23>(bits), L::splat(ROUND).bits());
    let n = L::from_bits(n).sub(L::splat(ROUND)).add(less);
    let m = L::from_bits(L::int_add(L::and(bits, L::ints(0x007f_ffff)), root_half));
    let f = m.sub(L::splat(1.0));
    // (ln(1 + f) - f) / f^2, relative error 4.2e-9 of ln(1 + f).
    let c = [
        -0.499_999_88,
        0.333_333_25,
        -0.250_016_1,
        0.200_020_13,
        -0.166_084_3,
        0.141_805_96,
        -0.132_475,
        0.129_147_29,
        -0.076_231_7,
    ];
    let log_m = polynomial(f, c).mul(f).mul_add(f, f);
    // One word of ln 2 will do: its tail is 3e-9 of the result.
    let y = n.mul_add(L::splat(LN_2), log_m);
    let below = L::select(x.eq(L::zero()), L::splat(f32::NEG_INFINITY), L::splat(f32::NAN));
    let y = L::select(x.gt(L::zero()), y, below);
    L::select(x.lt(L::splat(f32::INFINITY)), y, x)
}

/// Beyond this the reduction of [`sin_cos`] runs out of bits.
const FAR: f32 = 65_536.0;

/// `(sin x, cos x)`, within 2 ulp for `|x| <= 65536`; other lanes hold nothing of use.
#[inline(always)]
pub(crate) fn sin_cos_near<L: Numbers>(x: L) -> (L, L) {
    let shifted = x.mul_add(L::splat(std::f32::consts::FRAC_2_PI), L::splat(ROUND));
    let n = shifted.sub(L::splat(ROUND));
    // Three words of pi / 2: x may be as near to a multiple of it as 2^-24 x.
    let r = n.neg_mul_add(L::splat(std::f32::consts::FRAC_PI_2), x);
    let r = n.neg_mul_add(L::splat(-4.371_139e-8), r);
    let r = n.neg_mul_add(L::splat(-1.715_124_5e-15), r);
    let z = r.mul(r);
    let sin = polynomial(z, [-0.166_666_67, 0.008_333_38, -1.985_350_5e-4, 2.837_395_2e-6]);
    let sin = sin.mul(z).mul_add(r, r);
    let cos = polynomial(z, [0.041_666_646, -0.001_388_731, 2.443_255_3e-5]);
    let cos = cos.mul_add(z, L::splat(-0.5)).mul_add(z, L::splat(1.0));
    // Quarter turns: odd ones swap the two, the second bit turns the sign.
    let quarter = shifted.bits();
    let one = L::ints(0x3f80_0000);
    let odd = L::from_bits(L::or(L::shift_left::<31>(quarter), one)).lt(L::zero());
    let next = L::int_add(quarter, L::ints(1));
    (turn(L::select(odd, cos, sin), quarter), turn(L::select(odd, sin, cos), next))
}

/// Turns the sign of `y` where the second bit of `quarter` is set.
#[inline(always)]
fn turn<L: Numbers>(y: L, quarter: L::Ints) -> L {
    let sign = L::and(L::shift_left::<30>(quarter), L::ints(i32::MIN));
    L::from_bits(L::xor(y.bits(), sign))
}

/// Replaces the lanes of `y` where `|x| > FAR` by `f` in f64.
#[inline(always)]
fn far<L: Lanes>(x: L, y: L, f: fn(f64) -> f64) -> L {
    if x.abs().reduce_max() <= FAR {
        return y;
    }
    let (mut xs, mut ys) = ([0.0; 16], [0.0; 16]);
    x.store(&mut xs);
    y.store(&mut ys);
    for (x, y) in xs.iter().zip(&mut ys) {
        if x.abs() > FAR {
            *y = f(f64::from(*x)) as f32;
        }
    }
    L::load(&ys)
}

/// `sin x`, within 2 ulp.
#[inline(always)]
pub(crate) fn sin<L: Lanes>(x: L) -> L {
    let y = far(x, sin_cos_near(x).0, f64::sin);
    // The reduction loses the sign of -0.
    L::select(x.eq(L::zero()), x, y)
}

/// `cos x`, within 2 ulp.
#[inline(always)]
pub(crate) fn cos<L: Lanes>(x: L) -> L {
    far(x, sin_cos_near(x).1, f64::cos)
}

/// Where [`erf`] passes from one polynomial to the other.
const ERF_SPLIT: f32 = 0.95;

/// `erf(x) / x - 1` for `|x| <= 0.95`, given `x^2`; relative error 9.1e-10 of `erf(x) / x`.
#[inline(always)]
fn erf_small<L: Numbers>(square: L) -> L {
    let c = [
        0.128_379_17,
        -0.376_126_3,
        0.112_836_26,
        -0.026_855_74,
        0.005_192_460_5,
        -8.050_804e-4,
        8.002_775e-5,
    ];
    polynomial(square, c)
}

/// `erfc(a)` for `a >= 0.95`: absolute error 4.9e-8, and 1e-4 of its size as far as `a = 9.3`.
#[inline(always)]
fn erfc_large<L: Numbers>(a: L) -> L {
    let c = [
        -4.647_736_5e-4,
        -1.127_030_6,
        -0.637_180_8,
        -0.105_318_14,
        0.023_970_54,
        -0.004_017_095_5,
        4.699_345e-4,
        -3.590_740_4e-5,
        1.598_939_5e-6,
        -3.132_550_2e-8,
    ];
    let y = exp_inside(polynomial(L::splat(9.3).min(a), c));
    L::select(a.gt(L::splat(9.3)), L::zero(), y)
}

/// `erf x`, within 2 ulp.
#[inline(always)]
pub(crate) fn erf<L: Numbers>(x: L) -> L {
    let a = x.abs();
    let small = erf_small(x.mul(x)).mul_add(x, x);
    let large = L::splat(1.0).sub(erfc_large(a));
    let large = L::from_bits(L::or(large.bits(), x.sign()));
    // The order of operands sends NaN to `small`, where it stays NaN.
    L::select(a.gt(L::splat(ERF_SPLIT)), large, small)
}

/// From here on the upper tail of the normal distribution is below all numbers.
const TAIL_END: f32 = 13.0;

/// `2^(x - 1)` for `-126.5 < x < 127.5`, 0 where that is denormal; relative error 1.5e-7.
#[inline(always)]
fn half_exp2<L: Numbers>(x: L) -> L {
    let shifted = x.add(L::splat(ROUND));
    let r = x.sub(shifted.sub(L::splat(ROUND)));
    // Relative error of the polynomial 9.4e-8.
    #[allow(clippy::approx_constant)] // fitted together with the others: near ln 2, not ln 2
    let c = [1.0, 0.693_147, 0.240_222_47, 0.055_507_11, 0.009_671_294, 0.001_326_960_3];
    let power = L::from_bits(L::int_add(L::shift_left::<23>(shifted.bits()), L::ints(0x3f00_0000)));
    polynomial(r, c).mul(power)
}

/// `1 - Phi(a)` for `0 <= a <= TAIL_END`: absolute error 1e-7, and 1.2e-4 of its size.
#[inline(always)]
fn upper_tail<L: Numbers>(a: L) -> L {
    // log2(2 (1 - Phi(a))) / a
    let c = [
        -1.151_108,
        -0.459_179_16,
        -0.052_587_815,
        0.007_183_308,
        -2.009_902_4e-4,
        -1.839_267e-4,
        5.058_867_5e-5,
        -7.199_955e-6,
        6.307_796e-7,
        -3.404_965e-8,
        1.040_068_6e-9,
        -1.376_836_8e-11,
    ];
    half_exp2(polynomial(a, c).mul(a))
}

/// `x Phi(x)`, absolute error 2e-7 of `max(1, |x|)`; no cancellation in the left tail.
#[inline(always)]
pub(crate) fn gelu<L: Numbers>(x: L) -> L {
    // max(x, 0) - |x| (1 - Phi(|x|)): one formula for both sides. Bounds let NaN through.
    let a = L::splat(TAIL_END).min(x.abs());
    upper_tail(a).neg_mul_add(a, L::splat(-0.0).max(x))
}

/// The derivative of [`gelu`]: `Phi(x) + x phi(x)`, absolute error 3e-7.
#[inline(always)]
pub(crate) fn gelu_slope<L: Numbers>(x: L) -> L {
    let a = L::splat(TAIL_END).min(x.abs());
    let tail = upper_tail(a);
    // phi(a) = 2^(log2(sqrt(2 / pi)) - a^2 log2(e) / 2 - 1)
    let phi = half_exp2(a.mul(a).mul_add(L::splat(-0.5 * LOG2_E), L::splat(-0.325_748_1)));
    // Odd about (0, 1/2): on the left 1 - Phi(a) - a phi(a), on the right one less that.
    let left = phi.neg_mul_add(a, tail);
    L::select(x.gt(L::zero()), L::splat(1.0).sub(left), left)
}

/// `sigmoid(x)` and `1 - sigmoid(x)`, both within 3 ulp.
#[inline(always)]
pub(crate) fn sigmoid_and_rest<L: Numbers>(x: L) -> (L, L) {
    let negative = L::from_bits(L::or(x.bits(), L::ints(i32::MIN)));
    let z = exp_inside(L::splat(-104.0).max(negative));
    let near = L::splat(1.0).div(z.add(L::splat(1.0)));
    let far = z.mul(near);
    let below = x.lt(L::zero());
    (L::select(below, far, near), L::select(below, near, far))
}

/// `e^x - 1` for `x <= 0` or NaN, within 3 ulp.
#[inline(always)]
pub(crate) fn exp_less_one<L: Numbers>(x: L) -> L {
    // exp(-20) is below half an ulp of 1.
    let (shifted, _, r) = reduce(L::splat(-20.0).max(x));
    let c = [0.499_999_97, 0.166_665_46, 0.041_667_435, 0.008_366_262, 0.001_387_065_6];
    let less_one = polynomial(r, c).mul(r).mul_add(r, r);
    let power = L::from_bits(L::int_add(L::shift_left::<23>(shifted.bits()), L::ints(0x3f80_0000)));
    power.mul_add(less_one, power.sub(L::splat(1.0)))
}

/// `ln(1 + e^x)`, within 4 ulp.
#[inline(always)]
pub(crate) fn softplus<L: Numbers>(x: L) -> L {
    let negative = L::from_bits(L::or(x.bits(), L::ints(i32::MIN)));
    let z = exp_inside(L::splat(-104.0).max(negative));
    // ln(1 + z) as the logarithm of the rounded sum, and what the rounding lost.
    let sum = z.add(L::splat(1.0));
    let lost = z.sub(sum.sub(L::splat(1.0)));
    let tail = log(sum).add(lost.div(sum));
    // The order of operands keeps NaN.
    L::zero().max(x).add(tail)
}

/// Where `sigmoid` of an argument of `x` alone has long been 0 or 1.
const FLAT: f32 = 104.0;

/// `x` within `[-FLAT, FLAT]`; NaN stays.
#[inline(always)]
fn within_flat<L: Numbers>(x: L) -> L {
    L::splat(-FLAT).max(L::splat(FLAT).min(x))
}

/// `x sigmoid(x)`, within 4 ulp.
#[inline(always)]
pub(crate) fn silu<L: Numbers>(x: L) -> L {
    // The bound keeps 0 times infinity away.
    L::splat(-FLAT).max(x).mul(sigmoid(x))
}

/// The derivative of [`silu`]: `s (1 + x (1 - s))`.
#[inline(always)]
pub(crate) fn silu_slope<L: Numbers>(x: L) -> L {
    let (s, rest) = sigmoid_and_rest(x);
    within_flat(x).mul(rest).mul_add(s, s)
}

/// `2 sqrt(2 / pi)`
const TWICE: f32 = 1.595_769;
/// The coefficient of the cube in the tanh form of GELU.
const CUBE: f32 = 0.044_715;
/// Beyond this the tanh form of GELU is 0 or `x`.
const GELU_FLAT: f32 = 16.0;

/// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, as `x sigmoid` of twice that argument.
#[inline(always)]
pub(crate) fn gelu_tanh<L: Numbers>(x: L) -> L {
    let c = L::splat(-GELU_FLAT).max(L::splat(GELU_FLAT).min(x));
    let u = c.mul(c).mul_add(L::splat(TWICE * CUBE), L::splat(TWICE)).mul(c);
    L::splat(-GELU_FLAT).max(x).mul(sigmoid(u))
}

/// The derivative of [`gelu_tanh`]: `s + x s (1 - s) u'`.
#[inline(always)]
pub(crate) fn gelu_tanh_slope<L: Numbers>(x: L) -> L {
    let c = L::splat(-GELU_FLAT).max(L::splat(GELU_FLAT).min(x));
    let square = c.mul(c);
    let u = square.mul_add(L::splat(TWICE * CUBE), L::splat(TWICE)).mul(c);
    let slope = square.mul_add(L::splat(3.0 * TWICE * CUBE), L::splat(TWICE));
    let (s, rest) = sigmoid_and_rest(u);
    c.mul(slope).mul(rest).mul_add(s, s)
}
