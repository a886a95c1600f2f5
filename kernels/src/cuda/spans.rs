//! Which addresses are allocated, so that a wrong one is an error and not a fault of the device.

use super::Error;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The living allocations of a device.
#[derive(Default)]
pub(super) struct Spans(Mutex<BTreeMap<u64, usize>>);

impl Spans {
    fn living(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, address: u64, bytes: usize) {
        self.living().insert(address, bytes);
    }

    /// Forgets an allocation and tells its size.
    pub(super) fn remove(&self, address: u64) -> usize {
        let Some(bytes) = self.living().remove(&address) else {
            panic!("free: nothing is allocated at {address:#x}");
        };
        bytes
    }

    /// Checks that each span lies within one allocation.
    pub(super) fn check(&self, op: &str, spans: &[(u64, usize)]) -> Result<(), Error> {
        let living = self.living();
        for &(address, bytes) in spans.iter().filter(|span| span.1 > 0) {
            let within = living.range(..=address).next_back().is_some_and(|(start, room)| {
                let offset = (address - start) as usize;
                offset <= *room && bytes <= room - offset
            });
            if !within {
                return Err(Error::OutOfBounds { op: op.to_string(), address, bytes });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_to_lie_within_one_allocation() {
        let spans = Spans::default();
        spans.add(1000, 100);
        spans.add(1100, 50);
        for good in [(1000, 100), (1099, 1), (1100, 50), (1020, 0), (7, 0)] {
            assert_eq!(spans.check("test", &[good]), Ok(()));
        }
        for bad in [(999, 1), (1000, 101), (1050, 51), (1150, 1), (0, 8), (1000, usize::MAX)] {
            assert!(spans.check("test", &[(1000, 1), bad]).is_err(), "{bad:?}");
        }
        assert_eq!(spans.remove(1000), 100);
        assert!(spans.check("test", &[(1000, 1)]).is_err());
    }
}
