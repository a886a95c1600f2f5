//! Where numbers live.

use crate::memory::Buffer;

/// A machine part that holds tensors and computes on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Device {
    /// The processor and its memory.
    #[default]
    Cpu,
}

/// The memory behind a tensor, shared by all views of it.
#[derive(Clone)]
pub(crate) enum Storage {
    /// Main memory.
    Cpu(Buffer),
}

impl Storage {
    pub fn device(&self) -> Device {
        match self {
            Storage::Cpu(_) => Device::Cpu,
        }
    }

    pub fn cpu(&self) -> &[f32] {
        match self {
            Storage::Cpu(buffer) => buffer,
        }
    }

    pub fn cpu_mut(&mut self) -> &mut [f32] {
        match self {
            Storage::Cpu(buffer) => buffer,
        }
    }
}
