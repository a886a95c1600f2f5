//! Events: a bar, a position in it, what happens there; signatures before instruments, from the
//! lowest program on; a pitch, a velocity, a duration.
//!
//! Complete is a sequence after a signature, a pedal move or a note, if every voice that moves
//! its pedal has a note and the voices of each program that have notes are the first ones. Then
//! it encodes to itself; with other voices it does so after renumbering.

use super::Grammar;
use crate::events::MAX_STEPS;
use crate::events::grid::bar_steps;
use crate::events::vocabulary::{DRUMS, DURATIONS, Event, POSITIONS, SIZE, VOICES, WHOLE};

/// What the last token was, with the power of those that come in ascending powers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Nothing,
    Skip(u32),
    Bar,
    Ahead(u32),
    Position,
    Meter,
    Key,
    Tempo,
    Program,
    Voice,
    Pedal,
    Pitch,
    Velocity,
    Hold(u32),
    Duration,
}

/// A set of voices for each program, drums last.
type Voices = [u16; DRUMS as usize + 1];
const NO_VOICES: Voices = [0; DRUMS as usize + 1];

/// The grammar of [`crate::Events`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventsGrammar {
    last: Last,
    bar_start: u64,
    bar_steps: u64,
    /// The place in the bar; `None` at its beginning, before any.
    position: Option<u64>,
    /// What `AHEAD` tokens add to the position that follows.
    ahead: u64,
    meter: Option<(u8, u8)>,
    key: Option<(i8, bool)>,
    tempo: Option<u32>,
    /// The instrument that plays at this position, as program and voice.
    playing: Option<(u8, u8)>,
    /// The instrument that played at this position before it.
    played: Option<(u8, u8)>,
    /// The last pitch of the instrument at this position.
    pitch: Option<u8>,
    hold: u64,
    /// Pedal moves of the instrument at this position.
    moves: u8,
    pedal_down: Voices,
    has_pedal: Voices,
    has_note: Voices,
}

impl Default for EventsGrammar {
    /// Begins a piece.
    fn default() -> EventsGrammar {
        EventsGrammar {
            last: Last::Nothing,
            bar_start: 0,
            bar_steps: WHOLE,
            position: None,
            ahead: 0,
            meter: None,
            key: None,
            tempo: None,
            playing: None,
            played: None,
            pitch: None,
            hold: 0,
            moves: 0,
            pedal_down: NO_VOICES,
            has_pedal: NO_VOICES,
            has_note: NO_VOICES,
        }
    }
}

impl EventsGrammar {
    fn tick(&self) -> u64 {
        (self.bar_start + self.position.unwrap_or(0)).min(MAX_STEPS)
    }

    /// Whether something complete stands at this position, so that time may go on.
    fn may_move(&self) -> bool {
        let complete = matches!(
            self.last,
            Last::Meter | Last::Key | Last::Tempo | Last::Pedal | Last::Duration
        );
        complete && self.tempo.is_some()
    }

    /// Whether a place of this bar, counted from its beginning, may be next.
    fn may_stand(&self, place: u64) -> bool {
        let later = self.position.is_none_or(|position| place > position);
        later && place < self.bar_steps && self.bar_start + place <= MAX_STEPS
    }

    fn may_set_position(&self) -> bool {
        matches!(self.last, Last::Bar | Last::Ahead(_)) || self.may_move()
    }

    /// Whether `AHEAD` of a power leads to a place, perhaps after further powers.
    fn leads_on(&self, power: u32) -> bool {
        let told = self.ahead / POSITIONS + (1 << power);
        let powers = 2u64 << power;
        (0..16)
            .filter(|aheads| aheads % powers == told % powers)
            .map(|aheads| (aheads * POSITIONS, self.bar_steps.min((aheads + 1) * POSITIONS)))
            .any(|(from, end)| end > from && self.may_stand(end - 1))
    }

    fn instrument(&self) -> (usize, u16) {
        let (program, voice) = self.playing.unwrap_or((0, 0));
        (usize::from(program), 1 << voice)
    }

    /// Whether the instrument at hand is complete: a program that played must tell a voice.
    fn is_named(&self) -> bool {
        matches!(self.last, Last::Program | Last::Voice) && self.playing > self.played
    }

    fn allows_event(&self, event: Event) -> bool {
        // The metre and the tempo of the beginning are still to be told.
        let opening = self.tempo.is_none();
        let last = self.last;
        match event {
            Event::Skip { power } => {
                let follows = match last {
                    Last::Skip(before) => power > before,
                    _ => self.may_move(),
                };
                let bars = (1u64 << power) + 1;
                follows && self.bar_start + bars * self.bar_steps <= MAX_STEPS
            }
            Event::Bar => match last {
                Last::Nothing => true,
                Last::Skip(_) => self.bar_start + self.bar_steps <= MAX_STEPS,
                _ => self.may_move() && self.bar_start + self.bar_steps <= MAX_STEPS,
            },
            Event::Ahead { power } => {
                let follows = match last {
                    Last::Ahead(before) => power > before,
                    _ => self.may_set_position() && !opening,
                };
                follows && self.leads_on(power)
            }
            Event::Position(position) => {
                let place = self.ahead + position;
                self.may_set_position() && self.may_stand(place) && (!opening || place == 0)
            }
            Event::Meter { numerator, denominator } => {
                last == Last::Position && self.meter != Some((numerator, denominator))
            }
            Event::Key { sharps, minor } => {
                let follows = last == Last::Meter || (last == Last::Position && !opening);
                follows && self.key != Some((sharps, minor))
            }
            Event::Tempo(bpm) => {
                let follows =
                    matches!(last, Last::Meter | Last::Key) || (last == Last::Position && !opening);
                follows && self.tempo != Some(bpm)
            }
            Event::Program(program) => {
                let later = self.playing.is_none_or(|(playing, voice)| {
                    program > playing || (program == playing && usize::from(voice) + 1 < VOICES)
                });
                (last == Last::Position && !opening || self.may_move()) && later
            }
            Event::Voice(voice) => {
                let told = self.playing.map(|(program, _)| (program, voice));
                last == Last::Program && told > self.played
            }
            Event::Pedal { down } => {
                let (program, voice) = self.instrument();
                let is_down = self.pedal_down[program] & voice != 0;
                (self.is_named() || last == Last::Pedal) && self.moves < 2 && down != is_down
            }
            Event::Pitch(pitch) => {
                let follows = self.is_named() || matches!(last, Last::Pedal | Last::Duration);
                let ascends = self.pitch.is_none_or(|before| pitch > before);
                follows && ascends && self.tick() < MAX_STEPS
            }
            Event::Velocity(_) => last == Last::Pitch,
            Event::Hold { power } => {
                let follows = match last {
                    Last::Hold(before) => power > before,
                    _ => last == Last::Velocity,
                };
                follows && self.tick() + self.hold + (DURATIONS << power) < MAX_STEPS
            }
            Event::Duration(steps) => {
                let follows = matches!(last, Last::Velocity | Last::Hold(_));
                follows && self.tick() + self.hold + steps <= MAX_STEPS
            }
        }
    }

    fn go_on(&mut self, bars: u64) {
        self.bar_start = (self.bar_start + bars * self.bar_steps).min(MAX_STEPS);
        (self.position, self.ahead) = (None, 0);
    }

    fn take(&mut self, event: Event) {
        self.last = match event {
            Event::Skip { power } => {
                self.go_on(1 << power);
                Last::Skip(power)
            }
            Event::Bar => {
                self.go_on(u64::from(self.last != Last::Nothing));
                Last::Bar
            }
            Event::Ahead { power } => {
                self.ahead = (self.ahead + (POSITIONS << power)).min(MAX_STEPS);
                Last::Ahead(power)
            }
            Event::Position(position) => {
                self.position = Some(position + std::mem::take(&mut self.ahead));
                (self.playing, self.played) = (None, None);
                Last::Position
            }
            Event::Meter { numerator, denominator } => {
                (self.bar_start, self.position) = (self.tick(), Some(0));
                self.bar_steps = bar_steps(numerator, denominator);
                self.meter = Some((numerator, denominator));
                Last::Meter
            }
            Event::Key { sharps, minor } => {
                self.key = Some((sharps, minor));
                Last::Key
            }
            Event::Tempo(bpm) => {
                self.tempo = Some(bpm);
                Last::Tempo
            }
            Event::Program(program) => {
                self.played = self.playing;
                self.playing = Some((program, 0));
                (self.pitch, self.moves) = (None, 0);
                Last::Program
            }
            Event::Voice(voice) => {
                self.playing = self.playing.map(|(program, _)| (program, voice));
                Last::Voice
            }
            Event::Pedal { down } => {
                let (program, voice) = self.instrument();
                self.has_pedal[program] |= voice;
                let others = self.pedal_down[program] & !voice;
                self.pedal_down[program] = others | if down { voice } else { 0 };
                self.moves = self.moves.saturating_add(1);
                Last::Pedal
            }
            Event::Pitch(pitch) => {
                (self.pitch, self.hold) = (Some(pitch), 0);
                Last::Pitch
            }
            Event::Velocity(_) => Last::Velocity,
            Event::Hold { power } => {
                self.hold = (self.hold + (DURATIONS << power)).min(MAX_STEPS);
                Last::Hold(power)
            }
            Event::Duration(_) => {
                let (program, voice) = self.instrument();
                self.has_note[program] |= voice;
                Last::Duration
            }
        };
    }
}

impl Grammar for EventsGrammar {
    fn vocab_size(&self) -> usize {
        SIZE as usize
    }

    fn reset(&mut self) {
        *self = EventsGrammar::default();
    }

    fn allows(&self, token: u32) -> bool {
        Event::of(token).is_some_and(|event| self.allows_event(event))
    }

    fn push(&mut self, token: u32) {
        if let Some(event) = Event::of(token) {
            self.take(event);
        }
    }

    fn is_complete(&self) -> bool {
        let whole = |(pedals, notes): (&u16, &u16)| {
            pedals & !notes == 0 && notes & notes.wrapping_add(1) == 0
        };
        self.may_move() && self.has_pedal.iter().zip(&self.has_note).all(whole)
    }

    fn copy(&self) -> Box<dyn Grammar> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(events: &[Event]) -> EventsGrammar {
        let mut grammar = EventsGrammar::default();
        for &event in events {
            assert!(grammar.allows_event(event), "{}", event.name());
            grammar.take(event);
        }
        grammar
    }

    fn allowed(grammar: &EventsGrammar) -> Vec<String> {
        let all = (0..SIZE).filter(|&token| grammar.allows(token)).filter_map(Event::of);
        all.map(Event::name).collect()
    }

    const OPENING: [Event; 4] = [
        Event::Bar,
        Event::Position(0),
        Event::Meter { numerator: 3, denominator: 4 },
        Event::Tempo(120),
    ];

    #[test]
    fn a_piece_opens_with_metre_and_tempo() {
        assert_eq!(allowed(&after(&[])), ["BAR"]);
        assert_eq!(allowed(&after(&OPENING[..1])), ["POSITION_0"]);
        assert_eq!(allowed(&after(&OPENING[..2])).len(), 32 * 6);
        // 30 keys and 281 tempos.
        assert_eq!(allowed(&after(&OPENING[..3])).len(), 30 + 281);
        assert!(after(&OPENING).is_complete());
        // Bars of 72 steps: 28 skips but for those beyond 2^24 quarters, the next bar, 71
        // positions, 129 programs.
        let names = allowed(&after(&OPENING));
        let count = |start: &str| names.iter().filter(|name| name.starts_with(start)).count();
        assert_eq!((count("BAR"), count("POSITION"), count("AHEAD")), (1, 71, 0));
        assert_eq!((count("PROGRAM") + count("DRUMS"), count("SKIP")), (129, 23));
        assert_eq!(names.len(), 1 + 71 + 129 + 23);
    }

    #[test]
    fn notes_are_complete_and_pitches_and_programs_ascend() {
        let program = [&OPENING[..], &[Event::Program(40)]].concat();
        // Voices 2 to 16, the pedal down, 128 pitches.
        assert_eq!(allowed(&after(&program)).len(), 15 + 1 + 128);
        // A pedal moves to and fro, and a voice that moves it needs a note.
        let pedal = after(&[&program[..], &[Event::Pedal { down: true }]].concat());
        assert!(!pedal.allows_event(Event::Pedal { down: true }) && !pedal.is_complete());
        assert!(pedal.allows_event(Event::Pedal { down: false }));
        let pitch = [&program[..], &[Event::Pitch(60)]].concat();
        assert_eq!(allowed(&after(&pitch)).len(), 32);
        let velocity = [&pitch[..], &[Event::Velocity(20)]].concat();
        assert_eq!(allowed(&after(&velocity)).len(), 23 - 1 + 96);
        let note = [&velocity[..], &[Event::Duration(24)]].concat();
        let grammar = after(&note);
        assert!(grammar.is_complete());
        assert!(!grammar.allows_event(Event::Pitch(60)) && grammar.allows_event(Event::Pitch(61)));
        assert!(!grammar.allows_event(Event::Program(39)));
        assert!(!grammar.allows_event(Event::Tempo(100)));
        // The same program again: its second voice must be told.
        let again = [&note[..], &[Event::Program(40)]].concat();
        assert!(allowed(&after(&again)).iter().all(|name| name.starts_with("VOICE_")));
    }

    #[test]
    fn positions_ascend_in_bars_of_any_length() {
        let long = Event::Meter { numerator: 32, denominator: 4 };
        let opening = [Event::Bar, Event::Position(0), long, Event::Tempo(120)];
        // 768 steps: one or two, or one and two, times 192 ahead.
        let grammar = after(&opening);
        assert!(grammar.allows_event(Event::Ahead { power: 0 }));
        assert!(grammar.allows_event(Event::Ahead { power: 1 }));
        assert!(!grammar.allows_event(Event::Ahead { power: 2 }));
        let there = [
            Event::Ahead { power: 1 },
            Event::Position(10),
            Event::Key { sharps: 0, minor: false },
        ];
        let grammar = after(&[&opening[..], &there].concat());
        // At place 394: 192 alone lies behind, 192 + 384 does not.
        assert!(grammar.allows_event(Event::Ahead { power: 0 }));
        let grammar = after(&[&opening[..], &there, &[Event::Ahead { power: 0 }]].concat());
        assert_eq!(allowed(&grammar), ["AHEAD_384"]);
    }
}
