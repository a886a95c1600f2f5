//! Sixteen f32 at a time, on every instruction set.
//!
//! A kernel body is written once over the trait [`Lanes`] ([`Numbers`] without loads and stores) and
//! compiled once per tier. A value is always sixteen numbers wide: one register of AVX-512, two of AVX2,
//! four of NEON, an array in plain Rust. Every operation is exactly rounded (multiply-adds are fused
//! everywhere) and every reduction is the same tree, so a body gives the same bits on every tier.
//!
//! The methods are `inline(always)` and carry no `target_feature`: they take on the features of the
//! shell in [`dispatch`] into which the whole body is inlined.

use crate::isa::{self, Isa};

/// Numbers in a [`Lanes`] value.
pub(crate) const LANES: usize = 16;

/// What fills one [`Lanes`] value.
pub(crate) type Block = [f32; LANES];

/// Numbers that are computed with side by side: what a function of analysis needs.
///
/// Implementations are named by [`dispatch`] alone, which checks that this machine has their
/// instructions: that is what makes the methods sound.
pub(crate) trait Numbers: Copy {
    /// As many i32, wrapping.
    type Ints: Copy;
    /// As many yes-or-no.
    type Mask: Copy;

    fn splat(x: f32) -> Self;

    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    fn div(self, b: Self) -> Self;
    fn sqrt(self) -> Self;
    /// `self * b + c`, rounded once.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// `c - self * b`, rounded once.
    fn neg_mul_add(self, b: Self, c: Self) -> Self;
    /// `self > b ? self : b`, so `b` where either is NaN.
    fn max(self, b: Self) -> Self;
    /// `self < b ? self : b`, so `b` where either is NaN.
    fn min(self, b: Self) -> Self;
    /// `self * 2^n`, rounded once, for `1 <= self <= 2` and whole `-252 <= n <= 252`.
    fn scale(self, n: Self) -> Self;

    fn lt(self, b: Self) -> Self::Mask;
    /// False where either is NaN.
    fn gt(self, b: Self) -> Self::Mask;
    fn eq(self, b: Self) -> Self::Mask;
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;

    fn ints(x: i32) -> Self::Ints;
    fn bits(self) -> Self::Ints;
    fn from_bits(x: Self::Ints) -> Self;
    fn and(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn or(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn xor(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn int_add(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn int_sub(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn shift_left<const N: u32>(a: Self::Ints) -> Self::Ints;
    /// Shifts right, copying the sign.
    fn shift_right<const N: u32>(a: Self::Ints) -> Self::Ints;

    /// Keeps its place among other meetings: they stay in the order of the program, with what computes
    /// `self` before and what uses it behind. Where it does something it is an `asm!` without `pure`,
    /// which is what keeps that order.
    ///
    /// A compiler that meets one chain of dependent steps beside another puts the second one behind
    /// the first; then the processor, which sees some hundred instructions ahead, waits for each
    /// step of a chain. A meeting after each step keeps the chains side by side.
    #[inline(always)]
    fn meet(self) -> Self {
        self
    }

    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Self::from_bits(Self::and(self.bits(), Self::ints(0x7fff_ffff)))
    }
    #[inline(always)]
    fn neg(self) -> Self {
        Self::from_bits(Self::xor(self.bits(), Self::ints(i32::MIN)))
    }
    /// The sign bit of each lane.
    #[inline(always)]
    fn sign(self) -> Self::Ints {
        Self::and(self.bits(), Self::ints(i32::MIN))
    }
}

/// Sixteen f32.
pub(crate) trait Lanes: Numbers {
    /// Whether long functions run faster on [`Three`](super::three::Three) at a time.
    const IN_TURN: bool = false;
    /// Likewise where a row is visited again, or three arrays pass at once.
    const ROWS_IN_TURN: bool = Self::IN_TURN;

    fn load(x: &Block) -> Self;
    /// Loads the fewer than sixteen numbers of `x`; the other lanes are 0.
    fn load_part(x: &[f32]) -> Self;
    fn store(self, y: &mut Block);
    /// Stores the first `y.len() < 16` lanes.
    fn store_part(self, y: &mut [f32]);
    /// Stores past the cache; `y` lies on a cache line (64 bytes).
    #[inline(always)]
    fn stream(self, y: &mut Block) {
        self.store(y);
    }

    /// The upper and the lower halves of the products of `b` and numbers without sign.
    #[inline(always)]
    fn mul_wide(a: Self::Ints, b: u32) -> (Self::Ints, Self::Ints) {
        let mut low = [0.0; LANES];
        Self::from_bits(a).store(&mut low);
        let products = low.map(|a| u64::from(a.to_bits()) * u64::from(b));
        let high = products.map(|x| f32::from_bits((x >> 32) as u32));
        let low = products.map(|x| f32::from_bits(x as u32));
        (Self::load(&high).bits(), Self::load(&low).bits())
    }
    /// The lanes as f32, for numbers in `[0, 2^24)`, which are exact.
    #[inline(always)]
    fn floats(a: Self::Ints) -> Self {
        let mut x = [0.0; LANES];
        Self::from_bits(a).store(&mut x);
        Self::load(&x.map(|x| x.to_bits() as f32))
    }
    /// Number `l` of each of the four, then number `l + 1` of each, and so on.
    #[inline(always)]
    fn interleave(x: [Self; 4]) -> [Self; 4] {
        let (mut from, mut to) = ([[0.0; LANES]; 4], [[0.0; LANES]; 4]);
        for (x, from) in x.into_iter().zip(&mut from) {
            x.store(from);
        }
        for (i, to) in to.as_flattened_mut().iter_mut().enumerate() {
            *to = from[i % 4][i / 4];
        }
        to.map(|to| Self::load(&to))
    }

    /// Adds all lanes: `l + (l + 8)`, then `+ 4`, `+ 2`, `+ 1`.
    fn reduce_add(self) -> f32;
    /// The largest lane, in the same tree.
    fn reduce_max(self) -> f32;

    /// [`Numbers::meet`] of three together.
    #[inline(always)]
    fn meet_three(x: [Self; 3]) -> [Self; 3] {
        x
    }
}

/// A kernel body with its operands.
pub(crate) trait Body {
    type Out;
    /// Runs the body; implementations are `inline(always)`.
    fn run<L: Lanes>(self) -> Self::Out;
}

/// Runs a body on the tier in use.
#[inline]
pub(crate) fn dispatch<B: Body>(body: B) -> B::Out {
    match isa::active() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `active` names only tiers whose features this CPU reported.
        Isa::Avx512 => unsafe { x86::avx512(body) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::avx2(body) },
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => body.run::<super::lanes_neon::Neon>(),
        _ => body.run::<super::lanes_scalar::Scalar>(),
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Body;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub(super) fn avx512<B: Body>(body: B) -> B::Out {
        body.run::<crate::cpu::lanes_avx512::Avx512>()
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2<B: Body>(body: B) -> B::Out {
        body.run::<crate::cpu::lanes_avx2::Avx2>()
    }
}
