//! Timed cases of the family `norm`.

use super::{Bench, Error};

/// The cases.
///
/// # Errors
/// Those of the device.
pub fn cases(_bench: &mut Bench) -> Result<(), Error> {
    Ok(())
}
