//! A melody and what goes with it: a piece of `events` taken apart into two sequences, bar by bar.
//!
//! The melody is the highest voice that is not drums. Its sequence has the signatures too; the other has
//! all other voices. Both tell bars and places of their own, so each is a piece of `events` but for
//! what begins it where bars are left out. [`Pair::END`] ends each of them.

use crate::events::vocabulary::{DRUMS, Event, SIZE};
use crate::infill::{opening, skip};
use crate::step_input::NO_ROW;
use crate::{Encoding, Events, Result, Score};
use std::collections::BTreeMap;
use std::ops::Range;

/// A bar of a pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairBar {
    /// Its number, counted from 0; two numbers where a time signature begins a bar inside of one.
    pub bars: Range<u64>,
    /// Its first token in the piece.
    pub at: usize,
    /// Tokens of the melody, and of what goes with it; none where one of them has nothing.
    pub parts: [Vec<u32>; 2],
}

/// A piece of `events` taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Its bars in which something is told.
    pub bars: Vec<PairBar>,
}

impl Pair {
    /// The token that ends either sequence: the one after those of `events`.
    pub const END: u32 = SIZE;

    /// Takes a piece apart.
    pub fn of(tokens: &[u32]) -> Pair {
        let melody = highest(tokens);
        let bars = crate::infill::bars_of_events(tokens);
        let part = |bar: crate::BarTokens| PairBar {
            at: bar.tokens.start,
            parts: divide(&tokens[bar.tokens], melody),
            bars: bar.bars,
        };
        Pair { bars: bars.into_iter().map(part).collect() }
    }

    /// The tokens of melody and accompaniment in some of the bars of [`Pair::bars`], without their ends.
    pub fn parts(&self, bars: Range<usize>) -> [Vec<u32>; 2] {
        let mut parts: [Vec<u32>; 2] = Default::default();
        let first = self.bars.get(bars.start).map_or(0, |bar| bar.bars.start);
        let (mut next, shown) = ([first; 2], &self.bars[bars]);
        for bar in shown {
            for ((to, next), tokens) in parts.iter_mut().zip(&mut next).zip(&bar.parts) {
                if !tokens.is_empty() {
                    skip(to, bar.bars.start - *next);
                    to.extend(tokens);
                    *next = bar.bars.end;
                }
            }
        }
        // Both have all bars, so that what is written is as long as the melody.
        let end = shown.last().map_or(first, |bar| bar.bars.end);
        parts.iter_mut().zip(next).for_each(|(part, next)| skip(part, end - next));
        parts
    }

    /// The music of an accompaniment in bars of the melody's first metre; `melody` are its tokens.
    ///
    /// # Errors
    /// If a token is not in the vocabulary.
    pub fn accompaniment(melody: &[u32], tokens: &[u32]) -> Result<Score> {
        let bar = melody.iter().skip(1).position(|t| Event::of(*t) == Some(Event::Bar));
        let mut all = opening(&melody[..bar.map_or(melody.len(), |at| at + 1)]).to_vec();
        let skips = |token: &&u32| matches!(Event::of(**token), Some(Event::Skip { .. }));
        let skipped: Vec<u32> = tokens.iter().take_while(skips).copied().collect();
        let bars = |token: &u32| match Event::of(*token) {
            Some(Event::Skip { power }) => 1u64 << power,
            _ => 0,
        };
        let empty: u64 = skipped.iter().map(bars).sum();
        let mut rest = &tokens[skipped.len()..];
        // The bar of the signatures is the first one.
        match empty.checked_sub(1) {
            Some(empty) => skip(&mut all, empty),
            None if rest.first() == Some(&Event::Bar.token()) => rest = &rest[1..],
            None => {}
        }
        all.extend(rest);
        Events.decode(&all)
    }

    /// The signatures with which a melody begins, as tokens.
    pub fn opening(melody: &[u32]) -> &[u32] {
        opening(melody)
    }
}

/// A program, drums being 128, and its voice.
type Instrument = (u8, u8);

/// The highest instrument on the mean that is not drums; the first of two.
fn highest(tokens: &[u32]) -> Option<Instrument> {
    let mut sums: BTreeMap<Instrument, (u64, u64)> = BTreeMap::new();
    let mut playing = (0, 0);
    for token in tokens {
        match Event::of(*token) {
            Some(Event::Program(program)) => playing = (program, 0),
            Some(Event::Voice(voice)) => playing.1 = voice,
            Some(Event::Pitch(pitch)) if playing.0 != DRUMS => {
                let (sum, count) = sums.entry(playing).or_default();
                (*sum, *count) = (*sum + u64::from(pitch), *count + 1);
            }
            _ => {}
        }
    }
    let mean = |(_, (sum, count)): &(&Instrument, &(u64, u64))| *sum as f64 / *count as f64;
    sums.iter().rev().max_by(|a, b| mean(a).total_cmp(&mean(b))).map(|(instrument, _)| *instrument)
}

/// The tokens of a bar that are of the melody, and all others.
fn divide(bar: &[u32], melody: Option<Instrument>) -> [Vec<u32>; 2] {
    let mut parts: [Vec<u32>; 2] = Default::default();
    let (mut position, mut is_told) = (Vec::new(), [false; 2]);
    let (mut instrument, mut names, mut is_named) = ((0, 0), Vec::new(), false);
    let mut is_ahead = false;
    for &token in bar {
        let event = Event::of(token);
        let place = matches!(event, Some(Event::Ahead { .. } | Event::Position(_)));
        if place && !is_ahead {
            position.clear();
        }
        is_ahead = matches!(event, Some(Event::Ahead { .. }));
        let part = match event {
            Some(Event::Bar) => continue,
            Some(Event::Ahead { .. } | Event::Position(_)) => {
                position.push(token);
                is_told = [false; 2];
                continue;
            }
            Some(Event::Program(program)) => {
                (instrument, names, is_named) = ((program, 0), vec![token], false);
                continue;
            }
            Some(Event::Voice(voice)) => {
                instrument.1 = voice;
                names.push(token);
                continue;
            }
            Some(Event::Meter { .. } | Event::Key { .. } | Event::Tempo(_)) => 0,
            _ => usize::from(Some(instrument) != melody),
        };
        let to = &mut parts[part];
        if to.is_empty() {
            to.push(Event::Bar.token());
        }
        if !std::mem::replace(&mut is_told[part], true) {
            to.extend(&position);
        }
        let is_note =
            !matches!(event, Some(Event::Meter { .. } | Event::Key { .. } | Event::Tempo(_)));
        if is_note && !std::mem::replace(&mut is_named, true) {
            // A melody is alone: which voice of its program it was does not matter.
            to.extend(&names[..if part == 0 { 1.min(names.len()) } else { names.len() }]);
        }
        to.push(token);
    }
    parts
}

/// Rows of the bars of a piece; they begin anew after as many.
pub(crate) const BARS: u64 = 64;
/// Rows of the sixteenths of a bar.
pub(crate) const PLACES: u64 = 64;
/// Steps of a sixteenth.
const SIXTEENTH: u64 = Events::STEPS_PER_QUARTER as u64 / 4;

/// Where the last token of a sequence of `events` stands: what a melody and its accompaniment have in
/// common.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Walk {
    /// The next bar; 0 before the first.
    next: u64,
    position: u64,
    ahead: u64,
    /// Tokens read.
    pub count: usize,
}

impl Walk {
    pub fn push(&mut self, token: u32) {
        self.count += 1;
        let bars = match Event::of(token) {
            None => {
                *self = Walk { count: self.count, ..Walk::default() };
                return;
            }
            Some(Event::Bar) => 1,
            Some(Event::Skip { power }) => 1 << power,
            Some(Event::Ahead { power }) => {
                self.ahead += crate::events::vocabulary::POSITIONS << power;
                return;
            }
            Some(Event::Position(position)) => {
                self.position = position + std::mem::take(&mut self.ahead);
                return;
            }
            _ => return,
        };
        *self = Walk { next: self.next.saturating_add(bars), count: self.count, ..Walk::default() };
    }

    /// The rows of bar and sixteenth, counted from the first of them; none before the first bar.
    pub fn rows(&self) -> [u32; 2] {
        match self.next.checked_sub(1) {
            None => [NO_ROW; 2],
            Some(bar) => {
                let place = (self.position / SIXTEENTH).min(PLACES - 1);
                [(bar % BARS) as u32, (BARS + place) as u32]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Note, Track};

    fn track(program: u8, notes: &[(u64, u8)]) -> Track {
        let note = |&(tick, pitch)| Note { tick, duration: 12, pitch, velocity: 100 };
        Track { program, notes: notes.iter().map(note).collect(), ..Track::default() }
    }

    fn names(tokens: &[u32]) -> String {
        tokens.iter().map(|t| Events.token_name(*t)).collect::<Vec<_>>().join(" ")
    }

    fn piece() -> Score {
        let mut score = Score::new(24);
        let drums = Track { is_drum: true, ..track(0, &[(24, 38), (288, 38)]) };
        // The tune rests in bars 1 and 2, its bass in bar 0.
        score.tracks =
            vec![track(0, &[(0, 72), (288, 74)]), track(0, &[(96, 40), (288, 45)]), drums];
        score
    }

    #[test]
    fn a_tune_and_its_accompaniment_are_taken_apart_by_hand_the_same() {
        let tokens = Events.encode(&piece()).unwrap().tokens;
        let pair = Pair::of(&tokens);
        assert_eq!(pair.bars.iter().map(|b| b.bars.start).collect::<Vec<_>>(), [0, 1, 3]);
        let [melody, others] = pair.parts(0..3);
        assert_eq!(
            names(&melody),
            "BAR POSITION_0 TIME_SIGNATURE_4/4 TEMPO_120 PROGRAM_0 PITCH_72 VELOCITY_25 DURATION_12 \
             SKIP_2 BAR POSITION_0 PROGRAM_0 PITCH_74 VELOCITY_25 DURATION_12"
        );
        assert_eq!(
            names(&others),
            "BAR POSITION_24 DRUMS PITCH_38 VELOCITY_25 DURATION_12 \
             BAR POSITION_0 PROGRAM_0 VOICE_2 PITCH_40 VELOCITY_25 DURATION_12 \
             SKIP_1 BAR POSITION_0 PROGRAM_0 VOICE_2 PITCH_45 VELOCITY_25 DURATION_12 \
             DRUMS PITCH_38 VELOCITY_25 DURATION_12"
        );
        // In its bars again, whether its first one has something or not.
        let back = Pair::accompaniment(&melody, &others).unwrap();
        assert_eq!(back.tracks, Events.quantise(&piece()).tracks[1..]);
        let [_, later] = pair.parts(1..3);
        let back = Pair::accompaniment(&melody, &later).unwrap();
        assert_eq!(back.tracks[0].notes.iter().map(|n| n.tick).collect::<Vec<_>>(), [0, 192]);
        let skipped: Vec<u32> = [&[Event::Skip { power: 1 }.token()], &later[..]].concat();
        let back = Pair::accompaniment(&melody, &skipped).unwrap();
        assert_eq!(back.tracks[0].notes.iter().map(|n| n.tick).collect::<Vec<_>>(), [192, 384]);
    }

    #[test]
    fn both_parts_of_a_pair_say_where_they_stand_alike() {
        let [melody, others] = Pair::of(&Events.encode(&piece()).unwrap().tokens).parts(0..3);
        let last = |tokens: &[u32]| {
            let mut walk = Walk::default();
            tokens.iter().for_each(|token| walk.push(*token));
            walk.rows()
        };
        assert_eq!(last(&melody), [3, 64]);
        assert_eq!(last(&others), [3, 64]);
        // The drums of bar 0 stand on its fifth sixteenth.
        assert_eq!(last(&others[..3]), [0, 68]);
        assert_eq!(last(&[&melody[..], &[Pair::END]].concat()), [NO_ROW; 2]);
    }
}
