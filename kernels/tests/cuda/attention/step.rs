//! One token at a time, against the last row of the definition.

use super::case::{Case, Numbers};
use super::largest;
use crate::cuda::uniform;
use etude_kernels::attention::{Cache, Mask};
use etude_kernels::cuda::attention::{
    Format, NewRow, Relative, Step, attention_step, attention_step_plain, attention_step_room,
};
use etude_kernels::cuda::{DeviceBuffer, Gpu};

pub fn steps(gpu: &dyn Gpu) -> f64 {
    let masks = [
        (Mask::Causal, 0),
        (Mask::Full, 0),
        (Mask::Window { width: 20 }, 0),
        (Mask::Strided { block: 16, stride: 5 }, 0),
        (Mask::Causal, 1),
        (Mask::Window { width: 70 }, 1),
    ];
    let mut shares = Vec::new();
    for (nth, (mask, is_relative)) in masks.into_iter().enumerate() {
        for (n, len) in [1, 2, 63, 64, 65, 300].into_iter().enumerate() {
            for format in [Format::F32, Format::Bf16] {
                let d = [64, 20, 128, 9, 48, 32][(nth + n) % 6];
                for is_plain in [false, true] {
                    let sizes = [2, 2, 1, len, d];
                    shares.push(step(gpu, mask, sizes, is_relative > 0, format, is_plain));
                }
            }
        }
    }
    largest(shares)
}

/// One step with `keys` rows in the cache, against the definition.
fn step(
    gpu: &dyn Gpu,
    mask: Mask,
    sizes: [usize; 5],
    is_relative: bool,
    format: Format,
    is_plain: bool,
) -> f64 {
    let mut case = Case::new(mask, sizes).plain(format);
    if is_relative {
        case = case.relative(40);
    }
    case.by_row = false;
    let (s, mut x) = (case.s, case.operands());
    // Queries are not stored: they keep all their bits. New rows are rounded as they are stored.
    x.q = uniform(9, x.q.len());
    let [expected, ..] = case.expected(&x);
    let (planes, d, len, capacity) = (s.batch * s.heads, s.head_dim, s.keys, s.keys + 35);
    let cached = |x: &[f32]| -> Vec<f32> {
        let mut all = vec![f32::NAN; planes * capacity * d];
        for (to, from) in all.chunks_exact_mut(capacity * d).zip(x.chunks_exact(len * d)) {
            to[..(len - 1) * d].copy_from_slice(&from[..(len - 1) * d]);
        }
        all
    };
    let last = |x: &[f32]| -> Vec<f32> {
        x.chunks_exact(len * d).flat_map(|plane| plane[(len - 1) * d..].to_vec()).collect()
    };
    let (k, v) = (Numbers::of(gpu, &cached(&x.k), format), Numbers::of(gpu, &cached(&x.v), format));
    let er = Numbers::of(gpu, &x.er, format);
    let buffer = |x: &[f32]| DeviceBuffer::from_slice(gpu, x).unwrap();
    let (q, k_new, v_new) = (buffer(&x.q), buffer(&last(&x.k)), buffer(&last(&x.v)));
    let rows = DeviceBuffer::from_slice(gpu, &[len as i32]).unwrap();
    let cache = Cache { heads: s.heads, capacity, len, head_dim: d };
    let o = DeviceBuffer::<f32>::poisoned(gpu, planes * d).unwrap();
    let room =
        DeviceBuffer::<f32>::poisoned(gpu, attention_step_room(gpu, s.batch, cache)).unwrap();
    let max_len = case.max_len.max(capacity);
    // Embeddings reach as far as the cache could grow: those of the case are the last of them.
    let mut all = vec![0.0; s.heads * max_len * d];
    for (to, from) in
        all.chunks_exact_mut(max_len * d).zip(x.er.chunks_exact((case.max_len * d).max(1)))
    {
        to[(max_len - case.max_len) * d..].copy_from_slice(from);
    }
    let er = if is_relative { Numbers::of(gpu, &all, format) } else { er };
    let relative = is_relative.then_some(Relative { er: er.ptr(), max_len });
    let step = Step { batch: s.batch, cache, k: k.ptr(), v: v.ptr(), format, len: rows.ptr() };
    let (q, new) = ((q.ptr(), s.heads * d), Some(NewRow { k: k_new.ptr(), v: v_new.ptr() }));
    let (scale, to) = (case.rule.scale, o.ptr());
    match is_plain {
        true => attention_step_plain(gpu, q, new, &step, relative, to, mask, scale),
        false => attention_step(gpu, q, new, &step, relative, to, room.ptr(), mask, scale),
    }
    .unwrap();
    for (cache, x) in [(&k, &x.k), (&v, &x.v)] {
        let got = cache.to_vec();
        for (got, x) in got.chunks_exact(capacity * d).zip(x.chunks_exact(len * d)) {
            assert_eq!(&got[..len * d], x, "rows of the cache");
            assert!(got[len * d..].iter().all(|x| x.is_nan()), "rows past the new one");
        }
    }
    let what =
        format!("step {mask:?} {sizes:?} {format:?} relative {is_relative} plain {is_plain}");
    expected.share(&what, &o.to_vec().unwrap())
}
