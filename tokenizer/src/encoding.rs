//! What every encoding can do.

use crate::grammar::{Anything, Grammar};
use crate::{
    Drums, Error, Events, Infill, Melody, MelodyLabels, NotePerformance, Performance,
    PianoRollTokens, Polyphony, Result, Satb, Score,
};

/// Tokens of a score, and what the encoding could not hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, each below the vocabulary's size.
    pub tokens: Vec<u32>,
    /// Notes that the encoding could not hold or had to change (and, where the reason says so,
    /// other things), counted by reason; empty when nothing was lost.
    pub lost: Vec<(String, usize)>,
}

/// How much musical time a token takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenTime {
    /// None.
    None,
    /// Sixteenth-note steps.
    Steps(u32),
    /// Hundredths of a second.
    Centiseconds(u32),
    /// Bars of the metre at hand.
    Bars(u32),
}

/// What an encoding holds of the speed of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speed {
    /// Nothing: its steps are parts of a bar.
    None,
    /// Its steps are hundredths of a second.
    Time,
    /// The tempo, beside steps that are parts of a bar.
    Tempo,
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

    /// How much time a token takes, so that a piece can be written to a length.
    fn token_time(&self, token: u32) -> TokenTime {
        let _ = token;
        TokenTime::None
    }

    /// Tells whether a token begins a note.
    fn is_onset(&self, token: u32) -> bool {
        let _ = token;
        false
    }

    /// The pitch that a token begins or holds, in the encodings that tell each voice at each step
    /// (`polyphony`, `satb`); `None` elsewhere.
    fn pitch(&self, token: u32) -> Option<u8> {
        let _ = token;
        None
    }

    /// The most notes that a token can begin.
    fn notes_of_token(&self) -> usize {
        1
    }

    /// Which tokens may come next: begins at the first.
    fn grammar(&self) -> Box<dyn Grammar> {
        Box::new(Anything::of(self.vocab_size()))
    }

    /// The semitones by which encoding moves a score as a whole: those to C, for an encoding that
    /// reads everything in one key.
    fn key_shift(&self, score: &Score) -> i32 {
        let _ = score;
        0
    }

    /// Whether a piece in another key has other tokens: not where everything is read in one key, nor
    /// where there are no pitches.
    fn has_key(&self) -> bool {
        true
    }

    /// What of a piece's speed is in its tokens.
    fn speed(&self) -> Speed {
        Speed::None
    }

    /// Whether a piece that is louder has other tokens.
    fn has_velocity(&self) -> bool {
        false
    }

    /// The encoding itself, if bars may be missing in its pieces.
    fn infill(&self) -> Option<&Infill> {
        None
    }

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

/// The names of the schemes and what they are, for people.
const SCHEMES: [(&str, &str); 20] = [
    ("melody", "one voice in sixteenth notes, pitches 48 to 83: 38 tokens (Magenta basic_rnn)"),
    ("melody-c", "the same, moved to C major or A minor"),
    ("melody-mono", "one voice in sixteenth notes, all pitches: 130 tokens (Magenta mono_rnn)"),
    (
        "melody-lookback",
        "melody, repeats of one and two bars told: 40 labels (Magenta lookback_rnn)",
    ),
    ("melody-lookback-c", "the same, moved to C major or A minor"),
    ("melody-key", "the same 40 labels in the order of Magenta's attention_rnn"),
    ("melody-key-c", "the same, moved to C major or A minor"),
    ("drums", "drums in sixteenth notes, nine kinds: 512 tokens (Magenta drum_kit)"),
    ("drums-one", "drums in eighth notes, struck or not: 2 tokens (Magenta one_drum)"),
    ("polyphony", "many voices in sixteenth notes: 259 tokens (Magenta Polyphony RNN)"),
    (
        "pianoroll",
        "the keys of each sixteenth, together: 88 and a step (Magenta Pianoroll RNN-NADE)",
    ),
    (
        "pianoroll-quarter",
        "the keys of each quarter note: 88 and a step (JSB chorales, Nottingham)",
    ),
    ("satb", "four voices in sixteenth notes, a token each: 4 x 89 (chorales, Music Transformer)"),
    ("performance", "piano in steps of 10 ms, one loudness: 356 tokens (Performance RNN)"),
    ("performance-dynamics", "piano in steps of 10 ms, 32 velocities: 388 tokens"),
    ("performance-note", "piano, each note told by six heads: 315 tokens (Magenta note encoding)"),
    ("events", "any MIDI: bars, positions, instruments, notes, tempo and signatures"),
    ("melody-c-infill", "melody-c with holes: missing bars come after what stands around them"),
    ("satb-infill", "satb with holes of whole bars"),
    ("events-infill", "events with holes of whole bars"),
];

/// Lists the schemes: name, and a line for people.
pub fn schemes() -> &'static [(&'static str, &'static str)] {
    &SCHEMES
}

/// Gives an encoding by the name of its scheme; `None` if there is none of that name.
pub fn encoding(name: &str) -> Option<Box<dyn Encoding>> {
    Some(match name {
        "melody" => Box::new(Melody::basic()),
        "melody-c" => Box::new(Melody::basic_in_c()),
        "melody-mono" => Box::new(Melody::mono()),
        "melody-lookback" => Box::new(MelodyLabels::lookback()),
        "melody-lookback-c" => Box::new(MelodyLabels::lookback_in_c()),
        "melody-key" => Box::new(MelodyLabels::key()),
        "melody-key-c" => Box::new(MelodyLabels::key_in_c()),
        "drums" => Box::new(Drums::kit()),
        "drums-one" => Box::new(Drums::one()),
        "polyphony" => Box::new(Polyphony),
        "pianoroll" => Box::new(PianoRollTokens::sixteenths()),
        "pianoroll-quarter" => Box::new(PianoRollTokens::quarters()),
        "satb" => Box::new(Satb),
        "performance" => Box::new(Performance::plain()),
        "performance-dynamics" => Box::new(Performance::with_dynamics()),
        "performance-note" => Box::new(NotePerformance),
        "events" => Box::new(Events),
        "melody-c-infill" => Box::new(Infill::of(Box::new(Melody::basic_in_c()))),
        "satb-infill" => Box::new(Infill::of(Box::new(Satb))),
        "events-infill" => Box::new(Infill::of(Box::new(Events))),
        _ => return None,
    })
}

/// Refuses tokens that are not in the vocabulary.
pub(crate) fn check_tokens(encoding: &impl Encoding, tokens: &[u32]) -> Result<()> {
    let size = encoding.vocab_size();
    match tokens.iter().position(|&token| token as usize >= size) {
        None => Ok(()),
        Some(place) => Err(Error::Encoding {
            scheme: encoding.name().to_string(),
            why: format!(
                "token {} at place {place}; the vocabulary has {size} tokens",
                tokens[place]
            ),
        }),
    }
}
