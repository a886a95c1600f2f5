//! Multiply-adds in registers: independent chains, so that a unit never waits for its own result.

use crate::isa::{self, Isa};
use std::hint::black_box;

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Multiply-adds of a step. On two units with 4 cycles of latency 8 chains suffice; dot products of
/// bf16 and int8 take up to 6 cycles.
pub(super) const CHAINS: usize = 16;

/// Floats of a vector.
pub(super) fn lanes(isa: Isa) -> usize {
    match isa {
        // The compiler makes vectors of 4 of the plain loop on every 64-bit machine.
        Isa::Scalar | Isa::Neon => 4,
        Isa::Avx2 => 8,
        Isa::Avx512 => 16,
    }
}

/// `rounds` steps of [`CHAINS`] f32 multiply-adds of an available tier.
pub(super) fn fma(isa: Isa, rounds: usize) -> f32 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller checked that the tier is available.
        Isa::Avx512 => unsafe { fma_avx512(rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { fma_avx2(rounds) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: aarch64 always has NEON.
        Isa::Neon => unsafe { fma_neon(rounds) },
        _ => fma_scalar(rounds),
    }
}

fn fma_scalar(rounds: usize) -> f32 {
    // Half the chains: 16 registers hold them and the two factors.
    let mut sums = [[1.0f32; 4]; CHAINS / 2];
    let (x, y) = black_box(([0.999_999f32; 4], [1e-7f32; 4]));
    for _ in 0..2 * rounds {
        for sum in &mut sums {
            for lane in 0..4 {
                sum[lane] = sum[lane] * x[lane] + y[lane];
            }
        }
    }
    sums.iter().flatten().sum()
}

/// A function of `rounds * CHAINS` calls of `$step` in `$chains` chains.
macro_rules! chains {
    ($name:ident, $features:literal, $result:ty, $chains:expr, $x:expr, $y:expr, $step:expr, $sum:expr) => {
        #[target_feature(enable = $features)]
        fn $name(rounds: usize) -> $result {
            let (x, y) = ($x, $y);
            let mut sums = [y; $chains];
            for _ in 0..rounds * CHAINS / $chains {
                for sum in &mut sums {
                    *sum = $step(*sum, x, y);
                }
            }
            sums.into_iter().map(|sum| $sum(sum)).sum()
        }
    };
}

// 10 chains and 2 factors: 16 registers suffice on every tier.
#[cfg(target_arch = "x86_64")]
chains!(
    fma_avx512,
    "avx512f",
    f32,
    10,
    _mm512_set1_ps(black_box(0.999_999)),
    _mm512_set1_ps(black_box(1e-7)),
    _mm512_fmadd_ps,
    _mm512_reduce_add_ps
);
#[cfg(target_arch = "x86_64")]
chains!(
    fma_avx2,
    "avx2,fma",
    f32,
    10,
    _mm256_set1_ps(black_box(0.999_999)),
    _mm256_set1_ps(black_box(1e-7)),
    _mm256_fmadd_ps,
    _mm256_cvtss_f32
);
#[cfg(target_arch = "aarch64")]
chains!(
    fma_neon,
    "neon",
    f32,
    10,
    vdupq_n_f32(black_box(0.999_999)),
    vdupq_n_f32(black_box(1e-7)),
    |s, x, y| vfmaq_f32(y, s, x),
    vaddvq_f32
);

/// `rounds` steps of [`CHAINS`] instructions of 32 bf16 products each. The caller checked that this
/// machine has them.
pub(super) fn bf16(rounds: usize) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bf16") {
        // SAFETY: detected just now.
        return unsafe { bf16_avx512(rounds) };
    }
    fma(isa::active(), rounds)
}

#[cfg(target_arch = "x86_64")]
chains!(
    bf16_avx512,
    "avx512f,avx512bf16",
    f32,
    CHAINS,
    // Both factors are 2^-67 in bf16 (bits 0x1e00): products are denormal and flushed by the
    // instruction, and the sums stay what they are.
    bf16_words(black_box(0x1e00_1e00)),
    _mm512_setzero_ps(),
    |sum, x, _| _mm512_dpbf16_ps(sum, x, x),
    _mm512_reduce_add_ps
);

/// The same pair of bf16 numbers in every word.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn bf16_words(pair: i32) -> __m512bh {
    // SAFETY: both are 512 bits without a meaning of their own.
    unsafe { std::mem::transmute(_mm512_set1_epi32(pair)) }
}

/// int8 products of one instruction of the active tier; `None` where it has none.
pub(super) fn int8_lanes() -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    return match isa::active() {
        Isa::Avx512 if is_x86_feature_detected!("avx512vnni") => Some(64),
        Isa::Avx2 if is_x86_feature_detected!("avxvnni") => Some(32),
        _ => None,
    };
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// `rounds` steps of [`CHAINS`] instructions of [`int8_lanes`] products each.
pub(super) fn int8(rounds: usize) -> i32 {
    #[cfg(target_arch = "x86_64")]
    match int8_lanes() {
        // SAFETY: 64 products mean that avx512vnni was detected.
        Some(64) => return unsafe { int8_avx512(rounds) },
        // SAFETY: and fewer that avxvnni was.
        Some(_) => return unsafe { int8_avx2(rounds) },
        None => {}
    }
    black_box(rounds) as i32
}

#[cfg(target_arch = "x86_64")]
chains!(
    int8_avx512,
    "avx512f,avx512vnni",
    i32,
    CHAINS,
    _mm512_set1_epi32(black_box(0x0001_0001)),
    _mm512_setzero_si512(),
    |sum, x, _| _mm512_dpbusd_epi32(sum, x, x),
    |sum| _mm512_reduce_add_epi32(sum) & 1
);
#[cfg(target_arch = "x86_64")]
chains!(
    int8_avx2,
    "avx2,avxvnni",
    i32,
    // 12 chains and a factor: there are 16 registers.
    12,
    _mm256_set1_epi32(black_box(0x0001_0001)),
    _mm256_setzero_si256(),
    |sum, x, _| _mm256_dpbusd_avx_epi32(sum, x, x),
    |sum| _mm256_cvtsi256_si32(sum) & 1
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chain_does_the_steps_it_claims() {
        // A step adds 2 in each of the 16 sums of each chain: the sums count the steps.
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512vnni") {
            // SAFETY: detected just now.
            let sum = unsafe { int8_steps(1000) };
            assert_eq!(sum as usize, 2 * 16 * CHAINS * 1000);
        }
        for isa in Isa::available() {
            // x -> 0.999999 x + 1e-7 stays near where it begins.
            assert!(fma(isa, 1000).is_finite(), "{}", isa.name());
        }
    }

    #[cfg(target_arch = "x86_64")]
    chains!(
        int8_steps,
        "avx512f,avx512vnni",
        i32,
        CHAINS,
        _mm512_set1_epi32(black_box(0x0001_0001)),
        _mm512_setzero_si512(),
        |sum, x, _| _mm512_dpbusd_epi32(sum, x, x),
        _mm512_reduce_add_epi32
    );
}
