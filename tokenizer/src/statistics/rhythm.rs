//! Numbers about when notes begin: silent beats, groove, the contents of bars.

use std::collections::{BTreeMap, BTreeSet};

use super::Definitions;
use crate::bars::{Bars, sixteenths};
use crate::{Note, Score};

/// A bar's length in ticks, and its onsets: 16th, drum or not, pitch.
pub(super) type Content = (u64, Vec<(u64, bool, u8)>);

/// The onsets and pitches of each sounding bar; bars of other lengths never compare as equal.
pub(super) fn bar_contents(score: &Score, bars: &Bars, tpq: u64) -> BTreeMap<u64, Content> {
    let mut contents: BTreeMap<u64, Content> = BTreeMap::new();
    for track in &score.tracks {
        for note in &track.notes {
            let (bar, at) = bars.locate_sixteenth(note.tick, tpq);
            let length = bars.length_at(note.tick);
            let content = contents.entry(bar).or_insert((length, Vec::new()));
            content.1.push((at, track.is_drum, note.pitch));
        }
    }
    for (_, content) in contents.values_mut() {
        content.sort_unstable();
        content.dedup();
    }
    contents
}

pub(super) fn empty_beats<'a>(
    notes: impl Iterator<Item = &'a Note>,
    end: u64,
    tpq: u64,
    definitions: Definitions,
) -> Option<f64> {
    let compat = definitions == Definitions::MusPy;
    let last_beat = |note: &Note| {
        let end = note.tick.saturating_add(note.duration);
        if compat { end / tpq } else { end.saturating_sub(1) / tpq }
    };
    let beats = if compat { (end / tpq).saturating_add(1) } else { end.div_ceil(tpq) };
    let mut spans: Vec<(u64, u64)> = notes.map(|n| (n.tick / tpq, last_beat(n))).collect();
    spans.sort_unstable();
    let (mut sounding, mut next) = (0, 0); // `next`: the first beat not looked at yet
    for (first, last) in spans {
        let from = first.max(next);
        if last >= from {
            sounding += last - from + 1;
            next = last.saturating_add(1);
        }
    }
    (end > 0).then(|| (beats - sounding.min(beats)) as f64 / beats as f64)
}

/// Mean agreement of neighbouring bars of equal length, on the 16th grid.
pub(super) fn groove<'a>(
    notes: impl Iterator<Item = &'a Note>,
    bars: &Bars,
    end: u64,
    tpq: u64,
) -> Option<f64> {
    let mut onsets: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    let mut longest = 0;
    for note in notes {
        let (bar, at) = bars.locate_sixteenth(note.tick, tpq);
        onsets.entry(bar).or_default().insert(at);
        longest = longest.max(bar);
    }
    let bar_count = bars.count(end).max(longest.saturating_add(1));
    // Pairs of bars within one metre, counted by stretch; silent pairs agree and need no visit.
    let (mut pairs, mut difference) = (0u64, 0.0);
    for (i, stretch) in bars.stretches.iter().enumerate() {
        let until = bars.stretches.get(i + 1).map_or(bar_count, |next| next.bar.min(bar_count));
        if until <= stretch.bar {
            continue;
        }
        pairs += until - stretch.bar - 1;
        let steps = sixteenths(stretch.length, tpq).max(1) as f64;
        let none = BTreeSet::new();
        let mut seen = None; // the last pair that was counted, by its first bar
        for (&bar, content) in onsets.range(stretch.bar..until) {
            let at = |bar: u64| onsets.get(&bar).unwrap_or(&none);
            if bar > stretch.bar && seen != Some(bar - 1) {
                difference += at(bar - 1).symmetric_difference(content).count() as f64 / steps;
            }
            if bar < until - 1 {
                difference += content.symmetric_difference(at(bar + 1)).count() as f64 / steps;
                seen = Some(bar);
            }
        }
    }
    (pairs > 0).then(|| 1.0 - difference / pairs as f64)
}

pub(super) fn groove_muspy<'a>(
    notes: impl Iterator<Item = &'a Note>,
    bar: u64,
    end: u64,
) -> Option<f64> {
    let mut onsets: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for note in notes {
        onsets.entry(note.tick / bar).or_default().insert(note.tick % bar);
    }
    let count = (end / bar).saturating_add(1);
    let none = BTreeSet::new();
    let mut difference = 0;
    for (&at, content) in &onsets {
        if at < count - 1 {
            let next = onsets.get(&(at + 1)).unwrap_or(&none);
            difference += content.symmetric_difference(next).count();
        }
        if at > 0 && !onsets.contains_key(&(at - 1)) {
            difference += content.len();
        }
    }
    (count > 1).then(|| 1.0 - difference as f64 / (bar as f64 * (count - 1) as f64))
}
