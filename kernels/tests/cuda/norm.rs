//! Checks of the family `norm`.

use super::Check;

pub const CHECKS: &[Check] = &[];
