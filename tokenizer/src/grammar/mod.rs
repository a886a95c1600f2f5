//! Which tokens may come next, so that generation can leave out the others.
//!
//! A [`Grammar`] walks along a sequence and knows, at each place, the tokens that keep it lawful:
//! each token then says something that decoding keeps, and in the way in which the encoding says
//! it. A sequence drawn under a grammar, when it is complete, encodes to itself after decoding:
//!
//! | scheme | complete | what encoding does not say again |
//! | --- | --- | --- |
//! | melodies | always | what follows the end of the last note |
//! | drums | always | rests at the end |
//! | polyphony | after `END` | silent steps before `END` |
//! | piano rolls | after `STEP_END` | silent steps at the end |
//! | satb | after the bass | silent steps at the end |
//! | performance | when all notes have ended | nothing |
//! | performance-note | after six tokens | nothing |
//! | events | after something complete, see [`crate::Events`] | nothing |
//! | with holes | as the scheme beneath; a hole after its end | as there |
//!
//! What an encoding writes is lawful, with one exception: a pitch of a performance struck again
//! while it sounds ([`PerformanceGrammar::with_restrikes`]).

mod events;
mod infill;
mod melody;
mod note;
mod performance;
mod pianoroll;
mod polyphony;
mod satb;

pub use events::EventsGrammar;
pub use infill::InfillGrammar;
pub use melody::{LabelsGrammar, MelodyGrammar};
pub use note::NoteGrammar;
pub use performance::PerformanceGrammar;
pub use pianoroll::PianoRollGrammar;
pub use polyphony::PolyphonyGrammar;
pub use satb::SatbGrammar;

/// Walks along a sequence of tokens and tells what may come next. No call allocates, but for what
/// [`Grammar::copy`] makes and for pitches that are struck many times over.
pub trait Grammar: Send {
    /// Number of different tokens.
    fn vocab_size(&self) -> usize;

    /// Goes back to before the first token.
    fn reset(&mut self);

    /// Tells whether a token may come next.
    fn allows(&self, token: u32) -> bool;

    /// Takes the next token, lawful or not. What is not lawful changes as little as it does in
    /// decoding.
    fn push(&mut self, token: u32);

    /// Tells whether the sequence may end here.
    fn is_complete(&self) -> bool;

    /// A grammar at the same place of a sequence, to go another way.
    fn copy(&self) -> Box<dyn Grammar>;

    /// The token by which a step passes here in which nothing begins; `None` where time does not
    /// go in steps.
    fn rest(&self) -> Option<u32> {
        None
    }

    /// The token after which nothing may come; `None` where a sequence may end without one.
    fn end(&self) -> Option<u32> {
        None
    }

    /// Tells for every token whether it may come next. All are `false` where the sequence has
    /// ended.
    ///
    /// # Panics
    /// If `allowed` has another length than the vocabulary.
    fn mask(&self, allowed: &mut [bool]) {
        assert_eq!(allowed.len(), self.vocab_size());
        for (token, allowed) in (0..).zip(allowed) {
            *allowed = self.allows(token);
        }
    }
}

/// Allows everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anything {
    vocab: usize,
    rest: Option<u32>,
}

impl Anything {
    /// Makes the grammar of a vocabulary without rules.
    pub fn of(vocab: usize) -> Anything {
        Anything { vocab, rest: None }
    }

    /// Makes the grammar of a vocabulary without rules, of which one token is a silent step.
    pub(crate) fn with_rest(vocab: usize, rest: u32) -> Anything {
        Anything { vocab, rest: Some(rest) }
    }
}

impl Grammar for Anything {
    fn vocab_size(&self) -> usize {
        self.vocab
    }

    fn reset(&mut self) {}

    fn allows(&self, token: u32) -> bool {
        (token as usize) < self.vocab
    }

    fn push(&mut self, _: u32) {}

    fn is_complete(&self) -> bool {
        true
    }

    fn copy(&self) -> Box<dyn Grammar> {
        Box::new(self.clone())
    }

    fn rest(&self) -> Option<u32> {
        self.rest
    }
}
