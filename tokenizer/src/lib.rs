//! Music and numbers: MIDI <-> score <-> tokens.
//!
//! A [`Score`] is what a piece is, in ticks; an [`Encoding`] turns it into tokens of a named
//! vocabulary and back. This crate knows no tensor.
#![forbid(unsafe_code)]

mod bars;
mod encoding;
mod error;
mod key;
mod melody;
mod midi;
mod quantise;
mod score;
pub mod statistics;
pub mod step_input;

pub use bars::Bars;
pub use encoding::{Encoded, Encoding, TokenTime, encoding, schemes};
pub use error::Error;
pub use key::find_key;
pub use melody::Melody;
#[cfg(feature = "files")]
pub use midi::{MAX_FILE_BYTES, read_file};
pub use midi::{MAX_QUARTERS, Reading};
pub use quantise::{
    MAX_SECONDS, Quantised, STEPS_PER_SECOND, TIME_GRID_TICKS, quantise_beats, quantise_time,
};
pub use score::{Key, Marker, Meter, Note, Pedal, Score, Tempo, Track};

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
