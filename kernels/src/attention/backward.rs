//! The gradients: cutting the work into tasks, and adding up what several of them give for one row.
//!
//! A task takes a range of keys of one head (`backward_head.rs`). How keys are cut depends on the
//! sizes alone, and parts are added in the order of tasks: the same bits for any number of threads.

use super::backward_head::Operands;
use super::{KEYS, QUERIES, Relative, Rows, RowsMut, Rule, Sizes, check};
use crate::cpu::shared::Shared;
use crate::threads::parallel_for;

/// Tasks that are worth having, and the fewest blocks of keys of one.
const TASKS: usize = 16;
const BLOCKS: usize = 4;

/// Into how many ranges the keys of a head are cut.
fn cuts(s: Sizes) -> usize {
    let blocks = s.keys.div_ceil(KEYS);
    TASKS.div_ceil((s.batch * s.heads).max(1)).min(blocks / BLOCKS).max(1)
}

/// Numbers that [`attention_backward`] wants as room: what tasks add up apart from each other.
pub fn attention_backward_room(s: Sizes, rule: &Rule, is_relative: bool) -> usize {
    let (planes, cuts) = (s.batch * s.heads, cuts(s));
    let queries = if cuts > 1 { planes * cuts * s.queries } else { 0 };
    let embeddings = if is_relative { planes * cuts * rule.mask.reach(s.keys) } else { 0 };
    (queries + embeddings) * s.head_dim
}

/// Computes the gradients of [`attention_forward`](super::attention_forward).
///
/// # Shapes
/// `q`, `o`, `d_o`, `d_q` `[batch, heads, queries, head_dim]`; `k`, `v`, `d_k`, `d_v`
/// `[batch, heads, keys, head_dim]`; `lse` `[batch, heads, queries]`; `d_er`
/// `[heads, max_len, head_dim]`, or empty without `relative`; `room` as many numbers as
/// [`attention_backward_room`] says.
///
/// # Panics
/// If a slice is too short, rows of a gradient overlap, or a causal mask has more queries than keys.
pub fn attention_backward(
    q: Rows,
    k: Rows,
    v: Rows,
    relative: Option<Relative>,
    o: Rows,
    lse: &[f32],
    d_o: Rows,
    d_q: RowsMut,
    d_k: RowsMut,
    d_v: RowsMut,
    d_er: &mut [f32],
    room: &mut [f32],
    s: Sizes,
    rule: &Rule,
) {
    check(s, rule, relative);
    [&q, &o, &d_o].iter().for_each(|rows| rows.check(s, s.queries));
    [&k, &v].iter().for_each(|rows| rows.check(s, s.keys));
    d_q.check(s, s.queries);
    [&d_k, &d_v].iter().for_each(|rows| rows.check(s, s.keys));
    assert_eq!(lse.len(), s.batch * s.heads * s.queries);
    assert_eq!(d_er.len(), relative.map_or(0, |r| r.er.len()));
    assert!(room.len() >= attention_backward_room(s, rule, relative.is_some()));
    let (planes, cuts, d) = (s.batch * s.heads, cuts(s), s.head_dim);
    if planes == 0 || d == 0 {
        return d_er.fill(0.0);
    }
    let reach = relative.map_or(0, |_| rule.mask.reach(s.keys));
    let (apart, embeddings) =
        room.split_at_mut(if cuts > 1 { planes * cuts * s.queries * d } else { 0 });
    let embeddings = &mut embeddings[..planes * cuts * reach * d];
    let operands = Operands { q, k, v, relative, o, lse, d_o, s, rule };
    let at = |task: usize| (task / cuts / s.heads, task / cuts % s.heads);
    let (q_strides, k_strides, v_strides) = (d_q.strides, d_k.strides, d_v.strides);
    let (d_q, d_k, d_v) = (Shared::new(d_q.data), Shared::new(d_k.data), Shared::new(d_v.data));
    {
        let (apart, embeddings) = (Shared::new(apart), Shared::new(embeddings));
        let blocks = s.keys.div_ceil(KEYS);
        parallel_for(planes * cuts, 1, |tasks| {
            for task in tasks {
                let cut = task % cuts;
                let (from, to) = (blocks * cut / cuts * KEYS, blocks * (cut + 1) / cuts * KEYS);
                let (b, h) = at(task);
                let key_rows = |j: usize| {
                    let (k, v) = (k_strides.at(b, h, j), v_strides.at(b, h, j));
                    // SAFETY: rows do not overlap, and each key belongs to one task, which holds one
                    // row at a time.
                    unsafe { (d_k.slice(k..k + d), d_v.slice(v..v + d)) }
                };
                let query_row = |i: usize| {
                    let row =
                        if cuts > 1 { (task * s.queries + i) * d } else { q_strides.at(b, h, i) };
                    let all = if cuts > 1 { &apart } else { &d_q };
                    // SAFETY: as above: each task has rows of its own.
                    unsafe { all.slice(row..row + d) }
                };
                // SAFETY: each task has its own part.
                let d_e = unsafe { embeddings.slice(task * reach * d..(task + 1) * reach * d) };
                operands.backward((b, h), (from, to.min(s.keys)), key_rows, query_row, d_e);
            }
        });
    }
    if cuts > 1 {
        parallel_for(planes * s.queries, QUERIES, |rows| {
            for row in rows {
                let (plane, i) = (row / s.queries, row % s.queries);
                let y = q_strides.at(plane / s.heads, plane % s.heads, i);
                // SAFETY: rows do not overlap, and each is written by one task.
                let y = unsafe { d_q.slice(y..y + d) };
                let part = |cut: usize| {
                    let at = ((plane * cuts + cut) * s.queries + i) * d;
                    &apart[at..at + d]
                };
                add_up(y, (0..cuts).map(part));
            }
        });
    }
    if let Some(relative) = relative {
        let (low, len) = (relative.max_len - reach, relative.max_len * d);
        let d_er = Shared::new(d_er);
        parallel_for(s.heads, 1, |heads| {
            for h in heads {
                // SAFETY: each head is written by one task.
                let (unused, used) =
                    unsafe { d_er.slice(h * len..(h + 1) * len) }.split_at_mut(low * d);
                unused.fill(0.0);
                let parts = (0..s.batch * cuts).map(|n| {
                    let task = (n / cuts * s.heads + h) * cuts + n % cuts;
                    &embeddings[task * reach * d..(task + 1) * reach * d]
                });
                add_up(used, parts);
            }
        });
    }
}

/// Adds up parts in their order.
fn add_up<'a>(y: &mut [f32], mut parts: impl Iterator<Item = &'a [f32]>) {
    match parts.next() {
        Some(first) => y.copy_from_slice(first),
        None => y.fill(0.0),
    }
    for part in parts {
        y.iter_mut().zip(part).for_each(|(y, x)| *y += x);
    }
}
