//! Checks of the family `gemm`.

use super::Check;

pub const CHECKS: &[Check] = &[];
