//! Drums: noise and falling pitches, made once for each key and mixed in at each stroke.

use std::sync::Arc;

use crate::sound::RATE;

/// Strokes that sound at once at most; the oldest gives way.
const MAX_STROKES: usize = 64;

/// What a stroke is made of.
struct Recipe {
    /// Loudness of the pitched part, its frequency at the start and at the end, its time to fall by
    /// 60 dB.
    tone: (f32, f32, f32, f32),
    /// Loudness of the noise, its time to fall by 60 dB, and how much of its low part is cut: 0 to 1.
    noise: (f32, f32, f32),
    /// -1 is left, 1 is right.
    pan: f32,
}

/// The recipe of a General MIDI percussion key.
fn recipe(key: u8) -> Recipe {
    let tom = |hertz: f32, pan: f32| Recipe {
        tone: (0.9, hertz * 1.6, hertz, 0.7),
        noise: (0.15, 0.1, 0.3),
        pan,
    };
    let plain = |tone, noise, pan| Recipe { tone, noise, pan };
    match key {
        35 | 36 => plain((1.3, 150.0, 48.0, 0.45), (0.25, 0.03, 0.2), 0.0),
        37 => plain((0.5, 800.0, 700.0, 0.06), (0.5, 0.05, 0.6), -0.1),
        38 | 40 => plain((0.5, 240.0, 180.0, 0.20), (0.8, 0.28, 0.35), 0.0),
        39 => plain((0.0, 1.0, 1.0, 0.10), (0.9, 0.25, 0.5), 0.1),
        42 | 44 => plain((0.0, 1.0, 1.0, 0.10), (0.45, 0.10, 0.97), 0.3),
        46 => plain((0.0, 1.0, 1.0, 0.10), (0.45, 0.70, 0.97), 0.3),
        41 => tom(75.0, -0.4),
        43 => tom(95.0, -0.3),
        45 => tom(115.0, -0.1),
        47 => tom(140.0, 0.1),
        48 => tom(165.0, 0.2),
        50 => tom(200.0, 0.4),
        49 | 52 | 55 | 57 => plain((0.0, 1.0, 1.0, 0.10), (0.6, 2.20, 0.93), -0.3),
        51 | 53 | 59 => plain((0.10, 3200.0, 3200.0, 0.80), (0.3, 1.30, 0.98), 0.35),
        54 | 69 | 70 | 82 => plain((0.0, 1.0, 1.0, 0.10), (0.4, 0.12, 0.98), -0.3),
        56 => plain((0.6, 845.0, 845.0, 0.30), (0.1, 0.02, 0.5), 0.2),
        60..=66 => tom(380.0 - 35.0 * f32::from(key - 60), 0.2),
        67 | 68 | 76 | 77 => plain((0.6, 900.0, 880.0, 0.15), (0.1, 0.02, 0.5), -0.2),
        75 => plain((0.6, 2400.0, 2400.0, 0.08), (0.1, 0.02, 0.5), 0.2),
        80 | 81 => plain((0.4, 5200.0, 5200.0, 0.90), (0.0, 0.02, 0.5), 0.4),
        _ => plain((0.3, 40.0 * f32::from(key).sqrt(), 300.0, 0.15), (0.4, 0.12, 0.6), 0.0),
    }
}

struct Stroke {
    sound: Arc<[f32]>,
    frame: usize,
    left: f32,
    right: f32,
}

/// A drum kit while it plays.
pub(super) struct Kit {
    sounds: Vec<Option<Arc<[f32]>>>,
    strokes: Vec<Stroke>,
}

impl Kit {
    pub(super) fn new() -> Kit {
        Kit { sounds: vec![None; 128], strokes: Vec::new() }
    }

    /// Strikes a key at a frame.
    pub(super) fn hit(&mut self, key: u8, velocity: u8, frame: usize) {
        let slot = &mut self.sounds[usize::from(key & 127)];
        let sound = slot.get_or_insert_with(|| make(key)).clone();
        if matches!(key, 42 | 44) {
            // A closed hi-hat ends the ring of the open one.
            let open = self.sounds[46].as_ref();
            self.strokes.retain(|s| !open.is_some_and(|open| Arc::ptr_eq(open, &s.sound)));
        }
        if self.strokes.len() >= MAX_STROKES {
            self.strokes.remove(0);
        }
        let loudness = 0.5 * (f32::from(velocity) / 127.0).powf(1.5);
        let angle = (recipe(key).pan * 0.7 + 1.0) * std::f32::consts::FRAC_PI_4;
        let (left, right) = (loudness * angle.cos(), loudness * angle.sin());
        self.strokes.push(Stroke { sound, frame, left, right });
    }

    /// Adds a block to `out`, whose first frame is `from`.
    pub(super) fn mix(&mut self, out: &mut [f32], from: usize) {
        self.strokes.retain(|stroke| {
            let begin = stroke.frame.saturating_sub(from);
            let at = (from + begin) - stroke.frame;
            let sound = stroke.sound.get(at..).unwrap_or_default();
            for (frame, sample) in out.chunks_exact_mut(2).skip(begin).zip(sound) {
                frame[0] += sample * stroke.left;
                frame[1] += sample * stroke.right;
            }
            sound.len() + begin > out.len() / 2
        });
    }
}

/// Makes the sound of a key.
fn make(key: u8) -> Arc<[f32]> {
    let recipe = recipe(key);
    let (tone_gain, first, last, tone_fall) = recipe.tone;
    let (noise_gain, noise_fall, cut) = recipe.noise;
    let rate = RATE as f32;
    let length = tone_fall.max(noise_fall) * rate;
    let fall = |seconds: f32| (-6.908 / (seconds * rate)).exp();
    let (tone_decay, noise_decay) = (fall(tone_fall), fall(noise_fall));
    let (mut tone, mut noise) = (tone_gain, noise_gain);
    let (mut phase, mut low) = (0.0f32, 0.0f32);
    // The pitch nears its end within a few hundredths of a second.
    let (mut hertz, glide) = (first, fall(0.12));
    let mut state = 0x9e37_79b9u32 ^ (u32::from(key) << 8);
    (0..length as usize)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let white = (state >> 8) as f32 / 8_388_608.0 - 1.0;
            low += (white - low) * 0.25;
            phase = (phase + hertz / rate).fract();
            hertz = last + (hertz - last) * glide;
            let sample = tone * (std::f32::consts::TAU * phase).sin()
                + noise * (white - cut * low - (1.0 - cut) * 0.5 * white);
            tone *= tone_decay;
            noise *= noise_decay;
            sample
        })
        .collect()
}
