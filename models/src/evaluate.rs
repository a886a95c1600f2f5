//! How well a model expects music that it has not seen: negative log-likelihood, teacher-forced.
//!
//! Every piece is scored whole, from its first token, without dropout. The sum over all tokens is
//! one number of nats; dividing it by tokens, notes, sixteenth-note frames or seconds gives figures
//! that compare models of one encoding (tokens) or of any encoding (notes, seconds).

use crate::data::{Batch, NO_TARGET, Piece, Pieces};
use crate::layers::likeliest;
use crate::{Model, Precision, Result, frames, pairs};

/// Likelihood of a set of pieces, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likelihood {
    /// Nats for a token; `exp` of it is the perplexity.
    pub per_token: f64,
    /// Nats for a note.
    pub per_note: f64,
    /// Nats for a sixteenth-note step.
    pub per_frame: f64,
    /// Nats for a second of music.
    pub per_second: f64,
    /// Share of tokens that were the model's first choice.
    pub accuracy: f64,
    /// Tokens scored.
    pub tokens: usize,
    /// Notes in them.
    pub notes: usize,
}

/// Pieces of about equal length are scored side by side.
const BATCH: usize = 32;
/// A piece longer than this is scored up to here, and its notes and seconds count in proportion.
pub const MAX_STEPS: usize = 8192;

/// What has been added up so far.
#[derive(Default)]
struct Tally {
    nats: f64,
    hits: usize,
    tokens: usize,
    notes: f64,
    frames: f64,
    seconds: f64,
}

impl Tally {
    /// Adds the size of a piece of which at most [`MAX_STEPS`] were scored.
    fn heard(&mut self, piece: &Piece) {
        let share = piece.tokens.len().min(MAX_STEPS) as f64 / piece.tokens.len() as f64;
        self.notes += piece.notes as f64 * share;
        self.frames += piece.frames as f64 * share;
        self.seconds += piece.seconds * share;
    }

    fn likelihood(&self) -> Likelihood {
        Likelihood {
            per_token: self.nats / self.tokens as f64,
            per_note: self.nats / self.notes,
            per_frame: self.nats / self.frames,
            per_second: self.nats / self.seconds,
            accuracy: self.hits as f64 / self.tokens as f64,
            tokens: self.tokens,
            notes: self.notes.round() as usize,
        }
    }
}

fn some(pieces: &Pieces) -> Result<()> {
    match pieces.is_empty() {
        true => Err(crate::Error::Data { why: "no pieces to evaluate".into() }),
        false => Ok(()),
    }
}

/// Scores pieces.
///
/// # Errors
/// If there are no pieces, one cannot be read, or the model does not fit them.
pub fn likelihood(model: &dyn Model, pieces: &Pieces) -> Result<Likelihood> {
    some(pieces)?;
    let mut order: Vec<usize> = (0..pieces.len()).collect();
    order.sort_by_key(|p| pieces.tokens(*p));
    let mut tally = Tally::default();
    // A batch holds at most as many steps as 32 pieces of 1024, so memory does not grow with length.
    let mut rest = order.as_slice();
    while !rest.is_empty() {
        let mut take = BATCH.min(rest.len());
        while take > 1 && take * pieces.tokens(rest[take - 1]).min(MAX_STEPS) > BATCH * 1024 {
            take -= 1;
        }
        let (now, later) = rest.split_at(take);
        rest = later;
        let now = now.iter().map(|p| pieces.get(*p)).collect::<Result<Vec<_>>>()?;
        let windows: Vec<_> = now.iter().map(|p| (&**p, 0)).collect();
        let mut batch = Batch::new(&windows, MAX_STEPS);
        if now[0].input.is_keys() {
            // The tables of piano rolls begin at the second step.
            batch.targets[..batch.batch].fill(NO_TARGET);
        }
        let scored = model.score(&batch)?;
        tally.tokens += batch.target_count();
        tally.nats += scored.nats.iter().map(|n| f64::from(*n)).sum::<f64>();
        tally.hits += scored.hits;
        now.iter().for_each(|piece| tally.heard(piece));
    }
    Ok(tally.likelihood())
}

/// Scores pieces token by token, as the model writes them, with weights stored in this precision:
/// what `bf16` or `int8` costs beside [`likelihood`].
///
/// # Errors
/// If there are no pieces, or the model does not fit them.
pub fn written_likelihood(
    model: &dyn Model,
    precision: Precision,
    pieces: &Pieces,
) -> Result<Likelihood> {
    some(pieces)?;
    let mut generator = model.generator(precision)?;
    let mut tally = Tally::default();
    for piece in pieces.iter() {
        let piece = &*piece?;
        generator.reset();
        if piece.input.is_keys() {
            let tokens = &piece.tokens[..piece.tokens.len().min(MAX_STEPS)];
            let (nats, hits) = frames::written(&mut *generator, tokens)?;
            tally.nats += nats;
            tally.hits += hits;
            tally.tokens += frames::counted(tokens);
            tally.heard(piece);
            continue;
        }
        let mut reader = piece.input.reader_of(&piece.tokens);
        let mut rows = vec![0; piece.input.active()];
        let (tokens, given) = match piece.input.is_pair() {
            true => pairs::sequence(piece, 0, MAX_STEPS),
            false => (piece.tokens[..piece.tokens.len().min(MAX_STEPS)].to_vec(), 0),
        };
        let steps = tokens.len().min(MAX_STEPS);
        for (t, token) in tokens[..steps].iter().map(|token| *token as usize).enumerate() {
            reader.fill(&tokens, t, &mut rows);
            let logits = generator.step(&rows)?;
            if t < given {
                continue;
            }
            let best = likeliest(logits) as usize;
            let top = logits[best];
            let below = |x: f32| f64::from(x) - f64::from(top);
            let sum: f64 = logits.iter().map(|x| below(*x).exp()).sum();
            tally.nats += sum.ln() - below(logits[token]);
            tally.hits += usize::from(best == token);
        }
        tally.tokens += steps.saturating_sub(given);
        tally.heard(piece);
    }
    Ok(tally.likelihood())
}
