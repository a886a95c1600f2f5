//! Timed cases of every family, for `gpu_bench` and `etude bench`.
//!
//! A family's module has one function, `pub fn cases(bench: &mut Bench) -> Result<(), Error>`: for each case and variant
//! it allocates and fills its buffers, then calls [`Bench::case`] with what to launch.
//!
//! `benches/gpu/compare.py` times PyTorch at the same shapes on the same GPU and joins by name. Names are:
//!
//! | case | shapes |
//! |---|---|
//! | `gemm/bf16 nn/8192x8192x8192` | `m x n x k`; `nn`, `nt`, `tn` (which operand is transposed); `tf32`, `f32` |
//! | `attention/forward causal/b4 h16 s4096 d128` | `backward`; `full`, `relative`; bf16 |
//! | `recurrent/lstm forward bf16/T1024 B16 H768` | `backward`; `gru`, `rnn`; `f32` |
//! | `conv/forward 3x3/1-64x64-48x42 b16` | `data`, `filter`; stride, channels in and out, size of the image; f32 in the name where it is not tf32 |
//! | `rows/softmax forward f32/16384x1024` | `backward`, `log-softmax forward`, `cross-entropy` (with its gradient); `bf16` |
//! | `norm/layer norm forward f32/16384x1024` | `backward`; `bf16` |
//! | `map/gelu f32/16384x1024` | `gelu backward`, `bias, gelu and residual`, `bias and gelu backward` |
//! | `embedding/forward f32/388, 65536x512` | `backward` |
//! | `optim/adam/1 tensors of 67108864` | `adam without shadow` |

pub mod attention;
pub mod conv;
pub mod copy;
pub mod embedding;
pub mod gemm;
pub mod map;
pub mod norm;
pub mod optim;
pub mod peak;
pub mod random;
pub mod recurrent;
pub mod rows;
pub mod sample;

use super::{Error, Gpu, Work};
use std::time::{Duration, Instant};

/// A family's name and its cases.
pub type Family = (&'static str, fn(&mut Bench) -> Result<(), Error>);

/// Every family that has cases.
pub const FAMILIES: &[Family] = &[
    ("copy", copy::cases),
    ("peak", peak::cases),
    ("gemm", gemm::cases),
    ("attention", attention::cases),
    ("recurrent", recurrent::cases),
    ("conv", conv::cases),
    ("rows", rows::cases),
    ("norm", norm::cases),
    ("map", map::cases),
    ("embedding", embedding::cases),
    ("random", random::cases),
    ("optim", optim::cases),
    ("sample", sample::cases),
];

/// What one case took.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// `family/operation/shape`, such as `gemm/bf16 nn/8192x8192x8192`.
    pub case: String,
    /// Which of the kernel's variants, such as `128x128x32`.
    pub variant: String,
    /// The median of several rounds, per run.
    pub milliseconds: f64,
    /// The fastest round, per run.
    pub fastest: f64,
    /// Runs in one round.
    pub runs: u32,
    /// Useful floating-point operations of one run.
    pub flops: f64,
    /// The fewest bytes that one run has to move through device memory.
    pub bytes: f64,
}

/// Runs cases and keeps what they took.
pub struct Bench<'a> {
    /// The device.
    pub gpu: &'a dyn Gpu,
    /// Only cases whose name has this in it are run.
    pub filter: String,
    /// Whether sizes are to be tiny: the cases are tried on the emulator, not timed.
    pub small: bool,
    /// Longest time for the rounds of one case.
    pub budget: Duration,
    /// Called with every record as it comes.
    pub out: &'a mut dyn FnMut(&Record),
}

/// Rounds of which the median is taken.
const ROUNDS: usize = 15;
/// A round is at least this long: the two events of a round cost some microseconds.
const ROUND_MILLISECONDS: f64 = 2.0;

impl<'a> Bench<'a> {
    /// Whether cases of this name are wanted: ask before filling large buffers.
    pub fn wants(&self, case: &str) -> bool {
        case.contains(&self.filter)
    }

    /// Times `work`, which queues one run, if the case is wanted.
    ///
    /// # Errors
    /// Those of `work` and of the device.
    pub fn case(
        &mut self,
        case: &str,
        variant: &str,
        flops: f64,
        bytes: f64,
        work: &mut Work,
    ) -> Result<(), Error> {
        if !self.wants(case) {
            return Ok(());
        }
        if self.small {
            return work();
        }
        // The first run loads the module and raises limits, the second tells how many fit a round.
        work()?;
        self.gpu.sync()?;
        let once = self.gpu.time(work)?.max(1e-4);
        let runs = (ROUND_MILLISECONDS / once).ceil().clamp(1.0, 1000.0) as u32;
        let started = Instant::now();
        let mut rounds = Vec::with_capacity(ROUNDS);
        while rounds.len() < ROUNDS && (rounds.len() < 3 || started.elapsed() < self.budget) {
            let round = self.gpu.time(&mut || (0..runs).try_for_each(|_| work()))?;
            rounds.push(round / f64::from(runs));
        }
        rounds.sort_by(f64::total_cmp);
        (self.out)(&Record {
            case: case.to_string(),
            variant: variant.to_string(),
            milliseconds: rounds[rounds.len() / 2],
            fastest: rounds[0],
            runs,
            flops,
            bytes,
        });
        Ok(())
    }
}

impl Record {
    /// The record as one line of JSON.
    pub fn json(&self) -> String {
        format!(
            "{{\"case\":{:?},\"variant\":{:?},\"ms\":{:.6},\"fastest_ms\":{:.6},\"runs\":{},\
             \"flops\":{:.6e},\"bytes\":{:.6e}}}",
            self.case,
            self.variant,
            self.milliseconds,
            self.fastest,
            self.runs,
            self.flops,
            self.bytes
        )
    }
}
