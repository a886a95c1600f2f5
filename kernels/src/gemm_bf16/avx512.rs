//! Tiles of bf16 pairs: `vdpbf16ps` adds two products to each of 16 sums.
//!
//! A pair of neighbours in `k` is one 32-bit word, so packing moves words as the f32 product moves
//! floats. Sums stay in registers for all of `k`.

use crate::gemm::words;
use crate::isa::{self, Isa};
use crate::threads::parallel_for;
use half::bf16;
use std::arch::x86_64::*;
use std::cell::RefCell;

/// Columns of a sliver.
const LANE: usize = 16;
/// Rows of a tile.
const ROWS: usize = 8;
/// Rows of `A` that one task handles at most.
const TASK_ROWS: usize = 256;

/// Whether this CPU multiplies bf16 pairs.
pub(super) fn is_available() -> bool {
    Isa::Avx512.is_available() && is_x86_feature_detected!("avx512bf16")
}

/// Whether it does so on the tier in use.
pub(super) fn is_active() -> bool {
    isa::active() == Isa::Avx512 && is_available()
}

/// Slivers of the widest tile of so many rows: 24 sums or fewer.
fn widest(rows: usize) -> usize {
    if rows <= 4 { 6 } else { 3 }
}

/// A pointer that tasks share; each writes a window of its own.
#[derive(Clone, Copy)]
struct Output(*mut bf16);
// SAFETY: tasks write windows of `C` that do not overlap.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    fn get(self) -> *mut bf16 {
        self.0
    }
}

thread_local! {
    /// Where this thread packs strips of `B` and rows of `A`.
    static PACKED: RefCell<[Vec<u32>; 2]> = const { RefCell::new([const { Vec::new() }; 2]) };
}

/// Computes `C = A B` (or `A B^T`). Call only if [`is_available`].
pub(super) fn product(
    a: &[bf16],
    b: &[bf16],
    c: &mut [bf16],
    (m, k, n): (usize, usize, usize),
    trans_b: bool,
) {
    assert!(is_available() && (a.len(), b.len(), c.len()) == (m * k, k * n, m * n));
    if m == 0 || n == 0 {
        return;
    }
    let out = Output(c.as_mut_ptr());
    // Tasks of some 384 columns by 256 rows: cut by size alone.
    let cols = 8 * widest(m.min(ROWS)) * LANE;
    let (down, across) = (m.div_ceil(TASK_ROWS), n.div_ceil(cols));
    parallel_for(down * across, 1, |tasks| {
        for task in tasks {
            let (m0, n0) = (task / across * TASK_ROWS, task % across * cols);
            let (m1, n1) = ((m0 + TASK_ROWS).min(m), (n0 + cols).min(n));
            PACKED.with_borrow_mut(|[b_room, a_room]| {
                let pairs = k.div_ceil(2);
                let (strides, at) = if trans_b { ((1, k), n0 * k) } else { ((n, 1), n0) };
                words::pack_b(&b[at.min(b.len())..], strides, (k, n1 - n0), b_room);
                words::pack_a(&a[m0 * k..m1 * k], k, m1 - m0, ROWS, a_room);
                let mut row = m0;
                while row < m1 {
                    let rows = (m1 - row).min(ROWS);
                    let mut sliver = 0;
                    let slivers = (n1 - n0).div_ceil(LANE);
                    while sliver < slivers {
                        let width = (slivers - sliver).min(widest(rows));
                        let col = n0 + sliver * LANE;
                        let tile = Tile {
                            a: a_room[(row - m0) * pairs..].as_ptr(),
                            b: b_room[sliver * pairs * LANE..].as_ptr(),
                            c: out.get().wrapping_add(row * n + col),
                            c_row: n,
                            pairs,
                            last: (n1 - col).min(width * LANE) - (width - 1) * LANE,
                        };
                        // SAFETY: the assertion above; the tile lies in this task's window of C, and
                        // the packed rooms hold its rows and columns.
                        unsafe { dispatch(rows, width, &tile) };
                        sliver += width;
                    }
                    row += rows;
                }
            });
        }
    });
}

/// One tile: packed rows of `A` as `[pairs][rows]`, packed slivers of `B` as `[pairs][16]`.
struct Tile {
    a: *const u32,
    b: *const u32,
    c: *mut bf16,
    c_row: usize,
    pairs: usize,
    last: usize,
}

/// Picks the code for a tile's size.
///
/// # Safety
/// The CPU has avx512bf16; the pointers of `t` reach as far as its sizes say.
unsafe fn dispatch(rows: usize, slivers: usize, t: &Tile) {
    macro_rules! pick {
        ($($r:literal: $($v:literal)+;)+) => {
            match (rows, slivers) {
                // SAFETY: the caller vouches for the CPU and for `t`.
                $($(($r, $v) => unsafe { tile::<$r, $v>(t) },)+)+
                _ => unreachable!("no tile of {rows} rows and {slivers} slivers"),
            }
        };
    }
    pick! {
        1: 1 2 3 4 5 6;
        2: 1 2 3 4 5 6;
        3: 1 2 3 4 5 6;
        4: 1 2 3 4 5 6;
        5: 1 2 3;
        6: 1 2 3;
        7: 1 2 3;
        8: 1 2 3;
    }
}

/// Computes a tile of `R` rows and `V` slivers.
///
/// # Safety
/// As [`dispatch`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[allow(clippy::needless_range_loop)] // `r` and `v` are places in A, B and C as well as in `sum`
unsafe fn tile<const R: usize, const V: usize>(t: &Tile) {
    let mut sum = [[_mm512_setzero_ps(); V]; R];
    let (mut a, mut b) = (t.a, t.b);
    // SAFETY: `pairs` rows of the packed operands, rows `0..R` of C and the columns that the mask
    // lets through are in bounds, as the caller vouches. A `__m512bh` is any 512 bits.
    unsafe {
        for _ in 0..t.pairs {
            let mut cols = [_mm512_setzero_si512(); V];
            for v in 0..V {
                cols[v] = _mm512_loadu_si512(b.add(v * t.pairs * LANE).cast());
            }
            for r in 0..R {
                let x = _mm512_set1_epi32(*a.add(r) as i32);
                for v in 0..V {
                    let x = std::mem::transmute::<__m512i, __m512bh>(x);
                    let col = std::mem::transmute::<__m512i, __m512bh>(cols[v]);
                    sum[r][v] = _mm512_dpbf16_ps(sum[r][v], x, col);
                }
            }
            a = a.add(R);
            b = b.add(LANE);
        }
        for r in 0..R {
            for v in 0..V {
                let columns = if v + 1 == V { t.last } else { LANE };
                let mask = (0xffff_u32 >> (16 - columns)) as __mmask16;
                let rounded = _mm512_cvtneps_pbh(sum[r][v]);
                let rounded = std::mem::transmute::<__m256bh, __m256i>(rounded);
                let c = t.c.add(r * t.c_row + v * LANE);
                _mm256_mask_storeu_epi16(c.cast(), mask, rounded);
            }
        }
    }
}
