//! More pieces out of one while training goes on: in other keys, at other speeds, louder or softer.
//!
//! Tokens are decoded, the score is changed and encoded again, so that this works for every encoding.
//! A change that the encoding cannot hold (a note out of its range) is left out, and the piece comes
//! as it is.

use crate::Result;
use crate::data::Piece;
use etude_engine::Rng;
use etude_tokenizer::{Encoding, Score, Speed, stretch, stretch_ticks, transpose};

/// How training pieces are changed.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Augment {
    /// Semitones up and down: every piece comes in each of them, once an epoch.
    pub transpose: usize,
    /// Speeds: up to so many percent faster or slower, one of five drawn for each window.
    pub stretch: f64,
    /// Loudness: a number from -n to n drawn for each window is added to all velocities.
    pub velocity: usize,
    /// Probability that a window has a hole, where the encoding has holes.
    pub fill: f64,
}

const AUGMENT_STREAM: u32 = 6;

impl Augment {
    /// Changes the key alone.
    pub fn by(transpose: usize) -> Augment {
        Augment { transpose, ..Augment::default() }
    }

    /// Keys in which a piece comes.
    pub fn keys(&self) -> usize {
        2 * self.transpose + 1
    }

    /// The first of these changes that the encoding does not hold: its key in a configuration, and
    /// why. `None` if it holds all.
    pub fn unheard(&self, encoding: &dyn Encoding) -> Option<(&'static str, String)> {
        let changes = [
            (self.transpose > 0, encoding.has_key(), "train.transpose", "key"),
            (
                self.stretch > 0.0,
                encoding.speed() != Speed::None,
                "train.stretch",
                "tempo and no time in seconds",
            ),
            (self.velocity > 0, encoding.has_velocity(), "train.velocity", "velocities"),
            (self.fill > 0.0, encoding.infill().is_some(), "train.fill", "missing bars"),
        ];
        let (_, _, key, what) = changes.into_iter().find(|(wanted, held, ..)| *wanted && !held)?;
        Some((key, format!("the encoding {} holds no {what}", encoding.name())))
    }

    /// A piece in one of its [`Augment::keys`]; speed and loudness are those of window `number`.
    ///
    /// # Errors
    /// If its tokens are not of the encoding.
    pub fn apply(
        &self,
        piece: &Piece,
        encoding: &dyn Encoding,
        key: usize,
        (seed, number): (u64, u64),
    ) -> Result<Option<Piece>> {
        let shift = key as i32 - self.transpose as i32;
        let mut rng = Rng { seed, stream: AUGMENT_STREAM, position: 16 * number };
        // As in Performance RNN: five speeds, evenly spaced.
        let slower = (f64::from(rng.below(5)) - 2.0) / 2.0 * self.stretch;
        let louder = rng.below(2 * self.velocity as u32 + 1) as i32 - self.velocity as i32;
        if shift == 0 && slower == 0.0 && louder == 0 {
            return Ok(None);
        }
        let score = encoding.decode(&piece.tokens)?;
        let Some(mut score) = transpose(&score, shift) else { return Ok(None) };
        if slower != 0.0 {
            let Some(stretched) = stretched(&score, encoding.speed(), slower) else {
                return Ok(None);
            };
            score = stretched;
        }
        for note in score.tracks.iter_mut().flat_map(|track| &mut track.notes) {
            note.velocity = (i32::from(note.velocity) + louder).clamp(1, 127) as u8;
        }
        let encoded = encoding.encode(&score)?;
        if !encoded.lost.is_empty() || encoded.tokens.len() < 2 {
            return Ok(None);
        }
        let mut input = piece.input.clone();
        if let Some(moved) = input.guide().map(|(_, guide)| guide.transpose(shift)) {
            input = input.told(moved);
        }
        Ok(Some(Piece { tokens: encoded.tokens, input, ..piece.clone() }))
    }
}

/// A score so many percent slower.
fn stretched(score: &Score, speed: Speed, percent: f64) -> Option<Score> {
    match speed {
        // Its ticks are time.
        Speed::Time => stretch_ticks(score, (10_000.0 + 100.0 * percent).round() as u32, 10_000),
        _ => stretch(score, 1.0 + percent / 100.0),
    }
}
