//! Piano rolls: for each step of a grid, which of the 88 keys sound.
//!
//! A row is a set of bits: bit 0 is the lowest key, pitch 21, bit 87 the highest, pitch 108. A row
//! cannot say whether a key that goes on was struck again. [`Repeats::Split`] silences a key for
//! the step before it is struck again, which swallows a note of one step; [`Repeats::Held`] lets
//! the notes run together, as the polyphonic data sets of the likelihood tables do.
//!
//! # Source
//! Magenta, `PianorollSequence` and `PianorollEncoderDecoder` (Pianoroll RNN-NADE), where a note
//! on the first step also clears the last row, which is not done here; Boulanger-Lewandowski,
//! Bengio & Vincent 2012 for rows at a quarter note (JSB chorales, Nottingham).

use crate::quantise::{Losses, quantise_beats};
use crate::{Note, Score, Track};

/// The longest roll in steps, as for melodies.
const MAX_STEPS: u64 = 1 << 18;
/// The velocity of the notes of a roll, Magenta's.
const VELOCITY: u8 = 100;
const ALL_KEYS: u128 = (1 << PianoRoll::KEYS) - 1;

/// What happens where a key is struck again while it sounds or right after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeats {
    /// The notes run together.
    Held,
    /// The key is silent for a step before.
    Split,
}

/// Rows of keys on a grid.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PianoRoll {
    steps_per_quarter: u32,
    rows: Vec<u128>,
}

impl PianoRoll {
    /// Keys of a row.
    pub const KEYS: usize = 88;
    /// The pitch of the lowest key.
    pub const LOWEST: u8 = 21;

    /// Hears a score on a grid of so many steps a quarter note (0 is taken as 1): all instruments
    /// but drums. With it what was lost, notes counted by reason.
    pub fn of(
        score: &Score,
        steps_per_quarter: u32,
        repeats: Repeats,
    ) -> (PianoRoll, Vec<(String, usize)>) {
        let on_grid = quantise_beats(score, steps_per_quarter);
        let mut losses = Losses::default();
        for (reason, count) in on_grid.lost {
            losses.add(&reason, count);
        }
        let mut notes = Vec::new();
        for track in &on_grid.score.tracks {
            if track.is_drum {
                losses.add("drum track", track.notes.len());
                continue;
            }
            for note in &track.notes {
                match key_of(note.pitch) {
                    None => losses.add("beyond the 88 keys", 1),
                    Some(_) if note.tick + note.duration > MAX_STEPS => {
                        losses.add("beyond 262,144 steps", 1);
                    }
                    Some(key) => notes.push((key, note.tick as usize, note.duration as usize)),
                }
            }
        }
        notes.sort_unstable();
        let steps = notes.iter().map(|(_, tick, duration)| tick + duration).max().unwrap_or(0);
        let mut rows = vec![0u128; steps];
        // By key, each row is set once, however many notes cover it.
        let mut covered = (0, 0);
        for &(key, tick, duration) in &notes {
            let from = if covered.0 == key { tick.max(covered.1) } else { tick };
            let end = tick + duration;
            rows[from.min(end)..end].iter_mut().for_each(|row| *row |= 1 << key);
            covered = (key, if covered.0 == key { end.max(covered.1) } else { end });
        }
        if repeats == Repeats::Split {
            for &(key, tick, _) in notes.iter().filter(|(_, tick, _)| *tick > 0) {
                rows[tick - 1] &= !(1 << key);
            }
        }
        let roll = PianoRoll::from_rows(on_grid.score.ticks_per_quarter, rows);
        losses.add("run together with another note", notes.len() - roll.to_score().note_count());
        (roll, losses.into_vec())
    }

    /// Takes rows as they are, but for bits beyond the keys, rows beyond the longest roll, and
    /// silent rows at the end.
    pub fn from_rows(steps_per_quarter: u32, mut rows: Vec<u128>) -> PianoRoll {
        rows.truncate(MAX_STEPS as usize);
        rows.iter_mut().for_each(|row| *row &= ALL_KEYS);
        let steps = rows.iter().rposition(|&row| row != 0).map_or(0, |last| last + 1);
        rows.truncate(steps);
        PianoRoll { steps_per_quarter: steps_per_quarter.max(1), rows }
    }

    /// Takes the pitches of each step, as data sets hold them; pitches beyond the keys are left
    /// out, and counted.
    pub fn from_pitches<S: AsRef<[u8]>>(steps_per_quarter: u32, steps: &[S]) -> (PianoRoll, usize) {
        let mut beyond = 0;
        let row = |step: &S| {
            step.as_ref().iter().fold(0, |row, &pitch| match key_of(pitch) {
                Some(key) => row | 1 << key,
                None => {
                    beyond += 1;
                    row
                }
            })
        };
        let rows = steps.iter().map(row).collect();
        (PianoRoll::from_rows(steps_per_quarter, rows), beyond)
    }

    /// Steps of a quarter note.
    pub fn steps_per_quarter(&self) -> u32 {
        self.steps_per_quarter
    }

    /// The rows, bit 0 the lowest key; the last is not silent.
    pub fn rows(&self) -> &[u128] {
        &self.rows
    }

    /// The pitches that sound at a step, upwards; none beyond the roll.
    pub fn pitches(&self, step: usize) -> impl Iterator<Item = u8> {
        let row = self.rows.get(step).copied().unwrap_or(0);
        (PianoRoll::LOWEST..)
            .take(PianoRoll::KEYS)
            .filter(move |pitch| row >> (pitch - PianoRoll::LOWEST) & 1 == 1)
    }

    /// Writes a row as zeros and ones; zeros beyond the roll.
    ///
    /// # Shapes
    /// `row` `[88]`.
    ///
    /// # Panics
    /// If `row` has another length.
    pub fn write(&self, step: usize, row: &mut [f32]) {
        assert_eq!(row.len(), PianoRoll::KEYS);
        let bits = self.rows.get(step).copied().unwrap_or(0);
        for (key, value) in row.iter_mut().enumerate() {
            *value = (bits >> key & 1) as f32;
        }
    }

    /// The roll as a score: one track, a tick a step, a note for each stretch of a key.
    pub fn to_score(&self) -> Score {
        let mut score = Score::new(self.steps_per_quarter.max(1));
        let mut notes = Vec::new();
        let mut began = [0; PianoRoll::KEYS];
        let mut before = 0u128;
        for (step, &row) in (0..).zip(self.rows.iter().chain([&0])) {
            let mut changed = before ^ row;
            while changed != 0 {
                let key = changed.trailing_zeros() as usize;
                if row >> key & 1 == 1 {
                    began[key] = step;
                } else {
                    let (tick, pitch) = (began[key], PianoRoll::LOWEST + key as u8);
                    notes.push(Note { tick, duration: step - tick, pitch, velocity: VELOCITY });
                }
                changed &= changed - 1;
            }
            before = row;
        }
        notes.sort_unstable_by_key(|note| (note.tick, note.pitch));
        if !notes.is_empty() {
            score.tracks.push(Track { notes, ..Track::default() });
        }
        score
    }
}

/// The key of a pitch.
fn key_of(pitch: u8) -> Option<usize> {
    let key = usize::from(pitch.checked_sub(PianoRoll::LOWEST)?);
    (key < PianoRoll::KEYS).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score_of(notes: &[(u64, u64, u8)]) -> Score {
        let note = |&(tick, duration, pitch)| Note { tick, duration, pitch, velocity: 90 };
        let mut score = Score::new(480);
        let notes = notes.iter().map(note).collect();
        score.tracks.push(Track { notes, ..Track::default() });
        score
    }

    #[test]
    fn rows_by_hand() {
        // A quarter of the lowest key with the highest over it for an eighth, in eighths; then a
        // rest and middle C, bit 60 - 21 = 39.
        let score = score_of(&[(0, 480, 21), (0, 240, 108), (720, 240, 60)]);
        let (roll, lost) = PianoRoll::of(&score, 2, Repeats::Split);
        assert_eq!(roll.rows(), [1 | 1 << 87, 1, 0, 1 << 39]);
        assert_eq!(lost, []);
        let mut row = [9.0; 88];
        roll.write(0, &mut row);
        assert_eq!((row[0], row[87], row.iter().sum::<f32>()), (1.0, 1.0, 2.0));
        roll.write(4, &mut row);
        assert_eq!(row, [0.0; 88]);
        assert_eq!(roll.pitches(0).collect::<Vec<_>>(), [21, 108]);
        let notes = &roll.to_score().tracks[0].notes;
        let notes: Vec<_> = notes.iter().map(|n| (n.tick, n.duration, n.pitch)).collect();
        assert_eq!(notes, [(0, 2, 21), (0, 1, 108), (3, 1, 60)]);
    }

    #[test]
    fn repeats_are_held_or_split() {
        // A half note and a quarter of one pitch, and a sixteenth struck again, in sixteenths.
        let score = score_of(&[(0, 480, 60), (480, 240, 60), (960, 120, 62), (1080, 120, 62)]);
        let on = |key: usize, roll: &PianoRoll| -> String {
            roll.rows().iter().map(|row| if row >> key & 1 == 1 { '1' } else { '0' }).collect()
        };
        let (held, lost) = PianoRoll::of(&score, 4, Repeats::Held);
        assert_eq!((on(39, &held), on(41, &held)), ("1111110000".into(), "0000000011".into()));
        assert_eq!(lost, [("run together with another note".to_string(), 2)]);
        let (split, lost) = PianoRoll::of(&score, 4, Repeats::Split);
        assert_eq!((on(39, &split), on(41, &split)), ("1110110000".into(), "0000000001".into()));
        assert_eq!(lost, [("run together with another note".to_string(), 1)]);
    }

    #[test]
    fn rolls_come_back_from_scores() {
        let mut state = 7u128;
        let mut rows = Vec::new();
        for _ in 0..2000 {
            state = state.wrapping_mul(0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645).wrapping_add(1);
            rows.push(state >> 40 & state >> 20);
        }
        let roll = PianoRoll::from_rows(1, rows);
        let (again, lost) = PianoRoll::of(&roll.to_score(), 1, Repeats::Held);
        assert_eq!((again, lost), (roll, vec![]));
    }

    #[test]
    fn data_sets_of_pitches_are_taken_and_what_is_no_key_counted() {
        let steps: [&[u8]; 4] = [&[60, 64, 67], &[20, 109], &[21], &[]];
        let (roll, beyond) = PianoRoll::from_pitches(1, &steps);
        assert_eq!((roll.rows().len(), beyond), (3, 2));
        assert_eq!(roll.pitches(0).collect::<Vec<_>>(), [60, 64, 67]);
    }

    #[test]
    fn hostile_scores_are_bounded() {
        assert_eq!(PianoRoll::of(&Score::new(0), 0, Repeats::Split).0.rows(), [0u128; 0]);
        let note = |i: u64| (i % 1000, 200_000, (i % 128) as u8);
        let mut score = score_of(&(0..1_000_000).map(note).collect::<Vec<_>>());
        score.ticks_per_quarter = 4;
        let (roll, lost) = PianoRoll::of(&score, 4, Repeats::Held);
        assert_eq!(roll.rows().len(), 200_999);
        let lost: usize = lost.iter().map(|(_, count)| count).sum();
        assert_eq!(roll.to_score().note_count() + lost, 1_000_000);
        let (roll, lost) = PianoRoll::of(&score_of(&[(1 << 31, u64::MAX, 60)]), 4, Repeats::Split);
        assert!(roll.rows().is_empty() && lost.len() == 1);
    }
}
