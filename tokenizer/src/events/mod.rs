//! Any MIDI as events: bar, position, program, pitch, velocity, duration, with tempo, time and key
//! signatures and the pedal. In the manner of REMI, for many instruments.
//!
//! A step is 1/24 quarter note. A bar with music begins with `BAR`; empty bars in between cost a
//! few `SKIP` tokens of powers of two, however many there are. `POSITION` is followed by what
//! happens there: signatures and tempo, then for each instrument `PROGRAM` (or `DRUMS`), its pedal
//! moves and its notes from the lowest on, each as `PITCH VELOCITY DURATION`. Further tracks of one
//! program are told by `VOICE`. A time signature inside a bar begins a new bar there.
//!
//! The length is at most a fixed number of tokens per note, signature and pedal move.
//!
//! # Source
//! Huang & Yang 2020 (REMI: bar and position); von Rütte et al. 2023 (FIGARO: instruments and
//! signatures in it). The grid, the powers of two and the voices are ours.

pub(crate) mod grid;
pub(crate) mod vocabulary;

use crate::grammar::{EventsGrammar, Grammar};
use crate::performance::{bin_velocity, velocity_bin};
use crate::quantise::Losses;
use crate::{
    Encoded, Encoding, Key, MAX_QUARTERS, Meter, Note, Pedal, Result, Score, Speed, Tempo,
    TokenTime, Track,
};
use grid::{bar_steps, bpm_micros, hear, micros_bpm, voices};
use std::collections::BTreeMap;
use vocabulary::{DRUMS, DURATIONS, Event, POSITIONS, SIZE, STEPS_PER_QUARTER, WHOLE};

/// The longest piece in steps.
pub(crate) const MAX_STEPS: u64 = MAX_QUARTERS * STEPS_PER_QUARTER as u64;

/// The event encoding, `events`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Events;

impl Events {
    /// Steps of a quarter note.
    pub const STEPS_PER_QUARTER: u32 = STEPS_PER_QUARTER;
}

impl Encoding for Events {
    fn name(&self) -> &str {
        "events"
    }

    fn vocab_size(&self) -> usize {
        SIZE as usize
    }

    fn token_name(&self, token: u32) -> String {
        match Event::of(token) {
            Some(event) => event.name(),
            None => panic!("token {token} of {SIZE}"),
        }
    }

    fn token_time(&self, token: u32) -> TokenTime {
        match Event::of(token) {
            Some(Event::Bar) => TokenTime::Bars(1),
            Some(Event::Skip { power }) => TokenTime::Bars(1 << power),
            _ => TokenTime::None,
        }
    }

    fn is_onset(&self, token: u32) -> bool {
        matches!(Event::of(token), Some(Event::Pitch(_)))
    }

    fn grammar(&self) -> Box<dyn Grammar> {
        Box::new(EventsGrammar::default())
    }

    fn speed(&self) -> Speed {
        Speed::Tempo
    }

    fn has_velocity(&self) -> bool {
        true
    }

    /// The score on a grid of 24 steps a quarter note.
    ///
    /// Tracks are in order of program, drums last, without names; velocities in 32 bins, tempos
    /// in whole quarters a minute from 20 to 300, pedals down or up. Tempo and time signature are
    /// told at the beginning. Markers are left out.
    fn quantise(&self, score: &Score) -> Score {
        hear(score, &mut Losses::default())
    }

    fn encode(&self, score: &Score) -> Result<Encoded> {
        let mut losses = Losses::default();
        let heard = hear(score, &mut losses);
        Ok(Encoded { tokens: Writer::default().write(&heard), lost: losses.into_vec() })
    }

    fn decode(&self, tokens: &[u32]) -> Result<Score> {
        crate::encoding::check_tokens(self, tokens)?;
        let mut reader = Reader::new();
        for event in tokens.iter().filter_map(|&token| Event::of(token)) {
            reader.take(event);
        }
        Ok(hear(&reader.finish(), &mut Losses::default()))
    }
}

/// Writes a score that [`hear`] returned.
#[derive(Default)]
struct Writer {
    tokens: Vec<u32>,
    bar_start: u64,
    bar_steps: u64,
    begun: bool,
}

/// What happens to all instruments at once.
enum Signature {
    Meter(Meter),
    Key(Key),
    Tempo(Tempo),
}

impl Writer {
    fn write(mut self, score: &Score) -> Vec<u32> {
        self.bar_steps = WHOLE;
        let meters = score.meters.iter().map(|&m| (m.tick, Signature::Meter(m)));
        let keys = score.keys.iter().map(|&k| (k.tick, Signature::Key(k)));
        let tempos = score.tempos.iter().map(|&t| (t.tick, Signature::Tempo(t)));
        let mut signatures: Vec<_> = meters.chain(keys).chain(tempos).collect();
        signatures.sort_by_key(|&(tick, _)| tick);

        // Signatures as instrument 0; pedal moves before notes.
        let mut moments: Vec<(u64, usize, usize)> = Vec::new();
        moments.extend(signatures.iter().enumerate().map(|(i, &(tick, _))| (tick, 0, i)));
        for (i, track) in (1..).zip(&score.tracks) {
            let pedals = track.pedals.iter().map(|pedal| pedal.tick);
            let notes = track.notes.iter().map(|note| note.tick);
            moments.extend(pedals.chain(notes).enumerate().map(|(j, tick)| (tick, i, j)));
        }
        moments.sort_unstable();

        let voices = voices(&score.tracks);
        let (mut at, mut playing) = (None, 0);
        for (tick, instrument, item) in moments {
            if at != Some(tick) {
                self.go_to(tick);
                (at, playing) = (Some(tick), 0);
            }
            if instrument == 0 {
                self.signature(&signatures[item].1);
                continue;
            }
            let track = &score.tracks[instrument - 1];
            if playing != instrument {
                self.put(Event::Program(if track.is_drum { DRUMS } else { track.program }));
                if voices[instrument - 1] > 0 {
                    self.put(Event::Voice(voices[instrument - 1]));
                }
                playing = instrument;
            }
            match item.checked_sub(track.pedals.len()) {
                None => self.put(Event::Pedal { down: track.pedals[item].value >= 64 }),
                Some(place) => self.note(&track.notes[place]),
            }
        }
        self.tokens
    }

    fn put(&mut self, event: Event) {
        self.tokens.push(event.token());
    }

    /// Tells a number as a sum of powers of two, smallest first.
    fn powers(&mut self, number: u64, event: impl Fn(u32) -> Event) {
        (0..u64::BITS).filter(|power| number >> power & 1 == 1).for_each(|p| self.put(event(p)));
    }

    fn go_to(&mut self, tick: u64) {
        let bars = (tick - self.bar_start) / self.bar_steps;
        self.bar_start += bars * self.bar_steps;
        if bars > 0 || !self.begun {
            let empty = bars - u64::from(self.begun);
            self.powers(empty, |power| Event::Skip { power });
            self.put(Event::Bar);
            self.begun = true;
        }
        let position = tick - self.bar_start;
        self.powers(position / POSITIONS, |power| Event::Ahead { power });
        self.put(Event::Position(position % POSITIONS));
    }

    fn signature(&mut self, signature: &Signature) {
        match *signature {
            Signature::Meter(Meter { tick, numerator, denominator }) => {
                (self.bar_start, self.bar_steps) = (tick, bar_steps(numerator, denominator));
                self.put(Event::Meter { numerator, denominator });
            }
            Signature::Key(Key { sharps, minor, .. }) => self.put(Event::Key { sharps, minor }),
            Signature::Tempo(tempo) => {
                self.put(Event::Tempo(micros_bpm(tempo.micros_per_quarter)));
            }
        }
    }

    fn note(&mut self, note: &Note) {
        self.put(Event::Pitch(note.pitch));
        self.put(Event::Velocity(velocity_bin(note.velocity)));
        let whole = (note.duration - 1) / DURATIONS;
        self.powers(whole, |power| Event::Hold { power });
        self.put(Event::Duration(note.duration - whole * DURATIONS));
    }
}

/// Reads any events: what makes no sense where it stands changes nothing.
struct Reader {
    score: Score,
    /// Tracks by program, drums last, and voice.
    tracks: BTreeMap<(u8, u8), Track>,
    bar_start: u64,
    bar_steps: u64,
    begun: bool,
    position: u64,
    ahead: u64,
    program: u8,
    voice: u8,
    pitch: Option<u8>,
    bin: u8,
    hold: u64,
}

impl Reader {
    fn new() -> Reader {
        Reader {
            score: Score::new(STEPS_PER_QUARTER),
            tracks: BTreeMap::new(),
            bar_start: 0,
            bar_steps: WHOLE,
            begun: false,
            position: 0,
            ahead: 0,
            program: 0,
            voice: 0,
            pitch: None,
            // Where no velocity is told: that of 100.
            bin: velocity_bin(100),
            hold: 0,
        }
    }

    /// The current step; never beyond the longest piece, where nothing is kept.
    fn tick(&self) -> u64 {
        (self.bar_start + self.position).min(MAX_STEPS)
    }

    fn track(&mut self) -> &mut Track {
        self.tracks.entry((self.program, self.voice)).or_default()
    }

    fn advance(&mut self, bars: u64) {
        self.bar_start = (self.bar_start + bars * self.bar_steps).min(MAX_STEPS);
        (self.position, self.ahead) = (0, 0);
    }

    fn take(&mut self, event: Event) {
        let tick = self.tick();
        match event {
            Event::Bar => {
                self.advance(u64::from(self.begun));
                self.begun = true;
            }
            Event::Skip { power } => self.advance(1 << power),
            Event::Position(position) => {
                self.position = position + std::mem::take(&mut self.ahead);
            }
            Event::Ahead { power } => {
                self.ahead = (self.ahead + (POSITIONS << power)).min(MAX_STEPS);
            }
            Event::Meter { numerator, denominator } => {
                self.score.meters.push(Meter { tick, numerator, denominator });
                (self.bar_start, self.bar_steps) = (tick, bar_steps(numerator, denominator));
                (self.position, self.ahead) = (0, 0);
            }
            Event::Key { sharps, minor } => self.score.keys.push(Key { tick, sharps, minor }),
            Event::Tempo(bpm) => {
                self.score.tempos.push(Tempo { tick, micros_per_quarter: bpm_micros(bpm) });
            }
            Event::Program(program) => (self.program, self.voice) = (program, 0),
            Event::Voice(voice) => self.voice = voice,
            Event::Pedal { down } => {
                let value = if down { 127 } else { 0 };
                self.track().pedals.push(Pedal { tick, value });
            }
            Event::Pitch(pitch) => (self.pitch, self.hold) = (Some(pitch), 0),
            Event::Velocity(bin) => self.bin = bin,
            Event::Hold { power } => self.hold = (self.hold + (DURATIONS << power)).min(MAX_STEPS),
            Event::Duration(steps) => {
                let duration = steps + std::mem::take(&mut self.hold);
                if let Some(pitch) = self.pitch.take() {
                    let velocity = bin_velocity(self.bin);
                    self.track().notes.push(Note { tick, duration, pitch, velocity });
                }
            }
        }
    }

    fn finish(mut self) -> Score {
        for ((program, _), mut track) in self.tracks {
            track.is_drum = program == DRUMS;
            track.program = if track.is_drum { 0 } else { program };
            self.score.tracks.push(track);
        }
        self.score
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(score: &Score) -> Vec<String> {
        let tokens = Events.encode(score).unwrap().tokens;
        assert_eq!(Events.decode(&tokens).unwrap(), Events.quantise(score));
        tokens.into_iter().map(|token| Events.token_name(token)).collect()
    }

    fn note(tick: u64, duration: u64, pitch: u8) -> Note {
        Note { tick, duration, pitch, velocity: 100 }
    }

    #[test]
    fn a_waltz_with_drums_is_written_by_hand_the_same() {
        // 480 ticks a quarter, so a step of 1/24 quarter is 20 ticks and a bar of 3/4 72 steps.
        let mut score = Score::new(480);
        score.meters.push(Meter { tick: 0, numerator: 3, denominator: 4 });
        score.tempos.push(Tempo { tick: 0, micros_per_quarter: 600_000 });
        score.keys.push(Key { tick: 0, sharps: -1, minor: true });
        let tune = Track {
            program: 40,
            notes: vec![note(0, 480, 62), note(0, 480, 69), note(480, 160, 65)],
            ..Track::default()
        };
        let drums = Track { is_drum: true, notes: vec![note(480, 20, 38)], ..Track::default() };
        score.tracks = vec![drums, tune];
        // Velocity 100 lies in bin (100 - 1) / 4 + 1 = 25.
        let expected = "BAR POSITION_0 TIME_SIGNATURE_3/4 KEY_1_FLATS_MINOR TEMPO_100 PROGRAM_40 \
                        PITCH_62 VELOCITY_25 DURATION_24 PITCH_69 VELOCITY_25 DURATION_24 \
                        POSITION_24 PROGRAM_40 PITCH_65 VELOCITY_25 DURATION_8 \
                        DRUMS PITCH_38 VELOCITY_25 DURATION_1";
        assert_eq!(names(&score).join(" "), expected);
    }

    #[test]
    fn long_rests_and_notes_take_a_few_tokens() {
        let mut score = Score::new(24);
        // Bars 0 and 8 of 4/4: seven empty bars between. 1 + 96 * (1 + 4) steps of sound.
        score.tracks =
            vec![Track { notes: vec![note(0, 1, 60), note(768, 481, 60)], ..Track::default() }];
        let names = names(&score).join(" ");
        let expected = "DURATION_1 SKIP_1 SKIP_2 SKIP_4 BAR POSITION_0 PROGRAM_0 PITCH_60 \
                        VELOCITY_25 HOLD_96 HOLD_384 DURATION_1";
        assert!(names.ends_with(expected), "{names}");
    }

    #[test]
    fn a_time_signature_inside_a_bar_begins_a_new_one() {
        let mut score = Score::new(24);
        score.meters.push(Meter { tick: 48, numerator: 3, denominator: 8 });
        score.tracks =
            vec![Track { notes: vec![note(48, 12, 60), note(84, 12, 62)], ..Track::default() }];
        let names = names(&score).join(" ");
        let expected = "POSITION_48 TIME_SIGNATURE_3/8 PROGRAM_0 PITCH_60 VELOCITY_25 DURATION_12 \
                        BAR POSITION_0 PROGRAM_0 PITCH_62 VELOCITY_25 DURATION_12";
        assert!(names.ends_with(expected), "{names}");
    }

    #[test]
    fn voices_of_one_program_stay_apart() {
        let mut score = Score::new(24);
        let voice = |pitch| Track { notes: vec![note(0, 24, pitch)], ..Track::default() };
        score.tracks = vec![voice(72), voice(48)];
        let names = names(&score).join(" ");
        let expected = "PROGRAM_0 PITCH_72 VELOCITY_25 DURATION_24 \
                        PROGRAM_0 VOICE_2 PITCH_48 VELOCITY_25 DURATION_24";
        assert!(names.ends_with(expected), "{names}");
    }

    #[test]
    fn the_seventeenth_track_of_a_program_joins_the_sixteenth() {
        let mut score = Score::new(24);
        let track = |i| Track { notes: vec![note(i, 24, 60)], ..Track::default() };
        score.tracks = (0..20).map(track).collect();
        let encoded = Events.encode(&score).unwrap();
        assert_eq!(encoded.lost, [("merged: over 16 tracks of one program".to_string(), 4)]);
        let heard = Events.quantise(&score);
        assert_eq!((heard.tracks.len(), heard.note_count()), (16, 20));
        assert_eq!(Events.decode(&encoded.tokens).unwrap(), heard);
    }
}
