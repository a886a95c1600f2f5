//! What this machine can do at most: the figures that every bench sets its own beside.
//!
//! Each figure is the best of several short runs: a peak is what remains when nothing disturbs.

use crate::isa::{self, Isa};
use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Chains of multiply-adds in flight: 4 cycles of latency on two units need 8; 16 leave room.
const CHAINS: usize = 16;

/// Multiply-adds of the active tier in registers, on one thread: GFLOP/s, 2 flops each.
pub fn fma_gflops() -> f64 {
    fma_gflops_of(isa::active(), 1)
}

/// Multiply-adds of `isa` in registers, on `threads` threads at once: GFLOP/s in all.
///
/// # Panics
/// If this machine cannot run the tier, or the system cannot start a thread.
pub fn fma_gflops_of(isa: Isa, threads: usize) -> f64 {
    assert!(isa.is_available(), "this machine cannot run {}", isa.name());
    together(threads, || {
        // Some 2 ms a run, long enough for the clock to settle and short enough to find a gap.
        let rounds = 200_000;
        best(Duration::from_millis(25), 3, || black_box(chains(isa, black_box(rounds)))).map_or(
            0.0,
            |seconds| {
                let lanes = lanes(isa);
                (2 * CHAINS * lanes * rounds) as f64 / seconds / 1e9
            },
        )
    })
}

/// Products of bf16 numbers in registers, summed in f32, on `threads` threads at once: GFLOP/s in all.
///
/// Where the active tier has no instruction for them they are made of widened f32, and the peak is
/// that of [`fma_gflops_of`].
///
/// # Panics
/// If the system cannot start a thread.
pub fn bf16_gflops(threads: usize) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if crate::gemm_bf16::has_pairs() {
        let rounds = 200_000;
        return together(threads, || {
            // SAFETY: `has_pairs` says that this CPU has the instruction.
            let run = || black_box(unsafe { pairs_avx512(black_box(rounds)) });
            best(Duration::from_millis(25), 3, run)
                .map_or(0.0, |seconds| (4 * CHAINS * 16 * rounds) as f64 / seconds / 1e9)
        });
    }
    fma_gflops_of(isa::active(), threads)
}

/// How fast memory of one size is read and copied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bandwidth {
    /// Bytes that are read (a copy also writes as many).
    pub bytes: usize,
    /// Bytes read per second, in 1e9.
    pub read_gbps: f64,
    /// Bytes read plus bytes written per second of a copy, in 1e9.
    pub copy_gbps: f64,
}

/// Measures reading and copying on `threads` threads, each with `bytes` of its own: the sum.
///
/// # Panics
/// If the system cannot start a thread.
pub fn bandwidth(bytes: usize, threads: usize) -> Bandwidth {
    let words = (bytes / 8).max(64);
    let bytes = words * 8;
    let rate = |traffic: usize, budget: Duration, f: &(dyn Fn(&[u64], &mut [u64]) + Sync)| {
        together(threads, || {
            let from = vec![1u64; words];
            let mut to = vec![0u64; words];
            // Small sizes are repeated, so that reading the clock does not count.
            let loops = (1 << 20) / bytes + 1;
            best(budget, 3, || {
                for _ in 0..loops {
                    f(black_box(&from), black_box(&mut to));
                }
            })
            .map_or(0.0, |seconds| (traffic * loops) as f64 / seconds / 1e9)
        })
    };
    let budget = Duration::from_millis(8);
    let isa = isa::active();
    Bandwidth {
        bytes,
        read_gbps: rate(bytes, budget, &|from, _| {
            black_box(read(isa, from));
        }),
        copy_gbps: rate(2 * bytes, budget, &|from, to| to.copy_from_slice(from)),
    }
}

/// Measures sizes that lie in the first, second and third level of a usual cache, and in memory.
pub fn bandwidths(threads: usize) -> Vec<Bandwidth> {
    [16 << 10, 512 << 10, 4 << 20, 64 << 20].map(|bytes| bandwidth(bytes, threads)).to_vec()
}

/// Runs `f` on `threads` threads at once and adds up what they return.
fn together(threads: usize, f: impl Fn() -> f64 + Sync) -> f64 {
    if threads <= 1 {
        return f();
    }
    let barrier = Barrier::new(threads);
    let run = || {
        barrier.wait();
        f()
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
        let mine = run();
        others.into_iter().map(|t| t.join().unwrap_or(0.0)).sum::<f64>() + mine
    })
}

/// The shortest of at least `runs` runs within `budget`, in seconds, after one run to warm up.
fn best<R>(budget: Duration, runs: usize, f: impl FnMut() -> R) -> Option<f64> {
    let mut f = f;
    f();
    let begin = Instant::now();
    let mut shortest: Option<f64> = None;
    let mut done = 0;
    while done < runs || begin.elapsed() < budget {
        let start = Instant::now();
        f();
        let seconds = start.elapsed().as_secs_f64();
        shortest = Some(shortest.map_or(seconds, |s| s.min(seconds)));
        done += 1;
    }
    shortest.filter(|&seconds| seconds > 0.0)
}

/// Floats of a vector.
fn lanes(isa: Isa) -> usize {
    match isa {
        // The compiler makes vectors of 4 of the plain loop on every 64-bit machine.
        Isa::Scalar | Isa::Neon => 4,
        Isa::Avx2 => 8,
        Isa::Avx512 => 16,
    }
}

/// `rounds` steps of [`CHAINS`] independent chains of multiply-adds.
fn chains(isa: Isa, rounds: usize) -> f32 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller checked that the tier is available.
        Isa::Avx512 => unsafe { chains_avx512(rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { chains_avx2(rounds) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: aarch64 always has NEON.
        Isa::Neon => unsafe { chains_neon(rounds) },
        _ => chains_scalar(rounds),
    }
}

fn chains_scalar(rounds: usize) -> f32 {
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

macro_rules! chains {
    ($name:ident, $features:literal, $set:expr, $fma:expr, $sum:expr) => {
        #[target_feature(enable = $features)]
        fn $name(rounds: usize) -> f32 {
            // Two rounds of half the chains: 16 registers suffice on every tier.
            let mut sums = [$set(1.0); CHAINS / 2 + 2];
            let (x, y) = ($set(black_box(0.999_999)), $set(black_box(1e-7)));
            for _ in 0..rounds * CHAINS / (CHAINS / 2 + 2) {
                for sum in &mut sums {
                    *sum = $fma(*sum, x, y);
                }
            }
            sums.into_iter().map(|sum| $sum(sum)).sum()
        }
    };
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
#[cfg(target_arch = "x86_64")]
chains!(chains_avx512, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps, _mm512_reduce_add_ps);
#[cfg(target_arch = "x86_64")]
chains!(chains_avx2, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps, _mm256_cvtss_f32);

/// `rounds` steps of [`CHAINS`] independent chains of pairs of multiply-adds.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pairs_avx512(rounds: usize) -> f32 {
    // SAFETY: both are 512 bits; these are the pairs (1.0, 0.0), whose sums stay finite.
    let x: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi32(black_box(0x3f80))) };
    let mut sums = [_mm512_setzero_ps(); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, x, x);
        }
    }
    sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
}

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "aarch64")]
chains!(chains_neon, "neon", vdupq_n_f32, |s, x, y| vfmaq_f32(y, s, x), vaddvq_f32);

/// Adds up all words, with the widest loads of the tier.
fn read(isa: Isa, words: &[u64]) -> u64 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the active tier is available.
        Isa::Avx512 => unsafe { read_avx512(words) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { read_avx2(words) },
        _ => read_plain(words),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn read_avx512(words: &[u64]) -> u64 {
    read_plain(words)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn read_avx2(words: &[u64]) -> u64 {
    read_plain(words)
}

#[inline(always)]
fn read_plain(words: &[u64]) -> u64 {
    let mut sums = [0u64; 64];
    for chunk in words.chunks_exact(64) {
        for (sum, &word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(word);
        }
    }
    sums.iter().fold(0, |all, &sum| all.wrapping_add(sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_of_every_tier_is_a_positive_number() {
        for isa in Isa::available() {
            assert!(fma_gflops_of(isa, 1) > 0.0, "{}", isa.name());
        }
        assert!(fma_gflops_of(isa::active(), 2) > 0.0);
        assert!(bf16_gflops(1) > 0.0 && bf16_gflops(2) > 0.0);
        let small = bandwidth(4096, 1);
        assert!(small.read_gbps > 0.0 && small.copy_gbps > 0.0 && small.bytes == 4096);
    }

    #[test]
    fn reading_adds_up_every_word() {
        let words: Vec<u64> = (0..128).collect();
        for isa in Isa::available() {
            assert_eq!(read(isa, &words), 127 * 64);
        }
    }
}
