//! Numbers about what sounds together and what comes again at once.

use crate::{Note, Score};

/// Mean number of pitches while any sounds, and the share of the time with more than two.
pub(super) fn polyphony(pitched: &[&Note], end: u64) -> (Option<f64>, Option<f64>) {
    // Two notes of one pitch that overlap are one sounding key.
    let mut order: Vec<(u8, u64, u64)> =
        pitched.iter().map(|n| (n.pitch, n.tick, n.tick.saturating_add(n.duration))).collect();
    order.sort_unstable();
    let mut edges: Vec<(u64, i64)> = Vec::with_capacity(2 * order.len());
    let mut open: Option<(u8, u64, u64)> = None;
    for (pitch, from, to) in order {
        match &mut open {
            Some((p, _, until)) if *p == pitch && from <= *until => *until = (*until).max(to),
            _ => {
                edges.extend(open.iter().flat_map(|&(_, a, b)| [(a, 1), (b, -1)]));
                open = Some((pitch, from, to));
            }
        }
    }
    edges.extend(open.iter().flat_map(|&(_, a, b)| [(a, 1), (b, -1)]));
    edges.sort_unstable();
    let (mut keys, mut last) = (0i64, 0u64);
    let (mut area, mut sounding, mut dense) = (0.0, 0.0, 0.0);
    for (tick, change) in edges {
        let ticks = (tick - last) as f64;
        area += ticks * keys as f64;
        sounding += if keys > 0 { ticks } else { 0.0 };
        dense += if keys > 2 { ticks } else { 0.0 };
        keys += change;
        last = tick;
    }
    let rate = (end > 0 && !pitched.is_empty()).then(|| dense / end as f64);
    ((sounding > 0.0).then(|| area / sounding), rate)
}

pub(super) fn longest_repeat(score: &Score) -> usize {
    let mut longest = 0;
    for track in score.tracks.iter().filter(|track| !track.is_drum) {
        let mut onsets: Vec<(u64, u8)> = track.notes.iter().map(|n| (n.tick, n.pitch)).collect();
        onsets.sort_unstable();
        onsets.dedup();
        let mut run = 0;
        let mut previous: Vec<u8> = Vec::new();
        for chord in onsets.chunk_by(|a, b| a.0 == b.0) {
            let same = previous.iter().eq(chord.iter().map(|(_, pitch)| pitch));
            run = if same { run + 1 } else { 1 };
            previous = chord.iter().map(|&(_, pitch)| pitch).collect();
            longest = longest.max(run);
        }
    }
    longest
}
