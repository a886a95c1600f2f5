//! Sixteen lanes in four NEON registers.

use super::lanes::{Block, LANES, Lanes, Numbers};
use std::arch::aarch64::*;
use std::array::from_fn;

/// Sixteen f32: four registers of four.
#[derive(Clone, Copy)]
pub(crate) struct Neon([float32x4_t; 4]);

/// Runs an intrinsic.
macro_rules! cpu {
    ($call:expr) => {
        // SAFETY: NEON is part of aarch64. Loads and stores cover one whole block.
        unsafe { $call }
    };
}

/// `2^n` for whole numbers in integer lanes.
#[inline(always)]
fn power_of_two(n: int32x4_t) -> float32x4_t {
    cpu!(vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127)))))
}

impl Numbers for Neon {
    type Ints = [int32x4_t; 4];
    type Mask = [uint32x4_t; 4];

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Neon([cpu!(vdupq_n_f32(x)); 4])
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        Neon(from_fn(|q| cpu!(vaddq_f32(self.0[q], b.0[q]))))
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        Neon(from_fn(|q| cpu!(vsubq_f32(self.0[q], b.0[q]))))
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        Neon(from_fn(|q| cpu!(vmulq_f32(self.0[q], b.0[q]))))
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        Neon(from_fn(|q| cpu!(vdivq_f32(self.0[q], b.0[q]))))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Neon(from_fn(|q| cpu!(vsqrtq_f32(self.0[q]))))
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        Neon(from_fn(|q| cpu!(vfmaq_f32(c.0[q], self.0[q], b.0[q]))))
    }
    #[inline(always)]
    fn neg_mul_add(self, b: Self, c: Self) -> Self {
        Neon(from_fn(|q| cpu!(vfmsq_f32(c.0[q], self.0[q], b.0[q]))))
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        // Compare and select: `vmaxq_f32` would return NaN where x86 returns `b`.
        Self::select(self.gt(b), self, b)
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        Self::select(self.lt(b), self, b)
    }
    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        // Two factors: 2^n itself overflows or is denormal at the ends. The first product is exact.
        Neon(from_fn(|q| {
            cpu!({
                let n = vcvtnq_s32_f32(n.0[q]);
                let half = vshrq_n_s32::<1>(n);
                let x = vmulq_f32(self.0[q], power_of_two(half));
                vmulq_f32(x, power_of_two(vsubq_s32(n, half)))
            })
        }))
    }

    #[inline(always)]
    fn lt(self, b: Self) -> Self::Mask {
        from_fn(|q| cpu!(vcltq_f32(self.0[q], b.0[q])))
    }
    #[inline(always)]
    fn gt(self, b: Self) -> Self::Mask {
        from_fn(|q| cpu!(vcgtq_f32(self.0[q], b.0[q])))
    }
    #[inline(always)]
    fn eq(self, b: Self) -> Self::Mask {
        from_fn(|q| cpu!(vceqq_f32(self.0[q], b.0[q])))
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        Neon(from_fn(|q| cpu!(vbslq_f32(mask[q], yes.0[q], no.0[q]))))
    }

    #[inline(always)]
    fn ints(x: i32) -> Self::Ints {
        [cpu!(vdupq_n_s32(x)); 4]
    }
    #[inline(always)]
    fn bits(self) -> Self::Ints {
        from_fn(|q| cpu!(vreinterpretq_s32_f32(self.0[q])))
    }
    #[inline(always)]
    fn from_bits(x: Self::Ints) -> Self {
        Neon(from_fn(|q| cpu!(vreinterpretq_f32_s32(x[q]))))
    }
    #[inline(always)]
    fn and(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        from_fn(|q| cpu!(vandq_s32(a[q], b[q])))
    }
    #[inline(always)]
    fn or(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        from_fn(|q| cpu!(vorrq_s32(a[q], b[q])))
    }
    #[inline(always)]
    fn xor(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        from_fn(|q| cpu!(veorq_s32(a[q], b[q])))
    }
    #[inline(always)]
    fn int_add(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        from_fn(|q| cpu!(vaddq_s32(a[q], b[q])))
    }
    #[inline(always)]
    fn int_sub(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        from_fn(|q| cpu!(vsubq_s32(a[q], b[q])))
    }
    #[inline(always)]
    fn shift_left<const N: u32>(a: Self::Ints) -> Self::Ints {
        from_fn(|q| cpu!(vshlq_s32(a[q], vdupq_n_s32(N as i32))))
    }
    #[inline(always)]
    fn shift_right<const N: u32>(a: Self::Ints) -> Self::Ints {
        from_fn(|q| cpu!(vshlq_s32(a[q], vdupq_n_s32(-(N as i32)))))
    }
}

impl Lanes for Neon {
    #[inline(always)]
    fn load(x: &Block) -> Self {
        Neon(from_fn(|q| cpu!(vld1q_f32(x.as_ptr().add(4 * q)))))
    }
    #[inline(always)]
    fn load_part(x: &[f32]) -> Self {
        let mut block = [0.0; LANES];
        block[..x.len()].copy_from_slice(x);
        Self::load(&block)
    }
    #[inline(always)]
    fn store(self, y: &mut Block) {
        for (q, x) in self.0.into_iter().enumerate() {
            cpu!(vst1q_f32(y.as_mut_ptr().add(4 * q), x));
        }
    }
    #[inline(always)]
    fn store_part(self, y: &mut [f32]) {
        let mut block = [0.0; LANES];
        self.store(&mut block);
        y.copy_from_slice(&block[..y.len()]);
    }

    #[inline(always)]
    fn reduce_add(self) -> f32 {
        let [a, b, c, d] = self.0;
        cpu!({
            let x = vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d));
            let x = vadd_f32(vget_low_f32(x), vget_high_f32(x));
            vget_lane_f32::<0>(x) + vget_lane_f32::<1>(x)
        })
    }
    #[inline(always)]
    fn reduce_max(self) -> f32 {
        let mut x = [0.0; LANES];
        self.store(&mut x);
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                x[l] = if x[l] > x[l + half] { x[l] } else { x[l + half] };
            }
        }
        x[0]
    }
}
