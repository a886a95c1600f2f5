//! Attention over the last outputs: one look against f64, its gradient against differences of that, a
//! sequence against its rows and its steps.

mod support;

use etude_kernels::gemm::{MatRef, PackedB};
use etude_kernels::recurrent::*;
use etude_kernels::reference::recurrent as reference;
use support::*;

const U: f64 = 1.0 / 16_777_216.0;

/// Queries, keys and values in `[-1, 1)`, `v` in `[-1, 1) / sqrt(hidden)`.
struct Look {
    length: usize,
    query: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    v: Vec<f32>,
}

impl Look {
    fn new(length: usize, hidden: usize) -> Look {
        let seed = (length * 1000 + hidden) as u64 * 8;
        let root = (hidden as f32).sqrt();
        Look {
            length,
            query: uniform(seed, hidden),
            keys: uniform(seed ^ 1, length * hidden),
            values: uniform(seed ^ 2, length * hidden),
            v: uniform(seed ^ 3, hidden).iter().map(|v| v / root).collect(),
        }
    }

    fn forward(&self) -> (Vec<f32>, Vec<f32>) {
        let hidden = self.v.len();
        let all = same_on_every_tier("attend", || {
            let (mut shares, mut found) = (Guarded::new(self.length, 1), Guarded::new(hidden, 3));
            let (into, d) = (shares.get(), found.get());
            attend_forward(&self.query, &self.keys, &self.values, &self.v, into, d);
            [shares.finish("shares"), found.finish("found")].concat()
        });
        (all[..self.length].to_vec(), all[self.length..].to_vec())
    }
}

/// All lengths around the lane count for both sizes, and those of Magenta's presets.
fn looks() -> impl Iterator<Item = Look> {
    let hidden = (1..=18).chain([31, 32, 33, 127, 256]);
    hidden.flat_map(|h| [1, 2, 15, 16, 17, 32, 40].map(|length| Look::new(length, h)))
}

/// A score is at most `sqrt(hidden)`; each of its terms is off by the sum's rounding, 3 ulp = 6 U of
/// tanh and the product's, and the chain of adds is `hidden / 16 + 4` long.
fn score_error(hidden: usize) -> f64 {
    let h = hidden as f64;
    h.sqrt() * (2.0 + 6.0 + 1.0 + h / 16.0 + 4.0) * U
}

/// A share is off by the errors of two scores, 4 U of exp, the rounding of its argument (at most
/// `2 sqrt(hidden)`), the sum and the division, all relative to itself.
fn share_error(look: &Look) -> f64 {
    let (h, sum) = (look.v.len(), look.length as f64 / 16.0 + 5.0);
    2.0 * score_error(h) + (2.0 * (4.0 + 2.0 * (h as f64).sqrt()) + sum + 1.0) * U
}

#[test]
fn a_look_equals_its_definition_on_every_tier() {
    for look in looks() {
        let (shares, found) = look.forward();
        let [query, keys, values, v] =
            [&look.query, &look.keys, &look.values, &look.v].map(|x| wide(x));
        let (want_shares, want_found) = reference::attend_forward(&query, &keys, &values, &v);
        let bound = share_error(&look);
        assert_near("shares", &want_shares, &shares, bound);
        // A mean of values below 1, in a chain of `length` multiply-adds.
        assert_near("found", &want_found, &found, bound + (look.length as f64 + 1.0) * U);
    }
}

#[test]
fn the_gradients_of_a_look_equal_central_differences() {
    for look in looks().filter(|look| look.length * look.v.len() <= 300) {
        let (n, m) = (look.v.len(), look.keys.len());
        let (shares, found) = look.forward();
        let d_found = uniform(77, n);
        // What is there already is added to.
        let before = 0.5;
        let got = same_on_every_tier("attend_backward", || {
            let mut d_query = Guarded::new(n, 1);
            let [mut d_keys, mut d_values] = [2, 3].map(|at| Guarded::of(&vec![before; m], at));
            let mut d_v = Guarded::of(&vec![before; n], 5);
            attend_backward(
                &look.query,
                &look.keys,
                &look.values,
                &look.v,
                &shares,
                &found,
                &d_found,
                &mut vec![0.0; look.length],
                d_query.get(),
                d_keys.get(),
                d_values.get(),
                d_v.get(),
            );
            let parts =
                [(d_query, "d_query"), (d_keys, "d_keys"), (d_values, "d_values"), (d_v, "d_v")];
            parts.map(|(d, what)| d.finish(what)).concat()
        });
        let sizes = [n, m, m, n];
        let mut inputs = [&look.query, &look.keys, &look.values, &look.v].map(|x| wide(x));
        let mut want = Vec::new();
        for (nth, size) in sizes.into_iter().enumerate() {
            for at in 0..size {
                let mut loss = |by: f64| {
                    let x = inputs[nth][at];
                    inputs[nth][at] += by;
                    let [query, keys, values, v] = &inputs;
                    let (_, found) = reference::attend_forward(query, keys, values, v);
                    inputs[nth][at] = x;
                    found.iter().zip(&d_found).map(|(y, d)| y * f64::from(*d)).sum::<f64>()
                };
                let step = 1e-5;
                let added = if nth == 0 { 0.0 } else { f64::from(before) };
                want.push(added + (loss(step) - loss(-step)) / (2.0 * step));
            }
        }
        // d_p = d_found . value is at most `hidden` with its sum's rounding; a score's gradient is a
        // share of twice that, off by the share's error too; up to `length` of them are added, and with
        // the 0.5 that is there the result is rounded. Differences are good to 1e-9 of the loss.
        let (h, length) = (n as f64, look.length as f64);
        let bound = 2.0 * h * (share_error(&look) + (h / 16.0 + length + 16.0) * U) + 1e-9 * h;
        assert_near("gradients", &want, &got, bound);
    }
}

/// A sequence's operands and what it leaves.
struct Sequence {
    s: Sizes,
    length: usize,
    x: Vec<f32>,
    w_hd: Vec<f32>,
    w_q: Vec<f32>,
    w_k: Vec<f32>,
    w_o: Vec<f32>,
    b: Vec<f32>,
    d_y: Vec<f32>,
}

impl Sequence {
    fn new(steps: usize, batch: usize, hidden: usize, length: usize) -> Sequence {
        let (n, root) = (hidden, (2.0 * hidden as f32).sqrt());
        let weight = |seed, len| uniform(seed, len).iter().map(|w| w / root).collect();
        Sequence {
            s: Sizes { steps, batch, hidden },
            length,
            x: uniform(1, steps * batch * 4 * n),
            w_hd: weight(2, 8 * n * n),
            w_q: weight(3, 2 * n * n),
            w_k: weight(4, n * n),
            w_o: weight(5, 2 * n * n),
            b: uniform(6, n),
            d_y: uniform(7, steps * batch * n),
        }
    }

    /// One row of the batch, the first `steps` steps.
    fn row(&self, b: usize, steps: usize) -> Sequence {
        let (s, n) = (self.s, self.s.hidden);
        let cut = |x: &[f32], width: usize| -> Vec<f32> {
            let steps = x.chunks_exact(s.batch * width).take(steps);
            steps.flat_map(|x| x[b * width..(b + 1) * width].to_vec()).collect()
        };
        let (x, d_y) = (cut(&self.x, 4 * n), cut(&self.d_y, n));
        let [w_hd, w_q, w_k, w_o, bias] =
            [&self.w_hd, &self.w_q, &self.w_k, &self.w_o, &self.b].map(Clone::clone);
        let s = Sizes { steps, batch: 1, hidden: n };
        Sequence { s, length: self.length, x, w_hd, w_q, w_k, w_o, b: bias, d_y }
    }

    fn weights<'a>(&'a self, packed: &'a [PackedB; 4]) -> AttendedWeights<'a> {
        let [w_hd, w_q, w_k, w_o] = packed.each_ref().map(Weight::from);
        let (b_q, v, b_o) = (&self.b[..], &self.b[..], &self.b[..]);
        AttendedWeights { w_hd, w_q, b_q, v, w_k, w_o, b_o }
    }

    /// Outputs `[steps, batch, hidden]`, and the gradients of the gates and of the queries.
    fn run(&self) -> [Vec<f32>; 3] {
        let (s, n) = (self.s, self.s.hidden);
        let (rows, slots) = (s.steps * s.batch, self.length + s.steps);
        let pack = |forward: bool| {
            [
                (&self.w_hd, 4 * n, 2 * n),
                (&self.w_q, n, 2 * n),
                (&self.w_k, n, n),
                (&self.w_o, n, 2 * n),
            ]
            .map(|(w, rows, cols)| {
                let w = MatRef::new(w, rows, cols);
                PackedB::new(if forward { w.t() } else { w })
            })
        };
        let mut gates = Guarded::of(&self.x, 1);
        let (mut y, mut queries) = (Guarded::new(rows * n, 2), Guarded::new(rows * n, 3));
        let (mut states, mut shares) =
            (Guarded::new(rows * 3 * n, 5), Guarded::new(rows * self.length, 1));
        let [mut memory, mut keys] = [1, 7].map(|at| Guarded::new(s.batch * slots * n, at));
        let packed = pack(true);
        attended_lstm_forward(
            gates.get(),
            &self.weights(&packed),
            states.get(),
            queries.get(),
            shares.get(),
            memory.get(),
            keys.get(),
            y.get(),
            self.length,
            s,
        );
        let mut d_gates = Guarded::of(&gates.finish("gates"), 3);
        let [states, queries, shares, memory, keys] =
            [states, queries, shares, memory, keys].map(|x| x.finish("trace"));
        let (mut d_y, mut d_queries) = (Guarded::of(&self.d_y, 1), Guarded::new(rows * n, 2));
        let [mut d_memory, mut d_keys] = [3, 1].map(|at| Guarded::new(memory.len(), at));
        let mut d_v = Guarded::new(s.batch * n, 1);
        let packed = pack(false);
        attended_lstm_backward(
            d_gates.get(),
            &self.weights(&packed),
            &states,
            &queries,
            &shares,
            &memory,
            &keys,
            d_y.get(),
            d_queries.get(),
            d_memory.get(),
            d_keys.get(),
            d_v.get(),
            self.length,
            s,
        );
        for (d, what) in [(d_y, "d_y"), (d_memory, "d_memory"), (d_keys, "d_keys"), (d_v, "d_v")] {
            assert!(d.finish(what).iter().all(|d| d.is_finite()), "{what}");
        }
        [y.finish("y"), d_gates.finish("d_gates"), d_queries.finish("d_queries")]
    }
}

#[test]
fn rows_of_a_sequence_do_not_meet_and_outputs_do_not_see_what_follows() {
    on_every_tier(|isa| {
        for (steps, batch, hidden, length) in
            [(1, 1, 1, 1), (3, 2, 5, 7), (9, 3, 17, 2), (7, 17, 16, 3), (12, 9, 33, 4)]
        {
            let all = Sequence::new(steps, batch, hidden, length);
            let [y, d_gates, d_queries] = all.run();
            for b in 0..batch {
                let cut = |x: &[f32], width: usize, steps: usize| -> Vec<f32> {
                    let steps = x.chunks_exact(batch * width).take(steps);
                    steps.flat_map(|x| x[b * width..(b + 1) * width].to_vec()).collect()
                };
                let name = format!("{} {steps} {batch} {hidden} {length}, row {b}", isa.name());
                let alone = all.row(b, steps).run();
                assert_same(&name, &cut(&y, hidden, steps), &alone[0]);
                assert_same(&name, &cut(&d_gates, 4 * hidden, steps), &alone[1]);
                assert_same(&name, &cut(&d_queries, hidden, steps), &alone[2]);
                let fewer = steps.div_ceil(2);
                assert_same(&name, &cut(&y, hidden, fewer), &all.row(b, fewer).run()[0]);
            }
        }
    });
}

#[test]
fn a_sequence_has_the_same_bits_for_any_number_of_threads() {
    for batch in [1, 5, 8, 9, 40] {
        let case = Sequence::new(6, batch, 24, 3);
        same_for_any_threads("attended lstm", || case.run().concat());
    }
}

#[test]
fn a_memory_of_zeros_gives_nothing() {
    let hidden = 19;
    let (mut shares, mut found) = (vec![0.0; 4], vec![1.0; hidden]);
    let (zeros, query) = (vec![0.0; 4 * hidden], uniform(1, hidden));
    attend_forward(&query, &zeros, &zeros, &query, &mut shares, &mut found);
    assert_eq!(shares, [0.25; 4]);
    assert!(found.iter().all(|x| *x == 0.0));
    attend_forward(&[], &[], &[], &[], &mut [0.0], &mut []);
}
