//! Standard MIDI files, read with repairs that are told and written so that any reader takes them.
//!
//! midly decodes single events and writes files. What it leaves open is closed here: chunks are
//! walked in [`container`], every event is looked at in [`track`] before midly sees it, and each
//! departure from the standard becomes an error or a warning.
//!
//! # Source
//! Standard MIDI Files 1.0 (RP-001) and RMID, MIDI Manufacturers Association.

mod assemble;
mod consistency;
mod container;
#[cfg(feature = "files")]
mod file;
mod read;
mod text;
mod track;
mod warnings;
mod write;

#[cfg(feature = "files")]
pub use file::{MAX_FILE_BYTES, read_file};
pub use read::{MAX_QUARTERS, Reading};
