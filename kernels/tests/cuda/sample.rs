//! Checks of the family `sample`.

use super::Check;

pub const CHECKS: &[Check] = &[];
