//! The tokens of the event encoding: families in a row, each a range of ids.

/// Steps of a quarter note: a 32nd is 3, a triplet sixteenth 4, a triplet 32nd 2.
pub(crate) const STEPS_PER_QUARTER: u32 = 24;
/// Steps of a whole note.
pub(crate) const WHOLE: u64 = 4 * STEPS_PER_QUARTER as u64;
/// Positions that one token tells; those beyond, in bars over 8 quarters, take `AHEAD` tokens.
pub(crate) const POSITIONS: u64 = 192;
/// Durations that one token tells; longer ones take `HOLD` tokens.
pub(crate) const DURATIONS: u64 = 96;
/// Largest numbers of a time signature.
pub(crate) const MAX_NUMERATOR: u8 = 32;
pub(crate) const MAX_DENOMINATOR: u8 = 32;
const DENOMINATORS: u32 = 6;
/// Slowest and fastest tempo, in quarters a minute.
pub(crate) const TEMPOS: (u32, u32) = (20, 300);
/// The program number of drums.
pub(crate) const DRUMS: u8 = 128;
/// Tracks of one program.
pub(crate) const VOICES: usize = 16;

/// What a token says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The next bar begins.
    Bar,
    /// So many bars, a power of two, are passed over.
    Skip { power: u32 },
    /// A place in the bar.
    Position(u64),
    /// The position that follows is 192 times a power of two further.
    Ahead { power: u32 },
    /// A time signature; in the middle of a bar it begins a new one.
    Meter { numerator: u8, denominator: u8 },
    /// A key signature.
    Key { sharps: i8, minor: bool },
    /// A tempo in quarters a minute.
    Tempo(u32),
    /// What follows belongs to the first track of a program; 128 for drums.
    Program(u8),
    /// What follows belongs to a further track of the program.
    Voice(u8),
    /// The sustain pedal.
    Pedal { down: bool },
    /// A note's pitch.
    Pitch(u8),
    /// A note's velocity, one of 32 bins.
    Velocity(u8),
    /// The duration that follows is 96 times a power of two longer.
    Hold { power: u32 },
    /// A note's duration in steps; the note is complete.
    Duration(u64),
}

const SKIPS: u32 = 28;
const AHEADS: u32 = 4;
const HOLDS: u32 = 23;
const METERS: u32 = MAX_NUMERATOR as u32 * DENOMINATORS;

/// The sizes of the families, in the order of [`Event`].
const SIZES: [u32; 14] = [
    1,
    SKIPS,
    POSITIONS as u32,
    AHEADS,
    METERS,
    30,
    TEMPOS.1 - TEMPOS.0 + 1,
    129,
    VOICES as u32 - 1,
    2,
    128,
    32,
    HOLDS,
    DURATIONS as u32,
];

/// Number of tokens.
pub(crate) const SIZE: u32 = first(SIZES.len());

/// The first id of a family.
const fn first(family: usize) -> u32 {
    let (mut id, mut i) = (0, 0);
    while i < family {
        id += SIZES[i];
        i += 1;
    }
    id
}

impl Event {
    /// The id of the token.
    pub(crate) fn token(self) -> u32 {
        let (family, offset) = match self {
            Event::Bar => (0, 0),
            Event::Skip { power } => (1, power),
            Event::Position(position) => (2, position as u32),
            Event::Ahead { power } => (3, power),
            Event::Meter { numerator, denominator } => {
                let power = denominator.trailing_zeros();
                (4, (u32::from(numerator) - 1) * DENOMINATORS + power)
            }
            Event::Key { sharps, minor } => (5, (sharps + 7) as u32 * 2 + u32::from(minor)),
            Event::Tempo(bpm) => (6, bpm - TEMPOS.0),
            Event::Program(program) => (7, u32::from(program)),
            Event::Voice(voice) => (8, u32::from(voice) - 1),
            Event::Pedal { down } => (9, u32::from(down)),
            Event::Pitch(pitch) => (10, u32::from(pitch)),
            Event::Velocity(bin) => (11, u32::from(bin)),
            Event::Hold { power } => (12, power),
            Event::Duration(steps) => (13, steps as u32 - 1),
        };
        debug_assert!(offset < SIZES[family], "{self:?}");
        first(family) + offset
    }

    /// The meaning of a token; `None` if there is no such token.
    pub(crate) fn of(token: u32) -> Option<Event> {
        let mut offset = token;
        let family = SIZES.iter().position(|&size| {
            let here = offset < size;
            if !here {
                offset -= size;
            }
            here
        })?;
        let small = offset as u8;
        Some(match family {
            0 => Event::Bar,
            1 => Event::Skip { power: offset },
            2 => Event::Position(u64::from(offset)),
            3 => Event::Ahead { power: offset },
            4 => Event::Meter {
                numerator: (offset / DENOMINATORS) as u8 + 1,
                denominator: 1 << (offset % DENOMINATORS),
            },
            5 => Event::Key { sharps: (offset / 2) as i8 - 7, minor: offset % 2 == 1 },
            6 => Event::Tempo(offset + TEMPOS.0),
            7 => Event::Program(small),
            8 => Event::Voice(small + 1),
            9 => Event::Pedal { down: offset == 1 },
            10 => Event::Pitch(small),
            11 => Event::Velocity(small),
            12 => Event::Hold { power: offset },
            _ => Event::Duration(u64::from(offset) + 1),
        })
    }

    /// The name of the token.
    pub(crate) fn name(self) -> String {
        match self {
            Event::Bar => "BAR".to_string(),
            Event::Skip { power } => format!("SKIP_{}", 1u64 << power),
            Event::Position(position) => format!("POSITION_{position}"),
            Event::Ahead { power } => format!("AHEAD_{}", POSITIONS << power),
            Event::Meter { numerator, denominator } => {
                format!("TIME_SIGNATURE_{numerator}/{denominator}")
            }
            Event::Key { sharps, minor } => {
                let mode = if minor { "MINOR" } else { "MAJOR" };
                match sharps {
                    0.. => format!("KEY_{sharps}_SHARPS_{mode}"),
                    _ => format!("KEY_{}_FLATS_{mode}", -sharps),
                }
            }
            Event::Tempo(bpm) => format!("TEMPO_{bpm}"),
            Event::Program(DRUMS) => "DRUMS".to_string(),
            Event::Program(program) => format!("PROGRAM_{program}"),
            Event::Voice(voice) => format!("VOICE_{}", voice + 1),
            Event::Pedal { down: true } => "PEDAL_DOWN".to_string(),
            Event::Pedal { down: false } => "PEDAL_UP".to_string(),
            Event::Pitch(pitch) => format!("PITCH_{pitch}"),
            Event::Velocity(bin) => format!("VELOCITY_{}", bin + 1),
            Event::Hold { power } => format!("HOLD_{}", DURATIONS << power),
            Event::Duration(steps) => format!("DURATION_{steps}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_token_has_one_meaning_and_one_name() {
        let mut names = HashSet::new();
        for token in 0..SIZE {
            let event = Event::of(token).unwrap();
            assert_eq!(event.token(), token);
            assert!(names.insert(event.name()), "{} twice", event.name());
        }
        assert_eq!(Event::of(SIZE), None);
        assert_eq!(SIZE, 1153);
    }
}
