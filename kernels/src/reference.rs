//! The kernels as a newcomer would write them: the oracle, readable first.

pub mod attention;
pub mod conv;
pub mod elementwise;
pub mod norm;
pub mod optim;
pub mod recurrent;
pub mod rows;
pub mod stream;

use crate::gemm::{MatMut, MatRef};

/// `C = A B (+ bias) (+ C)` by the definition, with sums in f64.
pub fn gemm(a: MatRef, b: MatRef, bias: Option<&[f32]>, c: &mut MatMut, accumulate: bool) {
    for i in 0..a.rows {
        for j in 0..b.cols {
            let mut sum = bias.map_or(0.0, |bias| f64::from(bias[j]));
            if accumulate {
                sum += f64::from(c.data[i * c.row_stride + j]);
            }
            for l in 0..a.cols {
                sum += f64::from(a.data[i * a.row_stride + l * a.col_stride])
                    * f64::from(b.data[l * b.row_stride + j * b.col_stride]);
            }
            c.data[i * c.row_stride + j] = sum as f32;
        }
    }
}
