//! Memory for large arrays: aligned, zero at first, and on huge pages where the system has them.
//!
//! A weight that is read once for each token is limited by the rate at which memory is read. On 4 KiB
//! pages a core looks up an address every 64 cache lines, and the hardware's prefetcher stops at the
//! end of each page.

use crate::cpu::lanes::{Block, LANES};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// How full the last huge page must be to be asked for, in bytes; what does not fill it lies on ordinary
/// pages.
#[derive(Clone, Copy)]
enum Last {
    /// A weight is read again and again.
    Half = HUGE as isize / 2,
    /// An array of which there may be many.
    Most = HUGE as isize / 4 * 3,
}

/// Blocks of sixteen f32, each on a cache line of its own; zero at first.
///
/// A page is made when it is first written to. Of 4 KiB that takes about a microsecond each, most of the
/// time of whoever fills a large array once (bench `startup`); of 2 MiB it takes a tenth of that.
pub struct Pages {
    start: NonNull<Block>,
    blocks: usize,
    /// What was mapped for it, and how many bytes; 0 if it lies in the heap.
    mapped: (*mut u8, usize),
}

// SAFETY: `Pages` owns its memory, as a `Vec` does.
unsafe impl Send for Pages {}
// SAFETY: as above; a shared `Pages` can only be read.
unsafe impl Sync for Pages {}

impl Pages {
    /// Makes room for `blocks` blocks of zeros that will be read often, such as a weight.
    pub fn new(blocks: usize) -> Pages {
        Pages::with_last(blocks, Last::Half)
    }

    /// Makes room for `blocks` blocks of zeros; wastes less memory than [`Pages::new`].
    pub fn lean(blocks: usize) -> Pages {
        Pages::with_last(blocks, Last::Most)
    }

    fn with_last(blocks: usize, last: Last) -> Pages {
        if blocks == 0 {
            return Pages { start: NonNull::dangling(), blocks, mapped: (std::ptr::null_mut(), 0) };
        }
        let layout = layout(blocks);
        let huge = (layout.size() + HUGE - last as usize) / HUGE * HUGE;
        let (start, mapped) = if huge > 0
            && let Some((base, len)) = map(layout.size().max(huge) + HUGE)
        {
            let start = base.wrapping_add(base.align_offset(HUGE));
            advise_huge(start, huge);
            (start, (base, len))
        } else {
            // SAFETY: the layout is not empty.
            (unsafe { alloc_zeroed(layout) }, (std::ptr::null_mut(), 0))
        };
        let Some(start) = NonNull::new(start.cast()) else { handle_alloc_error(layout) };
        Pages { start, blocks, mapped }
    }
}

/// Size and alignment of `blocks > 0` blocks.
fn layout(blocks: usize) -> Layout {
    let bytes = blocks.checked_mul(size_of::<Block>());
    bytes
        .filter(|bytes| *bytes < isize::MAX as usize - 2 * HUGE)
        .and_then(|bytes| Layout::from_size_align(bytes, 4 * LANES).ok())
        .unwrap_or_else(|| panic!("{blocks} blocks do not fit into memory"))
}

#[cfg(target_os = "linux")]
mod system {
    use std::ffi::{c_int, c_long, c_void};
    unsafe extern "C" {
        pub fn madvise(start: *mut c_void, bytes: usize, advice: c_int) -> c_int;
        pub fn mmap(
            at: *mut c_void,
            bytes: usize,
            protection: c_int,
            flags: c_int,
            file: c_int,
            offset: c_long,
        ) -> *mut c_void;
        pub fn munmap(start: *mut c_void, bytes: usize) -> c_int;
    }
    pub const MADV_HUGEPAGE: c_int = 14;
    pub const PROT_READ_WRITE: c_int = 1 | 2;
    pub const MAP_PRIVATE_ANONYMOUS: c_int = 2 | 0x20;
}

/// Maps `bytes` of zeros, if the system has such memory and room for it.
fn map(bytes: usize) -> Option<(*mut u8, usize)> {
    #[cfg(target_os = "linux")]
    {
        use system::*;
        // SAFETY: a new mapping of anonymous memory touches nothing that is there.
        let start = unsafe {
            mmap(std::ptr::null_mut(), bytes, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0)
        };
        // MAP_FAILED is -1.
        (start.addr() != usize::MAX).then_some((start.cast(), bytes))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = bytes;
        None
    }
}

/// Asks for huge pages; where there are none, ordinary ones do.
fn advise_huge(start: *mut u8, bytes: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: the range is the caller's and a whole number of pages; this advice changes how it is
    // backed, never what is in it. A refusal is of no consequence.
    unsafe {
        system::madvise(start.cast(), bytes, system::MADV_HUGEPAGE)
    };
    #[cfg(not(target_os = "linux"))]
    let _ = (start, bytes);
}

impl Default for Pages {
    fn default() -> Pages {
        Pages::new(0)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.mapped.1 > 0 {
            #[cfg(target_os = "linux")]
            // SAFETY: mapped in `with_last`, and nobody else's. That it fails would only cost memory.
            unsafe {
                system::munmap(self.mapped.0.cast(), self.mapped.1)
            };
        } else if self.blocks > 0 {
            // SAFETY: allocated in `with_last` with the same layout.
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
    fn pages_are_aligned_zeroed_and_copied() {
        for blocks in [0, 1, 100, HUGE / 128 - 1, HUGE / 128, HUGE / 64 + 1, 5 * HUGE / 64] {
            for (make, last) in [(Pages::new as fn(_) -> _, HUGE / 2), (Pages::lean, HUGE / 4 * 3)]
            {
                let mut pages = make(blocks);
                assert_eq!(pages.len(), blocks);
                assert!(pages.iter().all(|block| *block == [0.0; LANES]));
                let large = cfg!(target_os = "linux") && blocks * 64 >= last;
                let align = if large { HUGE } else { 64 };
                assert!(blocks == 0 || (pages.as_ptr() as usize).is_multiple_of(align));
                if let Some(last) = pages.last_mut() {
                    last[LANES - 1] = 7.0;
                    assert_eq!(pages.clone().last().map(|last| last[LANES - 1]), Some(7.0));
                }
            }
        }
    }
}
