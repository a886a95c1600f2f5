//! Pieces that are nearly the same music, also in another key or at another speed.
//!
//! A data set that is divided piece by piece leaks when a tune stands in two parts under two names or
//! in two keys. Each track is written as symbols (interval to the next note, how much longer or
//! shorter the wait for the one after is), of its highest notes, of drums each stroke; a piece is the
//! set of its runs of 8 symbols. Two pieces are twins where their sets have at least half in common
//! by Jaccard's measure, `|A ∩ B| / |A ∪ B| >= 0.5`. That is estimated from 128 minima of hashes
//! (MinHash), of which 32 groups of 4 find the pairs worth comparing. A pair at 0.5 is found with
//! probability 0.87, one at 0.7 with 0.9998.
//!
//! # Source
//! Broder 1997 for the minima; Li & König 2010 for keeping a few bits of each.

use crate::{Note, Score, Track};

/// Symbols of a run.
const RUN: usize = 8;
/// Minima of a sketch.
const MINIMA: usize = 128;
/// Groups of minima that find the pairs.
const BANDS: usize = 32;
/// The share of runs that twins have in common, at least.
pub const TWIN_SHARE: f64 = 0.5;
/// Pieces of one group with which a piece of the same hash is compared.
const MOST_COMPARED: usize = 16;

/// What a piece is recognised by: 256 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sketch {
    bands: [u32; BANDS],
    minima: [u8; MINIMA],
}

impl Sketch {
    /// Bytes of [`Sketch::to_bytes`].
    pub const BYTES: usize = 4 * BANDS + MINIMA;

    /// Makes the sketch of a piece; `None` if no track has ten notes one after the other.
    pub fn of(score: &Score) -> Option<Sketch> {
        let mut minima = [u32::MAX; MINIMA];
        let mut runs = 0;
        for symbols in score.tracks.iter().map(symbols) {
            for run in symbols.windows(RUN) {
                let hash = run.iter().fold(RUN as u64, |hash, symbol| mix(hash ^ symbol));
                for (salt, least) in (1u64..).zip(&mut minima) {
                    let value = mix(hash.wrapping_add(salt.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
                    *least = (*least).min((value >> 32) as u32);
                }
                runs += 1;
            }
        }
        if runs == 0 {
            return None;
        }
        let mut bands = [0; BANDS];
        for (band, group) in bands.iter_mut().zip(minima.chunks(MINIMA / BANDS)) {
            *band = group.iter().fold(0, |hash, least| mix(hash ^ u64::from(*least))) as u32;
        }
        // The low byte: two different minima share it once in 256 times.
        Some(Sketch { bands, minima: minima.map(|least| least as u8) })
    }

    /// The estimated share of runs that two pieces have in common.
    pub fn share(&self, other: &Sketch) -> f64 {
        let same = self.minima.iter().zip(&other.minima).filter(|(a, b)| a == b).count();
        let chance = 1.0 / 256.0;
        ((same as f64 / MINIMA as f64 - chance) / (1.0 - chance)).max(0.0)
    }

    /// Writes the sketch.
    pub fn to_bytes(&self) -> Vec<u8> {
        let bands = self.bands.iter().flat_map(|band| band.to_le_bytes());
        bands.chain(self.minima).collect()
    }

    /// Reads what [`Sketch::to_bytes`] wrote; `None` for another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Sketch> {
        let (bands, rest) = bytes.split_at_checked(4 * BANDS)?;
        let minima = rest.try_into().ok()?;
        let mut sketch = Sketch { bands: [0; BANDS], minima };
        for (band, bytes) in sketch.bands.iter_mut().zip(bands.chunks_exact(4)) {
            *band = u32::from_le_bytes(bytes.try_into().ok()?);
        }
        Some(sketch)
    }
}

/// Finds the twins among pieces: for each, the first piece of its group (itself where it is alone).
///
/// Twins of twins are one group. Pieces without a sketch stand alone.
pub fn groups(sketches: &[Option<&Sketch>]) -> Vec<usize> {
    let mut first: Vec<usize> = (0..sketches.len()).collect();
    for band in 0..BANDS {
        let there = sketches.iter().enumerate();
        let mut keys: Vec<(u32, usize)> =
            there.filter_map(|(i, sketch)| Some((sketch.as_ref()?.bands[band], i))).collect();
        keys.sort_unstable();
        for same in keys.chunk_by(|a, b| a.0 == b.0) {
            // Pieces of groups that were met under this hash, the first ones.
            let mut met: Vec<usize> = Vec::new();
            for &(_, piece) in same {
                let root = root_of(&mut first, piece);
                if met.iter().any(|other| root_of(&mut first, *other) == root) {
                    continue;
                }
                let Some(sketch) = sketches[piece] else { continue };
                for &other in &met {
                    if sketches[other].is_some_and(|o| o.share(sketch) >= TWIN_SHARE) {
                        let (a, b) = (root_of(&mut first, piece), root_of(&mut first, other));
                        first[a.max(b)] = a.min(b);
                    }
                }
                if met.len() < MOST_COMPARED {
                    met.push(piece);
                }
            }
        }
    }
    (0..first.len()).map(|piece| root_of(&mut first, piece)).collect()
}

fn root_of(first: &mut [usize], mut piece: usize) -> usize {
    while first[piece] != piece {
        first[piece] = first[first[piece]];
        piece = first[piece];
    }
    piece
}

/// A track as symbols that do not change with its key or its speed.
fn symbols(track: &Track) -> Vec<u64> {
    let mut line: Vec<Note> = Vec::with_capacity(track.notes.len());
    for &note in &track.notes {
        match line.last_mut() {
            // Notes stand in order of pitch: the last of a place is the highest.
            Some(last) if last.tick == note.tick && !track.is_drum => *last = note,
            _ => line.push(note),
        }
    }
    let symbol = |three: &[Note]| {
        let interval = i64::from(three[1].pitch) - i64::from(three[0].pitch);
        let waits = [three[1].tick - three[0].tick, three[2].tick - three[1].tick];
        (interval + 128) as u64 * 16 + wait_class(waits[0], waits[1])
    };
    line.windows(3).map(symbol).collect()
}

/// How one wait compares with the one before: eight classes around 1/4, 1/2, 3/4, 1, 3/2, 2, 3 and
/// more.
fn wait_class(before: u64, now: u64) -> u64 {
    let (before, now) = (u128::from(before), 8 * u128::from(now));
    // In eighths of the wait before.
    [3, 5, 7, 9, 14, 20, 28].iter().filter(|bound| now >= **bound * before).count() as u64
}

/// The finish of splitmix64 (Steele, Lea & Flood 2014): spreads a hash over all bits.
pub fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transpose;

    /// A tune drawn at random; `seed` decides.
    fn tune(seed: u64, notes: u64) -> Score {
        let mut score = Score::new(480);
        let (mut tick, mut pitch, mut state) = (0, 64i64, seed);
        let notes = (0..notes).map(|_| {
            state = mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15));
            pitch = (pitch + (state % 9) as i64 - 4).clamp(50, 80);
            let wait = 120 * (1 + (state >> 8) % 4);
            let note = Note { tick, duration: wait, pitch: pitch as u8, velocity: 90 };
            tick += wait;
            note
        });
        score.tracks.push(Track { notes: notes.collect(), ..Track::default() });
        score
    }

    #[test]
    fn another_key_and_another_speed_are_the_same_sketch() {
        let score = tune(1, 60);
        let sketch = Sketch::of(&score).unwrap();
        assert_eq!(Sketch::of(&transpose(&score, 5).unwrap()).unwrap(), sketch);
        let mut slow = score.clone();
        for note in &mut slow.tracks[0].notes {
            (note.tick, note.duration) = (3 * note.tick, 3 * note.duration);
        }
        assert_eq!(Sketch::of(&slow).unwrap(), sketch);
        assert_eq!(Sketch::from_bytes(&sketch.to_bytes()).unwrap(), sketch);
        assert_eq!(sketch.to_bytes().len(), Sketch::BYTES);
        assert_eq!(Sketch::from_bytes(&sketch.to_bytes()[1..]), None);
        assert_eq!(Sketch::of(&tune(1, 9)), None);
        assert!(Sketch::of(&tune(1, 10)).is_some());
    }

    #[test]
    fn a_changed_ending_is_a_twin_and_another_tune_is_not() {
        let score = tune(1, 100);
        let sketch = Sketch::of(&score).unwrap();
        let mut changed = score.clone();
        changed.tracks[0].notes.truncate(85);
        let changed = Sketch::of(&changed).unwrap();
        // 76 of 91 runs are common; the estimate of 128 minima is off by 0.033, three times that
        // are allowed.
        assert!((sketch.share(&changed) - 76.0 / 91.0).abs() < 0.1);
        let other = Sketch::of(&tune(2, 100)).unwrap();
        assert!(sketch.share(&other) < 0.1);
        let all = [Some(&other), Some(&changed), None, Some(&sketch), None];
        assert_eq!(groups(&all), [0, 1, 2, 1, 4]);
    }

    #[test]
    fn twins_are_found_among_many() {
        let mut sketches = Vec::new();
        for seed in 0..300 {
            let score = tune(seed, 50);
            sketches.push(Sketch::of(&score));
            if seed % 3 == 0 {
                sketches.push(Sketch::of(&transpose(&score, 3 - (seed % 7) as i32).unwrap()));
            }
        }
        let groups = groups(&sketches.iter().map(Option::as_ref).collect::<Vec<_>>());
        assert_eq!((0..groups.len()).filter(|i| groups[*i] == *i).count(), 300);
    }
}
