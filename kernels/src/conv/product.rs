//! The forward and the data gradient: rows of sums are positions, lanes are channels of the result.

use super::ConvShape;
use super::axis::{Axis, Taps, Way};
use super::image::{Area, Cut, Image, Source, copy_len, in_place};
use super::room::{Target, with_room};
use super::store::Landing;
use super::strip;
use super::tile::{Kernels, Tile, even, kernels};
use crate::cpu::ahead::Ahead;
use crate::cpu::lanes::LANES;
use crate::gemm::pack_slivers;
use crate::threads::{parallel_for, threads};
use std::ops::Range;

/// Longest sum of one pass: 48 columns of weights (96 KiB) then stream from the second-level cache.
const KC: usize = 512;
/// Sums of one block (256 KiB), and numbers of the source that are copied for it.
const BLOCK: usize = 1 << 16;
/// Most positions of a block.
const MOST: usize = 1024;
/// Multiply-adds that are worth a task of their own.
const TASK: usize = 1 << 20;

/// Which of the two, and how each axis is walked.
#[derive(Clone, Copy)]
pub(super) struct Walk<'a> {
    shape: &'a ConvShape,
    data: bool,
    ways: [Way; 3],
}

impl<'a> Walk<'a> {
    /// The way that merges nothing.
    fn plain(shape: &'a ConvShape, data: bool) -> Walk<'a> {
        Walk { shape, data, ways: [if data { Way::Classes } else { Way::Forward }; 3] }
    }

    /// The cheapest way of the forward or of the data gradient.
    fn new(shape: &'a ConvShape, data: bool) -> Walk<'a> {
        let plain = Walk::plain(shape, data);
        let walk = |set: usize| {
            let merged = |a: usize| data && set >> a & 1 == 1 && Way::can_merge(shape, a);
            let ways = std::array::from_fn(|a| if merged(a) { Way::Merged } else { plain.ways[a] });
            Walk { ways, ..plain }
        };
        (1..8)
            .map(walk)
            .fold(walk(0), |best, walk| if walk.cost() < best.cost() { walk } else { best })
    }

    /// Multiply-adds of vectors, those of idle lanes included, and what it takes to bring them home.
    fn cost(&self) -> usize {
        const HOME: usize = 8;
        let axes = self.axes();
        let positions: usize = axes.iter().map(|a| a.count).product();
        let slivers = self.lanes(&axes).div_ceil(LANES);
        let steps: usize = (0..passes(&axes)).map(|pass| self.pass(&axes, pass).k + HOME).sum();
        positions.saturating_mul(slivers).saturating_mul(steps)
    }

    pub(super) fn batch(&self) -> usize {
        self.shape.batch
    }

    pub(super) fn axes(&self) -> [Axis; 3] {
        [0, 1, 2].map(|a| self.ways[a].axis(self.shape, a))
    }

    /// Channels that are summed over, and those of the result.
    pub(super) fn channels(&self) -> (usize, usize) {
        let (inputs, outputs) = self.shape.group_channels();
        if self.data { (outputs, inputs) } else { (inputs, outputs) }
    }

    /// Lanes of a position.
    fn lanes(&self, axes: &[Axis; 3]) -> usize {
        self.channels().1 * axes.iter().map(|a| a.merged).product::<usize>()
    }

    /// What the positions of pass `pass` meet.
    pub(super) fn pass(&self, axes: &[Axis; 3], pass: usize) -> Pass {
        let (rest, w) = (pass / axes[2].classes, pass % axes[2].classes);
        let class = [rest / axes[1].classes, rest % axes[1].classes, w];
        let taps = [0, 1, 2].map(|a| self.ways[a].taps(self.shape, a, class[a]));
        Pass { taps, k: self.channels().0 * taps.iter().map(|t| t.count).product::<usize>() }
    }

    /// Packs the weights of a pass for some channels of the result: `[k, channels]`.
    pub(super) fn pack_rows(
        &self,
        pass: &Pass,
        channels: Range<usize>,
        w: &[f32],
        room: &mut [f32],
    ) {
        let [k0, k1, k2] = self.shape.kernel;
        let plane = k0 * k1 * k2;
        let (sums, results) = self.channels();
        let (sum, result) =
            if self.data { (results * plane, plane) } else { (plane, sums * plane) };
        let [d, h, t] = &pass.taps;
        let taps = d.count * h.count * t.count;
        for (l, weights) in room.chunks_exact_mut(channels.len().max(1)).enumerate() {
            let (c, tap) = (l / taps, l % taps);
            let (t0, t1, t2) = (tap / (h.count * t.count), tap / t.count % h.count, tap % t.count);
            let tap = (d.kernel(t0, 0) * k1 + h.kernel(t1, 0)) * k2 + t.kernel(t2, 0);
            for (x, channel) in weights.iter_mut().zip(channels.clone()) {
                *x = w[c * sum + channel * result + tap];
            }
        }
    }

    /// Packs the weights of a pass: slivers `[k, 16]`, zeros beyond the last lane. `places` has room for
    /// one offset a tap.
    fn pack(
        &self,
        axes: &[Axis; 3],
        pass: &Pass,
        w: &[f32],
        room: &mut [f32],
        places: &mut [isize],
    ) {
        let [k0, k1, k2] = self.shape.kernel;
        let plane = k0 * k1 * k2;
        let (sums, results) = self.channels();
        // From one channel that is summed over, and of the result, to the next.
        let (sum, result) =
            if self.data { (results * plane, plane) } else { (plane, sums * plane) };
        let (stride, lanes) = (pass.k * LANES, self.lanes(axes));
        if !self.data {
            // Every channel of the result is a column of neighbours.
            return pack_slivers(w, result, (pass.k, lanes), room, stride);
        }
        let taps: usize = pass.taps.iter().map(|t| t.count).product();
        if taps == plane {
            for c in 0..sums {
                let room = &mut room[c * taps * LANES..];
                pack_slivers(&w[c * sum..(c + 1) * sum], result, (taps, lanes), room, stride);
            }
            return;
        }
        let [d, h, t] = &pass.taps;
        let index = |m: [usize; 3], i: [usize; 3]| {
            (d.kernel(i[0], m[0]) * k1 + h.kernel(i[1], m[1])) * k2 + t.kernel(i[2], m[2])
        };
        for (i, place) in places[..taps].iter_mut().enumerate() {
            let (rest, i2) = (i / t.count, i % t.count);
            *place = index([0; 3], [rest / h.count, rest % h.count, i2]) as isize;
        }
        let merged = axes[0].merged * axes[1].merged * axes[2].merged;
        for (s, sliver) in room.chunks_exact_mut(stride.max(1)).enumerate() {
            for j in 0..LANES {
                let (channel, m) = ((s * LANES + j) / merged, (s * LANES + j) % merged);
                let (m, m2) = (m / axes[2].merged, m % axes[2].merged);
                // Kernel indices are sums of a part of the tap and a part of the neighbour.
                let neighbour = index([m / axes[1].merged, m % axes[1].merged, m2], [0; 3])
                    - index([0; 3], [0; 3]);
                for (c, lines) in sliver.chunks_exact_mut((taps * LANES).max(1)).enumerate() {
                    let from = c * sum + channel * result + neighbour;
                    for (line, place) in lines.chunks_exact_mut(LANES).zip(&*places) {
                        line[j] = if channel < results { w[from + *place as usize] } else { 0.0 };
                    }
                }
            }
        }
    }
}

/// Positions of one class along each axis: they meet the same taps.
pub(super) struct Pass {
    pub taps: [Taps; 3],
    /// Length of the sums.
    pub k: usize,
}

/// Number of passes.
pub(super) fn passes(axes: &[Axis; 3]) -> usize {
    axes.iter().map(|a| a.classes).product()
}

/// Computes the forward, or the data gradient, of every group.
pub(super) fn compute(
    shape: &ConvShape,
    data: bool,
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let walk = Walk::new(shape, data);
    let narrow = Walk::plain(shape, data);
    // A tenth more, or else whole lines of weights are the better reads.
    let narrow = strip::cost(&narrow).filter(|cost| cost + cost / 10 < walk.cost()).map(|_| narrow);
    let (sums, results) = walk.channels();
    if y.is_empty() {
        return;
    }
    let (ins, outs) =
        if walk.data { (shape.output, shape.input) } else { (shape.input, shape.output) };
    let sample = ins.iter().product::<usize>() * sums * shape.groups;
    let plane: usize = outs.iter().product();
    let axes = walk.axes();
    let slivers = walk.lanes(&axes).div_ceil(LANES);
    let steps: usize = (0..passes(&axes)).map(|pass| walk.pass(&axes, pass).k).sum();
    let y = Target::new(y);
    let filters = w.len() / shape.groups;
    for group in 0..shape.groups {
        let w = &w[group * filters..(group + 1) * filters];
        let source = Source { data: x, sample, channel: group * sums, channels: sums };
        let bias = bias.map(|bias| &bias[group * results..(group + 1) * results]);
        let base = group * results * plane;
        let out = Out { y, sample: results * shape.groups * plane, base, bias };
        if let Some(narrow) = &narrow {
            strip::run(narrow, &source, w, &out);
            continue;
        }
        with_room(|room| {
            let taps = shape.kernel.iter().product();
            let ([weights], places) = room.parts([slivers * steps * LANES], taps);
            let mut rest = &mut *weights;
            for pass in 0..passes(&axes) {
                let pass = walk.pass(&axes, pass);
                let (part, tail) = rest.split_at_mut(slivers * pass.k * LANES);
                walk.pack(&axes, &pass, w, part, places);
                rest = tail;
            }
            Blocks { walk, axes, source, weights, slivers, steps, out }.run();
        });
    }
}

/// Where the result goes.
pub(super) struct Out<'a> {
    pub y: Target,
    /// Elements from one sample to the next, and from its start to the first channel.
    pub sample: usize,
    pub base: usize,
    pub bias: Option<&'a [f32]>,
}

/// One group, cut into blocks of positions.
struct Blocks<'a> {
    walk: Walk<'a>,
    axes: [Axis; 3],
    source: Source<'a>,
    weights: &'a [f32],
    /// Slivers of a pass, and steps of all passes.
    slivers: usize,
    steps: usize,
    out: Out<'a>,
}

impl Blocks<'_> {
    fn run(&self) {
        let axes = &self.axes;
        let batch = self.walk.shape.batch;
        let count = axes.map(|a| a.count);
        let positions = count.iter().product::<usize>() * batch;
        // What a position reads, if none shares with its neighbours.
        let step: usize = axes.iter().map(|a| a.step.clamp(1, a.size.max(1))).product();
        let reads = (self.source.channels * step).max(1);
        // Cuts may depend on the number of threads: a sum does not depend on its block.
        let work = positions * (self.steps + 1) * self.slivers * LANES;
        let tasks = if threads() == 1 { 1 } else { (work / TASK).clamp(1, 4 * threads()) };
        let width = self.slivers * passes(axes) * LANES;
        let most = (BLOCK / width).min(BLOCK / reads).min(MOST);
        let most = most.min(positions.div_ceil(tasks).next_multiple_of(8)).max(8);
        let cut = Cut::new(batch, axes.map(|a| a.first), count, most);
        let columns = (tasks / cut.len().max(1)).clamp(1, self.slivers.div_ceil(2));
        parallel_for(cut.len() * columns, 1, |tasks| {
            for task in tasks {
                let at = |i| even(self.slivers, columns, i);
                let slivers = at(task % columns)..at(task % columns + 1);
                let (block, blocks) = (task / columns, cut.len());
                // While a block is computed, as large a part of the next sample is fetched.
                let x = self.source.data;
                let part = x.len() / blocks;
                let next = (block * part + self.source.sample.max(part)).min(x.len());
                let next = &x[next..(next + part).min(x.len())];
                self.block(&cut.area(block), slivers, next);
            }
        });
    }

    /// Computes some slivers of one block, pass after pass, and fetches `next`.
    fn block(&self, area: &Area, slivers: Range<usize>, next: &[f32]) {
        let (axes, positions) = (&self.axes, area.all());
        let (passes, pass_width) = (passes(axes), slivers.len() * LANES);
        let width = passes * pass_width;
        if positions == 0 || width == 0 {
            return;
        }
        let lanes = slivers.start * LANES..(slivers.end * LANES).min(self.walk.lanes(axes));
        let whole = in_place(axes, self.source.channels);
        let copied = if whole { 0 } else { copy_len(axes, area, self.source.channels) };
        let longest = (0..passes).map(|pass| self.walk.pass(axes, pass).k).max().unwrap_or(0);
        with_room(|room| {
            let parts = [positions * width, copied, lanes.len()];
            let ([sums, copy, bias], offsets) =
                room.parts(parts, positions + longest + lanes.len());
            let (rows, offsets) = offsets.split_at_mut(positions);
            let (steps, places) = offsets.split_at_mut(longest);
            let image = if whole {
                Image::whole(&self.source, axes, area)
            } else {
                Image::copied(&self.source, axes, area, copy)
            };
            image.positions(axes, area, rows);
            let (mut packed, code) = (self.weights, kernels());
            let tiles = code.tiles(positions, slivers.len()) * passes * longest.div_ceil(KC);
            let ahead = Ahead::new(next.as_ptr(), next.len(), tiles);
            for pass in 0..passes {
                let Pass { taps, k } = self.walk.pass(axes, pass);
                let weights = &packed[slivers.start * k * LANES..slivers.end * k * LANES];
                packed = &packed[self.slivers * k * LANES..];
                let sums = &mut sums[pass * pass_width..];
                if k == 0 {
                    sums.chunks_mut(width).for_each(|row| {
                        let end = pass_width.min(row.len());
                        row[..end].fill(0.0);
                    });
                    continue;
                }
                let steps = &mut steps[..k];
                image.taps(&taps, steps);
                image.check(rows, steps);
                let sums = (sums, width, slivers.len());
                multiply((code, &ahead), &image, (rows, steps), weights, sums);
            }
            let merged: usize = axes.iter().map(|a| a.merged).product();
            for (x, lane) in bias.iter_mut().zip(lanes.clone()) {
                *x = self.out.bias.map_or(0.0, |bias| bias[lane / merged]);
            }
            let Out { y, sample, base, .. } = self.out;
            let landing = Landing { y, sample, base, axes, lanes, pass_width, bias };
            // SAFETY: blocks and lanes land on elements of their own.
            unsafe { landing.store(sums, width, area, places) };
        });
    }
}

/// Computes the sums of all rows, a stretch of steps after the other; rows of sums are `width` apart.
fn multiply(
    (code, ahead): (&Kernels, &Ahead),
    image: &Image,
    (rows, steps): (&[isize], &[isize]),
    weights: &[f32],
    (sums, width, slivers): (&mut [f32], usize, usize),
) {
    let k = steps.len();
    assert!(weights.len() == slivers * k * LANES);
    assert!((rows.len() - 1) * width + slivers * LANES <= sums.len());
    let pieces = k.div_ceil(KC);
    for piece in 0..pieces {
        let (from, to) = (even(k, pieces, piece), even(k, pieces, piece + 1));
        let tile = Tile {
            a: image.data.as_ptr(),
            rows: rows.as_ptr(),
            steps: steps[from..].as_ptr(),
            k: to - from,
            b: weights[from * LANES..].as_ptr(),
            b_sliver: k * LANES,
            c: sums.as_mut_ptr(),
            c_row: width,
            from_c: piece > 0,
        };
        // SAFETY: `Image::check` bounds every row and step; weights and sums have the lengths that
        // were asserted above; `kernels` gave code that this CPU runs.
        unsafe { code.product(&tile, rows.len(), slivers, ahead) };
    }
}
