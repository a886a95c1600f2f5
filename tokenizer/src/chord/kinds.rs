//! The kinds of chords: how they are written, and their degrees.

use super::DEGREES;

/// A kind of chord.
pub(super) struct Kind {
    /// How it is written; the first is the way in which it is written here.
    pub(super) names: &'static [&'static str],
    /// Degrees of the major scale, and by how many semitones each is raised.
    with: &'static [(usize, i8)],
}

impl Kind {
    pub(super) fn degrees(&self) -> [Option<i8>; DEGREES] {
        let mut degrees = [None; DEGREES];
        self.with.iter().for_each(|&(degree, raised)| degrees[degree - 1] = Some(raised));
        degrees
    }
}

const fn kind(names: &'static [&'static str], with: &'static [(usize, i8)]) -> Kind {
    Kind { names, with }
}

/// The kinds, triads first.
pub(super) const KINDS: [Kind; 36] = [
    kind(&["", "maj", "M", "Maj"], &[(1, 0), (3, 0), (5, 0)]),
    kind(&["m", "min", "-", "mi"], &[(1, 0), (3, -1), (5, 0)]),
    kind(&["aug", "+"], &[(1, 0), (3, 0), (5, 1)]),
    kind(&["dim", "o", "°"], &[(1, 0), (3, -1), (5, -1)]),
    kind(&["7", "dom7"], &[(1, 0), (3, 0), (5, 0), (7, -1)]),
    kind(&["maj7", "M7", "Maj7", "ma7", "Δ", "Δ7", "^", "^7"], &[(1, 0), (3, 0), (5, 0), (7, 0)]),
    kind(&["m7", "min7", "-7", "mi7"], &[(1, 0), (3, -1), (5, 0), (7, -1)]),
    kind(&["dim7", "o7", "°7"], &[(1, 0), (3, -1), (5, -1), (7, -2)]),
    kind(&["aug7", "+7"], &[(1, 0), (3, 0), (5, 1), (7, -1)]),
    kind(&["m7b5", "-7b5", "min7b5", "ø", "ø7", "/o", "/o7"], &[(1, 0), (3, -1), (5, -1), (7, -1)]),
    kind(
        &[
            "m(maj7)",
            "mmaj7",
            "mM7",
            "m(M7)",
            "minmaj7",
            "minM7",
            "min(maj7)",
            "min(M7)",
            "-maj7",
            "-M7",
            "-(maj7)",
            "-(M7)",
        ],
        &[(1, 0), (3, -1), (5, 0), (7, 0)],
    ),
    kind(&["6", "maj6", "M6"], &[(1, 0), (3, 0), (5, 0), (6, 0)]),
    kind(&["m6", "min6", "-6"], &[(1, 0), (3, -1), (5, 0), (6, 0)]),
    kind(&["9"], &[(1, 0), (3, 0), (5, 0), (7, -1), (9, 0)]),
    kind(&["maj9", "M9"], &[(1, 0), (3, 0), (5, 0), (7, 0), (9, 0)]),
    kind(&["m9", "min9", "-9"], &[(1, 0), (3, -1), (5, 0), (7, -1), (9, 0)]),
    kind(&["aug9", "+9"], &[(1, 0), (3, 0), (5, 1), (7, -1), (9, 0)]),
    kind(&["6/9", "69"], &[(1, 0), (3, 0), (5, 0), (6, 0), (9, 0)]),
    kind(&["m6/9", "m69", "-6/9"], &[(1, 0), (3, -1), (5, 0), (6, 0), (9, 0)]),
    kind(&["11"], &[(1, 0), (3, 0), (5, 0), (7, -1), (9, 0), (11, 0)]),
    kind(&["maj11", "M11"], &[(1, 0), (3, 0), (5, 0), (7, 0), (9, 0), (11, 0)]),
    kind(&["m11", "min11", "-11"], &[(1, 0), (3, -1), (5, 0), (7, -1), (9, 0), (11, 0)]),
    kind(&["13"], &[(1, 0), (3, 0), (5, 0), (7, -1), (9, 0), (11, 0), (13, 0)]),
    kind(&["maj13", "M13"], &[(1, 0), (3, 0), (5, 0), (7, 0), (9, 0), (11, 0), (13, 0)]),
    kind(&["m13", "min13", "-13"], &[(1, 0), (3, -1), (5, 0), (7, -1), (9, 0), (11, 0), (13, 0)]),
    kind(&["sus2"], &[(1, 0), (2, 0), (5, 0)]),
    kind(&["sus4", "sus"], &[(1, 0), (4, 0), (5, 0)]),
    kind(&["7sus", "sus7", "7sus4"], &[(1, 0), (4, 0), (5, 0), (7, -1)]),
    kind(&["7sus2"], &[(1, 0), (2, 0), (5, 0), (7, -1)]),
    kind(&["9sus4", "9sus"], &[(1, 0), (4, 0), (5, 0), (7, -1), (9, 0)]),
    kind(&["13sus4", "13sus"], &[(1, 0), (4, 0), (5, 0), (7, -1), (9, 0), (13, 0)]),
    kind(&["ped"], &[(1, 0)]),
    kind(&["5"], &[(1, 0), (5, 0)]),
    kind(&["2"], &[(1, 0), (2, 0), (3, 0), (5, 0)]),
    kind(&["m2"], &[(1, 0), (2, 0), (3, -1), (5, 0)]),
    kind(&["maj7#11", "M7#11"], &[(1, 0), (3, 0), (5, 0), (7, 0), (11, 1)]),
];

/// The kinds by their names in MusicXML, as some files write them.
pub(super) const MUSICXML: [(&str, &str); 27] = [
    ("major", ""),
    ("minor", "m"),
    ("augmented", "aug"),
    ("diminished", "dim"),
    ("dominant", "7"),
    ("dominant-seventh", "7"),
    ("major-seventh", "maj7"),
    ("minor-seventh", "m7"),
    ("diminished-seventh", "dim7"),
    ("augmented-seventh", "aug7"),
    ("half-diminished", "m7b5"),
    ("major-minor", "m(maj7)"),
    ("minor-major", "m(maj7)"),
    ("major-sixth", "6"),
    ("minor-sixth", "m6"),
    ("dominant-ninth", "9"),
    ("major-ninth", "maj9"),
    ("minor-ninth", "m9"),
    ("dominant-11th", "11"),
    ("major-11th", "maj11"),
    ("minor-11th", "m11"),
    ("dominant-13th", "13"),
    ("major-13th", "maj13"),
    ("minor-13th", "m13"),
    ("suspended-second", "sus2"),
    ("suspended-fourth", "sus4"),
    ("power", "5"),
];
