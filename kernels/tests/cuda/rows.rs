//! Checks of the family `rows`.

use super::Check;

pub const CHECKS: &[Check] = &[];
