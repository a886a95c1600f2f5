//! Recurrent sequences: one step against f64, sequences against steps, gradients against differences.
//!
//! `U` is the unit roundoff. Inputs lie in `[-1, 1)` and weights in `[-1, 1) / sqrt(hidden)`, so a
//! recurrent sum is at most `sqrt(hidden)`, and it is off by at most `(terms + 1) U` times that. With
//! weights of bf16, weights and first states are bf16 numbers to begin with, so that only the rounding
//! of the gradients before a product, by `U16` of each, is added.

mod support;

use etude_kernels::gemm::{MatRef, PackedB};
use etude_kernels::gemm_bf16::{PackedBf16, to_bf16};
use etude_kernels::recurrent::{self, Nonlinearity, Sizes, Weight};
use etude_kernels::reference::recurrent as reference;
use proptest::prelude::*;
use support::*;

const U: f64 = 1.0 / 16_777_216.0;
const U16: f64 = 1.0 / 256.0;

/// A packed weight of either kind.
enum Packed {
    F32(PackedB),
    Bf16(PackedBf16),
}

impl<'a> From<&'a Packed> for Weight<'a> {
    fn from(w: &'a Packed) -> Self {
        match w {
            Packed::F32(w) => w.into(),
            Packed::Bf16(w) => w.into(),
        }
    }
}

/// One sequence's operands. `gates` is the number of gates.
struct Case {
    s: Sizes,
    gates: usize,
    x: Vec<f32>,
    w_hh: Vec<f32>,
    b_hh: Vec<f32>,
    h0: Vec<f32>,
    c0: Vec<f32>,
    d_h: Vec<f32>,
    d_c: Vec<f32>,
    /// Whether products are of bf16 numbers.
    bf16: bool,
}

impl Case {
    fn new(steps: usize, batch: usize, hidden: usize, gates: usize, seed: u64) -> Case {
        let (bh, scale) = (batch * hidden, 1.0 / (hidden.max(1) as f32).sqrt());
        let mut w_hh = uniform(seed ^ 1, gates * hidden * hidden);
        w_hh.iter_mut().for_each(|w| *w *= scale);
        Case {
            s: Sizes { steps, batch, hidden },
            gates,
            x: uniform(seed, steps * gates * bh),
            w_hh,
            b_hh: uniform(seed ^ 2, gates * hidden),
            h0: uniform(seed ^ 3, bh),
            c0: uniform(seed ^ 4, bh),
            d_h: uniform(seed ^ 5, steps * bh),
            d_c: uniform(seed ^ 6, steps * bh),
            bf16: false,
        }
    }

    /// The same with products of bf16 numbers.
    fn in_bf16(mut self) -> Case {
        for x in [&mut self.w_hh, &mut self.h0] {
            *x = to_bf16(x).into_iter().map(f32::from).collect();
        }
        Case { bf16: true, ..self }
    }

    /// By how much more a gradient may be off where it is rounded before a product.
    fn rounding(&self) -> f64 {
        if self.bf16 { U16 } else { 0.0 }
    }

    /// Rows `rows` of the batch as a case of their own.
    fn rows(&self, rows: std::ops::Range<usize>) -> Case {
        let s = self.s;
        let cut = |x: &[f32], width: usize| -> Vec<f32> {
            x.chunks_exact(s.batch * width)
                .flat_map(|step| step[rows.start * width..rows.end * width].to_vec())
                .collect()
        };
        let (h, g) = (s.hidden, s.hidden * self.gates);
        Case {
            s: Sizes { batch: rows.len(), ..s },
            gates: self.gates,
            x: cut(&self.x, g),
            w_hh: self.w_hh.clone(),
            b_hh: self.b_hh.clone(),
            h0: cut(&self.h0, h),
            c0: cut(&self.c0, h),
            d_h: cut(&self.d_h, h),
            d_c: cut(&self.d_c, h),
            bf16: self.bf16,
        }
    }

    /// One step of the sequence, from given states.
    fn step(&self, t: usize, h0: &[f32], c0: &[f32], d_h: Vec<f32>, d_c: Vec<f32>) -> Case {
        let bh = self.s.batch * self.s.hidden;
        Case {
            s: Sizes { steps: 1, ..self.s },
            gates: self.gates,
            x: self.x[t * self.gates * bh..(t + 1) * self.gates * bh].to_vec(),
            w_hh: self.w_hh.clone(),
            b_hh: self.b_hh.clone(),
            h0: h0.to_vec(),
            c0: c0.to_vec(),
            d_h,
            d_c,
            bf16: self.bf16,
        }
    }

    fn pack(&self, w: MatRef) -> Packed {
        if self.bf16 { Packed::Bf16(PackedBf16::new(w)) } else { Packed::F32(PackedB::new(w)) }
    }

    fn forward_weights(&self) -> Packed {
        let (g, h) = (self.gates * self.s.hidden, self.s.hidden);
        self.pack(MatRef::new(&self.w_hh, g, h).t())
    }

    fn backward_weights(&self) -> Packed {
        let (g, h) = (self.gates * self.s.hidden, self.s.hidden);
        self.pack(MatRef::new(&self.w_hh, g, h))
    }

    fn root(&self) -> f64 {
        (self.s.hidden as f64).sqrt()
    }
}

/// What an LSTM makes of a case, forwards and backwards.
struct Lstm {
    gates: Vec<f32>,
    h: Vec<f32>,
    c: Vec<f32>,
    d_gates: Vec<f32>,
    d_h0: Vec<f32>,
    d_c0: Vec<f32>,
}

fn lstm(case: &Case) -> Lstm {
    let (s, n) = (case.s, case.d_h.len());
    let mut gates = Guarded::of(&case.x, 1);
    let (mut h, mut c) = (Guarded::new(n, 3), Guarded::new(n, 2));
    let w = case.forward_weights();
    recurrent::lstm_forward(gates.get(), &w, &case.h0, &case.c0, h.get(), c.get(), s);
    let (gates, h, c) = (gates.finish("gates"), h.finish("h"), c.finish("c"));
    let mut d_gates = Guarded::of(&gates, 5);
    let (mut d_h0, mut d_c0) = (Guarded::new(case.h0.len(), 7), Guarded::new(case.h0.len(), 1));
    let w = case.backward_weights();
    let (d_h, d_c) = (&case.d_h, &case.d_c);
    let (into_h, into_c) = (d_h0.get(), d_c0.get());
    recurrent::lstm_backward(d_gates.get(), &w, &case.c0, &c, d_h, d_c, into_h, into_c, s);
    let d_gates = d_gates.finish("d_gates");
    let (d_h0, d_c0) = (d_h0.finish("d_h0"), d_c0.finish("d_c0"));
    Lstm { gates, h, c, d_gates, d_h0, d_c0 }
}

fn check_lstm_step(case: &Case) {
    let (s, hidden) = (case.s, case.s.hidden as f64);
    let got = lstm(case);
    let [x, w, h0, c0] = [&case.x, &case.w_hh, &case.h0, &case.c0].map(|x| wide(x));
    let (gates, h, c) = reference::lstm_forward(&x, &w, &h0, &c0, s);
    // Sums are off by `sum`; gates by at most that and 4 U for the function. c = f c0 + i g with
    // |c0| <= 1 adds three such errors, h one more, and each operation a rounding of values <= 2.
    let sum = (hidden + 2.0) * U * (1.0 + case.root());
    let bound = 4.0 * sum + 32.0 * U;
    assert_near("gates", &gates, &got.gates, bound);
    assert_near("c", &c, &got.c, bound);
    assert_near("h", &h, &got.h, bound);

    let [gates, c, d_h, d_c] = [&got.gates, &got.c, &case.d_h, &case.d_c].map(|x| wide(x));
    let (d_gates, d_h0, d_c0) = reference::lstm_backward(&gates, &w, &c0, &c, &d_h, &d_c, s);
    // tanh(c) is off by 3 U, so 1 - tanh^2 by 7 U; d_c <= 2 collects 12 U, and each gate's gradient
    // multiplies it by two numbers <= 1 that are off by U or 2 U.
    let gate = 32.0 * U;
    assert_near("d_gates", &d_gates, &got.d_gates, gate);
    assert_near("d_c0", &d_c0, &got.d_c0, gate);
    // A sum of 4 hidden products |w| |d_gate| with |d_gate| <= 2.
    let bound = 4.0 * case.root() * (gate + 2.0 * ((4.0 * hidden + 1.0) * U + case.rounding()));
    assert_near("d_h0", &d_h0, &got.d_h0, bound);
}

fn check_lstm_sequence(case: &Case) {
    let all = lstm(case);
    let (s, bh) = (case.s, case.s.batch * case.s.hidden);
    let part = |x: &[f32], t: usize, width: usize| x[t * width..(t + 1) * width].to_vec();
    // Forwards, each step from what the one before left.
    let (mut h, mut c) = (case.h0.clone(), case.c0.clone());
    let mut before = Vec::new();
    for t in 0..s.steps {
        let step = lstm(&case.step(t, &h, &c, part(&case.d_h, t, bh), vec![]));
        assert_same("gates", &part(&all.gates, t, 4 * bh), &step.gates);
        assert_same("h", &part(&all.h, t, bh), &step.h);
        assert_same("c", &part(&all.c, t, bh), &step.c);
        before.push((h, c));
        (h, c) = (step.h, step.c);
    }
    // Backwards, each step with what the one after sends added to what comes from above.
    let (mut d_h_next, mut d_c_next) = (vec![0.0; bh], vec![0.0; bh]);
    for t in (0..s.steps).rev() {
        let add = |a: Vec<f32>, b: &[f32]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<_>>();
        let d_h = add(part(&case.d_h, t, bh), &d_h_next);
        let d_c = add(part(&case.d_c, t, bh), &d_c_next);
        let step = lstm(&case.step(t, &before[t].0, &before[t].1, d_h, d_c));
        assert_same("d_gates", &part(&all.d_gates, t, 4 * bh), &step.d_gates);
        (d_h_next, d_c_next) = (step.d_h0, step.d_c0);
    }
    assert_same("d_h0", &all.d_h0, &d_h_next);
    assert_same("d_c0", &all.d_c0, &d_c_next);
}

/// What a GRU makes of a case.
struct Gru {
    gates: Vec<f32>,
    h: Vec<f32>,
    h_n: Vec<f32>,
    d_gates: Vec<f32>,
    d_rec: Vec<f32>,
    d_h0: Vec<f32>,
}

fn gru(case: &Case) -> Gru {
    let (s, n) = (case.s, case.d_h.len());
    let mut gates = Guarded::of(&case.x, 1);
    let (mut h, mut h_n) = (Guarded::new(n, 3), Guarded::new(n, 2));
    let w = case.forward_weights();
    recurrent::gru_forward(gates.get(), &w, &case.b_hh, &case.h0, h.get(), h_n.get(), s);
    let (gates, h, h_n) = (gates.finish("gates"), h.finish("h"), h_n.finish("h_n"));
    let (mut d_gates, mut d_rec) = (Guarded::of(&gates, 5), Guarded::new(gates.len(), 3));
    let mut d_h0 = Guarded::new(case.h0.len(), 7);
    let (w, into, rec) = (case.backward_weights(), d_h0.get(), d_rec.get());
    recurrent::gru_backward(d_gates.get(), rec, &w, &case.h0, &h, &h_n, &case.d_h, into, s);
    let (d_gates, d_rec) = (d_gates.finish("d_gates"), d_rec.finish("d_rec"));
    Gru { gates, h, h_n, d_gates, d_rec, d_h0: d_h0.finish("d_h0") }
}

fn check_gru_step(case: &Case) {
    let (s, hidden, root) = (case.s, case.s.hidden as f64, case.root());
    let got = gru(case);
    let [x, w, b, h0] = [&case.x, &case.w_hh, &case.b_hh, &case.h0].map(|x| wide(x));
    let (gates, h, h_n) = reference::gru_forward(&x, &w, &b, &h0, s);
    // The recurrent sum, bias included, is at most 1 + root and off by `sum`; r and z by a quarter
    // of it (the slope of the logistic function) and of the rounding of x + rec, and by 4 U.
    let sum = (hidden + 2.0) * U * (1.0 + root);
    let gate = (sum + (2.0 + root) * U) / 4.0 + 4.0 * U;
    // n: the sum, r times its size, a rounding of a sum of 2 + root, 4 U for tanh.
    let new = sum + gate * (1.0 + root) + (2.0 + root) * U + 4.0 * U;
    assert_near("h_n", &h_n, &got.h_n, sum);
    assert_near("gates", &gates, &got.gates, gate.max(new));
    // h = n + z (h0 - n) with |h0 - n| <= 2.
    assert_near("h", &h, &got.h, new + 2.0 * (gate + new) + 6.0 * U);

    let [gates, h, h_n, d_h] = [&got.gates, &got.h, &got.h_n, &case.d_h].map(|x| wide(x));
    let (d_x, d_rec, d_h0) = reference::gru_backward(&gates, &w, &h0, &h, &h_n, &d_h, s);
    // Products of at most five exact numbers and differences of them, at most |h_n| <= 1 + root (or
    // 2 for h0 - n) in size: 12 roundings cover each.
    let gate = 12.0 * U * (2.0 + root);
    assert_near("d_gates", &d_x, &got.d_gates, gate);
    assert_near("d_rec", &d_rec, &got.d_rec, gate);
    // A sum of 3 hidden products |w| |d_rec| and d_h z, with |d_rec| <= (2 + root) / 4.
    let sum = (3.0 * hidden + 2.0) * U + case.rounding();
    let bound = 3.0 * root * (gate + sum * (2.0 + root) / 4.0) + 4.0 * U;
    assert_near("d_h0", &d_h0, &got.d_h0, bound);
}

fn check_gru_sequence(case: &Case) {
    let all = gru(case);
    let (s, bh) = (case.s, case.s.batch * case.s.hidden);
    let part = |x: &[f32], t: usize, width: usize| x[t * width..(t + 1) * width].to_vec();
    let mut h = case.h0.clone();
    let mut before = Vec::new();
    for t in 0..s.steps {
        let step = gru(&case.step(t, &h, &[], part(&case.d_h, t, bh), vec![]));
        assert_same("gates", &part(&all.gates, t, 3 * bh), &step.gates);
        assert_same("h", &part(&all.h, t, bh), &step.h);
        assert_same("h_n", &part(&all.h_n, t, bh), &step.h_n);
        before.push(h);
        h = step.h;
    }
    let mut next = vec![0.0; bh];
    for t in (0..s.steps).rev() {
        let d_h = part(&case.d_h, t, bh).iter().zip(&next).map(|(a, b)| a + b).collect();
        let step = gru(&case.step(t, &before[t], &[], d_h, vec![]));
        assert_same("d_gates", &part(&all.d_gates, t, 3 * bh), &step.d_gates);
        assert_same("d_rec", &part(&all.d_rec, t, 3 * bh), &step.d_rec);
        next = step.d_h0;
    }
    assert_same("d_h0", &all.d_h0, &next);
}

/// What an Elman network makes of a case: the states, the gradients of the sums and of `h0`.
fn rnn(case: &Case, f: Nonlinearity) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let mut h = Guarded::of(&case.x, 1);
    recurrent::rnn_forward(h.get(), &case.forward_weights(), &case.h0, f, case.s);
    let h = h.finish("h");
    let (mut d_h, mut d_h0) = (Guarded::of(&case.d_h, 3), Guarded::new(case.h0.len(), 2));
    let w = case.backward_weights();
    recurrent::rnn_backward(&h, d_h.get(), &w, d_h0.get(), f, case.s);
    (h, d_h.finish("d_h"), d_h0.finish("d_h0"))
}

fn check_rnn_step(case: &Case, f: Nonlinearity) {
    let (s, hidden, root) = (case.s, case.s.hidden as f64, case.root());
    let (h, d_sum, d_h0) = rnn(case, f);
    let [x, w, h0, d_h] = [&case.x, &case.w_hh, &case.h0, &case.d_h].map(|x| wide(x));
    // The sum's error, and 4 U for tanh.
    let sum = (hidden + 2.0) * U * (1.0 + root);
    assert_near("h", &reference::rnn_forward(&x, &w, &h0, f, s), &h, sum + 4.0 * U);
    let (want, want_0) = reference::rnn_backward(&wide(&h), &d_h, &w, f, s);
    assert_near("d_h", &want, &d_sum, 4.0 * U);
    assert_near("d_h0", &want_0, &d_h0, root * ((4.0 + hidden + 1.0) * U + case.rounding()));
}

fn check_rnn_sequence(case: &Case, f: Nonlinearity) {
    let (all_h, all_d, all_d0) = rnn(case, f);
    let (s, bh) = (case.s, case.s.batch * case.s.hidden);
    let mut h = case.h0.clone();
    let mut before = Vec::new();
    for t in 0..s.steps {
        let step = rnn(&case.step(t, &h, &[], case.d_h[t * bh..(t + 1) * bh].to_vec(), vec![]), f);
        assert_same("h", &all_h[t * bh..(t + 1) * bh], &step.0);
        before.push(h);
        h = step.0;
    }
    let mut next = vec![0.0; bh];
    for t in (0..s.steps).rev() {
        let above = &case.d_h[t * bh..(t + 1) * bh];
        let d_h = above.iter().zip(&next).map(|(a, b)| a + b).collect();
        let step = rnn(&case.step(t, &before[t], &[], d_h, vec![]), f);
        assert_same("d_h", &all_d[t * bh..(t + 1) * bh], &step.1);
        next = step.2;
    }
    assert_same("d_h0", &all_d0, &next);
}

const NONLINEARITIES: [Nonlinearity; 2] = [Nonlinearity::Tanh, Nonlinearity::Relu];

/// Sizes round the lane count and the rows of a tile, and empty ones.
const SIZES: [(usize, usize); 12] = [
    (0, 4),
    (1, 0),
    (1, 1),
    (2, 3),
    (3, 15),
    (7, 16),
    (8, 17),
    (9, 31),
    (16, 32),
    (17, 33),
    (1, 100),
    (24, 48),
];

#[test]
fn a_step_equals_the_definition_in_f64() {
    on_every_tier(|_| {
        for (batch, hidden) in SIZES {
            let case = |gates, seed| Case::new(1, batch, hidden, gates, seed);
            check_lstm_step(&case(4, 11));
            check_gru_step(&case(3, 12));
            check_lstm_step(&case(4, 11).in_bf16());
            check_gru_step(&case(3, 12).in_bf16());
            for f in NONLINEARITIES {
                check_rnn_step(&case(1, 13), f);
                check_rnn_step(&case(1, 13).in_bf16(), f);
            }
        }
    });
}

#[test]
fn a_sequence_is_its_steps_one_after_the_other() {
    on_every_tier(|_| {
        for (batch, hidden) in [(1, 5), (3, 16), (8, 33), (20, 24)] {
            let case = |gates, seed| Case::new(4, batch, hidden, gates, seed);
            check_lstm_sequence(&case(4, 21));
            check_gru_sequence(&case(3, 22));
            check_lstm_sequence(&case(4, 21).in_bf16());
            check_gru_sequence(&case(3, 22).in_bf16());
            for f in NONLINEARITIES {
                check_rnn_sequence(&case(1, 23), f);
                check_rnn_sequence(&case(1, 23).in_bf16(), f);
            }
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn steps_and_sequences_hold_at_any_size(
        steps in 1usize..5, batch in 1usize..20, hidden in 1usize..70, seed: u64,
    ) {
        on_every_tier(|_| {
            check_lstm_step(&Case::new(1, batch, hidden, 4, seed));
            check_gru_step(&Case::new(1, batch, hidden, 3, seed));
            check_rnn_step(&Case::new(1, batch, hidden, 1, seed), Nonlinearity::Tanh);
            check_lstm_sequence(&Case::new(steps, batch, hidden, 4, seed));
            check_gru_sequence(&Case::new(steps, batch, hidden, 3, seed));
            check_rnn_sequence(&Case::new(steps, batch, hidden, 1, seed), Nonlinearity::Tanh);
        });
    }
}

/// Everything that the three architectures make of a case, in one list.
fn everything(case: [&Case; 3]) -> Vec<f32> {
    let (l, g) = (lstm(case[0]), gru(case[1]));
    let r = rnn(case[2], Nonlinearity::Tanh);
    [l.gates, l.h, l.c, l.d_gates, l.d_h0, l.d_c0, g.gates, g.h, g.h_n, g.d_gates, g.d_rec, g.d_h0]
        .into_iter()
        .chain([r.0, r.1, r.2])
        .flatten()
        .collect()
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    on_every_tier(|_| {
        // Large enough that products are cut into tasks, too.
        let cases = [4, 3, 1].map(|gates| Case::new(3, 70, 160, gates, 31));
        same_for_any_threads("recurrent", || everything([&cases[0], &cases[1], &cases[2]]));
        let cases = cases.map(Case::in_bf16);
        same_for_any_threads("in bf16", || everything([&cases[0], &cases[1], &cases[2]]));
    });
}

#[test]
fn a_batch_of_24_rows_equals_three_batches_of_8() {
    on_every_tier(|_| {
        check_rows(&Case::new(3, 24, 40, 4, 41));
        check_rows(&Case::new(3, 24, 40, 4, 41).in_bf16());
    });
}

fn check_rows(case: &Case) {
    let all = lstm(case);
    for first in [0, 8, 16] {
        let part = lstm(&case.rows(first..first + 8));
        for t in 0..3 {
            let (from, to) = ((t * 24 + first) * 40, (t * 24 + first + 8) * 40);
            assert_same("h", &all.h[from..to], &part.h[t * 320..(t + 1) * 320]);
            let (from, to) = (4 * from, 4 * to);
            let d_gates = &part.d_gates[t * 1280..(t + 1) * 1280];
            assert_same("d_gates", &all.d_gates[from..to], d_gates);
        }
        assert_same("d_h0", &all.d_h0[first * 40..(first + 8) * 40], &part.d_h0);
    }
}

#[test]
fn no_gradient_into_the_cell_equals_a_gradient_of_zero() {
    on_every_tier(|_| {
        let mut case = Case::new(3, 5, 19, 4, 51);
        case.d_c.fill(0.0);
        let zero = lstm(&case);
        case.d_c.clear();
        let none = lstm(&case);
        assert_same("d_gates", &zero.d_gates, &none.d_gates);
        assert_same("d_c0", &zero.d_c0, &none.d_c0);
    });
}

#[test]
fn a_sequence_of_no_steps_has_gradients_of_zero() {
    let got = lstm(&Case::new(0, 3, 5, 4, 61));
    assert!(got.d_h0.iter().chain(&got.d_c0).all(|x| x.to_bits() == 0));
}

/// Asserts that `gradient` is the slope of `loss` at `x`, by central differences in f64.
///
/// With a step of 1e-5 and third derivatives of order 10, the difference is off by 1e-9 of
/// truncation and 1e-10 of rounding.
fn check_slope(what: &str, x: &[f64], gradient: &[f64], loss: impl Fn(&[f64]) -> f64) {
    for at in 0..x.len() {
        let mut moved = x.to_vec();
        moved[at] = x[at] + 1e-5;
        let above = loss(&moved);
        moved[at] = x[at] - 1e-5;
        let slope = (above - loss(&moved)) / 2e-5;
        let error = (slope - gradient[at]).abs();
        assert!(error <= 1e-7, "{what}[{at}]: {} but the slope is {slope}", gradient[at]);
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn the_reference_gradients_are_slopes() {
    let case = Case::new(3, 2, 3, 4, 71);
    let [x, w, h0, c0] = [&case.x, &case.w_hh, &case.h0, &case.c0].map(|x| wide(x));
    let [b, d_h, d_c] = [&case.b_hh, &case.d_h, &case.d_c].map(|x| wide(x));
    let s = case.s;

    let loss = |x: &[f64], h0: &[f64], c0: &[f64]| {
        let (_, h, c) = reference::lstm_forward(x, &w, h0, c0, s);
        dot(&h, &d_h) + dot(&c, &d_c)
    };
    let (gates, _, c) = reference::lstm_forward(&x, &w, &h0, &c0, s);
    let (d_gates, d_h0, d_c0) = reference::lstm_backward(&gates, &w, &c0, &c, &d_h, &d_c, s);
    check_slope("lstm gates", &x, &d_gates, |x| loss(x, &h0, &c0));
    check_slope("lstm h0", &h0, &d_h0, |h0| loss(&x, h0, &c0));
    check_slope("lstm c0", &c0, &d_c0, |c0| loss(&x, &h0, c0));

    let (x3, w3, b3) = (&x[..3 * 3 * 6], &w[..27], &b[..9]);
    let loss =
        |x: &[f64], b: &[f64], h0: &[f64]| dot(&reference::gru_forward(x, w3, b, h0, s).1, &d_h);
    let (gates, h, h_n) = reference::gru_forward(x3, w3, b3, &h0, s);
    let (d_x, d_rec, d_h0) = reference::gru_backward(&gates, w3, &h0, &h, &h_n, &d_h, s);
    check_slope("gru gates", x3, &d_x, |x| loss(x, b3, &h0));
    check_slope("gru h0", &h0, &d_h0, |h0| loss(x3, b3, h0));
    let d_b: Vec<f64> = (0..9).map(|j| d_rec.iter().skip(j).step_by(9).sum()).collect();
    check_slope("gru bias", b3, &d_b, |b| loss(x3, b, &h0));

    for f in NONLINEARITIES {
        let (x1, w1) = (&x[..3 * 6], &w[..9]);
        let h = reference::rnn_forward(x1, w1, &h0, f, s);
        let (d_sum, d_h0) = reference::rnn_backward(&h, &d_h, w1, f, s);
        let loss = |x: &[f64], h0: &[f64]| dot(&reference::rnn_forward(x, w1, h0, f, s), &d_h);
        check_slope("rnn sums", x1, &d_sum, |x| loss(x, &h0));
        check_slope("rnn h0", &h0, &d_h0, |h0| loss(x1, h0));
    }
}
