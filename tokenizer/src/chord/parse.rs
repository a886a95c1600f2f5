//! Reads a chord symbol, or says at which place it stops making sense.

use super::kinds::KINDS;
use super::{Chord, DEGREES};
use crate::{Error, Result};

/// The longest symbol read, in characters.
const MAX_SYMBOL: usize = 40;
/// Sharps or flats of a root.
const MAX_ACCIDENTALS: usize = 3;
/// By how many semitones a degree may be raised or lowered.
const MAX_RAISED: i8 = 2;

/// Where reading stopped (a character, from 0), and why.
type Stop = (usize, String);
type Degrees = [Option<i8>; DEGREES];

/// Reads a symbol.
pub(super) fn symbol(text: &str) -> Result<Option<Chord>> {
    symbol_at(text, 0)
}

/// Reads a symbol that stands so many characters into a longer text.
pub(super) fn symbol_at(text: &str, offset: usize) -> Result<Option<Chord>> {
    if ["N.C.", "N.C", "NC", "n.c."].contains(&text) {
        return Ok(None);
    }
    read(text).map(Some).map_err(|(place, why)| {
        let mut symbol: String =
            text.chars().take(MAX_SYMBOL).flat_map(char::escape_debug).collect();
        if text.chars().nth(MAX_SYMBOL).is_some() {
            symbol.push_str("...");
        }
        Error::Chord { symbol, place: offset + place + 1, why }
    })
}

fn read(text: &str) -> std::result::Result<Chord, Stop> {
    let plain = |c| match c {
        '♯' => '#',
        '♭' => 'b',
        c => c,
    };
    let chars: Vec<char> = text.chars().take(MAX_SYMBOL + 1).map(plain).collect();
    if chars.len() > MAX_SYMBOL {
        return Err((MAX_SYMBOL, format!("longer than {MAX_SYMBOL} characters")));
    }
    let (root, after) = root(&chars, 0)?;
    // Of all kinds that stand here the longest that lets the rest be read; else the complaint of
    // the one that came farthest.
    let mut kinds: Vec<(usize, usize)> = Vec::new();
    for (place, kind) in KINDS.iter().enumerate() {
        for name in kind.names {
            let length = name.chars().count();
            let rest = &chars[after..];
            if rest.len() >= length && name.chars().zip(rest).all(|(a, &b)| a == b) {
                kinds.push((length, place));
            }
        }
    }
    kinds.sort_by_key(|&(length, _)| std::cmp::Reverse(length));
    let mut stop: Option<Stop> = None;
    for (length, place) in kinds {
        match rest(&chars, after + length, root, KINDS[place].degrees()) {
            Ok(chord) => return Ok(chord),
            Err(further) => {
                if stop.as_ref().is_none_or(|(at, _)| further.0 > *at) {
                    stop = Some(further);
                }
            }
        }
    }
    Err(stop.unwrap_or((after, "no kind of chord".to_string())))
}

/// A pitch class at a place, and the place behind it.
fn root(chars: &[char], at: usize) -> std::result::Result<(u8, usize), Stop> {
    let class: i32 = match chars.get(at) {
        Some('C') => 0,
        Some('D') => 2,
        Some('E') => 4,
        Some('F') => 5,
        Some('G') => 7,
        Some('A') => 9,
        Some('B') => 11,
        Some(other) => {
            return Err((at, format!("{} where a root A to G is wanted", shown(*other))));
        }
        None => return Err((at, "nothing where a root A to G is wanted".to_string())),
    };
    let sign = chars.get(at + 1).copied().filter(|c| ['#', 'b'].contains(c));
    let count = chars[at + 1..].iter().take_while(|&&c| Some(c) == sign).count();
    let end = at + 1 + count;
    if count > MAX_ACCIDENTALS {
        return Err((at + 1, format!("{count} accidentals; at most {MAX_ACCIDENTALS}")));
    }
    if chars.get(end).is_some_and(|c| count > 0 && ['#', 'b'].contains(c)) {
        return Err((end, "sharps and flats mixed".to_string()));
    }
    let raised = if sign == Some('b') { -(count as i32) } else { count as i32 };
    Ok(((class + raised).rem_euclid(12) as u8, end))
}

/// Changes of degrees and the bass, to the end.
fn rest(
    chars: &[char],
    mut at: usize,
    root: u8,
    mut degrees: Degrees,
) -> std::result::Result<Chord, Stop> {
    let mut open = None;
    loop {
        match chars.get(at) {
            None => break,
            Some('(') if open.is_none() => (open, at) = (Some(at), at + 1),
            Some(')') if open.is_some() => (open, at) = (None, at + 1),
            Some(',' | ' ') if open.is_some() => at += 1,
            Some('/') if open.is_none() => {
                let (bass, end) = self::root(chars, at + 1)?;
                if end < chars.len() {
                    return Err((end, "something behind the bass".to_string()));
                }
                return Ok(Chord { root, bass, degrees });
            }
            Some(_) => at = change(chars, at, &mut degrees)?,
        }
    }
    match open {
        Some(at) => Err((at, "a bracket that is not closed".to_string())),
        None => Ok(Chord { root, bass: root, degrees }),
    }
}

/// One change of a degree; gives the place behind it.
fn change(chars: &[char], at: usize, degrees: &mut Degrees) -> std::result::Result<usize, Stop> {
    // Longer ones first.
    let ways = [("add#", 1), ("addb", -1), ("add", 0), ("no", 0), ("#", 1), ("b", -1)];
    let stands = |word: &str| {
        let rest = &chars[at..];
        rest.len() >= word.len() && word.chars().zip(rest).all(|(a, &b)| a == b)
    };
    let Some((way, sign)) = ways.into_iter().find(|(way, _)| stands(way)) else {
        let rest: String = chars[at..].iter().take(12).collect();
        return Err((at, format!("{rest:?} is no kind of chord and no change of a degree")));
    };
    let from = at + way.len();
    let digits: String = chars[from..].iter().take_while(|c| c.is_ascii_digit()).collect();
    let degree = match digits.parse::<usize>() {
        Ok(degree @ 1..=DEGREES) => degree,
        _ => return Err((from, format!("a degree of 1 to {DEGREES} is wanted after {way:?}"))),
    };
    let here = &mut degrees[degree - 1];
    *here = match (way, *here) {
        ("no", Some(_)) => None,
        ("no", None) => return Err((at, format!("no degree {degree} in the chord to leave out"))),
        ("#" | "b", Some(raised)) => Some(raised + sign),
        ("#" | "b", None) => Some(sign),
        (_, Some(_)) => return Err((at, format!("degree {degree} is in the chord already"))),
        // An added 7 is the lowered seventh.
        (_, None) => Some(if degree == 7 { sign - 1 } else { sign }),
    };
    if here.is_some_and(|raised| raised.abs() > MAX_RAISED) {
        return Err((at, format!("degree {degree} moved by over {MAX_RAISED} semitones")));
    }
    Ok(from + digits.len())
}

fn shown(c: char) -> String {
    format!("{c:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        symbol(text).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_the_symbol_and_the_place() {
        assert_eq!(error("Hm"), r#"chord "Hm", character 1: 'H' where a root A to G is wanted"#);
        assert_eq!(
            error("Cmxyz"),
            r#"chord "Cmxyz", character 3: "xyz" is no kind of chord and no change of a degree"#
        );
        assert_eq!(error(""), r#"chord "", character 1: nothing where a root A to G is wanted"#);
        assert_eq!(error("C/H"), r#"chord "C/H", character 3: 'H' where a root A to G is wanted"#);
        assert_eq!(error("C7(b9"), r#"chord "C7(b9", character 3: a bracket that is not closed"#);
        assert_eq!(
            error("C7b15"),
            r#"chord "C7b15", character 4: a degree of 1 to 13 is wanted after "b""#
        );
        assert_eq!(
            error("C(no7)"),
            r#"chord "C(no7)", character 3: no degree 7 in the chord to leave out"#
        );
        assert_eq!(error("C#b"), r#"chord "C#b", character 3: sharps and flats mixed"#);
        assert_eq!(error("C####"), r##"chord "C####", character 2: 4 accidentals; at most 3"##);
    }

    #[test]
    fn hostile_symbols_give_one_short_line() {
        for text in [
            "C".repeat(1_000_000),
            "C(".repeat(100_000),
            "C#5#5#5#5#5".to_string(),
            "\u{1b}[31mC\n7".to_string(),
            "C99999999999999999999999".to_string(),
            "é🎵".to_string(),
            "C/".to_string(),
            "C7(((b9)))".to_string(),
        ] {
            let error = error(&text);
            assert!(error.len() < 300 && !error.chars().any(char::is_control), "{error}");
        }
    }
}
