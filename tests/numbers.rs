//! Number formats on the command line: stored with a run, refused where there is none, named by benches.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

#[path = "support/folder.rs"]
mod folder;

use folder::Folder;

const ETUDE: &str = env!("CARGO_BIN_EXE_etude");

fn etude(arguments: &[&str]) -> Output {
    Command::new(ETUDE).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn train(run: &Path, arguments: &[&str]) -> Output {
    let small = ["hidden=16", "batch=4", "window=32", "log_every=1", "valid_every=100"];
    let mut all = vec!["train", "gru/basic", "--threads", "1", "--quiet", "--data", "folk"];
    small.iter().for_each(|set| all.extend(["--set", set]));
    all.extend(["--out", run.to_str().unwrap()]);
    all.extend(arguments);
    etude(&all)
}

#[test]
fn the_format_of_a_run_is_kept_in_its_configuration() {
    let folder = Folder::new("train");
    let dtype = |run: &Path| {
        let text = std::fs::read_to_string(run.join("config.toml")).unwrap();
        text.lines().find_map(|l| l.strip_prefix("dtype = ")).unwrap().to_owned()
    };
    let weights = |run: &Path| std::fs::read(run.join("model.safetensors")).unwrap();
    let done = |output: Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let (plain, whole, parts) =
        (folder.0.join("plain"), folder.0.join("whole"), folder.0.join("parts"));
    done(train(&plain, &["--steps", "4"]));
    done(train(&whole, &["--steps", "4", "--dtype", "bf16", "--set", "schedule=constant"]));
    done(train(&parts, &["--steps", "2", "--dtype", "bf16", "--set", "schedule=constant"]));
    let run = parts.to_str().unwrap();
    done(etude(&["train", run, "--resume", "--steps", "4", "--threads", "1", "--quiet"]));
    assert_eq!([dtype(&plain), dtype(&whole), dtype(&parts)], ["\"f32\"", "\"bf16\"", "\"bf16\""]);
    // The metadata of the weights hold the configuration, so the bytes can only agree if it does.
    assert!(weights(&whole) == weights(&parts) && weights(&whole) != weights(&plain));
}

#[test]
fn a_format_that_a_model_lacks_is_refused_before_anything_is_made() {
    let folder = Folder::new("refused");
    let run = folder.0.join("run");
    let out = run.to_str().unwrap();
    let all = ["train", "lstm/melody-attention", "--data", "folk", "--dtype", "bf16", "--out", out];
    let output = etude(&all);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("train.dtype: bf16: attention"), "{error}");
    assert!(!run.exists());
}

#[test]
fn training_cases_that_name_no_format_run_in_the_one_that_is_asked_for() {
    let folder = Folder::new("bench");
    let shapes = folder.0.join("shapes.json");
    let case = r#"{"kind": "lstm", "vocab": 5, "hidden": 7, "layers": 1, "batch": 3, "seq": 2"#;
    let named = format!("{case}, \"dtype\": \"bf16\"");
    let gemm = r#"[{"m": 2, "k": 3, "n": 4}, {"m": 2, "k": 3, "n": 4, "dtype": "bf16"}]"#;
    let text = format!(r#"{{"rnn_train": [{case}}}, {named}}}], "gemm": {gemm}}}"#);
    std::fs::write(&shapes, text).unwrap();
    let bench = |workload: &str, dtype: &[&str]| -> Vec<String> {
        let mut all = vec!["bench", workload, "--json", "--reps", "1", "--min-time", "0"];
        all.extend(["--warm-time", "0", "--shapes", shapes.to_str().unwrap()]);
        all.extend(dtype);
        let output = etude(&all);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines: Vec<Value> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        lines
            .iter()
            .map(|line| {
                assert!(line["peak_share"].as_f64().unwrap() > 0.0);
                format!("{} {}", line["impl"].as_str().unwrap(), line["case"]["dtype"])
            })
            .collect()
    };
    let (plain, named) = ("etude null", "etude-bf16 \"bf16\"");
    assert_eq!(bench("rnn_train", &[]), [plain, named]);
    assert_eq!(bench("rnn_train", &["--dtype", "f32"]), [plain]);
    assert_eq!(bench("rnn_train", &["--dtype", "bf16"]), ["etude-bf16 null", named]);
    assert_eq!(bench("gemm", &["--dtype", "bf16"]), ["etude \"bf16\""]);
    assert_eq!(bench("gemm", &["--dtype", "f32"]), [plain]);
}
