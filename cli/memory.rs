//! The memory that this program takes.

/// MiB in memory now (`VmRSS`) or at most since [`forget_peak`] (`VmHWM`), where Linux says.
pub fn memory_mb(field: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

/// Starts the peak of the memory anew, so that it is that of the next case.
pub fn forget_peak() {
    // Where the system does not know this, the peak is that of all cases so far.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
