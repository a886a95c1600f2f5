//! What a register tile is, and which code computes it on which tier.
//!
//! A tile is a small window of `C` whose sums stay in registers while `k` runs. Every element has one
//! accumulator, and products are added in ascending `k`; a sum that is interrupted continues from
//! what it left in `C`, which is exact. So an element's bits depend on its row of `A`, its column of
//! `B` and what it starts from, never on where its tile lies, how `B` is stored or who computes it.

use super::LANE;
use super::blocks::Blocks;
use crate::isa::{self, Isa};

/// One tile: where its operands lie and how its sums begin and end.
pub(super) struct Tile {
    /// Element `(0, 0)` of the rows of `A`.
    pub a: *const f32,
    /// Elements from one row of `A` to the next.
    pub a_row: usize,
    /// Elements from one column of `A` to the next.
    pub a_col: usize,
    /// Element `(0, 0)` of the columns of `B`.
    pub b: *const f32,
    /// Elements from one row of `B` to the next.
    pub b_row: usize,
    /// Elements from one sliver of 16 columns of `B` to the next.
    pub b_sliver: usize,
    /// Element `(0, 0)` of the window of `C`.
    pub c: *mut f32,
    /// Elements from one row of `C` to the next.
    pub c_row: usize,
    /// From `b` to the slivers that the next strip will read: fetched early, row by row.
    pub ahead: isize,
    /// Products in each sum.
    pub k: usize,
    /// Columns in the last sliver, `1..=16`.
    pub last: usize,
    /// Whether the sums start from `C` instead of zero.
    pub from_c: bool,
    /// What is added to each column at the end; null for nothing.
    pub bias: *const f32,
    /// Whether all 16 columns of the last sliver of `B` can be read.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // only 512-bit tiles ask
    pub padded: bool,
}

/// Columns of `B` as the caller stores them: a tile multiplies them in place, and packs them in the
/// same go if others follow it.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // only its tiles read them
pub(super) struct Fresh<T = f32> {
    /// Element `(0, 0)` of the columns.
    pub data: *const T,
    /// Elements from one row to the next; 1 if columns are contiguous.
    pub row: usize,
    /// Elements from one column to the next; 1 if rows are contiguous.
    pub col: usize,
    /// Number of columns.
    pub cols: usize,
}

/// Code that reads a `B` which is not packed yet.
pub(super) struct Direct {
    /// Most rows of a tile.
    pub rows: usize,
    /// Whether it packs `B` at [`Tile::b`] if that is not null, for the tiles below. If not, it computes
    /// products of so many rows alone.
    pub packs: bool,
    /// Computes a tile of so many packed rows and contiguous columns of `B`.
    pub tile: unsafe fn(usize, &Tile, &Fresh),
}

/// The code of one tier.
pub(super) struct Kernels {
    /// Most rows of a tile.
    pub rows: usize,
    /// Slivers of the widest tile that has `i + 1` rows.
    pub slivers: &'static [usize],
    /// Computes a tile of so many rows and slivers.
    pub tile: unsafe fn(usize, usize, &Tile),
    /// Computes a tile of packed rows of `A` and contiguous rows of `B`, which it packs at `Tile::b`.
    pub copied: Option<unsafe fn(usize, usize, &Tile, &Fresh)>,
    /// For the first tile of a strip, or for few rows alone.
    pub direct: Option<Direct>,
    /// Packs columns of `B` into slivers: see [`super::pack`].
    pub pack: unsafe fn(&super::pack::Source, *mut f32, usize),
    /// Packs rows of `A` into tiles.
    pub pack_a: unsafe fn(&super::pack::Source, usize, *mut f32),
    /// Computes some rows times contiguous columns of `B` without packing these.
    #[cfg(target_arch = "x86_64")]
    pub turned: Option<super::turned::Turned>,
    /// How large blocks are.
    pub blocks: Blocks,
}

/// The code of the active tier.
#[inline]
pub(super) fn kernels() -> &'static Kernels {
    match isa::active() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => &super::avx512::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => &super::avx2::KERNELS,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => &super::neon::KERNELS,
        _ => &super::scalar::KERNELS,
    }
}

/// Cuts `len` into the fewest pieces of at most `most`, as even as can be: the start of piece `i`.
#[inline]
pub(super) fn even(len: usize, pieces: usize, i: usize) -> usize {
    len / pieces * i + (len % pieces).min(i)
}

/// Slivers that hold `columns` columns.
#[inline]
pub(super) fn slivers(columns: usize) -> usize {
    columns.div_ceil(LANE)
}
