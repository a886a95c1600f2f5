//! Melodies written as what is new in them: 38 events and two labels that repeat.
//!
//! A label a step. Where the event is that of two bars ago (32 steps) the label says so, else
//! where it is that of one bar ago (16 steps); only what repeats neither is named. Before the
//! first step the melody counts as silence for the farther lookback: of the first 32 steps, those
//! at which nothing happens are "repeat two bars". Decoding resolves each repeat from the events
//! decoded before it, and takes one that reaches before the first step as "nothing happens".
//!
//! Two orders of the same 40 labels: `melody-lookback` has the events as in [`Melody`] and then
//! the repeats; `melody-key` has the 36 pitches, nothing, note-off, and then the repeats.
//!
//! # Source
//! Magenta, `LookbackEventSequenceEncoderDecoder` (lookback_rnn) and `KeyMelodyEncoderDecoder`
//! (attention_rnn); both models read melodies moved to C: the schemes that end in `-c`.

use crate::grammar::{Grammar, LabelsGrammar};
use crate::{Encoded, Encoding, Melody, Result, Score, TokenTime};

/// How far a melody looks back, in steps: one and two bars of 4/4.
pub const LOOKBACKS: [usize; 2] = [16, 32];

/// Which labels stand first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Nothing, note-off, pitches.
    Events,
    /// Pitches, nothing, note-off.
    Pitches,
}

/// A melody encoding with repeats, of 40 labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MelodyLabels {
    name: &'static str,
    melody: Melody,
    order: Order,
}

impl MelodyLabels {
    /// Makes the labels of lookback_rnn, `melody-lookback`.
    pub fn lookback() -> MelodyLabels {
        MelodyLabels { name: "melody-lookback", melody: Melody::basic(), order: Order::Events }
    }

    /// Makes the same over melodies moved to C major or A minor, `melody-lookback-c`.
    pub fn lookback_in_c() -> MelodyLabels {
        let melody = Melody::basic_in_c();
        MelodyLabels { name: "melody-lookback-c", melody, order: Order::Events }
    }

    /// Makes the labels of attention_rnn, `melody-key`.
    pub fn key() -> MelodyLabels {
        MelodyLabels { name: "melody-key", melody: Melody::basic(), order: Order::Pitches }
    }

    /// Makes the same over melodies moved to C major or A minor, `melody-key-c`.
    pub fn key_in_c() -> MelodyLabels {
        let melody = Melody::basic_in_c();
        MelodyLabels { name: "melody-key-c", melody, order: Order::Pitches }
    }

    /// The encoding of the events that the labels name: what the network reads is made of these.
    pub fn melody(&self) -> &Melody {
        &self.melody
    }

    fn classes(&self) -> u32 {
        self.melody.vocab_size() as u32
    }

    /// The label that names an event, repeated or not.
    fn plain(&self, event: u32) -> u32 {
        match self.order {
            Order::Events => event,
            // The two special events go behind the pitches.
            Order::Pitches => (event + self.classes() - 2) % self.classes(),
        }
    }

    /// The label of the event at a place, given all events up to it.
    ///
    /// # Panics
    /// If `place` is beyond `events`.
    pub fn label(&self, events: &[u32], place: usize) -> u32 {
        let back = |distance: usize| place.checked_sub(distance).map(|at| events[at]);
        self.label_after(events[place], place, back)
    }

    /// The label of an event at a place, `back` giving the event so many steps before it.
    pub(crate) fn label_after(
        &self,
        event: u32,
        place: usize,
        back: impl Fn(usize) -> Option<u32>,
    ) -> u32 {
        let [near, far] = LOOKBACKS;
        let repeats_far = back(far) == Some(event);
        if repeats_far || (place < far && event == Melody::NO_EVENT) {
            self.classes() + 1
        } else if back(near) == Some(event) {
            self.classes()
        } else {
            self.plain(event)
        }
    }

    /// The event that a label means after the events before it.
    ///
    /// # Panics
    /// If `label` is not below the vocabulary's size.
    pub fn event(&self, label: u32, before: &[u32]) -> u32 {
        self.event_after(label, |distance| {
            before.len().checked_sub(distance).map(|place| before[place])
        })
    }

    /// The event that a label means, `back` giving the event so many steps before it.
    pub(crate) fn event_after(&self, label: u32, back: impl Fn(usize) -> Option<u32>) -> u32 {
        let classes = self.classes();
        match label.checked_sub(classes) {
            Some(repeat) => back(LOOKBACKS[repeat as usize]).unwrap_or(Melody::NO_EVENT),
            None => match self.order {
                Order::Events => label,
                Order::Pitches => (label + 2) % classes,
            },
        }
    }

    /// The labels of a melody's events.
    pub fn labels(&self, events: &[u32]) -> Vec<u32> {
        (0..events.len()).map(|place| self.label(events, place)).collect()
    }

    /// The events that labels mean.
    ///
    /// # Errors
    /// If a label is not in the vocabulary.
    pub fn events(&self, labels: &[u32]) -> Result<Vec<u32>> {
        crate::encoding::check_tokens(self, labels)?;
        let mut events = Vec::with_capacity(labels.len());
        for &label in labels {
            events.push(self.event(label, &events));
        }
        Ok(events)
    }
}

impl Encoding for MelodyLabels {
    fn name(&self) -> &str {
        self.name
    }

    fn vocab_size(&self) -> usize {
        self.melody.vocab_size() + LOOKBACKS.len()
    }

    fn token_name(&self, token: u32) -> String {
        assert!((token as usize) < self.vocab_size(), "token {token} of {}", self.vocab_size());
        match token.checked_sub(self.classes()) {
            Some(0) => "REPEAT_1_BAR".to_string(),
            Some(_) => "REPEAT_2_BARS".to_string(),
            None => self.melody.token_name(self.event(token, &[])),
        }
    }

    fn token_time(&self, _: u32) -> TokenTime {
        TokenTime::Steps(1)
    }

    /// Tells whether a label names a pitch; a repeat may also begin a note.
    fn is_onset(&self, token: u32) -> bool {
        token < self.classes() && self.melody.is_onset(self.event(token, &[]))
    }

    fn grammar(&self) -> Box<dyn Grammar> {
        Box::new(LabelsGrammar::of(self))
    }

    fn key_shift(&self, score: &Score) -> i32 {
        self.melody.key_shift(score)
    }

    fn has_key(&self) -> bool {
        self.melody.has_key()
    }

    /// The melody as [`Melody`] hears it.
    fn quantise(&self, score: &Score) -> Score {
        self.melody.quantise(score)
    }

    fn encode(&self, score: &Score) -> Result<Encoded> {
        let Encoded { tokens, lost } = self.melody.encode(score)?;
        Ok(Encoded { tokens: self.labels(&tokens), lost })
    }

    fn decode(&self, tokens: &[u32]) -> Result<Score> {
        self.melody.decode(&self.events(tokens)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: u32 = Melody::NO_EVENT;

    /// Middle C, held for a bar; the same bar again; then D where the C was, and a bar of C.
    fn events() -> Vec<u32> {
        let bar = |first: u32| [&[first][..], &[NOTHING; 15]].concat();
        [bar(14), bar(14), bar(16), bar(14)].concat()
    }

    #[test]
    fn the_farther_repeat_wins_and_silence_before_the_first_step_repeats_two_bars() {
        let lookback = MelodyLabels::lookback();
        let labels = lookback.labels(&events());
        // Step 0: C, named. Steps 1 to 15: nothing, "2 bars". Step 16: C again, 1 bar ago; two
        // bars ago is before the beginning and was silent. Step 32: D, neither. Its bar: nothing,
        // both 1 and 2 bars ago: 2. Step 48: C, not 1 bar ago (D) but 2.
        let bar = |first: u32| [&[first][..], &[39; 15]].concat();
        assert_eq!(labels, [bar(14), bar(38), bar(16), bar(39)].concat());
        assert_eq!(lookback.events(&labels).unwrap(), events());
    }

    #[test]
    fn the_key_order_has_pitches_first() {
        let key = MelodyLabels::key();
        // C at 60 - 48, note-off 37, D at 62 - 48.
        let events: Vec<u32> = [&[14, 1, 16][..], &[0; 30], &[0, 0, 0]].concat();
        let labels = key.labels(&events);
        assert_eq!(labels[..3], [12, 37, 14]);
        // Steps 3 to 31 are silent: 39. Step 32 looks back at C 32 and nothing 16 steps ago: 38.
        // Step 33 and 34 look back at the note-off and D: 38 as well. Step 35: 39.
        assert_eq!(labels[3..32], [39; 29]);
        assert_eq!(labels[32..], [38, 38, 38, 39]);
        // Nothing that repeats nothing is label 36: a note 16 and one 32 steps ago.
        let busy: Vec<u32> = [&[14; 32][..], &[0]].concat();
        assert_eq!(key.label(&busy, 32), 36);
        assert_eq!(key.events(&labels).unwrap(), events);
        assert_eq!((key.vocab_size(), MelodyLabels::lookback().vocab_size()), (40, 40));
        assert_eq!(key.token_name(36), "NO_EVENT");
        assert_eq!(key.token_name(37), "NOTE_OFF");
        assert_eq!(key.token_name(0), "NOTE_ON_48");
    }

    #[test]
    fn a_repeat_that_reaches_before_the_beginning_is_nothing() {
        let lookback = MelodyLabels::lookback();
        assert_eq!(lookback.events(&[38, 39, 14]).unwrap(), [0, 0, 14]);
        assert!(lookback.events(&[40]).is_err());
        assert!(lookback.labels(&[]).is_empty());
    }
}
