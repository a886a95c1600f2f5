//! The LSTM with attention over its last outputs, dense and by ids.

use etude_engine::{Attended, Ids, Input, Result, Tensor, attended_lstm, attended_lstm_plain};

use super::{Case, Domain, Shapes, bags, case, sigmoid};
use crate::array::Array;

/// Steps and rows of the sequences that are given by ids.
const STEPS: usize = 3;
const BATCH: usize = 2;

/// The dense input, if there is one, stands before the eleven weights.
fn split<T>(x: &[T]) -> (Option<&T>, &[T]) {
    if x.len() == 12 { (x.first(), &x[1..]) } else { (None, x) }
}

type Layer = fn(&Input, &Attended, usize) -> Result<Tensor>;

fn forward(layer: Layer, length: usize) -> impl Fn(&[Tensor]) -> Result<Tensor> {
    move |all| {
        let (x, w) = split(all);
        let [w_ih, w_hh, b_ih, b_hh, w_d, w_q, b_q, w_k, v, w_o, b_o] = w else {
            panic!("{} weights", w.len())
        };
        let x = match x {
            Some(x) => Input::Dense(x.clone()),
            None => {
                let ids = Ids::bags(bags(STEPS * BATCH, 2, w_ih.shape()[1]).0, 2)?;
                Input::OneHot { ids, steps: STEPS, batch: BATCH }
            }
        };
        let w = Attended { w_ih, w_hh, b_ih, b_hh, w_d, w_q, b_q, w_k, v, w_o, b_o };
        layer(&x, &w, length)
    }
}

/// `y = y + W x`
fn add_product(w: &Array, x: &[f64], y: &mut [f64]) {
    for (j, y) in y.iter_mut().enumerate() {
        *y += (0..x.len()).map(|k| w.data[j * x.len() + k] * x[k]).sum::<f64>();
    }
}

fn reference(length: usize) -> impl Fn(&[Array]) -> Array {
    move |all| {
        let (dense, w) = split(all);
        let [w_ih, w_hh, b_ih, b_hh, w_d, w_q, b_q, w_k, v, w_o, b_o] = w else {
            panic!("{} weights", w.len())
        };
        let (inputs, n) = (w_ih.shape[1], v.data.len());
        let (steps, batch) = dense.map_or((STEPS, BATCH), |x| (x.shape[0], x.shape[1]));
        let row = |at: usize| match dense {
            Some(x) => x.data[at * inputs..(at + 1) * inputs].to_vec(),
            None => {
                let mut hot = vec![0.0; inputs];
                let (_, bags) = bags(STEPS * BATCH, 2, inputs);
                bags[at].iter().flatten().for_each(|id| hot[*id] += 1.0);
                hot
            }
        };
        let mut y = vec![0.0; steps * batch * n];
        for b in 0..batch {
            let (mut h, mut c, mut d) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
            let mut memory = vec![vec![0.0; n]; length];
            for t in 0..steps {
                let at = t * batch + b;
                let mut sums: Vec<f64> =
                    b_ih.data.iter().zip(&b_hh.data).map(|(a, b)| a + b).collect();
                add_product(w_ih, &row(at), &mut sums);
                add_product(w_hh, &h, &mut sums);
                add_product(w_d, &d, &mut sums);
                for j in 0..n {
                    let (i, f) = (sigmoid(sums[j]), sigmoid(sums[n + j]));
                    c[j] = f * c[j] + i * sums[2 * n + j].tanh();
                    h[j] = sigmoid(sums[3 * n + j]) * c[j].tanh();
                }
                let mut query = b_q.data.clone();
                add_product(w_q, &[&c[..], &h].concat(), &mut query);
                let last = &memory[t..];
                let score = |a: &Vec<f64>| {
                    let mut sum = query.clone();
                    add_product(w_k, a, &mut sum);
                    sum.iter().zip(&v.data).map(|(s, v)| v * s.tanh()).sum::<f64>().exp()
                };
                let scores: Vec<f64> = last.iter().map(score).collect();
                let total: f64 = scores.iter().sum();
                d.fill(0.0);
                for (score, a) in scores.iter().zip(last) {
                    d.iter_mut().zip(a).for_each(|(d, a)| *d += score / total * a);
                }
                let mut output = b_o.data.clone();
                add_product(w_o, &[&h[..], &d].concat(), &mut output);
                y[at * n..(at + 1) * n].copy_from_slice(&output);
                memory.push(output);
            }
        }
        Array::new(&[steps, batch, n], y)
    }
}

/// Shapes `[x,] w_ih, w_hh, b_ih, b_hh, w_d, w_q, b_q, w_k, v, w_o, b_o` from (steps, batch, inputs,
/// hidden).
fn sequence(dense: bool) -> (Vec<Shapes>, Shapes) {
    let shapes = |(steps, batch, inputs, n): (usize, usize, usize, usize)| {
        let g = 4 * n;
        let mut shapes = vec![vec![g, inputs], vec![g, n], vec![g], vec![g], vec![g, n]];
        shapes.extend([vec![n, 2 * n], vec![n], vec![n, n], vec![n], vec![n, 2 * n], vec![n]]);
        if dense {
            shapes.insert(0, vec![steps, batch, inputs]);
        }
        shapes
    };
    let sizes = [
        (1, 1, 1, 1),
        (2, 3, 2, 3),
        (5, 1, 3, 2),
        (4, 2, 1, 2),
        (0, 2, 3, 2),
        (2, 0, 3, 2),
        (2, 2, 0, 2),
        (1, 5, 3, 1),
        (3, 9, 2, 2),
    ];
    (sizes.into_iter().map(shapes).collect(), shapes((17, 9, 33, 65)))
}

/// The entries of this family.
pub fn cases() -> Vec<Case> {
    let named = [("attended lstm", true, 3), ("attended lstm of ids", false, 1)];
    let entry = |(name, dense, length)| {
        let fused = forward(attended_lstm, length);
        case(name, Domain::Fading, sequence(dense), fused, reference(length))
            .twin(forward(attended_lstm_plain, length))
    };
    named.map(entry).into()
}
