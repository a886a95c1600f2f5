//! The published and built-in sizes of the recurrent networks.
//!
//! Those of Magenta: Melody RNN and Improv RNN (Waite 2016), Drums RNN, Polyphony RNN, Performance RNN
//! (Simon & Oore 2017), Pianoroll RNN-NADE; those of the likelihood table of JSB chorales
//! (Boulanger-Lewandowski, Bengio & Vincent 2012) have at most 300,000 weights.

use super::config::{KEYS, RecurrentConfig};
use super::guided;
use crate::registry::{Entry, Preset};

/// The Elman network.
pub const RNN: Entry = Entry {
    id: "rnn",
    about: "Elman network: one tanh layer of memory; forgets within a bar or two",
    presets: &[
        Preset {
            name: "melody-form",
            about: "the bundled model: as lstm/melody-form, with the cells of this network",
            settings: r#"{"model": {"encoding": "melody-c", "conditions": "form", "hidden": 192,
                "layers": 2, "dropout": 0.3},
                "train": {"steps": 2400, "batch": 32, "window": 384, "lr": 0.001, "clip": 1,
                "warmup": 50, "valid_every": 100, "save_every": 100}}"#,
        },
        Preset {
            name: "basic",
            about: "2 x 128 units over the 38-class melody encoding",
            settings: r#"{"model": {"encoding": "melody-c", "hidden": 128, "layers": 2, "dropout": 0.2},
            "train": {"steps": 2000, "batch": 64, "lr": 0.001, "clip": 1}}"#,
        },
        Preset {
            name: "pianoroll",
            about: "460 units over the 88 keys of each quarter note, each key for itself: \
                    293,108 weights, for the likelihood table of JSB chorales",
            settings: r#"{"model": {"encoding": "pianoroll-quarter", "conditions": "keys",
                "head": "bernoulli", "hidden": 460, "layers": 1, "dropout": 0.4},
                "train": {"steps": 3000, "batch": 8, "window": 1024, "lr": 0.001, "clip": 1,
                "weight_decay": 0.1, "valid_every": 100, "save_every": 500,
                "patience": 10},
                "data": {"source": "chorales-quarter"}}"#,
        },
        Preset {
            name: "pianoroll-nade",
            about: "RNN-NADE: 300 units and a chain over the 88 keys of each quarter note",
            settings: r#"{"model": {"encoding": "pianoroll-quarter", "conditions": "keys",
                "head": "nade", "nade": 128, "hidden": 300, "layers": 1, "dropout": 0.3},
                "train": {"steps": 4000, "batch": 8, "window": 1024, "lr": 0.004, "clip": 1,
                "valid_every": 100, "save_every": 500,
                "patience": 15},
                "data": {"source": "chorales-quarter"}}"#,
        },
    ],
    keys: KEYS,
    read: RecurrentConfig::entry,
};

/// The gated recurrent unit.
pub const GRU: Entry = Entry {
    id: "gru",
    about: "gated recurrent unit: two gates decide what stays",
    presets: &[
        Preset {
            name: "melody-form",
            about: "the bundled model: as lstm/melody-form, with the cells of this network",
            settings: r#"{"model": {"encoding": "melody-c", "conditions": "form", "hidden": 192,
                "layers": 2, "dropout": 0.3},
                "train": {"steps": 2400, "batch": 32, "window": 384, "lr": 0.004, "clip": 5,
                "warmup": 50, "valid_every": 100, "save_every": 100}}"#,
        },
        Preset {
            name: "basic",
            about: "2 x 128 units over the 38-class melody encoding",
            settings: r#"{"model": {"encoding": "melody-c", "hidden": 128, "layers": 2, "dropout": 0.2},
            "train": {"steps": 2000, "batch": 64, "lr": 0.002, "clip": 5}}"#,
        },
        Preset {
            name: "pianoroll",
            about: "260 units over the 88 keys of each quarter note, each key for itself: \
                    295,968 weights, for the likelihood table of JSB chorales",
            settings: r#"{"model": {"encoding": "pianoroll-quarter", "conditions": "keys",
                "head": "bernoulli", "hidden": 260, "layers": 1, "dropout": 0.5},
                "train": {"steps": 5000, "batch": 8, "window": 1024, "lr": 0.004, "clip": 1,
                "schedule": "cosine", "weight_decay": 0.1, "valid_every": 100, "save_every": 500,
                "patience": 10},
                "data": {"source": "chorales-quarter"}}"#,
        },
    ],
    keys: KEYS,
    read: RecurrentConfig::entry,
};

/// The long short-term memory.
pub const LSTM: Entry = Entry {
    id: "lstm",
    about: "long short-term memory: a cell that keeps what its gates let in",
    presets: &[
        Preset {
            name: "melody-form",
            about: "the bundled model: melodies, told the metre, the place and what was played \
                    1, 2, 4 and 8 bars ago",
            settings: r#"{"model": {"encoding": "melody-c", "conditions": "form", "hidden": 192,
                "layers": 2, "dropout": 0.3},
                "train": {"steps": 2400, "batch": 32, "window": 384, "lr": 0.004, "clip": 5,
                "warmup": 50, "valid_every": 100, "save_every": 100}}"#,
        },
        Preset {
            name: "melody-basic",
            about: "Magenta's basic_rnn: 2 x 128 units, 38 classes, 221,990 weights",
            settings: r#"{"model": {"encoding": "melody-c", "hidden": 128, "layers": 2,
                "dropout": 0.5}, "train": {"steps": 2000, "batch": 128, "lr": 0.001, "clip": 5}}"#,
        },
        Preset {
            name: "melody-mono",
            about: "Magenta's mono_rnn: 2 x 128 units over all 128 pitches, 280,962 weights",
            settings: r#"{"model": {"encoding": "melody-mono", "hidden": 128, "layers": 2,
                "dropout": 0.5}, "train": {"steps": 2000, "batch": 128, "lr": 0.001, "clip": 5}}"#,
        },
        Preset {
            name: "melody-lookback",
            about: "Magenta's lookback_rnn: 2 x 128 units, told the place and what was \
                    played one and two bars ago, 264,744 weights",
            settings: r#"{"model": {"encoding": "melody-lookback-c", "conditions": "features",
                "hidden": 128, "layers": 2, "dropout": 0.5}, "train": {"steps": 2000,
                "batch": 128, "window": 256, "lr": 0.001, "clip": 5}}"#,
        },
        Preset {
            name: "melody-attention",
            about: "Magenta's attention_rnn: 2 x 128 units, told keys and places, the \
                    first with attention over its last 40 outputs, 240,680 weights and \
                    those of the attention",
            settings: r#"{"model": {"encoding": "melody-key-c", "conditions": "features", "hidden":
                128, "layers": 2, "dropout": 0.5, "attention": 40}, "train": {"steps": 2000,
                "batch": 128, "window": 96, "lr": 0.001, "clip": 3}}"#,
        },
        guided::IMPROV_BASIC,
        guided::IMPROV_ATTENTION,
        guided::IMPROV_CHORD_PITCHES,
        Preset {
            name: "drums-one",
            about: "Magenta's one_drum: 2 x 128 units, struck or not, 198,914 weights",
            settings: r#"{"model": {"encoding": "drums-one", "hidden": 128, "layers": 2, "dropout":
                0.5}, "train": {"steps": 2000, "batch": 128, "window": 256, "lr": 0.001,
                "clip": 5}, "data": {"source": "grooves"}}"#,
        },
        Preset {
            name: "drums",
            about: "Magenta's drum_kit: 3 x 256 units over sets of nine drums, the \
                    first with attention over its last 32 outputs, 1,975,808 weights \
                    and those of the attention",
            settings: r#"{"model": {"encoding": "drums", "conditions": "features", "hidden": 256,
                "layers": 3, "dropout": 0.5, "attention": 32}, "train": {"steps": 2000,
                "batch": 128, "window": 64, "lr": 0.001, "clip": 3}, "data": {"source":
                "grooves"}}"#,
        },
        Preset {
            name: "polyphony",
            about: "Magenta's Polyphony RNN: 3 x 256 units over 259 events of many \
                    voices, 1,645,571 weights",
            settings: r#"{"model": {"encoding": "polyphony", "hidden": 256, "layers": 3, "dropout":
                0.5}, "train": {"steps": 2000, "batch": 64, "window": 256, "lr": 0.001,
                "clip": 5}, "data": {"source": "chorales"}}"#,
        },
        Preset {
            name: "performance-plain",
            about: "Magenta's Performance RNN without dynamics: 3 x 512 units, 356 \
                    events of 10 ms, 6,160,740 weights",
            settings: r#"{"model": {"encoding": "performance", "hidden": 512, "layers": 3, "dropout":
                0.0}, "train": {"steps": 2000, "batch": 64, "window": 256, "lr": 0.001,
                "clip": 3, "transpose": 3}, "data": {"source": "piano"}}"#,
        },
        Preset {
            name: "performance-modulo",
            about: "Magenta's performance_with_dynamics_and_modulo_encoding: 3 x 512 \
                    units that read pitches, times and velocities as places on circles",
            settings: r#"{"model": {"encoding": "performance-dynamics", "conditions": "features",
                "hidden": 512, "layers": 3, "dropout": 0.0}, "train": {"steps": 2000,
                "batch": 64, "window": 256, "lr": 0.001, "clip": 3, "transpose": 3}, "data":
                {"source": "piano"}}"#,
        },
        Preset {
            name: "performance",
            about: "Magenta's performance_with_dynamics: 3 x 512 units, 388 events of 10 ms, \
                    6,242,692 weights",
            settings: r#"{"model": {"encoding": "performance-dynamics", "hidden": 512, "layers": 3,
                "dropout": 0.0}, "train": {"steps": 2000, "batch": 64, "window": 256, "lr": 0.001,
                "clip": 3, "transpose": 3}, "data": {"source": "piano"}}"#,
        },
        guided::PERFORMANCE_DENSITY,
        guided::PERFORMANCE_PITCHES,
        guided::PERFORMANCE_CONTROLS,
        guided::PERFORMANCE_OPTIONAL,
        guided::PERFORMANCE_NOTE,
        Preset {
            name: "events",
            about: "2 x 256 units over the multi-track events of any MIDI file",
            settings: r#"{"model": {"encoding": "events", "hidden": 256, "layers": 2,
                "dropout": 0.2}, "train": {"steps": 2000, "batch": 32, "window": 256, "lr": 0.002,
                "clip": 5}, "data": {"source": "bands"}}"#,
        },
        Preset {
            name: "pianoroll",
            about: "220 units over the 88 keys of each quarter note, each key for itself: \
                    291,368 weights, for the likelihood table of JSB chorales",
            settings: r#"{"model": {"encoding": "pianoroll-quarter", "conditions": "keys",
                "head": "bernoulli", "hidden": 220, "layers": 1, "dropout": 0.55},
                "train": {"steps": 3000, "batch": 8, "window": 1024, "lr": 0.004, "clip": 1,
                "weight_decay": 0.1, "valid_every": 100, "save_every": 500,
                "patience": 10},
                "data": {"source": "chorales-quarter"}}"#,
        },
        Preset {
            name: "pianoroll-nade",
            about: "Magenta's rnn-nade: 3 x 128 units and a chain over the 88 keys of each sixteenth",
            settings: r#"{"model": {"encoding": "pianoroll", "conditions": "keys",
                "head": "nade", "nade": 128, "hidden": 128, "layers": 3, "dropout": 0.5},
                "train": {"steps": 3000, "batch": 64, "window": 1024, "lr": 0.001, "clip": 5,
                "transpose": 5, "valid_every": 100, "save_every": 500},
                "data": {"source": "chorales"}}"#,
        },
        Preset {
            name: "pianoroll-nade-quarter",
            about: "190 units and a chain over the 88 keys of each quarter note: 275,824 \
                    weights, for the likelihood table of JSB chorales",
            settings: r#"{"model": {"encoding": "pianoroll-quarter", "conditions": "keys",
                "head": "nade", "nade": 128, "hidden": 190, "layers": 1, "dropout": 0.5},
                "train": {"steps": 3000, "batch": 8, "window": 1024, "lr": 0.004, "clip": 1,
                "weight_decay": 0.1, "valid_every": 100, "save_every": 500, "patience": 10},
                "data": {"source": "chorales-quarter"}}"#,
        },
        Preset {
            name: "pianoroll-nade-attention",
            about: "Magenta's rnn-nade_attn: 2 x 128 units, the first with attention over its \
                    last 32 outputs, and a chain over the 88 keys",
            settings: r#"{"model": {"encoding": "pianoroll", "conditions": "keys", "head": "nade",
                "nade": 128, "hidden": 128, "layers": 2, "dropout": 0.5, "attention": 32},
                "train": {"steps": 2000, "batch": 48, "window": 512, "lr": 0.001, "clip": 5,
                "transpose": 5}, "data": {"source": "chorales"}}"#,
        },
    ],
    keys: KEYS,
    read: RecurrentConfig::entry,
};
