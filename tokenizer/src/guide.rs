//! What stands beside the events of a piece and is told to a network that reads it: chords to play
//! over, or what a performance is asked to be like.
//!
//! The guide of step `t` is read for the prediction of event `t`, before the rows of the events up to
//! it, as rows of one table: a chord, a bin of density and a flag are rows with a 1. A weight `w` of
//! the histogram is real; it is read as the binary fraction nearest to it,
//!
//! ```text
//! w = sum of 2^-k over the digits k = 1 .. 12 that are set      (1 has a row of its own)
//! ```
//!
//! each digit a row of the table, so that it is told to within 1/8192.
//!
//! # Source
//! Magenta, `ConditionalEventSequenceEncoderDecoder`, in which Improv RNN and the conditioned
//! Performance RNN put the control of the next event before the input of the last.

use crate::chord::{Chord, ChordChange, Progression, chord_markers, infer_chords, told_chords};
use crate::features::{
    ChordInput, ControlValues, Controls, Features, note_density, pitch_histogram,
};
use crate::step_input::NO_ROW;
use crate::{Marker, Result, Score};
use std::sync::Arc;

/// Binary digits of a weight.
const DIGITS: u32 = 12;
/// Sixteenth-note steps of a quarter note.
const STEPS_PER_QUARTER: u128 = 4;

/// Which guide a network reads, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuideInput {
    /// The chord at each sixteenth step.
    Chords(ChordInput),
    /// How dense a performance is, and in which pitch classes.
    Controls(Controls),
}

/// What is told at the steps of a piece.
#[derive(Debug, Clone, PartialEq)]
pub enum Guide {
    /// No chord; nothing is asked for.
    Nothing,
    /// Chords.
    Chords(ChordTrack),
    /// The same at every place of a performance.
    Asked(ControlValues),
    /// At each place of a performance what it has there itself.
    Itself,
}

impl Guide {
    /// The guide of a piece that is so many semitones higher.
    pub fn transpose(&self, semitones: i32) -> Guide {
        match self {
            Guide::Chords(track) => Guide::Chords(track.transpose(semitones)),
            Guide::Asked(values) => {
                let mut histogram = values.histogram;
                histogram.rotate_right(semitones.rem_euclid(12) as usize);
                Guide::Asked(ControlValues { histogram, ..*values })
            }
            other => other.clone(),
        }
    }
}

/// Chords by sixteenth steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChordTrack {
    /// Where the chord changes, in steps; no chord before the first.
    changes: Arc<[ChordChange]>,
    /// Steps after which it begins anew; 0: it does not.
    period: u64,
}

impl ChordTrack {
    /// Takes changes at ticks; each counts from the step nearest to it, of several at one step the
    /// last.
    pub fn of(changes: &[ChordChange], ticks_per_quarter: u32) -> ChordTrack {
        let per_quarter = u128::from(ticks_per_quarter.max(1));
        let mut at_steps: Vec<ChordChange> = Vec::new();
        for change in changes {
            let step =
                (2 * u128::from(change.tick) * STEPS_PER_QUARTER + per_quarter) / (2 * per_quarter);
            let tick = u64::try_from(step).unwrap_or(u64::MAX);
            at_steps.pop_if(|last| last.tick >= tick);
            if at_steps.last().is_none_or(|last| last.chord != change.chord) {
                at_steps.push(ChordChange { tick, ..*change });
            }
        }
        ChordTrack { changes: at_steps.into(), period: 0 }
    }

    /// The chords of a piece: those that its markers tell, else those that its notes suggest.
    ///
    /// # Errors
    /// If the piece is too long to guess from its notes ([`infer_chords`]).
    pub fn of_score(score: &Score) -> Result<ChordTrack> {
        let told = told_chords(&score.markers);
        let changes = if told.is_empty() { infer_chords(score)? } else { told };
        Ok(ChordTrack::of(&changes, score.ticks_per_quarter))
    }

    /// Repeats a progression without end, in bars of so many steps.
    ///
    /// # Errors
    /// [`crate::Error::Chord`] if the chords of a bar do not divide its steps evenly.
    pub fn repeated(progression: &Progression, steps_per_bar: usize) -> Result<ChordTrack> {
        let steps = progression.steps(steps_per_bar)?;
        let mut changes: Vec<ChordChange> = Vec::new();
        for (tick, chord) in (0..).zip(&steps) {
            if changes.last().is_none_or(|last| last.chord != *chord) {
                changes.push(ChordChange { tick, chord: *chord });
            }
        }
        Ok(ChordTrack { changes: changes.into(), period: steps.len() as u64 })
    }

    /// The chord at a step.
    pub fn at(&self, step: usize) -> Option<&Chord> {
        let step = match self.period {
            0 => step as u64,
            period => step as u64 % period,
        };
        let behind = self.changes.partition_point(|change| change.tick <= step);
        self.changes[..behind].last()?.chord.as_ref()
    }

    /// The different chords, in order of their first place.
    pub fn chords(&self) -> Vec<Chord> {
        let mut chords = Vec::new();
        for chord in self.changes.iter().filter_map(|change| change.chord) {
            if !chords.contains(&chord) {
                chords.push(chord);
            }
        }
        chords
    }

    /// The changes up to a tick, at steps of a sixteenth, as markers of a score.
    pub fn markers(&self, end: u64, ticks_per_quarter: u32) -> Vec<Marker> {
        let at = |step: u64| step.saturating_mul(u64::from(ticks_per_quarter)) / 4;
        let rounds = (0..).map(|round| self.period.saturating_mul(round));
        let rounds = rounds.take(if self.period > 0 { usize::MAX } else { 1 });
        let mut changes: Vec<ChordChange> = Vec::new();
        for from in rounds.take_while(|from| at(*from) < end) {
            for change in self.changes.iter() {
                let tick = at(from.saturating_add(change.tick));
                let is_new = changes.last().is_none_or(|last| last.chord != change.chord);
                if is_new && tick < end {
                    changes.push(ChordChange { tick, ..*change });
                }
            }
        }
        chord_markers(&changes)
    }

    /// How many changes there are to chords that an input cannot tell, and tells as no chord: those
    /// without a triad for [`ChordInput::Triads`].
    pub fn untold(&self, input: ChordInput) -> usize {
        self.changes.iter().filter_map(|c| c.chord).filter(|chord| !input.tells(chord)).count()
    }

    /// The chords so many semitones higher.
    pub fn transpose(&self, semitones: i32) -> ChordTrack {
        let moved = |c: &ChordChange| ChordChange {
            tick: c.tick,
            chord: c.chord.map(|chord| chord.transpose(semitones)),
        };
        ChordTrack { changes: self.changes.iter().map(moved).collect(), period: self.period }
    }

    /// Writes the changes of a track that does not repeat as text: a line each, the step and the
    /// symbol.
    pub fn to_text(&self) -> String {
        let markers = chord_markers(&self.changes);
        markers.iter().map(|marker| format!("{} {}\n", marker.tick, marker.text)).collect()
    }

    /// Reads what [`ChordTrack::to_text`] wrote; `None` if it is something else.
    pub fn from_text(text: &str) -> Option<ChordTrack> {
        let change = |line: &str| {
            let (step, symbol) = line.split_once(' ')?;
            Some(ChordChange { tick: step.parse().ok()?, chord: Chord::parse(symbol).ok()? })
        };
        let changes: Vec<ChordChange> = text.lines().map(change).collect::<Option<_>>()?;
        let ascends = changes.windows(2).all(|pair| pair[0].tick < pair[1].tick);
        ascends.then(|| ChordTrack { changes: changes.into(), period: 0 })
    }
}

impl GuideInput {
    /// Numbers that a network reads.
    pub fn width(self) -> usize {
        match self {
            GuideInput::Chords(chords) => chords.width() as usize,
            GuideInput::Controls(controls) => controls.width() as usize,
        }
    }

    /// Positions of the row that hold weights.
    fn weights(self) -> std::ops::Range<usize> {
        match self {
            GuideInput::Controls(Controls { histogram: true, .. }) => {
                self.width() - 12..self.width()
            }
            _ => 0..0,
        }
    }

    /// Rows of the table: one with a 1 for each position, then the digits of each weight.
    pub fn rows(self) -> usize {
        self.width() + self.weights().len() * DIGITS as usize
    }

    /// The most rows of a step.
    pub fn active(self) -> usize {
        match self {
            GuideInput::Chords(ChordInput::Triads) => 1,
            GuideInput::Chords(ChordInput::Pitches) => 1 + 12 + 1,
            GuideInput::Controls(controls) => {
                usize::from(controls.density).max(usize::from(controls.optional))
                    + self.weights().len() * DIGITS as usize
            }
        }
    }

    /// Whether each row holds a single 1, in its own place.
    pub fn is_one_hot(self) -> bool {
        self.rows() == self.width()
    }

    /// Writes the table's entry: `row` of it at `position`.
    pub(crate) fn entry(self, row: usize, position: usize) -> f32 {
        let (width, weights) = (self.width(), self.weights());
        match row.checked_sub(width) {
            None => f32::from(row == position),
            Some(digit) => {
                let (weight, k) = (digit / DIGITS as usize, digit % DIGITS as usize + 1);
                let half = 0.5f32.powi(k as i32);
                if weights.start + weight == position { half } else { 0.0 }
            }
        }
    }
}

/// Writes the rows of a guide, step after step.
pub(crate) struct GuideReader {
    input: GuideInput,
    guide: Guide,
    /// What a performance has itself at each token.
    own: Vec<ControlValues>,
    row: Features,
}

impl GuideReader {
    /// Reads the guide of a piece; its tokens matter where it guides itself.
    pub fn new(input: GuideInput, guide: &Guide, tokens: &[u32]) -> GuideReader {
        let own = match guide {
            Guide::Itself => note_density(tokens)
                .into_iter()
                .zip(pitch_histogram(tokens))
                .map(|(density, histogram)| ControlValues { density, histogram })
                .collect(),
            _ => Vec::new(),
        };
        GuideReader { input, guide: guide.clone(), own, row: Features::default() }
    }

    /// Writes the rows of step `t`; what is left of `rows` has none.
    pub fn fill(&mut self, t: usize, rows: &mut [u32]) {
        rows.fill(NO_ROW);
        match self.input {
            GuideInput::Chords(input) => {
                let chord = match &self.guide {
                    Guide::Chords(track) => track.at(t),
                    _ => None,
                };
                // A chord that cannot be told is told as none, so that this cannot fail.
                let _ = input.fill(chord.filter(|chord| input.tells(chord)), &mut self.row);
            }
            GuideInput::Controls(controls) => {
                let values = match &self.guide {
                    Guide::Asked(values) => Some(values),
                    Guide::Itself => self.own.get(t),
                    _ => None,
                };
                controls.fill(values, &mut self.row);
            }
        }
        let mut slots = rows.iter_mut();
        let mut put = |row: u32| {
            if let Some(slot) = slots.next() {
                *slot = row;
            }
        };
        self.row.ones.iter().for_each(|&at| put(at));
        let (width, weights) = (self.input.width() as u32, self.input.weights());
        for &(at, weight) in &self.row.values {
            let digits = (weight * (1 << DIGITS) as f32).round() as u32;
            if digits >> DIGITS > 0 {
                put(at);
                continue;
            }
            let first = width + (at - weights.start as u32) * DIGITS;
            let set = (1..=DIGITS).filter(|k| digits >> (DIGITS - k) & 1 == 1);
            set.for_each(|k| put(first + k - 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chord::marked_chords;
    use crate::{Note, Track};

    fn track(told: &[(u64, &str)], ticks_per_quarter: u32) -> ChordTrack {
        let markers: Vec<Marker> =
            told.iter().map(|&(tick, text)| Marker { tick, text: text.into() }).collect();
        ChordTrack::of(&marked_chords(&markers).0, ticks_per_quarter)
    }

    fn symbols(track: &ChordTrack, steps: usize) -> String {
        let symbol = |t| track.at(t).map_or("-".to_string(), Chord::to_string);
        (0..steps).map(symbol).collect::<Vec<_>>().join(" ")
    }

    /// The row that the table's rows add up to.
    fn sum(input: GuideInput, rows: &[u32]) -> Vec<f32> {
        let of = |at| rows.iter().filter(|r| **r != NO_ROW).map(move |r| (*r as usize, at));
        (0..input.width()).map(|at| of(at).map(|(r, at)| input.entry(r, at)).sum()).collect()
    }

    #[test]
    fn chords_stand_at_their_nearest_steps_and_progressions_repeat() {
        // Sixteenths of 120 ticks: 59 is step 0, 300 is 2.5 and goes up; the later of two stays.
        let one = track(&[(59, "C"), (300, "F"), (330, "G7"), (600, "N.C.")], 480);
        assert_eq!(symbols(&one, 7), "C C C G7 G7 - -");
        assert_eq!(symbols(&one.transpose(-2), 4), "Bb Bb Bb F7");
        assert_eq!(symbols(&track(&[(480, "C")], 480), 6), "- - - - C C");
        let progression = Progression::parse("C Am | F").unwrap();
        let repeated = ChordTrack::repeated(&progression, 4).unwrap();
        assert_eq!(symbols(&repeated, 12), "C C Am Am F F F F C C Am Am");
        assert!(ChordTrack::repeated(&progression, 3).is_err());
        let told = repeated.markers(70, 24).into_iter().map(|m| (m.tick, m.text));
        let expected = [(0, "C"), (12, "Am"), (24, "F"), (48, "C"), (60, "Am")];
        assert!(told.eq(expected.map(|(tick, text)| (tick, text.to_string()))));
        let told = one.markers(25, 24).into_iter().map(|m| (m.tick, m.text));
        assert!(told.eq([(0, "C".to_string()), (18, "G7".to_string())]));
        let chords: Vec<String> = repeated.chords().iter().map(Chord::to_string).collect();
        assert_eq!(chords, ["C", "Am", "F"]);
    }

    #[test]
    fn a_piece_tells_its_chords_or_they_are_guessed() {
        let mut score = Score::new(4);
        let note = |(tick, pitch)| Note { tick, duration: 16, pitch, velocity: 90 };
        let notes = [(0, 60), (0, 64), (0, 67), (16, 57), (16, 60), (16, 64)];
        score.tracks.push(Track { notes: notes.map(note).to_vec(), ..Track::default() });
        let of = |score: &Score| symbols(&ChordTrack::of_score(score).unwrap(), 17);
        assert!(of(&score).starts_with("C C C") && of(&score).ends_with("C Am"));
        score.markers = vec![Marker { tick: 16, text: "F7".into() }];
        assert_eq!(of(&score).split(' ').filter(|chord| *chord == "F7").count(), 1);
        // A title is no chord: guessed again.
        score.markers = vec![Marker { tick: 16, text: "Refrain".into() }];
        assert!(of(&score).ends_with("C Am"));
    }

    #[test]
    fn chords_survive_as_text() {
        let one = track(&[(0, "C"), (96, "F#m7b5/A"), (100, "N.C."), (960, "C(add9)(no3)")], 24);
        let last = one.chords()[2].to_string();
        assert_eq!(one.to_text(), format!("0 C\n16 F#m7b5/A\n17 N.C.\n160 {last}\n"));
        assert_eq!(ChordTrack::from_text(&one.to_text()), Some(one));
        assert_eq!(ChordTrack::from_text("").map(|t| t.chords()), Some(vec![]));
        for wrong in ["C", "x C", "4 H", "4 C\n4 D", "5 C\n4 D"] {
            assert_eq!(ChordTrack::from_text(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn rows_of_chords_are_the_published_ones() {
        let guide = Guide::Chords(track(&[(0, "C"), (4, "Dm7/C"), (8, "Esus4"), (12, "N.C.")], 4));
        let rows = |input: ChordInput, t: usize| {
            let input = GuideInput::Chords(input);
            let mut rows = vec![7; input.active()];
            GuideReader::new(input, &guide, &[]).fill(t, &mut rows);
            assert!(input.is_one_hot() && input.rows() == input.width());
            rows.retain(|row| *row != NO_ROW);
            rows
        };
        let steps = [0, 3, 4, 8, 12, 99];
        // 1 + 12 * (0 major, 1 minor) + root; a suspended chord has no triad.
        assert_eq!(steps.map(|t| rows(ChordInput::Triads, t)[0]), [1, 1, 15, 0, 0, 0]);
        assert_eq!(rows(ChordInput::Pitches, 0), [1, 13, 17, 20, 25]);
        // D, with C, D, F, A, over C.
        assert_eq!(rows(ChordInput::Pitches, 4), [3, 13, 15, 18, 22, 25]);
        assert_eq!(rows(ChordInput::Pitches, 8), [5, 17, 22, 24, 29]);
        assert_eq!(rows(ChordInput::Pitches, 12), [0]);
        let untold = |input| match &guide {
            Guide::Chords(track) => track.untold(input),
            _ => unreachable!(),
        };
        assert_eq!([ChordInput::Triads, ChordInput::Pitches].map(untold), [1, 0]);
    }

    #[test]
    fn rows_of_controls_add_up_to_the_row_to_within_half_a_digit() {
        for (density, histogram, optional) in
            [(true, false, false), (false, true, false), (true, true, false), (true, true, true)]
        {
            let controls = Controls { density, histogram, optional };
            let input = GuideInput::Controls(controls);
            assert_eq!(input.is_one_hot(), !histogram);
            let mut shares = [0.0; 12];
            (shares[0], shares[4], shares[7]) = (3.0, 1.0, 2.0);
            let values = ControlValues { density: 5.0, histogram: shares };
            let mut rows = vec![0; input.active()];
            let mut fill = |guide: &Guide| {
                GuideReader::new(input, guide, &[]).fill(3, &mut rows);
                assert!(rows.iter().all(|r| *r == NO_ROW || (*r as usize) < input.rows()));
                sum(input, &rows)
            };
            let read = fill(&Guide::Asked(values));
            let (mut row, mut wanted) = (Features::default(), vec![0.0; input.width()]);
            controls.fill(Some(&values), &mut row);
            row.write(&mut wanted);
            for (at, (read, wanted)) in read.iter().zip(&wanted).enumerate() {
                // Half of the last of 12 digits.
                assert!((read - wanted).abs() <= 0.5f32.powi(13), "{at}: {read} {wanted}");
            }
            // One pitch class alone has all the weight; it is 1 and needs no digits.
            let alone =
                ControlValues { histogram: std::array::from_fn(|c| f32::from(c == 2)), ..values };
            if histogram {
                assert_eq!(fill(&Guide::Asked(alone))[input.width() - 10], 1.0);
            }
            let nothing = fill(&Guide::Nothing);
            if optional {
                assert_eq!(nothing[0], 1.0);
                assert!(nothing[1..].iter().all(|x| *x == 0.0));
            }
        }
    }

    #[test]
    fn a_performance_guides_itself_by_what_it_has_at_each_place() {
        // C and E at 0; after 1 s the E ends and G begins; after 2 s more all end.
        let tokens = [60, 64, 355, 128 + 64, 67, 355, 355, 128 + 60, 128 + 67];
        let controls = Controls { density: true, histogram: true, optional: false };
        let input = GuideInput::Controls(controls);
        let mut reader = GuideReader::new(input, &Guide::Itself, &tokens);
        let mut rows = vec![0; input.active()];
        let mut at = |t: usize| {
            reader.fill(t, &mut rows);
            sum(input, &rows)
        };
        // 1 note a second is bin 1, half a note bin 0, none bin 0.
        let first = at(0);
        assert_eq!(first[..8], [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        // 3 s of C, 1 s of E, 2 s of G and 0.01 s of each: 3.01, 1.01 and 2.01 of 6.12.
        for (class, seconds) in [(0, 3.01), (4, 1.01), (7, 2.01), (1, 0.01)] {
            assert!((first[8 + class] - seconds / 6.12).abs() <= 0.5f32.powi(13), "{class}");
        }
        assert_eq!([at(3)[0], at(8)[0]], [1.0, 1.0]);
        let moved = Guide::Asked(ControlValues {
            density: 2.0,
            histogram: std::array::from_fn(|class| class as f32),
        });
        let Guide::Asked(moved) = moved.transpose(-1) else { unreachable!() };
        // C sharp, of weight 1, has become C.
        assert_eq!((moved.histogram[0], moved.histogram[11]), (1.0, 0.0));
    }
}
