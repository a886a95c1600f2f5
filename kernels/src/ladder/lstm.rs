//! An LSTM layer forward, from its definition to the kernel.
//!
//! With `x_t` the input of a step and `h`, `c` its states, zero at first:
//!
//! ```text
//! i, f, o = sigmoid(W_ih x_t + W_hh h + b)      g = tanh(W_ih x_t + W_hh h + b)
//! c' = f * c + i * g      h' = o * tanh(c')     Hochreiter & Schmidhuber 1997, Gers et al. 2000
//! ```
//!
//! Nearly all of the time goes into the two products, so most steps are about giving them to the
//! matrix kernel in large pieces. What is inside of that kernel is the ladder of `gemm`.

use super::Step;
use crate::gemm::{MatMut, MatRef, PackedB, gemm_forward, gemm_packed_forward};
use crate::recurrent::{self, Sizes, lstm_cell_forward};

/// The operands of a layer; gate order i, f, g, o.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// `[steps, batch, input]`.
    pub x: &'a [f32],
    /// `[4 * hidden, input]`.
    pub w_ih: &'a [f32],
    /// `[4 * hidden, hidden]`.
    pub w_hh: &'a [f32],
    /// Both biases in one, `[4 * hidden]`.
    pub bias: &'a [f32],
    /// Numbers of an input.
    pub input: usize,
}

/// Writes the outputs `h` `[steps, batch, hidden]` of a layer whose states begin at zero.
pub type Forward = fn(layer: Layer, h: &mut [f32], s: Sizes);

/// The steps, in the order in which the ideas build on each other.
pub const STEPS: &[Step<Forward>] = &[
    Step {
        name: "naive",
        why: "the equations as they stand: each gate of each unit is a dot product of its own",
        run: naive,
    },
    Step {
        name: "one product",
        why: "the gates of all units and all rows are one matrix product, so that a weight is read \
              once for the whole batch and whole vectors are multiplied",
        run: one_product,
    },
    Step {
        name: "input ahead",
        why: "the input does not wait for the states: its products of all steps are one large one",
        run: input_ahead,
    },
    Step {
        name: "packed",
        why: "the recurrent weight is brought once into the order in which the product reads it, \
              not at every step",
        run: packed,
    },
    Step {
        name: "vector cells",
        why: "sigmoid and tanh are polynomials on sixteen numbers at a time",
        run: vector_cells,
    },
    Step {
        name: "threaded",
        why: "rows never meet: each thread takes some through all steps, with one fork a sequence, \
              and fetches the next step's gates meanwhile: the kernel itself",
        run: threaded,
    },
];

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The equations, one unit after the other.
fn naive(layer: Layer, h: &mut [f32], s: Sizes) {
    let (n, inputs) = (s.hidden, layer.input);
    let mut h_prev = vec![0.0; s.batch * n];
    let mut c = vec![0.0; s.batch * n];
    for t in 0..s.steps {
        for b in 0..s.batch {
            let x = &layer.x[(t * s.batch + b) * inputs..][..inputs];
            for j in 0..n {
                let gate = |k: usize| {
                    let row = k * n + j;
                    layer.bias[row]
                        + dot(&layer.w_ih[row * inputs..][..inputs], x)
                        + dot(&layer.w_hh[row * n..][..n], &h_prev[b * n..][..n])
                };
                let (i, f, g, o) = (gate(0), gate(1), gate(2), gate(3));
                let c = &mut c[b * n + j];
                *c = sigmoid(f) * *c + sigmoid(i) * g.tanh();
                h[(t * s.batch + b) * n + j] = sigmoid(o) * c.tanh();
            }
        }
        h_prev.copy_from_slice(&h[t * s.batch * n..][..s.batch * n]);
    }
}

/// Takes the finished sums of one step, `[batch, 4 * hidden]`, through the cell, number by number.
fn plain_cells(gates: &[f32], c: &mut [f32], h: &mut [f32], n: usize) {
    let rows = gates.chunks_exact(4 * n).zip(c.chunks_exact_mut(n)).zip(h.chunks_exact_mut(n));
    for ((gates, c), h) in rows {
        for j in 0..n {
            let [i, f, g, o] = [0, 1, 2, 3].map(|k| gates[k * n + j]);
            c[j] = sigmoid(f) * c[j] + sigmoid(i) * g.tanh();
            h[j] = sigmoid(o) * c[j].tanh();
        }
    }
}

/// Puts the bias into every row of `gates`, to which the products are then added.
fn begin(gates: &mut [f32], bias: &[f32]) {
    gates.chunks_exact_mut(bias.len()).for_each(|row| row.copy_from_slice(bias));
}

/// `gates += a W^T` for the rows of `a`.
fn add_product(a: &[f32], w: &[f32], width: usize, gates: &mut [f32]) {
    let (rows, columns) = (a.len() / width, w.len() / width);
    let w = MatRef::new(w, columns, width).t();
    gemm_forward(MatRef::new(a, rows, width), w, &mut MatMut::new(gates, rows, columns), true);
}

fn one_product(layer: Layer, h: &mut [f32], s: Sizes) {
    let (len, inputs) = (s.batch * s.hidden, s.batch * layer.input);
    let mut gates = vec![0.0; 4 * len];
    let (mut c, mut h_prev) = (vec![0.0; len], vec![0.0; len]);
    for (x, h) in layer.x.chunks_exact(inputs).zip(h.chunks_exact_mut(len)) {
        begin(&mut gates, layer.bias);
        add_product(x, layer.w_ih, layer.input, &mut gates);
        add_product(&h_prev, layer.w_hh, s.hidden, &mut gates);
        plain_cells(&gates, &mut c, h, s.hidden);
        h_prev.copy_from_slice(h);
    }
}

/// The input part of all steps, `[steps, batch, 4 * hidden]`.
fn input_part(layer: Layer, s: Sizes) -> Vec<f32> {
    let mut gates = vec![0.0; s.steps * s.batch * 4 * s.hidden];
    begin(&mut gates, layer.bias);
    add_product(layer.x, layer.w_ih, layer.input, &mut gates);
    gates
}

fn input_ahead(layer: Layer, h: &mut [f32], s: Sizes) {
    let len = s.batch * s.hidden;
    let mut gates = input_part(layer, s);
    let (mut c, mut h_prev) = (vec![0.0; len], vec![0.0; len]);
    for (gates, h) in gates.chunks_exact_mut(4 * len).zip(h.chunks_exact_mut(len)) {
        add_product(&h_prev, layer.w_hh, s.hidden, gates);
        plain_cells(gates, &mut c, h, s.hidden);
        h_prev.copy_from_slice(h);
    }
}

/// The recurrent weight, in the order in which the product reads it.
fn pack(layer: Layer, s: Sizes) -> PackedB {
    PackedB::new(MatRef::new(layer.w_hh, 4 * s.hidden, s.hidden).t())
}

/// `gates += h W_hh^T` with the packed weight.
fn add_packed(h: &[f32], w: &PackedB, gates: &mut [f32], s: Sizes) {
    let h = MatRef::new(h, s.batch, s.hidden);
    gemm_packed_forward(h, w, None, &mut MatMut::new(gates, s.batch, 4 * s.hidden), true);
}

fn packed(layer: Layer, h: &mut [f32], s: Sizes) {
    let len = s.batch * s.hidden;
    let (mut gates, w_hh) = (input_part(layer, s), pack(layer, s));
    let (mut c, mut h_prev) = (vec![0.0; len], vec![0.0; len]);
    for (gates, h) in gates.chunks_exact_mut(4 * len).zip(h.chunks_exact_mut(len)) {
        add_packed(&h_prev, &w_hh, gates, s);
        plain_cells(gates, &mut c, h, s.hidden);
        h_prev.copy_from_slice(h);
    }
}

fn vector_cells(layer: Layer, h: &mut [f32], s: Sizes) {
    let len = s.batch * s.hidden;
    let (mut gates, w_hh) = (input_part(layer, s), pack(layer, s));
    let (mut c, mut c_prev, mut h_prev) = (vec![0.0; len], vec![0.0; len], vec![0.0; len]);
    for (gates, h) in gates.chunks_exact_mut(4 * len).zip(h.chunks_exact_mut(len)) {
        add_packed(&h_prev, &w_hh, gates, s);
        lstm_cell_forward(gates, &c_prev, &mut c, h, s.hidden);
        std::mem::swap(&mut c, &mut c_prev);
        h_prev.copy_from_slice(h);
    }
}

fn threaded(layer: Layer, h: &mut [f32], s: Sizes) {
    let (mut gates, w_hh) = (input_part(layer, s), pack(layer, s));
    let zero = vec![0.0; s.batch * s.hidden];
    let mut c = vec![0.0; h.len()];
    recurrent::lstm_forward(&mut gates, &w_hh, &zero, &zero, h, &mut c, s);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{philox, reference};

    fn uniform(stream: u32, len: usize, scale: f32) -> Vec<f32> {
        let mut x = vec![0.0; len];
        philox::uniform(&mut x, 0, stream, 0);
        x.iter_mut().for_each(|x| *x = (2.0 * *x - 1.0) * scale);
        x
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| f64::from(x)).collect()
    }

    #[test]
    fn every_step_equals_the_definition() {
        for (steps, batch, hidden, input) in [
            (1, 1, 1, 1),
            (3, 2, 5, 7),
            (4, 9, 17, 3),
            (2, 16, 32, 33),
            (5, 1, 64, 40),
            (6, 3, 31, 1),
        ] {
            let (s, g) = (Sizes { steps, batch, hidden }, 4 * hidden);
            // Sums of weights below 1 / width: what enters a gate is below 3, states are below 1.
            let (x, bias) = (uniform(1, steps * batch * input, 1.0), uniform(2, g, 1.0));
            let w_ih = uniform(3, g * input, 1.0 / input as f32);
            let w_hh = uniform(4, g * hidden, 1.0 / hidden as f32);
            let layer = Layer { x: &x, w_ih: &w_ih, w_hh: &w_hh, bias: &bias, input };
            let mut part = Vec::new();
            for x in wide(&x).chunks_exact(input) {
                for (row, b) in wide(&w_ih).chunks_exact(input).zip(&bias) {
                    part.push(f64::from(*b) + row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>());
                }
            }
            let zero = vec![0.0; batch * hidden];
            let (_, want, _) =
                reference::recurrent::lstm_forward(&part, &wide(&w_hh), &zero, &zero, s);
            for step in STEPS {
                let mut h = vec![0.0; steps * batch * hidden];
                (step.run)(layer, &mut h, s);
                let worst = h.iter().zip(&want).map(|(h, w)| (f64::from(*h) - w).abs());
                let worst = worst.fold(0.0, f64::max);
                // A gate sums at most 107 terms that are below 3 in all: 107 * 3 roundings of half an
                // EPSILON, plus some 10 of the cell; slopes are at most 1, a cell state adds two gates
                // and what the steps before were off by.
                let tolerance = (steps * 3 * (107 * 3 + 10)) as f64 * f64::from(f32::EPSILON) / 2.0;
                assert!(worst <= tolerance, "{} at {s:?}: {worst} > {tolerance}", step.name);
            }
        }
    }
}
