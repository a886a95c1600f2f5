//! Timed cases of the embedding.

use super::rows::filled;
use super::{Bench, Error};
use crate::cuda::DeviceBuffer;
use crate::cuda::embedding;
use crate::cuda::rows::Float;
use crate::philox;

/// The cases.
///
/// # Errors
/// Those of the device.
pub fn cases(bench: &mut Bench) -> Result<(), Error> {
    let gpu = bench.gpu;
    // Vocabulary, rows, width.
    let shapes: &[[usize; 3]] = match bench.small {
        true => &[[50, 300, 64]],
        false => &[[388, 65_536, 512], [32_768, 65_536, 1024]],
    };
    for [vocab, rows, width] in shapes.iter().copied() {
        let (table, d_y) =
            (filled(gpu, Float::F32, vocab * width)?, filled(gpu, Float::F32, rows * width)?);
        let y = DeviceBuffer::<f32>::zeros(gpu, rows * width)?;
        let ids: Vec<u32> = (0..rows as u64)
            .map(|r| (philox::to_unit(philox::block(1, 0, r)[0]) * vocab as f32) as u32)
            .collect();
        let ids = DeviceBuffer::from_slice(gpu, &ids)?;
        let room = embedding::embedding_backward_scratch(rows, 1, width);
        let scratch = DeviceBuffer::<u8>::zeros(gpu, room)?;
        let (t, i, y, d, s) = (table.ptr(), ids.ptr(), y.ptr(), d_y.ptr(), scratch.ptr());
        let bytes = (rows * width * 4) as f64;
        let shape = format!("{vocab}, {rows}x{width}");
        let table_bytes = (vocab * width * 4) as f64;
        let moved = bytes + table_bytes.min(bytes) + 4.0 * rows as f64;
        bench.case(&format!("embedding/forward f32/{shape}"), "", 0.0, moved, &mut || {
            embedding::embedding_forward(gpu, t, i, 0, y, vocab, rows, 1, width)
        })?;
        let moved = bytes + 2.0 * table_bytes.min(bytes) + 4.0 * rows as f64;
        let case = format!("embedding/backward f32/{shape}");
        bench.case(&case, "sorted", 0.0, moved, &mut || {
            embedding::embedding_backward(gpu, i, d, t, s, vocab, rows, 1, width)
        })?;
        bench.case(&case, "plain", 0.0, moved, &mut || {
            embedding::embedding_backward_plain(gpu, i, d, t, vocab, rows, 1, width)
        })?;
    }
    Ok(())
}
