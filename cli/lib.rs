//! The parts of the program that a person sees: commands, progress, pictures, sound, data.
//!
//! Each subcommand is one file of [`command`]; [`args`] lists them. What they share: [`error`]
//! (exit codes), [`console`] (who reads stdout: a person or a program), [`output`] (files that are
//! there whole or not at all) and [`interrupt`] (Ctrl-C).
#![forbid(unsafe_code)]

pub mod args;
pub mod bench;
pub mod canvas;
pub mod command;
pub mod console;
pub mod corpora;
pub mod curve;
pub mod data;
pub mod dataset;
pub mod drill;
pub mod error;
pub mod gpu;
pub mod input;
pub mod interrupt;
pub mod memory;
pub mod model;
pub mod output;
pub mod pianoroll;
pub mod progress;
pub mod sound;
pub mod soundfont;
pub mod synth;
pub mod tuning;

pub use error::{Error, Result};
