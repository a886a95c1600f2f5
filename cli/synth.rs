//! The built-in synthesizer: a score as sound, without any sample or font.
//!
//! A pitched voice reads one cycle of two wave tables, a bright one and a soft one, and fades from
//! the one to the other: what a struck string does. Tables are sums of harmonics below 18 kHz, one
//! for each octave, so nothing aliases. Drums are short sounds made once and mixed in. A small
//! reverberation joins them to one room. Voices are limited, so time is bounded by the length of
//! the piece, whatever the file says.

mod drums;
mod room;
mod timbre;

use etude_tokenizer::{Note, Score, Track};

use crate::error::{Error, Result};
use crate::sound::{Audio, RATE};
use drums::Kit;
use room::Room;
use timbre::{TABLE_BITS, Tables, Timbre};

/// The longest piece that is rendered, in seconds. Fifteen minutes are 320 MB while they are mixed.
pub const MAX_SECONDS: f64 = 900.0;

/// Most notes that sound at once; the oldest gives way.
const MAX_VOICES: usize = 96;
/// Frames for which an envelope is a straight line: 1.5 ms.
const BLOCK: usize = 64;
/// Seconds of sound after the last note ends.
const TAIL: f64 = 1.5;
/// A voice below this is over: -80 dB.
const SILENCE: f32 = 1e-4;

/// Renders a score; the result peaks at -1 dB.
///
/// # Errors
/// If the score has no notes, or lasts longer than [`MAX_SECONDS`].
pub fn render(score: &Score) -> Result<Audio> {
    let seconds = score.seconds();
    if score.note_count() == 0 {
        return Err(Error::input("sound: the piece has no notes"));
    }
    if seconds > MAX_SECONDS {
        return Err(Error::input(format!(
            "sound: the piece lasts {seconds:.0} s; at most {MAX_SECONDS:.0} s are rendered"
        )));
    }
    let frames = ((seconds + TAIL) * f64::from(RATE)) as usize;
    let mut samples = vec![0.0f32; 2 * frames];
    let starts = starts(score);
    let tables = Tables::new();
    let mut voices: Vec<Voice> = Vec::new();
    let mut kit = Kit::new();
    let mut next = 0;
    for (block, out) in samples.chunks_mut(2 * BLOCK).enumerate() {
        let from = block * BLOCK;
        while next < starts.len() && starts[next].frame < from + BLOCK {
            let start = &starts[next];
            next += 1;
            if start.is_drum {
                kit.hit(start.pitch, start.velocity, start.frame);
                continue;
            }
            if voices.len() >= MAX_VOICES {
                voices.remove(0);
            }
            voices.push(Voice::new(start, &tables));
        }
        voices.retain_mut(|voice| voice.mix(out, from, &tables));
        kit.mix(out, from);
    }
    Room::new().mix(&mut samples);
    let mut audio = Audio { samples };
    audio.fade_out(0.3);
    audio.normalise();
    Ok(audio)
}

/// A note in frames.
struct Start {
    frame: usize,
    /// Where the key or the pedal lets go.
    release: usize,
    pitch: u8,
    velocity: u8,
    program: u8,
    is_drum: bool,
    /// -1 is left, 1 is right.
    pan: f32,
}

/// All notes in the order in which they begin.
fn starts(score: &Score) -> Vec<Start> {
    let clock = Clock::new(score);
    let mut starts = Vec::with_capacity(score.note_count());
    let pitched = score.tracks.iter().filter(|track| !track.is_drum).count();
    let mut seat = 0;
    for track in &score.tracks {
        // One instrument sits in the middle; several sit in a row from left to right.
        let pan = if track.is_drum || pitched < 2 {
            0.0
        } else {
            seat += 1;
            (2.0 * (seat - 1) as f32 / (pitched - 1) as f32 - 1.0) * 0.5
        };
        let ends = pedalled_ends(track);
        for (note, end) in track.notes.iter().zip(ends) {
            let frame = clock.frame(note.tick);
            // Keys of one instrument are a little spread as well: low left, high right.
            let spread = (f32::from(note.pitch) - 64.0) / 64.0 * 0.25;
            starts.push(Start {
                frame,
                release: clock.frame(end).max(frame + 1),
                pitch: note.pitch.min(127),
                velocity: note.velocity.clamp(1, 127),
                program: track.program.min(127),
                is_drum: track.is_drum,
                pan: (pan + spread).clamp(-0.9, 0.9),
            });
        }
    }
    starts.sort_by_key(|s| (s.frame, s.is_drum, s.pitch, s.velocity, s.program));
    starts
}

/// Where each note of a track stops to sound: at its end, or when the pedal comes up, or when its key
/// is struck again.
fn pedalled_ends(track: &Track) -> Vec<u64> {
    let end_of = |n: &Note| n.tick.saturating_add(n.duration);
    let last = track.notes.iter().map(end_of).max().unwrap_or(0);
    let ups: Vec<u64> = track.pedals.iter().filter(|p| p.value < 64).map(|p| p.tick).collect();
    let mut struck_again = [u64::MAX; 128];
    let mut ends: Vec<u64> = track.notes.iter().map(end_of).collect();
    for (note, end) in track.notes.iter().zip(&mut ends).rev() {
        let key = usize::from(note.pitch & 127);
        let before = track.pedals.partition_point(|pedal| pedal.tick <= *end);
        if before > 0 && track.pedals[before - 1].value >= 64 {
            let up = ups.get(ups.partition_point(|up| up <= end)).copied();
            *end = up.unwrap_or(last).min(struck_again[key]).max(*end);
        }
        struck_again[key] = note.tick;
    }
    ends
}

/// Ticks to frames, by binary search in the tempo map.
struct Clock {
    /// Tick, its time in seconds, seconds for a tick from there on.
    stretches: Vec<(u64, f64, f64)>,
}

impl Clock {
    fn new(score: &Score) -> Clock {
        let tpq = f64::from(score.ticks_per_quarter.max(1));
        let per_tick = |micros: u32| f64::from(micros) / 1e6 / tpq;
        let mut stretches = vec![(0, 0.0, per_tick(500_000))];
        for tempo in &score.tempos {
            let (tick, seconds, rate) = stretches[stretches.len() - 1];
            let at = seconds + tempo.tick.saturating_sub(tick) as f64 * rate;
            stretches.push((tempo.tick.max(tick), at, per_tick(tempo.micros_per_quarter)));
        }
        Clock { stretches }
    }

    fn frame(&self, tick: u64) -> usize {
        let after = self.stretches.partition_point(|s| s.0 <= tick);
        let (from, seconds, rate) = self.stretches[after.saturating_sub(1)];
        let seconds = seconds + (tick - from) as f64 * rate;
        (seconds.min(2.0 * MAX_SECONDS) * f64::from(RATE)).round() as usize
    }
}

/// A sounding note.
struct Voice {
    start: usize,
    release: usize,
    /// Position in the cycle, as a fraction of 2^32.
    phase: u32,
    step: u32,
    tables: usize,
    attack_frames: f32,
    /// Loudness now, without the attack; falls by `decay` in each block, towards `sustain`.
    level: f32,
    sustain: f32,
    decay: f32,
    release_decay: f32,
    /// Share of the bright table.
    bright: f32,
    bright_decay: f32,
    /// What the envelope was at the end of the last block.
    envelope: f32,
    left: f32,
    right: f32,
}

impl Voice {
    fn new(start: &Start, tables: &Tables) -> Voice {
        let timbre = Timbre::of_program(start.program);
        let hertz = 440.0 * ((f64::from(start.pitch) - 69.0) / 12.0).exp2();
        let loudness = (f32::from(start.velocity) / 127.0).powf(1.6);
        // Low strings ring longer: a factor of 2 for each 1.5 octaves.
        let ring = timbre.ring_seconds * ((60.0 - f32::from(start.pitch)) / 18.0).exp2();
        // Loss in a block for a fall by 60 dB (a factor of 1000) in `seconds`.
        let fall = |seconds: f32| (-6.908 * BLOCK as f32 / (seconds * RATE as f32)).exp();
        let angle = (start.pan + 1.0) * std::f32::consts::FRAC_PI_4;
        let level = loudness * timbre.gain;
        Voice {
            start: start.frame,
            release: start.release,
            phase: 0,
            step: (hertz / f64::from(RATE) * 4_294_967_296.0) as u32,
            tables: tables.index(timbre, start.pitch),
            attack_frames: timbre.attack_seconds * RATE as f32,
            level,
            sustain: level * timbre.sustain,
            decay: fall(ring),
            release_decay: fall(timbre.release_seconds),
            bright: timbre.bright * (0.35 + 0.65 * loudness),
            bright_decay: fall(ring * timbre.bright_ring),
            envelope: 0.0,
            left: angle.cos(),
            right: angle.sin(),
        }
    }

    /// Adds a block to `out`; false once the voice is over.
    fn mix(&mut self, out: &mut [f32], from: usize, tables: &Tables) -> bool {
        let begin = self.start.saturating_sub(from);
        let length = out.len() / 2;
        if begin >= length {
            return true;
        }
        let end = from + length;
        if end > self.release {
            self.level *= self.release_decay;
            self.sustain *= self.release_decay;
        } else {
            self.level = self.sustain + (self.level - self.sustain) * self.decay;
        }
        self.bright *= self.bright_decay;
        let attack = ((end - self.start) as f32 / self.attack_frames).min(1.0);
        let target = self.level * attack;
        let slope = (target - self.envelope) / (length - begin) as f32;
        let (soft, bright) = tables.pair(self.tables);
        const SHIFT: u32 = 32 - TABLE_BITS;
        const FRACTION: f32 = 1.0 / (1u32 << SHIFT) as f32;
        let mut envelope = self.envelope;
        for frame in out.chunks_exact_mut(2).skip(begin) {
            let at = (self.phase >> SHIFT) as usize;
            let fraction = (self.phase & ((1 << SHIFT) - 1)) as f32 * FRACTION;
            let low = soft[at] + (soft[at + 1] - soft[at]) * fraction;
            let high = bright[at] + (bright[at + 1] - bright[at]) * fraction;
            let sample = (low + (high - low) * self.bright) * envelope;
            frame[0] += sample * self.left;
            frame[1] += sample * self.right;
            envelope += slope;
            self.phase = self.phase.wrapping_add(self.step);
        }
        self.envelope = target;
        target > SILENCE || attack < 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etude_tokenizer::Pedal;

    fn score(notes: &[(u64, u64, u8)], program: u8, is_drum: bool) -> Score {
        let mut score = Score::new(480);
        let note = |&(tick, duration, pitch)| Note { tick, duration, pitch, velocity: 100 };
        let notes = notes.iter().map(note).collect();
        score.tracks.push(Track { program, is_drum, notes, ..Track::default() });
        score
    }

    /// Power at a frequency, by Goertzel's recurrence.
    fn power(samples: &[f32], hertz: f64) -> f64 {
        let w = 2.0 * (2.0 * std::f64::consts::PI * hertz / f64::from(RATE)).cos();
        let (mut s1, mut s2) = (0.0, 0.0);
        for &sample in samples {
            (s1, s2) = (f64::from(sample) + w * s1 - s2, s1);
        }
        s1 * s1 + s2 * s2 - w * s1 * s2
    }

    #[test]
    fn a_rendered_a4_sounds_at_440_hertz() {
        for family in 0..16 {
            let audio = render(&score(&[(0, 1920, 69)], family * 8, false)).unwrap();
            let left: Vec<f32> = audio.samples.iter().step_by(2).copied().take(44_100).collect();
            // One second resolves 1 Hz; a step of 3 Hz away is off the peak.
            let best = (300..600)
                .step_by(1)
                .max_by(|&a, &b| power(&left, f64::from(a)).total_cmp(&power(&left, f64::from(b))))
                .unwrap();
            assert!((439..=441).contains(&best), "family {family}: {best} Hz");
        }
    }

    #[test]
    fn the_peak_is_one_decibel_below_full_scale_and_the_end_is_silent() {
        let drums: Vec<_> = (35..=81).map(|p| (u64::from(p) * 120, 60, p)).collect();
        for score in [score(&[(0, 960, 60), (480, 960, 64)], 0, false), score(&drums, 0, true)] {
            let audio = render(&score).unwrap();
            assert!((audio.peak() - 0.891_25).abs() < 1e-4, "{}", audio.peak());
            let rms = (audio.samples.iter().map(|s| f64::from(s * s)).sum::<f64>()
                / audio.samples.len() as f64)
                .sqrt();
            assert!((0.01..0.4).contains(&rms), "{rms}");
            assert!(audio.samples.iter().all(|s| s.is_finite()));
            // The last 10 ms are below -60 dB.
            let end = &audio.samples[audio.samples.len() - 882..];
            assert!(end.iter().all(|s| s.abs() < 1e-3));
            let seconds = audio.samples.len() as f64 / 2.0 / f64::from(RATE);
            assert!((seconds - score.seconds() - TAIL).abs() < 1e-3);
        }
    }

    #[test]
    fn the_same_score_gives_the_same_samples() {
        let score = score(&[(0, 480, 60), (480, 480, 67), (480, 960, 76)], 48, false);
        assert_eq!(render(&score).unwrap(), render(&score).unwrap());
    }

    #[test]
    fn a_pedal_holds_a_note_until_it_comes_up_or_the_key_is_struck_again() {
        let mut score = score(&[(0, 100, 60), (50, 100, 62), (400, 100, 60)], 0, false);
        score.tracks[0].pedals =
            vec![Pedal { tick: 80, value: 127 }, Pedal { tick: 450, value: 0 }];
        assert_eq!(pedalled_ends(&score.tracks[0]), [400, 450, 500]);
    }

    #[test]
    fn too_long_and_empty_pieces_are_refused() {
        let long = score(&[(480 * 2 * 1000, 480, 60)], 0, false);
        assert!(render(&long).unwrap_err().to_string().contains("at most 900 s"));
        assert!(render(&Score::new(480)).is_err());
    }

    #[test]
    fn ten_thousand_notes_at_once_are_bounded_by_the_voices() {
        let notes: Vec<_> = (0..10_000).map(|n| (0, 48_000, (n % 128) as u8)).collect();
        let audio = render(&score(&notes, 48, false)).unwrap();
        assert!((audio.peak() - 0.891_25).abs() < 1e-4);
    }
}
