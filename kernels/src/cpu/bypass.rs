//! Results that go past the cache.
//!
//! A store to memory that is not in cache reads the line first; a streaming store does not, which
//! saves a third of the traffic of a copy. It pays only for what the cache cannot hold anyway: who
//! reads the result next finds it in memory. So results above the size of the last-level cache are
//! streamed, each line as soon as it is computed: the next ones are computed while it is written.

use super::shared::Shared;
use crate::threads::parallel_for;
use std::ops::Range;
use std::sync::OnceLock;

/// Numbers in a cache line.
const LINE: usize = 16;
/// The size taken for the last-level cache where the machine does not say, and at most: a larger one
/// is shared with cores that work on something else.
const USUAL: usize = 32 << 20;

/// Tells whether a result of `len` numbers exceeds the last-level cache.
pub(crate) fn exceeds_cache(len: usize) -> bool {
    static BYTES: OnceLock<usize> = OnceLock::new();
    cfg!(target_arch = "x86_64") && 4 * len > *BYTES.get_or_init(last_level)
}

/// Bytes of the last-level cache.
fn last_level() -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        // Leaf 4 is Intel's list of caches, 0x8000001d AMD's, in the same form.
        let leaves = [(0, 4), (0x8000_0000, 0x8000_001d)];
        for (first, leaf) in leaves {
            if __cpuid(first).eax < leaf {
                continue;
            }
            let caches = (0..8).map(|n| __cpuid_count(leaf, n)).take_while(|c| c.eax & 31 != 0);
            let bytes = caches.map(|c| {
                let part =
                    |shift: u32, bits: u32| (c.ebx >> shift & ((1 << bits) - 1)) as usize + 1;
                part(22, 10) * part(12, 10) * part(0, 12) * (c.ecx as usize + 1)
            });
            if let Some(bytes) = bytes.max() {
                return bytes.min(USUAL);
            }
        }
    }
    USUAL
}

/// Copies `x` to `y` with streaming stores for all whole lines of `y`.
pub(crate) fn stream_out(x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_loadu_ps, _mm_stream_ps};
        let head = y.as_ptr().align_offset(4 * LINE).min(y.len());
        y[..head].copy_from_slice(&x[..head]);
        let (lines, tail) = y[head..].as_chunks_mut::<LINE>();
        let (from, x_tail) = x[head..].as_chunks::<LINE>();
        for (x, y) in from.iter().zip(lines) {
            for quarter in 0..4 {
                // SAFETY: inside of a block of 16 on both sides; `y` lies on a line, by `head`; the
                // instructions are part of every x86-64.
                unsafe {
                    let four = _mm_loadu_ps(x.as_ptr().add(4 * quarter));
                    _mm_stream_ps(y.as_mut_ptr().add(4 * quarter), four);
                }
            }
        }
        tail.copy_from_slice(x_tail);
    }
    #[cfg(not(target_arch = "x86_64"))]
    y.copy_from_slice(x);
}

/// Makes streamed results visible to other threads, as ordinary stores are.
pub(crate) fn settle() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: part of every x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// The numbers of `y` before its first whole cache line.
#[inline(always)]
pub(crate) fn before_line(y: &[f32]) -> usize {
    y.as_ptr().align_offset(4 * LINE).min(y.len())
}

/// Has `f` write rows of `y`, `grain` at a time and in parallel, and tells it whether past the cache.
pub(crate) fn write_rows(
    y: &mut [f32],
    cols: usize,
    grain: usize,
    f: impl Fn(Range<usize>, &mut [f32], bool) + Sync,
) {
    if cols == 0 {
        return;
    }
    assert!(y.len().is_multiple_of(cols));
    let past = exceeds_cache(y.len());
    let (rows, y) = (y.len() / cols, Shared::new(y));
    parallel_for(rows, grain, |rows| {
        // SAFETY: pieces do not overlap.
        let y = unsafe { y.slice(rows.start * cols..rows.end * cols) };
        f(rows, y, past);
        if past {
            settle();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streaming_copies_every_number_and_no_other() {
        let x: Vec<f32> = (0..300).map(|i| i as f32).collect();
        for from in 0..33 {
            for len in (0..70).chain([200, 255]) {
                let mut y = vec![-1.0; 300];
                stream_out(&x[7..7 + len], &mut y[from..from + len]);
                settle();
                for (i, y) in y.iter().enumerate() {
                    let inside = (from..from + len).contains(&i);
                    assert_eq!(*y, if inside { (7 + i - from) as f32 } else { -1.0 });
                }
            }
        }
    }

    #[test]
    fn the_last_level_cache_has_a_size() {
        let bytes = last_level();
        assert!((1 << 18..=USUAL).contains(&bytes), "{bytes}");
        assert!(!exceeds_cache(bytes / 4));
    }
}
