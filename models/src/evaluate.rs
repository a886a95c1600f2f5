//! How well a model expects music that it has not seen: negative log-likelihood, teacher-forced.
//!
//! Every piece is scored whole, from its first token, without dropout. The sum over all tokens is
//! one number of nats; dividing it by tokens, notes, sixteenth-note frames or seconds gives figures
//! that compare models of one encoding (tokens) or of any encoding (notes, seconds).

use crate::data::{Batch, Piece};
use crate::{Model, Result};

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

/// Scores pieces.
///
/// # Errors
/// If there are no pieces, or the model does not fit them.
pub fn likelihood(model: &dyn Model, pieces: &[Piece]) -> Result<Likelihood> {
    if pieces.is_empty() {
        return Err(crate::Error::Data { why: "no pieces to evaluate".into() });
    }
    let mut order: Vec<&Piece> = pieces.iter().collect();
    order.sort_by_key(|p| p.tokens.len());
    let (mut nats, mut tokens, mut hits) = (0.0f64, 0usize, 0usize);
    let (mut notes, mut frames, mut seconds) = (0.0f64, 0.0f64, 0.0f64);
    // A batch holds at most as many steps as 32 pieces of 1024, so memory does not grow with length.
    let mut rest = order.as_slice();
    while !rest.is_empty() {
        let mut take = BATCH.min(rest.len());
        while take > 1 && take * rest[take - 1].tokens.len().min(MAX_STEPS) > BATCH * 1024 {
            take -= 1;
        }
        let (now, later) = rest.split_at(take);
        rest = later;
        let windows: Vec<_> = now.iter().map(|p| (*p, 0)).collect();
        let batch = Batch::new(&windows, MAX_STEPS);
        let scored = model.score(&batch)?;
        nats += scored.nats.iter().map(|n| f64::from(*n)).sum::<f64>();
        hits += scored.hits;
        tokens += batch.target_count();
        for piece in now {
            let share = piece.tokens.len().min(MAX_STEPS) as f64 / piece.tokens.len() as f64;
            notes += piece.notes as f64 * share;
            frames += piece.frames as f64 * share;
            seconds += piece.seconds * share;
        }
    }
    Ok(Likelihood {
        per_token: nats / tokens as f64,
        per_note: nats / notes,
        per_frame: nats / frames,
        per_second: nats / seconds,
        accuracy: hits as f64 / tokens as f64,
        tokens,
        notes: notes.round() as usize,
    })
}
