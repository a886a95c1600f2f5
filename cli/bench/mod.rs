//! `etude bench`: speed of the kernels and models, beside the peak of the machine in the same run.
//!
//! Workloads, cases, measuring rules and JSON keys are those of the PyTorch yardstick, so that two
//! programs' lines can be divided. A workload is a file here and a line in [`WORKLOADS`].

pub mod aligned;
mod attention;
mod case;
mod child;
mod conv;
mod cuda;
mod elementwise;
mod gemm;
mod ladder;
pub(crate) mod measure;
mod recurrent;
mod roofline;
mod sink;
mod startup;
mod training;
mod transformer;

use std::path::PathBuf;
use std::time::Duration;

use etude_kernels::philox;
use etude_kernels::threads::Pool;
use etude_models::Precision;
use serde_json::{Value, json};

use aligned::Aligned;
pub use case::Case;
pub use measure::{Effort, Times, measure, quantile};
use roofline::{Dot, Roofs};
pub use sink::{Job, Numbers, Sink};

use crate::console::{Console, clean, show_path};
use crate::error::{Error, Result};
use crate::gpu::Device;
use crate::{memory, output};

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
    Workload { name: "conv", group: "kernels", check: conv::check, run: conv::run },
    Workload {
        name: "elementwise",
        group: "kernels",
        check: elementwise::check,
        run: elementwise::run,
    },
    Workload { name: "ladder", group: "kernels", check: ladder::check, run: ladder::run },
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
    Workload {
        name: "transformer_train",
        group: "models",
        check: transformer::check_train,
        run: transformer::train,
    },
    Workload {
        name: "transformer_prefill",
        group: "models",
        check: transformer::check_prefill,
        run: transformer::prefill,
    },
    Workload {
        name: "transformer_generate",
        group: "models",
        check: transformer::check_generate,
        run: transformer::generate,
    },
    Workload { name: "startup", group: "models", check: startup::check, run: startup::run },
];

/// Arguments of `etude bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  etude bench gemm --match '\"m\": 512'\n  \
                        etude bench kernels --threads 2 --json > here.jsonl\n  \
                        etude bench gemm elementwise --shapes my_shapes.json\n  \
                        etude bench gemm rnn_train --roofline roofs.svg\n  \
                        etude bench ladder --threads 2\n\n\
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

    /// Run only cases of this number format (f32 where a case names none); training and
    /// prefill multiply in it and generation stores its weights in it where a case names none
    #[arg(long, visible_alias = "precision", value_name = "DTYPE", value_parser = ["f32", "bf16", "int8"])]
    dtype: Option<String>,

    /// Where to time: cpu, or cuda (the first GPU) or cuda:N, where workloads are families of
    /// kernels: gemm, attention, recurrent, conv, rows, norm, .. or all
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = crate::gpu::device)]
    device: crate::gpu::Device,

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

    /// Draw the peaks of this machine and a dot for each case under them into this SVG file
    #[arg(long, value_name = "FILE")]
    roofline: Option<PathBuf>,

    /// Do what a fresh process of this `startup` case does, and end
    #[arg(long, value_name = "CASE", hide = true)]
    first_event: Option<String>,

    /// Time this case alone, as JSON: what a process of its own does for `bench`
    #[arg(long, value_name = "WORKLOAD:CASE", hide = true)]
    one_case: Option<String>,
}

/// What a workload may ask about the run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Threads in use.
    pub threads: usize,
    /// Whether to time packed weights too.
    pub packed: bool,
    /// How to store the weights of a generator whose case does not say it.
    pub precision: Precision,
    /// Whether training cases that name no number format multiply in bf16.
    pub bf16: bool,
}

/// Shows the figures of a job to people, in one line.
fn show(record: &Value, case: &Case) -> String {
    let number = |key: &str| record[key].as_f64();
    let text = |key: &str| record[key].as_str().unwrap_or_default();
    // What limits the job, if that is known, is what its speed is told in.
    let by_memory = text("bound") == "gbps" || number("flops").is_none();
    let speed = match (number("gflops"), number("gbps")) {
        (_, Some(gbps)) if by_memory => format!("{gbps:8.1} GB/s   "),
        (Some(gflops), _) => format!("{gflops:8.1} GFLOP/s"),
        _ => format!("{:8.1} {}/s", number("per_s").unwrap_or_default(), text("unit")),
    };
    let bound = if by_memory { "bandwidth" } else { "peak" };
    // A step of a ladder says what is new in it; its case stands above the steps.
    let about = match text("why") {
        "" => case.text(),
        why => why.to_owned(),
    };
    let share = number("peak_share")
        .map_or_else(String::new, |share| format!("{:4.0} % of {bound}", share * 100.0));
    format!(
        "{:<12} {:<12} {:>10} {speed} {share:>19}  {}",
        text("workload"),
        text("impl"),
        duration(number("median_s").unwrap_or_default()),
        clean(&about)
    )
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
        let case = Case::parse(text)?;
        return startup::first_event(&case, threads(args)?);
    }
    if let Some(text) = &args.one_case {
        return run_one(text, args);
    }
    if let Device::Cuda(number) = args.device {
        return cuda::run(number, &args.workloads, &args.r#match, args.min_time, console);
    }
    let workloads = chosen(&args.workloads)?;
    // Refuses bad numbers before anything is run.
    effort(args)?;
    threads(args)?;
    let names: Vec<&str> = workloads.iter().map(|w| w.name).collect();
    let shapes = case::read(args.shapes.as_deref(), &names)?;
    let wanted = |workload: &Workload, case: &Case| -> bool {
        let dtype = case.word("dtype", &["f32", "bf16", "int8"], false).ok();
        // A model whose case names no format runs in the one that is asked for.
        let takes_any = !case.has("dtype")
            && match workload.name {
                "rnn_generate" | "transformer_generate" => true,
                "rnn_train" | "transformer_train" | "transformer_prefill" => {
                    args.dtype.as_deref() != Some("int8")
                }
                _ => false,
            };
        case.text().contains(&args.r#match)
            && args.dtype.as_deref().is_none_or(|wanted| takes_any || dtype == Some(wanted))
    };
    // All cases are checked before the first one is run.
    for (workload, (_, cases)) in workloads.iter().zip(&shapes) {
        cases.iter().try_for_each(|case| (workload.check)(case)).map_err(|e| in_file(e, args))?;
    }
    let picture = args.roofline.as_deref().map(|path| output::place(path, "roofline.svg", console));
    if let Some(path) = &picture {
        // A file that cannot be written is told now, not after the last case.
        drop(output::Staged::create(path)?);
    }
    let mut dots = Vec::new();
    let (mut ran, mut failed) = (0, 0);
    for (workload, (_, cases)) in workloads.iter().zip(&shapes) {
        for case in cases.iter().filter(|case| wanted(workload, case)) {
            ran += 1;
            let mut headed = false;
            let mut fault = |error: &str| -> Result<()> {
                failed += 1;
                console.report(
                    &json!({ "workload": workload.name, "case": case.json(), "error": error }),
                )?;
                if !console.json {
                    console.warn(format!("{} {}: {error}", workload.name, case.text()));
                }
                Ok(())
            };
            let done = child::run(workload.name, case, &mut |record| {
                if let Some(error) = record["error"].as_str() {
                    return fault(error);
                }
                console.report(&record)?;
                dots.extend(Dot::of(&record, case));
                if console.json {
                    return Ok(());
                }
                if record["why"].is_string() && !std::mem::replace(&mut headed, true) {
                    console.say(format!("{} {}", workload.name, clean(&case.text())))?;
                }
                console.say(show(&record, case))
            });
            match done {
                Ok(()) => {}
                Err(error @ (Error::Closed | Error::Interrupted { .. })) => return Err(error),
                Err(error) => fault(&error.to_string())?,
            }
        }
    }
    if ran == 0 {
        console.note("bench: no case matches");
    }
    if let Some(path) = &picture {
        let threads = threads(args)?;
        let title = match threads {
            1 => "Roofline, 1 thread".to_owned(),
            n => format!("Roofline, {n} threads"),
        };
        let svg = roofline::svg(&dots, &Roofs::measure(threads), &title);
        output::write(path, svg.as_bytes())?;
        let (path, dots) = (show_path(path), dots.len());
        console.say(format!("{path}: {dots} cases under the roofs of this machine"))?;
    }
    match failed {
        0 => Ok(()),
        n => Err(Error::failed(format!("bench: {n} of {ran} cases could not be run"))),
    }
}

/// Times one case in this process and prints its lines as JSON, an error as one of them.
fn run_one(text: &str, args: &Args) -> Result<()> {
    let (name, case) = child::parse(text)?;
    let workload = chosen(&[name.to_owned()])?[0];
    (workload.check)(&case)?;
    let (threads, effort) = (threads(args)?, effort(args)?);
    child::end_with_parent();
    let base_rss_mb = memory::memory_mb("VmRSS");
    let pool = Pool::new(threads).map_err(Error::failed)?;
    let console = Console { json: true, quiet: true };
    let mut sink = Sink {
        workload: workload.name,
        case: &case,
        threads,
        effort,
        pool: &pool,
        console: &console,
        base_rss_mb,
        why: None,
    };
    let options = Options {
        threads,
        packed: args.packed,
        precision: precision(args),
        bf16: args.dtype.as_deref() == Some("bf16"),
    };
    match (workload.run)(&case, &options, &mut sink) {
        Ok(()) => Ok(()),
        Err(error @ (Error::Closed | Error::Interrupted { .. })) => Err(error),
        Err(error) => console.report(&json!({ "error": error.to_string() })),
    }
}

/// How a generator stores its weights where its case does not say it.
fn precision(args: &Args) -> Precision {
    args.dtype.as_deref().and_then(Precision::from_name).unwrap_or(Precision::F32)
}

/// How many threads the arguments mean.
fn threads(args: &Args) -> Result<usize> {
    match args.threads {
        0 => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
        n if n <= 1024 => Ok(n),
        n => Err(Error::input(format!("--threads {n}: at most 1024"))),
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
                clean(name),
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
        let kernels = ["gemm", "attention", "conv", "elementwise", "ladder"];
        assert_eq!(names(&["gemm", "kernels"]), kernels);
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
