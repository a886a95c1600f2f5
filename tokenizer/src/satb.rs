//! Four voices on a grid of sixteenth notes, a token for each voice of each step.
//!
//! A step is four tokens: soprano, alto, tenor, bass. Each says which of the 88 keys its voice
//! sings, or that it is silent; a key that is sung on is told again at each step, and a key that is
//! struck again runs on, since the data of the chorales do not tell the two apart. Each voice has
//! tokens of its own, 89 of them, so that a token tells whose it is.
//!
//! Whose a track is, its name says: `Soprano`, `Alto`, `Tenor` or `Bass`. Other tracks take the
//! voices that are left, the highest the first; where they are too many, or one of them holds
//! chords, their notes are given out one by one: those that begin together from the top, the lowest
//! to the last voice. A note for which no voice is free cuts off the one that has sounded longest;
//! of notes that begin together only as many are kept as there are voices.
//!
//! # Source
//! The order of the voices is that of the Music Transformer for chorales (Huang et al. 2018, section
//! 4.1) and of the data of Coconet (Huang et al. 2017): each step from soprano to bass.

use crate::grammar::{Grammar, SatbGrammar};
use crate::polyphony::MAX_STEPS;
use crate::quantise::{Losses, quantise_beats};
use crate::{Encoded, Encoding, Note, PianoRoll, Repeats, Result, Score, TokenTime, Track};

const STEPS_PER_QUARTER: u32 = 4;
/// The velocity of decoded notes, that of [`PianoRoll`].
const VELOCITY: u8 = 100;

/// What the voices sing at a step: 0 for silence, a key of the piano plus 1.
type Step = [u8; Satb::VOICES.len()];

/// The encoding `satb`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Satb;

impl Satb {
    /// The voices in their order within a step.
    pub const VOICES: [&str; 4] = ["Soprano", "Alto", "Tenor", "Bass"];
    /// Tokens of a voice: silence, then the 88 keys upwards.
    pub const EACH: u32 = PianoRoll::KEYS as u32 + 1;
    /// Number of tokens.
    pub const SIZE: u32 = Satb::EACH * Satb::VOICES.len() as u32;

    /// The voice of a token: its place in [`Satb::VOICES`].
    pub fn voice(token: u32) -> usize {
        (token / Satb::EACH) as usize
    }

    /// The pitch that a token sings; `None` for silence.
    pub fn pitch(token: u32) -> Option<u8> {
        let key = (token % Satb::EACH) as u8;
        (key > 0).then(|| key - 1 + PianoRoll::LOWEST)
    }

    /// The steps of a score, without silent ones at the end.
    fn hear(score: &Score) -> (Vec<Step>, Losses) {
        let on_grid = quantise_beats(score, STEPS_PER_QUARTER);
        let mut losses = Losses::default();
        for (reason, count) in on_grid.lost {
            losses.add(&reason, count);
        }
        let mut named: [Option<Track>; 4] = Default::default();
        let mut others = Vec::new();
        for track in on_grid.score.tracks {
            let voice = Satb::VOICES.iter().position(|v| track.name.eq_ignore_ascii_case(v));
            match voice.filter(|_| !track.is_drum && !track.notes.is_empty()) {
                Some(voice) if named[voice].is_none() => named[voice] = Some(track),
                _ if track.is_drum => losses.add("drum track", track.notes.len()),
                _ if track.notes.is_empty() => {}
                _ => others.push(track),
            }
        }
        let free: Vec<usize> = (0..4).filter(|voice| named[*voice].is_none()).collect();
        let mut groups: Vec<(Vec<usize>, Vec<Track>)> = Vec::new();
        for (voice, track) in named.into_iter().enumerate() {
            groups.extend(track.map(|track| (vec![voice], vec![track])));
        }
        if others.len() <= free.len() && others.iter().all(is_one_voice) {
            others.sort_by(|a, b| b.mean_pitch().total_cmp(&a.mean_pitch()));
            groups.extend(free.into_iter().zip(others).map(|(v, track)| (vec![v], vec![track])));
        } else {
            groups.push((free, others));
        }
        let mut steps: Vec<Step> = Vec::new();
        for (voices, tracks) in groups {
            let group = Score { tracks, ..Score::new(STEPS_PER_QUARTER) };
            let (roll, lost) = PianoRoll::of(&group, STEPS_PER_QUARTER, Repeats::Held);
            lost.iter().for_each(|(reason, count)| losses.add(reason, *count));
            steps.resize(steps.len().max(roll.rows().len()), Step::default());
            let tracks = roll.to_score().tracks;
            let notes = tracks.first().map_or(&[][..], |track| &track.notes);
            losses.add("no voice for it", give_out(notes, &voices, &mut steps));
        }
        let sung = steps.iter().rposition(|step| *step != Step::default());
        steps.truncate(sung.map_or(0, |last| last + 1));
        (steps, losses)
    }

    /// A track for each voice that sings, a tick a step.
    fn score_of(steps: &[Step]) -> Score {
        let mut score = Score::new(STEPS_PER_QUARTER);
        for (voice, name) in Satb::VOICES.iter().enumerate() {
            let mut notes: Vec<Note> = Vec::new();
            let mut before = 0;
            for (tick, step) in (0..).zip(steps) {
                let key = step[voice];
                match notes.last_mut().filter(|_| key == before) {
                    _ if key == 0 => {}
                    Some(note) => note.duration += 1,
                    None => {
                        let pitch = key - 1 + PianoRoll::LOWEST;
                        notes.push(Note { tick, duration: 1, pitch, velocity: VELOCITY });
                    }
                }
                before = key;
            }
            if !notes.is_empty() {
                score.tracks.push(Track { name: name.to_string(), notes, ..Track::default() });
            }
        }
        score
    }
}

/// Tells whether no note of a track begins before the one before it has ended.
fn is_one_voice(track: &Track) -> bool {
    let ends_before = |pair: &[Note]| pair[0].tick + pair[0].duration <= pair[1].tick;
    track.notes.windows(2).all(ends_before)
}

/// Writes notes, in order of beginning, into voices; returns how many found none.
fn give_out(notes: &[Note], voices: &[usize], steps: &mut [Step]) -> usize {
    // The note of each voice that sounds or sounded last.
    let mut last: Vec<Option<Note>> = vec![None; voices.len()];
    let mut lost = 0;
    for together in notes.chunk_by(|a, b| a.tick == b.tick) {
        let now = together[0].tick;
        let sounds = |last: &Option<Note>| last.is_some_and(|n| n.tick + n.duration > now);
        // The highest first, then the lowest, then downwards.
        let (bottom, upper) = (together[0], together[1..].iter().rev());
        let (top, middle) = (upper.clone().next(), upper.skip(1));
        for note in top.into_iter().chain([&bottom]).chain(middle) {
            let above = |other: &&Note| other.pitch > note.pitch;
            let held = last.iter().filter(|last| sounds(last)).flatten();
            let mut wanted = held.filter(above).count();
            if note.pitch == bottom.pitch && together.len() >= voices.len() && voices.len() > 1 {
                wanted = voices.len() - 1;
            }
            let free = (0..voices.len()).filter(|v| !sounds(&last[*v]));
            let nearest = free.min_by_key(|v| v.abs_diff(wanted));
            let cut = || {
                let old = |v: &usize| last[*v].filter(|n| n.tick < now).map(|n| n.tick);
                (0..voices.len()).filter(|v| old(v).is_some()).min_by_key(old)
            };
            let Some(voice) = nearest.or_else(cut) else {
                lost += 1;
                continue;
            };
            if let Some(note) = last[voice].filter(|_| sounds(&last[voice])) {
                let rest = now as usize..(note.tick + note.duration) as usize;
                steps[rest].iter_mut().for_each(|step| step[voices[voice]] = 0);
            }
            last[voice] = Some(*note);
            let key = note.pitch - PianoRoll::LOWEST + 1;
            let span = note.tick as usize..(note.tick + note.duration) as usize;
            steps[span].iter_mut().for_each(|step| step[voices[voice]] = key);
        }
    }
    lost
}

impl Encoding for Satb {
    fn name(&self) -> &str {
        "satb"
    }

    fn vocab_size(&self) -> usize {
        Satb::SIZE as usize
    }

    fn token_name(&self, token: u32) -> String {
        assert!(token < Satb::SIZE, "token {token} of {}", Satb::SIZE);
        let voice = Satb::VOICES[Satb::voice(token)].to_uppercase();
        match Satb::pitch(token) {
            None => format!("{voice}_SILENT"),
            Some(pitch) => format!("{voice}_{pitch}"),
        }
    }

    /// The bass ends a step.
    fn token_time(&self, token: u32) -> TokenTime {
        match Satb::voice(token) == Satb::VOICES.len() - 1 {
            true => TokenTime::Steps(1),
            false => TokenTime::None,
        }
    }

    fn pitch(&self, token: u32) -> Option<u8> {
        Satb::pitch(token)
    }

    fn grammar(&self) -> Box<dyn Grammar> {
        Box::new(SatbGrammar::default())
    }

    fn quantise(&self, score: &Score) -> Score {
        Satb::score_of(&Satb::hear(score).0)
    }

    fn encode(&self, score: &Score) -> Result<Encoded> {
        let (steps, losses) = Satb::hear(score);
        let token = |(voice, key): (u32, &u8)| voice * Satb::EACH + u32::from(*key);
        let tokens = steps.iter().flat_map(|step| (0..).zip(step).map(token)).collect();
        Ok(Encoded { tokens, lost: losses.into_vec() })
    }

    /// A voice that is left out is silent; a voice out of its order begins the next step.
    fn decode(&self, tokens: &[u32]) -> Result<Score> {
        crate::encoding::check_tokens(self, tokens)?;
        let mut steps: Vec<Step> = Vec::new();
        let mut next = 0;
        for &token in tokens {
            let voice = Satb::voice(token);
            if voice < next || steps.is_empty() || next == Satb::VOICES.len() {
                if steps.len() as u64 == MAX_STEPS {
                    break;
                }
                steps.push(Step::default());
            }
            let last = steps.len() - 1;
            steps[last][voice] = (token % Satb::EACH) as u8;
            next = voice + 1;
        }
        Ok(Satb::score_of(&steps))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn track(name: &str, notes: &[(u64, u64, u8)]) -> Track {
        let note = |&(tick, duration, pitch)| Note { tick, duration, pitch, velocity: 90 };
        let notes = notes.iter().map(note).collect();
        Track { name: name.to_string(), notes, ..Track::default() }
    }

    fn score_of(tracks: Vec<Track>) -> Score {
        Score { tracks, ..Score::new(4) }
    }

    fn names(score: &Score) -> String {
        let encoded = Satb.encode(score).unwrap();
        assert_eq!(Satb.decode(&encoded.tokens).unwrap(), Satb.quantise(score));
        let heard = Satb.encode(&Satb.quantise(score)).unwrap();
        assert_eq!((heard.tokens, heard.lost), (encoded.tokens.clone(), vec![]));
        encoded.tokens.iter().map(|t| Satb.token_name(*t)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_suspension_is_written_by_hand_the_same() {
        // The names tell whose a track is, not the order.
        let score = score_of(vec![
            track("bass", &[(0, 2, 43)]),
            track("Soprano", &[(0, 1, 72), (1, 1, 71)]),
            track("Alto", &[(0, 2, 67)]),
            track("Tenor", &[(1, 1, 62)]),
        ]);
        let expected = "SOPRANO_72 ALTO_67 TENOR_SILENT BASS_43 \
                        SOPRANO_71 ALTO_67 TENOR_62 BASS_43";
        assert_eq!(names(&score), expected);
        // 89 tokens a voice; silence is 0 and pitch 21 is 1.
        let tokens = Satb.encode(&score).unwrap().tokens;
        assert_eq!(tokens, [52, 89 + 47, 178, 267 + 23, 51, 89 + 47, 178 + 42, 267 + 23]);
    }

    #[test]
    fn tracks_without_a_voice_of_their_own_are_ordered_by_height() {
        let low = track("left", &[(0, 1, 40)]);
        let high = track("right", &[(0, 1, 70)]);
        let both = score_of(vec![low.clone(), high]);
        assert_eq!(names(&both), "SOPRANO_70 ALTO_40 TENOR_SILENT BASS_SILENT");
        // A track that holds chords is cut at each step, from the top.
        let chord = track("piano", &[(0, 1, 48), (0, 1, 55), (0, 1, 60), (0, 1, 64), (0, 1, 72)]);
        let chords = score_of(vec![chord.clone()]);
        assert_eq!(names(&chords), "SOPRANO_72 ALTO_64 TENOR_60 BASS_48");
        assert_eq!(Satb.encode(&chords).unwrap().lost, [("no voice for it".to_string(), 1)]);
        // A melody that is played legato is one voice: a note ends where the next begins.
        let legato = score_of(vec![track("flute", &[(0, 3, 60), (2, 2, 62)])]);
        let notes = |score: &Score| -> Vec<_> {
            let notes = score.tracks.iter().flat_map(|t| t.notes.iter());
            notes.map(|n| (n.tick, n.duration, n.pitch)).collect()
        };
        assert_eq!(Satb.quantise(&legato).tracks.len(), 2);
        let alone = score_of(vec![Track { name: "Alto".into(), ..legato.tracks[0].clone() }]);
        assert_eq!(notes(&Satb.quantise(&alone)), [(0, 2, 60), (2, 2, 62)]);
        // Beside a voice with a name the rest takes what is left.
        let song = score_of(vec![track("Soprano", &[(0, 1, 76)]), chord]);
        assert_eq!(names(&song), "SOPRANO_76 ALTO_72 TENOR_64 BASS_48");
    }

    #[test]
    fn repeats_run_on_and_silence_is_kept() {
        let score = score_of(vec![track("", &[(1, 1, 60), (2, 1, 60), (4, 1, 60)])]);
        let quantised = Satb.quantise(&score);
        let heard: Vec<_> =
            quantised.tracks[0].notes.iter().map(|n| (n.tick, n.duration)).collect();
        assert_eq!(heard, [(1, 2), (4, 1)]);
        assert!(names(&score).starts_with("SOPRANO_SILENT ALTO_SILENT TENOR_SILENT BASS_SILENT"));
        assert_eq!(names(&score_of(vec![])), "");
    }

    #[test]
    fn voices_out_of_order_begin_a_step() {
        let heard = |tokens: &[u32]| {
            let score = Satb.decode(tokens).unwrap();
            let notes = score.tracks.iter().flat_map(|t| t.notes.iter());
            notes.map(|n| (n.tick, n.duration, n.pitch)).collect::<Vec<_>>()
        };
        // Bass, then soprano: two steps. Tenor twice: two steps of one note.
        assert_eq!(heard(&[267 + 20, 40]), [(1, 1, 60), (0, 1, 40)]);
        assert_eq!(heard(&[178 + 30, 178 + 30]), [(0, 2, 50)]);
        assert!(Satb.decode(&[Satb::SIZE]).is_err());
    }
}
