//! Whether there is a GPU: never a panic, and no more than a look at the driver's library.

use cudarc::driver::{result, sys};
use std::fmt;

/// Why no GPU can be used.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum NoGpu {
    /// The driver's library cannot be loaded.
    NoDriver,
    /// There is a driver, but it finds no device.
    NoDevice,
    /// The driver has this to say.
    Refused(String),
}

impl fmt::Display for NoGpu {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            NoGpu::NoDriver if cfg!(windows) => write!(f, "no NVIDIA driver (nvcuda.dll)"),
            NoGpu::NoDriver => write!(f, "no NVIDIA driver (libcuda.so)"),
            NoGpu::NoDevice => write!(f, "the NVIDIA driver finds no device"),
            NoGpu::Refused(why) => write!(f, "the NVIDIA driver does not start: {why}"),
        }
    }
}

impl std::error::Error for NoGpu {}

/// Counts the devices; at least one if there is no error.
///
/// # Errors
/// What is missing.
pub fn count() -> Result<u32, NoGpu> {
    // SAFETY: looks for a shared library and opens it; nothing in it is called.
    if !unsafe { sys::is_culib_present() } {
        return Err(NoGpu::NoDriver);
    }
    let refused = |error: result::DriverError| match error.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => NoGpu::NoDevice,
        _ => NoGpu::Refused(super::driver::error_name(&error)),
    };
    result::init().map_err(refused)?;
    match result::device::get_count().map_err(refused)? {
        0 => Err(NoGpu::NoDevice),
        count => Ok(count.unsigned_abs()),
    }
}
