//! Memory for tasks: one slice written by several in places that do not overlap, and room to work in.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice that several tasks may cut pieces from.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: `slice` is the only way in, and its caller keeps the pieces apart.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Shared { start: slice.as_mut_ptr(), len: slice.len(), owner: PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Cuts a piece out.
    ///
    /// # Safety
    /// No two pieces that overlap may be alive at the same time.
    #[inline]
    #[allow(clippy::mut_from_ref)] // the point of this type; the caller keeps pieces apart
    pub(crate) unsafe fn slice(&self, at: Range<usize>) -> &'a mut [T] {
        assert!(at.start <= at.end && at.end <= self.len);
        // SAFETY: inside of the slice, by the line above; alone in its place, by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at.start), at.len()) }
    }

    /// Looks at a piece.
    ///
    /// # Safety
    /// No piece of [`Shared::slice`] that overlaps may be alive at the same time.
    #[inline]
    pub(crate) unsafe fn view(&self, at: Range<usize>) -> &'a [T] {
        assert!(at.start <= at.end && at.end <= self.len);
        // SAFETY: inside of the slice, by the line above; not written meanwhile, by the caller.
        unsafe { std::slice::from_raw_parts(self.start.add(at.start), at.len()) }
    }
}

thread_local! {
    /// Rooms to work in, which keep their sizes: one for each that is lent at the same time.
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Lends `f` a slice of `len` numbers, whatever they are.
pub(crate) fn with_scratch(len: usize, f: impl FnOnce(&mut [f32])) {
    // Taken out, not borrowed: while a product waits for another thread, this one may begin
    // another task that wants room of its own.
    let mut room = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    if room.len() < len {
        room.resize(len, 0.0);
    }
    f(&mut room[..len]);
    SCRATCH.with_borrow_mut(|rooms| rooms.push(room));
}
