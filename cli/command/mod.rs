//! One file for each subcommand: its arguments, and `run`.

pub mod completions;
pub mod info;
