//! Signs of damage that leave a file lawful: one thing that differs where all others agree.
//!
//! A flipped bit in a delta time moves the end of one track; one in a note-off changes a release
//! velocity. Neither breaks a rule of the standard, so both are only told.

use super::warnings::Warnings;

/// So many others must agree before the odd one is told.
const MIN_AGREEING: usize = 4;

/// What is remembered of a file to find its odd one out.
pub(super) struct Consistency {
    /// Where each track ends.
    ends: Vec<u64>,
    /// For each release velocity: how many note-offs, and track and tick of the first.
    releases: [(usize, usize, u64); 128],
}

impl Consistency {
    pub(super) fn new() -> Consistency {
        Consistency { ends: Vec::new(), releases: [(0, 0, 0); 128] }
    }

    pub(super) fn note_off(&mut self, velocity: u8, tick: u64) {
        let release = &mut self.releases[usize::from(velocity & 0x7f)];
        if release.0 == 0 {
            (release.1, release.2) = (self.ends.len() + 1, tick);
        }
        release.0 += 1;
    }

    pub(super) fn end_track(&mut self, tick: u64) {
        self.ends.push(tick);
    }

    pub(super) fn tell(&self, ticks_per_quarter: u32, warnings: &mut Warnings) {
        if let Some((track, odd, common)) = self.odd_end()
            && odd.abs_diff(common) < u64::from(ticks_per_quarter)
        {
            warnings.add("odd end", || {
                format!("track {track} ends at tick {odd}, all others at {common}: damaged timing?")
            });
        }
        let mut used = self.releases.iter().enumerate().filter(|(_, release)| release.0 > 0);
        if let (Some(a), Some(b), None) = (used.next(), used.next(), used.next()) {
            let (odd, common) = if a.1.0 < b.1.0 { (a, b) } else { (b, a) };
            if odd.1.0 == 1 && common.1.0 >= MIN_AGREEING {
                let ((velocity, &(_, track, tick)), usual) = (odd, common.0);
                warnings.add("odd release", || {
                    format!(
                        "track {track}, tick {tick}: a note-off of velocity {velocity}, all \
                         others have {usual}: a damaged event?"
                    )
                });
            }
        }
    }

    /// Number and end of the one track that ends elsewhere than all others, and their end.
    fn odd_end(&self) -> Option<(usize, u64, u64)> {
        if self.ends.len() <= MIN_AGREEING {
            return None;
        }
        let common = if self.ends[0] == self.ends[1] { self.ends[0] } else { self.ends[2] };
        let mut others = self.ends.iter().enumerate().filter(|&(_, &end)| end != common);
        match (others.next(), others.next()) {
            (Some((i, &odd)), None) => Some((i + 1, odd, common)),
            _ => None,
        }
    }
}
