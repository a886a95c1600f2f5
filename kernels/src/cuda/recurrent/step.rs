//! One step of a recurrent layer for few rows, the way in which a model writes: both products and the
//! cell in one launch for each layer. Source: `kernels/cuda/recurrent_step.cu`.

use crate::cuda::{Args, Error, Gpu, Launch};
use crate::recurrent::Nonlinearity;
use crate::step::Cell;
use half::bf16;

/// Threads of a block: four hidden units at a time.
const THREADS: usize = 128;

/// In which numbers weights are stored; sums are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepPrecision {
    /// f32.
    F32,
    /// bf16.
    Bf16,
    /// Eight bits, and a scale for each row.
    Int8,
}

impl StepPrecision {
    /// Bytes of one weight.
    fn bytes(self) -> usize {
        match self {
            StepPrecision::F32 => 4,
            StepPrecision::Bf16 => 2,
            StepPrecision::Int8 => 1,
        }
    }

    /// Weights from one row of `k` to the next: rows begin at multiples of 16 bytes.
    pub fn pitch(self, k: usize) -> usize {
        k.next_multiple_of(16 / self.bytes())
    }

    /// Bytes of packed weights `[rows, k]`.
    pub fn packed_bytes(self, rows: usize, k: usize) -> usize {
        rows * self.pitch(k) * self.bytes()
    }

    /// Packs weights `[rows, k]` as a step reads them; with the scale of each row if they have one.
    ///
    /// # Panics
    /// If `w` is not that long.
    pub fn pack(self, w: &[f32], rows: usize, k: usize) -> (Vec<u8>, Vec<f32>) {
        assert_eq!(w.len(), rows * k);
        let pitch = self.pitch(k);
        let mut bytes = Vec::with_capacity(self.packed_bytes(rows, k));
        let mut scales = Vec::new();
        for row in w.chunks_exact(k.max(1)) {
            let largest = row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
            for x in row.iter().copied().chain(std::iter::repeat_n(0.0, pitch - k)) {
                match self {
                    StepPrecision::F32 => bytes.extend(x.to_ne_bytes()),
                    StepPrecision::Bf16 => bytes.extend(bf16::from_f32(x).to_bits().to_ne_bytes()),
                    StepPrecision::Int8 => bytes.extend(((x / scale).round() as i8).to_ne_bytes()),
                }
            }
            if self == StepPrecision::Int8 {
                scales.push(scale);
            }
        }
        (bytes, scales)
    }

    fn suffix(self) -> &'static str {
        match self {
            StepPrecision::F32 => "f32",
            StepPrecision::Bf16 => "bf16",
            StepPrecision::Int8 => "int8",
        }
    }
}

/// Packed weights on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// What [`StepPrecision::pack`] made.
    pub w: u64,
    /// The scales of the rows, of int8.
    pub scales: Option<u64>,
}

/// What the first layer of a step reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// `x` `[batch, inputs]` and the weights `[gates * hidden, inputs]` that it is multiplied by.
    Dense {
        /// Numbers.
        x: u64,
        /// Weights.
        w_ih: Packed,
    },
    /// `ids` `[batch, a_row]` of u32 choose rows of `table` `[inputs, gates * hidden]`, f32; `NO_ID` is
    /// none.
    Ids {
        /// Which rows.
        ids: u64,
        /// How many for each row of the batch.
        a_row: usize,
        /// The rows.
        table: u64,
    },
}

/// The sizes of a step and the numbers of its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Numbers of the weights.
    pub precision: StepPrecision,
    /// Rows.
    pub batch: usize,
    /// Length of an input, or of the table.
    pub inputs: usize,
    /// Hidden units, or outputs.
    pub hidden: usize,
}

/// Advances an LSTM by one step.
///
/// # Shapes
/// `w_hh` `[4 * hidden, hidden]` packed; `b` `[4 * hidden]`, the sum of both biases, may be none. `h_prev`,
/// `c_prev`, `h`, `c` `[batch, hidden]`; what is written is not what is read.
///
/// # Errors
/// If a span is not allocated, or the driver refuses.
pub fn lstm_step(
    gpu: &dyn Gpu,
    s: &Step,
    input: Input,
    w_hh: Packed,
    b: Option<u64>,
    h_prev: u64,
    c_prev: u64,
    h: u64,
    c: u64,
) -> Result<(), Error> {
    let state = State { w_hh, b_hh: None, h_prev, c: Some((c_prev, c)) };
    run(gpu, s, Some(Cell::Lstm), input, b, Some(state), h)
}

/// Advances a GRU by one step.
///
/// # Shapes
/// `w_hh` `[3 * hidden, hidden]` packed; `b_ih`, `b_hh` `[3 * hidden]`. `h_prev`, `h` `[batch, hidden]`, not
/// the same memory.
///
/// # Errors
/// If a span is not allocated, or the driver refuses.
pub fn gru_step(
    gpu: &dyn Gpu,
    s: &Step,
    input: Input,
    w_hh: Packed,
    b_ih: Option<u64>,
    b_hh: u64,
    h_prev: u64,
    h: u64,
) -> Result<(), Error> {
    let state = State { w_hh, b_hh: Some(b_hh), h_prev, c: None };
    run(gpu, s, Some(Cell::Gru), input, b_ih, Some(state), h)
}

/// Advances an Elman network by one step.
///
/// # Shapes
/// `w_hh` `[hidden, hidden]` packed; `b` `[hidden]`, the sum of both biases. `h_prev`, `h`
/// `[batch, hidden]`, not the same memory.
///
/// # Errors
/// If a span is not allocated, or the driver refuses.
pub fn rnn_step(
    gpu: &dyn Gpu,
    s: &Step,
    input: Input,
    w_hh: Packed,
    b: Option<u64>,
    h_prev: u64,
    h: u64,
    f: Nonlinearity,
) -> Result<(), Error> {
    let state = State { w_hh, b_hh: None, h_prev, c: None };
    run(gpu, s, Some(Cell::Rnn(f)), input, b, Some(state), h)
}

/// Computes `y = x W^T + b` for few rows: the output layer of a step.
///
/// # Shapes
/// `x` `[batch, inputs]`, `w` `[hidden, inputs]` packed, `b` `[hidden]`; `y` `[batch, hidden]`, written.
///
/// # Errors
/// If a span is not allocated, or the driver refuses.
pub fn linear_step(
    gpu: &dyn Gpu,
    s: &Step,
    x: u64,
    w: Packed,
    b: Option<u64>,
    y: u64,
) -> Result<(), Error> {
    run(gpu, s, None, Input::Dense { x, w_ih: w }, b, None, y)
}

struct State {
    w_hh: Packed,
    b_hh: Option<u64>,
    h_prev: u64,
    /// Before and after.
    c: Option<(u64, u64)>,
}

fn run(
    gpu: &dyn Gpu,
    s: &Step,
    cell: Option<Cell>,
    input: Input,
    b_ih: Option<u64>,
    state: Option<State>,
    h: u64,
) -> Result<(), Error> {
    let (Step { precision, batch, inputs, hidden }, gates) = (*s, cell.map_or(1, Cell::gates));
    if batch == 0 || hidden == 0 {
        return Ok(());
    }
    let name = match cell {
        Some(Cell::Lstm) => "lstm",
        Some(Cell::Gru) => "gru",
        Some(Cell::Rnn(_)) => "rnn",
        None => "linear",
    };
    let rows = if batch == 1 { 1 } else { 4 };
    let kernel = format!("{name}_step_{}_r{rows}", precision.suffix());
    let (outputs, of_state) = (gates * hidden, 4 * batch * hidden);
    let (x, w_ih, ids) = match input {
        Input::Dense { x, w_ih } => (Some(x), Some(w_ih), None),
        Input::Ids { ids, a_row, table } => (None, None, Some((ids, a_row, table))),
    };
    let (pitch_ih, pitch_hh) = (
        w_ih.map_or(0, |_| precision.pitch(inputs)),
        state.as_ref().map_or(0, |_| precision.pitch(hidden)),
    );
    let w_hh = state.as_ref().map(|state| state.w_hh);
    let scales = |w: Option<Packed>| w.and_then(|w| w.scales);
    let a_row = ids.map_or(0, |ids| ids.1);
    let relu = cell == Some(Cell::Rnn(Nonlinearity::Relu));
    let args = Args::new()
        .optional(w_ih.map(|w| w.w), precision.packed_bytes(outputs, inputs))
        .optional(scales(w_ih), 4 * outputs)
        .optional(w_hh.map(|w| w.w), precision.packed_bytes(outputs, hidden))
        .optional(scales(w_hh), 4 * outputs)
        .optional(b_ih, 4 * outputs)
        .optional(state.as_ref().and_then(|state| state.b_hh), 4 * outputs)
        .optional(ids.map(|ids| ids.2), 4 * inputs * outputs)
        .optional(ids.map(|ids| ids.0), 4 * batch * a_row)
        .i32(a_row as i32)
        .optional(x, 4 * batch * inputs)
        .optional(state.as_ref().map(|state| state.h_prev), of_state)
        .optional(state.as_ref().and_then(|state| state.c).map(|c| c.0), of_state)
        .span(h, of_state)
        .optional(state.as_ref().and_then(|state| state.c).map(|c| c.1), of_state)
        .i32(batch as i32)
        .i32(inputs as i32)
        .i32(hidden as i32)
        .i32(pitch_ih as i32)
        .i32(pitch_hh as i32)
        .i32(i32::from(relu));
    let grid = [hidden.div_ceil(THREADS / 32) as u32, batch.div_ceil(rows) as u32, 1];
    let shared = 4 * rows * (pitch_ih + pitch_hh);
    let launch = Launch::new(grid, [THREADS as u32, 1, 1]).shared(shared as u32);
    // SAFETY: the kernel's parameters; recurrent_step.cu tells the shapes, which the spans have.
    unsafe { gpu.launch(&kernel, &launch, &args) }
}
