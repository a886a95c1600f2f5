//! Attention at the sizes of real models, on every tier of this machine: GFLOP/s beside the peak of
//! multiply-adds measured in the same run; cached decode in bytes; and the ladder of its ideas.
//!
//! `cargo bench --bench attention -- causal` times some; `cargo bench --bench attention -- --test` runs
//! each once. Names are `attention-<what>/<batch>x<heads>x<steps>x<head_dim>/<tier>`; one thread.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use etude::bench::aligned::Aligned;
use etude_kernels::attention::{
    Cache, Mask, Relative, Rows, RowsMut, Rule, Sizes, Strides, attention_backward,
    attention_backward_room, attention_forward, attention_step,
};
use etude_kernels::gemm_bf16::to_bf16;
use etude_kernels::isa::{self, Isa};
use etude_kernels::ladder::attention as ladder;
use etude_kernels::{peak, philox};

mod support;

const STRIDED: Mask = Mask::Strided { block: 128, stride: 128 };

/// Name, batch, heads, steps, head_dim, mask, whether with relative logits.
const CASES: &[(&str, [usize; 4], Mask, bool)] = &[
    // GPT, Music Transformer, MuseNet; a small model with odd sizes; an encoder.
    ("causal", [2, 8, 1024, 64], Mask::Causal, false),
    ("causal", [1, 8, 2048, 64], Mask::Causal, false),
    ("causal", [2, 8, 300, 48], Mask::Causal, false),
    ("causal", [1, 4, 1024, 128], Mask::Causal, false),
    ("relative", [2, 8, 1024, 64], Mask::Causal, true),
    ("relative", [1, 4, 777, 80], Mask::Causal, true),
    ("window", [1, 8, 2048, 64], Mask::Window { width: 256 }, false),
    ("strided", [1, 8, 2048, 64], STRIDED, false),
    ("full", [2, 8, 512, 64], Mask::Full, false),
];

fn random(stream: u32, len: usize) -> Aligned<f32> {
    let mut numbers = Aligned::filled(0.0, len);
    philox::uniform(&mut numbers, 0, stream, 0);
    numbers.iter_mut().for_each(|x| *x -= 0.5);
    numbers
}

fn rows(data: &[f32], strides: Strides) -> Rows<'_> {
    Rows { data, strides }
}

fn print(best: Option<f64>, flops: f64, tier: Isa) {
    if let Some(best) = best {
        let gflops = flops / best / 1e9;
        let share = 100.0 * gflops / peak::fma_gflops_of(tier, 1);
        println!("{:>60}", format!("best {gflops:.1} GFLOP/s, {share:.0} % of the peak"));
    }
}

fn sequences(c: &mut Criterion) {
    for &(name, [batch, heads, steps, head_dim], mask, is_relative) in CASES {
        let s = Sizes { batch, heads, queries: steps, keys: steps, head_dim };
        let n = batch * heads * steps * head_dim;
        let strides = Strides::by_head(heads, steps, head_dim);
        let [q, k, v, d_o] = [1, 2, 3, 4].map(|stream| random(stream, n));
        let er = random(5, if is_relative { heads * steps * head_dim } else { 0 });
        let relative = is_relative.then_some(Relative { er: &er, max_len: steps });
        let rule = Rule { mask, scale: 1.0 / (head_dim as f32).sqrt(), dropout: None };
        let mut o = Aligned::filled(0.0, n);
        let mut lse = Aligned::filled(0.0, batch * heads * steps);
        let [mut d_q, mut d_k, mut d_v] = [0.0; 3].map(|zero| Aligned::filled(zero, n));
        let mut d_er = Aligned::filled(0.0, er.len());
        let mut room = Aligned::filled(0.0, attention_backward_room(s, &rule, is_relative));
        // Products of the forward and of the backward, for the pairs that are seen.
        let (ahead, back) = if is_relative { (3.0, 8.0) } else { (2.0, 5.0) };
        let once = 2.0 * (batch * heads * head_dim) as f64 * mask.pairs(steps, steps) as f64;
        let size = format!("{batch}x{heads}x{steps}x{head_dim}");
        for tier in Isa::available() {
            isa::force(tier);
            let mut group = c.benchmark_group(format!("attention-{name}"));
            group.throughput(Throughput::Elements((ahead * once) as u64));
            let best = support::time(&mut group, BenchmarkId::new(&size, tier.name()), || {
                let o = RowsMut { data: black_box(&mut o), strides };
                attention_forward(
                    rows(&q, strides),
                    rows(&k, strides),
                    rows(&v, strides),
                    relative,
                    o,
                    &mut lse,
                    s,
                    &rule,
                );
            });
            print(best, ahead * once, tier);
            group.finish();
            let mut group = c.benchmark_group(format!("attention-{name}-backward"));
            group.throughput(Throughput::Elements((back * once) as u64));
            let best = support::time(&mut group, BenchmarkId::new(&size, tier.name()), || {
                attention_backward(
                    rows(&q, strides),
                    rows(&k, strides),
                    rows(&v, strides),
                    relative,
                    rows(&o, strides),
                    &lse,
                    rows(&d_o, strides),
                    RowsMut { data: black_box(&mut d_q), strides },
                    RowsMut { data: &mut d_k, strides },
                    RowsMut { data: &mut d_v, strides },
                    &mut d_er,
                    &mut room,
                    s,
                    &rule,
                );
            });
            print(best, back * once, tier);
            group.finish();
        }
    }
}

fn steps(c: &mut Criterion) {
    // A cache that fits the second-level cache, and one that fits none.
    for (heads, len, head_dim) in [(8, 128, 64), (8, 16384, 64)] {
        let cache = Cache { heads, capacity: len, len, head_dim };
        let q = random(1, heads * head_dim);
        let [k, v] = [2, 3].map(|stream| random(stream, heads * len * head_dim));
        let (k_short, v_short) = (to_bf16(&k), to_bf16(&v));
        let mut o = vec![0.0; heads * head_dim];
        for tier in Isa::available() {
            isa::force(tier);
            let mut group = c.benchmark_group("attention-step");
            for is_short in [false, true] {
                let bytes = 2 * heads * len * head_dim * if is_short { 2 } else { 4 };
                let format = if is_short { "bf16" } else { "f32" };
                group.throughput(Throughput::Bytes(bytes as u64));
                let id =
                    BenchmarkId::new(format!("{heads}x{len}x{head_dim}/{format}"), tier.name());
                support::time(&mut group, id, || {
                    let o = black_box(&mut o);
                    if is_short {
                        let (k, v) = (&k_short, &v_short);
                        attention_step(&q, k, v, None, o, cache, Mask::Causal, 0.125);
                    } else {
                        attention_step::<f32>(&q, &k, &v, None, o, cache, Mask::Causal, 0.125);
                    }
                });
            }
            group.finish();
        }
    }
}

fn climb(c: &mut Criterion) {
    isa::force(Isa::detect());
    let (heads, steps, head_dim) = (4, 512, 64);
    let [q, k, v] = [1, 2, 3].map(|stream| random(stream, heads * steps * head_dim));
    let x = ladder::Heads { q: &q, k: &k, v: &v, steps, head_dim };
    let mut o = Aligned::filled(0.0, heads * steps * head_dim);
    let flops = 4.0 * (heads * head_dim) as f64 * Mask::Causal.pairs(steps, steps) as f64;
    let mut group = c.benchmark_group("attention-ladder");
    group.throughput(Throughput::Elements(flops as u64));
    for step in ladder::STEPS {
        let best = support::time(&mut group, BenchmarkId::from_parameter(step.name), || {
            (step.run)(x, black_box(&mut o));
        });
        print(best, flops, isa::active());
    }
    group.finish();
}

fn main() {
    support::on_one_thread(400, &[sequences, steps, climb]);
}
