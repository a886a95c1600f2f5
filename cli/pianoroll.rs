//! A score as a picture: time to the right, pitch upwards, one colour for each track.
//!
//! Long pieces run over several rows, like lines of a page. The size is bounded for any score.

use std::collections::BTreeSet;

use etude_tokenizer::{Bars, Score, Track};

use crate::canvas::{Canvas, PALETTE, Rgb, blend, text_width};
use crate::console::clean;

const WIDTH: i64 = 1600;
const MARGIN_LEFT: i64 = 76;
const MARGIN_RIGHT: i64 = 20;
const HEADER: i64 = 56;
/// Space above each row, for bar numbers.
const ROW_GAP: i64 = 30;
const MAX_HEIGHT: i64 = 4000;
/// Pixels painted for notes at most; beyond, only onsets are drawn. No file can make this slow.
const MAX_PAINT: i64 = 400_000_000;

const PAPER: Rgb = [253, 253, 251];
const BLACK_KEY: Rgb = [242, 244, 247];
const OCTAVE_LINE: Rgb = [214, 219, 227];
const BEAT_LINE: Rgb = [231, 234, 239];
const BAR_LINE: Rgb = [160, 167, 178];
const INK: Rgb = [52, 58, 70];
const FAINT: Rgb = [120, 127, 140];

const FAMILIES: [&str; 16] = [
    "piano",
    "bells",
    "organ",
    "guitar",
    "bass",
    "strings",
    "ensemble",
    "brass",
    "reed",
    "pipe",
    "lead",
    "pad",
    "effects",
    "folk",
    "percussive",
    "sounds",
];

/// Where things stand.
struct Layout {
    bars: Bars,
    bars_in_row: u64,
    rows: i64,
    /// Ticks of the longest row.
    row_ticks: u64,
    lowest: i64,
    highest: i64,
    /// Height of a semitone.
    cell: i64,
    /// Drum keys that are used, lowest first.
    drums: Vec<u8>,
    drum_cell: i64,
    row_height: i64,
    end: u64,
}

impl Layout {
    fn of(score: &Score) -> Layout {
        let bars = Bars::of(score);
        let end = score.end_tick();
        let count = bars.count(end).max(1);
        let pitches = || score.tracks.iter().filter(|t| !t.is_drum).flat_map(|t| &t.notes);
        let lowest = pitches().map(|n| i64::from(n.pitch)).min();
        let highest = pitches().map(|n| i64::from(n.pitch)).max();
        let drums: BTreeSet<u8> = score
            .tracks
            .iter()
            .filter(|t| t.is_drum)
            .flat_map(|t| t.notes.iter().map(|n| n.pitch))
            .collect();
        let drums: Vec<u8> = drums.into_iter().collect();
        // Two semitones of air; nothing at all for a piece of drums alone.
        let (lowest, highest) = match (lowest, highest) {
            (Some(low), Some(high)) => ((low - 2).max(0), (high + 2).min(127)),
            _ if drums.is_empty() => (58, 74),
            _ => (0, -1),
        };
        let span = highest - lowest + 1;
        let cell = match span {
            0..=30 => 8,
            31..=48 => 6,
            49..=72 => 4,
            _ => 3,
        };
        let drum_cell = if drums.len() <= 8 { 18 } else { 9 };
        let lane = drums.len() as i64 * drum_cell;
        let row_height = span * cell + lane + if lane > 0 && span > 0 { 8 } else { 0 };
        let most_rows = ((MAX_HEIGHT - HEADER) / (row_height + ROW_GAP)).clamp(1, 12) as u64;
        // Four bars a row read well; more when the page would get too long.
        let bars_in_row = [4, 8, 16]
            .into_iter()
            .find(|&n| count.div_ceil(n) <= most_rows.min(8))
            .unwrap_or_else(|| count.div_ceil(most_rows))
            .min(count);
        let rows = count.div_ceil(bars_in_row);
        let row_ticks = (0..rows)
            .map(|row| bars.start((row + 1) * bars_in_row) - bars.start(row * bars_in_row))
            .max()
            .unwrap_or(1)
            .max(1);
        Layout {
            bars,
            bars_in_row,
            rows: rows as i64,
            row_ticks,
            lowest,
            highest,
            cell,
            drums,
            drum_cell,
            row_height,
            end,
        }
    }

    fn row_top(&self, row: i64) -> i64 {
        HEADER + row * (self.row_height + ROW_GAP) + ROW_GAP
    }

    fn row_start(&self, row: i64) -> u64 {
        self.bars.start(row as u64 * self.bars_in_row)
    }

    fn row_of(&self, tick: u64) -> i64 {
        ((self.bars.locate(tick).0 / self.bars_in_row) as i64).min(self.rows - 1)
    }

    fn x(&self, row: i64, tick: u64) -> i64 {
        let from = tick.saturating_sub(self.row_start(row)).min(self.row_ticks);
        let share = from as f64 / self.row_ticks as f64;
        MARGIN_LEFT + (share * (WIDTH - MARGIN_LEFT - MARGIN_RIGHT) as f64).round() as i64
    }

    /// Where the row's own bars end.
    fn right(&self, row: i64) -> i64 {
        let last = ((row as u64 + 1) * self.bars_in_row).min(self.bars.count(self.end).max(1));
        self.x(row, self.bars.start(last))
    }

    fn y(&self, row: i64, pitch: u8) -> i64 {
        self.row_top(row) + (self.highest - i64::from(pitch)) * self.cell
    }

    fn drum_y(&self, row: i64, pitch: u8) -> i64 {
        let place = self.drums.binary_search(&pitch).unwrap_or(0) as i64;
        self.row_top(row) + self.row_height - (place + 1) * self.drum_cell
    }
}

/// Draws a score under a title.
pub fn draw(score: &Score, title: &str) -> Canvas {
    let layout = Layout::of(score);
    let legend = legend(score);
    let height = layout.row_top(layout.rows) + if legend.len() > 1 { 26 } else { 0 };
    let mut canvas = Canvas::new(WIDTH as usize, height as usize, PAPER);
    let title: String = clean(title).replace('_', " ").chars().take(70).collect();
    canvas.text(MARGIN_LEFT, 18, 2, &title, INK);
    let plural = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let facts = format!(
        "{}  {}  {:.1} s",
        plural(score.note_count() as u64, "note"),
        plural(layout.bars.count(layout.end), "bar"),
        score.seconds()
    );
    canvas.text(WIDTH - MARGIN_RIGHT - text_width(&facts, 2), 18, 2, &facts, FAINT);
    for row in 0..layout.rows {
        draw_grid(&mut canvas, &layout, row);
    }
    let mut paint = MAX_PAINT;
    // The first track lies on top: it is most often the melody.
    for (i, track) in score.tracks.iter().enumerate().rev() {
        draw_notes(&mut canvas, &layout, track, PALETTE[i % PALETTE.len()], &mut paint);
    }
    if legend.len() > 1 {
        draw_legend(&mut canvas, &legend, height - 30);
    }
    canvas
}

fn draw_grid(canvas: &mut Canvas, layout: &Layout, row: i64) {
    let (left, right, top) = (MARGIN_LEFT, layout.right(row), layout.row_top(row));
    for pitch in layout.lowest..=layout.highest {
        let y = top + (layout.highest - pitch) * layout.cell;
        if [1, 3, 6, 8, 10].contains(&(pitch % 12)) {
            canvas.rect(left, y, right - left, layout.cell, BLACK_KEY);
        }
        if pitch % 12 == 0 {
            canvas.rect(left, y + layout.cell - 1, right - left, 1, OCTAVE_LINE);
            // C4 is middle C.
            let label = format!("C{}", pitch / 12 - 1);
            let x = left - 10 - text_width(&label, 2);
            canvas.text(x, y + layout.cell / 2 - 7, 2, &label, FAINT);
        }
    }
    let scale = if layout.drum_cell >= 16 { 2 } else { 1 };
    for (i, &key) in layout.drums.iter().enumerate() {
        let y = layout.drum_y(row, key);
        if i % 2 == 1 {
            canvas.rect(left, y, right - left, layout.drum_cell, BLACK_KEY);
        }
        let label = drum_name(key).map_or_else(|| key.to_string(), str::to_owned);
        let x = left - 8 - text_width(&label, scale);
        canvas.text(x, y + (layout.drum_cell - 7 * scale) / 2, scale, &label, FAINT);
    }

    let first = row as u64 * layout.bars_in_row;
    let last = (first + layout.bars_in_row).min(layout.bars.count(layout.end).max(1));
    // Lines closer than 5 pixels would be a grey field: show every second, fourth, .. bar then.
    let width = (right - left).max(1) as u64;
    let spaced = |pixels: u64| ((last - first) * pixels).div_ceil(width).next_power_of_two();
    let (line_every, number_every) = (spaced(5), spaced(40));
    for bar in (first..=last).step_by(line_every as usize) {
        let tick = layout.bars.start(bar);
        let x = layout.x(row, tick);
        if bar < last {
            draw_beats(canvas, layout, row, bar);
            if (bar - first).is_multiple_of(number_every) {
                canvas.text(x + 3, top - 17, 2, &(bar + 1).to_string(), FAINT);
            }
        }
        canvas.rect(x, top, 1, layout.row_height, BAR_LINE);
    }
    canvas.rect(right, top, 1, layout.row_height, BAR_LINE);
    for y in [top, top + layout.row_height] {
        canvas.rect(left, y, right - left + 1, 1, BAR_LINE);
    }
}

fn draw_beats(canvas: &mut Canvas, layout: &Layout, row: i64, bar: u64) {
    let (from, to) = (layout.bars.start(bar), layout.bars.start(bar + 1));
    let beat = layout.bars.beat_at(from);
    let pixels = (layout.x(row, to) - layout.x(row, from)).max(0) as u64;
    let beats = (to - from).div_ceil(beat);
    if beats > 1 && pixels / beats >= 7 {
        for n in 1..beats {
            let x = layout.x(row, from + n * beat);
            canvas.rect(x, layout.row_top(row), 1, layout.row_height, BEAT_LINE);
        }
    }
}

fn draw_notes(canvas: &mut Canvas, layout: &Layout, track: &Track, colour: Rgb, paint: &mut i64) {
    for note in &track.notes {
        let shade = blend(PAPER, colour, 0.35 + 0.65 * f32::from(note.velocity.min(127)) / 127.0);
        let edge = blend(colour, [0; 3], 0.45);
        let row = layout.row_of(note.tick);
        let x = layout.x(row, note.tick);
        if track.is_drum {
            let (y, size) = (layout.drum_y(row, note.pitch), layout.drum_cell);
            canvas.rect(x, y + 1, (size / 2).max(4), size - 2, shade);
            canvas.rect(x, y + 1, 1, size - 2, edge);
            continue;
        }
        let end = note.tick.saturating_add(note.duration.max(1)).min(layout.end.max(1));
        let last_row = if *paint > 0 { layout.row_of(end - 1).max(row) } else { row };
        for part in row..=last_row {
            let from = if part == row { x } else { MARGIN_LEFT };
            let to = if *paint <= 0 {
                from + 3
            } else if part == last_row {
                layout.x(part, end)
            } else {
                layout.right(part)
            };
            // A pixel of air before the next note of the same pitch; never thinner than three.
            let (y, width) = (layout.y(part, note.pitch), (to - from - 1).max(3));
            canvas.rect(from, y, width, layout.cell, shade);
            *paint -= width * layout.cell;
        }
        canvas.rect(x, layout.y(row, note.pitch), 2, layout.cell, edge);
    }
}

/// Names and colours of the tracks.
fn legend(score: &Score) -> Vec<(String, Rgb)> {
    let tracks = score.tracks.iter().enumerate().filter(|(_, track)| !track.notes.is_empty());
    tracks
        .map(|(i, track)| {
            let family = if track.is_drum {
                "drums"
            } else {
                FAMILIES[usize::from(track.program / 8).min(15)]
            };
            let own = track.name.trim();
            let readable = own.is_ascii() && !own.is_empty();
            let name = if readable { clean(own) } else { family.to_owned() };
            (name.chars().take(16).collect(), PALETTE[i % PALETTE.len()])
        })
        .collect()
}

fn draw_legend(canvas: &mut Canvas, legend: &[(String, Rgb)], y: i64) {
    let mut x = MARGIN_LEFT;
    for (i, (name, colour)) in legend.iter().enumerate() {
        let more = format!("+{}", legend.len() - i);
        let room = WIDTH - MARGIN_RIGHT - text_width(&more, 2) - 20;
        if x + 22 + text_width(name, 2) > room && i + 1 < legend.len() {
            canvas.text(x, y, 2, &more, FAINT);
            return;
        }
        canvas.rect(x, y, 14, 14, *colour);
        canvas.text(x + 22, y, 2, name, INK);
        x += 22 + text_width(name, 2) + 24;
    }
}

/// A short name of a General MIDI percussion key; at most five letters, what the margin holds.
fn drum_name(key: u8) -> Option<&'static str> {
    Some(match key {
        35 | 36 => "kick",
        37 => "rim",
        38 | 40 => "snare",
        39 => "clap",
        42 => "hat",
        44 => "pedal",
        46 => "open",
        41 | 43 | 45 | 47 | 48 | 50 => "tom",
        49 | 57 => "crash",
        51 | 59 => "ride",
        52 => "china",
        53 => "bell",
        54 => "tamb",
        55 => "spl.",
        56 => "cow",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use etude_tokenizer::Note;

    fn score(notes: Vec<Note>, is_drum: bool) -> Score {
        let mut score = Score::new(480);
        score.tracks.push(Track { notes, is_drum, ..Track::default() });
        score
    }

    fn note(tick: u64, duration: u64, pitch: u8) -> Note {
        Note { tick, duration, pitch, velocity: 127 }
    }

    #[test]
    fn a_note_is_painted_where_it_sounds() {
        let score = score(vec![note(480, 480, 60), note(1440, 480, 67)], false);
        let canvas = draw(&score, "test");
        let layout = Layout::of(&score);
        let middle = |tick, pitch: u8| {
            (layout.x(0, tick) as usize, (layout.y(0, pitch) + layout.cell / 2) as usize)
        };
        let (x, y) = middle(720, 60);
        assert_eq!(canvas.pixel(x, y), PALETTE[0]);
        let (x, y) = middle(1680, 67);
        assert_eq!(canvas.pixel(x, y), PALETTE[0]);
        let (x, y) = middle(300, 60);
        assert_ne!(canvas.pixel(x, y), PALETTE[0]);
    }

    #[test]
    fn a_note_goes_on_in_the_next_row() {
        let score = score(vec![note(0, 1920 * 8, 60)], false);
        let layout = Layout::of(&score);
        assert_eq!((layout.rows, layout.bars_in_row), (2, 4));
        let canvas = draw(&score, "");
        let y = (layout.y(1, 60) + 2) as usize;
        assert_eq!(canvas.pixel(MARGIN_LEFT as usize + 200, y), PALETTE[0]);
    }

    #[test]
    fn any_score_gives_a_picture_of_bounded_size() {
        let many = (0..100_000u64).map(|n| note(n * 60, 100_000, (n % 128) as u8)).collect();
        let mut odd = score(vec![note(0, u64::MAX, 0), note(u64::MAX, 1, 127)], false);
        odd.meters.push(etude_tokenizer::Meter { tick: 0, numerator: 1, denominator: 128 });
        let drums = (0..128u64).map(|n| note(n * 100, 1, n as u8)).collect();
        for score in [Score::new(480), score(many, false), odd, score(drums, true)] {
            let canvas = draw(&score, "a title that is far too long ".repeat(20).as_str());
            assert_eq!(canvas.width() as i64, WIDTH);
            assert!(canvas.height() as i64 <= MAX_HEIGHT + 100, "{}", canvas.height());
        }
    }
}
