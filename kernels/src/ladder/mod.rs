//! The ladder: each idea that makes a kernel fast, one step at a time.
//!
//! A family (`gemm`, `lstm`, `attention`) is a file here with small functions that all compute the same
//! thing, and a table of them, `STEPS`, from the definition to the kernel itself. Each step adds one
//! idea to the step before. `etude bench ladder` prints what each of them buys on the machine at hand;
//! the tests hold every step against [`mod@crate::reference`].

pub mod gemm;
pub mod lstm;

/// One rung: a function, its name in the table, and the idea that it adds to the rung before.
#[derive(Debug, Clone, Copy)]
pub struct Step<F> {
    /// One or two words: naive, blocked, packed, vectorised, threaded.
    pub name: &'static str,
    /// What this step does that the one before does not, and why that is faster: one sentence.
    pub why: &'static str,
    /// The function. All steps of a family have the same type, inputs before outputs before sizes.
    pub run: F,
}
