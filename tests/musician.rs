//! Commands for people who make music: primers, streams, continuations, fine-tuning, blends.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::{Command, Output};

use etude_tokenizer::{Marker, Note, Score, Tempo, Track, read_file, transpose};
use serde_json::Value;

#[path = "support/folder.rs"]
mod folder;

use folder::Folder;

impl Folder {
    fn etude(&self, line: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_etude"))
            .args(line.split_whitespace())
            .current_dir(&self.0)
            .env("ETUDE_CACHE", self.0.join("cache"))
            .output()
            .unwrap()
    }

    fn json(&self, line: &str) -> Value {
        let output = self.etude(&format!("{line} --json"));
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str(text.lines().last().unwrap()).unwrap()
    }

    fn refused(&self, line: &str, part: &str) {
        let output = self.etude(line);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{line}: {error}");
        assert!(error.contains(part) && !error.contains("panicked"), "{line}: {error}");
    }

    fn score(&self, name: &str) -> Score {
        read_file(&self.0.join(name)).unwrap().score
    }
}

/// Two bars in D major.
fn tune() -> Score {
    let mut score = Score::new(480);
    let pitches = [62, 64, 66, 69, 74, 73, 69, 66];
    let notes = pitches.iter().zip(0u64..);
    let notes = notes.map(|(&pitch, i)| Note { tick: i * 480, duration: 480, pitch, velocity: 90 });
    score.tracks.push(Track { notes: notes.collect(), ..Track::default() });
    score.tempos.push(Tempo { tick: 0, micros_per_quarter: 600_000 });
    score
}

fn pitches(score: &Score, ticks: u64) -> Vec<(u64, u8)> {
    let quarter = u64::from(score.ticks_per_quarter);
    let notes = score.tracks[0].notes.iter().filter(|n| 4 * n.tick < ticks * quarter);
    notes.map(|n| (4 * n.tick / quarter, n.pitch)).collect()
}

#[test]
fn a_continuation_begins_with_its_tune_and_keeps_tempo_and_key() {
    let folder = Folder::new("continue");
    std::fs::write(folder.0.join("tune.mid"), tune().to_midi()).unwrap();
    folder.json("continue tune.mid --bars 4 --seed 3 --out on.mid --no-audio --no-image");
    let on = folder.score("on.mid");
    assert_eq!(pitches(&on, 32), pitches(&tune(), 32));
    assert_eq!(on.tempos[0].micros_per_quarter, 600_000);
    assert!(on.note_count() > 8 && on.end_tick() <= 6 * 4 * u64::from(on.ticks_per_quarter));
    // The same, said in another way.
    folder
        .json("generate --primer tune.mid --bars 4 --seed 3 --out same.mid --no-audio --no-image");
    assert_eq!(folder.score("same.mid"), on);
}

#[test]
fn pitches_are_a_primer() {
    let folder = Folder::new("pitches");
    folder.json("generate --pitches 60,-2,-1,64,-2,-2,67 --bars 2 --seed 1 --out a.mid --no-audio --no-image");
    let score = folder.score("a.mid");
    assert_eq!(pitches(&score, 16), [(0, 60), (3, 64), (6, 67)]);
    assert_eq!(score.tracks[0].notes[0].duration * 2, u64::from(score.ticks_per_quarter));
    for (given, part) in [
        ("60,200", "\"200\" is not a pitch"),
        ("60,x", "\"x\" is not a pitch"),
        ("-2,-1", "no pitch among them"),
        ("60,-3", "\"-3\" is not a pitch"),
    ] {
        folder.refused(&format!("generate --pitches {given} --out no.mid"), part);
    }
    folder.refused("generate --inject-primer", "a --primer or --pitches is wanted");
    folder.refused(
        "generate --inject-primer --pitches 60 --out no.mid",
        "encodings polyphony and satb",
    );
    std::fs::write(folder.0.join("empty.mid"), Score::new(480).to_midi()).unwrap();
    folder.refused("generate --primer empty.mid --out no.mid", "the primer holds no notes");
    folder.refused("continue empty.mid --out no.mid", "empty.mid: data: the primer holds no notes");
    folder.refused("generate --beam 0 --out no.mid", "beam: 0 is not in 1 to");
    folder.refused("generate --beam 2 --steps-per-iteration 0 --out no.mid", "iteration");
    assert!(!folder.0.join("no.mid").exists());
}

#[test]
fn a_stream_is_a_line_for_each_token_and_ends_with_the_files() {
    let folder = Folder::new("stream");
    let line = "generate --bars 2 --seed 5 --out s.mid --no-audio --no-image";
    let output = folder.etude(&format!("{line} --stream"));
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let (last, tokens) = lines.split_last().unwrap();
    assert_eq!((tokens.len(), last["files"][0]["midi"].as_str()), (32, Some("s.mid")));
    for (index, token) in tokens.iter().enumerate() {
        assert_eq!((&token["event"], &token["index"]), (&"token".into(), &index.into()));
        assert!(token["token"].is_u64() && token["name"].is_string());
    }
    assert_eq!(tokens[31]["bars"], 2.0);
    let streamed = folder.score("s.mid");
    folder.json(&line.replace("s.mid", "t.mid"));
    assert_eq!(folder.score("t.mid"), streamed);
}

#[test]
#[cfg(target_os = "linux")]
fn a_stream_that_is_interrupted_saves_what_was_written() {
    use std::io::BufRead;
    use std::process::Stdio;
    let folder = Folder::new("interrupt");
    let mut child = Command::new(env!("CARGO_BIN_EXE_etude"))
        .args("generate --bars 50000 --stream --no-audio --no-image --out i.mid".split(' '))
        .current_dir(&folder.0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("\"index\":0"));
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(rest.last().unwrap().contains("\"files\""));
    let tokens = rest.len();
    assert!(tokens < 800_000);
    let score = folder.score("i.mid");
    assert!(score.end_tick() * 4 / u64::from(score.ticks_per_quarter) <= tokens as u64);
}

#[test]
fn a_file_is_scored_whole() {
    let folder = Folder::new("score");
    std::fs::write(folder.0.join("tune.mid"), tune().to_midi()).unwrap();
    std::fs::write(folder.0.join("up.mid"), transpose(&tune(), 5).unwrap().to_midi()).unwrap();
    let told = folder.json("evaluate lstm --data tune.mid --samples 0");
    assert_eq!((&told["split"], &told["tokens"]), (&"all".into(), &32.into()));
    let nats = told["log_likelihood"].as_f64().unwrap();
    let mean = told["nll_per_token"].as_f64().unwrap();
    assert!(nats < -5.0 && (nats + 32.0 * mean).abs() < 1e-9);
    // The encoding is in C: another key is the same music.
    let both = folder.json("evaluate lstm --data tune.mid up.mid --samples 0");
    for one in both["each"].as_array().unwrap() {
        assert!((one["log_likelihood"].as_f64().unwrap() - nats).abs() < 1e-3, "{both}");
    }
    let written = folder.json("evaluate lstm --data tune.mid --samples 0 --precision f32");
    assert!((written["log_likelihood"].as_f64().unwrap() - nats).abs() < 1e-3);
}

/// A folder of tunes that go up a scale, or down, with waits drawn at random.
fn scales(folder: &Path, up: bool) {
    std::fs::create_dir_all(folder).unwrap();
    for seed in 0..40u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let scale = [60, 62, 64, 65, 67, 69, 71, 72];
        let (mut tick, mut step) = (0, seed as usize % 8);
        let notes = (0..40).map(|_| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            step = (step + 1) % 8;
            let pitch = scale[if up { step } else { 7 - step }];
            let wait = 1 + (state >> 50) % 3;
            tick += wait;
            Note { tick: tick - wait, duration: wait, pitch, velocity: 90 }
        });
        let mut score = Score::new(4);
        score.tracks.push(Track { notes: notes.collect(), ..Track::default() });
        std::fs::write(folder.join(format!("{seed}.mid")), score.to_midi()).unwrap();
    }
}

#[test]
fn fine_tuning_reports_both_data_and_adapters_travel() {
    let folder = Folder::new("lora");
    scales(&folder.0.join("up"), true);
    scales(&folder.0.join("down"), false);
    let sets = "--set batch=8 --set window=32 --threads 1 --quiet";
    folder.json(&format!(
        "train gru/basic --data up --out base --steps 400 --set hidden=32 --set layers=1 \
         --set dropout=0 --set lr=0.02 {sets}"
    ));
    let mut tuned = Vec::new();
    for (out, more) in [("one", "--lora 2 --seed 1"), ("two", "--lora 3 --seed 2"), ("full", "")] {
        let told = folder.json(&format!(
            "train --from base --data down --out {out} --steps 100 --set lr=0.02 {more} {sets}"
        ));
        let report = &told["fine_tuning"];
        let nll = |data: &str, when: &str| report[data][when]["nll_per_token"].as_f64().unwrap();
        assert!(nll("new", "after") < nll("new", "before") - 1.0, "{out}: {report}");
        assert!(nll("old", "before") < nll("new", "before") - 1.0, "{out}: {report}");
        // What is learned on one kind of tunes is not what the other kind needs.
        assert!(nll("old", "after") > nll("old", "before"), "{out}: {report}");
        tuned.push(nll("new", "after"));
    }
    let scored = |line: &str| {
        folder.json(&format!("evaluate {line} --data down --samples 0"))["nll_per_token"]
            .as_f64()
            .unwrap()
    };
    // The run, the adapter on the base, and the file with both are one model.
    assert_eq!(scored("one"), tuned[0]);
    assert_eq!(scored("base --adapter one/adapter.safetensors"), tuned[0]);
    folder
        .json("export base --adapter one/adapter.safetensors --dtype f32 --out merged.safetensors");
    assert_eq!(scored("merged.safetensors"), tuned[0]);
    folder.json(
        "blend one/adapter.safetensors two/adapter.safetensors --weight 1 --out mix.safetensors",
    );
    // Sums of f32 in another order.
    assert!((scored("base --adapter mix.safetensors") - tuned[1]).abs() < 1e-4);
    folder.json(
        "blend one/adapter.safetensors two/adapter.safetensors --weight 0.3 --out mix.safetensors",
    );
    assert!(scored("base --adapter mix.safetensors") < scored("base"));
    let generated = folder.json(
        "generate base --adapter mix.safetensors --bars 2 --seed 1 --out m.mid --no-audio --no-image",
    );
    assert_eq!(generated["files"][0]["midi"], "m.mid");
    folder
        .refused("generate lstm --adapter one/adapter.safetensors", "an adapter for another model");
    folder
        .refused("generate full --adapter one/adapter.safetensors", "an adapter for other weights");
    folder.refused("generate base --adapter base/model.safetensors", "not an adapter");
    folder
        .refused("blend one/adapter.safetensors base/model.safetensors --out x", "not an adapter");
    folder.refused("train --from base --data down --lora 0 --out x", "0 is not in 1..=4096");
    folder.refused("train gru/basic --data down --set lora=4 --out x", "train.lora");
    folder.refused(
        "train --from base --data down --set hidden=25 --out x",
        "model.hidden is 25; the weights of base were trained with 32",
    );
    folder.refused("train gru/basic --set data.source=[] --out x", "data.source");
    // A run of several folders is found again: both are its data.
    folder.json(&format!("train gru/basic --data up down --out both --steps 1 {sets}"));
    let pieces = |line: &str| folder.json(line)["pieces"].as_u64().unwrap();
    let [up, down] = ["up", "down"]
        .map(|data| pieces(&format!("evaluate both --data {data} --split all --samples 0")));
    assert_eq!(pieces("evaluate both --split all --samples 0"), up + down);
    folder.json(&format!("train both --resume --steps 2 {sets}"));
    // A run with an adapter goes on bit for bit.
    let line = format!("--data down --set lr=0.02 {sets}");
    folder.json(&format!(
        "train --from base --lora 2 --seed 1 --out parts --steps 100 --time 0.01s {line}"
    ));
    let told = folder.json("train parts --resume --quiet --threads 1");
    assert!(told["fine_tuning"]["new"]["before"]["nll_per_token"].is_f64(), "{told}");
    let read = |run: &str| std::fs::read(folder.0.join(run).join("model.safetensors")).unwrap();
    assert!(read("parts") == read("one"));
}

#[test]
fn a_melody_is_harmonized_and_stays_as_it_is() {
    let folder = Folder::new("harmonize");
    folder.json(
        "train transformer/chorales --out run --steps 1 --set hidden=16 --set layers=1 --set \
         heads=2 --set ff=16 --set context=32 --set window=64 --set batch=1",
    );
    // In the tenor's range, with a repeated note, on ticks that are no sixteenths, beside drums.
    let mut tune = transpose(&tune(), -12).unwrap();
    tune.tracks[0].notes[3].pitch = tune.tracks[0].notes[2].pitch;
    tune.tracks[0].notes[5].tick += 7;
    let bass = Note { tick: 0, duration: 3840, pitch: 38, velocity: 60 };
    tune.tracks.insert(0, Track { notes: vec![bass], ..Track::default() });
    std::fs::write(folder.0.join("tune.mid"), tune.to_midi()).unwrap();
    folder.json(
        "harmonize tune.mid --with run --seed 2 --out four.mid --chords D|D --no-audio --no-image",
    );
    let four = folder.score("four.mid");
    assert_eq!((four.tracks.len(), &four.tracks[0].name[..]), (4, "Soprano"));
    assert_eq!(four.tracks[0].notes, tune.tracks[1].notes);
    assert_eq!((four.ticks_per_quarter, &four.tempos), (480, &tune.tempos));
    assert_eq!(four.end_tick(), 3840);
    for note in four.tracks[1..].iter().flat_map(|track| &track.notes) {
        assert!([2, 6, 9].contains(&(note.pitch % 12)), "{note:?}");
    }
    folder.refused("harmonize tune.mid --with lstm --out no.mid", "encodings polyphony and satb");
    folder.refused("harmonize tune.mid --with run --chords C|Hx --out no.mid", "Hx");
    let mut drums = tune.clone();
    drums.tracks.iter_mut().for_each(|track| track.is_drum = true);
    std::fs::write(folder.0.join("drums.mid"), drums.to_midi()).unwrap();
    folder.refused("harmonize drums.mid --with run --out no.mid", "drums.mid: no notes but drums");
    assert!(!folder.0.join("no.mid").exists());
}

/// Six bars of a tune, with a bass and drums.
fn band() -> Score {
    let mut score = tune();
    let notes = (0..24u64).map(|i| {
        let pitch = [62, 64, 66, 69, 74, 73, 69, 66][(i * 3 % 8) as usize];
        Note { tick: 480 * i, duration: 470, pitch, velocity: 90 }
    });
    score.tracks[0].notes = notes.collect();
    let long = |tick, pitch| Note { tick, duration: 1920, pitch, velocity: 60 };
    let bass = (0..6).map(|bar| long(1920 * bar, 38)).collect();
    score.tracks.push(Track { program: 32, notes: bass, ..Track::default() });
    let beat = (0..12).map(|i| Note { tick: 960 * i, duration: 240, pitch: 36, velocity: 80 });
    score.tracks.push(Track { is_drum: true, notes: beat.collect(), ..Track::default() });
    score
}

const TINY: &str = "--steps 2 --set hidden=16 --set layers=1 --set heads=2 --set ff=16 --set batch=1 \
                    --set window=300 --set context=300";

#[test]
fn bars_are_filled_and_all_others_stay_note_for_note() {
    let folder = Folder::new("fill");
    let band = band();
    scales(&folder.0.join("data"), true);
    std::fs::write(folder.0.join("band.mid"), band.to_midi()).unwrap();
    folder.json(&format!(
        "train transformer/infill --data data --out run --set encoding=events-infill {TINY}"
    ));
    let line = "generate run --primer band.mid --fill bars 3-4 --seed 5 --out f.mid \
                --no-audio --no-image";
    let told = folder.json(line);
    assert_eq!(told["files"][0]["midi"], "f.mid");
    let filled = folder.score("f.mid");
    let hole = 3840..7680;
    for (new, old) in filled.tracks.iter().zip(&band.tracks) {
        let rest = |track: &Track| -> Vec<Note> {
            track.notes.iter().filter(|note| !hole.contains(&note.tick)).copied().collect()
        };
        assert_eq!(rest(new), rest(old));
    }
    assert_ne!(filled.tracks[0].notes, band.tracks[0].notes);
    assert_eq!((filled.ticks_per_quarter, &filled.tempos), (480, &band.tempos));
    folder.json(&line.replace("f.mid", "g.mid"));
    assert_eq!(folder.score("g.mid"), filled);
    for (given, part) in [
        (
            "generate run --primer band.mid --fill bars 6-7",
            "fill: bars 6-7 are wanted; the primer has 6",
        ),
        ("generate run --primer band.mid --fill bars 0-2", "bars A-B are wanted"),
        ("generate run --primer band.mid --fill bars 4-3", "bars A-B are wanted"),
        ("generate run --primer band.mid --fill beats 3-4", "bars A-B are wanted"),
        ("generate run --fill bars 3-4", "a --primer or --pitches is wanted"),
        ("generate --primer band.mid --fill bars 3-4", "in whose pieces no bars can be missing"),
        ("train lstm --set fill=0.5", "train.fill"),
    ] {
        folder.refused(&format!("{given} --out no.mid"), part);
    }
    assert!(!folder.0.join("no.mid").exists());
}

#[test]
fn a_melody_is_accompanied_and_stays_as_it_is() {
    let folder = Folder::new("accompany");
    let band = band();
    scales(&folder.0.join("data"), true);
    std::fs::write(folder.0.join("band.mid"), band.to_midi()).unwrap();
    folder.json(&format!(
        "train transformer/accompaniment --data data --out run --set encoder=1 {TINY}"
    ));
    folder.json("accompany band.mid --model run --seed 2 --out a.mid --no-audio --no-image");
    let written = folder.score("a.mid");
    assert_eq!(written.tracks[0], band.tracks[0]);
    assert_eq!((written.ticks_per_quarter, &written.tempos), (480, &band.tempos));
    assert!(written.tracks.len() > 1 && written.tracks[1..] != band.tracks[1..]);
    let told = folder.json("evaluate run --data band.mid --samples 1");
    assert!(told["nll_per_token"].as_f64().unwrap() > 0.0);
    folder.refused("accompany band.mid --model run --bars 3 --out no.mid", "as long as its melody");
    folder.refused("accompany band.mid --model lstm --out no.mid", "this model writes by itself");
    folder.refused("accompany band.mid --out no.mid", "etude train transformer/accompaniment");
    folder.refused("generate run --out no.mid", "a primer with one is wanted");
    let mut drums = band.clone();
    drums.tracks.drain(..2);
    std::fs::write(folder.0.join("drums.mid"), drums.to_midi()).unwrap();
    folder.refused("accompany drums.mid --model run --out no.mid", "drums.mid: no notes but drums");
    assert!(!folder.0.join("no.mid").exists());
}

#[test]
fn a_task_of_memory_is_told_in_numbers_and_pictures() {
    let folder = Folder::new("task");
    let told = folder.json("train gru --task copy --length 4 --steps 3 --set hidden=8 --out copy");
    assert_eq!(
        (&told["task"], &told["length"], &told["steps"]),
        (&"copy".into(), &4.into(), &3.into())
    );
    // Ten symbols, three blanks, the mark and ten blanks more.
    assert_eq!(told["gradient_norms"].as_array().unwrap().len(), 24);
    let (nats, without) =
        (told["nats"].as_f64().unwrap(), told["without_memory"].as_f64().unwrap());
    assert!((without - 8f64.ln()).abs() < 1e-9 && (nats - without).abs() < 0.5, "{nats}");
    for name in ["task.json", "loss.svg", "loss.png", "gradients.svg", "gradients.png"] {
        assert!(folder.0.join("copy").join(name).exists(), "{name}");
    }
    folder.json("train transformer --task adding --length 5 --steps 1 --set batch=2 --out adding");
    folder.refused("train gru --task adding --length 1 --out no", "length: 1; 2 to 100000");
    folder.refused("train gru --task adding --resume --out no", "--resume");
    folder.refused("train gru --task forget --out no", "adding or copy is wanted");
    std::fs::write(folder.0.join("taken"), "a file").unwrap();
    folder.refused("train gru --task copy --length 4 --steps 1 --out taken", "taken: ");
    folder.refused("train gru/pianoroll --task copy --out no", "model.conditions");
    assert!(!folder.0.join("no").exists());
}

/// Eight bars of quarters over a chord a bar, told as markers or not at all.
fn lead_sheet(moved: u8, told: bool) -> Score {
    let mut score = Score::new(480);
    let note = |i: u64| {
        let pitch = 60 + moved + [0, 4, 7, 5, 9, 12, 7, 11][(i / 4 + 3 * i) as usize % 8];
        Note { tick: 480 * i, duration: 480, pitch, velocity: 90 }
    };
    score.tracks.push(Track { notes: (0..32).map(note).collect(), ..Track::default() });
    if told {
        let names = ["C", "F", "G7", "Esus4"];
        let marker = |bar: u64| Marker { tick: 1920 * bar, text: names[bar as usize % 4].into() };
        score.markers = (0..8).map(marker).collect();
    }
    score
}

#[test]
fn a_model_of_lead_sheets_plays_over_chords() {
    let folder = Folder::new("improv");
    for part in ["train", "valid"] {
        std::fs::create_dir_all(folder.0.join("sheets").join(part)).unwrap();
    }
    for i in 0..6 {
        let part = if i < 4 { "train" } else { "valid" };
        let path = folder.0.join(format!("sheets/{part}/{i}.mid"));
        std::fs::write(path, lead_sheet(i, i % 3 > 0).to_midi()).unwrap();
    }
    let train = "train lstm/improv-basic --data sheets --set hidden=8 --set batch=4 --steps 3";
    // Read anew, out of the cache, and for chords that are written otherwise.
    let first = folder.etude(&format!("{train} --out run"));
    let said = String::from_utf8_lossy(&first.stderr);
    assert!(first.status.success() && said.contains("chord without a triad"), "{said}");
    folder.json(&format!("{train} --out again"));
    let weights = |run: &str| std::fs::read(folder.0.join(run).join("model.safetensors")).unwrap();
    assert!(weights("run") == weights("again"));
    folder.json(&format!("{train} --no-cache --out anew"));
    assert!(weights("run") == weights("anew"));
    let pitches = folder.json(&format!("{train} --set conditions=chord-pitches --out pitches"));
    assert!(pitches["valid_nll"].as_f64().unwrap() > 0.0);

    let write = "generate run --bars 4 --seed 2 --no-audio --no-image";
    folder.json(&format!("{write} --chords C|Am|F|G7 --out a.mid"));
    let chords = |name: &str| -> Vec<(u64, String)> {
        folder.score(name).markers.into_iter().map(|m| (m.tick, m.text)).collect()
    };
    let quarter = u64::from(folder.score("a.mid").ticks_per_quarter);
    let expected = |names: [&str; 4]| -> Vec<(u64, String)> {
        (0..).step_by(4 * quarter as usize).zip(names.map(String::from)).collect()
    };
    assert_eq!(chords("a.mid"), expected(["C", "Am", "F", "G7"]));
    folder.json(&format!("{write} --chords C|Am|F|G7 --transpose 2 --play-chords --out b.mid"));
    assert_eq!(chords("b.mid"), expected(["D", "Bm", "G", "A7"]));
    let (plain, sounding) = (folder.score("a.mid"), folder.score("b.mid"));
    assert_eq!((plain.tracks.len(), sounding.tracks.len()), (1, 2));
    // D in the bass, D, F sharp and A above it, for a bar.
    let bar: Vec<_> = sounding.tracks[1].notes.iter().filter(|n| n.tick == 0).collect();
    let mut tones: Vec<u8> = bar.iter().map(|note| note.pitch).collect();
    tones.sort_unstable();
    assert_eq!(tones, [38, 50, 54, 57]);
    assert!(bar.iter().all(|note| note.duration == 4 * quarter));
    folder.json("continue b.mid --with run --bars 2 --out c.mid --no-audio --no-image");
    folder.json("evaluate run --samples 2 --split all");

    for (line, part) in [
        (
            "generate run --chords C|X",
            "chord \"X\", character 3: 'X' where a root A to G is wanted",
        ),
        ("generate run --chords C|Esus4", "--chords: Esus4 has no major"),
        ("generate run --chords C|D|E|F|G/H", "chord \"G/H\""),
        ("generate run --density 3", "--density: the model does not read it"),
        ("generate lstm --chords C", "--chords: the model does not read it"),
        ("generate lstm --play-chords", "--play-chords: the model plays over no chords"),
        ("generate run --pitch-histogram 1,2", "2 numbers; 12 are wanted"),
        ("generate run --pitch-histogram 1,x", "\"x\" is not a number"),
        ("train lstm/improv-basic --data sheets --set encoding=drums", "steps of a melody"),
    ] {
        folder.refused(&format!("{line} --out no.mid"), part);
    }
    assert!(!folder.0.join("no.mid").exists());
}

#[test]
fn a_performance_is_asked_for_its_density_and_its_pitches() {
    let folder = Folder::new("controls");
    std::fs::create_dir(folder.0.join("piano")).unwrap();
    for i in 0..3 {
        std::fs::write(folder.0.join(format!("piano/{i}.mid")), lead_sheet(i, false).to_midi())
            .unwrap();
    }
    let train =
        "train lstm/performance-controls --data piano --set hidden=8 --set batch=4 --steps 2";
    folder.json(&format!("{train} --out run"));
    let major = "1,0,1,0,1,1,0,1,0,1,0,1";
    let write = "generate run --seconds 3 --no-audio --no-image --seed 4";
    let asked = format!("--density 4 --pitch-histogram {major}");
    folder.json(&format!("{write} {asked} --out a.mid"));
    folder.json(&format!("{write} {asked} --out b.mid"));
    folder.json(&format!("{write} --density 40 --pitch-histogram {major} --out c.mid"));
    assert_eq!(folder.score("a.mid"), folder.score("b.mid"));
    assert_ne!(folder.score("a.mid"), folder.score("c.mid"));
    let none = "0,0,0,0,0,0,0,0,0,0,0,0";
    for (line, part) in [
        ("--density -1", "unexpected argument"),
        ("--density 5000", "--density: 5000 is not in 0 to 1000"),
        (&format!("--pitch-histogram {none}"), "--pitch-histogram: the weights add up to 0"),
        ("--chords C", "--chords: the model does not read it"),
    ] {
        folder.refused(&format!("{write} {line} --out no.mid"), part);
    }
}
