//! What can go wrong between a configuration and a piece.

use std::fmt;

/// A fault of a configuration, of a run directory, of weights or of data.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// A configuration that cannot be used.
    Config {
        /// Where, as `table.key`.
        key: String,
        /// What is wrong, in words.
        why: String,
    },
    /// A file of a run directory or a bundled model that cannot be used.
    File {
        /// Its path or name.
        path: String,
        /// What is wrong, in words.
        why: String,
    },
    /// A model, preset or encoding that does not exist.
    Unknown {
        /// What kind of thing: `model`, `preset`, ...
        what: &'static str,
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// Data that a model cannot learn from or continue.
    Data {
        /// What is wrong, in words.
        why: String,
    },
    /// A number that is not finite where it must be.
    NotFinite {
        /// The training step.
        step: u64,
        /// The tensor.
        tensor: String,
    },
    /// A fault of the engine.
    Engine(etude_engine::Error),
    /// A fault of the tokenizer.
    Tokenizer(etude_tokenizer::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Config { key, why } => write!(f, "{key}: {why}"),
            Error::File { path, why } => write!(f, "{path}: {why}"),
            Error::Unknown { what, name, known } => {
                write!(f, "unknown {what} {name:?}; known: {}", known.join(", "))
            }
            Error::Data { why } => write!(f, "data: {why}"),
            Error::NotFinite { step, tensor } => {
                write!(f, "training: {tensor} is not finite at step {step}; the last save is kept")
            }
            Error::Engine(e) => e.fmt(f),
            Error::Tokenizer(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<etude_engine::Error> for Error {
    fn from(e: etude_engine::Error) -> Self {
        Error::Engine(e)
    }
}

impl From<etude_tokenizer::Error> for Error {
    fn from(e: etude_tokenizer::Error) -> Self {
        Error::Tokenizer(e)
    }
}
