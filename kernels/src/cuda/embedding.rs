//! Rows of a table by id, and the gradient of that without float atomics. Source:
//! `kernels/cuda/embedding.cu`.

use super::{Args, Error, Gpu, Launch};

/// Slots that a block sorts at a time.
const CHUNK: usize = 256;
/// Sorted slots whose rows a block adds up.
const RUN: usize = 64;

/// Gathers and adds rows: `y[r] = sum over j of table[ids[r][j]]` (+ `bias`, where its address is not 0),
/// skipping [`NO_ID`](crate::embedding::NO_ID).
///
/// # Shapes
/// `table` `[vocab, width]`, `ids` `[rows, active]` of `u32`, `bias` `[width]`, `y` `[rows, width]`; f32.
/// Ids are below `vocab`.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn embedding_forward(
    gpu: &dyn Gpu,
    table: u64,
    ids: u64,
    bias: u64,
    y: u64,
    vocab: usize,
    rows: usize,
    active: usize,
    width: usize,
) -> Result<(), Error> {
    if rows * width == 0 {
        return Ok(());
    }
    let wide = width.is_multiple_of(4);
    let lanes = width.div_ceil(if wide { 4 } else { 1 }).next_power_of_two().clamp(1, 256);
    let blocks = rows.div_ceil(256 / lanes).min(64 * gpu.properties().sms as usize);
    let args = Args::new().span(table, vocab * width * 4).span(ids, rows * active * 4);
    let args = args.optional((bias != 0).then_some(bias), width * 4).span(y, rows * width * 4);
    let args = args.i64(rows as i64).i64(active as i64).i64(width as i64).i32(lanes as i32);
    // SAFETY: the kernel takes table, ids, bias or null, y, rows, active, width, lanes and touches what their
    // shapes say, ids being below `vocab`.
    unsafe { gpu.launch("embedding_forward_f32", &Launch::linear(blocks as u32, 256), &args) }
}

/// Where things lie in the scratch memory.
struct Room {
    keys: [u64; 2],
    slots: [u64; 2],
    counts: u64,
    edges: u64,
    end: u64,
}

impl Room {
    fn new(scratch: u64, slots: usize, width: usize) -> Room {
        let list = (slots * 4).next_multiple_of(256) as u64;
        let counts = (slots.div_ceil(CHUNK) * 256 * 4) as u64;
        let edges = scratch + 4 * list + counts;
        Room {
            keys: [scratch, scratch + list],
            slots: [scratch + 2 * list, scratch + 3 * list],
            counts: scratch + 4 * list,
            edges,
            end: edges + (slots.div_ceil(RUN) * 2 * width * 4) as u64,
        }
    }
}

/// Bytes of the scratch memory that [`embedding_backward`] wants.
pub fn embedding_backward_scratch(rows: usize, active: usize, width: usize) -> usize {
    Room::new(0, rows * active, width).end as usize
}

/// Adds `d_y[r]` to `d_table[ids[r][j]]` for every `r` and `j`: no float atomics, the same bits every
/// time.
///
/// # Shapes
/// `ids` `[rows, active]` of `u32`, below `vocab` or [`NO_ID`](crate::embedding::NO_ID); `d_y`
/// `[rows, width]`, `d_table` `[vocab, width]`, f32; `scratch` [`embedding_backward_scratch`] bytes.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
///
/// # Panics
/// If there are 2^32 slots or more.
pub fn embedding_backward(
    gpu: &dyn Gpu,
    ids: u64,
    d_y: u64,
    d_table: u64,
    scratch: u64,
    vocab: usize,
    rows: usize,
    active: usize,
    width: usize,
) -> Result<(), Error> {
    let slots = rows * active;
    if slots * width == 0 {
        return Ok(());
    }
    assert!(slots < u32::MAX as usize);
    let room = Room::new(scratch, slots, width);
    let (list, chunks) = (slots * 4, slots.div_ceil(CHUNK));
    let counts = chunks * 256;
    // Digits that tell all ids from one another, and from NO_ID, whose bits are all ones.
    let passes = (1..4).find(|passes| vocab < 1 << (8 * passes)).unwrap_or(4);
    let (mut keys, mut order) = (ids, None);
    for pass in 0..passes {
        let shift = 8 * pass;
        let launch = Launch::linear(chunks as u32, 256).shared(256 * 4);
        let args = Args::new().span(keys, list).span(room.counts, counts * 4).i64(slots as i64);
        let args = args.i64(chunks as i64).i32(shift);
        // SAFETY: the kernel takes keys, counts, slots, chunks, shift and touches 256 counts for each chunk.
        unsafe { gpu.launch("embedding_count", &launch, &args) }?;
        let args = Args::new().span(room.counts, counts * 4).i64(counts as i64);
        // SAFETY: the kernel takes counts and their number.
        unsafe { gpu.launch("embedding_scan", &Launch::linear(1, 1024).shared(128), &args) }?;
        let (to_keys, to_slots) = (room.keys[pass as usize % 2], room.slots[pass as usize % 2]);
        let args = Args::new().span(keys, list).optional(order, list);
        let args = args.span(room.counts, counts * 4).span(to_keys, list).span(to_slots, list);
        let args = args.i64(slots as i64).i64(chunks as i64).i32(shift);
        // SAFETY: the kernel takes keys, slots or null, offsets, keys_out, slots_out, slots, chunks, shift;
        // the offsets and ranks are a permutation of the slots.
        unsafe { gpu.launch("embedding_scatter", &launch, &args) }?;
        (keys, order) = (to_keys, Some(to_slots));
    }
    let order = order.unwrap_or(0);
    let tiles = width.div_ceil(128);
    let blocks = slots.div_ceil(RUN);
    let launch = Launch::linear((blocks * tiles) as u32, 128);
    let edges = blocks * 2 * width * 4;
    let args = Args::new().span(keys, list).span(order, list).span(d_y, rows * width * 4);
    let args = args.span(d_table, vocab * width * 4).span(room.edges, edges).i64(slots as i64);
    let args = args.i64(active as i64).i64(width as i64).i32(RUN as i32).i32(tiles as i32);
    // SAFETY: the kernel takes keys, slots, d_y, d_table, edges, count, active, width, run, tiles; slots are
    // below `rows * active`, keys below `vocab` or none.
    unsafe { gpu.launch("embedding_runs", &launch, &args) }?;
    let args = Args::new().span(keys, list).span(d_table, vocab * width * 4);
    let args = args.span(room.edges, edges).i64(slots as i64).i64(width as i64);
    let args = args.i32(RUN as i32).i32(tiles as i32);
    // SAFETY: the kernel takes keys, d_table, edges, count, width, run, tiles; as above.
    unsafe { gpu.launch("embedding_join", &launch, &args) }
}

/// [`embedding_backward`] in its simplest form, for comparison: a thread a column.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn embedding_backward_plain(
    gpu: &dyn Gpu,
    ids: u64,
    d_y: u64,
    d_table: u64,
    vocab: usize,
    rows: usize,
    active: usize,
    width: usize,
) -> Result<(), Error> {
    let args = Args::new().span(ids, rows * active * 4).span(d_y, rows * width * 4);
    let args = args.span(d_table, vocab * width * 4).i64(rows as i64).i64(active as i64);
    let launch = Launch::linear(width.div_ceil(128) as u32, 128);
    // SAFETY: the kernel takes ids, d_y, d_table, rows, active, width and touches what their shapes say.
    unsafe { gpu.launch("embedding_backward_plain", &launch, &args.i64(width as i64)) }
}
