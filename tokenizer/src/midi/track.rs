//! One track as events: each is looked at before midly decodes it, so that no damage is hidden.
//!
//! Repairs: clock and other system messages are skipped; a channel message without status after a
//! meta event continues the status before it; meta events of a wrong length are skipped. Any
//! other fault ends the track at that place, since what follows can only be guessed.

use super::warnings::Warnings;
use midly::{EventIter, TrackEventKind};

/// Walks over the events of a track.
pub(super) struct TrackWalk<'a> {
    bytes: &'a [u8],
    number: usize,
    at: usize,
    tick: u64,
    /// The status that the next event may continue.
    running: Option<u8>,
    /// The last channel status, which the standard no longer lets an event continue.
    last_channel: Option<u8>,
    open_sysex: bool,
    ended: bool,
    stopped: bool,
}

/// What lies in the way of an event.
enum Fault {
    /// The track cannot be read from here on.
    Stop(String),
    /// The event ends here and means nothing.
    Skip { kind: &'static str, why: String, end: usize },
}

/// Where an event's body (from the status on) ends, and its status.
struct Extent {
    status: u8,
    end: usize,
}

impl<'a> TrackWalk<'a> {
    /// Begins at the first event of a track; `number` counts tracks from 1 for the warnings.
    pub(super) fn new(bytes: &'a [u8], number: usize) -> TrackWalk<'a> {
        TrackWalk {
            bytes,
            number,
            at: 0,
            tick: 0,
            running: None,
            last_channel: None,
            open_sysex: false,
            ended: false,
            stopped: false,
        }
    }

    /// How many bytes were read, up to the fault if the walk was stopped by one.
    pub(super) fn consumed(&self) -> usize {
        self.at
    }

    /// Whether an end-of-track event was met.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Whether a fault ended the walk.
    pub(super) fn stopped(&self) -> bool {
        self.stopped
    }

    /// The tick of the last event.
    pub(super) fn tick(&self) -> u64 {
        self.tick
    }

    /// The next event that can be read, with its tick; `None` at the end of the track.
    pub(super) fn next(&mut self, warnings: &mut Warnings) -> Option<(u64, TrackEventKind<'a>)> {
        while !self.ended && !self.stopped && self.at < self.bytes.len() {
            let start = self.at;
            let (delta, body) = match self.length_at(start, "delta time") {
                Ok(read) => read,
                Err(why) => return self.stop(start, &why, warnings),
            };
            let extent = match self.examine(body, warnings) {
                Ok(extent) => extent,
                Err(Fault::Stop(why)) => return self.stop(start, &why, warnings),
                Err(Fault::Skip { kind, why, end }) => {
                    let (number, at) = (self.number, start);
                    warnings.add(kind, || format!("track {number}, byte {at}: {why}; skipped"));
                    // Real-time messages alone leave a running status as it is.
                    if !matches!(self.bytes[body], 0xf8..=0xfe) {
                        self.running = None;
                    }
                    self.tick += u64::from(delta);
                    self.at = end;
                    continue;
                }
            };
            self.tick += u64::from(delta);
            self.at = extent.end;
            let mut events = EventIter::new(&self.bytes[start..extent.end]);
            // `examine` has resolved a continued status, lawful or repaired.
            *events.running_status_mut() = Some(extent.status);
            let Some(Ok(event)) = events.next() else {
                return self.stop(start, "an event that cannot be decoded", warnings);
            };
            match event.kind {
                TrackEventKind::Midi { .. } => {
                    self.running = Some(extent.status);
                    self.last_channel = self.running;
                }
                _ => self.running = None,
            }
            if matches!(event.kind, TrackEventKind::Meta(midly::MetaMessage::EndOfTrack)) {
                self.ended = true;
            }
            return Some((self.tick, event.kind));
        }
        None
    }

    fn stop<T>(&mut self, start: usize, why: &str, warnings: &mut Warnings) -> Option<T> {
        let (number, left) = (self.number, self.bytes.len() - start);
        warnings.add("track cut", || {
            format!("track {number}, byte {start}: {why}; {left} bytes from there are not read")
        });
        self.at = start;
        self.stopped = true;
        None
    }

    /// Finds the end and the status of the event whose status byte should be at `at`.
    fn examine(&mut self, at: usize, warnings: &mut Warnings) -> Result<Extent, Fault> {
        let cut = || Fault::Stop("the track ends in the middle of an event".to_string());
        let first = *self.bytes.get(at).ok_or_else(cut)?;
        let (status, data) = match (first, self.running, self.last_channel) {
            (0x80.., _, _) => (first, at + 1),
            (_, Some(running), _) => (running, at),
            (_, None, Some(last)) => {
                let number = self.number;
                warnings.add("running status", || {
                    format!(
                        "track {number}, byte {at}: an event without status after a meta or \
                         system event; it is taken to continue the status before that"
                    )
                });
                (last, at)
            }
            _ => {
                return Err(Fault::Stop("a data byte where a status belongs".to_string()));
            }
        };
        match status {
            0x80..=0xef => {
                let count = if matches!(status, 0xc0..=0xdf) { 1 } else { 2 };
                let end = data + count;
                let data = self.bytes.get(data..end).ok_or_else(cut)?;
                if let Some(wrong) = data.iter().find(|&&b| b >= 0x80) {
                    return Err(Fault::Stop(format!(
                        "byte {wrong:#04x} where a data byte of the event {status:#04x} belongs"
                    )));
                }
                Ok(Extent { status, end })
            }
            0xff => self.examine_meta(data),
            0xf0 | 0xf7 => {
                let (length, begin) =
                    self.length_at(data, "system exclusive length").map_err(Fault::Stop)?;
                let end = self.end_of(begin, length, "system exclusive message")?;
                let closed = end > begin && self.bytes[end - 1] == 0xf7;
                if !closed && (status == 0xf0 || self.open_sysex) {
                    let number = self.number;
                    warnings.add("sysex", || {
                        format!(
                            "track {number}, byte {at}: a system exclusive message is not closed \
                             in its event (split or unterminated)"
                        )
                    });
                }
                self.open_sysex = !closed && (status == 0xf0 || self.open_sysex);
                Ok(Extent { status, end })
            }
            0xf1..=0xfe => {
                let count = match status {
                    0xf1 | 0xf3 => 1,
                    0xf2 => 2,
                    _ => 0,
                };
                let rest = &self.bytes[data..];
                let taken = rest.iter().take(count).take_while(|&&b| b < 0x80).count();
                Err(Fault::Skip {
                    kind: "system message",
                    why: format!("status byte {status:#04x} has no place in a file"),
                    end: data + taken,
                })
            }
            0..=0x7f => Err(Fault::Stop("a data byte where a status belongs".to_string())),
        }
    }

    /// Checks the length of a meta event whose type is at `at`, and of some also the content.
    fn examine_meta(&mut self, at: usize) -> Result<Extent, Fault> {
        let kind = *self
            .bytes
            .get(at)
            .ok_or_else(|| Fault::Stop("the track ends in the middle of an event".to_string()))?;
        let (length, begin) = self.length_at(at + 1, "meta event length").map_err(Fault::Stop)?;
        let end = self.end_of(begin, length, "meta event")?;
        let data = &self.bytes[begin..end];
        let skip = |kind: &'static str, why: String| Err(Fault::Skip { kind, why, end });
        let (name, lawful): (_, &[usize]) = match kind {
            0x00 => ("sequence number", &[0, 2]),
            0x20 => ("channel prefix", &[1]),
            0x21 => ("port", &[1]),
            0x2f => ("end-of-track", &[0]),
            0x51 => ("tempo", &[3]),
            0x54 => ("SMPTE offset", &[5]),
            0x58 => ("time signature", &[4]),
            0x59 => ("key signature", &[2]),
            0x80.. => return skip("meta type", format!("meta event of type {kind:#04x}")),
            _ => return Ok(Extent { status: 0xff, end }),
        };
        if !lawful.contains(&data.len()) {
            if kind == 0x2f {
                self.ended = true;
            }
            let why = format!("{name} event of {} bytes, {} lawful", data.len(), lawful[0]);
            return skip("meta length", why);
        }
        match (kind, data) {
            (0x51, [0, 0, 0]) => skip("tempo zero", "a tempo of 0 microseconds".to_string()),
            (0x58, [0, ..]) => skip("meter", "a time signature over 0 beats".to_string()),
            (0x58, [_, power @ 8..=255, _, _]) => {
                skip("meter", format!("a time signature with the lower number 2^{power}"))
            }
            (0x59, [sharps, mode]) if !(-7..=7).contains(&sharps.cast_signed()) || *mode > 1 => {
                skip(
                    "key",
                    format!("a key signature of {} sharps, mode {mode}", sharps.cast_signed()),
                )
            }
            (0x20, [channel @ 16..=255]) => {
                skip("prefix", format!("a prefix of channel {channel}"))
            }
            (0x21, [port @ 0x80..=255]) => skip("port", format!("port {port}")),
            (0x54, [hour, minute, second, frame, subframe])
                if hour & 0x1f >= 24
                    || *minute >= 60
                    || *second >= 60
                    || *frame >= [24, 25, 29, 30][usize::from(hour >> 5 & 3)]
                    || *subframe >= 100 =>
            {
                skip("offset", "an SMPTE offset that is no time of day".to_string())
            }
            _ => Ok(Extent { status: 0xff, end }),
        }
    }

    fn end_of(&self, begin: usize, length: u32, what: &str) -> Result<usize, Fault> {
        let left = self.bytes.len() - begin;
        match length as usize {
            length if length <= left => Ok(begin + length),
            length => Err(Fault::Stop(format!("a {what} of {length} bytes where {left} are left"))),
        }
    }

    /// A number in the variable-length form (at most 4 bytes) and the place behind it.
    fn length_at(&self, at: usize, what: &str) -> Result<(u32, usize), String> {
        let mut value = 0;
        for (i, &byte) in self.bytes[at..].iter().take(4).enumerate() {
            value = value << 7 | u32::from(byte & 0x7f);
            if byte < 0x80 {
                return Ok((value, at + i + 1));
            }
        }
        match self.bytes.len() - at {
            4.. => Err(format!("a {what} longer than 4 bytes")),
            _ => Err("the track ends in the middle of an event".to_string()),
        }
    }
}
