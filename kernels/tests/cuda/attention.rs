//! Checks of the family `attention`.

use super::Check;

pub const CHECKS: &[Check] = &[];
