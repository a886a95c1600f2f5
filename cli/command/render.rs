//! `etude render F.mid`: a MIDI file as sound and as a picture.

use std::path::{Path, PathBuf};

use etude_tokenizer::Score;
use serde_json::json;

use crate::console::{Console, show_path};
use crate::error::{Error, Result};
use crate::input::read_midi;
use crate::sound::Audio;
use crate::{output, pianoroll, synth};

/// Arguments of `etude render`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  etude render song.mid
  etude render song.mid --out take1.wav --image take1.png
  etude render song.mid --soundfont font.sf2 --no-image")]
pub struct Args {
    /// The MIDI file
    file: PathBuf,

    /// The WAV file; without it, the MIDI file's name in the current folder
    #[arg(long, value_name = "F.wav")]
    out: Option<PathBuf>,

    /// The piano-roll picture; without it, beside the WAV file
    #[arg(long, value_name = "F.png")]
    image: Option<PathBuf>,

    #[command(flatten)]
    sound: SoundArgs,
}

/// Which renderings are wanted, and by which instruments; for every command that makes music.
#[derive(Debug, Clone, clap::Args)]
pub struct SoundArgs {
    /// Play with the instruments of a SoundFont instead of the built-in ones
    #[arg(long, value_name = "F.sf2", conflicts_with = "no_audio")]
    pub soundfont: Option<PathBuf>,

    /// Write no sound
    #[arg(long)]
    pub no_audio: bool,

    /// Write no picture
    #[arg(long)]
    pub no_image: bool,
}

impl SoundArgs {
    /// Renders a score as sound, unless none is wanted.
    ///
    /// # Errors
    /// If the piece is empty or too long, or the SoundFont is bad.
    pub fn render(&self, score: &Score) -> Result<Option<Audio>> {
        match &self.soundfont {
            _ if self.no_audio => Ok(None),
            Some(font) => crate::soundfont::render(score, font).map(Some),
            None => synth::render(score).map(Some),
        }
    }
}

/// Renders a file.
///
/// # Errors
/// If the MIDI file or the SoundFont is bad, or an output cannot be written.
pub fn run(args: &Args, console: &Console) -> Result<()> {
    let reading = read_midi(&args.file, console)?;
    let score = &reading.score;
    if args.sound.no_audio && args.sound.no_image {
        return Err(Error::input("--no-audio and --no-image leave nothing to do"));
    }
    let stem = args.file.file_stem().unwrap_or_default();
    let named = |ending: &str| {
        let mut name = stem.to_owned();
        name.push(".");
        name.push(ending);
        PathBuf::from(name)
    };
    let within =
        |path: &Path, ending: &str| output::place(path, &named(ending).to_string_lossy(), console);
    let wav = args.out.as_deref().map_or_else(|| named("wav"), |path| within(path, "wav"));
    let image = match (&args.image, &args.out) {
        (Some(path), _) => within(path, "png"),
        (None, Some(_)) => wav.with_extension("png"),
        (None, None) => named("png"),
    };
    if image == wav && !args.sound.no_audio && !args.sound.no_image {
        return Err(Error::file(&wav, "the sound and the picture need two names"));
    }
    // Both are made before either is written: a refusal leaves nothing behind.
    let audio = args.sound.render(score).map_err(|e| match e {
        Error::Input { file: None, why } => Error::file(&args.file, why),
        other => other,
    })?;
    let title = stem.to_string_lossy();
    let picture = (!args.sound.no_image).then(|| pianoroll::draw(score, &title).png());
    if let Some(audio) = &audio {
        audio.write_wav(&wav)?;
        console.say(format!("{}: {:.1} s", show_path(&wav), audio.seconds()))?;
    }
    if let Some(picture) = &picture {
        output::write(&image, picture)?;
        console.say(show_path(&image))?;
    }
    console.report(&json!({
        "files": [{
            "midi": args.file.to_string_lossy(),
            "wav": audio.as_ref().map(|_| wav.to_string_lossy()),
            "image": picture.as_ref().map(|_| image.to_string_lossy()),
        }],
        "notes": score.note_count(),
        "seconds": score.seconds(),
        "warnings": reading.warnings,
    }))
}
