//! `C = A B`, row-major; `trans_b`: `B` is stored `[n, k]`, as a linear layer's weight is.

use etude_kernels::gemm::{MatMut, MatRef, PackedB, gemm_forward, gemm_packed_forward};
use etude_kernels::gemm_bf16::{gemm_bf16_forward, to_bf16};

use super::aligned::Aligned;
use super::case::Case;
use super::{Job, Numbers, Options, Sink, random};
use crate::error::Result;

struct Shape {
    m: usize,
    k: usize,
    n: usize,
    trans_b: bool,
    bf16: bool,
}

fn read(case: &Case) -> Result<Shape> {
    const MOST: usize = 1 << 24;
    case.only(&["m", "k", "n", "trans_b", "dtype"])?;
    let shape = Shape {
        m: case.count("m", MOST)?,
        k: case.count("k", MOST)?,
        n: case.count("n", MOST)?,
        trans_b: case.flag("trans_b", false)?,
        bf16: case.word("dtype", &["f32", "bf16"], false)? == "bf16",
    };
    case.holds(shape.m * shape.k)?;
    case.holds(shape.k * shape.n)?;
    case.holds(shape.m * shape.n)?;
    Ok(shape)
}

/// Refuses a case that cannot be run.
pub fn check(case: &Case) -> Result<()> {
    read(case).map(drop)
}

/// Times one case.
pub fn run(case: &Case, options: &Options, sink: &mut Sink) -> Result<()> {
    let Shape { m, k, n, trans_b, bf16 } = read(case)?;
    let (a, b) = (random(1, m * k), random(2, k * n));
    // Small products are repeated inside of a timed run, as the yardstick does.
    let flops_once = 2.0 * m as f64 * k as f64 * n as f64;
    let loops = ((2e7 / flops_once) as usize).max(1);
    // Each operand read once, the product written once.
    let bytes_once = (m * k + k * n + m * n) as f64 * if bf16 { 2.0 } else { 4.0 };
    let job = Job {
        unit: "calls",
        items: loops as f64,
        flops: Some(flops_once * loops as f64),
        bytes: Some(bytes_once * loops as f64),
        sweeps: loops as f64,
        numbers: if bf16 { Numbers::Bf16 } else { Numbers::F32 },
    };
    if bf16 {
        let (a, b) = (Aligned::copy(&to_bf16(&a)), Aligned::copy(&to_bf16(&b)));
        let mut c = Aligned::copy(&to_bf16(&vec![0.0; m * n]));
        return sink.time("etude", job, &mut || {
            for _ in 0..loops {
                gemm_bf16_forward(&a, &b, &mut c, m, k, n, trans_b);
            }
        });
    }
    let mut c = Aligned::filled(0.0, m * n);
    let right = if trans_b { MatRef::new(&b, n, k).t() } else { MatRef::new(&b, k, n) };
    sink.time("etude", job, &mut || {
        for _ in 0..loops {
            gemm_forward(MatRef::new(&a, m, k), right, &mut MatMut::new(&mut c, m, n), false);
        }
    })?;
    if options.packed {
        let packed = PackedB::new(right);
        sink.time("etude-packed", job, &mut || {
            for _ in 0..loops {
                let a = MatRef::new(&a, m, k);
                gemm_packed_forward(a, &packed, None, &mut MatMut::new(&mut c, m, n), false);
            }
        })?;
    }
    Ok(())
}
