//! A score becomes a MIDI file of format 1 that strict readers take.

use super::read::MAX_QUARTERS;
use crate::{Note, Score, Track};
use midly::num::{u4, u7, u15, u24, u28};
use midly::{Format, Header, MetaMessage, MidiMessage, Smf, Timing, TrackEvent, TrackEventKind};

/// Tracks of a file before the one that takes all further instruments: 65,535 are lawful.
const MAX_TRACKS: usize = 65_534;
/// Longest text written, in bytes.
const MAX_TEXT: usize = 65_535;
/// The longest time between two events of a file.
const MAX_DELTA: u64 = (1 << 28) - 1;
const MAX_TICKS_PER_QUARTER: u32 = 32_767;
const DRUM_CHANNEL: u8 = 9;

/// The order of events at one tick: signatures, then ends of notes before beginnings.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    Setup,
    End,
    Pedal,
    Begin,
}

type Timed<'a> = (u64, Turn, TrackEventKind<'a>);

impl Score {
    /// Writes the score as a standard MIDI file of format 1.
    ///
    /// The first track holds tempos, time and key signatures and markers, each other one an
    /// instrument. Drums go to channel 10, melodic instruments to the other fifteen in turn;
    /// beyond fifteen, to further MIDI ports. A division above 32,767 is scaled down, a note of
    /// no length gets one tick, and ticks beyond [`crate::MAX_QUARTERS`] are written at that
    /// place. A note inside another of the same instrument and pitch reads back with the ends
    /// exchanged: a MIDI channel cannot tell them apart.
    pub fn to_midi(&self) -> Vec<u8> {
        let scale = Scale::new(self.ticks_per_quarter);
        let mut tracks = vec![to_deltas(self.conductor(&scale))];
        let mut overflow = Vec::new();
        let mut melodic = 0u32;
        for track in &self.tracks {
            let (channel, port) = if track.is_drum {
                (DRUM_CHANNEL, 0)
            } else {
                let (place, port) = (melodic % 15, (melodic / 15).min(127));
                melodic += 1;
                (place as u8 + u8::from(place >= u32::from(DRUM_CHANNEL)), port as u8)
            };
            let events = instrument(track, channel, port, &scale);
            if tracks.len() < MAX_TRACKS {
                tracks.push(to_deltas(events));
            } else {
                overflow.extend(events);
            }
        }
        if !overflow.is_empty() {
            tracks.push(to_deltas(overflow));
        }
        let header = Header::new(
            Format::Parallel,
            Timing::Metrical(u15::new(scale.ticks_per_quarter as u16)),
        );
        let mut bytes = Vec::new();
        let written = Smf { header, tracks }.write_std(&mut bytes);
        // Only more than 65,535 tracks, 256 MB an event or 4 GB a track are refused; the first two
        // cannot come here.
        debug_assert!(written.is_ok());
        bytes
    }

    fn conductor(&self, scale: &Scale) -> Vec<Timed<'_>> {
        let mut events = Vec::new();
        let mut put = |tick, meta| {
            events.push((scale.tick(tick), Turn::Setup, TrackEventKind::Meta(meta)));
        };
        for meter in &self.meters {
            if meter.numerator == 0 || !meter.denominator.is_power_of_two() {
                continue;
            }
            // MIDI clocks a beat, 24 a quarter: a dotted beat in 6/8, 9/8, 12/8.
            let compound = meter.denominator >= 8 && meter.numerator.is_multiple_of(3);
            let clocks = 96 / meter.denominator.min(96) * if compound { 3 } else { 1 };
            let power = meter.denominator.trailing_zeros() as u8;
            put(meter.tick, MetaMessage::TimeSignature(meter.numerator, power, clocks, 8));
        }
        for key in &self.keys {
            put(key.tick, MetaMessage::KeySignature(key.sharps.clamp(-7, 7), key.minor));
        }
        for tempo in &self.tempos {
            let micros = tempo.micros_per_quarter.clamp(1, (1 << 24) - 1);
            put(tempo.tick, MetaMessage::Tempo(u24::new(micros)));
        }
        for marker in &self.markers {
            put(marker.tick, MetaMessage::Marker(text(&marker.text)));
        }
        events
    }
}

fn instrument<'a>(track: &'a Track, channel: u8, port: u8, scale: &Scale) -> Vec<Timed<'a>> {
    let message = |message| TrackEventKind::Midi { channel: u4::new(channel), message };
    let mut events: Vec<Timed> = Vec::with_capacity(2 * track.notes.len() + 4);
    let mut setup = |event| events.push((0, Turn::Setup, event));
    if !track.name.is_empty() {
        setup(TrackEventKind::Meta(MetaMessage::TrackName(text(&track.name))));
    }
    if port > 0 {
        setup(TrackEventKind::Meta(MetaMessage::MidiPort(u7::new(port))));
    }
    let program = u7::new(track.program.min(127));
    setup(message(MidiMessage::ProgramChange { program }));
    for pedal in &track.pedals {
        let (controller, value) = (u7::new(64), u7::new(pedal.value.min(127)));
        let event = message(MidiMessage::Controller { controller, value });
        events.push((scale.tick(pedal.tick), Turn::Pedal, event));
    }
    for note in &track.notes {
        let (begin, end) = scale.span(note);
        let key = u7::new(note.pitch.min(127));
        let vel = u7::new(note.velocity.clamp(1, 127));
        events.push((begin, Turn::Begin, message(MidiMessage::NoteOn { key, vel })));
        let vel = u7::new(64);
        events.push((end, Turn::End, message(MidiMessage::NoteOff { key, vel })));
    }
    events
}

fn to_deltas(mut events: Vec<Timed>) -> Vec<TrackEvent> {
    // Stable: events of one kind at one tick stay in the score's order.
    events.sort_by_key(|&(tick, turn, _)| (tick, turn));
    let mut track = Vec::with_capacity(events.len() + 1);
    let mut at = 0;
    for (tick, _, kind) in events {
        let mut rest = tick - at;
        while rest > MAX_DELTA {
            let kind = TrackEventKind::Meta(MetaMessage::Text(b""));
            track.push(TrackEvent { delta: u28::new(MAX_DELTA as u32), kind });
            rest -= MAX_DELTA;
        }
        track.push(TrackEvent { delta: u28::new(rest as u32), kind });
        at = tick;
    }
    track.push(TrackEvent {
        delta: u28::new(0),
        kind: TrackEventKind::Meta(MetaMessage::EndOfTrack),
    });
    track
}

fn text(text: &str) -> &[u8] {
    &text.as_bytes()[..text.len().min(MAX_TEXT)]
}

/// Ticks of the score in ticks of the file.
struct Scale {
    from: u64,
    ticks_per_quarter: u32,
}

impl Scale {
    fn new(ticks_per_quarter: u32) -> Scale {
        let from = ticks_per_quarter.max(1);
        Scale { from: u64::from(from), ticks_per_quarter: from.min(MAX_TICKS_PER_QUARTER) }
    }

    fn tick(&self, tick: u64) -> u64 {
        let to = u64::from(self.ticks_per_quarter);
        if self.from == to {
            return tick.min(MAX_QUARTERS * to);
        }
        // At most 2^24 quarters of 2^32 ticks, times 2^15: needs more than 64 bits.
        let tick = tick.min(MAX_QUARTERS * self.from);
        (u128::from(tick) * u128::from(to) / u128::from(self.from)) as u64
    }

    fn span(&self, note: &Note) -> (u64, u64) {
        let last = MAX_QUARTERS * u64::from(self.ticks_per_quarter) - 1;
        let begin = self.tick(note.tick).min(last);
        (begin, self.tick(note.tick.saturating_add(note.duration)).max(begin + 1))
    }
}
