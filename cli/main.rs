//! The `etude` program.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    etude::args::main(std::env::args_os())
}
