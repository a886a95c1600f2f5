//! Reading and copying memory, at sizes that lie in one level of the caches.

use super::{best, together};
use crate::cpu::lanes::{Block, LANES};
use crate::isa::{self, Isa};
use crate::pages::Pages;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Bytes of a block: a cache line.
const LINE: usize = 4 * LANES;
/// From here on a copy is tried past the caches too.
const PAST: usize = 1 << 20;
/// Lines that are fetched ahead, as [`crate::stream`] does.
const AHEAD: usize = 128;

/// How fast memory of one size is read and copied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bandwidth {
    /// Bytes that each thread reads (a copy also writes as many).
    pub bytes: usize,
    /// Bytes read per second, in 1e9.
    pub read_gbps: f64,
    /// Bytes read plus bytes written per second of a copy, in 1e9.
    pub copy_gbps: f64,
}

/// A level of the memory: a cache, or the memory itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// L1, L2, L3 or memory.
    pub name: &'static str,
    /// Bytes that the level holds; `usize::MAX` for the memory.
    pub holds: usize,
    /// What was measured in it.
    pub bandwidth: Bandwidth,
}

/// Measures reading and copying on `threads` threads, each with `bytes` of its own: the sum.
///
/// # Panics
/// If the system cannot start a thread.
pub fn bandwidth(bytes: usize, threads: usize) -> Bandwidth {
    let blocks = (bytes / LINE).max(8);
    let bytes = blocks * LINE;
    let isa = isa::active();
    // Small sizes are repeated, so that reading the clock does not count.
    let loops = (1 << 20) / bytes + 1;
    let rate = |traffic: usize, f: &(dyn Fn(&[Block], &mut [Block]) + Sync)| {
        together(threads, |start| {
            let (mut from, mut to) = (Pages::new(blocks), Pages::new(blocks));
            // A page that was never written is no memory yet.
            from.fill([1.0; LANES]);
            to.fill([1.0; LANES]);
            start.wait();
            let seconds = best(Duration::from_millis(6), 4, || {
                for _ in 0..loops {
                    f(black_box(&from), black_box(&mut to));
                }
            });
            seconds.map_or(0.0, |seconds| (traffic * loops) as f64 / seconds / 1e9)
        })
    };
    let mut read_gbps = rate(bytes, &|from, _| {
        black_box(read(isa, from, 0));
    });
    let mut copy_gbps = rate(2 * bytes, &|from, to| to.copy_from_slice(from));
    if bytes >= PAST {
        read_gbps = read_gbps.max(rate(bytes, &|from, _| {
            black_box(read(isa, from, AHEAD));
        }));
        copy_gbps = copy_gbps.max(rate(2 * bytes, &|from, to| copy_past(isa, from, to)));
    }
    Bandwidth { bytes, read_gbps, copy_gbps }
}

/// Bytes of the first-, second- and third-level data caches that a core of this machine sees; where the
/// system does not say, those of a usual one. A level that is missing is 0.
pub fn caches() -> [usize; 3] {
    let mut found = [0; 3];
    for index in 0..8 {
        let folder = format!("/sys/devices/system/cpu/cpu0/cache/index{index}");
        let read = |name: &str| std::fs::read_to_string(Path::new(&folder).join(name)).ok();
        let (Some(level), Some(kind), Some(size)) = (read("level"), read("type"), read("size"))
        else {
            continue;
        };
        let size = size.trim();
        let unit = if size.ends_with('M') { 1 << 20 } else { 1 << 10 };
        let number = size.trim_end_matches(['K', 'M']).parse::<usize>();
        if let (Ok(level @ 1..=3), Ok(number)) = (level.trim().parse::<usize>(), number)
            && kind.trim() != "Instruction"
        {
            found[level - 1] = number * unit;
        }
    }
    if found[0] == 0 { [32 << 10, 1 << 20, 16 << 20] } else { found }
}

/// Measures each level of the caches and the memory on `threads` threads at once.
///
/// # Panics
/// If the system cannot start a thread.
pub fn levels(threads: usize) -> Vec<Level> {
    let [l1, l2, l3] = caches();
    let threads = threads.max(1);
    // A copy has two arrays, and something else is always there: less than half of what fits. The third
    // level is shared by the threads, and reaches further than the second.
    let third = (l3 / 8 / threads).max(2 * l2);
    let memory = ((4 * l3).clamp(64 << 20, 256 << 20) / threads).max(8 << 20);
    [("L1", l1, l1 / 8 * 3), ("L2", l2, l2 / 4), ("L3", l3, third), ("memory", usize::MAX, memory)]
        .into_iter()
        .filter(|(_, holds, _)| *holds > 0)
        .map(|(name, holds, bytes)| Level { name, holds, bandwidth: bandwidth(bytes, threads) })
        .collect()
}

/// Adds up the words of all blocks with the widest loads of the tier, fetching `ahead` blocks before.
fn read(isa: Isa, blocks: &[Block], ahead: usize) -> u32 {
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ahead;
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the active tier is available.
        Isa::Avx512 => unsafe { read_avx512(blocks, ahead) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { read_avx2(blocks, ahead) },
        _ => read_plain(blocks),
    }
}

/// The same with plain loops, which the compiler makes vectors of.
fn read_plain(blocks: &[Block]) -> u32 {
    let mut sums = [0u32; 4 * LANES];
    for four in blocks.chunks(4) {
        for (sum, x) in sums.iter_mut().zip(four.as_flattened()) {
            *sum = sum.wrapping_add(x.to_bits());
        }
    }
    sums.iter().fold(0, |all, &sum| all.wrapping_add(sum))
}

/// A function that adds up the words of all blocks in eight sums, `$loads` vectors a block.
macro_rules! read {
    ($name:ident, $features:literal, $loads:literal, $zero:ident, $load:ident, $add:ident, $words:literal) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        fn $name(blocks: &[Block], ahead: usize) -> u32 {
            let mut sums = [$zero(); 8];
            // Pieces of one length, so that the loop over them is unrolled.
            let (pieces, rest) = blocks.as_chunks::<{ 8 / $loads }>();
            for piece in pieces {
                for (sums, block) in sums.chunks_exact_mut($loads).zip(piece) {
                    let at = block.as_ptr();
                    if ahead > 0 {
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(ahead * LANES).cast());
                    }
                    for (i, sum) in sums.iter_mut().enumerate() {
                        // SAFETY: a block is `$loads` vectors.
                        *sum = $add(*sum, unsafe { $load(at.add(i * LANES / $loads).cast()) });
                    }
                }
            }
            let sum = sums.into_iter().fold($zero(), |all, sum| $add(all, sum));
            // SAFETY: both are bits without a meaning of their own, and as many.
            let words: [u32; $words] = unsafe { std::mem::transmute(sum) };
            words.iter().fold(read_plain(rest), |all, &word| all.wrapping_add(word))
        }
    };
}
read!(read_avx512, "avx512f", 1, _mm512_setzero_si512, _mm512_loadu_si512, _mm512_add_epi32, 16);
read!(read_avx2, "avx2", 2, _mm256_setzero_si256, _mm256_loadu_si256, _mm256_add_epi32, 8);

/// Copies past the caches, where the tier has stores that do: a line that is written whole need not
/// be read first.
fn copy_past(isa: Isa, from: &[Block], to: &mut [Block]) {
    assert_eq!(from.len(), to.len());
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: both tiers have AVX2, and the lengths are the same.
        Isa::Avx2 | Isa::Avx512 if (to.as_ptr() as usize).is_multiple_of(32) => unsafe {
            copy_past_avx2(from, to);
        },
        _ => to.copy_from_slice(from),
    }
}

/// # Safety
/// `to` is as long as `from` and begins at a multiple of 32 bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn copy_past_avx2(from: &[Block], to: &mut [Block]) {
    for (x, y) in from.iter().zip(to) {
        let (x, y) = (x.as_ptr(), y.as_mut_ptr());
        _mm_prefetch::<_MM_HINT_T0>(x.wrapping_add(AHEAD * LANES).cast());
        // SAFETY: blocks are 64 bytes; those of `to` are aligned to 32 of them.
        unsafe {
            let (low, high) =
                (_mm256_loadu_si256(x.cast()), _mm256_loadu_si256(x.add(LANES / 2).cast()));
            _mm256_stream_si256(y.cast(), low);
            _mm256_stream_si256(y.add(LANES / 2).cast(), high);
        }
    }
    _mm_sfence();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_adds_up_every_word_and_a_copy_is_the_same() {
        for blocks in [1, 3, 4, 7, 8, 9, 40, 1000] {
            let mut from = Pages::new(blocks);
            for (i, block) in from.iter_mut().enumerate() {
                *block = std::array::from_fn(|lane| f32::from_bits((i * LANES + lane) as u32));
            }
            let words = blocks * LANES;
            for isa in Isa::available() {
                for ahead in [0, AHEAD] {
                    assert_eq!(read(isa, &from, ahead), (words * (words - 1) / 2) as u32);
                }
                let mut to = Pages::new(blocks);
                copy_past(isa, &from, &mut to);
                let same = |(x, y): (&f32, &f32)| x.to_bits() == y.to_bits();
                assert!(from.as_flattened().iter().zip(to.as_flattened()).all(same));
            }
        }
    }

    #[test]
    fn every_level_has_positive_figures_and_holds_more_than_the_one_before() {
        let [l1, l2, _] = caches();
        assert!(l1 >= 1 << 12 && (l2 == 0 || l2 >= l1));
        let small = bandwidth(4096, 2);
        assert!(small.read_gbps > 0.0 && small.copy_gbps > 0.0 && small.bytes == 4096);
        let levels = levels(1);
        assert!(levels.windows(2).all(|two| two[0].holds < two[1].holds));
        assert!(levels.iter().all(|l| l.bandwidth.read_gbps > 0.0 && l.bandwidth.copy_gbps > 0.0));
        assert_eq!(levels.last().map(|level| level.name), Some("memory"));
    }
}
