//! How far a long job is: a moving bar for a person, plain lines for a pipe, nothing with `--quiet`.

use std::collections::VecDeque;
use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::console::Console;
use crate::curve::sparkline;

/// Where a job ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// After so many steps.
    Steps(u64),
    /// After so many seconds.
    Seconds(f64),
}

/// What a job tells about itself; what it does not know stays `None`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Status {
    /// Steps done.
    pub step: u64,
    /// Loss of the last step or of the last few.
    pub loss: Option<f64>,
    /// Loss on the valid part, when it was last measured.
    pub valid: Option<f64>,
    /// Speed.
    pub tokens_per_second: Option<f64>,
}

/// The progress of one job.
pub struct Progress {
    goal: Goal,
    start: Instant,
    bar: Option<ProgressBar>,
    plain: bool,
    last_line: Option<Instant>,
    losses: VecDeque<f64>,
    last: Status,
}

/// Time between plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Losses that the sparkline shows.
const KEPT: usize = 480;

impl Progress {
    /// Begins to show progress on stderr.
    pub fn new(console: &Console, goal: Goal) -> Progress {
        let bar = console.is_live().then(|| {
            let length = match goal {
                Goal::Steps(steps) => steps,
                Goal::Seconds(seconds) => (seconds * 10.0) as u64,
            };
            let target = ProgressDrawTarget::stderr_with_hz(8);
            let bar = ProgressBar::with_draw_target(Some(length), target);
            let style = ProgressStyle::with_template("{bar:24.cyan} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Progress {
            goal,
            start: Instant::now(),
            plain: bar.is_none() && !console.quiet,
            bar,
            last_line: None,
            losses: VecDeque::new(),
            last: Status::default(),
        }
    }

    /// Tells how far the job is; cheap enough for every step.
    pub fn update(&mut self, status: Status) {
        self.last = status;
        if let Some(loss) = status.loss {
            if self.losses.len() == KEPT {
                self.losses.pop_front();
            }
            self.losses.push_back(loss);
        }
        let elapsed = self.start.elapsed().as_secs_f64();
        if let Some(bar) = &self.bar {
            bar.set_position(match self.goal {
                Goal::Steps(_) => status.step,
                Goal::Seconds(_) => (elapsed * 10.0) as u64,
            });
            let losses: Vec<f64> = self.losses.iter().copied().collect();
            bar.set_message(format!("{}  {}", self.line(elapsed), sparkline(&losses, 24)));
        } else if self.plain && self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
            self.last_line = Some(Instant::now());
            self.print();
        }
    }

    /// Writes a line that stays, above the bar if there is one.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None if self.plain => {
                let _ = writeln!(std::io::stderr(), "{text}");
            }
            None => {}
        }
    }

    /// Ends the progress: the bar goes away, a pipe gets a last line.
    pub fn finish(self) {
        match &self.bar {
            Some(bar) => bar.finish_and_clear(),
            None if self.plain => self.print(),
            None => {}
        }
    }

    fn print(&self) {
        let line = self.line(self.start.elapsed().as_secs_f64());
        let _ = writeln!(std::io::stderr(), "{line}"); // nowhere to complain
    }

    fn line(&self, elapsed: f64) -> String {
        let status = &self.last;
        let (share, mut line) = match self.goal {
            Goal::Steps(steps) => (
                status.step as f64 / steps.max(1) as f64,
                format!("step {} of {steps}", status.step),
            ),
            Goal::Seconds(seconds) => (
                elapsed / seconds.max(1e-9),
                format!("step {}, {} of {}", status.step, time(elapsed), time(seconds)),
            ),
        };
        if let Some(loss) = status.loss {
            line += &format!("  loss {loss:.4}");
        }
        if let Some(valid) = status.valid {
            line += &format!("  valid {valid:.4}");
        }
        if let Some(speed) = status.tokens_per_second {
            line += &format!("  {} tokens/s", count(speed));
        }
        if share > 0.0 && share < 1.0 {
            line += &format!("  {} left", time(elapsed * (1.0 - share) / share));
        }
        line
    }
}

/// A time for people: `42 s`, `3:05`, `1:02:03`.
pub fn time(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..=59 => format!("{whole} s"),
        60..=3599 => format!("{}:{:02}", whole / 60, whole % 60),
        _ => format!("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60),
    }
}

/// A number for people: `950`, `12.3k`, `4.5M`.
pub fn count(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.1}M", v / 1e6),
        v if v >= 1e4 => format!("{:.1}k", v / 1e3),
        v => format!("{v:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_what_is_known() {
        let console = Console { json: false, quiet: true };
        let mut progress = Progress::new(&console, Goal::Steps(200));
        progress.update(Status { step: 50, ..Status::default() });
        assert_eq!(progress.line(10.0), "step 50 of 200  30 s left");
        let status = Status {
            step: 100,
            loss: Some(1.23456),
            valid: Some(1.5),
            tokens_per_second: Some(123_456.0),
        };
        progress.update(status);
        assert_eq!(
            progress.line(10.0),
            "step 100 of 200  loss 1.2346  valid 1.5000  123.5k tokens/s  10 s left"
        );
        let timed = Progress { goal: Goal::Seconds(60.0), ..progress };
        assert!(timed.line(45.0).starts_with("step 100, 45 s of 1:00"));
    }

    #[test]
    fn times_and_counts_are_short() {
        assert_eq!([0.4, 59.4, 61.0, 3725.0].map(time), ["0 s", "59 s", "1:01", "1:02:05"]);
        assert_eq!([950.0, 12_345.0, 4.5e6].map(count), ["950", "12.3k", "4.5M"]);
    }
}
