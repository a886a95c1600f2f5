//! Products of one row with weights that are read once, in the order in which they lie:
//! `y = x W + b`.
//!
//! One token after another means one row at a time, and every weight is used once for each: the time
//! is that of reading the weights. So they are one unbroken stream of cache lines on huge pages, which
//! the hardware fetches ahead by itself; and they can be stored as bf16 or as int8 with a scale for
//! each column, a half or a quarter of the stream.
//!
//! - f32 and bf16: each column has one accumulator and products are added in ascending `k`. A bf16
//!   weight is widened, which is exact. With f32 weights the bits are those of
//!   [`gemm_packed_forward`](crate::gemm::gemm_packed_forward) on the same tier.
//! - int8: the row is rounded to 255 steps of a scale of its own, sums are whole numbers and exact,
//!   so their bits are the same on every tier
//!   ([`reference::stream`](crate::reference::stream) is the definition).

mod rows;

use crate::cpu::dot_int8::{dot_int8, quantise};
use crate::cpu::lanes::{Block, LANES};
use crate::cpu::shared::{Shared, with_scratch};
use crate::cpu::stream_lines::{Fetch, add_lines};
use crate::cpu::stream_pack::{Lines, Room, pack_columns, room};
use crate::gemm::MatRef;
use crate::pages::Pages;
use crate::threads::parallel_for;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How the weights of a stream are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits: exact.
    F32,
    /// 16 bits, 8 of them for the fraction: rounded to nearest even, half the memory.
    Bf16,
    /// Whole numbers in `[-127, 127]` and one f32 scale for each column: a quarter of the memory. The
    /// row that meets them is rounded likewise, by its largest number.
    Int8,
}

/// Most blocks of sixteen columns in a panel. Four chains of additions hide the time of one in
/// AVX-512, and are the eight that AVX2 wants.
const PANEL: usize = 4;
/// Bytes of weight that are worth a task of their own.
const TASK: usize = 256 << 10;

impl Precision {
    /// Every way to store weights.
    pub const ALL: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Int8];

    /// What suits a network of `count` weights of which each is read for every token: f32 while all
    /// of them fit into 4 MiB, about what the caches near a core hold, and int8 beyond.
    ///
    /// int8 costs less than 0.0002 nats a token in the bundled model and in an LSTM of 2 x 512 units
    /// (`etude evaluate --precision int8`) and writes more than twice as fast as bf16.
    pub fn for_weights(count: usize) -> Precision {
        if count <= (4 << 20) / size_of::<f32>() { Precision::F32 } else { Precision::Int8 }
    }

    /// Its name: `f32`, `bf16` or `int8`.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
        }
    }

    /// Finds a precision by its name.
    pub fn from_name(name: &str) -> Option<Precision> {
        Precision::ALL.into_iter().find(|p| p.name() == name)
    }

    /// Bytes of a weight.
    pub fn bytes(self) -> usize {
        size_of::<f32>() / self.rows()
    }

    /// Rows of the matrix in a line of 64 bytes, which always holds sixteen columns.
    #[inline]
    pub(crate) fn rows(self) -> usize {
        match self {
            Precision::F32 => 1,
            Precision::Bf16 => 2,
            Precision::Int8 => 4,
        }
    }
}

/// Weights in the order in which they are read: one matrix `[k, n]`, or several with the same columns
/// that meet rows of their own.
///
/// Columns come in blocks of sixteen. Those of a matrix of `gates` parts of `n / gates` columns each
/// are told apart: the same sixteen columns of each part stand side by side, so that whoever has
/// their sums has all gates of sixteen units. A panel is up to four blocks: for one matrix after the
/// other its rows, `[k / rows in a line][blocks]` lines.
#[derive(Clone)]
pub struct StreamedB {
    k: Vec<usize>,
    n: usize,
    gates: usize,
    precision: Precision,
    /// The first block of each panel, and the end of the last one.
    firsts: Vec<usize>,
    /// Lines of a block before each matrix, and of all of them.
    depths: Vec<usize>,
    lines: Pages,
    /// How lines are asked for before they are wanted.
    ahead: Option<Arc<Ahead>>,
    /// Whether it is the first of those that share it.
    leads: bool,
    /// Of int8 weights, `[matrices][blocks]`: the scales of the columns.
    scales: Vec<Block>,
    /// Likewise: -128 times the sums of the columns.
    offsets: Vec<[i32; LANES]>,
}

impl StreamedB {
    /// Packs `b` `[k, n]`.
    pub fn new(b: MatRef, precision: Precision) -> StreamedB {
        StreamedB::joined(&[b], 1, precision)
    }

    /// Packs matrices `[k, n]` of the same `n`, each of `gates` parts of `n / gates` columns.
    ///
    /// # Panics
    /// If `n` differs or is no multiple of `gates`, or there are no or more than four gates.
    pub fn joined(b: &[MatRef], gates: usize, precision: Precision) -> StreamedB {
        let n = b.first().map_or(0, |b| b.cols);
        assert!((1..=PANEL).contains(&gates) && n.is_multiple_of(gates));
        assert!(b.iter().all(|b| b.cols == n));
        let k: Vec<usize> = b.iter().map(|b| b.rows).collect();
        let mut depths = vec![0];
        for k in &k {
            depths.push(depths[depths.len() - 1] + k.div_ceil(precision.rows()));
        }
        // Whole sets of gates, as even as can be.
        let sets = (n / gates).div_ceil(LANES);
        let panels = sets.div_ceil(PANEL / gates);
        let firsts = (0..=panels).map(|panel| sets * panel / panels.max(1) * gates).collect();
        let mut w = StreamedB {
            k,
            n,
            gates,
            precision,
            firsts,
            depths,
            lines: Pages::new(0),
            ahead: None,
            leads: true,
            scales: Vec::new(),
            offsets: Vec::new(),
        };
        w.lines = Pages::new(w.blocks() * w.depths[b.len()]);
        w.ahead = Ahead::new(w.bytes());
        let mut room = room();
        for (part, b) in b.iter().enumerate() {
            w.pack(part, b, &mut room);
        }
        w
    }

    fn pack(&mut self, part: usize, b: &MatRef, room: &mut Room) {
        for panel in 0..self.panels() {
            let (of, range) = (self.blocks_of(panel), self.lines_of(panel, part));
            for (first, block) in of.clone().enumerate() {
                let columns = self.columns(block);
                let to = Lines { lines: &mut self.lines[range.clone()], first, step: of.len() };
                let (scales, sums) = pack_columns(b, columns, self.precision, room, to);
                if self.precision == Precision::Int8 {
                    self.scales.push(scales);
                    self.offsets.push(sums.map(|sum| -128 * sum));
                }
            }
        }
    }

    /// Brings rows of floats into the order of the blocks: `[rows][blocks]`.
    pub(crate) fn table(&self, b: &MatRef) -> Vec<Block> {
        let blocks = self.blocks();
        let mut lines = vec![[0.0; LANES]; b.rows * blocks];
        let mut room = room();
        for first in 0..blocks {
            let to = Lines { lines: &mut lines, first, step: blocks };
            pack_columns(b, self.columns(first), Precision::F32, &mut room, to);
        }
        lines
    }

    /// Rows of the matrix; of several, those of the first.
    pub fn k(&self) -> usize {
        self.k.first().copied().unwrap_or(0)
    }

    /// Columns of the matrices.
    pub fn n(&self) -> usize {
        self.n
    }

    /// How the weights are stored.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Bytes that one product reads.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }

    /// Blocks of sixteen columns.
    pub(crate) fn blocks(&self) -> usize {
        self.firsts[self.panels()]
    }

    /// Number of panels.
    pub(crate) fn panels(&self) -> usize {
        self.firsts.len() - 1
    }

    /// The blocks of a panel.
    #[inline]
    pub(crate) fn blocks_of(&self, panel: usize) -> Range<usize> {
        self.firsts[panel]..self.firsts[panel + 1]
    }

    /// The columns that a block holds: sixteen, or those that are left of its gate.
    fn columns(&self, block: usize) -> Range<usize> {
        let (units, unit) = (self.n / self.gates, block / self.gates * LANES);
        let start = block % self.gates * units;
        start + unit..start + (unit + LANES).min(units)
    }

    /// The lines of one matrix in a panel.
    #[inline]
    fn lines_of(&self, panel: usize, part: usize) -> Range<usize> {
        let (of, depth) = (self.blocks_of(panel), self.depths[self.k.len()]);
        let (from, to) = (self.depths[part], self.depths[part + 1]);
        of.start * depth + from * of.len()..of.start * depth + to * of.len()
    }

    /// Adds a row times matrix `part` to the sums of a panel.
    #[inline]
    pub(crate) fn add(&self, panel: usize, part: usize, x: Row, sums: &mut [Block]) {
        let (lines, blocks) = (&self.lines[self.lines_of(panel, part)], self.blocks_of(panel));
        let ahead = self.ahead.as_deref();
        if let Some(ahead) = ahead.filter(|_| self.leads && (panel, part) == (0, 0)) {
            ahead.round();
        }
        let how = ahead.map_or(Fetch::None, Ahead::how);
        if self.precision != Precision::Int8 {
            let bf16 = self.precision == Precision::Bf16;
            return add_lines(x.numbers, lines, bf16, how, sums);
        }
        let first = part * self.blocks();
        let columns = first + blocks.start..first + blocks.end;
        let mut whole = [[0; LANES]; PANEL];
        let whole = &mut whole[..blocks.len()];
        dot_int8(x.numbers, lines, &self.offsets[columns.clone()], how, whole);
        for ((sums, whole), scales) in sums.iter_mut().zip(whole).zip(&self.scales[columns]) {
            for lane in 0..LANES {
                sums[lane] += whole[lane] as f32 * (x.scale * scales[lane]);
            }
        }
    }
}

/// Tells weights that they are read one after another, again and again, the first one first: what suits
/// one of them depends on how many bytes pass before it comes again.
pub fn read_in_turn<'a>(streams: impl IntoIterator<Item = &'a mut StreamedB>) {
    let mut streams: Vec<_> = streams.into_iter().collect();
    let ahead = Ahead::new(streams.iter().map(|w| w.bytes()).sum());
    for (at, w) in streams.iter_mut().enumerate() {
        (w.ahead, w.leads) = (ahead.clone(), at == 0);
    }
}

/// Bytes of weights that a second-level cache holds: nothing need be asked for.
const NEAR: usize = 512 << 10;
/// Rounds for which each way is tried in one go, of which the first ones do not count: they find the caches
/// as another way left them.
const ROUNDS: usize = 8;
const WARM: usize = 2;
/// How often each way is tried: its shortest time counts.
const TRIES: usize = 2;

/// How the lines of some weights are asked for, found out while they are read: each way is tried for some
/// rounds, twice, and the fastest is kept. It has no influence on results.
struct Ahead {
    /// The way of this round, as its place in [`Fetch::ALL`].
    how: AtomicUsize,
    /// Rounds so far, until all ways were tried.
    rounds: AtomicUsize,
    trial: Mutex<Trial>,
}

struct Trial {
    began: Instant,
    shortest: [Duration; Fetch::ALL.len()],
}

impl Ahead {
    /// Rounds of all trials.
    const ALL: usize = TRIES * Fetch::ALL.len() * ROUNDS;

    fn new(bytes: usize) -> Option<Arc<Ahead>> {
        let worth = cfg!(target_arch = "x86_64") && bytes > NEAR;
        worth.then(|| {
            let trial = Trial { began: Instant::now(), shortest: [Duration::MAX; 3] };
            let (how, rounds) = (AtomicUsize::new(0), AtomicUsize::new(0));
            Arc::new(Ahead { how, rounds, trial: Mutex::new(trial) })
        })
    }

    #[inline]
    fn how(&self) -> Fetch {
        Fetch::ALL[self.how.load(Relaxed)]
    }

    /// Called as a round begins.
    #[inline]
    fn round(&self) {
        if self.rounds.load(Relaxed) <= Ahead::ALL {
            self.try_next();
        }
    }

    /// Takes the time of the rounds that have ended, and chooses for the one that begins.
    #[cold]
    fn try_next(&self) {
        // Copies of the weights may be read at the same time: then one of them takes the time.
        let Ok(mut trial) = self.trial.try_lock() else { return };
        let round = self.rounds.fetch_add(1, Relaxed);
        if let Some(next) = trial.next(round, self.how.load(Relaxed), Instant::now()) {
            self.how.store(next, Relaxed);
        }
    }
}

impl Trial {
    /// The way of the rounds from here on, if it is another: `how` is that of those before, `now` the end of
    /// the last one.
    fn next(&mut self, round: usize, how: usize, now: Instant) -> Option<usize> {
        if round % ROUNDS == WARM {
            self.began = now;
        }
        if round == 0 || !round.is_multiple_of(ROUNDS) {
            return None;
        }
        self.shortest[how] = self.shortest[how].min(now - self.began);
        let best = (0..Fetch::ALL.len()).min_by_key(|how| self.shortest[*how]);
        if round == Ahead::ALL { best } else { Some(round / ROUNDS % Fetch::ALL.len()) }
    }
}

/// A row as a product reads it.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    /// The numbers; for int8 weights four whole numbers of a byte in each.
    numbers: &'a [f32],
    /// The unit of the whole numbers.
    scale: f32,
}

impl<'a> Row<'a> {
    /// Numbers of room that [`Row::new`] wants.
    pub(crate) fn room(k: usize, precision: Precision) -> usize {
        if precision == Precision::Int8 { k.div_ceil(4) } else { 0 }
    }

    /// Prepares a row for weights of this precision.
    #[inline]
    pub(crate) fn new(x: &'a [f32], precision: Precision, room: &'a mut [f32]) -> Row<'a> {
        if precision != Precision::Int8 {
            return Row { numbers: x, scale: 1.0 };
        }
        let scale = quantise(x, bytemuck::cast_slice_mut(room));
        Row { numbers: room, scale }
    }
}

/// Computes `y = x W + bias`, or `y = y + x W + bias` if `accumulate`.
///
/// The bias is added last, to the finished sum. A row has the same bits among others as alone.
///
/// # Shapes
/// `x` `[rows, k]`, `w` `[k, n]`, `bias` `[n]`, `y` `[rows, n]`. `k = 0` gives the bias.
///
/// # Panics
/// If the sizes disagree, or `w` holds several matrices or gates.
pub fn stream_forward(
    x: &[f32],
    w: &StreamedB,
    bias: Option<&[f32]>,
    y: &mut [f32],
    accumulate: bool,
) {
    assert_eq!((w.k.len(), w.gates), (1, 1));
    assert!(bias.is_none_or(|bias| bias.len() == w.n));
    if y.len() != w.n {
        return rows::forward(x, w, bias, y, accumulate);
    }
    assert_eq!(x.len(), w.k());
    let panels = w.panels();
    if panels == 0 {
        return;
    }
    // Whole panels, as even as their number allows.
    let tasks = (w.bytes() / TASK).clamp(1, panels);
    let y = Shared::new(y);
    with_scratch(Row::room(w.k(), w.precision), |room| {
        let x = Row::new(x, w.precision, room);
        parallel_for(panels, panels.div_ceil(tasks), |panels| {
            for panel in panels {
                let blocks = w.blocks_of(panel);
                let columns = blocks.start * LANES..(blocks.end * LANES).min(w.n);
                // SAFETY: tasks take panels of their own.
                let y = unsafe { y.slice(columns.clone()) };
                let mut sums = [[0.0; LANES]; PANEL];
                if accumulate {
                    sums.as_flattened_mut()[..y.len()].copy_from_slice(y);
                }
                w.add(panel, 0, x, &mut sums[..blocks.len()]);
                y.copy_from_slice(&sums.as_flattened()[..y.len()]);
                if let Some(bias) = bias {
                    y.iter_mut().zip(&bias[columns]).for_each(|(y, bias)| *y += bias);
                }
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The way that is kept where a round of each takes so many milliseconds, and every first one of a
    /// go a second more.
    fn kept(milliseconds: [u64; 3]) -> usize {
        let mut now = Instant::now();
        let mut trial = Trial { began: now, shortest: [Duration::MAX; 3] };
        let mut how = 0;
        for round in 0..=Ahead::ALL {
            how = trial.next(round, how, now).unwrap_or(how);
            let cold = if round % ROUNDS == 0 { 1000 * (3 - how as u64) } else { 0 };
            now += Duration::from_millis(milliseconds[how] + cold);
        }
        how
    }

    #[test]
    fn the_fastest_way_to_ask_ahead_is_kept_whatever_a_cold_round_takes() {
        assert_eq!([kept([3, 5, 4]), kept([5, 3, 4]), kept([5, 4, 3])], [0, 1, 2]);
    }
}
