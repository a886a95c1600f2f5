//! The event at hand, what came next at this place one and two bars ago, the place in the bar as
//! a binary counter, and whether the event repeats.
//!
//! # Source
//! Magenta, `LookbackEventSequenceEncoderDecoder`: lookback_rnn with two distances and 5 bits,
//! drum_kit with none and 6 bits.

use super::{EventInput, Features, Field, lay};
use crate::history::History;
use crate::{LOOKBACKS, Melody};

/// The input of lookback_rnn and of drum_kit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookbackInput {
    classes: u32,
    /// The event that stands where a lookback reaches before the first.
    nothing: u32,
    distances: &'static [usize],
    counter_bits: u32,
    history: History,
}

impl LookbackInput {
    /// Makes the input of lookback_rnn, 121 wide: 3 x 38 classes, 5 bits, 2 repeats.
    pub fn melody() -> LookbackInput {
        LookbackInput {
            classes: 38,
            nothing: Melody::NO_EVENT,
            distances: &LOOKBACKS,
            counter_bits: 5,
            history: History::default(),
        }
    }

    /// Makes the input of drum_kit, 518 wide: 512 classes and 6 bits.
    pub fn drum_kit() -> LookbackInput {
        let history = History::default();
        LookbackInput { classes: 512, nothing: 0, distances: &[], counter_bits: 6, history }
    }

    /// Writes the row of a place, of which later events tell nothing.
    ///
    /// # Panics
    /// If `place` is beyond `events`, or an event is none of the classes.
    pub fn fill(&self, events: &[u32], place: usize, row: &mut Features) {
        let back = |distance: usize| place.checked_sub(distance).map(|at| events[at]);
        self.write(events[place], place, back, row);
    }

    /// Writes the row of an event at a place, `back` giving the event so many steps before it.
    fn write(
        &self,
        event: u32,
        place: usize,
        back: impl Fn(usize) -> Option<u32>,
        row: &mut Features,
    ) {
        row.clear();
        let mut first = 0;
        let mut one_hot = |event: u32, row: &mut Features| {
            assert!(event < self.classes, "event {event} of {}", self.classes);
            row.ones.push(first + event);
            first += self.classes;
        };
        one_hot(event, row);
        for &distance in self.distances {
            // What came next there: one step nearer.
            one_hot(back(distance - 1).unwrap_or(self.nothing), row);
        }
        row.counter(first, self.counter_bits, place + 1);
        first += self.counter_bits;
        for &distance in self.distances {
            row.flag(first, back(distance) == Some(event));
            first += 1;
        }
    }
}

impl EventInput for LookbackInput {
    fn fields(&self) -> Vec<Field> {
        let mut parts = vec![("event", self.classes)];
        parts.extend(self.distances.iter().map(|_| ("next event a lookback ago", self.classes)));
        parts.push(("place of the next event, binary", self.counter_bits));
        parts.extend(self.distances.iter().map(|_| ("repeats a lookback", 1)));
        lay(&parts)
    }

    fn signed(&self) -> Vec<u32> {
        let counter = self.classes * (1 + self.distances.len() as u32);
        (counter..counter + self.counter_bits).collect()
    }

    fn width(&self) -> u32 {
        let lookbacks = self.distances.len() as u32;
        self.classes * (1 + lookbacks) + self.counter_bits + lookbacks
    }

    fn reset(&mut self) {
        self.history = History::default();
    }

    fn push(&mut self, event: u32, row: &mut Features) {
        self.write(event, self.history.count(), |distance| self.history.back(distance), row);
        self.history.push(event);
    }

    fn copy(&self) -> Box<dyn EventInput> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_of_lookback_rnn_by_hand() {
        let input = LookbackInput::melody();
        assert_eq!(input.width(), 121);
        let mut row = Features::default();
        // The first step, middle C: class 14. Both lookbacks reach before it: class 0 at 38 and
        // 76. The next event is number 1 = 00001 in binary, lowest bit first, at 114.
        input.fill(&[14], 0, &mut row);
        assert_eq!(row.ones, [14, 38, 76]);
        let counter = [(114, 1.0), (115, -1.0), (116, -1.0), (117, -1.0), (118, -1.0)];
        assert_eq!(row.values, counter);

        // Event t is class t % 38, but at 35 it is what was at 19 and at 3, class 3... 40 steps.
        let mut events: Vec<u32> = (0..40).collect();
        events[35] = 3;
        events[19] = 3;
        // Place 35: the next event is number 36 = 100100. One bar ago the next was event 20, two
        // bars ago event 4. It repeats event 19 and event 3: flags at 119 and 120.
        input.fill(&events, 35, &mut row);
        assert_eq!(row.ones, [3, 38 + 20, 76 + 4, 119, 120]);
        let counter = [(114, -1.0), (115, -1.0), (116, 1.0), (117, -1.0), (118, -1.0)];
        assert_eq!(row.values, counter);
        // Place 15: the next event is the first of the second bar; a bar ago it was event 0.
        input.fill(&events, 15, &mut row);
        assert_eq!(row.ones, [15, 38, 76]);
        assert_eq!(row.values[4], (118, 1.0));
    }

    #[test]
    fn the_row_of_drum_kit_by_hand() {
        let input = LookbackInput::drum_kit();
        assert_eq!(input.width(), 518);
        let mut row = Features::default();
        // Place 2: kick and hat, token 5; the next event is number 3 = 000011.
        input.fill(&[5, 0, 5], 2, &mut row);
        assert_eq!(row.ones, [5]);
        let bits = [1.0, 1.0, -1.0, -1.0, -1.0, -1.0];
        assert_eq!(row.values, (512..).zip(bits).collect::<Vec<_>>());
        // 63 = 111111; then the counter begins again.
        input.fill(&[0; 64], 62, &mut row);
        assert!(row.values.iter().all(|&(_, bit)| bit == 1.0));
        input.fill(&[0; 64], 63, &mut row);
        assert!(row.values.iter().all(|&(_, bit)| bit == -1.0));
    }

    #[test]
    fn fields_fill_the_width_and_the_future_tells_nothing() {
        for (input, classes) in [(LookbackInput::melody(), 38), (LookbackInput::drum_kit(), 512)] {
            let fields = input.fields();
            let last = fields[fields.len() - 1];
            assert_eq!(last.first + last.width, input.width());
            let events: Vec<u32> = (0..200u32).map(|t| t * t * 7919 % classes).collect();
            let (mut all, mut past) = (Features::default(), Features::default());
            let mut walking = input.clone();
            for place in 0..events.len() {
                input.fill(&events, place, &mut all);
                input.fill(&events[..=place], place, &mut past);
                assert_eq!(all, past);
                walking.push(events[place], &mut past);
                assert_eq!(all, past);
                assert!(all.ones.is_sorted() && all.ones.iter().all(|&at| at < input.width()));
            }
        }
    }
}
