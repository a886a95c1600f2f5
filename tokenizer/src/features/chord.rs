//! A chord as input: by its triad, or by its root, tones and bass.
//!
//! A network that plays over chords reads the chord of the *next* event and behind it the row of
//! the event at hand ([`Features::append`]).
//!
//! # Source
//! Magenta, `TriadChordOneHotEncoding` and `PitchChordsEncoderDecoder` (Improv RNN), put before
//! the melody by `ConditionalEventSequenceEncoderDecoder`.

use super::{Features, Field, lay};
use crate::chord::{Chord, Quality};
use crate::{Error, Result};

/// How a chord is written as input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChordInput {
    /// One of 49: no chord, then the major, minor, augmented and diminished triads from C on.
    Triads,
    /// 37 positions: no chord, the root from C on, each pitch class that sounds, the bass.
    Pitches,
}

impl ChordInput {
    /// Positions of a row.
    pub fn width(&self) -> u32 {
        match self {
            ChordInput::Triads => 49,
            ChordInput::Pitches => 37,
        }
    }

    /// The fields of a row.
    pub fn fields(&self) -> Vec<Field> {
        match self {
            ChordInput::Triads => lay(&[
                ("no chord", 1),
                ("major on", 12),
                ("minor on", 12),
                ("augmented on", 12),
                ("diminished on", 12),
            ]),
            ChordInput::Pitches => {
                lay(&[("no chord", 1), ("root", 12), ("pitch classes", 12), ("bass", 12)])
            }
        }
    }

    /// Whether a chord can be written: triads only where it is made on one.
    pub fn tells(&self, chord: &Chord) -> bool {
        *self == ChordInput::Pitches || ChordInput::triad(Some(chord)).is_some()
    }

    /// The class of a chord's triad, 0 to 48; `None` if it is made on no triad.
    pub fn triad(chord: Option<&Chord>) -> Option<u32> {
        let Some(chord) = chord else { return Some(0) };
        let row = match chord.quality() {
            Quality::Major => 0,
            Quality::Minor => 1,
            Quality::Augmented => 2,
            Quality::Diminished => 3,
            Quality::Other => return None,
        };
        Some(1 + 12 * row + u32::from(chord.root()))
    }

    /// Writes the row of a chord.
    ///
    /// # Errors
    /// [`Error::Encoding`], naming the chord, if triads are asked for and it is made on none.
    pub fn fill(&self, chord: Option<&Chord>, row: &mut Features) -> Result<()> {
        row.clear();
        match (self, chord) {
            (ChordInput::Triads, _) => {
                let triad = ChordInput::triad(chord).ok_or_else(|| Error::Encoding {
                    scheme: "chord input".to_string(),
                    why: format!(
                        "{} has no major, minor, augmented or diminished triad",
                        chord.map(Chord::to_string).unwrap_or_default()
                    ),
                })?;
                row.ones.push(triad);
            }
            (ChordInput::Pitches, None) => row.ones.push(0),
            (ChordInput::Pitches, Some(chord)) => {
                row.ones.push(1 + u32::from(chord.root()));
                let tones = (0..12).filter(|class| chord.pitches() >> class & 1 == 1);
                row.ones.extend(tones.map(|class| 13 + class));
                row.ones.push(25 + u32::from(chord.bass()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::LookbackInput;
    use super::*;

    fn ones(input: ChordInput, symbol: &str) -> Vec<u32> {
        let mut row = Features::default();
        input.fill(Chord::parse(symbol).unwrap().as_ref(), &mut row).unwrap();
        assert!(row.values.is_empty());
        row.ones
    }

    #[test]
    fn triads_by_hand() {
        let triad = |symbol| ones(ChordInput::Triads, symbol);
        assert_eq!(triad("N.C."), [0]);
        assert_eq!((triad("C"), triad("B7")), (vec![1], vec![12]));
        assert_eq!((triad("Cm"), triad("Bm7")), (vec![13], vec![24]));
        assert_eq!((triad("C+"), triad("F#aug7")), (vec![25], vec![31]));
        // D diminished: 37 + 2. Half-diminished counts as diminished.
        assert_eq!((triad("Ddim"), triad("Bm7b5")), (vec![39], vec![48]));
        let mut row = Features::default();
        let sus = Chord::parse("Esus4").unwrap();
        let error = ChordInput::Triads.fill(sus.as_ref(), &mut row).unwrap_err();
        let expected = "chord input: Esus4 has no major, minor, augmented or diminished triad";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn pitches_by_hand() {
        let pitches = |symbol| ones(ChordInput::Pitches, symbol);
        assert_eq!(pitches("N.C."), [0]);
        // G7/B: root 7 at 1 + 7; D, F, G, B at 13 + 2, 5, 7, 11; bass B at 25 + 11.
        assert_eq!(pitches("G7/B"), [8, 15, 18, 20, 24, 36]);
        // A bass that is no tone of the chord is not among the pitches.
        assert_eq!(pitches("C/Bb"), [1, 13, 17, 20, 35]);
        assert_eq!(pitches("Esus4").len(), 5);
    }

    #[test]
    fn the_input_over_chords_is_the_chord_and_then_the_melody() {
        let (mut row, mut melody) = (Features::default(), Features::default());
        let f = Chord::parse("F").unwrap();
        ChordInput::Triads.fill(f.as_ref(), &mut row).unwrap();
        LookbackInput::melody().fill(&[14], 0, &mut melody);
        row.append(ChordInput::Triads.width(), &melody);
        assert_eq!(row.ones, [6, 49 + 14, 49 + 38, 49 + 76]);
        for input in [ChordInput::Triads, ChordInput::Pitches] {
            let last = input.fields().pop().unwrap();
            assert_eq!(last.first + last.width, input.width());
        }
    }
}
