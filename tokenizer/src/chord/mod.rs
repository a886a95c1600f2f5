//! Chords of a lead sheet: symbols such as `F#m7b5/A`, what sounds in them, and progressions.
//!
//! A chord is a root, a set of scale degrees above it and a bass. Degrees are those of the major
//! scale, raised or lowered; a 7 without a sign in a symbol is the lowered seventh, as musicians
//! read it. `None` stands for "no chord", written `N.C.`
//!
//! # Source
//! Magenta, `chord_symbols_lib`: kinds, modifications and qualities.

mod infer;
mod kinds;
mod marked;
mod parse;
mod progression;

pub use infer::infer_chords;
pub use marked::{
    ChordChange, chord_markers, chords_at_steps, marked_chords, read_chords, told_chords,
    with_chords,
};
pub use progression::Progression;

use kinds::KINDS;
use std::fmt;

/// The pitch classes by name.
const NAMES: [&str; 12] = ["C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B"];
/// How "no chord" is written.
pub(crate) const NO_CHORD: &str = "N.C.";
/// Semitones of the degrees 1 to 7 of a major scale.
const MAJOR: [i32; 7] = [0, 2, 4, 5, 7, 9, 11];
/// The highest degree of a chord.
const DEGREES: usize = 13;

/// The triad that a chord is made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quality {
    /// 1, 3, 5.
    Major,
    /// 1, lowered 3, 5.
    Minor,
    /// 1, 3, raised 5.
    Augmented,
    /// 1, lowered 3, lowered 5.
    Diminished,
    /// No such triad: suspended, without a third, altered otherwise.
    Other,
}

/// A chord.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Chord {
    root: u8,
    bass: u8,
    /// For each degree from 1 on, by how many semitones it is raised, if the chord has it.
    degrees: [Option<i8>; DEGREES],
}

impl Chord {
    /// Reads a chord symbol; `None` for `N.C.`.
    ///
    /// A root `A` to `G` with sharps or flats; a kind (`m`, `dim`, `maj7`, `7sus4`, `13`, ...);
    /// changes of degrees (`b5`, `#11`, `add9`, `no3`, in brackets or not); a bass (`/B`).
    ///
    /// # Errors
    /// [`crate::Error::Chord`], with the symbol and the place in it that is not understood.
    pub fn parse(symbol: &str) -> crate::Result<Option<Chord>> {
        parse::symbol(symbol)
    }

    /// Makes a chord of a kind by its written name, such as `m7`; `None` if there is no such kind.
    pub(crate) fn of_kind(root: u8, kind: &str) -> Option<Chord> {
        let kind = KINDS.iter().find(|known| known.names.contains(&kind))?;
        let root = root % 12;
        Some(Chord { root, bass: root, degrees: kind.degrees() })
    }

    /// The pitch class of the root, 0 for C.
    pub fn root(&self) -> u8 {
        self.root
    }

    /// The pitch class of the bass: the root where none is told.
    pub fn bass(&self) -> u8 {
        self.bass
    }

    /// The pitch classes that sound, bit 0 for C; a bass that is no degree is not among them.
    pub fn pitches(&self) -> u16 {
        let mut pitches = 0;
        for (degree, raised) in self.degrees.iter().enumerate() {
            if let Some(raised) = raised {
                let above = MAJOR[degree % 7] + i32::from(*raised);
                pitches |= 1 << (i32::from(self.root) + above).rem_euclid(12);
            }
        }
        pitches
    }

    /// The triad that the chord is made on.
    pub fn quality(&self) -> Quality {
        match [0, 2, 4].map(|degree: usize| self.degrees[degree]) {
            [Some(0), Some(0), Some(0)] => Quality::Major,
            [Some(0), Some(-1), Some(0)] => Quality::Minor,
            [Some(0), Some(0), Some(1)] => Quality::Augmented,
            [Some(0), Some(-1), Some(-1)] => Quality::Diminished,
            _ => Quality::Other,
        }
    }

    /// The chord so many semitones higher.
    pub fn transpose(&self, semitones: i32) -> Chord {
        let moved = |class: u8| (i32::from(class) + semitones.rem_euclid(12)).rem_euclid(12) as u8;
        Chord { root: moved(self.root), bass: moved(self.bass), degrees: self.degrees }
    }
}

impl fmt::Display for Chord {
    /// Writes the symbol with the kind that needs the fewest changes of degrees.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let changes = |kind: &&kinds::Kind| changes(&kind.degrees(), &self.degrees);
        let kind = KINDS.iter().min_by_key(|kind| changes(kind).len()).unwrap_or(&KINDS[0]);
        write!(f, "{}{}", NAMES[usize::from(self.root)], kind.names[0])?;
        for (how, degree) in changes(&kind) {
            write!(f, "({how}{degree})")?;
        }
        if self.bass != self.root {
            write!(f, "/{}", NAMES[usize::from(self.bass)])?;
        }
        Ok(())
    }
}

/// The changes in writing that make one set of degrees the other.
fn changes(from: &[Option<i8>; DEGREES], to: &[Option<i8>; DEGREES]) -> Vec<(&'static str, usize)> {
    let mut changes = Vec::new();
    for degree in 1..=DEGREES {
        let wanted = to[degree - 1];
        let mut raised = match (from[degree - 1], wanted) {
            (Some(_), None) => {
                changes.push(("no", degree));
                continue;
            }
            (None, Some(wanted)) => {
                // A written 7 is the lowered seventh.
                let plain = if degree == 7 { -1 } else { 0 };
                let sign = (wanted - plain).signum();
                // `b9` says enough; `b5` could be taken for a lowered fifth that is there.
                let ways = if degree > 7 { ["b", "add", "#"] } else { ["addb", "add", "add#"] };
                changes.push((ways[(sign + 1) as usize], degree));
                plain + sign
            }
            (Some(raised), Some(_)) => raised,
            (None, None) => continue,
        };
        let wanted = wanted.unwrap_or(raised);
        while raised != wanted {
            let sign = (wanted - raised).signum();
            changes.push((if sign > 0 { "#" } else { "b" }, degree));
            raised += sign;
        }
    }
    changes
}

/// Writes a chord or `N.C.`
pub(crate) fn symbol_of(chord: Option<&Chord>) -> String {
    chord.map_or_else(|| NO_CHORD.to_string(), Chord::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chord(symbol: &str) -> Chord {
        Chord::parse(symbol).unwrap().unwrap()
    }

    /// Root, pitch classes upwards from C, bass, quality.
    fn facts(symbol: &str) -> (u8, Vec<u8>, u8, Quality) {
        let chord = chord(symbol);
        let pitches = (0..12).filter(|class| chord.pitches() >> class & 1 == 1).collect();
        (chord.root(), pitches, chord.bass(), chord.quality())
    }

    #[test]
    fn symbols_mean_what_a_player_plays() {
        use Quality::{Augmented, Diminished, Major, Minor, Other};
        assert_eq!(facts("C"), (0, vec![0, 4, 7], 0, Major));
        assert_eq!(facts("Am"), (9, vec![0, 4, 9], 9, Minor));
        // F sharp, A, C, E.
        assert_eq!(facts("F#m7b5"), (6, vec![0, 4, 6, 9], 6, Diminished));
        // G, B, D, F over B.
        assert_eq!(facts("G7/B"), (7, vec![2, 5, 7, 11], 11, Major));
        assert_eq!(facts("Cmaj7"), (0, vec![0, 4, 7, 11], 0, Major));
        assert_eq!(facts("Dm7"), (2, vec![0, 2, 5, 9], 2, Minor));
        // B flat, D, F, A flat, C, E flat, G: all but A, B, C sharp, E, F sharp.
        assert_eq!(facts("Bb13"), (10, vec![0, 2, 3, 5, 7, 8, 10], 10, Major));
        assert_eq!(facts("Esus4"), (4, vec![4, 9, 11], 4, Other));
        assert_eq!(facts("Adim"), (9, vec![0, 3, 9], 9, Diminished));
        assert_eq!(facts("Co7"), (0, vec![0, 3, 6, 9], 0, Diminished));
        assert_eq!(facts("Eb+"), (3, vec![3, 7, 11], 3, Augmented));
        assert_eq!(facts("D7#9"), (2, vec![0, 2, 5, 6, 9], 2, Major));
        assert_eq!(facts("Cm(maj7)"), (0, vec![0, 3, 7, 11], 0, Minor));
        assert_eq!(facts("C(add9)(no3)"), (0, vec![0, 2, 7], 0, Other));
        assert_eq!(facts("G6/9"), (7, vec![2, 4, 7, 9, 11], 7, Major));
        // The bass is no tone of the chord.
        assert_eq!(facts("C/Bb"), (0, vec![0, 4, 7], 10, Major));
        assert_eq!(facts("Cb"), (11, vec![3, 6, 11], 11, Major));
        assert_eq!(facts("B#5"), (0, vec![0, 7], 0, Other));
        assert_eq!(Chord::parse("N.C."), Ok(None));
        assert_eq!(Chord::parse("NC"), Ok(None));
    }

    #[test]
    fn one_chord_has_many_spellings() {
        for (one, other) in [
            ("F#m7b5", "Gbm7(b5)"),
            ("Bø7", "Bm7b5"),
            ("C°7", "Cdim7"),
            ("CΔ", "CM7"),
            ("Dmin7", "D-7"),
            ("A♭7", "G#7"),
            ("E7sus", "Esus7"),
            ("E7sus4", "E7sus"),
            ("C7(b9,#11)", "C7b9#11"),
            ("Caug7", "C7#5"),
            ("C69", "C6/9"),
        ] {
            assert_eq!(chord(one), chord(other), "{one} {other}");
        }
    }

    #[test]
    fn what_is_written_is_read_as_the_same_chord() {
        let changes = ["", "b5", "#5", "b9", "#9", "#11", "b13", "add2", "add9", "no5", "add#9"];
        let mut read = 0;
        for root in ["C", "F#", "Bb", "E"] {
            for kind in KINDS.iter().flat_map(|kind| kind.names) {
                for change in changes {
                    for bass in ["", "/G", "/F#"] {
                        let change =
                            if change.is_empty() { String::new() } else { format!("({change})") };
                        let symbol = format!("{root}{kind}{change}{bass}");
                        // Not every kind has the degree to change.
                        let Ok(Some(chord)) = Chord::parse(&symbol) else { continue };
                        let written = chord.to_string();
                        assert_eq!(Chord::parse(&written), Ok(Some(chord)), "{symbol} {written}");
                        read += 1;
                    }
                }
            }
        }
        assert!(read > 10_000, "{read}");
        assert_eq!(chord("Gbmin7b5/A").to_string(), "F#m7b5/A");
        assert_eq!(chord("C7(b9)").to_string(), "C7(b9)");
    }

    #[test]
    fn moving_a_chord_moves_root_bass_and_pitches() {
        let moved = chord("G7/B").transpose(-3);
        assert_eq!(moved.to_string(), "E7/Ab");
        assert_eq!(moved.transpose(15), chord("G7/B"));
        assert_eq!(moved.transpose(i32::MAX).transpose(i32::MIN), moved.transpose(-1));
    }
}
