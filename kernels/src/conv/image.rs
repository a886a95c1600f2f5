//! The source of a block of positions: in place where every tap lies inside of it, else copied with
//! zeros around, a block at a time.

use super::axis::{Axis, Taps};

/// A block of positions: some samples, and a range of each axis.
#[derive(Debug, Clone, Copy)]
pub(super) struct Area {
    /// First sample and number of samples.
    pub samples: (usize, usize),
    /// First position along each axis.
    pub start: [isize; 3],
    /// Positions along each axis.
    pub len: [usize; 3],
}

impl Area {
    /// Positions in one sample.
    pub(super) fn positions(&self) -> usize {
        self.len.iter().product()
    }

    /// Positions in all samples.
    pub(super) fn all(&self) -> usize {
        self.samples.1 * self.positions()
    }
}

/// A grid of positions cut into blocks. Only one axis of a block is cut; those inside of it are
/// whole, so that a block is a run of neighbours.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    first: [isize; 3],
    /// Samples and positions along each axis, in all and in a block.
    total: [usize; 4],
    block: [usize; 4],
}

impl Cut {
    /// Cuts so that a block has at most `most` positions.
    pub(super) fn new(batch: usize, first: [isize; 3], count: [usize; 3], most: usize) -> Cut {
        let total = [batch, count[0], count[1], count[2]];
        let mut block = [1; 4];
        let mut left = most.max(1);
        for axis in (0..4).rev() {
            let pieces = total[axis].div_ceil(left).max(1);
            block[axis] = total[axis].div_ceil(pieces).max(1);
            if pieces > 1 {
                break;
            }
            left = (left / total[axis].max(1)).max(1);
        }
        Cut { first, total, block }
    }

    fn pieces(&self) -> [usize; 4] {
        std::array::from_fn(|a| self.total[a].div_ceil(self.block[a]))
    }

    /// Number of blocks.
    pub(super) fn len(&self) -> usize {
        self.pieces().iter().product()
    }

    /// Positions of the largest block.
    pub(super) fn most(&self) -> usize {
        self.block.iter().product()
    }

    /// Block `i`.
    pub(super) fn area(&self, i: usize) -> Area {
        let pieces = self.pieces();
        let (mut left, mut start, mut len) = (i, [0; 4], [0; 4]);
        for a in (0..4).rev() {
            start[a] = left % pieces[a] * self.block[a];
            left /= pieces[a];
            len[a] = self.block[a].min(self.total[a] - start[a]);
        }
        Area {
            samples: (start[0], len[0]),
            start: std::array::from_fn(|a| self.first[a] + start[a + 1] as isize),
            len: [len[1], len[2], len[3]],
        }
    }
}

/// An array `[batch, channels, d, h, w]` to read from.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub data: &'a [f32],
    /// Elements from one sample to the next.
    pub sample: usize,
    /// First channel.
    pub channel: usize,
    /// Number of channels.
    pub channels: usize,
}

/// The source of one block, ready to be read without a look at its borders.
pub(super) struct Image<'a> {
    pub data: &'a [f32],
    /// Offset of the first sample's first channel.
    base: isize,
    /// Steps from one sample, channel, plane, row to the next.
    strides: [usize; 4],
    /// The source place that `base` stands for.
    origin: [isize; 3],
}

/// Channels a multiple of this many elements apart fall into few sets of the first-level cache.
const ALIASED: usize = 256;

/// Whether the source can be read where it lies.
pub(super) fn in_place(axes: &[Axis; 3], channels: usize) -> bool {
    let plane: usize = axes.iter().map(|a| a.size).product();
    axes.iter().all(Axis::is_inside) && (channels < 16 || !plane.is_multiple_of(ALIASED))
}

/// Size and origin of what a block reads.
fn extent(axes: &[Axis; 3], area: &Area) -> ([usize; 3], [isize; 3]) {
    let (mut size, mut origin) = ([0; 3], [0; 3]);
    for (a, axis) in axes.iter().enumerate() {
        let (low, high) = axis.reach;
        origin[a] = axis.step as isize * area.start[a] + low;
        size[a] = axis.step * area.len[a].saturating_sub(1) + (high - low) as usize + 1;
    }
    (size, origin)
}

/// Elements from one channel of a copy to the next: an odd number of cache lines, so that channels
/// spread over the sets of the cache.
fn channel_stride(size: [usize; 3]) -> usize {
    (size.iter().product::<usize>().div_ceil(16) | 1) * 16
}

/// Room that the copy of a block takes.
pub(super) fn copy_len(axes: &[Axis; 3], area: &Area, channels: usize) -> usize {
    area.samples.1 * channels * channel_stride(extent(axes, area).0)
}

impl<'a> Image<'a> {
    /// The source where it lies.
    pub(super) fn whole(source: &Source<'a>, axes: &[Axis; 3], area: &Area) -> Image<'a> {
        let (row, plane) = (axes[2].size, axes[1].size * axes[2].size);
        let channel = axes[0].size * plane;
        Image {
            data: source.data,
            base: (area.samples.0 * source.sample + source.channel * channel) as isize,
            strides: [source.sample, channel, plane, row],
            origin: [0; 3],
        }
    }

    /// Copies what a block reads into `room`, with zeros around.
    pub(super) fn copied(
        source: &Source,
        axes: &[Axis; 3],
        area: &Area,
        room: &'a mut [f32],
    ) -> Image<'a> {
        let (size, origin) = extent(axes, area);
        let channel = channel_stride(size);
        let plane = axes[0].size * axes[1].size * axes[2].size;
        // The part of a row that exists.
        let skip = (-origin[2]).clamp(0, size[2] as isize) as usize;
        let end = (axes[2].size as isize - origin[2]).clamp(skip as isize, size[2] as isize);
        let (end, place) = (end as usize, (origin[2] + skip as isize) as usize);
        for s in 0..area.samples.1 {
            for c in 0..source.channels {
                let from = (area.samples.0 + s) * source.sample + (source.channel + c) * plane;
                let from = &source.data[from..from + plane];
                let to = &mut room[(s * source.channels + c) * channel..][..channel];
                let mut rows = to.chunks_exact_mut(size[2]);
                for d in 0..size[0] {
                    for h in 0..size[1] {
                        let Some(row) = rows.next() else { break };
                        let (d, h) = (origin[0] + d as isize, origin[1] + h as isize);
                        let inside = (0..axes[0].size as isize).contains(&d)
                            && (0..axes[1].size as isize).contains(&h);
                        if !inside || skip == end {
                            row.fill(0.0);
                            continue;
                        }
                        let at = (d as usize * axes[1].size + h as usize) * axes[2].size + place;
                        row[..skip].fill(0.0);
                        row[skip..end].copy_from_slice(&from[at..at + end - skip]);
                        row[end..].fill(0.0);
                    }
                }
            }
        }
        let strides = [source.channels * channel, channel, size[1] * size[2], size[2]];
        Image { data: room, base: 0, strides, origin }
    }

    /// Offsets of the positions of a block, in order.
    pub(super) fn positions(&self, axes: &[Axis; 3], area: &Area, offsets: &mut [isize]) {
        let step: [isize; 3] = axes.map(|a| a.step as isize);
        let start: [isize; 3] = std::array::from_fn(|a| step[a] * area.start[a] - self.origin[a]);
        let [sample, _, plane, row] = self.strides.map(|s| s as isize);
        let mut runs = offsets.chunks_exact_mut(area.len[2].max(1));
        for s in 0..area.samples.1 as isize {
            for d in 0..area.len[0] as isize {
                for h in 0..area.len[1] as isize {
                    let Some(run) = runs.next() else { return };
                    let mut at = self.base
                        + s * sample
                        + (start[0] + d * step[0]) * plane
                        + (start[1] + h * step[1]) * row
                        + start[2];
                    for offset in run {
                        *offset = at;
                        at += step[2];
                    }
                }
            }
        }
    }

    /// Offsets of the taps of each channel, in order.
    pub(super) fn taps(&self, taps: &[Taps; 3], offsets: &mut [isize]) {
        let [_, channel, plane, row] = self.strides.map(|s| s as isize);
        let tap = |a: usize, t: usize| taps[a].from.0 + t as isize * taps[a].from.1;
        let count: usize = taps.iter().map(|t| t.count).product();
        for (c, offsets) in offsets.chunks_exact_mut(count.max(1)).enumerate() {
            let mut places = offsets.iter_mut();
            for d in 0..taps[0].count {
                for h in 0..taps[1].count {
                    let base = c as isize * channel + tap(0, d) * plane + tap(1, h) * row;
                    for w in 0..taps[2].count {
                        if let Some(place) = places.next() {
                            *place = base + tap(2, w);
                        }
                    }
                }
            }
        }
    }

    /// Asserts that every pair of a row and a step lies in the image.
    pub(super) fn check(&self, rows: &[isize], steps: &[isize]) {
        let span = |offsets: &[isize]| {
            offsets
                .iter()
                .fold((isize::MAX, isize::MIN), |(low, high), x| (low.min(*x), high.max(*x)))
        };
        if !rows.is_empty() && !steps.is_empty() {
            let (rows, steps) = (span(rows), span(steps));
            assert!(rows.0 + steps.0 >= 0 && rows.1 + steps.1 < self.data.len() as isize);
        }
    }
}
