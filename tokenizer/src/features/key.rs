//! What sounds, where the melody goes, whether it repeats, where in the bar it is, and the keys
//! that it may be in.
//!
//! | positions | tell |
//! | --- | --- |
//! | 0 to 35 | the pitch that sounds, 48 to 83 |
//! | 36, 37 | a note sounds; silence |
//! | 38 | the last event but note-offs began a note |
//! | 39 | 1 the last new pitch was higher than the note before, -1 lower, 0 neither yet |
//! | 40, 41 | the event is that of one bar ago; of two |
//! | 42 to 48 | the number of the next event, binary, 1 and -1 |
//! | 49 | the next event begins a bar |
//! | 50 to 61 | the major keys, from C, that hold the most of all notes so far |
//! | 62 to 73 | the same of the last three different pitches |
//!
//! A note-off right after a note-on leaves position 38 set, as published. Without notes every key
//! is as good as any other, and all twelve are set.
//!
//! # Source
//! Magenta, `KeyMelodyEncoderDecoder` (attention_rnn).

use super::{EventInput, Features, Field, lay};
use crate::history::History;
use crate::{LOOKBACKS, Melody};

const PITCHES: u32 = 36;
const STEPS_PER_BAR: usize = 16;
const COUNTER_BITS: u32 = 7;
/// Where the direction of the melody and the counter stand.
const DIRECTION: u32 = 39;
const COUNTER: u32 = 42;
/// Whether a pitch class, counted from the tonic, is in a major scale.
const MAJOR: [bool; 12] =
    [true, false, true, false, true, true, false, true, false, true, false, true];

/// The input of attention_rnn, 74 wide: takes one event after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInput {
    history: History,
    sounding: Option<u32>,
    attack: bool,
    ascending: Option<bool>,
    /// The last different pitches, as classes of the melody, the newest last.
    recent: [u32; 3],
    recents: usize,
    /// For each major key, how many notes so far are in it.
    keys: [u32; 12],
}

impl Default for KeyInput {
    fn default() -> KeyInput {
        KeyInput::new()
    }
}

impl KeyInput {
    /// Positions of a row.
    pub const WIDTH: u32 = 74;

    /// Begins a melody.
    pub fn new() -> KeyInput {
        KeyInput {
            history: History::default(),
            sounding: None,
            attack: false,
            ascending: None,
            recent: [0; 3],
            recents: 0,
            keys: [0; 12],
        }
    }

    /// Writes the row of a place, from the first event on.
    ///
    /// # Panics
    /// If `place` is beyond `events`, or an event is not below 38.
    pub fn fill(events: &[u32], place: usize, row: &mut Features) {
        let mut input = KeyInput::new();
        for &event in &events[..=place] {
            input.push(event, row);
        }
    }

    fn note(&mut self, pitch: u32) {
        self.attack = true;
        self.sounding = Some(pitch);
        let recent = &mut self.recent;
        if let Some(newest) = self.recents.checked_sub(1).map(|at| recent[at])
            && pitch != newest
        {
            self.ascending = Some(pitch > newest);
        }
        // Each pitch stands once; a new one pushes the oldest out.
        let known = recent[..self.recents].iter().position(|&other| other == pitch);
        let out = known.or((self.recents == recent.len()).then_some(0));
        if let Some(out) = out {
            recent.copy_within(out + 1..self.recents, out);
            self.recents -= 1;
        }
        recent[self.recents] = pitch;
        self.recents += 1;
        add_to_keys(pitch, &mut self.keys);
    }
}

impl EventInput for KeyInput {
    fn width(&self) -> u32 {
        KeyInput::WIDTH
    }

    fn fields(&self) -> Vec<Field> {
        lay(&[
            ("pitch that sounds", PITCHES),
            ("a note sounds", 1),
            ("silence", 1),
            ("a note has just begun", 1),
            ("ascending or descending", 1),
            ("repeats one bar", 1),
            ("repeats two bars", 1),
            ("place of the next event, binary", COUNTER_BITS),
            ("the next event begins a bar", 1),
            ("keys of all notes", 12),
            ("keys of the last three pitches", 12),
        ])
    }

    fn reset(&mut self) {
        *self = KeyInput::new();
    }

    /// Takes the next event of [`Melody::basic`] and writes the row of its place.
    ///
    /// # Panics
    /// If `event` is not below 38.
    fn push(&mut self, event: u32, row: &mut Features) {
        assert!(event < PITCHES + 2, "event {event} of {}", PITCHES + 2);
        let repeats = LOOKBACKS.map(|distance| self.history.back(distance) == Some(event));
        match event {
            Melody::NO_EVENT => self.attack = false,
            Melody::NOTE_OFF => self.sounding = None,
            _ => self.note(event - 2),
        }
        self.history.push(event);

        row.clear();
        row.ones.push(self.sounding.unwrap_or(PITCHES + 1));
        row.flag(PITCHES, self.sounding.is_some());
        row.flag(38, self.attack);
        if let Some(ascending) = self.ascending {
            row.values.push((DIRECTION, if ascending { 1.0 } else { -1.0 }));
        }
        row.flag(40, repeats[0]);
        row.flag(41, repeats[1]);
        row.counter(COUNTER, COUNTER_BITS, self.history.count());
        row.flag(49, self.history.count().is_multiple_of(STEPS_PER_BAR));
        put_keys(&self.keys, 50, row);
        let mut recent = [0; 12];
        self.recent[..self.recents].iter().for_each(|&pitch| add_to_keys(pitch, &mut recent));
        put_keys(&recent, 62, row);
    }

    fn signed(&self) -> Vec<u32> {
        [DIRECTION].into_iter().chain(COUNTER..COUNTER + COUNTER_BITS).collect()
    }

    fn copy(&self) -> Box<dyn EventInput> {
        Box::new(self.clone())
    }
}

/// Counts a pitch, 0 for 48 which is a C, in each major key that holds it.
fn add_to_keys(pitch: u32, keys: &mut [u32; 12]) {
    for (key, count) in (0..12).zip(keys) {
        *count += u32::from(MAJOR[((pitch + 12 - key) % 12) as usize]);
    }
}

/// Sets the keys that hold the most.
fn put_keys(keys: &[u32; 12], first: u32, row: &mut Features) {
    let most = keys.iter().max().copied().unwrap_or(0);
    row.ones.extend((first..).zip(keys).filter(|&(_, &count)| count == most).map(|(at, _)| at));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(bits: [f32; 7]) -> Vec<(u32, f32)> {
        (42..).zip(bits).collect()
    }

    #[test]
    fn rows_of_attention_rnn_by_hand() {
        let mut row = Features::default();
        let mut input = KeyInput::new();
        // Nothing yet: silence 37; the next event is number 1; no notes, so all keys.
        input.push(0, &mut row);
        let all: Vec<u32> = [37].into_iter().chain(50..74).collect();
        assert_eq!(row.ones, all);
        assert_eq!(row.values, counter([1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0]));
        // Middle C, pitch 12 of the range: sounds, attack. C is in C, Db, Eb, F, G, Ab, Bb.
        input.push(14, &mut row);
        let keys = [0, 1, 3, 5, 7, 8, 10];
        let expected: Vec<u32> = [12, 36, 38]
            .into_iter()
            .chain(keys.map(|k| 50 + k))
            .chain(keys.map(|k| 62 + k))
            .collect();
        assert_eq!(row.ones, expected);
        assert_eq!(row.values, counter([-1.0, 1.0, -1.0, -1.0, -1.0, -1.0, -1.0]));
        // Held: no attack.
        input.push(0, &mut row);
        assert_eq!(row.ones[..2], [12, 36]);
        assert_eq!(row.ones[2], 50);
        // Up to E: C and E are both in C, F, G. Ascending.
        input.push(18, &mut row);
        assert_eq!(row.ones, [16, 36, 38, 50, 55, 57, 62, 67, 69]);
        assert_eq!(row.values[0], (39, 1.0));
        // Down to D: all of C, D, E are in C, F, G; and descending.
        input.push(16, &mut row);
        assert_eq!(row.ones, [14, 36, 38, 50, 55, 57, 62, 67, 69]);
        assert_eq!(row.values[0], (39, -1.0));
        // Up to F sharp: of C, D, E, F sharp all four are in G alone; the last three, D, E and F
        // sharp, are in D, G, A as well: 2, 7, 9.
        input.push(20, &mut row);
        assert_eq!(row.ones, [18, 36, 38, 57, 64, 69, 71]);
        // Note-off: silence; the attack stays, as published.
        input.push(1, &mut row);
        assert_eq!(row.ones, [37, 38, 57, 64, 69, 71]);
        // E again: no new pitch among the last three, and lower than F sharp.
        input.push(18, &mut row);
        assert_eq!(row.ones, [16, 36, 38, 57, 64, 69, 71]);
        assert_eq!(row.values[0], (39, -1.0));
    }

    #[test]
    fn repeats_bars_and_the_counter_by_hand() {
        let mut row = Features::default();
        let events: Vec<u32> = (0..40).map(|t| if t % 16 == 0 { 14 } else { 0 }).collect();
        // Place 15: the next event, number 16 = 0010000, begins a bar; nothing to repeat yet.
        KeyInput::fill(&events, 15, &mut row);
        assert!(row.ones.contains(&49) && !row.ones.contains(&40));
        assert_eq!(row.values, counter([-1.0, -1.0, -1.0, -1.0, 1.0, -1.0, -1.0]));
        // Place 16: C as one bar ago. Place 32: C as one and as two bars ago.
        KeyInput::fill(&events, 16, &mut row);
        assert!(row.ones.contains(&40) && !row.ones.contains(&41) && !row.ones.contains(&49));
        KeyInput::fill(&events, 32, &mut row);
        assert!(row.ones.contains(&40) && row.ones.contains(&41));
        // One pitch over and over neither ascends nor descends.
        assert_eq!(row.values.len(), 7);
    }

    #[test]
    fn the_fields_fill_the_width_and_rows_stay_inside() {
        let fields = KeyInput::new().fields();
        let last = fields[fields.len() - 1];
        assert_eq!(last.first + last.width, KeyInput::WIDTH);
        let (mut input, mut row) = (KeyInput::new(), Features::default());
        for t in 0..5000u32 {
            input.push(t * t % 7919 % 38, &mut row);
            assert!(row.ones.is_sorted_by(|a, b| a < b) && row.ones.iter().all(|&at| at < 74));
            assert!(row.values.is_sorted_by(|a, b| a.0 < b.0));
        }
    }
}
