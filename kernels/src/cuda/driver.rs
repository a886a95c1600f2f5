//! A GPU through its driver: one context, one stream, memory from an arena.

use super::arena::{Arena, room};
use super::graph::DriverGraph;
use super::module::Modules;
use super::spans::Spans;
use super::{Args, Error, Gpu, Graph, Launch, Properties, Work, probe};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An NVIDIA GPU.
pub struct Driver {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    properties: Properties,
    modules: Mutex<Modules>,
    arena: Mutex<Arena>,
    /// Whether freed memory goes back to the driver at once, so that its tools see a use after it.
    exact: bool,
    spans: Spans,
    /// The spans of what is being recorded, if anything is.
    recording: Mutex<Option<Vec<(u64, usize)>>>,
}

// SAFETY: the handles belong to the device, not to a thread: every call makes the context current first.
unsafe impl Send for Driver {}
// SAFETY: the driver's calls may come from several threads; what is kept here has locks.
unsafe impl Sync for Driver {}

/// The driver's name for a fault.
pub(super) fn error_name(error: &DriverError) -> String {
    error.error_name().map_or_else(
        |_| format!("{:?}", error.0),
        |name| name.to_string_lossy().trim_start_matches("CUDA_ERROR_").to_lowercase(),
    )
}

/// Turns what the driver says about `op` into an error.
pub(super) fn refused(op: &'static str) -> impl Fn(DriverError) -> Error {
    move |error| Error::Driver { op, why: error_name(&error) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Driver {
    /// Opens the device of this number.
    ///
    /// # Errors
    /// If there is no driver or no such device, or the driver refuses.
    pub fn open(number: u32) -> Result<Driver, Error> {
        let no_gpu = |why: String| Error::Driver { op: "open", why };
        let count = probe::count().map_err(|missing| no_gpu(missing.to_string()))?;
        if number >= count {
            return Err(no_gpu(format!("device {number} of {count}")));
        }
        let device = result::device::get(number.cast_signed()).map_err(refused("open"))?;
        let properties = properties(device)?;
        // SAFETY: the device is one that the driver named.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(refused("context"))?;
        // SAFETY: the context was retained just now and is released when `self` is dropped.
        unsafe { result::ctx::set_current(context) }.map_err(refused("context"))?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(refused("stream"))?;
        Ok(Driver {
            device,
            context,
            stream,
            modules: Mutex::new(Modules::new(properties.capability)),
            properties,
            arena: Mutex::default(),
            exact: std::env::var_os("ETUDE_GPU_EXACT_MEMORY").is_some(),
            spans: Spans::default(),
            recording: Mutex::new(None),
        })
    }

    /// Makes the context the one of this thread.
    pub(super) fn enter(&self) -> Result<(), Error> {
        // SAFETY: the context lives as long as `self`.
        unsafe { result::ctx::set_current(self.context) }.map_err(refused("context"))
    }

    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    pub(super) fn check(&self, op: &str, spans: &[(u64, usize)]) -> Result<(), Error> {
        self.spans.check(op, spans)
    }

    /// Checks the spans of a piece of work, notes them if it is being recorded, and enters the context.
    fn begin(&self, op: &str, spans: &[(u64, usize)]) -> Result<(), Error> {
        self.check(op, spans)?;
        if let Some(recorded) = lock(&self.recording).as_mut() {
            recorded.extend_from_slice(spans);
        }
        self.enter()
    }

    fn refuse_in_recording(&self, op: &'static str) -> Result<(), Error> {
        match lock(&self.recording).is_some() {
            true => Err(Error::Driver { op, why: "not within a recording".to_string() }),
            false => Ok(()),
        }
    }

    /// Gives the blocks of the arena back to the driver.
    fn trim(&self) -> Result<(), Error> {
        for address in lock(&self.arena).drain() {
            // SAFETY: the driver gave this block and nobody uses it; it waits for work that still does.
            unsafe { result::free_sync(address) }.map_err(refused("free"))?;
        }
        Ok(())
    }

    fn event(&self) -> Result<Event, Error> {
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        let event = Event(result::event::create(flags).map_err(refused("event"))?);
        // SAFETY: event and stream are alive and of this context.
        unsafe { result::event::record(event.0, self.stream) }.map_err(refused("event"))?;
        Ok(event)
    }
}

/// A moment on the stream.
struct Event(sys::CUevent);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `Driver::event` and given back once. A failure cannot be mended here.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// Asks the driver what a device is.
pub(super) fn properties(device: sys::CUdevice) -> Result<Properties, Error> {
    let ask = |attribute| {
        // SAFETY: the device is one that the driver named.
        unsafe { result::device::get_attribute(device, attribute) }
            .map(i32::unsigned_abs)
            .map_err(refused("properties"))
    };
    // SAFETY: as above.
    let memory = unsafe { result::device::total_mem(device) }.map_err(refused("properties"))?;
    Ok(Properties {
        name: result::device::get_name(device).map_err(refused("properties"))?,
        capability: (
            ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        sms: ask(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes: ask(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        memory_bytes: memory as u64,
        l2_bytes: u64::from(ask(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
    })
}

impl Gpu for Driver {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn alloc(&self, bytes: usize) -> Result<u64, Error> {
        if bytes == 0 {
            return Ok(0);
        }
        let size = if self.exact { bytes } else { room(bytes) };
        let kept = lock(&self.arena).take(size);
        let address = match kept {
            Some(address) => address,
            None => {
                self.enter()?;
                // SAFETY: the memory is only handed out as an address.
                unsafe { result::malloc_sync(size) }.or_else(|error| match error.0 {
                    sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                        self.trim()?;
                        // SAFETY: as above.
                        unsafe { result::malloc_sync(size) }
                            .map_err(|_| Error::OutOfMemory { bytes })
                    }
                    _ => Err(refused("alloc")(error)),
                })?
            }
        };
        self.spans.add(address, bytes);
        Ok(address)
    }

    fn free(&self, address: u64) {
        if address == 0 {
            return;
        }
        let bytes = self.spans.remove(address);
        if !self.exact {
            // What still runs on it was queued before anything that will get it next.
            lock(&self.arena).give(room(bytes), address);
        } else if self.enter().is_ok() {
            // SAFETY: the driver gave this block, and it waits for work that still uses it.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), Error> {
        self.refuse_in_recording("upload")?;
        self.begin("upload", &[(to, bytes.len())])?;
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the span is allocated; `sync` waits before `bytes` can go away.
        unsafe { result::memcpy_htod_async(to, bytes, self.stream) }.map_err(refused("upload"))?;
        self.sync()
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.refuse_in_recording("download")?;
        self.begin("download", &[(from, bytes.len())])?;
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the span is allocated; `sync` waits before `bytes` is used.
        unsafe { result::memcpy_dtoh_async(bytes, from, self.stream) }
            .map_err(refused("download"))?;
        self.sync()
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), Error> {
        self.begin("copy", &[(to, bytes), (from, bytes)])?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both spans are allocated on this device.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }.map_err(refused("copy"))
    }

    fn memset(&self, to: u64, value: u8, bytes: usize) -> Result<(), Error> {
        self.begin("memset", &[(to, bytes)])?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the span is allocated on this device.
        unsafe { result::memset_d8_async(to, value, bytes, self.stream) }.map_err(refused("memset"))
    }

    unsafe fn launch(&self, kernel: &str, launch: &Launch, args: &Args) -> Result<(), Error> {
        self.begin(kernel, args.spans())?;
        let function = lock(&self.modules).function(kernel, launch.shared)?;
        let mut pointers = args.pointers();
        let [grid, block] = [launch.grid, launch.block].map(|[x, y, z]| (x, y, z));
        let run = match launch.cooperative {
            true => result::launch_cooperative_kernel,
            false => result::launch_kernel,
        };
        // SAFETY: the function is loaded, there is one pointer per parameter, the spans are allocated;
        // the rest is what the caller promised.
        unsafe { run(function, grid, block, launch.shared, self.stream, &mut pointers) }
            .map_err(|e| Error::Launch { kernel: kernel.to_string(), why: error_name(&e) })
    }

    fn resident_blocks(&self, kernel: &str, launch: &Launch) -> Result<u32, Error> {
        self.enter()?;
        let function = lock(&self.modules).function(kernel, launch.shared)?;
        // SAFETY: the function is loaded.
        let on_one = unsafe {
            result::occupancy::max_active_block_per_multiprocessor(
                function,
                launch.threads().cast_signed(),
                launch.shared as usize,
            )
        }
        .map_err(refused("occupancy"))?;
        Ok(on_one.unsigned_abs() * self.properties.sms)
    }

    fn sync(&self) -> Result<(), Error> {
        self.enter()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }.map_err(refused("sync"))
    }

    fn time(&self, work: &mut Work) -> Result<f64, Error> {
        self.refuse_in_recording("time")?;
        self.enter()?;
        let start = self.event()?;
        work()?;
        let end = self.event()?;
        self.sync()?;
        // SAFETY: both events were recorded on the same stream, which has passed them.
        let elapsed = unsafe { result::event::elapsed(start.0, end.0) };
        elapsed.map(f64::from).map_err(refused("time"))
    }

    fn record(&self, work: &mut Work) -> Result<Box<dyn Graph + '_>, Error> {
        self.refuse_in_recording("record")?;
        self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive and not being captured.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(refused("record"))?;
        *lock(&self.recording) = Some(Vec::new());
        let done = work();
        let spans = lock(&self.recording).take().unwrap_or_default();
        self.enter()?;
        // SAFETY: the capture was begun above. It has to end whether the work failed or not.
        let graph = unsafe { result::stream::end_capture(self.stream) };
        done?;
        Ok(Box::new(DriverGraph::new(self, graph.map_err(refused("record"))?, spans)?))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Failures cannot be mended here; the context's end frees what is left.
        if self.enter().is_ok() {
            let _ = self.sync();
            let _ = self.trim();
            // SAFETY: the stream and the context were made by `open` and are given back once.
            unsafe {
                let _ = result::stream::destroy(self.stream);
                let _ = result::primary_ctx::release(self.device);
            }
        }
    }
}
