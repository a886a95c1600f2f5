//! `etude bench`: speed of the kernels and models, beside the peak of the machine in the same run.
//!
//! Workloads, cases, measuring rules and JSON keys are those of the PyTorch yardstick, so that two
//! programs' lines can be divided. A workload is a file here and a line in [`WORKLOADS`].

pub mod aligned;
mod attention;
mod case;
mod elementwise;
mod gemm;
mod measure;
mod recurrent;
mod startup;

use std::path::PathBuf;
use std::time::Duration;

use etude_kernels::threads::Pool;
use etude_kernels::{isa, peak, philox};
use etude_models::Precision;
use serde_json::json;

use aligned::Aligned;
pub use case::Case;
pub use measure::{Effort, Times, measure, quantile};

use crate::console::Console;
use crate::error::{Error, Result};

/// Something that can be timed.
pub struct Workload {
    /// Its name in shapes files.
    pub name: &'static str,
    /// Whether it is a part of a model (`kernels`) or a whole one (`models`).
    pub group: &'static str,
    /// Refuses a case that cannot be run.
    pub check: fn(&Case) -> Result<()>,
    /// Makes what a case needs and times it.
    pub run: fn(&Case, &Options, &mut Sink) -> Result<()>,
}

/// Every workload.
pub const WORKLOADS: &[Workload] = &[
    Workload { name: "gemm", group: "kernels", check: gemm::check, run: gemm::run },
    Workload { name: "attention", group: "kernels", check: attention::check, run: attention::run },
    Workload {
        name: "elementwise",
        group: "kernels",
        check: elementwise::check,
        run: elementwise::run,
    },
    Workload {
        name: "rnn_train",
        group: "models",
        check: recurrent::check_train,
        run: recurrent::train,
    },
    Workload {
        name: "rnn_generate",
        group: "models",
        check: recurrent::check_generate,
        run: recurrent::generate,
    },
    Workload { name: "startup", group: "models", check: startup::check, run: startup::run },
];

/// Arguments of `etude bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  etude bench gemm --match '\"m\": 512'\n  \
                        etude bench kernels --threads 2 --json > here.jsonl\n  \
                        etude bench gemm elementwise --shapes my_shapes.json\n\n\
                        A shapes file is {workload: [case, ...]}, as the built-in list.")]
pub struct Args {
    /// What to time: gemm, elementwise, startup, .. or kernels, models, all
    #[arg(value_name = "WORKLOAD", required = true)]
    workloads: Vec<String>,

    /// Take the cases from this JSON file instead of the built-in list
    #[arg(long, value_name = "FILE")]
    shapes: Option<PathBuf>,

    /// Run only cases whose JSON text contains this, such as '"m": 512'
    #[arg(long, value_name = "TEXT", default_value = "")]
    r#match: String,

    /// Run only cases of this number format (f32 where a case names none)
    #[arg(long, value_name = "DTYPE", value_parser = ["f32", "bf16"])]
    dtype: Option<String>,

    /// Number of threads; 0 is one for each core
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,

    /// Least number of timed runs of a case
    #[arg(long, value_name = "N", default_value_t = 7)]
    reps: usize,

    /// Least time of the timed runs of a case, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    min_time: f64,

    /// Time after which three runs of a case are enough, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 20.0)]
    max_time: f64,

    /// Time to warm up before the timed runs, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5)]
    warm_time: f64,

    /// Time products with a weight packed beforehand too, as `etude-packed`
    #[arg(long)]
    packed: bool,

    /// Store the weights of rnn_generate as f32 or bf16 [default: bf16 beyond 4 MiB of f32]
    #[arg(long, value_name = "DTYPE", value_parser = crate::args::precision)]
    precision: Option<Precision>,

    /// Do what a fresh process of this `startup` case does, and end
    #[arg(long, value_name = "CASE", hide = true)]
    first_event: Option<String>,
}

/// What a workload may ask about the run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Threads in use.
    pub threads: usize,
    /// Whether to time packed weights too.
    pub packed: bool,
    /// How to store the weights of a generator; by their number if `None`.
    pub precision: Option<Precision>,
}

/// One thing to time: how much work a run of it is.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    /// What is counted: calls, elements, tokens, ..
    pub unit: &'static str,
    /// How many of them a run handles.
    pub items: f64,
    /// Floating-point operations of a run (matrix work only).
    pub flops: Option<f64>,
    /// Least memory traffic of a run.
    pub bytes: Option<f64>,
    /// Whether the products are of bf16 numbers, whose peak is not that of f32.
    pub bf16: bool,
}

/// Times jobs and reports them.
pub struct Sink<'a> {
    workload: &'static str,
    case: &'a Case,
    threads: usize,
    effort: Effort,
    pool: &'a Pool,
    console: &'a Console,
    base_rss_mb: Option<f64>,
    /// GFLOP/s of f32 multiply-adds on all threads, measured when first needed.
    peak_gflops: Option<f64>,
}

impl Sink<'_> {
    /// Times `f` and reports the figures under the name of `implementation`.
    ///
    /// # Errors
    /// If nobody reads the output any more.
    pub fn time(
        &mut self,
        implementation: &str,
        job: Job,
        f: &mut (dyn FnMut() + Send),
    ) -> Result<()> {
        let effort = self.effort;
        let times = self.pool.run(|| measure(&effort, f));
        self.report(implementation, job, &times, measure::memory_mb("VmHWM"))
    }

    /// Reports times that were taken elsewhere.
    ///
    /// # Errors
    /// If nobody reads the output any more.
    pub fn report(
        &mut self,
        implementation: &str,
        job: Job,
        times: &Times,
        peak_rss_mb: Option<f64>,
    ) -> Result<()> {
        let median = quantile(&times.wall, 0.5);
        let rate = |work: Option<f64>| work.map(|work| work / median / 1e9);
        let (gflops, gbps) = (rate(job.flops), rate(job.bytes));
        let share = self.share(&job, gflops, gbps);
        self.console.report(&json!({
            "workload": self.workload,
            "impl": implementation,
            "case": self.case.json(),
            "threads": self.threads,
            "median_s": median,
            "p10": quantile(&times.wall, 0.1),
            "p90": quantile(&times.wall, 0.9),
            "min_s": quantile(&times.wall, 0.0),
            "cpu_s": (!times.cpu.is_empty()).then(|| quantile(&times.cpu, 0.5)),
            "reps": times.wall.len(),
            "first_s": times.first,
            "unit": job.unit,
            "per_s": job.items / median,
            "flops": job.flops,
            "gflops": gflops,
            "bytes": job.bytes,
            "gbps": gbps,
            "peak_rss_mb": peak_rss_mb,
            "base_rss_mb": self.base_rss_mb,
            "peak_share": share,
        }))?;
        if self.console.json {
            return Ok(());
        }
        let speed = match (gflops, gbps) {
            (Some(gflops), _) => format!("{gflops:8.1} GFLOP/s"),
            (None, Some(gbps)) => format!("{gbps:8.1} GB/s   "),
            (None, None) => format!("{:8.1} {}/s", job.items / median, job.unit),
        };
        let share =
            share.map_or_else(String::new, |share| format!("{:4.0} % of peak", share * 100.0));
        self.console.say(format!(
            "{:<12} {:<12} {:>10} {speed} {share:>14}  {}",
            self.workload,
            implementation,
            duration(median),
            crate::console::clean(&self.case.text())
        ))
    }

    /// The share of what the machine can do: multiply-adds in registers for matrix work, a copy of
    /// the same size for memory work.
    fn share(&mut self, job: &Job, gflops: Option<f64>, gbps: Option<f64>) -> Option<f64> {
        if job.bf16 {
            return None;
        }
        if let Some(gflops) = gflops {
            let threads = self.threads;
            let peak =
                self.peak_gflops.get_or_insert_with(|| peak::fma_gflops_of(isa::active(), threads));
            return Some(gflops / *peak);
        }
        let bytes = (job.bytes? / 2.0 / self.threads as f64) as usize;
        let copy = peak::bandwidth(bytes.min(256 << 20), self.threads).copy_gbps;
        Some(gbps? / copy)
    }
}

/// A time for people.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} us", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

/// Numbers in `[-1, 1)`, the same in every run.
fn random(stream: u32, len: usize) -> Aligned<f32> {
    let mut numbers = Aligned::filled(0.0, len);
    philox::uniform(&mut numbers, 0, stream, 0);
    numbers.iter_mut().for_each(|x| *x = 2.0 * *x - 1.0);
    numbers
}

/// Times what the arguments ask for.
///
/// # Errors
/// If a workload or a case is unknown or the shapes file is damaged (bad input), or if a case could
/// not be run.
pub fn run(args: &Args, console: &Console) -> Result<()> {
    if let Some(text) = &args.first_event {
        return startup::first_event(&Case::parse(text)?);
    }
    let workloads = chosen(&args.workloads)?;
    let effort = effort(args)?;
    let threads = match args.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n if n <= 1024 => n,
        n => return Err(Error::input(format!("--threads {n}: at most 1024"))),
    };
    let names: Vec<&str> = workloads.iter().map(|w| w.name).collect();
    let shapes = case::read(args.shapes.as_deref(), &names)?;
    let wanted = |case: &Case| -> bool {
        let dtype = case.word("dtype", &["f32", "bf16"], false).ok();
        case.text().contains(&args.r#match)
            && args.dtype.as_deref().is_none_or(|wanted| dtype == Some(wanted))
    };
    // All cases are checked before the first one is run.
    for (workload, (_, cases)) in workloads.iter().zip(&shapes) {
        cases.iter().try_for_each(|case| (workload.check)(case)).map_err(|e| in_file(e, args))?;
    }
    let pool = Pool::new(threads).map_err(Error::failed)?;
    let base_rss_mb = measure::memory_mb("VmRSS");
    let mut peak_gflops = None;
    let (mut ran, mut failed) = (0, 0);
    for (workload, (_, cases)) in workloads.iter().zip(&shapes) {
        for case in cases.iter().filter(|case| wanted(case)) {
            measure::forget_peak();
            let mut sink = Sink {
                workload: workload.name,
                case,
                threads,
                effort,
                pool: &pool,
                console,
                base_rss_mb,
                peak_gflops,
            };
            let options = Options { threads, packed: args.packed, precision: args.precision };
            let done = (workload.run)(case, &options, &mut sink);
            peak_gflops = sink.peak_gflops;
            ran += 1;
            match done {
                Ok(()) => {}
                Err(error @ (Error::Closed | Error::Interrupted { .. })) => return Err(error),
                Err(error) => {
                    failed += 1;
                    let line = json!({
                        "workload": workload.name, "case": case.json(), "error": error.to_string(),
                    });
                    console.report(&line)?;
                    if !console.json {
                        console.warn(format!("{} {}: {error}", workload.name, case.text()));
                    }
                }
            }
        }
    }
    if ran == 0 {
        console.note("bench: no case matches");
    }
    match failed {
        0 => Ok(()),
        n => Err(Error::failed(format!("bench: {n} of {ran} cases could not be run"))),
    }
}

/// Names the shapes file in an error about one of its cases.
fn in_file(error: Error, args: &Args) -> Error {
    match (error, &args.shapes) {
        (Error::Input { file: None, why }, Some(path)) => Error::file(path, why),
        (other, _) => other,
    }
}

/// The workloads that the names mean, each once, in the order of the names.
fn chosen(names: &[String]) -> Result<Vec<&'static Workload>> {
    let mut chosen: Vec<&Workload> = Vec::new();
    for name in names {
        let found: Vec<&Workload> = WORKLOADS
            .iter()
            .filter(|w| name == "all" || w.group == name || w.name == name)
            .collect();
        if found.is_empty() {
            let known: Vec<&str> = WORKLOADS.iter().map(|w| w.name).collect();
            return Err(Error::input(format!(
                "bench: unknown workload \"{}\"; there are {}, kernels, models, all",
                crate::console::clean(name),
                known.join(", ")
            )));
        }
        for workload in found {
            if !chosen.iter().any(|known| known.name == workload.name) {
                chosen.push(workload);
            }
        }
    }
    Ok(chosen)
}

fn effort(args: &Args) -> Result<Effort> {
    let seconds = |name: &str, value: f64| {
        Duration::try_from_secs_f64(value)
            .map_err(|_| Error::input(format!("--{name} {value}: not a time in seconds")))
    };
    Ok(Effort {
        reps: args.reps,
        min_time: seconds("min-time", args.min_time)?,
        max_time: seconds("max-time", args.max_time)?,
        warm_time: seconds("warm-time", args.warm_time)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_names_choose_each_workload_once() {
        let names = |list: &[&str]| -> Vec<&str> {
            let list: Vec<String> = list.iter().map(|s| (*s).to_owned()).collect();
            chosen(&list).expect("known names").iter().map(|w| w.name).collect()
        };
        assert_eq!(names(&["gemm", "kernels"]), ["gemm", "attention", "elementwise"]);
        assert_eq!(names(&["all", "gemm"]).len(), WORKLOADS.len());
        assert!(chosen(&["gem".to_owned()]).is_err());
    }

    #[test]
    fn every_built_in_case_of_every_workload_is_accepted() {
        let names: Vec<&str> = WORKLOADS.iter().map(|w| w.name).collect();
        let shapes = case::read(None, &names).expect("the built-in list");
        for (workload, (name, cases)) in WORKLOADS.iter().zip(shapes) {
            assert_eq!(workload.name, name);
            for case in cases {
                (workload.check)(&case).expect("a good case");
            }
        }
    }
}
