//! Tensors, reverse-mode autograd, parameters, optimizers, random numbers, weight files.
//!
//! ```
//! use etude_engine::{Graph, Result, Tensor, grad};
//!
//! fn main() -> Result<()> {
//!     let x = Tensor::from_slice(&[1.0, 2.0, 3.0], &[3])?.requires_grad();
//!     let y = x.mul(&x)?.mul(&x)?.sum_all()?; // the sum of x^3
//!     let d = &grad(&y, &[&x], Graph::Keep)?[0]; // 3 x^2
//!     let dd = &grad(&d.sum_all()?, &[&x], Graph::Drop)?[0]; // 6 x
//!     assert_eq!(d.to_vec(), [3.0, 12.0, 27.0]);
//!     assert_eq!(dd.to_vec(), [6.0, 12.0, 18.0]);
//!     Ok(())
//! }
//! ```
//! Begin with [`autograd`]. A training step runs inside of [`Pool::run`]: a fork from inside of a
//! pool costs nanoseconds, from outside microseconds.
#![forbid(unsafe_code)]

pub mod autograd;
mod device;
mod error;
mod file;
mod infer;
pub mod init;
mod layout;
pub mod memory;
mod op;
mod optim;
mod param;
mod products;
mod rng;
mod schedule;
mod tensor;

pub use autograd::{Grads, Graph, Vjp, grad, no_grad, recompute, vector_jacobian};
pub use device::Device;
pub use error::{Error, Result};
pub use etude_kernels::activation::Activation;
pub use etude_kernels::isa;
pub use etude_kernels::stream::Precision;
pub use etude_kernels::threads::{Pool, threads};
pub use file::{Dtype, Entry, MAX_HEADER, WeightFile, named_parameters, write_weights};
pub use infer::{
    Cell, KeyValueCache, LayerWeights, LinearStep, RecurrentStep, RelativeStep, activation_row,
    attend_row, exp, layer_norm_row, read_in_turn,
};
pub use layout::{Layout, MAX_RANK};
pub use op::attention::{Attention, Mask, attention, attention_plain, self_attention};
pub use op::batch_norm::BatchStatistics;
pub use op::conv::Conv;
pub use op::index::{Ids, NO_ID};
pub use op::recurrent::{
    Attended, Input, Nonlinearity, Stacked, attended_lstm, attended_lstm_plain, gru_layer,
    gru_plain, lstm_layer, lstm_plain, recurrent_stack, rnn_layer, rnn_plain,
};
pub use optim::{Optimizer, Rule};
pub use param::{Module, Param};
pub use products::{Products, products, set_products};
pub use rng::Rng;
pub use schedule::Schedule;
pub use tensor::Tensor;
