//! `etude harmonize`: a model of four-part writing sets a melody for soprano, alto, tenor and bass.

use std::path::PathBuf;

use etude_models::data::meter_of;
use etude_models::generate::Around;
use etude_tokenizer::chord::Progression;
use etude_tokenizer::step_input::steps_per_bar;
use etude_tokenizer::{Note, Satb, Score, Track, quantise_beats, transpose};

use crate::command::generate::{Controls, Source, write};
use crate::command::wishes::progression;
use crate::console::Console;
use crate::error::{Error, Result};
use crate::input::read_midi;

/// Arguments of `etude harmonize`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  etude harmonize tune.mid\n  etude harmonize tune.mid --chords \"C Am F G7\" --out four.mid\n  etude harmonize tune.mid --with run --temperature 0.8 --seed 3\n\nThe melody is the highest track that is not drums; it stays as it is and is the soprano. Chords are one a bar and begin anew when all have been; with bar lines, `C Am | F G7`, those of a bar share it. The other voices then sing notes of the chords alone."
)]
pub struct Args {
    /// The melody
    #[arg(value_name = "MELODY.mid")]
    file: PathBuf,

    /// The model of four-part writing (encoding satb): a bundled model, a run directory or a
    /// .safetensors file
    #[arg(long = "with", value_name = "NAME", default_value = "transformer")]
    name: PathBuf,

    /// The chords of the melody's bars, such as "C Am F G7"
    #[arg(long, value_name = "CHORDS", value_parser = progression)]
    chords: Option<Progression>,

    #[command(flatten)]
    controls: Controls,
}

/// Sets a melody.
///
/// # Errors
/// If the file holds no melody, a chord has no place in its metre, the model knows no four parts, or
/// as in [`crate::command::generate::run`].
pub fn run(args: &Args, console: &Console) -> Result<()> {
    let score = read_midi(&args.file, console)?.score;
    let melody = Melody::of(&score).map_err(|why| Error::file(&args.file, why))?;
    let meter = meter_of(&score);
    let chords = match &args.chords {
        None => Vec::new(),
        Some(chords) => {
            let steps = chords.steps(steps_per_bar(meter));
            let steps = steps.map_err(|e| Error::input(format!("--chords: {e}")))?;
            steps.into_iter().cycle().take(melody.steps).collect()
        }
    };
    let around = Around { voice: melody.voice(), chords };
    let source = Source {
        around: Some(around),
        steps: Some(melody.steps),
        finish: Some(Box::new(move |score| melody.restore(score))),
        ..Source::of_file(&args.file)
    };
    args.controls.machine.pool()?.run(|| write(&args.controls, &args.name, source, console))
}

/// A melody and how it is sung.
struct Melody {
    /// The melody alone, with its metre, tempo and key.
    score: Score,
    /// Octaves by which it is moved to where a soprano sings.
    octaves: i32,
    /// Its length in sixteenths.
    steps: usize,
}

/// The middle of what sopranos sing in the chorales.
const SOPRANO: f64 = 71.0;
/// How much softer the other voices are, of MIDI's 127.
const SOFTER: u8 = 12;

impl Melody {
    /// The highest track that is not drums.
    fn of(score: &Score) -> std::result::Result<Melody, String> {
        // On ticks of which four make a quarter note, or a multiple of four.
        let score = match score.ticks_per_quarter.is_multiple_of(4) {
            true => score.clone(),
            false => quantise_beats(score, 480).score,
        };
        let tracks = score.tracks.iter().filter(|t| !t.is_drum && !t.notes.is_empty());
        let Some(track) = tracks.rev().max_by(|a, b| a.mean_pitch().total_cmp(&b.mean_pitch()))
        else {
            return Err("no notes but drums; a melody is wanted".into());
        };
        let octaves = ((SOPRANO - track.mean_pitch()) / 12.0).round() as i32;
        let name = Satb::VOICES[0].to_string();
        let score = Score { tracks: vec![Track { name, ..track.clone() }], ..score };
        // A melody that is wider than that stays where it is.
        let octaves = if transpose(&score, 12 * octaves).is_some() { octaves } else { 0 };
        let steps = quantise_beats(&score, 4).score.end_tick() as usize;
        Ok(Melody { score, octaves, steps })
    }

    /// The melody as the model hears it.
    fn voice(&self) -> Score {
        transpose(&self.score, 12 * self.octaves).unwrap_or_else(|| self.score.clone())
    }

    /// Puts the melody, note for note, in the place of what the model heard of it.
    fn restore(&self, written: Score) -> Score {
        let written = transpose(&written, -12 * self.octaves).unwrap_or(written);
        let scale = u64::from(self.score.ticks_per_quarter / written.ticks_per_quarter.max(1));
        let mut whole = self.score.clone();
        let melody = &self.score.tracks[0];
        let loudest = melody.notes.iter().map(|note| note.velocity).max().unwrap_or(100);
        let velocity = loudest.saturating_sub(SOFTER).max(1);
        for mut track in written.tracks.into_iter().filter(|track| track.name != melody.name) {
            track.program = melody.program;
            for note in &mut track.notes {
                let (tick, duration) = (note.tick * scale, note.duration * scale);
                *note = Note { tick, duration, velocity, ..*note };
            }
            whole.tracks.push(track);
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn octaves(pitches: &[u8]) -> i32 {
        let notes = (0..).zip(pitches);
        let notes =
            notes.map(|(tick, pitch)| Note { tick, duration: 1, pitch: *pitch, velocity: 90 });
        let mut score = Score::new(4);
        score.tracks.push(Track { notes: notes.collect(), ..Track::default() });
        Melody::of(&score).unwrap().octaves
    }

    #[test]
    fn a_melody_is_moved_to_a_soprano_where_midi_has_room() {
        assert_eq!([octaves(&[67, 72, 76]), octaves(&[48, 50]), octaves(&[100])], [0, 2, -2]);
        // The mean is an octave too low, and the highest note has no octave above it.
        assert_eq!(octaves(&[1, 50, 126]), 0);
    }
}
