//! Polyphony: `START`, steps whose pitches descend, `END`; only what sounded goes on.

use super::Grammar;
use crate::Polyphony;
use crate::polyphony::{MAX_NOTE_TOKENS, MAX_STEPS};

/// The grammar of [`Polyphony`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolyphonyGrammar {
    begun: bool,
    ended: bool,
    /// For each pitch, how many notes of the step before may go on.
    before: [u32; 128],
    /// For each pitch, how many notes sound in this step.
    told: [u32; 128],
    /// The place in the order of a step of its last note.
    last: Option<u32>,
    steps: u64,
    notes: u64,
}

impl Default for PolyphonyGrammar {
    fn default() -> PolyphonyGrammar {
        PolyphonyGrammar::new()
    }
}

/// Notes as pitch, whether new, and their place in the order of a step.
fn note(token: u32) -> Option<(usize, bool, u32)> {
    let (pitch, new) = match token {
        Polyphony::NEW_NOTE..Polyphony::CONTINUED_NOTE => (token - Polyphony::NEW_NOTE, true),
        Polyphony::CONTINUED_NOTE..Polyphony::SIZE => (token - Polyphony::CONTINUED_NOTE, false),
        _ => return None,
    };
    Some((pitch as usize, new, 2 * (127 - pitch) + u32::from(new)))
}

impl PolyphonyGrammar {
    /// Begins a piece.
    pub fn new() -> PolyphonyGrammar {
        PolyphonyGrammar {
            begun: false,
            ended: false,
            before: [0; 128],
            told: [0; 128],
            last: None,
            steps: 0,
            notes: 0,
        }
    }
}

impl Grammar for PolyphonyGrammar {
    fn vocab_size(&self) -> usize {
        Polyphony::SIZE as usize
    }

    fn reset(&mut self) {
        *self = PolyphonyGrammar::new();
    }

    fn allows(&self, token: u32) -> bool {
        if !self.begun || self.ended {
            return token == Polyphony::START && !self.begun;
        }
        match token {
            Polyphony::START => false,
            Polyphony::END => self.last.is_none(),
            Polyphony::STEP_END => self.steps < MAX_STEPS,
            _ => note(token).is_some_and(|(pitch, new, place)| {
                let sounded = new || self.before[pitch] > 0;
                // Several notes of one pitch may go on; one may begin.
                let follows = self.last.is_none_or(|last| place > last || (!new && place == last));
                let room = self.steps < MAX_STEPS && self.notes < MAX_NOTE_TOKENS;
                sounded && follows && room
            }),
        }
    }

    fn push(&mut self, token: u32) {
        self.begun = true;
        match token {
            Polyphony::END => self.ended = true,
            Polyphony::STEP_END => {
                self.before = std::mem::replace(&mut self.told, [0; 128]);
                self.last = None;
                self.steps += 1;
            }
            _ => {
                let Some((pitch, new, place)) = note(token) else { return };
                if !new {
                    if self.before[pitch] == 0 {
                        return;
                    }
                    self.before[pitch] -= 1;
                }
                self.told[pitch] += 1;
                self.last = self.last.max(Some(place));
                self.notes += 1;
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.ended
    }

    fn copy(&self) -> Box<dyn Grammar> {
        Box::new(self.clone())
    }

    fn rest(&self) -> Option<u32> {
        Some(Polyphony::STEP_END)
    }

    fn end(&self) -> Option<u32> {
        Some(Polyphony::END)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: u32 = Polyphony::NEW_NOTE;
    const GOES_ON: u32 = Polyphony::CONTINUED_NOTE;

    #[test]
    fn pitches_descend_and_only_what_sounded_goes_on() {
        let mut grammar = PolyphonyGrammar::new();
        assert!(grammar.allows(Polyphony::START) && !grammar.allows(Polyphony::STEP_END));
        grammar.push(Polyphony::START);
        assert!(grammar.allows(Polyphony::END) && !grammar.allows(Polyphony::START));
        assert!(grammar.allows(NEW + 67) && !grammar.allows(GOES_ON + 67));
        grammar.push(NEW + 67);
        assert!(!grammar.allows(NEW + 67) && !grammar.allows(NEW + 68) && grammar.allows(NEW + 60));
        assert!(!grammar.allows(Polyphony::END));
        grammar.push(Polyphony::STEP_END);
        assert!(grammar.allows(GOES_ON + 67) && !grammar.allows(GOES_ON + 60));
        // Going on once, then again only if it sounded twice; a new one of the pitch may follow.
        grammar.push(GOES_ON + 67);
        assert!(!grammar.allows(GOES_ON + 67) && grammar.allows(NEW + 67));
        grammar.push(NEW + 67);
        grammar.push(Polyphony::STEP_END);
        grammar.push(GOES_ON + 67);
        assert!(grammar.allows(GOES_ON + 67));
        grammar.push(Polyphony::STEP_END);
        grammar.push(Polyphony::END);
        assert!(grammar.is_complete());
        assert!((0..Polyphony::SIZE).all(|token| !grammar.allows(token)));
        grammar.reset();
        assert_eq!(grammar, PolyphonyGrammar::new());
    }
}
