//! `etude completions SHELL`: a script that completes commands and options on the Tab key.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::console::print;
use crate::error::Result;

/// Arguments of `etude completions`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  etude completions bash > ~/.local/share/bash-completion/completions/etude"
)]
pub struct Args {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script.
///
/// # Errors
/// If stdout cannot be written to.
pub fn run(args: &Args) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "etude", &mut script);
    print(&script)
}
