//! `etude train`: trains a model on a folder of MIDI files or a built-in corpus.

use std::path::{Path, PathBuf};
use std::time::Duration;

use etude_models::config;
use etude_models::data::{Dataset, Scores};
use etude_models::generate::{Length, Request, Writer};
use etude_models::registry;
use etude_models::run::RunDir;
use etude_models::sampling::Sampling;
use etude_models::tasks::{Problem, Task};
use etude_models::train::{End, Report, RunConfig, Trainer, saved_config, setting_keys};
use etude_tokenizer::{Bars, Encoding, Score};
use serde_json::{Map, Value, json};

use crate::args::Machine;
use crate::console::{Console, show_path};
use crate::corpora::Split;
use crate::curve::{Chart, Series};
use crate::drill::{self, Order};
use crate::error::{Error, Result};
use crate::input::read_bytes;
use crate::memory::memory_mb;
use crate::model::{self, Trained, from_models};
use crate::progress::{Goal, Progress, Status};
use crate::tuning::{self, Tuning};
use crate::{data, dataset, interrupt, output, pianoroll};

/// Arguments of `etude train`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = help()
)]
pub struct Args {
    /// A model, such as lstm or lstm/melody-basic; with --resume a run directory
    #[arg(value_name = "NAME", required_unless_present_any = ["config", "from"])]
    name: Option<PathBuf>,

    /// A built-in corpus (see `etude corpora`), folders or MIDI files [default: the preset's]
    #[arg(long, value_name = "FOLDER", num_args = 1..)]
    data: Vec<PathBuf>,

    /// Learn to remember instead of music, and show how far back the network does: adding (the sum of two
    /// marked numbers) or copy (ten symbols). A small network with the cells of NAME, changed by --set
    #[arg(long, value_name = "TASK", value_parser = task,
        conflicts_with_all = ["data", "config", "from", "resume"])]
    task: Option<Task>,

    /// Steps over which the task is to be remembered [default: 600 for adding, 1000 for copy]
    #[arg(long, value_name = "T", requires = "task")]
    length: Option<usize>,

    /// Read all files anew, and keep none of their tokens for the next run (else they are kept in
    /// ETUDE_CACHE or the user's cache folder)
    #[arg(long)]
    no_cache: bool,

    /// The run directory [default: run]
    #[arg(long, short, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Steps in all
    #[arg(long, value_name = "N")]
    steps: Option<u64>,

    /// Time after which training stops: 90s, 10m, 2h
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    time: Option<Duration>,

    /// A setting of the model or of training; may be given again
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// Begin from trained weights: a bundled model, a run directory or a .safetensors file. Unless told
    /// otherwise 400 steps, at a quarter of the learning rate or, with --lora, at the whole one
    #[arg(long, value_name = "NAME", conflicts_with_all = ["config", "resume", "name"])]
    from: Option<PathBuf>,

    /// Learn an adapter of rank R beside the weights of --from, which stay as they are
    #[arg(long, value_name = "R", requires = "from", value_parser = clap::value_parser!(u16).range(1..=4096))]
    lora: Option<u16>,

    /// A configuration file (TOML, as config.toml of a run)
    #[arg(long, value_name = "F.toml")]
    config: Option<PathBuf>,

    /// Go on with the run in the run directory
    #[arg(long)]
    resume: bool,

    /// Numbers of matrix products; weights and everything else stay f32 [default: f32]
    #[arg(long, value_name = "DTYPE", value_parser = ["f32", "bf16"])]
    dtype: Option<String>,

    /// Start of the random numbers
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    #[command(flatten)]
    machine: Machine,
}

/// Examples, and every setting there is.
fn help() -> String {
    let keys = setting_keys();
    let of = |table: &str| -> String {
        keys.iter().filter(|(t, _)| *t == table).map(|(_, key)| format!(" {key}")).collect()
    };
    format!(
        "Examples:\n  etude train lstm --data folk --out run --time 2m\n  etude train lstm/melody-basic --data my_midi --out run --steps 500 --set hidden=192\n  etude train run --resume --steps 1000\n  etude train --from lstm --data my_midi --lora 8 --out tuned\n  etude train lstm/performance --dtype bf16\n  etude train gru --task adding --length 200 --out adding\n\nSettings for --set (each architecture takes some of the first): model{}; train{}; data{}",
        of("model"),
        of("train"),
        of("data")
    )
}

fn parse_time(text: &str) -> std::result::Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err("a number with s, m or h is wanted, such as 10m".into()),
    };
    match digits.parse::<f64>() {
        Ok(n) if n > 0.0 && n * unit <= 3.2e7 => Ok(Duration::from_secs_f64(n * unit)),
        _ => Err("a number above 0 with s, m or h is wanted, such as 10m".into()),
    }
}

/// Trains.
///
/// # Errors
/// If a setting, the data or the run directory cannot be used, or training fails.
pub fn run(args: &Args, console: &Console) -> Result<()> {
    interrupt::listen();
    let pool = args.machine.pool()?;
    match args.task {
        Some(task) => pool.run(|| learn_task(args, task, console)),
        None => pool.run(|| train(args, console)),
    }
}

fn task(name: &str) -> std::result::Result<Task, String> {
    let names = Task::ALL.map(Task::name).join(" or ");
    Task::from_name(name).ok_or(format!("{names} is wanted"))
}

/// The model that is to be trained, by its name in the registry.
fn model_name(args: &Args) -> Result<&str> {
    let name = args.name.as_deref().unwrap_or(Path::new("lstm"));
    name.to_str().ok_or_else(|| Error::file(name, "no such model"))
}

fn learn_task(args: &Args, task: Task, console: &Console) -> Result<()> {
    let problem = Problem { task, length: args.length.unwrap_or(task.usual_length()) };
    let name = model_name(args)?;
    let out = args.out.as_deref().unwrap_or(Path::new("run"));
    let order = Order { name, problem, out, time: args.time };
    drill::run(&order, |map| adjust(args, map), console)
}

fn train(args: &Args, console: &Console) -> Result<()> {
    let (mut trainer, path, tuning) = match existing(args)? {
        Some((run, path)) => {
            let mut map = saved_config(&run).map_err(|e| from_models(e, &path))?.write();
            adjust(args, &mut map)?;
            let config = RunConfig::read(map).map_err(|e| Error::input(e.to_string()))?;
            let data = dataset::open(&config, &sources(args, &config), !args.no_cache, console)?;
            let tuning = Tuning::resume(&path)?;
            (Trainer::resume(config, data, run).map_err(|e| from_models(e, &path))?, path, tuning)
        }
        None => {
            let path = args.out.clone().unwrap_or_else(|| "run".into());
            let from = args.from.as_deref().map(model::load).transpose()?;
            let mut map = match &from {
                Some(from) => tuning::settings(from, args.lora.map(usize::from))?,
                None => base(args)?,
            };
            adjust(args, &mut map)?;
            let config = RunConfig::read(map).map_err(|e| match &args.config {
                Some(file) => Error::file(file, e),
                None => Error::input(e.to_string()),
            })?;
            if let Some(from) = &from {
                tuning::check_sizes(&config, from)?;
            }
            if path.join("state.json").exists() {
                let why =
                    "holds a run already; go on with it by --resume, or name another by --out";
                return Err(Error::file(&path, why));
            }
            if config.train.lora.rank > 0 && from.is_none() {
                return Err(Error::input(
                    "train.lora: an adapter needs weights; give some by --from",
                ));
            }
            let data = dataset::open(&config, &sources(args, &config), !args.no_cache, console)?;
            let (trainer, tuning) = begin(config, from, data, (&path, !args.no_cache), console)?;
            (trainer, path, tuning)
        }
    };
    describe(&trainer, &path, console)?;
    let (from, start) = (trainer.step(), std::time::Instant::now());
    let mut progress = Progress::new(
        console,
        match args.time {
            Some(time) => Goal::Seconds(time.as_secs_f64()),
            None => Goal::Steps(trainer.config().train.steps),
        },
    );
    let mut tokens = 0.0f64;
    let mut since = start;
    let end = trainer.train(args.time, &interrupt::asked, &mut |r: &Report| {
        tokens += r.tokens_per_second * since.elapsed().as_secs_f64();
        since = std::time::Instant::now();
        progress.update(Status {
            step: r.step,
            loss: Some(r.loss),
            valid: r.valid.map(|v| v.per_token),
            tokens_per_second: Some(r.tokens_per_second),
        });
    });
    progress.finish();
    let end = end.map_err(|e| match e {
        etude_models::Error::NotFinite { .. } => Error::failed(e.to_string()),
        e => from_models(e, &path),
    })?;
    draw_curve(&trainer, &path)?;
    if trainer.step() > from && end != End::Stopped {
        sample(&trainer, &path)?;
    }
    let rate = tokens / start.elapsed().as_secs_f64().max(1e-9);
    let tuned = match end {
        End::Stopped => None,
        _ => Some((tuning.as_ref(), !args.no_cache)),
    };
    finish(&trainer, &path, (end, rate), tuned, console)
}

/// Begins a run, from fresh or from trained weights.
fn begin(
    config: RunConfig,
    from: Option<Trained>,
    data: Dataset,
    (path, cached): (&Path, bool),
    console: &Console,
) -> Result<(Trainer, Option<Tuning>)> {
    let fault = |e| from_models(e, path);
    let Some(from) = from else {
        return Ok((Trainer::create(config, data, path).map_err(fault)?, None));
    };
    // Before the run is there: one that is stopped from here on knows where it came from.
    let tuning = Tuning::begin(&from, &config, &data, cached, console)?;
    let model = config.with_adapter(from.model).map_err(|e| Error::input(e.to_string()))?;
    let trainer = Trainer::with_model(config, model, data, path).map_err(fault)?;
    tuning.save(path)?;
    Ok((trainer, Some(tuning)))
}

/// The run to go on with, if that is what is asked for and it is there.
fn existing(args: &Args) -> Result<Option<(RunDir, PathBuf)>> {
    if !args.resume {
        return Ok(None);
    }
    let named = args.name.clone().filter(|n| n.is_dir() && args.out.is_none());
    let path = named.or_else(|| args.out.clone()).unwrap_or_else(|| "run".into());
    let is_model =
        args.name.as_ref().and_then(|n| n.to_str()).is_some_and(|n| registry::find(n).is_ok());
    if !path.exists() && is_model {
        // Nothing was saved yet: the same command begins the run, so that scripts can repeat it.
        return Ok(None);
    }
    let run = RunDir::open(&path, true).map_err(|e| from_models(e, &path))?;
    Ok(Some((run, path)))
}

/// The configuration that a new run begins from: a file, or a preset.
fn base(args: &Args) -> Result<Map<String, Value>> {
    if let Some(path) = &args.config {
        let bytes = read_bytes(path, config::MAX_BYTES)?;
        let text = String::from_utf8(bytes).map_err(|_| Error::file(path, "not UTF-8"))?;
        return config::from_toml(&text).map_err(|e| Error::file(path, e));
    }
    let name = model_name(args)?;
    if Path::new(name).join("state.json").exists() {
        return Err(Error::file(Path::new(name), "is a run directory; go on with it by --resume"));
    }
    registry::preset_config(name).map_err(|e| Error::input(e.to_string()))
}

/// What the command line says beside the preset, the file or the saved configuration.
fn adjust(args: &Args, map: &mut Map<String, Value>) -> Result<()> {
    let keys = setting_keys();
    let mut sets = args.set.clone();
    sets.extend(args.steps.map(|n| format!("train.steps={n}")));
    sets.extend(args.dtype.iter().map(|dtype| format!("train.dtype={dtype}")));
    sets.extend(args.seed.map(|n| format!("train.seed={n}")));
    for assignment in &sets {
        config::set(map, assignment, &keys).map_err(|e| Error::input(e.to_string()))?;
    }
    if !args.data.is_empty() {
        let sources: Vec<String> =
            args.data.iter().map(|p| source_text(p)).collect::<Result<_>>()?;
        let source = match &sources[..] {
            [one] => one.clone(),
            several => json!(several).to_string(),
        };
        map.insert("data".into(), json!({ "source": source }));
    }
    Ok(())
}

/// A data source as a text: a corpus name as it is, a path in full, so that a run can be resumed
/// from another folder.
fn source_text(path: &Path) -> Result<String> {
    if let Some(corpus) = path.to_str().and_then(crate::corpora::find) {
        return Ok(corpus.name.into());
    }
    let full = std::path::absolute(path).map_err(|e| Error::file(path, e))?;
    Ok(full.to_string_lossy().into_owned())
}

/// The sources that a configuration names: one, or a JSON list of several.
pub fn sources_of(source: &str) -> Vec<PathBuf> {
    match serde_json::from_str::<Vec<String>>(source) {
        Ok(several) => several.into_iter().map(PathBuf::from).collect(),
        Err(_) => vec![source.into()],
    }
}

/// Where to read from: as the command line says it (a path need not be UTF-8), else as saved.
fn sources(args: &Args, config: &RunConfig) -> Vec<PathBuf> {
    if args.data.is_empty() { sources_of(&config.source) } else { args.data.clone() }
}

/// Takes loaded pieces apart by their parts.
pub fn scores(data: data::Data) -> Scores {
    let mut scores = Scores::default();
    for piece in data.pieces {
        let part = match piece.split {
            Split::Train => &mut scores.train,
            Split::Valid => &mut scores.valid,
            Split::Test => &mut scores.test,
        };
        part.push((piece.name, piece.score));
    }
    scores
}

fn describe(trainer: &Trainer, path: &Path, console: &Console) -> Result<()> {
    let (c, data) = (trainer.config(), trainer.data());
    console.say(format!(
        "model      {}/{}: {} weights, encoding {}",
        c.model.id,
        c.model.preset,
        trainer.model().parameter_count(),
        c.model.encoding
    ))?;
    console.say(format!(
        "tokens     {} to learn from, {} to validate with",
        data.train.token_count(),
        data.valid.token_count()
    ))?;
    let b = trainer.baselines();
    console.say(format!(
        "baselines  marginal {:.3}, Markov {:.3} nats a token",
        b.marginal, b.markov
    ))?;
    let from = match trainer.step() {
        0 => String::new(),
        step => format!(", from step {step}"),
    };
    console.say(format!(
        "run        {}: {} steps of {} x {} tokens, seed {}{from}",
        show_path(path),
        c.train.steps,
        c.train.batch,
        c.train.window,
        c.train.seed
    ))
}

/// Draws the loss of the whole run from its `metrics.jsonl`.
fn draw_curve(trainer: &Trainer, path: &Path) -> Result<()> {
    let text = std::fs::read_to_string(path.join("metrics.jsonl")).unwrap_or_default();
    let lines: Vec<Value> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let points = |key: &str| -> Vec<(f64, f64)> {
        let point = |l: &Value| Some((l["step"].as_f64()?, l[key].as_f64()?));
        lines.iter().filter_map(point).collect()
    };
    let b = trainer.baselines();
    let series = |name: &str, key| Series { name: name.into(), points: points(key) };
    let chart = Chart {
        title: format!("{}/{}", trainer.config().model.id, trainer.config().model.preset),
        x_label: "step".into(),
        y_label: "nats a token".into(),
        series: vec![series("training", "loss"), series("validation", "valid_nll")],
        levels: vec![("marginal".into(), b.marginal), ("Markov".into(), b.markov)],
    };
    output::write(&path.join("loss.svg"), chart.svg().as_bytes())?;
    output::write(&path.join("loss.png"), &chart.png())
}

/// Writes a piece with the weights as they stand, to hear what was learned.
fn sample(trainer: &Trainer, path: &Path) -> Result<()> {
    let config = &trainer.config().model;
    let mut writer =
        Writer::new(config, trainer.model()).map_err(|e| Error::failed(e.to_string()))?;
    let primer = match config.conditions.is_pair() {
        true => match melody(trainer, writer.encoding())? {
            Some(melody) => Some(melody),
            None => return Ok(()),
        },
        false => None,
    };
    let request = Request {
        length: Length::Bars(16),
        meter: etude_tokenizer::Meter { tick: 0, numerator: 4, denominator: 4 },
        tempo_bpm: 120.0,
        primer,
        sampling: Sampling { temperature: 0.9, ..Sampling::default() },
        seed: trainer.config().train.seed,
    };
    let piece = writer.write(&request).map_err(|e| Error::failed(e.to_string()))?;
    let title = format!("step {}", trainer.step());
    let place = path.join("samples").join(format!("step-{:06}.mid", trainer.step()));
    output::write(&place, &piece.score.to_midi())?;
    output::write(&place.with_extension("png"), &pianoroll::draw(&piece.score, &title).png())
}

/// The beginning of the first training piece that has a melody.
fn melody(trainer: &Trainer, encoding: &dyn Encoding) -> Result<Option<Score>> {
    const BARS: u64 = 16;
    for piece in trainer.data().train.iter() {
        let piece = piece.map_err(|e| Error::failed(e.to_string()))?;
        let decoded = encoding.decode(&piece.tokens);
        let mut score = decoded.map_err(|e| Error::failed(e.to_string()))?;
        let end = Bars::of(&score).start(BARS);
        score.tracks.iter_mut().for_each(|track| track.notes.retain(|note| note.tick < end));
        if score.tracks.iter().any(|track| !track.is_drum && !track.notes.is_empty()) {
            return Ok(Some(score));
        }
    }
    Ok(None)
}

fn finish(
    trainer: &Trainer,
    path: &Path,
    (end, rate): (End, f64),
    tuned: Option<(Option<&Tuning>, bool)>,
    console: &Console,
) -> Result<()> {
    let (best, best_step) = trainer.best();
    let b = trainer.baselines();
    let finite = |x: f64| if x.is_finite() { json!(x) } else { Value::Null };
    let how = match end {
        End::Done => "all steps are done",
        End::Patience => "the validation loss stopped falling",
        End::Time => "the time is up",
        End::Stopped => "stopped",
    };
    console.say(format!(
        "done       {how} at step {}, {:.1} s, {rate:.0} tokens a second",
        trainer.step(),
        trainer.seconds()
    ))?;
    if best.is_finite() {
        let beaten = match (best < b.marginal, best < b.markov) {
            (_, true) => "under both baselines",
            (true, _) => "under the marginal, above the Markov baseline",
            _ => "above both baselines",
        };
        console.say(format!(
            "loss       train {:.4}, best validation {best:.4} nats a token at step {best_step}: {beaten}",
            trainer.train_loss()
        ))?;
    }
    let tuned = match tuned {
        Some((tuning, cached)) => tuning::end(tuning, trainer, (path, cached), console)?,
        None => Value::Null,
    };
    console.report(&json!({
        "fine_tuning": tuned,
        "run": show_path(path), "steps": trainer.step(), "seconds": trainer.seconds(),
        "tokens_per_second": rate, "train_nll": finite(trainer.train_loss()),
        "valid_nll": finite(best), "best_step": best_step, "end": how,
        "peak_memory_mb": memory_mb("VmHWM"),
        "baselines": { "marginal": finite(b.marginal), "markov": finite(b.markov) },
    }))?;
    match end {
        End::Stopped => Err(Error::Interrupted {
            why: format!("saved; go on with: etude train {} --resume", show_path(path)),
        }),
        _ => Ok(()),
    }
}
