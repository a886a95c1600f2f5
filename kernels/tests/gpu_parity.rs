//! Every CUDA kernel on a GPU, against references in f64. Where there is no GPU it says so and passes.
//!
//! `gpu_parity gemm` runs the checks with `gemm` in their names; `gpu_parity --families` lists the
//! families, so that each can have a process of its own: a fault on a GPU ends everything after it.

mod cuda;

use etude_kernels::cuda::{Gpu, driver::Driver};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--families") {
        let names: Vec<&str> =
            cuda::FAMILIES.iter().filter(|family| !family.1.is_empty()).map(|f| f.0).collect();
        println!("{}", names.join(" "));
        return;
    }
    let filter = words.into_iter().find(|word| !word.starts_with('-')).unwrap_or_default();
    let gpu = match Driver::open(0) {
        Ok(gpu) => gpu,
        Err(why) => {
            println!("skipped: {why}");
            return;
        }
    };
    println!("{}", gpu.properties().name);
    let (failed, ran) = cuda::run_checks(&gpu, &filter, false);
    println!("{ran} checks, {failed} failed");
    std::process::exit(i32::from(failed > 0));
}
