//! What instruments sound like: harmonics and envelopes of the sixteen General MIDI families.

use crate::sound::RATE;

/// log2 of the samples in a cycle.
pub(super) const TABLE_BITS: u32 = 11;
const TABLE: usize = 1 << TABLE_BITS;
/// Octave bands of the tables; band `b` serves pitches `12 * b` to `12 * b + 11`.
const BANDS: usize = 11;

/// A family of instruments.
#[derive(Debug)]
pub(super) struct Timbre {
    /// Place in [`TIMBRES`].
    index: usize,
    pub(super) gain: f32,
    pub(super) attack_seconds: f32,
    /// Time in which middle C falls by 60 dB.
    pub(super) ring_seconds: f32,
    /// Share of the loudness that stays while the key is down.
    pub(super) sustain: f32,
    pub(super) release_seconds: f32,
    /// Share of the bright table at the start of a loud note.
    pub(super) bright: f32,
    /// How long the brightness stays, beside the ring.
    pub(super) bright_ring: f32,
    /// Strength of harmonic `n` (1 is the fundamental) in the soft table, and in the bright one.
    harmonics: [fn(usize) -> f32; 2],
}

macro_rules! timbre {
    ($index:expr, $gain:expr, $attack:expr, $ring:expr, $sustain:expr, $release:expr,
     $bright:expr, $bright_ring:expr, $soft:expr, $hard:expr) => {
        Timbre {
            index: $index,
            gain: $gain,
            attack_seconds: $attack,
            ring_seconds: $ring,
            sustain: $sustain,
            release_seconds: $release,
            bright: $bright,
            bright_ring: $bright_ring,
            harmonics: [$soft, $hard],
        }
    };
}

fn power(n: usize, exponent: f32) -> f32 {
    (n as f32).powf(-exponent)
}

fn odd(n: usize) -> f32 {
    if n % 2 == 1 { 1.0 } else { 0.0 }
}

fn drawbars(n: usize) -> f32 {
    match n {
        1 => 1.0,
        2 => 0.7,
        3 => 0.35,
        4 => 0.45,
        6 => 0.2,
        8 => 0.25,
        _ => 0.0,
    }
}

/// A bar of wood or metal: the fundamental and its fourth and tenth partials.
fn bar(n: usize) -> f32 {
    match n {
        1 => 1.0,
        4 => 0.35,
        10 => 0.1,
        _ => 0.0,
    }
}

/// A string struck at an eighth of its length: every eighth harmonic is missing.
fn struck(n: usize) -> f32 {
    (std::f32::consts::PI * n as f32 / 8.0).sin().abs() * power(n, 1.0)
}

#[rustfmt::skip] // a table
static TIMBRES: [Timbre; 16] = [
    //       gain attack  ring  sustain release bright ring  soft table                       bright table
    timbre!(0,  0.9, 0.003, 6.0,  0.0,  0.25, 0.8,  0.35, |n| power(n, 2.4),                   struck),                             // piano
    timbre!(1,  0.7, 0.002, 2.5,  0.0,  0.60, 0.8,  0.30, |n| if n == 1 { 1.0 } else { 0.0 },  bar),                                // bells, vibraphone
    timbre!(2,  0.4, 0.010, 4.0,  1.0,  0.08, 1.0,  9.00, drawbars,                            drawbars),                           // organ
    timbre!(3,  0.8, 0.002, 3.5,  0.0,  0.15, 0.9,  0.30, |n| power(n, 2.2),                   |n| struck(n) + 0.15 * power(n, 0.7)), // guitar
    timbre!(4,  1.0, 0.004, 4.0,  0.1,  0.12, 0.7,  0.40, |n| power(n, 2.0),                   |n| power(n, 1.2)),                  // bass
    timbre!(5,  0.5, 0.060, 2.0,  0.8,  0.20, 0.6,  6.00, |n| power(n, 1.8),                   |n| power(n, 1.1)),                  // strings
    timbre!(6,  0.5, 0.080, 2.0,  0.8,  0.30, 0.5,  6.00, |n| power(n, 1.8),                   |n| power(n, 1.2)),                  // ensemble
    timbre!(7,  0.5, 0.035, 1.5,  0.7,  0.12, 0.8,  2.00, |n| power(n, 1.6),                   |n| power(n, 0.9)),                  // brass
    timbre!(8,  0.5, 0.025, 1.5,  0.8,  0.10, 0.6,  4.00, |n| odd(n) * power(n, 1.6),          |n| (odd(n) + 0.2) * power(n, 1.1)), // reed
    timbre!(9,  0.6, 0.040, 1.5,  0.8,  0.12, 0.5,  3.00, |n| power(n, 3.2),                   |n| power(n, 2.2)),                  // pipe
    timbre!(10, 0.4, 0.005, 1.5,  0.7,  0.10, 0.8,  2.00, |n| odd(n) * power(n, 1.4),          |n| power(n, 1.0)),                  // synth lead
    timbre!(11, 0.4, 0.200, 3.0,  0.8,  0.60, 0.4,  4.00, |n| power(n, 2.2),                   |n| power(n, 1.3)),                  // synth pad
    timbre!(12, 0.4, 0.080, 3.0,  0.4,  0.60, 0.6,  0.60, |n| power(n, 2.5),                   |n| odd(n) * power(n, 1.2)),         // effects
    timbre!(13, 0.8, 0.002, 2.5,  0.0,  0.15, 0.9,  0.25, |n| power(n, 2.0),                   |n| power(n, 0.9)),                  // plucked, folk
    timbre!(14, 0.8, 0.002, 1.0,  0.0,  0.20, 0.8,  0.30, |n| if n == 1 { 1.0 } else { 0.0 },  bar),                                // percussive
    timbre!(15, 0.4, 0.100, 2.0,  0.3,  0.40, 0.5,  0.50, |n| power(n, 2.0),                   |n| power(n, 1.0)),                  // effects of sound
];

impl Timbre {
    /// The family of a General MIDI program.
    pub(super) fn of_program(program: u8) -> &'static Timbre {
        &TIMBRES[usize::from(program / 8).min(15)]
    }
}

/// Two wave tables for each family and octave, filled when first asked for.
pub(super) struct Tables {
    pairs: Vec<std::sync::OnceLock<[Vec<f32>; 2]>>,
}

impl Tables {
    pub(super) fn new() -> Tables {
        Tables { pairs: (0..TIMBRES.len() * BANDS).map(|_| Default::default()).collect() }
    }

    /// The place of a pitch's tables.
    pub(super) fn index(&self, timbre: &Timbre, pitch: u8) -> usize {
        timbre.index * BANDS + usize::from(pitch / 12).min(BANDS - 1)
    }

    /// The soft and the bright table; each ends with its first sample again.
    pub(super) fn pair(&self, index: usize) -> (&[f32], &[f32]) {
        let pair = self.pairs[index].get_or_init(|| {
            let (timbre, band) = (&TIMBRES[index / BANDS], index % BANDS);
            // The highest pitch of the band decides how many harmonics stay below 18 kHz.
            let top = 440.0 * ((12.0 * band as f32 + 11.0 - 69.0) / 12.0).exp2();
            let count = ((18_000.0f32.min(RATE as f32 * 0.41) / top) as usize).clamp(1, 64);
            timbre.harmonics.map(|strength| cycle(strength, count))
        });
        (&pair[0], &pair[1])
    }
}

/// One cycle of a sum of harmonics, with a root mean square of 0.25.
fn cycle(strength: fn(usize) -> f32, count: usize) -> Vec<f32> {
    let sine: Vec<f32> = (0..TABLE)
        .map(|i| (2.0 * std::f64::consts::PI * i as f64 / TABLE as f64).sin() as f32)
        .collect();
    let mut table = vec![0.0f32; TABLE];
    for n in 1..=count {
        let strength = strength(n);
        // Every second pair of harmonics is turned around, which lowers the peak of the sum.
        let sign = if n % 4 >= 2 { -1.0 } else { 1.0 };
        for (i, sample) in table.iter_mut().enumerate() {
            *sample += sign * strength * sine[i * n % TABLE];
        }
    }
    let power: f32 = table.iter().map(|s| s * s).sum::<f32>() / TABLE as f32;
    let scale = 0.25 / power.sqrt().max(1e-9);
    table.iter_mut().for_each(|s| *s *= scale);
    table.push(table[0]);
    table
}
