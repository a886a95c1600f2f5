//! Where each case stands under the roofs of the machine, as a picture.
//!
//! To the right: operations for each byte of the least memory traffic. Upwards: operations a second.
//! The slopes are what a level of the memory can feed, the level lines what the units can do; a dot is
//! a case, and its distance from the lowest roof above it is what is left to gain.
//!
//! # Source
//! Williams, Waterman & Patterson 2009, "Roofline: an insightful visual performance model".

use std::fmt::Write;

use etude_kernels::gemm_bf16::has_pairs;
use etude_kernels::{isa, peak};
use serde_json::Value;

use super::case::Case;
use crate::console::clean;

/// What the machine can do.
#[derive(Debug, Clone, PartialEq)]
pub struct Roofs {
    /// Names of number formats and their peaks in GFLOP/s.
    pub peaks: Vec<(String, f64)>,
    /// Names of levels of the memory and their bandwidths in GB/s.
    pub slopes: Vec<(String, f64)>,
}

impl Roofs {
    /// Measures them now, on `threads` threads at once.
    pub fn measure(threads: usize) -> Roofs {
        let mut peaks = vec![("f32".to_owned(), peak::fma_gflops_of(isa::active(), threads))];
        if has_pairs() {
            peaks.push(("bf16".to_owned(), peak::bf16_gflops(threads)));
        }
        let slope = |level: peak::Level| (level.name.to_owned(), level.bandwidth.read_gbps);
        Roofs { peaks, slopes: peak::levels(threads).into_iter().map(slope).collect() }
    }
}

/// A case that was timed.
#[derive(Debug, Clone, PartialEq)]
pub struct Dot {
    workload: String,
    /// What ran, and on which sizes.
    label: String,
    gflops: f64,
    /// Operations a byte.
    intensity: f64,
    /// Share of the nearest bound, where it was measured.
    share: Option<f64>,
}

impl Dot {
    /// The dot of a record of `etude bench`; `None` without operations or bytes.
    pub fn of(record: &Value, case: &Case) -> Option<Dot> {
        let number = |key: &str| record[key].as_f64().filter(|x| x.is_finite() && *x > 0.0);
        let name = record["impl"].as_str()?;
        let name = name.strip_prefix("etude-").or(name.strip_prefix("etude")).unwrap_or(name);
        let label = format!("{} {name}", case.brief());
        Some(Dot {
            workload: record["workload"].as_str()?.to_owned(),
            label: label.trim().to_owned(),
            gflops: number("gflops")?,
            intensity: number("flops")? / number("bytes")?,
            share: number("peak_share"),
        })
    }
}

const WIDTH: f64 = 1120.0;
/// Left, right, top and bottom of the field.
const FIELD: (f64, f64, f64, f64) = (64.0, 1096.0, 56.0, 540.0);
/// Height of a line of the list below the field.
const LINE: f64 = 14.0;
/// Letters of a line of the list that fit beside its number and its figures.
const LETTERS: usize = 70;

/// Colours by class, so that a viewer that prefers dark pages gets them dark. Those of the workloads
/// are of middle lightness and can be read on both.
const STYLE: &str = "\
.paper{fill:#fdfdfb}.ink{fill:#343a46}.faint{fill:#6e7582}.grid{stroke:#e2e5eb}
.roof{stroke:#343a46;fill:none}.slope{stroke:#6e7582;fill:none}.lead{stroke:#9aa1ad}
.w0{fill:#0f7fc0}.w1{fill:#d0600a}.w2{fill:#0c9a72}.w3{fill:#bf5f96}.w4{fill:#8468c8}.w5{fill:#b58500}.w6{fill:#3a9fb5}.w7{fill:#8a8a8a}
@media (prefers-color-scheme:dark){
.paper{fill:#17191e}.ink{fill:#e4e7ee}.faint{fill:#9aa3b2}.grid{stroke:#2a2e37}
.roof{stroke:#e4e7ee}.slope{stroke:#9aa3b2}.lead{stroke:#6e7582}}
";

/// Both scales, in powers of ten.
struct Scale {
    x: (f64, f64),
    y: (f64, f64),
}

impl Scale {
    fn new(dots: &[Dot], roofs: &Roofs) -> Scale {
        let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
        let least = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::INFINITY, f64::min);
        let peak = most(&mut roofs.peaks.iter().map(|r| r.1)).max(1.0);
        let slowest = least(&mut roofs.slopes.iter().map(|r| r.1)).clamp(0.1, 1e5);
        // The corner of the lowest slope is in the picture, and every dot.
        let right = most(&mut dots.iter().map(|d| d.intensity)).max(4.0 * peak / slowest);
        let left = least(&mut dots.iter().map(|d| d.intensity)).min(0.5);
        let bottom = least(&mut dots.iter().map(|d| d.gflops)).min(peak / 30.0);
        Scale {
            x: ((left / 1.5).log10(), (right * 1.5).log10()),
            y: ((bottom / 1.6).log10(), (peak * 1.6).log10()),
        }
    }

    fn x(&self, value: f64) -> f64 {
        let (left, right, ..) = FIELD;
        left + (value.log10() - self.x.0) / (self.x.1 - self.x.0) * (right - left)
    }

    fn y(&self, value: f64) -> f64 {
        let (_, _, top, bottom) = FIELD;
        bottom - (value.log10() - self.y.0) / (self.y.1 - self.y.0) * (bottom - top)
    }

    /// What a dot takes.
    fn place(&self, dot: &Dot) -> Room {
        Room { x: self.x(dot.intensity), y: self.y(dot.gflops), w: 4.5, h: 4.5 }
    }
}

/// The picture as an SVG file.
pub fn svg(dots: &[Dot], roofs: &Roofs, title: &str) -> String {
    let scale = Scale::new(dots, roofs);
    let rows = dots.len().div_ceil(2);
    let height = FIELD.3 + 64.0 + rows as f64 * LINE + if rows > 0 { 24.0 } else { 0.0 };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\"/>\n"
    );
    axes(&mut svg, &scale, title);
    let places: Vec<Room> = dots.iter().map(|dot| scale.place(dot)).collect();
    let mut taken = draw_roofs(&mut svg, &scale, roofs, &places);
    let workloads = workloads(dots);
    let colour = |dot: &Dot| workloads.iter().position(|w| *w == dot.workload).unwrap_or(0) % 8;
    draw_dots(&mut svg, &scale, dots, &mut taken, &colour);
    list(&mut svg, dots, &colour);
    svg + "</svg>\n"
}

/// The workloads of some dots, each once.
fn workloads(dots: &[Dot]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for dot in dots {
        if !names.contains(&dot.workload.as_str()) {
            names.push(&dot.workload);
        }
    }
    names
}

fn text(svg: &mut String, at: (f64, f64), anchor: &str, class: &str, text: &str) {
    let (x, y) = at;
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"{class}\">{}</text>",
        escape(text)
    );
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), class: &str, width: f64) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" class=\"{class}\" \
         stroke-width=\"{width}\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn axes(svg: &mut String, scale: &Scale, title: &str) {
    let (left, right, top, bottom) = FIELD;
    for exponent in scale.y.0.floor() as i32..=scale.y.1.ceil() as i32 {
        for tick in [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(exponent)) {
            let y = scale.y(tick);
            if (top..=bottom).contains(&y) {
                line(svg, (left, y), (right, y), "grid", 1.0);
                text(svg, (left - 6.0, y + 4.0), "end", "faint", &number(tick));
            }
        }
    }
    for exponent in (scale.x.0 * 3.3).floor() as i32..=(scale.x.1 * 3.4).ceil() as i32 {
        let tick = 2f64.powi(exponent);
        let x = scale.x(tick);
        if (left..=right).contains(&x) {
            line(svg, (x, top), (x, bottom), "grid", 1.0);
            text(svg, (x, bottom + 18.0), "middle", "faint", &fraction(tick, exponent));
        }
    }
    let _ = writeln!(
        svg,
        "<text x=\"{left}\" y=\"30\" class=\"ink\" font-size=\"16\">{}</text>",
        escape(title)
    );
    text(svg, (left, top - 8.0), "start", "faint", "GFLOP/s");
    let x_label = "operations a byte of least memory traffic";
    text(svg, (right, bottom + 38.0), "end", "faint", x_label);
}

/// Half the width and half the height of a piece of text or a dot, and where its middle is.
#[derive(Debug, Clone, Copy)]
struct Room {
    x: f64,
    y: f64,
    w: f64,
    h: f64,
}

impl Room {
    fn meets(&self, other: &Room) -> bool {
        (self.x - other.x).abs() < self.w + other.w && (self.y - other.y).abs() < self.h + other.h
    }

    fn is_inside(&self) -> bool {
        let (left, right, top, bottom) = FIELD;
        self.x - self.w > left
            && self.x + self.w < right
            && self.y - self.h > top
            && self.y + self.h < bottom
    }
}

/// Draws the roofs and returns what they, their names and the dots take.
fn draw_roofs(svg: &mut String, scale: &Scale, roofs: &Roofs, dots: &[Room]) -> Vec<Room> {
    let (left, right, ..) = FIELD;
    let mut taken = dots.to_vec();
    let highest = roofs.peaks.iter().map(|r| r.1).fold(0.0, f64::max);
    let widest = roofs.slopes.iter().map(|r| r.1).fold(0.0, f64::max);
    let (x0, x1) = (10f64.powf(scale.x.0), 10f64.powf(scale.x.1));
    for (name, peak) in &roofs.peaks {
        let y = scale.y(*peak);
        let from = if widest > 0.0 { scale.x((peak / widest).max(x0)) } else { left };
        line(svg, (from, y), (right, y), "roof", 1.6);
        taken.push(Room { x: (from + right) / 2.0, y, w: (right - from) / 2.0, h: 1.0 });
        let label = format!("{name} {peak:.0} GFLOP/s");
        text(svg, (right - 6.0, y - 5.0), "end", "ink", &label);
        let w = 3.3 * label.len() as f64;
        taken.push(Room { x: right - 6.0 - w, y: y - 9.0, w, h: 7.0 });
    }
    // In pixels all slopes rise alike.
    let rise = (scale.y(1.0) - scale.y(10.0)) / (scale.x(10.0) - scale.x(1.0));
    let (cos, sin) = (rise.atan().cos(), rise.atan().sin());
    for (i, (name, gbps)) in roofs.slopes.iter().enumerate() {
        // From the left or the lower edge to the highest roof or the right edge.
        let low = x0.max(10f64.powf(scale.y.0) / gbps);
        let high = x1.min(highest / gbps);
        if low >= high {
            continue;
        }
        let place = |x: f64| (scale.x(x), scale.y(x * gbps));
        let (from, to) = (place(low), place(high));
        line(svg, from, to, "slope", 1.2);
        let length = (to.0 - from.0) / cos;
        let along = |at: f64| (from.0 + at * cos, from.1 - at * sin);
        let marks = (length / 6.0) as usize;
        taken.extend((0..marks).map(|mark| {
            let (x, y) = along(mark as f64 * 6.0);
            Room { x, y, w: 1.5, h: 1.5 }
        }));
        // A name stands above its line where the next one leaves room, else below it.
        let above = |other: &f64| *other > *gbps && scale.y(*gbps) - scale.y(*other) < 20.0 / cos;
        let (dx, dy) = match roofs.slopes.iter().any(|(_, other)| above(other)) {
            true => (14.0 * sin, 14.0 * cos),
            false => (-5.0 * sin, -5.0 * cos),
        };
        let label = format!("{name} {gbps:.0} GB/s");
        // A slanted text is a row of small squares. It stands where it covers no dot, if it can.
        let letters = |start: f64| {
            let (x, y) = along(start);
            (0..label.len()).map(move |letter| {
                let at = 6.6 * (letter as f64 + 0.5);
                let (x, y) = (x + dx + at * cos - 4.0 * sin, y + dy - at * sin - 4.0 * cos);
                Room { x, y, w: 5.0, h: 5.0 }
            })
        };
        let first = 14.0 + 10.0 * i as f64;
        let free = |start: &f64| !letters(*start).any(|l| dots.iter().any(|d| d.meets(&l)));
        let starts = (0..40).map(|n| first + 8.0 * f64::from(n));
        let room = length - 7.0 * label.len() as f64;
        let start = starts.take_while(|start| *start < room).find(free).unwrap_or(first);
        let (x, y) = along(start);
        let _ = writeln!(
            svg,
            "<text transform=\"translate({:.1} {:.1}) rotate({:.1})\" class=\"faint\">{}</text>",
            x + dx,
            y + dy,
            -rise.atan().to_degrees(),
            escape(&label)
        );
        taken.extend(letters(start));
    }
    taken
}

/// Draws a numbered dot for each case. A number stands where it covers nothing else, if there is such
/// a place near its dot; a thin line joins the two where they are apart.
fn draw_dots(
    svg: &mut String,
    scale: &Scale,
    dots: &[Dot],
    taken: &mut Vec<Room>,
    colour: &dyn Fn(&Dot) -> usize,
) {
    let mut numbers = String::new();
    for (i, dot) in dots.iter().enumerate() {
        let Room { x, y, .. } = scale.place(dot);
        let label = (i + 1).to_string();
        let (w, h) = (3.4 * label.len() as f64 + 1.0, 5.5);
        let spots = [11.0, 17.0, 24.0, 32.0, 42.0, 54.0, 68.0, 84.0].into_iter().flat_map(|r| {
            (0..16).map(move |turn| {
                let angle = f64::from(turn) * std::f64::consts::TAU / 16.0;
                (r, Room { x: x + r * angle.cos(), y: y - r * angle.sin(), w, h })
            })
        });
        let free = |room: &Room| room.is_inside() && !taken.iter().any(|other| other.meets(room));
        let found = spots.into_iter().find(|(_, room)| free(room));
        let (r, room) = found.unwrap_or((11.0, Room { x: x + 11.0, y, w, h }));
        if r > 17.0 {
            line(svg, (x, y), (room.x, room.y), "lead", 0.7);
        }
        let _ = writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.6\" class=\"w{}\"><title>{}</title></circle>",
            colour(dot),
            escape(&format!("{} {}: {}", dot.workload, dot.label, figures(dot)))
        );
        let _ = writeln!(
            numbers,
            "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"10\" text-anchor=\"middle\" \
             class=\"ink\">{label}</text>",
            room.x,
            room.y + 3.6
        );
        taken.push(room);
    }
    svg.push_str(&numbers);
}

/// Lists what the numbers mean, in two columns.
fn list(svg: &mut String, dots: &[Dot], colour: &dyn Fn(&Dot) -> usize) {
    let (left, right, _, bottom) = FIELD;
    let rows = dots.len().div_ceil(2);
    let column = (right - left + 32.0) / 2.0;
    let _ = writeln!(svg, "<g font-size=\"10\">");
    for (i, dot) in dots.iter().enumerate() {
        let x = left - 32.0 + (i / rows.max(1)) as f64 * (column + 8.0);
        let y = bottom + 76.0 + (i % rows.max(1)) as f64 * LINE;
        text(svg, (x + 20.0, y), "end", "ink", &(i + 1).to_string());
        let _ = writeln!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.6\" class=\"w{}\"/>",
            x + 29.0,
            y - 4.0,
            colour(dot)
        );
        let label = format!("{} {}", dot.workload, dot.label);
        let label = match label.char_indices().nth(LETTERS) {
            Some((end, _)) => format!("{}…", &label[..end]),
            None => label,
        };
        text(svg, (x + 38.0, y), "start", "ink", &label);
        text(svg, (x + column - 12.0, y), "end", "faint", &figures(dot));
    }
    svg.push_str("</g>\n");
}

/// The speed of a dot and its share of the bound.
fn figures(dot: &Dot) -> String {
    let share = dot.share.map_or_else(String::new, |share| format!(", {:.0} %", 100.0 * share));
    format!("{} GFLOP/s{share}", number(dot.gflops))
}

fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}").trim_end_matches(".0").to_owned(),
        v => format!("{v:.2}").trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}

/// A power of two as people write it.
fn fraction(value: f64, exponent: i32) -> String {
    if exponent < 0 {
        format!("1/{}", 1u64 << exponent.unsigned_abs().min(62))
    } else {
        number(value)
    }
}

fn escape(text: &str) -> String {
    clean(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roofs() -> Roofs {
        let named = |list: &[(&str, f64)]| -> Vec<(String, f64)> {
            list.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
        };
        Roofs {
            peaks: named(&[("f32", 118.0), ("bf16", 236.0)]),
            slopes: named(&[("L1", 170.0), ("L2", 117.0), ("L3", 100.0), ("memory", 30.0)]),
        }
    }

    fn dot(gflops: f64, intensity: f64) -> Dot {
        Dot {
            workload: "gemm <&>".to_owned(),
            label: "m 8".to_owned(),
            gflops,
            intensity,
            share: Some(0.5),
        }
    }

    #[test]
    fn a_picture_holds_every_dot_and_every_roof_inside_of_its_field() {
        let dots: Vec<Dot> =
            (0..90).map(|i| dot(1.0 + f64::from(i), 0.3 * f64::from(i + 1))).collect();
        let svg = svg(&dots, &roofs(), "a <title>");
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<title>").count(), 90);
        assert!(svg.contains("gemm &lt;&amp;&gt;") && !svg.contains("<&>"));
        for name in ["f32 118 GFLOP/s", "bf16 236 GFLOP/s", "L1 170 GB/s", "memory 30 GB/s"] {
            assert!(svg.contains(name), "{name}");
        }
        let scale = Scale::new(&dots, &roofs());
        let (left, right, top, bottom) = FIELD;
        for dot in &dots {
            assert!((left..=right).contains(&scale.x(dot.intensity)));
            assert!((top..=bottom).contains(&scale.y(dot.gflops)));
        }
    }

    #[test]
    fn numbers_of_dots_apart_from_each_other_cover_nothing() {
        let dots: Vec<Dot> =
            (0..40).map(|i| dot(2f64.powi(i % 8), 2f64.powi(i / 8 * 2 - 1))).collect();
        let (mut svg, scale) = (String::new(), Scale::new(&dots, &roofs()));
        let mut taken: Vec<Room> = dots.iter().map(|dot| scale.place(dot)).collect();
        draw_dots(&mut svg, &scale, &dots, &mut taken, &|_| 0);
        let covered = |(i, room): (usize, &Room)| taken[..i].iter().any(|other| other.meets(room));
        assert!(!taken.iter().enumerate().any(covered));
    }

    #[test]
    fn odd_figures_give_a_picture_all_the_same() {
        let none = Roofs { peaks: Vec::new(), slopes: Vec::new() };
        for (dots, roofs) in [
            (vec![], roofs()),
            (vec![], none.clone()),
            (vec![dot(1e-9, 1e-9), dot(1e12, 1e12)], roofs()),
            (vec![dot(3.0, 3.0); 300], none),
        ] {
            let svg = svg(&dots, &roofs, "");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn only_work_with_operations_and_bytes_becomes_a_dot() {
        let case = Case::parse(r#"{"m": 8, "trans_b": true, "x": false}"#).expect("a case");
        let record = |flops: Option<f64>, bytes: Option<f64>| {
            serde_json::json!({ "workload": "gemm", "impl": "etude-packed", "flops": flops,
                "bytes": bytes, "gflops": flops })
        };
        let dot = Dot::of(&record(Some(8.0), Some(2.0)), &case).expect("a dot");
        assert_eq!((dot.intensity, dot.label.as_str()), (4.0, "m 8 trans_b packed"));
        assert_eq!(Dot::of(&record(None, Some(2.0)), &case), None);
        assert_eq!(Dot::of(&record(Some(8.0), None), &case), None);
    }
}
