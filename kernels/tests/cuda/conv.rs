//! Checks of the family `conv`.

use super::Check;

pub const CHECKS: &[Check] = &[];
