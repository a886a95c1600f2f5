//! A folder of any size trains in the same memory, is read once, and leaks nothing between its parts.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::{Command, Output};

use etude_tokenizer::{Note, Score, Track, transpose};
use serde_json::Value;

#[path = "support/folder.rs"]
mod folder;

use folder::Folder;

/// A tune drawn at random; `seed` decides.
fn tune(seed: u64, notes: u64) -> Score {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let (mut tick, mut pitch) = (0, 65i64);
    let notes = (0..notes).map(|_| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        pitch = (pitch + (state >> 60) as i64 % 9 - 4).clamp(53, 78);
        let wait = 1 + (state >> 50) % 4;
        let note = Note { tick, duration: wait, pitch: pitch as u8, velocity: 90 };
        tick += wait;
        note
    });
    let mut score = Score::new(4);
    score.tracks.push(Track { notes: notes.collect(), ..Track::default() });
    score
}

fn write(folder: &Path, name: &str, score: &Score) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join(name), score.to_midi()).unwrap();
}

fn train(root: &Path, data: &Path, run: &str, more: &[&str]) -> Output {
    trains(root, data, run, more).output().unwrap()
}

fn trains(root: &Path, data: &Path, run: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_etude"));
    command.args(["train", "gru/basic", "--threads", "1", "--quiet", "--json"]);
    if !more.contains(&"--steps") {
        command.args(["--steps", "3"]);
    }
    command.args(["--set", "hidden=8", "--set", "batch=4", "--set", "encoding=melody"]);
    command.arg("--data").arg(data).arg("--out").arg(root.join(run)).args(more);
    command.env("ETUDE_CACHE", root.join("cache"));
    command
}

/// The last line of a training, and what it said about the data.
fn told(output: &Output) -> (Value, String) {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(output.status.success(), "{said}");
    let line = said.lines().find(|l| l.starts_with("data ")).unwrap().to_owned();
    (serde_json::from_slice(&output.stdout).unwrap(), line)
}

#[test]
fn two_thousand_files_train_in_the_memory_of_a_hundred() {
    let folder = Folder::new("many");
    let (few, many) = (folder.0.join("few"), folder.0.join("many"));
    for seed in 0..2000 {
        let score = tune(seed, 600);
        write(&many.join("train"), &format!("{seed}.mid"), &score);
        if seed < 100 {
            write(&few.join("train"), &format!("{seed}.mid"), &score);
        }
    }
    // As much to validate with: that memory is the network's.
    for seed in 2000..2004 {
        let score = tune(seed, 600);
        for data in [&few, &many] {
            write(&data.join("valid"), &format!("{seed}.mid"), &score);
        }
    }
    let (of_few, _) = told(&train(&folder.0, &few, "run-few", &["--no-cache"]));
    let (of_many, line) = told(&train(&folder.0, &many, "run-many", &[]));
    assert!(line.contains("2004 pieces") && line.contains("1202400 notes"), "{line}");
    assert!(!line.contains("read before"), "{line}");
    let peaks = [&of_few, &of_many].map(|told| told["peak_memory_mb"].as_f64());
    println!("peak memory of 100 and of 2,000 files: {peaks:?} MB");
    if let [Some(few), Some(many)] = peaks {
        // The scores of 1,900 more files take 27 MB, their tokens 11 MB; of each file stays an index
        // entry of about 1 KB. The heap's own grain is 1 MB or so.
        assert!(many - few < 6.0, "{few} MB, {many} MB");
    }
    // Once more, from the cache: the same weights.
    let (_, line) = told(&train(&folder.0, &many, "run-again", &[]));
    assert!(line.contains("2004 read before"), "{line}");
    let weights = |run: &str| std::fs::read(folder.0.join(run).join("model.safetensors")).unwrap();
    assert!(weights("run-many") == weights("run-again"));
}

#[test]
fn a_run_goes_on_bit_for_bit_with_another_cache_or_none() {
    let folder = Folder::new("resume");
    let data = folder.0.join("data");
    for seed in 0..40 {
        write(&data, &format!("{seed}.mid"), &tune(seed, 60));
    }
    // The rate of a step shall not depend on how many are asked for.
    let sets = ["--set", "transpose=2", "--set", "window=32", "--set", "schedule=constant"];
    told(&train(&folder.0, &data, "whole", &[&sets[..], &["--steps", "9"]].concat()[..]));
    // A damaged cache is mended, and none at all does as well.
    let cache = folder.0.join("cache/melody.tokens");
    let mut bytes = std::fs::read(&cache).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].iter_mut().step_by(5).for_each(|byte| *byte ^= 0x55);
    std::fs::write(&cache, &bytes).unwrap();
    let (_, read) =
        told(&train(&folder.0, &data, "parts", &[&sets[..], &["--steps", "4"]].concat()[..]));
    assert!(!read.contains("40 read before"), "the damage was not met: {read}");
    for steps in ["6", "9"] {
        let more = ["--resume", "--steps", steps, "--no-cache"];
        let output = train(&folder.0, &data, "parts", &[&sets[..], &more].concat()[..]);
        told(&output);
    }
    for name in ["model.safetensors", "optimizer.safetensors"] {
        let read = |run: &str| std::fs::read(folder.0.join(run).join(name)).unwrap();
        assert!(read("whole") == read("parts"), "{name}");
    }
}

/// The shell lets no file grow beyond the cache as it is, which is what a full disk does to it.
#[cfg(unix)]
#[test]
fn a_cache_that_cannot_grow_is_done_without() {
    let folder = Folder::new("full");
    let (old, new) = (folder.0.join("old"), folder.0.join("new"));
    (0..40).for_each(|seed| write(&old, &format!("{seed}.mid"), &tune(seed, 600)));
    (40..50).for_each(|seed| write(&new, &format!("{seed}.mid"), &tune(seed, 60)));
    told(&train(&folder.0, &old, "old-run", &[]));
    told(&train(&folder.0, &new, "free-run", &["--no-cache"]));
    let cache = folder.0.join("cache/melody.tokens");
    let bytes = std::fs::read(&cache).unwrap();
    let command = trains(&folder.0, &new, "full-run", &[]);
    let mut shell = Command::new("sh");
    // In units of 512 bytes.
    let limit = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", bytes.len() / 512);
    shell.args(["-c", &limit, "sh"]).arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = shell.output().unwrap();
    let (_, line) = told(&output);
    assert!(line.contains("10 pieces"), "{line}");
    assert!(std::fs::read(&cache).unwrap() == bytes, "the cache has grown");
    let weights = |run: &str| std::fs::read(folder.0.join(run).join("model.safetensors")).unwrap();
    assert!(weights("full-run") == weights("free-run"));
    // What was in it is still found.
    let (_, line) = told(&train(&folder.0, &old, "again", &[]));
    assert!(line.contains("40 read before"), "{line}");
}

#[test]
fn twins_and_transpositions_stay_in_one_part() {
    let folder = Folder::new("twins");
    for seed in 0..60 {
        let score = tune(seed, 60);
        for (i, shift) in [0, -3, 5, 7].into_iter().enumerate() {
            let mut twin = transpose(&score, shift).unwrap();
            // Another ending each.
            twin.tracks[0].notes.truncate(60 - 2 * i);
            write(&folder.0, &format!("{i}-{seed}.mid"), &twin);
        }
    }
    let data = etude::data::load(std::slice::from_ref(&folder.0)).unwrap();
    assert_eq!((data.pieces.len(), data.leaks), (240, 0));
    let mut parts = std::collections::BTreeMap::new();
    for piece in &data.pieces {
        let (_, tune) = piece.name.split_once('-').unwrap();
        parts.entry(tune.to_owned()).or_insert_with(Vec::new).push(piece.split);
    }
    assert_eq!(parts.len(), 60);
    assert!(parts.values().all(|splits| splits.windows(2).all(|two| two[0] == two[1])));
    let used: std::collections::BTreeSet<_> =
        parts.values().map(|splits| splits[0].name()).collect();
    assert_eq!(used.len(), 3);
}

#[test]
fn a_leak_between_parts_that_folders_name_is_told() {
    let folder = Folder::new("leak");
    let data = folder.0.join("data");
    for seed in 0..4 {
        write(&data.join("train"), &format!("{seed}.mid"), &tune(seed, 60));
    }
    write(&data.join("valid"), "new.mid", &tune(9, 60));
    write(&data.join("valid"), "old.mid", &transpose(&tune(2, 60), 4).unwrap());
    let output = train(&folder.0, &data, "run", &[]);
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(said.contains("1 pieces of its valid and test parts"), "{said}");
    told(&output);
}
