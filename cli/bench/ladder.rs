//! What each idea in a kernel buys: the same work by every step of a ladder, from the definition to the
//! kernel.
//!
//! All steps but the last run on one thread: threads are the idea of the last one.

use etude_kernels::ladder::{Step, gemm, lstm};
use etude_kernels::recurrent::Sizes;
use etude_kernels::threads::Pool;

use super::aligned::Aligned;
use super::case::Case;
use super::{Job, Options, Sink, random};
use crate::error::{Error, Result};

/// The kernels that have a ladder.
const FAMILIES: [&str; 2] = ["gemm", "lstm"];
const MOST: usize = 1 << 16;

/// Refuses a case that cannot be run.
pub fn check(case: &Case) -> Result<()> {
    match case.word("kernel", &FAMILIES, true)? {
        "gemm" => Gemm::read(case).map(drop),
        _ => Lstm::read(case).map(drop),
    }
}

/// Times every step of one ladder.
pub fn run(case: &Case, _: &Options, sink: &mut Sink) -> Result<()> {
    match case.word("kernel", &FAMILIES, true)? {
        "gemm" => Gemm::read(case)?.run(sink),
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

struct Gemm {
    m: usize,
    n: usize,
    k: usize,
}

impl Gemm {
    fn read(case: &Case) -> Result<Gemm> {
        case.only(&["kernel", "m", "n", "k"])?;
        let count = |key| case.count(key, MOST);
        let Gemm { m, n, k } = Gemm { m: count("m")?, n: count("n")?, k: count("k")? };
        [m * k, k * n, m * n].into_iter().try_for_each(|numbers| case.holds(numbers))?;
        Ok(Gemm { m, n, k })
    }

    fn run(&self, sink: &mut Sink) -> Result<()> {
        let Gemm { m, n, k } = *self;
        let (a, b) = (random(1, m * k), random(2, k * n));
        let mut c = Aligned::filled(0.0, m * n);
        let job = Job {
            flops: Some(2.0 * (m * n) as f64 * k as f64),
            bytes: Some(4.0 * (m * k + k * n + m * n) as f64),
            ..Job::default()
        };
        climb(gemm::STEPS, job, sink, &mut |step| step(&a, &b, &mut c, m, n, k))
    }
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
