//! What a model of melodies reads before each step: the last token, and where in the tune it is.
//!
//! A language model over a melody predicts step `t` from what it is fed. Fed with the last token
//! alone ([`StepInput::previous`], Magenta's basic RNN) it must count bars by itself and forgets what
//! stood eight bars ago. [`StepInput::form`] adds what a player sees on the page: the metre and the
//! place in the bar, the place in the eight-bar strain, how many bars are left, and what was played
//! at this place 1, 2, 4 and 8 bars ago. The last is the lookback of Magenta's lookback RNN
//! (Waite 2016), counted in bars of the tune's own metre.
//!
//! All of it is written as row numbers of one input matrix (a multi-hot input): the network sums
//! those rows.

use crate::pairs::{BARS, PLACES, Walk};
use crate::{FeatureInput, FeatureReader, Meter, PianoRoll};

/// An empty slot: no row is added.
pub const NO_ROW: u32 = u32::MAX;

/// Distances, in bars, of the lookback.
const LOOKBACK_BARS: [usize; 4] = [1, 2, 4, 8];
/// Bars of a strain.
const STRAIN_BARS: usize = 8;
/// `bars left` is told up to here; more count as this many.
const COUNTDOWN_BARS: usize = 9;
/// Metres with rows of their own; every other metre shares one row for each place in the bar.
const METERS: [(u8, u8); 8] = [(2, 4), (3, 4), (4, 4), (2, 2), (6, 8), (9, 8), (3, 8), (12, 8)];
/// Places in a bar of a metre without rows of its own.
const OTHER_PLACES: usize = 32;
/// Steps of a whole note.
const STEPS_PER_WHOLE: usize = 16;

/// The steps of a bar, at 4 steps a quarter note; at least 1.
pub fn steps_per_bar(meter: Meter) -> usize {
    (STEPS_PER_WHOLE * usize::from(meter.numerator) / usize::from(meter.denominator.max(1))).max(1)
}

/// The first row of a metre's places, counted from the first row of all places.
fn meter_row(meter: Meter) -> usize {
    let steps = |(numerator, denominator)| steps_per_bar(Meter { tick: 0, numerator, denominator });
    let mut row = 0;
    for known in METERS {
        if known == (meter.numerator, meter.denominator) {
            break;
        }
        row += steps(known);
    }
    row
}

fn place_rows() -> usize {
    meter_row(Meter { tick: 0, numerator: 0, denominator: 1 }) + OTHER_PLACES
}

/// The input of each step of one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepInput {
    vocab: usize,
    kind: Kind,
}

/// What is told beside the last token, or in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Previous,
    Form(Form),
    Features(FeatureInput),
    Keys,
    Pair,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form {
    meter_row: usize,
    is_known_meter: bool,
    steps_per_bar: usize,
    bars: usize,
}

impl StepInput {
    /// The last token alone, one-hot; nothing before the first step.
    pub fn previous(vocab: usize) -> StepInput {
        StepInput { vocab, kind: Kind::Previous }
    }

    /// The last token and the form: for a piece of `bars` bars in one metre.
    pub fn form(vocab: usize, meter: Meter, bars: usize) -> StepInput {
        let form = Form {
            meter_row: meter_row(meter),
            is_known_meter: METERS.contains(&(meter.numerator, meter.denominator)),
            steps_per_bar: steps_per_bar(meter),
            bars,
        };
        StepInput { vocab, kind: Kind::Form(form) }
    }

    /// The keys of the last step of a piano roll, a row for each. Its rows are sets of any size, so
    /// that [`StepInput::fill`] does not write them.
    pub fn keys() -> StepInput {
        StepInput { vocab: PianoRoll::KEYS, kind: Kind::Keys }
    }

    /// Features of the last tokens, as rows of a fixed table.
    pub fn features(vocab: usize, features: FeatureInput) -> StepInput {
        StepInput { vocab, kind: Kind::Features(features) }
    }

    /// The last token of a [`crate::Pair`], whose vocabulary without its end is `vocab`, with the bar and the
    /// sixteenth in which it stands.
    pub fn pair(vocab: usize) -> StepInput {
        StepInput { vocab: vocab + 1, kind: Kind::Pair }
    }

    /// Tells whether a piece is taken apart into a melody and what goes with it.
    pub fn is_pair(&self) -> bool {
        self.kind == Kind::Pair
    }

    /// Reads a piece step after step, which is cheaper than [`StepInput::fill`] at each.
    pub fn reader(self) -> StepReader {
        let features = match self.kind {
            Kind::Features(features) => Some(features.reader()),
            _ => None,
        };
        StepReader { input: self, features, walk: Walk::default() }
    }

    /// Tells whether the rows are the keys of the last step.
    pub fn is_keys(&self) -> bool {
        self.kind == Kind::Keys
    }

    /// Rows of the input matrix.
    pub fn rows(&self) -> usize {
        match self.kind {
            Kind::Previous | Kind::Keys => self.vocab,
            Kind::Features(features) => features.rows(),
            Kind::Pair => self.vocab + (BARS + PLACES) as usize,
            Kind::Form(_) => {
                self.vocab * (1 + LOOKBACK_BARS.len()) + place_rows() + STRAIN_BARS + COUNTDOWN_BARS
            }
        }
    }

    /// Rows that are summed for one step.
    pub fn active(&self) -> usize {
        match self.kind {
            Kind::Previous | Kind::Keys => 1,
            Kind::Features(features) => features.active(),
            Kind::Pair => 3,
            Kind::Form(_) => 1 + LOOKBACK_BARS.len() + 3,
        }
    }

    /// Writes the rows for the prediction of step `t`, given the tokens of the steps before it.
    ///
    /// # Shapes
    /// `tokens` at least `[t]`; `rows` `[active]`.
    ///
    /// # Panics
    /// If a slice is shorter.
    pub fn fill(&self, tokens: &[u32], t: usize, rows: &mut [u32]) {
        if let Kind::Features(features) = self.kind {
            return features.reader().fill(tokens, t, rows);
        }
        if self.is_pair() {
            return self.reader().fill(tokens, t, rows);
        }
        rows[0] = if t == 0 { NO_ROW } else { tokens[t - 1] };
        let Kind::Form(form) = self.kind else { return };
        let mut base = self.vocab;
        for (slot, bars) in LOOKBACK_BARS.into_iter().enumerate() {
            let back = bars * form.steps_per_bar;
            rows[1 + slot] = if t < back { NO_ROW } else { base as u32 + tokens[t - back] };
            base += self.vocab;
        }
        let (bar, place) = (t / form.steps_per_bar, t % form.steps_per_bar);
        let place = if form.is_known_meter { place } else { place % OTHER_PLACES };
        let slot = 1 + LOOKBACK_BARS.len();
        rows[slot] = (base + form.meter_row + place) as u32;
        base += place_rows();
        rows[slot + 1] = (base + bar % STRAIN_BARS) as u32;
        base += STRAIN_BARS;
        let left = form.bars.saturating_sub(bar).clamp(1, COUNTDOWN_BARS);
        rows[slot + 2] = (base + left - 1) as u32;
    }
}

/// The input of one piece, step after step.
pub struct StepReader {
    input: StepInput,
    features: Option<FeatureReader>,
    walk: Walk,
}

impl StepReader {
    /// Writes the rows for the prediction of step `t`, as [`StepInput::fill`] does.
    ///
    /// # Panics
    /// If a slice is shorter.
    pub fn fill(&mut self, tokens: &[u32], t: usize, rows: &mut [u32]) {
        match &mut self.features {
            Some(features) => features.fill(tokens, t, rows),
            None if self.input.is_pair() => self.fill_pair(&tokens[..t], rows),
            None => self.input.fill(tokens, t, rows),
        }
    }
}

impl StepReader {
    fn fill_pair(&mut self, tokens: &[u32], rows: &mut [u32]) {
        if self.walk.count > tokens.len() {
            self.walk = Walk::default();
        }
        tokens[self.walk.count..].iter().for_each(|token| self.walk.push(*token));
        let vocab = self.input.vocab as u32;
        rows[0] = tokens.last().copied().unwrap_or(NO_ROW);
        for (row, of_place) in rows[1..].iter_mut().zip(self.walk.rows()) {
            *row = if of_place == NO_ROW { NO_ROW } else { vocab + of_place };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JIG: Meter = Meter { tick: 0, numerator: 6, denominator: 8 };

    #[test]
    fn previous_feeds_the_last_token() {
        let input = StepInput::previous(38);
        assert_eq!((input.rows(), input.active()), (38, 1));
        let mut rows = [0];
        input.fill(&[], 0, &mut rows);
        assert_eq!(rows, [NO_ROW]);
        input.fill(&[7, 9], 2, &mut rows);
        assert_eq!(rows, [9]);
    }

    #[test]
    fn form_looks_back_by_bars_of_its_metre() {
        let input = StepInput::form(38, JIG, 16);
        let tokens: Vec<u32> = (0..200).map(|t| t % 38).collect();
        let mut rows = vec![0; input.active()];
        // Step 100 of a tune with 12 steps a bar: bar 8, place 4, 8 bars left of 16.
        input.fill(&tokens, 100, &mut rows);
        let back = |bars: u32| (100 - 12 * bars) % 38;
        let places = 38 * 5 + 8 + 12 + 16 + 16; // 2/4, 3/4, 4/4, 2/2 come first
        let strain = 38 * 5 + 8 + 12 + 16 + 16 + 12 + 18 + 6 + 24 + 32;
        assert_eq!(
            rows,
            [
                99 % 38,
                38 + back(1),
                76 + back(2),
                114 + back(4),
                152 + back(8),
                places + 4,
                strain,
                strain + 8 + 7
            ]
        );
        assert_eq!(input.rows() as u32, strain + 8 + 9);
    }

    #[test]
    fn every_row_is_inside_the_matrix_in_any_metre() {
        for numerator in 0..=40u8 {
            for denominator in [1u8, 2, 4, 8, 16, 32, 64, 128] {
                let input = StepInput::form(38, Meter { tick: 0, numerator, denominator }, 3);
                let tokens = vec![37; 3000];
                let mut rows = vec![0; input.active()];
                for t in (0..3000).step_by(7) {
                    input.fill(&tokens, t, &mut rows);
                    let inside = |r: &u32| *r == NO_ROW || (*r as usize) < input.rows();
                    assert!(rows.iter().all(inside), "{numerator}/{denominator} {t}: {rows:?}");
                }
            }
        }
    }
}
