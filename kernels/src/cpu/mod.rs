//! Vector code for CPUs: bodies over sixteen lanes, and what they are made of.

pub(crate) mod activation;
pub(crate) mod ahead;
pub(crate) mod attend;
pub(crate) mod batch_norm;
pub(crate) mod bypass;
pub(crate) mod cell_gru;
pub(crate) mod cell_lstm;
pub(crate) mod cell_rnn;
pub(crate) mod dot_int8;
pub(crate) mod lanes;
#[cfg(target_arch = "x86_64")]
pub(crate) mod lanes_avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod lanes_avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod lanes_neon;
mod lanes_scalar;
pub(crate) mod map;
pub(crate) mod math;
pub(crate) mod norm;
pub(crate) mod optim;
pub(crate) mod philox;
pub(crate) mod rows;
pub(crate) mod shared;
pub(crate) mod stream_lines;
pub(crate) mod stream_pack;
pub(crate) mod stream_rows;
pub(crate) mod three;
