//! The forward pass: tiles where they fit, else the plain kernel.

use super::arguments::Arguments;
use super::variants::{FORWARD, are_tiled, choose, forward_bytes, wanted};
use super::{Format, Relative, Rows, check};
use crate::attention::{Rule, Sizes};
use crate::cuda::{Error, Gpu};

/// Computes `o = softmax(scale * (q k^T + r)) v` and the log of each row's sum.
///
/// `variant` names the tiles, such as `d128_128x48`.
///
/// # Shapes
/// `q`, `o` `[batch, heads, queries, head_dim]`; `k`, `v` `[batch, heads, keys, head_dim]`; `lse`
/// `[batch, heads, queries]`, f32.
///
/// # Errors
/// If memory is not allocated, or the driver refuses.
///
/// # Panics
/// If `q`, `k` and `v` differ in format, rows of `o` overlap, a causal mask has more queries than keys,
/// or no tile of the named variant fits.
pub fn attention_forward(
    gpu: &dyn Gpu,
    q: Rows,
    k: Rows,
    v: Rows,
    relative: Option<Relative>,
    o: Rows,
    lse: u64,
    s: Sizes,
    rule: &Rule,
    variant: Option<&str>,
) -> Result<(), Error> {
    let rows = [(q, s.queries), (k, s.keys), (v, s.keys)];
    let bytes = gpu.properties().shared_bytes as usize;
    let wanted = wanted(rule, relative.is_some());
    let chosen = (are_tiled(s.head_dim, rule.scale, &rows)
        && o.is_paired()
        && relative.is_none_or(|r| r.er.is_multiple_of(16)))
    .then(|| choose(FORWARD, forward_bytes, s.head_dim, wanted, bytes, variant))
    .flatten();
    let Some(chosen) = chosen else {
        assert!(variant.is_none(), "attention: no tile {variant:?} for these operands");
        return attention_forward_plain(gpu, q, k, v, relative, o, lse, s, rule);
    };
    check(s, rule, relative);
    assert!(o.strides.is_apart(s.batch, s.heads, s.queries, s.head_dim));
    let grid = [s.queries.div_ceil(chosen.own), s.batch * s.heads];
    let kernel = format!("attention_forward_{}", chosen.name);
    Arguments::new(q, k, v, relative, o, lse, s, rule).launch(
        gpu,
        &kernel,
        grid,
        chosen.warps * 32,
        forward_bytes(&chosen),
    )
}

/// Computes [`attention_forward`] by its definition, for any size and format.
///
/// # Shapes
/// Those of [`attention_forward`].
///
/// # Errors
/// If memory is not allocated, or the driver refuses.
///
/// # Panics
/// As [`attention_forward`].
pub fn attention_forward_plain(
    gpu: &dyn Gpu,
    q: Rows,
    k: Rows,
    v: Rows,
    relative: Option<Relative>,
    o: Rows,
    lse: u64,
    s: Sizes,
    rule: &Rule,
) -> Result<(), Error> {
    check(s, rule, relative);
    assert!(q.format == k.format && q.format == v.format);
    assert!(o.strides.is_apart(s.batch, s.heads, s.queries, s.head_dim));
    let kernel = format!("attention_forward_plain_{}", suffix(q.format));
    let shared = (2 * s.head_dim + 128 + 32) * 4;
    Arguments::new(q, k, v, relative, o, lse, s, rule).launch(
        gpu,
        &kernel,
        [s.queries, s.batch * s.heads],
        128,
        shared,
    )
}

/// How kernels of a format are named.
pub(super) fn suffix(format: Format) -> &'static str {
    match format {
        Format::F32 => "f32",
        Format::Bf16 => "bf16",
    }
}
