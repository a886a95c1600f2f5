//! Few rows times a matrix as it lies, with 256-bit vectors: `B` is not packed, and every line of it is
//! read once. Two rows or more of `A` are packed.
//!
//! Where columns are contiguous, such as those of a linear layer's weight, blocks of 8 columns are
//! transposed in registers and multiplied at once: shuffles run on ports that multiply-adds leave idle.
//! Where rows are contiguous, one row of `C` passes over 8 rows of `B` at a time. The order of adds is
//! that of every other tile, and so are the bits. Numbers of bf16 are widened, which is exact.

use super::MatMut;
use super::drive::Shared;
use super::pack::columns_of;
use super::tile::{Fresh, Tile};
use crate::isa::{self, Isa};
use crate::threads::{parallel_for, threads};
use half::bf16;
use std::arch::x86_64::*;
use std::ops::Index;

/// Most rows of `A`.
pub(super) const ROWS: usize = 5;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Lines by which a column is fetched ahead.
const AHEAD: usize = 4;
/// Numbers of `B` that are worth a task of their own, and most columns of a task (8 KiB of sums).
const TASK: usize = 1 << 17;
const TASK_COLS: usize = 2048;

/// A number of `B`.
pub(super) trait Weight: Copy {
    /// Rows of a block, of 8 columns each.
    type Block: Copy + Index<usize, Output = __m256>;
    /// How many there are.
    const ROWS: usize;
    /// Transposes the first numbers of 8 columns.
    ///
    /// # Safety
    /// The CPU has avx2, and `ROWS` numbers can be read of each column.
    unsafe fn block(columns: [*const Self; 8]) -> Self::Block;
    /// Loads 8 neighbours.
    ///
    /// # Safety
    /// The CPU has avx2, and they can be read.
    unsafe fn load(at: *const Self) -> __m256;
    /// The same number.
    fn wide(self) -> f32;
}

impl Weight for f32 {
    type Block = [__m256; 4];
    const ROWS: usize = 4;
    #[inline(always)]
    unsafe fn block(columns: [*const f32; 8]) -> Self::Block {
        // SAFETY: the caller vouches for the CPU and for the numbers.
        unsafe { columns_of(columns) }
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> __m256 {
        // SAFETY: the caller vouches for the CPU and for the numbers.
        unsafe { _mm256_loadu_ps(at) }
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
}

impl Weight for bf16 {
    type Block = [__m256; 8];
    const ROWS: usize = 8;
    #[inline(always)]
    unsafe fn block(columns: [*const bf16; 8]) -> Self::Block {
        // SAFETY: the caller vouches for the CPU and for the numbers.
        unsafe {
            // Two rows in a word, the first in its low half.
            let pairs = columns_of([
                columns[0].cast(),
                columns[1].cast(),
                columns[2].cast(),
                columns[3].cast(),
                columns[4].cast(),
                columns[5].cast(),
                columns[6].cast(),
                columns[7].cast(),
            ]);
            let mut rows = [_mm256_setzero_ps(); 8];
            for (i, pair) in pairs.into_iter().enumerate() {
                let pair = _mm256_castps_si256(pair);
                let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
                rows[2 * i] = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pair));
                rows[2 * i + 1] = _mm256_castsi256_ps(_mm256_and_si256(pair, high));
            }
            rows
        }
    }
    #[inline(always)]
    unsafe fn load(at: *const bf16) -> __m256 {
        // SAFETY: the caller vouches for the CPU and for the numbers.
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
        }
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        self.to_f32()
    }
}

/// A matrix of bf16 that is read.
#[derive(Clone, Copy)]
pub(crate) struct Narrow<'a> {
    /// The elements; element `(r, c)` is `data[r * row + c * col]`.
    pub data: &'a [bf16],
    /// Elements from one row to the next.
    pub row: usize,
    /// Elements from one column to the next.
    pub col: usize,
}

/// Whether [`bf16_product`] takes so many rows and a matrix of these strides.
pub(crate) fn fits(rows: usize, row: usize, col: usize) -> bool {
    let along = rows == 1 && col == 1;
    matches!(isa::active(), Isa::Avx2 | Isa::Avx512) && rows <= ROWS && (along || row == 1)
}

/// Computes `C = A B`, or `C = C + A B` if `accumulate`, where [`fits`] says so.
///
/// # Shapes
/// `a` `[k, m]`: the columns of A one after the other; `b` `[k, n]`; `c` `[m, n]`.
///
/// # Panics
/// If the sizes disagree.
pub(crate) fn bf16_product(a: &[f32], b: Narrow, c: &mut MatMut, accumulate: bool) {
    let (m, n) = (c.rows, c.cols);
    if m == 0 || n == 0 {
        return;
    }
    let k = a.len() / m;
    assert!(a.len() == k * m && fits(m, b.row, b.col));
    assert!(k == 0 || (k - 1) * b.row + (n - 1) * b.col < b.data.len());
    let (c_data, c_row) = (Shared(c.data.as_mut_ptr()), c.row_stride);
    // A sum does not depend on the task that it lies in.
    let cols = if threads() == 1 { n } else { (TASK / k.max(1)).max(n / (4 * threads())) };
    parallel_for(n, cols.next_multiple_of(64).min(TASK_COLS), |range| {
        let tile = Tile {
            a: a.as_ptr(),
            a_row: 1,
            a_col: m,
            b: std::ptr::null(),
            b_row: 0,
            b_sliver: 0,
            c: c_data.get().wrapping_add(range.start),
            c_row,
            ahead: 0,
            k,
            last: 0,
            from_c: accumulate,
            bias: std::ptr::null(),
            padded: false,
        };
        let data = b.data.as_ptr().wrapping_add(range.start * b.col);
        let columns = Fresh { data, row: b.row, col: b.col, cols: range.len() };
        // SAFETY: the bounds of A and B were asserted, `MatMut` checked those of C; tasks write
        // columns of their own; a tier that `fits` names has the instructions.
        unsafe { product(m, &tile, &columns) };
    });
}

/// Computes a tile of one row, which is contiguous, or of so many rows, which are packed, and
/// `f.cols` columns of `B`. Only one row is multiplied with contiguous rows of `B`.
///
/// # Safety
/// The CPU has avx2 and fma; the pointers of `t` and `f` reach as far as their sizes say.
pub(super) unsafe fn product<T: Weight>(rows: usize, t: &Tile, f: &Fresh<T>) {
    // SAFETY: handed on.
    unsafe {
        match rows {
            1 if f.col == 1 => along(t, f),
            1 => columns::<T, 1, 4>(t, f),
            2 => columns::<T, 2, 2>(t, f),
            3 => columns::<T, 3, 2>(t, f),
            4 => columns::<T, 4, 1>(t, f),
            5 => columns::<T, 5, 1>(t, f),
            _ => unreachable!("no tile of {rows} rows"),
        }
    }
}

/// Computes `R` rows, `8 * G` columns at a time.
///
/// # Safety
/// As [`product`].
#[target_feature(enable = "avx2,fma")]
unsafe fn columns<T: Weight, const R: usize, const G: usize>(t: &Tile, f: &Fresh<T>) {
    // A line of f32 is four blocks, few enough for the chains of the next groups to begin meanwhile.
    // One of bf16 is twice as long: it is left after each block, unless the lines of 16 columns belong
    // into one set of the first-level cache, which holds 8.
    let whole_lines = size_of::<T>() == 4 || (f.col * size_of::<T>()).is_multiple_of(2048);
    let mut at = 0;
    while f.cols - at >= 8 * G {
        // SAFETY: columns `at..at + 8 * G` are in bounds, as the caller vouches.
        unsafe {
            if whole_lines {
                strip::<T, R, G, 4, true>(t, f, at);
            } else {
                strip::<T, R, G, 1, true>(t, f, at);
            }
        }
        at += 8 * G;
    }
    while at < f.cols {
        // SAFETY: columns from `at` on, 8 at most, are in bounds.
        unsafe {
            if f.cols - at >= 8 {
                strip::<T, R, 1, 4, true>(t, f, at);
            } else {
                strip::<T, R, 1, 4, false>(t, f, at);
            }
        }
        at += 8;
    }
}

/// Computes columns `at..at + 8 * G`, or those that are left if they are not `WHOLE`; `V` blocks of a
/// group of 8 columns follow each other.
///
/// # Safety
/// As [`product`].
#[inline]
#[target_feature(enable = "avx2,fma")]
#[allow(clippy::needless_range_loop)] // `r` and `g` are places in A, B and C as well
unsafe fn strip<T: Weight, const R: usize, const G: usize, const V: usize, const WHOLE: bool>(
    t: &Tile,
    f: &Fresh<T>,
    at: usize,
) {
    let line = LINE / size_of::<T>();
    let left = f.cols - at;
    // Columns beyond the last repeat it; nobody stores their sums.
    let place = |j: usize| if WHOLE { j } else { j.min(left - 1) } * f.col;
    // SAFETY: rows `0..k` of those columns, and what A and C hold for them, are in bounds.
    unsafe {
        let mut sum = [[_mm256_setzero_ps(); R]; G];
        if t.from_c {
            for r in 0..R {
                for g in 0..G {
                    let c = t.c.wrapping_add(r * t.c_row + at + 8 * g);
                    sum[g][r] = if WHOLE { _mm256_loadu_ps(c) } else { load_part(c, left) };
                }
            }
        }
        let mut start = f.data.wrapping_add(at * f.col);
        let mut a = t.a;
        for l in (0..t.k / line * line).step_by(line) {
            // Beyond the last row the next columns begin.
            let past = if l + AHEAD * line < t.k { 0 } else { (8 * G * f.col).wrapping_sub(t.k) };
            let ahead = start.wrapping_add(past).wrapping_add(AHEAD * line);
            // Not into the first-level cache: columns a power of two apart would push each other out.
            for j in 0..8 * G {
                _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(place(j)).cast());
            }
            for _ in 0..line / T::ROWS / V {
                let mut block = start;
                for g in 0..G {
                    for v in 0..V {
                        let x = T::block(eight(block.wrapping_add(v * T::ROWS), &place));
                        for i in 0..T::ROWS {
                            for r in 0..R {
                                let a = _mm256_set1_ps(*a.add((v * T::ROWS + i) * R + r));
                                sum[g][r] = _mm256_fmadd_ps(a, x[i], sum[g][r]);
                            }
                        }
                    }
                    block = block.wrapping_add(8 * f.col);
                }
                start = start.wrapping_add(V * T::ROWS);
                a = a.wrapping_add(V * T::ROWS * R);
            }
        }
        for _ in t.k / line * line..t.k {
            for g in 0..G {
                let mut x = [0.0; 8];
                for j in 0..8 {
                    x[j] = (*start.wrapping_add(place(8 * g + j))).wide();
                }
                let x = _mm256_loadu_ps(x.as_ptr());
                for r in 0..R {
                    sum[g][r] = _mm256_fmadd_ps(_mm256_set1_ps(*a.add(r)), x, sum[g][r]);
                }
            }
            start = start.wrapping_add(1);
            a = a.wrapping_add(R);
        }
        for r in 0..R {
            for g in 0..G {
                let mut y = sum[g][r];
                let at = at + 8 * g;
                if !t.bias.is_null() {
                    let bias = t.bias.wrapping_add(at);
                    let bias = if WHOLE { _mm256_loadu_ps(bias) } else { load_part(bias, left) };
                    y = _mm256_add_ps(y, bias);
                }
                let c = t.c.wrapping_add(r * t.c_row + at);
                if WHOLE {
                    _mm256_storeu_ps(c, y);
                } else {
                    let mut all = [0.0; 8];
                    _mm256_storeu_ps(all.as_mut_ptr(), y);
                    c.copy_from_nonoverlapping(all.as_ptr(), left);
                }
            }
        }
    }
}

/// Where 8 columns are, of which the first is at `p`.
#[inline(always)]
fn eight<T>(p: *const T, place: &impl Fn(usize) -> usize) -> [*const T; 8] {
    let at = |j| p.wrapping_add(place(j));
    [at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)]
}

/// Loads fewer than 8 numbers.
///
/// # Safety
/// They can be read.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load_part(at: *const f32, count: usize) -> __m256 {
    let mut x = [0.0; 8];
    // SAFETY: the caller vouches for `count < 8` numbers.
    unsafe {
        at.copy_to_nonoverlapping(x.as_mut_ptr(), count);
        _mm256_loadu_ps(x.as_ptr())
    }
}

/// Computes one row where rows of `B` are contiguous: some of them at a time, as they lie in memory.
///
/// # Safety
/// As [`product`].
#[target_feature(enable = "avx2,fma")]
unsafe fn along<T: Weight>(t: &Tile, f: &Fresh<T>) {
    // SAFETY: `cols` numbers of each of the `k` rows, of `C` and of the bias are in bounds.
    unsafe {
        let c = std::slice::from_raw_parts_mut(t.c, f.cols);
        if !t.from_c {
            c.fill(0.0);
        }
        let mut l = 0;
        while l < t.k {
            let (a, b) = (t.a.add(l), f.data.wrapping_add(l * f.row));
            l += match t.k - l {
                8.. => some_rows::<T, 8>(a, b, f.row, c),
                4.. => some_rows::<T, 4>(a, b, f.row, c),
                2.. => some_rows::<T, 2>(a, b, f.row, c),
                _ => some_rows::<T, 1>(a, b, f.row, c),
            };
        }
        if !t.bias.is_null() {
            let bias = std::slice::from_raw_parts(t.bias, f.cols);
            c.iter_mut().zip(bias).for_each(|(c, bias)| *c += bias);
        }
    }
}

/// Adds `N` numbers times `N` rows of `B` to `C` and returns `N`.
///
/// # Safety
/// As [`product`].
#[inline]
#[target_feature(enable = "avx2,fma")]
#[allow(clippy::needless_range_loop)] // `i` is a place in A as well as in B
unsafe fn some_rows<T: Weight, const N: usize>(
    a: *const f32,
    b: *const T,
    row: usize,
    c: &mut [f32],
) -> usize {
    // SAFETY: `N` numbers of A and as many rows of B, as long as C, are in bounds.
    unsafe {
        let mut x = [_mm256_setzero_ps(); N];
        for i in 0..N {
            x[i] = _mm256_set1_ps(*a.add(i));
        }
        let (lines, tail) = c.as_chunks_mut::<16>();
        let mut at = b;
        for c in lines {
            let mut low = _mm256_loadu_ps(c.as_ptr());
            let mut high = _mm256_loadu_ps(c.as_ptr().add(8));
            for i in 0..N {
                let b = at.wrapping_add(i * row);
                low = _mm256_fmadd_ps(x[i], T::load(b), low);
                high = _mm256_fmadd_ps(x[i], T::load(b.wrapping_add(8)), high);
            }
            _mm256_storeu_ps(c.as_mut_ptr(), low);
            _mm256_storeu_ps(c.as_mut_ptr().add(8), high);
            at = at.wrapping_add(16);
        }
        for c in tail {
            for i in 0..N {
                *c = (*a.add(i)).mul_add((*at.wrapping_add(i * row)).wide(), *c);
            }
            at = at.wrapping_add(1);
        }
    }
    N
}
