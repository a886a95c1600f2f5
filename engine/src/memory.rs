//! Buffers of numbers that return to a free list when they are dropped.
//!
//! A training loop asks for the same sizes at every step, so from its third step on it gets all of
//! them from the list. Sizes are rounded up to 1, 1.25, 1.5 or 1.75 times a power of two: at most a
//! quarter is wasted, and few classes serve all shapes. The list keeps no more bytes than were ever
//! in use at once.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use etude_kernels::gemm::{MatRef, PackedB};
use etude_kernels::gemm_bf16::PackedBf16;
use etude_kernels::pages::Pages;

/// The smallest class, in elements: one cache line.
const LINE: usize = 16;
const CLASSES: usize = 4 * usize::BITS as usize;

/// Counts of what the free list did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Buffers that came fresh from the system, since the start of the program.
    pub fresh: u64,
    /// Buffers that came from the free list.
    pub reused: u64,
    /// Bytes in use now.
    pub live_bytes: usize,
    /// The most bytes that were in use at once.
    pub peak_bytes: usize,
    /// Bytes that wait in the free list.
    pub cached_bytes: usize,
}

struct FreeList {
    classes: [Vec<Pages>; CLASSES],
    packed: Waiting,
    stats: Stats,
}

/// Packed weights that wait for a use.
pub(crate) struct Waiting {
    f32: Vec<PackedB>,
    bf16: Vec<PackedBf16>,
}

impl Waiting {
    const NONE: Waiting = Waiting { f32: Vec::new(), bf16: Vec::new() };
}

static FREE: Mutex<FreeList> = Mutex::new(FreeList {
    classes: [const { Vec::new() }; CLASSES],
    packed: Waiting::NONE,
    stats: Stats { fresh: 0, reused: 0, live_bytes: 0, peak_bytes: 0, cached_bytes: 0 },
});

fn free_list() -> MutexGuard<'static, FreeList> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells what the free list did so far.
pub fn stats() -> Stats {
    free_list().stats
}

/// Gives everything that waits in the free list back to the system.
pub fn trim() {
    let mut list = free_list();
    list.classes.iter_mut().for_each(|class| *class = Vec::new());
    list.packed = Waiting::NONE;
    list.stats.cached_bytes = 0;
}

/// The class of a length and the elements that a buffer of this class holds.
fn class(len: usize) -> (usize, usize) {
    let len = len.max(LINE);
    let log = len.ilog2() as usize;
    let (base, quarter) = (1 << log, 1 << (log - 2));
    let quarters = (len - base).div_ceil(quarter);
    (4 * log + quarters, base + quarters * quarter)
}

/// A slice of numbers on a 64-byte boundary that goes back to the free list when dropped.
pub struct Buffer {
    memory: Pages,
    len: usize,
}

impl Buffer {
    /// Takes a buffer whose contents are unspecified: the caller overwrites all of it.
    pub fn scratch(len: usize) -> Buffer {
        Buffer::take(len, false)
    }

    /// Takes a buffer of zeros.
    pub fn zeros(len: usize) -> Buffer {
        Buffer::take(len, true)
    }

    /// Takes a buffer and copies a slice into it.
    pub fn copy(values: &[f32]) -> Buffer {
        let mut buffer = Buffer::scratch(values.len());
        buffer.copy_from_slice(values);
        buffer
    }

    fn take(len: usize, zeroed: bool) -> Buffer {
        if len == 0 {
            return Buffer { memory: Pages::default(), len };
        }
        let (class, size) = class(len);
        let mut list = free_list();
        list.stats.live_bytes += 4 * size;
        list.stats.peak_bytes = list.stats.peak_bytes.max(list.stats.live_bytes);
        let memory = list.classes[class].pop();
        match &memory {
            Some(_) => {
                list.stats.cached_bytes -= 4 * size;
                list.stats.reused += 1;
            }
            None => list.stats.fresh += 1,
        }
        drop(list);
        let fresh = memory.is_none();
        let memory = memory.unwrap_or_else(|| Pages::lean(size.div_ceil(LINE)));
        let mut buffer = Buffer { memory, len };
        if zeroed && !fresh {
            buffer.fill(0.0);
        } else if cfg!(debug_assertions) && !zeroed {
            // Whoever reads what they did not write is found out at once.
            buffer.fill(f32::NAN);
        }
        buffer
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        let memory = std::mem::take(&mut self.memory);
        let (class, size) = class(self.len);
        let mut list = free_list();
        list.stats.live_bytes -= 4 * size;
        if list.stats.cached_bytes + 4 * size <= list.stats.peak_bytes {
            list.stats.cached_bytes += 4 * size;
            list.classes[class].push(memory);
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.memory.as_flattened()[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory.as_flattened_mut()[..self.len]
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Buffer {
        Buffer::copy(self)
    }
}

impl From<Vec<f32>> for Buffer {
    fn from(values: Vec<f32>) -> Buffer {
        Buffer::copy(&values)
    }
}

/// What a weight can be packed as.
pub(crate) trait Packing: Default {
    fn sizes(&self) -> (usize, usize);
    fn pack(&mut self, b: MatRef);
    /// Those that wait for a use.
    fn waiting(list: &mut Waiting) -> &mut Vec<Self>;
}

impl Packing for PackedB {
    fn sizes(&self) -> (usize, usize) {
        (self.k(), self.n())
    }
    fn pack(&mut self, b: MatRef) {
        PackedB::pack(self, b);
    }
    fn waiting(list: &mut Waiting) -> &mut Vec<PackedB> {
        &mut list.f32
    }
}

impl Packing for PackedBf16 {
    fn sizes(&self) -> (usize, usize) {
        (self.k(), self.n())
    }
    fn pack(&mut self, b: MatRef) {
        PackedBf16::pack(self, b);
    }
    fn waiting(list: &mut Waiting) -> &mut Vec<PackedBf16> {
        &mut list.bf16
    }
}

/// A packed weight whose memory serves again after it is dropped.
pub(crate) struct Pooled<P: Packing>(P);

/// A weight packed as f32.
pub(crate) type Packed = Pooled<PackedB>;

impl<P: Packing> Pooled<P> {
    /// Packs `b` `[k, n]`.
    pub fn new(b: MatRef) -> Pooled<P> {
        let mut list = free_list();
        let waiting = P::waiting(&mut list.packed);
        let same = waiting.iter().position(|p| p.sizes() == (b.rows, b.cols));
        let packed = same.map(|at| waiting.swap_remove(at));
        match packed {
            Some(_) => list.stats.reused += 1,
            None => list.stats.fresh += 1,
        }
        drop(list);
        let mut packed = packed.unwrap_or_default();
        packed.pack(b);
        Pooled(packed)
    }
}

impl<P: Packing> Deref for Pooled<P> {
    type Target = P;
    fn deref(&self) -> &P {
        &self.0
    }
}

impl<P: Packing> Drop for Pooled<P> {
    fn drop(&mut self) {
        // More packed weights than this are never alive at once: one or two a layer.
        const KEPT: usize = 32;
        let mut list = free_list();
        let waiting = P::waiting(&mut list.packed);
        if waiting.len() >= KEPT {
            waiting.remove(0);
        }
        waiting.push(std::mem::take(&mut self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_their_lengths_and_waste_at_most_a_quarter() {
        for len in (1..5000).chain([1 << 20, (1 << 20) + 1, usize::MAX >> 3]) {
            let (at, size) = class(len);
            assert!(size >= len && at < CLASSES);
            assert!(size <= LINE || size - len <= len / 4, "{len} takes {size}");
            assert_eq!(class(size), (at, size));
        }
    }

    #[test]
    fn buffers_lie_on_cache_lines() {
        for len in [1, 15, 16, 17, 1000] {
            let buffer = Buffer::zeros(len);
            assert_eq!(buffer.as_ptr() as usize % 64, 0);
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|x| *x == 0.0));
        }
    }
}
