//! Times the CUDA kernels on the first GPU: one line of JSON for each case and variant.
//!
//! `gpu_bench gemm/bf16` runs the cases with that in their names; `gpu_bench --families` lists the
//! families; `gpu_bench --seconds 0.2` is the longest time for one case. With feature `emu`,
//! `gpu_bench --emulator` tries all cases at tiny sizes and times nothing.

use etude_kernels::cuda::bench::{Bench, FAMILIES, Record};
use etude_kernels::cuda::{Error, Gpu};
use std::time::Duration;

fn main() -> Result<(), Error> {
    let (mut filter, mut seconds, mut emulated) = (String::new(), 0.2, false);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--families" => {
                let names: Vec<&str> = FAMILIES.iter().map(|family| family.0).collect();
                println!("{}", names.join(" "));
                return Ok(());
            }
            "--seconds" => {
                seconds = words.next().and_then(|s| s.parse().ok()).unwrap_or(seconds);
            }
            "--emulator" => emulated = true,
            _ => filter = word,
        }
    }
    let gpu = device(emulated)?;
    let mut count = 0;
    let mut out = |record: &Record| {
        count += 1;
        println!("{}", record.json());
    };
    let mut bench = Bench {
        gpu: &*gpu,
        filter,
        small: emulated,
        budget: Duration::from_secs_f64(seconds),
        out: &mut out,
    };
    for (family, cases) in FAMILIES {
        if !bench.filter.is_empty() && !bench.filter.starts_with(family) {
            continue;
        }
        // A family that fails does not keep the others from running.
        if let Err(why) = cases(&mut bench) {
            eprintln!("{family}: {why}");
        }
    }
    eprintln!("{count} cases timed on {}", gpu.properties().name);
    Ok(())
}

#[cfg(feature = "emu")]
fn device(emulated: bool) -> Result<Box<dyn Gpu>, Error> {
    use etude_kernels::cuda::emulator::{Emulator, Schedule};
    match emulated {
        true => Ok(Box::new(Emulator::new(Schedule::Fifo))),
        false => first(),
    }
}

#[cfg(not(feature = "emu"))]
fn device(_emulated: bool) -> Result<Box<dyn Gpu>, Error> {
    first()
}

#[cfg(feature = "cuda")]
fn first() -> Result<Box<dyn Gpu>, Error> {
    Ok(Box::new(etude_kernels::cuda::driver::Driver::open(0)?))
}

#[cfg(not(feature = "cuda"))]
fn first() -> Result<Box<dyn Gpu>, Error> {
    Err(Error::Driver { op: "open", why: "the program was built without the feature cuda".into() })
}
