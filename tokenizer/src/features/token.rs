//! The token alone; and labels, read as the events that they mean.

use super::{EventInput, Features, Field, lay};
use crate::history::History;
use crate::{Encoding, MelodyLabels};

/// One position for each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OneHotInput {
    vocab: u32,
}

impl OneHotInput {
    /// Makes the input of a vocabulary.
    pub fn of(vocab: u32) -> OneHotInput {
        OneHotInput { vocab }
    }
}

impl EventInput for OneHotInput {
    fn width(&self) -> u32 {
        self.vocab
    }

    fn fields(&self) -> Vec<Field> {
        lay(&[("token", self.vocab)])
    }

    fn reset(&mut self) {}

    fn push(&mut self, event: u32, row: &mut Features) {
        assert!(event < self.vocab, "token {event} of {}", self.vocab);
        row.clear();
        row.ones.push(event);
    }

    fn copy(&self) -> Box<dyn EventInput> {
        Box::new(*self)
    }
}

/// An input of melody events that is fed with labels.
pub struct LabelInput {
    labels: MelodyLabels,
    history: History,
    input: Box<dyn EventInput>,
}

impl LabelInput {
    /// Feeds an input, such as [`super::LookbackInput::melody`] or [`super::KeyInput`], with
    /// labels.
    pub fn of(labels: &MelodyLabels, input: Box<dyn EventInput>) -> LabelInput {
        LabelInput { labels: labels.clone(), history: History::default(), input }
    }
}

impl EventInput for LabelInput {
    fn width(&self) -> u32 {
        self.input.width()
    }

    fn fields(&self) -> Vec<Field> {
        self.input.fields()
    }

    fn signed(&self) -> Vec<u32> {
        self.input.signed()
    }

    fn reset(&mut self) {
        self.history = History::default();
        self.input.reset();
    }

    fn push(&mut self, label: u32, row: &mut Features) {
        assert!((label as usize) < self.labels.vocab_size(), "label {label}");
        let event = self.labels.event_after(label, |distance| self.history.back(distance));
        self.history.push(event);
        self.input.push(event, row);
    }

    fn copy(&self) -> Box<dyn EventInput> {
        let (labels, history) = (self.labels.clone(), self.history.clone());
        Box::new(LabelInput { labels, history, input: self.input.copy() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{KeyInput, LookbackInput};
    use super::*;

    #[test]
    fn labels_are_read_as_the_events_that_they_mean() {
        let events: Vec<u32> =
            (0..150u32).map(|t| if t % 5 == 0 { 2 + t * 7 % 36 } else { 0 }).collect();
        let inputs: [(MelodyLabels, Box<dyn EventInput>); 2] = [
            (MelodyLabels::lookback(), Box::new(LookbackInput::melody())),
            (MelodyLabels::key(), Box::new(KeyInput::new())),
        ];
        for (labels, mut input) in inputs {
            let mut fed = LabelInput::of(&labels, input.copy());
            assert_eq!((fed.width(), fed.fields()), (input.width(), input.fields()));
            let (mut row, mut expected) = (Features::default(), Features::default());
            for _ in 0..2 {
                for (&event, label) in events.iter().zip(labels.labels(&events)) {
                    let mut other = fed.copy();
                    other.push(0, &mut row);
                    fed.push(label, &mut row);
                    input.push(event, &mut expected);
                    assert_eq!(row, expected);
                }
                fed.reset();
                input.reset();
            }
        }
    }

    #[test]
    fn a_token_is_one_position() {
        let (mut input, mut row) = (OneHotInput::of(259), Features::default());
        input.push(70, &mut row);
        assert_eq!((row.ones, input.width()), (vec![70], 259));
    }
}
