//! What a performance is asked to be like: how dense, and in which pitch classes.
//!
//! Both are taken at each place from a window that begins there: the notes that begin in it by
//! the second, and how long each pitch class sounds in it, a hundredth of a second added to each.
//! A place that no time shift precedes has what the place before it has. At the end of the piece
//! the density counts only the part of the window that is there; the shift that leaves the window
//! counts in full for the histogram.
//!
//! A row has the density as one of 8 bins (below 1, 2, 4, 8, 16, 32, 64 notes a second, and
//! above), then the histogram, scaled to sum 1. Where it is optional it begins with a flag that
//! is 1, with nothing behind it, where nothing is asked for.
//!
//! # Source
//! Magenta, `performance_controls` and `OptionalEventSequenceEncoder`, with the windows of
//! Performance RNN's conditioned configurations: 3 s and 5 s.

use super::{Features, Field, lay};
use crate::performance::{NOTE_OFF, TIME_SHIFT, VELOCITY};
use crate::quantise::STEPS_PER_SECOND;

/// Window of the density in steps.
const DENSITY_WINDOW: u64 = 3 * STEPS_PER_SECOND;
/// Window of the histogram in steps.
const HISTOGRAM_WINDOW: u64 = 5 * STEPS_PER_SECOND;
/// Seconds that every pitch class has beforehand.
const PRIOR: f64 = 0.01;
/// Where the bins of density end, in notes a second; the last has no end.
const BINS: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

/// The steps that a token takes.
fn steps(token: u32) -> u64 {
    if (TIME_SHIFT..VELOCITY).contains(&token) { u64::from(token - TIME_SHIFT) + 1 } else { 0 }
}

/// Whether a place has values of its own.
fn begins_window(tokens: &[u32], place: usize) -> bool {
    place == 0 || steps(tokens[place - 1]) > 0
}

/// The notes a second, in a window of 3 s, at each token of a performance.
pub fn note_density(tokens: &[u32]) -> Vec<f64> {
    let is_onset = |token: u32| u64::from(token < NOTE_OFF);
    let mut densities: Vec<f64> = Vec::with_capacity(tokens.len());
    // The window from `place` to `end` holds `notes` onsets in `time` steps.
    let (mut end, mut notes, mut time) = (0, 0, 0);
    for place in 0..tokens.len() {
        if begins_window(tokens, place) {
            while time < DENSITY_WINDOW && end < tokens.len() {
                notes += is_onset(tokens[end]);
                time += steps(tokens[end]);
                end += 1;
            }
            let length = time.min(DENSITY_WINDOW);
            let density = (notes * STEPS_PER_SECOND) as f64 / length as f64;
            densities.push(if length > 0 { density } else { 0.0 });
        } else {
            densities.push(densities[place - 1]);
        }
        // `end` is behind `place`: some token was in the window, or it was carried over.
        notes -= is_onset(tokens[place]);
        time -= steps(tokens[place]);
    }
    densities
}

/// How long each pitch class has sounded up to a place.
#[derive(Clone)]
struct Sounding {
    at: usize,
    time: u64,
    pitches: u128,
    total: [u64; 12],
}

impl Sounding {
    fn take(&mut self, token: u32) {
        match token {
            0..NOTE_OFF => self.pitches |= 1 << token,
            NOTE_OFF..TIME_SHIFT => self.pitches &= !(1 << (token - NOTE_OFF)),
            _ => {
                let (steps, mut left) = (steps(token), self.pitches);
                while steps > 0 && left != 0 {
                    self.total[left.trailing_zeros() as usize % 12] += steps;
                    left &= left - 1;
                }
                self.time += steps;
            }
        }
        self.at += 1;
    }
}

/// How long each pitch class sounds, in seconds and with the prior, in a window of 5 s, at each
/// token of a performance.
pub fn pitch_histogram(tokens: &[u32]) -> Vec<[f32; 12]> {
    let mut histograms: Vec<[f32; 12]> = Vec::with_capacity(tokens.len());
    let mut begin = Sounding { at: 0, time: 0, pitches: 0, total: [0; 12] };
    let mut end = begin.clone();
    for place in 0..tokens.len() {
        if begins_window(tokens, place) {
            while end.time - begin.time < HISTOGRAM_WINDOW && end.at < tokens.len() {
                end.take(tokens[end.at]);
            }
            let mut seconds = [0.0; 12];
            for (class, seconds) in seconds.iter_mut().enumerate() {
                let steps = (end.total[class] - begin.total[class]) as f64;
                *seconds = (PRIOR + steps / STEPS_PER_SECOND as f64) as f32;
            }
            histograms.push(seconds);
        } else {
            histograms.push(histograms[place - 1]);
        }
        begin.take(tokens[place]);
    }
    histograms
}

/// The bin of a density in notes a second, 0 to 7.
pub fn density_bin(density: f64) -> u32 {
    BINS.iter().take_while(|&&end| density >= end).count() as u32
}

/// What is asked for at a place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ControlValues {
    /// Notes a second.
    pub density: f64,
    /// The weight of each pitch class, not negative, of any sum.
    pub histogram: [f32; 12],
}

/// Which controls a network has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Controls {
    /// Whether the density is asked for.
    pub density: bool,
    /// Whether the pitch classes are asked for.
    pub histogram: bool,
    /// Whether nothing can be asked for.
    pub optional: bool,
}

impl Controls {
    /// The fields of a row.
    pub fn fields(&self) -> Vec<Field> {
        let parts = [
            ("nothing is asked for", self.optional, 1),
            ("bin of density", self.density, BINS.len() as u32 + 1),
            ("weights of pitch classes", self.histogram, 12),
        ];
        let there: Vec<_> =
            parts.iter().filter(|part| part.1).map(|part| (part.0, part.2)).collect();
        lay(&there)
    }

    /// Positions of a row.
    pub fn width(&self) -> u32 {
        self.fields().iter().map(|field| field.width).sum()
    }

    /// Writes the row of a place; where the controls are not optional, `None` is a density of 0
    /// and equal pitch classes.
    pub fn fill(&self, values: Option<&ControlValues>, row: &mut Features) {
        row.clear();
        if values.is_none() && self.optional {
            row.ones.push(0);
            return;
        }
        let nothing = ControlValues { density: 0.0, histogram: [0.0; 12] };
        let values = values.unwrap_or(&nothing);
        let mut first = u32::from(self.optional);
        if self.density {
            row.ones.push(first + density_bin(values.density));
            first += BINS.len() as u32 + 1;
        }
        if self.histogram {
            let sum: f64 = values.histogram.iter().map(|&weight| f64::from(weight)).sum();
            let share = |weight: f32| match sum > 0.0 {
                true => (f64::from(weight) / sum) as f32,
                false => 1.0 / 12.0,
            };
            row.values.extend((first..).zip(values.histogram.map(share)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: u32 = 0;
    const OFF: u32 = 128;

    /// C and E at 0; after 1 s the E ends and G begins; after 2 s more all end.
    fn tokens() -> Vec<u32> {
        let (c, e, g) = (60, 64, 67);
        vec![ON + c, ON + e, 355, OFF + e, ON + g, 355, 355, OFF + c, OFF + g]
    }

    #[test]
    fn density_by_hand() {
        // The window at 0 s holds 3 onsets in its 3 s: 1 note a second, also for the two places
        // after it without a shift between. At 1 s: G alone, in the 2 s that are left: 0.5. At
        // 2 s: the window is 1 s long and empty. At the end there is no window: 0.
        let expected = [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0];
        assert_eq!(note_density(&tokens()), expected);
        assert_eq!(note_density(&[]), []);
        // 30 onsets at once, then 3 s: 10 a second.
        let burst: Vec<u32> = (0..30).chain([355, 355, 355, 40]).collect();
        assert_eq!(note_density(&burst)[0], 10.0);
    }

    #[test]
    fn histogram_by_hand() {
        let histograms = pitch_histogram(&tokens());
        // From 0 s: C sounds 3 s, E 1 s, G 2 s.
        let mut expected = [0.01f32; 12];
        (expected[0], expected[4], expected[7]) = (3.01, 1.01, 2.01);
        assert_eq!(histograms[0], expected);
        assert_eq!(histograms[2], expected);
        // From 1 s on, E ends there: C 2 s, G 2 s.
        let mut expected = [0.01f32; 12];
        (expected[0], expected[7]) = (2.01, 2.01);
        assert_eq!(histograms[3], expected);
        // At the end nothing sounds any more; the C ends at this very place.
        assert_eq!(histograms[7], [0.01; 12]);
        // The shift that leaves the window of 5 s counts in full: 0.99 s and 5 s.
        let long = [ON, 256 + 98, 355, 355, 355, 355, 355];
        assert_eq!(pitch_histogram(&long)[0][0], 6.0);
    }

    /// The definition, a window at a time.
    fn density_plain(tokens: &[u32], place: usize) -> f64 {
        let (mut time, mut notes) = (0, 0);
        for &token in &tokens[place..] {
            if time >= DENSITY_WINDOW {
                break;
            }
            notes += u64::from(token < 128);
            time += steps(token);
        }
        let length = time.min(DENSITY_WINDOW);
        if length == 0 { 0.0 } else { (notes * 100) as f64 / length as f64 }
    }

    #[test]
    fn sliding_the_window_equals_counting_it_anew() {
        let mut state = 1u64;
        let mut draw = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let tokens: Vec<u32> = (0..3000).map(|_| draw(388) as u32).collect();
        let densities = note_density(&tokens);
        for place in 0..tokens.len() {
            let same = place > 0 && steps(tokens[place - 1]) == 0;
            let expected = if same { densities[place - 1] } else { density_plain(&tokens, place) };
            assert_eq!(densities[place], expected, "{place}");
        }
    }

    #[test]
    fn bins_and_widths_are_the_published_ones() {
        let bins = [0.0, 0.99, 1.0, 3.9, 4.0, 63.9, 64.0, 1e9].map(density_bin);
        assert_eq!(bins, [0, 0, 1, 2, 3, 6, 7, 7]);
        let width =
            |density, histogram, optional| Controls { density, histogram, optional }.width();
        assert_eq!(width(true, false, false), 8);
        assert_eq!(width(false, true, false), 12);
        assert_eq!(width(true, true, false), 20);
        assert_eq!(width(true, true, true), 21);
    }

    #[test]
    fn rows_by_hand() {
        let controls = Controls { density: true, histogram: true, optional: true };
        let mut row = Features::default();
        controls.fill(None, &mut row);
        assert_eq!((&row.ones[..], &row.values[..]), (&[0][..], &[][..]));
        // 5 notes a second: bin 3, behind the flag. C three times as much as G.
        let mut histogram = [0.0; 12];
        (histogram[0], histogram[7]) = (3.0, 1.0);
        controls.fill(Some(&ControlValues { density: 5.0, histogram }), &mut row);
        assert_eq!(row.ones, [1 + 3]);
        assert_eq!((row.values[0], row.values[7], row.values.len()), ((9, 0.75), (16, 0.25), 12));
        controls.fill(Some(&ControlValues { density: 5.0, histogram: [0.0; 12] }), &mut row);
        assert_eq!(row.values[11], (20, 1.0 / 12.0));
    }
}
