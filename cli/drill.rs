//! `etude train NAME --task adding`: how far back a network remembers, in numbers and in a picture.

use std::path::Path;
use std::time::{Duration, Instant};

use etude_models::config;
use etude_models::registry::preset_config;
use etude_models::tasks::{Drill, Problem, Task, TaskScore};
use etude_models::train::{RunConfig, setting_keys};
use serde_json::{Map, Value, json};

use crate::console::{Console, show_path};
use crate::curve::{Chart, Series};
use crate::error::{Error, Result};
use crate::progress::{Goal, Progress, Status};
use crate::{interrupt, output};

/// Sequences that are scored, and those whose gradients are averaged.
const SCORED: usize = 256;
const GRADIENTS: usize = 16;
/// Of what a network pays that remembers nothing, the share below which it has learned the task.
const LEARNED: f64 = 0.1;

/// What the command line asks for.
pub struct Order<'a> {
    /// A model: its cells and whatever `adjust` says of its sizes.
    pub name: &'a str,
    /// What is to be learned.
    pub problem: Problem,
    /// The folder that the results go to.
    pub out: &'a Path,
    /// When to stop at the latest.
    pub time: Option<Duration>,
}

/// The settings of a task, before those of the command line: small networks that drop nothing.
fn settings(name: &str, problem: Problem) -> Result<Map<String, Value>> {
    let fault = |e: etude_models::Error| Error::input(e.to_string());
    let mut map = preset_config(name).map_err(fault)?;
    let context = format!("context={}", problem.steps());
    let sizes: &[&str] = match name.split('/').next() {
        Some("transformer") => {
            &["hidden=64", "layers=2", "heads=4", "ff=256", "output=own", &context]
        }
        _ => &["hidden=128", "layers=1"],
    };
    let others = [
        "conditions=none",
        "encoding=melody",
        "dropout=0",
        "steps=3000",
        "batch=32",
        "lr=0.002",
        "warmup=100",
        "clip=1",
        "weight_decay=0",
        "transpose=0",
        "window=2",
        "log_every=50",
        "valid_every=500",
    ];
    let keys = setting_keys();
    for set in sizes.iter().chain(&others) {
        config::set(&mut map, set, &keys).map_err(fault)?;
    }
    Ok(map)
}

/// Learns a task.
///
/// # Errors
/// If a setting or the folder cannot be used, or a loss is not finite.
pub fn run(
    order: &Order,
    adjust: impl FnOnce(&mut Map<String, Value>) -> Result<()>,
    console: &Console,
) -> Result<()> {
    let Order { name, problem, out, time } = *order;
    if out.join("state.json").exists() {
        return Err(Error::file(out, "holds a run; name another folder by --out"));
    }
    let mut map = settings(name, problem)?;
    adjust(&mut map)?;
    let fault = |e: etude_models::Error| match e {
        e @ etude_models::Error::NotFinite { .. } => Error::failed(e.to_string()),
        e => Error::input(e.to_string()),
    };
    let config = RunConfig::read(map).map_err(fault)?;
    let (steps, log_every, valid_every) =
        (config.train.steps, config.train.log_every, config.train.valid_every);
    let model = format!("{}/{}", config.model.id, config.model.preset);
    let written = Value::Object(config.write());
    let mut drill = Drill::new(problem, config).map_err(fault)?;
    // Before hours of work: is there room for what comes of them?
    std::fs::create_dir_all(out).map_err(|e| Error::file(out, e))?;
    let what = problem.task.name();
    let weights = drill.model().parameter_count();
    console.say(format!(
        "task   {what} over {} steps: {} with {weights} weights; without memory {}",
        problem.length,
        written["model"]["id"].as_str().unwrap_or("?"),
        paid(problem, problem.without_memory()),
    ))?;
    let start = Instant::now();
    let mut progress = Progress::new(
        console,
        time.map_or(Goal::Steps(steps), |time| Goal::Seconds(time.as_secs_f64())),
    );
    let (mut losses, mut sum, mut stopped) = (Vec::new(), (0.0, 0u32), false);
    // The last score, and the step that it was made at.
    let mut scored: Option<(u64, TaskScore)> = None;
    while drill.step() < steps && time.is_none_or(|time| start.elapsed() < time) {
        stopped = interrupt::asked();
        if stopped {
            break;
        }
        sum.0 += drill.learn().map_err(fault)?;
        sum.1 += 1;
        let due = |every| drill.step() == steps || drill.step().is_multiple_of(every);
        if due(log_every) {
            let loss = sum.0 / f64::from(sum.1);
            losses.push((drill.step() as f64, loss));
            sum = (0.0, 0);
            let mut valid = None;
            if due(valid_every) {
                let score = drill.score(SCORED).map_err(fault)?;
                scored = Some((drill.step(), score));
                valid = Some(score.nats);
            }
            let (step, loss) = (drill.step(), Some(loss));
            progress.update(Status { step, loss, valid, tokens_per_second: None });
        }
    }
    progress.finish();
    let score = match scored {
        Some((step, score)) if step == drill.step() => score,
        _ => drill.score(SCORED).map_err(fault)?,
    };
    let norms = drill.gradient_norms(GRADIENTS).map_err(fault)?;
    let title = format!("{model}: {what} over {} steps", problem.length);
    draw(out, &title, problem, &losses, &norms)?;
    let cost = score.squared_error.unwrap_or(score.nats);
    let is_learned = cost < LEARNED * problem.without_memory();
    let report = json!({
        "task": what, "length": problem.length, "model": model, "weights": weights,
        "steps": drill.step(), "seconds": start.elapsed().as_secs_f64(), "nats": score.nats,
        "accuracy": score.accuracy, "squared_error": score.squared_error,
        "without_memory": problem.without_memory(), "learned": is_learned,
        "gradient_norms": norms, "settings": written,
    });
    output::write(&out.join("task.json"), format!("{report:#}\n").as_bytes())?;
    console.say(format!(
        "score  {}, first choice right for {:.1} %: {}",
        paid(problem, cost),
        100.0 * score.accuracy,
        if is_learned { "learned" } else { "not learned" }
    ))?;
    console.say(format!(
        "reach  the gradient of the first step is {:.1e} of that of the last",
        norms.last().unwrap_or(&0.0) / norms.first().unwrap_or(&1.0)
    ))?;
    console.say(format!("wrote  {}", show_path(&out.join("gradients.png"))))?;
    console.report(&report)?;
    match stopped {
        true => Err(Error::Interrupted { why: "what was learned so far is told".into() }),
        false => Ok(()),
    }
}

/// What a network pays, in words.
fn paid(problem: Problem, cost: f64) -> String {
    match problem.task {
        Task::Adding => format!("a squared error of {cost:.4}"),
        Task::Copy => format!("{cost:.3} nats a symbol"),
    }
}

fn draw(
    out: &Path,
    title: &str,
    problem: Problem,
    losses: &[(f64, f64)],
    norms: &[f64],
) -> Result<()> {
    let level = match problem.task {
        Task::Copy => vec![("without memory".into(), problem.without_memory())],
        Task::Adding => Vec::new(),
    };
    let loss = Chart {
        title: title.into(),
        x_label: "step of training".into(),
        y_label: "nats a target".into(),
        series: vec![Series { name: "training".into(), points: losses.to_vec() }],
        levels: level,
    };
    // Where there is no gradient at all there is no logarithm either: such points are left out.
    let points = norms.iter().enumerate().map(|(back, norm)| (back as f64, norm.log10()));
    let gradients = Chart {
        title: title.into(),
        x_label: "steps back from the end".into(),
        y_label: "how far back the gradient reaches: log10 of its norm".into(),
        series: vec![Series { name: "gradient".into(), points: points.collect() }],
        levels: Vec::new(),
    };
    for (name, chart) in [("loss", loss), ("gradients", gradients)] {
        output::write(&out.join(format!("{name}.svg")), chart.svg().as_bytes())?;
        output::write(&out.join(format!("{name}.png")), &chart.png())?;
    }
    Ok(())
}
