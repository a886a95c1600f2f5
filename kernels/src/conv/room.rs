//! Memory for one call or one task of a convolution. It stays with its thread and keeps its size.

use crate::cpu::lanes::{Block, LANES};
use std::cell::RefCell;

/// A cache line of numbers.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line(Block);

/// Numbers and offsets to work with, whatever they hold.
#[derive(Default)]
pub(super) struct Room {
    lines: Vec<Line>,
    offsets: Vec<isize>,
}

impl Room {
    /// Lends `N` aligned slices of so many numbers, and as many offsets as asked for.
    pub(super) fn parts<const N: usize>(
        &mut self,
        numbers: [usize; N],
        offsets: usize,
    ) -> ([&mut [f32]; N], &mut [isize]) {
        let lines: usize = numbers.iter().map(|n| n.div_ceil(LANES)).sum();
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0.0; LANES]));
        }
        if self.offsets.len() < offsets {
            self.offsets.resize(offsets, 0);
        }
        let len = self.lines.len() * LANES;
        // SAFETY: a `Line` is 16 floats and nothing else.
        let all = unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), len) };
        let mut rest: &mut [f32] = all;
        let parts = numbers.map(|n| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(n.next_multiple_of(LANES));
            rest = tail;
            &mut part[..n]
        });
        (parts, &mut self.offsets[..offsets])
    }
}

thread_local! {
    /// Rooms of this thread that nobody uses.
    static ROOMS: RefCell<Vec<Room>> = const { RefCell::new(Vec::new()) };
}

/// Lends `f` a room. Calls may nest: each has a room of its own, the same one every time.
pub(super) fn with_room<R>(f: impl FnOnce(&mut Room) -> R) -> R {
    let mut room = ROOMS.with_borrow_mut(|rooms| rooms.pop()).unwrap_or_default();
    let result = f(&mut room);
    ROOMS.with_borrow_mut(|rooms| rooms.push(room));
    result
}

/// An array that tasks write into, each in places of its own.
#[derive(Clone, Copy)]
pub(super) struct Target {
    start: *mut f32,
    len: usize,
}

// SAFETY: the pointer is only given out, and who writes through it keeps to places of its own.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    pub(super) fn new(slice: &mut [f32]) -> Target {
        Target { start: slice.as_mut_ptr(), len: slice.len() }
    }

    /// The place of element `at`, which must be followed by `count` elements at least.
    pub(super) fn at(self, at: usize, count: usize) -> *mut f32 {
        assert!(at + count <= self.len);
        self.start.wrapping_add(at)
    }
}
