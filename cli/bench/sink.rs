//! Jobs are timed here, beside the machine's peak at the same moment.
//!
//! A peak is measured right before and right after the runs that it is compared with: a machine that
//! other programs use is not the same an hour later.

use etude_kernels::threads::Pool;
use etude_kernels::{isa, peak};
use serde_json::json;

use super::case::Case;
use super::measure::{Effort, Times, measure, quantile};
use crate::console::Console;
use crate::error::Result;
use crate::memory;

/// What numbers the products of a job are made of: each format has a peak of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Numbers {
    /// f32 throughout.
    #[default]
    F32,
    /// bf16 factors, f32 sums.
    Bf16,
    /// int8 factors, i32 sums.
    Int8,
}

impl Numbers {
    /// Multiply-adds in registers on all threads, in 1e9 operations a second.
    fn peak(self, threads: usize) -> f64 {
        let plain = || peak::fma_gflops_of(isa::active(), threads);
        match self {
            Numbers::F32 => plain(),
            Numbers::Bf16 => peak::bf16_gflops(threads),
            // Without an instruction for them they are widened.
            Numbers::Int8 => peak::int8_gops(threads).unwrap_or_else(plain),
        }
    }
}

/// One thing to time: how much work a run of it is.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    /// What is counted: calls, elements, tokens, ..
    pub unit: &'static str,
    /// How many of them a run handles.
    pub items: f64,
    /// Floating-point operations of a run (matrix work only).
    pub flops: Option<f64>,
    /// Least memory traffic of a run.
    pub bytes: Option<f64>,
    /// How often a run goes over the same memory: `bytes / sweeps` have to fit into a cache to stay
    /// there.
    pub sweeps: f64,
    /// The numbers of the products.
    pub numbers: Numbers,
}

impl Default for Job {
    /// One call with nothing to count.
    fn default() -> Job {
        Job {
            unit: "calls",
            items: 1.0,
            flops: None,
            bytes: None,
            sweeps: 1.0,
            numbers: Numbers::F32,
        }
    }
}

/// Bytes of the largest array that a bandwidth is measured with.
const MOST: f64 = (256u32 << 20) as f64;
/// Operations a byte from which no machine is held up by its memory.
const COMPUTE_BOUND: f64 = 64.0;

/// The least time that the machine at hand needs for a job, and why.
#[derive(Debug, Clone, Copy, Default)]
struct Bound {
    /// Peak of the numbers at hand, where the job has operations.
    gflops: Option<f64>,
    /// Bandwidth of the level that holds the memory, where that may be what limits.
    gbps: Option<f64>,
}

impl Bound {
    /// The share of a bound that a job in `seconds` reaches, and which one: the one that is nearer.
    fn share(self, job: &Job, seconds: f64) -> Option<(f64, &'static str)> {
        let time = |work: Option<f64>, rate: Option<f64>| Some(work? / rate? / 1e9 / seconds);
        let shares =
            [(time(job.flops, self.gflops), "gflops"), (time(job.bytes, self.gbps), "gbps")];
        shares
            .into_iter()
            .filter_map(|(share, name)| Some((share.filter(|s| s.is_finite())?, name)))
            .max_by(|a, b| a.0.total_cmp(&b.0))
    }
}

/// Times jobs and reports them.
#[derive(Clone, Copy)]
pub struct Sink<'a> {
    pub(super) workload: &'static str,
    pub(super) case: &'a Case,
    pub(super) threads: usize,
    pub(super) effort: Effort,
    pub(super) pool: &'a Pool,
    pub(super) console: &'a Console,
    pub(super) base_rss_mb: Option<f64>,
    /// The idea behind what is timed, for steps of a ladder.
    pub(super) why: Option<&'static str>,
}

impl Sink<'_> {
    /// Times `f` and reports the figures under the name of `implementation`.
    ///
    /// # Errors
    /// If nobody reads the output any more.
    pub fn time(
        &mut self,
        implementation: &str,
        job: Job,
        f: &mut (dyn FnMut() + Send),
    ) -> Result<()> {
        let effort = self.effort;
        let peak = |sink: &Sink| job.flops.map(|_| job.numbers.peak(sink.threads));
        let before = peak(self);
        let times = self.pool.run(|| measure(&effort, f));
        // Before the bandwidth is measured: that takes memory too.
        let peak_rss_mb = memory::memory_mb("VmHWM");
        let gflops = before.zip(peak(self)).map(|(before, after)| before.max(after));
        let bound = Bound { gflops, gbps: self.bandwidth(&job) };
        memory::forget_peak();
        self.print(implementation, job, &times, peak_rss_mb, bound)
    }

    /// Reports times that were taken elsewhere.
    ///
    /// # Errors
    /// If nobody reads the output any more.
    pub fn report(
        &mut self,
        implementation: &str,
        job: Job,
        times: &Times,
        peak_rss_mb: Option<f64>,
    ) -> Result<()> {
        self.print(implementation, job, times, peak_rss_mb, Bound::default())
    }

    /// The bandwidth of the memory that a job goes over: matrix work reads its operands, the rest
    /// reads and writes in equal parts. `None` where memory cannot be what limits.
    fn bandwidth(&self, job: &Job) -> Option<f64> {
        let each = (job.bytes? / job.sweeps.max(1.0) / self.threads as f64).min(MOST);
        match job.flops {
            Some(flops) if flops / job.bytes? >= COMPUTE_BOUND => None,
            Some(_) => Some(peak::bandwidth(each as usize, self.threads).read_gbps),
            None => Some(peak::bandwidth((each / 2.0) as usize, self.threads).copy_gbps),
        }
    }

    fn print(
        &self,
        implementation: &str,
        job: Job,
        times: &Times,
        peak_rss_mb: Option<f64>,
        bound: Bound,
    ) -> Result<()> {
        let median = quantile(&times.wall, 0.5);
        let rate = |work: Option<f64>| work.map(|work| work / median / 1e9);
        let share = bound.share(&job, median);
        let mut record = json!({
            "workload": self.workload,
            "impl": implementation,
            "case": self.case.json(),
            "threads": self.threads,
            "median_s": median,
            "p10": quantile(&times.wall, 0.1),
            "p90": quantile(&times.wall, 0.9),
            "min_s": quantile(&times.wall, 0.0),
            "cpu_s": (!times.cpu.is_empty()).then(|| quantile(&times.cpu, 0.5)),
            "reps": times.wall.len(),
            "first_s": times.first,
            "unit": job.unit,
            "per_s": job.items / median,
            "flops": job.flops,
            "gflops": rate(job.flops),
            "bytes": job.bytes,
            "gbps": rate(job.bytes),
            "peak_rss_mb": peak_rss_mb,
            "base_rss_mb": self.base_rss_mb,
            "peak_gflops": bound.gflops,
            "peak_gbps": bound.gbps,
            "peak_share": share.map(|(share, _)| share),
            "bound": share.map(|(_, name)| name),
        });
        if let Some(why) = self.why {
            record["why"] = why.into();
        }
        self.console.report(&record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_that_of_the_nearer_bound() {
        let job = Job { flops: Some(1e9), bytes: Some(1e9), ..Job::default() };
        let bound = Bound { gflops: Some(100.0), gbps: Some(50.0) };
        // A hundredth of a second at the peak, a fiftieth at the bandwidth: the latter is the bound.
        assert_eq!(bound.share(&job, 0.04), Some((0.5, "gbps")));
        assert_eq!(bound.share(&Job { bytes: None, ..job }, 0.04), Some((0.25, "gflops")));
        assert_eq!(bound.share(&Job::default(), 0.04), None);
        assert_eq!(Bound::default().share(&job, 0.04), None);
    }
}
