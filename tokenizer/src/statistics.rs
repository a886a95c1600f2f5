//! What a piece is like, in numbers: keys, metre, density, repetition.
//!
//! Entropies are in bits. A number that a piece leaves undefined, such as the pitch entropy of a
//! drum solo, is `None`. Work and memory grow with the notes, never with the ticks.
//!
//! The names and most definitions follow MusPy (Dong et al. 2020), `muspy/metrics`. By default two
//! of its habits are mended: it counts one more bar and one more beat than there are when a piece
//! ends on a bar line, and it lets a note that ends on a beat sound in that beat. It also takes
//! groove from raw ticks, so that a finer clock gives a higher consistency; here onsets are rounded
//! to 16ths first. [`Definitions::MusPy`] gives its own numbers.

mod rhythm;
mod spread;
mod texture;

use std::collections::{BTreeMap, BTreeSet};

use crate::bars::{Bars, sixteenths};
use crate::{Note, Score};
pub use spread::{Spread, spreads};

/// Which definitions to compute by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Definitions {
    /// Ours: no phantom bar or beat, groove on the 16th grid.
    #[default]
    Correct,
    /// Those of MusPy 0.5, number for number; the groove's bar is the first metre's.
    MusPy,
}

/// The numbers of one piece.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Notes, drums among them.
    pub notes: usize,
    /// Bars up to the end of the last note.
    pub bars: u64,
    /// Length in seconds.
    pub seconds: f64,
    /// Different pitches.
    pub pitches: usize,
    /// Different pitch classes, 0 to 12.
    pub pitch_classes: usize,
    /// Semitones between the lowest and the highest pitch.
    pub range: Option<f64>,
    /// Entropy of the pitches.
    pub pitch_entropy: Option<f64>,
    /// Entropy of the pitch classes; at most log2(12) = 3.585.
    pub pitch_class_entropy: Option<f64>,
    /// Share of notes in the major or minor scale that fits best.
    pub scale_consistency: Option<f64>,
    /// Share of notes in C major.
    pub in_c_major: Option<f64>,
    /// Share of beats (quarters) without any sound.
    pub empty_beats: Option<f64>,
    /// How much neighbouring bars agree in their onsets: 1 is the same rhythm throughout.
    pub groove_consistency: Option<f64>,
    /// Mean number of pitches while anything sounds.
    pub polyphony: Option<f64>,
    /// Share of the time in which more than two pitches sound.
    pub polyphony_rate: Option<f64>,
    /// Share of drum onsets on 16ths, or on triplet eighths where the metre is compound.
    pub drums_in_pattern: Option<f64>,
    /// Longest run of the same onset (a note or a chord) in one track.
    pub longest_repeat: usize,
    /// Share of sounding bars that equal an earlier one in onsets and pitches.
    pub repeated_bars: Option<f64>,
    /// Different sounding bars for each sounding bar.
    pub distinct_bars: Option<f64>,
    /// Notes for each bar.
    pub notes_per_bar: Option<f64>,
    /// Entropy of the note lengths, in 16ths.
    pub length_entropy: Option<f64>,
    /// Share of onsets on a beat of the metre (a dotted one in compound metres).
    pub on_beat: Option<f64>,
}

impl Statistics {
    /// Measures a piece.
    pub fn of(score: &Score) -> Statistics {
        Statistics::with(score, Definitions::Correct)
    }

    /// Measures a piece by chosen definitions.
    pub fn with(score: &Score, definitions: Definitions) -> Statistics {
        let bars = Bars::of(score);
        let tpq = u64::from(score.ticks_per_quarter.max(1));
        let pitched: Vec<&Note> = notes(score, false).collect();
        let drums: Vec<&Note> = notes(score, true).collect();
        let all = || pitched.iter().chain(&drums).copied();

        let mut pitch_counts = [0usize; 128];
        let mut class_counts = [0usize; 12];
        for note in &pitched {
            pitch_counts[usize::from(note.pitch & 127)] += 1;
            class_counts[usize::from(note.pitch % 12)] += 1;
        }
        let lowest = pitch_counts.iter().position(|&n| n > 0);
        let highest = pitch_counts.iter().rposition(|&n| n > 0);
        let in_scale = |root: usize| -> usize {
            [0, 2, 4, 5, 7, 9, 11].iter().map(|step| class_counts[(root + step) % 12]).sum()
        };
        // A natural minor scale has the notes of a major one, so twelve sets cover all 24.
        let best_scale = (0..12).map(in_scale).max().unwrap_or(0);

        let mut lengths = BTreeMap::new();
        for note in &pitched {
            *lengths.entry(sixteenths(note.duration, tpq).max(1)).or_insert(0usize) += 1;
        }
        let contents = rhythm::bar_contents(score, &bars, tpq);
        let distinct = contents.values().collect::<BTreeSet<_>>().len();
        let end = score.end_tick();
        let count = bars.count(end);
        let (polyphony, polyphony_rate) = texture::polyphony(&pitched, end);

        Statistics {
            notes: score.note_count(),
            bars: count,
            seconds: score.seconds(),
            pitches: pitch_counts.iter().filter(|&&n| n > 0).count(),
            pitch_classes: class_counts.iter().filter(|&&n| n > 0).count(),
            range: lowest.zip(highest).map(|(low, high)| (high - low) as f64),
            pitch_entropy: entropy(pitch_counts.iter().copied()),
            pitch_class_entropy: entropy(class_counts.iter().copied()),
            scale_consistency: share(best_scale, pitched.len()),
            in_c_major: share(in_scale(0), pitched.len()),
            empty_beats: rhythm::empty_beats(all(), end, tpq, definitions),
            groove_consistency: match definitions {
                Definitions::Correct => rhythm::groove(all(), &bars, end, tpq),
                Definitions::MusPy => rhythm::groove_muspy(all(), bars.length_at(0), end),
            },
            polyphony,
            polyphony_rate,
            drums_in_pattern: share(
                drums.iter().filter(|n| bars.in_pattern(n.tick, tpq)).count(),
                drums.len(),
            ),
            longest_repeat: texture::longest_repeat(score),
            repeated_bars: share(contents.len() - distinct, contents.len()),
            distinct_bars: share(distinct, contents.len()),
            notes_per_bar: (count > 0).then(|| score.note_count() as f64 / count as f64),
            length_entropy: entropy(lengths.values().copied()),
            on_beat: share(all().filter(|n| bars.on_beat(n.tick, tpq)).count(), score.note_count()),
        }
    }

    /// Every number with its name, for tables and files.
    pub fn values(&self) -> [(&'static str, Option<f64>); 21] {
        [
            ("notes", Some(self.notes as f64)),
            ("bars", Some(self.bars as f64)),
            ("seconds", Some(self.seconds)),
            ("pitches", Some(self.pitches as f64)),
            ("pitch_classes", Some(self.pitch_classes as f64)),
            ("range", self.range),
            ("pitch_entropy", self.pitch_entropy),
            ("pitch_class_entropy", self.pitch_class_entropy),
            ("scale_consistency", self.scale_consistency),
            ("in_c_major", self.in_c_major),
            ("empty_beats", self.empty_beats),
            ("groove_consistency", self.groove_consistency),
            ("polyphony", self.polyphony),
            ("polyphony_rate", self.polyphony_rate),
            ("drums_in_pattern", self.drums_in_pattern),
            ("longest_repeat", Some(self.longest_repeat as f64)),
            ("repeated_bars", self.repeated_bars),
            ("distinct_bars", self.distinct_bars),
            ("notes_per_bar", self.notes_per_bar),
            ("length_entropy", self.length_entropy),
            ("on_beat", self.on_beat),
        ]
    }
}

fn notes(score: &Score, drums: bool) -> impl Iterator<Item = &Note> {
    score.tracks.iter().filter(move |track| track.is_drum == drums).flat_map(|track| &track.notes)
}

fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn entropy(counts: impl Iterator<Item = usize> + Clone) -> Option<f64> {
    let total: usize = counts.clone().sum();
    (total > 0).then(|| {
        let terms = counts.filter(|&n| n > 0).map(|n| n as f64 / total as f64);
        -terms.map(|p| p * p.log2()).sum::<f64>() + 0.0 // no "-0"
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Meter, Track};

    fn track(is_drum: bool, notes: &[(u64, u8, u64)]) -> Track {
        let note = |&(tick, pitch, duration)| Note { tick, duration, pitch, velocity: 64 };
        Track { is_drum, notes: notes.iter().map(note).collect(), ..Track::default() }
    }

    /// The piece that MusPy 0.5.0 was run on.
    fn toy() -> Score {
        let mut score = Score::new(4);
        let piano = [
            (0, 60, 4),
            (4, 64, 4),
            (8, 67, 2),
            (10, 66, 2),
            (12, 72, 4),
            (16, 60, 4),
            (16, 64, 4),
            (16, 67, 4),
            (20, 61, 2),
            (24, 71, 8),
        ];
        let drums = [
            (0, 36, 1),
            (4, 38, 1),
            (8, 36, 1),
            (12, 38, 1),
            (14, 42, 1),
            (15, 42, 1),
            (17, 36, 1),
        ];
        score.tracks = vec![track(false, &piano), track(true, &drums)];
        score
    }

    #[test]
    fn muspy_definitions_give_muspys_numbers() {
        let s = Statistics::with(&toy(), Definitions::MusPy);
        assert_eq!((s.pitches, s.pitch_classes), (7, 6));
        let wanted = [
            (s.range, 12.0),
            (s.pitch_class_entropy, 2.446_439_344_671_015_5),
            (s.pitch_entropy, 2.721_928_094_887_362_5),
            (s.scale_consistency, 0.9),
            (s.in_c_major, 0.8),
            (s.empty_beats, 0.0),
            (s.groove_consistency, 0.718_75),
            (s.polyphony, 1.266_666_666_666_666_6),
            (s.polyphony_rate, 0.125),
            (s.drums_in_pattern, 1.0),
        ];
        for (i, (got, want)) in wanted.into_iter().enumerate() {
            assert!((got.unwrap() - want).abs() < 1e-12, "{i}: {got:?}, not {want}");
        }
    }

    #[test]
    fn our_definitions_have_no_phantom_bar_or_beat() {
        let s = Statistics::of(&toy());
        assert_eq!(s.bars, 2);
        // Bars {0,4,8,10,12,14,15} and {0,1,4,8} differ in 5 of 16 places; nothing comes after.
        assert_eq!(s.groove_consistency, Some(1.0 - 5.0 / 16.0));
        let mut gap = Score::new(4);
        gap.tracks = vec![track(false, &[(0, 60, 4), (12, 60, 4)])];
        // Beats 2 and 3 of 4 are silent; MusPy hears the first note end in beat 2 and adds a beat.
        assert_eq!(Statistics::of(&gap).empty_beats, Some(0.5));
        assert_eq!(Statistics::with(&gap, Definitions::MusPy).empty_beats, Some(0.2));
    }

    #[test]
    fn repetition_is_counted() {
        let mut score = Score::new(480);
        let bar = |n: u64, pitch: u8| (n * 1920, pitch, 480);
        score.tracks = vec![track(false, &[bar(0, 60), bar(1, 60), bar(2, 60), bar(3, 62)])];
        let s = Statistics::of(&score);
        assert_eq!(s.longest_repeat, 3);
        assert_eq!(s.repeated_bars, Some(0.5));
        assert_eq!(s.distinct_bars, Some(0.5));
        assert_eq!(s.notes_per_bar, Some(1.0));
        assert_eq!(s.length_entropy, Some(0.0));
        assert_eq!(s.on_beat, Some(1.0));
        assert_eq!(s.groove_consistency, Some(1.0));
    }

    #[test]
    fn beats_follow_the_metre() {
        let mut score = Score::new(480);
        score.meters = vec![Meter { tick: 0, numerator: 6, denominator: 8 }];
        let eighths: Vec<_> = (0..12).map(|n| (n * 240, 60, 240)).collect();
        score.tracks = vec![track(false, &eighths)];
        let s = Statistics::of(&score);
        assert_eq!(s.bars, 2);
        assert_eq!(s.on_beat, Some(1.0 / 3.0));
        // A change of metre begins a bar: 6/8 for one bar and a half, then 4/4.
        score.meters.push(Meter { tick: 2160, numerator: 4, denominator: 4 });
        assert_eq!(Statistics::of(&score).bars, 3);
    }

    #[test]
    fn an_empty_score_has_no_shares() {
        let s = Statistics::of(&Score::new(480));
        assert_eq!((s.notes, s.bars, s.longest_repeat), (0, 0, 0));
        let undefined = s.values().iter().filter(|(_, value)| value.is_none()).count();
        assert_eq!(undefined, 15);
    }

    #[test]
    fn a_piece_of_endless_ticks_costs_its_notes_only() {
        let mut score = Score::new(1);
        score.meters = vec![Meter { tick: 0, numerator: 1, denominator: 128 }];
        score.tracks = vec![
            track(false, &[(0, 60, 1), (u64::MAX - 9, 62, u64::MAX)]),
            track(true, &[(7, 36, 1)]),
        ];
        let s = Statistics::with(&score, Definitions::MusPy);
        assert!(s.groove_consistency.unwrap() <= 1.0);
        let s = Statistics::of(&score);
        assert_eq!(s.notes, 3);
        assert!(s.groove_consistency.unwrap() <= 1.0);
    }

    #[test]
    fn spreads_interpolate_percentiles() {
        let mut score = Score::new(4);
        let pieces: Vec<Statistics> = (1..=5)
            .map(|n| {
                let notes: Vec<_> = (0..n).map(|i| (4 * i, 60, 4)).collect();
                score.tracks = vec![track(false, &notes)];
                Statistics::of(&score)
            })
            .collect();
        let spreads = spreads(&pieces);
        let notes = spreads.iter().find(|s| s.name == "notes").unwrap();
        assert_eq!((notes.pieces, notes.mean, notes.median), (5, 3.0, 3.0));
        assert!((notes.p5 - 1.2).abs() < 1e-12 && (notes.p95 - 4.8).abs() < 1e-12);
        assert!(spreads.iter().all(|s| s.name != "drums_in_pattern"));
    }
}
