//! Ticks and bars: which bar, which 16th, which beat a tick belongs to.

use crate::{Meter, Score};

/// Ticks as 16ths, rounded to the nearest.
pub(super) fn sixteenths(ticks: u64, tpq: u64) -> u64 {
    ticks.saturating_mul(4).saturating_add(tpq / 2) / tpq
}

/// Where bars begin: stretches of one metre each. A change of metre begins a bar.
pub(super) struct Bars {
    pub(super) stretches: Vec<Stretch>,
}

pub(super) struct Stretch {
    pub(super) tick: u64,
    /// Index of its first bar.
    pub(super) bar: u64,
    /// Ticks of a bar.
    pub(super) length: u64,
    /// Ticks of a beat.
    beat: u64,
    compound: bool,
}

impl Bars {
    pub(super) fn of(score: &Score) -> Bars {
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
    pub(super) fn locate(&self, tick: u64) -> (u64, u64) {
        let stretch = self.stretch(tick);
        let from = tick.saturating_sub(stretch.tick);
        (stretch.bar + from / stretch.length, from % stretch.length)
    }

    /// The bar of an onset rounded to 16ths, and its 16th in that bar.
    pub(super) fn locate_sixteenth(&self, tick: u64, tpq: u64) -> (u64, u64) {
        let rounded = sixteenths(tick, tpq).saturating_mul(tpq).div_ceil(4);
        let (bar, from) = self.locate(rounded);
        (bar, from.saturating_mul(4) / tpq)
    }

    pub(super) fn length_at(&self, tick: u64) -> u64 {
        self.stretch(tick).length
    }

    /// Bars that begin before `end`.
    pub(super) fn count(&self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.locate(end - 1).0.saturating_add(1) }
    }

    pub(super) fn on_beat(&self, tick: u64, tpq: u64) -> bool {
        let stretch = self.stretch(tick);
        near(tick.saturating_sub(stretch.tick), stretch.beat as f64, tpq)
    }

    pub(super) fn in_pattern(&self, tick: u64, tpq: u64) -> bool {
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
