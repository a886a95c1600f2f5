//! Piano performances on a grid of 10 ms: Magenta's performance encoding.
//!
//! Tokens: 128 note-ons, 128 note-offs, 100 time shifts of 1 to 100 steps, and with dynamics 32
//! velocities, said when they change. All instruments but drums play into one keyboard; the
//! sustain pedal is applied to the notes. A note-off ends the oldest note of its pitch.
//!
//! # Source
//! Oore, Simon, Dieleman, Eck & Simonyan 2018; Magenta, `performance_lib`.

use crate::grammar::{Grammar, PerformanceGrammar};
use crate::quantise::{
    Losses, STEPS_PER_SECOND, TIME_GRID_TICKS, end_in_order, merge_unisons, quantise_time,
};
use crate::sustain::apply_sustain;
use crate::{Encoded, Encoding, MAX_SECONDS, Note, Result, Score, Speed, TokenTime, Track};
use std::collections::VecDeque;

const NOTE_ON: u32 = 0;
pub(crate) const NOTE_OFF: u32 = 128;
pub(crate) const TIME_SHIFT: u32 = 256;
pub(crate) const MAX_SHIFT: u64 = 100;
pub(crate) const VELOCITY: u32 = 356;
/// Velocities are said in this many bins of four.
pub(crate) const VELOCITY_BINS: u8 = 32;
const BIN_SIZE: u8 = 4;
/// The velocity where none is said, Magenta's.
const DEFAULT_VELOCITY: u8 = 100;
/// Decoding ends a note without note-off after 5 seconds.
const MAX_HANGING: u64 = 5 * STEPS_PER_SECOND;
pub(crate) const MAX_STEPS: u64 = MAX_SECONDS * STEPS_PER_SECOND;

/// The performance encoding, with or without dynamics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Performance {
    dynamics: bool,
}

/// The bin of a velocity, 0 to 31.
pub(crate) fn velocity_bin(velocity: u8) -> u8 {
    (velocity.clamp(1, 127) - 1) / BIN_SIZE
}

/// The velocity that stands for a bin: its lowest, as in Magenta.
pub(crate) fn bin_velocity(bin: u8) -> u8 {
    1 + bin.min(VELOCITY_BINS - 1) * BIN_SIZE
}

impl Performance {
    /// Makes the encoding of 356 tokens, `performance`: every note has velocity 100.
    pub fn plain() -> Performance {
        Performance { dynamics: false }
    }

    /// Makes the encoding of 388 tokens, `performance-dynamics`, with 32 velocities.
    pub fn with_dynamics() -> Performance {
        Performance { dynamics: true }
    }

    fn heard_velocity(&self, velocity: u8) -> u8 {
        if self.dynamics { bin_velocity(velocity_bin(velocity)) } else { DEFAULT_VELOCITY }
    }

    /// The notes of one keyboard on the grid.
    fn hear(&self, score: &Score) -> (Vec<Note>, Losses) {
        let (mut notes, losses) = keyboard(score);
        for note in &mut notes {
            note.velocity = self.heard_velocity(note.velocity);
        }
        end_in_order(&mut notes);
        (notes, losses)
    }

    pub(crate) fn score_of(notes: Vec<Note>) -> Score {
        let mut score = Score::new(TIME_GRID_TICKS);
        if !notes.is_empty() {
            score.tracks.push(Track { notes, ..Track::default() });
        }
        score
    }
}

/// All instruments but drums on one keyboard, the pedal applied, in steps of 10 ms.
pub(crate) fn keyboard(score: &Score) -> (Vec<Note>, Losses) {
    let end_tick = score.end_tick();
    let mut losses = Losses::default();
    let mut sounding = Score::new(score.ticks_per_quarter);
    sounding.tempos.clone_from(&score.tempos);
    for track in &score.tracks {
        if track.is_drum {
            losses.add("drum track", track.notes.len());
            continue;
        }
        let notes = apply_sustain(track, end_tick);
        losses.add("unison under the pedal", track.notes.len() - notes.len());
        sounding.tracks.push(Track { notes, ..Track::default() });
    }
    let on_grid = quantise_time(&sounding);
    for (reason, count) in on_grid.lost {
        losses.add(&reason, count);
    }
    let tracks = on_grid.score.tracks.into_iter();
    let mut notes: Vec<Note> = tracks.flat_map(|track| track.notes).collect();
    losses.add("unison of instruments", merge_unisons(&mut notes));
    (notes, losses)
}

impl Encoding for Performance {
    fn name(&self) -> &str {
        if self.dynamics { "performance-dynamics" } else { "performance" }
    }

    fn vocab_size(&self) -> usize {
        VELOCITY as usize + if self.dynamics { usize::from(VELOCITY_BINS) } else { 0 }
    }

    fn token_name(&self, token: u32) -> String {
        assert!((token as usize) < self.vocab_size(), "token {token} of {}", self.vocab_size());
        match token {
            NOTE_ON..NOTE_OFF => format!("NOTE_ON_{}", token - NOTE_ON),
            NOTE_OFF..TIME_SHIFT => format!("NOTE_OFF_{}", token - NOTE_OFF),
            TIME_SHIFT..VELOCITY => format!("TIME_SHIFT_{}", token - TIME_SHIFT + 1),
            _ => format!("VELOCITY_{}", token - VELOCITY + 1),
        }
    }

    fn token_time(&self, token: u32) -> TokenTime {
        match token {
            TIME_SHIFT..VELOCITY => TokenTime::Centiseconds(token - TIME_SHIFT + 1),
            _ => TokenTime::None,
        }
    }

    fn is_onset(&self, token: u32) -> bool {
        token < NOTE_OFF
    }

    fn grammar(&self) -> Box<dyn Grammar> {
        Box::new(PerformanceGrammar::new(self.dynamics))
    }

    fn speed(&self) -> Speed {
        Speed::Time
    }

    fn has_velocity(&self) -> bool {
        self.dynamics
    }

    /// The score as one keyboard on a grid of 10 ms: 50 ticks a quarter note, no tempo.
    fn quantise(&self, score: &Score) -> Score {
        Performance::score_of(self.hear(score).0)
    }

    fn encode(&self, score: &Score) -> Result<Encoded> {
        let (notes, losses) = self.hear(score);
        // At one step notes end before others begin, each in order of beginning, then of pitch.
        let mut moments: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * notes.len());
        for (i, note) in notes.iter().enumerate() {
            moments.push((note.tick, true, i));
            moments.push((note.tick + note.duration, false, i));
        }
        moments.sort_unstable();
        let mut tokens = Vec::with_capacity(3 * notes.len());
        let (mut now, mut bin) = (0, None);
        for (step, begins, i) in moments {
            while now < step {
                let shift = (step - now).min(MAX_SHIFT);
                tokens.push(TIME_SHIFT + shift as u32 - 1);
                now += shift;
            }
            let note = &notes[i];
            let pitch = u32::from(note.pitch);
            if !begins {
                tokens.push(NOTE_OFF + pitch);
                continue;
            }
            let said = velocity_bin(note.velocity);
            if self.dynamics && bin.replace(said) != Some(said) {
                tokens.push(VELOCITY + u32::from(said));
            }
            tokens.push(NOTE_ON + pitch);
        }
        Ok(Encoded { tokens, lost: losses.into_vec() })
    }

    fn decode(&self, tokens: &[u32]) -> Result<Score> {
        crate::encoding::check_tokens(self, tokens)?;
        let mut notes: Vec<Note> = Vec::new();
        let mut open: Vec<VecDeque<(u64, u8)>> = vec![VecDeque::new(); 128];
        let (mut now, mut velocity) = (0, self.heard_velocity(DEFAULT_VELOCITY));
        for &token in tokens {
            match token {
                NOTE_ON..NOTE_OFF => open[token as usize].push_back((now, velocity)),
                NOTE_OFF..TIME_SHIFT => {
                    let pitch = (token - NOTE_OFF) as u8;
                    // A note-off without a note is ignored, and so is a note of no length.
                    if let Some((tick, velocity)) = open[usize::from(pitch)].pop_front()
                        && tick < now
                    {
                        notes.push(Note { tick, duration: now - tick, pitch, velocity });
                    }
                }
                TIME_SHIFT..VELOCITY => {
                    // Beyond a day nothing is heard, as in `quantise`.
                    now = (now + u64::from(token - TIME_SHIFT) + 1).min(MAX_STEPS);
                }
                _ => velocity = bin_velocity((token - VELOCITY) as u8),
            }
        }
        for (pitch, hanging) in (0u8..).zip(open) {
            for (tick, velocity) in hanging.into_iter().filter(|&(tick, _)| tick < MAX_STEPS) {
                let end = (tick + MAX_HANGING).min(now).max(tick + 1);
                notes.push(Note { tick, duration: end - tick, pitch, velocity });
            }
        }
        merge_unisons(&mut notes);
        end_in_order(&mut notes);
        Ok(Performance::score_of(notes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Pedal, Tempo};

    /// On a grid of ticks of 1 ms.
    fn score_of(notes: &[(u64, u64, u8, u8)]) -> Score {
        let note = |&(tick, duration, pitch, velocity)| Note { tick, duration, pitch, velocity };
        let mut score = Score::new(1000);
        score.tempos.push(Tempo { tick: 0, micros_per_quarter: 1_000_000 });
        let notes = notes.iter().map(note).collect();
        score.tracks.push(Track { notes, ..Track::default() });
        score
    }

    #[test]
    fn tokens_are_magentas_events() {
        // C and E at 0 for 1.5 s and 30 ms, then G at 2.5 s for 10 ms, louder.
        let score = score_of(&[(0, 1500, 60, 64), (0, 30, 64, 64), (2500, 10, 67, 127)]);
        let names = |encoding: Performance| -> Vec<String> {
            let tokens = encoding.encode(&score).unwrap().tokens;
            tokens.into_iter().map(|token| encoding.token_name(token)).collect()
        };
        // Velocity 64 lies in bin (64 - 1) / 4 + 1 = 16, 127 in bin 32.
        assert_eq!(
            names(Performance::with_dynamics()),
            [
                "VELOCITY_16",
                "NOTE_ON_60",
                "NOTE_ON_64",
                "TIME_SHIFT_3",
                "NOTE_OFF_64",
                "TIME_SHIFT_100",
                "TIME_SHIFT_47",
                "NOTE_OFF_60",
                "TIME_SHIFT_100",
                "VELOCITY_32",
                "NOTE_ON_67",
                "TIME_SHIFT_1",
                "NOTE_OFF_67"
            ]
        );
        let plain = Performance::plain().encode(&score).unwrap().tokens;
        assert_eq!(plain, [60, 64, 258, 192, 355, 302, 188, 355, 67, 256, 195]);
        let sizes = (Performance::plain().vocab_size(), Performance::with_dynamics().vocab_size());
        assert_eq!(sizes, (356, 388));
    }

    #[test]
    fn the_pedal_lengthens_notes() {
        let mut score = score_of(&[(0, 100, 60, 64)]);
        score.tracks[0].pedals =
            vec![Pedal { tick: 50, value: 127 }, Pedal { tick: 400, value: 0 }];
        let heard = Performance::plain().quantise(&score);
        assert_eq!(heard.tracks[0].notes[0].duration, 40);
    }

    #[test]
    fn orphan_note_offs_are_ignored_and_hanging_notes_end() {
        let decode = |tokens: &[u32]| {
            let score = Performance::plain().decode(tokens).unwrap();
            score
                .tracks
                .iter()
                .flat_map(|t| t.notes.clone())
                .map(|n| (n.tick, n.duration))
                .collect::<Vec<_>>()
        };
        assert_eq!(decode(&[128 + 60, 60, 128 + 60]), []);
        // Seven seconds after the note-on: 5 s are kept. Two seconds after: those.
        assert_eq!(decode(&[&[60][..], &[355; 7]].concat()), [(0, 500)]);
        assert_eq!(decode(&[60, 355, 355]), [(0, 200)]);
    }

    #[test]
    fn a_note_inside_another_of_its_pitch_changes_ends_with_it() {
        let score = score_of(&[(0, 1000, 60, 64), (200, 300, 60, 64)]);
        let heard = Performance::plain().quantise(&score);
        let notes: Vec<_> = heard.tracks[0].notes.iter().map(|n| (n.tick, n.duration)).collect();
        assert_eq!(notes, [(0, 50), (20, 80)]);
        let tokens = Performance::plain().encode(&score).unwrap().tokens;
        assert_eq!(Performance::plain().decode(&tokens).unwrap(), heard);
    }
}
