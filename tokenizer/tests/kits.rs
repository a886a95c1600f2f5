//! The kits of damaged, hostile and odd files, each met as its manifest asks.

mod common;

use etude_tokenizer::read_file;
use serde_json::Value;
use std::path::Path;

fn manifest(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("a readable manifest");
    serde_json::from_str(&text).expect("a manifest in JSON")
}

fn shows_no_control_characters(lines: &[String]) -> bool {
    lines.iter().all(|line| line.len() < 400 && !line.chars().any(char::is_control))
}

#[test]
fn damaged_files_are_refused_or_warned_of_and_lawful_ones_accepted() {
    let Some(folder) = common::shared("bad_inputs") else { return };
    let manifest = manifest(&folder.join("manifest.json"));
    let cases = manifest["cases"].as_array().expect("cases");
    let (mut refused, mut warned, mut clean, mut wrong) = (0, 0, 0, Vec::new());
    for case in cases.iter().filter(|case| case["kind"] == "midi") {
        let (id, expect) = (case["id"].as_str().expect("id"), &case["expect"]);
        let path = folder.join(case["file"].as_str().expect("file"));
        match read_file(&path) {
            Err(error) => {
                refused += 1;
                let text = error.to_string();
                let name = path.file_name().expect("a name").to_string_lossy().into_owned();
                if expect == "accept" || !text.contains(&name) {
                    wrong.push(format!("{id}: refused: {text}"));
                }
            }
            Ok(reading) => {
                match reading.warnings.is_empty() {
                    true => clean += 1,
                    false => warned += 1,
                }
                if expect == "reject" || (expect == "either" && reading.warnings.is_empty()) {
                    wrong.push(format!("{id}: taken without a warning: {}", case["fault"]));
                }
                if !shows_no_control_characters(&reading.warnings) {
                    wrong.push(format!(
                        "{id}: control characters or a flood: {:?}",
                        reading.warnings
                    ));
                }
                for (fact, found) in [
                    ("notes", reading.note_ons),
                    ("ticks_per_quarter", reading.ticks_per_quarter as usize),
                ] {
                    if let Some(told) = case["facts"][fact].as_u64()
                        && told as usize != found
                    {
                        wrong.push(format!("{id}: {fact} is {found}, should be {told}"));
                    }
                }
            }
        }
    }
    println!("bad_inputs/midi: {refused} refused, {warned} read with a warning, {clean} without");
    assert!(refused + warned + clean > 0);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn odd_files_are_read_with_the_notes_told_and_malformed_ones_never_in_silence() {
    let Some(folder) = common::shared("corpus/weird") else { return };
    let cases = manifest(&folder.join("cases.json"));
    let (mut read, mut warned, mut refused, mut wrong) = (0, 0, 0, Vec::new());
    for case in cases.as_array().expect("cases") {
        let file = case["file"].as_str().expect("file");
        let kind = case["kind"].as_str().expect("kind");
        match (kind, read_file(&folder.join(file))) {
            ("valid", Ok(reading)) => {
                read += 1;
                if let Some(told) = case["notes"].as_u64()
                    && told as usize != reading.note_ons
                {
                    wrong.push(format!("{file}: {} notes, should be {told}", reading.note_ons));
                }
                if reading.note_ons != reading.score.note_count() {
                    wrong.push(format!("{file}: a note got lost"));
                }
            }
            ("valid", Err(error)) => wrong.push(format!("{file}: refused: {error}")),
            ("malformed", Ok(reading)) => {
                warned += 1;
                if reading.warnings.is_empty() {
                    wrong.push(format!("{file}: taken without a warning: {}", case["why"]));
                }
            }
            ("not-midi", Ok(_)) => wrong.push(format!("{file}: taken as MIDI")),
            (_, Err(error)) => {
                refused += 1;
                if !error.to_string().contains(file) {
                    wrong.push(format!("{file}: not named in: {error}"));
                }
            }
            (kind, _) => wrong.push(format!("{file}: unknown kind {kind}")),
        }
    }
    println!(
        "weird: {read} lawful read, {warned} malformed read with a warning, {refused} refused"
    );
    assert!(read + warned + refused > 0);
    assert!(wrong.is_empty(), "{wrong:#?}");
}
