//! A guard against slower kernels that noise does not trip: instructions are counted, not time.
//!
//! A clock on a shared machine moves by more than what a change usually costs; the number of
//! instructions that a call takes does not move at all. Each case runs under callgrind once and
//! several times over: the difference is that of the calls, without the start of the program. The
//! count says nothing about caches and latencies, which the timed benches are for; it tells a lost
//! vector loop, a copy or an allocation too many, on every machine.
//!
//! ```text
//! cargo bench --bench instructions                    compares with benches/instructions.json
//! cargo bench --bench instructions -- --record        writes that file anew
//! cargo bench --bench instructions -- --test          runs each case once, without callgrind
//! ```
//!
//! Callgrind knows no AVX-512, so the AVX2 tier is counted. Counts are those of one compiler: with
//! another one, or without valgrind, the comparison is skipped and says so.

#[path = "instructions/cases.rs"]
mod cases;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use cases::CASES;
use etude_kernels::isa::{self, Isa};
use serde::{Deserialize, Serialize};

/// The file of counts.
#[derive(Serialize, Deserialize)]
struct Recorded {
    /// The compiler, as it names itself.
    rustc: String,
    /// By how much a count may grow, in percent.
    tolerance_percent: f64,
    /// Instructions of one call.
    counts: BTreeMap<String, u64>,
}

fn main() -> ExitCode {
    // `cargo bench` adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["--run", name, times] => return run(name, times),
        ["--test"] => {
            for case in CASES {
                println!("{}", case.name);
                (case.make)()();
            }
            Ok(())
        }
        ["--record"] => record(),
        [] => compare(),
        _ => Err("usage: cargo bench --bench instructions [-- --record | --test]".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

/// What runs under callgrind: a case, some times.
fn run(name: &str, times: &str) -> ExitCode {
    let (Some(case), Ok(times)) = (CASES.iter().find(|c| c.name == name), times.parse::<u64>())
    else {
        return ExitCode::from(2);
    };
    // A tier that is not there would silently be another one.
    if isa::active() != Isa::Avx2 {
        return ExitCode::from(3);
    }
    let mut call = (case.make)();
    (0..times).for_each(|_| call());
    ExitCode::SUCCESS
}

/// Why nothing can be counted here, if so.
fn obstacle() -> Option<String> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Some("counts are kept for Linux on x86-64".to_owned());
    }
    if !Isa::Avx2.is_available() {
        return Some("this machine has no AVX2".to_owned());
    }
    let valgrind = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status();
    (!valgrind.is_ok_and(|status| status.success())).then(|| "there is no valgrind".to_owned())
}

/// The compiler, as it names itself.
fn rustc() -> String {
    let output = Command::new("rustc").arg("--version").output();
    let name = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
    output.map_or_else(|_| "an unknown compiler".to_owned(), |output| name(output.stdout))
}

fn file() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.json")
}

/// Instructions of a run of `times` calls, by callgrind.
fn instructions(name: &str, times: u64) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|e| format!("this program: {e}"))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["--run", name, &times.to_string()])
        // One thread and one tier; whatever else could change what runs is shut out.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("ETUDE_ISA", "avx2")
        .env("RAYON_NUM_THREADS", "1")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("valgrind: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let count = said.lines().find_map(|line| line.split_once("Collected :"));
    let count = count.and_then(|(_, count)| count.trim().parse().ok());
    count.filter(|_| output.status.success()).ok_or_else(|| {
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        format!("{name}: valgrind ended with {}: {last}", output.status)
    })
}

/// Instructions of one call of every case, some cases at a time.
fn count_all() -> Result<BTreeMap<String, u64>, String> {
    let (next, counts) = (AtomicUsize::new(0), Mutex::new(Ok(BTreeMap::new())));
    let work = || {
        while let Some(case) = CASES.get(next.fetch_add(1, Ordering::Relaxed)) {
            let once = instructions(case.name, 1);
            let more = instructions(case.name, 1 + case.calls);
            let count = once.and_then(|once| Ok(more?.saturating_sub(once) / case.calls));
            let mut counts = counts.lock().expect("nothing panics while it holds this");
            match (count, &mut *counts) {
                (Ok(count), Ok(counts)) => drop(counts.insert(case.name.to_owned(), count)),
                (Err(why), counts @ Ok(_)) => *counts = Err(why),
                (_, Err(_)) => {}
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        (0..cores).for_each(|_| drop(scope.spawn(work)));
    });
    counts.into_inner().expect("as above")
}

fn record() -> Result<(), String> {
    if let Some(why) = obstacle() {
        return Err(format!("cannot count: {why}"));
    }
    let recorded = Recorded { rustc: rustc(), tolerance_percent: 3.0, counts: count_all()? };
    let text = serde_json::to_string_pretty(&recorded).map_err(|e| e.to_string())?;
    std::fs::write(file(), text + "\n").map_err(|e| format!("{}: {e}", file().display()))?;
    println!("{} counts recorded", recorded.counts.len());
    Ok(())
}

fn compare() -> Result<(), String> {
    let text = std::fs::read_to_string(file()).map_err(|e| format!("{}: {e}", file().display()))?;
    let recorded: Recorded =
        serde_json::from_str(&text).map_err(|e| format!("{}: {e}", file().display()))?;
    let here = rustc();
    let other = (here != recorded.rustc)
        .then(|| format!("counts are of {}, this is {here}", recorded.rustc));
    if let Some(why) = obstacle().or(other) {
        println!("skipped: {why}");
        return Ok(());
    }
    let counts = count_all()?;
    println!("{:<42} {:>12} {:>12} {:>8}", "instructions of a call", "recorded", "now", "change");
    let mut faults = Vec::new();
    for (name, &now) in &counts {
        let Some(&before) = recorded.counts.get(name) else {
            println!("{name:<42} {:>12} {now:>12}", "none");
            faults.push(format!("{name} has no count"));
            continue;
        };
        let percent = 100.0 * (now as f64 / before.max(1) as f64 - 1.0);
        println!("{name:<42} {before:>12} {now:>12} {percent:>+7.1}%");
        if percent > recorded.tolerance_percent {
            faults.push(format!("{name} takes {percent:.1} % more"));
        }
    }
    let gone = recorded.counts.keys().filter(|name| !counts.contains_key(*name));
    faults.extend(gone.map(|name| format!("{name} is counted no more")));
    if faults.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{}; at most {} % are allowed. If that is meant: cargo bench --bench instructions -- --record",
        faults.join(", "),
        recorded.tolerance_percent
    ))
}
