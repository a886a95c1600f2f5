//! The file as chunks: RIFF wrapper, junk in front, header, tracks, and where they really end.

use super::warnings::Warnings;
use crate::{Error, Result};

/// How far a header is searched for behind junk, such as the 128 bytes of MacBinary.
const MAX_JUNK: usize = 64 * 1024;

/// What the header says.
pub(super) struct Header {
    pub(super) format: u16,
    pub(super) tracks: u16,
    pub(super) division: Division,
}

/// What a tick is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Division {
    /// So many ticks in a quarter note.
    Quarter { ticks: u32 },
    /// So many frames in a second (29 stands for 29.97), so many ticks in a frame.
    Frames { per_second: u32, ticks: u32 },
}

pub(super) fn fault(why: impl Into<String>) -> Error {
    Error::Midi { why: why.into() }
}

/// Steps out of RIFF wrappers, one by one and without recursion, and past junk before the header.
pub(super) fn find_header<'a>(bytes: &'a [u8], warnings: &mut Warnings) -> Result<&'a [u8]> {
    if bytes.is_empty() {
        return Err(fault("the file is empty"));
    }
    let mut inner = bytes;
    let mut depth = 0;
    while inner.starts_with(b"RIFF") {
        inner = riff_data(inner, warnings)?;
        depth += 1;
    }
    if depth > 1 {
        warnings.add("nested", || format!("the file is wrapped in RIFF {depth} times"));
    }
    if inner.starts_with(b"MThd") {
        return Ok(inner);
    }
    let searched = &inner[..inner.len().min(MAX_JUNK)];
    match find(searched, b"MThd") {
        Some(at) => {
            warnings.add("junk", || format!("{at} bytes of junk before the header are skipped"));
            Ok(&inner[at..])
        }
        None => Err(fault("not a MIDI file: it has no MThd header")),
    }
}

/// The `data` chunk of an RMID file.
fn riff_data<'a>(bytes: &'a [u8], warnings: &mut Warnings) -> Result<&'a [u8]> {
    let word = |at: usize| bytes.get(at..at + 4);
    if word(8) != Some(b"RMID") {
        return Err(fault("not a MIDI file: a RIFF file of another kind than RMID"));
    }
    let mut at = 12;
    while let (Some(id), Some(length)) = (word(at), word(at + 4)) {
        let promised = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let rest = &bytes[at + 8..];
        if id == b"data" {
            if promised > rest.len() {
                warnings.add("riff length", || {
                    format!("the RIFF data promise {promised} bytes, {} are there", rest.len())
                });
            }
            return Ok(&rest[..promised.min(rest.len())]);
        }
        // Chunks are padded to an even length.
        let step = 8usize.saturating_add(promised).saturating_add(promised % 2);
        at = at.saturating_add(step).min(bytes.len());
    }
    Err(fault("an RMID file without a data chunk"))
}

/// Reads the header and returns it with the place where the first chunk after it begins.
pub(super) fn read_header(bytes: &[u8], warnings: &mut Warnings) -> Result<(Header, usize)> {
    let Some(head) = bytes.get(..14) else {
        return Err(fault(format!(
            "the header is cut short: {} bytes of 14 are there",
            bytes.len()
        )));
    };
    let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let (format, tracks) = (word(8), word(10));
    let division = division(head[12], head[13], warnings)?;
    if format > 2 {
        warnings.add("format", || format!("format {format} is unknown; read as format 1"));
    } else if format == 0 && tracks > 1 {
        warnings.add("format", || format!("format 0 with {tracks} tracks; read as format 1"));
    }
    let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
    let told = 8usize.saturating_add(length);
    let track_at = |at: usize| bytes.get(at..).is_some_and(|rest| rest.starts_with(b"MTrk"));
    // A longer header is lawful where a chunk follows it.
    let lawful =
        length == 6 || (length > 6 && told <= bytes.len() && (track_at(told) || !track_at(14)));
    if !lawful {
        warnings.add("header length", || {
            format!("the header says it is {length} bytes long; 6 are read")
        });
    }
    let next = if lawful { told } else { 14 };
    Ok((Header { format, tracks, division }, next))
}

fn division(high: u8, low: u8, warnings: &mut Warnings) -> Result<Division> {
    // midly 0.5.3 negates this byte as i8 and overflows at 0x80, so it never gets to see it.
    if high < 0x80 {
        return match u32::from(u16::from_be_bytes([high, low])) {
            0 => Err(fault("the header says that a quarter note has 0 ticks")),
            ticks => Ok(Division::Quarter { ticks }),
        };
    }
    let (per_second, ticks) = (256 - u32::from(high), u32::from(low));
    if ticks == 0 {
        return Err(fault("the header counts time in SMPTE frames of 0 ticks"));
    }
    if !matches!(per_second, 24 | 25 | 29 | 30) {
        return Err(fault(format!(
            "the header says {per_second} SMPTE frames a second; 24, 25, 29 (29.97) and 30 exist"
        )));
    }
    warnings.add("smpte", || {
        format!(
            "time is counted in SMPTE frames ({per_second} a second, {ticks} ticks each): a \
             quarter note is taken to last one second, tempo events are ignored"
        )
    });
    Ok(Division::Frames { per_second, ticks })
}

/// The next track from `at` on: where its events begin and where they must end at the latest.
///
/// Unknown chunks are passed over as the standard asks; bytes of no chunk are told.
pub(super) fn next_track(
    bytes: &[u8],
    mut at: usize,
    warnings: &mut Warnings,
) -> Option<std::ops::Range<usize>> {
    while at < bytes.len() {
        let rest = &bytes[at..];
        let named = rest.len() >= 8 && rest[..4].iter().all(|b| (0x20..0x7f).contains(b));
        if !named {
            let skipped = find(rest, b"MTrk").unwrap_or(rest.len());
            warnings
                .add("no chunk", || format!("{skipped} bytes that belong to no chunk are skipped"));
            // `rest` may itself begin with an MTrk that is cut within its 8 bytes.
            at += skipped.max(1);
            continue;
        }
        let promised = u32::from_be_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize;
        let begin = at + 8;
        let left = bytes.len() - begin;
        if promised > left {
            warnings.add("chunk length", || {
                format!("a chunk promises {promised} bytes, {left} are left in the file")
            });
        }
        let end = begin + promised.min(left);
        if &rest[..4] == b"MTrk" {
            return Some(begin..end);
        }
        at = end;
    }
    None
}

/// Whether a chunk, or the end of the file, is at a place.
pub(super) fn is_boundary(bytes: &[u8], at: usize) -> bool {
    let rest = &bytes[at..];
    rest.is_empty() || (rest.len() >= 8 && rest[..4].iter().all(|b| b.is_ascii_alphanumeric()))
}

/// Where `needle` first occurs.
pub(super) fn find(haystack: &[u8], needle: &[u8; 4]) -> Option<usize> {
    haystack.windows(4).position(|w| w == needle)
}
