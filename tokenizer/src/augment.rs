//! More pieces out of one: in other keys and at other speeds.

use crate::{Score, Track};

/// Moves all pitches by so many semitones; drums stay, key signatures move along.
///
/// `None` if a note would leave the MIDI range of 0 to 127.
pub fn transpose(score: &Score, semitones: i32) -> Option<Score> {
    let mut moved = score.clone();
    for note in moved.tracks.iter_mut().filter(|t| !t.is_drum).flat_map(|t| &mut t.notes) {
        let pitch = i32::from(note.pitch).checked_add(semitones)?;
        note.pitch = u8::try_from(pitch).ok().filter(|&pitch| pitch < 128)?;
    }
    for key in &mut moved.keys {
        // Seven semitones up are one sharp more; of the keys that sound the same the one with the
        // fewest accidentals, six flats before six sharps.
        let fifths = (i32::from(key.sharps) + 7 * semitones.rem_euclid(12)).rem_euclid(12);
        key.sharps = if fifths > 5 { fifths - 12 } else { fifths } as i8;
    }
    Some(moved)
}

/// Stretches time by a factor: above 1 is slower. Notes stay where they are in the bar; the
/// tempos change.
///
/// `None` if the factor is not a positive finite number, or a tempo would leave what MIDI holds
/// (1 to 16,777,215 microseconds a quarter note).
pub fn stretch(score: &Score, factor: f64) -> Option<Score> {
    if !(factor.is_finite() && factor > 0.0) {
        return None;
    }
    let mut stretched = score.clone();
    if stretched.tempos.first().is_none_or(|tempo| tempo.tick > 0) {
        stretched.tempos.insert(0, crate::Tempo { tick: 0, micros_per_quarter: 500_000 });
    }
    for tempo in &mut stretched.tempos {
        let micros = (f64::from(tempo.micros_per_quarter) * factor).round();
        if !(1.0..16_777_216.0).contains(&micros) {
            return None;
        }
        tempo.micros_per_quarter = micros as u32;
    }
    Some(stretched)
}

/// Stretches the notes themselves by `up / down` on their grid, as for a score in steps of 10 ms,
/// whose time is its ticks: everything with a tick moves, and a note keeps at least one tick.
///
/// `None` if either number is 0.
pub fn stretch_ticks(score: &Score, up: u32, down: u32) -> Option<Score> {
    if up == 0 || down == 0 {
        return None;
    }
    let (up, down) = (u128::from(up), u128::from(down));
    let at = |tick: u64| {
        u64::try_from((2 * u128::from(tick) * up + down) / (2 * down)).unwrap_or(u64::MAX)
    };
    let mut stretched = score.clone();
    for Track { notes, pedals, .. } in &mut stretched.tracks {
        for note in notes.iter_mut() {
            let end = at(note.tick.saturating_add(note.duration));
            note.tick = at(note.tick);
            note.duration = end.saturating_sub(note.tick).max(1);
        }
        notes.sort_by_key(|note| (note.tick, note.pitch));
        pedals.iter_mut().for_each(|pedal| pedal.tick = at(pedal.tick));
    }
    stretched.tempos.iter_mut().for_each(|tempo| tempo.tick = at(tempo.tick));
    stretched.meters.iter_mut().for_each(|meter| meter.tick = at(meter.tick));
    stretched.keys.iter_mut().for_each(|key| key.tick = at(key.tick));
    stretched.markers.iter_mut().for_each(|marker| marker.tick = at(marker.tick));
    Some(stretched)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Key, Note, Tempo};

    fn score() -> Score {
        let mut score = Score::new(480);
        let notes = vec![Note { tick: 480, duration: 240, pitch: 60, velocity: 90 }];
        score.tracks.push(Track { notes: notes.clone(), ..Track::default() });
        score.tracks.push(Track { notes, is_drum: true, ..Track::default() });
        score.keys.push(Key { tick: 0, sharps: 2, minor: false });
        score
    }

    #[test]
    fn melodies_and_keys_move_and_drums_stay() {
        let up = transpose(&score(), 3).unwrap();
        assert_eq!((up.tracks[0].notes[0].pitch, up.tracks[1].notes[0].pitch), (63, 60));
        // D major three semitones up is F major: one flat.
        assert_eq!(up.keys[0].sharps, -1);
        assert_eq!(transpose(&up, -3).unwrap(), score());
        assert_eq!(transpose(&score(), 0).unwrap(), score());
    }

    #[test]
    fn a_note_out_of_range_refuses_the_move() {
        assert!(transpose(&score(), 67).is_some());
        assert_eq!(transpose(&score(), 68), None);
        assert_eq!(transpose(&score(), -61), None);
        assert_eq!(transpose(&score(), i32::MAX), None);
    }

    #[test]
    fn stretching_lengthens_the_seconds() {
        let slow = stretch(&score(), 1.25).unwrap();
        assert_eq!(slow.tempos, [Tempo { tick: 0, micros_per_quarter: 625_000 }]);
        assert_eq!(slow.seconds(), 1.25 * score().seconds());
        assert_eq!(stretch(&score(), 1000.0), None);
        assert_eq!(stretch(&score(), f64::NAN), None);
        assert_eq!(stretch(&score(), 0.0), None);
    }

    #[test]
    fn stretching_ticks_rounds_to_the_nearest() {
        let fast = stretch_ticks(&score(), 19, 20).unwrap();
        let note = fast.tracks[0].notes[0];
        assert_eq!((note.tick, note.duration), (456, 228));
        assert_eq!(stretch_ticks(&score(), 1, 0), None);
    }
}
