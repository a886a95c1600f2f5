//! The tiles that a product can be cut into, and which to take.

use super::{Batch, Element, Factors, Matrix, Scratch};
use crate::cuda::Gpu;

/// One way to cut a product; the kernel for it is `name` and the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// The kernel's name without the layout.
    pub name: &'static str,
    /// Type of the factors.
    pub element: Element,
    /// How f32 factors are multiplied.
    pub factors: Factors,
    /// Rows of `C` in a block.
    pub m: usize,
    /// Columns of `C` in a block.
    pub n: usize,
    /// Terms of the sum between two barriers.
    pub k: usize,
    /// Pieces of `k` in shared memory.
    pub stages: usize,
    /// Threads of a block.
    pub threads: u32,
    /// Whether rows of the factors may start at any address.
    pub loose: bool,
    /// Whether there is a kernel for two transposed factors.
    pub both_transposed: bool,
}

const fn bf16(name: &'static str, [m, n, k]: [usize; 3], stages: usize, threads: u32) -> Tile {
    Tile {
        name,
        element: Element::Bf16,
        factors: Factors::Exact,
        m,
        n,
        k,
        stages,
        threads,
        loose: false,
        both_transposed: false,
    }
}

const fn float(name: &'static str, factors: Factors, [m, n, k]: [usize; 3], stages: usize) -> Tile {
    Tile { element: Element::F32, factors, ..bf16(name, [m, n, k], stages, 128) }
}

/// For rows at any address.
const fn loose(tile: Tile) -> Tile {
    Tile { loose: true, both_transposed: true, ..tile }
}

/// Every tile that has kernels.
pub const TILES: &[Tile] = &[
    bf16("gemm_bf16_128x128x32", [128, 128, 32], 4, 128),
    bf16("gemm_bf16_128x256x64", [128, 256, 64], 3, 256),
    Tile { both_transposed: true, ..bf16("gemm_bf16_64x64x32", [64, 64, 32], 4, 128) },
    loose(bf16("gemm_bf16_loose", [64, 64, 32], 4, 128)),
    float("gemm_tf32_128x128x16", Factors::Tf32, [128, 128, 16], 4),
    loose(float("gemm_tf32_loose", Factors::Tf32, [64, 64, 16], 4)),
    float("gemm_f32x3_128x64x16", Factors::Split, [128, 64, 16], 4),
    loose(float("gemm_f32_128x64x8", Factors::Exact, [128, 64, 8], 3)),
];

impl Tile {
    /// The tile of this name.
    ///
    /// # Panics
    /// If there is none.
    pub fn named(name: &str) -> &'static Tile {
        TILES.iter().find(|tile| tile.name == name).unwrap_or_else(|| panic!("no tile {name}"))
    }

    /// Bytes of shared memory of a block: the stages, and later the sums in their place.
    pub(super) fn shared(&self) -> u32 {
        // Without tensor cores, rows in shared memory are longer by 16 bytes.
        let padding = if self.name == "gemm_f32_128x64x8" { 8 } else { 0 };
        let stage = (self.m + self.n + padding) * self.k * self.element.bytes();
        (self.stages * stage).max(self.m * self.n * 4) as u32
    }

    /// The kernel for these operands, distances from row to row as they are stored, and the bytes that
    /// their addresses are multiples of; `None` if this tile cannot take them.
    pub(super) fn kernel(
        &self,
        a: &Matrix,
        b: &Matrix,
        batch: Batch,
    ) -> Option<(String, [usize; 2], [i32; 2])> {
        let ((a_rows, lda), (b_rows, ldb)) = (a.layout()?, b.layout()?);
        let alignment = [alignment(a, lda, batch.stride_a), alignment(b, ldb, batch.stride_b)];
        let fits = (self.loose || alignment == [16, 16])
            && (self.both_transposed || a_rows || b_rows)
            && a.element == self.element;
        let letter = |rows: bool| if rows { 'n' } else { 't' };
        let name = format!("{}_{}{}", self.name, letter(a_rows), letter(b_rows));
        fits.then_some((name, [lda, ldb], alignment))
    }
}

/// The largest power of two, up to 16, that the addresses of all rows of all matrices are multiples of.
fn alignment(x: &Matrix, stride: usize, batch_stride: usize) -> i32 {
    let bytes = x.element.bytes();
    let all = x.address | (stride * bytes) as u64 | (batch_stride * bytes) as u64 | 16;
    1 << all.trailing_zeros()
}

/// How a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// The tile, or `None` for the plain kernel.
    pub tile: Option<&'static Tile>,
    /// Parts that the sum is cut into, at most.
    pub splits: usize,
}

impl Plan {
    /// Whether these factors can be multiplied so.
    pub fn takes(&self, a: &Matrix, b: &Matrix, batch: Batch) -> bool {
        self.tile.is_none_or(|tile| tile.kernel(a, b, batch).is_some())
    }
}

/// Picks a way to compute a product.
///
/// The rules are those that came within a few percent of the fastest tile and number of parts in every
/// case of `etude bench --device cuda gemm` on an H200 (132 multiprocessors).
pub fn choose(
    gpu: &dyn Gpu,
    a: &Matrix,
    b: &Matrix,
    c: &Matrix,
    batch: Batch,
    factors: Factors,
    scratch: Scratch,
) -> Plan {
    let (m, n, k) = (c.rows, c.cols, a.cols);
    let sms = gpu.properties().sms as usize;
    let factors = if a.element == Element::Bf16 { Factors::Exact } else { factors };
    let takes = |tile: &&'static Tile| {
        (tile.factors == factors || tile.factors == Factors::Exact)
            && tile.shared() <= gpu.properties().shared_bytes
            && tile.kernel(a, b, batch).is_some()
    };
    let blocks = |tile: &Tile| m.div_ceil(tile.m) * n.div_ceil(tile.n) * batch.count;
    let room = scratch.bytes / (batch.count * m * n * 4).max(1);
    let splits = |tile: &Tile| {
        // Two blocks of 128 threads share a multiprocessor; short sums only pay for a second launch while
        // half the chip would be idle.
        let (shortest, long) = match tile.element {
            Element::Bf16 => (1024, tile.threads == 128),
            Element::F32 => (8 * tile.k, k >= 2048),
        };
        let idle = (1 + usize::from(long)) * sms / blocks(tile).max(1);
        idle.min(k / shortest).min(room).clamp(1, 64)
    };
    let fits = |tile: &Tile| match tile.name {
        // One block on a multiprocessor: a whole round of them, or so many that the last one, which is
        // not full, matters little.
        "gemm_bf16_128x256x64" => {
            m > 64 && n > 128 && blocks(tile) > sms / 2 && {
                blocks(tile) <= sms || blocks(tile) >= 6 * sms
            }
        }
        // Two of them; with fewer than one each, four times as many small ones are sooner done.
        "gemm_bf16_128x128x32" => {
            m > 64 && n > 64 && (blocks(tile) > sms || splits(tile) > 1 && k >= 2048)
        }
        "gemm_tf32_128x128x16" | "gemm_f32x3_128x64x16" => blocks(tile) >= sms || m.max(n) >= 128,
        _ => true,
    };
    let by_size = [
        "gemm_bf16_128x256x64",
        "gemm_bf16_128x128x32",
        "gemm_tf32_128x128x16",
        "gemm_f32x3_128x64x16",
        "gemm_bf16_64x64x32",
        "gemm_bf16_loose",
        "gemm_tf32_loose",
        "gemm_f32_128x64x8",
    ];
    let mut tiles = by_size.iter().map(|name| Tile::named(name)).filter(takes);
    let tile = tiles.find(|tile| fits(tile)).or_else(|| TILES.iter().find(takes));
    Plan { tile, splits: tile.map_or(1, splits) }
}
