//! Operations that pass over memory once, on every tier of this machine: GB/s of the least traffic
//! (inputs read once, results written once) beside a copy of the same size on the same tier.
//!
//! `cargo bench --bench elementwise -- gelu` times some; `cargo bench --bench elementwise -- --test`
//! runs each once (the smoke run of CI). Names are `<operation>/<rows>x<cols>/<tier>`; one thread.
//! `benches/operations.rs` times the same through the graph, at the shapes of the tests. A copy's
//! bytes a second bound what streams from memory; a long polynomial is bound by its arithmetic.

use std::hint::black_box;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput};
use etude::bench::aligned::Aligned;
use etude_kernels::activation::{
    Activation, activation_backward, bias_activation_backward, bias_activation_forward,
};
use etude_kernels::batch_norm::{batch_norm_backward, batch_norm_forward};
use etude_kernels::elementwise::{Unary, copy_forward, unary_forward};
use etude_kernels::embedding::{embedding_backward, embedding_forward};
use etude_kernels::group_norm::{Groups, group_norm_backward, group_norm_forward};
use etude_kernels::isa::{self, Isa};
use etude_kernels::norm::{layer_norm_backward, layer_norm_forward};
use etude_kernels::optim::{AdamStep, Part, adam_all};
use etude_kernels::philox;
use etude_kernels::softmax::{cross_entropy_forward, log_softmax_forward, softmax_forward};

mod support;

/// Rows and columns: in cache, past it, and a width of no lane.
const SHAPES: &[[usize; 2]] = &[[256, 512], [16384, 1024], [509, 387]];
const EPS: f32 = 1e-5;
/// Channels of the norms over channels; each row is one element of the batch.
const CHANNELS: usize = 3;
/// Rows of the table of the embedding: a vocabulary of events.
const VOCAB: usize = 388;

/// Operands of one shape, `[rows, cols]` where nothing else is said.
struct Operands {
    rows: usize,
    cols: usize,
    x: Aligned<f32>,
    d_y: Aligned<f32>,
    y: Aligned<f32>,
    /// What an optimizer keeps.
    kept: [Aligned<f32>; 2],
    /// `[cols]`: weight, bias and their gradients.
    row: [Aligned<f32>; 4],
    /// `[max(rows, CHANNELS)]`: statistics, losses.
    column: [Aligned<f32>; 2],
    /// `[VOCAB, cols]`: a table and its gradient.
    table: [Aligned<f32>; 2],
    /// `[rows]`
    ids: Vec<u32>,
}

fn random(stream: u32, len: usize) -> Aligned<f32> {
    let mut numbers = Aligned::filled(0.0, len);
    philox::uniform(&mut numbers, 0, stream, 0);
    numbers.iter_mut().for_each(|x| *x = *x * 4.0 - 2.0);
    numbers
}

impl Operands {
    fn new(rows: usize, cols: usize) -> Operands {
        let zeros = |len| Aligned::filled(0.0, len);
        let n = rows * cols;
        Operands {
            rows,
            cols,
            x: random(1, n),
            d_y: random(2, n),
            y: random(3, n),
            kept: [zeros(n), zeros(n)],
            row: [random(4, cols), random(5, cols), zeros(cols), zeros(cols)],
            column: [Aligned::filled(0.5, rows.max(CHANNELS)), zeros(rows.max(CHANNELS))],
            table: [random(6, VOCAB * cols), zeros(VOCAB * cols)],
            ids: (0..rows).map(|r| (r * 37 % VOCAB.min(cols)) as u32).collect(),
        }
    }

    /// Sizes of the norms over channels: `[rows, CHANNELS, space]`, as far as whole channels go.
    fn space(&self) -> usize {
        self.cols / CHANNELS
    }

    /// One group of all channels.
    fn groups(&self) -> Groups {
        Groups { channels: CHANNELS, groups: 1, space: self.space() }
    }
}

/// An operation: its name, the arrays of `[rows, cols]` that it reads and writes, and its call.
type Operation = (&'static str, usize, fn(&mut Operands));

const OPERATIONS: &[Operation] = &[
    ("copy", 2, |o| copy_forward(&o.x, &mut o.y)),
    ("gelu", 2, |o| unary_forward(Unary::Gelu, &o.x, &mut o.y)),
    ("gelu-gradient", 3, |o| activation_backward(Activation::Gelu, &o.x, &o.d_y, &mut o.y)),
    ("gelu-tanh", 2, |o| unary_forward(Unary::GeluTanh, &o.x, &mut o.y)),
    ("silu", 2, |o| unary_forward(Unary::Silu, &o.x, &mut o.y)),
    ("tanh", 2, |o| unary_forward(Unary::Tanh, &o.x, &mut o.y)),
    ("sigmoid", 2, |o| unary_forward(Unary::Sigmoid, &o.x, &mut o.y)),
    ("exp", 2, |o| unary_forward(Unary::Exp, &o.x, &mut o.y)),
    ("bias-gelu-residual", 3, |o| {
        bias_activation_forward(Activation::Gelu, &o.x, &o.row[0], Some(&o.d_y), &mut o.y);
    }),
    ("bias-gelu-gradient", 3, |o| {
        let [bias, _, d_bias, _] = &mut o.row;
        bias_activation_backward(Activation::Gelu, &o.x, bias, &o.d_y, &mut o.y, d_bias);
    }),
    ("softmax", 2, |o| softmax_forward(&o.x, &mut o.y, o.cols)),
    ("log-softmax", 2, |o| log_softmax_forward(&o.x, &mut o.y, o.cols)),
    ("cross-entropy", 2, |o| {
        let losses = &mut o.column[0][..o.rows];
        cross_entropy_forward(&o.x, &o.ids, losses, &mut o.y, 1.0 / o.rows as f32, o.cols);
    }),
    ("layer-norm", 2, |o| {
        let [mean, rstd] = &mut o.column;
        let (mean, rstd) = (&mut mean[..o.rows], &mut rstd[..o.rows]);
        layer_norm_forward(&o.x, &o.row[0], &o.row[1], &mut o.y, mean, rstd, EPS);
    }),
    ("layer-norm-gradient", 3, |o| {
        let [weight, _, d_w, d_b] = &mut o.row;
        let (mean, rstd) = (&o.column[0][..o.rows], &o.column[1][..o.rows]);
        layer_norm_backward(&o.x, weight, mean, rstd, &o.d_y, &mut o.y, d_w, d_b);
    }),
    ("batch-norm", 2, |o| {
        let (space, len) = (o.space(), o.rows * CHANNELS * o.space());
        let [mean, var] = &mut o.column;
        let (weight, bias) = (&o.row[0][..CHANNELS], &o.row[1][..CHANNELS]);
        let (mean, var) = (&mut mean[..CHANNELS], &mut var[..CHANNELS]);
        batch_norm_forward(&o.x[..len], weight, bias, &mut o.y[..len], mean, var, EPS, space);
    }),
    ("batch-norm-gradient", 3, |o| {
        let (space, len) = (o.space(), o.rows * CHANNELS * o.space());
        let [weight, _, d_w, d_b] = &mut o.row;
        let (mean, var) = (&o.column[0][..CHANNELS], &o.column[1][..CHANNELS]);
        let (d_w, d_b) = (&mut d_w[..CHANNELS], &mut d_b[..CHANNELS]);
        let (x, d_y, weight) = (&o.x[..len], &o.d_y[..len], &weight[..CHANNELS]);
        batch_norm_backward(x, weight, mean, var, d_y, &mut o.y[..len], d_w, d_b, EPS, space);
    }),
    ("group-norm", 2, |o| {
        let (s, len) = (o.groups(), o.rows * CHANNELS * o.space());
        let [mean, rstd] = &mut o.column;
        let (weight, bias) = (&o.row[0][..CHANNELS], &o.row[1][..CHANNELS]);
        let (mean, rstd) = (&mut mean[..o.rows], &mut rstd[..o.rows]);
        group_norm_forward(&o.x[..len], weight, bias, &mut o.y[..len], mean, rstd, EPS, s);
    }),
    ("group-norm-gradient", 3, |o| {
        let (s, len) = (o.groups(), o.rows * CHANNELS * o.space());
        let [weight, _, d_w, d_b] = &mut o.row;
        let (mean, rstd) = (&o.column[0][..o.rows], &o.column[1][..o.rows]);
        let (d_w, d_b) = (&mut d_w[..CHANNELS], &mut d_b[..CHANNELS]);
        let (x, d_y, weight) = (&o.x[..len], &o.d_y[..len], &weight[..CHANNELS]);
        group_norm_backward(x, weight, mean, rstd, d_y, &mut o.y[..len], d_w, d_b, s);
    }),
    ("embedding", 2, |o| embedding_forward(&o.table[0], &o.ids, None, &mut o.y, 1, o.cols)),
    ("embedding-gradient", 1, |o| {
        embedding_backward(&o.ids, &o.d_y, &mut o.table[1], 1, o.cols);
    }),
    ("dropout", 2, |o| philox::dropout(&o.x, &mut o.y, 0.25, 1, 2, 0)),
    ("adam", 7, |o| {
        let [m, v] = &mut o.kept;
        let s = AdamStep {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            step: 1,
            grad_scale: 1.0,
        };
        adam_all(&mut [Part::adam(&mut o.y, m, v, &o.x)], s);
    }),
];

fn operations(c: &mut Criterion) {
    for &[rows, cols] in SHAPES {
        let mut operands = Operands::new(rows, cols);
        for tier in Isa::available() {
            // A second or two a call, and nothing to learn: it does not wait for memory.
            if tier == Isa::Scalar && rows * cols > 1 << 20 {
                continue;
            }
            isa::force(tier);
            let mut copy = None;
            for (name, arrays, call) in OPERATIONS {
                let bytes = 4 * arrays * rows * cols;
                let mut group = c.benchmark_group(*name);
                group.throughput(Throughput::Bytes(bytes as u64));
                let id = BenchmarkId::new(format!("{rows}x{cols}"), tier.name());
                let best = support::time(&mut group, id, || call(black_box(&mut operands)));
                group.finish();
                let Some(best) = best else { continue };
                let rate = bytes as f64 / best / 1e9;
                if *name == "copy" {
                    copy = Some(rate);
                }
                // Where the copy is not among what is timed, it is measured beside.
                let copy = *copy.get_or_insert_with(|| {
                    let once = |operands: &mut Operands| {
                        let start = Instant::now();
                        copy_forward(&operands.x, black_box(&mut operands.y));
                        start.elapsed().as_secs_f64()
                    };
                    let best = (0..9).map(|_| once(&mut operands)).fold(f64::INFINITY, f64::min);
                    (8 * rows * cols) as f64 / best / 1e9
                });
                let share = 100.0 * rate / copy;
                println!("{:>60}", format!("best {rate:.1} GB/s, {share:.0} % of a copy's"));
            }
        }
    }
}

fn main() {
    support::on_one_thread(200, &[operations]);
}
