//! Rounds operands to bf16 and copies them into the order in which tiles read them.
//!
//! A word is a pair of neighbours in `k`, the earlier one in the lower half; an odd `k` gets a zero.
//! `B` becomes slivers of 16 columns, `[k / 2][16]`, `A` slivers of 8 rows, `[k / 2][8]`: both are the
//! same thing seen from two sides, so one routine makes them. A *line* is a column of `B` or a row of
//! `A`; what a sliver has no line for is zero.

use super::{Numbers, Operand};
use half::bf16;
use std::arch::x86_64::*;
use std::ops::Range;

/// Words of a cache line.
pub(super) const LANE: usize = 16;

/// Pairs that are packed at a time of all slivers where lines are not contiguous in `k`.
const PAIRS: usize = 8;

/// A cache line of words: what packed matrices are made of, so that they are aligned.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line([u32; LANE]);

/// A packed matrix.
pub(super) type Words = Vec<Line>;

/// At least `len` words of a buffer that only grows.
pub(super) fn reserve(buffer: &mut Words, len: usize) -> *mut u32 {
    let lines = len.div_ceil(LANE);
    if buffer.len() < lines {
        buffer.resize(lines, Line([0; LANE]));
    }
    buffer.as_mut_ptr().cast()
}

/// The lines and the part of `k` of an operand that are packed.
#[derive(Clone)]
pub(super) struct Part {
    pub lines: Range<usize>,
    pub k: Range<usize>,
}

/// Packs columns `part.lines` of `b` into slivers of 16, `stride` words apart.
///
/// # Safety
/// The CPU has avx512bf16; `part` lies inside of `b`; `to` has room for the slivers.
pub(super) unsafe fn columns(b: Operand, part: Part, to: *mut u32, stride: usize) {
    let slivers = part.lines.len().div_ceil(LANE);
    let at = |s: usize| (s * LANE, to.wrapping_add(s * stride));
    // SAFETY: handed on; sliver `s` lies at `s * stride`.
    unsafe { slivers_of::<LANE>(b.t(), part, slivers, at) }
}

/// Packs rows `part.lines` of `a` into `tiles` slivers of 8, `stride` words apart; `first(i)` is the
/// first row of sliver `i`, counted from `part.lines.start`.
///
/// # Safety
/// The CPU has avx512bf16; `part` lies inside of `a`; slivers have at most 8 rows; `to` has room.
pub(super) unsafe fn rows(
    a: Operand,
    part: Part,
    tiles: usize,
    first: impl Fn(usize) -> usize,
    to: *mut u32,
    stride: usize,
) {
    // SAFETY: handed on.
    unsafe { slivers_of::<8>(a, part, tiles, |i| (first(i), to.wrapping_add(i * stride))) }
}

/// Packs rows of `x` into slivers of `W`; `at(s)` is the first row of sliver `s` and where it goes.
///
/// # Safety
/// As [`columns`].
unsafe fn slivers_of<const W: usize>(
    x: Operand,
    part: Part,
    slivers: usize,
    at: impl Fn(usize) -> (usize, *mut u32),
) {
    let pairs = part.k.len().div_ceil(2);
    let begin = part.lines.start * x.row_stride + part.k.start * x.col_stride;
    // Where lines are contiguous in `k`, a sliver at a time is one pass over them; else some pairs at
    // a time of all slivers, so that a row of memory gives whole cache lines.
    let step = if x.col_stride == 1 { pairs.max(1) } else { PAIRS };
    for from in (0..pairs).step_by(step) {
        let range = from..(from + step).min(pairs);
        for s in 0..slivers {
            let (first, to) = at(s);
            let end = if s + 1 < slivers { at(s + 1).0 } else { part.lines.len() };
            let (lines, skip) = (end - first, begin + first * x.row_stride);
            let k = part.k.len();
            let (line, step) = (x.row_stride, x.col_stride);
            // SAFETY: the CPU and the bounds are the caller's word.
            unsafe {
                match x.numbers {
                    Numbers::F32(data) => {
                        let data = data.as_ptr().wrapping_add(skip);
                        sliver::<f32, W>(&Source { data, line, step, k, lines }, range.clone(), to);
                    }
                    Numbers::Bf16(data) => {
                        let data = data.as_ptr().wrapping_add(skip);
                        sliver::<bf16, W>(
                            &Source { data, line, step, k, lines },
                            range.clone(),
                            to,
                        );
                    }
                }
            }
        }
    }
}

/// Where the lines of a sliver lie.
struct Source<T> {
    data: *const T,
    /// Elements from one line to the next.
    line: usize,
    /// Elements from one `k` to the next.
    step: usize,
    k: usize,
    lines: usize,
}

/// A number that becomes bf16. Implementations need avx512bf16, bw and vl.
trait Number: Copy {
    fn bits(self) -> u16;
    /// The first `count` of 32 neighbours, zeros after them.
    unsafe fn words(at: *const Self, count: usize) -> __m512i;
    /// Up to 16 neighbours at two places, one place in each half.
    unsafe fn both16(at: [*const Self; 2], masks: [u16; 2]) -> __m512i;
    /// Up to 8 neighbours at two places.
    unsafe fn both8(at: [*const Self; 2], masks: [u8; 2]) -> __m256i;
}

// SAFETY of all methods: lanes that a mask keeps out are not read; the caller has the instructions.
impl Number for f32 {
    #[inline(always)]
    fn bits(self) -> u16 {
        bf16::from_f32(self).to_bits()
    }
    #[inline(always)]
    unsafe fn words(at: *const f32, count: usize) -> __m512i {
        // SAFETY: as above.
        unsafe {
            let (low, high) = if count >= 32 {
                (_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16)))
            } else {
                let mask = (1u32 << count) - 1;
                (
                    _mm512_maskz_loadu_ps(mask as u16, at),
                    _mm512_maskz_loadu_ps((mask >> 16) as u16, at.wrapping_add(16)),
                )
            };
            std::mem::transmute(_mm512_cvtne2ps_pbh(high, low))
        }
    }
    #[inline(always)]
    unsafe fn both16(at: [*const f32; 2], masks: [u16; 2]) -> __m512i {
        // SAFETY: as above.
        unsafe {
            let low = _mm512_maskz_loadu_ps(masks[0], at[0]);
            let high = _mm512_maskz_loadu_ps(masks[1], at[1]);
            std::mem::transmute(_mm512_cvtne2ps_pbh(high, low))
        }
    }
    #[inline(always)]
    unsafe fn both8(at: [*const f32; 2], masks: [u8; 2]) -> __m256i {
        // SAFETY: as above.
        unsafe {
            let low = _mm256_maskz_loadu_ps(masks[0], at[0]);
            let high = _mm256_maskz_loadu_ps(masks[1], at[1]);
            std::mem::transmute(_mm256_cvtne2ps_pbh(high, low))
        }
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn bits(self) -> u16 {
        self.to_bits()
    }
    #[inline(always)]
    unsafe fn words(at: *const bf16, count: usize) -> __m512i {
        // SAFETY: as above.
        unsafe {
            if count >= 32 {
                _mm512_loadu_si512(at.cast())
            } else {
                _mm512_maskz_loadu_epi16((1u32 << count) - 1, at.cast())
            }
        }
    }
    #[inline(always)]
    unsafe fn both16(at: [*const bf16; 2], masks: [u16; 2]) -> __m512i {
        // SAFETY: as above.
        unsafe {
            let low = _mm256_maskz_loadu_epi16(masks[0], at[0].cast());
            let high = _mm256_maskz_loadu_epi16(masks[1], at[1].cast());
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }
    #[inline(always)]
    unsafe fn both8(at: [*const bf16; 2], masks: [u8; 2]) -> __m256i {
        // SAFETY: as above.
        unsafe {
            let low = _mm_maskz_loadu_epi16(masks[0], at[0].cast());
            let high = _mm_maskz_loadu_epi16(masks[1], at[1].cast());
            _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
        }
    }
}

/// Packs some pairs of a sliver of `W` lines.
///
/// # Safety
/// The CPU has avx512bf16; `s` is in bounds; `to` has room for the sliver; `W` is 8 or 16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn sliver<T: Number, const W: usize>(s: &Source<T>, pairs: Range<usize>, to: *mut u32) {
    // SAFETY: handed on.
    unsafe {
        if s.step == 1 {
            across::<T, W>(s, pairs, to);
        } else if s.line == 1 {
            along::<T, W>(s, pairs, to);
        } else {
            for pair in pairs {
                for j in 0..W {
                    let at = |l: usize| {
                        let inside = j < s.lines && l < s.k;
                        u32::from(if inside {
                            (*s.data.add(j * s.line + l * s.step)).bits()
                        } else {
                            0
                        })
                    };
                    *to.add(pair * W + j) = at(2 * pair) | at(2 * pair + 1) << 16;
                }
            }
        }
    }
}

/// Lines next to each other: two rows of memory are interleaved.
///
/// # Safety
/// As [`sliver`]; `s.line` is 1.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn along<T: Number, const W: usize>(s: &Source<T>, pairs: Range<usize>, to: *mut u32) {
    // Number j of each half becomes word j.
    let order: [u16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * W) as u16);
    // SAFETY: `order` has 32 numbers; lines `0..lines` of rows below `k` are in bounds, and the masks
    // let nothing else through; the sliver has room for `W` words of each pair.
    unsafe {
        let order = _mm512_loadu_si512(order.as_ptr().cast());
        let inside = (0xffff_u32 >> (16 - s.lines)) as u16;
        for pair in pairs {
            let at = s.data.wrapping_add(2 * pair * s.step);
            let next = if 2 * pair + 1 < s.k { inside } else { 0 };
            let places = [at, at.wrapping_add(s.step)];
            // The same lines of the pairs that are packed next: their rows are far apart. Slivers of
            // `B` come four lines at a time, which the hardware follows.
            for place in places.into_iter().filter(|_| W == 8) {
                _mm_prefetch::<_MM_HINT_T0>(place.wrapping_add(2 * PAIRS * s.step).cast());
            }
            if W == 16 {
                let x = _mm512_permutexvar_epi16(order, T::both16(places, [inside, next]));
                _mm512_storeu_si512(to.add(pair * W).cast(), x);
            } else {
                let x = T::both8(places, [inside as u8, next as u8]);
                let x = _mm256_permutexvar_epi16(_mm512_castsi512_si256(order), x);
                _mm256_storeu_si256(to.add(pair * W).cast(), x);
            }
        }
    }
}

/// Lines contiguous in `k`: blocks of 16 words of each line are transposed.
///
/// # Safety
/// As [`sliver`]; `s.step` is 1.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn across<T: Number, const W: usize>(s: &Source<T>, pairs: Range<usize>, to: *mut u32) {
    for from in pairs.clone().step_by(LANE) {
        let count = (s.k - 2 * from).min(2 * LANE);
        let words = (pairs.end - from).min(LANE);
        let line = |j: usize| {
            if j >= s.lines {
                return _mm512_setzero_si512();
            }
            let at = s.data.wrapping_add(j * s.line + 2 * from);
            // What the next sliver will read: its lines are streams that begin anew.
            for part in 0..size_of::<T>() / 2 {
                _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(W * s.line + 16 * part).cast());
            }
            // SAFETY: line `j` holds `count` more numbers from here on.
            unsafe { T::words(at, count) }
        };
        let quad = |j: usize| fourths([line(j), line(j + 1), line(j + 2), line(j + 3)]);
        let store = |word: usize, x: __m512i| {
            // A store holds one word of 16 lines, or two neighbours of 8.
            let per = LANE / W;
            if word < words {
                let mask = if word + per <= words { 0xffff } else { 0xff };
                // SAFETY: the sliver has room for `W` words of each of its pairs.
                unsafe { _mm512_mask_storeu_epi32(to.add((from + word) * W).cast(), mask, x) };
            }
        };
        if W == 16 {
            let (x, y, z, w) = (quad(0), quad(4), quad(8), quad(12));
            for i in 0..4 {
                for (lane, out) in lanes(x[i], y[i], z[i], w[i]).into_iter().enumerate() {
                    store(4 * lane + i, out);
                }
            }
        } else {
            let (x, y) = (quad(0), quad(4));
            for i in [0, 2] {
                for (lane, out) in lanes(x[i], y[i], x[i + 1], y[i + 1]).into_iter().enumerate() {
                    store(4 * lane + i, out);
                }
            }
        }
    }
}

/// Of four vectors `r`: in each 128-bit lane of result `i`, word `i` of that lane of each `r`.
#[inline]
#[target_feature(enable = "avx512f")]
fn fourths(r: [__m512i; 4]) -> [__m512i; 4] {
    let (a0, a1) = (_mm512_unpacklo_epi32(r[0], r[1]), _mm512_unpackhi_epi32(r[0], r[1]));
    let (b0, b1) = (_mm512_unpacklo_epi32(r[2], r[3]), _mm512_unpackhi_epi32(r[2], r[3]));
    [
        _mm512_unpacklo_epi64(a0, b0),
        _mm512_unpackhi_epi64(a0, b0),
        _mm512_unpacklo_epi64(a1, b1),
        _mm512_unpackhi_epi64(a1, b1),
    ]
}

/// Result `i` holds lane `i` of each argument.
#[inline]
#[target_feature(enable = "avx512f")]
fn lanes(x: __m512i, y: __m512i, z: __m512i, w: __m512i) -> [__m512i; 4] {
    let even = [_mm512_shuffle_i32x4::<0x88>(x, y), _mm512_shuffle_i32x4::<0x88>(z, w)];
    let odd = [_mm512_shuffle_i32x4::<0xdd>(x, y), _mm512_shuffle_i32x4::<0xdd>(z, w)];
    [
        _mm512_shuffle_i32x4::<0x88>(even[0], even[1]),
        _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]),
        _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]),
        _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]),
    ]
}
