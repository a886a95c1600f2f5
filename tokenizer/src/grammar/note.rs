//! Performances note by note: six heads in turn; pitches at one step ascend.

use super::Grammar;
use crate::NotePerformance;
use crate::performance::MAX_STEPS;
use crate::performance_note::{MAX_DURATION, MAX_SHIFT, SHIFT_MINORS};

/// The grammar of [`NotePerformance`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoteGrammar {
    /// The head whose token is due.
    due: usize,
    /// The shift of the note that is being told.
    shift: u32,
    /// The pitch of the note before.
    pitch: Option<u32>,
    now: u64,
}

impl NoteGrammar {
    /// Begins a performance.
    pub fn new() -> NoteGrammar {
        NoteGrammar::default()
    }
}

impl Grammar for NoteGrammar {
    fn vocab_size(&self) -> usize {
        NotePerformance::FIRST[6] as usize
    }

    fn reset(&mut self) {
        *self = NoteGrammar::new();
    }

    fn allows(&self, token: u32) -> bool {
        if token as usize >= self.vocab_size() {
            return false;
        }
        let (head, class) = NotePerformance::head(token);
        head == self.due
            && match head {
                0 => self.now + MAX_SHIFT + MAX_DURATION <= MAX_STEPS,
                // Above the highest pitch no other can follow at the same step.
                1 => self.shift + class > 0 || self.pitch != Some(127),
                2 => self.shift > 0 || self.pitch.is_none_or(|before| class > before),
                _ => true,
            }
    }

    fn push(&mut self, token: u32) {
        let (head, class) = NotePerformance::head(token);
        if head != self.due && head != 0 {
            return;
        }
        match head {
            0 => self.shift = class * SHIFT_MINORS,
            1 => self.shift += class,
            2 => {
                self.pitch = Some(class);
                self.now += u64::from(self.shift);
            }
            _ => {}
        }
        self.due = (head + 1) % 6;
    }

    fn is_complete(&self) -> bool {
        self.due == 0
    }

    fn copy(&self) -> Box<dyn Grammar> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_take_turns_and_pitches_of_one_step_ascend() {
        let [shift_major, shift_minor, pitch, velocity, major, minor, _] = NotePerformance::FIRST;
        let mut grammar = NoteGrammar::new();
        assert!(grammar.allows(shift_major) && !grammar.allows(shift_minor));
        for token in [shift_major, shift_minor, pitch + 60, velocity, major, minor] {
            assert!(grammar.allows(token));
            grammar.push(token);
        }
        assert!(grammar.is_complete());
        grammar.push(shift_major);
        grammar.push(shift_minor);
        assert!(
            !grammar.allows(pitch + 60) && grammar.allows(pitch + 61) && !grammar.is_complete()
        );
        for token in [pitch + 127, velocity, major, minor, shift_major] {
            grammar.push(token);
        }
        assert!(!grammar.allows(shift_minor) && grammar.allows(shift_minor + 1));
        grammar.push(shift_minor + 1);
        assert!(grammar.allows(pitch));
    }
}
