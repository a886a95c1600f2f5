//! Infilling: a piece of which some bars are missing, told so that those come last.
//!
//! ```text
//! FILL_PREFIX before FILL_BAR .. after FILL_MIDDLE missing FILL_END
//! ```
//!
//! `FILL_BAR` stands once for each missing bar. What follows `FILL_MIDDLE` is drawn from left to right
//! as ever, by a model that has read both sides. Whole pieces have the tokens of the encoding beneath,
//! and so has every part: bars are cut out, not rewritten, but for the `SKIP` tokens of `events` that
//! tell of empty bars beside a cut.
//!
//! # Source
//! Bavarian et al. 2022 (prefix, suffix, middle); Ens & Pasquier 2020 (MMM: a placeholder for each bar).

use crate::events::vocabulary::Event;
use crate::grammar::{Grammar, InfillGrammar};
use crate::step_input::steps_per_bar;
use crate::{Encoded, Encoding, Melody, Meter, Result, Score, Speed, TokenTime};
use std::ops::Range;

/// An encoding whose pieces may have a hole of whole bars.
pub struct Infill {
    base: Box<dyn Encoding>,
    name: String,
}

/// Tokens that lie between two bar lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BarTokens {
    /// Its bar, counted from 0; two of them where a time signature begins a bar inside of one.
    pub bars: Range<u64>,
    /// Which tokens.
    pub tokens: Range<usize>,
    /// Whether it ends at a bar line, not with the piece.
    pub is_whole: bool,
}

/// The bars to be written, and what is known of them.
#[derive(Debug, Clone, Default)]
pub struct Hole {
    /// How many.
    pub bars: u64,
    /// Tokens that are given, by their place.
    pub given: Vec<Option<u32>>,
    /// Tokens at most.
    pub most: usize,
}

/// The tokens that the encoding beneath does not have, in their order after its own.
const MARKS: [&str; 4] = ["FILL_PREFIX", "FILL_BAR", "FILL_MIDDLE", "FILL_END"];
const PREFIX: u32 = 0;
const BAR: u32 = 1;
const MIDDLE: u32 = 2;
const END: u32 = 3;

impl Infill {
    /// What the name of such an encoding ends with, after that of the encoding beneath.
    pub const SUFFIX: &str = "-infill";

    /// Makes holes possible in an encoding whose tokens take steps or bars.
    pub(crate) fn of(base: Box<dyn Encoding>) -> Infill {
        let name = format!("{}{}", base.name(), Infill::SUFFIX);
        Infill { base, name }
    }

    fn mark(&self, mark: u32) -> u32 {
        self.base.vocab_size() as u32 + mark
    }

    fn is_events(&self) -> bool {
        self.base.name() == "events"
    }

    /// The token that ends what is written into a hole.
    pub fn end(&self) -> u32 {
        self.mark(END)
    }

    /// Cuts a whole piece at its bars; `meter` is that of an encoding whose tokens tell none.
    pub fn bars(&self, tokens: &[u32], meter: Meter) -> Vec<BarTokens> {
        match self.is_events() {
            true => bars_of_events(tokens),
            false => self.bars_of_steps(tokens, steps_per_bar(meter) as u64),
        }
    }

    fn bars_of_steps(&self, tokens: &[u32], each: u64) -> Vec<BarTokens> {
        let mut all: Vec<BarTokens> = Vec::new();
        let (mut from, mut steps) = (0, 0);
        let mut add = |tokens: Range<usize>, is_whole| {
            let number = all.len() as u64;
            all.push(BarTokens { bars: number..number + 1, tokens, is_whole });
        };
        for (at, token) in tokens.iter().enumerate() {
            if let TokenTime::Steps(n) = self.token_time(*token) {
                steps += u64::from(n);
            }
            if steps >= each {
                add(from..at + 1, true);
                (from, steps) = (at + 1, 0);
            }
        }
        if from < tokens.len() {
            add(from..tokens.len(), false);
        }
        all
    }

    /// What a model reads before it fills a hole: the bars of `shown` but for those of `hole`.
    pub fn question(
        &self,
        tokens: &[u32],
        bars: &[BarTokens],
        shown: Range<u64>,
        hole: Range<u64>,
    ) -> Vec<u32> {
        let mut all = vec![self.mark(PREFIX)];
        self.join(&mut all, tokens, bars, shown.start..hole.start);
        all.extend((hole.start..hole.end).map(|_| self.mark(BAR)));
        self.join(&mut all, tokens, bars, hole.end..shown.end);
        all.push(self.mark(MIDDLE));
        all
    }

    /// What a model writes: the bars of the hole.
    pub fn answer(&self, tokens: &[u32], bars: &[BarTokens], hole: Range<u64>) -> Vec<u32> {
        let mut all = Vec::new();
        self.join(&mut all, tokens, bars, hole);
        all.push(self.end());
        all
    }

    /// The piece with other tokens in the place of the hole's bars.
    pub fn filled(
        &self,
        tokens: &[u32],
        bars: &[BarTokens],
        hole: Range<u64>,
        middle: &[u32],
    ) -> Vec<u32> {
        let mut all = Vec::new();
        self.join(&mut all, tokens, bars, 0..hole.start);
        all.extend(middle.iter().filter(|token| (**token as usize) < self.base.vocab_size()));
        if self.is_events() {
            // Where the writing was cut off, the bars after the hole keep their places.
            let told: u64 = middle.iter().map(|token| self.takes(*token)).sum();
            skip(&mut all, (hole.end - hole.start).saturating_sub(told));
        }
        let end = bars.last().map_or(hole.end, |last| last.bars.end);
        self.join(&mut all, tokens, bars, hole.end..end);
        all
    }

    /// Whether all time is told in steps, so that every bar of a metre has as many.
    pub fn is_of_steps(&self) -> bool {
        !self.is_events()
    }

    /// What of the hole's own tokens stays, by place: signatures at its beginning, and what only tells
    /// that a note sounds on that began before it. `held` are such notes, with their steps in the hole.
    pub fn given(
        &self,
        tokens: &[u32],
        bars: &[BarTokens],
        hole: Range<u64>,
        held: &[(i32, u64)],
    ) -> Vec<Option<u32>> {
        let mut inside = bars.iter().filter(|bar| hole.contains(&bar.bars.start)).peekable();
        if self.is_events() {
            let first = inside.next().filter(|bar| bar.bars.start == hole.start);
            let first = first.map_or(&[][..], |bar| &tokens[bar.tokens.clone()]);
            return opening(first).iter().map(|token| Some(*token)).collect();
        }
        let inside = inside.flat_map(|bar| &tokens[bar.tokens.clone()]);
        let (mut step, mut is_held) = (0, true);
        let given = inside.map(|token| {
            let mut sounding = held.iter().filter(|(_, steps)| *steps > step);
            let stays = match self.base.pitch(*token) {
                Some(pitch) => sounding.any(|(held, _)| *held == i32::from(pitch)),
                // One voice: until it begins something else.
                None if self.base.name().starts_with("melody") => {
                    is_held = is_held && *token == Melody::NO_EVENT && sounding.next().is_some();
                    is_held
                }
                None => false,
            };
            step += self.takes(*token);
            stays.then_some(*token)
        });
        given.collect()
    }

    /// Which tokens may fill a hole after the bars of a piece that stand before it.
    pub fn grammar_of(
        &self,
        tokens: &[u32],
        bars: &[BarTokens],
        from: u64,
        meter: Meter,
        hole: Hole,
    ) -> Box<dyn Grammar> {
        let mut before = Vec::new();
        self.join(&mut before, tokens, bars, 0..from);
        let takes = (0..self.base.vocab_size() as u32).map(|token| self.takes(token)).collect();
        let each = if self.is_events() { 1 } else { steps_per_bar(meter) as u64 };
        let bars = hole.bars * each;
        let grammar = self.base.grammar();
        Box::new(InfillGrammar::into_hole(grammar, self.is_events(), before, takes, bars, hole))
    }

    /// Steps that a token takes, or bars that it begins.
    fn takes(&self, token: u32) -> u64 {
        match self.token_time(token) {
            TokenTime::Steps(n) | TokenTime::Bars(n) => u64::from(n),
            _ => 0,
        }
    }

    /// Adds the bars of a part, and where bars are left out what tells so.
    fn join(&self, to: &mut Vec<u32>, tokens: &[u32], bars: &[BarTokens], part: Range<u64>) {
        let mut next = part.start;
        let inside = |bar: &&BarTokens| part.start <= bar.bars.start && bar.bars.end <= part.end;
        for bar in bars.iter().filter(inside) {
            skip(to, bar.bars.start - next);
            to.extend(&tokens[bar.tokens.clone()]);
            next = bar.bars.end;
        }
        // Steps are all told; an encoding of steps has less of them than bars at the end alone.
        if self.is_events() {
            skip(to, part.end.saturating_sub(next));
        }
    }
}

/// Tells of empty bars, as `events` does: powers of two, the smallest first.
pub(crate) fn skip(to: &mut Vec<u32>, bars: u64) {
    let powers = (0..28).filter(|power| bars >> power & 1 == 1);
    to.extend(powers.map(|power| Event::Skip { power }.token()));
}

/// The beginning of a bar of `events` up to its last signature.
pub(crate) fn opening(bar: &[u32]) -> &[u32] {
    let is_signature = |token: &u32| {
        matches!(Event::of(*token), Some(Event::Meter { .. } | Event::Key { .. } | Event::Tempo(_)))
    };
    let begins = |token: &u32| {
        is_signature(token) || matches!(Event::of(*token), Some(Event::Bar | Event::Position(0)))
    };
    let start = bar.iter().take_while(|token| begins(token)).count();
    let end = bar[..start].iter().rposition(is_signature).map_or(0, |last| last + 1);
    &bar[..end]
}

pub(crate) fn bars_of_events(tokens: &[u32]) -> Vec<BarTokens> {
    let mut all: Vec<BarTokens> = Vec::new();
    let (mut next, mut is_inside, mut is_open) = (0u64, false, false);
    for (at, token) in tokens.iter().enumerate() {
        match Event::of(*token) {
            Some(Event::Bar) => {
                all.push(BarTokens { bars: next..next + 1, tokens: at..at, is_whole: true });
                (next, is_inside, is_open) = (next + 1, false, true);
            }
            Some(Event::Skip { power }) => (next, is_open) = (next + (1 << power), false),
            Some(Event::Position(0)) => {}
            Some(Event::Position(_) | Event::Ahead { .. }) => is_inside = true,
            Some(Event::Meter { .. }) if is_inside => {
                next += 1;
                all.iter_mut().last().into_iter().for_each(|bar| bar.bars.end = next);
            }
            _ => {}
        }
        if let Some(bar) = all.last_mut().filter(|_| is_open) {
            bar.tokens.end = at + 1;
        }
    }
    all
}

impl Encoding for Infill {
    fn name(&self) -> &str {
        &self.name
    }

    fn vocab_size(&self) -> usize {
        self.base.vocab_size() + MARKS.len()
    }

    fn token_name(&self, token: u32) -> String {
        match token.checked_sub(self.base.vocab_size() as u32) {
            None => self.base.token_name(token),
            Some(mark) => MARKS[mark as usize].to_string(),
        }
    }

    fn token_time(&self, token: u32) -> TokenTime {
        match (token as usize) < self.base.vocab_size() {
            true => self.base.token_time(token),
            false => TokenTime::None,
        }
    }

    fn is_onset(&self, token: u32) -> bool {
        (token as usize) < self.base.vocab_size() && self.base.is_onset(token)
    }

    fn pitch(&self, token: u32) -> Option<u8> {
        Some(token).filter(|t| (*t as usize) < self.base.vocab_size())?;
        self.base.pitch(token)
    }

    fn notes_of_token(&self) -> usize {
        self.base.notes_of_token()
    }

    /// That of whole pieces: they have no marks.
    fn grammar(&self) -> Box<dyn Grammar> {
        Box::new(InfillGrammar::of_whole(self.base.grammar()))
    }

    fn key_shift(&self, score: &Score) -> i32 {
        self.base.key_shift(score)
    }

    fn has_key(&self) -> bool {
        self.base.has_key()
    }

    fn speed(&self) -> Speed {
        self.base.speed()
    }

    fn has_velocity(&self) -> bool {
        self.base.has_velocity()
    }

    fn infill(&self) -> Option<&Infill> {
        Some(self)
    }

    fn quantise(&self, score: &Score) -> Score {
        self.base.quantise(score)
    }

    fn encode(&self, score: &Score) -> Result<Encoded> {
        self.base.encode(score)
    }

    /// What stands after `FILL_MIDDLE` goes between what stands before and after the last `FILL_BAR`.
    fn decode(&self, tokens: &[u32]) -> Result<Score> {
        crate::encoding::check_tokens(self, tokens)?;
        // Before the hole, after it, inside.
        let mut parts: [Vec<u32>; 3] = Default::default();
        let mut part = 0;
        for token in tokens {
            match token.checked_sub(self.base.vocab_size() as u32) {
                None => parts[part].push(*token),
                Some(PREFIX) => part = 0,
                Some(MIDDLE) => part = 2,
                Some(_) => part = 1,
            }
        }
        let [before, after, inside] = parts;
        self.base.decode(&[before, inside, after].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Melody, Note, Track, encoding};

    const FOUR: Meter = Meter { tick: 0, numerator: 4, denominator: 4 };

    fn infill(name: &str) -> Infill {
        Infill::of(encoding(name).unwrap())
    }

    /// A note a bar, in these bars, four ticks a quarter note.
    fn score(bars: &[u64]) -> Score {
        let note = |bar: &u64| Note { tick: 16 * bar, duration: 8, pitch: 60, velocity: 90 };
        let mut score = Score::new(4);
        score.tracks.push(Track { notes: bars.iter().map(note).collect(), ..Track::default() });
        score
    }

    #[test]
    fn a_hole_is_told_by_hand_the_same() {
        let infill = infill("melody");
        // Bars of 3/16: 16 steps have five and a third.
        let meter = Meter { tick: 0, numerator: 3, denominator: 16 };
        let tokens: Vec<u32> = (2..18).collect();
        let bars = infill.bars(&tokens, meter);
        assert_eq!(bars.iter().map(|bar| bar.tokens.len()).collect::<Vec<_>>(), [3, 3, 3, 3, 3, 1]);
        assert_eq!(bars.iter().filter(|bar| bar.is_whole).count(), 5);
        let (prefix, bar, middle, end) = (38, 39, 40, 41);
        let question = infill.question(&tokens, &bars, 1..6, 2..4);
        assert_eq!(
            question,
            [prefix, 5, 6, 7, bar, bar, 14, 15, 16, 17, middle],
            "the hole is steps 8 to 13"
        );
        let answer = infill.answer(&tokens, &bars, 2..4);
        assert_eq!(answer, [8, 9, 10, 11, 12, 13, end]);
        assert_eq!(infill.filled(&tokens, &bars, 2..4, &answer), tokens);
        let other = [20, 0, 0, 0, 0, 0];
        let filled = infill.filled(&tokens, &bars, 2..4, &other);
        assert_eq!(filled, [&tokens[..6], &other, &tokens[12..]].concat());
        let told = [question, answer].concat();
        assert_eq!(infill.decode(&told).unwrap(), Melody::basic().decode(&tokens[3..]).unwrap());
    }

    #[test]
    fn holes_of_events_keep_empty_bars_in_their_places() {
        let infill = infill("events");
        // Bars 2 to 4 and 6 are empty.
        let score = score(&[0, 1, 5, 7, 8]);
        let tokens = infill.encode(&score).unwrap().tokens;
        let bars = infill.bars(&tokens, FOUR);
        assert_eq!(bars.iter().map(|b| b.bars.start).collect::<Vec<_>>(), [0, 1, 5, 7, 8]);
        for hole in [0..1, 1..2, 1..3, 2..5, 3..6, 2..4, 6..7, 6..8, 7..9, 8..9, 0..9] {
            let answer = infill.answer(&tokens, &bars, hole.clone());
            let filled = infill.filled(&tokens, &bars, hole.clone(), &answer);
            assert_eq!(infill.decode(&filled).unwrap(), infill.quantise(&score), "{hole:?}");
            let question = infill.question(&tokens, &bars, 0..9, hole.clone());
            let told = [question, answer].concat();
            assert_eq!(infill.decode(&told).unwrap(), infill.quantise(&score), "{hole:?}");
            // Nothing written: what follows the hole stays where it was.
            let nothing = infill.decode(&infill.filled(&tokens, &bars, hole.clone(), &[])).unwrap();
            let whole = infill.quantise(&score);
            let rest = whole.tracks[0].notes.iter().copied();
            let rest = rest.filter(|note| !hole.contains(&(note.tick / 96))).collect::<Vec<_>>();
            let left = nothing.tracks.first().map_or(&[][..], |track| &track.notes);
            assert_eq!(left, rest, "{hole:?}");
        }
    }

    #[test]
    fn a_time_signature_inside_a_bar_makes_two_of_it() {
        let infill = infill("events");
        let mut score = score(&[0, 1, 2]);
        score.meters = vec![FOUR, Meter { tick: 24, numerator: 2, denominator: 4 }];
        let tokens = infill.encode(&score).unwrap().tokens;
        let bars = infill.bars(&tokens, FOUR);
        // Bar lines at 0, 16, 24, 32 of 16ths; the note of tick 32 begins bar 3.
        assert_eq!(bars.iter().map(|b| b.bars.clone()).collect::<Vec<_>>(), [0..1, 1..3, 3..4]);
    }
}
