//! Checks of the family `random`.

use super::Check;

pub const CHECKS: &[Check] = &[];
