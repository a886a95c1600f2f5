//! One file for each subcommand: its arguments, and `run`.

pub mod accompany;
pub mod blend;
pub mod completions;
pub mod corpora;
pub mod detokenize;
pub mod evaluate;
pub mod export;
pub mod generate;
pub mod harmonize;
pub mod info;
pub mod inspect;
pub mod models;
pub mod render;
pub mod tokenize;
pub mod train;
mod wishes;
