//! Every CUDA kernel on the emulator, under all three schedules, against references in f64.
//!
//! `cargo test -p etude-kernels --features emu --test emu_parity -- gemm` runs the checks with `gemm` in
//! their names; `--schedule lifo` keeps to one schedule, `--fail-fast` stops at the first that fails.

mod cuda;

use etude_kernels::cuda::emulator::{Emulator, Schedule};

fn main() {
    let mut schedules = Schedule::ALL.to_vec();
    let (mut filter, mut fail_fast) = (String::new(), false);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--schedule" => {
                let name = words.next().unwrap_or_default();
                schedules.retain(|schedule| format!("{schedule:?}").eq_ignore_ascii_case(&name));
                assert!(!schedules.is_empty(), "--schedule takes fifo, lifo or shuffle");
            }
            "--fail-fast" => fail_fast = true,
            flag if flag.starts_with('-') => {} // what the usual test harness takes
            _ => filter = word,
        }
    }
    let (mut failed, mut ran) = (0, 0);
    for schedule in schedules {
        let emulator = Emulator::new(schedule);
        println!("{schedule:?}");
        let (more_failed, more) = cuda::run_checks(&emulator, &filter, fail_fast);
        failed += more_failed;
        ran += more;
    }
    println!("{ran} checks, {failed} failed");
    assert!(ran > 0 || !filter.is_empty(), "no check ran");
    std::process::exit(i32::from(failed > 0));
}
