//! Timed cases of the family `attention`: forward and backward in every tile, and one step.

use super::{Bench, Error};
use crate::attention::{Cache, Mask, Rule, Sizes, Strides};
use crate::cuda::DeviceBuffer;
use crate::cuda::attention::{
    Format, NewRow, Relative, Rows, Step, attention_backward, attention_backward_room,
    attention_forward, attention_forward_plain, attention_step, attention_step_room,
    backward_variants, forward_variants,
};
use crate::philox;

/// Batch, heads and steps of a case.
type Shape = (usize, usize, usize);

/// Those that `benches/gpu/compare.py` gives to PyTorch, and shorter ones.
const SHAPES: &[Shape] =
    &[(4, 16, 2048), (4, 16, 4096), (2, 8, 1024), (2, 16, 8192), (16, 16, 512)];
const RELATIVE: &[Shape] = &[(2, 8, 1024), (4, 8, 2048), (2, 8, 4096)];
/// Sizes for the emulator.
const SMALL: &[Shape] = &[(1, 2, 70)];

/// The cases.
///
/// # Errors
/// Those of the device.
pub fn cases(bench: &mut Bench) -> Result<(), Error> {
    let pick = |large: &'static [Shape]| if bench.small { SMALL } else { large };
    let (shapes, relative) = (pick(SHAPES), pick(RELATIVE));
    for d in [64, 128] {
        for &shape in shapes {
            attention(bench, Mask::Causal, shape, d, false)?;
        }
        for &shape in &shapes[..shapes.len().min(2)] {
            attention(bench, Mask::Full, shape, d, false)?;
        }
    }
    for &shape in relative {
        attention(bench, Mask::Causal, shape, 64, true)?;
    }
    attention(bench, Mask::Causal, relative[0], 128, true)?;
    let contexts: &[usize] = if bench.small { &[70] } else { &[1024, 8192] };
    for &context in contexts {
        for format in [Format::F32, Format::Bf16] {
            step(bench, context, format, false)?;
        }
        step(bench, context, Format::Bf16, true)?;
    }
    Ok(())
}

/// Random bf16 numbers in `[-1, 1)`.
fn numbers(seed: u64, n: usize) -> Vec<u16> {
    let mut x = vec![0.0; n];
    philox::uniform(&mut x, seed, 0, 0);
    x.iter().map(|x| half::bf16::from_f32(2.0 * x - 1.0).to_bits()).collect()
}

/// Both passes of one shape.
fn attention(
    bench: &mut Bench,
    mask: Mask,
    (batch, heads, steps): Shape,
    head_dim: usize,
    is_relative: bool,
) -> Result<(), Error> {
    let kind = match mask {
        _ if is_relative => "relative",
        Mask::Full => "full",
        _ => "causal",
    };
    let shape = format!("{kind}/b{batch} h{heads} s{steps} d{head_dim}");
    let (forward, backward) =
        (format!("attention/forward {shape}"), format!("attention/backward {shape}"));
    if !bench.wants(&forward) && !bench.wants(&backward) {
        return Ok(());
    }
    let gpu = bench.gpu;
    let s = Sizes { batch, heads, queries: steps, keys: steps, head_dim };
    let rule = Rule { mask, scale: 1.0 / (head_dim as f32).sqrt(), dropout: None };
    let strides = Strides::by_head(heads, steps, head_dim);
    let n = batch * heads * steps * head_dim;
    let of = |seed| DeviceBuffer::from_slice(gpu, &numbers(seed, n));
    let (q, k, v, d_o) = (of(1)?, of(2)?, of(3)?, of(4)?);
    let empty = || DeviceBuffer::<u16>::poisoned(gpu, n);
    let (o, d_q, d_k, d_v) = (empty()?, empty()?, empty()?, empty()?);
    let max_len = if is_relative { steps } else { 0 };
    let er = DeviceBuffer::from_slice(gpu, &numbers(5, heads * max_len * head_dim))?;
    let d_er = DeviceBuffer::<u16>::poisoned(gpu, er.len())?;
    let lse = DeviceBuffer::<f32>::poisoned(gpu, batch * heads * steps)?;
    let relative = is_relative.then_some(Relative { er: er.ptr(), max_len });
    let room = DeviceBuffer::<f32>::poisoned(gpu, attention_backward_room(gpu, s, relative))?;
    let rows = |x: &DeviceBuffer<u16>| Rows { address: x.ptr(), strides, format: Format::Bf16 };
    let (q, k, v, o, d_o) = (rows(&q), rows(&k), rows(&v), rows(&o), rows(&d_o));
    let (d_q, d_k, d_v) = (rows(&d_q), rows(&d_k), rows(&d_v));
    let (lse, room) = (lse.ptr(), room.ptr());

    // A product is two operations for each pair that is seen and each number of a row: 2 products, and
    // 5 in the backward; with relative logits 3, and 8.
    let product = 2.0 * (batch * heads * mask.pairs(steps, steps)) as f64 * head_dim as f64;
    let (ahead, back) = if is_relative { (3.0, 8.0) } else { (2.0, 5.0) };
    let bytes = 2.0 * n as f64;
    for name in forward_variants(head_dim, is_relative) {
        bench.case(&forward, name, ahead * product, 4.0 * bytes, &mut || {
            attention_forward(gpu, q, k, v, relative, o, lse, s, &rule, Some(name))
        })?;
    }
    if steps <= 1024 {
        bench.case(&forward, "plain", ahead * product, 4.0 * bytes, &mut || {
            attention_forward_plain(gpu, q, k, v, relative, o, lse, s, &rule)
        })?;
    }
    // The backward reads what the forward wrote.
    attention_forward(gpu, q, k, v, relative, o, lse, s, &rule, None)?;
    let (keys, queries) = backward_variants(head_dim, is_relative);
    let each = keys.iter().map(|keys| (*keys, queries[0]));
    let pairs = each.chain(queries[1..].iter().map(|queries| (keys[0], *queries)));
    let to_er = relative.map(|_| (d_er.ptr(), Format::Bf16));
    for named in pairs {
        let variant = format!("{} {}", named.0, named.1);
        bench.case(&backward, &variant, back * product, 8.0 * bytes, &mut || {
            attention_backward(
                gpu,
                q,
                k,
                v,
                relative,
                o,
                lse,
                d_o,
                d_q,
                d_k,
                d_v,
                to_er,
                room,
                s,
                &rule,
                Some(named),
            )
        })?;
    }
    Ok(())
}

/// One token of a single sequence.
fn step(bench: &mut Bench, context: usize, format: Format, is_relative: bool) -> Result<(), Error> {
    let (heads, head_dim) = (8, 64);
    let number = if format == Format::F32 { "f32" } else { "bf16" };
    let kind = if is_relative { " relative" } else { "" };
    let case = format!("attention/step {number}{kind}/b1 h{heads} c{context} d{head_dim}");
    if !bench.wants(&case) {
        return Ok(());
    }
    let gpu = bench.gpu;
    let n = heads * context * head_dim;
    // Any bits of random bf16 pairs are good f32 as well.
    let words = n * format.bytes() / 2;
    let of = |seed| DeviceBuffer::from_slice(gpu, &numbers(seed, words));
    let (k, v, er) = (of(1)?, of(2)?, of(3)?);
    let mut row = vec![0.0; heads * head_dim];
    philox::uniform(&mut row, 4, 0, 0);
    let (q, new) = (DeviceBuffer::from_slice(gpu, &row)?, DeviceBuffer::from_slice(gpu, &row)?);
    let o = DeviceBuffer::<f32>::poisoned(gpu, heads * head_dim)?;
    let len = DeviceBuffer::from_slice(gpu, &[context as i32])?;
    let cache = Cache { heads, capacity: context, len: context, head_dim };
    let room = DeviceBuffer::<f32>::poisoned(gpu, attention_step_room(gpu, 1, cache))?;
    let step = Step { batch: 1, cache, k: k.ptr(), v: v.ptr(), format, len: len.ptr() };
    let relative = is_relative.then_some(Relative { er: er.ptr(), max_len: context });
    let new = Some(NewRow { k: new.ptr(), v: new.ptr() });
    let reads = if is_relative { 3 } else { 2 };
    let (flops, bytes) = (2.0 * (reads * n) as f64, (reads * n * format.bytes()) as f64);
    let q = (q.ptr(), heads * head_dim);
    let (scale, to) = (1.0 / (head_dim as f32).sqrt(), o.ptr());
    bench.case(&case, "chunks", flops, bytes, &mut || {
        attention_step(gpu, q, new, &step, relative, to, room.ptr(), Mask::Causal, scale)
    })
}
