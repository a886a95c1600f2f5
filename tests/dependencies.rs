//! The embedded generator stays small: few crates from outside.

use std::collections::BTreeSet;
use std::process::Command;

#[test]
fn the_embedded_generator_pulls_in_at_most_sixteen_crates_from_outside() {
    let out = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "-p", "etude-models", "--no-default-features"])
        .args(["-e", "normal,build", "--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    let crates: BTreeSet<&str> = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("etude-"))
        .map(|line| line.split(" (").next().unwrap_or(line))
        .collect();
    println!("{} crates from outside: {crates:?}", crates.len());
    assert!((1..=16).contains(&crates.len()), "{crates:?}");
    let names: Vec<&str> = crates.iter().filter_map(|c| c.split(' ').next()).collect();
    for unwanted in ["rayon", "toml", "clap", "crc32fast"] {
        assert!(!names.contains(&unwanted), "{unwanted} is not for an embedded generator");
    }
}
