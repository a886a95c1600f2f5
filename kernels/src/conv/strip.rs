//! Few channels of the result: lanes are neighbours along the rows of the source instead.
//!
//! Where positions step by 1, those of one plane are one run through the (copied) image, with some
//! idle places at the end of each line: sixteen neighbours are one load, and each channel multiplies
//! them by one weight. Nothing is idle but the line ends, however few channels there are.

use super::image::{Area, Cut, Image, copy_len};
use super::product::{Out, Pass, Walk, passes};
use super::room::with_room;
use super::tile::even;
use crate::cpu::lanes::{Block, LANES, Lanes};
use crate::isa::{self, Isa};
use crate::threads::{parallel_for, threads};

/// Numbers of the source that are copied for one block, and sums of one block (128 KiB each).
const BLOCK: usize = 1 << 15;
/// Multiply-adds that are worth a task of their own.
const TASK: usize = 1 << 20;
/// Vectors of the widest tile: a copy has as many numbers behind its end.
const WIDEST: usize = 8;

/// One tile: some channels of some neighbours.
struct Tile {
    /// The first neighbour's source.
    image: *const f32,
    /// Offset of each step.
    steps: *const isize,
    /// Number of steps.
    k: usize,
    /// Weights, `[k][channels]`.
    w: *const f32,
    /// The first sum, and from one channel to the next.
    c: *mut f32,
    c_row: usize,
}

/// The code of one tier.
struct Kernels {
    /// Vectors of a tile that has `i + 1` channels.
    vectors: &'static [usize],
    /// Computes a tile of so many channels and vectors.
    tile: unsafe fn(usize, usize, &Tile),
}

fn kernels() -> &'static Kernels {
    match isa::active() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => &x86::AVX512,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => &x86::AVX2,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => &neon::NEON,
        _ => &SCALAR,
    }
}

/// Computes a tile of `R` channels and `V` vectors.
///
/// # Safety
/// The operands of `t` reach as far as its sizes say.
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
#[inline(always)]
#[allow(clippy::needless_range_loop)] // `v` is a place in the image as well as in `sum`
unsafe fn body<L: Lanes, const R: usize, const V: usize>(t: &Tile) {
    let mut sum = [[L::zero(); V]; R];
    // SAFETY: steps `0..k`, channels `0..R` and vectors `0..V` are in bounds, as the caller vouches.
    unsafe {
        let mut w = t.w;
        for l in 0..t.k {
            let image = t.image.offset(*t.steps.add(l));
            let mut x = [L::zero(); V];
            for v in 0..V {
                x[v] = L::load(&*image.add(v * LANES).cast::<Block>());
            }
            for (r, sums) in sum.iter_mut().enumerate() {
                let w = L::splat(*w.add(r));
                for v in 0..V {
                    sums[v] = w.mul_add(x[v], sums[v]);
                }
            }
            w = w.add(R);
        }
        for (r, sums) in sum.iter().enumerate() {
            for v in 0..V {
                sums[v].store(&mut *t.c.add(r * t.c_row + v * LANES).cast::<Block>());
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Kernels, Tile, body};
    use crate::cpu::lanes_avx2::Avx2;
    use crate::cpu::lanes_avx512::Avx512;

    /// 8 x 3 sums, 3 vectors of the image and 1 weight fill 28 of 32 registers.
    pub(super) static AVX512: Kernels =
        Kernels { vectors: &[8, 8, 6, 5, 4, 4, 3, 3], tile: pick512 };
    /// 6 x 2 vectors of sums, 2 of the image and 1 weight fill 15 of 16 registers.
    pub(super) static AVX2: Kernels = Kernels { vectors: &[3, 2, 1, 1, 1, 1], tile: pick2 };

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    unsafe fn tile512<const R: usize, const V: usize>(t: &Tile) {
        // SAFETY: handed on.
        unsafe { body::<Avx512, R, V>(t) }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn tile2<const R: usize, const V: usize>(t: &Tile) {
        // SAFETY: handed on.
        unsafe { body::<Avx2, R, V>(t) }
    }

    by_size! {
        pick512, tile512,
        1: 1 2 3 4 5 6 7 8;
        2: 1 2 3 4 5 6 7 8;
        3: 1 2 3 4 5 6;
        4: 1 2 3 4 5;
        5: 1 2 3 4;
        6: 1 2 3 4;
        7: 1 2 3;
        8: 1 2 3;
    }
    by_size! {
        pick2, tile2,
        1: 1 2 3;
        2: 1 2;
        3: 1;
        4: 1;
        5: 1;
        6: 1;
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::{Kernels, Tile, body};
    use crate::cpu::lanes_neon::Neon;

    /// 6 x 4 vectors of sums, 4 of the image and 1 weight fill 29 of 32 registers.
    pub(super) static NEON: Kernels = Kernels { vectors: &[4, 2, 1, 1, 1, 1], tile: pick };

    unsafe fn tile<const R: usize, const V: usize>(t: &Tile) {
        // SAFETY: handed on.
        unsafe { body::<Neon, R, V>(t) }
    }

    by_size! {
        pick, tile,
        1: 1 2 3 4;
        2: 1 2;
        3: 1;
        4: 1;
        5: 1;
        6: 1;
    }
}

static SCALAR: Kernels = Kernels { vectors: &[1; 4], tile: scalar };

/// Any number of channels, one vector.
///
/// # Safety
/// As [`body`].
unsafe fn scalar(channels: usize, _vectors: usize, t: &Tile) {
    for r in 0..channels {
        let mut sum = [0.0f32; LANES];
        // SAFETY: as the caller vouches.
        unsafe {
            for l in 0..t.k {
                let w = *t.w.add(l * channels + r);
                let x = &*t.image.offset(*t.steps.add(l)).cast::<Block>();
                for (sum, x) in sum.iter_mut().zip(x) {
                    // Not `mul_add`: without a fused instruction it is a call of hundreds of cycles.
                    *sum += w * x;
                }
            }
            *t.c.add(r * t.c_row).cast::<Block>() = sum;
        }
    }
}

/// Multiply-adds of vectors that a walk takes this way, if it can go it.
pub(super) fn cost(walk: &Walk) -> Option<usize> {
    let axes = walk.axes();
    if axes.iter().any(|a| a.step != 1 || a.merged != 1) {
        return None;
    }
    let line = axes[2].count + (axes[2].reach.1 - axes[2].reach.0) as usize;
    let run = axes[0].count * (axes[1].count * line).div_ceil(LANES);
    // What it takes to bring a vector home; one that is scattered goes number by number.
    let home = if axes[2].classes == 1 { 2 } else { 20 };
    let steps: usize = (0..passes(&axes)).map(|pass| walk.pass(&axes, pass).k + home).sum();
    Some(run.saturating_mul(walk.channels().1).saturating_mul(steps))
}

/// Computes one group.
pub(super) fn run(walk: &Walk, source: &super::image::Source, w: &[f32], out: &Out) {
    let axes = walk.axes();
    let code = kernels();
    let (results, passes) = (walk.channels().1, passes(&axes));
    let steps: usize = (0..passes).map(|pass| walk.pass(&axes, pass).k).sum();
    let groups = results.div_ceil(code.vectors.len());
    with_room(|room| {
        let ([weights], _) = room.parts([steps * results], 0);
        let mut rest = &mut *weights;
        for pass in 0..passes {
            let pass = walk.pass(&axes, pass);
            for group in 0..groups {
                let channels = even(results, groups, group)..even(results, groups, group + 1);
                let (part, tail) = rest.split_at_mut(pass.k * channels.len());
                walk.pack_rows(&pass, channels, w, part);
                rest = tail;
            }
        }
        let count = axes.map(|a| a.count);
        let positions = count.iter().product::<usize>() * walk.batch();
        let work = positions * (steps + 1) * results;
        let tasks = if threads() == 1 { 1 } else { (work / TASK).clamp(1, 4 * threads()) };
        let most = (BLOCK / (results * passes)).min(BLOCK / source.channels.max(1));
        let most = most.min(positions.div_ceil(tasks).next_multiple_of(8)).max(64);
        let cut = Cut::new(walk.batch(), axes.map(|a| a.first), count, most);
        parallel_for(cut.len(), 1, |tasks| {
            for task in tasks {
                block(walk, source, weights, out, &cut.area(task));
            }
        });
    });
}

/// Computes one block: every plane of every sample of it is one run.
fn block(walk: &Walk, source: &super::image::Source, weights: &[f32], out: &Out, area: &Area) {
    let (axes, code) = (walk.axes(), kernels());
    let (results, passes) = (walk.channels().1, passes(&axes));
    if area.all() == 0 {
        return;
    }
    let line = area.len[2] + (axes[2].reach.1 - axes[2].reach.0) as usize;
    let run = ((area.len[1] - 1) * line + area.len[2]).next_multiple_of(LANES);
    let copied = copy_len(&axes, area, source.channels);
    let longest = (0..passes).map(|pass| walk.pass(&axes, pass).k).max().unwrap_or(0);
    let planes = area.samples.1 * area.len[0];
    with_room(|room| {
        let parts = [results * passes * run, copied + WIDEST * LANES];
        let ([sums, copy], offsets) = room.parts(parts, longest + area.all());
        let (steps, positions) = offsets.split_at_mut(longest);
        let image = Image::copied(source, &axes, area, copy);
        image.positions(&axes, area, positions);
        for plane in 0..planes {
            let first = positions[plane * area.len[1] * area.len[2]];
            let mut packed = weights;
            for pass in 0..passes {
                let Pass { taps, k } = walk.pass(&axes, pass);
                let sums = &mut sums[pass * results * run..][..results * run];
                image.taps(&taps, &mut steps[..k]);
                image.check(&[first, first + run as isize - 1], &steps[..k]);
                let groups = results.div_ceil(code.vectors.len());
                for group in 0..groups {
                    let top = even(results, groups, group);
                    let channels = even(results, groups, group + 1) - top;
                    let (w, rest) = packed.split_at(k * channels);
                    packed = rest;
                    let vectors = run / LANES;
                    let strips = vectors.div_ceil(code.vectors[channels - 1]);
                    for strip in 0..strips {
                        let (from, to) =
                            (even(vectors, strips, strip), even(vectors, strips, strip + 1));
                        let tile = Tile {
                            image: image
                                .data
                                .as_ptr()
                                .wrapping_offset(first)
                                .wrapping_add(from * LANES),
                            steps: steps.as_ptr(),
                            k,
                            w: w.as_ptr(),
                            c: sums[top * run + from * LANES..].as_mut_ptr(),
                            c_row: run,
                        };
                        // SAFETY: `check` bounds every step of the first and the last neighbour; `w` holds
                        // `k` weights a channel and `sums` a run; this CPU runs the code of `kernels`.
                        unsafe { (code.tile)(channels, to - from, &tile) };
                    }
                }
            }
            let (s, d) = (plane / area.len[0], (plane % area.len[0]) as isize);
            let at = Plane { sample: area.samples.0 + s, depth: area.start[0] + d, line, run };
            // SAFETY: blocks land on elements of their own.
            unsafe { land(&axes, area, &at, sums, results, out) };
        }
    });
}

/// One plane of a block.
struct Plane {
    sample: usize,
    depth: isize,
    /// From one line of a run to the next, and from one run to the next.
    line: usize,
    run: usize,
}

/// Brings the runs of a plane, `[passes, channels, run]`, to where they belong.
///
/// # Safety
/// Nobody else touches the elements that they land on.
unsafe fn land(
    axes: &[super::axis::Axis; 3],
    area: &Area,
    plane: &Plane,
    sums: &[f32],
    results: usize,
    out: &Out,
) {
    let [d, h, w] = axes;
    for pass in 0..passes(axes) {
        let (rest, class_w) = (pass / w.classes, pass % w.classes);
        let (class_d, class_h) = (rest / h.classes, rest % h.classes);
        let depth = plane.depth as usize * d.classes + class_d;
        let start = area.start[2] as usize * w.classes + class_w;
        if depth >= d.out || start >= w.out {
            continue;
        }
        let count = area.len[2].min((w.out - start).div_ceil(w.classes));
        for channel in 0..results {
            let bias = out.bias.map_or(0.0, |bias| bias[channel]);
            let run = &sums[(pass * results + channel) * plane.run..][..plane.run];
            for r in 0..area.len[1] {
                let line = (area.start[1] as usize + r) * h.classes + class_h;
                if line >= h.out {
                    continue;
                }
                let line = ((channel * d.out + depth) * h.out + line) * w.out + start;
                let at = plane.sample * out.sample + out.base + line;
                let y = out.y.at(at, (count - 1) * w.classes + 1);
                let from = &run[r * plane.line..r * plane.line + count];
                // SAFETY: `count` elements so far apart are in bounds, by the line above.
                unsafe {
                    match w.classes {
                        1 => (0..count).for_each(|q| *y.add(q) = from[q] + bias),
                        step => (0..count).for_each(|q| *y.add(q * step) = from[q] + bias),
                    }
                }
            }
        }
    }
}
