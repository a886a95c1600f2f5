//! Who reads what: a program reads stdout under `--json`, then people's text goes to stderr.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::path::Path;

use crate::error::{Error, Result, reason};

/// Where lines go.
#[derive(Debug, Clone, Copy, Default)]
pub struct Console {
    /// Stdout holds one JSON object a line, for programs.
    pub json: bool,
    /// Progress is not shown.
    pub quiet: bool,
}

impl Console {
    /// Says a line to people: on stdout, or on stderr under `--json`.
    ///
    /// # Errors
    /// [`Error::Closed`] if nobody reads any more.
    pub fn say(&self, line: impl AsRef<str>) -> Result<()> {
        let line = format!("{}\n", line.as_ref());
        if self.json {
            let _ = io::stderr().write_all(line.as_bytes()); // nowhere to complain
            return Ok(());
        }
        print(line.as_bytes())
    }

    /// Gives programs one line of JSON on stdout; without `--json` nothing.
    ///
    /// # Errors
    /// [`Error::Closed`] if nobody reads any more.
    pub fn report(&self, value: &serde_json::Value) -> Result<()> {
        if !self.json {
            return Ok(());
        }
        print(format!("{value}\n").as_bytes())
    }

    /// Warns on stderr, in one line.
    pub fn warn(&self, text: impl AsRef<str>) {
        let _ = writeln!(io::stderr(), "warning: {}", clean(text.as_ref()));
    }

    /// Notes on stderr, in one line, what a person may not expect.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            let _ = writeln!(io::stderr(), "note: {}", clean(text.as_ref()));
        }
    }

    /// Warns about a file on stderr, in at most `most` lines; then says how many more there are.
    pub fn warn_file(&self, path: &Path, warnings: &[String], most: usize) {
        for text in warnings.iter().take(most) {
            self.warn(format!("{}: {text}", show_path(path)));
        }
        if warnings.len() > most {
            self.warn(format!("{}: and {} more warnings", show_path(path), warnings.len() - most));
        }
    }

    /// Tells whether a person sees stderr live, so that a moving bar makes sense.
    pub fn is_live(&self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }

    /// Reports the error that ends the program, on stderr.
    pub fn fail(&self, error: &Error) {
        if *error == Error::Closed {
            return;
        }
        let line = if self.json {
            let file = error.path().map(|p| p.to_string_lossy());
            serde_json::json!({ "error": error.to_string(), "file": file }).to_string()
        } else {
            format!("error: {error}")
        };
        let _ = writeln!(io::stderr(), "{line}");
    }
}

/// Writes bytes to stdout.
///
/// # Errors
/// [`Error::Closed`] if nobody reads any more; a failure otherwise (a full disk behind a `>`).
pub fn print(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => Error::Closed,
        _ => Error::failed(format!("standard output: cannot write: {}", reason(&e))),
    })
}

/// Escapes control characters, so that text from files cannot drive a terminal.
///
/// Besides the C0 and C1 controls these are the marks that reorder or hide text.
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if u32::from(c) < 0x80 && c.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c if c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}') =>
            {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// Shows a path on a terminal: bytes that are no UTF-8 replaced, control characters escaped.
pub fn show_path(path: &Path) -> String {
    clean(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaned_text_holds_no_control_characters() {
        let all: String = (0..0x3000u32).filter_map(char::from_u32).collect();
        let shown = clean(&all);
        assert!(shown.chars().all(|c| !c.is_control()));
        assert!(shown.contains("\\x1b") && shown.contains("\\u{202e}") && shown.contains("ÀÁÂ"));
    }

    #[test]
    fn plain_text_is_left_alone() {
        let text = "Für Élise 🎵 [a]{b}*?.mid";
        assert_eq!(clean(text), text);
    }
}
