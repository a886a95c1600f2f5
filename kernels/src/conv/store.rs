//! Brings a block of sums, `[positions, lanes]`, to where it belongs: lanes are channels of the result
//! (and kernel indices that share a source place), so this is a transposition.

use super::axis::Axis;
use super::image::Area;
use super::room::Target;
use crate::cpu::lanes::{Body, LANES, Lanes, dispatch};
use crate::isa::{self, Isa};
use std::ops::Range;

/// A lane that falls outside of the result here.
const NOWHERE: isize = isize::MIN;

/// Where the lanes of a block land.
pub(super) struct Landing<'a> {
    pub y: Target,
    /// Elements from one sample to the next, and from its start to the first channel.
    pub sample: usize,
    pub base: usize,
    pub axes: &'a [Axis; 3],
    /// Lanes of the block.
    pub lanes: Range<usize>,
    /// A number for each lane of the block, added at last.
    pub bias: &'a [f32],
}

impl Landing<'_> {
    /// Stores a block; rows of `c` are `width` apart. `places` has room for one offset a lane.
    ///
    /// # Safety
    /// Nobody else touches the elements that this block lands on.
    pub(super) unsafe fn store(&self, c: &[f32], width: usize, area: &Area, places: &mut [isize]) {
        let positions = area.positions();
        assert!(c.len() >= area.all() * width && places.len() == self.lanes.len());
        let [d, h, w] = self.axes;
        let plane = d.out * h.out * w.out;
        if plane == 0 || positions == 0 {
            return;
        }
        if self.is_run(area) {
            for (place, lane) in places.iter_mut().zip(self.lanes.clone()) {
                *place = (lane * plane) as isize;
            }
            let at = |a: usize| (area.start[a] + self.axes[a].start) as usize;
            let first = self.base + (at(0) * h.out + at(1)) * w.out + at(2);
            let last = self.lanes.end.saturating_sub(1) * plane;
            for s in 0..area.samples.1 {
                let at = first + (area.samples.0 + s) * self.sample;
                // The last lane ends inside of the target.
                let y = self.y.at(at + last, positions).wrapping_sub(last);
                // SAFETY: lanes and positions of the block are in bounds, by the lines above.
                unsafe {
                    columns(&c[s * positions * width..], width, positions, places, self.bias, y)
                };
            }
            return;
        }
        let mut rows = c.chunks_exact(width * area.len[2]);
        for s in 0..area.samples.1 {
            for q in 0..area.len[0] {
                for r in 0..area.len[1] {
                    let Some(row) = rows.next() else { return };
                    let at = (area.samples.0 + s) * self.sample + self.base;
                    let place = |axis: &Axis, q: isize| axis.scale as isize * q + axis.start;
                    let (q, r) = (area.start[0] + q as isize, area.start[1] + r as isize);
                    self.places(place(d, q), place(h, r), places);
                    // SAFETY: handed on.
                    unsafe { self.row(row, width, area, at, places) };
                }
            }
        }
    }

    /// Whether the block is one run of neighbours in each channel.
    fn is_run(&self, area: &Area) -> bool {
        let mut whole = true;
        self.axes.iter().enumerate().rev().all(|(a, axis)| {
            let fits = axis.merged == 1 && axis.scale == 1 && (whole || area.len[a] == 1);
            whole &= area.len[a] == axis.out;
            fits
        })
    }

    /// The offset of each lane's row: channel, plane and line.
    fn places(&self, plane: isize, line: isize, places: &mut [isize]) {
        let [d, h, w] = self.axes;
        let m = [d.merged, h.merged, w.merged];
        for (place, lane) in places.iter_mut().zip(self.lanes.clone()) {
            let (channel, in_w) = (lane / (m[0] * m[1] * m[2]), lane % m[2]);
            let (in_d, in_h) = (lane / (m[1] * m[2]) % m[0], lane / m[2] % m[1]);
            let (plane, line) = (plane + in_d as isize, line + in_h as isize);
            let inside =
                (0..d.out as isize).contains(&plane) && (0..h.out as isize).contains(&line);
            *place = if inside {
                let line =
                    (channel * d.out) as isize * h.out as isize + plane * h.out as isize + line;
                line * w.out as isize + in_w as isize
            } else {
                NOWHERE
            };
        }
    }

    /// Stores one row of positions.
    ///
    /// # Safety
    /// As [`Self::store`].
    unsafe fn row(&self, c: &[f32], width: usize, area: &Area, at: usize, places: &[isize]) {
        let axis = &self.axes[2];
        let scale = axis.scale as isize;
        let start = scale * area.start[2] + axis.start;
        let count = area.len[2];
        let out = axis.out as isize;
        let inside =
            start >= 0 && start + scale * (count as isize - 1) + axis.merged as isize <= out;
        if scale == 1 && inside {
            let last = places.iter().copied().max().unwrap_or(NOWHERE);
            if last == NOWHERE {
                return;
            }
            let last = last as usize + start as usize;
            let y = self.y.at(at + last, count).wrapping_sub(last).wrapping_add(start as usize);
            // SAFETY: the row of the last lane is in bounds, by the line above, and so are the others.
            unsafe { columns(c, width, count, places, self.bias, y) };
            return;
        }
        let merged = axis.merged;
        let mut lane = 0;
        while lane < places.len() {
            // Lanes that are neighbours in the row.
            let first = (self.lanes.start + lane) % merged;
            let group = (merged - first).min(places.len() - lane);
            if places[lane] != NOWHERE {
                let row = at + places[lane] as usize - first;
                let y = self.y.at(row, axis.out);
                let bias = self.bias[lane];
                for q in 0..count {
                    let place = start + scale * q as isize + first as isize;
                    let from = &c[q * width + lane..q * width + lane + group];
                    if inside {
                        for (m, x) in from.iter().enumerate() {
                            // SAFETY: inside of the row, by the test above.
                            unsafe { *y.offset(place + m as isize) = x + bias };
                        }
                    } else {
                        for (m, x) in from.iter().enumerate() {
                            let place = place + m as isize;
                            if (0..out).contains(&place) {
                                // SAFETY: inside of the row, by the line above.
                                unsafe { *y.offset(place) = x + bias };
                            }
                        }
                    }
                }
            }
            lane += group;
        }
    }
}

/// Writes column `l` of `c` `[rows, width]` plus `bias[l]` to `y[places[l]..]`, for every lane that has a
/// place.
///
/// # Safety
/// `rows` elements at each place are in bounds, and nobody else touches them; `width` is a multiple of
/// 4 above `places.len() - 1`.
pub(super) unsafe fn columns(
    c: &[f32],
    width: usize,
    rows: usize,
    places: &[isize],
    bias: &[f32],
    y: *mut f32,
) {
    assert!(c.len() >= rows * width && bias.len() == places.len());
    assert!(width.is_multiple_of(4) && places.len() <= width);
    match isa::active() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these tiers have avx2; the rest is handed on.
        Isa::Avx2 | Isa::Avx512 => unsafe { x86::columns(c, width, rows, places, bias, y) },
        _ => {
            for ((lane, place), bias) in places.iter().enumerate().zip(bias) {
                if *place != NOWHERE {
                    for r in 0..rows {
                        // SAFETY: as the caller vouches.
                        unsafe { *y.offset(*place + r as isize) = c[r * width + lane] + bias };
                    }
                }
            }
        }
    }
}

/// The sum of a row.
pub(super) fn sum(row: &[f32]) -> f32 {
    dispatch(Sum { row })
}

struct Sum<'a> {
    row: &'a [f32],
}

impl Body for Sum<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<L: Lanes>(self) -> f32 {
        let (blocks, rest) = self.row.as_chunks::<LANES>();
        let (pairs, last) = blocks.as_chunks::<4>();
        let mut sums = [L::zero(); 4];
        for pair in pairs {
            for (sum, block) in sums.iter_mut().zip(pair) {
                *sum = sum.add(L::load(block));
            }
        }
        for block in last {
            sums[0] = sums[0].add(L::load(block));
        }
        sums[1] = sums[1].add(L::load_part(rest));
        sums[0].add(sums[1]).add(sums[2].add(sums[3])).reduce_add()
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::NOWHERE;
    use crate::gemm::columns_of;
    use std::arch::x86_64::*;

    /// [`super::columns`] by blocks of 8 rows and 4 lanes.
    ///
    /// # Safety
    /// As there; the CPU has avx2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn columns(
        c: &[f32],
        width: usize,
        rows: usize,
        places: &[isize],
        bias: &[f32],
        y: *mut f32,
    ) {
        for (group, (places, bias)) in places.chunks(4).zip(bias.chunks(4)).enumerate() {
            for top in (0..rows).step_by(8) {
                let here = (rows - top).min(8);
                // Rows beyond the last are replaced by the last.
                let lines = std::array::from_fn(|j| {
                    c.as_ptr().wrapping_add((top + j.min(here - 1)) * width + 4 * group)
                });
                // SAFETY: 4 numbers of each of these rows are in `c`.
                let columns = unsafe { columns_of(lines) };
                for ((place, bias), x) in places.iter().zip(bias).zip(columns) {
                    if *place == NOWHERE {
                        continue;
                    }
                    let x = _mm256_add_ps(x, _mm256_set1_ps(*bias));
                    let to = y.wrapping_offset(*place + top as isize);
                    // SAFETY: `here` elements at `to` are in bounds, as the caller vouches.
                    unsafe {
                        if here == 8 {
                            _mm256_storeu_ps(to, x);
                            continue;
                        }
                        let mut room = [0.0f32; 8];
                        _mm256_storeu_ps(room.as_mut_ptr(), x);
                        if here >= 4 {
                            // Two stores that overlap.
                            let tail = room.as_ptr().add(here - 4);
                            _mm_storeu_ps(to, _mm256_castps256_ps128(x));
                            _mm_storeu_ps(to.add(here - 4), _mm_loadu_ps(tail));
                        } else {
                            for (r, x) in room[..here].iter().enumerate() {
                                *to.add(r) = *x;
                            }
                        }
                    }
                }
            }
        }
    }
}
