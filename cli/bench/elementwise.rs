//! Operations that are bound by memory: one pass over `[rows, cols]` each.

use etude_kernels::activation::{Activation, bias_activation_forward};
use etude_kernels::elementwise::{Unary, copy_forward, unary_forward};
use etude_kernels::embedding::embedding_forward;
use etude_kernels::norm::layer_norm_forward;
use etude_kernels::optim::{AdamStep, adam};
use etude_kernels::softmax::{cross_entropy_forward, softmax_forward};

use super::aligned::Aligned;
use super::case::Case;
use super::{Job, Options, Sink, random};
use crate::error::Result;

const OPS: [&str; 10] = [
    "copy",
    "softmax",
    "cross_entropy",
    "layernorm",
    "gelu",
    "tanh",
    "sigmoid",
    "bias_gelu_residual",
    "embedding",
    "adam",
];

struct Shape {
    op: &'static str,
    rows: usize,
    cols: usize,
    vocab: usize,
}

fn read(case: &Case) -> Result<Shape> {
    const MOST: usize = 1 << 28;
    let op = case.word("op", &OPS, true)?;
    let mut known = vec!["op", "rows", "cols"];
    match op {
        "embedding" => known.push("vocab"),
        // Ours is always one pass: `fused` names a variant of PyTorch's.
        "adam" => known.push("fused"),
        _ => {}
    }
    case.only(&known)?;
    case.flag("fused", false)?;
    let (rows, cols) = (case.count("rows", MOST)?, case.count("cols", MOST)?);
    let vocab = if op == "embedding" { case.count("vocab", MOST)? } else { 1 };
    case.holds(rows.saturating_mul(cols))?;
    case.holds(vocab.saturating_mul(cols))?;
    Ok(Shape { op, rows, cols, vocab })
}

/// Refuses a case that cannot be run.
pub fn check(case: &Case) -> Result<()> {
    read(case).map(drop)
}

/// Times one case.
pub fn run(case: &Case, _: &Options, sink: &mut Sink) -> Result<()> {
    let Shape { op, rows, cols, vocab } = read(case)?;
    let n = rows * cols;
    let bytes_each = match op {
        "bias_gelu_residual" => 12.0,
        "adam" => 28.0,
        _ => 8.0,
    };
    let job = Job {
        unit: "elements",
        items: n as f64,
        bytes: Some(bytes_each * n as f64),
        ..Job::default()
    };
    let x = random(1, n);
    let ids = |below: usize| -> Vec<u32> {
        random(3, rows).iter().map(|u| ((u + 1.0) / 2.0 * below as f32) as u32).collect()
    };
    // A float below 1 times a large count may round up to it.
    let ids = |below: usize| -> Vec<u32> {
        ids(below).into_iter().map(|id| id.min(below as u32 - 1)).collect()
    };
    let mut y = Aligned::filled(0.0, n);
    match op {
        "copy" => sink.time("etude", job, &mut || copy_forward(&x, &mut y)),
        "softmax" => sink.time("etude", job, &mut || softmax_forward(&x, &mut y, cols)),
        "cross_entropy" => {
            let (targets, mut losses) = (ids(cols), vec![0.0; rows]);
            sink.time("etude", job, &mut || {
                let scale = 1.0 / rows as f32;
                cross_entropy_forward(&x, &targets, &mut losses, &mut y, scale, cols);
            })
        }
        "layernorm" => {
            let (weight, bias) = (random(4, cols), random(5, cols));
            let (mut mean, mut rstd) = (vec![0.0; rows], vec![0.0; rows]);
            sink.time("etude", job, &mut || {
                layer_norm_forward(&x, &weight, &bias, &mut y, &mut mean, &mut rstd, 1e-5);
            })
        }
        "gelu" => sink.time("etude", job, &mut || unary_forward(Unary::Gelu, &x, &mut y)),
        "tanh" => sink.time("etude", job, &mut || unary_forward(Unary::Tanh, &x, &mut y)),
        "sigmoid" => sink.time("etude", job, &mut || unary_forward(Unary::Sigmoid, &x, &mut y)),
        "bias_gelu_residual" => {
            let (bias, residual) = (random(4, cols), random(5, n));
            sink.time("etude", job, &mut || {
                bias_activation_forward(Activation::Gelu, &x, &bias, Some(&residual), &mut y);
            })
        }
        "embedding" => {
            let (ids, table) = (ids(vocab), random(4, vocab * cols));
            sink.time("etude", job, &mut || {
                embedding_forward(&table, &ids, None, &mut y, 1, cols);
            })
        }
        _ => {
            let (mut param, mut m, mut v) =
                (random(4, n), Aligned::filled(0.0, n), Aligned::filled(0.0, n));
            let mut step = 0;
            sink.time("etude", job, &mut || {
                step += 1;
                let constants = AdamStep {
                    lr: 1e-3,
                    beta1: 0.9,
                    beta2: 0.999,
                    eps: 1e-8,
                    weight_decay: 0.0,
                    step,
                    grad_scale: 1.0,
                };
                adam(&mut param, &mut m, &mut v, &x, constants);
            })
        }
    }
}
