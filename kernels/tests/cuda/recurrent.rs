//! Checks of the family `recurrent`: each step of a sequence, from what the device itself left before it,
//! against the reference in f64.
//!
//! `U` is the unit roundoff. Inputs lie in `[-1, 1)` and weights in `[-1, 1) / sqrt(hidden)`, so a
//! recurrent sum is at most `sqrt(hidden)`, and it is off by at most `(terms + 2) U` times that and 1 for
//! the input. States and gradients are rounded here as the device rounds them before a product, from its
//! own f32 numbers, so bf16 adds nothing: products of two bf16 are exact in f32.
//!
//! The logistic function is `1 / (1 + exp2(-log2(e) x))`: the factor's roundings move the exponent by
//! 2 U |x|, exp2 is off by 4 U, the sum by U, the reciprocal by 2 U. Times s (1 - s), with |x| s (1 - s) <
//! 0.23, that is less than 6 U; tanh, twice that less 1, is off by at most 14 U.

use super::{Check, from_bf16, to_bf16, uniform, wide, worst};
use etude_kernels::cuda::recurrent::{self as device, Precision, Sequence, Variant, Wait};
use etude_kernels::cuda::{DeviceBuffer, Gpu};
use etude_kernels::recurrent::{Nonlinearity, Sizes};
use etude_kernels::reference::recurrent as reference;
use etude_kernels::step::Cell;

pub const CHECKS: &[Check] = &[
    Check { name: "lstm_bf16_equals_f64", run: |gpu| all(gpu, Cell::Lstm, Precision::Bf16) },
    Check { name: "gru_bf16_equals_f64", run: |gpu| all(gpu, Cell::Gru, Precision::Bf16) },
    Check { name: "rnn_tanh_bf16_equals_f64", run: |gpu| all(gpu, TANH, Precision::Bf16) },
    Check { name: "rnn_relu_bf16_equals_f64", run: |gpu| all(gpu, RELU, Precision::Bf16) },
    Check { name: "lstm_f32_equals_f64", run: |gpu| all(gpu, Cell::Lstm, Precision::F32) },
    Check { name: "gru_f32_equals_f64", run: |gpu| all(gpu, Cell::Gru, Precision::F32) },
    Check { name: "rnn_tanh_f32_equals_f64", run: |gpu| all(gpu, TANH, Precision::F32) },
    Check { name: "rnn_relu_f32_equals_f64", run: |gpu| all(gpu, RELU, Precision::F32) },
    Check { name: "long_sums_equal_f64", run: long_sums },
    Check { name: "not_a_number_passes_through", run: not_a_number_passes_through },
    Check { name: "no_steps_and_no_first_state", run: no_steps_and_no_first_state },
    Check { name: "lstm_step_equals_f64", run: |gpu| steps::all(gpu, Some(Cell::Lstm)) },
    Check { name: "gru_step_equals_f64", run: |gpu| steps::all(gpu, Some(Cell::Gru)) },
    Check { name: "rnn_step_equals_f64", run: |gpu| steps::all(gpu, Some(TANH)) },
    Check { name: "linear_step_equals_f64", run: |gpu| steps::all(gpu, None) },
];

#[path = "recurrent_steps.rs"]
mod steps;

const TANH: Cell = Cell::Rnn(Nonlinearity::Tanh);
const RELU: Cell = Cell::Rnn(Nonlinearity::Relu);
const U: f64 = 1.0 / 16_777_216.0;

/// Steps, batch, hidden.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 1), (5, 2, 15), (3, 8, 16), (2, 9, 17), (4, 33, 24), (2, 3, 50)];
/// More of them where there is a GPU: weights of all sizes in registers, and in shared memory besides.
const LARGE: [(usize, usize, usize); 7] = [
    (6, 16, 128),
    (2, 24, 250),
    (2, 17, 512),
    (2, 8, 768),
    (1, 3, 1024),
    (1, 2, 1160),
    (1, 1, 2100),
];

fn all(gpu: &dyn Gpu, cell: Cell, precision: Precision) -> f64 {
    let mut share = 0.0;
    let emulated = gpu.properties().sms < 16;
    let large: &[_] = if emulated { &[] } else { &LARGE };
    for (i, (steps, batch, hidden)) in SHAPES.iter().chain(large).copied().enumerate() {
        let sizes = Sizes { steps, batch, hidden };
        let q = Sequence { cell, precision, sizes, backwards_in_time: i % 2 == 1 };
        share = f64::max(share, every_variant(gpu, &q, i >= SHAPES.len()));
    }
    share
}

/// Pieces of the sum beyond one chunk of a warp, in registers and in shared memory: more blocks than the
/// emulator has by default.
fn long_sums(gpu: &dyn Gpu) -> f64 {
    #[cfg(feature = "emu")]
    if gpu.properties().sms < 16 {
        use etude_kernels::cuda::emulator::{Emulator, Schedule};
        let is_same =
            |schedule: &Schedule| gpu.properties().name.ends_with(&format!("{schedule:?}"));
        // The stand-in for a driver has a name of its own.
        let schedule = Schedule::ALL.into_iter().find(is_same).unwrap_or(Schedule::ALL[0]);
        let device = Emulator::with_sms(schedule, 72);
        let mut share = 0.0;
        let bf16 = Precision::Bf16;
        // The last one has two pieces of the sum for each warp in f32.
        let cases = [
            (Cell::Lstm, 300, bf16),
            (Cell::Gru, 270, bf16),
            (TANH, 1040, bf16),
            (Cell::Lstm, 140, Precision::F32),
        ];
        for (cell, hidden, precision) in cases {
            let sizes = Sizes { steps: 2, batch: 2, hidden };
            let q = Sequence { cell, precision, sizes, backwards_in_time: false };
            share = f64::max(share, Case::new(&q, 1).check(&device, None, None));
        }
        return share;
    }
    let sizes = Sizes { steps: 200, batch: 3, hidden: 384 };
    let q =
        Sequence { cell: Cell::Lstm, precision: Precision::Bf16, sizes, backwards_in_time: false };
    Case::new(&q, 1).check(gpu, None, None)
}

/// Each way of waiting and grouping is tried at small sizes, where it takes the reference no time.
fn every_variant(gpu: &dyn Gpu, q: &Sequence, large: bool) -> f64 {
    let case = Case::new(q, 7);
    let mut share = case.check(gpu, None, None);
    let wanted = |variants: Vec<Variant>| -> Vec<Variant> {
        let keep = |v: &Variant| match v {
            Variant::Plain => q.sizes.hidden < 512,
            Variant::Persistent { groups, wait, .. } => *groups == 0 && *wait == Wait::Data,
        };
        variants.into_iter().filter(|v| !large || keep(v)).collect()
    };
    let forward = wanted(device::variants_forward(gpu, q).unwrap());
    let backward = wanted(device::variants_backward(gpu, q).unwrap());
    for i in 0..forward.len().max(backward.len()) {
        share = f64::max(share, case.check(gpu, forward.get(i).copied(), backward.get(i).copied()));
    }
    share
}

/// One sequence's operands.
struct Case {
    q: Sequence,
    x: Vec<f32>,
    w_hh: Vec<f32>,
    b_hh: Vec<f32>,
    h0: Vec<f32>,
    c0: Vec<f32>,
    d_h: Vec<f32>,
    d_c: Vec<f32>,
}

/// What the device made of a case.
struct Outcome {
    gates: Vec<f32>,
    h: Vec<f32>,
    kept: Vec<f32>,
    d_gates: Vec<f32>,
    d_rec: Vec<f32>,
    d_h0: Vec<f32>,
    d_c0: Vec<f32>,
    states: Vec<f32>,
    deltas: Vec<f32>,
}

impl Case {
    fn new(q: &Sequence, seed: u64) -> Case {
        let Sizes { steps, batch, hidden } = q.sizes;
        let (bh, gates, scale) = (batch * hidden, q.cell.gates(), 1.0 / (hidden as f32).sqrt());
        let mut case = Case {
            q: *q,
            x: uniform(seed, steps * gates * bh),
            w_hh: uniform(seed + 1, gates * hidden * hidden),
            b_hh: uniform(seed + 2, gates * hidden),
            h0: uniform(seed + 3, bh),
            c0: uniform(seed + 4, bh),
            d_h: uniform(seed + 5, steps * bh),
            d_c: uniform(seed + 6, steps * bh),
        };
        case.w_hh.iter_mut().for_each(|w| *w *= scale);
        case.w_hh = case.rounded(&case.w_hh);
        case
    }

    /// The numbers as they are multiplied.
    fn rounded(&self, x: &[f32]) -> Vec<f32> {
        match self.q.precision {
            Precision::F32 => x.to_vec(),
            Precision::Bf16 => from_bf16(&to_bf16(x)),
        }
    }

    fn run(&self, gpu: &dyn Gpu, forward: Option<Variant>, backward: Option<Variant>) -> Outcome {
        let (q, n, bh) = (&self.q, self.d_h.len(), self.h0.len());
        let of = |x: &[f32]| DeviceBuffer::from_slice(gpu, x).unwrap();
        let room = |len: usize| DeviceBuffer::<f32>::poisoned(gpu, len).unwrap();
        let exchange = |bytes: usize| DeviceBuffer::<u8>::zeros(gpu, bytes).unwrap();
        let w_hh = match q.precision {
            Precision::F32 => DeviceBuffer::from_slice(gpu, bytemuck_bytes(&self.w_hh)).unwrap(),
            Precision::Bf16 => {
                let words: Vec<u8> =
                    to_bf16(&self.w_hh).iter().flat_map(|w| w.to_ne_bytes()).collect();
                DeviceBuffer::from_slice(gpu, &words).unwrap()
            }
        };
        let (gates, b_hh, d_h) = (of(&self.x), of(&self.b_hh), of(&self.d_h));
        let (h0, c0, d_c) = (of(&self.h0), of(&self.c0), of(&self.d_c));
        let (h, kept, d_rec) = (room(n), room(n), room(self.x.len()));
        let (d_h0, d_c0) = (room(bh), room(bh));
        let (states, deltas) = (exchange(q.states_bytes()), exchange(q.deltas_bytes()));
        let workspace = DeviceBuffer::<u8>::poisoned(gpu, q.workspace_bytes()).unwrap();
        let (s, d, w, o) = (states.ptr(), deltas.ptr(), w_hh.ptr(), workspace.ptr());
        let (h0_at, c0_at) = (Some(h0.ptr()), Some(c0.ptr()));
        let (g, y, k) = (gates.ptr(), h.ptr(), kept.ptr());
        match q.cell {
            Cell::Lstm => {
                device::lstm_forward(gpu, q, g, w, h0_at, c0_at, y, k, s, o, true, forward)
            }
            Cell::Gru => {
                device::gru_forward(gpu, q, g, w, b_hh.ptr(), h0_at, y, k, s, o, true, forward)
            }
            Cell::Rnn(_) => device::rnn_forward(gpu, q, g, w, h0_at, s, o, forward),
        }
        .unwrap();
        device::check(gpu, o).unwrap();
        let activated = gates.to_vec().unwrap();
        let (dh, dc, dh0, dc0) = (d_h.ptr(), Some(d_c.ptr()), d_h0.ptr(), d_c0.ptr());
        match q.cell {
            Cell::Lstm => {
                device::lstm_backward(gpu, q, g, w, c0_at, k, dh, dc, dh0, dc0, d, o, backward)
            }
            Cell::Gru => {
                let rec = d_rec.ptr();
                device::gru_backward(gpu, q, g, rec, w, h0_at, y, k, dh, dh0, d, o, backward)
            }
            Cell::Rnn(_) => device::rnn_backward(gpu, q, g, dh, w, dh0, d, o, backward),
        }
        .unwrap();
        device::check(gpu, o).unwrap();
        let elements = |bytes: &DeviceBuffer<u8>| -> Vec<f32> {
            let bytes = bytes.to_vec().unwrap();
            match q.precision {
                Precision::F32 => bytes
                    .chunks_exact(4)
                    .map(|b| f32::from_ne_bytes(b.try_into().unwrap()))
                    .collect(),
                Precision::Bf16 => from_bf16(
                    &bytes
                        .chunks_exact(2)
                        .map(|b| u16::from_ne_bytes(b.try_into().unwrap()))
                        .collect::<Vec<_>>(),
                ),
            }
        };
        let elman = matches!(q.cell, Cell::Rnn(_));
        Outcome {
            h: if elman { activated.clone() } else { h.to_vec().unwrap() },
            gates: activated,
            kept: kept.to_vec().unwrap(),
            d_gates: if elman { d_h.to_vec().unwrap() } else { gates.to_vec().unwrap() },
            d_rec: d_rec.to_vec().unwrap(),
            d_h0: d_h0.to_vec().unwrap(),
            d_c0: d_c0.to_vec().unwrap(),
            states: elements(&states),
            deltas: elements(&deltas),
        }
    }

    /// Places in time in the forward's order.
    fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.q.sizes.steps).collect();
        if self.q.backwards_in_time {
            order.reverse();
        }
        order
    }

    fn check(&self, gpu: &dyn Gpu, forward: Option<Variant>, backward: Option<Variant>) -> f64 {
        let got = self.run(gpu, forward, backward);
        self.check_exchanges(&got);
        let share = f64::max(self.check_forward(&got), self.check_backward(&got));
        if share > 1.0 {
            eprintln!("{:?} by {forward:?} and {backward:?}", self.q);
        }
        share
    }

    /// What was exchanged is what was computed, rounded, with zeros behind each row.
    fn check_exchanges(&self, got: &Outcome) {
        let (q, hidden) = (&self.q, self.q.sizes.hidden);
        let padded = |x: &[f32]| -> Vec<f32> {
            self.rounded(x)
                .chunks_exact(hidden)
                .flat_map(|row| {
                    row.iter().copied().chain(std::iter::repeat_n(0.0, q.pitch() - hidden))
                })
                .collect()
        };
        let (h0, h) = (padded(&self.h0), padded(&got.h));
        let states = if q.backwards_in_time { [h, h0].concat() } else { [h0, h].concat() };
        assert_eq!(states, got.states, "states of {q:?}");
        let sent = if q.cell == Cell::Gru { &got.d_rec } else { &got.d_gates };
        assert_eq!(padded(sent), got.deltas, "deltas of {q:?}");
    }

    fn check_forward(&self, got: &Outcome) -> f64 {
        let Sizes { batch, hidden, .. } = self.q.sizes;
        let (gates, root) = (self.q.cell.gates(), (hidden as f64).sqrt());
        let sum = (hidden as f64 + 2.0) * U * (1.0 + root);
        let mut share = 0.0;
        let mut before: Option<usize> = None;
        for t in self.order() {
            for b in 0..batch {
                let row = t * batch + b;
                let of = |x: &[f32], at: usize, width: usize| -> Vec<f32> {
                    x[at * width..(at + 1) * width].to_vec()
                };
                let past = |x: &[f32], first: &[f32]| match before {
                    None => of(first, b, hidden),
                    Some(t) => of(x, t * batch + b, hidden),
                };
                let (h_prev, c_prev) = (past(&got.h, &self.h0), past(&got.kept, &self.c0));
                let rec = product(&self.w_hh, &self.rounded(&h_prev));
                let mut x = wide(&of(&self.x, row, gates * hidden));
                let (h_prev, c_prev) = (wide(&h_prev), wide(&c_prev));
                let (g, h) = (of(&got.gates, row, gates * hidden), of(&got.h, row, hidden));
                let kept = of(&got.kept, row, hidden);
                let largest = |x: &[f64]| x.iter().fold(1.0f64, |m, x| m.max(x.abs()));
                if self.q.cell != Cell::Gru {
                    x.iter_mut().zip(&rec).for_each(|(x, rec)| *x += rec);
                }
                match self.q.cell {
                    Cell::Lstm => {
                        let [want, want_h, want_c] =
                            cells([&x, &h_prev, &c_prev], hidden, |[x, h, c]| {
                                let (gates, h, c) =
                                    reference::lstm_forward(x, &NO_WEIGHTS, h, c, ONE);
                                [gates, h, c]
                            });
                        share = f64::max(share, worst("gates", &want, &g, |_| sum + 14.0 * U));
                        // c = f c' + i g: f's error times c', those of i and g, three roundings.
                        let c = (sum / 4.0 + 6.0 * U) * (1.0 + largest(&c_prev))
                            + sum
                            + 14.0 * U
                            + 3.0 * U * (1.0 + largest(&c_prev));
                        share = f64::max(share, worst("c", &want_c, &kept, |_| c));
                        let h_bound = sum / 4.0 + 6.0 * U + c + 15.0 * U;
                        share = f64::max(share, worst("h", &want_h, &h, |_| h_bound));
                    }
                    Cell::Gru => {
                        let mut rec = rec;
                        rec.iter_mut().zip(&self.b_hh).for_each(|(r, b)| *r += f64::from(*b));
                        let [want, want_h, want_n] =
                            cells([&x, &rec, &h_prev], hidden, |[x, rec, h]| {
                                let (gates, h, n) =
                                    reference::gru_forward(x, &NO_WEIGHTS, rec, h, ONE);
                                [gates, h, n]
                            });
                        share = f64::max(share, worst("h_n", &want_n, &kept, |_| sum));
                        let gate = (sum + (2.0 + root) * U) / 4.0 + 6.0 * U;
                        // n: the sum, r times its size, two roundings of at most 2 + root, tanh.
                        let new = sum + gate * (1.0 + root) + 2.0 * (2.0 + root) * U + 14.0 * U;
                        share = f64::max(share, worst("gates", &want, &g, |_| gate.max(new)));
                        let bound = new + 2.0 * (gate + new) + 6.0 * U;
                        share = f64::max(share, worst("h", &want_h, &h, |_| bound));
                    }
                    Cell::Rnn(f) => {
                        let [want] = cells([&x, &h_prev], hidden, |[x, h]| {
                            [reference::rnn_forward(x, &NO_WEIGHTS, h, f, ONE)]
                        });
                        // A rectifier's states grow: its sums are as large as what they are made of.
                        let grown = sum * largest(&h_prev);
                        share = f64::max(share, worst("h", &want, &h, |_| grown + 14.0 * U));
                    }
                }
            }
            before = Some(t);
        }
        share
    }

    fn check_backward(&self, got: &Outcome) -> f64 {
        let Sizes { batch, hidden, steps } = self.q.sizes;
        let (gates, root) = (self.q.cell.gates(), (hidden as f64).sqrt());
        let width = gates * hidden;
        let largest = |x: &[f32]| x.iter().fold(1.0f64, |m, x| m.max(f64::from(x.abs())));
        let sent = if self.q.cell == Cell::Gru { &got.d_rec } else { &got.d_gates };
        // What comes through the weights: a sum of `width` products of at most max |d_gates| / root.
        let size = gates as f64 * root * largest(sent);
        let sum = (width as f64 + 2.0) * U * size;
        // One step's roundings: at most 32 of factors as large as d_h, d_c and their sums, and the
        // errors of two tanh; of a GRU times its recurrent sum, of an LSTM times the cell.
        let factor = match self.q.cell {
            Cell::Gru => 2.0 + root,
            Cell::Lstm => largest(&got.kept).max(largest(&self.c0)),
            Cell::Rnn(_) => 1.0,
        };
        let mut share = 0.0;
        for b in 0..batch {
            let (mut d_h_next, mut d_c_next) = (vec![0.0f64; hidden], vec![0.0f64; hidden]);
            let order = self.order();
            for step in (0..steps).rev() {
                let row = order[step] * batch + b;
                let of = |x: &[f32], at: usize, width: usize| -> Vec<f32> {
                    x[at * width..(at + 1) * width].to_vec()
                };
                let past = |x: &[f32], first: &[f32]| match step {
                    0 => wide(&of(first, b, hidden)),
                    _ => wide(&of(x, order[step - 1] * batch + b, hidden)),
                };
                let add = |x: Vec<f32>, y: &[f64]| -> Vec<f64> {
                    x.iter().zip(y).map(|(x, y)| f64::from(*x) + y).collect()
                };
                let now = (steps - step) as f64;
                let d_size = d_h_next.iter().chain(&d_c_next).fold(2.0f64, |m, x| m.max(x.abs()));
                // The carried part (d_c, z d_h) is multiplied by at most 1, so errors at most add up.
                let bound = now * (sum + 48.0 * U * (2.0 + d_size)) * factor;
                let d_h = add(of(&self.d_h, row, hidden), &d_h_next);
                let g = wide(&of(&got.gates, row, width));
                let d_got = of(&got.d_gates, row, width);
                let mut carried = vec![0.0; hidden];
                match self.q.cell {
                    Cell::Lstm => {
                        let d_c = add(of(&self.d_c, row, hidden), &d_c_next);
                        let c = wide(&of(&got.kept, row, hidden));
                        let before = past(&got.kept, &self.c0);
                        let [want, d_c0] = cells(
                            [&g, &before, &c, &d_h, &d_c],
                            hidden,
                            |[g, before, c, d_h, d_c]| {
                                let (d_gates, _, d_c0) = reference::lstm_backward(
                                    g,
                                    &NO_WEIGHTS,
                                    before,
                                    c,
                                    d_h,
                                    d_c,
                                    ONE,
                                );
                                [d_gates, d_c0]
                            },
                        );
                        share = f64::max(share, worst("d_gates", &want, &d_got, |_| bound));
                        d_c_next = d_c0;
                    }
                    Cell::Gru => {
                        let h_n = wide(&of(&got.kept, row, hidden));
                        let h = wide(&of(&got.h, row, hidden));
                        let before = past(&got.h, &self.h0);
                        let [want, want_rec, d_h0] = cells(
                            [&g, &before, &h, &h_n, &d_h],
                            hidden,
                            |[g, before, h, h_n, d_h]| {
                                let (d_gates, d_rec, d_h0) = reference::gru_backward(
                                    g,
                                    &NO_WEIGHTS,
                                    before,
                                    h,
                                    h_n,
                                    d_h,
                                    ONE,
                                );
                                [d_gates, d_rec, d_h0]
                            },
                        );
                        share = f64::max(share, worst("d_gates", &want, &d_got, |_| bound));
                        let rec = of(&got.d_rec, row, width);
                        share = f64::max(share, worst("d_rec", &want_rec, &rec, |_| bound));
                        carried = d_h0;
                    }
                    Cell::Rnn(f) => {
                        let [want] = cells([&g, &d_h], hidden, |[g, d_h]| {
                            [reference::rnn_backward(g, d_h, &NO_WEIGHTS, f, ONE).0]
                        });
                        share = f64::max(share, worst("d_h", &want, &d_got, |_| bound));
                    }
                }
                d_h_next = product_turned(&self.w_hh, &self.rounded(&of(sent, row, width)), hidden);
                d_h_next.iter_mut().zip(&carried).for_each(|(x, c)| *x += c);
            }
            let row = |x: &[f32]| x[b * hidden..(b + 1) * hidden].to_vec();
            let size = d_h_next.iter().chain(&d_c_next).fold(2.0f64, |m, x| m.max(x.abs()));
            let bound = (steps + 1) as f64 * (sum + 48.0 * U * (2.0 + size)) * factor;
            share = f64::max(share, worst("d_h0", &d_h_next, &row(&got.d_h0), |_| bound));
            if self.q.cell == Cell::Lstm {
                share = f64::max(share, worst("d_c0", &d_c_next, &row(&got.d_c0), |_| bound));
            }
        }
        share
    }
}

fn bytemuck_bytes(x: &[f32]) -> &[u8] {
    bytemuck::cast_slice(x)
}

/// A step of one cell whose recurrent sum is already in its input: no more of the reference is wanted.
const ONE: Sizes = Sizes { steps: 1, batch: 1, hidden: 1 };
const NO_WEIGHTS: [f64; 4] = [0.0; 4];

/// One row: `cell` of each hidden unit, whose numbers lie `hidden` apart, as do those that come back.
fn cells<const IN: usize, const OUT: usize>(
    inputs: [&[f64]; IN],
    hidden: usize,
    cell: impl Fn([&[f64]; IN]) -> [Vec<f64>; OUT],
) -> [Vec<f64>; OUT] {
    let mut row: [Vec<f64>; OUT] = std::array::from_fn(|_| Vec::new());
    for unit in 0..hidden {
        let of_unit =
            inputs.map(|x| x.iter().skip(unit).step_by(hidden).copied().collect::<Vec<_>>());
        for (row, of_unit) in row.iter_mut().zip(cell(of_unit.each_ref().map(|x| &x[..]))) {
            row.resize(of_unit.len() * hidden, f64::NAN);
            for (gate, x) in of_unit.into_iter().enumerate() {
                row[gate * hidden + unit] = x;
            }
        }
    }
    row
}

/// `W x` for row-major `w` `[rows, x.len()]`: eight sums at a time.
fn product(w: &[f32], x: &[f32]) -> Vec<f64> {
    let x = &wide(x)[..];
    let (eights, rest) = x.as_chunks::<8>();
    w.chunks_exact(x.len())
        .map(|row| {
            let (row_eights, row_rest) = row.as_chunks::<8>();
            let mut sums = [0.0f64; 8];
            for (w, x) in row_eights.iter().zip(eights) {
                for ((sum, w), x) in sums.iter_mut().zip(w).zip(x) {
                    *sum += f64::from(*w) * x;
                }
            }
            let of_rest: f64 = row_rest.iter().zip(rest).map(|(w, x)| f64::from(*w) * x).sum();
            sums.iter().sum::<f64>() + of_rest
        })
        .collect()
}

/// `W^T y` for row-major `w` `[y.len(), columns]`.
fn product_turned(w: &[f32], y: &[f32], columns: usize) -> Vec<f64> {
    let mut x = vec![0.0; columns];
    for (row, y) in w.chunks_exact(columns).zip(y) {
        x.iter_mut().zip(row).for_each(|(x, w)| *x += f64::from(*w) * f64::from(*y));
    }
    x
}

/// NaN in the input ends up in the states, and nobody waits for ever for it.
fn not_a_number_passes_through(gpu: &dyn Gpu) -> f64 {
    for precision in [Precision::F32, Precision::Bf16] {
        for cell in [Cell::Lstm, Cell::Gru, TANH, RELU] {
            let sizes = Sizes { steps: 3, batch: 2, hidden: 16 };
            let q = Sequence { cell, precision, sizes, backwards_in_time: false };
            let mut case = Case::new(&q, 3);
            case.x[0] = f32::NAN;
            case.h0[17] = f32::from_bits(0xffff_ffff);
            let got = case.run(gpu, None, None);
            assert!(got.h[0].is_nan(), "{cell:?}");
            assert!(got.h[32..].iter().all(|h| h.is_nan()), "{cell:?}: later steps");
        }
    }
    0.0
}

fn no_steps_and_no_first_state(gpu: &dyn Gpu) -> f64 {
    for precision in [Precision::F32, Precision::Bf16] {
        let sizes = Sizes { steps: 0, batch: 3, hidden: 5 };
        let q = Sequence { cell: Cell::Lstm, precision, sizes, backwards_in_time: false };
        let got = Case::new(&q, 3).run(gpu, None, None);
        assert_eq!(got.d_h0, vec![0.0; 15]);
        assert_eq!(got.d_c0, vec![0.0; 15]);
        // None for a first state is zero.
        let q = Sequence { sizes: Sizes { steps: 2, ..sizes }, ..q };
        let mut case = Case::new(&q, 3);
        case.h0.fill(0.0);
        case.c0.fill(0.0);
        let want = case.run(gpu, None, None).h;
        let gates = DeviceBuffer::from_slice(gpu, &case.x).unwrap();
        let w: Vec<u8> = match precision {
            Precision::F32 => bytemuck_bytes(&case.w_hh).to_vec(),
            Precision::Bf16 => to_bf16(&case.w_hh).iter().flat_map(|w| w.to_ne_bytes()).collect(),
        };
        let w = DeviceBuffer::from_slice(gpu, &w).unwrap();
        for variant in [None, Some(Variant::Plain)] {
            gates.write(&case.x).unwrap();
            let (h, c) =
                (DeviceBuffer::<f32>::poisoned(gpu, 30), DeviceBuffer::<f32>::poisoned(gpu, 30));
            let (h, c) = (h.unwrap(), c.unwrap());
            let states = DeviceBuffer::<u8>::poisoned(gpu, q.states_bytes()).unwrap();
            let room = DeviceBuffer::<u8>::poisoned(gpu, q.workspace_bytes()).unwrap();
            let (g, w, y, c) = (gates.ptr(), w.ptr(), h.ptr(), c.ptr());
            let (s, o) = (states.ptr(), room.ptr());
            device::lstm_forward(gpu, &q, g, w, None, None, y, c, s, o, false, variant).unwrap();
            let got = h.to_vec().unwrap();
            // The plain form sums in another order: 5 products and an input, each step of two.
            let tolerance = if variant.is_none() { 0.0 } else { 64.0 * U };
            assert!(want.iter().zip(&got).all(|(a, b)| f64::from((a - b).abs()) <= tolerance));
        }
    }
    0.0
}
