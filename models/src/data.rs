//! Pieces as tokens, cut into batches; and the two baselines every model must beat.
//!
//! Which windows make up a batch is a function of the seed and the step alone: a resumed run sees
//! the same batches as an uninterrupted one.

use crate::{Error, Result, frames};
use etude_engine::Rng;
use etude_tokenizer::step_input::{self, StepInput};
use etude_tokenizer::{Encoding, FeatureInput, Meter, PianoRoll, Score};

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
}

impl Conditions {
    /// The names in a configuration.
    pub const NAMES: [&str; 4] = ["none", "form", "features", "keys"];

    /// Finds conditions by name; features are those of the encoding, if it has some.
    pub fn from_name(name: &str, encoding: &str) -> Option<Conditions> {
        match name {
            "none" => Some(Conditions::None),
            "form" => Some(Conditions::Form),
            "features" => FeatureInput::of(encoding).map(Conditions::Features),
            "keys" => Some(Conditions::Keys),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Conditions::None => "none",
            Conditions::Form => "form",
            Conditions::Features(_) => "features",
            Conditions::Keys => "keys",
        }
    }

    /// The input of a piece of `steps` steps in `meter`.
    pub fn input(self, vocab: usize, meter: Meter, steps: usize) -> StepInput {
        match self {
            Conditions::None => StepInput::previous(vocab),
            Conditions::Features(features) => StepInput::features(vocab, features),
            Conditions::Keys => StepInput::keys(),
            Conditions::Form => {
                StepInput::form(vocab, meter, steps.div_ceil(step_input::steps_per_bar(meter)))
            }
        }
    }
}

/// The first metre of a score; 4/4 where none is told.
pub fn meter_of(score: &Score) -> Meter {
    score.meters.first().copied().unwrap_or(Meter { tick: 0, numerator: 4, denominator: 4 })
}

/// Pieces ready for a model.
#[derive(Debug, Clone, Default)]
pub struct Dataset {
    /// For learning, with their transpositions.
    pub train: Vec<Piece>,
    /// For choosing when to stop.
    pub valid: Vec<Piece>,
    /// For the figures that are told.
    pub test: Vec<Piece>,
    /// What the encoding could not hold, counted by reason, over the pieces as they are.
    pub lost: Vec<(String, usize)>,
}

impl Dataset {
    /// Encodes scores.
    ///
    /// `transpose` adds, for training only, every piece shifted by -n to n semitones.
    ///
    /// # Errors
    /// If no training piece is left.
    pub fn new(
        scores: &Scores,
        encoding: &dyn Encoding,
        conditions: Conditions,
        transpose: usize,
    ) -> Result<Dataset> {
        let mut data = Dataset::default();
        let shifts = -(transpose as i32)..=transpose as i32;
        for (name, score) in &scores.train {
            for shift in shifts.clone() {
                let shifted = (shift != 0).then(|| etude_tokenizer::transpose(score, shift));
                let score = match &shifted {
                    None => score,
                    Some(Some(shifted)) => shifted,
                    Some(None) => continue,
                };
                let lost = (shift == 0).then_some(&mut data.lost);
                data.train.extend(piece(name, score, encoding, conditions, lost));
            }
        }
        for (name, score) in &scores.valid {
            data.valid.extend(piece(name, score, encoding, conditions, Some(&mut data.lost)));
        }
        for (name, score) in &scores.test {
            data.test.extend(piece(name, score, encoding, conditions, Some(&mut data.lost)));
        }
        if data.train.is_empty() {
            let why = format!(
                "none of the {} training pieces holds music that the encoding {} can write",
                scores.train.len(),
                encoding.name()
            );
            return Err(Error::Data { why });
        }
        Ok(data)
    }
}

/// Encodes one piece; `None` if it has fewer than two tokens.
pub fn piece(
    name: &str,
    score: &Score,
    encoding: &dyn Encoding,
    conditions: Conditions,
    lost: Option<&mut Vec<(String, usize)>>,
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
    if let Some(lost) = lost {
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
    Some(Piece {
        name: name.into(),
        input: conditions.input(encoding.vocab_size(), meter_of(score), encoded.tokens.len()),
        tokens: encoded.tokens,
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
        let batch = windows.len();
        let active = windows.first().map_or(1, |(p, _)| p.input.active());
        let steps = windows.iter().map(|(p, at)| (p.tokens.len() - at).min(window)).max();
        let steps = steps.unwrap_or(0);
        let mut rows = vec![step_input::NO_ROW; steps * batch * active];
        let mut targets = vec![NO_TARGET; steps * batch];
        for (b, (piece, from)) in windows.iter().enumerate() {
            let mut reader = piece.input.reader();
            for t in 0..(piece.tokens.len() - from).min(window) {
                let at = t * batch + b;
                reader.fill(&piece.tokens, from + t, &mut rows[at * active..][..active]);
                targets[at] = piece.tokens[from + t];
            }
        }
        Batch { rows, targets, keys: Vec::new(), steps, batch, active }
    }

    /// The batch of a training step: row `b` of step `s` is window number `s * batch + b` of an
    /// endless walk over the pieces, each epoch in an order of its own.
    ///
    /// A piece longer than the window is entered at its start half of the time, else anywhere.
    pub fn of_step(pieces: &[Piece], seed: u64, step: u64, batch: usize, window: usize) -> Batch {
        let n = pieces.len() as u64;
        let mut order = (u64::MAX, Vec::new());
        let windows: Vec<_> = (0..batch as u64)
            .map(|b| {
                let number = step * batch as u64 + b;
                let (epoch, at) = (number / n, (number % n) as usize);
                if order.0 != epoch {
                    order = (epoch, permutation(pieces.len(), seed, epoch));
                }
                let piece = &pieces[order.1[at] as usize];
                let over = piece.tokens.len().saturating_sub(window);
                let mut rng = Rng { seed, stream: WINDOW_STREAM, position: 4 * number };
                let (enter, place) = (rng.unit(), rng.unit());
                let from = if over == 0 || enter < 0.5 {
                    0
                } else {
                    ((f64::from(place) * (over + 1) as f64) as usize).min(over)
                };
                (piece, from)
            })
            .collect();
        Batch::new(&windows, window)
    }

    /// Targets that count.
    pub fn target_count(&self) -> usize {
        self.targets.iter().filter(|t| **t != NO_TARGET).count()
    }
}

/// Random streams: numbers of one purpose never meet those of another.
const ORDER_STREAM: u32 = 1;
const WINDOW_STREAM: u32 = 2;

/// Shuffles `0..n` with numbers that depend on the seed and the epoch alone.
fn permutation(n: usize, seed: u64, epoch: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    Rng { seed, stream: ORDER_STREAM, position: epoch << 34 }.shuffle(&mut order);
    order
}

/// What a table of counts reaches, in nats for a token of the validation part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Baselines {
    /// Each token by how often it comes (order 0).
    pub marginal: f64,
    /// Each token by the one before it (order 1).
    pub markov: f64,
}

impl Baselines {
    /// Counts the training pieces (keys, where keys are written at once), with half a count added everywhere, and scores `held` with them.
    pub fn new(train: &[Piece], held: &[Piece], vocab: usize) -> Baselines {
        if train.first().is_some_and(|p| p.input.is_keys()) {
            return frames::baselines(train, held);
        }
        let mut single = vec![0.5f64; vocab];
        // Row `vocab` is the start of a piece. Sparse: a large vocabulary meets few pairs.
        let mut pairs = std::collections::HashMap::<(u32, u32), f64>::new();
        let mut firsts = vec![0.0f64; vocab + 1];
        for piece in train {
            let mut last = vocab as u32;
            for &token in &piece.tokens {
                single[token as usize] += 1.0;
                *pairs.entry((last, token)).or_default() += 1.0;
                firsts[last as usize] += 1.0;
                last = token;
            }
        }
        let total: f64 = single.iter().sum();
        let (mut marginal, mut markov, mut count) = (0.0, 0.0, 0.0);
        for piece in held {
            let mut last = vocab as u32;
            for &token in &piece.tokens {
                marginal -= (single[token as usize] / total).ln();
                let seen = pairs.get(&(last, token)).copied().unwrap_or(0.0) + 0.5;
                markov -= (seen / (firsts[last as usize] + 0.5 * vocab as f64)).ln();
                count += 1.0;
                last = token;
            }
        }
        Baselines { marginal: marginal / count, markov: markov / count }
    }
}
