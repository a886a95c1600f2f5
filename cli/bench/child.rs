//! Each case runs in a process of its own: then the peak of the memory is the case's, and what one
//! case leaves behind (pages, a heap in pieces) does not slow the next one down.
//!
//! The child is this program with the same arguments and one more. It prints lines of JSON, which the
//! parent passes on; its standard input is a pipe that ends when the parent does, and so does the
//! child.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::case::Case;
use crate::error::{Error, Result, reason};

/// The hidden argument that makes a child of this program.
const ONE_CASE: &str = "--one-case";

/// Runs one case in a process of its own and hands its lines on.
///
/// # Errors
/// If the process cannot be started or does not end well, or what `line` returns.
pub fn run(workload: &str, case: &Case, line: &mut dyn FnMut(Value) -> Result<()>) -> Result<()> {
    let failed = |why: String| Error::failed(format!("bench: {why}"));
    let arguments = with_case(std::env::args_os().skip(1), workload, &case.text());
    let child = Command::new(program()?)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| failed(format!("cannot start a process for the case: {}", reason(&e))))?;
    let mut child = Guard(child);
    let Some(stdout) = child.0.stdout.take() else { return Ok(()) };
    for text in BufReader::new(stdout).lines() {
        let text = text.map_err(|e| failed(format!("the case's process: {}", reason(&e))))?;
        let value = serde_json::from_str(&text)
            .map_err(|e| failed(format!("the case's process printed no JSON: {e}")))?;
        line(value)?;
    }
    match child.0.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed(format!("the case's process ended with {status}"))),
        Err(e) => Err(failed(format!("the case's process: {}", reason(&e)))),
    }
}

/// A process that is gone when nobody waits for it any more.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended already
        let _ = self.0.wait();
    }
}

/// The arguments of this program with a case added behind the name of the command: options only, so
/// that it does not matter what follows.
fn with_case(
    arguments: impl Iterator<Item = OsString>,
    workload: &str,
    case: &str,
) -> Vec<OsString> {
    let mut all: Vec<OsString> = arguments.collect();
    let command = all.iter().position(|a| a.as_os_str() == OsStr::new("bench"));
    let at = command.map_or(all.len(), |at| at + 1);
    all.splice(at..at, [format!("{ONE_CASE}={workload}:{case}").into()]);
    all
}

/// Splits what [`ONE_CASE`] holds.
///
/// # Errors
/// If it is not of that form.
pub fn parse(text: &str) -> Result<(&str, Case)> {
    let (workload, case) =
        text.split_once(':').ok_or_else(|| Error::input("bench: no such case"))?;
    Ok((workload, Case::parse(case)?))
}

/// Ends this process when the parent has gone.
pub fn end_with_parent() {
    std::thread::spawn(|| {
        let mut byte = [0];
        while std::io::stdin().read(&mut byte).is_ok_and(|n| n > 0) {}
        std::process::exit(130);
    });
}

/// The file of this program, also when another one has taken its place since.
pub fn program() -> Result<PathBuf> {
    let link = Path::new("/proc/self/exe");
    if link.exists() {
        return Ok(link.to_owned());
    }
    std::env::current_exe()
        .map_err(|e| Error::failed(format!("bench: cannot find this program: {}", reason(&e))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_stands_behind_the_command_and_survives_the_way() {
        let given = ["--json", "bench", "--", "gemm"].map(OsString::from);
        let all = with_case(given.into_iter(), "gemm", r#"{"m": 1, "dtype": "a:b"}"#);
        let shown: Vec<&str> = all.iter().filter_map(|a| a.to_str()).collect();
        assert_eq!(
            shown,
            ["--json", "bench", r#"--one-case=gemm:{"m": 1, "dtype": "a:b"}"#, "--", "gemm"]
        );
        let (workload, case) =
            parse(shown[2].trim_start_matches("--one-case=")).expect("a workload and a case");
        assert_eq!((workload, case.text().as_str()), ("gemm", r#"{"m": 1, "dtype": "a:b"}"#));
        assert!(parse("gemm").is_err());
    }
}
