//! Events of a performance as places on circles: neighbours in pitch, time or loudness are near.
//!
//! | positions | tell |
//! | --- | --- |
//! | 0 to 4 | a note-on: 1, then cosine and sine of the pitch on a circle of 144, of its class on one of 12 |
//! | 5 to 9 | a note-off, the same |
//! | 10 to 12 | a time shift: 1, cosine and sine of its steps less one on a circle of 100 |
//! | 13 to 15 | a velocity: 1, cosine and sine of its bin on a circle of 32 |
//!
//! # Source
//! Magenta, `ModuloPerformanceEventSequenceEncoderDecoder`.

use super::{EventInput, Features, Field, lay};
use crate::performance::{NOTE_OFF, TIME_SHIFT, VELOCITY};
use std::f64::consts::TAU;

/// The circular input of performances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModuloInput {
    dynamics: bool,
}

impl ModuloInput {
    /// Makes the input of 13 positions, for [`crate::Performance::plain`].
    pub fn plain() -> ModuloInput {
        ModuloInput { dynamics: false }
    }

    /// Makes the input of 16 positions, for [`crate::Performance::with_dynamics`].
    pub fn with_dynamics() -> ModuloInput {
        ModuloInput { dynamics: true }
    }

    /// Writes the row of a token.
    ///
    /// # Panics
    /// If the token is not in the performance encoding's vocabulary.
    pub fn fill(&self, token: u32, row: &mut Features) {
        let size = if self.dynamics { 388 } else { 356 };
        assert!(token < size, "token {token} of {size}");
        row.clear();
        let mut circle = |at: u32, place: u32, places: u32| {
            let angle = TAU * f64::from(place % places) / f64::from(places);
            row.values.extend([(at, angle.cos() as f32), (at + 1, angle.sin() as f32)]);
        };
        let first = match token {
            0..TIME_SHIFT => {
                let (first, pitch) = (token / NOTE_OFF * 5, token % NOTE_OFF);
                circle(first + 1, pitch, 144);
                circle(first + 3, pitch, 12);
                first
            }
            TIME_SHIFT..VELOCITY => {
                circle(11, token - TIME_SHIFT, 100);
                10
            }
            _ => {
                circle(14, token - VELOCITY, 32);
                13
            }
        };
        row.ones.push(first);
    }
}

impl EventInput for ModuloInput {
    fn width(&self) -> u32 {
        if self.dynamics { 16 } else { 13 }
    }

    fn fields(&self) -> Vec<Field> {
        let parts = [("note-on", 5), ("note-off", 5), ("time shift", 3), ("velocity", 3)];
        lay(&parts[..if self.dynamics { 4 } else { 3 }])
    }

    fn reset(&mut self) {}

    fn push(&mut self, event: u32, row: &mut Features) {
        self.fill(event, row);
    }

    fn copy(&self) -> Box<dyn EventInput> {
        Box::new(*self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_row(token: u32, expected: &[(usize, f32)]) {
        let mut row = Features::default();
        ModuloInput::with_dynamics().fill(token, &mut row);
        let (mut found, mut wanted) = ([0.0; 16], [0.0f32; 16]);
        row.write(&mut found);
        expected.iter().for_each(|&(at, value)| wanted[at] = value);
        for (found, wanted) in found.into_iter().zip(wanted) {
            // Angles are rounded to f64 and the result to f32: both are off by far less than 1e-7.
            assert!((found - wanted).abs() < 1e-7, "{found} {wanted} of token {token}");
        }
    }

    #[test]
    fn the_four_families_by_hand() {
        let half = 0.5f32.sqrt();
        // Note-on 36: a quarter of the circle of 144; class 0 of 12.
        assert_row(36, &[(0, 1.0), (1, 0.0), (2, 1.0), (3, 1.0), (4, 0.0)]);
        // Note-off 90: five eighths; class 6, half of the circle.
        assert_row(128 + 90, &[(5, 1.0), (6, -half), (7, -half), (8, -1.0), (9, 0.0)]);
        // A shift of 26 steps: place 25 of 100. Of 1 step: place 0.
        assert_row(256 + 25, &[(10, 1.0), (11, 0.0), (12, 1.0)]);
        assert_row(256, &[(10, 1.0), (11, 1.0), (12, 0.0)]);
        // Velocity bin 17 of 1 to 32: place 16, half of the circle.
        assert_row(356 + 16, &[(13, 1.0), (14, -1.0), (15, 0.0)]);
    }

    #[test]
    fn every_token_has_a_row_of_its_own() {
        let input = ModuloInput::with_dynamics();
        assert_eq!((input.width(), ModuloInput::plain().width()), (16, 13));
        let mut rows: Vec<Vec<f32>> = Vec::new();
        for token in 0..388 {
            let (mut row, mut dense) = (Features::default(), vec![0.0; 16]);
            input.fill(token, &mut row);
            row.write(&mut dense);
            assert!(!rows.contains(&dense), "{token}");
            rows.push(dense);
        }
    }
}
