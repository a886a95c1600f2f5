//! Causal attention alone: `sdpa` and `naive` name two ways in which PyTorch computes the same, which
//! here is one kernel; `relative` adds the logits of relative positions.

use etude_kernels::attention::{
    Mask, Relative, Rows, RowsMut, Rule, Sizes, Strides, attention_backward,
    attention_backward_room, attention_forward,
};

use super::aligned::Aligned;
use super::case::Case;
use super::{Job, Options, Sink, random};
use crate::error::Result;

struct Shape {
    s: Sizes,
    is_relative: bool,
    train: bool,
}

fn read(case: &Case) -> Result<Shape> {
    const MOST: usize = 1 << 20;
    case.only(&["batch", "heads", "seq", "dim", "mode", "train"])?;
    let steps = case.count("seq", MOST)?;
    let s = Sizes {
        batch: case.count("batch", MOST)?,
        heads: case.count("heads", MOST)?,
        queries: steps,
        keys: steps,
        head_dim: case.count("dim", MOST)?,
    };
    let mode = case.word("mode", &["sdpa", "naive", "relative"], true)?;
    case.holds(s.batch.saturating_mul(s.heads).saturating_mul(steps).saturating_mul(s.head_dim))?;
    Ok(Shape { s, is_relative: mode == "relative", train: case.flag("train", false)? })
}

fn rows(data: &[f32], strides: Strides) -> Rows<'_> {
    Rows { data, strides }
}

/// Refuses a case that cannot be run.
pub fn check(case: &Case) -> Result<()> {
    read(case).map(drop)
}

/// Times one case.
pub fn run(case: &Case, _: &Options, sink: &mut Sink) -> Result<()> {
    let Shape { s, is_relative, train } = read(case)?;
    let (planes, plane) = (s.batch * s.heads, s.keys * s.head_dim);
    let n = planes * plane;
    // Two products, three with relative logits, for half of the square; the gradients are counted as
    // twice the forward.
    let pairs = s.keys as f64 * (s.keys + 1) as f64 / 2.0;
    let products = if is_relative { 3.0 } else { 2.0 } * if train { 3.0 } else { 1.0 };
    let job = Job {
        unit: "sequences",
        items: s.batch as f64,
        flops: Some(products * 2.0 * (planes * s.head_dim) as f64 * pairs),
        // Forwards q, k, v are read and o is written; backwards all four and d_o are read, and three
        // gradients are written.
        bytes: Some(
            if train { 12.0 } else { 4.0 } * 4.0 * (planes * s.queries * s.head_dim) as f64,
        ),
        ..Job::default()
    };
    let scale = 1.0 / (s.head_dim as f32).sqrt();
    let rule = Rule { mask: Mask::Causal, scale, dropout: None };
    let strides = Strides::by_head(s.heads, s.keys, s.head_dim);
    let (q, k, v) = (random(1, n), random(2, n), random(3, n));
    let er = random(4, if is_relative { s.heads * plane } else { 0 });
    let relative = is_relative.then_some(Relative { er: &er, max_len: s.keys });
    let (mut o, mut lse) = (Aligned::filled(0.0, n), Aligned::filled(0.0, planes * s.queries));
    let forward = |o: &mut [f32], lse: &mut [f32]| {
        let o = RowsMut { data: o, strides };
        attention_forward(
            rows(&q, strides),
            rows(&k, strides),
            rows(&v, strides),
            relative,
            o,
            lse,
            s,
            &rule,
        );
    };
    if !train {
        return sink.time("etude", job, &mut || forward(&mut o, &mut lse));
    }
    let d_o = random(5, n);
    let mut d = [0.0; 3].map(|zero| Aligned::filled(zero, n));
    let mut d_er = Aligned::filled(0.0, er.len());
    let mut room = Aligned::filled(0.0, attention_backward_room(s, &rule, is_relative));
    sink.time("etude", job, &mut || {
        forward(&mut o, &mut lse);
        let [d_q, d_k, d_v] = d.each_mut().map(|data| RowsMut { data, strides });
        let (q, k, v, o, d_o) = (
            rows(&q, strides),
            rows(&k, strides),
            rows(&v, strides),
            rows(&o, strides),
            rows(&d_o, strides),
        );
        let (d_er, room) = (&mut d_er, &mut room);
        attention_backward(q, k, v, relative, o, &lse, d_o, d_q, d_k, d_v, d_er, room, s, &rule);
    })
}
