//! How numbers are spread over a set of pieces.

use super::Statistics;

/// How one number is spread over a set of pieces.
#[derive(Debug, Clone, PartialEq)]
pub struct Spread {
    /// The number's name.
    pub name: &'static str,
    /// Pieces that have this number.
    pub pieces: usize,
    /// Mean.
    pub mean: f64,
    /// 5th percentile.
    pub p5: f64,
    /// Median.
    pub median: f64,
    /// 95th percentile.
    pub p95: f64,
}

/// Sums up a set of pieces: one [`Spread`] for each number that any of them has.
///
/// Percentiles are interpolated between neighbours.
pub fn spreads(pieces: &[Statistics]) -> Vec<Spread> {
    let rows: Vec<_> = pieces.iter().map(Statistics::values).collect();
    let Some(first) = rows.first() else { return Vec::new() };
    (0..first.len())
        .filter_map(|column| {
            let mut values: Vec<f64> = rows.iter().filter_map(|row| row[column].1).collect();
            if values.is_empty() {
                return None;
            }
            values.sort_by(f64::total_cmp);
            Some(Spread {
                name: first[column].0,
                pieces: values.len(),
                mean: values.iter().sum::<f64>() / values.len() as f64,
                p5: percentile(&values, 0.05),
                median: percentile(&values, 0.5),
                p95: percentile(&values, 0.95),
            })
        })
        .collect()
}

fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * (at - at.floor())
}
