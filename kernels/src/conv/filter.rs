//! The gradient of the filter: rows of sums are taps of the source's channels, lanes are channels of
//! the result, steps are positions.
//!
//! `d_y` is transposed block by block into slivers; the source is read where it lies or from a copy
//! with zeros around, as in the forward.

use super::axis::Way;
use super::image::{Area, Cut, Image, Source, copy_len, in_place};
use super::room::{Target, with_room};
use super::store::columns;
use super::tile::{Kernels, Tile, even, kernels};
use super::{ConvShape, bias_backward};
use crate::cpu::ahead::Ahead;
use crate::cpu::lanes::LANES;
use crate::gemm::pack_slivers;
use crate::threads::{parallel_for, threads};
use std::ops::Range;

/// Positions of one pass: 48 columns of slivers (96 KiB) then stream from the second-level cache.
const KC: usize = 512;
/// Numbers of the source that are copied at a time.
const COPY: usize = 1 << 16;
/// Multiply-adds that are worth a task of their own.
const TASK: usize = 1 << 20;

/// Computes the gradients of the filter and of the bias.
pub(super) fn compute(
    shape: &ConvShape,
    x: &[f32],
    d_y: &[f32],
    d_w: &mut [f32],
    d_bias: Option<&mut [f32]>,
) {
    let (inputs, outputs) = shape.group_channels();
    let taps: usize = shape.kernel.iter().product();
    let positions: usize = shape.output.iter().product();
    if positions * shape.batch == 0 {
        d_w.fill(0.0);
        d_bias.into_iter().for_each(|d| d.fill(0.0));
        return;
    }
    if let Some(mirrored) = mirrored(shape) {
        return mirror(&mirrored, x, d_y, d_w, d_bias);
    }
    let slivers = outputs.div_ceil(LANES);
    let work = positions * shape.batch * inputs * taps * slivers * LANES;
    // Cuts may depend on the number of threads: a sum does not depend on the cut it lies in.
    let tasks = if threads() == 1 { 1 } else { (work / TASK).clamp(1, 2 * threads()) };
    let rows = tasks.min(inputs).max(1);
    let cols = (tasks / rows).clamp(1, slivers.max(1));
    let (d_w, no_bias) = (Target::new(d_w), d_bias.is_none());
    let d_bias = Target::new(d_bias.unwrap_or(&mut []));
    parallel_for(shape.groups * rows * cols, 1, |tasks| {
        for task in tasks {
            let (group, row, col) = (task / (rows * cols), task / cols % rows, task % cols);
            let channels = even(inputs, rows, row)..even(inputs, rows, row + 1);
            let first = even(slivers, cols, col) * LANES;
            let last = (even(slivers, cols, col + 1) * LANES).min(outputs);
            let task = Task {
                shape,
                x,
                d_y,
                group,
                channels,
                lanes: first..last,
                d_w,
                d_bias: if row == 0 && !no_bias { Some(d_bias) } else { None },
            };
            task.run();
        }
    });
}

/// The convolution in which data and result change places, if the filter's gradient is cheaper there:
/// its result has the channels to fill the lanes with. `None` also where a stride is in the way.
fn mirrored(shape: &ConvShape) -> Option<ConvShape> {
    let (inputs, outputs) = shape.group_channels();
    let mut padding = [0; 3];
    for (a, padding) in padding.iter_mut().enumerate() {
        let reach = shape.dilation[a] * (shape.kernel[a] - 1);
        *padding = reach.checked_sub(shape.padding[a])?;
        if shape.stride[a] != 1 || shape.output[a] + reach != shape.input[a] + 2 * shape.padding[a]
        {
            return None;
        }
    }
    let cost = |rows: usize, lanes: usize, places: [usize; 3]| {
        (rows * lanes.div_ceil(LANES)).saturating_mul(places.iter().product())
    };
    let (here, there) = (cost(inputs, outputs, shape.output), cost(outputs, inputs, shape.input));
    // A third pass over `d_y` and turning the result around must pay.
    (there + there / 4 < here).then_some(ConvShape {
        channels_in: shape.channels_out,
        channels_out: shape.channels_in,
        input: shape.output,
        output: shape.input,
        padding,
        ..*shape
    })
}

/// Computes the gradients by those of the mirrored convolution: channels change places, and taps are
/// counted from the other end.
fn mirror(
    mirrored: &ConvShape,
    x: &[f32],
    d_y: &[f32],
    d_w: &mut [f32],
    d_bias: Option<&mut [f32]>,
) {
    let (outputs, inputs) = mirrored.group_channels();
    let taps: usize = mirrored.kernel.iter().product();
    with_room(|room| {
        let ([turned], _) = room.parts([d_w.len()], 0);
        compute(mirrored, d_y, x, turned, None);
        for (row, d_w) in d_w.chunks_exact_mut(taps).enumerate() {
            let (output, input) = (row / inputs, row % inputs);
            let (group, output) = (output / outputs, output % outputs);
            let from = ((group * inputs + input) * outputs + output) * taps;
            let from = turned[from..from + taps].iter().rev();
            d_w.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        }
    });
    if let Some(d_bias) = d_bias {
        bias_backward(d_y, d_bias, mirrored.input.iter().product());
    }
}

/// Some channels of the source and some of the result, over all positions of all samples.
struct Task<'a> {
    shape: &'a ConvShape,
    x: &'a [f32],
    d_y: &'a [f32],
    group: usize,
    /// Within the group.
    channels: Range<usize>,
    lanes: Range<usize>,
    d_w: Target,
    d_bias: Option<Target>,
}

impl Task<'_> {
    fn run(&self) {
        let shape = self.shape;
        let axes = [0, 1, 2].map(|a| Way::Forward.axis(shape, a));
        let walk = [0, 1, 2].map(|a| Way::Forward.taps(shape, a, 0));
        let taps: usize = shape.kernel.iter().product();
        let (inputs, outputs) = shape.group_channels();
        let (rows, lanes) = (self.channels.len() * taps, self.lanes.len());
        if lanes == 0 || rows == 0 && self.d_bias.is_none() {
            return;
        }
        let width = lanes.next_multiple_of(LANES);
        let source = Source {
            data: self.x,
            sample: shape.input.iter().product::<usize>() * inputs * shape.groups,
            channel: self.group * inputs + self.channels.start,
            channels: self.channels.len(),
        };
        let whole = in_place(&axes, source.channels);
        // A block of whole samples is one pass; a block of one sample is cut into passes.
        let step: usize = axes.iter().map(|a| a.step.min(a.size.max(1))).product();
        let plane: usize = shape.output.iter().product();
        let most = if plane < KC || whole { KC } else { 4 * KC };
        let most = most.min(COPY / (source.channels * step).max(1)).max(16);
        let cut = Cut::new(shape.batch, [0; 3], shape.output, most);
        // The first block is as large as any.
        let copied = if whole { 0 } else { copy_len(&axes, &cut.area(0), source.channels) };
        let pass = cut.most().min(KC);
        with_room(|room| {
            let parts = [rows * width, copied, pass * width, width];
            let ([sums, copy, slivers, bias], offsets) =
                room.parts(parts, rows + cut.most() + lanes);
            let (taps, offsets) = offsets.split_at_mut(rows);
            let (places, positions) = offsets.split_at_mut(lanes);
            sums.fill(0.0);
            bias.fill(0.0);
            for block in 0..cut.len() {
                let area = cut.area(block);
                let image = if whole {
                    Image::whole(&source, &axes, &area)
                } else {
                    Image::copied(&source, &axes, &area, copy)
                };
                let positions = &mut positions[..area.all()];
                image.positions(&axes, &area, positions);
                image.taps(&walk, taps);
                image.check(taps, positions);
                let (code, passes) = (kernels(), positions.len().div_ceil(KC));
                let tiles = code.tiles(rows, width / LANES) * passes;
                let next = self.next(&source, block, cut.len());
                let ahead = Ahead::new(next.as_ptr(), next.len(), tiles);
                for p in 0..passes {
                    let range =
                        even(positions.len(), passes, p)..even(positions.len(), passes, p + 1);
                    let steps = &positions[range.clone()];
                    let slivers = &mut slivers[..steps.len() * width];
                    self.pack(&area, range, slivers);
                    if self.d_bias.is_some() {
                        add_up(slivers, steps.len(), bias);
                    }
                    multiply((code, &ahead), &image, (taps, steps), slivers, sums);
                }
            }
            let all = (shape.kernel.iter().product::<usize>()) * inputs;
            let first = self.group * outputs + self.lanes.start;
            if let Some(d_bias) = self.d_bias {
                let y = d_bias.at(first, lanes);
                for (lane, sum) in bias[..lanes].iter().enumerate() {
                    // SAFETY: `at` checked the bounds; one task has these lanes.
                    unsafe { *y.add(lane) = *sum };
                }
            }
            if rows > 0 {
                let at = first * all + self.channels.start * (all / inputs);
                for (lane, place) in places.iter_mut().enumerate() {
                    *place = (lane * all) as isize;
                }
                let last = (lanes - 1) * all;
                let y = self.d_w.at(at + last, rows).wrapping_sub(last);
                bias.fill(0.0);
                // SAFETY: the rows of the last lane are in bounds, by the line above; tasks have
                // channels and lanes of their own.
                unsafe { columns(sums, width, rows, places, &bias[..lanes], y) };
            }
        });
    }

    /// What to fetch during block `block`: as large a part of this task's channels of the next samples.
    fn next<'a>(&self, source: &Source<'a>, block: usize, blocks: usize) -> &'a [f32] {
        let plane: usize = self.shape.input.iter().product();
        let (batch, each) = (self.shape.batch, source.channels * plane);
        let (sample, part) = (block * batch / blocks, each * batch / blocks);
        let later = if batch > blocks { batch.div_ceil(blocks) } else { 1 };
        if sample + later >= batch || part == 0 {
            return &[];
        }
        let within = (block * batch % blocks) * each / blocks;
        let from = (sample + later) * source.sample + source.channel * plane + within;
        &source.data[from..(from + part).min(source.data.len())]
    }

    /// Transposes positions `range` of a block of `d_y` into slivers of so many steps.
    fn pack(&self, area: &Area, range: Range<usize>, slivers: &mut [f32]) {
        let shape = self.shape;
        let plane: usize = shape.output.iter().product();
        let sample = plane * shape.channels_out;
        let channel = self.group * shape.group_channels().1 + self.lanes.start;
        let start = area.start.map(|s| s as usize);
        let first = (start[0] * shape.output[1] + start[1]) * shape.output[2] + start[2];
        let stride = range.len() * LANES;
        let each = area.positions();
        let mut done = 0;
        // A block is a run of neighbours in each sample.
        while done < range.len() {
            let (s, p) = ((range.start + done) / each, (range.start + done) % each);
            let run = (each - p).min(range.len() - done);
            let at = (area.samples.0 + s) * sample + channel * plane + first + p;
            let from = &self.d_y[at..at + (self.lanes.len() - 1) * plane + run];
            let to = &mut slivers[done * LANES..];
            pack_slivers(from, plane, (run, self.lanes.len()), to, stride);
            done += run;
        }
    }
}

/// Adds the steps of each sliver to `sums`.
fn add_up(slivers: &[f32], steps: usize, sums: &mut [f32]) {
    for (sliver, sums) in slivers.chunks_exact(steps * LANES).zip(sums.chunks_exact_mut(LANES)) {
        for line in sliver.chunks_exact(LANES) {
            for (sum, x) in sums.iter_mut().zip(line) {
                *sum += x;
            }
        }
    }
}

/// Adds the products of all steps to the sums of all rows.
fn multiply(
    (code, ahead): (&Kernels, &Ahead),
    image: &Image,
    (rows, steps): (&[isize], &[isize]),
    slivers: &[f32],
    sums: &mut [f32],
) {
    if rows.is_empty() {
        return;
    }
    let width = sums.len() / rows.len();
    let sliver = steps.len() * LANES;
    assert!(slivers.len() == width * steps.len() && sums.len() == rows.len() * width);
    let tile = Tile {
        a: image.data.as_ptr(),
        rows: rows.as_ptr(),
        steps: steps.as_ptr(),
        k: steps.len(),
        b: slivers.as_ptr(),
        b_sliver: sliver,
        c: sums.as_mut_ptr(),
        c_row: width,
        from_c: true,
    };
    // SAFETY: `Image::check` bounds every row and step; slivers and sums have the lengths that were
    // asserted above; `kernels` gave code that this CPU runs.
    unsafe { code.product(&tile, rows.len(), width / LANES, ahead) };
}
