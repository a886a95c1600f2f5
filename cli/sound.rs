//! Sound as samples, and as a WAV file.

use std::path::Path;

use crate::error::{Error, Result, reason};
use crate::output::Staged;

/// Frames a second.
pub const RATE: u32 = 44_100;

/// The peak of a finished piece: -1 dB below full scale.
const PEAK: f32 = 0.891_250_9;

/// Stereo sound.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Audio {
    /// Left and right in turn, -1 to 1.
    pub samples: Vec<f32>,
}

impl Audio {
    /// Length in seconds.
    pub fn seconds(&self) -> f64 {
        self.samples.len() as f64 / 2.0 / f64::from(RATE)
    }

    /// The loudest sample.
    pub fn peak(&self) -> f32 {
        self.samples.iter().fold(0.0, |peak, sample| peak.max(sample.abs()))
    }

    /// Scales the sound to a peak of -1 dB; silence stays silent.
    pub fn normalise(&mut self) {
        let peak = self.peak();
        if peak > 0.0 {
            let scale = PEAK / peak;
            self.samples.iter_mut().for_each(|sample| *sample *= scale);
        }
    }

    /// Lets the last seconds fade to silence.
    pub fn fade_out(&mut self, seconds: f32) {
        let samples = ((seconds * RATE as f32) as usize * 2).min(self.samples.len());
        let from = self.samples.len() - samples;
        for (i, sample) in self.samples[from..].iter_mut().enumerate() {
            *sample *= 1.0 - i as f32 / samples as f32;
        }
    }

    /// Writes a WAV file of 16 bits, whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written; the message names it.
    pub fn write_wav(&self, path: &Path) -> Result<()> {
        let fail = |e: hound::Error| match e {
            hound::Error::IoError(e) => Error::unwritable(path, reason(&e)),
            e => Error::unwritable(path, e),
        };
        let spec = hound::WavSpec {
            channels: 2,
            sample_rate: RATE,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        let mut file = Staged::create(path)?;
        let mut wav = hound::WavWriter::new(&mut file, spec).map_err(fail)?;
        // One second at a time: the writer copies each piece whole.
        for piece in self.samples.chunks(2 * RATE as usize) {
            let mut out = wav.get_i16_writer(piece.len() as u32);
            for &sample in piece {
                out.write_sample((sample.clamp(-1.0, 1.0) * 32_767.0).round() as i16);
            }
            out.flush().map_err(fail)?;
        }
        wav.finalize().map_err(fail)?;
        file.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wav_file_holds_what_was_written() {
        let path = std::env::temp_dir().join(format!("etude-sound-{}.wav", std::process::id()));
        let mut audio = Audio { samples: (0..100_000).map(|i| (i as f32).sin() * 0.3).collect() };
        audio.normalise();
        audio.write_wav(&path).unwrap();
        let mut wav = hound::WavReader::open(&path).unwrap();
        assert_eq!((wav.spec().channels, wav.spec().sample_rate), (2, RATE));
        let read: Vec<i16> = wav.samples().map(|s| s.unwrap()).collect();
        assert_eq!(read.len(), audio.samples.len());
        assert_eq!(read.iter().map(|s| s.abs()).max(), Some(29_204)); // 0.89125 * 32767, rounded
        std::fs::remove_file(path).unwrap();
    }
}
