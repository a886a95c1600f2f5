//! Finding the key of a piece from how long each pitch class sounds.
//!
//! For each of the 24 keys: the correlation of the durations with the key's profile.
//!
//! # Source
//! Krumhansl & Kessler 1982 (profiles); Krumhansl 1990 (algorithm).

use crate::Note;

/// How well each pitch class fits a major key, from the tonic on, in hundredths.
const MAJOR: [i64; 12] = [635, 223, 348, 233, 438, 409, 252, 519, 239, 366, 229, 288];
/// The same for a minor key.
const MINOR: [i64; 12] = [633, 268, 352, 538, 260, 353, 254, 475, 398, 269, 334, 317];

/// Finds the tonic (0 is C) and the mode (true is minor) that fit best.
///
/// Of equal fits C major comes first, then A minor, then upwards; so notes moved by the tonic
/// found are in C major or A minor by the same measure.
pub fn find_key(notes: &[Note]) -> (u8, bool) {
    let mut sounding = [0i64; 12];
    for note in notes {
        // Far above any real duration, and small enough for exact sums.
        let duration = note.duration.min(1 << 20) as i64;
        let class = &mut sounding[usize::from(note.pitch % 12)];
        *class = (*class + duration).min(1 << 32);
    }
    let mut best = (0, false);
    let mut best_fit = f64::NEG_INFINITY;
    for upward in 0..12u8 {
        for (first, minor) in [(0, false), (9, true)] {
            let tonic = (first + upward) % 12;
            let fit = fit(&sounding, tonic, if minor { &MINOR } else { &MAJOR });
            if fit > best_fit {
                (best, best_fit) = ((tonic, minor), fit);
            }
        }
    }
    best
}

/// The correlation, but for the deviation of `sounding`, which is the same for every key.
///
/// The sum is of integers: the order of the pitch classes cannot change a bit of it.
fn fit(sounding: &[i64; 12], tonic: u8, profile: &[i64; 12]) -> f64 {
    let sum: i64 = profile.iter().sum();
    let centred = |i: usize| 12 * profile[i] - sum;
    let dot: i64 = (0..12).map(|i| sounding[(i + usize::from(tonic)) % 12] * centred(i)).sum();
    let norm: i64 = (0..12).map(|i| centred(i) * centred(i)).sum();
    dot as f64 / (norm as f64).sqrt()
}

/// The move in semitones, -6 to 5, that brings a tonic to C major or A minor.
pub(crate) fn shift_to_c(tonic: u8, minor: bool) -> i32 {
    let target = if minor { 9 } else { 0 };
    let up = (target - i32::from(tonic)).rem_euclid(12);
    if up > 5 { up - 12 } else { up }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes(pitches: &[u8]) -> Vec<Note> {
        let note = |(i, &pitch)| Note { tick: i as u64, duration: 1, pitch, velocity: 90 };
        pitches.iter().enumerate().map(note).collect()
    }

    #[test]
    fn scales_are_heard_in_their_keys_at_every_transposition() {
        let major = [60, 62, 64, 65, 67, 69, 71, 72, 67, 64, 60];
        let minor = [57, 59, 60, 62, 64, 65, 68, 69, 64, 60, 57];
        for up in 0..12 {
            let moved = |scale: &[u8]| notes(&scale.iter().map(|p| p + up).collect::<Vec<_>>());
            assert_eq!(find_key(&moved(&major)), (up, false));
            assert_eq!(find_key(&moved(&minor)), ((9 + up) % 12, true));
        }
    }

    #[test]
    fn a_piece_moved_to_c_stays_there() {
        for seed in 0..500u64 {
            let pitch = |i: u64| {
                let mixed = (seed * 64 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                (48 + mixed % 36) as u8
            };
            let piece: Vec<u8> = (0..1 + seed % 20).map(pitch).collect();
            let (tonic, minor) = find_key(&notes(&piece));
            let shift = shift_to_c(tonic, minor);
            let moved: Vec<u8> = piece.iter().map(|&p| (i32::from(p) + shift) as u8).collect();
            let (tonic, minor) = find_key(&notes(&moved));
            assert_eq!(shift_to_c(tonic, minor), 0);
        }
    }

    #[test]
    fn silence_is_in_c_major() {
        assert_eq!(find_key(&[]), (0, false));
    }
}
