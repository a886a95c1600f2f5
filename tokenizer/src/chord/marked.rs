//! Chords that a file tells: symbols as markers, texts or lyrics, and the chord at each step.

use super::kinds::MUSICXML;
use super::{Chord, symbol_of};
use crate::{Marker, Reading, Score};

/// A chord, from a tick on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChordChange {
    /// Where it begins, in ticks.
    pub tick: u64,
    /// The chord; `None` for no chord.
    pub chord: Option<Chord>,
}

/// Finds the chords among markers, and counts the markers that are none.
///
/// A marker is a symbol, as [`Chord::parse`] reads it, or a root, a kind by its MusicXML name and
/// perhaps a bass, such as `C#:minor-seventh/4`. Of two at one tick the later stays; a chord that
/// is told again is no change.
pub fn marked_chords(markers: &[Marker]) -> (Vec<ChordChange>, usize) {
    let mut changes: Vec<ChordChange> = Vec::new();
    let mut others = 0;
    for marker in markers {
        match read(&marker.text) {
            Some(chord) => {
                changes.pop_if(|last| last.tick >= marker.tick);
                if changes.last().is_none_or(|last| last.chord != chord) {
                    changes.push(ChordChange { tick: marker.tick, chord });
                }
            }
            None => others += 1,
        }
    }
    (changes, others)
}

/// Finds the chords that a file tells: by its markers, else its texts, else its lyrics.
///
/// Of these the first counts of which at least half are chords. Single letters that run through
/// the alphabet from A on are rehearsal marks, not chords.
pub fn read_chords(reading: &Reading) -> Vec<ChordChange> {
    let told = [&reading.score.markers, &reading.texts, &reading.lyrics].into_iter();
    told.map(|told| told_chords(told)).find(|changes| !changes.is_empty()).unwrap_or_default()
}

/// The chords that texts tell; none where less than half of them are chords, or where they are
/// rehearsal marks.
pub fn told_chords(told: &[Marker]) -> Vec<ChordChange> {
    let (changes, others) = marked_chords(told);
    let rehearsal =
        (b'A'..=b'Z').zip(told).all(|(letter, marker)| marker.text.as_bytes() == [letter]);
    if 2 * others <= told.len() && !rehearsal { changes } else { Vec::new() }
}

/// The music of a file, with the chords that its texts or lyrics tell as markers where its markers
/// tell none.
pub fn with_chords(reading: Reading) -> Score {
    let chords = read_chords(&reading);
    let mut score = reading.score;
    if !chords.is_empty() && told_chords(&score.markers).is_empty() {
        score.markers = chord_markers(&chords);
    }
    score
}

fn read(text: &str) -> Option<Option<Chord>> {
    let Some((root, rest)) = text.split_once(':') else { return Chord::parse(text).ok() };
    let root = Chord::parse(root).ok()??.root();
    let (kind, bass) = rest.split_once('/').map_or((rest, None), |(kind, bass)| (kind, Some(bass)));
    let (_, kind) = MUSICXML.iter().find(|(name, _)| *name == kind)?;
    let mut chord = Chord::of_kind(root, kind)?;
    if let Some(bass) = bass {
        chord.bass = bass.parse::<u8>().ok().filter(|&class| class < 12)?;
    }
    Some(Some(chord))
}

/// Writes chords as markers.
pub fn chord_markers(changes: &[ChordChange]) -> Vec<Marker> {
    let marker = |c: &ChordChange| Marker { tick: c.tick, text: symbol_of(c.chord.as_ref()) };
    changes.iter().map(marker).collect()
}

/// The chord at each of so many steps; before the first change there is none. A change counts
/// from the step nearest to it.
pub fn chords_at_steps(
    changes: &[ChordChange],
    ticks_per_quarter: u32,
    steps_per_quarter: u32,
    steps: usize,
) -> Vec<Option<Chord>> {
    let (from, to) = (u128::from(ticks_per_quarter.max(1)), u128::from(steps_per_quarter));
    let mut begins: Vec<Option<&ChordChange>> = vec![None; steps];
    for change in changes {
        let step = (2 * u128::from(change.tick) * to + from) / (2 * from);
        let step = usize::try_from(step).unwrap_or(usize::MAX).min(steps);
        // Of several on one step the last stays.
        if let Some(begin) = begins.get_mut(step) {
            *begin = Some(change);
        }
    }
    let mut chord = None;
    let mut at_step = |begin: Option<&ChordChange>| {
        chord = begin.map_or(chord, |change| change.chord);
        chord
    };
    begins.into_iter().map(&mut at_step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn markers(texts: &[(u64, &str)]) -> Vec<Marker> {
        texts.iter().map(|&(tick, text)| Marker { tick, text: text.into() }).collect()
    }

    fn symbols(changes: &[ChordChange]) -> Vec<(u64, String)> {
        chord_markers(changes).into_iter().map(|m| (m.tick, m.text)).collect()
    }

    #[test]
    fn markers_are_read_in_both_spellings() {
        let told = [
            (0, "C:major"),
            (480, "C"),
            (960, "G:dominant/11"),
            (960, "C#:minor-seventh/4"),
            (1440, "Refrain"),
            (1920, "N.C."),
            (2400, "Bb:half-diminished"),
        ];
        let (changes, others) = marked_chords(&markers(&told));
        let expected = [(0, "C"), (960, "C#m7/E"), (1920, "N.C."), (2400, "Bbm7b5")];
        assert_eq!(symbols(&changes), expected.map(|(tick, text)| (tick, text.to_string())));
        assert_eq!(others, 1);
        for wrong in
            ["C:", ":major", "C:major/12", "C:major/x", "C:unheard", "H:major", "N.C.:major"]
        {
            assert_eq!(marked_chords(&markers(&[(0, wrong)])), (vec![], 1), "{wrong}");
        }
    }

    #[test]
    fn texts_and_lyrics_of_a_file_are_chords_where_most_of_them_are() {
        // Meta events 1 text, 5 lyric, 6 marker.
        let file = |events: &[(u8, &str)]| {
            let mut track = Vec::new();
            for (kind, text) in events {
                track.extend([96, 0xff, *kind, text.len() as u8]);
                track.extend(text.as_bytes());
            }
            track.extend([0, 0x90, 60, 64, 96, 0x80, 60, 0, 0, 0xff, 0x2f, 0]);
            let mut bytes = b"MThd\0\0\0\x06\0\0\0\x01\0\x60MTrk\0\0\0".to_vec();
            bytes.push(track.len() as u8);
            bytes.extend(track);
            Score::from_midi(&bytes).unwrap()
        };
        let read = |events: &[(u8, &str)]| symbols(&read_chords(&file(events)));
        let chords = [(96, "Am".to_string()), (192, "G7".to_string())];
        assert_eq!(read(&[(6, "Am"), (6, "G7")]), chords);
        assert_eq!(read(&[(1, "Am"), (1, "G7"), (5, "la")]), chords);
        assert_eq!(read(&[(5, "Am"), (5, "G7")]), chords);
        let kept = |events: &[(u8, &str)]| with_chords(file(events)).markers;
        assert_eq!(kept(&[(5, "Am"), (5, "G7")]), kept(&[(6, "Am"), (6, "G7")]));
        assert_eq!(kept(&[(6, "Coda"), (5, "la")]), file(&[(6, "Coda")]).score.markers);
        // A song's words, with "A" among them; rehearsal marks.
        assert_eq!(read(&[(5, "A"), (5, "mighty"), (5, "fortress")]), []);
        assert_eq!(read(&[(6, "A"), (6, "B"), (6, "C")]), []);
        assert_eq!(file(&[(6, "A")]).score, {
            let mut score = file(&[(1, "B")]).score;
            score.markers = markers(&[(96, "A")]);
            score
        });
    }

    #[test]
    fn each_step_has_the_chord_nearest_to_it() {
        let (changes, _) = marked_chords(&markers(&[(59, "C"), (300, "F"), (420, "N.C.")]));
        // Sixteenths of 120 ticks: 59 is step 0, 300 is 2.5 and goes up, 420 is 3.5.
        let steps = chords_at_steps(&changes, 480, 4, 6);
        let text: Vec<String> = steps.iter().map(|chord| symbol_of(chord.as_ref())).collect();
        assert_eq!(text, ["C", "C", "C", "F", "N.C.", "N.C."]);
        assert_eq!(chords_at_steps(&changes, 0, u32::MAX, 0), []);
        let late = [ChordChange { tick: u64::MAX, chord: None }];
        assert_eq!(chords_at_steps(&late, 1, u32::MAX, 2), [None, None]);
        assert_eq!(chords_at_steps(&[], 480, 4, 1), [None]);
    }
}
