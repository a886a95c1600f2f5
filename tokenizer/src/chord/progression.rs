//! Chord progressions as text: `C Am F G7`, or by bars: `C . Am F | G7`.
//!
//! Symbols are parted by spaces. Without bar lines each is a bar. With bar lines `|` the symbols
//! of a bar share it evenly; `.`, `/` and `%` go on with the chord before.

use super::{Chord, ChordChange, parse, symbol_of};
use crate::{Error, Result};
use std::fmt;

/// The most bars read.
const MAX_BARS: usize = 4096;
/// The most chords in a bar.
const MAX_IN_BAR: usize = 64;

/// Chords by bars.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progression {
    /// The chords of each bar, which share it evenly; no bar is empty.
    pub bars: Vec<Vec<Option<Chord>>>,
}

impl Progression {
    /// Reads a progression.
    ///
    /// # Errors
    /// [`Error::Chord`] with the symbol and the place in the text where a symbol is not
    /// understood, or there are no chords, or too many.
    pub fn parse(text: &str) -> Result<Progression> {
        let by_bars = text.contains('|');
        let mut progression = Progression::default();
        let mut bar: Vec<Option<Chord>> = Vec::new();
        let mut chord = None;
        for (place, item) in items(text) {
            let too_many = |why: String| Error::Chord {
                symbol: item.chars().take(12).flat_map(char::escape_debug).collect(),
                place: place + 1,
                why,
            };
            match item {
                "|" => progression.bars.extend((!bar.is_empty()).then(|| std::mem::take(&mut bar))),
                "." | "/" | "%" => bar.push(chord),
                symbol => {
                    chord = parse::symbol_at(symbol, place)?;
                    bar.push(chord);
                }
            }
            if !by_bars {
                progression.bars.push(std::mem::take(&mut bar));
            }
            if progression.bars.len() > MAX_BARS {
                return Err(too_many(format!("more than {MAX_BARS} bars")));
            }
            if bar.len() > MAX_IN_BAR {
                return Err(too_many(format!("more than {MAX_IN_BAR} chords in a bar")));
            }
        }
        progression.bars.extend((!bar.is_empty()).then_some(bar));
        match progression.bars.is_empty() {
            true => {
                let (symbol, why) = (String::new(), "no chord in the text".to_string());
                Err(Error::Chord { symbol, place: 1, why })
            }
            false => Ok(progression),
        }
    }

    /// The chord at each step, for bars of so many steps.
    ///
    /// # Errors
    /// [`Error::Chord`] if the chords of a bar do not divide its steps evenly.
    pub fn steps(&self, steps_per_bar: usize) -> Result<Vec<Option<Chord>>> {
        let mut steps = Vec::new();
        for (number, bar) in (1..).zip(&self.bars) {
            if bar.is_empty() || !steps_per_bar.is_multiple_of(bar.len()) {
                return Err(Error::Chord {
                    symbol: symbol_of(bar.first().and_then(Option::as_ref)),
                    place: 1,
                    why: format!(
                        "bar {number} has {} chords, which do not share {steps_per_bar} steps \
                         evenly",
                        bar.len()
                    ),
                });
            }
            let each = steps_per_bar / bar.len();
            steps.extend(bar.iter().flat_map(|&chord| std::iter::repeat_n(chord, each)));
        }
        Ok(steps)
    }

    /// Where the chord changes, for bars of so many ticks; a place between ticks is rounded down.
    pub fn changes(&self, ticks_per_bar: u64) -> Vec<ChordChange> {
        let mut changes: Vec<ChordChange> = Vec::new();
        for (number, bar) in (0..).zip(&self.bars) {
            for (place, &chord) in (0..).zip(bar) {
                let tick = ticks_per_bar.saturating_mul(number)
                    + (u128::from(ticks_per_bar) * place / bar.len() as u128) as u64;
                if changes.last().is_none_or(|last| last.chord != chord) {
                    changes.push(ChordChange { tick, chord });
                }
            }
        }
        changes
    }
}

impl fmt::Display for Progression {
    /// Writes the progression by bars.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, bar) in self.bars.iter().enumerate() {
            let symbols: Vec<String> = bar.iter().map(|c| symbol_of(c.as_ref())).collect();
            write!(f, "{}{}", if number > 0 { " | " } else { "| " }, symbols.join(" "))?;
        }
        f.write_str(" |")
    }
}

/// The words of a text and the bar lines, which need no spaces, each with its place in characters.
fn items(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = text;
    let mut place = 0;
    std::iter::from_fn(move || {
        let trimmed = rest.trim_start();
        place += rest[..rest.len() - trimmed.len()].chars().count();
        let first = trimmed.chars().next()?;
        let end = match first {
            '|' => 1,
            _ => trimmed.find(|c: char| c.is_whitespace() || c == '|').unwrap_or(trimmed.len()),
        };
        let item = &trimmed[..end];
        let at = place;
        place += item.chars().count();
        rest = &trimmed[end..];
        Some((at, item))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols(steps: &[Option<Chord>]) -> String {
        steps.iter().map(|chord| symbol_of(chord.as_ref())).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn without_bar_lines_each_chord_is_a_bar() {
        let progression = Progression::parse("C Am F G7").unwrap();
        assert_eq!(progression.bars.len(), 4);
        assert_eq!(symbols(&progression.steps(2).unwrap()), "C C Am Am F F G7 G7");
        let ticks: Vec<u64> = progression.changes(1920).iter().map(|c| c.tick).collect();
        assert_eq!(ticks, [0, 1920, 3840, 5760]);
    }

    #[test]
    fn with_bar_lines_chords_share_their_bar() {
        let progression = Progression::parse("C . Am F | G7").unwrap();
        assert_eq!(symbols(&progression.steps(4).unwrap()), "C C Am F G7 G7 G7 G7");
        // C twice is one change; A minor begins in the middle of the first bar.
        let changes = progression.changes(1920);
        let ticks: Vec<u64> = changes.iter().map(|change| change.tick).collect();
        assert_eq!(ticks, [0, 960, 1440, 1920]);
        assert_eq!(progression.to_string(), "| C C Am F | G7 |");
        assert_eq!(Progression::parse(&progression.to_string()), Ok(progression));
        // Bar lines at the edges and without spaces; a bar that goes on; no chord.
        let other = Progression::parse("||C|% |N.C. Dm7/C||").unwrap();
        assert_eq!(symbols(&other.steps(2).unwrap()), "C C C C N.C. Dm7/C");
    }

    #[test]
    fn errors_name_the_place_in_the_text() {
        let error = |text: &str| Progression::parse(text).unwrap_err().to_string();
        assert_eq!(
            error("C Am Xx G7"),
            r#"chord "Xx", character 6: 'X' where a root A to G is wanted"#
        );
        assert_eq!(error("  "), r#"chord "", character 1: no chord in the text"#);
        assert_eq!(error("|||"), r#"chord "", character 1: no chord in the text"#);
        let three = Progression::parse("C D E | F").unwrap();
        assert_eq!(
            three.steps(16).unwrap_err().to_string(),
            r#"chord "C", character 1: bar 1 has 3 chords, which do not share 16 steps evenly"#
        );
        assert!(error(&"C ".repeat(100_000)).contains("more than 4096 bars"));
        assert!(error(&format!("|{}", "C ".repeat(100_000))).contains("more than 64 chords"));
    }
}
