//! Checks of the CUDA kernels, for the emulator and for a GPU alike.
//!
//! A check runs one operation at several sizes, forward or backward, and compares with a reference in
//! f64. It returns the largest error as a share of what its derived tolerance allows (at most 1 is good),
//! or panics where bits have to be equal.
#![allow(dead_code)] // each test program uses a part

mod attention;
mod conv;
mod copy;
mod embedding;
mod gemm;
mod map;
mod norm;
mod optim;
mod peak;
mod random;
mod recurrent;
mod rows;
mod sample;
mod wrappers;

use etude_kernels::cuda::Gpu;
use etude_kernels::philox;

/// One check: its name and what it does.
pub struct Check {
    /// What must hold, in words joined by `_`.
    pub name: &'static str,
    /// The largest error as a share of the tolerance.
    pub run: fn(&dyn Gpu) -> f64,
}

/// Every family's checks.
pub const FAMILIES: &[(&str, &[Check])] = &[
    ("wrappers", wrappers::CHECKS),
    ("copy", copy::CHECKS),
    ("peak", peak::CHECKS),
    ("gemm", gemm::CHECKS),
    ("attention", attention::CHECKS),
    ("conv", conv::CHECKS),
    ("rows", rows::CHECKS),
    ("norm", norm::CHECKS),
    ("map", map::CHECKS),
    ("embedding", embedding::CHECKS),
    ("random", random::CHECKS),
    ("optim", optim::CHECKS),
    ("sample", sample::CHECKS),
    // Last: its references take longest.
    ("recurrent", recurrent::CHECKS),
];

/// Uniform numbers in `[-1, 1)`.
pub fn uniform(seed: u64, n: usize) -> Vec<f32> {
    let mut x = vec![0.0; n];
    philox::uniform(&mut x, seed, 0, 0);
    x.iter_mut().for_each(|x| *x = 2.0 * *x - 1.0);
    x
}

/// The same numbers in f64.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// Rounded to bf16, to the nearest, ties to even.
pub fn to_bf16(x: &[f32]) -> Vec<u16> {
    x.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect()
}

/// bf16 as f32, exactly.
pub fn from_bf16(x: &[u16]) -> Vec<f32> {
    x.iter().map(|x| half::bf16::from_bits(*x).to_f32()).collect()
}

/// The largest `|want - got|` as a share of the tolerance of that element. NaN is infinitely wrong.
pub fn worst(what: &str, want: &[f64], got: &[f32], tolerance: impl Fn(usize) -> f64) -> f64 {
    assert_eq!(want.len(), got.len(), "{what}: lengths");
    let mut worst = 0.0;
    for (i, (w, g)) in want.iter().zip(got).enumerate() {
        let share = match (w - f64::from(*g)).abs() / tolerance(i) {
            share if share.is_nan() && *w == f64::from(*g) => 0.0, // 0 / 0, or both infinite
            share if share.is_nan() => f64::INFINITY,
            share => share,
        };
        if share > 1.0 && worst <= 1.0 {
            eprintln!("{what}: element {i} is {g:e}, should be {w:e} within {:e}", tolerance(i));
        }
        worst = f64::max(worst, share);
    }
    worst
}

/// Runs the checks whose `family/name` contains `filter`, prints a line for each and tells how many
/// failed and how many ran. `fail_fast`: stops at the first that fails.
pub fn run_checks(gpu: &dyn Gpu, filter: &str, fail_fast: bool) -> (usize, usize) {
    let (mut failed, mut ran) = (0, 0);
    for (family, checks) in FAMILIES {
        for check in *checks {
            let name = format!("{family}/{}", check.name);
            if !name.contains(filter) {
                continue;
            }
            let started = std::time::Instant::now();
            let run = std::panic::AssertUnwindSafe(|| (check.run)(gpu));
            let worst = std::panic::catch_unwind(run).unwrap_or(f64::NAN);
            let good = worst <= 1.0;
            let verdict = if good { "ok" } else { "FAILED" };
            let seconds = started.elapsed().as_secs_f64();
            println!("{name}: {worst:.3} of the tolerance, {seconds:.2} s, {verdict}");
            ran += 1;
            failed += usize::from(!good);
            if fail_fast && !good {
                return (failed, ran);
            }
        }
    }
    (failed, ran)
}
