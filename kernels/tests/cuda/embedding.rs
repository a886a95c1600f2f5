//! Checks of the family `embedding`.

use super::Check;

pub const CHECKS: &[Check] = &[];
