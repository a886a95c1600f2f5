//! The score as the event encoding hears it: its grid, its instruments, its signatures.

use super::vocabulary::{MAX_DENOMINATOR, MAX_NUMERATOR, STEPS_PER_QUARTER, TEMPOS, VOICES, WHOLE};
use super::{MAX_STEPS, bin_velocity, velocity_bin};
use crate::quantise::{Losses, merge_unisons, quantise_beats};
use crate::{Meter, Pedal, Score, Tempo, Track};

/// Steps of a bar. Lower numbers up to 32 divide a whole note of 96 steps.
pub(crate) fn bar_steps(numerator: u8, denominator: u8) -> u64 {
    u64::from(numerator) * WHOLE / u64::from(denominator)
}

/// The tempo token of so many microseconds a quarter note.
pub(super) fn micros_bpm(micros: u32) -> u32 {
    let micros = micros.max(1);
    ((60_000_000 + micros / 2) / micros).clamp(TEMPOS.0, TEMPOS.1)
}

/// The tempo that a tempo token means.
pub(super) fn bpm_micros(bpm: u32) -> u32 {
    (60_000_000 + bpm / 2) / bpm
}

/// Puts a score on the grid, counting what is lost. Hearing twice changes nothing.
pub(super) fn hear(score: &Score, losses: &mut Losses) -> Score {
    let on_grid = quantise_beats(score, STEPS_PER_QUARTER);
    for (reason, count) in &on_grid.lost {
        losses.add(reason, *count);
    }
    let mut heard = on_grid.score;
    losses.add("marker (not a note)", heard.markers.len());
    heard.markers.clear();
    heard.tracks = instruments(std::mem::take(&mut heard.tracks), losses);

    let told = |meter: &Meter| {
        (1..=MAX_NUMERATOR).contains(&meter.numerator)
            && meter.denominator <= MAX_DENOMINATOR
            && meter.denominator.is_power_of_two()
    };
    let meters = heard.meters.len();
    heard.meters.retain(|meter| told(meter));
    losses.add("time signature over 32 (not a note)", meters - heard.meters.len());
    if heard.meters.first().is_none_or(|meter| meter.tick > 0) {
        heard.meters.insert(0, Meter { tick: 0, numerator: 4, denominator: 4 });
    }
    heard.meters.retain(|meter| meter.tick <= MAX_STEPS);
    heard.meters.dedup_by_key(|meter| (meter.numerator, meter.denominator));

    for tempo in &mut heard.tempos {
        tempo.micros_per_quarter = bpm_micros(micros_bpm(tempo.micros_per_quarter));
    }
    if heard.tempos.first().is_none_or(|tempo| tempo.tick > 0) {
        heard.tempos.insert(0, Tempo { tick: 0, micros_per_quarter: 500_000 });
    }
    heard.tempos.retain(|tempo| tempo.tick <= MAX_STEPS);
    heard.tempos.dedup_by_key(|tempo| tempo.micros_per_quarter);

    heard.keys.iter_mut().for_each(|key| key.sharps = key.sharps.clamp(-7, 7));
    heard.keys.retain(|key| key.tick <= MAX_STEPS);
    heard.keys.dedup_by_key(|key| (key.sharps, key.minor));
    heard
}

/// Tracks by program, drums last, at most sixteen of each.
fn instruments(mut tracks: Vec<Track>, losses: &mut Losses) -> Vec<Track> {
    tracks.sort_by_key(|track| (track.is_drum, if track.is_drum { 0 } else { track.program }));
    let mut kept: Vec<Track> = Vec::with_capacity(tracks.len());
    let mut voice = 0;
    for mut track in tracks {
        track.name.clear();
        if track.is_drum {
            track.program = 0;
        }
        for note in &mut track.notes {
            note.velocity = bin_velocity(velocity_bin(note.velocity));
        }
        let last = kept.last_mut();
        match last.filter(|l| (l.is_drum, l.program) == (track.is_drum, track.program)) {
            Some(last) if voice + 1 == VOICES => {
                losses.add("merged: over 16 tracks of one program", track.notes.len());
                last.notes.append(&mut track.notes);
                continue;
            }
            Some(_) => voice += 1,
            None => voice = 0,
        }
        kept.push(track);
    }
    for track in &mut kept {
        losses.add("unison of merged tracks", merge_unisons(&mut track.notes));
        track.pedals = pedal_moves(&track.pedals);
    }
    kept
}

/// For each track, how many of the same program come before it.
pub(super) fn voices(tracks: &[Track]) -> Vec<u8> {
    let same = |a: &Track, b: &Track| (a.is_drum, a.program) == (b.is_drum, b.program);
    let mut voices: Vec<u8> = Vec::with_capacity(tracks.len());
    for (i, track) in tracks.iter().enumerate() {
        // Tracks of one program are neighbours.
        let follows = i > 0 && same(&tracks[i - 1], track);
        voices.push(if follows { voices[i - 1] + 1 } else { 0 });
    }
    voices
}

/// Moves from up to down and back; at one step the last, or the last two where they undo each
/// other, so that a pedal lifted and pressed at once still ends what rang.
fn pedal_moves(pedals: &[Pedal]) -> Vec<Pedal> {
    let mut moves: Vec<Pedal> = Vec::new();
    for pedal in pedals.iter().filter(|pedal| pedal.tick <= MAX_STEPS) {
        let down = pedal.value >= 64;
        let was_down = moves.last().is_some_and(|last| last.value >= 64);
        if down == was_down {
            continue;
        }
        moves.push(Pedal { tick: pedal.tick, value: if down { 127 } else { 0 } });
        // Moves alternate, so of three at one step the first two undo each other.
        let count = moves.len();
        if count >= 3 && moves[count - 3].tick == pedal.tick {
            moves.drain(count - 3..count - 1);
        }
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tempo_tokens_mean_the_same_there_and_back() {
        for bpm in TEMPOS.0..=TEMPOS.1 {
            assert_eq!(micros_bpm(bpm_micros(bpm)), bpm);
        }
        assert_eq!((micros_bpm(0), micros_bpm(u32::MAX)), (TEMPOS.1, TEMPOS.0));
    }

    #[test]
    fn pedal_moves_alternate_and_are_two_a_step_at_most() {
        let moves = |pedals: &[(u64, u8)]| -> Vec<(u64, u8)> {
            let pedals: Vec<Pedal> =
                pedals.iter().map(|&(tick, value)| Pedal { tick, value }).collect();
            pedal_moves(&pedals).iter().map(|p| (p.tick, p.value)).collect()
        };
        assert_eq!(moves(&[(0, 0), (1, 70), (2, 90), (3, 63), (4, 0)]), [(1, 127), (3, 0)]);
        let retaken = [(0, 127), (5, 0), (5, 127)];
        assert_eq!(moves(&retaken), retaken);
        assert_eq!(moves(&[(5, 127), (5, 0), (5, 127)]), [(5, 127)]);
        assert_eq!(moves(&[(0, 127), (5, 0), (5, 127), (5, 0)]), [(0, 127), (5, 0)]);
    }
}
