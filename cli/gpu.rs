//! GPUs, as the commands see them: which there are, what they can do, or why there is none.

use serde_json::{Value, json};

/// A GPU and what it was measured to do.
pub struct Gpu {
    name: String,
    capability: (u32, u32),
    sms: u32,
    memory_bytes: u64,
    /// Bytes per second of a copy and bf16 operations per second, or why they could not be measured.
    measured: Result<(f64, f64), String>,
}

/// The number of the device that a name such as `cuda` or `cuda:1` means: `None` if it is no such name,
/// an error if there is no such device.
pub fn number(name: &str) -> Option<Result<u32, String>> {
    let number = match name.strip_prefix("cuda")? {
        "" => 0,
        rest => rest.strip_prefix(':')?.parse().ok()?,
    };
    Some(match count() {
        Ok(count) if number < count => Ok(number),
        Ok(count) => Err(format!("no GPU: number {number}, and there are {count} (from 0)")),
        Err(why) => Err(format!("no GPU: {why}")),
    })
}

/// Where a command calculates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// The GPU of this number.
    Cuda(u32),
}

/// Reads the name of a device that is there.
///
/// # Errors
/// If there is none of that name.
pub fn device(name: &str) -> Result<Device, String> {
    match name {
        "cpu" => Ok(Device::Cpu),
        _ => number(name).ok_or("unknown device; use cpu or cuda")?.map(Device::Cuda),
    }
}

/// Every GPU, measured, or why there is none.
pub fn all() -> Result<Vec<Gpu>, String> {
    (0..count()?).map(measure).collect()
}

#[cfg(feature = "cuda")]
fn count() -> Result<u32, String> {
    etude_kernels::cuda::probe::count().map_err(|missing| missing.to_string())
}

#[cfg(not(feature = "cuda"))]
fn count() -> Result<u32, String> {
    Err("this program was built without the feature cuda".to_owned())
}

#[cfg(feature = "cuda")]
fn measure(number: u32) -> Result<Gpu, String> {
    use etude_kernels::cuda::{Gpu as _, driver::Driver, peak};
    let driver = Driver::open(number).map_err(|why| why.to_string())?;
    let properties = driver.properties().clone();
    let measured = peak::measure(&driver)
        .map(|ceilings| (ceilings.copy_bytes_per_second, ceilings.bf16_flops_per_second))
        .map_err(|why| why.to_string());
    Ok(Gpu {
        name: properties.name,
        capability: properties.capability,
        sms: properties.sms,
        memory_bytes: properties.memory_bytes,
        measured,
    })
}

#[cfg(not(feature = "cuda"))]
fn measure(_: u32) -> Result<Gpu, String> {
    count().map(|_| unreachable!("no device is counted"))
}

/// One line for each GPU, or for their absence.
pub fn lines(gpus: &Result<Vec<Gpu>, String>) -> Vec<String> {
    let line = |gpu: &Gpu| {
        let what = format!(
            "{}, compute {}.{}, {} multiprocessors, {:.1} GiB",
            crate::console::clean(&gpu.name),
            gpu.capability.0,
            gpu.capability.1,
            gpu.sms,
            gpu.memory_bytes as f64 / (1u64 << 30) as f64,
        );
        match &gpu.measured {
            Ok((copy, flops)) => format!(
                "{what}; copy {:.2} TB/s, bf16 {:.0} TFLOP/s (mma.sync)",
                copy * 1e-12,
                flops * 1e-12
            ),
            Err(why) => format!("{what}; not measured: {why}"),
        }
    };
    match gpus {
        Ok(gpus) => gpus.iter().map(line).collect(),
        Err(why) => vec![format!("none: {why}")],
    }
}

/// The same for machines to read: a list, or null.
pub fn json(gpus: &Result<Vec<Gpu>, String>) -> Value {
    let one = |gpu: &Gpu| {
        let measured = gpu.measured.as_ref().ok();
        json!({
            "name": gpu.name,
            "compute": format!("{}.{}", gpu.capability.0, gpu.capability.1),
            "multiprocessors": gpu.sms,
            "memory_mib": gpu.memory_bytes >> 20,
            "copy_gbps": measured.map(|m| (m.0 * 1e-9).round()),
            "bf16_gflops": measured.map(|m| (m.1 * 1e-9).round()),
        })
    };
    gpus.as_ref().map_or(Value::Null, |gpus| gpus.iter().map(one).collect())
}
