//! A training that is killed at any moment leaves a run directory that opens, and the resumed run
//! ends with the same bytes as one that was never killed.

use etude_models::run::RunDir;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[path = "support/folder.rs"]
mod folder;

use folder::Folder;

const ETUDE: &str = env!("CARGO_BIN_EXE_etude");
/// Steps of the run; with a save after each, most of its time is spent in saves.
const STEPS: u32 = 150;

/// Eight short tunes in a folder of their own: loading them takes no time.
fn tunes(folder: &Path) -> PathBuf {
    use etude_tokenizer::{Note, Score, Track};
    let data = folder.join("tunes");
    std::fs::create_dir_all(&data).unwrap();
    for i in 0..8u64 {
        let mut score = Score::new(4);
        let pitch = |t: u64| 60 + ((t * (i + 1)) % 7) as u8;
        let notes =
            (0..32).map(|t| Note { tick: 2 * t, duration: 2, pitch: pitch(t), velocity: 90 });
        score.tracks.push(Track { notes: notes.collect(), ..Track::default() });
        std::fs::write(data.join(format!("{i}.mid")), score.to_midi()).unwrap();
    }
    data
}

fn train(data: &Path, run: &Path, steps: u32, save_every: u32) -> Command {
    let mut command = Command::new(ETUDE);
    command.args(["train", "gru/basic", "--resume", "--threads", "1", "--quiet", "--data"]);
    command.arg(data).arg("--out").arg(run).arg("--steps").arg(steps.to_string());
    for set in ["hidden=16", "batch=4", "window=32", "dropout=0.3", "log_every=1", "valid_every=10"]
    {
        command.args(["--set", set]);
    }
    command.args(["--set", &format!("save_every={save_every}")]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.env("ETUDE_CACHE", data.with_file_name("cache"));
    command
}

fn step_of(run: &Path) -> u64 {
    let opened = RunDir::open(run, false).unwrap_or_else(|e| panic!("{e}"));
    opened.state()["step"].as_u64().unwrap()
}

/// Numbers that differ from run to run are not wanted here: splitmix64.
fn random(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[test]
fn killed_at_fifty_moments_the_run_always_opens_and_ends_with_the_same_bytes() {
    let folder = Folder::new("kill");
    let data = tunes(&folder.0);
    let whole = folder.0.join("whole");
    let start = Instant::now();
    let out = train(&data, &whole, STEPS, 1).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let whole_time = start.elapsed().as_secs_f64();

    let (mut kills, mut in_a_save, mut seed) = (0, 0, 7u64);
    let mut run = folder.0.join("run-0");
    let mut runs = 0;
    while kills < 50 || in_a_save < 20 {
        assert!(kills < 2000, "only {in_a_save} of {kills} kills fell into a save");
        let mut child = train(&data, &run, STEPS, 1).spawn().unwrap();
        let wait = Duration::from_secs_f64(random(&mut seed) * whole_time * 0.2);
        let until = Instant::now() + wait;
        // Every second kill waits for the moment when a file of a save is half-way there.
        let aims_at_a_save = kills % 2 == 1;
        let staged = ["model.safetensors.new", "optimizer.safetensors.new", "state.json.new"];
        let staged = staged.map(|name| run.join(name));
        while Instant::now() < until || (aims_at_a_save && !staged.iter().any(|path| path.exists()))
        {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            if Instant::now() < until {
                std::thread::sleep(Duration::from_micros(300));
            }
        }
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            in_a_save += usize::from(staged.iter().any(|path| path.exists()));
        }
        if run.exists() {
            let before = step_of(&run);
            if before == u64::from(STEPS) {
                // A kill between the last save and its renames leaves them to whoever opens next.
                RunDir::open(&run, true).unwrap_or_else(|e| panic!("{e}"));
                compare(&whole, &run);
                runs += 1;
                run = folder.0.join(format!("run-{runs}"));
            }
        }
    }
    let out = train(&data, &run, STEPS, 1).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    compare(&whole, &run);
    // What a kill leaves behind does not pile up.
    let left: Vec<_> = std::fs::read_dir(&run).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(left.len() <= 10, "{left:?}");
    println!("{kills} kills, {in_a_save} of them inside a save, {} whole runs", runs + 1);
}

fn compare(whole: &Path, run: &Path) {
    for name in ["model.safetensors", "optimizer.safetensors", "best.safetensors", "config.toml"] {
        let read = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
        assert!(read(whole) == read(run), "{name} differs from the run that was not killed");
    }
    let steps = |folder: &Path| -> Vec<String> {
        let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
        let number = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            format!("{} {}", value["step"], value["loss"])
        };
        text.lines().map(number).collect()
    };
    assert_eq!(steps(whole), steps(run), "metrics.jsonl has a gap or a line twice");
}

#[cfg(unix)]
#[test]
fn one_ctrl_c_saves_and_exits_with_130() {
    let folder = Folder::new("interrupt");
    let data = tunes(&folder.0);
    let run = folder.0.join("run");
    let mut child = train(&data, &run, 100_000_000, 1_000_000).spawn().unwrap();
    // Until the first line: then steps were done that no save holds yet.
    let logged = || std::fs::metadata(run.join("metrics.jsonl")).is_ok_and(|m| m.len() > 0);
    while !logged() {
        assert!(child.try_wait().unwrap().is_none(), "ended by itself");
        std::thread::sleep(Duration::from_millis(5));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(step_of(&run) > 0, "the steps since the first save were lost");
}
