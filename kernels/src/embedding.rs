//! Rows of a table by id, and the gradient of that.

use crate::cpu::bypass::{stream_out, write_rows};
use crate::cpu::lanes::dispatch;
use crate::cpu::map::{Add, UpdateBody};
use crate::cpu::shared::Shared;
use crate::elementwise::rows_of_cut;
use crate::threads::{parallel_for, threads};

/// Marks an empty slot in a bag of ids.
pub const NO_ID: u32 = u32::MAX;

/// Gathers and adds rows: `y[r] = sum over j of table[ids[r][j]]` (+ `bias`), skipping [`NO_ID`].
///
/// A matrix product with a multi-hot input, at the cost of reading the rows that are hot.
///
/// # Shapes
/// `table` `[vocab, width]`, `ids` `[rows, active]`, `bias` `[width]`, `y` `[rows, width]`.
///
/// # Panics
/// If an id is not below `vocab` (and not [`NO_ID`]).
pub fn embedding_forward(
    table: &[f32],
    ids: &[u32],
    bias: Option<&[f32]>,
    y: &mut [f32],
    active: usize,
    width: usize,
) {
    assert_eq!(ids.len() * width, y.len() * active);
    assert!(bias.is_none_or(|bias| bias.len() == width));
    write_rows(y, width, rows_of_cut(width), |rows, y, past| {
        for (r, y) in rows.zip(y.chunks_exact_mut(width)) {
            let mut hot = ids[r * active..(r + 1) * active]
                .iter()
                .filter(|id| **id != NO_ID)
                .map(|id| &table[*id as usize * width..(*id as usize + 1) * width]);
            match (bias, hot.next()) {
                (Some(bias), first) => {
                    y.copy_from_slice(bias);
                    first.into_iter().for_each(|x| dispatch(UpdateBody { f: Add, x, y }));
                }
                (None, Some(first)) if past && active == 1 => stream_out(first, y),
                (None, Some(first)) => y.copy_from_slice(first),
                (None, None) => y.fill(0.0),
            }
            hot.for_each(|x| dispatch(UpdateBody { f: Add, x, y }));
        }
    });
}

/// Adds `d_y[r]` to `d_table[ids[r][j]]` for every `r` and `j`, in the order of `r`: no atomics, the
/// same bits for any number of threads.
///
/// # Shapes
/// `ids` `[rows, active]`, `d_y` `[rows, width]`, `d_table` `[vocab, width]`.
pub fn embedding_backward(
    ids: &[u32],
    d_y: &[f32],
    d_table: &mut [f32],
    active: usize,
    width: usize,
) {
    assert_eq!(ids.len() * width, d_y.len() * active);
    if width == 0 || active == 0 {
        return;
    }
    assert!(d_table.len().is_multiple_of(width));
    // Each task takes some columns of all rows: few enough that its part of the table stays in the
    // second-level cache (1 MiB), else as many as threads leave to each, to read memory in runs. A
    // column's sums do not depend on the cuts.
    let vocab = d_table.len() / width;
    let fits = (262_144 / vocab.max(1)).next_multiple_of(64);
    let columns = fits.min(width.div_ceil(threads()).next_multiple_of(64));
    let d_table = Shared::new(d_table);
    parallel_for(width, columns, |cols| {
        for (row, d_y) in ids.chunks_exact(active).zip(d_y.chunks_exact(width)) {
            let x = &d_y[cols.clone()];
            for id in row.iter().filter(|id| **id != NO_ID) {
                let at = *id as usize * width;
                // SAFETY: no other task touches these columns, and this is the only piece alive.
                let y = unsafe { d_table.slice(at + cols.start..at + cols.end) };
                dispatch(UpdateBody { f: Add, x, y });
            }
        }
    });
}
