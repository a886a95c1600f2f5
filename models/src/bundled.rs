//! Trained weights in the box.

use crate::{Loaded, Result, read_model};

/// A bundled model: one file whose metadata hold its configuration.
pub struct Bundled {
    /// Its name: `lstm`.
    pub name: &'static str,
    /// The file.
    pub bytes: &'static [u8],
    /// The command that made it.
    pub command: &'static str,
    /// Validation loss of the file as it is, nats for a token.
    pub valid_nll: f64,
}

/// Every bundled model; the first is the default of `generate`.
pub const BUNDLED: &[Bundled] = &[
    Bundled {
        name: "lstm",
        bytes: include_bytes!("../weights/lstm.safetensors"),
        command: "etude train lstm --data folk --out run; etude export run --dtype int8",
        valid_nll: 0.5955,
    },
    Bundled {
        name: "gru",
        bytes: include_bytes!("../weights/gru.safetensors"),
        command: "etude train gru --data folk --out run; etude export run --dtype int8",
        valid_nll: 0.5653,
    },
    Bundled {
        name: "rnn",
        bytes: include_bytes!("../weights/rnn.safetensors"),
        command: "etude train rnn --data folk --out run; etude export run --dtype int8",
        valid_nll: 0.6977,
    },
    Bundled {
        name: "transformer",
        bytes: include_bytes!("../weights/transformer.safetensors"),
        command: "etude train transformer/chorales --out run; etude export run --dtype int8",
        valid_nll: 0.4067,
    },
];

/// Finds a bundled model by name.
pub fn find(name: &str) -> Option<&'static Bundled> {
    BUNDLED.iter().find(|b| b.name == name)
}

/// Builds a bundled model.
///
/// # Errors
/// If there is none of that name, or the weights in the box are damaged.
pub fn load(name: &str) -> Result<Loaded> {
    let bundled = find(name).ok_or_else(|| crate::Error::Unknown {
        what: "bundled model",
        name: crate::config::plain(name),
        known: BUNDLED.iter().map(|b| b.name.into()).collect(),
    })?;
    read_model(bundled.bytes, name)
}
