//! Rounding a score to a grid, with what gets lost counted.
//!
//! Two grids: so many steps a quarter note (Magenta's relative quantisation, 4 steps), and steps
//! of 10 ms through the tempo map (its absolute quantisation, 100 steps a second). A time is
//! rounded to the nearest step, halves up; both ends of a note are rounded, and a note keeps at
//! least one step.

use crate::{MAX_QUARTERS, Note, Pedal, Score, Track};

/// Steps of a second on the time grid.
pub const STEPS_PER_SECOND: u64 = 100;
/// Ticks of a quarter note of a score on the time grid: at 120 quarters a minute, which is what a
/// score without tempos means, 50 ticks of 10 ms make half a second.
pub const TIME_GRID_TICKS: u32 = 50;
/// The longest piece on the time grid, in seconds: a day.
pub const MAX_SECONDS: u64 = 24 * 60 * 60;

/// A score on a grid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantised {
    /// The score, one tick a step.
    pub score: Score,
    /// Notes that the grid could not hold, counted by reason.
    pub lost: Vec<(String, usize)>,
    /// For each of its tracks, the place of the track that it comes from: a track none of whose
    /// notes the grid can hold is left out.
    pub sources: Vec<usize>,
}

/// Counts by reason, in the order in which the reasons came up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Losses(Vec<(String, usize)>);

impl Losses {
    pub(crate) fn add(&mut self, reason: &str, notes: usize) {
        if notes == 0 {
            return;
        }
        match self.0.iter_mut().find(|(known, _)| known == reason) {
            Some((_, count)) => *count += notes,
            None => self.0.push((reason.to_string(), notes)),
        }
    }

    pub(crate) fn into_vec(self) -> Vec<(String, usize)> {
        self.0
    }
}

/// Rounds a score to a grid of so many steps a quarter note; 0 is taken as 1.
///
/// Tempos, time and key signatures, markers and pedal moves are moved to the grid too; of several
/// signatures on one step the last stays. Notes of one pitch that fall on one step of a track
/// become one, the longest and loudest of them.
pub fn quantise_beats(score: &Score, steps_per_quarter: u32) -> Quantised {
    let (from, to) =
        (u64::from(score.ticks_per_quarter.max(1)), u64::from(steps_per_quarter.max(1)));
    let step = |tick: u64| divide_rounding(u128::from(tick) * u128::from(to), from);
    let mut losses = Losses::default();
    let mut on_grid = Score::new(steps_per_quarter.max(1));
    let (tracks, sources) =
        tracks_on_grid(score, step, MAX_QUARTERS * to, "beyond the longest piece", &mut losses);
    on_grid.tracks = tracks;
    on_grid.tempos = score.tempos.clone();
    on_grid.meters = score.meters.clone();
    on_grid.keys = score.keys.clone();
    settle(&mut on_grid.tempos, |t| &mut t.tick, step);
    settle(&mut on_grid.meters, |m| &mut m.tick, step);
    settle(&mut on_grid.keys, |k| &mut k.tick, step);
    on_grid.markers = score.markers.clone();
    on_grid.markers.iter_mut().for_each(|marker| marker.tick = step(marker.tick));
    on_grid.markers.sort_by_key(|marker| marker.tick);
    Quantised { score: on_grid, lost: losses.into_vec(), sources }
}

/// Rounds a score to a grid of 10 ms by its tempo map.
///
/// The result has [`TIME_GRID_TICKS`] ticks a quarter note and no tempos, so that a tick lasts
/// 10 ms. Time and key signatures have no place on this grid. Notes that end after
/// [`MAX_SECONDS`] are lost.
pub fn quantise_time(score: &Score) -> Quantised {
    let clock = Clock::new(score);
    let step = |tick: u64| clock.step(tick);
    let mut losses = Losses::default();
    let mut on_grid = Score::new(TIME_GRID_TICKS);
    let ceiling = MAX_SECONDS * STEPS_PER_SECOND;
    let (tracks, sources) = tracks_on_grid(score, step, ceiling, "after 24 hours", &mut losses);
    on_grid.tracks = tracks;
    on_grid.markers = score.markers.clone();
    on_grid.markers.iter_mut().for_each(|marker| marker.tick = step(marker.tick));
    on_grid.markers.sort_by_key(|marker| marker.tick);
    Quantised { score: on_grid, lost: losses.into_vec(), sources }
}

/// `numerator / denominator` to the nearest integer, halves up.
fn divide_rounding(numerator: u128, denominator: u64) -> u64 {
    // 64-bit division is many times faster, and nearly every time of a real piece fits.
    match u64::try_from(numerator) {
        Ok(small) if small < 1 << 62 && denominator < 1 << 62 => {
            (2 * small + denominator) / (2 * denominator)
        }
        _ => {
            let denominator = u128::from(denominator);
            u64::try_from((2 * numerator + denominator) / (2 * denominator)).unwrap_or(u64::MAX)
        }
    }
}

fn tracks_on_grid(
    score: &Score,
    step: impl Fn(u64) -> u64,
    ceiling: u64,
    too_late: &str,
    losses: &mut Losses,
) -> (Vec<Track>, Vec<usize>) {
    let mut tracks = Vec::with_capacity(score.tracks.len());
    let mut sources = Vec::with_capacity(score.tracks.len());
    for (source, track) in score.tracks.iter().enumerate() {
        let mut notes = Vec::with_capacity(track.notes.len());
        for note in &track.notes {
            let tick = step(note.tick);
            let end = step(note.tick.saturating_add(note.duration)).max(tick.saturating_add(1));
            if end > ceiling {
                losses.add(too_late, 1);
            } else if note.pitch > 127 {
                losses.add("no MIDI pitch", 1);
            } else {
                let velocity = note.velocity.clamp(1, 127);
                notes.push(Note { tick, duration: end - tick, pitch: note.pitch, velocity });
            }
        }
        losses.add("struck twice on one step", merge_unisons(&mut notes));
        if notes.is_empty() {
            continue;
        }
        let at_step = |pedal: &Pedal| Pedal { tick: step(pedal.tick), value: pedal.value.min(127) };
        let mut pedals: Vec<Pedal> = track.pedals.iter().map(at_step).collect();
        pedals.sort_by_key(|pedal| pedal.tick);
        pedals.retain(|pedal| pedal.tick <= ceiling);
        let (name, program) = (track.name.clone(), track.program.min(127));
        tracks.push(Track { name, program, is_drum: track.is_drum, notes, pedals });
        sources.push(source);
    }
    (tracks, sources)
}

/// Sorts notes by tick, then pitch, and makes one of those that share both: the longest and
/// loudest. Returns how many vanished.
pub(crate) fn merge_unisons(notes: &mut Vec<Note>) -> usize {
    let before = notes.len();
    notes.sort_by_key(|note| (note.tick, note.pitch));
    notes.dedup_by(|next, kept| {
        let same = (next.tick, next.pitch) == (kept.tick, kept.pitch);
        if same {
            kept.duration = kept.duration.max(next.duration);
            kept.velocity = kept.velocity.max(next.velocity);
        }
        same
    });
    before - notes.len()
}

/// Lets the notes of each pitch end in the order in which they begin, since a note-off cannot say
/// which of two it ends. `notes` are in order of tick and pitch.
pub(crate) fn end_in_order(notes: &mut [Note]) {
    let mut by_pitch: Vec<Vec<usize>> = vec![Vec::new(); 128];
    for (i, note) in notes.iter().enumerate() {
        by_pitch[usize::from(note.pitch)].push(i);
    }
    for places in by_pitch {
        let mut ends: Vec<u64> =
            places.iter().map(|&i| notes[i].tick + notes[i].duration).collect();
        ends.sort_unstable();
        for (i, end) in places.into_iter().zip(ends) {
            notes[i].duration = end - notes[i].tick;
        }
    }
}

/// Moves signatures to the grid, in order; of several on one step the last stays.
fn settle<T: Copy>(
    items: &mut Vec<T>,
    tick: impl Fn(&mut T) -> &mut u64,
    step: impl Fn(u64) -> u64,
) {
    items.sort_by_key(|item| *tick(&mut { *item }));
    items.iter_mut().for_each(|item| *tick(item) = step(*tick(item)));
    items.dedup_by(|next, kept| {
        let same = *tick(next) == *tick(kept);
        if same {
            *kept = *next;
        }
        same
    });
}

/// The tempo map, for times in steps of 10 ms, exact up to the rounding.
struct Clock {
    ticks_per_quarter: u64,
    /// From which tick, microseconds times ticks per quarter until there, microseconds a quarter.
    spans: Vec<(u64, u128, u64)>,
}

impl Clock {
    fn new(score: &Score) -> Clock {
        let mut tempos = score.tempos.clone();
        tempos.sort_by_key(|tempo| tempo.tick);
        let mut spans = vec![(0, 0, 500_000)];
        for tempo in tempos {
            let &(from, elapsed, micros): &(u64, u128, u64) = &spans[spans.len() - 1];
            let elapsed = elapsed + u128::from(tempo.tick - from) * u128::from(micros);
            spans.push((tempo.tick, elapsed, u64::from(tempo.micros_per_quarter)));
        }
        Clock { ticks_per_quarter: u64::from(score.ticks_per_quarter.max(1)), spans }
    }

    fn step(&self, tick: u64) -> u64 {
        let after = self.spans.partition_point(|&(from, _, _)| from <= tick);
        let (from, elapsed, micros) = self.spans[after - 1];
        let elapsed = elapsed + u128::from(tick - from) * u128::from(micros);
        divide_rounding(elapsed, self.ticks_per_quarter * (1_000_000 / STEPS_PER_SECOND))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Meter, Tempo};

    fn score_of(ticks_per_quarter: u32, notes: &[(u64, u64, u8)]) -> Score {
        let note = |&(tick, duration, pitch)| Note { tick, duration, pitch, velocity: 90 };
        let mut score = Score::new(ticks_per_quarter);
        let notes = notes.iter().map(note).collect();
        score.tracks.push(Track { notes, ..Track::default() });
        score
    }

    fn plain(score: &Score) -> Vec<(u64, u64, u8)> {
        score.tracks[0].notes.iter().map(|n| (n.tick, n.duration, n.pitch)).collect()
    }

    #[test]
    fn both_ends_are_rounded_to_the_nearest_step_halves_up() {
        // 480 ticks a quarter, 4 steps: a step is 120 ticks, halves are at 60.
        let score = score_of(480, &[(59, 120, 60), (60, 120, 62), (250, 5, 64)]);
        let q = quantise_beats(&score, 4);
        assert_eq!(plain(&q.score), [(0, 1, 60), (1, 1, 62), (2, 1, 64)]);
        assert_eq!(q.lost, []);
    }

    #[test]
    fn a_pitch_struck_twice_on_a_step_becomes_one_and_is_counted() {
        let q = quantise_beats(&score_of(480, &[(0, 480, 60), (10, 20, 60)]), 4);
        assert_eq!(plain(&q.score), [(0, 4, 60)]);
        assert_eq!(q.lost, [("struck twice on one step".to_string(), 1)]);
    }

    #[test]
    fn seconds_follow_the_tempo_map() {
        // One quarter at 120 a minute (0.5 s), then quarters of 1 s.
        let mut score = score_of(96, &[(0, 96, 60), (96, 96, 62), (192, 48, 64)]);
        score.tempos.push(Tempo { tick: 96, micros_per_quarter: 1_000_000 });
        let q = quantise_time(&score);
        assert_eq!(plain(&q.score), [(0, 50, 60), (50, 100, 62), (150, 50, 64)]);
        assert_eq!(q.score.seconds(), 2.0);
        assert_eq!(score.seconds(), 2.0);
    }

    #[test]
    fn quantising_twice_changes_nothing() {
        let mut score = score_of(480, &[(7, 111, 60), (333, 17, 61), (1000, 1, 62)]);
        score.meters.push(Meter { tick: 50, numerator: 3, denominator: 4 });
        score.meters.push(Meter { tick: 55, numerator: 4, denominator: 4 });
        let once = quantise_beats(&score, 24).score;
        assert_eq!(quantise_beats(&once, 24).score, once);
        assert_eq!(once.meters.len(), 1);
        let once = quantise_time(&score).score;
        assert_eq!(quantise_time(&once).score, once);
    }

    #[test]
    fn extremes_of_a_hand_made_score_neither_panic_nor_pass() {
        let mut score = score_of(0, &[(u64::MAX, u64::MAX, 255), (0, 0, 200), (3, 0, 60)]);
        score.tempos.push(Tempo { tick: u64::MAX, micros_per_quarter: u32::MAX });
        let q = quantise_beats(&score, u32::MAX);
        assert_eq!(q.lost.iter().map(|(_, n)| n).sum::<usize>(), 2);
        assert_eq!(quantise_time(&score).score.note_count(), 1);
    }
}
