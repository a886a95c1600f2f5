//! The kernels on an NVIDIA GPU.
//!
//! The sources are CUDA C++ in `kernels/cuda`, one file per family. nvcc makes PTX of them, which is
//! checked in and embedded, so a user needs the driver and nothing else; `g++` makes an emulator of the
//! same files (feature `emu`), so that every kernel is tested where there is no GPU. [`Gpu`] is what both
//! can do. A family's launchers are functions over `&dyn Gpu`: same operation, same order of arguments,
//! same names as on the CPU, with device addresses in place of slices.

#[cfg(feature = "cuda")]
mod arena;
mod args;
pub mod attention;
pub mod bench;
mod buffer;
pub mod conv;
pub mod copy;
#[cfg(feature = "cuda")]
pub mod driver;
pub mod embedding;
#[cfg(feature = "emu")]
pub mod emulator;
pub mod gemm;
#[cfg(feature = "cuda")]
mod graph;
pub mod map;
#[cfg(feature = "cuda")]
mod module;
pub mod norm;
pub mod optim;
pub mod peak;
#[cfg(feature = "cuda")]
pub mod probe;
pub mod random;
pub mod recurrent;
pub mod rows;
pub mod sample;
mod spans;

pub use args::{Args, Launch};
pub use buffer::DeviceBuffer;

use std::fmt;

/// What can go wrong between the program and a GPU.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// The driver refused.
    Driver {
        /// What was asked of it.
        op: &'static str,
        /// Its name for the fault.
        why: String,
    },
    /// The device has no room for so many bytes.
    OutOfMemory {
        /// Bytes that were asked for.
        bytes: usize,
    },
    /// No source file has a kernel of this name.
    UnknownKernel {
        /// The name.
        name: String,
    },
    /// A launch that cannot be: sizes of the grid, shared memory, number or sizes of arguments.
    Launch {
        /// The kernel.
        kernel: String,
        /// What is wrong.
        why: String,
    },
    /// An address that no living allocation covers.
    OutOfBounds {
        /// What was asked for.
        op: String,
        /// The first byte.
        address: u64,
        /// How many bytes.
        bytes: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Error::Driver { op, why } => write!(f, "{op}: the GPU's driver says {why}"),
            Error::OutOfMemory { bytes } => write!(f, "alloc: the GPU has no {bytes} bytes left"),
            Error::UnknownKernel { name } => write!(f, "launch: no kernel is named {name}"),
            Error::Launch { kernel, why } => write!(f, "launch of {kernel}: {why}"),
            Error::OutOfBounds { op, address, bytes } => {
                write!(f, "{op}: {bytes} bytes at {address:#x} are not within one allocation")
            }
        }
    }
}

impl std::error::Error for Error {}

/// What a device is and has.
#[derive(Debug, Clone, PartialEq)]
pub struct Properties {
    /// Its name, such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub sms: u32,
    /// Shared memory that one block can have, in bytes.
    pub shared_bytes: u32,
    /// Memory of the whole device, in bytes.
    pub memory_bytes: u64,
    /// Size of the L2 cache in bytes.
    pub l2_bytes: u64,
}

/// Work that was recorded once and can be run again with one call.
pub trait Graph {
    /// Queues all of it, with the addresses and the numbers of the recording.
    ///
    /// # Errors
    /// If the driver refuses, or an allocation of the recording has been freed.
    fn launch(&self) -> Result<(), Error>;
}

/// A piece of work that queues something and may fail.
pub type Work<'a> = dyn FnMut() -> Result<(), Error> + 'a;

/// A device that runs the kernels: a GPU through its driver, or the emulator.
///
/// Work is queued in order on one stream; [`Gpu::download`] and [`Gpu::sync`] wait for it. Addresses are
/// plain numbers, so that an engine can keep them where it likes; every call checks that the bytes it is
/// given lie within one living allocation.
pub trait Gpu: Send + Sync {
    /// What the device is.
    fn properties(&self) -> &Properties;

    /// Reserves memory whose content is unspecified, aligned to 256 bytes. No bytes: address 0.
    ///
    /// # Errors
    /// If the device has not so much left.
    fn alloc(&self, bytes: usize) -> Result<u64, Error>;

    /// Gives back what [`Gpu::alloc`] gave; address 0 is nothing. Work that was queued before still sees it.
    ///
    /// # Panics
    /// If nothing was allocated at `address`.
    fn free(&self, address: u64);

    /// Copies from the host.
    ///
    /// # Errors
    /// If the bytes are not within one allocation, or within a recording.
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), Error>;

    /// Copies to the host, after all work that was queued.
    ///
    /// # Errors
    /// If the bytes are not within one allocation, or within a recording, or if earlier work failed.
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), Error>;

    /// Copies within the device.
    ///
    /// # Errors
    /// If the bytes are not within one allocation each.
    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), Error>;

    /// Sets every byte to `value`.
    ///
    /// # Errors
    /// If the bytes are not within one allocation.
    fn memset(&self, to: u64, value: u8, bytes: usize) -> Result<(), Error>;

    /// Queues one run of a kernel.
    ///
    /// # Errors
    /// If there is no such kernel, a span of `args` is not within one allocation, or the driver refuses.
    ///
    /// # Safety
    /// `args` are the kernel's parameters, one for one, and for the sizes given the kernel touches no
    /// memory outside of the spans in `args`.
    unsafe fn launch(&self, kernel: &str, launch: &Launch, args: &Args) -> Result<(), Error>;

    /// How many blocks of this kernel can run at the same time: the most of a cooperative grid.
    ///
    /// # Errors
    /// If there is no such kernel, or the block cannot be.
    fn resident_blocks(&self, kernel: &str, launch: &Launch) -> Result<u32, Error>;

    /// Waits until all queued work is done.
    ///
    /// # Errors
    /// If some of it failed.
    fn sync(&self) -> Result<(), Error>;

    /// Milliseconds that the device takes for what `work` queues.
    ///
    /// # Errors
    /// Those of `work` and of the device.
    fn time(&self, work: &mut Work) -> Result<f64, Error>;

    /// Records what `work` queues, without running it. Whatever it allocates has to live as long as the
    /// recording is used.
    ///
    /// # Errors
    /// Those of `work`; uploads and downloads cannot be recorded.
    fn record(&self, work: &mut Work) -> Result<Box<dyn Graph + '_>, Error>;
}
