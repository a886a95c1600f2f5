//! `etude generate` and `etude continue`: a trained model writes a piece, as MIDI, sound and picture.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use etude_models::Precision;
use etude_models::generate::{Around, Length, MAX_LENGTH, Request, Writer};
use etude_models::sampling::Sampling;
use etude_tokenizer::{Encoding, Meter, Note, Score, Track, find_key};
use serde_json::{Value, json};

use crate::args::{Machine, Seed, precision};
use crate::command::render::SoundArgs;
use crate::command::wishes::WishArgs;
use crate::console::{Console, print, show_path};
use crate::error::{Error, Result};
use crate::input::read_midi;
use crate::{interrupt, model, output, pianoroll};

/// Arguments of `etude generate`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  etude generate\n  etude generate --meter 6/8 --bars 32 --seed 7 --out jig.mid\n  etude generate run --primer tune.mid --bars 16 --temperature 0.9\n  etude generate lstm --count 5 --out pieces --json\n  etude generate --pitches 60,-2,62,-2,64,-2,-2,-2 --bars 8\n  etude generate --beam 4 --branch 2 --steps-per-iteration 16\n  etude generate run --primer tune.mid --fill bars 5-8 --out filled.mid\n  etude generate --stream --no-audio\n  etude generate improv --chords \"C Am | F G7\" --play-chords --bars 16   (a run of lstm/improv-basic)\n  etude generate piano --density 4 --seconds 30   (a run of lstm/performance-density)"
)]
pub struct Args {
    /// A bundled model, a run directory or a .safetensors file [default: lstm]
    #[arg(value_name = "NAME", default_value = "lstm")]
    name: PathBuf,

    /// Music to go on from
    #[arg(long, value_name = "F.mid", conflicts_with = "pitches")]
    primer: Option<PathBuf>,

    /// A melody to go on from, an event a sixteenth note: a MIDI pitch begins, -1 ends the note, -2
    /// lets it sound on
    #[arg(long, value_name = "P,P,..", allow_hyphen_values = true, value_parser = parse_pitches)]
    pitches: Option<Pitches>,

    /// Write these bars of the primer anew and leave all others as they are: `bars 5-8`, counted from 1
    /// (a model of an encoding with holes, such as the preset transformer/infill)
    #[arg(long, value_names = ["bars", "A-B"], num_args = 2, conflicts_with_all = ["bars", "seconds", "inject_primer"])]
    fill: Option<Vec<String>>,

    /// Write other voices around the primer instead of going on from it (encoding polyphony)
    #[arg(long)]
    inject_primer: bool,

    #[command(flatten)]
    wishes: WishArgs,

    #[command(flatten)]
    controls: Controls,
}

/// Arguments of `etude continue`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  etude continue tune.mid --bars 8\n  etude continue tune.mid --with run --bars 16 --out longer.mid\n\nThe result begins with the tune, as the model's encoding hears it, and keeps its metre, tempo and key."
)]
pub struct ContinueArgs {
    /// The music to go on with
    #[arg(value_name = "F.mid")]
    file: PathBuf,

    /// The model that goes on: a bundled model, a run directory or a .safetensors file
    #[arg(long = "with", value_name = "NAME", default_value = "lstm")]
    name: PathBuf,

    #[command(flatten)]
    wishes: WishArgs,

    #[command(flatten)]
    controls: Controls,
}

/// How a piece is written, and where to.
#[derive(Debug, clap::Args)]
pub(super) struct Controls {
    /// Weights to use in place of NAME: a .safetensors file
    #[arg(long, value_name = "F")]
    weights: Option<PathBuf>,

    /// An adapter that is added to the weights: what `train --lora` or `blend` made
    #[arg(long, value_name = "F")]
    adapter: Option<PathBuf>,

    /// Bars to write (after the primer, if there is one) [default: 16]
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    bars: Option<usize>,

    /// Seconds to write (after the primer, if there is one)
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,

    /// Metre, such as 3/4 or 6/8; that of the primer if there is one
    #[arg(long, value_name = "N/D", value_parser = parse_meter, default_value = "4/4")]
    meter: Meter,

    /// Quarter notes a minute, where the encoding holds no tempo [default: by the metre]
    #[arg(long, value_name = "BPM")]
    tempo: Option<f64>,

    /// Semitones by which the result is shifted
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    transpose: i32,

    /// Sharpens (below 1) or flattens (above 1) the model's choices; 0 takes the likeliest
    #[arg(long, value_name = "T", default_value_t = 0.9)]
    temperature: f32,

    /// Keep the K likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,

    /// Keep the smallest set of tokens whose probability reaches P
    #[arg(long, value_name = "P", default_value_t = 0.98)]
    top_p: f32,

    /// Keep tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,

    /// How often one note may be struck in a row; 0: no limit
    #[arg(long, value_name = "N", default_value_t = 6)]
    repeat_limit: usize,

    /// Search for a likely piece: keep the N likeliest of those that grow side by side; 1: no search
    #[arg(long, value_name = "N", default_value_t = 1)]
    beam: usize,

    /// Ways in which each piece of the search goes on [default: 2 in a search]
    #[arg(long, value_name = "N")]
    branch: Option<usize>,

    /// Tokens by which the pieces of a search grow before the likeliest are kept
    #[arg(long, value_name = "N", default_value_t = 1)]
    steps_per_iteration: usize,

    /// Print each token as it is drawn, one line of JSON each; text for people goes to stderr
    #[arg(long, conflicts_with = "count")]
    stream: bool,

    /// How weights are stored while they are read for each token: f32, bf16 (half the memory, 8 bits
    /// of fraction) or int8 (a quarter, a scale for each row) [default: int8 beyond 4 MiB of f32]
    #[arg(long, value_name = "DTYPE", value_parser = precision)]
    precision: Option<Precision>,

    /// Number of pieces; piece i has the seed SEED + i
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,

    /// Where to write: a .mid file or a folder [default: etude-SEED.mid]
    #[arg(long, short, value_name = "PATH")]
    out: Option<PathBuf>,

    #[command(flatten)]
    sound: SoundArgs,

    #[command(flatten)]
    seed: Seed,

    #[command(flatten)]
    pub machine: Machine,
}

impl Controls {
    /// Whether it is said how long the piece shall be.
    pub(super) fn has_length(&self) -> bool {
        self.bars.is_some() || self.seconds.is_some()
    }
}

/// Events of a melody: a pitch, -1 for the end of the note, -2 for no change.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pitches(Vec<i16>);

fn parse_pitches(text: &str) -> std::result::Result<Pitches, String> {
    const MOST: usize = 16_384;
    let event = |word: &str| {
        let fault = format!("{word:?} is not a pitch of 0 to 127, -1 (note off) or -2 (no event)");
        let event: i16 = word.trim().parse().map_err(|_| fault.clone())?;
        if (-2..=127).contains(&event) { Ok(event) } else { Err(fault) }
    };
    let events = text.split(',').map(event).collect::<std::result::Result<Vec<_>, _>>()?;
    if events.len() > MOST {
        return Err(format!("{} events; at most {MOST}", events.len()));
    }
    if events.iter().all(|event| *event < 0) {
        return Err("no pitch among them: a primer needs a note".into());
    }
    Ok(Pitches(events))
}

impl Pitches {
    /// The melody, four ticks a quarter note.
    fn score(&self, meter: Meter) -> Score {
        let mut score = Score::new(4);
        let mut notes: Vec<Note> = Vec::new();
        let mut sounds = false;
        for (tick, &event) in (0u64..).zip(&self.0) {
            match u8::try_from(event) {
                Ok(pitch) => notes.push(Note { tick, duration: 1, pitch, velocity: 100 }),
                Err(_) if event == -2 && sounds => {
                    notes.last_mut().into_iter().for_each(|note| note.duration += 1);
                }
                Err(_) => {}
            }
            sounds = event >= 0 || (sounds && event == -2);
        }
        score.tracks.push(Track { notes, ..Track::default() });
        score.meters.push(meter);
        score
    }
}

fn parse_meter(text: &str) -> std::result::Result<Meter, String> {
    let fault = || format!("{text:?} is not a metre such as 4/4 or 6/8");
    let (n, d) = text.split_once('/').ok_or_else(fault)?;
    let numerator: u8 = n.trim().parse().map_err(|_| fault())?;
    let denominator: u8 = d.trim().parse().map_err(|_| fault())?;
    if !(1..=32).contains(&numerator) || !matches!(denominator, 1 | 2 | 4 | 8 | 16) {
        return Err(format!("{text}: 1 to 32 over 1, 2, 4, 8 or 16 is wanted"));
    }
    Ok(Meter { tick: 0, numerator, denominator })
}

/// The bars of `--fill bars 5-8`, counted from 0.
fn parse_fill(words: &[String]) -> Result<Range<usize>> {
    let told = words.join(" ");
    let fault = || Error::input(format!("--fill {told}: bars A-B are wanted, such as bars 5-8"));
    let [unit, bars] = words else { return Err(fault()) };
    let (first, last) = bars.split_once('-').unwrap_or((bars, bars));
    let number = |text: &str| text.trim().parse::<usize>().map_err(|_| fault());
    let (first, last) = (number(first)?, number(last)?);
    let is_unit = ["bar", "bars"].contains(&unit.as_str());
    match is_unit && first >= 1 && first <= last && last - first < MAX_LENGTH {
        true => Ok(first - 1..last),
        false => Err(fault()),
    }
}

/// A tempo at which the metre is usually played, in quarter notes a minute.
pub fn usual_tempo(meter: Meter) -> f64 {
    match (meter.numerator, meter.denominator) {
        (6 | 9 | 12, 8) => 165.0,
        (3, 4) => 120.0,
        (2, 2) => 160.0,
        _ => 120.0,
    }
}

/// Writes pieces.
///
/// # Errors
/// If the model or the primer cannot be read, a control is out of range, or a file cannot be written.
pub fn run(args: &Args, console: &Console) -> Result<()> {
    let primer = match (&args.primer, &args.pitches) {
        (Some(path), _) => Some(read_midi(path, console)?.score),
        (None, Some(pitches)) => Some(pitches.score(args.controls.meter)),
        _ => None,
    };
    if args.inject_primer && primer.is_none() {
        return Err(Error::input("--inject-primer: a --primer or --pitches is wanted"));
    }
    let fill = args.fill.as_deref().map(parse_fill).transpose()?;
    if fill.is_some() && primer.is_none() {
        return Err(Error::input(
            "--fill: a --primer or --pitches is wanted, of which these are bars",
        ));
    }
    let (file, wishes) = (args.primer.as_deref(), Some(&args.wishes));
    let mut source = Source { fill, file, wishes, ..Source::default() };
    match args.inject_primer {
        true => source.around = primer.map(|voice| Around { voice, chords: Vec::new() }),
        false => source.primer = primer,
    }
    args.controls.machine.pool()?.run(|| write(&args.controls, &args.name, source, console))
}

/// Goes on with a piece.
///
/// # Errors
/// As [`run`].
pub fn run_continue(args: &ContinueArgs, console: &Console) -> Result<()> {
    let primer = Some(read_midi(&args.file, console)?.score);
    let source = Source { primer, wishes: Some(&args.wishes), ..Source::of_file(&args.file) };
    args.controls.machine.pool()?.run(|| write(&args.controls, &args.name, source, console))
}

/// What a piece begins with or is written around.
#[derive(Default)]
pub(super) struct Source<'a> {
    pub primer: Option<Score>,
    pub around: Option<Around>,
    /// The bars of the primer, counted from 0, that are written anew.
    pub fill: Option<Range<usize>>,
    /// Whether the primer is a melody that is accompanied rather than gone on from.
    pub accompanies: bool,
    /// How long the piece is where nothing else is said, in sixteenths.
    pub steps: Option<usize>,
    /// What is made of the piece before it is written.
    pub finish: Option<Box<dyn Fn(Score) -> Score + Send>>,
    /// The file that either was read from.
    pub file: Option<&'a Path>,
    /// What it is asked to be like.
    pub wishes: Option<&'a WishArgs>,
}

impl Source<'_> {
    pub fn of_file(file: &Path) -> Source<'_> {
        Source { file: Some(file), ..Source::default() }
    }
}

pub(super) fn write(args: &Controls, name: &Path, source: Source, console: &Console) -> Result<()> {
    // Programs read the stream, so stdout is theirs.
    let console = &Console { json: console.json || args.stream, ..*console };
    // A search shows its tokens at its end: until then an interrupt ends it at once.
    if args.stream && args.beam == 1 && args.branch.unwrap_or(1) == 1 {
        interrupt::listen();
    }
    let name = args.weights.as_deref().unwrap_or(name);
    let seed = args.seed.get();
    let Source { primer, around, fill, accompanies, steps, finish, file, wishes } = source;
    let mut request = Request {
        length: match args.seconds {
            Some(seconds) => Length::Seconds(seconds),
            None => Length::Bars(args.bars.unwrap_or(16)),
        },
        meter: args.meter,
        tempo_bpm: 0.0,
        primer,
        sampling: Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            repeat_limit: args.repeat_limit,
            beam: args.beam,
            branch: args.branch.unwrap_or(if args.beam > 1 { 2 } else { 1 }),
            iteration: args.steps_per_iteration,
        },
        seed,
    };
    let heard = request.primer.as_ref().or(around.as_ref().map(|around| &around.voice));
    let meter = heard.map_or(args.meter, etude_models::data::meter_of);
    let primed_tempo = heard.and_then(|p| p.tempos.first());
    let given = primed_tempo.map(|t| 60e6 / f64::from(t.micros_per_quarter));
    request.tempo_bpm = args.tempo.unwrap_or_else(|| {
        given.filter(|bpm| (10.0..=1000.0).contains(bpm)).unwrap_or(usual_tempo(meter))
    });
    if let (Some(steps), None, None) = (steps, args.bars, args.seconds) {
        request.length = Length::Seconds(steps as f64 * 15.0 / request.tempo_bpm);
    }
    if let Some(bars) = &fill {
        request.length = Length::Bars(bars.len());
    }
    // Refuse a bad control before any file is touched.
    request.sampling.check().map_err(|e| Error::input(e.to_string()))?;
    let trained = model::load_with(name, args.adapter.as_deref())?;
    let weights = trained.model.parameter_count();
    let precision = args.precision.unwrap_or_else(|| Precision::for_weights(weights));
    let mut writer = Writer::with_precision(&trained.config, &*trained.model, precision)
        .map_err(|e| model::from_models(e, name))?;
    if let Some(wishes) = wishes {
        wishes.check(trained.config.conditions)?;
        writer.ask(wishes.wishes()).map_err(|e| Error::input(format!("--{e}")))?;
    }
    request.meter = meter;
    let encoding = trained.config.encoding().map_err(|e| Error::input(e.to_string()))?;
    let mut files = Vec::new();
    let mut stopped = false;
    let (mut notes, mut seconds, mut tokens, mut writing) = (0, 0.0, 0, 0.0);
    for i in 0..args.count {
        request.seed = seed.wrapping_add(u64::from(i));
        let start = Instant::now();
        let mut stream = Stream::new(args, request.length, &*encoding);
        let mut hear = |token, at| stream.hear(token, at);
        let piece = match &fill {
            Some(bars) => writer.fill(&request, bars.clone(), &mut hear),
            None if accompanies => writer.accompany(&request, &mut hear),
            None => writer.write_watched(&request, around.as_ref(), &mut hear),
        };
        let piece = piece.map_err(|e| match (e, file) {
            (e @ etude_models::Error::Data { .. }, Some(file)) => Error::file(file, e),
            (e, _) => Error::input(e.to_string()),
        })?;
        let read = stream.end();
        if i == 0 {
            for (reason, count) in &piece.lost {
                console.warn(format!("primer: {count} lost: {reason}"));
            }
        }
        writing += start.elapsed().as_secs_f64();
        tokens += piece.tokens.len();
        let score = match &finish {
            Some(finish) => finish(piece.score),
            None => piece.score,
        };
        let mut score = shifted(score, args.transpose)?;
        if let Some(wishes) = wishes.filter(|_| !score.markers.is_empty()) {
            score = wishes.finish(score, args.transpose);
        }
        let place = place(args, request.seed, console);
        let written = write_files(&score, &place, args)?;
        say(console, &written, &score, meter)?;
        files.push(Value::Object(written));
        notes += score.note_count();
        seconds += score.seconds();
        // A reader that has gone away ends the piece, as Ctrl-C does: what there is of it is saved.
        stopped = read?;
    }
    let rate = tokens as f64 / writing.max(1e-9);
    console.say(format!(
        "by     {} ({weights} weights), seed {seed}, {rate:.0} tokens a second",
        trained.name
    ))?;
    console.report(&json!({
        "files": files, "model": trained.name, "seed": seed, "notes": notes, "seconds": seconds,
        "tokens": tokens, "tokens_per_second": rate,
    }))?;
    match stopped {
        true => Err(Error::Interrupted { why: "what was written so far is saved".into() }),
        false => Ok(()),
    }
}

/// The tokens of a piece as they come, one line of JSON each.
struct Stream<'a> {
    encoding: &'a dyn Encoding,
    is_on: bool,
    unit: &'static str,
    count: usize,
    fault: Option<Error>,
    stopped: bool,
}

impl Stream<'_> {
    fn new<'a>(args: &Controls, length: Length, encoding: &'a dyn Encoding) -> Stream<'a> {
        let unit = match length {
            Length::Bars(_) => "bars",
            Length::Seconds(_) => "seconds",
        };
        Stream { encoding, is_on: args.stream, unit, count: 0, fault: None, stopped: false }
    }

    /// Prints a token; `false` if nobody reads any more or somebody asked to stop.
    fn hear(&mut self, token: u32, at: f64) -> bool {
        if !self.is_on {
            return true;
        }
        let name = self.encoding.token_name(token);
        let line = json!({
            "event": "token", "index": self.count, "token": token, "name": name, self.unit: at,
        });
        self.count += 1;
        self.fault = print(format!("{line}\n").as_bytes()).err();
        self.stopped = interrupt::asked();
        self.fault.is_none() && !self.stopped
    }

    /// Tells whether somebody asked to stop.
    fn end(self) -> Result<bool> {
        self.fault.map_or(Ok(self.stopped), Err)
    }
}

fn shifted(score: Score, semitones: i32) -> Result<Score> {
    match semitones {
        0 => Ok(score),
        _ => etude_tokenizer::transpose(&score, semitones).ok_or_else(|| {
            Error::input(format!("--transpose {semitones}: a note would leave MIDI's 128 pitches"))
        }),
    }
}

/// Where the MIDI file of a seed goes.
fn place(args: &Controls, seed: u64, console: &Console) -> PathBuf {
    let name = format!("etude-{seed}.mid");
    match &args.out {
        None => name.into(),
        Some(path) if args.count == 1 => output::place(path, &name, console),
        // Several pieces: a folder, or tune.mid -> tune-1.mid, tune-2.mid by their seeds.
        Some(path) if path.extension().is_some_and(|e| e == "mid") && !path.is_dir() => {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            path.with_file_name(format!("{stem}-{seed}.mid"))
        }
        Some(folder) => folder.join(name),
    }
}

/// Writes the piece as MIDI, sound and picture; all are made before the first is written.
fn write_files(
    score: &Score,
    midi: &Path,
    args: &Controls,
) -> Result<serde_json::Map<String, Value>> {
    let title = midi.file_stem().unwrap_or_default().to_string_lossy();
    // A short piece may be all rest: there is nothing to hear or to draw then.
    let sounds = score.note_count() > 0;
    let audio = if sounds { args.sound.render(score)? } else { None };
    let picture = sounds && !args.sound.no_image;
    let picture = picture.then(|| pianoroll::draw(score, &title).png());
    output::write(midi, &score.to_midi())?;
    let (wav, image) = (midi.with_extension("wav"), midi.with_extension("png"));
    if let Some(audio) = &audio {
        audio.write_wav(&wav)?;
    }
    if let Some(picture) = &picture {
        output::write(&image, picture)?;
    }
    let shown = |there: bool, path: &Path| if there { show_path(path).into() } else { Value::Null };
    let mut files = serde_json::Map::new();
    files.insert("midi".into(), shown(true, midi));
    files.insert("wav".into(), shown(audio.is_some(), &wav));
    files.insert("image".into(), shown(picture.is_some(), &image));
    Ok(files)
}

fn say(
    console: &Console,
    files: &serde_json::Map<String, Value>,
    score: &Score,
    meter: Meter,
) -> Result<()> {
    let names = ["midi", "wav", "image"].into_iter().filter_map(|key| files[key].as_str());
    let names: Vec<&str> = names.collect();
    console.say(format!("wrote  {}", names.join(", ")))?;
    let tuned = score.tracks.iter().filter(|t| !t.is_drum).flat_map(|t| &t.notes);
    let tuned: Vec<Note> = tuned.copied().collect();
    let (low, high) = tuned.iter().fold((127, 0), |(l, h), n| (n.pitch.min(l), n.pitch.max(h)));
    let key = if tuned.is_empty() {
        String::new()
    } else {
        let (tonic, minor) = find_key(&tuned);
        let mode = if minor { "minor" } else { "major" };
        format!(", {} {mode}, {} to {}", CLASSES[usize::from(tonic)], pitch(low), pitch(high))
    };
    console.say(format!(
        "music  {} notes, {:.1} s in {}/{}{key}",
        score.note_count(),
        score.seconds(),
        meter.numerator,
        meter.denominator
    ))
}

/// The name of a pitch: 60 is C4.
fn pitch(pitch: u8) -> String {
    format!("{}{}", CLASSES[usize::from(pitch % 12)], i32::from(pitch) / 12 - 1)
}

const CLASSES: [&str; 12] = ["C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B"];
