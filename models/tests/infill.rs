//! Holes: what stands around them stays note for note, a model learns from both sides of them.
#![cfg(feature = "train")]

use etude_models::config;
use etude_models::data::{Batch, Dataset, Scores};
use etude_models::generate::{Length, Request, Writer};
use etude_models::registry::{ModelConfig, model_keys, preset_config};
use etude_models::sampling::Sampling;
use etude_models::train::{RunConfig, Trainer, setting_keys};
use etude_tokenizer::{Meter, Note, Score, Tempo, Track, encoding};

#[path = "../../tests/support/folder.rs"]
mod folder;

use folder::Folder;

const FOUR: Meter = Meter { tick: 0, numerator: 4, denominator: 4 };

fn track(program: u8, notes: &[(u64, u64, u8)]) -> Track {
    let note = |&(tick, duration, pitch)| Note { tick, duration, pitch, velocity: 81 };
    Track { program, notes: notes.iter().map(note).collect(), ..Track::default() }
}

/// Six bars of 4/4 at 480 ticks a quarter, in D: a tune with a note across the third bar line, a bass,
/// and drums.
fn piece() -> Score {
    let mut score = Score::new(480);
    let bar = 1920;
    let scale = [62u8, 64, 66, 67, 69, 71, 73, 74];
    let mut tune: Vec<(u64, u64, u8)> =
        (0..24u64).map(|i| (480 * i, 480, scale[(i * 5 % 8) as usize])).collect();
    // From the last beat of bar 2 on into bar 3, whose first beat has no note of its own.
    tune[7].1 = 840;
    tune.remove(8);
    let bass: Vec<(u64, u64, u8)> =
        (0..6).map(|b| (bar * b, bar, 38 + (b as u8 % 3) * 5)).collect();
    let beat: Vec<(u64, u64, u8)> = (0..12).map(|i| (960 * i, 240, 36)).collect();
    score.tracks =
        vec![track(40, &tune), track(32, &bass), Track { is_drum: true, ..track(0, &beat) }];
    score.meters.push(FOUR);
    score.tempos.push(Tempo { tick: 0, micros_per_quarter: 600_000 });
    score
}

fn untrained(name: &str, sets: &[&str]) -> ModelConfig {
    let mut map = preset_config(name).unwrap();
    for set in ["hidden=12", "conditions=none"].iter().chain(sets) {
        config::set(&mut map, set, &model_keys()).unwrap();
    }
    ModelConfig::take(&mut map).unwrap()
}

fn request(primer: Score, sampling: Sampling, seed: u64) -> Request {
    let (length, meter, primer) = (Length::Bars(1), FOUR, Some(primer));
    Request { length, meter, tempo_bpm: 120.0, primer, sampling, seed }
}

/// The notes of a track that begin outside of a hole of ticks.
fn rest(track: &Track, hole: &std::ops::Range<u64>) -> Vec<Note> {
    track.notes.iter().filter(|note| !hole.contains(&note.tick)).copied().collect()
}

#[test]
fn a_hole_is_filled_and_all_else_stays_note_for_note() {
    let primer = piece();
    let small = ["layers=1", "heads=2", "ff=8"];
    for (name, heard) in [("satb-infill", 2), ("events-infill", 3), ("melody-c-infill", 1)] {
        let speaks = format!("encoding={name}");
        let mut written = 0;
        for (at, sets) in [&["context=2048"][..], &["context=200"]].into_iter().enumerate() {
            let sets = [&small[..], &[speaks.as_str()], sets].concat();
            let config = untrained("transformer/music-transformer-tiny", &sets);
            let mut writer = Writer::new(&config, &*config.build(3).unwrap()).unwrap();
            for (seed, bars) in [(1, 0..1), (2, 1..3), (3, 2..3), (4, 5..6), (5, 3..4)] {
                let beam = if seed == 5 && at == 0 { 2 } else { 1 };
                let sampling = Sampling { beam, branch: beam, ..Sampling::default() };
                let request = request(primer.clone(), sampling, seed);
                let filled = match writer.fill(&request, bars.clone(), &mut |_, _| true) {
                    Ok(filled) => filled.score,
                    // Two bars of four voices are 128 tokens: more than half of what this one sees.
                    Err(e) => {
                        assert!(at == 1 && e.to_string().contains("the model sees 200"), "{e}");
                        continue;
                    }
                };
                let hole = 1920 * bars.start as u64..1920 * bars.end as u64;
                for (i, (new, old)) in filled.tracks.iter().zip(&primer.tracks).enumerate() {
                    assert_eq!(rest(new, &hole), rest(old, &hole), "{name} {bars:?}");
                    let inside = new.notes.iter().filter(|note| hole.contains(&note.tick));
                    let inside: Vec<&Note> = inside.collect();
                    assert!(inside.iter().all(|n| n.tick + n.duration <= hole.end), "{name}");
                    if i >= heard {
                        assert_eq!(new, old, "{name}: what is not heard stays");
                    } else if i == 0 && hole.start == 3840 && name != "events-infill" {
                        // The note that sounds into bar 3 ends as it did, and then others begin.
                        assert!(inside.iter().all(|n| n.tick >= 3360 + 840), "{inside:?}");
                    }
                    written += inside.len();
                }
                let (a, b) = (&filled, &primer);
                assert_eq!(
                    (&a.meters, &a.tempos, a.ticks_per_quarter),
                    (&b.meters, &b.tempos, 480)
                );
                let again = writer.fill(&request, bars.clone(), &mut |_, _| true).unwrap();
                assert_eq!(again.score, filled);
            }
        }
        assert!(written > 10, "{name}: {written}");
    }
}

#[test]
fn a_hole_that_cannot_be_filled_is_refused() {
    let config = untrained("gru/basic", &["encoding=events-infill"]);
    let mut writer = Writer::new(&config, &*config.build(3).unwrap()).unwrap();
    let mut refused = |primer: Score, bars: std::ops::Range<usize>, part: &str| {
        let request = request(primer, Sampling::default(), 1);
        let fault = writer.fill(&request, bars, &mut |_, _| true).unwrap_err().to_string();
        assert!(fault.contains(part), "{fault}");
    };
    refused(piece(), 4..7, "fill: bars 5-7 are wanted; the primer has 6");
    refused(piece(), 3..3, "are wanted");
    refused(Score::new(480), 0..1, "bars 1-1 are wanted; the primer has 0");
    let mut uneven = piece();
    uneven.meters.push(Meter { tick: 2880, numerator: 3, denominator: 4 });
    refused(uneven, 1..3, "the metre changes");
    let config = untrained("gru/basic", &["encoding=melody-c"]);
    let mut writer = Writer::new(&config, &*config.build(3).unwrap()).unwrap();
    let request = request(piece(), Sampling::default(), 1);
    let fault = writer.fill(&request, 0..1, &mut |_, _| true).unwrap_err().to_string();
    assert!(fault.contains("speaks melody-c, in whose pieces no bars can be missing"), "{fault}");
    // What counts from the beginning of a piece cannot follow one whose bars are missing.
    let mut map = preset_config("lstm").unwrap();
    config::set(&mut map, "encoding=melody-c-infill", &model_keys()).unwrap();
    let fault = ModelConfig::take(&mut map).unwrap_err().to_string();
    assert!(fault.starts_with("model.conditions: form"), "{fault}");
}

/// A note a bar: the first on any pitch, the second and the third on another one.
fn echo(first: u8, second: u8) -> Score {
    let mut score = Score::new(24);
    let note = |bar: u64, pitch| (96 * bar, 96, 60 + pitch);
    score.tracks.push(track(0, &[note(0, first), note(1, second), note(2, second)]));
    score
}

fn settings(sets: &[&str]) -> RunConfig {
    let mut map = preset_config("transformer/infill").unwrap();
    for set in sets {
        config::set(&mut map, set, &setting_keys()).unwrap();
    }
    RunConfig::read(map).unwrap()
}

fn data(config: &RunConfig, pieces: impl Iterator<Item = (u8, u8)>) -> Dataset {
    let train = pieces.map(|(a, b)| (format!("{a} {b}"), echo(a, b))).collect();
    let encoding = config.model.encoding().unwrap();
    let scores = Scores { train, ..Scores::default() };
    let data = Dataset::new(&scores, &*encoding, config.model.conditions, 0).unwrap();
    data.changed(&*encoding, 1, config.train.augment()).unwrap()
}

#[test]
fn windows_have_holes_as_often_as_is_said() {
    for (chance, wanted) in [("fill=0", 0..=0), ("fill=0.5", 150..=250), ("fill=1", 400..=400)] {
        let config = settings(&["encoding=events-infill", "transpose=0", chance]);
        let data = data(&config, (0..8).map(|i| (i, 7 - i)));
        let infill = encoding("events-infill").unwrap();
        let mut holes = 0;
        for step in 0..100 {
            let batch = Batch::of_step(&data.train, 3, step, 4, 768).unwrap();
            for piece in 0..4 {
                let tokens = batch.targets.iter().skip(piece).step_by(4);
                let tokens: Vec<u32> = tokens.copied().filter(|t| *t != u32::MAX).collect();
                holes += usize::from(infill.token_name(tokens[0]) == "FILL_PREFIX");
                // In any order it is the same music.
                let score = infill.decode(&tokens).unwrap();
                let pitches: Vec<u8> = score.tracks[0].notes.iter().map(|n| n.pitch).collect();
                // Some windows begin with the second bar.
                let [.., second, third] = pitches[..] else { panic!("{pitches:?}") };
                assert_eq!(second, third, "{pitches:?}");
            }
        }
        assert!(wanted.contains(&holes), "{chance}: {holes} of 400");
    }
}

/// The missing bar is that which follows it: what stands before says nothing of it.
#[test]
fn a_model_learns_to_fill_a_bar_from_what_comes_after() {
    let folder = Folder::new("echo");
    let config = settings(&[
        "encoding=events-infill",
        "hidden=48",
        "layers=2",
        "heads=4",
        "ff=96",
        "context=64",
        "dropout=0",
        "batch=16",
        "window=64",
        "transpose=0",
        "steps=400",
        "warmup=20",
        "lr=0.004",
        "valid_every=1000",
        "save_every=1000",
    ]);
    let pairs = || (0..12u8).flat_map(|a| (0..12u8).map(move |b| (a, b)));
    let held_out = |(a, b): &(u8, u8)| (a + 3 * b) % 7 == 0;
    let data = data(&config, pairs().filter(|pair| !held_out(pair)));
    let mut trainer = Trainer::create(config.clone(), data, &folder.0.join("run")).unwrap();
    trainer.train(None, &|| false, &mut |_| {}).unwrap();
    let mut writer = Writer::new(&config.model, trainer.model()).unwrap();
    let (mut right, mut all) = (0, 0);
    for (first, second) in pairs().filter(held_out) {
        let mut primer = echo(first, second);
        // What stood in the hole is not told.
        primer.tracks[0].notes[1].pitch = 90;
        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        let filled = writer.fill(&request(primer, sampling, 1), 1..2, &mut |_, _| true).unwrap();
        let notes = &filled.score.tracks[0].notes;
        right += usize::from(notes.len() == 3 && notes[1].pitch == notes[2].pitch);
        all += 1;
    }
    // Guessing finds a twelfth.
    assert!(all > 15 && right * 10 >= all * 8, "{right} of {all}");
}
