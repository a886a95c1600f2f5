//! How a kernel is launched: the grid, and its parameters as the driver takes them.

use std::ffi::c_void;

/// Grid, block and shared memory of one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Whether all blocks have to run at the same time, for a barrier over the grid.
    pub cooperative: bool,
}

impl Launch {
    /// A launch without shared memory.
    pub fn new(grid: [u32; 3], block: [u32; 3]) -> Launch {
        Launch { grid, block, shared: 0, cooperative: false }
    }

    /// `blocks` blocks of `threads` threads, along x.
    pub fn linear(blocks: u32, threads: u32) -> Launch {
        Launch::new([blocks, 1, 1], [threads, 1, 1])
    }

    /// With so many bytes of dynamic shared memory.
    pub fn shared(self, bytes: u32) -> Launch {
        Launch { shared: bytes, ..self }
    }

    /// With all blocks at the same time.
    pub fn cooperative(self) -> Launch {
        Launch { cooperative: true, ..self }
    }

    /// Threads of one block.
    pub fn threads(&self) -> u32 {
        self.block.iter().product()
    }
}

/// The parameters of a kernel, in its order.
#[derive(Debug, Clone, Default)]
pub struct Args {
    words: Vec<u64>,
    /// First word and size in bytes of each parameter.
    at: Vec<(usize, usize)>,
    spans: Vec<(u64, usize)>,
}

impl Args {
    /// No parameters yet.
    pub fn new() -> Args {
        Args::default()
    }

    /// A pointer, of which the kernel touches `bytes` bytes.
    pub fn span(mut self, address: u64, bytes: usize) -> Args {
        self.spans.push((address, bytes));
        self.plain(&address)
    }

    /// Names bytes that the kernel touches through a pointer in a struct or in a table, which is no parameter
    /// itself.
    pub fn touches(mut self, address: u64, bytes: usize) -> Args {
        self.spans.push((address, bytes));
        self
    }

    /// A pointer that may be null.
    pub fn optional(self, address: Option<u64>, bytes: usize) -> Args {
        match address {
            Some(address) => self.span(address, bytes),
            None => self.plain(&0u64),
        }
    }

    /// An `int`.
    pub fn i32(self, value: i32) -> Args {
        self.plain(&value)
    }

    /// A `u32`.
    pub fn u32(self, value: u32) -> Args {
        self.plain(&value)
    }

    /// An `i64`.
    pub fn i64(self, value: i64) -> Args {
        self.plain(&value)
    }

    /// A `u64`.
    pub fn u64(self, value: u64) -> Args {
        self.plain(&value)
    }

    /// A `float`.
    pub fn f32(self, value: f32) -> Args {
        self.plain(&value)
    }

    /// A struct that is passed by value, laid out as in C.
    pub fn plain<T: bytemuck::NoUninit>(mut self, value: &T) -> Args {
        let bytes = bytemuck::bytes_of(value);
        self.at.push((self.words.len(), bytes.len()));
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.words.push(u64::from_ne_bytes(word));
        }
        self
    }

    /// The address and the number of bytes of every pointer.
    pub(super) fn spans(&self) -> &[(u64, usize)] {
        &self.spans
    }

    /// The size of every parameter.
    #[cfg(feature = "emu")]
    pub(super) fn sizes(&self) -> Vec<usize> {
        self.at.iter().map(|(_, size)| *size).collect()
    }

    /// One pointer per parameter, valid as long as `self`.
    pub(super) fn pointers(&self) -> Vec<*mut c_void> {
        self.at.iter().map(|(word, _)| (&raw const self.words[*word]).cast_mut().cast()).collect()
    }
}
