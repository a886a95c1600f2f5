//! One token at a time.

use super::arguments::mask_of;
use super::forward::suffix;
use super::{Format, Relative};
use crate::attention::{Cache, Mask};
use crate::cuda::{Args, Error, Gpu, Launch};

/// Keys of a chunk are a multiple of this: what the threads of a block take at once.
const CHUNK: usize = 64;

/// The caches of keys and values, `[batch, heads, capacity, head_dim]`.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Sequences.
    pub batch: usize,
    /// Sizes of a sequence's cache; of `len` only that it is at most `capacity` matters, the rows that
    /// are there are read from the device.
    pub cache: Cache,
    /// The keys.
    pub k: u64,
    /// The values.
    pub v: u64,
    /// How keys, values and embeddings are stored.
    pub format: Format,
    /// An `i32` on the device: rows in the cache with the new one, so that a recording serves all steps.
    pub len: u64,
}

/// The key and the value of the new row, f32, laid out as the queries.
#[derive(Debug, Clone, Copy)]
pub struct NewRow {
    /// The keys.
    pub k: u64,
    /// The values.
    pub v: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Fields {
    q: u64,
    k_new: u64,
    v_new: u64,
    k: u64,
    v: u64,
    er: u64,
    o: u64,
    parts: u64,
    len: u64,
    q_batch: i64,
    heads: i32,
    capacity: i32,
    head_dim: i32,
    max_len: i32,
    mask: i32,
    width: i32,
    stride: i32,
    chunk: i32,
    chunks: i32,
    scale: f32,
}

// SAFETY: plain numbers in the order of C, without a gap: 10 fields of 8 bytes, 10 of 4.
unsafe impl bytemuck::NoUninit for Fields {}

/// Keys of a chunk: as many chunks as fill the device, each worth a block.
fn chunk(gpu: &dyn Gpu, batch: usize, cache: Cache) -> usize {
    let blocks = 2 * gpu.properties().sms as usize;
    let rows = cache.capacity * batch * cache.heads;
    (rows / blocks.max(1)).next_multiple_of(CHUNK).clamp(CHUNK, 8 * CHUNK)
}

/// f32 numbers that [`attention_step`] wants as room.
pub fn attention_step_room(gpu: &dyn Gpu, batch: usize, cache: Cache) -> usize {
    let chunks = cache.capacity.div_ceil(chunk(gpu, batch, cache));
    batch * cache.heads * chunks * (cache.head_dim + 2)
}

/// Computes the attention of one query of each head, whose own key and value are the last in the cache,
/// after it has put them there.
///
/// # Shapes
/// `q` `[batch, heads, head_dim]`, f32, sequences `q_batch` numbers apart; `o`
/// `[batch, heads, head_dim]`, f32, contiguous; `room` as many f32 as [`attention_step_room`] says. An
/// empty cache gives 0.
///
/// # Errors
/// If memory is not allocated, or the driver refuses.
///
/// # Panics
/// If a head is larger than 128, or the mask can reach further back than there are embeddings.
pub fn attention_step(
    gpu: &dyn Gpu,
    (q, q_batch): (u64, usize),
    new: Option<NewRow>,
    step: &Step,
    relative: Option<Relative>,
    o: u64,
    room: u64,
    mask: Mask,
    scale: f32,
) -> Result<(), Error> {
    let Step { batch, cache, .. } = *step;
    assert!(cache.head_dim <= 128);
    let chunk = chunk(gpu, batch, cache);
    let chunks = cache.capacity.div_ceil(chunk);
    let args = arguments(q, q_batch, new, step, relative, o, mask, scale, (chunk, chunks, room));
    if [chunks, cache.heads, batch, cache.head_dim].contains(&0) {
        return Ok(());
    }
    let args = args.touches(room, attention_step_room(gpu, batch, cache) * 4);
    let is_whole = (cache.head_dim * step.format.bytes()).is_multiple_of(16)
        && [step.k, step.v, relative.map_or(0, |r| r.er)].iter().all(|a| a.is_multiple_of(16));
    let kernel =
        format!("attention_step_{}{}", if is_whole { "" } else { "any_" }, suffix(step.format));
    let shared = 4 * (cache.head_dim + 2) * 4;
    let launch = Launch::new([chunks as u32, cache.heads as u32, batch as u32], [128, 1, 1])
        .shared(shared as u32);
    // SAFETY: the kernel takes this struct alone and touches rows of the sizes in it, which the spans
    // cover.
    unsafe { gpu.launch(&kernel, &launch, &args)? };
    if chunks > 1 {
        let launch = Launch::new([cache.heads as u32, batch as u32, 1], [128, 1, 1]);
        // SAFETY: as above.
        unsafe { gpu.launch("attention_step_join", &launch, &args)? };
    }
    Ok(())
}

/// Computes [`attention_step`] by its definition; the capacity is at most what fits in shared memory.
///
/// # Shapes
/// Those of [`attention_step`], without room.
///
/// # Errors
/// If memory is not allocated, or the driver refuses.
///
/// # Panics
/// As [`attention_step`].
pub fn attention_step_plain(
    gpu: &dyn Gpu,
    (q, q_batch): (u64, usize),
    new: Option<NewRow>,
    step: &Step,
    relative: Option<Relative>,
    o: u64,
    mask: Mask,
    scale: f32,
) -> Result<(), Error> {
    let Step { batch, cache, .. } = *step;
    let args = arguments(q, q_batch, new, step, relative, o, mask, scale, (cache.capacity, 1, 0));
    if [cache.capacity, cache.heads, batch, cache.head_dim].contains(&0) {
        return Ok(());
    }
    let kernel = format!("attention_step_plain_{}", suffix(step.format));
    let launch = Launch::new([cache.heads as u32, batch as u32, 1], [128, 1, 1])
        .shared(((cache.capacity + 32) * 4) as u32);
    // SAFETY: the kernel takes this struct alone and touches rows of the sizes in it, which the spans
    // cover.
    unsafe { gpu.launch(&kernel, &launch, &args) }
}

fn arguments(
    q: u64,
    q_batch: usize,
    new: Option<NewRow>,
    step: &Step,
    relative: Option<Relative>,
    o: u64,
    mask: Mask,
    scale: f32,
    (chunk, chunks, parts): (usize, usize, u64),
) -> Args {
    let Step { batch, cache, k, v, format, len } = *step;
    let Cache { heads, capacity, head_dim, .. } = cache;
    assert!(cache.len <= capacity && mask.is_valid() && batch < 1 << 16 && heads < 1 << 16);
    if let Some(r) = relative {
        assert!(matches!(mask, Mask::Causal | Mask::Window { .. }));
        assert!(mask.reach(capacity) <= r.max_len);
    }
    let (mask, width, stride) = mask_of(mask);
    let fields = Fields {
        q,
        k_new: new.map_or(0, |new| new.k),
        v_new: new.map_or(0, |new| new.v),
        k,
        v,
        er: relative.map_or(0, |r| r.er),
        o,
        parts,
        len,
        q_batch: q_batch as i64,
        heads: heads as i32,
        capacity: capacity as i32,
        head_dim: head_dim as i32,
        max_len: relative.map_or(0, |r| r.max_len as i32),
        mask,
        width,
        stride,
        chunk: chunk as i32,
        chunks: chunks as i32,
        scale,
    };
    let row = heads * head_dim;
    let rows = if batch > 0 { ((batch - 1) * q_batch + row) * 4 } else { 0 };
    let cached = batch * row * capacity * format.bytes();
    let mut args = Args::new()
        .plain(&fields)
        .touches(q, rows)
        .touches(k, cached)
        .touches(v, cached)
        .touches(o, batch * row * 4)
        .touches(len, 4);
    if let Some(new) = new {
        args = args.touches(new.k, rows).touches(new.v, rows);
    }
    if let Some(r) = relative {
        args = args.touches(r.er, row * r.max_len * format.bytes());
    }
    args
}
