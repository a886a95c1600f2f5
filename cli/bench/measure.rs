//! How a case is timed: the yardstick's rules, so that its figures and ours may be divided.

use std::time::{Duration, Instant};

/// How long a case is run.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Least number of timed runs.
    pub reps: usize,
    /// Least time of all timed runs.
    pub min_time: Duration,
    /// Time after which three runs are enough.
    pub max_time: Duration,
    /// Time of the runs before the timed ones (at most twice the first run).
    pub warm_time: Duration,
}

/// What the runs of a case took, in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Times {
    /// The very first run.
    pub first: f64,
    /// The timed runs.
    pub wall: Vec<f64>,
    /// Processor time of the timed runs, all threads together; empty where the system does not say.
    pub cpu: Vec<f64>,
}

/// Runs `f` until both the number of runs and the least time are reached, or the most time.
pub fn measure(effort: &Effort, f: &mut (dyn FnMut() + Send)) -> Times {
    let start = Instant::now();
    f();
    let first = start.elapsed();
    let warm = Instant::now();
    while warm.elapsed() < effort.warm_time.min(2 * first) {
        f();
    }
    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    loop {
        let (used, start) = (cpu_seconds(), Instant::now());
        f();
        wall.push(start.elapsed().as_secs_f64());
        cpu.extend(used.zip(cpu_seconds()).map(|(before, after)| after - before));
        let spent = begin.elapsed();
        let enough = wall.len() >= effort.reps && spent >= effort.min_time;
        if enough || (spent >= effort.max_time && wall.len() >= 3) {
            return Times { first: first.as_secs_f64(), wall, cpu };
        }
    }
}

/// The quantile `q` of some numbers, between neighbours in proportion; 0 of none.
pub fn quantile(numbers: &[f64], q: f64) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = q * sorted.len().saturating_sub(1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(a), Some(b)) => a + (b - a) * (at - low as f64),
        _ => 0.0,
    }
}

/// Processor time of this process so far, all threads together.
fn cpu_seconds() -> Option<f64> {
    #[cfg(unix)]
    {
        use rustix::time::{ClockId, clock_gettime};
        let now = clock_gettime(ClockId::ProcessCPUTime);
        Some(now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9)
    }
    #[cfg(not(unix))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let numbers = [4.0, 1.0, 3.0, 2.0];
        assert_eq!([0.0, 0.5, 1.0].map(|q| quantile(&numbers, q)), [1.0, 2.5, 4.0]);
        assert_eq!(quantile(&[7.0], 0.9), 7.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    #[test]
    fn runs_are_counted_and_none_is_lost() {
        let effort = Effort {
            reps: 7,
            min_time: Duration::ZERO,
            max_time: Duration::from_secs(60),
            warm_time: Duration::ZERO,
        };
        let mut runs = 0;
        let times = measure(&effort, &mut || runs += 1);
        assert_eq!((times.wall.len(), runs), (7, 8));
        assert!(times.cpu.is_empty() || times.cpu.len() == 7);
    }
}
