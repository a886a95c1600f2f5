//! The kernels on the CPU: the same sources, compiled by g++ against `kernels/cuda/emu`.
//!
//! A block is an OS thread, a CUDA thread a fiber in it. New memory and shared memory are NaN until they
//! are written; a barrier that is missing shows under one of the three [`Schedule`]s. What only a GPU can
//! show: the rounding of approximate functions, weak memory order, speed.

use super::spans::Spans;
use super::{Args, Error, Gpu, Graph, Launch, Properties, Work};
use std::alloc::{Layout, alloc, dealloc};
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::sync::Mutex;
use std::time::Instant;

unsafe extern "C" {
    fn emu_launch(
        name: *const c_char,
        grid: *const c_uint,
        block: *const c_uint,
        shared: usize,
        args: *mut *mut c_void,
        sizes: *const usize,
        count: usize,
        cooperative: c_int,
        schedule: c_int,
    ) -> c_int;
    fn emu_fence(at: *const u8, bytes: usize, closed: c_int);
}

/// Which of the runnable threads of a block goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// The one that has waited longest.
    Fifo = 0,
    /// The newest: one warp runs as far ahead of the others as it can.
    Lifo = 1,
    /// As `Fifo`, from a shuffled start.
    Shuffle = 2,
}

impl Schedule {
    /// All of them.
    pub const ALL: [Schedule; 3] = [Schedule::Fifo, Schedule::Lifo, Schedule::Shuffle];
}

/// Bytes behind every allocation that nobody may touch, and what they hold.
const FENCE: usize = 256;
const FENCE_BYTE: u8 = 0xa5;
const ALIGN: usize = 256;

/// A device that is a CPU.
pub struct Emulator {
    schedule: Schedule,
    properties: Properties,
    spans: Spans,
    /// What is being recorded, if anything is.
    recording: Mutex<Option<Vec<Step>>>,
}

/// One step of a recording.
enum Step {
    Launch { kernel: String, launch: Launch, args: Args },
    Copy { to: u64, from: u64, bytes: usize },
    Memset { to: u64, value: u8, bytes: usize },
}

impl Emulator {
    /// A device with 8 multiprocessors whose blocks run in the given order.
    pub fn new(schedule: Schedule) -> Emulator {
        Emulator::with_sms(schedule, 8)
    }

    /// The same with another number of multiprocessors, which bounds a cooperative grid.
    pub fn with_sms(schedule: Schedule, sms: u32) -> Emulator {
        let properties = Properties {
            name: format!("emulator, {schedule:?}"),
            capability: (9, 0),
            sms,
            shared_bytes: 227 * 1024,
            memory_bytes: 1 << 33,
            l2_bytes: 50 << 20,
        };
        Emulator { schedule, properties, spans: Spans::default(), recording: Mutex::new(None) }
    }

    /// Takes the step into the recording, or gives it back to be done now.
    fn recorded(&self, step: Step) -> Option<Step> {
        match self.recording.lock().expect("no step panics").as_mut() {
            Some(steps) => {
                steps.push(step);
                None
            }
            None => Some(step),
        }
    }

    fn refuse_in_recording(&self, op: &'static str) -> Result<(), Error> {
        match self.recording.lock().expect("no step panics").is_some() {
            true => Err(Error::Driver { op, why: "not within a recording".to_string() }),
            false => Ok(()),
        }
    }

    fn run(&self, step: &Step) -> Result<(), Error> {
        match step {
            Step::Copy { to, from, bytes } => {
                self.spans.check("copy", &[(*to, *bytes), (*from, *bytes)])?;
                // SAFETY: both spans lie within living allocations, as just checked.
                unsafe { std::ptr::copy(*from as *const u8, *to as *mut u8, *bytes) };
                Ok(())
            }
            Step::Memset { to, value, bytes } => {
                self.spans.check("memset", &[(*to, *bytes)])?;
                // SAFETY: the span lies within a living allocation, as just checked.
                unsafe { std::ptr::write_bytes(*to as *mut u8, *value, *bytes) };
                Ok(())
            }
            Step::Launch { kernel, launch, args } => self.run_kernel(kernel, launch, args),
        }
    }

    fn run_kernel(&self, kernel: &str, launch: &Launch, args: &Args) -> Result<(), Error> {
        let refused = |why: String| Error::Launch { kernel: kernel.to_string(), why };
        self.spans.check(kernel, args.spans())?;
        if launch.shared > self.properties.shared_bytes {
            return Err(refused(format!("{} bytes of shared memory", launch.shared)));
        }
        if launch.threads() == 0 || launch.threads() > 1024 {
            return Err(refused(format!("{} threads in a block", launch.threads())));
        }
        let [x, y, z] = launch.grid;
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
            return Err(refused(format!("a grid of {x} x {y} x {z} blocks")));
        }
        let name = CString::new(kernel).map_err(|_| refused("NUL in the name".to_string()))?;
        let (mut pointers, sizes) = (args.pointers(), args.sizes());
        // SAFETY: there is one pointer and one size per parameter, each to a value of that size, and
        // emu_launch compares the sizes with the kernel's own. The spans are allocated; that the kernel
        // keeps within them is what the caller of `launch` promised.
        let verdict = unsafe {
            emu_launch(
                name.as_ptr(),
                launch.grid.as_ptr(),
                launch.block.as_ptr(),
                launch.shared as usize,
                pointers.as_mut_ptr(),
                sizes.as_ptr(),
                sizes.len(),
                c_int::from(launch.cooperative),
                self.schedule as c_int,
            )
        };
        match verdict {
            0 => Ok(()),
            1 => Err(Error::UnknownKernel { name: kernel.to_string() }),
            _ => Err(refused(format!("its parameters are not of the sizes {sizes:?}"))),
        }
    }

    /// The bytes behind the allocation at `address`, and whether they are as they were.
    fn fence_holds(address: u64, bytes: usize) -> bool {
        // SAFETY: `alloc` reserved FENCE bytes behind every allocation, and wrote them.
        let fence = unsafe {
            emu_fence((address as *const u8).add(bytes), FENCE, 0);
            std::slice::from_raw_parts((address as *const u8).add(bytes), FENCE)
        };
        fence.iter().all(|byte| *byte == FENCE_BYTE)
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes + FENCE, ALIGN).expect("less than half the address space")
    }
}

impl Gpu for Emulator {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn alloc(&self, bytes: usize) -> Result<u64, Error> {
        if bytes == 0 {
            return Ok(0);
        }
        if bytes as u64 > self.properties.memory_bytes {
            return Err(Error::OutOfMemory { bytes });
        }
        // SAFETY: the size is not zero.
        let start = unsafe { alloc(Emulator::layout(bytes)) };
        if start.is_null() {
            return Err(Error::OutOfMemory { bytes });
        }
        // SAFETY: `bytes` and FENCE bytes were reserved at `start`.
        unsafe {
            start.write_bytes(0xff, bytes);
            start.add(bytes).write_bytes(FENCE_BYTE, FENCE);
            emu_fence(start.add(bytes), FENCE, 1);
        }
        self.spans.add(start as u64, bytes);
        Ok(start as u64)
    }

    fn free(&self, address: u64) {
        if address == 0 {
            return;
        }
        let bytes = self.spans.remove(address);
        let whole = Emulator::fence_holds(address, bytes);
        // SAFETY: allocated by `alloc` with this layout, and not freed before: it was in the list.
        unsafe { dealloc(address as *mut u8, Emulator::layout(bytes)) };
        if !whole && !std::thread::panicking() {
            panic!("a kernel wrote behind the {bytes} bytes at {address:#x}");
        }
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), Error> {
        self.refuse_in_recording("upload")?;
        self.spans.check("upload", &[(to, bytes.len())])?;
        // SAFETY: the span lies within a living allocation, as just checked.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.refuse_in_recording("download")?;
        self.spans.check("download", &[(from, bytes.len())])?;
        // SAFETY: the span lies within a living allocation, as just checked.
        unsafe {
            std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len());
        };
        Ok(())
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), Error> {
        self.recorded(Step::Copy { to, from, bytes }).map_or(Ok(()), |step| self.run(&step))
    }

    fn memset(&self, to: u64, value: u8, bytes: usize) -> Result<(), Error> {
        self.recorded(Step::Memset { to, value, bytes }).map_or(Ok(()), |step| self.run(&step))
    }

    unsafe fn launch(&self, kernel: &str, launch: &Launch, args: &Args) -> Result<(), Error> {
        let (kernel, launch, args) = (kernel.to_string(), *launch, args.clone());
        self.recorded(Step::Launch { kernel, launch, args }).map_or(Ok(()), |step| self.run(&step))
    }

    fn resident_blocks(&self, _kernel: &str, _launch: &Launch) -> Result<u32, Error> {
        Ok(self.properties.sms)
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(())
    }

    fn time(&self, work: &mut Work) -> Result<f64, Error> {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    fn record(&self, work: &mut Work) -> Result<Box<dyn Graph + '_>, Error> {
        self.refuse_in_recording("record")?;
        *self.recording.lock().expect("no step panics") = Some(Vec::new());
        let done = work();
        let steps = self.recording.lock().expect("no step panics").take().unwrap_or_default();
        done?;
        Ok(Box::new(Recording { device: self, steps }))
    }
}

/// Steps that are run again by [`Graph::launch`].
struct Recording<'a> {
    device: &'a Emulator,
    steps: Vec<Step>,
}

impl Graph for Recording<'_> {
    fn launch(&self) -> Result<(), Error> {
        self.steps.iter().try_for_each(|step| self.device.run(step))
    }
}
