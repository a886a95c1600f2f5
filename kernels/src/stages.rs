//! One fork for work in stages: what a stage reads, the stages before it have written.
//!
//! A token passes through one layer after another, each a product of some microseconds, and a fork
//! for each of them costs as much. So threads come together once, take tasks of a stage, and wait
//! for the rest of it by looking at a counter. Nobody waits for a thread that has not come: a task is
//! anybody's until it is taken, though each thread begins with the ones it had the last time, whose
//! weights its own cache holds.

use crate::threads::{index, parallel_for, threads};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Looks at the counter before a thread lets others run.
const PATIENCE: u32 = 4096;

/// Stages of tasks that run again and again; nothing is allocated while they run.
pub(crate) struct Stages {
    /// Where the tasks of each stage begin, and where the last one ends.
    starts: Vec<usize>,
    /// The round in which each task was taken last.
    taken: Vec<AtomicU32>,
    /// Finished tasks of this round.
    done: AtomicUsize,
    round: u32,
}

impl Stages {
    /// Prepares stages of so many tasks each.
    pub(crate) fn new(tasks: impl IntoIterator<Item = usize>) -> Stages {
        let mut starts = vec![0];
        let mut end = 0;
        for tasks in tasks {
            end += tasks;
            starts.push(end);
        }
        let taken = (0..end).map(|_| AtomicU32::new(0)).collect();
        Stages { starts, taken, done: AtomicUsize::new(0), round: 0 }
    }

    /// Runs `f(stage, tasks)` for all tasks of a stage, on all threads, before those of the next.
    pub(crate) fn run(&mut self, f: impl Fn(usize, Range<usize>) + Sync) {
        let widest = self.starts.windows(2).map(|s| s[1] - s[0]).max().unwrap_or(0);
        let threads = threads().min(widest);
        // From outside of a pool a fork takes longer than most steps, and allocates.
        if threads <= 1 || index().is_none() {
            for (stage, s) in self.starts.windows(2).enumerate() {
                f(stage, 0..s[1] - s[0]);
            }
            return;
        }
        self.round = self.round.wrapping_add(1);
        *self.done.get_mut() = 0;
        let stages = &*self;
        parallel_for(threads, 1, |_| {
            stages.work(index().unwrap_or(0) % threads, threads, &f);
        });
    }

    /// What one thread does.
    fn work(&self, me: usize, threads: usize, f: &(impl Fn(usize, Range<usize>) + Sync)) {
        for (stage, s) in self.starts.windows(2).enumerate() {
            self.wait(s[0]);
            let tasks = s[1] - s[0];
            let (mine, next) = (tasks * me / threads, tasks * (me + 1) / threads);
            // One's own tasks in order, the others' from their far end.
            for task in (mine..tasks.min(next)).chain((next..tasks).rev()).chain((0..mine).rev()) {
                let taken = &self.taken[s[0] + task];
                if taken.load(Ordering::Relaxed) == self.round
                    || taken.swap(self.round, Ordering::Relaxed) == self.round
                {
                    continue;
                }
                // Counted even if `f` panics: else the others would wait for ever.
                let _done = Done(&self.done);
                f(stage, task..task + 1);
            }
        }
    }

    /// Waits until so many tasks are finished.
    fn wait(&self, done: usize) {
        let mut looks = 0u32;
        while self.done.load(Ordering::Acquire) < done {
            looks += 1;
            if looks.is_multiple_of(PATIENCE) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

/// Counts a task when it goes.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        // Release: whoever sees the count sees what the task has written.
        self.0.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::Pool;

    #[test]
    fn every_task_runs_once_and_after_all_of_the_stage_before() {
        for threads in [1, 2, 3, 8] {
            let tasks = [5, 1, 0, 16, 3];
            let mut stages = Stages::new(tasks);
            Pool::new(threads).expect("threads").run(|| {
                for _ in 0..200 {
                    let finished = [const { AtomicUsize::new(0) }; 5];
                    stages.run(|stage, range| {
                        for before in 0..stage {
                            assert_eq!(finished[before].load(Ordering::Relaxed), tasks[before]);
                        }
                        finished[stage].fetch_add(range.len(), Ordering::Relaxed);
                    });
                    let finished = finished.map(AtomicUsize::into_inner);
                    assert_eq!(finished, tasks, "{threads} threads");
                }
            });
        }
    }

    #[test]
    fn nothing_to_do_is_done_at_once() {
        Stages::new([]).run(|_, _| unreachable!("there is no stage"));
        Stages::new([0, 0]).run(|_, tasks| assert!(tasks.is_empty()));
    }
}
