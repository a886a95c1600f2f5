//! What each idea in a kernel buys: the same work by every step of a ladder, from the definition to the
//! kernel.
//!
//! All steps but the last run on one thread: threads are the idea of the last one.

use etude_kernels::ladder::{Step, attention, gemm, lstm};
use etude_kernels::recurrent::Sizes;
use etude_kernels::threads::Pool;

use super::aligned::Aligned;
use super::case::Case;
use super::{Job, Options, Sink, random};
use crate::error::{Error, Result};

/// The kernels that have a ladder.
const FAMILIES: [&str; 3] = ["gemm", "lstm", "attention"];
const MOST: usize = 1 << 16;

/// Refuses a case that cannot be run.
pub fn check(case: &Case) -> Result<()> {
    match case.word("kernel", &FAMILIES, true)? {
        "gemm" => read_gemm(case).map(drop),
        "attention" => read_attention(case).map(drop),
        _ => Lstm::read(case).map(drop),
    }
}

/// Times every step of one ladder.
pub fn run(case: &Case, _: &Options, sink: &mut Sink) -> Result<()> {
    match case.word("kernel", &FAMILIES, true)? {
        "gemm" => run_gemm(read_gemm(case)?, sink),
        "attention" => run_attention(read_attention(case)?, sink),
        _ => Lstm::read(case)?.run(sink),
    }
}

/// Times `steps`, the last one on all threads and the others on one.
fn climb<F: Copy + Sync>(
    steps: &[Step<F>],
    job: Job,
    sink: &mut Sink,
    call: &mut (dyn FnMut(F) + Send),
) -> Result<()> {
    let alone = Pool::new(1).map_err(Error::failed)?;
    for (i, step) in steps.iter().enumerate() {
        let last = i + 1 == steps.len();
        let mut sink = Sink {
            threads: if last { sink.threads } else { 1 },
            pool: if last { sink.pool } else { &alone },
            why: Some(step.why),
            ..*sink
        };
        sink.time(step.name, job, &mut || call(step.run))?;
    }
    Ok(())
}

struct Lstm {
    sizes: Sizes,
    input: usize,
}

impl Lstm {
    fn read(case: &Case) -> Result<Lstm> {
        case.only(&["kernel", "seq", "batch", "hidden", "input"])?;
        let count = |key| case.count(key, MOST);
        let sizes =
            Sizes { steps: count("seq")?, batch: count("batch")?, hidden: count("hidden")? };
        let input = case.count_or("input", sizes.hidden, MOST)?;
        case.holds(sizes.steps.saturating_mul(sizes.batch).saturating_mul(4 * sizes.hidden))?;
        case.holds(4 * sizes.hidden * sizes.hidden.max(input))?;
        case.holds(sizes.steps.saturating_mul(sizes.batch).saturating_mul(input))?;
        Ok(Lstm { sizes, input })
    }

    fn run(&self, sink: &mut Sink) -> Result<()> {
        let (s, input) = (self.sizes, self.input);
        let (rows, gates) = (s.steps * s.batch, 4 * s.hidden);
        // Weights as a layer begins with them: nothing saturates.
        let weight = |stream, width: usize| {
            let mut w = random(stream, gates * width);
            w.iter_mut().for_each(|w| *w /= (width as f32).sqrt());
            w
        };
        let (x, bias) = (random(1, rows * input), random(2, gates));
        let (w_ih, w_hh) = (weight(3, input), weight(4, s.hidden));
        let layer = lstm::Layer { x: &x, w_ih: &w_ih, w_hh: &w_hh, bias: &bias, input };
        let mut h = Aligned::filled(0.0, rows * s.hidden);
        let weights = gates * (input + s.hidden + 1);
        let job = Job {
            unit: "sequences",
            items: s.batch as f64,
            flops: Some(2.0 * (rows * gates) as f64 * (input + s.hidden) as f64),
            bytes: Some(4.0 * (weights + rows * (input + s.hidden)) as f64),
            ..Job::default()
        };
        climb(lstm::STEPS, job, sink, &mut |step| step(layer, &mut h, s))
    }
}

/// `[m, n, k]` of a product.
fn read_gemm(case: &Case) -> Result<[usize; 3]> {
    case.only(&["kernel", "m", "n", "k"])?;
    let sizes = [case.count("m", MOST)?, case.count("n", MOST)?, case.count("k", MOST)?];
    let [m, n, k] = sizes;
    [m * k, k * n, m * n].into_iter().try_for_each(|numbers| case.holds(numbers))?;
    Ok(sizes)
}

fn run_gemm([m, n, k]: [usize; 3], sink: &mut Sink) -> Result<()> {
    let (a, b, mut c) = (random(1, m * k), random(2, k * n), Aligned::filled(0.0, m * n));
    let job = Job {
        flops: Some(2.0 * (m * n) as f64 * k as f64),
        bytes: Some(4.0 * (m * k + k * n + m * n) as f64),
        ..Job::default()
    };
    climb(gemm::STEPS, job, sink, &mut |step| step(&a, &b, &mut c, m, n, k))
}

/// `[heads, steps, head_dim]` of a causal attention.
fn read_attention(case: &Case) -> Result<[usize; 3]> {
    case.only(&["kernel", "heads", "seq", "dim"])?;
    let sizes = [case.count("heads", MOST)?, case.count("seq", MOST)?, case.count("dim", MOST)?];
    let [heads, steps, dim] = sizes;
    case.holds(heads.saturating_mul(steps).saturating_mul(dim))?;
    // The first step keeps a square of scores.
    case.holds(steps * steps)?;
    Ok(sizes)
}

fn run_attention([heads, steps, head_dim]: [usize; 3], sink: &mut Sink) -> Result<()> {
    let len = heads * steps * head_dim;
    let (q, k, v) = (random(1, len), random(2, len), random(3, len));
    let x = attention::Heads { q: &q, k: &k, v: &v, steps, head_dim };
    let mut o = Aligned::filled(0.0, len);
    let pairs = steps as f64 * (steps + 1) as f64 / 2.0;
    let job = Job {
        unit: "sequences",
        flops: Some(4.0 * (heads * head_dim) as f64 * pairs),
        bytes: Some(16.0 * len as f64),
        ..Job::default()
    };
    climb(attention::STEPS, job, sink, &mut |step| step(x, &mut o))
}
