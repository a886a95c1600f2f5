//! Matrix products at the sizes of real models, on every tier of this machine: GFLOP/s beside the
//! peak of multiply-adds measured in the same run.
//!
//! `cargo bench --bench gemm -- 32x2048x512` times some; `cargo bench --bench gemm -- --test` runs
//! each once (the smoke run of CI). Names are `gemm/<m>x<n>x<k>/<tier>`; one thread. The crates `gemm`
//! and `faer` compute the same products as they lie, in the same run.

use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use etude::bench::aligned::Aligned;
use etude_kernels::gemm::{MatMut, MatRef, PackedB, gemm_forward, gemm_packed_forward};
use etude_kernels::isa::{self, Isa};
use etude_kernels::{peak, philox};

mod support;

#[path = "../kernels/tests/support/products.rs"]
mod products;

/// How the right operand is stored.
#[derive(Clone, Copy, PartialEq)]
enum Right {
    /// Packed beforehand: a recurrent weight that serves many steps.
    Packed,
    /// `[k, n]`.
    Plain,
    /// `[n, k]`: a weight that is used once.
    Transposed,
}

/// Whether the left operand is stored `[m, k]` or `[k, m]`.
const ROWS: bool = false;
const COLUMNS: bool = true;

/// Name of the group, sizes m, n, k, and how the operands are stored.
const CASES: &[(&str, [usize; 3], bool, Right)] = &[
    // One step of a recurrent layer: batch x 4 hidden x hidden.
    ("gemm", [1, 2048, 512], ROWS, Right::Packed),
    ("gemm", [8, 512, 128], ROWS, Right::Packed),
    ("gemm", [32, 1024, 256], ROWS, Right::Packed),
    ("gemm", [32, 2048, 512], ROWS, Right::Packed),
    ("gemm", [128, 512, 128], ROWS, Right::Packed),
    // Training: x W^T, d_x = d_gates W, d_w = d_gates^T x over 4096 tokens.
    ("gemm-x-wt", [4096, 2048, 512], ROWS, Right::Transposed),
    ("gemm-dx", [4096, 512, 2048], ROWS, Right::Plain),
    ("gemm-dw", [2048, 512, 4096], COLUMNS, Right::Plain),
    ("gemm-dw", [512, 128, 8192], COLUMNS, Right::Plain),
    // A linear layer used once, and squares.
    ("gemm-linear", [64, 1024, 256], ROWS, Right::Transposed),
    ("gemm-square", [256, 256, 256], ROWS, Right::Plain),
    ("gemm-square", [1024, 1024, 1024], ROWS, Right::Plain),
];

fn random(stream: u32, len: usize) -> Aligned<f32> {
    let mut numbers = Aligned::filled(0.0, len);
    philox::uniform(&mut numbers, 0, stream, 0);
    numbers.iter_mut().for_each(|x| *x -= 0.5);
    numbers
}

/// Times a product: GFLOP/s of its best sample.
fn time(
    group: &mut BenchmarkGroup<WallTime>,
    [m, n, k]: [usize; 3],
    name: &str,
    product: impl FnMut(),
) -> Option<f64> {
    let best = support::time(group, BenchmarkId::new(format!("{m}x{n}x{k}"), name), product)?;
    Some(2.0 * (m * n * k) as f64 / best / 1e9)
}

/// Times the crates `gemm` and `faer` on `C = A B`: the better of both.
fn others(
    group: &mut BenchmarkGroup<WallTime>,
    size: [usize; 3],
    a: MatRef,
    b: MatRef,
    c: &mut [f32],
) -> Option<f64> {
    let with_gemm = time(group, size, "crate-gemm", || products::gemm(a, b, black_box(&mut *c)));
    let with_faer = time(group, size, "crate-faer", || products::faer(a, b, black_box(&mut *c)));
    with_gemm.into_iter().chain(with_faer).reduce(f64::max)
}

fn all(c: &mut Criterion) {
    for &(name, [m, n, k], columns, right) in CASES {
        let (a, b) = (random(1, m * k), random(2, k * n));
        let left = if columns { MatRef::new(&a, k, m).t() } else { MatRef::new(&a, m, k) };
        let weight = match right {
            Right::Transposed | Right::Packed => MatRef::new(&b, n, k).t(),
            Right::Plain => MatRef::new(&b, k, n),
        };
        let packed = PackedB::new(weight);
        let mut out = Aligned::filled(0.0, m * n);
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
        let size = [m, n, k];
        let better = others(&mut group, size, left, weight, &mut out);
        for tier in Isa::available() {
            isa::force(tier);
            let gflops = time(&mut group, size, tier.name(), || {
                let out = &mut MatMut::new(black_box(&mut out), m, n);
                match right {
                    Right::Packed => gemm_packed_forward(left, &packed, None, out, false),
                    _ => gemm_forward(left, weight, out, false),
                }
            });
            if let Some(gflops) = gflops {
                let share = 100.0 * gflops / peak::fma_gflops_of(tier, 1);
                let mut line = format!("best {gflops:.1} GFLOP/s, {share:.0} % of the peak");
                if let Some(better) = better {
                    line += &format!(", {:.2} x the better crate", gflops / better);
                }
                println!("{line:>80}");
            }
        }
        group.finish();
    }
}

fn main() {
    support::on_one_thread(400, &[support::peaks, all]);
}
