//! Music and numbers: MIDI <-> score <-> tokens.
//!
//! A [`Score`] is what a piece is, in ticks; an [`Encoding`] turns it into tokens of a named
//! vocabulary and back. This crate knows no tensor.
#![forbid(unsafe_code)]

mod augment;
mod bars;
pub mod chord;
mod drums;
mod encoding;
mod error;
mod events;
mod feature_rows;
pub mod features;
pub mod grammar;
mod guide;
mod history;
mod infill;
mod key;
mod melody;
mod melody_labels;
mod midi;
mod pairs;
mod performance;
mod performance_note;
mod pianoroll;
mod pianoroll_tokens;
mod polyphony;
mod quantise;
mod satb;
mod score;
pub mod statistics;
pub mod step_input;
mod sustain;
pub mod twins;

pub use augment::{stretch, stretch_ticks, transpose};
pub use bars::Bars;
pub use drums::Drums;
pub use encoding::{Encoded, Encoding, Speed, TokenTime, encoding, schemes};
pub use error::Error;
pub use events::Events;
pub use feature_rows::{FeatureInput, FeatureReader};
pub use guide::{ChordTrack, Guide, GuideInput};
pub use infill::{BarTokens, Hole, Infill};
pub use key::find_key;
pub use melody::Melody;
pub use melody_labels::{LOOKBACKS, MelodyLabels};
#[cfg(feature = "files")]
pub use midi::{MAX_FILE_BYTES, read_file};
pub use midi::{MAX_QUARTERS, Reading};
pub use pairs::{Pair, PairBar};
pub use performance::Performance;
pub use performance_note::{NoteHeads, NotePerformance};
pub use pianoroll::{PianoRoll, Repeats};
pub use pianoroll_tokens::PianoRollTokens;
pub use polyphony::Polyphony;
pub use quantise::{
    MAX_SECONDS, Quantised, STEPS_PER_SECOND, TIME_GRID_TICKS, quantise_beats, quantise_time,
};
pub use satb::Satb;
pub use score::{Key, Marker, Meter, Note, Pedal, Score, Tempo, Track};
pub use sustain::apply_sustain;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Which form tokens and sketches have: raised with every change of what reading a file, encoding it or
/// sketching it gives, so that tokens that were kept on a disk are made anew.
pub const FORMAT: u32 = 1;
