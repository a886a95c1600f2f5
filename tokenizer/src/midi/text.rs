//! Texts of a file, whose encoding the standard leaves open, made safe to show.

/// Longest text kept, in bytes; a file may give one name to thousands of instruments.
const MAX_BYTES: usize = 96;

/// Reads a text as UTF-8, else as Latin-1, without control and direction characters, cut to a
/// bounded length.
pub(super) fn decode(bytes: &[u8]) -> String {
    // A cut in the middle of a character must not turn the whole text into Latin-1.
    let head = &bytes[..bytes.len().min(4 * MAX_BYTES)];
    let unicode = match std::str::from_utf8(head) {
        Ok(text) => Some(text),
        Err(e) if e.error_len().is_none() && head.len() < bytes.len() => {
            std::str::from_utf8(&head[..e.valid_up_to()]).ok()
        }
        Err(_) => None,
    };
    let mut text = String::new();
    let mut push = |c: char| {
        if text.len() + c.len_utf8() > MAX_BYTES {
            return false;
        }
        if !hidden(c) {
            text.push(c);
        }
        true
    };
    match unicode {
        Some(unicode) => unicode.chars().all(&mut push),
        None => head.iter().all(|&b| push(char::from(b))),
    };
    text.trim().to_string()
}

/// Whether a character could steer a terminal or reorder a line.
fn hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf8_is_read_else_latin1_and_controls_are_dropped() {
        assert_eq!(decode("Für Élise 🎵".as_bytes()), "Für Élise 🎵");
        assert_eq!(decode(b"F\xfcr \x1b[31mElise\0"), "Für [31mElise");
        assert_eq!(decode(b"\xe2\x80\xaeabc"), "abc");
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let text = decode("é".repeat(100_000).as_bytes());
        assert_eq!((text.len(), text.chars().count()), (96, 48));
    }
}
