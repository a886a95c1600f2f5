//! Recurrent layers, dense and by ids.

use etude_engine::{
    Ids, Input, Nonlinearity, Result, Tensor, gru_layer, gru_plain, lstm_layer, lstm_plain,
    rnn_layer, rnn_plain,
};

use super::{Case, Domain, Shapes, bags, case, sigmoid};
use crate::array::Array;

/// Steps of the sequences that are given by ids.
const STEPS: usize = 3;

/// The dense input, if there is one, stands first among the operands.
fn split<T>(x: &[T], states: usize) -> (Option<&T>, &[T]) {
    if x.len() == 5 + states { (x.first(), &x[1..]) } else { (None, x) }
}

fn input(x: Option<&Tensor>, rest: &[Tensor]) -> Result<Input> {
    match x {
        Some(x) => Ok(Input::Dense(x.clone())),
        None => {
            let (batch, vocab) = (rest[4].shape()[0], rest[0].shape()[1]);
            let ids = Ids::bags(bags(STEPS * batch, 2, vocab).0, 2)?;
            Ok(Input::OneHot { ids, steps: STEPS, batch })
        }
    }
}

/// The input part of a step in f64, `[batch, outputs]`.
fn input_part(x: Option<&Array>, rest: &[Array], t: usize) -> Array {
    let (w, batch) = (rest[0].t(), rest[4].shape[0]);
    let y = match x {
        Some(x) => x.slice(0, t, t + 1).reshape(&[batch, w.shape[0]]).matmul(&w),
        None => {
            let (_, bags) = bags(STEPS * batch, 2, w.shape[0]);
            w.rows(&bags[t * batch..(t + 1) * batch])
        }
    };
    y.zip(&rest[2], |y, b| y + b)
}

/// `[gates * hidden]` parts of `[batch, gates * hidden]`.
fn gate(part: &Array, k: usize, hidden: usize) -> Array {
    part.slice(1, k * hidden, (k + 1) * hidden)
}

fn add(a: &Array, b: &Array) -> Array {
    a.zip(b, |a, b| a + b)
}

fn mul(a: &Array, b: &Array) -> Array {
    a.zip(b, |a, b| a * b)
}

/// Runs a cell over all steps in f64: `step` maps the input part and the states to the new states.
fn run(x: &[Array], states: usize, step: impl Fn(&Array, &Array, &[Array]) -> Vec<Array>) -> Array {
    let (dense, rest) = split(x, states);
    let steps = dense.map_or(STEPS, |x| x.shape[0]);
    let (batch, hidden) = (rest[4].shape[0], rest[4].shape[1]);
    let mut state = rest[4..4 + states].to_vec();
    let mut all: Vec<Vec<f64>> = vec![Vec::new(); states];
    for t in 0..steps {
        let from_h = add(&state[0].matmul(&rest[1].t()), &rest[3]);
        state = step(&input_part(dense, rest, t), &from_h, &state);
        all.iter_mut().zip(&state).for_each(|(all, s)| all.extend(&s.data));
    }
    let each = [steps, batch, hidden];
    let shape = if states == 2 { [&[2], &each[..]].concat() } else { each.to_vec() };
    Array::new(&shape, all.concat())
}

fn lstm_reference(x: &[Array]) -> Array {
    run(x, 2, |from_x, from_h, state| {
        let hidden = state[0].shape[1];
        let sums = add(from_x, from_h);
        let (i, f) = (gate(&sums, 0, hidden).map(sigmoid), gate(&sums, 1, hidden).map(sigmoid));
        let (g, o) = (gate(&sums, 2, hidden).map(f64::tanh), gate(&sums, 3, hidden).map(sigmoid));
        let c = add(&mul(&f, &state[1]), &mul(&i, &g));
        vec![mul(&o, &c.map(f64::tanh)), c]
    })
}

fn gru_reference(x: &[Array]) -> Array {
    run(x, 1, |from_x, from_h, state| {
        let hidden = state[0].shape[1];
        let both = |k| add(&gate(from_x, k, hidden), &gate(from_h, k, hidden)).map(sigmoid);
        let (r, z) = (both(0), both(1));
        let n = add(&gate(from_x, 2, hidden), &mul(&r, &gate(from_h, 2, hidden))).map(f64::tanh);
        vec![add(&mul(&z.map(|z| 1.0 - z), &n), &mul(&z, &state[0]))]
    })
}

/// Shapes `[x,] w_ih, w_hh, b_ih, b_hh, h0 [, c0]` from (steps, batch, inputs, hidden).
fn sequence(gates: usize, states: usize, dense: bool) -> (Vec<Shapes>, Shapes) {
    let shapes = |(steps, batch, inputs, hidden): (usize, usize, usize, usize)| {
        let rows = gates * hidden;
        let mut shapes = vec![vec![rows, inputs], vec![rows, hidden], vec![rows], vec![rows]];
        shapes.extend((0..states).map(|_| vec![batch, hidden]));
        if dense {
            shapes.insert(0, vec![steps, batch, inputs]);
        }
        shapes
    };
    let sizes = [
        (1, 1, 1, 1),
        (2, 3, 2, 4),
        (3, 1, 5, 3),
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
    use Domain::Fading;
    let mut all = Vec::new();
    for dense in [true, false] {
        let name = |a, b| if dense { a } else { b };
        type Lstm =
            fn(&Input, &Tensor, &Tensor, &Tensor, &Tensor, &Tensor, &Tensor) -> Result<Tensor>;
        let lstm = |layer: Lstm| {
            move |x: &[Tensor]| {
                let (x, r) = split(x, 2);
                layer(&input(x, r)?, &r[0], &r[1], &r[2], &r[3], &r[4], &r[5])
            }
        };
        let (shapes, title) = (sequence(4, 2, dense), name("lstm", "lstm of ids"));
        all.push(
            case(title, Fading, shapes, lstm(lstm_layer), lstm_reference).twin(lstm(lstm_plain)),
        );

        type Gru = fn(&Input, &Tensor, &Tensor, &Tensor, &Tensor, &Tensor) -> Result<Tensor>;
        let gru = |layer: Gru| {
            move |x: &[Tensor]| {
                let (x, r) = split(x, 1);
                layer(&input(x, r)?, &r[0], &r[1], &r[2], &r[3], &r[4])
            }
        };
        let (shapes, title) = (sequence(3, 1, dense), name("gru", "gru of ids"));
        all.push(case(title, Fading, shapes, gru(gru_layer), gru_reference).twin(gru(gru_plain)));

        type Rnn =
            fn(&Input, Nonlinearity, &Tensor, &Tensor, &Tensor, &Tensor, &Tensor) -> Result<Tensor>;
        let rnn = |layer: Rnn, f: Nonlinearity| {
            move |x: &[Tensor]| {
                let (x, r) = split(x, 1);
                layer(&input(x, r)?, f, &r[0], &r[1], &r[2], &r[3], &r[4])
            }
        };
        for (f, slope, title) in [
            (Nonlinearity::Tanh, f64::tanh as fn(f64) -> f64, name("rnn tanh", "rnn tanh of ids")),
            (Nonlinearity::Relu, |x| x.max(0.0), name("rnn relu", "rnn relu of ids")),
        ] {
            let reference = move |x: &[Array]| {
                run(x, 1, |from_x, from_h, _| vec![add(from_x, from_h).map(slope)])
            };
            let shapes = sequence(1, 1, dense);
            all.push(
                case(title, Fading, shapes, rnn(rnn_layer, f), reference).twin(rnn(rnn_plain, f)),
            );
        }
    }
    all
}
