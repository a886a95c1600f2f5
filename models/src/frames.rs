//! Piano rolls for networks that write all keys of a step at once.
//!
//! The tokens of [`PianoRollTokens`] are cut into steps; a step is a set of keys, read as the rows
//! of the keys that sounded in the step before, and a target as a whole.
//!
//! The first step of a piece is learned, so that a piece can be written from nothing, but does not
//! count in a likelihood: the published tables score the steps from the second on.

use crate::data::{Baselines, Batch, KEYS, NO_TARGET, Piece, Pieces};
use crate::sampling::Sampling;
use crate::{Generator, Result};
use etude_engine::{NO_ID, Rng};
use etude_tokenizer::PianoRollTokens;

/// The keys of the step before a window of tokens (none before the first), then those of its whole
/// steps; where there is none, of the step in which the window begins, so that no batch is empty.
fn steps_of(piece: &Piece, from: usize, window: usize) -> Vec<u128> {
    let (tokens, is_end) = (&piece.tokens, |token: &u32| *token == PianoRollTokens::STEP_END);
    let begin = |at: usize| tokens[..at].iter().rposition(is_end).map_or(0, |end| end + 1);
    // The step in which the window begins, up to its end at least, and the one before it.
    let begun = begin(from);
    let before = begin(begun.saturating_sub(1));
    let end = tokens[begun..].iter().position(is_end).map_or(tokens.len(), |n| begun + n + 1);
    let until = from.saturating_add(window).min(tokens.len()).max(end);
    let mut frames = PianoRollTokens::frames(&tokens[before..until]);
    if begun == 0 {
        frames.insert(0, 0);
    }
    if begun < from && frames.len() > 2 {
        frames.remove(0);
    }
    frames
}

/// Lays windows side by side, as [`Batch::new`] does.
pub(crate) fn batch(windows: &[(&Piece, usize)], window: usize) -> Batch {
    let all: Vec<_> = windows.iter().map(|(p, from)| steps_of(p, *from, window)).collect();
    let (batch, steps) = (all.len(), all.iter().map(|f| f.len() - 1).max().unwrap_or(0));
    // The step before a window may hold more keys than any in it.
    let most = all.iter().flatten().map(|keys| keys.count_ones()).max().unwrap_or(0);
    let active = most.max(1) as usize;
    let mut rows = vec![NO_ID; steps * batch * active];
    let mut targets = vec![NO_TARGET; steps * batch];
    let mut keys = vec![0; steps * batch];
    for (b, frames) in all.iter().enumerate() {
        for (t, pair) in frames.windows(2).enumerate() {
            let at = t * batch + b;
            (targets[at], keys[at]) = (0, pair[1]);
            fill(pair[0], &mut rows[at * active..][..active]);
        }
    }
    Batch { rows, targets, keys, steps, batch, active }
}

/// Writes a row for each key; the rest of the slots stays empty.
fn fill(keys: u128, rows: &mut [u32]) {
    rows.fill(NO_ID);
    let sounding = (0..KEYS as u32).filter(|key| keys >> key & 1 == 1);
    rows.iter_mut().zip(sounding).for_each(|(row, key)| *row = key);
}

/// Steps of a piece that count in its likelihood.
pub(crate) fn counted(tokens: &[u32]) -> usize {
    let steps = tokens.iter().filter(|t| **t == PianoRollTokens::STEP_END).count();
    steps.saturating_sub(1)
}

/// What counting keys reaches, in nats for a step: each key by how often it sounds, and by how
/// often it sounds after itself. Half a count is added to each side.
pub(crate) fn baselines(train: &Pieces, held: &Pieces) -> Result<Baselines> {
    let transitions = |piece: &Piece| {
        let frames = PianoRollTokens::frames(&piece.tokens);
        frames.windows(2).map(|pair| (pair[0], pair[1])).collect::<Vec<_>>()
    };
    // For each key: how often it sounds, of how many steps; silent before, or sounding.
    let mut single = [[0.0f64; 2]; KEYS];
    let mut pairs = [[[0.0f64; 2]; 2]; KEYS];
    for piece in train.iter() {
        for (before, now) in transitions(&*piece?) {
            for key in 0..KEYS {
                let (before, now) = ((before >> key & 1) as usize, (now >> key & 1) as usize);
                single[key][now] += 1.0;
                pairs[key][before][now] += 1.0;
            }
        }
    }
    let nats = |counts: &[f64; 2], now: usize| -> f64 {
        ((counts[0] + counts[1] + 1.0) / (counts[now] + 0.5)).ln()
    };
    let (mut marginal, mut markov, mut count) = (0.0, 0.0, 0.0);
    for piece in held.iter() {
        for (before, now) in transitions(&*piece?) {
            for key in 0..KEYS {
                let (before, now) = ((before >> key & 1) as usize, (now >> key & 1) as usize);
                marginal += nats(&single[key], now);
                markov += nats(&pairs[key][before], now);
            }
            count += 1.0;
        }
    }
    Ok(Baselines { marginal: marginal / count, markov: markov / count })
}

/// Scores a piece step by step, as it would be written: nats and hits of the steps that count.
pub(crate) fn written(generator: &mut dyn Generator, tokens: &[u32]) -> Result<(f64, usize)> {
    let (mut nats, mut hits, mut before) = (0.0, 0, 0);
    let mut rows = [NO_ID; KEYS];
    for (t, keys) in PianoRollTokens::frames(tokens).into_iter().enumerate() {
        fill(before, &mut rows);
        let (mut of_step, mut key, mut hit) = (0.0, 0, true);
        generator.step_keys(&rows, &mut |logit| {
            let sounds = keys >> key & 1 == 1;
            let x = f64::from(if sounds { -logit } else { logit });
            // softplus(x), without the exponential of a large number.
            of_step += x.max(0.0) + (-x.abs()).exp().ln_1p();
            hit &= x < 0.0;
            key += 1;
            sounds
        })?;
        if t > 0 {
            (nats, hits) = (nats + of_step, hits + usize::from(hit));
        }
        before = keys;
    }
    Ok((nats, hits))
}

/// Reads a primer, then draws a step; it can be called again for the next.
///
/// Of the controls the temperature alone means something for keys.
pub(crate) struct Drawing {
    before: u128,
    rows: [u32; KEYS],
}

impl Drawing {
    /// Reads the steps of a primer.
    pub fn begin(generator: &mut dyn Generator, primer: &[u32]) -> Result<Drawing> {
        let mut drawing = Drawing { before: 0, rows: [NO_ID; KEYS] };
        for keys in PianoRollTokens::frames(primer) {
            fill(drawing.before, &mut drawing.rows);
            generator.step(&drawing.rows)?;
            drawing.before = keys;
        }
        Ok(drawing)
    }

    /// Draws the keys of the next step.
    pub fn step(
        &mut self,
        generator: &mut dyn Generator,
        sampling: &Sampling,
        rng: &mut Rng,
    ) -> Result<u128> {
        fill(self.before, &mut self.rows);
        self.before = generator.step_keys(&self.rows, &mut |logit| {
            let u = rng.unit();
            match sampling.temperature {
                0.0 => logit > 0.0,
                t => u < 1.0 / (1.0 + (-logit / t).exp()),
            }
        })?;
        Ok(self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts what is asked of it.
    #[derive(Default)]
    struct Counted {
        steps: usize,
        chains: usize,
    }

    impl Generator for Counted {
        fn reset(&mut self) {}

        fn step(&mut self, _: &[u32]) -> Result<&[f32]> {
            self.steps += 1;
            Ok(&[])
        }

        fn step_keys(&mut self, _: &[u32], _: &mut dyn FnMut(f32) -> bool) -> Result<u128> {
            self.chains += 1;
            Ok(0)
        }
    }

    #[test]
    fn a_primer_is_read_without_walking_over_its_keys() {
        let primer: Vec<u32> =
            [1u128, 6, 0].into_iter().flat_map(PianoRollTokens::tokens_of).collect();
        let mut counted = Counted::default();
        let mut drawing = Drawing::begin(&mut counted, &primer).unwrap();
        assert_eq!((counted.steps, counted.chains), (3, 0));
        drawing.step(&mut counted, &Sampling::default(), &mut Rng::new(1)).unwrap();
        assert_eq!((counted.steps, counted.chains), (3, 1));
    }
}
