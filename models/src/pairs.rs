//! Melodies and what goes with them: batches of pairs, and writing an accompaniment.
//!
//! A piece of `events` is taken apart into a melody and the other voices ([`etude_tokenizer::Pair`]); a
//! window has the same bars of both:
//!
//! ```text
//! melody END others END
//! ```
//!
//! The melody is given: its tokens, and its end, are no targets.

use crate::beam::Draft;
use crate::data::{Batch, NO_TARGET, Piece, meter_of};
use crate::generate::{Clock, Composition, Length, Request, Writer};
use crate::sampling::Sampling;
use crate::{Error, Result};
use etude_tokenizer::grammar::InfillGrammar;
use etude_tokenizer::step_input::NO_ROW;
use etude_tokenizer::{Bars, Encoding, Events, Meter, Note, Pair, Score, Track};
use std::borrow::Cow;

/// A melody and its accompaniment as one sequence, and how many of its tokens are given: the bars from
/// the one in which token `from` of the piece stands, as many as `window` tokens hold, but one at least.
pub(crate) fn sequence(piece: &Piece, from: usize, window: usize) -> (Vec<u32>, usize) {
    let pair = Pair::of(&piece.tokens);
    let first = pair.bars.partition_point(|bar| bar.at <= from).saturating_sub(1);
    // Both ends; and of each gap between bars what tells of it, two tokens for most.
    let mut used = 2;
    let fitting = pair.bars[first..].iter().take_while(|bar| {
        used += bar.parts.iter().map(|part| part.len() + 2).sum::<usize>();
        used <= window
    });
    let count = fitting.count().max(1).min(pair.bars.len() - first);
    let [mut all, others] = pair.parts(first..first + count);
    all.push(Pair::END);
    let given = all.len();
    all.extend(others);
    all.push(Pair::END);
    (all, given)
}

/// The tokens of a piece that count: all, or those of an accompaniment.
pub(crate) fn counted(piece: &Piece) -> Cow<'_, [u32]> {
    if !piece.input.is_pair() {
        return Cow::Borrowed(&piece.tokens);
    }
    let (mut tokens, given) = sequence(piece, 0, usize::MAX);
    Cow::Owned(tokens.split_off(given))
}

/// Lays windows side by side, as [`Batch::new`] does.
pub(crate) fn batch(windows: &[(&Piece, usize)], window: usize) -> Batch {
    let all: Vec<_> = windows.iter().map(|(p, from)| sequence(p, *from, window)).collect();
    let (batch, steps) = (all.len(), all.iter().map(|(t, _)| t.len()).max().unwrap_or(0));
    let active = windows.first().map_or(1, |(p, _)| p.input.active());
    let mut rows = vec![NO_ROW; steps * batch * active];
    let mut targets = vec![NO_TARGET; steps * batch];
    for (b, ((tokens, given), (piece, _))) in all.iter().zip(windows).enumerate() {
        let mut reader = piece.input.reader();
        for (t, token) in tokens.iter().enumerate() {
            let at = t * batch + b;
            reader.fill(tokens, t, &mut rows[at * active..][..active]);
            if t >= *given {
                targets[at] = *token;
            }
        }
    }
    Batch { rows, targets, keys: Vec::new(), steps, batch, active }
}

fn fault<T>(why: &str) -> Result<T> {
    Err(Error::Config { key: "melody".into(), why: why.into() })
}

impl Writer {
    /// Writes what goes with a melody, the only voice of the primer that is heard: the highest that is
    /// not drums. It stays note for note and comes first in the result; the other tracks of the primer are
    /// left out.
    ///
    /// The length and the metre of the request are those of the melody.
    ///
    /// # Errors
    /// If the model accompanies nothing, or the primer holds no melody.
    pub fn accompany(
        &mut self,
        request: &Request,
        hear: &mut dyn FnMut(u32, f64) -> bool,
    ) -> Result<Composition> {
        request.sampling.check()?;
        if !self.config.conditions.is_pair() {
            return fault(
                "this model writes by itself; one that accompanies has conditions = melody (preset \
                 transformer/accompaniment)",
            );
        }
        let Some(melody) = request.primer.as_ref().and_then(melody_of) else {
            return fault("this model writes what goes with a melody: a primer with one is wanted");
        };
        let encoded = Events.encode(&melody)?;
        let mut tokens = encoded.tokens;
        let opening = Pair::opening(&tokens).to_vec();
        let (lines, meter) = (Bars::of(&melody), meter_of(&melody));
        let bars = lines.count(melody.end_tick());
        tokens.push(Pair::END);
        let given = tokens.len();
        let counted = Request { length: Length::Bars(bars as usize), ..request.clone() };
        let clock = Clock::new(&counted, meter);
        let input = self.config.conditions.input(Events.vocab_size(), meter, given);
        let mut draft = Draft::new(Box::new(InfillGrammar::beside(opening, bars)));
        draft.tokens = tokens;
        let mut desk = self.desk(request, input, &clock);
        desk.prime(&mut draft)?;
        (draft.now, desk.wanted) = (0.0, f64::INFINITY);
        match &request.sampling {
            Sampling { beam: 1, branch: 1, .. } => {
                // The end of the sequence is none of the encoding's tokens.
                desk.extend(&mut draft, &mut |token, at| token == Pair::END || hear(token, at))?;
            }
            &Sampling { beam, branch, iteration, .. } => {
                draft = desk.search(draft, (beam, branch, iteration))?;
                let mut now = 0.0;
                draft.tokens[given..].iter().filter(|token| **token != Pair::END).all(|token| {
                    now += desk.time(*token);
                    hear(*token, now)
                });
            }
        }
        let written: Vec<u32> = draft.tokens[given..].to_vec();
        let written: Vec<u32> = written.into_iter().filter(|t| *t != Pair::END).collect();
        let others = Pair::accompaniment(&draft.tokens[..given - 1], &written)?;
        let score = beside(melody, &lines, &others, meter);
        Ok(Composition { tokens: draft.tokens, primed: given, score, lost: encoded.lost })
    }
}

/// The highest track that is not drums, alone, with all that is not a track.
fn melody_of(score: &Score) -> Option<Score> {
    let tracks = score.tracks.iter().filter(|t| !t.is_drum && !t.notes.is_empty());
    let melody = tracks.rev().max_by(|a, b| a.mean_pitch().total_cmp(&b.mean_pitch()))?;
    Some(Score { tracks: vec![melody.clone()], ..score.clone() })
}

/// Puts an accompaniment, whose bars are all of the melody's first metre, beside the melody.
fn beside(mut melody: Score, lines: &Bars, others: &Score, meter: Meter) -> Score {
    let grid = u64::from(others.ticks_per_quarter.max(1));
    let ticks = u64::from(melody.ticks_per_quarter.max(1));
    let each = (4 * grid * u64::from(meter.numerator) / u64::from(meter.denominator.max(1))).max(1);
    let scaled = |steps: u64| (steps * ticks + grid / 2) / grid;
    for track in &others.tracks {
        let note = |note: &Note| {
            let (bar, place) = (lines.start(note.tick / each), scaled(note.tick % each));
            // Where the metre has changed, a bar may be shorter.
            let duration = scaled(note.duration).max(1);
            (place < lines.length_at(bar)).then_some(Note { tick: bar + place, duration, ..*note })
        };
        let mut notes: Vec<Note> = track.notes.iter().filter_map(note).collect();
        notes.sort();
        let pedals = Vec::new();
        melody.tracks.push(Track { notes, pedals, ..track.clone() });
    }
    melody
}
