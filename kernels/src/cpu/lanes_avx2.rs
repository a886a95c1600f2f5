//! Sixteen lanes in two AVX registers.

use super::lanes::{Block, LANES, Lanes, Numbers};
use std::arch::asm;
use std::arch::x86_64::*;

/// Sixteen f32: lanes 0 to 7, lanes 8 to 15.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

/// Eight times -1, eight times 0: a window into it is a mask for a part of a register.
const WINDOW: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// Runs an intrinsic.
macro_rules! cpu {
    ($call:expr) => {
        // SAFETY: values of this type live only inside the shell that `dispatch` enters after it
        // has seen AVX2 and FMA. Loads and stores stay inside of the slice at hand: a whole block,
        // or the lanes that its length leaves unmasked.
        unsafe { $call }
    };
}

/// Masks the first `n <= 8` lanes of a register.
#[inline(always)]
fn first(n: usize) -> __m256i {
    assert!(n <= 8);
    cpu!(_mm256_loadu_si256(WINDOW.as_ptr().add(8 - n).cast()))
}

/// `2^n` for whole numbers in integer lanes.
#[inline(always)]
fn power_of_two(n: __m256i) -> __m256 {
    cpu!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127)))))
}

#[inline(always)]
fn scale_half(x: __m256, n: __m256) -> __m256 {
    cpu!({
        let n = _mm256_cvtps_epi32(n);
        let half = _mm256_srai_epi32::<1>(n);
        let x = _mm256_mul_ps(x, power_of_two(half));
        _mm256_mul_ps(x, power_of_two(_mm256_sub_epi32(n, half)))
    })
}

/// The upper and the lower halves of eight products: those of the even lanes and those of the odd ones.
#[inline(always)]
fn mul_half(a: __m256i, b: u32) -> (__m256i, __m256i) {
    cpu!({
        let b = _mm256_set1_epi32(b as i32);
        let even = _mm256_mul_epu32(a, b);
        let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(a), b);
        (
            _mm256_blend_epi32::<0xaa>(_mm256_srli_epi64::<32>(even), odd),
            _mm256_blend_epi32::<0xaa>(even, _mm256_slli_epi64::<32>(odd)),
        )
    })
}

/// Eight numbers of each of the four, in turn.
#[inline(always)]
fn interleave_half(a: __m256, b: __m256, c: __m256, d: __m256) -> [__m256; 4] {
    cpu!({
        let ab = _mm256_castps_pd(_mm256_unpacklo_ps(a, b));
        let cd = _mm256_castps_pd(_mm256_unpacklo_ps(c, d));
        let ab_high = _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
        let cd_high = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
        // Lanes 0 and 4, 1 and 5, 2 and 6, 3 and 7.
        let q0 = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
        let q1 = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
        let q2 = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_high, cd_high));
        let q3 = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_high, cd_high));
        [
            _mm256_permute2f128_ps::<0x20>(q0, q1),
            _mm256_permute2f128_ps::<0x20>(q2, q3),
            _mm256_permute2f128_ps::<0x31>(q0, q1),
            _mm256_permute2f128_ps::<0x31>(q2, q3),
        ]
    })
}

/// An empty instruction that takes and gives these registers: what computes them stays before it,
/// what uses them behind it. Without `pure` it counts as an effect, so it keeps its place among others.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn meet(mut x: Avx2) -> Avx2 {
    // SAFETY: it does nothing.
    unsafe {
        asm!("/* {0} {1} */", inout(ymm_reg) x.0, inout(ymm_reg) x.1,
            options(nomem, nostack, preserves_flags));
    }
    x
}

/// [`meet`] of six registers.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn meet_three([mut a, mut b, mut c]: [Avx2; 3]) -> [Avx2; 3] {
    // SAFETY: it does nothing.
    unsafe {
        asm!("/* {0} {1} {2} {3} {4} {5} */", inout(ymm_reg) a.0, inout(ymm_reg) a.1,
            inout(ymm_reg) b.0, inout(ymm_reg) b.1, inout(ymm_reg) c.0, inout(ymm_reg) c.1,
            options(nomem, nostack, preserves_flags));
    }
    [a, b, c]
}

impl Numbers for Avx2 {
    type Ints = (__m256i, __m256i);
    type Mask = (__m256, __m256);

    #[inline(always)]
    fn splat(x: f32) -> Self {
        let x = cpu!(_mm256_set1_ps(x));
        Avx2(x, x)
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        cpu!(Avx2(_mm256_add_ps(self.0, b.0), _mm256_add_ps(self.1, b.1)))
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        cpu!(Avx2(_mm256_sub_ps(self.0, b.0), _mm256_sub_ps(self.1, b.1)))
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        cpu!(Avx2(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1)))
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        cpu!(Avx2(_mm256_div_ps(self.0, b.0), _mm256_div_ps(self.1, b.1)))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        cpu!(Avx2(_mm256_sqrt_ps(self.0), _mm256_sqrt_ps(self.1)))
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        cpu!(Avx2(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)))
    }
    #[inline(always)]
    fn neg_mul_add(self, b: Self, c: Self) -> Self {
        cpu!(Avx2(_mm256_fnmadd_ps(self.0, b.0, c.0), _mm256_fnmadd_ps(self.1, b.1, c.1)))
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        cpu!(Avx2(_mm256_max_ps(self.0, b.0), _mm256_max_ps(self.1, b.1)))
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        cpu!(Avx2(_mm256_min_ps(self.0, b.0), _mm256_min_ps(self.1, b.1)))
    }
    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        // Two factors: 2^n itself overflows or is denormal at the ends. The first product is exact.
        Avx2(scale_half(self.0, n.0), scale_half(self.1, n.1))
    }

    #[inline(always)]
    fn lt(self, b: Self) -> Self::Mask {
        cpu!((_mm256_cmp_ps::<_CMP_LT_OQ>(self.0, b.0), _mm256_cmp_ps::<_CMP_LT_OQ>(self.1, b.1)))
    }
    #[inline(always)]
    fn gt(self, b: Self) -> Self::Mask {
        cpu!((_mm256_cmp_ps::<_CMP_GT_OQ>(self.0, b.0), _mm256_cmp_ps::<_CMP_GT_OQ>(self.1, b.1)))
    }
    #[inline(always)]
    fn eq(self, b: Self) -> Self::Mask {
        cpu!((_mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, b.0), _mm256_cmp_ps::<_CMP_EQ_OQ>(self.1, b.1)))
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        cpu!(Avx2(_mm256_blendv_ps(no.0, yes.0, mask.0), _mm256_blendv_ps(no.1, yes.1, mask.1)))
    }

    #[inline(always)]
    fn ints(x: i32) -> Self::Ints {
        let x = cpu!(_mm256_set1_epi32(x));
        (x, x)
    }
    #[inline(always)]
    fn bits(self) -> Self::Ints {
        cpu!((_mm256_castps_si256(self.0), _mm256_castps_si256(self.1)))
    }
    #[inline(always)]
    fn from_bits(x: Self::Ints) -> Self {
        cpu!(Avx2(_mm256_castsi256_ps(x.0), _mm256_castsi256_ps(x.1)))
    }
    #[inline(always)]
    fn and(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        cpu!((_mm256_and_si256(a.0, b.0), _mm256_and_si256(a.1, b.1)))
    }
    #[inline(always)]
    fn or(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        cpu!((_mm256_or_si256(a.0, b.0), _mm256_or_si256(a.1, b.1)))
    }
    #[inline(always)]
    fn xor(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        cpu!((_mm256_xor_si256(a.0, b.0), _mm256_xor_si256(a.1, b.1)))
    }
    #[inline(always)]
    fn int_add(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        cpu!((_mm256_add_epi32(a.0, b.0), _mm256_add_epi32(a.1, b.1)))
    }
    #[inline(always)]
    fn int_sub(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        cpu!((_mm256_sub_epi32(a.0, b.0), _mm256_sub_epi32(a.1, b.1)))
    }
    #[inline(always)]
    fn shift_left<const N: u32>(a: Self::Ints) -> Self::Ints {
        let n = cpu!(_mm_cvtsi32_si128(N as i32));
        cpu!((_mm256_sll_epi32(a.0, n), _mm256_sll_epi32(a.1, n)))
    }
    #[inline(always)]
    fn shift_right<const N: u32>(a: Self::Ints) -> Self::Ints {
        let n = cpu!(_mm_cvtsi32_si128(N as i32));
        cpu!((_mm256_sra_epi32(a.0, n), _mm256_sra_epi32(a.1, n)))
    }
    #[inline(always)]
    fn meet(self) -> Self {
        cpu!(meet(self))
    }
}

impl Lanes for Avx2 {
    const IN_TURN: bool = true;

    #[inline(always)]
    fn meet_three(x: [Self; 3]) -> [Self; 3] {
        cpu!(meet_three(x))
    }
    #[inline(always)]
    fn load(x: &Block) -> Self {
        cpu!(Avx2(_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))))
    }
    #[inline(always)]
    fn load_part(x: &[f32]) -> Self {
        assert!(x.len() < LANES);
        let (low, high) = x.split_at(x.len().min(8));
        cpu!(Avx2(
            _mm256_maskload_ps(low.as_ptr(), first(low.len())),
            _mm256_maskload_ps(high.as_ptr(), first(high.len())),
        ))
    }
    #[inline(always)]
    fn store(self, y: &mut Block) {
        cpu!({
            _mm256_storeu_ps(y.as_mut_ptr(), self.0);
            _mm256_storeu_ps(y.as_mut_ptr().add(8), self.1);
        })
    }
    #[inline(always)]
    fn stream(self, y: &mut Block) {
        debug_assert!((y.as_ptr() as usize).is_multiple_of(64));
        cpu!({
            _mm256_stream_ps(y.as_mut_ptr(), self.0);
            _mm256_stream_ps(y.as_mut_ptr().add(8), self.1);
        })
    }
    #[inline(always)]
    fn store_part(self, y: &mut [f32]) {
        assert!(y.len() < LANES);
        let (low, high) = y.split_at_mut(y.len().min(8));
        cpu!({
            _mm256_maskstore_ps(low.as_mut_ptr(), first(low.len()), self.0);
            _mm256_maskstore_ps(high.as_mut_ptr(), first(high.len()), self.1);
        })
    }

    #[inline(always)]
    fn mul_wide(a: Self::Ints, b: u32) -> (Self::Ints, Self::Ints) {
        let (low, high) = (mul_half(a.0, b), mul_half(a.1, b));
        ((low.0, high.0), (low.1, high.1))
    }
    #[inline(always)]
    fn floats(a: Self::Ints) -> Self {
        cpu!(Avx2(_mm256_cvtepi32_ps(a.0), _mm256_cvtepi32_ps(a.1)))
    }
    #[inline(always)]
    fn interleave([a, b, c, d]: [Self; 4]) -> [Self; 4] {
        let (low, high) =
            (interleave_half(a.0, b.0, c.0, d.0), interleave_half(a.1, b.1, c.1, d.1));
        [Avx2(low[0], low[1]), Avx2(low[2], low[3]), Avx2(high[0], high[1]), Avx2(high[2], high[3])]
    }

    #[inline(always)]
    fn reduce_add(self) -> f32 {
        cpu!({
            let x = _mm256_add_ps(self.0, self.1);
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        })
    }
    #[inline(always)]
    fn reduce_max(self) -> f32 {
        cpu!({
            let x = _mm256_max_ps(self.0, self.1);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        })
    }
}
