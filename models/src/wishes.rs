//! What a piece is asked to be like, of models that read it: chords to play over, a density, weights
//! of pitch classes.
//!
//! Where nothing is asked for, a network whose controls are optional is told so; the others are told
//! what Magenta's generators take then.

use crate::data::Conditions;
use crate::{Error, Result};
use etude_tokenizer::chord::Progression;
use etude_tokenizer::features::ControlValues;
use etude_tokenizer::{ChordTrack, Encoding, Guide, Score};

/// Chords that are played over where none are named.
pub const USUAL_CHORDS: &str = "C G Am F C G F C";
/// Notes a second where none are asked for.
const USUAL_DENSITY: f64 = 15.0;
/// The most notes a second that can be asked for.
const MAX_DENSITY: f64 = 1000.0;

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wishes {
    /// Chords, from the beginning of the piece on, again and again.
    pub chords: Option<Progression>,
    /// Notes a second.
    pub density: Option<f64>,
    /// The weight of each pitch class from C on, not negative, of any sum above 0.
    pub pitch_histogram: Option<[f32; 12]>,
}

impl Wishes {
    /// Refuses what a model that reads these conditions cannot be asked for.
    ///
    /// # Errors
    /// Names the wish, and what the model reads.
    pub fn check(&self, conditions: Conditions) -> Result<()> {
        let bad = |key: &str, why: String| Err(Error::Config { key: key.into(), why });
        let (density, histogram) = match conditions {
            Conditions::Controls(controls) => (controls.density, controls.histogram),
            _ => (false, false),
        };
        let chords = matches!(conditions, Conditions::Chords(..));
        let asked = [
            ("chords", self.chords.is_some(), chords, "chords or chord-pitches"),
            ("density", self.density.is_some(), density, "density, controls or optional-controls"),
            (
                "pitch-histogram",
                self.pitch_histogram.is_some(),
                histogram,
                "pitch-histogram, controls or optional-controls",
            ),
        ];
        if let Some((key, _, _, wanted)) = asked.iter().find(|(_, asked, read, _)| *asked && !read)
        {
            let why = format!(
                "the model does not read it: its conditions are {}; {wanted} are wanted",
                conditions.name()
            );
            return bad(key, why);
        }
        if let (Some(progression), Conditions::Chords(input, _)) = (&self.chords, conditions) {
            let mut chords = progression.bars.iter().flatten().flatten();
            if let Some(chord) = chords.find(|chord| !input.tells(chord)) {
                let why = format!(
                    "{chord} has no major, minor, augmented or diminished triad, and the model reads \
                     no other chords (conditions = chord-pitches does)"
                );
                return bad("chords", why);
            }
        }
        if let Some(density) = self.density.filter(|d| !(0.0..=MAX_DENSITY).contains(d)) {
            return bad("density", format!("{density} is not in 0 to {MAX_DENSITY}"));
        }
        if let Some(weights) = &self.pitch_histogram {
            if let Some(weight) = weights.iter().find(|w| !(w.is_finite() && **w >= 0.0)) {
                return bad("pitch-histogram", format!("{weight} is no weight of 0 or more"));
            }
            let sum: f32 = weights.iter().sum();
            if !(sum > 0.0 && sum.is_finite()) {
                return bad("pitch-histogram", format!("the weights add up to {sum}"));
            }
        }
        Ok(())
    }

    /// What a model that reads these conditions is told, in bars of so many steps.
    ///
    /// # Errors
    /// If the chords of a bar do not share its steps.
    pub fn guide(&self, conditions: Conditions, steps_per_bar: usize) -> Result<Guide> {
        Ok(match conditions {
            Conditions::Chords(..) => {
                let chords = match &self.chords {
                    Some(chords) => ChordTrack::repeated(chords, steps_per_bar),
                    None => ChordTrack::repeated(&Progression::parse(USUAL_CHORDS)?, steps_per_bar),
                };
                Guide::Chords(chords?)
            }
            Conditions::Controls(controls) => {
                if controls.optional && self.density.is_none() && self.pitch_histogram.is_none() {
                    return Ok(Guide::Nothing);
                }
                Guide::Asked(ControlValues {
                    density: self.density.unwrap_or(USUAL_DENSITY),
                    histogram: self.pitch_histogram.unwrap_or([1.0; 12]),
                })
            }
            _ => Guide::Nothing,
        })
    }
}

/// What another piece would have a model told: its chords, or how dense it is and in which pitch classes
/// on the whole; `None` for a model that reads neither, or a piece that tells neither.
pub fn guide_like(score: &Score, conditions: Conditions, encoding: &dyn Encoding) -> Option<Guide> {
    let Conditions::Controls(_) = conditions else {
        return conditions.guide(score, encoding, None).map(Guide::Chords);
    };
    let heard = encoding.quantise(score);
    let mut histogram = [0.0; 12];
    for note in heard.tracks.iter().flat_map(|track| &track.notes) {
        histogram[usize::from(note.pitch % 12)] += note.duration as f32;
    }
    let seconds = heard.seconds();
    let density = heard.note_count() as f64 / seconds;
    (seconds > 0.0).then_some(Guide::Asked(ControlValues { density, histogram }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etude_tokenizer::{Note, Performance, Track};

    const NAMES: [(&str, &str); 7] = [
        ("none", "melody"),
        ("chords", "melody"),
        ("chord-pitches", "melody"),
        ("density", "performance"),
        ("pitch-histogram", "performance"),
        ("controls", "performance-dynamics"),
        ("optional-controls", "performance-dynamics"),
    ];

    fn conditions(name: &str) -> Conditions {
        let (_, encoding) = NAMES.iter().find(|(known, _)| *known == name).unwrap();
        let conditions = Conditions::from_name(name, encoding).unwrap();
        assert_eq!(conditions.name(), name);
        conditions
    }

    #[test]
    fn a_model_is_asked_only_for_what_it_reads() {
        let chords = Progression::parse("C Am").ok();
        let wishes = [
            Wishes { chords, ..Wishes::default() },
            Wishes { density: Some(4.0), ..Wishes::default() },
            Wishes { pitch_histogram: Some([1.0; 12]), ..Wishes::default() },
        ];
        let taken = NAMES.map(|(name, _)| {
            let conditions = conditions(name);
            assert!(Wishes::default().check(conditions).is_ok());
            [0, 1, 2].map(|w: usize| u8::from(wishes[w].check(conditions).is_ok()))
        });
        let expected =
            [[0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1], [0, 1, 1]];
        assert_eq!(taken, expected);
        let said = wishes[0].check(Conditions::None).unwrap_err().to_string();
        assert!(said.starts_with("chords: the model does not read it"), "{said}");
        let suspended = Progression::parse("C Esus4").ok();
        let suspended = Wishes { chords: suspended, ..Wishes::default() };
        assert!(suspended.check(conditions("chord-pitches")).is_ok());
        let said = suspended.check(conditions("chords")).unwrap_err().to_string();
        assert!(said.contains("Esus4 has no major"), "{said}");
    }

    #[test]
    fn bad_numbers_are_refused() {
        let all = conditions("controls");
        for density in [-1.0, 1e9, f64::NAN, f64::INFINITY] {
            let wish = Wishes { density: Some(density), ..Wishes::default() };
            assert!(wish.check(all).unwrap_err().to_string().starts_with("density: "), "{density}");
        }
        for weight in [-1.0, 0.0, f32::NAN, f32::INFINITY, f32::MAX] {
            let wish = Wishes { pitch_histogram: Some([weight; 12]), ..Wishes::default() };
            let said = wish.check(all).unwrap_err().to_string();
            assert!(said.starts_with("pitch-histogram: "), "{weight}: {said}");
        }
    }

    #[test]
    fn what_is_not_asked_for_is_the_usual() {
        let none = Wishes::default();
        assert_eq!(none.guide(Conditions::None, 16).unwrap(), Guide::Nothing);
        assert_eq!(none.guide(conditions("optional-controls"), 16).unwrap(), Guide::Nothing);
        let usual = ControlValues { density: 15.0, histogram: [1.0; 12] };
        assert_eq!(none.guide(conditions("controls"), 16).unwrap(), Guide::Asked(usual));
        let dense = Wishes { density: Some(2.0), ..Wishes::default() };
        let asked = Guide::Asked(ControlValues { density: 2.0, ..usual });
        assert_eq!(dense.guide(conditions("optional-controls"), 16).unwrap(), asked);
        let Guide::Chords(track) = none.guide(conditions("chords"), 12).unwrap() else {
            panic!("chords are wanted")
        };
        let at = |bar: usize| track.at(12 * bar).unwrap().to_string();
        assert_eq!([0, 1, 2, 3, 8].map(at), ["C", "G", "Am", "F", "C"]);
        let three = Wishes { chords: Progression::parse("C D E | F").ok(), ..none };
        assert!(three.guide(conditions("chords"), 16).is_err());
    }

    #[test]
    fn another_piece_tells_how_dense_it_is() {
        let mut score = Score::new(50);
        // Four notes in 2 s: C for 1 s, then G three times for a third of one.
        let notes = [(0, 100, 60), (100, 33, 67), (133, 33, 67), (166, 34, 67)];
        let note = |(tick, duration, pitch)| Note { tick, duration, pitch, velocity: 64 };
        score.tracks.push(Track { notes: notes.map(note).to_vec(), ..Track::default() });
        let like = guide_like(&score, conditions("controls"), &Performance::plain());
        let Some(Guide::Asked(values)) = like else { panic!("values are wanted") };
        assert_eq!((values.density, values.histogram[0], values.histogram[7]), (2.0, 100.0, 100.0));
        assert_eq!(guide_like(&score, Conditions::None, &Performance::plain()), None);
    }
}
