//! Infilling of bars: training pieces rearranged so that some bars come last, and writing into a hole.
//!
//! A window of training becomes, with a stated probability, `question answer`: some bars of a piece but
//! for those of a hole, then those of the hole ([`etude_tokenizer::Infill`]). Nothing in the network
//! knows of it. To fill a hole the question is read, and the answer is drawn under the grammar of the
//! hole: as many bars as are missing, then its end.
//!
//! # Source
//! Bavarian et al. 2022, section 3.

use crate::beam::{Draft, MAX_TOKENS};
use crate::data::{Piece, meter_of};
use crate::generate::{Clock, Composition, Length, Request, Writer};
use crate::sampling::Sampling;
use crate::{Error, Result};
use etude_engine::Rng;
use etude_tokenizer::step_input::steps_per_bar;
use etude_tokenizer::{
    BarTokens, Bars, Encoding, Hole, Infill, Meter, Note, Score, TokenTime, Track,
};
use std::collections::HashSet;
use std::ops::Range;

/// Bars of a hole in training at most.
const MOST_BARS: u64 = 8;
/// Marks of a question and its answer, but for one for each bar; and `SKIP` tokens beside the cuts.
const MARKS: usize = 3;
const SKIPS: usize = 16;
/// Tokens that a question has where the network does not say how far it sees.
const SEEN: usize = 1024;

const HOLE_STREAM: u32 = 9;

/// A piece of at most `window` tokens with a hole in it, for window `number` of training: with
/// probability `chance`, unless it has too few bars.
pub(crate) fn with_hole(
    piece: &Piece,
    infill: &Infill,
    chance: f64,
    window: usize,
    (seed, number): (u64, u64),
) -> Option<Piece> {
    let mut rng = Rng { seed, stream: HOLE_STREAM, position: 16 * number };
    if f64::from(rng.unit()) >= chance {
        return None;
    }
    let bars = infill.bars(&piece.tokens, piece.meter);
    // As windows of whole pieces: from the beginning half of the time.
    let later = rng.below(bars.len().max(1) as u32) as usize;
    let first = if rng.unit() < 0.5 { 0 } else { later };
    let first = first.min(bars.len().saturating_sub(2));
    let room = window.saturating_sub(MARKS + SKIPS + MOST_BARS as usize);
    let mut used = 0;
    let fitting = bars.get(first..)?.iter().take_while(|bar| {
        used += bar.tokens.len() + 1;
        used <= room
    });
    let fitting: Vec<&BarTokens> = fitting.collect();
    let shown = fitting.first()?.bars.start..fitting.last()?.bars.end;
    let whole = fitting.iter().rfind(|bar| bar.is_whole)?.bars.end;
    let count = shown.end - shown.start;
    if count < 2 {
        return None;
    }
    let missing = 1 + u64::from(rng.below((count / 2).min(MOST_BARS) as u32));
    let places = (whole - shown.start).checked_sub(missing)? + 1;
    let from = shown.start + u64::from(rng.below(places.min(u64::from(u32::MAX)) as u32));
    let hole = from..from + missing;
    if !is_between_bars(&bars, &hole) {
        return None;
    }
    let mut tokens = infill.question(&piece.tokens, &bars, shown, hole.clone());
    tokens.extend(infill.answer(&piece.tokens, &bars, hole));
    Some(Piece { tokens, ..piece.clone() })
}

/// Whether no end of a hole lies inside of what cannot be cut.
fn is_between_bars(bars: &[BarTokens], hole: &Range<u64>) -> bool {
    let cuts = |at: u64| bars.iter().any(|bar| bar.bars.start < at && at < bar.bars.end);
    !cuts(hole.start) && !cuts(hole.end)
}

fn fault<T>(why: String) -> Result<T> {
    Err(Error::Config { key: "fill".into(), why })
}

/// A primer as a model hears it, and where its hole is.
struct Around<'a> {
    primer: &'a Score,
    tokens: Vec<u32>,
    bars: Vec<BarTokens>,
    meter: Meter,
    /// The bars to be written, counted from 0.
    hole: Range<u64>,
    /// Their ticks in the primer.
    ticks: Range<u64>,
    /// Semitones by which the encoding moves the primer.
    shift: i32,
}

impl Writer {
    /// Writes some bars of the primer anew, those of `hole` counted from 0; shows each token as it is
    /// drawn, with the bars at its end, and ends where `hear` says `false`.
    ///
    /// Notes that begin in other bars stay as they are, those too that sound into the hole. Notes of the
    /// hole end with it at the latest. Tracks of which the model hears nothing stay as they are.
    ///
    /// # Errors
    /// If the encoding has no holes, the primer has no such bars or holds nothing that the encoding can
    /// write, its bars are not those that the encoding hears, or they are more than the model sees.
    pub fn fill(
        &mut self,
        request: &Request,
        hole: Range<usize>,
        hear: &mut dyn FnMut(u32, f64) -> bool,
    ) -> Result<Composition> {
        request.sampling.check()?;
        let Some(infill) = self.encoding.infill() else {
            return fault(format!(
                "this model speaks {}, in whose pieces no bars can be missing; train one of an \
                 encoding such as satb{1} or events{1} (preset transformer/infill)",
                self.encoding.name(),
                Infill::SUFFIX
            ));
        };
        let Some(primer) = &request.primer else {
            return fault("a primer is wanted, of which these are bars".into());
        };
        let around = Around::of(infill, primer, hole.start as u64..hole.end as u64)?;
        let seen = self.config.network.context().unwrap_or(SEEN);
        let (shown, most) = around.shown(seen, infill.is_of_steps())?;
        let heard = infill.decode(&around.tokens)?;
        // A sixteenth is a step; what sounds into a part of one fills it.
        let steps = |ticks: u64| (4 * ticks).div_ceil(u64::from(primer.ticks_per_quarter.max(1)));
        let held = around.held(&heard).into_iter().map(|(pitch, ticks)| (pitch, steps(ticks)));
        let held: Vec<(i32, u64)> = held.collect();
        let given = infill.given(&around.tokens, &around.bars, around.hole.clone(), &held);
        let question = infill.question(&around.tokens, &around.bars, shown, around.hole.clone());
        let bars = around.hole.end - around.hole.start;
        let hole = Hole { bars, given, most };
        let (from, meter) = (around.hole.start, around.meter);
        let grammar = infill.grammar_of(&around.tokens, &around.bars, from, meter, hole);
        let mut draft = Draft::new(grammar);
        draft.tokens = question;
        let primed = draft.tokens.len();
        let counted = Request { length: Length::Bars(bars as usize), ..request.clone() };
        let clock = Clock::new(&counted, meter);
        let input = self.config.conditions.input(self.encoding.vocab_size(), meter, primed);
        let mut desk = self.desk(request, input, &clock);
        desk.prime(&mut draft)?;
        // The mark at its end is what ends a hole.
        (draft.now, desk.wanted) = (0.0, f64::INFINITY);
        match &request.sampling {
            Sampling { beam: 1, branch: 1, .. } => desk.extend(&mut draft, hear)?,
            &Sampling { beam, branch, iteration, .. } => {
                draft = desk.search(draft, (beam, branch, iteration))?;
                let mut now = 0.0;
                draft.tokens[primed..].iter().all(|token| {
                    now += desk.time(*token);
                    hear(*token, now)
                });
            }
        }
        let Some(infill) = self.encoding.infill() else { return fault("no holes".into()) };
        let middle = &draft.tokens[primed..];
        let filled = infill.filled(&around.tokens, &around.bars, around.hole.clone(), middle);
        let written = infill.decode(&filled)?;
        let score = around.put_in(&heard, &written, infill.has_velocity());
        Ok(Composition { tokens: draft.tokens, primed, score, lost: Vec::new() })
    }
}

impl Around<'_> {
    fn of<'a>(infill: &Infill, primer: &'a Score, hole: Range<u64>) -> Result<Around<'a>> {
        let name = infill.name();
        let told = format!("bars {}-{}", hole.start + 1, hole.end);
        let (lines, meter) = (Bars::of(primer), meter_of(primer));
        let count = lines.count(primer.end_tick());
        if hole.start >= hole.end || hole.end > count {
            return fault(format!("{told} are wanted; the primer has {count}"));
        }
        let mut tokens = infill.encode(primer)?.tokens;
        let mut heard = infill.decode(&tokens)?;
        if heard.note_count() == 0 {
            let why = format!("the primer holds no notes that the encoding {name} can write");
            return Err(Error::Data { why });
        }
        // Encodings that tell no metre hear one alone.
        if heard.meters.is_empty() {
            heard.meters.push(Meter { tick: 0, ..meter });
        }
        let (grid, ticks) =
            (u64::from(heard.ticks_per_quarter), u64::from(primer.ticks_per_quarter));
        let heard_lines = Bars::of(&heard);
        let is_heard = |bar: u64| heard_lines.start(bar) * ticks == lines.start(bar) * grid;
        // Silence up to the end of the hole is told, where time goes in steps.
        let wanted = hole.end.saturating_mul(steps_per_bar(meter) as u64);
        if wanted > MAX_TOKENS as u64 {
            return fault(format!("{told} lie beyond the longest piece, {MAX_TOKENS} tokens"));
        }
        let steps = |token: &u32| match infill.token_time(*token) {
            TokenTime::Steps(n) => u64::from(n),
            _ => 0,
        };
        let mut told_steps: u64 = tokens.iter().map(steps).sum();
        let mut grammar = infill.grammar();
        tokens.iter().for_each(|token| grammar.push(*token));
        while let Some(rest) = grammar.rest().filter(|_| told_steps < wanted) {
            grammar.push(rest);
            tokens.push(rest);
            told_steps += steps(&rest);
        }
        let bars = infill.bars(&tokens, meter);
        let ticks_of_hole = lines.start(hole.start)..lines.start(hole.end);
        let changes =
            |meter: &Meter| ticks_of_hole.start < meter.tick && meter.tick < ticks_of_hole.end;
        let is_even = !primer.meters.iter().any(changes);
        let is_cut = is_heard(hole.start) && is_heard(hole.end) && is_between_bars(&bars, &hole);
        if !(is_even && is_cut) {
            return fault(format!(
                "{told} do not lie between bar lines where the encoding {name} hears them: the \
                 metre changes before or inside of them"
            ));
        }
        let ticks = ticks_of_hole;
        let shift = infill.key_shift(primer);
        Ok(Around { primer, tokens, bars, meter, hole, ticks, shift })
    }

    /// The bars that the model is shown, as many as it sees around the hole; and how many tokens it may
    /// write.
    fn shown(&self, seen: usize, is_of_steps: bool) -> Result<(Range<u64>, usize)> {
        let missing = (self.hole.end - self.hole.start) as usize;
        let (before, after): (Vec<_>, Vec<_>) = self
            .bars
            .iter()
            .filter(|bar| !(self.hole.contains(&bar.bars.start)))
            .partition(|bar| bar.bars.end <= self.hole.start);
        let there: usize = self.bars.iter().map(|bar| bar.tokens.len()).sum();
        let kept: usize = before.iter().chain(&after).map(|bar| bar.tokens.len()).sum();
        let usual = (there * missing).div_ceil(self.bars.len().max(1));
        let wanted = (there - kept).max(usual);
        // Bars of steps are as long as those that were there; of others some are longer.
        let wanted = if is_of_steps { wanted } else { wanted + wanted / 2 };
        let fixed = MARKS + SKIPS + missing + wanted;
        if fixed >= seen {
            return fault(format!(
                "bars {}-{} take about {wanted} tokens; the model sees {seen} in all",
                self.hole.start + 1,
                self.hole.end
            ));
        }
        let mut room = seen - fixed;
        let mut shown = self.hole.clone();
        let (mut l, mut r) = (before.len(), 0);
        loop {
            let mut goes_on = false;
            if let Some(bar) = before[..l].last().filter(|bar| bar.tokens.len() < room) {
                (shown.start, room) = (bar.bars.start, room - bar.tokens.len() - 1);
                (l, goes_on) = (l - 1, true);
            }
            if let Some(bar) = after.get(r).filter(|bar| bar.tokens.len() < room) {
                (shown.end, room) = (bar.bars.end, room - bar.tokens.len() - 1);
                (r, goes_on) = (r + 1, true);
            }
            if !goes_on {
                return Ok((shown, wanted + room));
            }
        }
    }

    /// Ticks of the primer on the grid of what the model hears.
    fn on_grid(&self, heard: &Score, tick: u64) -> u64 {
        let (grid, ticks) = (heard.ticks_per_quarter, self.primer.ticks_per_quarter.max(1));
        (tick * u64::from(grid) + u64::from(ticks) / 2) / u64::from(ticks)
    }

    fn heard_as(&self, heard: &Score, is_drum: bool, note: &Note) -> Sound {
        let pitch = if is_drum { note.pitch.into() } else { i32::from(note.pitch) + self.shift };
        (self.on_grid(heard, note.tick), pitch, is_drum)
    }

    /// Notes that begin before the hole, sound into it and are heard: pitch as heard, and ticks of the
    /// hole.
    fn held(&self, heard: &Score) -> Vec<(i32, u64)> {
        let sounds = sounds(heard);
        let mut held = Vec::new();
        for track in self.primer.tracks.iter().filter(|track| !track.is_drum) {
            let before = track.notes.iter().filter(|note| note.tick < self.ticks.start);
            for note in before.filter(|note| note.tick + note.duration > self.ticks.start) {
                let sound = self.heard_as(heard, false, note);
                if sounds.contains(&sound) {
                    held.push((sound.1, note.tick + note.duration - self.ticks.start));
                }
            }
        }
        held
    }

    /// Puts what was written into the hole of the primer.
    fn put_in(&self, heard: &Score, written: &Score, has_velocity: bool) -> Score {
        let mut score = self.primer.clone();
        let known = sounds(heard);
        let of_track = |track: &Track| -> HashSet<Sound> {
            let notes = track.notes.iter();
            notes.map(|note| self.heard_as(heard, track.is_drum, note)).collect()
        };
        let theirs: Vec<HashSet<Sound>> = self.primer.tracks.iter().map(of_track).collect();
        for (track, sounds) in score.tracks.iter_mut().zip(&theirs) {
            if !sounds.is_disjoint(&known) {
                track.notes.retain(|note| !self.ticks.contains(&note.tick));
            }
        }
        let (grid, ticks) =
            (u64::from(written.ticks_per_quarter), u64::from(self.primer.ticks_per_quarter));
        let at = |tick: u64| (tick * ticks + grid / 2) / grid;
        for track in &written.tracks {
            let sung: HashSet<Sound> =
                track.notes.iter().map(|n| (n.tick, i32::from(n.pitch), track.is_drum)).collect();
            let shared = |i: &usize| theirs[*i].intersection(&sung).count();
            // The track that it was heard in; the earlier one of two.
            let place = (0..theirs.len()).rev().max_by_key(shared).filter(|i| shared(i) > 0);
            let place = place.unwrap_or_else(|| {
                score.tracks.push(Track { notes: Vec::new(), pedals: Vec::new(), ..track.clone() });
                score.tracks.len() - 1
            });
            let shift = if track.is_drum { 0 } else { self.shift };
            let notes = &mut score.tracks[place].notes;
            let louds: usize = notes.iter().map(|note| usize::from(note.velocity)).sum();
            let velocity = louds.checked_div(notes.len()).map_or(100, |mean| mean as u8);
            for note in &track.notes {
                let pitch = (i32::from(note.pitch) - shift).clamp(0, 127) as u8;
                let held = notes.iter().filter(|n| n.pitch == pitch && n.tick < self.ticks.end);
                let free = held.map(|n| n.tick + n.duration).max().unwrap_or(0);
                let from = at(note.tick).max(self.ticks.start).max(free);
                let end = at(note.tick + note.duration).min(self.ticks.end);
                if from < end {
                    let velocity = if has_velocity { note.velocity } else { velocity };
                    notes.push(Note { tick: from, duration: end - from, pitch, velocity });
                }
            }
            notes.sort();
        }
        score.tracks.retain(|track| !track.notes.is_empty() || !track.pedals.is_empty());
        score
    }
}

/// A note as it is heard: tick, pitch, and whether it is of the drums.
type Sound = (u64, i32, bool);

fn sounds(heard: &Score) -> HashSet<Sound> {
    let of_track = |track: &Track| {
        let is_drum = track.is_drum;
        track.notes.iter().map(move |n| (n.tick, i32::from(n.pitch), is_drum)).collect::<Vec<_>>()
    };
    heard.tracks.iter().flat_map(of_track).collect()
}
