//! Piano performances note by note: six numbers a note, one for each head of the network.
//!
//! A note is told by the time since the note before it (0 to 1000 steps of 10 ms), its pitch, one
//! of 32 velocities and its duration (1 to 1000 steps). The two times are each told by a major
//! and a minor number, so that 1001 = 13 x 77 shifts and 1000 = 25 x 40 durations need heads of
//! 13, 77, 25 and 40 classes. As a scheme of tokens the six heads stand in a row, 315 ids in all,
//! and a note is six tokens.
//!
//! Magenta refuses a piece with a longer rest or note. Here a rest of over 10 s is made 10 s and
//! a longer note ends after 10 s; both are counted.
//!
//! # Source
//! Magenta, `NotePerformance` and `NotePerformanceEventSequenceEncoderDecoder`: of all factors of
//! a count of steps, the major number of classes is that with the smallest sum of both.

use crate::grammar::{Grammar, NoteGrammar};
use crate::performance::{bin_velocity, keyboard, velocity_bin};
use crate::quantise::{Losses, STEPS_PER_SECOND, merge_unisons};
use crate::{Encoded, Encoding, MAX_SECONDS, Note, Performance, Result, Score, Speed, TokenTime};

pub(crate) const SHIFT_MINORS: u32 = 77;
const DURATION_MINORS: u32 = 40;
pub(crate) const MAX_SHIFT: u64 = 1000;
pub(crate) const MAX_DURATION: u64 = 1000;
const MAX_STEPS: u64 = MAX_SECONDS * STEPS_PER_SECOND;

/// A note as the classes of the six heads: shift major and minor, pitch, velocity, duration major
/// and minor.
pub type NoteHeads = [u32; 6];

/// The note encoding of performances, `performance-note`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NotePerformance;

impl NotePerformance {
    /// The classes of each head.
    pub const HEADS: NoteHeads = [13, SHIFT_MINORS, 128, 32, 25, DURATION_MINORS];
    /// The first token of each head, and their number.
    pub const FIRST: [u32; 7] = {
        let mut first = [0; 7];
        let mut head = 0;
        while head < 6 {
            first[head + 1] = first[head] + NotePerformance::HEADS[head];
            head += 1;
        }
        first
    };
    const NAMES: [&str; 6] =
        ["SHIFT_MAJOR", "SHIFT_MINOR", "PITCH", "VELOCITY", "DURATION_MAJOR", "DURATION_MINOR"];

    /// The head of a token, and the class in it.
    ///
    /// # Panics
    /// If `token` is not below the vocabulary's size.
    pub fn head(token: u32) -> (usize, u32) {
        let first = NotePerformance::FIRST;
        assert!(token < first[6], "token {token} of {}", first[6]);
        let head = first.partition_point(|&from| from <= token) - 1;
        (head, token - first[head])
    }

    /// The notes of a score, in order of beginning and pitch.
    pub fn notes(score: &Score) -> Vec<NoteHeads> {
        heads(&hear(score).0)
    }

    /// The score of notes; classes beyond a head's count as its last.
    pub fn score(notes: &[NoteHeads]) -> Score {
        let mut now = 0;
        let note = |heads: &NoteHeads| {
            let mut class = *heads;
            for (class, classes) in class.iter_mut().zip(NotePerformance::HEADS) {
                *class = (*class).min(classes - 1);
            }
            let [shift_major, shift_minor, pitch, velocity, major, minor] = class;
            // Beyond a day nothing is heard, as in `hear`.
            now = (now + u64::from(shift_major * SHIFT_MINORS + shift_minor)).min(MAX_STEPS);
            let duration = u64::from(major * DURATION_MINORS + minor) + 1;
            let velocity = bin_velocity(velocity as u8);
            Note { tick: now, duration, pitch: pitch as u8, velocity }
        };
        let notes: Vec<Note> = notes.iter().map(note).collect();
        let score = Performance::score_of(notes);
        Performance::score_of(hear(&score).0)
    }
}

/// The notes of one keyboard with rests and durations of at most 10 s.
fn hear(score: &Score) -> (Vec<Note>, Losses) {
    let (mut notes, mut losses) = keyboard(score);
    let (mut before, mut moved) = (0, 0);
    for note in &mut notes {
        let tick = note.tick - moved;
        if tick - before > MAX_SHIFT {
            losses.add("rest over 10 s made 10 s (not a note)", 1);
            moved += tick - before - MAX_SHIFT;
        }
        note.tick -= moved;
        before = note.tick;
        if note.duration > MAX_DURATION {
            losses.add("shortened: note over 10 s", 1);
            note.duration = MAX_DURATION;
        }
        note.velocity = bin_velocity(velocity_bin(note.velocity));
    }
    merge_unisons(&mut notes);
    (notes, losses)
}

fn heads(notes: &[Note]) -> Vec<NoteHeads> {
    let mut before = 0;
    let heads = |note: &Note| {
        let shift = (note.tick - std::mem::replace(&mut before, note.tick)) as u32;
        let duration = note.duration as u32 - 1;
        [
            shift / SHIFT_MINORS,
            shift % SHIFT_MINORS,
            u32::from(note.pitch),
            u32::from(velocity_bin(note.velocity)),
            duration / DURATION_MINORS,
            duration % DURATION_MINORS,
        ]
    };
    notes.iter().map(heads).collect()
}

impl Encoding for NotePerformance {
    fn name(&self) -> &str {
        "performance-note"
    }

    fn vocab_size(&self) -> usize {
        NotePerformance::FIRST[6] as usize
    }

    fn token_name(&self, token: u32) -> String {
        let (head, class) = NotePerformance::head(token);
        format!("{}_{class}", NotePerformance::NAMES[head])
    }

    /// The time of the shift that a token tells; durations overlap with what follows.
    fn token_time(&self, token: u32) -> TokenTime {
        match NotePerformance::head(token) {
            (0, major) => TokenTime::Centiseconds(major * SHIFT_MINORS),
            (1, minor) => TokenTime::Centiseconds(minor),
            _ => TokenTime::None,
        }
    }

    fn is_onset(&self, token: u32) -> bool {
        NotePerformance::head(token).0 == 2
    }

    fn grammar(&self) -> Box<dyn Grammar> {
        Box::new(NoteGrammar::new())
    }

    fn speed(&self) -> Speed {
        Speed::Time
    }

    fn has_velocity(&self) -> bool {
        true
    }

    /// The score as one keyboard on a grid of 10 ms: 50 ticks a quarter note, no tempo; rests and
    /// notes of at most 10 s.
    fn quantise(&self, score: &Score) -> Score {
        Performance::score_of(hear(score).0)
    }

    fn encode(&self, score: &Score) -> Result<Encoded> {
        let (notes, losses) = hear(score);
        let tokens = heads(&notes).into_iter().flat_map(|classes| {
            classes.into_iter().zip(NotePerformance::FIRST).map(|(class, first)| first + class)
        });
        Ok(Encoded { tokens: tokens.collect(), lost: losses.into_vec() })
    }

    /// Reads notes of six tokens. A token of another head than is due is ignored, but for the
    /// first head, which begins a note anew.
    fn decode(&self, tokens: &[u32]) -> Result<Score> {
        crate::encoding::check_tokens(self, tokens)?;
        let (mut notes, mut note, mut due) = (Vec::new(), [0; 6], 0);
        for &token in tokens {
            let (head, class) = NotePerformance::head(token);
            if head == due || head == 0 {
                note[head] = class;
                due = head + 1;
            }
            if due == note.len() {
                notes.push(note);
                due = 0;
            }
        }
        Ok(NotePerformance::score(&notes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tempo, Track};

    /// On a grid of ticks of 10 ms.
    fn score_of(notes: &[(u64, u64, u8, u8)]) -> Score {
        let note = |&(tick, duration, pitch, velocity)| Note { tick, duration, pitch, velocity };
        let mut score = Score::new(100);
        score.tempos.push(Tempo { tick: 0, micros_per_quarter: 1_000_000 });
        let notes = notes.iter().map(note).collect();
        score.tracks.push(Track { notes, ..Track::default() });
        score
    }

    #[test]
    fn notes_are_six_classes_by_hand() {
        // C at 0.1 s for 1.5 s: shift 10 = 0 x 77 + 10, velocity (64 - 1) / 4 = 15, duration
        // 150 - 1 = 3 x 40 + 29. E with it, 10 ms: duration 0. G 2 s later, 10 s long, loudest:
        // shift 200 = 2 x 77 + 46, bin 31, duration 999 = 24 x 40 + 39.
        let score = score_of(&[(10, 150, 60, 64), (10, 1, 64, 1), (210, 1000, 67, 127)]);
        let notes = NotePerformance::notes(&score);
        let expected = [[0, 10, 60, 15, 3, 29], [0, 0, 64, 0, 0, 0], [2, 46, 67, 31, 24, 39]];
        assert_eq!(notes, expected);
        assert_eq!(NotePerformance::score(&notes), NotePerformance.quantise(&score));
        // The heads in a row: 0, 13, 90, 218, 250, 275, 315 in all.
        let tokens = NotePerformance.encode(&score).unwrap().tokens;
        assert_eq!(tokens[..6], [0, 23, 150, 233, 253, 304]);
        assert_eq!(NotePerformance.vocab_size(), 315);
        assert_eq!(NotePerformance.token_name(304), "DURATION_MINOR_29");
    }

    #[test]
    fn heads_are_the_factors_with_the_smallest_sum() {
        let major = |steps: u32| {
            let factors = (1..steps).filter(|major| steps.is_multiple_of(*major));
            factors.min_by_key(|major| major + steps / major).unwrap()
        };
        assert_eq!((major(1001), major(1000)), (NotePerformance::HEADS[0], 25));
        assert_eq!(13 * SHIFT_MINORS, 1001);
        assert_eq!(25 * DURATION_MINORS, 1000);
    }

    #[test]
    fn long_rests_and_notes_are_made_ten_seconds_and_told() {
        let score = score_of(&[(0, 1001, 60, 64), (2000, 10, 62, 64), (2100, 10, 64, 64)]);
        let encoded = NotePerformance.encode(&score).unwrap();
        let lost = [
            ("shortened: note over 10 s".to_string(), 1),
            ("rest over 10 s made 10 s (not a note)".to_string(), 1),
        ];
        assert_eq!(encoded.lost, lost);
        let heard = NotePerformance.quantise(&score);
        let notes: Vec<_> = heard.tracks[0].notes.iter().map(|n| (n.tick, n.duration)).collect();
        assert_eq!(notes, [(0, 1000), (1000, 10), (1100, 10)]);
    }
}
