//! A search for a likely piece: several pieces grow side by side, and the likelier ones go on.
//!
//! ```text
//! repeat: each of `beam` pieces goes on in `branch` ways by `iteration` drawn tokens;
//!         of the beam * branch results the `beam` with the highest log-likelihood stay
//! ```
//!
//! With one piece and one way this is plain drawing. Where all tokens take the same time, so that the
//! number `n` of tokens to come is known, the first iteration has `(n - 1) % iteration + 1` of them
//! and the others are whole. What a piece has drawn depends on the seed and its place in the search.
//!
//! # Source
//! Magenta's `events_rnn_model` (`beam_size`, `branch_factor`, `steps_per_iteration`).

use crate::generate::Clock;
use crate::sampling::{Heard, Sampler};
use crate::{Generator, Result};
use etude_engine::Rng;
use etude_tokenizer::TokenTime;
use etude_tokenizer::chord::Chord;
use etude_tokenizer::grammar::Grammar;
use etude_tokenizer::step_input::{StepInput, StepReader};

/// The longest piece that is written, in tokens.
pub const MAX_TOKENS: usize = 1_000_000;

/// Most steps whose input is prepared at a time.
const MOST_READ: usize = 4096;

/// A piece in the making.
pub(crate) struct Draft {
    /// Its tokens so far.
    pub tokens: Vec<u32>,
    /// Where it stands in the encoding's grammar.
    pub grammar: Box<dyn Grammar>,
    /// Its length so far, in the clock's unit.
    pub now: f64,
    /// Sum of the log-probabilities of what was drawn; told in a search alone.
    pub log_likelihood: f64,
    /// What the guard against repeats remembers.
    heard: Heard,
    /// What the generator remembers; `None` where it cannot be taken out.
    state: Option<Vec<f32>>,
    /// The place in the voice that is written into it: step, and notes told of that step.
    told: (usize, usize),
    is_done: bool,
}

impl Draft {
    /// Begins a piece before its first token.
    pub fn new(grammar: Box<dyn Grammar>) -> Draft {
        Draft {
            tokens: Vec::new(),
            grammar,
            now: 0.0,
            log_likelihood: 0.0,
            heard: Heard::default(),
            state: None,
            told: (0, 0),
            is_done: false,
        }
    }

    fn copy(&self) -> Draft {
        Draft { tokens: self.tokens.clone(), grammar: self.grammar.copy(), state: None, ..*self }
    }

    /// Goes on by a token.
    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
        self.grammar.push(token);
    }

    /// Ends after the first `count` tokens.
    pub fn cut(&mut self, count: usize) {
        self.tokens.truncate(count);
        self.grammar.reset();
        self.tokens.iter().for_each(|token| self.grammar.push(*token));
    }
}

/// Everything that writing shares between the pieces of a search.
pub(crate) struct Desk<'a> {
    pub generator: &'a mut dyn Generator,
    pub sampler: Sampler,
    pub rng: Rng,
    pub input: StepInput,
    /// Reads the input of the piece at hand.
    pub reader: StepReader,
    pub clock: &'a Clock,
    /// What each token takes.
    pub times: &'a [TokenTime],
    /// Which tokens begin a note.
    pub onsets: &'a [bool],
    /// The pitch that each token begins or holds.
    pub pitches: &'a [Option<u8>],
    /// The length at which a piece is done.
    pub wanted: f64,
    /// Notes that must be told at each step, in the order of the encoding; none for a free piece.
    pub voice: Vec<Vec<u32>>,
    /// The chord at each step, whose notes alone may be drawn; none for a free piece.
    pub chords: &'a [Option<Chord>],
    pub rows: Vec<u32>,
    pub allowed: Vec<bool>,
    /// The tokens before the step that the generator reads next, as far as they are known.
    pub read: Vec<u32>,
}

impl Desk<'_> {
    /// Reads what a piece begins with, which is in `draft.tokens` and in its grammar.
    pub fn prime(&mut self, draft: &mut Draft) -> Result<()> {
        self.replay(&draft.tokens)?;
        self.sampler.reset();
        draft.tokens.iter().for_each(|&token| self.hear(token));
        draft.heard = self.sampler.memory();
        draft.now = draft.tokens.iter().map(|t| self.time(*t)).sum();
        Ok(())
    }

    /// Goes on with one piece until it is done, and shows each token; `false` ends it.
    pub fn extend(
        &mut self,
        draft: &mut Draft,
        hear: &mut dyn FnMut(u32, f64) -> bool,
    ) -> Result<()> {
        self.sampler.remember(draft.heard);
        self.go_on(draft, usize::MAX, false, hear)
    }

    /// Searches from one piece and returns the likeliest that was found.
    pub fn search(
        &mut self,
        mut start: Draft,
        (beam, branch, iteration): (usize, usize, usize),
    ) -> Result<Draft> {
        start.state = self.generator.state();
        let mut pieces = vec![start];
        let mut steps = self.first_iteration(&pieces[0], iteration);
        while pieces.iter().any(|p| !p.is_done) {
            let mut next = Vec::with_capacity(pieces.len() * branch);
            for piece in pieces {
                if piece.is_done {
                    next.push(piece);
                    continue;
                }
                for _ in 0..branch {
                    let mut other = piece.copy();
                    match &piece.state {
                        Some(state) => self.generator.set_state(state)?,
                        None => self.replay(&piece.tokens)?,
                    }
                    // Other pieces have been read since.
                    self.reader = self.input.reader();
                    self.sampler.remember(piece.heard);
                    self.go_on(&mut other, steps, true, &mut |_, _| true)?;
                    self.read.clone_from(&other.tokens);
                    other.heard = self.sampler.memory();
                    other.state = self.generator.state();
                    next.push(other);
                }
            }
            // Stable: of two that are as likely the earlier one stays.
            next.sort_by(|a, b| b.log_likelihood.total_cmp(&a.log_likelihood));
            next.truncate(beam);
            (pieces, steps) = (next, iteration);
        }
        Ok(pieces.swap_remove(0))
    }

    /// Tokens of the first iteration.
    fn first_iteration(&self, start: &Draft, iteration: usize) -> usize {
        let each = self.time(0);
        let even = self.times.iter().all(|time| *time == self.times[0]) && each > 0.0;
        if !even {
            return iteration;
        }
        let left = ((self.wanted - start.now) / each).ceil().max(1.0) as usize;
        (left - 1) % iteration + 1
    }

    /// Draws up to `steps` tokens.
    fn go_on(
        &mut self,
        draft: &mut Draft,
        steps: usize,
        searching: bool,
        hear: &mut dyn FnMut(u32, f64) -> bool,
    ) -> Result<()> {
        let end = draft.grammar.end();
        for _ in 0..steps {
            if draft.now >= self.wanted || draft.tokens.len() >= MAX_TOKENS {
                draft.is_done = true;
                return Ok(());
            }
            draft.grammar.mask(&mut self.allowed);
            // The length asked for is what ends a piece.
            end.into_iter().for_each(|end| self.allowed[end as usize] = false);
            if !self.allowed.contains(&true) {
                draft.is_done = true;
                return Ok(());
            }
            self.keep_to_chord(draft.told.0);
            self.reader.fill(&draft.tokens, draft.tokens.len(), &mut self.rows);
            let logits = self.generator.step(&self.rows)?;
            let allowed = |token: u32| self.allowed[token as usize];
            let drawn = self.sampler.draw(logits, self.rng.unit(), allowed);
            let token = due(&self.voice, self.times, draft, drawn);
            if searching {
                // What is given need not be of the chord.
                self.allowed[token as usize] = true;
                let allowed = |token: u32| self.allowed[token as usize];
                draft.log_likelihood += self.sampler.log_probability(logits, token, allowed);
            }
            draft.push(token);
            self.hear(token);
            draft.now += self.time(token);
            if !hear(token, draft.now) {
                draft.is_done = true;
                return Ok(());
            }
        }
        draft.is_done = draft.now >= self.wanted;
        Ok(())
    }

    /// Leaves out the notes that are not of the chord at a step, unless nothing would be left.
    fn keep_to_chord(&mut self, step: usize) {
        let Some(chord) = self.chords.get(step).copied().flatten() else { return };
        let notes = chord.pitches() | 1 << chord.bass();
        let fits = |pitch: &Option<u8>| pitch.is_none_or(|p| notes >> (p % 12) & 1 == 1);
        let mut fitting = self.allowed.iter().zip(self.pitches);
        if fitting.any(|(allowed, pitch)| *allowed && fits(pitch)) {
            let all = self.allowed.iter_mut().zip(self.pitches);
            all.for_each(|(allowed, pitch)| *allowed = *allowed && fits(pitch));
        }
    }

    /// Reads tokens from their beginning, or from where they part from those that were read last.
    fn replay(&mut self, tokens: &[u32]) -> Result<()> {
        let shared = self.read.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let is_back = shared > 0 && self.generator.rewind(shared);
        if !is_back {
            self.generator.reset();
        }
        self.read.clear();
        self.reader = self.input.reader();
        let (mut from, active) = (if is_back { shared } else { 0 }, self.rows.len());
        while from < tokens.len() {
            let steps = MOST_READ.min(tokens.len() - from);
            let mut rows = vec![0; steps * active];
            for (t, rows) in rows.chunks_exact_mut(active).enumerate() {
                self.reader.fill(tokens, from + t, rows);
            }
            self.generator.read(&rows, active)?;
            from += steps;
        }
        self.read.extend_from_slice(tokens);
        Ok(())
    }

    fn hear(&mut self, token: u32) {
        self.sampler.heard(self.onsets[token as usize].then_some(token));
    }

    pub fn time(&self, token: u32) -> f64 {
        self.clock.time(self.times[token as usize])
    }
}

/// The token that comes: the drawn one, unless it would leave no room for a note of the voice that
/// is due at this step.
fn due(voice: &[Vec<u32>], times: &[TokenTime], draft: &mut Draft, drawn: u32) -> u32 {
    let (step, told) = draft.told;
    let ends_step = |token: u32| times[token as usize] != TokenTime::None;
    let waiting = voice.get(step).map_or(&[][..], |notes| &notes[told.min(notes.len())..]);
    let mut token = drawn;
    for (skipped, &note) in waiting.iter().enumerate() {
        // What cannot be told here, because the piece has told it already, is passed over.
        if !draft.grammar.allows(note) {
            continue;
        }
        let mut after = draft.grammar.copy();
        after.push(drawn);
        if drawn == note || ends_step(drawn) || !after.allows(note) {
            draft.told.1 = told + skipped + 1;
            token = note;
        }
        break;
    }
    if ends_step(token) {
        draft.told = (step + 1, 0);
    }
    token
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{Length, Request};
    use crate::sampling::Sampling;
    use etude_tokenizer::{Encoding, Melody, Meter};

    /// Says something else after everything that can be read.
    struct Oracle {
        state: u32,
        logits: Vec<f32>,
    }

    impl Generator for Oracle {
        fn reset(&mut self) {
            self.state = 0;
        }

        fn step(&mut self, rows: &[u32]) -> Result<&[f32]> {
            for row in rows {
                self.state = (self.state ^ row).wrapping_mul(40_503) % 65_521;
            }
            for (i, x) in self.logits.iter_mut().enumerate() {
                *x = ((self.state >> (i % 11)) % 8) as f32 / 2.0;
            }
            Ok(&self.logits)
        }

        fn state(&self) -> Option<Vec<f32>> {
            Some(vec![self.state as f32])
        }

        fn set_state(&mut self, state: &[f32]) -> Result<()> {
            self.state = state[0] as u32;
            Ok(())
        }
    }

    /// Four bars of a melody: drawn, or searched for with one piece and one way.
    fn written(seed: u64, iteration: Option<usize>) -> Vec<u32> {
        let (melody, meter) = (Melody::basic(), Meter { tick: 0, numerator: 4, denominator: 4 });
        let (vocab, sampling) = (melody.vocab_size(), Sampling::default());
        let (length, tempo_bpm, primer) = (Length::Bars(4), 120.0, None);
        let request =
            Request { length, meter, tempo_bpm, primer, sampling: sampling.clone(), seed };
        let times: Vec<_> = (0..vocab as u32).map(|t| melody.token_time(t)).collect();
        let onsets: Vec<_> = (0..vocab as u32).map(|t| melody.is_onset(t)).collect();
        let input = StepInput::previous(vocab);
        let mut desk = Desk {
            generator: &mut Oracle { state: 0, logits: vec![0.0; vocab] },
            sampler: Sampler::new(sampling, vocab),
            rng: Rng::stream(seed, 0),
            rows: vec![0; input.active()],
            reader: input.reader(),
            input,
            clock: &Clock::new(&request, meter),
            times: &times,
            onsets: &onsets,
            pitches: &vec![None; vocab],
            chords: &[],
            wanted: 4.0 - 1e-3,
            voice: Vec::new(),
            allowed: vec![false; vocab],
            read: Vec::new(),
        };
        let mut draft = Draft::new(melody.grammar());
        desk.prime(&mut draft).unwrap();
        match iteration {
            None => desk.extend(&mut draft, &mut |_, _| true).unwrap(),
            Some(iteration) => draft = desk.search(draft, (1, 1, iteration)).unwrap(),
        }
        draft.tokens
    }

    #[test]
    fn a_search_of_one_piece_is_plain_drawing() {
        for seed in 0..20 {
            let plain = written(seed, None);
            assert_eq!(plain.len(), 64);
            for iteration in [1, 5, 63, 64, 1000] {
                assert_eq!(written(seed, Some(iteration)), plain, "{seed} {iteration}");
            }
        }
    }
}
