//! Fetching memory ahead of its use, a little at a time.
//!
//! A step of a sequence reads what the caller computed for it from far memory. The hardware fetches
//! ahead within a stream, but the product between two uses of a stream leaves it idle; so each tile
//! of the product fetches a few lines of what the next step will read.

use std::cell::Cell;

/// Numbers in a cache line.
const LINE: usize = 16;

/// A stretch of memory to fetch, and how far that has come.
pub(crate) struct Ahead {
    next: Cell<*const f32>,
    left: Cell<usize>,
    /// Lines a call.
    share: usize,
}

impl Ahead {
    /// Spreads `len` numbers from `start` on over `calls` calls. They need not exist.
    pub(crate) fn new(start: *const f32, len: usize, calls: usize) -> Ahead {
        let lines = len.div_ceil(LINE);
        let share = lines.div_ceil(calls.max(1));
        Ahead { next: Cell::new(start), left: Cell::new(lines), share }
    }

    /// Fetches the next few lines.
    #[inline]
    pub(crate) fn fetch(&self) {
        let lines = self.share.min(self.left.get());
        let start = self.next.get();
        for line in 0..lines {
            fetch(start.wrapping_add(line * LINE));
        }
        self.next.set(start.wrapping_add(lines * LINE));
        self.left.set(self.left.get() - lines);
    }
}

/// Asks for a line; any address will do.
#[inline(always)]
pub(crate) fn fetch(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: part of every x86-64, and a prefetch never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
