//! Drums on a grid: a token a step, a bit for each kind of drum that is struck.
//!
//! `drums` has nine kinds, so 512 tokens, and four steps a quarter note; `drums-one` asks only
//! whether anything is struck, in two steps a quarter note. Drums have no lengths: decoded notes
//! last a step. All tracks of drums are heard together.
//!
//! # Source
//! Magenta, `MultiDrumOneHotEncoding` with its default map of pitches, and the configurations
//! drum_kit and one_drum of Drums RNN.

use crate::grammar::{Anything, Grammar};
use crate::quantise::{Losses, quantise_beats};
use crate::{Encoded, Encoding, Note, Result, Score, TokenTime, Track};

/// The longest beat, in steps, as for melodies.
const MAX_STEPS: u64 = 1 << 18;
/// The velocity of decoded notes, Magenta's.
const VELOCITY: u8 = 100;

/// The nine kinds of drums: a name, and the pitches of General MIDI that count as this kind. The
/// first stands for the kind when decoding. The bit of a kind is its place here.
const KINDS: [(&str, &[u8]); 9] = [
    ("KICK", &[36, 35]),
    ("SNARE", &[38, 27, 28, 31, 32, 33, 34, 37, 39, 40, 56, 65, 66, 75, 85]),
    ("CLOSED_HAT", &[42, 44, 54, 68, 69, 70, 71, 73, 78, 80, 22]),
    ("OPEN_HAT", &[46, 67, 72, 74, 79, 81, 26]),
    ("LOW_TOM", &[45, 29, 41, 43, 61, 64, 84]),
    ("MID_TOM", &[48, 47, 60, 63, 77, 86, 87]),
    ("HIGH_TOM", &[50, 30, 62, 76, 83]),
    ("CRASH", &[49, 52, 55, 57, 58]),
    ("RIDE", &[51, 53, 59, 82]),
];
/// What one_drum plays: a hand clap.
const CLAP: u8 = 39;

/// A drum encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drums {
    kit: bool,
}

impl Drums {
    /// Makes the encoding of 512 tokens, `drums`.
    pub fn kit() -> Drums {
        Drums { kit: true }
    }

    /// Makes the encoding of 2 tokens, `drums-one`.
    pub fn one() -> Drums {
        Drums { kit: false }
    }

    /// Steps of a quarter note.
    pub fn steps_per_quarter(&self) -> u32 {
        if self.kit { 4 } else { 2 }
    }

    /// The bit of a drum's pitch; `None` for a pitch that is none of the nine kinds.
    pub fn bit(&self, pitch: u8) -> Option<u32> {
        match self.kit {
            true => (0..).zip(KINDS).find(|(_, (_, all))| all.contains(&pitch)).map(|(bit, _)| bit),
            false => Some(0),
        }
    }

    /// The pitch that stands for a bit.
    fn pitch(&self, bit: u32) -> u8 {
        if self.kit { KINDS[bit as usize].1[0] } else { CLAP }
    }

    fn bits(&self) -> u32 {
        if self.kit { KINDS.len() as u32 } else { 1 }
    }

    /// The token of each step, to the last that is struck.
    fn hear(&self, score: &Score) -> (Vec<u32>, Losses) {
        let on_grid = quantise_beats(score, self.steps_per_quarter());
        let mut losses = Losses::default();
        for (reason, count) in &on_grid.lost {
            losses.add(reason, *count);
        }
        let mut tokens = Vec::new();
        for track in &on_grid.score.tracks {
            if !track.is_drum {
                losses.add("no drum track", track.notes.len());
                continue;
            }
            for note in &track.notes {
                let Some(bit) = self.bit(note.pitch) else {
                    losses.add("none of the nine kinds of drums", 1);
                    continue;
                };
                if note.tick >= MAX_STEPS {
                    losses.add("beyond 262,144 steps", 1);
                    continue;
                }
                let step = note.tick as usize;
                if tokens.len() <= step {
                    tokens.resize(step + 1, 0);
                }
                if tokens[step] >> bit & 1 == 1 {
                    losses.add("one kind of drum twice on one step", 1);
                }
                tokens[step] |= 1 << bit;
            }
        }
        (tokens, losses)
    }

    fn score_of(&self, tokens: &[u32]) -> Score {
        let mut score = Score::new(self.steps_per_quarter());
        let mut notes = Vec::new();
        // Beyond the longest beat nothing is heard, as in `hear`.
        for (tick, &token) in (0..MAX_STEPS).zip(tokens) {
            let from = notes.len();
            for bit in (0..self.bits()).filter(|bit| token >> bit & 1 == 1) {
                notes.push(Note { tick, duration: 1, pitch: self.pitch(bit), velocity: VELOCITY });
            }
            notes[from..].sort_by_key(|note| note.pitch);
        }
        if !notes.is_empty() {
            score.tracks.push(Track { is_drum: true, notes, ..Track::default() });
        }
        score
    }
}

impl Encoding for Drums {
    fn name(&self) -> &str {
        if self.kit { "drums" } else { "drums-one" }
    }

    fn vocab_size(&self) -> usize {
        1 << self.bits()
    }

    fn token_name(&self, token: u32) -> String {
        assert!((token as usize) < self.vocab_size(), "token {token} of {}", self.vocab_size());
        if token == 0 {
            return "REST".to_string();
        }
        if !self.kit {
            return "HIT".to_string();
        }
        let struck = (0..self.bits()).filter(|bit| token >> bit & 1 == 1);
        struck.map(|bit| KINDS[bit as usize].0).collect::<Vec<_>>().join("+")
    }

    fn token_time(&self, _: u32) -> TokenTime {
        TokenTime::Steps(if self.kit { 1 } else { 2 })
    }

    fn is_onset(&self, token: u32) -> bool {
        token != 0
    }

    fn grammar(&self) -> Box<dyn Grammar> {
        Box::new(Anything::with_rest(self.vocab_size(), 0))
    }

    fn notes_of_token(&self) -> usize {
        self.bits() as usize
    }

    fn has_key(&self) -> bool {
        false
    }

    /// The drums on the grid: one track, each kind by the pitch that stands for it, velocity 100,
    /// a step long.
    fn quantise(&self, score: &Score) -> Score {
        self.score_of(&self.hear(score).0)
    }

    fn encode(&self, score: &Score) -> Result<Encoded> {
        let (tokens, losses) = self.hear(score);
        Ok(Encoded { tokens, lost: losses.into_vec() })
    }

    fn decode(&self, tokens: &[u32]) -> Result<Score> {
        crate::encoding::check_tokens(self, tokens)?;
        Ok(self.score_of(tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drums(notes: &[(u64, u8)]) -> Score {
        let note = |&(tick, pitch)| Note { tick, duration: 60, pitch, velocity: 90 };
        let mut score = Score::new(480);
        let notes = notes.iter().map(note).collect();
        score.tracks.push(Track { is_drum: true, notes, ..Track::default() });
        score
    }

    #[test]
    fn a_rock_beat_is_written_by_hand_the_same() {
        // Sixteenths of 120 ticks. Kick 36 and closed hat 42 on 1: bits 0 and 2, 5. Hat on the
        // eighth: 4. Snare 38 and hat on 2: 6. Ride 51, crash 49 and pedal hat 44 (a closed hat)
        // on step 7: 256 + 128 + 4.
        let beat = [(0, 36), (0, 42), (240, 42), (480, 38), (480, 42), (840, 44), (840, 49)];
        let mut score = drums(&beat);
        score.tracks[0].notes.push(Note { tick: 840, duration: 60, pitch: 51, velocity: 90 });
        let encoded = Drums::kit().encode(&score).unwrap();
        assert_eq!(encoded.tokens, [5, 0, 4, 0, 6, 0, 0, 388]);
        assert_eq!(encoded.lost, []);
        let back = Drums::kit().decode(&encoded.tokens).unwrap();
        let played: Vec<_> = back.tracks[0].notes.iter().map(|n| (n.tick, n.pitch)).collect();
        let expected = [(0, 36), (0, 42), (2, 42), (4, 38), (4, 42), (7, 42), (7, 49), (7, 51)];
        assert_eq!(played, expected);
        assert_eq!(Drums::kit().token_name(388), "CLOSED_HAT+CRASH+RIDE");
        // In eighths: steps 0, 1, 2, and 3.5 goes up to 4.
        assert_eq!(Drums::one().encode(&score).unwrap().tokens, [1, 1, 1, 0, 1]);
        assert_eq!(Drums::one().decode(&[0, 1]).unwrap().tracks[0].notes[0].pitch, CLAP);
    }

    #[test]
    fn what_is_no_drum_or_struck_twice_is_counted() {
        // 35 and 36 are both kicks; 88 is no kind.
        let mut score = drums(&[(0, 35), (0, 36), (120, 88)]);
        score.tracks.push(Track { is_drum: false, ..score.tracks[0].clone() });
        let encoded = Drums::kit().encode(&score).unwrap();
        assert_eq!(encoded.tokens, [1]);
        let lost = [
            ("one kind of drum twice on one step".to_string(), 1),
            ("none of the nine kinds of drums".to_string(), 1),
            ("no drum track".to_string(), 3),
        ];
        assert_eq!(encoded.lost, lost);
        assert_eq!(Drums::one().encode(&score).unwrap().tokens, [1, 1]);
    }

    #[test]
    fn the_nine_kinds_share_no_pitch() {
        let kinds: Vec<u32> = (0..128).filter_map(|pitch| Drums::kit().bit(pitch)).collect();
        let listed: usize = KINDS.iter().map(|(_, pitches)| pitches.len()).sum();
        // 2 + 15 + 11 + 7 + 7 + 7 + 5 + 5 + 4 pitches.
        assert_eq!((kinds.len(), listed), (63, 63));
        assert_eq!((Drums::kit().vocab_size(), Drums::one().vocab_size()), (512, 2));
    }
}
