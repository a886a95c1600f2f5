//! Splitting work over threads.
//!
//! Work is cut by its size only, never by the number of threads, so results are the same bits for
//! any number of threads. One fork per big piece of work: a whole sequence, a whole product.

use std::ops::Range;

/// Runs `f` over `0..len` in pieces of at most `grain`, in parallel when a pool has threads to spare.
///
/// The pieces are `0..grain`, `grain..2 * grain`, ...: they do not depend on the number of threads.
pub fn parallel_for(len: usize, grain: usize, f: impl Fn(Range<usize>) + Sync) {
    let grain = grain.max(1);
    #[cfg(feature = "threads")]
    if len > grain && threads() > 1 {
        halve(0, len.div_ceil(grain), &|piece| f(piece * grain..len.min((piece + 1) * grain)));
        return;
    }
    let mut at = 0;
    while at < len {
        let end = (at + grain).min(len);
        f(at..end);
        at = end;
    }
}

/// Runs pieces `from..to`, halving until one is left: a fork that nobody takes up costs
/// nanoseconds, and nothing is allocated.
#[cfg(feature = "threads")]
fn halve(from: usize, to: usize, f: &(impl Fn(usize) + Sync)) {
    if to - from == 1 {
        return f(from);
    }
    let middle = from + (to - from).div_ceil(2);
    rayon::join(|| halve(from, middle, f), || halve(middle, to, f));
}

/// The number of threads that [`parallel_for`] may use here.
#[inline]
pub fn threads() -> usize {
    #[cfg(feature = "threads")]
    return rayon::current_num_threads();
    #[cfg(not(feature = "threads"))]
    1
}

/// Which of a pool's threads this is; `None` outside of one.
#[inline]
pub(crate) fn index() -> Option<usize> {
    #[cfg(feature = "threads")]
    return rayon::current_thread_index();
    #[cfg(not(feature = "threads"))]
    None
}

/// A pool of threads. Long work runs inside [`Pool::run`]: a fork from inside a pool costs
/// nanoseconds, from outside microseconds.
pub struct Pool {
    #[cfg(feature = "threads")]
    pool: rayon::ThreadPool,
}

impl Pool {
    /// Makes a pool of `threads` threads (0: one for each core).
    ///
    /// # Errors
    /// What the system says when it cannot start a thread.
    pub fn new(threads: usize) -> Result<Pool, String> {
        #[cfg(feature = "threads")]
        return rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map(|pool| Pool { pool })
            .map_err(|e| format!("threads: cannot start {threads}: {e}"));
        #[cfg(not(feature = "threads"))]
        {
            let _ = threads;
            Ok(Pool {})
        }
    }

    /// Runs `f` inside the pool and returns what it returns.
    pub fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        #[cfg(feature = "threads")]
        return self.pool.install(f);
        #[cfg(not(feature = "threads"))]
        f()
    }
}
