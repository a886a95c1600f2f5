//! Sixteen lanes in one AVX-512 register.

use super::lanes::{Block, Lanes, Numbers};
use std::arch::asm;
use std::arch::x86_64::*;

/// Sixteen f32 in a zmm register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

/// The first `n < 16` lanes.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    debug_assert!(n < 16);
    (1u16 << n).wrapping_sub(1)
}

/// Runs an intrinsic.
macro_rules! cpu {
    ($call:expr) => {
        // SAFETY: values of this type live only inside the shell that `dispatch` enters after it
        // has seen AVX-512 F, BW, DQ and VL. Loads and stores stay inside of the slice at hand: a
        // whole block, or the lanes that its length leaves unmasked.
        unsafe { $call }
    };
}

/// An empty instruction that reads and writes three registers ([`Numbers::meet`]): a compiler that may
/// reorder them puts one chain of steps behind the other, and the scheduler is full before it sees both.
#[target_feature(enable = "avx512f")]
#[inline]
fn meet_three([mut a, mut b, mut c]: [Avx512; 3]) -> [Avx512; 3] {
    // SAFETY: it does nothing. Without `pure` it counts as an effect, so it keeps its place.
    unsafe {
        asm!("/* {0} {1} {2} */", inout(zmm_reg) a.0, inout(zmm_reg) b.0, inout(zmm_reg) c.0,
            options(nomem, nostack, preserves_flags));
    }
    [a, b, c]
}

impl Numbers for Avx512 {
    type Ints = __m512i;
    type Mask = __mmask16;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Avx512(cpu!(_mm512_set1_ps(x)))
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        Avx512(cpu!(_mm512_add_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        Avx512(cpu!(_mm512_sub_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        Avx512(cpu!(_mm512_mul_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        Avx512(cpu!(_mm512_div_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Avx512(cpu!(_mm512_sqrt_ps(self.0)))
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        Avx512(cpu!(_mm512_fmadd_ps(self.0, b.0, c.0)))
    }
    #[inline(always)]
    fn neg_mul_add(self, b: Self, c: Self) -> Self {
        Avx512(cpu!(_mm512_fnmadd_ps(self.0, b.0, c.0)))
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        Avx512(cpu!(_mm512_max_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        Avx512(cpu!(_mm512_min_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        Avx512(cpu!(_mm512_scalef_ps(self.0, n.0)))
    }

    #[inline(always)]
    fn lt(self, b: Self) -> Self::Mask {
        cpu!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, b.0))
    }
    #[inline(always)]
    fn gt(self, b: Self) -> Self::Mask {
        cpu!(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, b.0))
    }
    #[inline(always)]
    fn eq(self, b: Self) -> Self::Mask {
        cpu!(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, b.0))
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        Avx512(cpu!(_mm512_mask_blend_ps(mask, no.0, yes.0)))
    }

    #[inline(always)]
    fn ints(x: i32) -> Self::Ints {
        cpu!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn bits(self) -> Self::Ints {
        cpu!(_mm512_castps_si512(self.0))
    }
    #[inline(always)]
    fn from_bits(x: Self::Ints) -> Self {
        Avx512(cpu!(_mm512_castsi512_ps(x)))
    }
    #[inline(always)]
    fn and(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        cpu!(_mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn or(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        cpu!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn xor(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        cpu!(_mm512_xor_si512(a, b))
    }
    #[inline(always)]
    fn int_add(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        cpu!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn int_sub(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        cpu!(_mm512_sub_epi32(a, b))
    }
    #[inline(always)]
    fn shift_left<const N: u32>(a: Self::Ints) -> Self::Ints {
        cpu!(_mm512_slli_epi32::<N>(a))
    }
    #[inline(always)]
    fn shift_right<const N: u32>(a: Self::Ints) -> Self::Ints {
        cpu!(_mm512_srai_epi32::<N>(a))
    }
}

impl Lanes for Avx512 {
    const IN_TURN: bool = true;
    // In turn, softmax of 16384 x 1024 takes a quarter longer, GELU with a bias and a residual half as
    // long again (bench `elementwise`, Zen 5); where all is in cache a tenth less.
    const ROWS_IN_TURN: bool = false;

    #[inline(always)]
    fn meet_three(x: [Self; 3]) -> [Self; 3] {
        cpu!(meet_three(x))
    }
    #[inline(always)]
    fn load(x: &Block) -> Self {
        Avx512(cpu!(_mm512_loadu_ps(x.as_ptr())))
    }
    #[inline(always)]
    fn load_part(x: &[f32]) -> Self {
        Avx512(cpu!(_mm512_maskz_loadu_ps(first(x.len()), x.as_ptr())))
    }
    #[inline(always)]
    fn store(self, y: &mut Block) {
        cpu!(_mm512_storeu_ps(y.as_mut_ptr(), self.0))
    }
    #[inline(always)]
    fn stream(self, y: &mut Block) {
        debug_assert!((y.as_ptr() as usize).is_multiple_of(64));
        cpu!(_mm512_stream_ps(y.as_mut_ptr(), self.0))
    }
    #[inline(always)]
    fn store_part(self, y: &mut [f32]) {
        cpu!(_mm512_mask_storeu_ps(y.as_mut_ptr(), first(y.len()), self.0))
    }

    #[inline(always)]
    fn mul_wide(a: Self::Ints, b: u32) -> (Self::Ints, Self::Ints) {
        cpu!({
            let b = _mm512_set1_epi32(b as i32);
            let even = _mm512_mul_epu32(a, b);
            let odd = _mm512_mul_epu32(_mm512_srli_epi64::<32>(a), b);
            (
                _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64::<32>(even), odd),
                _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64::<32>(odd)),
            )
        })
    }
    #[inline(always)]
    fn floats(a: Self::Ints) -> Self {
        Avx512(cpu!(_mm512_cvtepi32_ps(a)))
    }

    #[inline(always)]
    fn reduce_add(self) -> f32 {
        cpu!({
            let high = _mm512_extractf32x8_ps::<1>(self.0);
            let x = _mm256_add_ps(_mm512_castps512_ps256(self.0), high);
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        })
    }
    #[inline(always)]
    fn reduce_max(self) -> f32 {
        cpu!({
            let high = _mm512_extractf32x8_ps::<1>(self.0);
            let x = _mm256_max_ps(_mm512_castps512_ps256(self.0), high);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        })
    }
}
