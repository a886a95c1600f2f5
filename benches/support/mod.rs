//! What the benches share: one thread, short runs, the best time beside criterion's own figures.

use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion};
use etude_kernels::isa::Isa;
use etude_kernels::peak;

/// Runs benches on one thread, whatever the machine has: shares are those of one core. Each is measured
/// for this many milliseconds, after a fourth of them to warm up.
pub fn on_one_thread(milliseconds: u64, benches: &[fn(&mut Criterion)]) {
    let pool = etude_kernels::threads::Pool::new(1).expect("a thread");
    pool.run(|| {
        let criterion = Criterion::default()
            .sample_size(10)
            .warm_up_time(Duration::from_millis(milliseconds / 4))
            .measurement_time(Duration::from_millis(milliseconds))
            .without_plots();
        let mut criterion = criterion.configure_from_args();
        benches.iter().for_each(|bench| bench(&mut criterion));
        criterion.final_summary();
    });
}

/// Prints the peak of multiply-adds of every tier, one thread.
#[allow(dead_code, reason = "not every bench asks for it")]
pub fn peaks(_: &mut Criterion) {
    for tier in Isa::available() {
        println!("peak/{}: {:.1} GFLOP/s", tier.name(), peak::fma_gflops_of(tier, 1));
    }
}

/// Times `call`: the seconds of its best sample, `None` where the bench is not asked for.
#[allow(dead_code, reason = "one bench times parts of its calls")]
pub fn time(
    group: &mut BenchmarkGroup<WallTime>,
    id: BenchmarkId,
    mut call: impl FnMut(),
) -> Option<f64> {
    let mut best = f64::INFINITY;
    group.bench_function(id, |bencher| {
        bencher.iter_custom(|rounds| {
            let start = Instant::now();
            (0..rounds).for_each(|_| call());
            let spent = start.elapsed();
            best = best.min(spent.as_secs_f64() / rounds as f64);
            spent
        });
    });
    best.is_finite().then_some(best)
}
