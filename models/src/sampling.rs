//! From logits to a token: temperature, top-k, top-p, min-p, and a guard against endless repeats.
//!
//! With logits `x` the model says `p = softmax(x)`. Temperature `T` sharpens (`T < 1`) or flattens
//! (`T > 1`): `p = softmax(x / T)`. The three cuts then remove the tail, each on the probabilities
//! after temperature:
//! - top-k keeps the `k` likeliest tokens (Fan, Lewis & Dauphin 2018);
//! - top-p keeps the smallest set whose probability reaches `p` (Holtzman et al. 2020, "nucleus");
//! - min-p keeps tokens at least `min_p` times as likely as the likeliest (Nguyen et al. 2024).
//!
//! Nothing here allocates once a [`Sampler`] stands.

use crate::{Error, Result};
use etude_engine::exp;

/// The controls of sampling.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keeps the `k` likeliest; 0 keeps all.
    pub top_k: usize,
    /// Keeps the smallest set of at least this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this many times as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// How often one sounding token may come in a row before it is struck out; 0: no guard.
    pub repeat_limit: usize,
    /// Pieces that are kept in a search for a likely one ([`crate::beam`]); 1: no search.
    pub beam: usize,
    /// Ways in which each of them goes on in an iteration of the search.
    pub branch: usize,
    /// Tokens of an iteration of the search.
    pub iteration: usize,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_limit: 0,
            beam: 1,
            branch: 1,
            iteration: 1,
        }
    }
}

impl Sampling {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the control that is out of its range.
    pub fn check(&self) -> Result<()> {
        let bad = |key: &str, why: String| Err(Error::Config { key: key.into(), why });
        if !(self.temperature.is_finite() && (0.0..=100.0).contains(&self.temperature)) {
            return bad("temperature", format!("{} is not in 0 to 100", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("top_p", format!("{} is not above 0 and at most 1", self.top_p));
        }
        if !(self.min_p >= 0.0 && self.min_p <= 1.0) {
            return bad("min_p", format!("{} is not in 0 to 1", self.min_p));
        }
        for (key, count) in [("beam", self.beam), ("branch", self.branch)] {
            if !(1..=MOST_BRANCHES).contains(&count) {
                return bad(key, format!("{count} is not in 1 to {MOST_BRANCHES}"));
            }
        }
        if self.beam * self.branch > MOST_BRANCHES {
            let why = format!(
                "{} pieces in {} ways; at most {MOST_BRANCHES} together",
                self.beam, self.branch
            );
            return bad("beam", why);
        }
        if self.iteration == 0 {
            return bad("iteration", "0 tokens; at least 1".into());
        }
        Ok(())
    }
}

/// The most pieces that a search keeps side by side.
pub const MOST_BRANCHES: usize = 4096;

/// Probabilities that are added up, and passed over, together: one after another would take longer
/// than some networks.
const RUN: usize = 16;

/// Draws tokens by the controls; holds the scratch memory.
pub struct Sampler {
    controls: Sampling,
    probs: Vec<f32>,
    /// The logits below the largest, by temperature.
    scaled: Vec<f32>,
    /// Sums of runs of [`RUN`] probabilities.
    sums: Vec<f64>,
    order: Vec<u32>,
    heard: Heard,
}

/// What the repetition guard remembers of a piece.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heard {
    last: Option<u32>,
    run: usize,
}

impl Sampler {
    /// Makes a sampler for a vocabulary.
    pub fn new(controls: Sampling, vocab: usize) -> Sampler {
        Sampler {
            controls,
            probs: vec![0.0; vocab],
            scaled: vec![0.0; vocab],
            sums: vec![0.0; vocab.div_ceil(RUN)],
            order: (0..vocab as u32).collect(),
            heard: Heard::default(),
        }
    }

    /// Tells the repetition guard what was just played: `Some(token)` for a token that sounds
    /// anew (a note), `None` for one that does not (a rest, a hold, a time shift).
    pub fn heard(&mut self, sounding: Option<u32>) {
        let Some(token) = sounding else { return };
        let Heard { last, run } = self.heard;
        let run = if last == Some(token) { run + 1 } else { 1 };
        self.heard = Heard { last: Some(token), run };
    }

    /// Forgets what was heard.
    pub fn reset(&mut self) {
        self.heard = Heard::default();
    }

    /// What was heard so far.
    pub fn memory(&self) -> Heard {
        self.heard
    }

    /// Goes on from another place, or in another piece.
    pub fn remember(&mut self, heard: Heard) {
        self.heard = heard;
    }

    /// The token that the guard strikes out now, if any.
    fn struck(&self) -> Option<u32> {
        let limit = self.controls.repeat_limit;
        self.heard.last.filter(|_| limit > 0 && self.heard.run >= limit)
    }

    /// The log-probability of a token among the allowed ones, at the temperature (at 1 where that
    /// is 0): what a search adds up.
    ///
    /// # Shapes
    /// `logits` `[vocab]`.
    pub fn log_probability(
        &self,
        logits: &[f32],
        token: u32,
        allowed: impl Fn(u32) -> bool,
    ) -> f64 {
        let temperature = match self.controls.temperature {
            0.0 => 1.0,
            t => f64::from(t),
        };
        let stand = || (0u32..).zip(logits).filter(|(t, _)| allowed(*t)).map(|(_, x)| *x);
        let top = stand().fold(f32::NEG_INFINITY, f32::max);
        let below = |x: f32| (f64::from(x) - f64::from(top)) / temperature;
        below(logits[token as usize]) - stand().map(|x| below(x).exp()).sum::<f64>().ln()
    }

    /// Draws a token.
    ///
    /// `allowed` says which tokens the grammar lets stand here; `unit` is a uniform number in
    /// `[0, 1)`. If nothing is left after the cuts, the likeliest allowed token is taken; if the
    /// guard's token alone is allowed, that one.
    ///
    /// # Shapes
    /// `logits` `[vocab]`.
    pub fn draw(&mut self, logits: &[f32], unit: f32, allowed: impl Fn(u32) -> bool) -> u32 {
        let mut others = 0..logits.len() as u32;
        let struck = self.struck().filter(|s| others.any(|token| token != *s && allowed(token)));
        let stands = |token: u32| allowed(token) && struck != Some(token);
        let (mut best, mut top) = (0u32, f32::NEG_INFINITY);
        for (token, x) in logits.iter().enumerate() {
            if *x > top && stands(token as u32) {
                (best, top) = (token as u32, *x);
            }
        }
        if self.controls.temperature == 0.0 || top == f32::NEG_INFINITY {
            return best;
        }
        // Unnormalised: the likeliest has 1, which is what min-p compares with.
        let scale = 1.0 / self.controls.temperature;
        self.scaled.iter_mut().zip(logits).for_each(|(y, x)| *y = (x - top) * scale);
        exp(&self.scaled, &mut self.probs);
        for (token, p) in self.probs.iter_mut().enumerate() {
            if *p < self.controls.min_p || !stands(token as u32) {
                *p = 0.0;
            }
        }
        if self.controls.top_k > 0 || self.controls.top_p < 1.0 {
            self.cut_tail();
        }
        for (sum, run) in self.sums.iter_mut().zip(self.probs.chunks(RUN)) {
            *sum = run.iter().map(|p| f64::from(*p)).sum();
        }
        let mut left = f64::from(unit) * self.sums.iter().sum::<f64>();
        let mut token = best;
        for (at, (sum, run)) in self.sums.iter().zip(self.probs.chunks(RUN)).enumerate() {
            if *sum > 0.0 && left >= *sum {
                // Nobody here, unless rounding leaves nobody behind.
                left -= sum;
                token = (at * RUN + last(run)) as u32;
                continue;
            }
            for (candidate, p) in run.iter().enumerate().filter(|(_, p)| **p > 0.0) {
                token = (at * RUN + candidate) as u32;
                left -= f64::from(*p);
                if left < 0.0 {
                    return token;
                }
            }
        }
        token
    }

    /// Removes what top-k and top-p do not keep.
    fn cut_tail(&mut self) {
        let probs = &mut self.probs;
        // Equal probabilities fall in the order of their ids: the same cut on every machine.
        self.order.sort_unstable_by(|a, b| {
            probs[*b as usize].total_cmp(&probs[*a as usize]).then(a.cmp(b))
        });
        let total: f64 = probs.iter().map(|p| f64::from(*p)).sum();
        let wanted = f64::from(self.controls.top_p) * total;
        let most = if self.controls.top_k == 0 { probs.len() } else { self.controls.top_k };
        let mut sum = 0.0;
        for (rank, token) in self.order.iter().enumerate() {
            let p = &mut probs[*token as usize];
            if rank >= most || (rank > 0 && sum >= wanted && self.controls.top_p < 1.0) {
                *p = 0.0;
            } else {
                sum += f64::from(*p);
            }
        }
    }
}

/// The last of some probabilities that is not 0.
fn last(probs: &[f32]) -> usize {
    probs.iter().rposition(|p| *p > 0.0).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(controls: Sampling, logits: &[f32]) -> Vec<usize> {
        let mut sampler = Sampler::new(controls, logits.len());
        let mut counts = vec![0; logits.len()];
        for i in 0..1000 {
            counts[sampler.draw(logits, i as f32 / 1000.0, |_| true) as usize] += 1;
        }
        counts
    }

    #[test]
    fn plain_sampling_follows_the_probabilities() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        let counts = draws(Sampling::default(), &logits);
        // 1000 evenly spaced numbers fall within one of the exact share.
        for (count, share) in counts.iter().zip([500i32, 300, 200]) {
            assert!((*count as i32 - share).abs() <= 1, "{counts:?}");
        }
    }

    #[test]
    fn every_token_of_a_large_vocabulary_has_its_share() {
        // Likely and impossible tokens in every place of a run, the last one alone in its run.
        let logits: Vec<f32> =
            (0..49).map(|i| if i % 3 == 1 { -200.0 } else { (i % 5) as f32 * 0.3 }).collect();
        let total: f32 = logits.iter().map(|x| x.exp()).sum();
        let counts = draws(Sampling::default(), &logits);
        for (token, (count, x)) in counts.into_iter().zip(&logits).enumerate() {
            // 1000 evenly spaced numbers fall within one of the exact share.
            let share = 1000.0 * x.exp() / total;
            assert!((count as f32 - share).abs() <= 1.0 + 1e-3, "{token}: {count} of {share}");
            assert!(count > 0 || *x == -200.0, "{token}");
        }
        let mut sampler = Sampler::new(Sampling::default(), logits.len());
        assert_eq!(sampler.draw(&logits, 1.0 - f32::EPSILON / 2.0, |_| true), 48);
    }

    #[test]
    fn temperature_sharpens_and_zero_takes_the_likeliest() {
        let logits = [1.0, 2.0, 0.0];
        let cold = draws(Sampling { temperature: 0.5, ..Sampling::default() }, &logits);
        let warm = draws(Sampling { temperature: 2.0, ..Sampling::default() }, &logits);
        assert!(cold[1] > warm[1]);
        let zero = draws(Sampling { temperature: 0.0, ..Sampling::default() }, &logits);
        assert_eq!(zero, [0, 1000, 0]);
    }

    #[test]
    fn top_k_keeps_k() {
        let counts = draws(Sampling { top_k: 2, ..Sampling::default() }, &[0.0, 3.0, 1.0, 2.0]);
        assert!(counts[0] == 0 && counts[2] == 0 && counts[1] > 0 && counts[3] > 0);
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_p() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.15f32.ln(), 0.05f32.ln()];
        let counts = draws(Sampling { top_p: 0.79, ..Sampling::default() }, &logits);
        assert!(counts[0] > 0 && counts[1] > 0 && counts[2] == 0 && counts[3] == 0);
        let counts = draws(Sampling { top_p: 0.45, ..Sampling::default() }, &logits);
        assert_eq!(counts, [1000, 0, 0, 0]);
    }

    #[test]
    fn min_p_is_relative_to_the_likeliest() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.15f32.ln(), 0.05f32.ln()];
        let counts = draws(Sampling { min_p: 0.2, ..Sampling::default() }, &logits);
        assert!(counts[2] > 0 && counts[3] == 0);
    }

    #[test]
    fn the_grammar_is_never_broken() {
        let mut sampler = Sampler::new(Sampling::default(), 4);
        for i in 0..100 {
            let token = sampler.draw(&[9.0, 0.0, 0.0, 9.0], i as f32 / 100.0, |t| t == 1 || t == 2);
            assert!(token == 1 || token == 2);
        }
    }

    #[test]
    fn the_guard_gives_way_to_the_grammar() {
        let controls = Sampling { repeat_limit: 1, ..Sampling::default() };
        let mut sampler = Sampler::new(controls, 3);
        sampler.heard(Some(1));
        assert_eq!(sampler.draw(&[9.0, 0.0, 9.0], 0.5, |t| t == 1), 1);
        assert_eq!(sampler.draw(&[9.0, 0.0, 9.0], 0.5, |t| t > 0), 2);
    }

    #[test]
    fn log_probabilities_are_those_of_the_allowed_tokens() {
        let sampler = Sampler::new(Sampling { temperature: 2.0, ..Sampling::default() }, 3);
        let logits = [2.0 * 0.5f32.ln(), 2.0 * 0.3f32.ln(), 2.0 * 0.2f32.ln()];
        // The logarithms are rounded to f32: a few units of 2^-24 times 2.
        let near = |p: f64, q: f64| (p.exp() - q).abs() < 1e-6;
        assert!(near(sampler.log_probability(&logits, 1, |_| true), 0.3));
        assert!(near(sampler.log_probability(&logits, 1, |t| t > 0), 0.6));
    }

    #[test]
    fn the_guard_stops_a_repeated_note() {
        let controls = Sampling { repeat_limit: 3, ..Sampling::default() };
        let mut sampler = Sampler::new(controls, 2);
        let (mut run, mut longest) = (0, 0);
        for _ in 0..50 {
            let token = sampler.draw(&[10.0, 0.0], 0.1, |_| true);
            sampler.heard(Some(token));
            run = if token == 0 { run + 1 } else { 0 };
            longest = longest.max(run);
        }
        assert_eq!(longest, 3);
    }
}
