//! What the program says when it cannot go on, and with which exit code.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::console::{clean, show_path};

/// A result of the program.
pub type Result<T> = std::result::Result<T, Error>;

/// A reason to stop.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// Bad input or usage: exit code 2.
    Input {
        /// The file at fault, if there is one.
        file: Option<PathBuf>,
        /// What is wrong, in words.
        why: String,
    },
    /// The work itself failed, on good input: exit code 1.
    Failed {
        /// The file at fault, if there is one.
        file: Option<PathBuf>,
        /// What is wrong, in words.
        why: String,
    },
    /// Ctrl-C or a request to end: exit code 130.
    Interrupted {
        /// What was saved, or where to go on.
        why: String,
    },
    /// Nobody reads our output any more, as in `etude models | head -1`: a quiet exit code 0.
    Closed,
}

impl Error {
    /// Bad input or usage that no file is to blame for.
    pub fn input(why: impl Into<String>) -> Error {
        Error::Input { file: None, why: why.into() }
    }

    /// A fault of an input file.
    pub fn file(path: &Path, why: impl fmt::Display) -> Error {
        Error::Input { file: Some(path.to_owned()), why: why.to_string() }
    }

    /// Work that failed.
    pub fn failed(why: impl Into<String>) -> Error {
        Error::Failed { file: None, why: why.into() }
    }

    /// An output file that cannot be written.
    pub fn unwritable(path: &Path, why: impl fmt::Display) -> Error {
        Error::Failed { file: Some(path.to_owned()), why: format!("cannot write: {why}") }
    }

    /// The exit code of the program.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Input { .. } => 2,
            Error::Failed { .. } => 1,
            Error::Interrupted { .. } => 130,
            Error::Closed => 0,
        }
    }

    /// The file at fault.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Error::Input { file, .. } | Error::Failed { file, .. } => file.as_deref(),
            Error::Interrupted { .. } | Error::Closed => None,
        }
    }
}

impl fmt::Display for Error {
    /// One line: the file, then the fault; control characters escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Input { file: Some(file), why } | Error::Failed { file: Some(file), why } => {
                let (shown, why) = (show_path(file), clean(why));
                // The libraries below name the file too: say it once.
                let why = why.strip_prefix(&format!("{shown}: ")).unwrap_or(&why);
                write!(f, "{shown}: {why}")
            }
            Error::Input { why, .. } | Error::Failed { why, .. } => f.write_str(&clean(why)),
            Error::Interrupted { why } => write!(f, "interrupted: {}", clean(why)),
            Error::Closed => f.write_str("the output was closed"),
        }
    }
}

impl std::error::Error for Error {}

/// Words for an I/O error, without the system's number.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => "unknown error".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_clean_line_that_names_the_file_once() {
        let error = Error::file(Path::new("a\x1b[31m\nb.mid"), "a\x1b[31m\nb.mid: cut\rshort");
        assert_eq!(error.to_string(), r"a\x1b[31m\nb.mid: cut\rshort");
    }

    #[test]
    fn exit_codes_are_the_promised_ones() {
        assert_eq!(Error::input("x").exit_code(), 2);
        assert_eq!(Error::failed("x").exit_code(), 1);
        assert_eq!(Error::Interrupted { why: "x".into() }.exit_code(), 130);
        assert_eq!(Error::Closed.exit_code(), 0);
    }

    #[test]
    fn reasons_carry_no_system_numbers() {
        assert_eq!(reason(&io::Error::from_raw_os_error(2)), "no such file or directory");
    }
}
