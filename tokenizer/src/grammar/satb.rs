//! Four voices: each step from soprano to bass.

use super::Grammar;
use crate::Satb;
use crate::polyphony::MAX_STEPS;

/// The grammar of [`Satb`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SatbGrammar {
    /// Whose turn it is.
    voice: usize,
    /// Whole steps so far.
    steps: u64,
}

impl Grammar for SatbGrammar {
    fn vocab_size(&self) -> usize {
        Satb::SIZE as usize
    }

    fn reset(&mut self) {
        *self = SatbGrammar::default();
    }

    fn allows(&self, token: u32) -> bool {
        self.steps < MAX_STEPS && Satb::voice(token) == self.voice
    }

    /// A voice that is left out is silent; a voice out of its order begins the next step.
    fn push(&mut self, token: u32) {
        let voice = Satb::voice(token);
        if voice >= Satb::VOICES.len() {
            return;
        }
        self.steps += u64::from(voice < self.voice);
        self.voice = voice + 1;
        if self.voice == Satb::VOICES.len() {
            self.voice = 0;
            self.steps += 1;
        }
    }

    fn is_complete(&self) -> bool {
        self.voice == 0
    }

    fn copy(&self) -> Box<dyn Grammar> {
        Box::new(self.clone())
    }

    fn rest(&self) -> Option<u32> {
        let silence = self.voice as u32 * Satb::EACH;
        self.allows(silence).then_some(silence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_voices_take_turns() {
        let mut grammar = SatbGrammar::default();
        for step in 0..2 {
            for voice in 0..4 {
                assert_eq!(grammar.is_complete(), voice == 0, "step {step}");
                assert_eq!(grammar.rest(), Some(voice * Satb::EACH));
                let allowed: Vec<u32> = (0..Satb::SIZE).filter(|t| grammar.allows(*t)).collect();
                let own = voice * Satb::EACH..(voice + 1) * Satb::EACH;
                assert_eq!(allowed, own.collect::<Vec<_>>());
                grammar.push(voice * Satb::EACH + 40);
            }
        }
        // An alto where a soprano is wanted: the soprano is silent; a soprano next: a new step.
        grammar.push(Satb::EACH);
        assert!(grammar.allows(2 * Satb::EACH));
        grammar.push(0);
        assert!(grammar.allows(Satb::EACH));
    }
}
