//! Infilling: whole pieces have no marks; a hole has bars as many as it lacks, and then ends.

use super::{EventsGrammar, Grammar};
use crate::events::vocabulary::Event;
use crate::infill::Hole;
use std::sync::Arc;

/// Marks of [`crate::Infill`]; the last of them is its end.
const MARKS: u32 = 4;

/// The grammar of [`crate::Infill`], and of an accompaniment ([`crate::Pair`]).
pub struct InfillGrammar {
    base: Box<dyn Grammar>,
    /// Tokens that the encoding beneath does not have; the last of them ends a hole.
    marks: u32,
    hole: Option<Place>,
}

/// A place in a hole.
#[derive(Clone)]
struct Place {
    is_events: bool,
    /// The piece before the hole.
    before: Arc<Vec<u32>>,
    /// Steps that a token takes, or bars that it begins.
    takes: Arc<Vec<u64>>,
    given: Arc<Vec<Option<u32>>>,
    most: usize,
    /// Steps or bars of the hole.
    size: u64,
    /// Steps or bars that are left.
    left: u64,
    /// Tokens so far.
    count: usize,
    is_done: bool,
}

impl InfillGrammar {
    /// Begins a whole piece.
    pub(crate) fn of_whole(base: Box<dyn Grammar>) -> InfillGrammar {
        InfillGrammar { base, marks: MARKS, hole: None }
    }

    /// Begins a hole of so many steps or bars after what stands before it.
    pub(crate) fn into_hole(
        base: Box<dyn Grammar>,
        is_events: bool,
        before: Vec<u32>,
        takes: Vec<u64>,
        size: u64,
        hole: Hole,
    ) -> InfillGrammar {
        let place = Place {
            is_events,
            before: Arc::new(before),
            takes: Arc::new(takes),
            given: Arc::new(hole.given),
            most: hole.most,
            size,
            left: size,
            count: 0,
            is_done: false,
        };
        let mut grammar = InfillGrammar { base, marks: MARKS, hole: Some(place) };
        grammar.reset();
        grammar
    }

    /// Begins what goes with a melody of so many bars; `opening` are the signatures with which it begins.
    /// The token after those of `events` ends it.
    pub fn beside(opening: Vec<u32>, bars: u64) -> InfillGrammar {
        let takes = |token: u32| match Event::of(token) {
            Some(Event::Bar) => 1,
            Some(Event::Skip { power }) => 1 << power,
            _ => 0,
        };
        let base: Box<dyn Grammar> = Box::new(EventsGrammar::default());
        let takes = (0..base.vocab_size() as u32).map(takes).collect();
        let hole = Hole { bars, given: Vec::new(), most: usize::MAX };
        let hole = InfillGrammar::into_hole(base, true, opening, takes, bars, hole);
        InfillGrammar { marks: 1, ..hole }
    }

    fn end_of_hole(&self) -> u32 {
        self.base.vocab_size() as u32 + self.marks - 1
    }

    /// Whether the hole may end here.
    fn may_end(&self, place: &Place) -> bool {
        // A bar of events may be the next one where what stands before is complete.
        place.left == 0 && (!place.is_events || self.base.allows(Event::Bar.token()))
    }

    fn fits(&self, place: &Place, token: u32) -> bool {
        let takes = place.takes[token as usize];
        if !place.is_events {
            return place.left >= takes.max(1);
        }
        let is_signature = matches!(
            Event::of(token),
            Some(Event::Meter { .. } | Event::Key { .. } | Event::Tempo(_))
        );
        // Signatures are those of the piece; the hole begins with a bar of its own.
        !is_signature && takes <= place.left && (takes > 0 || place.left < place.size)
    }
}

impl Grammar for InfillGrammar {
    fn vocab_size(&self) -> usize {
        self.base.vocab_size() + self.marks as usize
    }

    fn reset(&mut self) {
        self.base.reset();
        if let Some(place) = &mut self.hole {
            place.before.iter().for_each(|token| self.base.push(*token));
            (place.left, place.count, place.is_done) = (place.size, 0, false);
        }
    }

    fn allows(&self, token: u32) -> bool {
        let of_base = (token as usize) < self.base.vocab_size();
        let Some(place) = &self.hole else { return of_base && self.base.allows(token) };
        if place.is_done || place.count >= place.most {
            return false;
        }
        match place.given.get(place.count).copied().flatten() {
            Some(given) => token == given,
            None if of_base => self.base.allows(token) && self.fits(place, token),
            None => token == self.end_of_hole() && self.may_end(place),
        }
    }

    fn push(&mut self, token: u32) {
        let of_base = (token as usize) < self.base.vocab_size();
        if of_base {
            self.base.push(token);
        }
        let end = self.end_of_hole();
        let Some(place) = &mut self.hole else { return };
        place.count += 1;
        place.is_done |= token == end;
        if of_base {
            place.left = place.left.saturating_sub(place.takes[token as usize]);
        }
    }

    fn is_complete(&self) -> bool {
        match &self.hole {
            None => self.base.is_complete(),
            Some(place) => place.is_done,
        }
    }

    fn copy(&self) -> Box<dyn Grammar> {
        Box::new(InfillGrammar {
            base: self.base.copy(),
            marks: self.marks,
            hole: self.hole.clone(),
        })
    }

    fn rest(&self) -> Option<u32> {
        self.base.rest()
    }

    /// A hole ends with a mark that is drawn; a whole piece as the encoding beneath says.
    fn end(&self) -> Option<u32> {
        if self.hole.is_none() { self.base.end() } else { None }
    }
}
