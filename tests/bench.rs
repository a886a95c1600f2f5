//! `etude bench` as a program: lines for people and for programs, faults, a process for each case.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The program with no time to lose: three runs of a case, however short.
fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_etude"));
    command.arg("bench").args(arguments);
    command.args(["--reps", "3", "--warm-time", "0"]);
    command.stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    bench(arguments).args(["--min-time", "0"]).output().expect("the program starts")
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// A shapes file of this test alone.
fn shapes(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("etude-bench-{}-{name}", std::process::id()));
    std::fs::write(&path, text).expect("a folder for temporary files");
    path
}

#[test]
fn a_case_has_the_keys_of_the_yardstick_and_its_bounds() {
    let file = shapes(
        "keys.json",
        r#"{"gemm": [{"m": 3, "k": 40, "n": 50}], "elementwise": [{"op": "gelu", "rows": 9, "cols": 77}],
            "rnn_generate": [{"kind": "gru", "vocab": 9, "hidden": 17, "layers": 1, "tokens": 2}]}"#,
    );
    let path = file.to_str().expect("UTF-8");
    let output = run(&["all", "--shapes", path, "--json", "--threads", "2", "--packed"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = lines(&output);
    let names: Vec<&str> = lines.iter().filter_map(|line| line["impl"].as_str()).collect();
    assert_eq!(names, ["etude", "etude-packed", "etude", "etude"]);
    for line in &lines {
        let number = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key}: {line}"));
        assert!(number("p10") <= number("median_s") && number("median_s") <= number("p90"));
        assert!(number("min_s") > 0.0 && number("first_s") > 0.0 && number("per_s") > 0.0);
        assert_eq!((number("threads"), number("reps")), (2.0, 3.0));
        assert!(number("peak_share") > 0.0 && number("bytes") > 0.0 && number("gbps") > 0.0);
        if cfg!(target_os = "linux") {
            assert!(number("peak_rss_mb") >= number("base_rss_mb") && number("base_rss_mb") > 0.0);
        }
        let bound = line["bound"].as_str().expect("a bound");
        assert!(number(&format!("peak_{bound}")) > 0.0, "{line}");
        let matrix = line["workload"] != "elementwise";
        assert_eq!(line["flops"].is_number() && line["gflops"].is_number(), matrix);
    }
    std::fs::remove_file(file).expect("it was written");
}

#[test]
#[cfg(target_os = "linux")]
fn the_peak_of_the_memory_is_that_of_the_case_alone() {
    let file = shapes(
        "memory.json",
        r#"{"elementwise": [{"op": "copy", "rows": 4096, "cols": 4096}, {"op": "copy", "rows": 4, "cols": 4}]}"#,
    );
    let output = run(&["elementwise", "--shapes", file.to_str().expect("UTF-8"), "--json"]);
    let peaks: Vec<f64> =
        lines(&output).iter().filter_map(|line| line["peak_rss_mb"].as_f64()).collect();
    // Two arrays of 64 MiB, and after them next to nothing.
    assert!(peaks.len() == 2 && peaks[0] > 128.0 && peaks[1] < 64.0, "{peaks:?}");
    std::fs::remove_file(file).expect("it was written");
}

#[test]
fn a_case_that_fails_is_told_and_the_others_run() {
    let file = shapes(
        "fails.json",
        r#"{"startup": [{"kind": "transformer", "vocab": 1, "d": 3, "heads": 2, "ff": 1, "layers": 1, "max_len": 1}, {"kind": "python"}]}"#,
    );
    let path = file.to_str().expect("UTF-8");
    let output = run(&["startup", "--shapes", path, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let told = lines(&output);
    assert_eq!(told.len(), 2);
    assert!(told[1]["median_s"].is_number());
    // Two heads cannot share three numbers: the network says so, in a process of its own.
    let error = told[0]["error"].as_str().expect("an error");
    assert!(error.contains("process") && error.contains("heads"), "{error}");
    assert_eq!(told[0]["case"]["kind"], "transformer");
    let people = run(&["startup", "--shapes", path]);
    assert_eq!(String::from_utf8_lossy(&people.stdout).lines().count(), 1);
    assert!(String::from_utf8_lossy(&people.stderr).contains("warning: startup {"));
    std::fs::remove_file(file).expect("it was written");
}

#[test]
fn bad_arguments_are_refused_before_anything_runs() {
    for arguments in [
        &["gemm", "--threads", "5000"][..],
        &["gemm", "--max-time=-1"],
        &["no-such-workload"],
        &["gemm", "--one-case", "gemm"],
        &["gemm", "--one-case", "gemm:{"],
        &["gemm", "--one-case", "gem:{}"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        assert!(error.starts_with("error: ") && error.lines().count() == 1, "{error}");
    }
}

/// Processes whose parent is `parent`.
#[cfg(target_os = "linux")]
fn children(parent: u32) -> Vec<u32> {
    let folders = std::fs::read_dir("/proc").expect("a Linux").flatten();
    let pids = folders.filter_map(|folder| folder.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name in brackets: the state, then the parent.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        fields.split_whitespace().nth(1).is_some_and(|p| p == parent.to_string())
    })
    .collect()
}

#[test]
#[cfg(target_os = "linux")]
fn a_bench_that_is_killed_leaves_no_process_behind() {
    let deadline = Instant::now() + Duration::from_secs(60);
    let wait_for = |what: &mut dyn FnMut() -> bool| {
        while !what() {
            assert!(Instant::now() < deadline, "nothing happened within a minute");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let mut command = bench(&["gemm"]);
    command.args(["--min-time", "600", "--max-time", "600"]).stdout(Stdio::null());
    let mut parent = command.spawn().expect("the program starts");
    let mut started = Vec::new();
    wait_for(&mut || {
        started = children(parent.id());
        !started.is_empty()
    });
    parent.kill().expect("it runs");
    parent.wait().expect("it ends");
    let ended = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    wait_for(&mut || started.iter().all(ended));
}

#[test]
fn a_roofline_is_drawn_and_changes_no_line() {
    let file = shapes("roofline.json", r#"{"gemm": [{"m": 3, "k": 40, "n": 50}], "startup": []}"#);
    let path = file.to_str().expect("UTF-8");
    let picture = file.with_extension("svg");
    let drawn = picture.to_str().expect("UTF-8");
    let output = run(&["gemm", "startup", "--shapes", path, "--json", "--roofline", drawn]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(lines(&output).len(), 1);
    let svg = std::fs::read_to_string(&picture).expect("it was drawn");
    assert!(
        svg.contains("gemm m 3 k 40 n 50") && svg.contains("GFLOP/s") && svg.contains("memory")
    );
    for path in [&picture, &file] {
        std::fs::remove_file(path).expect("it was written");
    }
    let output = run(&["gemm", "--shapes", "/dev/null", "--roofline", "/proc/no/such/folder.svg"]);
    assert!(!output.status.success() && output.stdout.is_empty());
}

#[test]
fn a_ladder_tells_every_step_and_its_reason() {
    let file = shapes(
        "ladder.json",
        r#"{"ladder": [{"kernel": "lstm", "seq": 2, "batch": 3, "hidden": 5, "input": 4}]}"#,
    );
    let path = file.to_str().expect("UTF-8");
    let output = run(&["ladder", "--shapes", path, "--json", "--threads", "2"]);
    let steps = lines(&output);
    let name = |line: &Value| line["impl"].as_str().unwrap_or_default().to_owned();
    assert_eq!(steps.first().map(name).as_deref(), Some("naive"));
    assert_eq!(steps.last().map(name).as_deref(), Some("threaded"));
    assert!(steps.iter().all(|line| line["peak_share"].is_number() && line["why"].is_string()));
    // Threads are the idea of the last step.
    let threads: Vec<u64> = steps.iter().filter_map(|line| line["threads"].as_u64()).collect();
    assert!(threads.len() == steps.len() && threads.iter().sum::<u64>() == steps.len() as u64 + 1);
    std::fs::remove_file(file).expect("it was written");
}
