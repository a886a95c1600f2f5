//! The backward pass: one kernel keeps keys, one keeps queries.

use super::arguments::Arguments;
use super::forward::suffix;
use super::variants::{KEYS, QUERIES, are_tiled, choose, keys_bytes, queries_bytes, wanted};
use super::{Format, Relative, Rows, check};
use crate::attention::{Mask, Rule, Sizes};
use crate::cuda::{Error, Gpu};

/// Queries of a block that also makes gradients of embeddings.
const RELATIVE_QUERIES: usize = 64;

/// Into how many parts the gradient of a head's embeddings is cut: enough blocks for the device twice.
fn slots(gpu: &dyn Gpu, s: Sizes) -> usize {
    let work = s.batch * s.queries.div_ceil(RELATIVE_QUERIES);
    (2 * gpu.properties().sms as usize).div_ceil(s.heads.max(1)).min(work).max(1)
}

/// Numbers before the parts: `delta`, to a whole line.
fn delta_len(s: Sizes) -> usize {
    (s.batch * s.heads * s.queries).next_multiple_of(32)
}

/// f32 numbers that [`attention_backward`] wants as room.
pub fn attention_backward_room(gpu: &dyn Gpu, s: Sizes, relative: Option<Relative>) -> usize {
    delta_len(s) + relative.map_or(0, |r| slots(gpu, s) * s.heads * r.max_len * s.head_dim)
}

/// Computes the gradients of [`attention_forward`](super::attention_forward), the same bits in every
/// run.
///
/// `variant` names the tiles of keys and of queries.
///
/// # Shapes
/// `q`, `o`, `d_o`, `d_q` `[batch, heads, queries, head_dim]`; `k`, `v`, `d_k`, `d_v`
/// `[batch, heads, keys, head_dim]`; `lse` `[batch, heads, queries]`, f32; `d_er`
/// `[heads, max_len, head_dim]`, with `relative` only; `room` as many f32 as
/// [`attention_backward_room`] says.
///
/// # Errors
/// If memory is not allocated, or the driver refuses.
///
/// # Panics
/// If operands differ in format, or `d_k` and `d_v` do, if rows of a gradient overlap, a causal mask has
/// more queries than keys, or no tile of the named variants fits.
pub fn attention_backward(
    gpu: &dyn Gpu,
    q: Rows,
    k: Rows,
    v: Rows,
    relative: Option<Relative>,
    o: Rows,
    lse: u64,
    d_o: Rows,
    d_q: Rows,
    d_k: Rows,
    d_v: Rows,
    d_er: Option<(u64, Format)>,
    room: u64,
    s: Sizes,
    rule: &Rule,
    variant: Option<(&str, &str)>,
) -> Result<(), Error> {
    let rows = [(q, s.queries), (k, s.keys), (v, s.keys), (d_o, s.queries)];
    let bytes = gpu.properties().shared_bytes as usize;
    let wanted = wanted(rule, relative.is_some());
    let is_tiled = are_tiled(s.head_dim, rule.scale, &rows)
        && [o, d_q, d_k, d_v].iter().all(Rows::is_paired)
        && relative.is_none_or(|r| r.er.is_multiple_of(16))
        && d_er.is_none_or(|(address, _)| address.is_multiple_of(8));
    let tiles = |all, shared, name| {
        is_tiled.then(|| choose(all, shared, s.head_dim, wanted, bytes, name)).flatten()
    };
    let keys = tiles(KEYS, keys_bytes, variant.map(|v| v.0));
    let queries = tiles(QUERIES, queries_bytes, variant.map(|v| v.1));
    let (Some(keys), Some(queries)) = (keys, queries) else {
        assert!(variant.is_none(), "attention: no tiles {variant:?} for these operands");
        return attention_backward_plain(
            gpu, q, k, v, relative, o, lse, d_o, d_q, d_k, d_v, d_er, room, s, rule,
        );
    };
    let arguments =
        arguments(gpu, q, k, v, relative, o, lse, d_o, d_q, d_k, d_v, d_er, room, s, rule);
    let planes = s.batch * s.heads;
    let delta_blocks = (planes * s.queries).div_ceil(8);
    arguments.launch(gpu, "attention_delta", [delta_blocks, 1], 256, 0)?;
    let kernel = format!("attention_backward_keys_{}", keys.name);
    for (run, count) in runs(rule.mask, s.keys).into_iter().enumerate() {
        let grid = [count.div_ceil(keys.own), planes];
        let of_run = arguments.clone().of_run(run);
        of_run.launch(gpu, &kernel, grid, keys.warps * 32, keys_bytes(&keys))?;
    }
    let kernel = format!("attention_backward_queries_{}", queries.name);
    let (threads, shared) = (queries.warps * 32, queries_bytes(&queries));
    let Some(r) = relative else {
        let grid = [s.queries.div_ceil(queries.own), planes];
        return arguments.launch(gpu, &kernel, grid, threads, shared);
    };
    arguments.launch(gpu, &kernel, [slots(gpu, s), s.heads], threads, shared)?;
    let pairs = s.heads * r.max_len * s.head_dim / 2;
    arguments.launch(gpu, "attention_add_parts", [pairs.div_ceil(256), 1], 256, 0)
}

/// Computes [`attention_backward`] by its definition, for any size and format.
///
/// # Shapes
/// Those of [`attention_backward`].
///
/// # Errors
/// If memory is not allocated, or the driver refuses.
///
/// # Panics
/// As [`attention_backward`].
pub fn attention_backward_plain(
    gpu: &dyn Gpu,
    q: Rows,
    k: Rows,
    v: Rows,
    relative: Option<Relative>,
    o: Rows,
    lse: u64,
    d_o: Rows,
    d_q: Rows,
    d_k: Rows,
    d_v: Rows,
    d_er: Option<(u64, Format)>,
    room: u64,
    s: Sizes,
    rule: &Rule,
) -> Result<(), Error> {
    let arguments =
        arguments(gpu, q, k, v, relative, o, lse, d_o, d_q, d_k, d_v, d_er, room, s, rule);
    let (planes, d) = (s.batch * s.heads, s.head_dim);
    let run = |what: &str, grid: [usize; 2], threads: usize, numbers: usize| {
        let kernel = format!("attention_{what}_plain_{}", suffix(q.format));
        arguments.launch(gpu, &kernel, grid, threads, numbers * 4)
    };
    run("delta", [(planes * s.queries).div_ceil(8), 1], 256, 0)?;
    run("backward_queries", [s.queries, planes], 128, 3 * d + 128)?;
    run("backward_keys", [s.keys, planes], 128, 4 * d + 256)?;
    match relative {
        Some(r) => run("backward_relative", [r.max_len, s.heads], 128, d + 128),
        None => Ok(()),
    }
}

/// Checks and gathers what all kernels take.
fn arguments(
    gpu: &dyn Gpu,
    q: Rows,
    k: Rows,
    v: Rows,
    relative: Option<Relative>,
    o: Rows,
    lse: u64,
    d_o: Rows,
    d_q: Rows,
    d_k: Rows,
    d_v: Rows,
    d_er: Option<(u64, Format)>,
    room: u64,
    s: Sizes,
    rule: &Rule,
) -> Arguments {
    check(s, rule, relative);
    assert!([k, v, d_o].iter().all(|rows| rows.format == q.format));
    assert_eq!(d_k.format, d_v.format);
    assert_eq!(relative.is_some(), d_er.is_some());
    for (rows, count) in [(d_q, s.queries), (d_k, s.keys), (d_v, s.keys)] {
        assert!(rows.strides.is_apart(s.batch, s.heads, count, s.head_dim));
    }
    let room = (room, delta_len(s), attention_backward_room(gpu, s, relative));
    let slots = slots(gpu, s);
    Arguments::new(q, k, v, relative, o, lse, s, rule).with_gradients(
        d_o,
        [d_q, d_k, d_v],
        d_er,
        room,
        slots,
    )
}

/// Keys of each run of a mask: all of them, and of a strided mask the columns once more.
fn runs(mask: Mask, keys: usize) -> Vec<usize> {
    match mask {
        Mask::Strided { stride, .. } if stride <= keys => vec![keys, keys / stride],
        _ => vec![keys],
    }
}
