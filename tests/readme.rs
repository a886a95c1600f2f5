//! The README's commands and its sample do what it says.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const README: &str = include_str!("../README.md");

/// The text of each fenced block of a kind.
fn blocks(kind: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = README.lines();
    while let Some(line) = lines.next() {
        if line == format!("```{kind}") {
            let inside: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push(inside.join("\n") + "\n");
        }
    }
    blocks
}

#[test]
fn every_command_of_the_readme_works() {
    let folder = std::env::temp_dir().join(format!("etude-readme-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(folder.join("my-midi")).unwrap();
    let folk = etude::corpora::load("folk").unwrap();
    for piece in folk.pieces.iter().take(40) {
        fs::write(folder.join("my-midi").join(format!("{}.mid", piece.name)), &piece.midi).unwrap();
    }
    fs::write(folder.join("tune.mid"), &folk.pieces[0].midi).unwrap();

    let blocks = blocks("console");
    let commands: Vec<&str> = blocks
        .iter()
        .flat_map(|block| block.lines())
        .filter_map(|l| l.strip_prefix("$ "))
        .collect();
    let mut ran = 0;
    for line in &commands {
        if *line == "cargo test --release" {
            continue; // this is it
        }
        let line = line.replace("cargo run --release --", "etude");
        // Training is the same in two steps; --steps counts from the beginning of a run.
        let steps = if line.contains("--resume") { "--steps 4" } else { "--steps 2" };
        let line = line.replace("--time 10m", steps);
        let mut words = line.split_whitespace();
        assert_eq!(words.next(), Some("etude"), "{line}");
        let output = Command::new(env!("CARGO_BIN_EXE_etude"))
            .args(words)
            .current_dir(&folder)
            .env("ETUDE_CACHE", folder.join("cache"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        ran += 1;
    }
    assert!(ran >= 10, "{ran} commands");
    for file in ["jig.mid", "jig.wav", "jig.png", "continued.mid", "tune.wav", "back.mid"] {
        assert!(folder.join(file).is_file(), "{file} is not there");
    }
    assert!(folder.join("run/model.safetensors").is_file());
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn the_sample_of_the_readme_is_the_example() {
    let example = include_str!("../examples/write_a_piece.rs");
    let code = example.split_once("\n\n").unwrap().1; // below the doc comment
    assert_eq!(blocks("rust"), [code]);
}

#[test]
fn every_file_that_the_documents_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = 0;
    for text in [README, include_str!("../CONTRIBUTING.md")] {
        for name in text.split('`').skip(1).step_by(2) {
            let rooms =
                ["kernels/", "engine/", "tokenizer/", "models/", "cli/", "corpora/", "tests/"];
            if rooms.iter().any(|room| name.starts_with(room)) && !name.contains('<') {
                assert!(root.join(name).exists(), "{name} is not there");
                named += 1;
            }
        }
    }
    assert!(named >= 15, "{named} files");
}
