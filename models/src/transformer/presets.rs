//! The published and built-in sizes of the Transformer.
//!
//! Those of the Music Transformer (Huang et al. 2018) and, in small, of MuseNet (Payne 2019).

use super::sizes::{KEYS, TransformerConfig};
use crate::registry::{Entry, Preset};

/// The decoder of tokens.
pub const TRANSFORMER: Entry = Entry {
    id: "transformer",
    about: "decoder with attention: every token looks at all before it",
    presets: &[
        Preset {
            name: "music-transformer-tiny",
            about: "3 x 128 with relative attention over the 38-class melody encoding: learns in \
                    minutes",
            settings: r#"{"model": {"encoding": "melody-c", "hidden": 128, "layers": 3, "heads": 4,
                "ff": 512, "context": 512, "dropout": 0.1},
                "train": {"steps": 2000, "batch": 16, "window": 256, "lr": 0.001, "clip": 1,
                "warmup": 100}}"#,
        },
        Preset {
            name: "chorales",
            about: "the bundled model: the Music Transformer for chorales in small, 4 x 128 with \
                    relative attention over soprano, alto, tenor and bass of each sixteenth",
            settings: r#"{"model": {"encoding": "satb", "hidden": 128, "layers": 4, "heads": 4,
                "ff": 512, "context": 512, "dropout": 0.15},
                "train": {"steps": 3000, "batch": 8, "window": 512, "lr": 0.002, "clip": 1,
                "warmup": 100, "schedule": "cosine", "transpose": 5, "valid_every": 100,
                "save_every": 100}, "data": {"source": "chorales"}}"#,
        },
        Preset {
            name: "infill",
            about: "chorales with holes: bars that are missing are written between what stands before \
                    and after them (generate --fill)",
            settings: r#"{"model": {"encoding": "satb-infill", "hidden": 128, "layers": 4, "heads": 4,
                "ff": 512, "context": 768, "dropout": 0.15},
                "train": {"steps": 3000, "batch": 8, "window": 768, "lr": 0.002, "clip": 1,
                "warmup": 100, "schedule": "cosine", "transpose": 5, "fill": 0.5, "valid_every": 100,
                "save_every": 100}, "data": {"source": "chorales"}}"#,
        },
        Preset {
            name: "music-transformer-jsb",
            about: "the Music Transformer's sizes for chorales (Huang et al. 2018): 5 x 256, 8 heads, \
                    ff 1024, relative attention",
            settings: r#"{"model": {"encoding": "satb", "hidden": 256, "layers": 5, "heads": 8,
                "ff": 1024, "context": 1024, "dropout": 0.1},
                "train": {"steps": 2000, "batch": 8, "window": 512, "lr": 0.0005, "clip": 1,
                "warmup": 200, "transpose": 3}, "data": {"source": "chorales"}}"#,
        },
        Preset {
            name: "music-transformer-piano",
            about: "the Music Transformer for performances: 6 x 512, 8 heads, ff 1024, relative \
                    attention over 2048 events of 10 ms",
            settings: r#"{"model": {"encoding": "performance-dynamics", "hidden": 512, "layers": 6,
                "heads": 8, "ff": 1024, "context": 2048, "dropout": 0.1},
                "train": {"steps": 2000, "batch": 2, "window": 2048, "lr": 0.0003, "clip": 1,
                "warmup": 200, "transpose": 3}, "data": {"source": "piano"}}"#,
        },
        Preset {
            name: "accompaniment",
            about: "encoder and decoder: writes what goes with a melody, 2 and 4 blocks of 128 over the \
                    multi-track events of any MIDI file (etude accompany)",
            settings: r#"{"model": {"encoding": "events", "conditions": "melody", "hidden": 128,
                "layers": 4, "encoder": 2, "heads": 4, "ff": 512, "context": 1024, "dropout": 0.1},
                "train": {"steps": 3000, "batch": 4, "window": 1024, "lr": 0.001, "clip": 1,
                "warmup": 100, "transpose": 5, "valid_every": 100, "save_every": 100},
                "data": {"source": "bands"}}"#,
        },
        Preset {
            name: "musenet-small",
            about: "MuseNet's kind in small: 6 x 512, 8 heads, ff 2048, learned positions, sparse \
                    attention, over the multi-track events of any MIDI file",
            settings: r#"{"model": {"encoding": "events", "hidden": 512, "layers": 6, "heads": 8,
                "ff": 2048, "context": 1024, "positions": "learned", "sparse_block": 128,
                "sparse_stride": 16, "dropout": 0.1},
                "train": {"steps": 2000, "batch": 2, "window": 1024, "lr": 0.0003, "clip": 1,
                "warmup": 200}, "data": {"source": "bands"}}"#,
        },
    ],
    keys: KEYS,
    read: TransformerConfig::entry,
};
