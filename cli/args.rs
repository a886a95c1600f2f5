//! The command line: which commands there are, and what they share.
//!
//! A new command is a file in `cli/command/`, a line in [`Command`] and a line in `dispatch`.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use etude_kernels::{isa, threads::Pool};
use etude_models::Precision;

use crate::bench;
use crate::command;
use crate::console::{Console, clean, print};
use crate::error::{Error, Result};
use crate::gpu;

/// Neural architectures that write music, on a tensor engine made by hand.
#[derive(Debug, Parser)]
#[command(
    name = "etude",
    version,
    propagate_version = true,
    after_help = "Exit codes: 0 good, 1 the work failed, 2 bad input or usage, 130 after Ctrl-C.\n\
                  Each command explains itself and gives an example: etude COMMAND --help"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    /// Print machine-readable lines on stdout; text for people goes to stderr
    #[arg(long, global = true)]
    json: bool,

    /// Show no progress
    #[arg(long, short, global = true)]
    quiet: bool,
}

/// Every command, in the order of the help page. The options of one are listed when it is called.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Command {
    /// Let a trained model write a piece: MIDI, sound and picture
    Generate(Box<command::generate::Args>),
    /// Let a trained model go on with a MIDI file
    Continue(Box<command::generate::ContinueArgs>),
    /// Write what goes with a melody
    Accompany(Box<command::accompany::Args>),
    /// Set a melody for soprano, alto, tenor and bass
    Harmonize(Box<command::harmonize::Args>),
    /// Train a model on a folder of MIDI files or a built-in corpus
    Train(Box<command::train::Args>),
    /// Score unseen music with a model; compare what it writes with what it learned from
    Evaluate(command::evaluate::Args),
    /// Show what a model is made of and what it costs
    Inspect(command::inspect::Args),
    /// Write a trained model as one file
    Export(command::export::Args),
    /// Make one adapter out of two, for a style between them
    Blend(command::blend::Args),
    /// List the weights in the box and the models that can be trained
    Models(command::models::Args),
    /// Write a MIDI file as tokens of an encoding
    Tokenize(command::tokenize::Args),
    /// Turn tokens back into a MIDI file
    Detokenize(command::detokenize::Args),
    /// Play a MIDI file into a WAV file and draw its piano roll
    Render(command::render::Args),
    /// List the built-in corpora, or write one out as MIDI files
    Corpora(command::corpora::Args),
    /// Time kernels and models, beside the machine's peak
    Bench(bench::Args),
    /// Show the machine: CPU, instruction sets, caches, measured peak
    Info(command::info::Args),
    /// Print a completion script for a shell
    Completions(command::completions::Args),
}

fn dispatch(command: &Command, console: &Console) -> Result<()> {
    match command {
        Command::Generate(args) => command::generate::run(args, console),
        Command::Continue(args) => command::generate::run_continue(args, console),
        Command::Accompany(args) => command::accompany::run(args, console),
        Command::Harmonize(args) => command::harmonize::run(args, console),
        Command::Train(args) => command::train::run(args, console),
        Command::Evaluate(args) => command::evaluate::run(args, console),
        Command::Inspect(args) => command::inspect::run(args, console),
        Command::Export(args) => command::export::run(args, console),
        Command::Blend(args) => command::blend::run(args, console),
        Command::Models(args) => command::models::run(args, console),
        Command::Tokenize(args) => command::tokenize::run(args, console),
        Command::Detokenize(args) => command::detokenize::run(args, console),
        Command::Render(args) => command::render::run(args, console),
        Command::Corpora(args) => command::corpora::run(args, console),
        Command::Bench(args) => bench::run(args, console),
        Command::Info(args) => command::info::run(args, console),
        Command::Completions(args) => command::completions::run(args),
    }
}

/// `--seed`, for commands that draw random numbers.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Seed {
    /// Start of the random numbers: the same seed gives the same bytes
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

impl Seed {
    /// The seed given, or a new one from the clock, to be printed so that the run can be repeated.
    pub fn get(&self) -> u64 {
        self.seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            // Short enough to be typed again.
            now.map_or(0, |d| (d.as_micros() % 1_000_000_000) as u64)
        })
    }
}

/// `--threads` and `--device`, for commands that calculate.
#[derive(Debug, Clone, clap::Args)]
pub struct Machine {
    /// Number of threads; 0 is one for each core. Results are the same bytes for any number
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,

    /// Where to calculate: cpu; models do not run on a GPU yet
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = parse_device)]
    pub device: String,
}

impl Machine {
    /// Starts the threads.
    ///
    /// # Errors
    /// If there are too many, or the system cannot start them.
    pub fn pool(&self) -> Result<Pool> {
        const MOST: usize = 1024;
        if self.threads > MOST {
            return Err(Error::input(format!("--threads {}: at most {MOST}", self.threads)));
        }
        Pool::new(self.threads).map_err(Error::failed)
    }
}

fn parse_device(name: &str) -> std::result::Result<String, String> {
    if name == "cpu" {
        return Ok(name.to_owned());
    }
    gpu::number(name).ok_or("unknown device; use cpu")??;
    Err("models do not run on a GPU yet; use cpu (`etude bench --device cuda` times the kernels)"
        .to_owned())
}

/// Reads the number format of stored weights.
pub fn precision(text: &str) -> std::result::Result<Precision, String> {
    Precision::from_name(text).ok_or_else(|| "f32, bf16 or int8 is wanted".to_owned())
}

/// Runs the program: reads the arguments, does the work, reports an error.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, arguments.iter().any(|a| a == "--json")),
    };
    let console = Console { json: cli.json, quiet: cli.quiet };
    let done = isa::from_env().map_err(Error::input).and_then(|_| match &cli.command {
        Some(command) => dispatch(command, &console),
        None => overview(),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console.fail(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Answers `--help` and `--version`, or tells what is wrong with the arguments.
fn usage(error: &clap::Error, json: bool) -> ExitCode {
    if !error.use_stderr() {
        let text = error.render();
        let text = if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
            text.ansi().to_string()
        } else {
            text.to_string()
        };
        return match print(text.as_bytes()) {
            Ok(()) | Err(Error::Closed) => ExitCode::SUCCESS,
            Err(error) => ExitCode::from(error.exit_code()),
        };
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let console = Console { json, quiet: false };
    if json {
        // The first paragraph says what is wrong; the rest is a reminder of the usage.
        let first = text.split("\n\n").next().unwrap_or(text).trim();
        let first = first.split_whitespace().collect::<Vec<_>>().join(" ");
        console.fail(&Error::input(first));
    } else {
        let lines: Vec<String> = text.trim_end().lines().map(clean).collect();
        eprintln_quietly(&format!("error: {}\n", lines.join("\n")));
    }
    ExitCode::from(2)
}

fn eprintln_quietly(text: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(text.as_bytes()); // nowhere to complain
}

/// What `etude` alone says: the commands in one screen.
fn overview() -> Result<()> {
    let command = Cli::command();
    let mut text = format!(
        "etude {}: neural architectures that write music.\n\nCommands:\n",
        env!("CARGO_PKG_VERSION")
    );
    for sub in command.get_subcommands() {
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        text += &format!("  {:<12} {about}\n", sub.get_name());
    }
    text += "\nStart with `etude generate`, or read about any command: etude COMMAND --help\n";
    print(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example_that_parses() {
        let mut command = Cli::command();
        command.build();
        let named = |sub: &&clap::Command| sub.get_name() != "help";
        for sub in command.get_subcommands().filter(named) {
            let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples: Vec<&str> =
                help.lines().map(str::trim).filter(|l| l.starts_with("etude ")).collect();
            assert!(!examples.is_empty(), "{}: no example in its help", sub.get_name());
            for example in examples {
                // A remark may follow.
                let line = example.split("   (").next().unwrap_or_default();
                let line = line.split(['>', '|']).next().unwrap_or_default();
                // What stands between quotes is one word.
                let parts = line.split('"').enumerate();
                let words = parts.flat_map(|(i, part)| match i % 2 {
                    0 => part.split_whitespace().collect(),
                    _ => vec![part],
                });
                let parsed = Cli::try_parse_from(words);
                assert!(parsed.is_ok(), "{example}: {}", parsed.unwrap_err());
            }
        }
    }
}
