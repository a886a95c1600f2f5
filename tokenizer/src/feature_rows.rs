//! Magenta's input features as rows of a fixed table, for networks that read sums of rows.
//!
//! Most of an input row is 0 or 1, so it is a set of positions; a counter's bits are 1 or -1, so a
//! position that can be -1 has a second row in the table, which holds the -1. Where numbers are
//! real ([`ModuloInput`]), each token has its row. A network thus reads
//!
//! ```text
//! x_t = sum of table[r] over the rows r of step t                      [width]
//! ```
//!
//! and needs no other way in than that of one-hot tokens.

use crate::features::{
    EventInput, Features, KeyInput, LabelInput, LookbackInput, ModuloInput, OneHotInput,
};
use crate::step_input::NO_ROW;
use crate::{Encoding, MelodyLabels, Performance};

/// Which features stand for the last events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureInput {
    /// Those of lookback_rnn, 121 wide, of labels.
    Lookback,
    /// Those of attention_rnn, 74 wide, of labels.
    Key,
    /// Those of drum_kit, 518 wide.
    DrumKit,
    /// Performance events on circles, 13 wide, with dynamics 16.
    Modulo {
        /// Whether events tell velocities.
        dynamics: bool,
    },
}

impl FeatureInput {
    /// The features that Magenta feeds to networks of an encoding; `None` where those are the tokens
    /// themselves.
    pub fn of(scheme: &str) -> Option<FeatureInput> {
        match scheme {
            "melody-lookback" | "melody-lookback-c" => Some(FeatureInput::Lookback),
            "melody-key" | "melody-key-c" => Some(FeatureInput::Key),
            "drums" => Some(FeatureInput::DrumKit),
            "performance" => Some(FeatureInput::Modulo { dynamics: false }),
            "performance-dynamics" => Some(FeatureInput::Modulo { dynamics: true }),
            _ => None,
        }
    }

    fn events(self) -> Box<dyn EventInput> {
        match self {
            FeatureInput::Lookback => {
                let input = Box::new(LookbackInput::melody());
                Box::new(LabelInput::of(&MelodyLabels::lookback(), input))
            }
            FeatureInput::Key => {
                Box::new(LabelInput::of(&MelodyLabels::key(), Box::new(KeyInput::new())))
            }
            FeatureInput::DrumKit => Box::new(LookbackInput::drum_kit()),
            // Each token has a row of the table.
            FeatureInput::Modulo { dynamics } => {
                Box::new(OneHotInput::of(FeatureInput::vocab(dynamics)))
            }
        }
    }

    fn vocab(dynamics: bool) -> u32 {
        let size = if dynamics { Performance::with_dynamics() } else { Performance::plain() };
        size.vocab_size() as u32
    }

    fn modulo(dynamics: bool) -> ModuloInput {
        if dynamics { ModuloInput::with_dynamics() } else { ModuloInput::plain() }
    }

    /// Numbers that the network reads at a step.
    pub fn width(self) -> usize {
        match self {
            FeatureInput::Modulo { dynamics } => FeatureInput::modulo(dynamics).width() as usize,
            _ => self.events().width() as usize,
        }
    }

    /// Rows of the table.
    pub fn rows(self) -> usize {
        let events = self.events();
        events.width() as usize + events.signed().len()
    }

    /// The most rows of a step.
    pub fn active(self) -> usize {
        match self {
            FeatureInput::Lookback => 3 + 5 + 2,
            FeatureInput::Key => 6 + 7 + 1 + 12 + 12,
            FeatureInput::DrumKit => 1 + 6,
            FeatureInput::Modulo { .. } => 1,
        }
    }

    /// The table `[rows, width]`.
    pub fn table(self) -> Vec<f32> {
        let width = self.width();
        let mut table = vec![0.0; self.rows() * width];
        if let FeatureInput::Modulo { dynamics } = self {
            let mut row = Features::default();
            for (token, values) in (0..).zip(table.chunks_exact_mut(width)) {
                FeatureInput::modulo(dynamics).fill(token, &mut row);
                row.write(values);
            }
            return table;
        }
        (0..width).for_each(|at| table[at * width + at] = 1.0);
        for (place, at) in self.events().signed().into_iter().enumerate() {
            table[(width + place) * width + at as usize] = -1.0;
        }
        table
    }

    /// Reads a piece from its first event on.
    pub fn reader(self) -> FeatureReader {
        let events = self.events();
        let (width, signed) = (events.width(), events.signed());
        FeatureReader { events, width, signed, read: 0, row: Features::default() }
    }
}

/// Writes the rows of one step after another.
pub struct FeatureReader {
    events: Box<dyn EventInput>,
    width: u32,
    signed: Vec<u32>,
    read: usize,
    row: Features,
}

impl FeatureReader {
    /// Writes the rows for the prediction of step `t`, given the tokens of the steps before it; to go
    /// on costs the steps since the last call, to go back all of them.
    ///
    /// # Shapes
    /// `tokens` at least `[t]`; `rows` `[active]`.
    ///
    /// # Panics
    /// If a slice is shorter.
    pub fn fill(&mut self, tokens: &[u32], t: usize, rows: &mut [u32]) {
        if t < self.read {
            self.events.reset();
            self.read = 0;
        }
        for &token in &tokens[self.read..t] {
            self.events.push(token, &mut self.row);
        }
        self.read = t;
        rows.fill(NO_ROW);
        if t == 0 {
            return;
        }
        let (ones, values) = rows.split_at_mut(self.row.ones.len());
        assert!(self.row.values.len() <= values.len(), "more values than a step has rows");
        ones.copy_from_slice(&self.row.ones);
        for (row, &(at, value)) in values.iter_mut().zip(&self.row.values) {
            *row = match self.signed.binary_search(&at) {
                Ok(place) if value < 0.0 => self.width + place as u32,
                _ => at,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding;

    const SCHEMES: [&str; 5] =
        ["melody-lookback", "melody-key-c", "drums", "performance", "performance-dynamics"];

    #[test]
    fn widths_are_the_published_ones() {
        let widths = SCHEMES.map(|scheme| FeatureInput::of(scheme).unwrap().width());
        assert_eq!(widths, [121, 74, 518, 13, 16]);
        assert_eq!(FeatureInput::of("melody"), None);
    }

    /// The sums of rows are the rows that the inputs themselves write.
    #[test]
    fn sums_of_rows_are_the_features() {
        for scheme in SCHEMES {
            let kind = FeatureInput::of(scheme).unwrap();
            let vocab = encoding(scheme).unwrap().vocab_size() as u32;
            let tokens: Vec<u32> = (0..200u32)
                .map(|t| t.wrapping_mul(2_654_435_761) >> 7)
                .map(|t| t % vocab)
                .collect();
            let mut input: Box<dyn EventInput> = match kind {
                FeatureInput::Modulo { dynamics } => Box::new(FeatureInput::modulo(dynamics)),
                kind => kind.events(),
            };
            let (width, table) = (kind.width(), kind.table());
            assert_eq!(table.len(), kind.rows() * width);
            let (mut row, mut wanted) = (Features::default(), vec![0.0; width]);
            let mut reader = kind.reader();
            let mut rows = vec![7; kind.active()];
            reader.fill(&tokens, 0, &mut rows);
            assert!(rows.iter().all(|row| *row == NO_ROW), "nothing is known at first");
            for t in 1..=tokens.len() {
                input.push(tokens[t - 1], &mut row);
                row.write(&mut wanted);
                reader.fill(&tokens, t, &mut rows);
                let mut sum = vec![0.0; width];
                for at in rows.iter().filter(|row| **row != NO_ROW) {
                    let from = *at as usize * width;
                    sum.iter_mut().zip(&table[from..from + width]).for_each(|(s, x)| *s += x);
                }
                assert_eq!(sum, wanted, "{scheme} step {t}");
            }
            let last = rows.clone();
            reader.fill(&tokens, 3, &mut rows);
            reader.fill(&tokens, tokens.len(), &mut rows);
            assert_eq!(rows, last, "{scheme}: back and on again");
        }
    }
}
