//! How large the blocks of a product are: what stays in which cache.

/// Below this many rows a `B` with contiguous columns is packed in pieces that stay in the first-level
/// cache ([`Blocks::few_rows_pack`]).
pub(super) const FEW_ROWS: usize = 48;

/// Sizes of blocks, in rows, columns and floats.
pub(super) struct Blocks {
    /// Longest sum of one block.
    pub kc: usize,
    /// Columns of `B` packed at a time.
    pub nc: usize,
    /// Rows of `A` packed at a time.
    pub mc: usize,
    /// The same where tiles pack `B`: each block of rows does so again.
    pub mc_fresh: usize,
    /// Floats of `A` up to which all of it is packed once.
    pub keep_a: usize,
    /// Columns of `B` packed at a time beside it.
    pub narrow: usize,
    /// Columns of a `B` that is packed already which are finished before the next ones begin.
    pub packed_nc: usize,
    /// From this many columns on, packing contiguous rows of `A` pays.
    pub pack_a_cols: usize,
    /// From this many rows on a `B` with contiguous rows is worth packing.
    pub pack_b_rows: usize,
    /// Floats of a piece of `B` for fewer than [`FEW_ROWS`] rows: 36 KiB for a first-level cache of 48 KiB,
    /// 24 KiB for one of 32 KiB.
    pub few_rows_pack: usize,
}

impl Blocks {
    /// For wide tiles and a second-level cache of 1 MiB or more: a strip of `B` (48 x 512 floats, 96 KiB)
    /// streams from there, `C` is seldom read again. 1.5 MiB of `B` are packed at a time, 256 KiB of `A`.
    pub(super) const WIDE: Blocks = Blocks {
        kc: 512,
        nc: 768,
        mc: 128,
        mc_fresh: 1024,
        keep_a: 1 << 17,
        narrow: 96,
        packed_nc: usize::MAX,
        pack_a_cols: usize::MAX,
        pack_b_rows: 40,
        few_rows_pack: 9216,
    };

    /// For tiles of one sliver and a second-level cache of 512 KiB: a strip of `B` (16 x 256 floats, 16 KiB)
    /// stays in the first-level cache beside a tile's rows of `A` (6 KiB) while all rows pass by. These
    /// come from the second level, at most 192 KiB packed at a time (256 KiB if all of `A` is), and
    /// 2 MiB of `B` from the third. Rows of `A` in place would be on as many pages, and a power of two
    /// apart push each other out.
    #[cfg(target_arch = "x86_64")]
    pub(super) const NEAR: Blocks = Blocks {
        kc: 256,
        nc: 2048,
        mc: 192,
        mc_fresh: 192,
        keep_a: 1 << 16,
        narrow: 192,
        packed_nc: 192,
        pack_a_cols: 256,
        pack_b_rows: 13,
        few_rows_pack: 6144,
    };
}
