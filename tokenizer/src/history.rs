//! The last events of a melody, as far back as its lookbacks reach.

use crate::LOOKBACKS;

/// Events up to now, of which the last two bars are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct History {
    count: usize,
    /// By their number modulo the longest lookback.
    last: [u32; LOOKBACKS[1]],
}

impl History {
    /// How many events there were.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The event so many steps before the next, up to 32; `None` before the first.
    pub(crate) fn back(&self, distance: usize) -> Option<u32> {
        debug_assert!(distance <= self.last.len());
        self.count.checked_sub(distance).map(|at| self.last[at % self.last.len()])
    }

    /// Takes the next event.
    pub(crate) fn push(&mut self, event: u32) {
        let slot = self.count % self.last.len();
        self.last[slot] = event;
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_two_bars_are_known() {
        let mut history = History::default();
        assert_eq!(history.back(1), None);
        for event in 0..100 {
            history.push(event);
            for distance in 1..=32usize {
                let expected = (event as usize + 1).checked_sub(distance).map(|at| at as u32);
                assert_eq!(history.back(distance), expected);
            }
        }
        assert_eq!(history.count(), 100);
    }
}
