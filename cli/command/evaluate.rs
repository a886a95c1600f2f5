//! `etude evaluate`: likelihood of unseen music, and what a model writes beside what it learned from.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use etude_models::Precision;
use etude_models::data::{Dataset, Pieces, Scores, meter_of};
use etude_models::evaluate::{Likelihood, likelihood, written_likelihood};
use etude_models::generate::{Length, Request, Writer};
use etude_models::sampling::Sampling;
use etude_tokenizer::statistics::{Statistics, spreads};
use etude_tokenizer::{Encoding, Meter, Score, Tempo, Track};
use serde_json::{Map, Value, json};

use crate::args::{Machine, precision};
use crate::command::{generate, train};
use crate::console::Console;
use crate::error::{Error, Result};
use crate::{corpora, data, model};

/// Arguments of `etude evaluate`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  etude evaluate lstm\n  etude evaluate run --data my_midi --split valid --samples 50 --json\n  etude evaluate lstm --data tune.mid --samples 0"
)]
pub struct Args {
    /// A bundled model, a run directory or a .safetensors file
    #[arg(value_name = "NAME")]
    name: PathBuf,

    /// An adapter that is added to the weights: what `train --lora` or `blend` made
    #[arg(long, value_name = "F")]
    adapter: Option<PathBuf>,

    /// A built-in corpus, folders or MIDI files [default: what the model was trained on]
    #[arg(long, value_name = "D", num_args = 1..)]
    data: Vec<PathBuf>,

    /// The part of the data that is scored [default: test; all where every D is a file]
    #[arg(long, value_name = "PART", value_parser = ["train", "valid", "test", "all"])]
    split: Option<String>,

    /// Pieces to generate for the statistics; 0: none
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    samples: u32,

    /// Sharpens (below 1) or flattens (above 1) the choices of the generated pieces
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    temperature: f32,

    /// Score token by token as `generate` writes, with weights stored as f32, bf16 or int8
    /// [default: whole pieces at once, f32]
    #[arg(long, value_name = "DTYPE", value_parser = precision)]
    precision: Option<Precision>,

    /// Start of the random numbers of the generated pieces
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    #[command(flatten)]
    machine: Machine,
}

/// Evaluates.
///
/// # Errors
/// If the model or the data cannot be read.
pub fn run(args: &Args, console: &Console) -> Result<()> {
    let pool = args.machine.pool()?;
    pool.run(|| evaluate(args, console))
}

fn evaluate(args: &Args, console: &Console) -> Result<()> {
    let trained = model::load_with(&args.name, args.adapter.as_deref())?;
    let sources: Vec<PathBuf> = if args.data.is_empty() {
        train::sources_of(trained.source.as_deref().unwrap_or("folk"))
    } else {
        args.data.clone()
    };
    let loaded = data::load(&sources)?;
    loaded.report(console)?;
    let source = loaded.source.clone();
    let mut scores = train::scores(loaded);
    // Files that are named one by one are scored, all of them.
    let is_named = |s: &PathBuf| s.is_file() && s.to_str().and_then(corpora::find).is_none();
    let named = args.split.is_none() && !args.data.is_empty() && sources.iter().all(is_named);
    let split = args.split.as_deref().unwrap_or(if named { "all" } else { "test" });
    if split == "all" {
        let Scores { train, valid, test } = &mut scores;
        train.append(valid);
        train.append(test);
    }
    let encoding = trained.config.encoding().map_err(|e| Error::input(e.to_string()))?;
    let set = Dataset::new(&scores, &*encoding, trained.config.conditions, 0)
        .map_err(|e| Error::input(format!("{source}: {e}")))?;
    let (pieces, held) = match split {
        "train" | "all" => (&set.train, &scores.train),
        "valid" => (&set.valid, &scores.valid),
        _ => (&set.test, &scores.test),
    };
    if pieces.is_empty() {
        return Err(Error::input(format!("{source}: its {split} part holds no pieces")));
    }
    let nll = score(args, &trained, pieces).map_err(|e| Error::input(format!("{source}: {e}")))?;
    console.say(format!(
        "{split}  {} pieces, {} tokens, {} notes",
        pieces.len(),
        nll.tokens,
        nll.notes
    ))?;
    console.say(format!(
        "nats   {:.4} a token, {:.4} a note, {:.4} a frame, {:.4} a second",
        nll.per_token, nll.per_note, nll.per_frame, nll.per_second
    ))?;
    console.say(format!(
        "       {:.4} bits a token, perplexity {:.3}, first choice right {:.1} %",
        nll.per_token / std::f64::consts::LN_2,
        nll.per_token.exp(),
        100.0 * nll.accuracy
    ))?;
    let clean = match (&sources[..], split) {
        ([only], "test") => clean_part(args, &trained, only, (pieces, held), console)?,
        _ => Value::Null,
    };
    let each = if named { each(args, &trained, pieces, nll, console)? } else { Value::Null };
    let human: Vec<Score> = held.iter().map(|(_, score)| heard(&*encoding, score)).collect();
    let written = generated(args, &trained, held)?;
    let statistics = table(&written, &human, console)?;
    console.report(&json!({
        "model": trained.name, "data": source, "split": split,
        "nll_per_frame": nll.per_frame, "nll_per_note": nll.per_note,
        "nll_per_token": nll.per_token, "nll_per_second": nll.per_second,
        "log_likelihood": -nll.per_token * nll.tokens as f64, "each": each,
        "accuracy": nll.accuracy, "bound": false, "tokens": nll.tokens, "notes": nll.notes,
        "pieces": pieces.len(), "parameters": trained.model.parameter_count(),
        "clean": clean, "statistics": statistics, "originality": Value::Null,
    }))
}

/// The likelihood of the test pieces that are no near copies of training pieces, where that is known.
fn clean_part(
    args: &Args,
    trained: &model::Trained,
    source: &Path,
    (pieces, held): (&Pieces, &[(String, Score)]),
    console: &Console,
) -> Result<Value> {
    let name = source.to_str().unwrap_or_default();
    let Some(clean) = corpora::clean_test(name)? else { return Ok(Value::Null) };
    let names: Vec<&str> =
        held.iter().zip(clean).filter(|(_, clean)| *clean).map(|((name, _), _)| &**name).collect();
    let fault = |e: etude_models::Error| Error::input(format!("{name}: {e}"));
    let all =
        pieces.iter().map(|p| p.map(Cow::into_owned)).collect::<etude_models::Result<Vec<_>>>();
    let mut kept = all.map_err(fault)?;
    kept.retain(|piece| names.contains(&&*piece.name));
    let kept = Pieces::from(kept);
    let nll = score(args, trained, &kept).map_err(fault)?;
    console.say(format!(
        "clean  {:.4} a token, {:.4} a note, {:.4} a frame: the {} pieces without a near copy \
         in the training part",
        nll.per_token,
        nll.per_note,
        nll.per_frame,
        kept.len()
    ))?;
    Ok(json!({
        "pieces": kept.len(), "tokens": nll.tokens, "nll_per_frame": nll.per_frame,
        "nll_per_note": nll.per_note, "nll_per_token": nll.per_token,
        "nll_per_second": nll.per_second,
    }))
}

/// The log-likelihood of each piece, in nats; `all` is that of all together.
fn each(
    args: &Args,
    trained: &model::Trained,
    pieces: &Pieces,
    all: Likelihood,
    console: &Console,
) -> Result<Value> {
    let mut lines = Vec::new();
    for piece in pieces.iter() {
        let piece = piece.map_err(|e| Error::failed(e.to_string()))?.into_owned();
        let (name, one) = (piece.name.clone(), Pieces::from(vec![piece]));
        let nll = match pieces.len() {
            1 => all,
            _ => score(args, trained, &one).map_err(|e| Error::input(format!("{name}: {e}")))?,
        };
        let nats = -nll.per_token * nll.tokens as f64;
        console.say(format!(
            "log-likelihood of {name}: {nats:.3} nats, {} tokens, {:.4} nats a token",
            nll.tokens, nll.per_token
        ))?;
        lines.push(json!({
            "name": name, "log_likelihood": nats, "tokens": nll.tokens, "notes": nll.notes,
            "nll_per_token": nll.per_token,
        }));
    }
    Ok(Value::Array(lines))
}

fn score(
    args: &Args,
    trained: &model::Trained,
    pieces: &Pieces,
) -> etude_models::Result<Likelihood> {
    match args.precision {
        None => likelihood(&*trained.model, pieces),
        Some(precision) => written_likelihood(&*trained.model, precision, pieces),
    }
}

/// A piece as the encoding hears it, with the metre and the tempo that it may not hold.
fn heard(encoding: &dyn Encoding, score: &Score) -> Score {
    let mut heard = encoding.quantise(score);
    if heard.meters.is_empty() {
        heard.meters.push(Meter { tick: 0, ..meter_of(score) });
    }
    if heard.tempos.is_empty() {
        heard.tempos.extend(score.tempos.first().map(|t| Tempo { tick: 0, ..*t }));
    }
    heard
}

/// Writes pieces in the metres of the held pieces, each as long as one of them.
fn generated(
    args: &Args,
    trained: &model::Trained,
    held: &[(String, Score)],
) -> Result<Vec<Score>> {
    let failed = |e: etude_models::Error| Error::input(e.to_string());
    let mut writer = Writer::new(&trained.config, &*trained.model).map_err(failed)?;
    let mut written = Vec::new();
    for i in 0..args.samples {
        let (_, like) = &held[i as usize * held.len() / args.samples as usize];
        let is_tune = |track: &Track| !track.is_drum && !track.notes.is_empty();
        if trained.config.conditions.is_pair() && !like.tracks.iter().any(is_tune) {
            continue;
        }
        let meter = meter_of(like);
        let seconds = like.seconds().clamp(1.0, 120.0);
        let request = Request {
            length: Length::Seconds(seconds),
            meter,
            tempo_bpm: like.tempos.first().map_or(generate::usual_tempo(meter), |t| {
                (60e6 / f64::from(t.micros_per_quarter)).clamp(10.0, 1000.0)
            }),
            // A melody of the data, where the model is one that accompanies.
            primer: trained.config.conditions.is_pair().then(|| like.clone()),
            sampling: Sampling { temperature: args.temperature, ..Sampling::default() },
            seed: args.seed.wrapping_add(u64::from(i)),
        };
        writer.ask_like(like);
        written.push(writer.write(&request).map_err(failed)?.score);
    }
    Ok(written)
}

/// The statistics of what was written beside those of the data.
fn table(written: &[Score], human: &[Score], console: &Console) -> Result<Value> {
    if written.is_empty() {
        return Ok(Value::Null);
    }
    let of = |scores: &[Score]| spreads(&scores.iter().map(Statistics::of).collect::<Vec<_>>());
    let (ours, theirs) = (of(written), of(human));
    console.say(format!(
        "\n{:<22} {:>10} {:>10} {:>19}",
        "median of", "generated", "data", "data, 5 % to 95 %"
    ))?;
    let mut values = Map::new();
    for theirs in &theirs {
        let Some(ours) = ours.iter().find(|s| s.name == theirs.name) else { continue };
        console.say(format!(
            "{:<22} {:>10.3} {:>10.3} {:>9.3}{:>10.3}",
            theirs.name, ours.median, theirs.median, theirs.p5, theirs.p95
        ))?;
        values.insert(
            theirs.name.into(),
            json!({
                "generated": { "mean": ours.mean, "median": ours.median },
                "data": {
                    "mean": theirs.mean, "median": theirs.median, "p5": theirs.p5, "p95": theirs.p95,
                },
            }),
        );
    }
    Ok(Value::Object(values))
}
