//! Checks of the family `map`.

use super::Check;

pub const CHECKS: &[Check] = &[];
