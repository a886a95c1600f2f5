//! Checks of the embedding and its gradient.

use super::rows::U;
use super::{Check, uniform, wide, worst};
use etude_kernels::cuda::embedding;
use etude_kernels::cuda::{DeviceBuffer, Gpu};
use etude_kernels::embedding::NO_ID;
use etude_kernels::philox;

pub const CHECKS: &[Check] = &[
    Check { name: "forward", run: forward },
    Check { name: "backward", run: backward },
    Check { name: "backward_gives_the_same_bits", run: same_bits },
];

/// Ids below `vocab`, few of them often, some missing.
fn draw(seed: u64, n: usize, vocab: usize) -> Vec<u32> {
    let mut x = vec![0.0; n];
    philox::uniform(&mut x, seed, 1, 0);
    x.iter()
        .map(|x| if *x > 0.9 { NO_ID } else { ((x / 0.9).powi(3) * vocab as f32) as u32 })
        .map(|id| if id == NO_ID { id } else { id.min(vocab as u32 - 1) })
        .collect()
}

/// Vocabulary, rows, active, width.
const SHAPES: &[[usize; 4]] = &[
    [1, 1, 1, 1],
    [3, 5, 2, 3],
    [7, 300, 1, 33],
    [256, 700, 1, 4],
    [255, 300, 3, 31],
    [1000, 130, 5, 128],
    [70_000, 257, 2, 9],
    [2, 1025, 1, 129],
    [90, 64, 1, 512],
];

fn forward(gpu: &dyn Gpu) -> f64 {
    let mut share = 0.0f64;
    for [vocab, rows, active, width] in SHAPES.iter().copied() {
        let (table, bias) = (uniform(1, vocab * width), uniform(2, width));
        let ids = draw(3, rows * active, vocab);
        let up = |x: &[f32]| DeviceBuffer::from_slice(gpu, x).unwrap();
        let (d_table, d_bias) = (up(&table), up(&bias));
        let d_ids = DeviceBuffer::from_slice(gpu, &ids).unwrap();
        for with in [false, true] {
            let y = DeviceBuffer::<f32>::poisoned(gpu, rows * width).unwrap();
            let b = if with { d_bias.ptr() } else { 0 };
            let (t, i) = (d_table.ptr(), d_ids.ptr());
            embedding::embedding_forward(gpu, t, i, b, y.ptr(), vocab, rows, active, width)
                .unwrap();
            let mut want = vec![0.0; rows * width];
            for (y, ids) in want.chunks_mut(width).zip(ids.chunks(active)) {
                for c in 0..width {
                    let hot = ids.iter().filter(|id| **id != NO_ID);
                    y[c] = hot.map(|id| f64::from(table[*id as usize * width + c])).sum::<f64>()
                        + if with { f64::from(bias[c]) } else { 0.0 };
                }
            }
            // At most `active` additions of sums below their number.
            let bound = (active * (active + 1)) as f64 * U;
            let what = format!("embedding {vocab} {rows} {active} {width}");
            share = share.max(worst(&what, &want, &y.to_vec().unwrap(), |_| bound));
        }
    }
    share
}

fn run_backward(gpu: &dyn Gpu, shape: [usize; 4], ids: &[u32], d_y: &[f32]) -> Vec<f32> {
    let [vocab, rows, active, width] = shape;
    let d_ids = DeviceBuffer::from_slice(gpu, ids).unwrap();
    let d_y = DeviceBuffer::from_slice(gpu, d_y).unwrap();
    let d_table = DeviceBuffer::from_slice(gpu, &vec![0.5f32; vocab * width]).unwrap();
    let bytes = embedding::embedding_backward_scratch(rows, active, width);
    let scratch = DeviceBuffer::<u8>::poisoned(gpu, bytes).unwrap();
    let (i, d, t, s) = (d_ids.ptr(), d_y.ptr(), d_table.ptr(), scratch.ptr());
    embedding::embedding_backward(gpu, i, d, t, s, vocab, rows, active, width).unwrap();
    d_table.to_vec().unwrap()
}

fn backward(gpu: &dyn Gpu) -> f64 {
    let mut share = 0.0f64;
    for shape in SHAPES.iter().copied() {
        let [vocab, rows, active, width] = shape;
        let d_y = uniform(4, rows * width);
        for (k, ids) in [
            draw(3, rows * active, vocab),
            vec![vocab as u32 - 1; rows * active],
            vec![NO_ID; rows * active],
        ]
        .into_iter()
        .enumerate()
        {
            let mut want = vec![0.5; vocab * width];
            let mut terms = vec![1.0; vocab];
            for (ids, d) in ids.chunks(active).zip(d_y.chunks(width)) {
                for id in ids.iter().filter(|id| **id != NO_ID) {
                    let at = *id as usize * width;
                    terms[*id as usize] += 1.0;
                    want[at..at + width].iter_mut().zip(wide(d)).for_each(|(w, d)| *w += d);
                }
            }
            // Runs of 64 one after the other, then those: below 64 + terms / 64 additions of partial sums
            // below the number of terms.
            let tolerance = |i: usize| {
                let n: f64 = terms[i / width];
                n * (n.min(64.0) + n / 64.0 + 2.0) * U
            };
            let what = format!("embedding backward {shape:?} ids {k}");
            let got = run_backward(gpu, shape, &ids, &d_y);
            share = share.max(worst(&what, &want, &got, tolerance));
            let up = |x: &[f32]| DeviceBuffer::from_slice(gpu, x).unwrap();
            let (d, table) = (up(&d_y), up(&vec![0.5; vocab * width]));
            let i = DeviceBuffer::from_slice(gpu, &ids).unwrap();
            let (i, d, t) = (i.ptr(), d.ptr(), table.ptr());
            embedding::embedding_backward_plain(gpu, i, d, t, vocab, rows, active, width).unwrap();
            let tolerance = |i: usize| terms[i / width] * (terms[i / width] + 2.0) * U;
            share = share.max(worst(&what, &want, &table.to_vec().unwrap(), tolerance));
        }
    }
    share
}

fn same_bits(gpu: &dyn Gpu) -> f64 {
    let shape = [50, 2000, 2, 40];
    let (ids, d_y) = (draw(8, 4000, 50), uniform(9, 2000 * 40));
    let first = run_backward(gpu, shape, &ids, &d_y);
    for _ in 0..3 {
        let again = run_backward(gpu, shape, &ids, &d_y);
        assert!(first.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
    0.0
}
