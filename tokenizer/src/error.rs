//! What can go wrong between a file and a score.

use std::fmt;

/// A fault of a file, of a score or of a token sequence.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are not a MIDI file, or are damaged beyond repair.
    Midi {
        /// What is wrong, in words.
        why: String,
    },
    /// The file cannot be opened or read.
    File {
        /// The file's path, as given.
        path: String,
        /// What is wrong, in words.
        why: String,
    },
    /// A chord symbol or a progression of them does not make sense.
    Chord {
        /// The symbol, cut to a bounded length, without control characters.
        symbol: String,
        /// The character of the text at which reading stopped, from 1.
        place: usize,
        /// What is wrong, in words.
        why: String,
    },
    /// The music does not fit the encoding, or the tokens do not fit its vocabulary.
    Encoding {
        /// The encoding's name.
        scheme: String,
        /// What is wrong, in words.
        why: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Midi { why } => write!(f, "midi: {why}"),
            Error::File { path, why } => write!(f, "{path}: {why}"),
            Error::Chord { symbol, place, why } => {
                write!(f, "chord \"{symbol}\", character {place}: {why}")
            }
            Error::Encoding { scheme, why } => write!(f, "{scheme}: {why}"),
        }
    }
}

impl std::error::Error for Error {}
