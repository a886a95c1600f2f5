//! Rows of a table by id, and the gradient of that.

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
    for (row, y) in ids.chunks_exact(active.max(1)).zip(y.chunks_exact_mut(width.max(1))) {
        match bias {
            Some(bias) => y.copy_from_slice(bias),
            None => y.fill(0.0),
        }
        for id in row.iter().filter(|id| **id != NO_ID) {
            let at = *id as usize * width;
            crate::elementwise::axpy(1.0, &table[at..at + width], y);
        }
    }
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
    for (row, d_y) in ids.chunks_exact(active.max(1)).zip(d_y.chunks_exact(width.max(1))) {
        for id in row.iter().filter(|id| **id != NO_ID) {
            let at = *id as usize * width;
            crate::elementwise::axpy(1.0, d_y, &mut d_table[at..at + width]);
        }
    }
}
