//! Curves as pictures: the loss of a training beside its baselines, as SVG and PNG; and as one line
//! of text.

use std::fmt::Write;

use crate::canvas::{Canvas, PALETTE, Rgb, blend, text_width};

/// One line of a chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Points in order of x. What is not finite is left out.
    pub points: Vec<(f64, f64)>,
}

/// A chart of curves and of levels to compare them with.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// What runs to the right.
    pub x_label: String,
    /// What runs upwards.
    pub y_label: String,
    /// The curves.
    pub series: Vec<Series>,
    /// Horizontal lines with their names, such as baselines.
    pub levels: Vec<(String, f64)>,
}

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 540.0;
/// Left, right, top and bottom of the field.
const FIELD: (f64, f64, f64, f64) = (84.0, 936.0, 56.0, 484.0);
const PAPER: Rgb = [253, 253, 251];
const GRID: Rgb = [226, 229, 235];
const INK: Rgb = [52, 58, 70];
const FAINT: Rgb = [110, 117, 130];

/// The part of the plane that is shown.
struct Scale {
    x: (f64, f64),
    y: (f64, f64),
}

impl Chart {
    /// The chart as an SVG file.
    pub fn svg(&self) -> String {
        let scale = self.scale();
        let (left, right, top, bottom) = FIELD;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"14\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"{}\"/>\n\
             <clipPath id=\"field\"><rect x=\"{left}\" y=\"{top}\" width=\"{}\" height=\"{}\"/></clipPath>\n",
            hex(PAPER),
            right - left,
            bottom - top
        );
        let text = |x: f64, y: f64, anchor: &str, colour: Rgb, text: &str| {
            format!(
                "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{}\">{}</text>\n",
                hex(colour),
                escape(text)
            )
        };
        let line = |a: (f64, f64), b: (f64, f64), colour: Rgb, dash: &str| {
            format!(
                "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{}\"{dash}/>\n",
                a.0,
                a.1,
                b.0,
                b.1,
                hex(colour)
            )
        };
        for tick in ticks(scale.y, 8) {
            let y = scale.place(scale.x.0, tick).1;
            svg += &line((left, y), (right, y), GRID, "");
            svg += &text(left - 8.0, y + 5.0, "end", FAINT, &number(tick));
        }
        for tick in ticks(scale.x, 8) {
            let x = scale.place(tick, scale.y.0).0;
            svg += &line((x, top), (x, bottom), GRID, "");
            svg += &text(x, bottom + 20.0, "middle", FAINT, &number(tick));
        }
        for (name, level) in &self.levels {
            let y = scale.place(scale.x.0, *level).1;
            svg += &line((left, y), (right, y), FAINT, " stroke-dasharray=\"6 4\"");
            svg += &text(right - 6.0, y - 5.0, "end", FAINT, &level_label(name, *level));
        }
        for (i, series) in self.series.iter().enumerate() {
            let mut path = String::new();
            for (x, y) in thinned(&series.points) {
                let (x, y) = scale.place(x, y);
                let _ = write!(path, "{x:.1},{y:.1} ");
            }
            let colour = hex(PALETTE[i % PALETTE.len()]);
            let _ = writeln!(
                svg,
                "<polyline clip-path=\"url(#field)\" fill=\"none\" stroke=\"{colour}\" \
                 stroke-width=\"2\" stroke-linejoin=\"round\" points=\"{}\"/>",
                path.trim_end()
            );
        }
        svg += &text(left, 32.0, "start", INK, &self.title);
        svg += &text((left + right) / 2.0, bottom + 44.0, "middle", FAINT, &self.x_label);
        let middle = (top + bottom) / 2.0;
        let _ = writeln!(
            svg,
            "<text transform=\"translate(22 {middle}) rotate(-90)\" text-anchor=\"middle\" \
             fill=\"{}\">{}</text>",
            hex(FAINT),
            escape(&self.y_label)
        );
        let mut x = right;
        for (i, series) in self.series.iter().enumerate().rev() {
            svg += &text(x, 32.0, "end", PALETTE[i % PALETTE.len()], &series.name);
            x -= 10.0 * series.name.chars().count() as f64 + 20.0;
        }
        svg + "</svg>\n"
    }

    /// The chart as a PNG file.
    pub fn png(&self) -> Vec<u8> {
        self.canvas().png()
    }

    fn canvas(&self) -> Canvas {
        let scale = self.scale();
        let (left, right, top, bottom) = FIELD;
        // Curves are drawn at twice the size and halved, which smooths their edges.
        let mut canvas = Canvas::new(2 * WIDTH as usize, 2 * HEIGHT as usize, PAPER);
        let fine = |(x, y): (f64, f64)| (2.0 * x, 2.0 * y);
        for tick in ticks(scale.y, 8) {
            let y = scale.place(scale.x.0, tick).1;
            canvas.line(fine((left, y)), fine((right, y)), 2, GRID);
        }
        for tick in ticks(scale.x, 8) {
            let x = scale.place(tick, scale.y.0).0;
            canvas.line(fine((x, top)), fine((x, bottom)), 2, GRID);
        }
        for (_, level) in &self.levels {
            let y = scale.place(scale.x.0, *level).1;
            let mut x = left;
            while x < right {
                canvas.line(fine((x, y)), fine(((x + 6.0).min(right), y)), 2, FAINT);
                x += 10.0;
            }
        }
        for (i, series) in self.series.iter().enumerate() {
            let points: Vec<_> = thinned(&series.points)
                .into_iter()
                .map(|(x, y)| {
                    let (x, y) = scale.place(x, y);
                    fine((x, y.clamp(top, bottom)))
                })
                .collect();
            for pair in points.windows(2) {
                canvas.line(pair[0], pair[1], 4, PALETTE[i % PALETTE.len()]);
            }
            if let [only] = points[..] {
                canvas.line(only, only, 8, PALETTE[i % PALETTE.len()]);
            }
        }
        let mut canvas = canvas.halved();

        for tick in ticks(scale.y, 8) {
            let (text, y) = (number(tick), scale.place(scale.x.0, tick).1);
            let x = left as i64 - 8 - text_width(&text, 2);
            canvas.text(x, y as i64 - 7, 2, &text, FAINT);
        }
        for tick in ticks(scale.x, 8) {
            let (text, x) = (number(tick), scale.place(tick, scale.y.0).0);
            canvas.text(x as i64 - text_width(&text, 2) / 2, bottom as i64 + 8, 2, &text, FAINT);
        }
        for (name, level) in &self.levels {
            let text = level_label(name, *level);
            let (x, y) = (right as i64 - 4 - text_width(&text, 1), scale.place(0.0, *level).1);
            canvas.text(x, y as i64 - 11, 1, &text, blend(FAINT, INK, 0.5));
        }
        canvas.text(left as i64, 20, 2, &self.title, INK);
        let x = ((left + right) / 2.0) as i64 - text_width(&self.x_label, 2) / 2;
        canvas.text(x, bottom as i64 + 30, 2, &self.x_label, FAINT);
        canvas.text(left as i64, 40, 1, &self.y_label, FAINT);
        let mut x = right as i64;
        for (i, series) in self.series.iter().enumerate().rev() {
            x -= text_width(&series.name, 2);
            canvas.text(x, 20, 2, &series.name, PALETTE[i % PALETTE.len()]);
            x -= 24;
        }
        canvas
    }

    fn scale(&self) -> Scale {
        let points = || self.series.iter().flat_map(|s| &s.points).filter(|p| p.1.is_finite());
        let mut ys: Vec<f64> = points().map(|p| p.1).collect();
        ys.sort_by(f64::total_cmp);
        let levels = || self.levels.iter().map(|(_, level)| *level).filter(|l| l.is_finite());
        // The first steps of a training may lie far above all that follows: cut the top 2 %.
        let most = if ys.is_empty() { None } else { Some(ys[(ys.len() - 1) * 98 / 100]) };
        let high = levels().chain(most).fold(f64::NEG_INFINITY, f64::max);
        let low = levels().chain(ys.first().copied()).fold(f64::INFINITY, f64::min);
        let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        let air = ((high - low) * 0.06).max(high.abs() * 1e-3).max(1e-9);
        let left = points().map(|p| p.0).fold(f64::INFINITY, f64::min);
        let right = points().map(|p| p.0).fold(f64::NEG_INFINITY, f64::max);
        let (left, right) = match left.partial_cmp(&right) {
            Some(std::cmp::Ordering::Less) => (left, right),
            Some(std::cmp::Ordering::Equal) => (left - 0.5, right + 0.5),
            _ => (0.0, 1.0),
        };
        Scale { x: (left, right), y: (low - air, high + air) }
    }
}

impl Scale {
    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        let (left, right, top, bottom) = FIELD;
        let share = |v: f64, range: (f64, f64)| (v - range.0) / (range.1 - range.0);
        (left + share(x, self.x) * (right - left), bottom - share(y, self.y) * (bottom - top))
    }
}

/// Round numbers inside a range, about `wanted` of them.
fn ticks(range: (f64, f64), wanted: usize) -> Vec<f64> {
    let rough = (range.1 - range.0) / wanted as f64;
    let unit = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * unit).find(|&s| s >= rough * 0.999);
    let step = step.unwrap_or(10.0 * unit);
    let first = (range.0 / step).ceil() as i64;
    let last = (range.1 / step).floor() as i64;
    (first..=last.min(first.saturating_add(50))).map(|n| n as f64 * step).collect()
}

fn number(value: f64) -> String {
    let text = match value.abs() {
        v if v >= 1e6 => return format!("{}M", number(value / 1e6)),
        v if v >= 1e4 => return format!("{}k", number(value / 1e3)),
        v if v >= 100.0 => format!("{value:.0}"),
        _ => format!("{value:.3}"),
    };
    if text.contains('.') {
        let text = text.trim_end_matches('0').trim_end_matches('.');
        return if text == "-0" { "0".to_owned() } else { text.to_owned() };
    }
    text
}

fn level_label(name: &str, level: f64) -> String {
    format!("{name} {level:.3}")
}

/// At most about 1200 points: neighbours are averaged, what is not finite is left out.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let points: Vec<(f64, f64)> =
        points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite()).collect();
    let size = points.len().div_ceil(1200).max(1);
    points
        .chunks(size)
        .map(|chunk| {
            let n = chunk.len() as f64;
            let sum = chunk.iter().fold((0.0, 0.0), |s, p| (s.0 + p.0, s.1 + p.1));
            (sum.0 / n, sum.1 / n)
        })
        .collect()
}

fn hex(colour: Rgb) -> String {
    format!("#{:02x}{:02x}{:02x}", colour[0], colour[1], colour[2])
}

fn escape(text: &str) -> String {
    let text = crate::console::clean(text);
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A curve in one line of text, such as `█▅▃▂▂▁`; the newest values are on the right.
pub fn sparkline(values: &[f64], width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let values: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    let size = values.len().div_ceil(width.max(1)).max(1);
    let means: Vec<f64> =
        values.chunks(size).map(|c| c.iter().sum::<f64>() / c.len() as f64).collect();
    let low = means.iter().copied().fold(f64::INFINITY, f64::min);
    let high = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    means
        .iter()
        .map(|v| {
            let share = if high > low { (v - low) / (high - low) } else { 0.0 };
            BARS[((share * 7.0).round() as usize).min(7)]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> Chart {
        let train = (1..5000).map(|i| (f64::from(i), 3.6 * f64::from(i).powf(-0.12))).collect();
        let valid = (1..10).map(|i| (f64::from(i) * 500.0, 1.6 - 0.02 * f64::from(i))).collect();
        Chart {
            title: "lstm/melody-basic on <folk>".into(),
            x_label: "step".into(),
            y_label: "nats a token".into(),
            series: vec![
                Series { name: "train".into(), points: train },
                Series { name: "valid".into(), points: valid },
            ],
            levels: vec![("marginal".into(), 2.4), ("markov".into(), 1.9)],
        }
    }

    #[test]
    fn an_svg_is_well_formed_and_bounded() {
        let svg = chart().svg();
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("&lt;folk&gt;") && !svg.contains("<folk>"));
        assert!(svg.contains("markov 1.900") && svg.len() < 60_000, "{}", svg.len());
        assert_eq!(svg.matches("<polyline").count(), 2);
    }

    #[test]
    fn a_curve_passes_through_its_points() {
        let chart = chart();
        let canvas = chart.canvas();
        let (x, y) = chart.scale().place(3000.0, 3.6 * 3000f64.powf(-0.12));
        // The line is two pixels thick; smoothing may mix its edge with the paper.
        let near = |dy: i64| canvas.pixel(x as usize, (y as i64 + dy) as usize);
        assert!((-1..=1).any(|dy| near(dy) == PALETTE[0]), "{:?}", [near(-1), near(0), near(1)]);
    }

    #[test]
    fn odd_data_give_a_picture_all_the_same() {
        for points in [
            vec![],
            vec![(1.0, 2.0)],
            vec![(0.0, f64::NAN), (1.0, f64::INFINITY)],
            vec![(0.0, 1.0), (1.0, 1.0)],
            vec![(0.0, -1e300), (1e300, 1e300)],
        ] {
            let series = vec![Series { name: "odd".into(), points }];
            let chart = Chart { series, ..Chart::default() };
            assert!(chart.svg().len() > 100);
            assert!(chart.png().len() > 100);
        }
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks((0.0, 10.0), 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(
            [1e-3, 0.25, 2.0, 1500.0, 20_000.0, 3e6].map(number),
            ["0.001", "0.25", "2", "1500", "20k", "3M"]
        );
    }

    #[test]
    fn a_sparkline_falls_with_the_loss() {
        let values: Vec<f64> = (0..80).map(|i| f64::from(80 - i)).collect();
        assert_eq!(sparkline(&values, 8), "█▇▆▅▄▃▂▁");
        assert_eq!(sparkline(&[1.0, 1.0], 8), "▁▁");
        assert_eq!(sparkline(&[f64::NAN], 8), "");
    }
}
