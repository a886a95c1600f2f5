//! Memory for large weights: aligned, zeroed, and on huge pages where the system has them.
//!
//! A weight that is read once for each token is limited by the rate at which memory is read. On 4 KiB
//! pages a core looks up an address every 64 cache lines, and the hardware's prefetcher stops at the
//! end of each page.

use crate::cpu::lanes::{Block, LANES};
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;
/// From this many bytes on huge pages are asked for; the last one may stay half empty.
const LARGE: usize = HUGE / 2;

/// Asks for huge pages for memory that was not touched yet: those of them that lie inside of it whole.
///
/// A page is made when it is first written to. Of 4 KiB that takes about a microsecond each, most of the
/// time of whoever fills a large array once (bench `startup`).
pub fn prefer_huge(memory: &mut [f32]) {
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(memory);
    let before = bytes.as_ptr().align_offset(HUGE).min(bytes.len());
    let whole = (bytes.len() - before) / HUGE * HUGE;
    if whole > 0 {
        advise_huge(bytes[before..].as_mut_ptr(), whole);
    }
}

/// Blocks of sixteen f32, each on a cache line of its own; zero at first.
pub(crate) struct Pages {
    start: NonNull<Block>,
    blocks: usize,
}

// SAFETY: `Pages` owns its memory, as a `Vec` does.
unsafe impl Send for Pages {}
// SAFETY: as above; a shared `Pages` can only be read.
unsafe impl Sync for Pages {}

impl Pages {
    /// Makes room for `blocks` blocks of zeros.
    pub(crate) fn new(blocks: usize) -> Pages {
        if blocks == 0 {
            return Pages { start: NonNull::dangling(), blocks };
        }
        let layout = layout(blocks);
        let start = if layout.align() == HUGE {
            // SAFETY: the layout is not empty.
            let start = unsafe { alloc(layout) };
            if !start.is_null() {
                advise_huge(start, layout.size());
                // SAFETY: `layout.size()` bytes were just allocated here. They are written after the
                // advice: a page is chosen when it is first touched.
                unsafe { start.write_bytes(0, layout.size()) };
            }
            start
        } else {
            // SAFETY: the layout is not empty.
            unsafe { alloc_zeroed(layout) }
        };
        let Some(start) = NonNull::new(start.cast()) else { handle_alloc_error(layout) };
        Pages { start, blocks }
    }
}

/// Size and alignment of `blocks > 0` blocks.
fn layout(blocks: usize) -> Layout {
    let bytes =
        blocks.checked_mul(size_of::<Block>()).filter(|bytes| *bytes <= isize::MAX as usize);
    let bytes = bytes.unwrap_or_else(|| panic!("{blocks} blocks do not fit into memory"));
    let (bytes, align) =
        if bytes < LARGE { (bytes, 4 * LANES) } else { (bytes.next_multiple_of(HUGE), HUGE) };
    Layout::from_size_align(bytes, align)
        .unwrap_or_else(|_| panic!("{blocks} blocks do not fit into memory"))
}

/// Asks for huge pages; where there are none, ordinary ones do.
fn advise_huge(start: *mut u8, bytes: usize) {
    #[cfg(target_os = "linux")]
    {
        use std::ffi::{c_int, c_void};
        unsafe extern "C" {
            fn madvise(start: *mut c_void, bytes: usize, advice: c_int) -> c_int;
        }
        const MADV_HUGEPAGE: c_int = 14;
        // SAFETY: the range is the caller's and a whole number of pages; this advice changes how it is
        // backed, never what is in it. A refusal is of no consequence.
        unsafe { madvise(start.cast(), bytes, MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, bytes);
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.blocks > 0 {
            // SAFETY: allocated in `new` with the same layout.
            unsafe { dealloc(self.start.as_ptr().cast(), layout(self.blocks)) };
        }
    }
}

impl Deref for Pages {
    type Target = [Block];
    fn deref(&self) -> &[Block] {
        // SAFETY: `blocks` blocks were allocated and zeroed (or `blocks` is 0).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.blocks) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [Block] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.blocks) }
    }
}

impl Clone for Pages {
    fn clone(&self) -> Pages {
        let mut copy = Pages::new(self.blocks);
        copy.copy_from_slice(self);
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_changes_no_number() {
        for len in [0, 1, HUGE / 4, HUGE / 4 * 3 + 5] {
            let mut memory = vec![3.0; len];
            prefer_huge(&mut memory);
            assert!(memory.iter().all(|x| *x == 3.0));
        }
    }

    #[test]
    fn pages_are_aligned_zeroed_and_copied() {
        for blocks in [0, 1, 100, LARGE / 64 - 1, LARGE / 64, HUGE / 64 + 1, 5 * HUGE / 64] {
            let mut pages = Pages::new(blocks);
            assert_eq!(pages.len(), blocks);
            assert!(pages.iter().all(|block| *block == [0.0; LANES]));
            let align = if blocks * 64 < LARGE { 64 } else { HUGE };
            assert!(blocks == 0 || (pages.as_ptr() as usize).is_multiple_of(align));
            if let Some(last) = pages.last_mut() {
                last[LANES - 1] = 7.0;
                assert_eq!(pages.clone().last().map(|last| last[LANES - 1]), Some(7.0));
            }
        }
    }
}
