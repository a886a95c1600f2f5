//! Brings a block of sums, `[positions, lanes]`, to where it belongs: lanes are channels of the result
//! (and kernel indices that share a source place), so this is a transposition.

use super::axis::Axis;
use super::image::Area;
use super::room::Target;
use crate::cpu::lanes::{Body, LANES, Lanes, dispatch};
use crate::isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::Isa;
use std::ops::Range;

/// A lane that falls outside of the result here.
const NOWHERE: isize = isize::MIN;

/// Where the sums of a block land.
pub(super) struct Landing<'a> {
    pub y: Target,
    /// Elements from one sample to the next, and from its start to the first channel.
    pub sample: usize,
    pub base: usize,
    pub axes: &'a [Axis; 3],
    /// Lanes of the block: channels, and for each the merged neighbours along each axis.
    pub lanes: Range<usize>,
    /// Columns of a pass; the passes of all classes stand side by side.
    pub pass_width: usize,
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
        if d.out * h.out * w.out == 0 || positions == 0 || places.is_empty() {
            return;
        }
        let mut kept = self.places((0, d.merged), (0, h.merged), places);
        let last = places[places.len() - 1] as usize;
        if self.is_run(area) {
            let at = |a: usize| (area.start[a] + self.axes[a].start) as usize;
            let first = self.base + (at(0) * h.out + at(1)) * w.out + at(2);
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
            let at = (area.samples.0 + s) * self.sample + self.base;
            for q in 0..area.len[0] as isize {
                for r in 0..area.len[1] as isize {
                    let Some(row) = rows.next() else { return };
                    for class in 0..d.classes * h.classes {
                        let (class_d, class_h) = (class / h.classes, class % h.classes);
                        let place = |axis: &Axis, q: isize, class: usize| {
                            axis.scale() as isize * q + axis.start + class as isize
                        };
                        let plane = place(d, area.start[0] + q, class_d);
                        let line = place(h, area.start[1] + r, class_h);
                        let inside = (inside(d, plane), inside(h, line));
                        if inside != kept {
                            kept = self.places(inside.0, inside.1, places);
                        }
                        let at = at as isize + (plane * h.out as isize + line) * w.out as isize;
                        let row = &row[class * w.classes * self.pass_width..];
                        // SAFETY: handed on.
                        unsafe { self.row(row, width, area, at, places) };
                    }
                }
            }
        }
    }

    /// Whether the block is one run of neighbours in each channel.
    fn is_run(&self, area: &Area) -> bool {
        let mut whole = true;
        self.axes.iter().enumerate().rev().all(|(a, axis)| {
            let fits = axis.scale() == 1 && (whole || area.len[a] == 1);
            whole &= area.len[a] == axis.out;
            fits
        })
    }

    /// The offset of each lane from a place of the first channel; [`NOWHERE`] for neighbours along the
    /// first two axes that are not in these ranges, which are returned.
    fn places(&self, m0: Span, m1: Span, places: &mut [isize]) -> (Span, Span) {
        let [d, h, w] = self.axes;
        let merged = h.merged * w.merged;
        let mut at = (
            self.lanes.start / (d.merged * merged),
            self.lanes.start / merged % d.merged,
            self.lanes.start / w.merged % h.merged,
            self.lanes.start % w.merged,
        );
        for place in places {
            let inside = (m0.0..m0.1).contains(&at.1) && (m1.0..m1.1).contains(&at.2);
            *place = if inside {
                let (plane, line) = (at.0 * d.out + at.1 * d.classes, at.2 * h.classes);
                ((plane * h.out + line) * w.out + at.3 * w.classes) as isize
            } else {
                NOWHERE
            };
            at.3 += 1;
            if at.3 == w.merged {
                at = (at.0, at.1, at.2 + 1, 0);
            }
            if at.2 == h.merged {
                at = (at.0, at.1 + 1, 0, at.3);
            }
            if at.1 == d.merged {
                at = (at.0 + 1, 0, at.2, at.3);
            }
        }
        (m0, m1)
    }

    /// Stores one row of positions; `at` is the start of its line in the first channel.
    ///
    /// # Safety
    /// As [`Self::store`].
    unsafe fn row(&self, c: &[f32], width: usize, area: &Area, at: isize, places: &[isize]) {
        let axis = &self.axes[2];
        let (scale, count, out) = (axis.scale() as isize, area.len[2], axis.out as isize);
        let start = scale * area.start[2] + axis.start;
        let on_line = |place: &isize| *place != NOWHERE;
        let Some(first) = places.iter().position(on_line) else { return };
        let Some(last) = places.iter().rposition(on_line) else { return };
        // The lines of the first and the last lane lie in the target, and so do those between.
        let neighbour = |lane: usize| (self.lanes.start + lane) % axis.merged * axis.classes;
        let line = |lane: usize| (at + places[lane]) as usize - neighbour(lane);
        self.y.at(line(first), axis.out);
        let y = self.y.at(line(last), axis.out).wrapping_sub(line(last)).wrapping_offset(at);
        let inside = start >= 0 && start + scale * count as isize <= out;
        let fits = |class: usize| {
            ((out - start - class as isize).max(0) as usize).div_ceil(scale as usize)
        };
        let y = y.wrapping_offset(start);
        match (axis.classes, axis.merged) {
            // SAFETY: the row lies in the line.
            (1, 1) if inside => unsafe { columns(c, width, count, places, self.bias, y) },
            (2, 1) if start >= 0 => {
                let both = (count.min(fits(0)), count.min(fits(1)));
                let pair = (c, &c[self.pass_width..]);
                // SAFETY: so many places of either class lie in the line.
                unsafe { interleaved(pair, width, both, places, self.bias, y) };
            }
            (1, merged) if inside => {
                let mut lane = 0;
                while lane < places.len() {
                    let left = merged - (self.lanes.start + lane) % merged;
                    let group = left.min(places.len() - lane);
                    if places[lane] != NOWHERE {
                        let to = y.wrapping_offset(places[lane]);
                        let from = &c[lane..];
                        // SAFETY: each group lies in the line.
                        unsafe {
                            groups((from, width), (group, count), self.bias[lane], to, merged)
                        };
                    }
                    lane += group;
                }
            }
            (classes, _) => {
                for class in 0..classes {
                    for (lane, place) in places.iter().enumerate() {
                        if *place == NOWHERE {
                            continue;
                        }
                        let first = (class + neighbour(lane)) as isize;
                        for q in 0..count {
                            let step = scale * q as isize;
                            if (0..out).contains(&(start + step + first)) {
                                let x = c[q * width + class * self.pass_width + lane];
                                let to = y.wrapping_offset(*place + class as isize + step);
                                // SAFETY: inside of the line, by the test above.
                                unsafe { *to = x + self.bias[lane] };
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A range of merged neighbours.
type Span = (usize, usize);

/// The merged neighbours along an axis that lie in the result, the first of them at `place`.
fn inside(axis: &Axis, place: isize) -> Span {
    let classes = axis.classes as isize;
    let first = (-place).max(0).unsigned_abs().div_ceil(axis.classes);
    let end = (axis.out as isize - place + classes - 1).div_euclid(classes).max(0);
    (first.min(axis.merged), (end as usize).min(axis.merged))
}

/// Copies `count` groups of `group` neighbours, plus `bias`: one from each row of `c`, `step` elements
/// from one to the next.
///
/// # Safety
/// They are in bounds at `y`, and nobody else touches them.
unsafe fn groups(
    (c, width): (&[f32], usize),
    (group, count): (usize, usize),
    bias: f32,
    y: *mut f32,
    step: usize,
) {
    /// Groups of a size that is known early.
    ///
    /// # Safety
    /// As [`groups`].
    unsafe fn fixed<const N: usize>(c: &[f32], width: usize, count: usize, bias: f32, y: *mut f32) {
        for (q, row) in c.chunks(width).take(count).enumerate() {
            let Some(from) = row.first_chunk::<N>() else { return };
            // SAFETY: as the caller vouches.
            unsafe { y.add(q * N).cast::<[f32; N]>().write_unaligned(from.map(|x| x + bias)) };
        }
    }
    assert!(count == 0 || c.len() >= (count - 1) * width + group);
    // SAFETY: handed on.
    unsafe {
        match group {
            2 if step == 2 => fixed::<2>(c, width, count, bias, y),
            3 if step == 3 => fixed::<3>(c, width, count, bias, y),
            4 if step == 4 => fixed::<4>(c, width, count, bias, y),
            8 if step == 8 => fixed::<8>(c, width, count, bias, y),
            12 if step == 12 => fixed::<12>(c, width, count, bias, y),
            16 if step == 16 => fixed::<16>(c, width, count, bias, y),
            _ => {
                for (q, row) in c.chunks(width).take(count).enumerate() {
                    for (m, x) in row[..group].iter().enumerate() {
                        *y.add(q * step + m) = x + bias;
                    }
                }
            }
        }
    }
}

/// Writes column `l` of `c.0` plus `bias[l]` to every second element from `y[places[l]]` on, and that
/// of `c.1` between, `rows.0` and `rows.1` of them; these differ by 1 at most.
///
/// # Safety
/// As [`columns`].
unsafe fn interleaved(
    c: (&[f32], &[f32]),
    width: usize,
    rows: (usize, usize),
    places: &[isize],
    bias: &[f32],
    y: *mut f32,
) {
    let whole = rows.0.min(rows.1);
    assert!(whole == 0 || c.1.len() >= (whole - 1) * width + places.len().next_multiple_of(4));
    assert!(bias.len() == places.len() && width.is_multiple_of(4));
    let done = match isa::active() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 => {
            // SAFETY: these tiers have avx2; the rest is handed on.
            unsafe { x86::interleaved(c, width, whole, places, bias, y) };
            whole
        }
        _ => 0,
    };
    for (lane, place) in places.iter().enumerate() {
        if *place == NOWHERE {
            continue;
        }
        for r in done..rows.0 {
            // SAFETY: as the caller vouches.
            unsafe { *y.offset(*place + 2 * r as isize) = c.0[r * width + lane] + bias[lane] };
        }
        for r in done..rows.1 {
            // SAFETY: as the caller vouches.
            unsafe { *y.offset(*place + 2 * r as isize + 1) = c.1[r * width + lane] + bias[lane] };
        }
    }
}

/// Writes column `l` of `c` `[rows, width]` plus `bias[l]` to `y[places[l]..]`, for every lane that has a
/// place.
///
/// # Safety
/// `rows` elements at each place are in bounds, and nobody else touches them.
pub(super) unsafe fn columns(
    c: &[f32],
    width: usize,
    rows: usize,
    places: &[isize],
    bias: &[f32],
    y: *mut f32,
) {
    assert!(rows == 0 || c.len() >= (rows - 1) * width + places.len().next_multiple_of(4));
    assert!(bias.len() == places.len() && width.is_multiple_of(4));
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
                    unsafe { store_first(x, here, to) };
                }
            }
        }
    }

    /// [`super::interleaved`] for as many rows of either side, by blocks of 8 rows and 4 lanes.
    ///
    /// # Safety
    /// As there; the CPU has avx2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn interleaved(
        c: (&[f32], &[f32]),
        width: usize,
        rows: usize,
        places: &[isize],
        bias: &[f32],
        y: *mut f32,
    ) {
        for (group, (places, bias)) in places.chunks(4).zip(bias.chunks(4)).enumerate() {
            for top in (0..rows).step_by(8) {
                let here = (rows - top).min(8);
                let lines = |c: &[f32]| {
                    std::array::from_fn(|j| {
                        c.as_ptr().wrapping_add((top + j.min(here - 1)) * width + 4 * group)
                    })
                };
                // SAFETY: 4 numbers of each of these rows are in either slice.
                let (even, odd) = unsafe { (columns_of(lines(c.0)), columns_of(lines(c.1))) };
                for (((place, bias), x), z) in places.iter().zip(bias).zip(even).zip(odd) {
                    if *place == NOWHERE {
                        continue;
                    }
                    let bias = _mm256_set1_ps(*bias);
                    let (x, z) = (_mm256_add_ps(x, bias), _mm256_add_ps(z, bias));
                    let (low, high) = (_mm256_unpacklo_ps(x, z), _mm256_unpackhi_ps(x, z));
                    let first = _mm256_permute2f128_ps::<0x20>(low, high);
                    let second = _mm256_permute2f128_ps::<0x31>(low, high);
                    let to = y.wrapping_offset(*place + 2 * top as isize);
                    // SAFETY: `2 * here` elements at `to` are in bounds, as the caller vouches.
                    unsafe {
                        store_first(first, (2 * here).min(8), to);
                        if here > 4 {
                            store_first(second, 2 * here - 8, to.add(8));
                        }
                    }
                }
            }
        }
    }

    /// Stores the first `count` of 8 numbers.
    ///
    /// # Safety
    /// `count` elements at `to` are in bounds; the CPU has avx2.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn store_first(x: __m256, count: usize, to: *mut f32) {
        // SAFETY: as the caller vouches; `room` holds 8.
        unsafe {
            if count == 8 {
                return _mm256_storeu_ps(to, x);
            }
            let mut room = [0.0f32; 8];
            _mm256_storeu_ps(room.as_mut_ptr(), x);
            if count >= 4 {
                // Two stores that overlap.
                let tail = room.as_ptr().add(count - 4);
                _mm_storeu_ps(to, _mm256_castps256_ps128(x));
                _mm_storeu_ps(to.add(count - 4), _mm_loadu_ps(tail));
            } else {
                for (r, x) in room[..count].iter().enumerate() {
                    *to.add(r) = *x;
                }
            }
        }
    }
}
