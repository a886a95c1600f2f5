//! Checks of the family `recurrent`.

use super::Check;

pub const CHECKS: &[Check] = &[];
