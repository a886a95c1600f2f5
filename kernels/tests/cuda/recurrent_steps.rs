//! One step of a layer against f64: dense inputs and rows by ids, all numbers of weights.

use super::{RELU, TANH, U, product};
use crate::cuda::{from_bf16, to_bf16, uniform, wide, worst};
use etude_kernels::cuda::recurrent::step::{self, Input, Packed, Step, StepPrecision};
use etude_kernels::cuda::{DeviceBuffer, Gpu};
use etude_kernels::embedding::NO_ID;
use etude_kernels::recurrent::{Nonlinearity, Sizes};
use etude_kernels::reference::recurrent as reference;
use etude_kernels::step::Cell;

/// Batch, inputs, hidden.
const SHAPES: [(usize, usize, usize); 5] =
    [(1, 1, 1), (1, 40, 33), (3, 16, 17), (6, 130, 9), (4, 7, 70)];

/// Of a cell, or of the output layer.
pub fn all(gpu: &dyn Gpu, cell: Option<Cell>) -> f64 {
    let mut share = 0.0;
    for precision in [StepPrecision::F32, StepPrecision::Bf16, StepPrecision::Int8] {
        for (i, (batch, inputs, hidden)) in SHAPES.into_iter().enumerate() {
            let cell = if cell == Some(TANH) && i % 2 == 1 { Some(RELU) } else { cell };
            let s = Step { precision, batch, inputs, hidden };
            for by_ids in [false, true] {
                if !by_ids || cell.is_some() {
                    share = f64::max(share, one(gpu, cell, &s, by_ids));
                }
            }
        }
    }
    share
}

/// The weights as the device multiplies them, `w` packed.
fn unpacked(precision: StepPrecision, w: &[f32], k: usize) -> Vec<f32> {
    match precision {
        StepPrecision::F32 => w.to_vec(),
        StepPrecision::Bf16 => from_bf16(&to_bf16(w)),
        StepPrecision::Int8 => {
            let (bytes, scales) = precision.pack(w, w.len() / k, k);
            let rows = bytes.chunks_exact(precision.pitch(k)).zip(&scales);
            rows.flat_map(|(row, scale)| row[..k].iter().map(move |b| f32::from(*b as i8) * scale))
                .collect()
        }
    }
}

fn one(gpu: &dyn Gpu, cell: Option<Cell>, s: &Step, by_ids: bool) -> f64 {
    let Step { precision, batch, inputs, hidden } = *s;
    let gates = cell.map_or(1, Cell::gates);
    let outputs = gates * hidden;
    let scaled = |seed: u64, n: usize, by: usize| -> Vec<f32> {
        uniform(seed, n).into_iter().map(|x| x / (by as f32).sqrt()).collect()
    };
    let (w_ih, w_hh) = (scaled(1, outputs * inputs, inputs), scaled(2, outputs * hidden, hidden));
    let (b_ih, b_hh) = (uniform(3, outputs), uniform(4, outputs));
    let (x, h_prev, c_prev) =
        (uniform(5, batch * inputs), uniform(6, batch * hidden), uniform(7, batch * hidden));
    let ids: Vec<u32> =
        (0..2 * batch).map(|i| if i % 5 == 3 { NO_ID } else { (i * 7 % inputs) as u32 }).collect();
    let table = uniform(8, inputs * outputs);

    let of = |x: &[f32]| DeviceBuffer::from_slice(gpu, x).unwrap();
    let pack = |w: &[f32], k: usize| {
        let (bytes, scales) = precision.pack(w, outputs, k);
        (DeviceBuffer::from_slice(gpu, &bytes).unwrap(), of(&scales))
    };
    let (d_ih, d_hh) = (pack(&w_ih, inputs), pack(&w_hh, hidden));
    let packed = |w: &(DeviceBuffer<u8>, DeviceBuffer<f32>)| Packed {
        w: w.0.ptr(),
        scales: (!w.1.is_empty()).then_some(w.1.ptr()),
    };
    let (d_b, d_b_hh, d_x) = (of(&b_ih), of(&b_hh), of(&x));
    let (d_h, d_c, d_table) = (of(&h_prev), of(&c_prev), of(&table));
    let d_ids = DeviceBuffer::from_slice(gpu, &ids).unwrap();
    let room = || DeviceBuffer::<f32>::poisoned(gpu, batch * hidden).unwrap();
    let (h, c) = (room(), room());
    let input = match by_ids {
        false => Input::Dense { x: d_x.ptr(), w_ih: packed(&d_ih) },
        true => Input::Ids { ids: d_ids.ptr(), a_row: 2, table: d_table.ptr() },
    };
    let (w, b, from, to) = (packed(&d_hh), Some(d_b.ptr()), d_h.ptr(), h.ptr());
    match cell {
        Some(Cell::Lstm) => step::lstm_step(gpu, s, input, w, b, from, d_c.ptr(), to, c.ptr()),
        Some(Cell::Gru) => step::gru_step(gpu, s, input, w, b, d_b_hh.ptr(), from, to),
        Some(Cell::Rnn(f)) => step::rnn_step(gpu, s, input, w, b, from, to, f),
        None => step::linear_step(gpu, s, d_x.ptr(), packed(&d_ih), b, to),
    }
    .unwrap();
    let (h, c) = (h.to_vec().unwrap(), c.to_vec().unwrap());

    let (w_ih, w_hh) = (unpacked(precision, &w_ih, inputs), unpacked(precision, &w_hh, hidden));
    // Sums of at most sqrt(k) and 1 (or two rows of the table), each off by its terms' roundings, and by
    // two more for the scale of int8.
    let root = (inputs as f64).sqrt().max(2.0) + (hidden as f64).sqrt() + 2.0;
    let sum = ((inputs + hidden) as f64 + 6.0) * U * root;
    let one = Sizes { steps: 1, batch: 1, hidden };
    let none = vec![0.0; outputs * hidden];
    let mut share = 0.0;
    for row in 0..batch {
        let at = |x: &[f32], k: usize| x[row * k..(row + 1) * k].to_vec();
        let mut of_x = match by_ids {
            false => product(&w_ih, &at(&x, inputs)),
            true => {
                let mut sums = vec![0.0; outputs];
                for id in ids[2 * row..2 * row + 2].iter().filter(|id| **id != NO_ID) {
                    let from = &table[*id as usize * outputs..(*id as usize + 1) * outputs];
                    sums.iter_mut().zip(from).for_each(|(s, x)| *s += f64::from(*x));
                }
                sums
            }
        };
        of_x.iter_mut().zip(&b_ih).for_each(|(x, b)| *x += f64::from(*b));
        let mut rec = product(&w_hh, &at(&h_prev, hidden));
        let (past, cell_past) = (wide(&at(&h_prev, hidden)), wide(&at(&c_prev, hidden)));
        let got = at(&h, hidden);
        if cell == Some(Cell::Gru) {
            rec.iter_mut().zip(&b_hh).for_each(|(x, b)| *x += f64::from(*b));
        } else if cell.is_some() {
            of_x.iter_mut().zip(&rec).for_each(|(x, rec)| *x += rec);
        }
        let gate = sum / 4.0 + 6.0 * U;
        match cell {
            Some(Cell::Lstm) => {
                let (_, want, want_c) =
                    reference::lstm_forward(&of_x, &none, &past, &cell_past, one);
                // c = f c' + i g with |c'| <= 1, three roundings of at most 2; h = o tanh(c).
                let c_bound = 2.0 * gate + sum + 14.0 * U + 6.0 * U;
                share = f64::max(share, worst("c", &want_c, &at(&c, hidden), |_| c_bound));
                share = f64::max(share, worst("h", &want, &got, |_| c_bound + gate + 15.0 * U));
            }
            Some(Cell::Gru) => {
                let (_, want, _) = reference::gru_forward(&of_x, &none, &rec, &past, one);
                let new = sum + gate * root + 2.0 * root * U + 14.0 * U;
                share = f64::max(
                    share,
                    worst("h", &want, &got, |_| new + 2.0 * (gate + new) + 6.0 * U),
                );
            }
            Some(Cell::Rnn(f)) => {
                let want = reference::rnn_forward(&of_x, &none, &past, f, one);
                let function = if f == Nonlinearity::Tanh { 14.0 * U } else { 0.0 };
                share = f64::max(share, worst("h", &want, &got, |_| sum + function));
            }
            None => share = f64::max(share, worst("y", &of_x, &got, |_| sum)),
        }
    }
    share
}
