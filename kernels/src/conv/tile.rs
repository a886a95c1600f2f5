//! Register tiles whose left operand is looked up: `c[r][n] = sum over l of a[rows[r] + steps[l]] * b[l][n]`.
//!
//! In a convolution `a` is an image: rows are output places and steps are taps, or the other way
//! round for the gradient of the filter. One offset is loaded for each step, and everything else is
//! as in a plain product, so no image is ever unrolled. Sums run in ascending `l` from one
//! accumulator each, and continue from what they left in `c`.

use crate::cpu::ahead::Ahead;
use crate::cpu::lanes::{Block, LANES, Lanes};
use crate::isa::{self, Isa};

/// One tile: where its operands lie.
pub(super) struct Tile {
    /// What the offsets count from.
    pub a: *const f32,
    /// Offset of each row.
    pub rows: *const isize,
    /// Offset of each step.
    pub steps: *const isize,
    /// Number of steps.
    pub k: usize,
    /// The first sliver: 16 numbers for each step.
    pub b: *const f32,
    /// From one sliver to the next.
    pub b_sliver: usize,
    /// Element `(0, 0)` of the sums.
    pub c: *mut f32,
    /// From one row of sums to the next.
    pub c_row: usize,
    /// Whether the sums start from `c` instead of zero.
    pub from_c: bool,
}

/// The code of one tier.
pub(super) struct Kernels {
    /// Slivers of the widest tile that has `i + 1` rows.
    pub slivers: &'static [usize],
    /// Computes a tile of so many rows and slivers.
    pub tile: unsafe fn(usize, usize, &Tile),
}

/// The code of the active tier.
pub(super) fn kernels() -> &'static Kernels {
    match isa::active() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => &x86::AVX512,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => &x86::AVX2,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => &neon::NEON,
        _ => &SCALAR,
    }
}

impl Kernels {
    /// Number of tiles for so many rows and slivers.
    pub(super) fn tiles(&self, height: usize, slivers: usize) -> usize {
        height.div_ceil(self.slivers.len()) * slivers.div_ceil(self.widest())
    }

    /// Slivers of the highest tile.
    fn widest(&self) -> usize {
        self.slivers[self.slivers.len() - 1]
    }

    /// Computes `height` rows of sums over all slivers, in tiles; fetches some of `ahead` with each.
    ///
    /// # Safety
    /// The operands reach as far as `height`, `slivers` and `t.k` say; this CPU runs the code.
    pub(super) unsafe fn product(&self, t: &Tile, height: usize, slivers: usize, ahead: &Ahead) {
        let tiles = height.div_ceil(self.slivers.len());
        let strips = slivers.div_ceil(self.widest());
        for strip in 0..strips {
            let first = even(slivers, strips, strip);
            let width = even(slivers, strips, strip + 1) - first;
            for i in 0..tiles {
                let (top, end) = (even(height, tiles, i), even(height, tiles, i + 1));
                let tile = Tile {
                    rows: t.rows.wrapping_add(top),
                    b: t.b.wrapping_add(first * t.b_sliver),
                    c: t.c.wrapping_add(top * t.c_row + first * LANES),
                    ..*t
                };
                ahead.fetch();
                // SAFETY: the tile lies inside of what the caller vouches for.
                unsafe { (self.tile)(end - top, width, &tile) };
            }
        }
    }
}

/// Cuts `len` into even pieces: the start of piece `i`.
pub(super) fn even(len: usize, pieces: usize, i: usize) -> usize {
    len / pieces * i + (len % pieces).min(i)
}

/// Computes a tile of `R` rows and `V` slivers.
///
/// # Safety
/// The operands of `t` reach as far as its sizes say.
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
#[inline(always)]
#[allow(clippy::needless_range_loop)] // `v` is a place in B and C as well as in `sum`
unsafe fn body<L: Lanes, const R: usize, const V: usize>(t: &Tile) {
    let mut sum = [[L::zero(); V]; R];
    let mut rows = [t.a; R];
    // SAFETY: rows `0..R`, steps `0..k` and slivers `0..V` are in bounds, as the caller vouches.
    unsafe {
        for (r, row) in rows.iter_mut().enumerate() {
            *row = t.a.offset(*t.rows.add(r));
        }
        if t.from_c {
            for (r, row) in sum.iter_mut().enumerate() {
                for v in 0..V {
                    row[v] = L::load(&*t.c.add(r * t.c_row + v * LANES).cast::<Block>());
                }
            }
        }
        let mut b = t.b;
        for l in 0..t.k {
            let at = *t.steps.add(l);
            let mut cols = [L::zero(); V];
            for v in 0..V {
                cols[v] = L::load(&*b.add(v * t.b_sliver).cast::<Block>());
            }
            for (sums, row) in sum.iter_mut().zip(rows) {
                let x = L::splat(*row.offset(at));
                for v in 0..V {
                    sums[v] = x.mul_add(cols[v], sums[v]);
                }
            }
            b = b.add(LANES);
        }
        for (r, row) in sum.iter().enumerate() {
            for v in 0..V {
                row[v].store(&mut *t.c.add(r * t.c_row + v * LANES).cast::<Block>());
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Kernels, Tile, body};
    use crate::cpu::lanes_avx2::Avx2;
    use crate::cpu::lanes_avx512::Avx512;

    /// 8 x 3 vectors of sums, 3 of `b` and 1 of `a` fill 28 of 32 registers; 8 rows of addresses, the
    /// offset, `b`, its stride and the end fill 13 of 16.
    pub(super) static AVX512: Kernels = Kernels { slivers: &[3; 8], tile: pick512 };
    /// 6 x 2 vectors of sums, 2 of `b` and 1 of `a` fill 15 of 16 registers.
    pub(super) static AVX2: Kernels = Kernels { slivers: &[1; 6], tile: pick2 };

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    unsafe fn tile512<const R: usize, const V: usize>(t: &Tile) {
        // SAFETY: handed on.
        unsafe { body::<Avx512, R, V>(t) }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn tile2<const R: usize, const V: usize>(t: &Tile) {
        // SAFETY: handed on.
        unsafe { body::<Avx2, R, V>(t) }
    }

    by_size! {
        pick512, tile512,
        1: 1 2 3;
        2: 1 2 3;
        3: 1 2 3;
        4: 1 2 3;
        5: 1 2 3;
        6: 1 2 3;
        7: 1 2 3;
        8: 1 2 3;
    }
    by_size! {
        pick2, tile2,
        1: 1;
        2: 1;
        3: 1;
        4: 1;
        5: 1;
        6: 1;
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::{Kernels, Tile, body};
    use crate::cpu::lanes_neon::Neon;

    /// 6 x 4 vectors of sums, 4 of `b` and 1 of `a` fill 29 of 32 registers.
    pub(super) static NEON: Kernels = Kernels { slivers: &[1; 6], tile: pick };

    unsafe fn tile<const R: usize, const V: usize>(t: &Tile) {
        // SAFETY: handed on.
        unsafe { body::<Neon, R, V>(t) }
    }

    by_size! {
        pick, tile,
        1: 1;
        2: 1;
        3: 1;
        4: 1;
        5: 1;
        6: 1;
    }
}

static SCALAR: Kernels = Kernels { slivers: &[1; 4], tile: scalar };

/// Any number of rows, one sliver.
///
/// # Safety
/// As [`body`].
unsafe fn scalar(rows: usize, _slivers: usize, t: &Tile) {
    for r in 0..rows {
        let mut sum = [0.0f32; LANES];
        // SAFETY: as the caller vouches.
        unsafe {
            let c = t.c.add(r * t.c_row).cast::<Block>();
            let row = t.a.offset(*t.rows.add(r));
            if t.from_c {
                sum = *c;
            }
            for l in 0..t.k {
                let x = *row.offset(*t.steps.add(l));
                let b = &*t.b.add(l * LANES).cast::<Block>();
                for (sum, b) in sum.iter_mut().zip(b) {
                    // Not `mul_add`: without a fused instruction it is a call of hundreds of cycles.
                    *sum += x * b;
                }
            }
            *c = sum;
        }
    }
}
