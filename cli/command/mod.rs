//! One file for each subcommand: its arguments, and `run`.

pub mod completions;
pub mod corpora;
pub mod detokenize;
pub mod info;
pub mod render;
pub mod tokenize;
