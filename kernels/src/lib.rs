//! What touches hardware: slices in, slices out.
//!
//! A kernel is a plain function over slices. All of them share one order of arguments: inputs, then
//! outputs, then sizes; shapes stand in the doc comment as `[rows, cols]`, row-major. A family has
//! `<op>_forward` and `<op>_backward`. Each call looks once into the table of the active
//! instruction-set tier ([`isa`]); what runs after that is straight-line vector code. [`mod@reference`]
//! holds the same operations as loops that a newcomer reads first: they are the oracle of the tests.
//!
//! Kernels assert slice lengths and trust the rest; shapes are checked once, in the engine.

pub mod activation;
pub mod attention;
pub mod batch_norm;
pub mod conv;
mod cpu;
#[cfg(any(feature = "cuda", feature = "emu"))]
pub mod cuda;
pub mod elementwise;
pub mod embedding;
pub mod gemm;
pub mod gemm_bf16;
pub mod group_norm;
pub mod isa;
pub mod ladder;
pub mod norm;
pub mod optim;
pub mod pages;
pub mod peak;
pub mod philox;
pub mod recurrent;
pub mod reference;
pub mod softmax;
mod stages;
pub mod step;
pub mod stream;
pub mod threads;
