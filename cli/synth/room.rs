//! The room: a light reverberation of combs and allpasses (Schroeder 1962), different left and right.

/// Share of the room in the mix.
const WET: f32 = 0.16;
/// Delays in frames at 44.1 kHz: primes, so that echoes do not line up.
const COMBS: [[usize; 4]; 2] = [[1117, 1277, 1409, 1543], [1151, 1303, 1439, 1567]];
const ALLPASSES: [[usize; 2]; 2] = [[557, 337], [577, 349]];

/// A delay line that feeds itself.
struct Line {
    buffer: Vec<f32>,
    at: usize,
    /// Low-passed feedback: walls swallow high tones first.
    damped: f32,
}

impl Line {
    fn new(frames: usize) -> Line {
        Line { buffer: vec![0.0; frames], at: 0, damped: 0.0 }
    }

    fn advance(&mut self, sample: f32) -> f32 {
        let old = std::mem::replace(&mut self.buffer[self.at], sample);
        self.at += 1;
        if self.at == self.buffer.len() {
            self.at = 0;
        }
        old
    }

    fn comb(&mut self, sample: f32) -> f32 {
        let out = self.buffer[self.at];
        self.damped = out * 0.65 + self.damped * 0.35;
        self.advance(sample + self.damped * 0.76);
        out
    }

    fn allpass(&mut self, sample: f32) -> f32 {
        let out = self.buffer[self.at];
        self.advance(sample + out * 0.5);
        out - sample * 0.5
    }
}

/// The reverberation of both channels.
pub(super) struct Room {
    sides: [(Vec<Line>, Vec<Line>); 2],
}

impl Room {
    pub(super) fn new() -> Room {
        let lines = |frames: &[usize]| frames.iter().map(|&n| Line::new(n)).collect();
        Room { sides: [0, 1].map(|side| (lines(&COMBS[side]), lines(&ALLPASSES[side]))) }
    }

    /// Adds the room to interleaved stereo samples.
    pub(super) fn mix(&mut self, samples: &mut [f32]) {
        for frame in samples.chunks_exact_mut(2) {
            // A constant far below hearing keeps the lines out of slow denormal numbers.
            let dry = 0.5 * (frame[0] + frame[1]) + 1e-12;
            for (sample, (combs, allpasses)) in frame.iter_mut().zip(&mut self.sides) {
                let wet: f32 = combs.iter_mut().map(|line| line.comb(dry)).sum();
                *sample += WET * allpasses.iter_mut().fold(wet, |wet, line| line.allpass(wet));
            }
        }
    }
}
