//! Launchers of recurrent sequences: the part of RNN, GRU and LSTM that runs step after step. Sources:
//! `kernels/cuda/recurrent_*`.
//!
//! As on the CPU, the caller computes the input part of every step at once, and weight gradients from
//! `d_gates` at the end, both as one big product. Everything is time-major; gate order is PyTorch's:
//! LSTM i, f, g, o; GRU r, z, n. Weights are PyTorch's `w_hh` `[gates * hidden, hidden]`, f32 or bf16.
//!
//! One persistent kernel runs the whole sequence. Its blocks exchange states (gradients) through a
//! buffer that is useful afterwards: `states` holds `h0` and all `h` as the numbers that were
//! multiplied, `deltas` what goes back through `w_hh`; both are operands of the weight gradient.

mod backward;
mod forward;
mod plain;
pub mod step;
mod variant;

pub use backward::{gru_backward, lstm_backward, rnn_backward};
pub use forward::{gru_forward, lstm_forward, rnn_forward};
pub use variant::{Variant, Wait, variants_backward, variants_forward};

use super::{Args, Error, Gpu, Launch};
use crate::recurrent::{Nonlinearity, Sizes};
use crate::step::Cell;

/// Rows of the batch that go through a persistent kernel at a time.
const ROWS: usize = 8;
/// Warps and threads of a persistent kernel's block.
const WARPS: usize = 8;
const THREADS: u32 = 256;

/// Bits of a persistent kernel's `flags`.
const BACKWARDS_IN_TIME: i32 = 1;
const BY_COUNTER: i32 = 2;
const WITHOUT_GATES: i32 = 4;
const RECTIFIER: i32 = 8;

/// In which numbers states and gradients are multiplied by `w_hh`; sums and cells are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// f32.
    F32,
    /// bf16, on tensor cores.
    Bf16,
}

/// What is run: the kind of layer, the sizes, the direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// The layer's kind.
    pub cell: Cell,
    /// Numbers of `w_hh`, `states` and `deltas`.
    pub precision: Precision,
    /// Steps, batch, hidden.
    pub sizes: Sizes,
    /// Whether the sequence is read from its end: the other half of a bidirectional layer.
    pub backwards_in_time: bool,
}

impl Sequence {
    /// Numbers from one row of `states` (or one gate's row of `deltas`) to the next: `hidden` rounded up
    /// to 16 bytes.
    pub fn pitch(&self) -> usize {
        self.sizes.hidden.next_multiple_of(16 / self.element())
    }

    /// Bytes of `states` `[steps + 1, batch, pitch]`.
    pub fn states_bytes(&self) -> usize {
        (self.sizes.steps + 1) * self.slot_bytes()
    }

    /// Bytes of `deltas` `[steps, batch, gates, pitch]`.
    pub fn deltas_bytes(&self) -> usize {
        self.sizes.steps * self.cell.gates() * self.slot_bytes()
    }

    /// Bytes of a workspace; its content need not be anything.
    pub fn workspace_bytes(&self) -> usize {
        let Sizes { batch, hidden, .. } = self.sizes;
        // Weights as a persistent kernel reads them, or what the plain form has between its kernels.
        let packed =
            (self.pitch() + 32) * self.cell.gates() * (self.pitch() + 256) * self.element();
        4 * self.counters() + packed.max(4 * 4 * batch * hidden)
    }

    /// Where in the workspace there is room behind the counters.
    fn room(&self, workspace: u64) -> u64 {
        workspace + 4 * self.counters() as u64
    }

    /// The status, and a counter for each pass and block of any variant.
    fn counters(&self) -> usize {
        let passes = 2 * self.sizes.batch.div_ceil(ROWS);
        (1 + passes * self.pitch().div_ceil(8)).next_multiple_of(64)
    }

    fn slot_bytes(&self) -> usize {
        self.sizes.batch * self.pitch() * self.element()
    }

    fn element(&self) -> usize {
        match self.precision {
            Precision::F32 => 4,
            Precision::Bf16 => 2,
        }
    }

    fn is_empty(&self) -> bool {
        self.sizes.batch == 0 || self.sizes.hidden == 0
    }

    fn flags(&self) -> i32 {
        let relu = self.cell == Cell::Rnn(Nonlinearity::Relu);
        i32::from(self.backwards_in_time) * BACKWARDS_IN_TIME + i32::from(relu) * RECTIFIER
    }

    /// Floats of `[batch, width]` and of `[steps, batch, width]`, in bytes.
    fn row_bytes(&self, width: usize) -> (usize, usize) {
        let one = 4 * self.sizes.batch * width;
        (one, one * self.sizes.steps)
    }

    fn name(&self) -> &'static str {
        match self.cell {
            Cell::Lstm => "lstm",
            Cell::Gru => "gru",
            Cell::Rnn(_) => "rnn",
        }
    }

    fn suffix(&self) -> &'static str {
        match self.precision {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }
}

/// Waits for the sequence that used `workspace` and tells whether its blocks heard from one another in
/// time. A persistent kernel gives up after two seconds of waiting rather than to hang.
///
/// # Errors
/// If they did not, or the driver refuses.
pub fn check(gpu: &dyn Gpu, workspace: u64) -> Result<(), Error> {
    let mut status = [0u32];
    gpu.download(workspace, bytemuck::cast_slice_mut(&mut status))?;
    match status {
        [0] => Ok(()),
        _ => {
            let why = "blocks waited for one another in vain".to_string();
            Err(Error::Driver { op: "recurrent sequence", why })
        }
    }
}

/// Fills an exchange with what means "not yet", but for `slot`, which takes `h0`; clears counters.
fn prepare(
    gpu: &dyn Gpu,
    q: &Sequence,
    (filler, filler_bytes): (u64, usize),
    slot: Option<u64>,
    h0: Option<u64>,
    workspace: u64,
) -> Result<(), Error> {
    let pieces = filler_bytes / 16;
    let threads = pieces.max(q.sizes.batch * q.pitch()).max(q.counters());
    // 8 blocks of 256 threads fill a multiprocessor.
    let blocks = threads.div_ceil(256).min(8 * gpu.properties().sms as usize);
    let args = Args::new()
        .span(filler, filler_bytes)
        .i64(pieces as i64)
        .optional(slot, q.slot_bytes())
        .optional(h0, q.row_bytes(q.sizes.hidden).0)
        .i32(q.sizes.batch as i32)
        .i32(q.sizes.hidden as i32)
        .i32(q.pitch() as i32)
        .span(workspace, 4 * q.counters())
        .i32(q.counters() as i32);
    let kernel = format!("recurrent_prepare_{}", q.suffix());
    // SAFETY: the kernel's parameters; it writes the pieces, the slot and the counters, reads h0.
    unsafe { gpu.launch(&kernel, &Launch::linear(blocks as u32, 256), &args) }
}
