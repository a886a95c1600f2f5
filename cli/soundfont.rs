//! Sound by the instruments of a SoundFont, through rustysynth.

use std::path::Path;

use etude_tokenizer::Score;

use crate::error::{Error, Result};
use crate::sound::Audio;

/// Renders a score with a SoundFont; the result peaks at -1 dB.
///
/// # Errors
/// Always: this build leaves the feature `soundfont` out.
#[cfg(not(feature = "soundfont"))]
pub fn render(_: &Score, font: &Path) -> Result<Audio> {
    Err(Error::file(font, "this build plays no SoundFonts: build with --features soundfont"))
}

#[cfg(feature = "soundfont")]
pub use with_rustysynth::render;

#[cfg(feature = "soundfont")]
mod with_rustysynth {
    use super::*;
    use crate::input::read_bytes;
    use crate::sound::RATE;
    use crate::synth::MAX_SECONDS;
    use rustysynth::{MidiFile, MidiFileSequencer, SoundFont, Synthesizer, SynthesizerSettings};
    use std::sync::Arc;

    /// Largest SoundFont.
    const MAX_BYTES: u64 = 512 << 20;
    /// Seconds of sound after the last note ends.
    const TAIL: f64 = 1.5;

    /// Renders a score with a SoundFont; the result peaks at -1 dB.
    ///
    /// # Errors
    /// If the font is damaged or larger than 512 MB, or the piece is empty or too long.
    pub fn render(score: &Score, font: &Path) -> Result<Audio> {
        let seconds = score.seconds();
        if score.note_count() == 0 {
            return Err(Error::input("sound: the piece has no notes"));
        }
        if seconds > MAX_SECONDS {
            return Err(Error::input(format!(
                "sound: the piece lasts {seconds:.0} s; at most {MAX_SECONDS:.0} s are rendered"
            )));
        }
        let bytes = read_bytes(font, MAX_BYTES)?;
        check(&bytes).map_err(|why| Error::file(font, format!("not a SoundFont: {why}")))?;
        let damaged = |why: String| Error::file(font, format!("not a usable SoundFont: {why}"));
        let sound = quietly(|| SoundFont::new(&mut bytes.as_slice()))
            .ok_or_else(|| damaged("its tables do not fit together".to_owned()))?
            .map_err(|e| damaged(e.to_string()))?;
        drop(bytes);
        quietly(|| play(score, sound))
            .ok_or_else(|| damaged("its instruments do not fit together".to_owned()))?
    }

    /// Runs code of others that may panic on damaged tables; `None` if it did.
    fn quietly<T>(work: impl FnOnce() -> T) -> Option<T> {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        std::panic::set_hook(hook);
        done.ok()
    }

    fn play(score: &Score, sound: SoundFont) -> Result<Audio> {
        let fail = |e: String| Error::failed(format!("sound: {e}"));
        let midi =
            MidiFile::new(&mut score.to_midi().as_slice()).map_err(|e| fail(e.to_string()))?;
        let settings = SynthesizerSettings::new(RATE as i32);
        let player =
            Synthesizer::new(&Arc::new(sound), &settings).map_err(|e| fail(e.to_string()))?;
        let mut sequencer = MidiFileSequencer::new(player);
        sequencer.play(&Arc::new(midi), false);
        let frames = ((score.seconds() + TAIL) * f64::from(RATE)) as usize;
        let mut samples = Vec::with_capacity(2 * frames);
        let (mut left, mut right) = (vec![0.0f32; 4096], vec![0.0f32; 4096]);
        while samples.len() < 2 * frames {
            let now = (frames - samples.len() / 2).min(left.len());
            sequencer.render(&mut left[..now], &mut right[..now]);
            samples.extend(left[..now].iter().zip(&right[..now]).flat_map(|(l, r)| [*l, *r]));
        }
        let mut audio = Audio { samples };
        audio.fade_out(0.3);
        audio.normalise();
        Ok(audio)
    }

    /// Checks that a file is a SoundFont whose chunks lie inside it: the reader behind trusts sizes.
    fn check(bytes: &[u8]) -> std::result::Result<(), String> {
        let inside = match (bytes.get(..4), bytes.get(8..12)) {
            (Some(b"RIFF"), Some(b"sfbk")) => chunk(bytes)?,
            _ => return Err("no RIFF header of the kind sfbk".to_owned()),
        };
        let mut rest = inside.get(4..).unwrap_or_default();
        let mut lists = Vec::new();
        while !rest.is_empty() {
            let list = chunk(rest)?;
            if rest.get(..4) == Some(b"LIST") {
                lists.push(list.get(..4).unwrap_or_default());
                let mut below = list.get(4..).unwrap_or_default();
                while !below.is_empty() {
                    let size = chunk(below)?.len();
                    below = below.get(8 + size..).unwrap_or_default();
                }
            }
            rest = rest.get(8 + list.len()..).unwrap_or_default();
        }
        match lists[..] {
            [b"INFO", b"sdta", b"pdta"] => Ok(()),
            _ => Err("the lists INFO, sdta and pdta are not all there".to_owned()),
        }
    }

    /// The content of the chunk that `bytes` begin with.
    fn chunk(bytes: &[u8]) -> std::result::Result<&[u8], String> {
        let size = bytes.get(4..8).and_then(|size| size.try_into().ok()).map(u32::from_le_bytes);
        let size = size.ok_or("cut short inside a chunk's header")? as usize;
        bytes
            .get(8..8 + size)
            .ok_or_else(|| format!("a chunk promises {size} bytes, {} are there", bytes.len() - 8))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn chunks_that_promise_too_much_are_refused() {
            let font = |size: u32| {
                let mut bytes = b"RIFF\x14\0\0\0sfbkLIST".to_vec();
                bytes.extend(size.to_le_bytes());
                bytes.extend(b"INFO\0\0\0\0");
                bytes
            };
            assert_eq!(check(&font(8)).unwrap_err(), "cut short inside a chunk's header");
            assert!(check(&font(u32::MAX)).unwrap_err().contains("promises 4294967295 bytes"));
            assert!(check(b"RIFF").unwrap_err().contains("no RIFF header"));
            assert!(check(&[]).is_err());
        }
    }
}
