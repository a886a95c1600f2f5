//! Ticks and bars: which bar, which 16th, which beat a tick belongs to.

use crate::{Meter, Score};

/// Ticks as 16ths, rounded to the nearest.
pub(crate) fn sixteenths(ticks: u64, tpq: u64) -> u64 {
    ticks.saturating_mul(4).saturating_add(tpq / 2) / tpq
}

/// Where the bars of a score begin. A change of metre begins a bar.
///
/// Bars are counted by stretches of one metre, so a long silence costs nothing.
#[derive(Debug, Clone)]
pub struct Bars {
    pub(crate) stretches: Vec<Stretch>,
}

#[derive(Debug, Clone)]
pub(crate) struct Stretch {
    pub(crate) tick: u64,
    /// Index of its first bar.
    pub(crate) bar: u64,
    /// Ticks of a bar.
    pub(crate) length: u64,
    /// Ticks of a beat.
    beat: u64,
    compound: bool,
}

impl Bars {
    /// Finds the bars of a score; without a time signature they are of 4/4.
    pub fn of(score: &Score) -> Bars {
        let common = Meter { tick: 0, numerator: 4, denominator: 4 };
        let whole = 4 * u64::from(score.ticks_per_quarter.max(1));
        let mut stretches: Vec<Stretch> = Vec::new();
        for meter in std::iter::once(&common).chain(&score.meters) {
            let (over, under) = (u64::from(meter.numerator), u64::from(meter.denominator.max(1)));
            let over = if over == 0 { 4 } else { over };
            let compound = over > 3 && over.is_multiple_of(3) && under >= 8;
            let length = (over * whole / under).max(1);
            let beat = (if compound { 3 } else { 1 } * whole / under).max(1);
            let bar = match stretches.last() {
                Some(last) if meter.tick <= last.tick => last.bar,
                Some(last) => last.bar + (meter.tick - last.tick).div_ceil(last.length),
                None => 0,
            };
            // Of two at one place the later counts.
            while stretches.last().is_some_and(|last| last.tick >= meter.tick) {
                stretches.pop();
            }
            stretches.push(Stretch { tick: meter.tick, bar, length, beat, compound });
        }
        Bars { stretches }
    }

    fn stretch(&self, tick: u64) -> &Stretch {
        let after = self.stretches.partition_point(|s| s.tick <= tick);
        &self.stretches[after.saturating_sub(1)]
    }

    /// The bar of a tick, and the tick's distance from the bar's start.
    pub fn locate(&self, tick: u64) -> (u64, u64) {
        let stretch = self.stretch(tick);
        let from = tick.saturating_sub(stretch.tick);
        (stretch.bar + from / stretch.length, from % stretch.length)
    }

    /// The bar of an onset rounded to 16ths, and its 16th in that bar.
    pub(crate) fn locate_sixteenth(&self, tick: u64, tpq: u64) -> (u64, u64) {
        let rounded = sixteenths(tick, tpq).saturating_mul(tpq).div_ceil(4);
        let (bar, from) = self.locate(rounded);
        (bar, from.saturating_mul(4) / tpq)
    }

    /// Ticks of the bar that holds a tick, by its metre.
    pub fn length_at(&self, tick: u64) -> u64 {
        self.stretch(tick).length
    }

    /// Bars that begin before `end`.
    pub fn count(&self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.locate(end - 1).0.saturating_add(1) }
    }

    /// The tick at which a bar begins.
    pub fn start(&self, bar: u64) -> u64 {
        let after = self.stretches.partition_point(|s| s.bar <= bar);
        let stretch = &self.stretches[after.saturating_sub(1)];
        stretch.tick.saturating_add((bar - stretch.bar).saturating_mul(stretch.length))
    }

    /// Ticks of a beat at a tick: of the lower number, three of them in compound metres.
    pub fn beat_at(&self, tick: u64) -> u64 {
        self.stretch(tick).beat
    }

    pub(crate) fn on_beat(&self, tick: u64, tpq: u64) -> bool {
        let stretch = self.stretch(tick);
        near(tick.saturating_sub(stretch.tick), stretch.beat as f64, tpq)
    }

    pub(crate) fn in_pattern(&self, tick: u64, tpq: u64) -> bool {
        let stretch = self.stretch(tick);
        let steps = if stretch.compound { 3.0 } else { 4.0 };
        let beat = if stretch.compound { stretch.beat as f64 } else { tpq as f64 };
        near(tick.saturating_sub(stretch.tick), beat / steps, tpq)
    }
}

/// Tells whether `from` is a multiple of `step`, up to a quarter of a 16th: about 30 ms.
fn near(from: u64, step: f64, tpq: u64) -> bool {
    let from = from as f64;
    (from - (from / step).round() * step).abs() <= tpq as f64 / 16.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_metre_begins_a_bar() {
        let mut score = Score::new(480);
        score.meters = vec![
            Meter { tick: 0, numerator: 6, denominator: 8 },
            Meter { tick: 2160, numerator: 3, denominator: 4 },
        ];
        let bars = Bars::of(&score);
        assert_eq!([0, 1, 2, 3].map(|bar| bars.start(bar)), [0, 1440, 2160, 3600]);
        assert_eq!(bars.locate(2159), (1, 719));
        assert_eq!((bars.length_at(0), bars.beat_at(0)), (1440, 720));
        assert_eq!((bars.length_at(2160), bars.beat_at(2160)), (1440, 480));
        assert_eq!((bars.count(0), bars.count(1440), bars.count(1441)), (0, 1, 2));
    }
}
