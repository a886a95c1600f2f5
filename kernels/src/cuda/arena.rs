//! Freed blocks of device memory, kept by size: a training step allocates the same sizes again and again,
//! and the driver takes microseconds for each, or waits for the whole device.

use std::collections::BTreeMap;

/// Blocks that nobody uses.
#[derive(Default)]
pub(super) struct Arena(BTreeMap<usize, Vec<u64>>);

/// The size of the block that serves `bytes`: rounded up to an eighth of the power of two below, and to
/// 512, so that blocks fit again and at most an eighth is lost.
pub(super) fn room(bytes: usize) -> usize {
    let step = (bytes.next_power_of_two() / 16).max(512);
    bytes.next_multiple_of(step)
}

impl Arena {
    /// A block of exactly this room.
    pub(super) fn take(&mut self, room: usize) -> Option<u64> {
        self.0.get_mut(&room)?.pop()
    }

    /// Keeps a block.
    pub(super) fn give(&mut self, room: usize, address: u64) {
        self.0.entry(room).or_default().push(address);
    }

    /// Everything that is kept, to be given back to the driver.
    pub(super) fn drain(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.0).into_values().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_serves_its_own_size_again() {
        let mut arena = Arena::default();
        arena.give(room(1000), 0x1000);
        assert_eq!(arena.take(room(5000)), None);
        assert_eq!(arena.take(room(1024)), Some(0x1000));
        assert_eq!(arena.take(room(1024)), None);
        arena.give(512, 7);
        arena.give(1024, 8);
        assert_eq!(arena.drain(), [7, 8]);
        assert_eq!(arena.drain(), []);
    }

    #[test]
    fn at_most_an_eighth_is_lost() {
        for bytes in (1..100_000).chain([1 << 30, (1 << 30) + 1]) {
            let room = room(bytes);
            assert!(room >= bytes && room - bytes <= (bytes / 8).max(511), "{bytes} in {room}");
        }
    }
}
