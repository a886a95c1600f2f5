//! `etude info`: the machine, its vector units, and what it can do at most.

use std::fs;
use std::path::Path;

use etude_kernels::gemm_bf16::has_pairs;
use etude_kernels::{isa, isa::Isa, peak};
use serde_json::{Value, json};

use crate::console::Console;
use crate::error::Result;
use crate::gpu;

/// Arguments of `etude info`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  etude info\n  etude info --json")]
pub struct Args {}

/// A cache of the first core.
struct Cache {
    level: u32,
    kind: String,
    kib: u64,
}

/// Multiply-adds of one number format, in 1e9 operations a second.
struct Peak {
    numbers: &'static str,
    /// What does them: a tier, or an instruction.
    by: &'static str,
    one: f64,
    all: f64,
}

/// Measures the multiply-adds of every tier and of the narrow number formats.
fn peaks(cores: usize) -> Vec<Peak> {
    let both = |numbers, by, measure: &dyn Fn(usize) -> f64| Peak {
        numbers,
        by,
        one: tenth(measure(1)),
        all: tenth(measure(cores)),
    };
    let tier = |isa: Isa| both("f32", isa.name(), &|n| peak::fma_gflops_of(isa, n));
    let mut peaks: Vec<Peak> = Isa::available().into_iter().map(tier).collect();
    let by = if has_pairs() { "vdpbf16ps" } else { "widened to f32" };
    peaks.push(both("bf16", by, &peak::bf16_gflops));
    if peak::int8_gops(1).is_some() {
        peaks.push(both("int8", "vpdpbusd", &|n| peak::int8_gops(n).unwrap_or(0.0)));
    }
    peaks
}

/// Says what machine this is.
///
/// # Errors
/// If stdout cannot be written to.
pub fn run(_: &Args, console: &Console) -> Result<()> {
    let cpu = cpu_name().unwrap_or_else(|| "unknown".to_owned());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let caches = caches(Path::new("/sys/devices/system/cpu/cpu0/cache"));
    let memory_mib = memory_mib();
    let features = features();
    let (active, tiers) = (isa::active(), Isa::available());
    let names: Vec<&str> = tiers.iter().map(|isa| isa.name()).collect();

    console.say(format!("etude      {}", env!("CARGO_PKG_VERSION")))?;
    console.say(format!("system     {}, {}", std::env::consts::OS, std::env::consts::ARCH))?;
    console.say(format!("cpu        {}", crate::console::clean(&cpu)))?;
    console.say(format!("threads    {cores}"))?;
    if let Some(mib) = memory_mib {
        console.say(format!("memory     {:.1} GiB", mib as f64 / 1024.0))?;
    }
    if !caches.is_empty() {
        let shown: Vec<String> =
            caches.iter().map(|c| format!("L{}{} {} KiB", c.level, c.kind, c.kib)).collect();
        console.say(format!("caches     {}", shown.join(", ")))?;
    }
    console.say(format!("features   {}", features.join(" ")))?;
    console.say(format!("tiers      {} (active: {})", names.join(", "), active.name()))?;
    let gpus = gpu::all();
    for line in gpu::lines(&gpus) {
        console.say(format!("gpu        {line}"))?;
    }

    let all = format!("{cores} threads");
    console.say(format!("\n{:<38}{:>10} {all:>12}", "measured now", "1 thread"))?;
    let peaks = peaks(cores);
    for Peak { numbers, by, one, all } in &peaks {
        let unit = if *numbers == "int8" { "GOP/s" } else { "GFLOP/s" };
        console.say(format!("{numbers:<11}{by:<20}{unit:<7}{one:>10.1} {all:>12.1}"))?;
    }
    let (one, many) = (peak::levels(1), peak::levels(cores));
    type Rate = fn(&peak::Bandwidth) -> f64;
    let kinds: [(&str, Rate); 2] = [("read", |b| b.read_gbps), ("copy", |b| b.copy_gbps)];
    for (kind, rate) in kinds {
        for (one, many) in one.iter().zip(&many) {
            let (name, bytes) = (one.name, one.bandwidth.bytes >> 10);
            let (one, all) = (rate(&one.bandwidth), rate(&many.bandwidth));
            let of = format!("{name} {bytes} KiB");
            console.say(format!("{kind:<11}{of:<20}GB/s   {one:>10.1} {all:>12.1}"))?;
        }
    }

    let caches: Vec<Value> =
        caches.iter().map(|c| json!({ "level": c.level, "kind": c.kind, "kib": c.kib })).collect();
    let f32_peaks = || peaks.iter().filter(|p| p.numbers == "f32");
    let levels = [(1, one), (cores, many)].into_iter().flat_map(|(threads, levels)| {
        levels.into_iter().map(move |level| {
            json!({
                "level": level.name,
                "threads": threads,
                "bytes": level.bandwidth.bytes,
                "read_gbps": tenth(level.bandwidth.read_gbps),
                "copy_gbps": tenth(level.bandwidth.copy_gbps),
            })
        })
    });
    console.report(&json!({
        "version": env!("CARGO_PKG_VERSION"),
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "cpu": cpu,
        "threads": cores,
        "memory_mib": memory_mib,
        "caches": caches,
        "features": features,
        "isa": active.name(),
        "isa_available": names,
        "fma_gflops": f32_peaks().map(|p| (p.by.to_owned(), json!(p.one))).collect::<serde_json::Map<_, _>>(),
        "fma_gflops_all_threads": f32_peaks().find(|p| p.by == active.name()).map(|p| p.all),
        "peaks": peaks.iter().map(|p| json!({
            "dtype": p.numbers,
            "by": p.by,
            "gflops": p.one,
            "gflops_all_threads": p.all,
        })).collect::<Vec<_>>(),
        "bandwidth": levels.collect::<Vec<_>>(),
        "gpu": gpu::json(&gpus),
    }))
}

fn tenth(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// The processor's name, where the system tells it.
fn cpu_name() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory_mib() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemTotal:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib / 1024)
}

fn caches(folder: &Path) -> Vec<Cache> {
    let read = |index: usize, name: &str| {
        let text = fs::read_to_string(folder.join(format!("index{index}")).join(name)).ok()?;
        Some(text.trim().to_owned())
    };
    (0..8)
        .map_while(|index| {
            let level = read(index, "level")?.parse().ok()?;
            let kind = match read(index, "type")?.as_str() {
                "Data" => "d".to_owned(),
                "Instruction" => "i".to_owned(),
                _ => String::new(),
            };
            let size = read(index, "size")?;
            let kib = match size.strip_suffix('M') {
                Some(mib) => mib.parse::<u64>().ok()? * 1024,
                None => size.trim_end_matches('K').parse().ok()?,
            };
            Some(Cache { level, kind, kib })
        })
        .collect()
}

/// The instruction-set extensions that matter to the kernels and that this machine has.
fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! present {
            ($($name:tt),*) => {
                [$(($name, is_x86_feature_detected!($name))),*]
            };
        }
        let all = present![
            "sse4.2",
            "avx",
            "fma",
            "f16c",
            "avx2",
            "avx512f",
            "avx512bw",
            "avx512dq",
            "avx512vl",
            "avx512vnni",
            "avx512bf16",
            "avx512fp16",
            "avxvnni"
        ];
        all.into_iter().filter(|f| f.1).map(|f| f.0).collect()
    }
    #[cfg(target_arch = "aarch64")]
    {
        vec!["neon"]
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        Vec::new()
    }
}
