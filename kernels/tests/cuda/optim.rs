//! Checks of the family `optim`.

use super::Check;

pub const CHECKS: &[Check] = &[];
