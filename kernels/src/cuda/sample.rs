//! Tokens drawn from logits on the device. Source: `kernels/cuda/sample.cu`.

use super::random::Stream;
use super::{Args, Error, Gpu, Launch};

/// The controls of a draw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Controls {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keeps the smallest set of at least this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this many times as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Keeps the `k` likeliest; 0 keeps all.
    pub top_k: u32,
}

impl Controls {
    fn words(self) -> [u32; 4] {
        [self.temperature.to_bits(), self.top_p.to_bits(), self.min_p.to_bits(), self.top_k]
    }
}

/// What the draws of some rows depend on beside the logits. An address is 0 where there is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// A bit for each token that the grammar lets stand, `[rows, ceil(vocab / 32)]` of `u32`.
    pub allowed: u64,
    /// The token that the guard against repeats strikes out, `[rows]` of `u32`; all ones: none.
    pub struck: u64,
    /// Uniform numbers in `[0, 1)`, `[rows]`; without them row `r` takes word 0 of block `r` of the stream.
    pub units: u64,
    /// The random stream.
    pub stream: Stream,
}

/// Draws a token for each row.
///
/// If nothing is left after the cuts, the likeliest allowed token is taken; if the struck token alone is
/// allowed, that one. Equal probabilities are cut in the order of their ids.
///
/// # Shapes
/// `logits` `[rows, vocab]`, f32; `tokens` `[rows]` of `u32`.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn sample_rows(
    gpu: &dyn Gpu,
    logits: u64,
    draw: Draw,
    controls: Controls,
    tokens: u64,
    rows: usize,
    vocab: usize,
) -> Result<(), Error> {
    if rows * vocab == 0 {
        return Ok(());
    }
    let given = |address: u64| (address != 0).then_some(address);
    let args = Args::new().span(logits, rows * vocab * 4);
    let args = args.optional(given(draw.allowed), rows * vocab.div_ceil(32) * 4);
    let args = args.optional(given(draw.struck), rows * 4).optional(given(draw.units), rows * 4);
    let args = draw.stream.args(args.plain(&controls.words())).span(tokens, rows * 4);
    let launch = Launch::linear(rows as u32, 256).shared((256 + 2 + 8) * 8);
    // SAFETY: the kernel takes logits, allowed, struck, units, controls, the stream, tokens, vocab and touches
    // a row of each for each block.
    unsafe { gpu.launch("sample_rows", &launch, &args.u32(vocab as u32)) }
}

/// [`sample_rows`] in its simplest form, for comparison: a thread a row, which looks for the next
/// likeliest again and again. Units are wanted; nothing is struck out.
///
/// # Shapes
/// `probs` `[rows, vocab]` is overwritten.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn sample_plain(
    gpu: &dyn Gpu,
    logits: u64,
    allowed: u64,
    units: u64,
    controls: Controls,
    probs: u64,
    tokens: u64,
    rows: usize,
    vocab: usize,
) -> Result<(), Error> {
    let args = Args::new().span(logits, rows * vocab * 4);
    let args = args.optional((allowed != 0).then_some(allowed), rows * vocab.div_ceil(32) * 4);
    let args = args.span(units, rows * 4).plain(&controls.words()).span(probs, rows * vocab * 4);
    let args = args.span(tokens, rows * 4).u32(vocab as u32);
    // SAFETY: the kernel takes logits, allowed or null, units, controls, probs, tokens, vocab and touches a
    // row of each for each block.
    unsafe { gpu.launch("sample_plain", &Launch::linear(rows as u32, 32), &args) }
}
