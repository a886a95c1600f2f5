//! One voice on a grid of sixteenth notes: Magenta's melody encoding.
//!
//! A token a step: 0 nothing happens, 1 the note ends, 2.. a note begins. Four steps a quarter
//! note. A note sounds until the next note, a note-off or the end of the tokens.
//!
//! Which notes are the melody: of the tracks that are no drums and have at least a quarter as
//! many notes as the fullest, the first that is one voice nine times in ten, else the one that is
//! so most often. In it, the highest note that begins at a step is kept, and a note ends where
//! the next begins.
//!
//! # Source
//! Magenta, `melodies_lib` and `melody_encoder_decoder`: basic_rnn (38 classes, pitches 48 to 83)
//! and mono_rnn (130 classes, all pitches).

use crate::grammar::{Grammar, MelodyGrammar};
use crate::key::{find_key, shift_to_c};
use crate::quantise::{Losses, quantise_beats};
use crate::{Encoded, Encoding, Key, Meter, Note, Result, Score, Tempo, TokenTime, Track};

/// Steps of a quarter note.
const STEPS_PER_QUARTER: u32 = 4;
/// The longest melody, in steps: 16,384 bars of 4/4. A token is spent on each.
const MAX_STEPS: u64 = 1 << 18;
/// The velocity of decoded notes, Magenta's.
const VELOCITY: u8 = 100;
/// Tokens before the first pitch.
const SPECIAL: u32 = 2;

/// A melody encoding over a range of pitches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Melody {
    name: &'static str,
    /// First and last pitch.
    low: u8,
    high: u8,
    to_c: bool,
}

impl Melody {
    /// The token of a step at which nothing happens.
    pub const NO_EVENT: u32 = 0;
    /// The token of a step at which the note ends.
    pub const NOTE_OFF: u32 = 1;

    /// Makes the encoding of 38 classes, `melody`: pitches 48 to 83.
    ///
    /// A melody that goes beyond is moved by the octaves that bring most of its notes inside, and
    /// what is still outside is moved note by note; both are counted as losses.
    pub fn basic() -> Melody {
        Melody { name: "melody", low: 48, high: 83, to_c: false }
    }

    /// Makes the encoding of 38 classes in one key, `melody-c`: as [`Melody::basic`], after
    /// moving the melody to C major or A minor.
    ///
    /// The key is the key signature at the beginning, else the best fit of [`crate::find_key`].
    /// Decoded scores carry the signature of C.
    pub fn basic_in_c() -> Melody {
        Melody { name: "melody-c", low: 48, high: 83, to_c: true }
    }

    /// Makes the encoding of 130 classes, `melody-mono`: all 128 pitches.
    pub fn mono() -> Melody {
        Melody { name: "melody-mono", low: 0, high: 127, to_c: false }
    }

    /// The pitch that begins at a token, `None` for the other tokens.
    pub fn pitch(&self, token: u32) -> Option<u8> {
        let above = token.checked_sub(SPECIAL)?;
        (above <= u32::from(self.high - self.low)).then(|| self.low + above as u8)
    }

    /// The token at which a pitch begins, `None` out of range.
    pub fn token(&self, pitch: u8) -> Option<u32> {
        let inside = (self.low..=self.high).contains(&pitch);
        inside.then(|| SPECIAL + u32::from(pitch - self.low))
    }

    /// Decodes in a metre and at a tempo, which the tokens do not hold.
    ///
    /// # Errors
    /// If a token is not in the vocabulary.
    pub fn decode_with(
        &self,
        tokens: &[u32],
        meter: Option<Meter>,
        micros_per_quarter: Option<u32>,
    ) -> Result<Score> {
        let mut score = self.decode(tokens)?;
        score.meters.extend(meter.map(|meter| Meter { tick: 0, ..meter }));
        let tempo = micros_per_quarter.map(|micros| Tempo { tick: 0, micros_per_quarter: micros });
        score.tempos.extend(tempo);
        Ok(score)
    }

    /// The melody of a score on the grid, its range and key.
    fn hear(&self, score: &Score) -> (Vec<Note>, Losses) {
        let on_grid = quantise_beats(score, STEPS_PER_QUARTER);
        let mut losses = Losses::default();
        for (reason, count) in &on_grid.lost {
            losses.add(reason, *count);
        }
        let tracks = &on_grid.score.tracks;
        let Some(chosen) = choose_track(tracks) else {
            losses.add("drum track", on_grid.score.note_count());
            return (Vec::new(), losses);
        };
        for (i, track) in tracks.iter().enumerate().filter(|&(i, _)| i != chosen) {
            let reason = if track.is_drum { "drum track" } else { "other track" };
            losses.add(reason, tracks[i].notes.len());
        }
        let mut notes = skyline(&tracks[chosen].notes);
        let dropped = tracks[chosen].notes.len() - notes.len();
        let chords = chord_notes(&score.tracks[on_grid.sources[chosen]].notes).min(dropped);
        losses.add("second voice", chords);
        losses.add("faster than the grid", dropped - chords);
        let all = notes.len();
        notes.retain(|note| note.tick + note.duration <= MAX_STEPS);
        losses.add("beyond 262,144 steps", all - notes.len());
        if self.to_c {
            self.move_to_c(&mut notes, &on_grid.score.keys);
        }
        self.fold(&mut notes, &mut losses);
        for note in &mut notes {
            note.velocity = VELOCITY;
        }
        (notes, losses)
    }

    fn move_to_c(&self, notes: &mut [Note], keys: &[Key]) {
        let shift = match keys.first() {
            Some(key) if key.tick == 0 => {
                shift_to_c((i32::from(key.sharps) * 7).rem_euclid(12) as u8, false)
            }
            _ => {
                let (tonic, minor) = find_key(notes);
                shift_to_c(tonic, minor)
            }
        };
        for note in notes {
            note.pitch = into_range(i32::from(note.pitch) + shift, 0, 127);
        }
    }

    /// Brings notes into the range by octaves.
    fn fold(&self, notes: &mut [Note], losses: &mut Losses) {
        let (low, high) = (i32::from(self.low), i32::from(self.high));
        let outside = |octaves: i32| {
            let moved = notes.iter().map(|note| i32::from(note.pitch) + 12 * octaves);
            moved.filter(|pitch| !(low..=high).contains(pitch)).count()
        };
        if outside(0) == 0 {
            return;
        }
        // The smallest move that leaves the fewest notes outside; down before up.
        let octaves = [0, -1, 1, -2, 2, -3, 3, -4, 4, -5, 5, -6, 6];
        let octaves = octaves.into_iter().min_by_key(|&by| outside(by)).unwrap_or(0);
        // On the way to C the nearest octave is as good as any other.
        let told = octaves != 0 && !self.to_c;
        losses.add("octave: whole melody moved", if told { notes.len() } else { 0 });
        losses.add("octave: folded into the range", outside(octaves));
        for note in notes {
            note.pitch = into_range(i32::from(note.pitch) + 12 * octaves, low, high);
        }
    }

    /// The move of most notes on the way to C, octaves included.
    fn shift_of(&self, score: &Score) -> i32 {
        if !self.to_c {
            return 0;
        }
        let (moved, plain) = (self.hear(score).0, Melody::mono().hear(score).0);
        let mut counts = std::collections::BTreeMap::<i32, usize>::new();
        for (moved, plain) in moved.iter().zip(&plain) {
            *counts.entry(i32::from(moved.pitch) - i32::from(plain.pitch)).or_default() += 1;
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map_or(0, |(shift, _)| shift)
    }

    fn score_of(&self, notes: Vec<Note>) -> Score {
        let mut score = Score::new(STEPS_PER_QUARTER);
        if self.to_c {
            score.keys.push(Key { tick: 0, sharps: 0, minor: false });
        }
        if !notes.is_empty() {
            score.tracks.push(Track { notes, ..Track::default() });
        }
        score
    }
}

/// The nearest pitch of the same class in a range of at least an octave.
fn into_range(pitch: i32, low: i32, high: i32) -> u8 {
    let octaves = match pitch {
        _ if pitch < low => (low - pitch + 11) / 12,
        _ if pitch > high => -((pitch - high + 11) / 12),
        _ => 0,
    };
    (pitch + 12 * octaves) as u8
}

/// The track that holds the melody; `None` if all are drums.
fn choose_track(tracks: &[Track]) -> Option<usize> {
    let melodic = || tracks.iter().enumerate().filter(|(_, track)| !track.is_drum);
    let fullest = melodic().map(|(_, track)| track.notes.len()).max()?;
    let mut best: Option<(usize, f64)> = None;
    for (i, track) in melodic().filter(|(_, track)| 4 * track.notes.len() >= fullest) {
        let share = one_voice_share(&track.notes);
        if share >= 0.9 {
            return Some(i);
        }
        if best.is_none_or(|(_, most)| share > most) {
            best = Some((i, share));
        }
    }
    best.map(|(i, _)| i)
}

/// The share of notes that begin when no other sounds or begins.
fn one_voice_share(notes: &[Note]) -> f64 {
    let mut alone = 0;
    let mut sounding_until = 0;
    for (i, note) in notes.iter().enumerate() {
        let with_next = notes.get(i + 1).is_some_and(|next| next.tick == note.tick);
        if !with_next && note.tick >= sounding_until {
            alone += 1;
        }
        sounding_until = sounding_until.max(note.tick + note.duration);
    }
    f64::from(alone) / notes.len().max(1) as f64
}

/// How many notes begin together with a note before them.
fn chord_notes(notes: &[Note]) -> usize {
    notes.windows(2).filter(|pair| pair[0].tick == pair[1].tick).count()
}

/// The highest note of each step, each ending where the next begins.
fn skyline(notes: &[Note]) -> Vec<Note> {
    let mut line: Vec<Note> = Vec::with_capacity(notes.len());
    for &note in notes {
        match line.last_mut() {
            Some(last) if last.tick == note.tick => *last = note,
            Some(last) => {
                last.duration = last.duration.min(note.tick - last.tick);
                line.push(note);
            }
            None => line.push(note),
        }
    }
    line
}

impl Encoding for Melody {
    fn name(&self) -> &str {
        self.name
    }

    fn vocab_size(&self) -> usize {
        SPECIAL as usize + usize::from(self.high - self.low) + 1
    }

    fn token_name(&self, token: u32) -> String {
        assert!((token as usize) < self.vocab_size(), "token {token} of {}", self.vocab_size());
        match (token, self.pitch(token)) {
            (_, Some(pitch)) => format!("NOTE_ON_{pitch}"),
            (Melody::NO_EVENT, _) => "NO_EVENT".to_string(),
            _ => "NOTE_OFF".to_string(),
        }
    }

    fn token_time(&self, _: u32) -> TokenTime {
        TokenTime::Steps(1)
    }

    fn is_onset(&self, token: u32) -> bool {
        token >= SPECIAL
    }

    fn grammar(&self) -> Box<dyn Grammar> {
        Box::new(MelodyGrammar::of(self))
    }

    fn key_shift(&self, score: &Score) -> i32 {
        self.shift_of(score)
    }

    fn has_key(&self) -> bool {
        !self.to_c
    }

    /// The melody as this encoding hears it: one track, four ticks a quarter, velocity 100, no
    /// tempo and no metre ([`Melody::decode_with`] gives them back).
    fn quantise(&self, score: &Score) -> Score {
        self.score_of(self.hear(score).0)
    }

    fn encode(&self, score: &Score) -> Result<Encoded> {
        let (notes, losses) = self.hear(score);
        let steps = notes.last().map_or(0, |last| last.tick + last.duration);
        let mut tokens = vec![Melody::NO_EVENT; steps as usize];
        for note in &notes {
            tokens[note.tick as usize] = SPECIAL + u32::from(note.pitch - self.low);
            // The next note, if it begins here, overwrites this.
            if let Some(end) = tokens.get_mut((note.tick + note.duration) as usize) {
                *end = Melody::NOTE_OFF;
            }
        }
        Ok(Encoded { tokens, lost: losses.into_vec() })
    }

    fn decode(&self, tokens: &[u32]) -> Result<Score> {
        crate::encoding::check_tokens(self, tokens)?;
        let mut notes: Vec<Note> = Vec::new();
        let mut sounding: Option<(u64, u8)> = None;
        let mut end = |sounding: Option<(u64, u8)>, at: u64| {
            if let Some((tick, pitch)) = sounding {
                notes.push(Note { tick, duration: at - tick, pitch, velocity: VELOCITY });
            }
        };
        // Beyond the longest melody nothing is heard, as in `quantise`.
        let heard = tokens.len().min(MAX_STEPS as usize);
        for (step, &token) in tokens[..heard].iter().enumerate() {
            let step = step as u64;
            match self.pitch(token) {
                Some(pitch) => end(sounding.replace((step, pitch)), step),
                None if token == Melody::NOTE_OFF => end(sounding.take(), step),
                None => {}
            }
        }
        end(sounding, heard as u64);
        Ok(self.score_of(notes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    /// Ticks of a 480-tick quarter.
    fn score_of(notes: &[(u64, u64, u8)]) -> Score {
        let note = |&(tick, duration, pitch)| Note { tick, duration, pitch, velocity: 90 };
        let mut score = Score::new(480);
        let notes = notes.iter().map(note).collect();
        score.tracks.push(Track { notes, ..Track::default() });
        score
    }

    #[test]
    fn tokens_are_magentas_classes() {
        // A quarter rest, middle C for a quarter, a sixteenth rest, D for a sixteenth, D again for
        // an eighth: 0 nothing, 1 note-off, 2 + pitch - 48.
        let score = score_of(&[(480, 480, 60), (1080, 120, 62), (1200, 240, 62)]);
        let expected = [0, 0, 0, 0, 14, 0, 0, 0, 1, 16, 16, 0];
        assert_eq!(Melody::basic().encode(&score).unwrap().tokens, expected);
        // The 130 classes begin at pitch 0.
        let expected = [0, 0, 0, 0, 62, 0, 0, 0, 1, 64, 64, 0];
        assert_eq!(Melody::mono().encode(&score).unwrap().tokens, expected);
        assert_eq!((Melody::basic().vocab_size(), Melody::mono().vocab_size()), (38, 130));
    }

    #[test]
    fn the_highest_voice_is_kept_and_the_rest_counted() {
        let mut score = score_of(&[(0, 960, 60), (0, 480, 67), (480, 480, 65)]);
        score.tracks.push(Track { is_drum: true, ..score.tracks[0].clone() });
        let encoded = Melody::basic().encode(&score).unwrap();
        assert_eq!(encoded.tokens, [21, 0, 0, 0, 19, 0, 0, 0]);
        let lost = [("drum track".to_string(), 3), ("second voice".to_string(), 1)];
        assert_eq!(encoded.lost, lost);
    }

    #[test]
    fn a_high_tune_comes_down_an_octave_as_a_whole() {
        let score = score_of(&[(0, 120, 84), (120, 120, 72), (240, 120, 88)]);
        let encoded = Melody::basic().encode(&score).unwrap();
        assert_eq!(encoded.tokens, [2 + 72 - 48, 2 + 60 - 48, 2 + 76 - 48]);
        assert_eq!(encoded.lost, [("octave: whole melody moved".to_string(), 3)]);
    }

    #[test]
    fn in_c_the_key_signature_decides_else_the_profile() {
        // The triad of D major.
        let mut score = score_of(&[(0, 960, 62), (960, 480, 66), (1440, 480, 69)]);
        let c = Melody::basic_in_c();
        let pitches = |score: &Score| -> Vec<u8> {
            c.quantise(score).tracks[0].notes.iter().map(|note| note.pitch).collect()
        };
        assert_eq!(pitches(&score), [60, 64, 67]);
        // Two flats: B flat goes to C, two semitones up.
        score.keys.push(Key { tick: 0, sharps: -2, minor: true });
        assert_eq!(pitches(&score), [64, 68, 71]);
        let once = c.quantise(&score);
        assert_eq!(c.quantise(&once), once);
    }

    #[test]
    fn metre_and_tempo_come_back_where_they_are_given() {
        let meter = Meter { tick: 9, numerator: 6, denominator: 8 };
        let score = Melody::basic().decode_with(&[14, 0, 1], Some(meter), Some(400_000)).unwrap();
        assert_eq!(score.meters, [Meter { tick: 0, ..meter }]);
        assert_eq!(score.tempos, [Tempo { tick: 0, micros_per_quarter: 400_000 }]);
        assert_eq!(score.tracks[0].notes[0].duration, 2);
    }

    #[test]
    fn an_unknown_token_is_an_error_that_names_it() {
        let error = Melody::basic().decode(&[0, 38]).unwrap_err();
        assert!(matches!(error, Error::Encoding { .. }));
        assert_eq!(error.to_string(), "melody: token 38 at place 1; the vocabulary has 38 tokens");
    }
}
