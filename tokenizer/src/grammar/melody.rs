//! Melodies: a note-off only while a note sounds; of the labels that mean an event, the one that
//! encoding writes.

use super::Grammar;
use crate::history::History;
use crate::{Encoding, Melody, MelodyLabels};

/// The grammar of [`Melody`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MelodyGrammar {
    vocab: usize,
    sounding: bool,
}

impl MelodyGrammar {
    /// Begins a melody.
    pub fn of(melody: &Melody) -> MelodyGrammar {
        MelodyGrammar { vocab: melody.vocab_size(), sounding: false }
    }
}

impl Grammar for MelodyGrammar {
    fn vocab_size(&self) -> usize {
        self.vocab
    }

    fn reset(&mut self) {
        self.sounding = false;
    }

    fn allows(&self, token: u32) -> bool {
        (token as usize) < self.vocab && (token != Melody::NOTE_OFF || self.sounding)
    }

    fn push(&mut self, token: u32) {
        match token {
            Melody::NO_EVENT => {}
            _ => self.sounding = token != Melody::NOTE_OFF,
        }
    }

    fn is_complete(&self) -> bool {
        true
    }

    fn copy(&self) -> Box<dyn Grammar> {
        Box::new(self.clone())
    }

    fn rest(&self) -> Option<u32> {
        Some(Melody::NO_EVENT)
    }
}

/// The grammar of [`MelodyLabels`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelsGrammar {
    labels: MelodyLabels,
    melody: MelodyGrammar,
    history: History,
}

impl LabelsGrammar {
    /// Begins a melody.
    pub fn of(labels: &MelodyLabels) -> LabelsGrammar {
        let melody = MelodyGrammar::of(labels.melody());
        LabelsGrammar { labels: labels.clone(), melody, history: History::default() }
    }

    /// The event that a label means here.
    pub fn event(&self, label: u32) -> u32 {
        self.labels.event_after(label, |distance| self.history.back(distance))
    }
}

impl Grammar for LabelsGrammar {
    fn vocab_size(&self) -> usize {
        self.labels.vocab_size()
    }

    fn reset(&mut self) {
        self.melody.reset();
        self.history = History::default();
    }

    fn allows(&self, token: u32) -> bool {
        if token as usize >= self.vocab_size() {
            return false;
        }
        let event = self.event(token);
        let label = self
            .labels
            .label_after(event, self.history.count(), |distance| self.history.back(distance));
        label == token && self.melody.allows(event)
    }

    fn push(&mut self, token: u32) {
        let event = self.event(token);
        self.melody.push(event);
        self.history.push(event);
    }

    fn is_complete(&self) -> bool {
        true
    }

    fn copy(&self) -> Box<dyn Grammar> {
        Box::new(self.clone())
    }

    fn rest(&self) -> Option<u32> {
        let nothing = Melody::NO_EVENT;
        let count = self.history.count();
        Some(self.labels.label_after(nothing, count, |distance| self.history.back(distance)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_off_needs_a_note() {
        let mut grammar = MelodyGrammar::of(&Melody::basic());
        assert!(!grammar.allows(1) && grammar.allows(0) && grammar.allows(37));
        assert!(!grammar.allows(38));
        grammar.push(14);
        assert!(grammar.allows(1));
        grammar.push(0);
        assert!(grammar.allows(1));
        grammar.push(1);
        assert!(!grammar.allows(1));
    }

    #[test]
    fn of_two_labels_for_an_event_the_repeat_is_lawful() {
        let mut grammar = LabelsGrammar::of(&MelodyLabels::lookback());
        // At the beginning "nothing" is "2 bars ago", and "1 bar ago" means nothing too.
        assert!(grammar.allows(39) && !grammar.allows(0) && !grammar.allows(38));
        grammar.push(14);
        (0..15).for_each(|_| grammar.push(39));
        // A bar later C is "1 bar ago"; D and note-off, for C still sounds, are named.
        assert!(grammar.allows(38) && !grammar.allows(14));
        assert!(grammar.allows(16) && grammar.allows(1));
        assert_eq!(grammar.event(38), 14);
    }
}
