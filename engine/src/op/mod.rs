//! Operations: each with its forward, its vector-Jacobian product and, where it is fused, its plain
//! twin of small operations beside it.

pub mod activation;
pub mod attention;
pub mod batch_norm;
pub mod conv;
pub mod elementwise;
pub mod group_norm;
pub mod index;
pub mod linear;
pub mod matmul;
pub mod norm;
pub mod random;
pub mod recurrent;
pub mod reduce;
pub mod softmax;
pub mod view;
