//! Many voices on a grid of sixteenth notes, step by step: Magenta's polyphonic encoding.
//!
//! `START`, then for each step its notes and `STEP_END`, then `END`. A note is `NEW_NOTE` where it
//! begins and `CONTINUED_NOTE` at each further step; where it is not continued it has ended.
//! Within a step the pitches descend; of one pitch what continues comes before what is new. All
//! instruments but drums play together.
//!
//! One pitch may sound several times at once; then the note that began first ends first. Decoding
//! ignores `START` and `END` inside a piece, and what continues a pitch that does not sound.
//!
//! # Source
//! Magenta, `polyphony_lib` and `polyphony_encoder_decoder` (Polyphony RNN, after BachBot, Liang
//! 2016).

use crate::grammar::{Grammar, PolyphonyGrammar};
use crate::quantise::{Losses, end_in_order, merge_unisons, quantise_beats};
use crate::{Encoded, Encoding, Note, Result, Score, TokenTime, Track};
use std::collections::VecDeque;

const STEPS_PER_QUARTER: u32 = 4;
/// The longest piece in steps, as for melodies.
pub(crate) const MAX_STEPS: u64 = 1 << 18;
/// The most tokens that notes take: a held note costs a token a step, so that a small file could
/// ask for any number. Notes beyond, in order of beginning, are lost.
pub(crate) const MAX_NOTE_TOKENS: u64 = 1 << 20;
/// The velocity of decoded notes, Magenta's.
const VELOCITY: u8 = 100;

/// The polyphonic encoding, `polyphony`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Polyphony;

impl Polyphony {
    /// The token before the first step.
    pub const START: u32 = 0;
    /// The token after the last step.
    pub const END: u32 = 1;
    /// The token after each step.
    pub const STEP_END: u32 = 2;
    /// The token of a new note of pitch 0; the other pitches follow.
    pub const NEW_NOTE: u32 = 3;
    /// The token of a continued note of pitch 0; the other pitches follow.
    pub const CONTINUED_NOTE: u32 = 131;
    /// Number of tokens.
    pub const SIZE: u32 = 259;

    fn hear(score: &Score) -> (Vec<Note>, Losses) {
        let on_grid = quantise_beats(score, STEPS_PER_QUARTER);
        let mut losses = Losses::default();
        for (reason, count) in on_grid.lost {
            losses.add(&reason, count);
        }
        let mut notes = Vec::new();
        for mut track in on_grid.score.tracks {
            match track.is_drum {
                true => losses.add("drum track", track.notes.len()),
                false => notes.append(&mut track.notes),
            }
        }
        losses.add("unison of instruments", merge_unisons(&mut notes));
        let all = notes.len();
        notes.retain(|note| note.tick + note.duration <= MAX_STEPS);
        losses.add("beyond 262,144 steps", all - notes.len());
        let (all, mut tokens) = (notes.len(), 0);
        notes.retain(|note| {
            let kept = tokens + note.duration <= MAX_NOTE_TOKENS;
            tokens += if kept { note.duration } else { 0 };
            kept
        });
        losses.add("beyond 1,048,576 tokens", all - notes.len());
        end_in_order(&mut notes);
        for note in &mut notes {
            note.velocity = VELOCITY;
        }
        (notes, losses)
    }

    fn score_of(notes: Vec<Note>) -> Score {
        let mut score = Score::new(STEPS_PER_QUARTER);
        if !notes.is_empty() {
            score.tracks.push(Track { notes, ..Track::default() });
        }
        score
    }
}

/// What sounds, for decoding.
struct Sounding {
    notes: Vec<Note>,
    step: u64,
    /// Where the notes that sound began, by pitch, the oldest first.
    open: Vec<VecDeque<u64>>,
    /// The pitches of which some note sounds.
    pitches: u128,
    /// How many of each pitch have been continued or begun in this step, from the back.
    told: [usize; 128],
}

impl Sounding {
    fn end(&mut self, pitch: usize, count: usize) {
        for tick in self.open[pitch].drain(..count) {
            let duration = self.step - tick;
            self.notes.push(Note { tick, duration, pitch: pitch as u8, velocity: VELOCITY });
        }
    }

    /// Ends, of each pitch, the notes that were not told at this step.
    fn end_untold(&mut self) {
        let mut left = self.pitches;
        while left != 0 {
            let pitch = left.trailing_zeros() as usize;
            left &= left - 1;
            let untold = self.open[pitch].len() - std::mem::take(&mut self.told[pitch]);
            self.end(pitch, untold);
            if self.open[pitch].is_empty() {
                self.pitches &= !(1 << pitch);
            }
        }
    }

    fn step_end(&mut self) {
        self.end_untold();
        self.step += 1;
    }
}

impl Encoding for Polyphony {
    fn name(&self) -> &str {
        "polyphony"
    }

    fn vocab_size(&self) -> usize {
        Polyphony::SIZE as usize
    }

    fn token_name(&self, token: u32) -> String {
        match token {
            Polyphony::START => "START".to_string(),
            Polyphony::END => "END".to_string(),
            Polyphony::STEP_END => "STEP_END".to_string(),
            Polyphony::NEW_NOTE..Polyphony::CONTINUED_NOTE => {
                format!("NEW_NOTE_{}", token - Polyphony::NEW_NOTE)
            }
            Polyphony::CONTINUED_NOTE..Polyphony::SIZE => {
                format!("CONTINUED_NOTE_{}", token - Polyphony::CONTINUED_NOTE)
            }
            _ => panic!("token {token} of {}", Polyphony::SIZE),
        }
    }

    fn token_time(&self, token: u32) -> TokenTime {
        if token == Polyphony::STEP_END { TokenTime::Steps(1) } else { TokenTime::None }
    }

    fn is_onset(&self, token: u32) -> bool {
        (Polyphony::NEW_NOTE..Polyphony::CONTINUED_NOTE).contains(&token)
    }

    fn pitch(&self, token: u32) -> Option<u8> {
        match token {
            Polyphony::NEW_NOTE..Polyphony::CONTINUED_NOTE => Some(token - Polyphony::NEW_NOTE),
            Polyphony::CONTINUED_NOTE..Polyphony::SIZE => Some(token - Polyphony::CONTINUED_NOTE),
            _ => None,
        }
        .map(|pitch| pitch as u8)
    }

    fn grammar(&self) -> Box<dyn Grammar> {
        Box::new(PolyphonyGrammar::new())
    }

    /// The notes of all instruments but drums on one track: four ticks a quarter, velocity 100, no
    /// tempo and no metre.
    fn quantise(&self, score: &Score) -> Score {
        Polyphony::score_of(Polyphony::hear(score).0)
    }

    fn encode(&self, score: &Score) -> Result<Encoded> {
        let (notes, losses) = Polyphony::hear(score);
        let steps = notes.iter().map(|note| note.tick + note.duration).max().unwrap_or(0);
        let mut tokens = vec![Polyphony::START];
        // Ends by step; of those that sound, how many of each pitch.
        let mut sounding: Vec<Note> = Vec::new();
        let mut next = 0;
        for step in 0..steps {
            sounding.retain(|note| note.tick + note.duration > step);
            while notes.get(next).is_some_and(|note| note.tick == step) {
                sounding.push(notes[next]);
                next += 1;
            }
            // A new note is younger than those of its pitch that continue.
            sounding.sort_by_key(|note| (std::cmp::Reverse(note.pitch), note.tick));
            tokens.extend(sounding.iter().map(|note| {
                let first = match note.tick == step {
                    true => Polyphony::NEW_NOTE,
                    false => Polyphony::CONTINUED_NOTE,
                };
                first + u32::from(note.pitch)
            }));
            tokens.push(Polyphony::STEP_END);
        }
        tokens.push(Polyphony::END);
        Ok(Encoded { tokens, lost: losses.into_vec() })
    }

    fn decode(&self, tokens: &[u32]) -> Result<Score> {
        crate::encoding::check_tokens(self, tokens)?;
        let open = vec![VecDeque::new(); 128];
        let mut state = Sounding { notes: Vec::new(), step: 0, open, pitches: 0, told: [0; 128] };
        let mut unfinished = false;
        for &token in tokens {
            // Beyond the longest piece nothing is heard, as in `quantise`.
            if state.step == MAX_STEPS {
                break;
            }
            match token {
                Polyphony::STEP_END => state.step_end(),
                Polyphony::NEW_NOTE..Polyphony::CONTINUED_NOTE => {
                    let pitch = (token - Polyphony::NEW_NOTE) as usize;
                    // Struck twice on one step it is one note.
                    if state.open[pitch].back() != Some(&state.step) {
                        state.open[pitch].push_back(state.step);
                        state.pitches |= 1 << pitch;
                        state.told[pitch] += 1;
                    }
                }
                Polyphony::CONTINUED_NOTE.. => {
                    let pitch = (token - Polyphony::CONTINUED_NOTE) as usize;
                    if state.told[pitch] < state.open[pitch].len() {
                        state.told[pitch] += 1;
                    }
                }
                _ => {}
            }
            unfinished =
                token >= Polyphony::NEW_NOTE || (unfinished && token != Polyphony::STEP_END);
        }
        // A step without its end is a step.
        if unfinished {
            state.step_end();
        }
        state.end_untold();
        Ok(Polyphony::quantise(self, &Polyphony::score_of(state.notes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score_of(notes: &[(u64, u64, u8)]) -> Score {
        let note = |&(tick, duration, pitch)| Note { tick, duration, pitch, velocity: 90 };
        let mut score = Score::new(4);
        let notes = notes.iter().map(note).collect();
        score.tracks.push(Track { notes, ..Track::default() });
        score
    }

    fn names(score: &Score) -> String {
        let tokens = Polyphony.encode(score).unwrap().tokens;
        assert_eq!(Polyphony.decode(&tokens).unwrap(), Polyphony.quantise(score));
        tokens.iter().map(|&token| Polyphony.token_name(token)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_suspension_is_written_by_hand_the_same() {
        // C and G for two sixteenths; G held over while C goes up to D for one.
        let score = score_of(&[(0, 2, 60), (0, 3, 67), (2, 1, 62)]);
        let expected = "START NEW_NOTE_67 NEW_NOTE_60 STEP_END \
                        CONTINUED_NOTE_67 CONTINUED_NOTE_60 STEP_END \
                        CONTINUED_NOTE_67 NEW_NOTE_62 STEP_END END";
        assert_eq!(names(&score), expected);
        // START 0, END 1, STEP_END 2, new notes from 3, continued ones from 131.
        let tokens = Polyphony.encode(&score).unwrap().tokens;
        assert_eq!(tokens, [0, 70, 63, 2, 198, 191, 2, 198, 65, 2, 1]);
    }

    #[test]
    fn silence_and_a_pitch_struck_again_are_told() {
        // A rest of one step; C, and C again where the first ends; C a third time inside it.
        let score = score_of(&[(1, 1, 60), (2, 3, 60), (3, 1, 60)]);
        let expected = "START STEP_END NEW_NOTE_60 STEP_END NEW_NOTE_60 STEP_END \
                        CONTINUED_NOTE_60 NEW_NOTE_60 STEP_END CONTINUED_NOTE_60 STEP_END END";
        assert_eq!(names(&score), expected);
        // The one that began first ends first.
        let heard = Polyphony.quantise(&score);
        let ends: Vec<_> = heard.tracks[0].notes.iter().map(|n| n.tick + n.duration).collect();
        assert_eq!(ends, [2, 4, 5]);
        assert_eq!(names(&score_of(&[])), "START END");
    }

    #[test]
    fn what_makes_no_sense_is_ignored() {
        let notes = |tokens: &[u32]| -> Vec<(u64, u64, u8)> {
            let score = Polyphony.decode(tokens).unwrap();
            let notes = score.tracks.iter().flat_map(|track| &track.notes);
            notes.map(|n| (n.tick, n.duration, n.pitch)).collect()
        };
        // Continued without a beginning; twice on one step; START and END inside; no last END.
        assert_eq!(notes(&[131 + 60, 2, 2]), []);
        assert_eq!(notes(&[63, 63, 1, 2, 0, 191, 191, 2]), [(0, 2, 60)]);
        assert_eq!(notes(&[0, 63]), [(0, 1, 60)]);
    }
}
