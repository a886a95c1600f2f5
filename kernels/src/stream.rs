//! Products of one row with a weight that is read once, in the order in which it lies: `y = x W + b`.
//!
//! One token after another means one row at a time, and every weight is used once for each: the time
//! is that of reading the weights. So they are one unbroken stream, panel by panel, on huge pages,
//! fetched ahead; and where they do not fit into the caches they can be stored as bf16, which halves
//! the stream. The states and the sums stay f32: a bf16 weight is widened, which is exact.
//!
//! Each column has one accumulator and products are added in ascending `k`. With f32 weights the bits
//! are those of [`gemm_packed_forward`](crate::gemm::gemm_packed_forward) on the same tier.

use crate::cpu::lanes::{Block, Body, LANES, Lanes, dispatch};
use crate::cpu::shared::Shared;
use crate::gemm::MatRef;
use crate::isa::{self, Isa};
use crate::pages::Pages;
use crate::threads::parallel_for;
use half::bf16;
use std::ops::Range;

/// How the weights of a stream are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits: exact.
    F32,
    /// 16 bits, 8 of them for the fraction: rounded to nearest even, half the memory.
    Bf16,
}

/// Columns are counted in pairs of blocks: a block of bf16 words holds two columns in each word.
const PAIR: usize = 2 * LANES;
/// Pairs of the widest panel: 128 columns are 8 chains of additions in AVX-512, which hide the time
/// of one.
const PANEL: usize = 4;
/// Bytes of weight that are worth a task of their own.
const TASK: usize = 512 << 10;
/// Blocks by which the stream is fetched ahead: 8 KiB. Beyond the second-level cache this doubles the
/// rate (bench `rnn_generate`); half and twice the distance do as well.
const AHEAD: usize = 128;

/// A weight matrix `[k, n]` in the order in which [`stream_forward`] reads it.
///
/// Panels of up to 128 columns, one after the other, each `[k][columns]`. A block of 16 words of bf16
/// holds column `j` in the low and column `j + 16` in the high half of word `j`.
#[derive(Clone)]
pub struct StreamedB {
    k: usize,
    n: usize,
    precision: Precision,
    blocks: Pages,
}

impl StreamedB {
    /// Packs `b` `[k, n]`.
    pub fn new(b: MatRef, precision: Precision) -> StreamedB {
        let (k, n) = (b.rows, b.cols);
        let blocks = n.div_ceil(PAIR) * PAIR / precision.columns() * k;
        let mut w = StreamedB { k, n, precision, blocks: Pages::new(blocks) };
        for panel in 0..w.panels() {
            let (from, stride, rows) = w.place(panel);
            for (at, block) in w.blocks[rows].iter_mut().enumerate() {
                let (l, first) = (at / stride, from + at % stride * precision.columns());
                let value = |j| {
                    if j < n { b.data[l * b.row_stride + j * b.col_stride] } else { 0.0 }
                };
                for (j, x) in block.iter_mut().enumerate() {
                    *x = match precision {
                        Precision::F32 => value(first + j),
                        Precision::Bf16 => word(value(first + j), value(first + LANES + j)),
                    };
                }
            }
        }
        w
    }

    /// Rows of the matrix.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of the matrix.
    pub fn n(&self) -> usize {
        self.n
    }

    /// How the weights are stored.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Bytes that one product reads.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.blocks)
    }

    /// Number of panels.
    fn panels(&self) -> usize {
        self.n.div_ceil(PAIR).div_ceil(PANEL)
    }

    /// The first pair of columns of a panel: as even as can be.
    fn panel(&self, i: usize) -> usize {
        let (pairs, panels) = (self.n.div_ceil(PAIR), self.panels());
        pairs / panels * i + (pairs % panels).min(i)
    }

    /// The first column of a panel, the blocks of each of its rows, and where they lie.
    fn place(&self, i: usize) -> (usize, usize, Range<usize>) {
        let (from, to) = (self.panel(i) * PAIR, self.panel(i + 1) * PAIR);
        let columns = self.precision.columns();
        (from, (to - from) / columns, from / columns * self.k..to / columns * self.k)
    }

    /// [`Self::place`] with the blocks themselves.
    #[inline]
    fn rows(&self, panel: usize) -> (usize, usize, &[Block]) {
        let (from, stride, rows) = self.place(panel);
        (from, stride, &self.blocks[rows])
    }
}

impl Precision {
    /// What suits a network of `count` weights of which each is read for every token: f32 while all
    /// of them fit into 4 MiB, about what the caches near a core hold, and bf16 beyond.
    pub fn for_weights(count: usize) -> Precision {
        if count <= (4 << 20) / size_of::<f32>() { Precision::F32 } else { Precision::Bf16 }
    }

    /// Its name: `f32` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }

    /// Finds a precision by its name.
    pub fn from_name(name: &str) -> Option<Precision> {
        [Precision::F32, Precision::Bf16].into_iter().find(|p| p.name() == name)
    }

    /// Columns in a block of a row.
    #[inline]
    fn columns(self) -> usize {
        match self {
            Precision::F32 => LANES,
            Precision::Bf16 => PAIR,
        }
    }
}

/// Two bf16 in the bits of one f32.
fn word(low: f32, high: f32) -> f32 {
    let bits = |x| u32::from(bf16::from_f32(x).to_bits());
    f32::from_bits(bits(low) | bits(high) << 16)
}

/// Computes `y = x W + bias`, or `y = y + x W + bias` if `accumulate`.
///
/// The bias is added last, to the finished sum.
///
/// # Shapes
/// `x` `[k]`, `w` `[k, n]`, `bias` `[n]`, `y` `[n]`. `k = 0` gives the bias.
///
/// # Panics
/// If the sizes disagree.
pub fn stream_forward(
    x: &[f32],
    w: &StreamedB,
    bias: Option<&[f32]>,
    y: &mut [f32],
    accumulate: bool,
) {
    assert_eq!((x.len(), y.len()), (w.k, w.n));
    assert!(bias.is_none_or(|bias| bias.len() == w.n));
    let panels = w.panels();
    if panels == 0 {
        return;
    }
    // Whole panels, as even as their number allows.
    let tasks = (w.bytes() / TASK).clamp(1, panels);
    let y = Shared::new(y);
    parallel_for(panels, panels.div_ceil(tasks), |panels| {
        let columns = w.panel(panels.start) * PAIR..(w.panel(panels.end) * PAIR).min(w.n);
        // SAFETY: tasks take panels of their own.
        let y = unsafe { y.slice(columns) };
        let part = Part { x, w, bias, panels, y, accumulate };
        // AVX-512 keeps the sums of a whole panel in 8 of its 32 registers; the other tiers take
        // half a panel at a time.
        match (isa::active(), w.precision) {
            (Isa::Scalar, _) => part.plain(),
            (Isa::Avx512, Precision::F32) => dispatch(Vector::<PANEL, false>(part)),
            (Isa::Avx512, Precision::Bf16) => dispatch(Vector::<PANEL, true>(part)),
            (_, Precision::F32) => dispatch(Vector::<{ PANEL / 2 }, false>(part)),
            (_, Precision::Bf16) => dispatch(Vector::<{ PANEL / 2 }, true>(part)),
        }
    });
}

/// Some panels of a product.
struct Part<'a> {
    x: &'a [f32],
    w: &'a StreamedB,
    bias: Option<&'a [f32]>,
    panels: Range<usize>,
    /// The columns of these panels.
    y: &'a mut [f32],
    accumulate: bool,
}

impl Part<'_> {
    /// One number at a time: the lesson.
    fn plain(self) {
        let first = self.w.panel(self.panels.start) * PAIR;
        for panel in self.panels {
            let (from, stride, rows) = self.w.rows(panel);
            for column in from..(from + stride * self.w.precision.columns()).min(self.w.n) {
                let at = column - from;
                let y = &mut self.y[column - first];
                let mut sum = if self.accumulate { *y } else { 0.0 };
                for (x, row) in self.x.iter().zip(rows.chunks_exact(stride)) {
                    // Not `mul_add`: without a fused instruction it is a call of hundreds of cycles.
                    sum += x * match self.w.precision {
                        Precision::F32 => row[at / LANES][at % LANES],
                        Precision::Bf16 => {
                            let word = row[at / PAIR][at % LANES].to_bits();
                            let high = at % PAIR >= LANES;
                            f32::from_bits(if high { word & 0xffff_0000 } else { word << 16 })
                        }
                    };
                }
                *y = sum + self.bias.map_or(0.0, |bias| bias[column]);
            }
        }
    }
}

/// The vector form: at most `MOST` pairs of blocks of columns at a time.
struct Vector<'a, const MOST: usize, const BF16: bool>(Part<'a>);

impl<const MOST: usize, const BF16: bool> Body for Vector<'_, MOST, BF16> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Part { x, w, bias, panels, mut y, accumulate } = self.0;
        for panel in panels {
            let (from, stride, rows) = w.rows(panel);
            let pairs = stride * w.precision.columns() / PAIR;
            let mut pair = 0;
            while pair < pairs {
                let first = from + pair * PAIR;
                let here = MOST.min(pairs - pair);
                let (columns, rest) = y.split_at_mut((here * PAIR).min(w.n - first));
                let strip = Strip {
                    x,
                    rows,
                    stride,
                    at: pair * PAIR / w.precision.columns(),
                    bias: bias.map(|bias| &bias[first..]),
                    y: columns,
                    accumulate,
                };
                match here {
                    1 => strip.compute::<L, 1, BF16>(),
                    2 => strip.compute::<L, 2, BF16>(),
                    3 if MOST > 2 => strip.compute::<L, 3, BF16>(),
                    _ if MOST > 2 => strip.compute::<L, 4, BF16>(),
                    _ => unreachable!("strips have at most {MOST} pairs"),
                }
                y = rest;
                pair += here;
            }
        }
    }
}

/// Some columns of a panel.
struct Strip<'a> {
    x: &'a [f32],
    /// The panel, rows of `stride` blocks; the strip begins at block `at` of each.
    rows: &'a [Block],
    stride: usize,
    at: usize,
    bias: Option<&'a [f32]>,
    y: &'a mut [f32],
    accumulate: bool,
}

impl Strip<'_> {
    /// Computes `P` pairs of blocks of columns, whose sums stay in registers.
    #[inline(always)]
    fn compute<L: Lanes, const P: usize, const BF16: bool>(self) {
        let mut sums = [[L::zero(); 2]; P];
        if self.accumulate {
            for (p, sums) in sums.iter_mut().enumerate() {
                for (half, sum) in sums.iter_mut().enumerate() {
                    *sum = load(self.y, (2 * p + half) * LANES);
                }
            }
        }
        let width = if BF16 { P } else { 2 * P };
        let high = L::ints(0xffff_0000_u32 as i32);
        for (x, row) in self.x.iter().zip(self.rows.chunks_exact(self.stride)) {
            let row = &row[self.at..self.at + width];
            let x = L::splat(*x);
            for (p, [low_sum, high_sum]) in sums.iter_mut().enumerate() {
                if BF16 {
                    fetch(&row[p]);
                    let words = L::load(&row[p]).bits();
                    *low_sum = x.mul_add(L::from_bits(L::shift_left::<16>(words)), *low_sum);
                    *high_sum = x.mul_add(L::from_bits(L::and(words, high)), *high_sum);
                } else {
                    fetch(&row[2 * p]);
                    fetch(&row[2 * p + 1]);
                    *low_sum = x.mul_add(L::load(&row[2 * p]), *low_sum);
                    *high_sum = x.mul_add(L::load(&row[2 * p + 1]), *high_sum);
                }
            }
        }
        for (p, sums) in sums.into_iter().enumerate() {
            for (half, mut sum) in sums.into_iter().enumerate() {
                let first = (2 * p + half) * LANES;
                if let Some(bias) = self.bias {
                    sum = sum.add(load(bias, first));
                }
                match self.y.get_mut(first..) {
                    None => {}
                    Some(y) => match y.first_chunk_mut() {
                        Some(y) => sum.store(y),
                        None => sum.store_part(y),
                    },
                }
            }
        }
    }
}

/// Sixteen numbers of `x` from `first` on, as far as there are any.
#[inline(always)]
fn load<L: Lanes>(x: &[f32], first: usize) -> L {
    let x = x.get(first..).unwrap_or_default();
    match x.first_chunk() {
        Some(x) => L::load(x),
        None => L::load_part(x),
    }
}

/// Begins to load what the stream holds some way after `block`.
#[inline(always)]
fn fetch(block: &Block) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a fetch changes nothing and never faults, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>((&raw const *block).wrapping_add(AHEAD).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (block, AHEAD);
}
