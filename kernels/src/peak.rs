//! What this machine can do at most: the figures that every bench sets its own beside.

use std::time::Instant;

/// Measures f32 multiply-adds in registers, on one thread: GFLOP/s, 2 flops each.
pub fn fma_gflops() -> f64 {
    let mut acc = [1.0f32; 64];
    let start = Instant::now();
    let rounds = 1_000_000u64;
    for _ in 0..rounds {
        for a in &mut acc {
            *a = a.mul_add(0.999_999, 1e-7);
        }
    }
    std::hint::black_box(acc);
    2.0 * 64.0 * rounds as f64 / start.elapsed().as_secs_f64() / 1e9
}
