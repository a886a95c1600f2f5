//! Guesses the chords of a piece from its notes, half a bar at a time.
//!
//! A bar is halved where it has an even number of beats and at least three quarter notes. How long
//! each pitch class sounds in a half is compared, by the cosine, with each of 96 chords (major,
//! minor, augmented, diminished, and the four common sevenths, on 12 roots) and with "no chord",
//! which is like nothing. Of all ways through the piece the most likely is taken (Viterbi):
//!
//! `sum over halves of 100 cos(half, chord) + ln p(chord | chord before)`
//!
//! with even odds that the chord stays; a new one is likely by how many of its tones are in the
//! key of the piece, 0.99 for each inside and 0.01 for each outside.
//!
//! # Source
//! Magenta, `chord_inference`, with the key found beforehand (Krumhansl & Kessler) and held,
//! where Magenta searches keys and chords together.

use super::{Chord, ChordChange};
use crate::{Bars, Error, Note, Result, Score, find_key};

/// The kinds that are looked for.
const KINDS: [&str; 8] = ["", "m", "aug", "dim", "7", "maj7", "m7", "m7b5"];
/// Chords on 12 roots, and none.
const STATES: usize = 1 + 12 * KINDS.len();
/// The most halves of bars.
const MAX_FRAMES: u64 = 1 << 14;
/// How much a likeness weighs.
const CONCENTRATION: f64 = 100.0;
const CHANGE: f64 = 0.5;
const OUT_OF_KEY: f64 = 0.01;
/// Programs from here on have no pitch to speak of: percussion and sound effects.
const UNPITCHED: u8 = 112;
/// The pitch classes of C major.
const SCALE: u16 = 0b1010_1011_0101;

/// Guesses the chords of a piece; empty without notes.
///
/// # Errors
/// [`Error::Encoding`] if the piece has more than 16,384 halves of bars.
pub fn infer_chords(score: &Score) -> Result<Vec<ChordChange>> {
    let tracks = || score.tracks.iter().filter(|t| !t.is_drum && t.program < UNPITCHED);
    let notes: Vec<Note> = tracks().flat_map(|track| track.notes.iter().copied()).collect();
    let frames = frames(score, &notes)?;
    if frames.is_empty() {
        return Ok(Vec::new());
    }
    let chords = chords();
    let path = most_likely(&sounding(&frames, &notes), &chords, scale(&notes));
    let mut changes: Vec<ChordChange> = Vec::new();
    for (&(tick, _), state) in frames.iter().zip(path) {
        if changes.last().is_none_or(|last| last.chord != chords[state]) {
            changes.push(ChordChange { tick, chord: chords[state] });
        }
    }
    Ok(changes)
}

/// No chord, then by root and kind.
fn chords() -> Vec<Option<Chord>> {
    let all = (0..12).flat_map(|root| KINDS.map(|kind| Chord::of_kind(root, kind)));
    std::iter::once(None).chain(all).collect()
}

/// The pitch classes of the piece's key.
fn scale(notes: &[Note]) -> u16 {
    let (tonic, minor) = find_key(notes);
    let tonic = (u32::from(tonic) + if minor { 3 } else { 0 }) % 12;
    (0..12).filter(|class| SCALE >> class & 1 == 1).fold(0, |all, c| all | 1 << ((c + tonic) % 12))
}

/// Where each half of a bar begins, and its length, to the end of the last note.
fn frames(score: &Score, notes: &[Note]) -> Result<Vec<(u64, u64)>> {
    let end = notes.iter().map(|note| note.tick.saturating_add(note.duration)).max().unwrap_or(0);
    let bars = Bars::of(score);
    let too_long = |halves: u64| Error::Encoding {
        scheme: "chords".to_string(),
        why: format!("{halves} bars or halves of bars; at most {MAX_FRAMES} are looked at"),
    };
    let count = bars.count(end);
    if count > MAX_FRAMES {
        return Err(too_long(count));
    }
    let mut frames = Vec::new();
    for bar in 0..count {
        let start = bars.start(bar);
        // A change of metre may cut a bar short.
        let length = bars.length_at(start).min(bars.start(bar + 1).saturating_sub(start)).max(1);
        let beats = length / bars.beat_at(start);
        let halved = beats.is_multiple_of(2)
            && length.is_multiple_of(2)
            && length >= 3 * u64::from(score.ticks_per_quarter.max(1));
        let each = if halved { length / 2 } else { length };
        frames.extend((0..length / each).map(|half| (start + half * each, each)));
    }
    match frames.len() as u64 > MAX_FRAMES {
        true => Err(too_long(frames.len() as u64)),
        false => Ok(frames),
    }
}

/// How long each pitch class sounds in each frame.
fn sounding(frames: &[(u64, u64)], notes: &[Note]) -> Vec<[f64; 12]> {
    let mut sounding = vec![[0.0; 12]; frames.len()];
    // A note that fills many frames is told at its ends, so that each note costs the same.
    let mut filling = vec![[0i64; 12]; frames.len() + 1];
    let frame_of = |tick: u64| frames.partition_point(|&(from, _)| from <= tick).max(1) - 1;
    for note in notes.iter().filter(|note| note.duration > 0) {
        let end = note.tick.saturating_add(note.duration);
        let (first, last) = (frame_of(note.tick), frame_of(end - 1));
        let class = usize::from(note.pitch % 12);
        if first == last {
            sounding[first][class] += note.duration as f64;
            continue;
        }
        sounding[first][class] += frames[first + 1].0.saturating_sub(note.tick) as f64;
        sounding[last][class] += (end - frames[last].0) as f64;
        filling[first + 1][class] += 1;
        filling[last][class] -= 1;
    }
    let mut filled = [0; 12];
    for ((frame, sounding), filling) in frames.iter().zip(&mut sounding).zip(&filling) {
        for class in 0..12 {
            filled[class] += filling[class];
            sounding[class] += filled[class] as f64 * frame.1 as f64;
        }
    }
    sounding
}

/// The state of each frame on the most likely way.
fn most_likely(sounding: &[[f64; 12]], chords: &[Option<Chord>], scale: u16) -> Vec<usize> {
    let pitches: Vec<u16> = chords.iter().map(|c| c.map_or(0, |c| c.pitches())).collect();
    let weight = |pitches: u16| {
        let (inside, outside) = (pitches & scale, pitches & !scale);
        (1.0 - OUT_OF_KEY).powi(inside.count_ones() as i32)
            * OUT_OF_KEY.powi(outside.count_ones() as i32)
    };
    let sum: f64 = pitches.iter().map(|&p| weight(p)).sum();
    let likely: Vec<f64> = pitches.iter().map(|&p| weight(p) / sum).collect();
    let like = |frame: &[f64; 12], state: usize| {
        let norm = frame.iter().map(|time| time * time).sum::<f64>().sqrt();
        let tones = (0..12).filter(|class| pitches[state] >> class & 1 == 1);
        let dot: f64 = tones.map(|class| frame[class]).sum();
        let count = f64::from(pitches[state].count_ones()).sqrt();
        if norm > 0.0 && count > 0.0 { CONCENTRATION * dot / (norm * count) } else { 0.0 }
    };
    let mut change = vec![0.0; STATES * STATES];
    for from in 0..STATES {
        for to in 0..STATES {
            // What the chord before would have had is shared by the others.
            let new = likely[to] + likely[from] / (STATES - 1) as f64;
            let odds = if from == to { 1.0 - CHANGE } else { CHANGE * new };
            change[from * STATES + to] = odds.ln();
        }
    }
    let mut score: Vec<f64> =
        (0..STATES).map(|state| likely[state].ln() + like(&sounding[0], state)).collect();
    let mut before: Vec<[u8; STATES]> = vec![[0; STATES]];
    for frame in &sounding[1..] {
        let (mut next, mut best) = (vec![f64::NEG_INFINITY; STATES], [0; STATES]);
        for from in 0..STATES {
            let row = &change[from * STATES..][..STATES];
            for to in 0..STATES {
                let through = score[from] + row[to];
                if through > next[to] {
                    (next[to], best[to]) = (through, from as u8);
                }
            }
        }
        for (state, next) in next.iter_mut().enumerate() {
            *next += like(frame, state);
        }
        score = next;
        before.push(best);
    }
    // Of equal ways the first.
    let last =
        (0..STATES).fold(0, |best, state| if score[state] > score[best] { state } else { best });
    let mut path = vec![last];
    for best in before[1..].iter().rev() {
        path.push(usize::from(best[path[path.len() - 1]]));
    }
    path.reverse();
    path
}

#[cfg(test)]
mod tests {
    use super::super::chord_markers;
    use super::*;
    use crate::{Meter, Track};

    /// Block chords of so many ticks each, at 4 ticks a quarter.
    fn blocks(chords: &[&[u8]], length: u64) -> Score {
        let mut score = Score::new(4);
        let mut notes = Vec::new();
        for (i, chord) in (0..).zip(chords) {
            let note =
                |&pitch: &u8| Note { tick: i * length, duration: length, pitch, velocity: 90 };
            notes.extend(chord.iter().map(note));
        }
        notes.sort();
        score.tracks.push(Track { notes, ..Track::default() });
        score
    }

    fn guessed(score: &Score) -> Vec<(u64, String)> {
        let changes = infer_chords(score).unwrap();
        chord_markers(&changes).into_iter().map(|m| (m.tick, m.text)).collect()
    }

    #[test]
    fn block_chords_are_named() {
        // Half bars of 8 ticks: C, A minor, D minor seventh, G seventh, C for two.
        let c: &[u8] = &[48, 64, 67, 72];
        let score = blocks(&[c, &[57, 60, 64], &[50, 60, 65, 69], &[55, 59, 62, 65], c, c], 8);
        let expected = [(0, "C"), (8, "Am"), (16, "Dm7"), (24, "G7"), (32, "C")];
        assert_eq!(guessed(&score), expected.map(|(tick, text)| (tick, text.to_string())));
    }

    #[test]
    fn a_waltz_has_one_chord_a_bar_and_a_held_note_counts_in_each() {
        let mut score = blocks(&[&[60, 64, 67], &[65, 69, 72], &[60, 64, 67]], 12);
        score.meters.push(Meter { tick: 0, numerator: 3, denominator: 4 });
        let notes = &mut score.tracks[0].notes;
        // C held through all three bars.
        notes.insert(0, Note { tick: 0, duration: 36, pitch: 48, velocity: 90 });
        let names: Vec<_> = guessed(&score).into_iter().collect();
        let expected =
            [(0, "C"), (12, "F"), (24, "C")].map(|(tick, text)| (tick, text.to_string()));
        assert_eq!(names, expected);
    }

    #[test]
    fn sounding_is_the_same_as_adding_frame_by_frame() {
        let frames: Vec<(u64, u64)> = (0..20).map(|i| (i * 7, 7)).collect();
        let mut notes = Vec::new();
        for i in 0..200u64 {
            let mixed = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            let (tick, pitch) = (mixed % 130, (mixed % 128) as u8);
            notes.push(Note { tick, duration: 1 + mixed / 128 % (140 - tick), pitch, velocity: 1 });
        }
        let mut expected = vec![[0.0; 12]; 20];
        for note in &notes {
            for tick in note.tick..note.tick + note.duration {
                expected[(tick / 7) as usize][usize::from(note.pitch % 12)] += 1.0;
            }
        }
        // Sums of integers below 2^53 are exact.
        assert_eq!(sounding(&frames, &notes), expected);
    }

    #[test]
    fn silence_has_no_chords_and_endless_pieces_are_refused() {
        assert_eq!(infer_chords(&Score::new(480)).unwrap(), []);
        let mut score = blocks(&[&[60, 64, 67]], 8);
        score.tracks[0].is_drum = true;
        assert_eq!(infer_chords(&score).unwrap(), []);
        let mut score = Score::new(1);
        let note = Note { tick: u64::MAX, duration: u64::MAX, pitch: 60, velocity: 90 };
        score.tracks.push(Track { notes: vec![note], ..Track::default() });
        assert!(infer_chords(&score).unwrap_err().to_string().starts_with("chords: "));
        // A million notes in a piece that is short enough.
        let note =
            |i: u64| Note { tick: i % 1000, duration: 64_000, pitch: (i % 128) as u8, velocity: 1 };
        let notes = (0..1_000_000).map(note).collect();
        score.tracks = vec![Track { notes, ..Track::default() }];
        assert!(infer_chords(&score).is_err());
        score.tracks[0].notes.iter_mut().for_each(|note| note.duration = 1 << 14);
        assert!(!infer_chords(&score).unwrap().is_empty());
    }
}
