//! What the sustain pedal does to notes: it holds them until it is released.
//!
//! While the pedal is down (64 and above) a note goes on after its end, until the pedal comes up,
//! its pitch is struck again, or the piece ends. At one tick the pedal moves first, then notes
//! begin, then notes end.
//!
//! # Source
//! Magenta, note_seq `apply_sustain_control_changes`.

use crate::{Note, Track};

/// What happens at a tick, in the order in which it happens there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Pedal { place: usize },
    Begin { note: usize },
    End { note: usize },
}

/// The notes of a track as they sound under its pedal; `end_tick` is the end of the piece.
///
/// Of two notes of one pitch that begin at one tick under the pedal only the last stays.
pub fn apply_sustain(track: &Track, end_tick: u64) -> Vec<Note> {
    let mut notes = track.notes.clone();
    if track.pedals.iter().all(|pedal| pedal.value < 64) {
        return notes;
    }
    let mut events: Vec<(u64, Event)> = Vec::with_capacity(2 * notes.len() + track.pedals.len());
    for (place, pedal) in track.pedals.iter().enumerate() {
        events.push((pedal.tick, Event::Pedal { place }));
    }
    for (note, n) in notes.iter().enumerate() {
        events.push((n.tick, Event::Begin { note }));
        events.push((n.tick.saturating_add(n.duration), Event::End { note }));
    }
    events.sort_unstable();

    let mut down = false;
    let mut sounding = vec![false; notes.len()];
    let mut by_pitch = vec![Vec::new(); 256];
    let mut ringing = Vec::new();
    let end = |notes: &mut [Note], note: usize, tick: u64| {
        notes[note].duration = tick.saturating_sub(notes[note].tick);
    };
    for (tick, event) in events {
        match event {
            Event::Pedal { place } => {
                down = track.pedals[place].value >= 64;
                if !down {
                    for note in ringing.drain(..) {
                        if std::mem::take(&mut sounding[note]) {
                            end(&mut notes, note, tick);
                        }
                    }
                }
            }
            Event::Begin { note } => {
                let same_pitch = &mut by_pitch[usize::from(notes[note].pitch)];
                if down {
                    for before in same_pitch.drain(..) {
                        if std::mem::take(&mut sounding[before]) {
                            end(&mut notes, before, tick);
                        }
                    }
                }
                same_pitch.push(note);
                sounding[note] = true;
            }
            Event::End { note } if sounding[note] => match down {
                true => ringing.push(note),
                false => sounding[note] = false,
            },
            Event::End { .. } => {}
        }
    }
    for note in ringing {
        if sounding[note] {
            let own_end = notes[note].tick.saturating_add(notes[note].duration);
            end(&mut notes, note, end_tick.max(own_end));
        }
    }
    notes.retain(|note| note.duration > 0);
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pedal;

    fn held(notes: &[(u64, u64, u8)], pedals: &[(u64, u8)]) -> Vec<(u64, u64, u8)> {
        let note = |&(tick, duration, pitch)| Note { tick, duration, pitch, velocity: 90 };
        let track = Track {
            notes: notes.iter().map(note).collect(),
            pedals: pedals.iter().map(|&(tick, value)| Pedal { tick, value }).collect(),
            ..Track::default()
        };
        apply_sustain(&track, 100).iter().map(|n| (n.tick, n.duration, n.pitch)).collect()
    }

    #[test]
    fn notes_ring_until_the_pedal_comes_up() {
        let notes = [(0, 10, 60), (5, 10, 64), (40, 5, 67)];
        assert_eq!(held(&notes, &[(2, 100), (30, 0)]), [(0, 30, 60), (5, 25, 64), (40, 5, 67)]);
    }

    #[test]
    fn a_pitch_struck_again_ends_the_note_before() {
        let notes = [(0, 10, 60), (20, 10, 60)];
        assert_eq!(held(&notes, &[(0, 127), (50, 63)]), [(0, 20, 60), (20, 30, 60)]);
    }

    #[test]
    fn a_pedal_never_released_holds_to_the_end_of_the_piece() {
        assert_eq!(held(&[(0, 10, 60)], &[(0, 64)]), [(0, 100, 60)]);
        assert_eq!(held(&[(0, 10, 60)], &[(10, 64)]), [(0, 100, 60)]);
        assert_eq!(held(&[(0, 10, 60)], &[(11, 64)]), [(0, 10, 60)]);
    }
}
