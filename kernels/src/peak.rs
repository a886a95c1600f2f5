//! What this machine can do at most: the figures that every bench sets its own beside.
//!
//! Each figure is the best of several short runs: a peak is what remains when nothing disturbs.
//! Multiply-adds run in registers, in more chains than hide their latency; memory is read and copied
//! at sizes that lie in one level of the caches.

mod chains;
mod memory;

use crate::gemm_bf16::has_pairs;
use crate::isa::{self, Isa};
use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

pub use memory::{Bandwidth, Level, bandwidth, caches, levels};

/// Steps of the chains in a run: some 2 ms, long enough for the clock to settle and short enough to
/// find a gap between disturbances.
const ROUNDS: usize = 200_000;

/// f32 multiply-adds of the active tier on one thread: GFLOP/s, 2 flops each.
pub fn fma_gflops() -> f64 {
    fma_gflops_of(isa::active(), 1)
}

/// f32 multiply-adds of `isa` on `threads` threads at once: GFLOP/s in all.
///
/// # Panics
/// If this machine cannot run the tier, or the system cannot start a thread.
pub fn fma_gflops_of(isa: Isa, threads: usize) -> f64 {
    assert!(isa.is_available(), "this machine cannot run {}", isa.name());
    rate(threads, 2 * chains::CHAINS * chains::lanes(isa), || chains::fma(isa, black_box(ROUNDS)))
}

/// bf16 multiply-adds with f32 sums on `threads` threads at once: GFLOP/s in all, 2 flops each.
///
/// # Panics
/// If the system cannot start a thread.
pub fn bf16_gflops(threads: usize) -> f64 {
    if !has_pairs() {
        return fma_gflops_of(isa::active(), threads);
    }
    rate(threads, 4 * chains::CHAINS * chains::lanes(Isa::Avx512), || {
        chains::bf16(black_box(ROUNDS))
    })
}

/// int8 multiply-adds with i32 sums (VNNI) on `threads` threads at once: 1e9 operations a second in
/// all, 2 each. `None` where the active tier of this machine has no instruction for them.
///
/// # Panics
/// If the system cannot start a thread.
pub fn int8_gops(threads: usize) -> Option<f64> {
    let width = chains::int8_lanes()?;
    Some(rate(threads, 2 * chains::CHAINS * width, || chains::int8(black_box(ROUNDS))))
}

/// Operations per second in 1e9 of `f`, which does `ROUNDS` times `operations`.
fn rate<R>(threads: usize, operations: usize, f: impl Fn() -> R + Sync) -> f64 {
    together(threads, |start| {
        start.wait();
        let seconds = best(Duration::from_millis(25), 3, || black_box(f()));
        seconds.map_or(0.0, |seconds| (operations * ROUNDS) as f64 / seconds / 1e9)
    })
}

/// Runs `f` on `threads` threads and adds up what they return. `f` waits for the others at the
/// barrier, once it has made what it needs.
fn together(threads: usize, f: impl Fn(&Barrier) -> f64 + Sync) -> f64 {
    let threads = threads.max(1);
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(|| f(&barrier))).collect();
        let mine = f(&barrier);
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
        assert!(int8_gops(2).is_none_or(|gops| gops > 0.0));
    }
}
