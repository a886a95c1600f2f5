//! What a network reads at each step, beyond a single token: positions of one input row that are
//! 1, positions with another value, and zero everywhere else.
//!
//! Each kind of input tells its width and its fields in order. A row is made of the events up to
//! a place, and is what the network reads to predict the event after it. A network with one
//! matrix of `width` rows sums the rows of [`Features::ones`] and adds the rows of
//! [`Features::values`], each times its value; [`Features::write`] gives the row itself.
//!
//! | input | width | of |
//! | --- | --- | --- |
//! | [`OneHotInput`] | the vocabulary | tokens of any encoding |
//! | [`LookbackInput::melody`] | 121 | events of [`crate::Melody::basic`] |
//! | [`LookbackInput::drum_kit`] | 518 | tokens of [`crate::Drums::kit`] |
//! | [`KeyInput`] | 74 | events of [`crate::Melody::basic`] |
//! | [`ChordInput::Triads`] | 49 | chords |
//! | [`ChordInput::Pitches`] | 37 | chords |
//! | [`ModuloInput`] | 16, 13 without dynamics | tokens of [`crate::Performance`] |
//! | [`Controls`] | 8, 12, 20; 1 more where it is optional | a density, weights of pitch classes |
//!
//! Inputs of events take one after another ([`EventInput`]). [`LabelInput`] makes such an input
//! take the labels of [`crate::MelodyLabels`].

mod chord;
mod controls;
mod key;
mod lookback;
mod modulo;
mod token;

pub use chord::ChordInput;
pub use controls::{ControlValues, Controls, density_bin, note_density, pitch_histogram};
pub use key::KeyInput;
pub use lookback::LookbackInput;
pub use modulo::ModuloInput;
pub use token::{LabelInput, OneHotInput};

/// Takes the events of a piece one after another and writes the row of each.
///
/// # Panics
/// Pushing an event that the input does not know panics: an encoding never makes one.
pub trait EventInput: Send {
    /// Positions of a row.
    fn width(&self) -> u32;

    /// The fields of a row.
    fn fields(&self) -> Vec<Field>;

    /// The positions whose values are 1 and -1, ascending; the others are 0 or 1.
    fn signed(&self) -> Vec<u32> {
        Vec::new()
    }

    /// Goes back to before the first event.
    fn reset(&mut self);

    /// Takes the next event and writes its row, which is read to predict the event after it.
    fn push(&mut self, event: u32, row: &mut Features);

    /// An input at the same place of a piece, to go another way.
    fn copy(&self) -> Box<dyn EventInput>;
}

/// One row of input, of which most is zero. Positions ascend and none stands twice.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Features {
    /// Positions of the row that are 1.
    pub ones: Vec<u32>,
    /// Positions of the row with their values.
    pub values: Vec<(u32, f32)>,
}

/// A part of an input row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// What it tells.
    pub name: &'static str,
    /// Its first position.
    pub first: u32,
    /// How many positions it has.
    pub width: u32,
}

impl Features {
    /// Makes the row zero; its memory stays for the next.
    pub fn clear(&mut self) {
        self.ones.clear();
        self.values.clear();
    }

    /// Puts another row behind this one, which has so many positions.
    pub fn append(&mut self, width: u32, row: &Features) {
        self.ones.extend(row.ones.iter().map(|at| width + at));
        self.values.extend(row.values.iter().map(|&(at, value)| (width + at, value)));
    }

    /// Writes the row out.
    ///
    /// # Shapes
    /// `row` `[width]`.
    ///
    /// # Panics
    /// If a position is beyond the row.
    pub fn write(&self, row: &mut [f32]) {
        row.fill(0.0);
        self.ones.iter().for_each(|&at| row[at as usize] = 1.0);
        self.values.iter().for_each(|&(at, value)| row[at as usize] = value);
    }

    fn flag(&mut self, at: u32, set: bool) {
        if set {
            self.ones.push(at);
        }
    }

    /// A binary counter, lowest bit first: 1 for a set bit, -1 for a clear one.
    fn counter(&mut self, first: u32, bits: u32, number: usize) {
        let bit = |i: u32| if number >> i & 1 == 1 { 1.0 } else { -1.0 };
        self.values.extend((0..bits).map(|i| (first + i, bit(i))));
    }
}

/// Lays fields one after another.
fn lay(parts: &[(&'static str, u32)]) -> Vec<Field> {
    let mut next = 0;
    let mut field = |&(name, width): &(&'static str, u32)| {
        let first = next;
        next += width;
        Field { name, first, width }
    };
    parts.iter().map(&mut field).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_put_one_behind_the_other() {
        let mut row = Features { ones: vec![1], values: vec![(2, -1.0)] };
        row.append(3, &Features { ones: vec![0], values: vec![(1, 0.5)] });
        let mut dense = [9.0; 5];
        row.write(&mut dense);
        assert_eq!(dense, [0.0, 1.0, -1.0, 1.0, 0.5]);
        row.clear();
        row.write(&mut dense);
        assert_eq!(dense, [0.0; 5]);
    }

    #[test]
    fn counters_count_from_the_lowest_bit() {
        let mut row = Features::default();
        row.counter(4, 3, 6);
        assert_eq!(row.values, [(4, -1.0), (5, 1.0), (6, 1.0)]);
    }
}
