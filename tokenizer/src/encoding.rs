//! What every encoding can do.

use crate::{Result, Score};

/// Tokens of a score, and what the encoding could not hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, each below the vocabulary's size.
    pub tokens: Vec<u32>,
    /// Notes that the encoding could not hold, counted by reason; empty when nothing was lost.
    pub lost: Vec<(String, usize)>,
}

/// A way to write a score as tokens of a named vocabulary.
///
/// On a score that the encoding's own `quantise` returns, `decode(encode(score))` is that score.
pub trait Encoding: Send + Sync {
    /// The scheme's name, as on the command line: `melody`, `performance`, `events`, ...
    fn name(&self) -> &str;

    /// Number of different tokens.
    fn vocab_size(&self) -> usize;

    /// The name of a token, such as `NOTE_ON_60`.
    ///
    /// # Panics
    /// If `token` is not below [`Encoding::vocab_size`].
    fn token_name(&self, token: u32) -> String;

    /// The score as this encoding hears it: on its grid, in its range, losses removed.
    fn quantise(&self, score: &Score) -> Score;

    /// Writes a score as tokens.
    ///
    /// # Errors
    /// If the score cannot be written in this scheme at all.
    fn encode(&self, score: &Score) -> Result<Encoded>;

    /// Reads tokens back; any sequence of known tokens, lawful or not, gives a score.
    ///
    /// # Errors
    /// If a token is not in the vocabulary.
    fn decode(&self, tokens: &[u32]) -> Result<Score>;
}
