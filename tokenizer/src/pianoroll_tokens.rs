//! Piano rolls as tokens: for each step the keys that sound, upwards, then `STEP_END`.
//!
//! Networks that write all keys of a step at once read the steps of this sequence as sets
//! ([`PianoRollTokens::frames`]); any other network reads it token by token.
//!
//! | scheme | steps a quarter note | a key struck again |
//! | --- | --- | --- |
//! | `pianoroll` | 4 | is silent for the step before, as in Magenta's Pianoroll RNN-NADE |
//! | `pianoroll-quarter` | 1 | runs on, as in the data sets of the likelihood tables |
//!
//! # Source
//! The rows are those of [`PianoRoll`].

use crate::grammar::{Grammar, PianoRollGrammar};
use crate::polyphony::MAX_NOTE_TOKENS;
use crate::quantise::Losses;
use crate::{Encoded, Encoding, PianoRoll, Repeats, Result, Score, TokenTime};

/// The encodings `pianoroll` and `pianoroll-quarter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PianoRollTokens {
    steps_per_quarter: u32,
    repeats: Repeats,
}

impl PianoRollTokens {
    /// The token after the keys of each step; the tokens below it are the keys, 0 the lowest.
    pub const STEP_END: u32 = PianoRoll::KEYS as u32;
    /// Number of tokens.
    pub const SIZE: u32 = PianoRollTokens::STEP_END + 1;

    /// Sixteenth notes, a key that is struck again silent before: `pianoroll`.
    pub fn sixteenths() -> PianoRollTokens {
        PianoRollTokens { steps_per_quarter: 4, repeats: Repeats::Split }
    }

    /// Quarter notes, repeats run together: `pianoroll-quarter`.
    pub fn quarters() -> PianoRollTokens {
        PianoRollTokens { steps_per_quarter: 1, repeats: Repeats::Held }
    }

    /// The keys of each whole step, bit 0 the lowest; what stands before the end of a piece without
    /// its own `STEP_END` is no whole step.
    pub fn frames(tokens: &[u32]) -> Vec<u128> {
        let mut frame = 0u128;
        let mut frames = Vec::new();
        for &token in tokens {
            match token {
                PianoRollTokens::STEP_END => frames.push(std::mem::take(&mut frame)),
                key => frame |= 1 << key,
            }
        }
        frames
    }

    /// The tokens of a step: its keys upwards, then `STEP_END`.
    pub fn tokens_of(frame: u128) -> impl Iterator<Item = u32> {
        let mut left = frame;
        let keys = std::iter::from_fn(move || {
            let key = (left != 0).then(|| left.trailing_zeros());
            left &= left.wrapping_sub(1);
            key
        });
        keys.chain([PianoRollTokens::STEP_END])
    }

    fn hear(&self, score: &Score) -> (PianoRoll, Losses) {
        let (roll, lost) = PianoRoll::of(score, self.steps_per_quarter, self.repeats);
        let mut losses = Losses::default();
        lost.iter().for_each(|(reason, count)| losses.add(reason, *count));
        let mut keys = 0u64;
        let fits = |row: &&u128| {
            keys += u64::from(row.count_ones());
            keys <= MAX_NOTE_TOKENS
        };
        let fitting: Vec<u128> = roll.rows().iter().take_while(fits).copied().collect();
        if fitting.len() == roll.rows().len() {
            return (roll, losses);
        }
        let cut = PianoRoll::from_rows(self.steps_per_quarter, fitting);
        let gone = roll.to_score().note_count() - cut.to_score().note_count();
        losses.add("beyond 1,048,576 tokens", gone);
        (cut, losses)
    }
}

impl Encoding for PianoRollTokens {
    fn name(&self) -> &str {
        if self.steps_per_quarter == 1 { "pianoroll-quarter" } else { "pianoroll" }
    }

    fn vocab_size(&self) -> usize {
        PianoRollTokens::SIZE as usize
    }

    fn token_name(&self, token: u32) -> String {
        match token {
            PianoRollTokens::STEP_END => "STEP_END".to_string(),
            key => {
                assert!(key < PianoRollTokens::STEP_END, "token {key} of {}", self.name());
                format!("KEY_{}", key + u32::from(PianoRoll::LOWEST))
            }
        }
    }

    fn token_time(&self, token: u32) -> TokenTime {
        match token {
            PianoRollTokens::STEP_END => TokenTime::Steps(4 / self.steps_per_quarter),
            _ => TokenTime::None,
        }
    }

    fn grammar(&self) -> Box<dyn Grammar> {
        Box::new(PianoRollGrammar::default())
    }

    fn quantise(&self, score: &Score) -> Score {
        self.hear(score).0.to_score()
    }

    fn encode(&self, score: &Score) -> Result<Encoded> {
        let (roll, losses) = self.hear(score);
        let tokens = roll.rows().iter().flat_map(|row| PianoRollTokens::tokens_of(*row)).collect();
        Ok(Encoded { tokens, lost: losses.into_vec() })
    }

    /// Keys stand in a step in any order; keys without a `STEP_END` behind them are a step too.
    fn decode(&self, tokens: &[u32]) -> Result<Score> {
        crate::encoding::check_tokens(self, tokens)?;
        let mut tokens = tokens.to_vec();
        if tokens.last().is_some_and(|last| *last != PianoRollTokens::STEP_END) {
            tokens.push(PianoRollTokens::STEP_END);
        }
        let rows = PianoRollTokens::frames(&tokens);
        Ok(PianoRoll::from_rows(self.steps_per_quarter, rows).to_score())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Note, Track};

    #[test]
    fn a_chord_and_a_rest_by_hand() {
        // C and E for a quarter, E alone for another, a rest, then the lowest key.
        let note = |tick, duration, pitch| Note { tick, duration, pitch, velocity: 90 };
        let notes = vec![note(0, 1, 60), note(0, 2, 64), note(3, 1, 21)];
        let mut score = Score::new(1);
        score.tracks.push(Track { notes, ..Track::default() });
        let encoding = PianoRollTokens::quarters();
        let encoded = encoding.encode(&score).unwrap();
        assert_eq!(encoded.tokens, [39, 43, 88, 43, 88, 88, 0, 88]);
        assert_eq!(encoded.lost, []);
        let frames = PianoRollTokens::frames(&encoded.tokens);
        assert_eq!(frames, [1 << 39 | 1 << 43, 1 << 43, 0, 1]);
        assert_eq!(encoding.token_name(39), "KEY_60");
        let again: Vec<u32> =
            frames.iter().flat_map(|frame| PianoRollTokens::tokens_of(*frame)).collect();
        assert_eq!(again, encoded.tokens);
    }

    #[test]
    fn a_small_file_cannot_ask_for_any_number_of_tokens() {
        let note = |pitch| Note { tick: 0, duration: 200_000, pitch, velocity: 90 };
        let mut score = Score::new(1);
        score.tracks.push(Track { notes: (30..40).map(note).collect(), ..Track::default() });
        let encoding = PianoRollTokens::quarters();
        let encoded = encoding.encode(&score).unwrap();
        // 104,857 steps of ten keys; no note is lost, each is shorter.
        assert_eq!(encoded.tokens.len(), 104_857 * 11);
        assert_eq!(encoding.decode(&encoded.tokens).unwrap().note_count(), 10);
    }
}
