//! Steps of a recurrent network: the bits of its products and cells one after another, on every tier
//! and for any number of threads.

mod support;

use etude_kernels::embedding::NO_ID;
use etude_kernels::gemm::MatRef;
use etude_kernels::recurrent::{
    Nonlinearity, gru_cell_forward, lstm_cell_forward, rnn_cell_forward,
};
use etude_kernels::step::{Cell, StepInput, StepStack, StepWeights};
use etude_kernels::stream::{Precision, StreamedB, stream_forward};
use support::{assert_same, on_every_tier, same_for_any_threads, uniform};

const CELLS: [Cell; 4] =
    [Cell::Lstm, Cell::Gru, Cell::Rnn(Nonlinearity::Tanh), Cell::Rnn(Nonlinearity::Relu)];

/// A layer: `W_ih` `[gates * hidden, inputs]`, `W_hh` `[gates * hidden, hidden]`, both biases.
struct Plain {
    inputs: usize,
    hidden: usize,
    numbers: [Vec<f32>; 4],
}

impl Plain {
    fn new(cell: Cell, inputs: usize, hidden: usize, seed: u64) -> Plain {
        let outputs = cell.gates() * hidden;
        let sizes = [outputs * inputs, outputs * hidden, outputs, outputs];
        let mut seed = seed * 8;
        // Sums of about 1, where the cells have their slopes.
        let size = (3.0 / (inputs + hidden) as f32).sqrt();
        let numbers = sizes.map(|len| {
            seed += 1;
            uniform(seed, len).into_iter().map(|x| x * size).collect()
        });
        Plain { inputs, hidden, numbers }
    }

    fn weights(&self) -> StepWeights<'_> {
        let [w_ih, w_hh, b_ih, b_hh] = &self.numbers;
        let outputs = b_ih.len();
        StepWeights {
            w_ih: MatRef::new(w_ih, outputs, self.inputs).t(),
            w_hh: MatRef::new(w_hh, outputs, self.hidden).t(),
            b_ih,
            b_hh,
        }
    }
}

/// One step of a layer by whole products and the cell's own function.
fn plain_step(
    cell: Cell,
    layer: &Plain,
    precision: Precision,
    input: StepInput,
    h: &mut [f32],
    c: &mut [f32],
) {
    let w = layer.weights();
    let [.., b_ih, b_hh] = &layer.numbers;
    let (outputs, hidden) = (b_ih.len(), layer.hidden);
    let bias: Vec<f32> = match cell {
        Cell::Gru => b_ih.clone(),
        _ => b_ih.iter().zip(b_hh).map(|(ih, hh)| ih + hh).collect(),
    };
    let mut gates = vec![0.0; outputs];
    match input {
        StepInput::Dense(x) => {
            let w_ih = StreamedB::new(w.w_ih, precision);
            stream_forward(x, &w_ih, Some(&bias), &mut gates, false);
        }
        StepInput::Ids(ids) => {
            gates.copy_from_slice(&bias);
            for id in ids.iter().filter(|id| **id != NO_ID) {
                let column = layer.numbers[0].iter().skip(*id as usize).step_by(layer.inputs);
                gates.iter_mut().zip(column).for_each(|(gate, w)| *gate += w);
            }
        }
    }
    let w_hh = StreamedB::new(w.w_hh, precision);
    match cell {
        Cell::Gru => {
            let (mut rec, mut h_n) = (vec![0.0; outputs], vec![0.0; hidden]);
            stream_forward(h, &w_hh, Some(b_hh), &mut rec, false);
            let h_prev = h.to_vec();
            gru_cell_forward(&mut gates, &rec, &h_prev, h, &mut h_n, hidden);
        }
        Cell::Lstm => {
            stream_forward(h, &w_hh, None, &mut gates, true);
            let c_prev = c.to_vec();
            lstm_cell_forward(&mut gates, &c_prev, c, h, hidden);
        }
        Cell::Rnn(f) => {
            stream_forward(h, &w_hh, None, &mut gates, true);
            rnn_cell_forward(&mut gates, f);
            h.copy_from_slice(&gates);
        }
    }
}

/// Sizes around blocks and panels, empty and large ones; more tasks than one in the last.
const SIZES: [(usize, usize, usize); 10] = [
    (0, 1, 1),
    (1, 1, 0),
    (5, 0, 3),
    (3, 15, 17),
    (16, 16, 16),
    (7, 17, 33),
    (40, 33, 64),
    (31, 65, 65),
    (65, 130, 38),
    (130, 200, 300),
];

#[test]
fn a_step_has_the_bits_of_its_products_and_cells_on_every_tier() {
    for (case, (inputs, hidden, outputs)) in SIZES.into_iter().enumerate() {
        let w_out = uniform(50, hidden * outputs);
        let b_out = uniform(51, outputs);
        let w_out = MatRef::new(&w_out, outputs, hidden).t();
        for cell in CELLS {
            let first = Plain::new(cell, inputs, hidden, 1);
            let second = Plain::new(cell, hidden, hidden, 2);
            for precision in Precision::ALL {
                for ids in [true, false] {
                    let layers = [first.weights(), second.weights()];
                    let out = (case % 3 > 0).then_some((w_out, &b_out[..]));
                    let streamed = StreamedB::new(w_out, precision);
                    on_every_tier(|isa| {
                        let mut stack = StepStack::new(cell, &layers, ids, out, precision);
                        let c_len = if cell == Cell::Lstm { hidden } else { 0 };
                        let mut h = [vec![0.0; hidden], vec![0.0; hidden]];
                        let mut c = [vec![0.0; c_len], vec![0.0; c_len]];
                        let what = format!(
                            "{inputs} {hidden} {outputs} {cell:?} {precision:?} ids {ids} on {}",
                            isa.name()
                        );
                        for t in 0..4 {
                            let some = [(t * 7 % inputs.max(1)) as u32, NO_ID, 0];
                            let some = &some[..if inputs == 0 { 0 } else { t % 4 }];
                            let x = uniform(60 + t as u64, inputs);
                            let input = match ids {
                                true => StepInput::Ids(some),
                                false => StepInput::Dense(&x),
                            };
                            plain_step(cell, &first, precision, input, &mut h[0], &mut c[0]);
                            let below = h[0].clone();
                            let x = StepInput::Dense(&below);
                            plain_step(cell, &second, precision, x, &mut h[1], &mut c[1]);
                            let mut want = h[1].clone();
                            if out.is_some() {
                                want = vec![0.0; outputs];
                                stream_forward(&h[1], &streamed, Some(&b_out), &mut want, false);
                            }
                            assert_same(&what, &want, stack.step(input));
                            for l in 0..2 {
                                assert_same(&what, &h[l], stack.h(l));
                                assert_same(&what, &c[l], stack.c(l));
                            }
                        }
                    });
                }
            }
        }
    }
}

#[test]
fn a_step_has_the_same_bits_for_any_number_of_threads() {
    let (inputs, hidden, outputs) = (130, 200, 300);
    let (w_out, b_out) = (uniform(50, hidden * outputs), uniform(51, outputs));
    let out = (MatRef::new(&w_out, outputs, hidden).t(), &b_out[..]);
    for cell in CELLS {
        let layers = [1, 2]
            .map(|seed| Plain::new(cell, if seed == 1 { inputs } else { hidden }, hidden, seed));
        for precision in Precision::ALL {
            on_every_tier(|isa| {
                let what = format!("{cell:?} {precision:?} on {}", isa.name());
                same_for_any_threads(&what, || {
                    let layers = layers.each_ref().map(Plain::weights);
                    let mut stack = StepStack::new(cell, &layers, true, Some(out), precision);
                    (0..30).flat_map(|t| stack.step(StepInput::Ids(&[t * 3])).to_vec()).collect()
                });
            });
        }
    }
}

#[test]
fn a_state_that_was_set_goes_on_as_the_one_that_was_read() {
    let layer = Plain::new(Cell::Lstm, 5, 21, 3);
    let new = || StepStack::new(Cell::Lstm, &[layer.weights()], true, None, Precision::Int8);
    let (mut a, mut b) = (new(), new());
    let first = a.step(StepInput::Ids(&[1])).to_vec();
    b.set_state(0, a.h(0), a.c(0));
    let second = a.step(StepInput::Ids(&[2])).to_vec();
    assert_eq!(b.step(StepInput::Ids(&[2])), second);
    a.reset();
    assert_eq!(a.step(StepInput::Ids(&[1])), first);
}
