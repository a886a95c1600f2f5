//! The forward and the data gradient: rows of sums are positions, lanes are channels of the result.

use super::ConvShape;
use super::axis::Axis;
use super::image::{Area, Cut, Image, Source, copy_len, in_place};
use super::room::{Target, with_room};
use super::store::Landing;
use super::tile::{Kernels, Tile, even, kernels};
use crate::cpu::lanes::LANES;
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

/// Which of the two, and which kernel axes become lanes.
#[derive(Clone, Copy)]
pub(super) struct Walk<'a> {
    pub shape: &'a ConvShape,
    /// The data gradient, not the forward.
    pub data: bool,
    pub merge: [bool; 3],
}

impl<'a> Walk<'a> {
    pub(super) fn forward(shape: &'a ConvShape) -> Walk<'a> {
        Walk { shape, data: false, merge: [false; 3] }
    }

    /// The data gradient, with the axes merged that make it cheapest.
    pub(super) fn data(shape: &'a ConvShape) -> Walk<'a> {
        let walk = |set: usize| Walk {
            shape,
            data: true,
            merge: std::array::from_fn(|a| set >> a & 1 == 1 && Axis::can_merge(shape, a)),
        };
        (0..8).rev().map(walk).min_by_key(Walk::cost).unwrap_or(walk(0))
    }

    /// Multiply-adds of vectors, those of idle lanes included.
    fn cost(&self) -> usize {
        (0..self.classes())
            .map(|class| {
                let class = self.class(class);
                let count: usize = class.axes.iter().map(|a| a.count * a.taps.max(1)).product();
                count * class.lanes.div_ceil(LANES)
            })
            .sum()
    }

    /// Classes along one axis.
    fn classes_of(&self, a: usize) -> usize {
        if !self.data || self.merge[a] {
            1
        } else {
            self.shape.stride[a].min(self.shape.input[a].max(1))
        }
    }

    /// Number of classes of positions.
    fn classes(&self) -> usize {
        (0..3).map(|a| self.classes_of(a)).product()
    }

    /// Channels that are summed over, and those of the result.
    fn channels(&self) -> (usize, usize) {
        let (inputs, outputs) = self.shape.group_channels();
        if self.data { (outputs, inputs) } else { (inputs, outputs) }
    }

    fn class(&self, index: usize) -> Class {
        let mut left = index;
        let mut axes = [0, 1, 2].map(|a| Axis::forward(self.shape, a));
        if self.data {
            for a in (0..3).rev() {
                let classes = self.classes_of(a);
                let class = left % classes;
                left /= classes;
                axes[a] = if self.merge[a] {
                    Axis::merged(self.shape, a)
                } else {
                    let class = (self.shape.padding[a] + class) % self.shape.stride[a];
                    Axis::class(self.shape, a, class)
                };
            }
        }
        let (sums, results) = self.channels();
        let merged: usize = axes.iter().map(|a| a.merged).product();
        let k = sums * axes.iter().map(|a| a.taps).product::<usize>();
        Class { axes, k, lanes: results * merged }
    }

    /// Packs the weights of a class: slivers `[k, 16]`, zeros beyond the last lane.
    fn pack(&self, class: &Class, w: &[f32], room: &mut [f32]) {
        let kernel = self.shape.kernel;
        let plane: usize = kernel.iter().product();
        let (sums, results) = self.channels();
        // From one channel that is summed over, and of the result, to the next.
        let (sum, result) =
            if self.data { (results * plane, plane) } else { (plane, sums * plane) };
        let axes = &class.axes;
        let merged: usize = axes.iter().map(|a| a.merged).product();
        for (s, sliver) in room.chunks_exact_mut((class.k * LANES).max(1)).enumerate() {
            let lanes = class.lanes.saturating_sub(s * LANES).min(LANES);
            let mut place = [0; LANES];
            for (lane, place) in place[..lanes].iter_mut().enumerate() {
                let (channel, m) = ((s * LANES + lane) / merged, (s * LANES + lane) % merged);
                let (m, m2) = (m / axes[2].merged, m % axes[2].merged);
                let (m0, m1) = (m / axes[1].merged, m % axes[1].merged);
                *place = channel * result + (m0 * kernel[1] + m1) * kernel[2] + m2;
            }
            let mut lines = sliver.chunks_exact_mut(LANES);
            for c in 0..sums {
                for d in 0..axes[0].taps {
                    for h in 0..axes[1].taps {
                        for t in 0..axes[2].taps {
                            let index =
                                |a: usize, t: usize| axes[a].kernel.0 + t * axes[a].kernel.1;
                            let tap = (index(0, d) * kernel[1] + index(1, h)) * kernel[2];
                            let at = c * sum + tap + index(2, t);
                            let Some(line) = lines.next() else { return };
                            for (x, place) in line[..lanes].iter_mut().zip(place) {
                                *x = w[at + place];
                            }
                            line[lanes..].fill(0.0);
                        }
                    }
                }
            }
        }
    }
}

/// Positions that meet the same taps.
struct Class {
    axes: [Axis; 3],
    /// Length of the sums.
    k: usize,
    lanes: usize,
}

impl Class {
    fn slivers(&self) -> usize {
        self.lanes.div_ceil(LANES)
    }

    fn packed(&self) -> usize {
        self.slivers() * self.k * LANES
    }
}

/// Computes `y = bias + walk(x, w)` for every group.
pub(super) fn compute(walk: Walk, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    let shape = walk.shape;
    let (sums, results) = walk.channels();
    let outs = if walk.data { shape.input } else { shape.output };
    let plane: usize = outs.iter().product();
    if y.is_empty() {
        return;
    }
    let ins = if walk.data { shape.output } else { shape.input };
    let sample = ins.iter().product::<usize>() * sums * shape.groups;
    let classes = walk.classes();
    let packed: usize = (0..classes).map(|class| walk.class(class).packed()).sum();
    let y = Target::new(y);
    let filters = w.len() / shape.groups;
    for group in 0..shape.groups {
        with_room(|room| {
            let ([weights], _) = room.parts([packed], 0);
            let mut rest = &mut *weights;
            for class in 0..classes {
                let class = walk.class(class);
                let (part, tail) = rest.split_at_mut(class.packed());
                walk.pack(&class, &w[group * filters..(group + 1) * filters], part);
                rest = tail;
            }
            let source = Source { data: x, sample, channel: group * sums, channels: sums };
            let bias = bias.map(|bias| &bias[group * results..(group + 1) * results]);
            let base = group * results * plane;
            let out = Out { y, sample: results * shape.groups * plane, base, bias };
            Blocks { walk, source, weights, out }.run();
        });
    }
}

/// Where the result goes.
struct Out<'a> {
    y: Target,
    sample: usize,
    base: usize,
    bias: Option<&'a [f32]>,
}

/// One group, cut into blocks of positions.
struct Blocks<'a> {
    walk: Walk<'a>,
    source: Source<'a>,
    weights: &'a [f32],
    out: Out<'a>,
}

impl Blocks<'_> {
    fn run(&self) {
        let classes = self.walk.classes();
        let (mut first, mut end) = ([isize::MAX; 3], [isize::MIN; 3]);
        let (mut widest, mut work) = (1, 0);
        for class in 0..classes {
            let class = self.walk.class(class);
            for (a, axis) in class.axes.iter().enumerate() {
                first[a] = first[a].min(axis.first);
                end[a] = end[a].max(axis.end());
            }
            widest = widest.max(class.slivers());
            let positions: usize = class.axes.iter().map(|a| a.count).product();
            work += positions * class.k.max(1) * class.slivers() * LANES;
        }
        let batch = self.walk.shape.batch;
        let count = std::array::from_fn(|a| (end[a] - first[a]).max(0) as usize);
        let positions: usize = count.iter().product::<usize>() * batch;
        // What a position reads, if none shares with its neighbours.
        let step: usize =
            self.walk.class(0).axes.iter().map(|a| a.step.min(a.size.max(1))).product();
        let reads = (self.source.channels * step).max(1);
        // Cuts may depend on the number of threads: a sum does not depend on its block.
        let tasks = (work * batch / TASK).clamp(1, 4 * threads());
        let most = (BLOCK / (widest * LANES)).min(BLOCK / reads).min(MOST);
        let most = most.min(positions.div_ceil(tasks).next_multiple_of(8)).max(8);
        let cut = Cut::new(batch, first, count, most);
        let columns = (tasks / cut.len().max(1)).clamp(1, widest.div_ceil(2));
        parallel_for(cut.len() * columns, 1, |tasks| {
            for task in tasks {
                let area = cut.area(task / columns);
                let mut packed = 0;
                for class in 0..classes {
                    let class = self.walk.class(class);
                    let at = |i| even(class.slivers(), columns, i);
                    let slivers = at(task % columns)..at(task % columns + 1);
                    let weights = &self.weights[packed..packed + class.packed()];
                    packed += class.packed();
                    self.block(&class, weights, &area.clipped(&class.axes), slivers);
                }
            }
        });
    }

    /// Computes one block of one class.
    fn block(&self, class: &Class, weights: &[f32], area: &Area, slivers: Range<usize>) {
        let (positions, width) = (area.all(), slivers.len() * LANES);
        if positions == 0 || width == 0 {
            return;
        }
        let (axes, k) = (&class.axes, class.k);
        let lanes = slivers.start * LANES..(slivers.end * LANES).min(class.lanes);
        let whole = in_place(axes, self.source.channels);
        let copied = if whole || k == 0 { 0 } else { copy_len(axes, area, self.source.channels) };
        with_room(|room| {
            let parts = [positions * width, copied, lanes.len()];
            let ([sums, copy, bias], offsets) = room.parts(parts, positions + k + lanes.len());
            let (rows, offsets) = offsets.split_at_mut(positions);
            let (steps, places) = offsets.split_at_mut(k);
            if k == 0 {
                sums.fill(0.0);
            } else {
                let image = if whole {
                    Image::whole(&self.source, axes, area)
                } else {
                    Image::copied(&self.source, axes, area, copy)
                };
                image.positions(axes, area, rows);
                image.taps(axes, steps);
                image.check(rows, steps);
                let weights = &weights[slivers.start * k * LANES..slivers.end * k * LANES];
                multiply(kernels(), &image, (rows, steps), weights, sums);
            }
            let merged: usize = axes.iter().map(|a| a.merged).product();
            for (x, lane) in bias.iter_mut().zip(lanes.clone()) {
                *x = self.out.bias.map_or(0.0, |bias| bias[lane / merged]);
            }
            let Out { y, sample, base, .. } = self.out;
            let landing = Landing { y, sample, base, axes, lanes, bias };
            // SAFETY: blocks, classes and lanes land on elements of their own.
            unsafe { landing.store(sums, width, area, places) };
        });
    }
}

/// Computes the sums of all rows, a stretch of steps after the other.
fn multiply(
    code: &Kernels,
    image: &Image,
    (rows, steps): (&[isize], &[isize]),
    weights: &[f32],
    sums: &mut [f32],
) {
    let (k, width) = (steps.len(), sums.len() / rows.len());
    let slivers = width / LANES;
    assert!(weights.len() == slivers * k * LANES && sums.len() == rows.len() * width);
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
        unsafe { code.product(&tile, rows.len(), slivers) };
    }
}
