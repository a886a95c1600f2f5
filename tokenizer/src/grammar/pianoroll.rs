//! Piano rolls: within a step the keys ascend.

use super::Grammar;
use crate::PianoRollTokens;
use crate::polyphony::{MAX_NOTE_TOKENS, MAX_STEPS};

/// The grammar of [`PianoRollTokens`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PianoRollGrammar {
    /// Keys below this one have had their turn in this step.
    next: u32,
    steps: u64,
    keys: u64,
}

impl Grammar for PianoRollGrammar {
    fn vocab_size(&self) -> usize {
        PianoRollTokens::SIZE as usize
    }

    fn reset(&mut self) {
        *self = PianoRollGrammar::default();
    }

    fn allows(&self, token: u32) -> bool {
        let is_key = token < PianoRollTokens::STEP_END;
        let room = self.steps < MAX_STEPS && (!is_key || self.keys < MAX_NOTE_TOKENS);
        room && token < PianoRollTokens::SIZE && token >= self.next
    }

    fn push(&mut self, token: u32) {
        if token == PianoRollTokens::STEP_END {
            self.next = 0;
            self.steps += 1;
        } else if token < PianoRollTokens::STEP_END {
            self.next = self.next.max(token + 1);
            self.keys += 1;
        }
    }

    fn is_complete(&self) -> bool {
        self.next == 0
    }

    fn rest(&self) -> Option<u32> {
        let end = PianoRollTokens::STEP_END;
        (self.next == 0 && self.allows(end)).then_some(end)
    }

    fn copy(&self) -> Box<dyn Grammar> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_ascend_until_the_step_ends() {
        let mut grammar = PianoRollGrammar::default();
        assert!(grammar.is_complete() && grammar.allows(0) && grammar.allows(88));
        grammar.push(40);
        assert!(!grammar.is_complete() && !grammar.allows(40) && grammar.allows(41));
        assert!(grammar.allows(PianoRollTokens::STEP_END) && !grammar.allows(89));
        grammar.push(PianoRollTokens::STEP_END);
        assert!(grammar.is_complete() && grammar.allows(40));
    }
}
