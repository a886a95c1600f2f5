//! What a model of melodies reads before each step: the last token, and where in the tune it is.
//!
//! A language model over a melody predicts step `t` from what it is fed. Fed with the last token
//! alone ([`StepInput::previous`], Magenta's basic RNN) it must count bars by itself and forgets what
//! stood eight bars ago. [`StepInput::form`] adds what a player sees on the page: the metre and the
//! place in the bar, the place in the eight-bar strain, how many bars are left, and what was played
//! at this place 1, 2, 4 and 8 bars ago. The last is the lookback of Magenta's lookback RNN
//! (Waite 2016), counted in bars of the tune's own metre.
//!
//! A network that plays over chords, or is asked for a density, reads those as well
//! ([`StepInput::guided`]): the rows of the guide come first, then those of the events.
//!
//! All of it is written as row numbers of one input matrix (a multi-hot input): the network sums
//! those rows.

use crate::guide::GuideReader;
use crate::pairs::{BARS, PLACES, Walk};
use crate::{FeatureInput, FeatureReader, Guide, GuideInput, Meter, NotePerformance, PianoRoll};

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
/// Tokens of a note that is told by its parts.
const NOTE_TOKENS: usize = NotePerformance::HEADS.len();
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
#[derive(Debug, Clone, PartialEq)]
pub struct StepInput {
    vocab: usize,
    kind: Kind,
    beside: Option<(GuideInput, Guide)>,
}

/// What is told beside the last token, or in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Previous,
    Form(Form),
    Features(FeatureInput),
    Keys,
    Notes,
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
        StepInput::of(vocab, Kind::Previous)
    }

    /// The last token and the form: for a piece of `bars` bars in one metre.
    pub fn form(vocab: usize, meter: Meter, bars: usize) -> StepInput {
        let form = Form {
            meter_row: meter_row(meter),
            is_known_meter: METERS.contains(&(meter.numerator, meter.denominator)),
            steps_per_bar: steps_per_bar(meter),
            bars,
        };
        StepInput::of(vocab, Kind::Form(form))
    }

    /// The keys of the last step of a piano roll, a row for each. Its rows are sets of any size, so
    /// that [`StepInput::fill`] does not write them.
    pub fn keys() -> StepInput {
        StepInput::of(PianoRoll::KEYS, Kind::Keys)
    }

    /// The six parts of the last note of [`NotePerformance`], read where a note begins; nothing is read
    /// at the other parts.
    pub fn notes() -> StepInput {
        StepInput::of(NotePerformance::FIRST[NOTE_TOKENS] as usize, Kind::Notes)
    }

    /// Tokens between places at which reading may begin.
    pub fn stride(&self) -> usize {
        if self.kind == Kind::Notes { NOTE_TOKENS } else { 1 }
    }

    /// Features of the last tokens, as rows of a fixed table.
    pub fn features(vocab: usize, features: FeatureInput) -> StepInput {
        StepInput::of(vocab, Kind::Features(features))
    }

    /// The last token of a [`crate::Pair`], whose vocabulary without its end is `vocab`, with the bar and the
    /// sixteenth in which it stands.
    pub fn pair(vocab: usize) -> StepInput {
        StepInput::of(vocab + 1, Kind::Pair)
    }

    /// Tells whether a piece is taken apart into a melody and what goes with it.
    pub fn is_pair(&self) -> bool {
        self.kind == Kind::Pair
    }

    fn of(vocab: usize, kind: Kind) -> StepInput {
        StepInput { vocab, kind, beside: None }
    }

    /// The same with a guide beside it, of which nothing is told yet: no chord, or what a performance
    /// has itself.
    pub fn guided(self, by: GuideInput) -> StepInput {
        let guide = match by {
            GuideInput::Chords(_) => Guide::Nothing,
            GuideInput::Controls(_) => Guide::Itself,
        };
        StepInput { beside: Some((by, guide)), ..self }
    }

    /// The same, told a guide; an input without a guide stays as it is.
    pub fn told(self, guide: Guide) -> StepInput {
        StepInput { beside: self.beside.map(|(by, _)| (by, guide)), ..self }
    }

    /// What guides the piece, and how it is read.
    pub fn guide(&self) -> Option<(GuideInput, &Guide)> {
        self.beside.as_ref().map(|(by, guide)| (*by, guide))
    }

    /// Reads a piece step after step while it is written.
    pub fn reader(&self) -> StepReader {
        self.reader_of(&[])
    }

    /// Reads a piece whose tokens are known, step after step: what guides it may lie in tokens to come.
    pub fn reader_of(&self, tokens: &[u32]) -> StepReader {
        let features = match self.kind {
            Kind::Features(features) => Some(features.reader()),
            _ => None,
        };
        let guide = self.beside.as_ref().map(|(by, guide)| GuideReader::new(*by, guide, tokens));
        StepReader { input: self.clone(), features, guide, walk: Walk::default() }
    }

    /// Tells whether the rows are the keys of the last step.
    pub fn is_keys(&self) -> bool {
        self.kind == Kind::Keys
    }

    /// Rows of the guide, which stand before those of the events.
    fn guide_rows(&self) -> usize {
        self.beside.as_ref().map_or(0, |(by, _)| by.rows())
    }

    /// Rows that a guide has at a step.
    fn guide_active(&self) -> usize {
        self.beside.as_ref().map_or(0, |(by, _)| by.active())
    }

    /// Rows of the input matrix.
    pub fn rows(&self) -> usize {
        self.guide_rows() + self.event_rows()
    }

    /// Rows that are summed for one step.
    pub fn active(&self) -> usize {
        self.guide_active() + self.event_active()
    }

    /// Numbers that the network reads at a step: the columns of [`StepInput::table`], and as many as
    /// there are rows where there is none.
    pub fn width(&self) -> usize {
        let events = match self.kind {
            Kind::Features(features) => features.width(),
            _ => self.event_rows(),
        };
        self.beside.as_ref().map_or(0, |(by, _)| by.width()) + events
    }

    /// The fixed vectors of the rows `[rows, width]`; `None` where each row is a position of its own.
    pub fn table(&self) -> Option<Vec<f32>> {
        let features = match self.kind {
            Kind::Features(features) => Some(features),
            _ => None,
        };
        let guide = self.beside.as_ref().map(|(by, _)| *by);
        if features.is_none() && guide.is_none_or(GuideInput::is_one_hot) {
            return None;
        }
        let width = self.width();
        let mut table = vec![0.0; self.rows() * width];
        let before = guide.map_or(0, GuideInput::width);
        for (row, values) in table.chunks_exact_mut(width).take(self.guide_rows()).enumerate() {
            let entry = |at| guide.map_or(0.0, |by| by.entry(row, at));
            values[..before].iter_mut().enumerate().for_each(|(at, value)| *value = entry(at));
        }
        let events = table[self.guide_rows() * width..].chunks_exact_mut(width);
        match features {
            None => events.enumerate().for_each(|(row, values)| values[before + row] = 1.0),
            Some(features) => {
                let own = features.table();
                let own = own.chunks_exact(features.width());
                events.zip(own).for_each(|(values, own)| values[before..].copy_from_slice(own));
            }
        }
        Some(table)
    }

    fn event_rows(&self) -> usize {
        match self.kind {
            Kind::Previous | Kind::Keys | Kind::Notes => self.vocab,
            Kind::Features(features) => features.rows(),
            Kind::Pair => self.vocab + (BARS + PLACES) as usize,
            Kind::Form(_) => {
                self.vocab * (1 + LOOKBACK_BARS.len()) + place_rows() + STRAIN_BARS + COUNTDOWN_BARS
            }
        }
    }

    fn event_active(&self) -> usize {
        match self.kind {
            Kind::Previous | Kind::Keys => 1,
            Kind::Notes => NOTE_TOKENS,
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
        if self.beside.is_some() || matches!(self.kind, Kind::Features(_)) {
            return self.reader().fill(tokens, t, rows);
        }
        self.fill_events(tokens, t, rows);
    }

    fn fill_events(&self, tokens: &[u32], t: usize, rows: &mut [u32]) {
        if self.kind == Kind::Notes {
            match t % NOTE_TOKENS {
                0 if t > 0 => rows.copy_from_slice(&tokens[t - NOTE_TOKENS..t]),
                _ => rows.fill(NO_ROW),
            }
            return;
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
    guide: Option<GuideReader>,
    walk: Walk,
}

impl StepReader {
    /// Writes the rows for the prediction of step `t`, as [`StepInput::fill`] does.
    ///
    /// # Panics
    /// If a slice is shorter.
    pub fn fill(&mut self, tokens: &[u32], t: usize, rows: &mut [u32]) {
        let Some(guide) = &mut self.guide else { return self.fill_events(tokens, t, rows) };
        let (told, events) = rows.split_at_mut(self.input.guide_active());
        guide.fill(t, told);
        self.fill_events(tokens, t, events);
        let before = self.input.guide_rows() as u32;
        events.iter_mut().filter(|row| **row != NO_ROW).for_each(|row| *row += before);
    }

    fn fill_events(&mut self, tokens: &[u32], t: usize, rows: &mut [u32]) {
        match &mut self.features {
            Some(features) => features.fill(tokens, t, rows),
            None if self.input.is_pair() => self.fill_pair(&tokens[..t], rows),
            None => self.input.fill_events(tokens, t, rows),
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
    use crate::ChordTrack;
    use crate::chord::Progression;
    use crate::features::ChordInput;

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
    fn a_note_is_read_whole_where_the_next_begins() {
        let input = StepInput::notes();
        assert_eq!((input.rows(), input.active(), input.stride()), (315, 6, 6));
        let tokens: Vec<u32> = (0..14).collect();
        let mut rows = [7; 6];
        for (t, wanted) in [(0, None), (5, None), (6, Some(0)), (7, None), (12, Some(6))] {
            input.fill(&tokens, t, &mut rows);
            let wanted =
                wanted.map_or([NO_ROW; 6], |from| std::array::from_fn(|k| from + k as u32));
            assert_eq!(rows, wanted, "{t}");
        }
        assert_eq!(StepInput::previous(38).stride(), 1);
    }

    #[test]
    fn a_guide_stands_before_the_events() {
        let track = ChordTrack::repeated(&Progression::parse("Am F").unwrap(), 2).unwrap();
        let input = StepInput::previous(38).guided(GuideInput::Chords(ChordInput::Triads));
        assert_eq!((input.rows(), input.width(), input.active()), (49 + 38, 49 + 38, 2));
        assert_eq!(input.table(), None);
        let input = input.told(Guide::Chords(track.clone()));
        let (mut reader, mut rows) = (input.reader(), [0; 2]);
        let mut at = |t| {
            reader.fill(&[7, 9, 11], t, &mut rows);
            rows
        };
        // A minor is 1 + 12 + 9, F major 1 + 5; nothing is before the first step.
        assert_eq!([0, 1, 2, 3].map(&mut at), [[22, NO_ROW], [22, 56], [6, 58], [6, 60]]);
        // An input that reads no guide is not told one.
        let plain = StepInput::previous(38).told(Guide::Chords(track.clone()));
        assert_eq!((plain.guide(), plain.rows()), (None, 38));

        // Features behind a guide: the sums of rows are those of both.
        let input = StepInput::features(40, FeatureInput::Key)
            .guided(GuideInput::Chords(ChordInput::Pitches))
            .told(Guide::Chords(track));
        assert_eq!(input.width(), 37 + 74);
        let table = input.table().unwrap();
        assert_eq!(table.len(), input.rows() * input.width());
        let tokens: Vec<u32> = (0..30).map(|t| t * 7 % 38).collect();
        let sum = |table: &[f32], width: usize, rows: &[u32]| {
            let mut sum = vec![0.0; width];
            for row in rows.iter().filter(|row| **row != NO_ROW) {
                let values = &table[*row as usize * width..][..width];
                sum.iter_mut().zip(values).for_each(|(s, x)| *s += x);
            }
            sum
        };
        let (mut rows, mut own) = (vec![0; input.active()], vec![0; FeatureInput::Key.active()]);
        input.fill(&tokens, 29, &mut rows);
        FeatureInput::Key.reader().fill(&tokens, 29, &mut own);
        let both = sum(&table, input.width(), &rows);
        assert_eq!(both[37..], sum(&FeatureInput::Key.table(), 74, &own));
        // Bars of two steps: step 29 is in the fifteenth bar, so A minor: A, C, E over A.
        let ones: Vec<usize> = (0..37).filter(|at| both[*at] == 1.0).collect();
        assert_eq!(ones, [1 + 9, 13, 13 + 4, 13 + 9, 25 + 9]);
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
