//! Pieces as tokens, cut into batches; and the two baselines every model must beat.
//!
//! Which windows make up a batch is a function of the seed and the step alone: a resumed run sees
//! the same batches as an uninterrupted one.

pub use crate::augment::Augment;
pub use crate::pieces::Pieces;
#[cfg(feature = "train")]
pub use crate::pieces::Stored;
use crate::{Error, Result, frames, pairs};
use etude_engine::Rng;
use etude_tokenizer::features::{ChordInput, Controls};
use etude_tokenizer::step_input::{self, StepInput};
use etude_tokenizer::{ChordTrack, Encoding, FeatureInput, Guide, GuideInput, Meter};
use etude_tokenizer::{PianoRoll, Score};
use std::borrow::Cow;
use std::ops::Range;

/// Keys of a piano roll.
pub const KEYS: usize = PianoRoll::KEYS;

/// Marks a target that does not count.
pub use etude_engine::NO_ID as NO_TARGET;

/// Scores of a data set, by part.
#[derive(Debug, Clone, Default)]
pub struct Scores {
    /// For learning: name and music.
    pub train: Vec<(String, Score)>,
    /// For choosing when to stop.
    pub valid: Vec<(String, Score)>,
    /// For the figures that are told.
    pub test: Vec<(String, Score)>,
}

/// A piece as a model reads it.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Its name in the data set.
    pub name: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// What is fed before each step.
    pub input: StepInput,
    /// Its first metre.
    pub meter: Meter,
    /// Notes in the quantised score.
    pub notes: usize,
    /// Sixteenth-note steps, to the end of the last note.
    pub frames: usize,
    /// Length by the tempo map, in seconds.
    pub seconds: f64,
}

/// How a model is fed at each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conditions {
    /// With the last token.
    None,
    /// With the last token and the form: metre, place, lookback, bars left.
    Form,
    /// With features of the last tokens.
    Features(FeatureInput),
    /// With the keys of the last step: all keys of a step are read and written at once.
    Keys,
    /// With the six parts of the last note: all parts of a note are read and written at once.
    Notes,
    /// With the chord of the step, and the features that the encoding has or else the last token.
    Chords(ChordInput, Option<FeatureInput>),
    /// With what the performance is asked to be like, and the last token.
    Controls(Controls),
    /// With the last token, its bar and its sixteenth: the melody of a piece first, and after its end
    /// what goes with it.
    Melody,
}

/// The conditions of performances by name: density, pitch histogram, and whether they may be left out.
const CONTROLS: [(&str, Controls); 4] = {
    const fn of(density: bool, histogram: bool, optional: bool) -> Controls {
        Controls { density, histogram, optional }
    }
    [
        ("density", of(true, false, false)),
        ("pitch-histogram", of(false, true, false)),
        ("controls", of(true, true, false)),
        ("optional-controls", of(true, true, true)),
    ]
};

impl Conditions {
    /// The names in a configuration.
    pub const NAMES: [&str; 12] = [
        "none",
        "form",
        "features",
        "keys",
        "notes",
        "chords",
        "chord-pitches",
        CONTROLS[0].0,
        CONTROLS[1].0,
        CONTROLS[2].0,
        CONTROLS[3].0,
        "melody",
    ];

    /// Whether a piece is taken apart into a melody and what goes with it.
    pub fn is_pair(self) -> bool {
        self == Conditions::Melody
    }

    /// Finds conditions by name; `None` if the encoding has none such. Features are those of the
    /// encoding, chords stand beside melodies, controls beside performances.
    pub fn from_name(name: &str, encoding: &str) -> Option<Conditions> {
        let melody = encoding.starts_with("melody");
        let chords = |input| Conditions::Chords(input, FeatureInput::of(encoding));
        match name {
            "none" => Some(Conditions::None),
            "form" => Some(Conditions::Form),
            "features" => FeatureInput::of(encoding).map(Conditions::Features),
            "keys" => Some(Conditions::Keys),
            "notes" => Some(Conditions::Notes),
            "chords" => melody.then(|| chords(ChordInput::Triads)),
            "chord-pitches" => melody.then(|| chords(ChordInput::Pitches)),
            "melody" => (encoding == "events").then_some(Conditions::Melody),
            _ => {
                let (_, controls) = CONTROLS.iter().find(|(known, _)| *known == name)?;
                matches!(encoding, "performance" | "performance-dynamics")
                    .then_some(Conditions::Controls(*controls))
            }
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Conditions::None => "none",
            Conditions::Form => "form",
            Conditions::Features(_) => "features",
            Conditions::Keys => "keys",
            Conditions::Notes => "notes",
            Conditions::Chords(ChordInput::Triads, _) => "chords",
            Conditions::Chords(ChordInput::Pitches, _) => "chord-pitches",
            Conditions::Controls(controls) => {
                let known = CONTROLS.iter().find(|(_, known)| *known == controls);
                known.map_or("controls", |(name, _)| name)
            }
            Conditions::Melody => "melody",
        }
    }

    /// What guides a piece: its chords, in the key in which the encoding reads it.
    ///
    /// Chords that cannot be guessed or told are counted in `lost`.
    pub fn guide(
        self,
        score: &Score,
        encoding: &dyn Encoding,
        mut lost: Option<&mut Vec<(String, usize)>>,
    ) -> Option<ChordTrack> {
        let Conditions::Chords(input, _) = self else { return None };
        let track = match ChordTrack::of_score(score) {
            Ok(track) => track,
            Err(e) => {
                lost.as_mut().into_iter().for_each(|l| count(l, &format!("not guessed: {e}"), 1));
                return None;
            }
        };
        let untold = track.untold(input);
        if let Some(lost) = lost.filter(|_| untold > 0) {
            count(lost, "chord without a triad read as no chord (not a note)", untold);
        }
        Some(track.transpose(encoding.key_shift(score)))
    }

    /// The input of a piece of `steps` steps in `meter`.
    pub fn input(self, vocab: usize, meter: Meter, steps: usize) -> StepInput {
        match self {
            Conditions::None => StepInput::previous(vocab),
            Conditions::Features(features) => StepInput::features(vocab, features),
            Conditions::Keys => StepInput::keys(),
            Conditions::Notes => StepInput::notes(),
            Conditions::Melody => StepInput::pair(vocab),
            Conditions::Form => {
                StepInput::form(vocab, meter, steps.div_ceil(step_input::steps_per_bar(meter)))
            }
            Conditions::Chords(chords, features) => {
                let events = features.map(|features| StepInput::features(vocab, features));
                let events = events.unwrap_or_else(|| StepInput::previous(vocab));
                events.guided(GuideInput::Chords(chords))
            }
            Conditions::Controls(controls) => {
                StepInput::previous(vocab).guided(GuideInput::Controls(controls))
            }
        }
    }
}

/// The first metre of a score; 4/4 where none is told.
pub fn meter_of(score: &Score) -> Meter {
    score.meters.first().copied().unwrap_or(Meter { tick: 0, numerator: 4, denominator: 4 })
}

/// Pieces ready for a model.
#[derive(Debug, Default)]
pub struct Dataset {
    /// For learning.
    pub train: Pieces,
    /// For choosing when to stop.
    pub valid: Pieces,
    /// For the figures that are told.
    pub test: Pieces,
    /// What the encoding could not hold, counted by reason, over the pieces as they are.
    pub lost: Vec<(String, usize)>,
}

impl Dataset {
    /// Encodes scores.
    ///
    /// `transpose` lets training see every piece shifted by -n to n semitones as well.
    ///
    /// # Errors
    /// If no training piece is left, or pieces are shifted that are read in one key.
    pub fn new(
        scores: &Scores,
        encoding: &dyn Encoding,
        conditions: Conditions,
        transpose: usize,
    ) -> Result<Dataset> {
        let mut lost = Vec::new();
        let mut part = |scores: &[(String, Score)]| -> Vec<Piece> {
            let pieces = scores.iter();
            let pieces = pieces.filter_map(|(name, score)| {
                piece(name, score, encoding, conditions, Some(&mut lost))
            });
            pieces.collect()
        };
        let [train, valid, test] = [&scores.train, &scores.valid, &scores.test].map(|s| part(s));
        let count = scores.train.len();
        let (train, valid, test) = (train.into(), valid.into(), test.into());
        Dataset { train, valid, test, lost }.changed(encoding, count, Augment::by(transpose))
    }

    /// The same data, the training part changed from window to window.
    ///
    /// `count` is how many training pieces there were before encoding.
    ///
    /// # Errors
    /// If no training piece is left, or the encoding does not hold what is changed.
    pub fn changed(
        mut self,
        encoding: &dyn Encoding,
        count: usize,
        augment: Augment,
    ) -> Result<Dataset> {
        if self.train.is_empty() {
            let why = format!(
                "none of the {count} training pieces holds music that the encoding {} can write",
                encoding.name()
            );
            return Err(Error::Data { why });
        }
        self.train = self.train.changed(encoding, augment)?;
        Ok(self)
    }
}

/// Encodes one piece; `None` if it has fewer than two tokens.
pub fn piece(
    name: &str,
    score: &Score,
    encoding: &dyn Encoding,
    conditions: Conditions,
    mut lost: Option<&mut Vec<(String, usize)>>,
) -> Option<Piece> {
    let encoded = match encoding.encode(score) {
        Ok(encoded) => encoded,
        Err(e) => {
            if let Some(lost) = lost {
                count(lost, &format!("piece not encoded: {e}"), 1);
            }
            return None;
        }
    };
    if let Some(lost) = lost.as_mut() {
        encoded.lost.iter().for_each(|(reason, n)| count(lost, reason, *n));
    }
    if encoded.tokens.len() < 2 {
        return None;
    }
    let heard = encoding.quantise(score);
    let frames = match conditions {
        Conditions::Keys => frames::counted(&encoded.tokens),
        _ => (heard.end_tick() * 4).div_ceil(u64::from(heard.ticks_per_quarter.max(1))) as usize,
    };
    let mut input = conditions.input(encoding.vocab_size(), meter_of(score), encoded.tokens.len());
    if let Some(chords) = conditions.guide(score, encoding, lost) {
        input = input.told(Guide::Chords(chords));
    }
    Some(Piece {
        name: name.into(),
        input,
        tokens: encoded.tokens,
        meter: meter_of(score),
        notes: heard.note_count(),
        frames,
        seconds: score.seconds(),
    })
}

fn count(lost: &mut Vec<(String, usize)>, reason: &str, n: usize) {
    match lost.iter_mut().find(|(r, _)| r == reason) {
        Some((_, total)) => *total += n,
        None => lost.push((reason.into(), n)),
    }
}

/// Windows of several pieces side by side, time-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Input rows `[steps, batch, active]`.
    pub rows: Vec<u32>,
    /// The token to predict at each step `[steps, batch]`; [`NO_TARGET`] past a piece's end.
    pub targets: Vec<u32>,
    /// The keys to predict at each step `[steps, batch]`, bit 0 the lowest, where the targets are
    /// 0 or [`NO_TARGET`]; empty for tokens.
    pub keys: Vec<u128>,
    /// Time steps.
    pub steps: usize,
    /// Windows.
    pub batch: usize,
    /// Input rows summed for one step.
    pub active: usize,
}

impl Batch {
    /// Lays windows side by side: `(piece, first step)`, each up to `window` steps long.
    pub fn new(windows: &[(&Piece, usize)], window: usize) -> Batch {
        if windows.first().is_some_and(|(p, _)| p.input.is_keys()) {
            return frames::batch(windows, window);
        }
        if windows.first().is_some_and(|(p, _)| p.input.is_pair()) {
            return pairs::batch(windows, window);
        }
        let batch = windows.len();
        let active = windows.first().map_or(1, |(p, _)| p.input.active());
        let steps = windows.iter().map(|(p, at)| (p.tokens.len() - at).min(window)).max();
        let steps = steps.unwrap_or(0);
        let mut rows = vec![step_input::NO_ROW; steps * batch * active];
        let mut targets = vec![NO_TARGET; steps * batch];
        for (b, (piece, from)) in windows.iter().enumerate() {
            let mut reader = piece.input.reader_of(&piece.tokens);
            for t in 0..(piece.tokens.len() - from).min(window) {
                let at = t * batch + b;
                reader.fill(&piece.tokens, from + t, &mut rows[at * active..][..active]);
                targets[at] = piece.tokens[from + t];
            }
        }
        Batch { rows, targets, keys: Vec::new(), steps, batch, active }
    }

    /// The batch of a training step: row `b` of step `s` is window number `s * batch + b` of an
    /// endless walk over the pieces and their shifts, each epoch in an order of its own.
    ///
    /// A piece longer than the window is entered at its start half of the time, else anywhere. Where
    /// controls are optional, every other window is told none.
    ///
    /// # Errors
    /// If a piece cannot be read.
    pub fn of_step(
        pieces: &Pieces,
        seed: u64,
        step: u64,
        batch: usize,
        window: usize,
    ) -> Result<Batch> {
        let n = pieces.variants() as u64;
        let windows = (0..batch as u64).map(|b| {
            let number = step * batch as u64 + b;
            let (epoch, at) = (number / n, (number % n) as usize);
            let mut piece = pieces.variant(pieces.at(seed, epoch, at), (seed, number), window)?;
            let is_free = matches!(piece.input.guide(),
                Some((GuideInput::Controls(c), _)) if c.optional && number % 2 == 1);
            if is_free {
                let input = piece.input.clone().told(Guide::Nothing);
                piece = Cow::Owned(Piece { input, ..piece.into_owned() });
            }
            let over = piece.tokens.len().saturating_sub(window);
            let mut rng = Rng { seed, stream: WINDOW_STREAM, position: 4 * number };
            let (enter, place) = (rng.unit(), rng.unit());
            let from = if over == 0 || enter < 0.5 {
                0
            } else {
                ((f64::from(place) * (over + 1) as f64) as usize).min(over)
            };
            let from = from - from % piece.input.stride();
            Ok((piece, from))
        });
        let windows = windows.collect::<Result<Vec<_>>>()?;
        let windows: Vec<_> = windows.iter().map(|(piece, from)| (&**piece, *from)).collect();
        Ok(Batch::new(&windows, window))
    }

    /// The windows in `count` parts, as even as can be; fewer where there are fewer windows.
    pub fn parts(&self, count: usize) -> Vec<Batch> {
        let count = count.clamp(1, self.batch.max(1));
        let cut = |part: usize| self.batch * part / count;
        let part = |from: usize, to: usize| {
            let of = |width: usize| (self.batch * width, from * width..to * width);
            Batch {
                rows: columns(&self.rows, of(self.active)),
                targets: columns(&self.targets, of(1)),
                keys: columns(&self.keys, of(1)),
                batch: to - from,
                ..*self
            }
        };
        if count == 1 {
            return vec![self.clone()];
        }
        (0..count).map(|at| part(cut(at), cut(at + 1))).collect()
    }

    /// Targets that count.
    pub fn target_count(&self) -> usize {
        self.targets.iter().filter(|t| **t != NO_TARGET).count()
    }
}

/// A part of each row of a matrix `[_, width]`.
fn columns<T: Copy>(x: &[T], (width, part): (usize, Range<usize>)) -> Vec<T> {
    x.chunks_exact(width).flat_map(|row| &row[part.clone()]).copied().collect()
}

/// A random stream of its own: numbers of one purpose never meet those of another.
const WINDOW_STREAM: u32 = 2;

/// What a table of counts reaches, in nats for a token of the validation part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Baselines {
    /// Each token by how often it comes (order 0).
    pub marginal: f64,
    /// Each token by the one before it (order 1).
    pub markov: f64,
}

impl Baselines {
    /// Counts the tokens (or the keys, where those are written at once) of the training pieces as they
    /// are, with half a count added everywhere, and scores `held` with them.
    ///
    /// # Errors
    /// If a piece cannot be read.
    pub fn new(train: &Pieces, held: &Pieces, vocab: usize) -> Result<Baselines> {
        if !train.is_empty() && train.get(0)?.input.is_keys() {
            return frames::baselines(train, held);
        }
        let mut single = vec![0.5f64; vocab];
        // Row `vocab` is the start of a piece. Sparse: a large vocabulary meets few pairs.
        let mut pairs = std::collections::HashMap::<(u32, u32), f64>::new();
        let mut firsts = vec![0.0f64; vocab + 1];
        for piece in train.iter() {
            let mut last = vocab as u32;
            for &token in pairs::counted(&*piece?).iter() {
                single[token as usize] += 1.0;
                *pairs.entry((last, token)).or_default() += 1.0;
                firsts[last as usize] += 1.0;
                last = token;
            }
        }
        let total: f64 = single.iter().sum();
        let (mut marginal, mut markov, mut count) = (0.0, 0.0, 0.0);
        for piece in held.iter() {
            let mut last = vocab as u32;
            for &token in pairs::counted(&*piece?).iter() {
                marginal -= (single[token as usize] / total).ln();
                let seen = pairs.get(&(last, token)).copied().unwrap_or(0.0) + 0.5;
                markov -= (seen / (firsts[last as usize] + 0.5 * vocab as f64)).ln();
                count += 1.0;
                last = token;
            }
        }
        Ok(Baselines { marginal: marginal / count, markov: markov / count })
    }
}
