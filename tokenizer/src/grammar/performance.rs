//! Performances: notes end before others begin, in the order in which they began; nothing ends
//! that does not sound; a velocity is told where it changes, right before a note.

use super::Grammar;
use crate::performance::{MAX_SHIFT, MAX_STEPS, NOTE_OFF, TIME_SHIFT, VELOCITY, VELOCITY_BINS};
use std::collections::VecDeque;

/// What the last token was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Nothing,
    Shift { longest: bool },
    Velocity,
    NoteOff,
    NoteOn,
}

/// The grammar of [`crate::Performance`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PerformanceGrammar {
    dynamics: bool,
    restrikes: bool,
    last: Last,
    now: u64,
    /// Where the notes of each pitch that sound began, the oldest first.
    open: Vec<VecDeque<u64>>,
    /// The velocity at hand.
    bin: Option<u32>,
    /// The last pitch that began at this step.
    last_on: Option<u32>,
    /// The beginning and pitch of the last note that ended at this step.
    last_off: Option<(u64, u32)>,
}

impl PerformanceGrammar {
    /// Begins a performance, with or without dynamics, in which no pitch is struck while it
    /// sounds.
    pub fn new(dynamics: bool) -> PerformanceGrammar {
        PerformanceGrammar {
            dynamics,
            restrikes: false,
            last: Last::Nothing,
            now: 0,
            open: vec![VecDeque::with_capacity(4); 128],
            bin: None,
            last_on: None,
            last_off: None,
        }
    }

    /// Allows a pitch to be struck again while it sounds, as encoding writes it; a note-off then
    /// ends the older note.
    pub fn with_restrikes(mut self) -> PerformanceGrammar {
        self.restrikes = true;
        self
    }

    fn may_begin(&self, pitch: u32) -> bool {
        let free = self.restrikes || self.open[pitch as usize].is_empty();
        free && self.last_on.is_none_or(|last| pitch > last) && self.now < MAX_STEPS
    }
}

impl Grammar for PerformanceGrammar {
    fn vocab_size(&self) -> usize {
        VELOCITY as usize + if self.dynamics { usize::from(VELOCITY_BINS) } else { 0 }
    }

    fn reset(&mut self) {
        self.open.iter_mut().for_each(VecDeque::clear);
        (self.last, self.now, self.bin) = (Last::Nothing, 0, None);
        (self.last_on, self.last_off) = (None, None);
    }

    fn allows(&self, token: u32) -> bool {
        if token as usize >= self.vocab_size() {
            return false;
        }
        let after_velocity = self.last == Last::Velocity;
        match token {
            0..NOTE_OFF => self.may_begin(token) && (!self.dynamics || self.bin.is_some()),
            NOTE_OFF..TIME_SHIFT => {
                let pitch = token - NOTE_OFF;
                let oldest = self.open[pitch as usize].front();
                oldest.is_some_and(|&began| {
                    let follows = self.last_off.is_none_or(|last| (began, pitch) > last);
                    began < self.now && follows && self.last_on.is_none() && !after_velocity
                })
            }
            TIME_SHIFT..VELOCITY => {
                // A long time is told by the longest shifts and then the rest.
                let follows = !matches!(self.last, Last::Velocity | Last::Shift { longest: false });
                follows && self.now + u64::from(token - TIME_SHIFT) < MAX_STEPS
            }
            _ => {
                let changes = self.bin != Some(token - VELOCITY);
                !after_velocity && changes && (0..128).any(|pitch| self.may_begin(pitch))
            }
        }
    }

    fn push(&mut self, token: u32) {
        match token {
            0..NOTE_OFF => {
                self.open[token as usize].push_back(self.now);
                self.last_on = Some(token);
                self.last = Last::NoteOn;
            }
            NOTE_OFF..TIME_SHIFT => {
                let pitch = token - NOTE_OFF;
                if let Some(began) = self.open[pitch as usize].pop_front() {
                    self.last_off = Some((began, pitch));
                    self.last = Last::NoteOff;
                }
            }
            TIME_SHIFT..VELOCITY => {
                let steps = u64::from(token - TIME_SHIFT) + 1;
                self.now = (self.now + steps).min(MAX_STEPS);
                (self.last_on, self.last_off) = (None, None);
                self.last = Last::Shift { longest: steps == MAX_SHIFT };
            }
            _ => {
                self.bin = Some(token - VELOCITY);
                self.last = Last::Velocity;
            }
        }
    }

    fn is_complete(&self) -> bool {
        let told = matches!(self.last, Last::Nothing | Last::NoteOff);
        told && self.open.iter().all(VecDeque::is_empty)
    }

    fn copy(&self) -> Box<dyn Grammar> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: u32 = 60;
    const SHIFT_3: u32 = TIME_SHIFT + 2;
    const SHIFT_100: u32 = TIME_SHIFT + 99;

    #[test]
    fn nothing_ends_that_does_not_sound_and_nothing_begins_twice() {
        let mut grammar = PerformanceGrammar::new(false);
        assert!(!grammar.allows(NOTE_OFF + C) && grammar.allows(C) && !grammar.allows(356));
        grammar.push(C);
        // Not again, not downwards, not of no length.
        assert!(!grammar.allows(C) && !grammar.allows(C - 1) && grammar.allows(C + 1));
        assert!(!grammar.allows(NOTE_OFF + C) && !grammar.is_complete());
        grammar.push(SHIFT_3);
        assert!(grammar.allows(NOTE_OFF + C) && !grammar.allows(C) && grammar.allows(C - 1));
        assert!(grammar.clone().with_restrikes().allows(C));
        // After a short shift no other: 3 and 100 steps are told as 100 and 3.
        assert!(!grammar.allows(SHIFT_3) && !grammar.allows(SHIFT_100));
        grammar.push(NOTE_OFF + C);
        assert!(grammar.is_complete() && grammar.allows(C));
    }

    #[test]
    fn notes_end_in_the_order_in_which_they_began_before_others_begin() {
        let mut grammar = PerformanceGrammar::new(false);
        [C + 7, SHIFT_3, C, SHIFT_100].into_iter().for_each(|token| grammar.push(token));
        assert!(grammar.allows(SHIFT_100) && grammar.allows(SHIFT_3));
        let mut other = grammar.clone();
        other.push(NOTE_OFF + C);
        assert!(!other.allows(NOTE_OFF + C + 7));
        grammar.push(NOTE_OFF + C + 7);
        assert!(grammar.allows(NOTE_OFF + C));
        grammar.push(C + 1);
        assert!(!grammar.allows(NOTE_OFF + C));
    }

    #[test]
    fn velocities_are_told_where_they_change_and_before_a_note() {
        let mut grammar = PerformanceGrammar::new(true);
        assert!(!grammar.allows(C) && grammar.allows(VELOCITY));
        grammar.push(VELOCITY + 5);
        assert!(grammar.allows(C) && !grammar.allows(SHIFT_3) && !grammar.allows(VELOCITY + 6));
        grammar.push(C);
        assert!(!grammar.allows(VELOCITY + 5) && grammar.allows(VELOCITY + 6));
        grammar.push(127);
        // No pitch is left that could begin at this step.
        assert!(!grammar.allows(VELOCITY + 6));
        grammar.reset();
        assert_eq!(grammar, PerformanceGrammar::new(true));
    }
}
