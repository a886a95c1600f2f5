//! A piece of music: tracks of notes on a grid of ticks, with tempo, metre and key.

/// A note of a track.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// Where it begins, in ticks.
    pub tick: u64,
    /// How long it lasts, in ticks; at least 1 in a score that was read from a file.
    pub duration: u64,
    /// MIDI pitch, 0 to 127; 60 is middle C.
    pub pitch: u8,
    /// MIDI velocity, 1 to 127.
    pub velocity: u8,
}

/// A move of the sustain pedal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pedal {
    /// Where, in ticks.
    pub tick: u64,
    /// Controller value, 0 to 127; 64 and above is down.
    pub value: u8,
}

/// Notes of one instrument.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Track {
    /// The track's name, without control characters.
    pub name: String,
    /// General MIDI program, 0 to 127; without meaning for drums.
    pub program: u8,
    /// Whether this is the drum channel (MIDI channel 10).
    pub is_drum: bool,
    /// Notes in order of tick, then pitch.
    pub notes: Vec<Note>,
    /// Pedal moves in order of tick.
    pub pedals: Vec<Pedal>,
}

impl Track {
    /// The mean pitch of its notes, each counted once; NaN without notes.
    pub fn mean_pitch(&self) -> f64 {
        let sum: f64 = self.notes.iter().map(|note| f64::from(note.pitch)).sum();
        sum / self.notes.len() as f64
    }
}

/// A tempo, from a tick on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tempo {
    /// Where it begins, in ticks.
    pub tick: u64,
    /// Microseconds for a quarter note; 500,000 is 120 quarters a minute.
    pub micros_per_quarter: u32,
}

/// A time signature, from a tick on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meter {
    /// Where it begins, in ticks.
    pub tick: u64,
    /// Upper number.
    pub numerator: u8,
    /// Lower number: a power of two, 1 to 128.
    pub denominator: u8,
}

/// A key signature, from a tick on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Where it begins, in ticks.
    pub tick: u64,
    /// Sharps if positive, flats if negative: -7 to 7.
    pub sharps: i8,
    /// Minor rather than major.
    pub minor: bool,
}

/// A text at a place: a rehearsal mark, a chord symbol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// Where, in ticks.
    pub tick: u64,
    /// The text, without control characters.
    pub text: String,
}

/// A piece of music.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Score {
    /// Ticks of a quarter note.
    pub ticks_per_quarter: u32,
    /// The tracks that hold notes.
    pub tracks: Vec<Track>,
    /// Tempos in order; none means 120 quarters a minute.
    pub tempos: Vec<Tempo>,
    /// Time signatures in order; none means 4/4.
    pub meters: Vec<Meter>,
    /// Key signatures in order.
    pub keys: Vec<Key>,
    /// Markers in order.
    pub markers: Vec<Marker>,
}

impl Score {
    /// Makes a score without notes.
    pub fn new(ticks_per_quarter: u32) -> Score {
        Score {
            ticks_per_quarter,
            tracks: Vec::new(),
            tempos: Vec::new(),
            meters: Vec::new(),
            keys: Vec::new(),
            markers: Vec::new(),
        }
    }

    /// Counts the notes of all tracks.
    pub fn note_count(&self) -> usize {
        self.tracks.iter().map(|t| t.notes.len()).sum()
    }

    /// The tick at which the last note ends; 0 without notes.
    pub fn end_tick(&self) -> u64 {
        let notes = self.tracks.iter().flat_map(|t| &t.notes);
        notes.map(|n| n.tick.saturating_add(n.duration)).max().unwrap_or(0)
    }

    /// The time of a tick in seconds, by the tempo map.
    pub fn seconds_at(&self, tick: u64) -> f64 {
        let (mut seconds, mut from, mut micros) = (0.0, 0u64, 500_000u32);
        let per_tick = |micros: u32| f64::from(micros) / 1e6 / f64::from(self.ticks_per_quarter);
        for tempo in &self.tempos {
            if tempo.tick >= tick {
                break;
            }
            seconds += (tempo.tick - from) as f64 * per_tick(micros);
            (from, micros) = (tempo.tick, tempo.micros_per_quarter);
        }
        seconds + (tick - from) as f64 * per_tick(micros)
    }

    /// The length in seconds, to the end of the last note.
    pub fn seconds(&self) -> f64 {
        self.seconds_at(self.end_tick())
    }
}
