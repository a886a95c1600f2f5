//! Which tiles are compiled, and what each needs.

use super::{Rows, Rule};
use crate::attention::Mask;

/// What a kernel is compiled with.
pub(super) const RELATIVE: u8 = 1;
pub(super) const DROPOUT: u8 = 2;
pub(super) const COLUMNS: u8 = 4;

/// One kernel over tiles.
#[derive(Debug, Clone, Copy)]
pub(super) struct Variant {
    /// The kernel, behind the name of its family.
    pub name: &'static str,
    /// Numbers of a row in a tile: the largest head.
    pub width: usize,
    /// Rows of a result that a block owns, and rows of the other side in one tile.
    pub own: usize,
    pub tile: usize,
    pub warps: usize,
    /// Tiles that are there or under way; for the backward of queries 1 if they keep none of their own.
    pub stages: usize,
    pub with: u8,
}

const fn variant(
    name: &'static str,
    width: usize,
    [own, tile]: [usize; 2],
    warps: usize,
    stages: usize,
    with: u8,
) -> Variant {
    Variant { name, width, own, tile, warps, stages, with }
}

/// Numbers of a row in the tiles that a head is padded to.
fn width(head_dim: usize) -> usize {
    head_dim.next_power_of_two().max(32)
}

/// What a call asks of a kernel.
pub(super) fn wanted(rule: &Rule, is_relative: bool) -> u8 {
    let columns = matches!(rule.mask, Mask::Strided { .. });
    (if is_relative { RELATIVE } else { 0 })
        + (if rule.dropout.is_some() { DROPOUT } else { 0 })
        + (if columns { COLUMNS } else { 0 })
}

/// Whether operands lie so that tiles can be copied.
pub(super) fn are_tiled(head_dim: usize, scale: f32, rows: &[(Rows, usize)]) -> bool {
    head_dim.is_multiple_of(8)
        && (8..=128).contains(&head_dim)
        // The largest score is found before scaling.
        && scale > 0.0
        && rows.iter().all(|(rows, count)| rows.is_tiled(*count))
}

/// The first of `all` that does what is wanted within so many bytes, or the one that is named.
pub(super) fn choose(
    all: &[Variant],
    shared: fn(&Variant) -> usize,
    head_dim: usize,
    wanted: u8,
    bytes: usize,
    name: Option<&str>,
) -> Option<Variant> {
    let width = width(head_dim);
    let fits = |v: &&Variant| {
        v.width == width
            && v.with & !COLUMNS == wanted & !COLUMNS
            && v.with & wanted == wanted
            && shared(v) <= bytes
    };
    match name {
        Some(name) => all.iter().filter(fits).find(|v| v.name == name).copied(),
        None => all.iter().find(fits).copied(),
    }
}

/// Bytes of the ring of embeddings and of the skewed band of `own` queries.
fn relative_bytes(width: usize, own: usize, tile: usize) -> usize {
    (own + 2 * tile) * width * 2 + own * band(tile) * 4
}

/// Numbers of a row of a band.
fn band(tile: usize) -> usize {
    (tile + 16).next_multiple_of(16) + 8
}

/// `attention_forward_<name>`. Of two that fit the first is within a tenth of the best on an H200 for 512
/// to 8192 tokens, the other one ahead by as much where there are many (`etude bench --device cuda attention`).
pub(super) const FORWARD: &[Variant] = &[
    variant("d32", 32, [64, 64], 4, 2, 0),
    variant("d64", 64, [64, 64], 4, 2, 0),
    variant("d64_128x64", 64, [128, 64], 4, 2, 0),
    variant("d128", 128, [64, 64], 4, 2, 0),
    variant("d128_128x48", 128, [128, 48], 4, 2, 0),
    variant("strided_d32", 32, [64, 64], 4, 2, COLUMNS),
    variant("strided_d64", 64, [64, 64], 4, 2, COLUMNS),
    variant("strided_d128", 128, [64, 64], 4, 2, COLUMNS),
    variant("relative_d32", 32, [64, 64], 4, 2, RELATIVE),
    variant("relative_d64", 64, [64, 64], 4, 2, RELATIVE),
    variant("relative_d128_128x64x8", 128, [128, 64], 8, 2, RELATIVE),
    variant("dropout_d32", 32, [64, 64], 4, 2, DROPOUT | COLUMNS),
    variant("dropout_d64", 64, [64, 64], 4, 2, DROPOUT | COLUMNS),
    variant("dropout_d128", 128, [64, 64], 4, 2, DROPOUT | COLUMNS),
    variant("relative_dropout_d32", 32, [64, 64], 4, 2, RELATIVE | DROPOUT),
    variant("relative_dropout_d64", 64, [64, 64], 4, 2, RELATIVE | DROPOUT),
    variant("relative_dropout_d128", 128, [64, 64], 4, 2, RELATIVE | DROPOUT),
];

/// Shared memory of a forward kernel, as `ForwardTile` lays it out.
pub(super) fn forward_bytes(v: &Variant) -> usize {
    let stages = v.stages * 2 * v.tile * v.width * 2;
    // Queries of 16 to a warp live in registers.
    let queries = if v.own == 16 * v.warps { 0 } else { v.own * v.width * 2 };
    let relative = if v.with & RELATIVE > 0 { relative_bytes(v.width, v.own, v.tile) } else { 0 };
    stages + queries + relative
}

/// `attention_backward_keys_<name>`.
pub(super) const KEYS: &[Variant] = &[
    variant("d32", 32, [64, 64], 4, 2, COLUMNS),
    variant("d64", 64, [64, 64], 4, 2, COLUMNS),
    variant("d128", 128, [64, 64], 4, 2, COLUMNS),
    variant("relative_d32", 32, [64, 64], 4, 2, RELATIVE),
    variant("relative_d64", 64, [64, 64], 4, 2, RELATIVE),
    variant("relative_d128", 128, [64, 64], 4, 2, RELATIVE),
    variant("dropout_d32", 32, [64, 64], 4, 2, DROPOUT | COLUMNS),
    variant("dropout_d64", 64, [64, 64], 4, 2, DROPOUT | COLUMNS),
    variant("dropout_d128", 128, [64, 64], 4, 2, DROPOUT | COLUMNS),
    variant("relative_dropout_d32", 32, [64, 64], 4, 2, RELATIVE | DROPOUT),
    variant("relative_dropout_d64", 64, [64, 64], 4, 2, RELATIVE | DROPOUT),
    variant("relative_dropout_d128", 128, [64, 64], 4, 2, RELATIVE | DROPOUT),
];

/// Shared memory of a backward kernel of keys, as `KeysTile` lays it out.
pub(super) fn keys_bytes(v: &Variant) -> usize {
    let (keys, stages) = (2 * v.own * v.width * 2, 2 * 2 * v.tile * v.width * 2);
    let relative = if v.with & RELATIVE > 0 { relative_bytes(v.width, v.tile, v.own) } else { 0 };
    keys + stages + 2 * v.tile * 16 + relative
}

/// `attention_backward_queries_<name>`; those of one stage hold queries in registers and leave their
/// tiles to the second stage.
pub(super) const QUERIES: &[Variant] = &[
    variant("d32", 32, [64, 64], 4, 1, COLUMNS),
    variant("d64_64x64x4", 64, [64, 64], 4, 2, 0),
    variant("d64", 64, [64, 64], 4, 1, COLUMNS),
    variant("d128", 128, [64, 64], 4, 2, COLUMNS),
    variant("relative_d32", 32, [64, 64], 4, 2, RELATIVE),
    variant("relative_d64", 64, [64, 64], 4, 2, RELATIVE),
    variant("relative_d128", 128, [64, 64], 4, 2, RELATIVE),
    variant("dropout_d32", 32, [64, 64], 4, 2, DROPOUT | COLUMNS),
    variant("dropout_d64", 64, [64, 64], 4, 2, DROPOUT | COLUMNS),
    variant("dropout_d128", 128, [64, 64], 4, 2, DROPOUT | COLUMNS),
    variant("relative_dropout_d32", 32, [64, 64], 4, 2, RELATIVE | DROPOUT),
    variant("relative_dropout_d64", 64, [64, 64], 4, 2, RELATIVE | DROPOUT),
    variant("relative_dropout_d128", 128, [64, 64], 4, 2, RELATIVE | DROPOUT),
];

/// Shared memory of a backward kernel of queries, as `QueriesTile` lays it out.
pub(super) fn queries_bytes(v: &Variant) -> usize {
    let own = if v.stages == 1 { 0 } else { 2 * v.own * v.width * 2 };
    let mut bytes = 2 * 2 * v.tile * v.width * 2 + own;
    if v.with & RELATIVE > 0 {
        bytes += relative_bytes(v.width, v.own, v.tile) + v.own * band(v.tile) * 2;
        if v.width > 64 {
            // What registers have no room for waits here: 16 bytes each of every thread.
            bytes += (v.width / 8 + 3) * 16 * v.warps * 32;
        }
    }
    bytes
}

fn names(all: &[Variant], head_dim: usize, is_relative: bool) -> Vec<&'static str> {
    let with = if is_relative { RELATIVE } else { 0 };
    all.iter()
        .filter(|v| v.width == width(head_dim) && v.with & !COLUMNS == with)
        .map(|v| v.name)
        .collect()
}

/// The tiles that a forward pass without dropout can name, the one that is taken without a name first.
pub fn forward_variants(head_dim: usize, is_relative: bool) -> Vec<&'static str> {
    let all = names(FORWARD, head_dim, is_relative);
    all.into_iter().filter(|name| !name.starts_with("strided")).collect()
}

/// The tiles that a backward pass without dropout can name, of keys and of queries.
pub fn backward_variants(
    head_dim: usize,
    is_relative: bool,
) -> (Vec<&'static str>, Vec<&'static str>) {
    (names(KEYS, head_dim, is_relative), names(QUERIES, head_dim, is_relative))
}
