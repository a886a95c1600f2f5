//! Recurrent sequences at the sizes of real models, on every tier of this machine: GFLOP/s beside the
//! peak of multiply-adds measured in the same minute.
//!
//! `cargo bench --bench recurrent -- lstm` times some; `cargo bench --bench recurrent -- --test` runs
//! each once (the smoke run of CI). Names are `<cell>-<pass>/<batch>x<steps>x<hidden>/<tier>`; one
//! thread. Forward and backward are the recurrent part alone, step after step; the products with the
//! inputs and those of the weight gradients are in `benches/gemm.rs`. `stream` is one event after
//! another, as in a generation: its bound is the bandwidth of the level that holds the weights.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use etude::bench::aligned::Aligned;
use etude_engine::{Cell, LayerWeights, Precision, RecurrentStep, Tensor};
use etude_kernels::gemm::{MatRef, PackedB};
use etude_kernels::isa::{self, Isa};
use etude_kernels::recurrent::{
    Nonlinearity, Sizes, gru_backward, gru_forward, lstm_backward, lstm_forward, rnn_backward,
    rnn_forward,
};
use etude_kernels::{peak, philox};

mod support;

/// Batch, steps and hidden units: melodies, the large training cases, a size of no lane.
const SEQUENCES: &[[usize; 3]] = &[[128, 64, 128], [64, 32, 512], [16, 32, 512], [24, 32, 200]];
/// Hidden units of a stream: weights in the first, second and third level of the caches.
const STREAMS: &[usize] = &[128, 512];

fn random(stream: u32, len: usize) -> Aligned<f32> {
    let mut numbers = Aligned::filled(0.0, len);
    philox::uniform(&mut numbers, 0, stream, 0);
    // As a layer begins: nothing saturates.
    numbers.iter_mut().for_each(|x| *x = (*x - 0.5) * 0.1);
    numbers
}

/// What is timed: the time of one call, without what has to be put in its place before it.
type Call = Box<dyn FnMut() -> Duration>;

/// The time that `f` takes.
fn timed(f: impl FnOnce()) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}

/// The recurrent weight packed for the forward and for the backward pass.
fn packed(gates: usize, hidden: usize) -> (PackedB, PackedB) {
    let w = random(1, gates * hidden * hidden);
    let w = MatRef::new(&w, gates * hidden, hidden);
    (PackedB::new(w.t()), PackedB::new(w))
}

/// Forward and backward of the Elman network. Both work in place: their operands are copied afresh.
fn rnn(s: Sizes) -> [Call; 2] {
    let bh = s.batch * s.hidden;
    let make = || {
        let (w, w_t) = packed(1, s.hidden);
        (w, w_t, random(2, s.steps * bh), random(3, s.steps * bh), Aligned::filled(0.0, bh))
    };
    let (w, _, x, mut h, h0) = make();
    let forward: Call = Box::new(move || {
        h.copy_from_slice(&x);
        timed(|| rnn_forward(black_box(&mut h), &w, &h0, Nonlinearity::Tanh, s))
    });
    let (_, w_t, h, d, mut d_h0) = make();
    let mut d_h = Aligned::copy(&d);
    let backward: Call = Box::new(move || {
        d_h.copy_from_slice(&d);
        let d_h = black_box(&mut d_h);
        timed(|| rnn_backward(&h, d_h, &w_t, &mut d_h0, Nonlinearity::Tanh, s))
    });
    [forward, backward]
}

fn gru(s: Sizes) -> [Call; 2] {
    let (bh, len) = (s.batch * s.hidden, s.steps * s.batch * s.hidden);
    let (w, w_t) = packed(3, s.hidden);
    let (x, bias, h0) = (random(2, 3 * len), random(3, 3 * s.hidden), Aligned::filled(0.0, bh));
    let (mut gates, mut h, mut h_n) = (random(2, 3 * len), random(4, len), random(5, len));
    let forward: Call = Box::new(move || {
        gates.copy_from_slice(&x);
        let gates = black_box(&mut gates);
        timed(|| gru_forward(gates, &w, &bias, &h0, &mut h, &mut h_n, s))
    });
    let (activated, h0, mut d_h0) =
        (random(2, 3 * len), Aligned::filled(0.0, bh), Aligned::filled(0.0, bh));
    let (h, h_n, d_h) = (random(4, len), random(5, len), random(6, len));
    let (mut gates, mut d_rec) = (random(2, 3 * len), random(2, 3 * len));
    let backward: Call = Box::new(move || {
        gates.copy_from_slice(&activated);
        let gates = black_box(&mut gates);
        timed(|| gru_backward(gates, &mut d_rec, &w_t, &h0, &h, &h_n, &d_h, &mut d_h0, s))
    });
    [forward, backward]
}

fn lstm(s: Sizes) -> [Call; 2] {
    let (bh, len) = (s.batch * s.hidden, s.steps * s.batch * s.hidden);
    let (w, w_t) = packed(4, s.hidden);
    let (x, zero) = (random(2, 4 * len), Aligned::filled(0.0, bh));
    let (mut gates, mut h, mut c) = (random(2, 4 * len), random(3, len), random(4, len));
    let forward: Call = Box::new(move || {
        gates.copy_from_slice(&x);
        let gates = black_box(&mut gates);
        timed(|| lstm_forward(gates, &w, &zero, &zero, &mut h, &mut c, s))
    });
    let (activated, zero) = (random(2, 4 * len), Aligned::filled(0.0, bh));
    let (c, d_h) = (random(4, len), random(5, len));
    let (mut gates, mut d_h0, mut d_c0) = (random(2, 4 * len), random(6, bh), random(7, bh));
    let backward: Call = Box::new(move || {
        gates.copy_from_slice(&activated);
        let gates = black_box(&mut gates);
        timed(|| lstm_backward(gates, &w_t, &zero, &c, &d_h, &[], &mut d_h0, &mut d_c0, s))
    });
    [forward, backward]
}

/// One layer that reads ids, at batch 1, a step at a time.
fn stream(cell: Cell, hidden: usize, precision: Precision) -> Call {
    let tensor = |stream, shape: &[usize]| {
        Tensor::from_slice(&random(stream, shape.iter().product()), shape).expect("a shape")
    };
    let rows = cell.gates() * hidden;
    let (w_ih, w_hh) = (tensor(1, &[rows, 64]), tensor(2, &[rows, hidden]));
    let (b_ih, b_hh) = (tensor(3, &[rows]), tensor(4, &[rows]));
    let layer = LayerWeights { w_ih: &w_ih, w_hh: &w_hh, b_ih: &b_ih, b_hh: &b_hh };
    let mut step = RecurrentStep::for_ids(cell, &[layer], None, 1, precision).expect("a layer");
    let mut id = 0;
    Box::new(move || {
        id = (id + 7) % 64;
        timed(|| drop(black_box(step.step_ids(&[id]).map(|h| h[0]))))
    })
}

/// Times one call and sets its best beside a bound: `work` units of it a call.
fn time(
    c: &mut Criterion,
    group: &str,
    id: BenchmarkId,
    work: Throughput,
    bound: &dyn Fn() -> (f64, &'static str),
    mut call: Call,
) {
    let mut best = f64::INFINITY;
    let mut group = c.benchmark_group(group);
    let amount = match work {
        Throughput::Elements(n) | Throughput::Bytes(n) => n as f64,
        _ => 0.0,
    };
    group.throughput(work).bench_function(id, |bencher| {
        bencher.iter_custom(|rounds| {
            let spent: Duration = (0..rounds).map(|_| call()).sum();
            best = best.min(spent.as_secs_f64() / rounds as f64);
            spent
        });
    });
    group.finish();
    if best.is_finite() {
        let (rate, (bound, unit)) = (amount / best / 1e9, bound());
        println!(
            "{:>60}",
            format!("best {rate:.1} {unit}, {:.0} % of the bound", 100.0 * rate / bound)
        );
    }
}

fn sequences(c: &mut Criterion) {
    for &[batch, steps, hidden] in SEQUENCES {
        let s = Sizes { steps, batch, hidden };
        for (name, gates, make) in
            [("rnn", 1, rnn as fn(Sizes) -> [Call; 2]), ("gru", 3, gru), ("lstm", 4, lstm)]
        {
            for tier in Isa::available() {
                isa::force(tier);
                for (pass, call) in ["forward", "backward"].into_iter().zip(make(s)) {
                    let id = BenchmarkId::new(format!("{batch}x{steps}x{hidden}"), tier.name());
                    let flops = 2 * (batch * steps * gates * hidden * hidden) as u64;
                    let bound = || (peak::fma_gflops_of(tier, 1), "GFLOP/s");
                    let work = Throughput::Elements(flops);
                    time(c, &format!("{name}-{pass}"), id, work, &bound, call);
                }
            }
        }
    }
}

fn streams(c: &mut Criterion) {
    for &hidden in STREAMS {
        for (name, cell) in
            [("rnn", Cell::Rnn(Nonlinearity::Tanh)), ("gru", Cell::Gru), ("lstm", Cell::Lstm)]
        {
            for (precision, width) in [(Precision::F32, 4), (Precision::Bf16, 2)] {
                for tier in Isa::available() {
                    isa::force(tier);
                    let id = BenchmarkId::new(format!("1x1x{hidden}"), tier.name());
                    let bytes = width * cell.gates() * hidden * hidden;
                    let bound = || (peak::bandwidth(bytes, 1).read_gbps, "GB/s");
                    let call = stream(cell, hidden, precision);
                    let group = format!("{name}-stream-{}", precision.name());
                    time(c, &group, id, Throughput::Bytes(bytes as u64), &bound, call);
                }
            }
        }
    }
}

fn main() {
    support::on_one_thread(200, &[sequences, streams]);
}
