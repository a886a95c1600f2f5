//! A file becomes a score: tracks side by side or in a row, tempo map, metre, keys, markers.

use super::assemble::Assembly;
use super::consistency::Consistency;
use super::container::{self, Division, fault};
use super::text;
use super::track::TrackWalk;
use super::warnings::Warnings;
use crate::{Key, Marker, Meter, Result, Score, Tempo};
use midly::{MetaMessage, MidiMessage, TrackEventKind};

/// The longest piece, in quarter notes: 97 days at 120 quarters a minute. Counted in quarters and
/// not in ticks, because a fine division is lawful and a piece of years is not music.
pub const MAX_QUARTERS: u64 = 1 << 24;

/// A tempo faster than this is told: 60,000 quarters a minute.
const MIN_PLAUSIBLE_TEMPO: u32 = 1_000;

/// A score read from a file, and what was found on the way.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The music.
    pub score: Score,
    /// Texts that are no markers, lyrics or names, in order.
    pub texts: Vec<Marker>,
    /// Lyrics in order: a syllable or a chord symbol each.
    pub lyrics: Vec<Marker>,
    /// What was damaged, odd or repaired, one line for each kind of fault; no control characters.
    pub warnings: Vec<String>,
    /// Note-ons in the file with a velocity above 0.
    pub note_ons: usize,
    /// Ticks of a quarter note as in the file. For a file in SMPTE frames: ticks of a second
    /// (for 29.97 frames a second, of 1.001 seconds), which the score takes as a quarter note.
    pub ticks_per_quarter: u32,
    /// The file's format: 0 one track, 1 tracks side by side, 2 tracks one after another.
    pub format: u16,
    /// Tracks that the header promises.
    pub tracks_promised: usize,
    /// Tracks that are there.
    pub tracks_read: usize,
}

impl Score {
    /// Reads a standard MIDI file (format 0, 1 or 2, bare or in an RMID wrapper).
    ///
    /// What can be repaired is repaired and told in [`Reading::warnings`]. Tracks of format 2
    /// are put one after another. Peak memory is at most 64 MB + 40 times the file's size.
    ///
    /// # Errors
    /// [`crate::Error::Midi`] if the bytes are no MIDI file, hold no readable track, have a
    /// division of 0 or of unknown SMPTE frames, or music beyond [`MAX_QUARTERS`].
    pub fn from_midi(bytes: &[u8]) -> Result<Reading> {
        let mut warnings = Warnings::default();
        let bytes = container::find_header(bytes, &mut warnings)?;
        let (header, mut at) = container::read_header(bytes, &mut warnings)?;
        let mut reader = Reader::new(header.division);
        let mut tracks = 0;
        while let Some(range) = container::next_track(bytes, at, &mut warnings) {
            tracks += 1;
            at = reader.track(bytes, range, tracks, &mut warnings);
            if header.format == 2 {
                reader.origin = reader.end;
                reader.reset_tempo();
            }
        }
        let promised = usize::from(header.tracks);
        if tracks == 0 && promised > 0 {
            return Err(fault(format!("the header promises {promised} tracks, none is there")));
        }
        if tracks != promised {
            warnings.add("track count", || {
                format!("the header promises {promised} tracks, {tracks} were read")
            });
        }
        reader.finish(header, promised, tracks, warnings)
    }
}

/// What is gathered over the tracks.
struct Reader {
    score: Score,
    texts: Vec<Marker>,
    lyrics: Vec<Marker>,
    smpte: bool,
    assembly: Assembly,
    consistency: Consistency,
    /// Where the current track begins: 0, or behind the tracks before it in format 2.
    origin: u64,
    /// The latest tick of all tracks so far.
    end: u64,
}

impl Reader {
    fn new(division: Division) -> Reader {
        let (ticks, tempo) = match division {
            Division::Quarter { ticks } => (ticks, None),
            // 29 frames stand for 30 / 1.001 a second: 30 frames last 1.001 seconds.
            Division::Frames { per_second: 29, ticks } => (30 * ticks, Some(1_001_000)),
            Division::Frames { per_second, ticks } => (per_second * ticks, Some(1_000_000)),
        };
        let mut score = Score::new(ticks);
        score.tempos.extend(tempo.map(|micros_per_quarter| Tempo { tick: 0, micros_per_quarter }));
        Reader {
            score,
            texts: Vec::new(),
            lyrics: Vec::new(),
            smpte: tempo.is_some(),
            assembly: Assembly::new(),
            consistency: Consistency::new(),
            origin: 0,
            end: 0,
        }
    }

    /// Reads the track in `range`, or to its real end where the length lies; gives the place
    /// where the next chunk is to be sought.
    fn track(
        &mut self,
        bytes: &[u8],
        range: std::ops::Range<usize>,
        number: usize,
        warnings: &mut Warnings,
    ) -> usize {
        let next_mtrk = |from: usize| container::find(&bytes[from..], b"MTrk").map(|at| from + at);
        let limit = if container::is_boundary(bytes, range.end) {
            range.end
        } else {
            next_mtrk(range.end).unwrap_or(bytes.len())
        };
        let mut walk = TrackWalk::new(&bytes[range.start..limit], number);
        let mut name = String::new();
        while let Some((tick, event)) = walk.next(warnings) {
            let tick = self.origin + tick;
            match event {
                TrackEventKind::Midi { channel, message } => {
                    if let MidiMessage::NoteOff { vel, .. } = message {
                        self.consistency.note_off(vel.as_int(), tick);
                    }
                    self.assembly.take(tick, channel.as_int(), message, warnings);
                }
                TrackEventKind::Meta(meta) => self.meta(tick, &meta, &mut name, warnings),
                TrackEventKind::SysEx(_) | TrackEventKind::Escape(_) => {}
            }
        }
        let track_end = self.origin + walk.tick();
        self.end = self.end.max(track_end);
        self.assembly.end_track(track_end, &name, warnings);
        self.consistency.end_track(track_end);

        let (stop, told) = (range.start + walk.consumed(), range.len());
        if walk.stopped() {
            return next_mtrk(stop).filter(|&at| at < limit).unwrap_or(limit);
        }
        if !walk.ended() {
            warnings.add("no end", || format!("track {number} ends without an end-of-track event"));
            return limit;
        }
        if stop == range.end {
            return stop;
        }
        let length_lies = stop > range.end || bytes[stop..].starts_with(b"MTrk");
        if length_lies {
            let held = stop - range.start;
            warnings.add("track length", || {
                format!("track {number} says it is {told} bytes long; its events fill {held}")
            });
            return stop;
        }
        let left = range.end - stop;
        warnings.add("after end", || {
            format!("track {number}: {left} bytes after the end-of-track event are not read")
        });
        limit
    }

    fn meta(&mut self, tick: u64, meta: &MetaMessage, name: &mut String, warnings: &mut Warnings) {
        let score = &mut self.score;
        match *meta {
            MetaMessage::TrackName(bytes) if name.is_empty() => *name = text::decode(bytes),
            MetaMessage::Tempo(_) if self.smpte => {}
            MetaMessage::Tempo(micros) => {
                let micros_per_quarter = micros.as_int();
                if micros_per_quarter < MIN_PLAUSIBLE_TEMPO {
                    warnings.add("tempo", || {
                        format!("a tempo of {micros_per_quarter} microseconds a quarter note")
                    });
                }
                score.tempos.push(Tempo { tick, micros_per_quarter });
            }
            MetaMessage::TimeSignature(numerator, power @ 0..=7, _, _) => {
                score.meters.push(Meter { tick, numerator, denominator: 1 << power });
            }
            MetaMessage::KeySignature(sharps, minor) => {
                score.keys.push(Key { tick, sharps, minor });
            }
            MetaMessage::Marker(bytes) => {
                score.markers.push(Marker { tick, text: text::decode(bytes) });
            }
            MetaMessage::Text(bytes) => {
                self.texts.push(Marker { tick, text: text::decode(bytes) });
            }
            MetaMessage::Lyric(bytes) => {
                self.lyrics.push(Marker { tick, text: text::decode(bytes) });
            }
            _ => {}
        }
    }

    /// Each track of format 2 begins at the tempo of 120 quarters a minute.
    fn reset_tempo(&mut self) {
        if !self.smpte && self.score.tempos.last().is_some_and(|t| t.micros_per_quarter != 500_000)
        {
            self.score.tempos.push(Tempo { tick: self.origin, micros_per_quarter: 500_000 });
        }
    }

    fn finish(
        mut self,
        header: container::Header,
        tracks_promised: usize,
        tracks_read: usize,
        mut warnings: Warnings,
    ) -> Result<Reading> {
        let score = &mut self.score;
        let note_ons = self.assembly.note_ons;
        self.assembly.finish(score);
        let ticks_per_quarter = score.ticks_per_quarter;
        let ceiling = MAX_QUARTERS * u64::from(ticks_per_quarter);
        let end = score.end_tick();
        if end > ceiling {
            return Err(fault(format!(
                "the music ends after {} quarter notes; at most {MAX_QUARTERS} are read",
                end / u64::from(ticks_per_quarter)
            )));
        }
        self.consistency.tell(ticks_per_quarter, &mut warnings);
        if note_ons == 0 {
            warnings.add("no notes", || "the file holds no notes".to_string());
        }
        score.tempos = latest_of_each_tick(std::mem::take(&mut score.tempos), |t| t.tick, ceiling);
        score.meters = latest_of_each_tick(std::mem::take(&mut score.meters), |m| m.tick, ceiling);
        score.keys = latest_of_each_tick(std::mem::take(&mut score.keys), |k| k.tick, ceiling);
        for told in [&mut score.markers, &mut self.texts, &mut self.lyrics] {
            told.retain(|marker| marker.tick <= ceiling && !marker.text.is_empty());
            told.sort_by_key(|marker| marker.tick);
        }
        for track in &mut score.tracks {
            track.pedals.retain(|pedal| pedal.tick <= ceiling);
        }
        Ok(Reading {
            texts: self.texts,
            lyrics: self.lyrics,
            warnings: warnings.into_lines(),
            note_ons,
            ticks_per_quarter,
            format: header.format,
            tracks_promised,
            tracks_read,
            score: self.score,
        })
    }
}

/// Sorts by tick; of several at one tick the last stays.
fn latest_of_each_tick<T>(mut all: Vec<T>, tick: impl Fn(&T) -> u64, ceiling: u64) -> Vec<T> {
    all.sort_by_key(|item| tick(item));
    let mut kept: Vec<T> = Vec::with_capacity(all.len());
    for item in all.into_iter().filter(|item| tick(item) <= ceiling) {
        match kept.last_mut() {
            Some(last) if tick(last) == tick(&item) => *last = item,
            _ => kept.push(item),
        }
    }
    kept
}
