//! A fresh process of this program, up to the first event that it makes.

use std::process::{Command, Stdio};

use etude_kernels::threads::Pool;
use etude_models::recurrent::{Cell, Recurrent, RecurrentConfig};
use etude_models::sampling::{Sampler, Sampling};
use etude_models::transformer::{Transformer, TransformerConfig};
use etude_models::{Model, Precision};

use super::case::Case;
use super::{Job, Options, Sink};
use crate::console::{clean, print};
use crate::error::{Error, Result};
use crate::memory::memory_mb;

enum Shape {
    Lstm { vocab: usize, hidden: usize, layers: usize },
    Transformer(TransformerConfig, usize),
}

/// The network of a case; none for the bare process, what PyTorch's `python` and `import` are the floor of.
fn read(case: &Case) -> Result<Option<Shape>> {
    match case.word("kind", &["python", "import", "lstm", "transformer"], true)? {
        "lstm" => {
            case.only(&["kind", "vocab", "hidden", "layers"])?;
            let shape = (case.count("vocab", 1 << 20)?, case.count("hidden", 1 << 14)?);
            let (vocab, hidden) = shape;
            let layers = case.count("layers", 64)?;
            case.holds(4 * hidden * (vocab + hidden) + (layers - 1) * 8 * hidden * hidden)?;
            Ok(Some(Shape::Lstm { vocab, hidden, layers }))
        }
        "transformer" => {
            let (config, vocab) = super::transformer::read_startup(case)?;
            Ok(Some(Shape::Transformer(config, vocab)))
        }
        _ => case.only(&["kind"]).map(|()| None),
    }
}

/// Refuses a case that cannot be run.
pub fn check(case: &Case) -> Result<()> {
    read(case).map(drop)
}

/// Times one case.
pub fn run(case: &Case, options: &Options, sink: &mut Sink) -> Result<()> {
    let program = super::child::program()?;
    let (text, threads) = (case.text(), options.threads.to_string());
    let (mut peak, mut fault) = (None, None);
    let times = super::measure(&sink.effort, &mut || {
        let child = Command::new(&program)
            .args(["bench", "startup", "--threads", &threads, "--first-event", &text])
            .stdin(Stdio::null())
            .output();
        match child {
            Ok(output) if output.status.success() => {
                let said = String::from_utf8_lossy(&output.stdout);
                let mb = said.lines().last().and_then(|line| line.trim().parse::<f64>().ok());
                peak = mb.into_iter().chain(peak).reduce(f64::max);
            }
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let last = said.lines().last().unwrap_or_default();
                fault = Some(format!("a fresh process ended with {}: {last}", output.status));
            }
            Err(e) => fault = Some(format!("cannot start a process: {e}")),
        }
    });
    if let Some(why) = fault {
        return Err(Error::failed(format!("startup: {}", clean(&why))));
    }
    let job = Job { unit: "starts", ..Job::default() };
    // The time of this process says nothing about the other one's.
    let times = super::Times { cpu: Vec::new(), ..times };
    sink.report("etude", job, &times, peak)
}

/// What the fresh process does: makes the network, samples one event, prints it and the MiB used.
pub fn first_event(case: &Case, threads: usize) -> Result<()> {
    match read(case)? {
        None => say(""),
        Some(shape) => Pool::new(threads).map_err(Error::failed)?.run(|| sample(shape)),
    }
}

fn sample(shape: Shape) -> Result<()> {
    let failed = |e: etude_models::Error| Error::failed(format!("startup: {e}"));
    let (model, vocab): (Box<dyn Model>, usize) = match shape {
        Shape::Transformer(config, vocab) => {
            (Box::new(Transformer::new(config, vocab, vocab, 0).map_err(failed)?), vocab)
        }
        Shape::Lstm { vocab, hidden, layers } => {
            let config = RecurrentConfig::plain(Cell::Lstm, hidden, layers);
            (Box::new(Recurrent::new(config, vocab, vocab, 0).map_err(failed)?), vocab)
        }
    };
    let precision = Precision::for_weights(model.parameter_count());
    let mut generator = model.generator(precision).map_err(failed)?;
    let logits = generator.step(&[0]).map_err(failed)?;
    let event = Sampler::new(Sampling::default(), vocab).draw(logits, 0.5, |_| true);
    say(&format!("{event}\n"))
}

/// Prints what was made, and the MiB used.
fn say(event: &str) -> Result<()> {
    let peak = memory_mb("VmHWM").map_or_else(String::new, |mb| format!("{mb}\n"));
    print(format!("{event}{peak}").as_bytes())
}
