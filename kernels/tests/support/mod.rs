//! What the kernel tests share: numbers to feed in, tiers to run on, distances to measure.
#![allow(dead_code)] // each test program uses a part

use etude_kernels::attention::Mask;
use etude_kernels::isa::{self, Isa};
use etude_kernels::philox;
use etude_kernels::threads::Pool;
use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Uniform numbers in `[-1, 1)`.
pub fn uniform(seed: u64, n: usize) -> Vec<f32> {
    let mut x = vec![0.0; n];
    philox::uniform(&mut x, seed, 0, 0);
    x.iter_mut().for_each(|x| *x = 2.0 * *x - 1.0);
    x
}

pub fn masks() -> Vec<Mask> {
    let mut masks = vec![Mask::Full, Mask::Causal];
    masks.extend([1, 7, 96, 1000].map(|width| Mask::Window { width }));
    let pairs = [(1, 1), (16, 16), (5, 3), (128, 4), (3, 200)];
    masks.extend(pairs.map(|(block, stride)| Mask::Strided { block, stride }));
    masks
}

/// The same numbers in f64.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// The bits of each number, so that NaN equals NaN and 0 differs from -0.
pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

thread_local! {
    static HAS_TURN: Cell<bool> = const { Cell::new(false) };
}

/// The right to say which tier is in use.
struct Turn(#[allow(dead_code)] MutexGuard<'static, ()>); // held, never read

impl Drop for Turn {
    fn drop(&mut self) {
        HAS_TURN.set(false);
    }
}

/// The tier is one for the whole process: tests that pin it take turns. `None` for a test that has it.
fn turn() -> Option<Turn> {
    static TURN: Mutex<()> = Mutex::new(());
    if HAS_TURN.replace(true) {
        return None;
    }
    Some(Turn(TURN.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// Runs `f` once on every tier of this machine, the scalar one first; then restores the tier.
pub fn on_every_tier(mut f: impl FnMut(Isa)) {
    let _turn = turn();
    let before = isa::active();
    for isa in Isa::available() {
        isa::force(isa);
        f(isa);
    }
    isa::force(before);
}

/// Runs `f` on the tier at hand, which no other test changes meanwhile: a kernel whose room depends on
/// the tier must not see another one halfway.
pub fn on_one_tier<R>(f: impl FnOnce() -> R) -> R {
    let _turn = turn();
    f()
}

/// Asserts that `f` gives the same bits on every tier, and returns them.
pub fn same_on_every_tier(what: &str, mut f: impl FnMut() -> Vec<f32>) -> Vec<f32> {
    let mut first: Option<Vec<f32>> = None;
    on_every_tier(|isa| {
        let y = f();
        match &first {
            None => first = Some(y),
            Some(first) => assert_same(&format!("{what} on {}", isa.name()), first, &y),
        }
    });
    first.unwrap_or_default()
}

/// Asserts equal bits; any NaN equals any other.
pub fn assert_same(what: &str, want: &[f32], got: &[f32]) {
    assert_eq!(want.len(), got.len(), "{what}: lengths");
    for (i, (w, g)) in want.iter().zip(got).enumerate() {
        let same = w.to_bits() == g.to_bits() || (w.is_nan() && g.is_nan());
        assert!(same, "{what}: element {i} is {g:e}, should be {w:e}");
    }
}

/// Asserts that `f` gives the same bits in pools of 1, 2, 3 and 8 threads.
pub fn same_for_any_threads(what: &str, f: impl Fn() -> Vec<f32> + Send + Sync) {
    let _turn = turn();
    let mut first: Option<Vec<f32>> = None;
    for threads in [1, 2, 3, 8] {
        let y = Pool::new(threads).expect("threads").run(&f);
        match &first {
            None => first = Some(y),
            Some(first) => assert_same(&format!("{what} with {threads} threads"), first, &y),
        }
    }
}

/// Asserts `|got - want| <= bound` everywhere.
pub fn assert_near(what: &str, want: &[f64], got: &[f32], bound: f64) {
    assert_eq!(want.len(), got.len(), "{what}: lengths");
    for (i, (w, g)) in want.iter().zip(got).enumerate() {
        let error = (w - f64::from(*g)).abs();
        assert!(error <= bound, "{what}: element {i} is {g:e}, should be {w:e} within {bound:e}");
    }
}

/// Every length that a 16-lane body can get wrong, and some long ones.
pub fn lengths() -> impl Iterator<Item = usize> {
    (0..=257).chain([1023, 1024, 1025, 4097])
}

/// A slice of `n` numbers at an odd place, with canaries on both sides.
pub struct Guarded {
    room: Vec<f32>,
    start: usize,
    n: usize,
}

const CANARY: f32 = -12_345.678;

impl Guarded {
    /// Room for `n` numbers that begins `offset` numbers away from an aligned place, at least.
    pub fn new(n: usize, offset: usize) -> Guarded {
        Guarded { room: vec![CANARY; n + offset + 32], start: offset, n }
    }

    /// Room that holds `x`.
    pub fn of(x: &[f32], offset: usize) -> Guarded {
        let mut guarded = Guarded::new(x.len(), offset);
        guarded.get().copy_from_slice(x);
        guarded
    }

    /// The slice.
    pub fn get(&mut self) -> &mut [f32] {
        &mut self.room[self.start..self.start + self.n]
    }

    /// Asserts that nothing around the slice was written, and returns what is in it.
    pub fn finish(self, what: &str) -> Vec<f32> {
        let (before, rest) = self.room.split_at(self.start);
        let (inside, after) = rest.split_at(self.n);
        assert!(before.iter().chain(after).all(|x| *x == CANARY), "{what}: wrote outside");
        inside.to_vec()
    }
}
