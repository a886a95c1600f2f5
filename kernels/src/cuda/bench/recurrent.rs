//! Timed cases of the family `recurrent`: whole sequences in every way that the device has room for, and
//! one step at a time.

use super::{Bench, Error};
use crate::cuda::DeviceBuffer;
use crate::cuda::recurrent::step::{
    Input, Packed, Step, StepPrecision, gru_step, lstm_step, rnn_step,
};
use crate::cuda::recurrent::{
    Precision, Sequence, Variant, Wait, check, gru_backward, gru_forward, lstm_backward,
    lstm_forward, rnn_backward, rnn_forward, variants_backward, variants_forward,
};
use crate::philox;
use crate::recurrent::{Nonlinearity, Sizes};
use crate::step::Cell;

const CELLS: [Cell; 3] = [Cell::Lstm, Cell::Gru, Cell::Rnn(Nonlinearity::Tanh)];

/// Steps, batch, hidden.
const SHAPES: [[usize; 3]; 4] = [[1024, 16, 768], [256, 64, 512], [256, 128, 128], [256, 1, 1024]];

/// The cases.
///
/// # Errors
/// Those of the device.
pub fn cases(bench: &mut Bench) -> Result<(), Error> {
    let shapes: &[[usize; 3]] = if bench.small { &[[2, 9, 20]] } else { &SHAPES };
    for [steps, batch, hidden] in shapes.iter().copied() {
        for cell in CELLS {
            for precision in [Precision::Bf16, Precision::F32] {
                let sizes = Sizes { steps, batch, hidden };
                sequence(bench, &Sequence { cell, precision, sizes, backwards_in_time: false })?;
            }
        }
    }
    let widths: &[usize] = if bench.small { &[20] } else { &[256, 512, 1024] };
    for hidden in widths.iter().copied() {
        for cell in CELLS {
            for precision in [StepPrecision::Bf16, StepPrecision::F32, StepPrecision::Int8] {
                for batch in [1, 4] {
                    one_step(bench, cell, &Step { precision, batch, inputs: hidden, hidden })?;
                }
            }
        }
    }
    Ok(())
}

fn name(cell: Cell) -> &'static str {
    match cell {
        Cell::Lstm => "lstm",
        Cell::Gru => "gru",
        Cell::Rnn(_) => "rnn",
    }
}

/// Uniform numbers of `[-1, 1) * scale`.
fn uniform(seed: u64, n: usize, scale: f32) -> Vec<f32> {
    let mut x = vec![0.0; n];
    philox::uniform(&mut x, seed, 0, 0);
    x.iter_mut().for_each(|x| *x = (2.0 * *x - 1.0) * scale);
    x
}

fn words(precision: Precision, x: &[f32]) -> Vec<u8> {
    match precision {
        Precision::F32 => x.iter().flat_map(|x| x.to_ne_bytes()).collect(),
        Precision::Bf16 => {
            x.iter().flat_map(|x| half::bf16::from_f32(*x).to_bits().to_ne_bytes()).collect()
        }
    }
}

fn label(variant: Variant) -> String {
    match variant {
        Variant::Plain => "plain".to_string(),
        Variant::Persistent { units, groups, wait } => {
            format!("units {units}, groups {groups}, wait {wait:?}")
        }
    }
}

/// All variants of the LSTM that is compared with cuDNN; of others, those that differ in more than how
/// blocks wait.
fn wanted(bench: &Bench, q: &Sequence, variants: Vec<Variant>) -> Vec<Variant> {
    let lstm = q.cell == Cell::Lstm;
    let all = bench.small || lstm && q.sizes.hidden == 768 && q.precision == Precision::Bf16;
    let keep = |variant: &Variant| match variant {
        Variant::Plain => lstm,
        Variant::Persistent { groups, wait, .. } => *groups == 0 && *wait != Wait::Counter,
    };
    variants.into_iter().filter(|variant| all || keep(variant)).collect()
}

fn sequence(bench: &mut Bench, q: &Sequence) -> Result<(), Error> {
    let Sizes { steps, batch, hidden } = q.sizes;
    let (cell, gates) = (name(q.cell), q.cell.gates());
    let precision = if q.precision == Precision::Bf16 { "bf16" } else { "f32" };
    let case = |direction: &str| {
        format!("recurrent/{cell} {direction} {precision}/T{steps} B{batch} H{hidden}")
    };
    let (forward, backward) = (case("forward"), case("backward"));
    if !bench.wants(&forward) && !bench.wants(&backward) {
        return Ok(());
    }
    let gpu = bench.gpu;
    let (rows, one) = (steps * batch, batch * hidden);
    let scale = 1.0 / (hidden as f32).sqrt();
    let w_hh = words(q.precision, &uniform(1, gates * hidden * hidden, scale));
    let w_hh = DeviceBuffer::from_slice(gpu, &w_hh)?;
    let b_hh = DeviceBuffer::from_slice(gpu, &uniform(2, gates * hidden, scale))?;
    // Repeated runs read activated gates as inputs: numbers of the same size, which take as long.
    let x = DeviceBuffer::from_slice(gpu, &uniform(3, rows * gates * hidden, 1.0))?;
    let h0 = DeviceBuffer::from_slice(gpu, &uniform(4, one, 1.0))?;
    let room = |len: usize| DeviceBuffer::<f32>::zeros(gpu, len);
    let (h, kept, d_h0, d_c0) =
        (room(rows * hidden)?, room(rows * hidden)?, room(one)?, room(one)?);
    let d_rec = room(if q.cell == Cell::Gru { rows * gates * hidden } else { 0 })?;
    let states = DeviceBuffer::<u8>::zeros(gpu, q.states_bytes())?;
    let deltas = DeviceBuffer::<u8>::zeros(gpu, q.deltas_bytes())?;
    let workspace = DeviceBuffer::<u8>::zeros(gpu, q.workspace_bytes())?;
    let (g, w, y, k) = (x.ptr(), w_hh.ptr(), h.ptr(), kept.ptr());
    let (first, s, o) = (Some(h0.ptr()), states.ptr(), workspace.ptr());
    let flops = 2.0 * (rows * gates * hidden * hidden) as f64;
    // Gates in and out, states (and what a gated cell keeps) out, in f32; the exchange in and out.
    let kept_rows = if gates > 1 { 2 } else { 0 };
    let bytes = (rows * hidden * 4 * (2 * gates + kept_rows)
        + rows * hidden * q.states_bytes() / (steps + 1) / one) as f64;
    for variant in wanted(bench, q, variants_forward(gpu, q)?) {
        let how = Some(variant);
        bench.case(&forward, &label(variant), flops, bytes, &mut || match q.cell {
            Cell::Lstm => lstm_forward(gpu, q, g, w, first, first, y, k, s, o, true, how),
            Cell::Gru => gru_forward(gpu, q, g, w, b_hh.ptr(), first, y, k, s, o, true, how),
            Cell::Rnn(_) => rnn_forward(gpu, q, g, w, first, s, o, how),
        })?;
        if bench.wants(&forward) {
            check(gpu, o)?;
        }
    }
    // Small gradients, so that the repeated backwards in place stay finite.
    x.write(&uniform(5, rows * gates * hidden, 0.1))?;
    h.write(&uniform(6, rows * hidden, 0.1))?;
    kept.write(&uniform(7, rows * hidden, 0.1))?;
    let d_h = DeviceBuffer::from_slice(gpu, &uniform(8, rows * hidden, 0.01))?;
    let (d, dh, dh0, dc0) = (deltas.ptr(), d_h.ptr(), d_h0.ptr(), d_c0.ptr());
    let bytes = bytes + (rows * hidden * 4 * (1 + kept_rows)) as f64;
    for variant in wanted(bench, q, variants_backward(gpu, q)?) {
        let how = Some(variant);
        bench.case(&backward, &label(variant), flops, bytes, &mut || match q.cell {
            Cell::Lstm => lstm_backward(gpu, q, g, w, first, k, dh, None, dh0, dc0, d, o, how),
            Cell::Gru => gru_backward(gpu, q, g, d_rec.ptr(), w, first, y, k, dh, dh0, d, o, how),
            Cell::Rnn(_) => rnn_backward(gpu, q, y, dh, w, dh0, d, o, how),
        })?;
        if bench.wants(&backward) {
            check(gpu, o)?;
        }
    }
    Ok(())
}

fn one_step(bench: &mut Bench, cell: Cell, s: &Step) -> Result<(), Error> {
    let Step { precision, batch, inputs, hidden } = *s;
    let kind = match precision {
        StepPrecision::F32 => "f32",
        StepPrecision::Bf16 => "bf16",
        StepPrecision::Int8 => "int8",
    };
    let case = format!("recurrent/{} step {kind}/B{batch} H{hidden}", name(cell));
    if !bench.wants(&case) {
        return Ok(());
    }
    let gpu = bench.gpu;
    let outputs = cell.gates() * hidden;
    let pack = |seed: u64, k: usize| -> Result<_, Error> {
        let (bytes, scales) = precision.pack(&uniform(seed, outputs * k, 0.05), outputs, k);
        Ok((DeviceBuffer::from_slice(gpu, &bytes)?, DeviceBuffer::from_slice(gpu, &scales)?))
    };
    let (w_ih, w_hh) = (pack(1, inputs)?, pack(2, hidden)?);
    let packed = |w: &(DeviceBuffer<u8>, DeviceBuffer<f32>)| Packed {
        w: w.0.ptr(),
        scales: (!w.1.is_empty()).then_some(w.1.ptr()),
    };
    let bias = DeviceBuffer::from_slice(gpu, &uniform(3, outputs, 1.0))?;
    let x = DeviceBuffer::from_slice(gpu, &uniform(4, batch * inputs, 1.0))?;
    let h_prev = DeviceBuffer::from_slice(gpu, &uniform(5, batch * hidden, 1.0))?;
    let h = DeviceBuffer::<f32>::zeros(gpu, batch * hidden)?;
    let c = DeviceBuffer::<f32>::zeros(gpu, batch * hidden)?;
    let bytes =
        (precision.packed_bytes(outputs, inputs) + precision.packed_bytes(outputs, hidden)) as f64;
    let flops = 2.0 * (batch * outputs * (inputs + hidden)) as f64;
    let input = Input::Dense { x: x.ptr(), w_ih: packed(&w_ih) };
    let (w, b, from, to) = (packed(&w_hh), Some(bias.ptr()), h_prev.ptr(), h.ptr());
    // Within a recording, as a model's step is run: the launch itself is not what is timed.
    let run = || match cell {
        Cell::Lstm => lstm_step(gpu, s, input, w, b, from, from, to, c.ptr()),
        Cell::Gru => gru_step(gpu, s, input, w, b, bias.ptr(), from, to),
        Cell::Rnn(f) => rnn_step(gpu, s, input, w, b, from, to, f),
    };
    run()?;
    gpu.sync()?;
    const STEPS: usize = 64;
    let graph = gpu.record(&mut || (0..STEPS).try_for_each(|_| run()))?;
    let steps = STEPS as f64;
    bench.case(&case, "64 steps of a graph", steps * flops, steps * bytes, &mut || graph.launch())
}
