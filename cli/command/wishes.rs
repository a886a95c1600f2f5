//! What a piece can be asked to be like, on the command line.

use etude_models::data::Conditions;
use etude_models::wishes::Wishes;
use etude_tokenizer::chord::{Progression, chord_markers, marked_chords};
use etude_tokenizer::{Note, Score, Track};

use crate::error::{Error, Result};

/// Arguments that only some models take.
#[derive(Debug, clap::Args)]
pub(super) struct WishArgs {
    /// Chords to play over, such as "C Am F G7", for a model that reads chords (lstm/improv-basic):
    /// one a bar from the beginning of the piece, again and again; with bar lines, `C Am | F G7`, those
    /// of a bar share it [default: C G Am F C G F C]
    #[arg(long, value_name = "CHORDS", value_parser = progression)]
    chords: Option<Progression>,

    /// Let block chords sound below the melody that is played over them
    #[arg(long)]
    play_chords: bool,

    /// Notes a second, for a model that reads a density (lstm/performance-density)
    #[arg(long, value_name = "N")]
    density: Option<f64>,

    /// How much each pitch class from C to B sounds, twelve numbers, for a model that reads them
    /// (lstm/performance-pitches); C major: 1,0,1,0,1,1,0,1,0,1,0,1
    #[arg(long, value_name = "W,W,..", value_parser = histogram)]
    pitch_histogram: Option<Histogram>,
}

/// The weight of each pitch class.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Histogram([f32; 12]);

impl WishArgs {
    pub fn wishes(&self) -> Wishes {
        Wishes {
            chords: self.chords.clone(),
            density: self.density,
            pitch_histogram: self.pitch_histogram.map(|histogram| histogram.0),
        }
    }
}

/// The lowest C of the chords that sound; their basses are an octave lower.
const CHORD_OCTAVE: u8 = 48;
const CHORD_VELOCITY: u8 = 56;

impl WishArgs {
    /// Refuses to play chords with a model that reads none.
    ///
    /// # Errors
    /// If that is asked for.
    pub fn check(&self, conditions: Conditions) -> Result<()> {
        match (self.play_chords, conditions) {
            (true, Conditions::Chords(..)) | (false, _) => Ok(()),
            (true, _) => Err(Error::input(format!(
                "--play-chords: the model plays over no chords (its conditions are {})",
                conditions.name()
            ))),
        }
    }

    /// Moves the chords that a piece tells as its notes were moved, and lets them sound if that is
    /// asked for.
    pub fn finish(&self, mut score: Score, semitones: i32) -> Score {
        let (mut changes, _) = marked_chords(&score.markers);
        for change in &mut changes {
            change.chord = change.chord.map(|chord| chord.transpose(semitones));
        }
        score.markers = chord_markers(&changes);
        if self.play_chords {
            let end = score.end_tick();
            let ends = changes.iter().skip(1).map(|next| next.tick).chain([end]);
            let mut notes = Vec::new();
            for (change, end) in changes.iter().zip(ends).filter(|(c, end)| c.tick < *end) {
                let Some(chord) = change.chord else { continue };
                let tones = (0..12).filter(|class| chord.pitches() >> class & 1 == 1);
                let pitches = tones.map(|class| CHORD_OCTAVE + class);
                let bass = CHORD_OCTAVE - 12 + chord.bass();
                notes.extend(std::iter::once(bass).chain(pitches).map(|pitch| Note {
                    tick: change.tick,
                    duration: end - change.tick,
                    pitch,
                    velocity: CHORD_VELOCITY,
                }));
            }
            score.tracks.push(Track { name: "chords".into(), notes, ..Track::default() });
        }
        score
    }
}

/// Reads a progression of chords.
pub(super) fn progression(text: &str) -> std::result::Result<Progression, String> {
    Progression::parse(text).map_err(|e| e.to_string())
}

fn histogram(text: &str) -> std::result::Result<Histogram, String> {
    let weight = |word: &str| {
        let weight: Option<f32> = word.trim().parse().ok();
        weight.ok_or_else(|| format!("{:?} is not a number", short(word)))
    };
    let weights = text.split(',').map(weight);
    let weights = weights.collect::<std::result::Result<Vec<f32>, String>>()?;
    let count = weights.len();
    let weights = <[f32; 12]>::try_from(weights);
    weights.map(Histogram).map_err(|_| format!("{count} numbers; 12 are wanted, from C to B"))
}

fn short(word: &str) -> String {
    word.chars().take(20).collect()
}
