//! The program as a user runs it: exit codes, JSON, errors, odd files, closed pipes.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use etude_tokenizer::{Note, Score, Track};
use serde_json::Value;

#[path = "support/folder.rs"]
mod folder;

use folder::Folder;

const ETUDE: &str = env!("CARGO_BIN_EXE_etude");

impl Folder {
    fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    fn melody(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, melody().to_midi()).unwrap();
        path
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> =
            names.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// Eight quarters up and down in C major.
fn melody() -> Score {
    let mut score = Score::new(480);
    let pitches = [60, 62, 64, 65, 67, 65, 64, 62];
    let notes = pitches.iter().zip(0u64..);
    let notes = notes.map(|(&pitch, i)| Note { tick: i * 480, duration: 480, pitch, velocity: 90 });
    score.tracks.push(Track { notes: notes.collect(), ..Track::default() });
    score
}

fn etude<A: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = A>) -> Output {
    command(arguments).output().unwrap()
}

fn command<A: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(ETUDE);
    command.args(arguments).stdin(Stdio::null()).env_remove("ETUDE_ISA");
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    let text = stdout(output);
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// A refusal: this exit code, nothing on stdout, one clean line that contains `part`.
fn refused(output: &Output, code: i32, part: &str) {
    let error = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert_eq!(stdout(output), "");
    assert!(error.contains(part), "{error:?} lacks {part:?}");
    let last = error.trim_end_matches('\n');
    assert!(!last.chars().any(|c| c.is_control() && c != '\n'), "{error:?}");
    for debug in ["Os {", "Err(", "Some(", "panicked", "called `"] {
        assert!(!error.contains(debug), "{error:?}");
    }
    assert!(error.len() < 2000, "{} bytes of error", error.len());
}

/// The folder of test material, if it is there.
fn shared() -> Option<PathBuf> {
    let given = std::env::var_os("ETUDE_SHARED").map(PathBuf::from);
    let path = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    path.is_dir().then_some(path)
}

fn commands() -> Vec<String> {
    let text = stdout(&etude::<&str>([]));
    let names = text.lines().skip_while(|l| *l != "Commands:").skip(1);
    names
        .take_while(|l| l.starts_with("  "))
        .map(|l| l.split_whitespace().next().unwrap().to_owned())
        .collect()
}

#[test]
fn without_arguments_the_commands_are_listed() {
    let commands = commands();
    for name in ["tokenize", "detokenize", "render", "corpora", "info", "completions"] {
        assert!(commands.iter().any(|c| c == name), "{name} is not in {commands:?}");
    }
}

#[test]
fn every_command_explains_itself_with_an_example() {
    for name in commands() {
        let output = etude([name.as_str(), "--help"]);
        assert_eq!(output.status.code(), Some(0));
        let help = stdout(&output);
        assert!(help.contains("Example"), "{name}: {help}");
        assert!(help.contains(&format!("  etude {name}")), "{name}: {help}");
    }
}

#[test]
fn wrong_usage_exits_with_2_and_says_how() {
    for arguments in [
        &["conquer"][..],
        &["tokenize"],
        &["tokenize", "a.mid", "--scheme"],
        &["render", "a.mid", "--volume", "11"],
        &["corpora", "--export", "folk"],
        &["completions", "cobol"],
    ] {
        refused(&etude(arguments), 2, "error: ");
        let output = etude(arguments.iter().chain(&["--json"]));
        assert_eq!(output.status.code(), Some(2));
        let error: Value = serde_json::from_str(&stderr(&output)).unwrap();
        assert!(error["error"].as_str().unwrap().len() > 5, "{error}");
        assert!(error["file"].is_null());
    }
    refused(&etude(["tokenize", "\x1b[31m\x07", "--scheme", "x\x1b"]), 2, "\\x1b");
}

#[test]
fn an_unknown_instruction_set_is_refused() {
    let output = command(["info"]).env("ETUDE_ISA", "mmx").output().unwrap();
    refused(&output, 2, "ETUDE_ISA");
    let output = command(["info", "--json"]).env("ETUDE_ISA", "scalar").output().unwrap();
    assert_eq!(json(&output)["isa"], "scalar");
}

#[test]
fn info_tells_the_machine() {
    let told = json(&etude(["info", "--json"]));
    for key in ["version", "os", "arch", "cpu", "threads", "isa", "isa_available", "fma_gflops"] {
        assert!(!told[key].is_null(), "{key}: {told}");
    }
    let gpu = told.get("gpu").expect("a list, or null where there is none");
    assert!(gpu.is_array() || gpu.is_null(), "{gpu}");
    let text = stdout(&etude(["info"]));
    assert!(text.contains("GFLOP/s") && text.contains("\ngpu "), "{text}");
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    for (device, part) in [("cuda:4000000", "no GPU"), ("cuda:x", "unknown device"), ("", "device")]
    {
        refused(&command(["bench", "--device", device]).output().unwrap(), 2, part);
    }
}

#[test]
fn tokens_come_back_as_the_same_music() {
    let folder = Folder::new("round-trip");
    let file = folder.melody("melody.mid");
    for (scheme, _) in etude_tokenizer::schemes() {
        let tokenize = |file: &Path| {
            let told = json(&etude([
                "tokenize".as_ref(),
                file.as_os_str(),
                "--json".as_ref(),
                "--scheme".as_ref(),
                scheme.as_ref(),
            ]));
            let keys: Vec<&str> = told.as_object().unwrap().keys().map(String::as_str).collect();
            for key in ["scheme", "tokens", "names", "notes", "ticks_per_quarter", "warnings"] {
                assert!(keys.contains(&key), "{key} is not in {keys:?}");
            }
            told
        };
        let told = tokenize(&file);
        assert_eq!((&told["scheme"], &told["notes"]), (&Value::from(*scheme), &Value::from(8)));
        assert_eq!(told["ticks_per_quarter"], 480);
        assert_eq!(told["warnings"], Value::Array(Vec::new()));
        let (tokens, names) = (&told["tokens"], &told["names"]);
        assert_eq!(tokens.as_array().unwrap().len(), names.as_array().unwrap().len());

        let (object, back) = (folder.join("tokens.json"), folder.join("back.mid"));
        fs::write(&object, told.to_string()).unwrap();
        let arguments =
            ["detokenize".as_ref(), object.as_os_str(), "--out".as_ref(), back.as_os_str()];
        let output = etude(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(&tokenize(&back)["tokens"], tokens, "{scheme}");

        let mut child = command(["detokenize", "-", "--out", "-"]);
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), told.to_string().as_bytes())
            .unwrap();
        let piped = child.wait_with_output().unwrap();
        assert_eq!(piped.stdout, fs::read(&back).unwrap());
    }
}

#[test]
fn people_see_the_names_of_tokens_and_programs_may_keep_the_object() {
    let folder = Folder::new("people");
    let file = folder.melody("melody.mid");
    let file = file.to_str().unwrap();
    let shown = stdout(&etude(["tokenize", file, "--scheme", "melody"]));
    assert!(shown.contains("NOTE_ON_60") && shown.contains("8 notes"), "{shown}");
    let out = folder.join("deep/er/tokens.json");
    let output = etude(["tokenize", file, "--scheme", "melody", "--out", out.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    let kept: Value = serde_json::from_slice(&fs::read(&out).unwrap()).unwrap();
    assert_eq!(kept["scheme"], "melody");
    refused(&etude(["tokenize", file, "--scheme", "klingon"]), 2, "melody");
}

#[test]
fn objects_that_are_no_tokens_are_refused_by_name() {
    let folder = Folder::new("bad-tokens");
    let file = folder.join("bad.json");
    let deep = "[".repeat(100_000);
    let long = format!("{{\"scheme\": \"{}\", \"tokens\": []}}", "x".repeat(1_000_000));
    let million =
        format!("{{\"scheme\": \"melody\", \"tokens\": [{}]}}", "1000000, ".repeat(999_999) + "1");
    let endless = format!("{{\"scheme\": \"melody\", \"tokens\": [{}0]}}", "0,".repeat(4_000_001));
    for bad in [
        "",
        "{",
        "null",
        "[]",
        "{}",
        "{\"scheme\": \"melody\"}",
        "{\"scheme\": 7, \"tokens\": []}",
        "{\"scheme\": \"melody\", \"tokens\": {}}",
        "{\"scheme\": \"melody\", \"tokens\": [1.5]}",
        "{\"scheme\": \"melody\", \"tokens\": [-1]}",
        "{\"scheme\": \"melody\", \"tokens\": [38]}",
        "{\"scheme\": \"melody\", \"tokens\": [1e30]}",
        "{\"scheme\": \"melody\", \"tokens\": [\"\\u001b[31m\"]}",
        "{\"scheme\": \"\\u001b[31m\", \"tokens\": []}",
        "{\"scheme\": \"melody\", \"scheme\": \"melody\", \"tokens\": []}",
        "\u{0}\u{1}\u{2}",
        &deep,
        &long,
        &million,
        &endless,
    ] {
        fs::write(&file, bad).unwrap();
        let out = folder.join("out.mid");
        let output =
            etude(["detokenize".as_ref(), file.as_os_str(), "--out".as_ref(), out.as_os_str()]);
        refused(&output, 2, "bad.json: ");
        assert_eq!(folder.names(), ["bad.json"]);
    }
}

#[test]
fn rendering_makes_sound_and_picture_the_same_each_time() {
    let folder = Folder::new("render");
    let file = folder.melody("melody.mid");
    let render = |out: &str| {
        let out = folder.join(out);
        let told = json(&etude([
            "render".as_ref(),
            file.as_os_str(),
            "--json".as_ref(),
            "--out".as_ref(),
            out.as_os_str(),
        ]));
        assert_eq!(told["notes"], 8);
        let files = &told["files"][0];
        assert_eq!(files["midi"], file.to_str().unwrap());
        let wav = fs::read(files["wav"].as_str().unwrap()).unwrap();
        let image = fs::read(files["image"].as_str().unwrap()).unwrap();
        assert!(wav.starts_with(b"RIFF") && image.starts_with(b"\x89PNG"));
        (wav, image)
    };
    assert_eq!(render("a.wav"), render("b.wav"));
    assert_eq!(folder.names(), ["a.png", "a.wav", "b.png", "b.wav", "melody.mid"]);
    let nothing =
        etude(["render".as_ref(), file.as_os_str(), "--no-audio".as_ref(), "--no-image".as_ref()]);
    refused(&nothing, 2, "nothing to do");
    let font =
        etude(["render".as_ref(), file.as_os_str(), "--soundfont".as_ref(), file.as_os_str()]);
    refused(&font, 2, "melody.mid: not a SoundFont");
    assert_eq!(folder.names(), ["a.png", "a.wav", "b.png", "b.wav", "melody.mid"]);
}

#[test]
fn corpora_are_listed_and_written_out_with_their_licences() {
    let folder = Folder::new("corpora");
    let told = json(&etude(["corpora", "--json"]));
    let names: Vec<&str> =
        told["corpora"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    let expected =
        ["folk", "chorales", "chorales-quarter", "leadsheets", "bands", "grooves", "piano"];
    assert_eq!(names, expected);
    let out = folder.join("bands");
    let output = etude(["corpora", "--export", "bands", "--out", out.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(fs::read_dir(out.join("train")).unwrap().count(), 92);
    assert!(out.join("LICENSE.freedoom.txt").is_file() && out.join("CREDITS-MUSIC.txt").is_file());
    refused(
        &etude(["corpora", "--export", "polka", "--out", out.to_str().unwrap()]),
        2,
        "chorales",
    );
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&etude(["completions", shell]));
        assert!(script.contains("detokenize"), "{shell}");
    }
}

#[test]
#[cfg(unix)]
fn files_of_odd_kinds_are_refused_at_once() {
    use std::os::unix::fs::symlink;
    let folder = Folder::new("kinds");
    fs::create_dir(folder.join("folder.mid")).unwrap();
    symlink("/dev/zero", folder.join("endless.mid")).unwrap();
    symlink(folder.join("gone"), folder.join("dangling.mid")).unwrap();
    symlink(folder.join("loop.mid"), folder.join("loop.mid")).unwrap();
    assert!(Command::new("mkfifo").arg(folder.join("fifo.mid")).status().unwrap().success());
    for name in ["folder.mid", "endless.mid", "dangling.mid", "loop.mid", "fifo.mid", "none.mid"] {
        let file = folder.join(name);
        for command in ["tokenize", "render", "detokenize"] {
            let mut arguments = vec![command.as_ref(), file.as_os_str()];
            let out = folder.join("out");
            if command == "detokenize" {
                arguments.extend(["--out".as_ref(), out.as_os_str()]);
            }
            refused(&etude(&arguments), 2, name);
            let output = etude(arguments.iter().chain(&["--json".as_ref()]));
            let error: Value = serde_json::from_str(&stderr(&output)).unwrap();
            assert_eq!(error["file"], file.to_str().unwrap());
        }
    }
}

#[test]
#[cfg(unix)]
fn files_with_odd_names_are_taken_and_shown_without_control_characters() {
    use std::os::unix::ffi::OsStrExt;
    let folder = Folder::new("names");
    for name in [
        &b"a name  with spaces.mid"[..],
        b"b\xff\xfe.mid",
        b"a\nb.mid",
        b"\x1b[31mred.mid",
        b"*?[a]{b}.mid",
        b"song",
        "Für Élise 🎵.mid".as_bytes(),
    ] {
        let file = folder.melody(std::ffi::OsStr::from_bytes(name));
        let output =
            etude(["tokenize".as_ref(), file.as_os_str(), "--scheme".as_ref(), "melody".as_ref()]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let shown = stdout(&output);
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
        fs::write(&file, "no music").unwrap();
        let output = etude(["tokenize".as_ref(), file.as_os_str()]);
        assert_eq!(stderr(&output).lines().count(), 1);
        refused(&output, 2, "error: ");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn outputs_that_cannot_be_written_are_told_and_leave_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new("outputs");
    let file = folder.melody("melody.mid");
    let file = file.to_str().unwrap();
    refused(&etude(["tokenize", file, "--out", "/dev/full"]), 1, "/dev/full: cannot write");
    refused(&etude(["render", file, "--no-image", "--out", "/dev/full"]), 1, "/dev/full");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command(["tokenize", file]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    refused(&output, 1, "standard output");
    // Below a file there is no folder.
    let below = format!("{file}/below.json");
    refused(&etude(["tokenize", file, "--out", &below]), 1, "below.json");
    let locked = folder.join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o500)).unwrap();
    // The superuser may write everywhere, so ask whether the lock holds.
    if fs::write(locked.join("probe"), "").is_err() {
        let out = locked.join("out.json");
        refused(&etude(["tokenize", file, "--out", out.to_str().unwrap()]), 1, "out.json");
    }
    assert_eq!(folder.names(), ["locked", "melody.mid"]);
}

#[test]
#[cfg(unix)]
fn a_closed_pipe_ends_the_program_quietly() {
    for arguments in [&["completions", "bash"][..], &["corpora"], &["--help"], &[]] {
        let mut child = command(arguments);
        let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!([Some(0), Some(141)].contains(&output.status.code()), "{:?}", output.status);
        assert_eq!(stderr(&output), "");
    }
}

#[test]
fn bad_inputs_are_met_as_their_manifest_asks() {
    let Some(kit) = shared().map(|shared| shared.join("bad_inputs")) else {
        println!("skipped: no folder of test material");
        return;
    };
    let python = Command::new("python3").arg("--version").output();
    if !python.is_ok_and(|output| output.status.success()) {
        println!("skipped: no python3");
        return;
    }
    let folder = Folder::new("judge");
    let good = folder.melody("good.mid");
    for rest in
        ["tokenize {file} --scheme events --json", "tokenize {file} --scheme events --out {out}"]
    {
        let output = Command::new("python3")
            .arg(kit.join("run.py"))
            .arg("--manifest")
            .arg(kit.join("manifest.json"))
            .args(["--facts", "--need-warning", "--special", "--time-factor", "4"])
            .arg("--good")
            .arg(format!("midi={}", good.display()))
            .arg("--cmd")
            .arg(format!("midi={ETUDE} {rest}"))
            .output()
            .unwrap();
        let told = stdout(&output);
        println!("{told}");
        assert!(output.status.success(), "{told}\n{}", stderr(&output));
        // The kit's MIDI files and the special ones have all been judged.
        let passed = told.lines().last().unwrap().split(' ').next().unwrap();
        assert!(passed.parse::<u32>().unwrap() >= 60, "{told}");
    }
}
