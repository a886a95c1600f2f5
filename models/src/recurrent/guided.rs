//! Presets of networks that are told something beside the events: Magenta's Improv RNN, which plays
//! over chords (Waite 2016), and its Performance RNN asked for a density and for pitch classes, or
//! writing whole notes (Simon & Oore 2017).

use crate::registry::Preset;

pub(super) const IMPROV_BASIC: Preset = Preset {
    name: "improv-basic",
    about: "Magenta's basic_improv: 2 x 64 units over 38 classes and the triad of the chord, \
            74,406 weights",
    settings: r#"{"model": {"encoding": "melody", "conditions": "chords", "hidden": 64, "layers": 2,
        "dropout": 0.5}, "train": {"steps": 2000, "batch": 128, "window": 256, "lr": 0.001,
        "clip": 5, "transpose": 6}, "data": {"source": "leadsheets"}}"#,
};

pub(super) const IMPROV_ATTENTION: Preset = Preset {
    name: "improv-attention",
    about: "Magenta's attention_improv: 3 x 128 units, told the chord's triad, keys and places, the \
            first with attention over its last 40 outputs, 397,352 weights and those of the attention",
    settings: r#"{"model": {"encoding": "melody-key", "conditions": "chords", "hidden": 128,
        "layers": 3, "dropout": 0.5, "attention": 40}, "train": {"steps": 2000, "batch": 128,
        "window": 96, "lr": 0.001, "clip": 3, "transpose": 6}, "data": {"source": "leadsheets"}}"#,
};

pub(super) const IMPROV_CHORD_PITCHES: Preset = Preset {
    name: "improv-chord-pitches",
    about: "Magenta's chord_pitches_improv: 3 x 256 units, told the chord's root, tones and bass, \
            1,400,358 weights",
    settings: r#"{"model": {"encoding": "melody", "conditions": "chord-pitches", "hidden": 256,
        "layers": 3, "dropout": 0.5}, "train": {"steps": 2000, "batch": 128, "window": 256,
        "lr": 0.001, "clip": 3, "transpose": 6}, "data": {"source": "leadsheets"}}"#,
};

pub(super) const PERFORMANCE_DENSITY: Preset = Preset {
    name: "performance-density",
    about: "Magenta's density_conditioned_performance_with_dynamics: 3 x 512 units, told how many \
            notes a second come, 6,259,076 weights",
    settings: r#"{"model": {"encoding": "performance-dynamics", "conditions": "density",
        "hidden": 512, "layers": 3, "dropout": 0.0}, "train": {"steps": 2000, "batch": 64,
        "window": 256, "lr": 0.001, "clip": 3, "transpose": 3}, "data": {"source": "piano"}}"#,
};

pub(super) const PERFORMANCE_PITCHES: Preset = Preset {
    name: "performance-pitches",
    about: "Magenta's pitch_conditioned_performance_with_dynamics: 3 x 512 units, told how long each \
            pitch class sounds, 6,267,268 weights",
    settings: r#"{"model": {"encoding": "performance-dynamics", "conditions": "pitch-histogram",
        "hidden": 512, "layers": 3, "dropout": 0.0}, "train": {"steps": 2000, "batch": 64,
        "window": 256, "lr": 0.001, "clip": 3, "transpose": 3}, "data": {"source": "piano"}}"#,
};

pub(super) const PERFORMANCE_CONTROLS: Preset = Preset {
    name: "performance-controls",
    about: "Magenta's multiconditioned_performance_with_dynamics: 3 x 512 units, told density and \
            pitch classes, 6,283,652 weights",
    settings: r#"{"model": {"encoding": "performance-dynamics", "conditions": "controls",
        "hidden": 512, "layers": 3, "dropout": 0.0}, "train": {"steps": 2000, "batch": 64,
        "window": 256, "lr": 0.001, "clip": 3, "transpose": 3}, "data": {"source": "piano"}}"#,
};

pub(super) const PERFORMANCE_OPTIONAL: Preset = Preset {
    name: "performance-optional",
    about: "Magenta's optional_multiconditioned_performance_with_dynamics: as performance-controls, \
            and also told when nothing is asked for, 6,285,700 weights",
    settings: r#"{"model": {"encoding": "performance-dynamics", "conditions": "optional-controls",
        "hidden": 512, "layers": 3, "dropout": 0.0}, "train": {"steps": 2000, "batch": 64,
        "window": 256, "lr": 0.001, "clip": 3, "transpose": 3}, "data": {"source": "piano"}}"#,
};

pub(super) const PERFORMANCE_NOTE: Preset = Preset {
    name: "performance-note",
    about: "Magenta's performance_with_dynamics_and_note_encoding: 3 x 512 units, a step a note, six \
            heads for its times, pitch and velocity, 6,055,739 weights",
    settings: r#"{"model": {"encoding": "performance-note", "conditions": "notes", "head": "notes",
        "hidden": 512, "layers": 3, "dropout": 0.0}, "train": {"steps": 2000, "batch": 64,
        "window": 1536, "lr": 0.001, "clip": 3, "transpose": 3}, "data": {"source": "piano"}}"#,
};
