//! Attention under every mask, with relative logits, with dropout.

use etude_engine::{Attention, Mask, Result, Rng, Tensor};
use etude_engine::{attention, attention_plain, self_attention};
use etude_kernels::philox;
use etude_kernels::reference::attention::Head;

use super::{Case, Domain, Shapes, case};
use crate::array::Array;

/// Shapes `q, k, v[, er]` from (batch, heads, queries, keys, head_dim); there are `more` embeddings
/// than keys.
fn shapes(relative: Option<usize>) -> (Vec<Shapes>, Shapes) {
    let one = |[batch, heads, queries, keys, d]: [usize; 5]| {
        let (q, k) = (vec![batch, heads, queries, d], vec![batch, heads, keys, d]);
        let mut shapes = vec![q, k.clone(), k];
        shapes.extend(relative.map(|more| vec![heads, keys + more, d]));
        shapes
    };
    let sizes = [
        [1, 1, 1, 1, 1],
        [1, 2, 3, 3, 2],
        [2, 1, 4, 4, 3],
        [2, 2, 2, 5, 2],
        [1, 3, 1, 4, 2],
        [0, 2, 3, 3, 2],
        [2, 2, 0, 3, 1],
        [1, 1, 9, 9, 1],
        [1, 1, 3, 6, 17],
    ];
    (sizes.into_iter().map(one).collect(), one([2, 3, 65, 131, 33]))
}

/// What dropout leaves of each weight of a head.
fn keep(how: &Attention, planes: usize, plane: usize, queries: usize, keys: usize) -> Vec<f64> {
    if how.dropout == 0.0 {
        return Vec::new();
    }
    // A row of weights begins at a block of four words.
    let width = keys.next_multiple_of(4);
    let ones = vec![1.0; planes * queries * width];
    let mut mask = vec![0.0; ones.len()];
    philox::dropout(&ones, &mut mask, how.dropout, 5, 2, 0);
    let rows = mask[plane * queries * width..(plane + 1) * queries * width].chunks_exact(width);
    // Exact in f64, as dropout is defined; the mask gives the places.
    let kept = |x: &f32| if *x == 0.0 { 0.0 } else { 1.0 / (1.0 - f64::from(how.dropout)) };
    rows.flat_map(|row| row[..keys].iter().map(kept)).collect()
}

/// Attention by its definition, head by head.
fn reference(how: Attention, x: &[Array]) -> Array {
    let &[batch, heads, queries, d] = &x[0].shape[..] else { unreachable!("four axes") };
    let keys = x[1].shape[2];
    let part = |x: &Array, rows: usize, plane: usize| -> Vec<f64> {
        x.data[plane * rows * d..(plane + 1) * rows * d].to_vec()
    };
    let mut all = Vec::new();
    for plane in 0..batch * heads {
        let er = x.get(3).map_or_else(Vec::new, |er| part(er, er.shape[1], plane % heads));
        let head = Head {
            q: &part(&x[0], queries, plane),
            k: &part(&x[1], keys, plane),
            v: &part(&x[2], keys, plane),
            er: &er,
            mask: how.mask,
            scale: f64::from(how.scale.unwrap_or(1.0 / (d as f32).sqrt())),
            keep: &keep(&how, batch * heads, plane, queries, keys),
            head_dim: d,
        };
        all.extend(head.forward().0);
    }
    Array::new(&x[0].shape, all)
}

/// The entries of this family.
pub fn cases() -> Vec<Case> {
    let plain = Attention::new(Mask::Causal);
    let entries: [(&str, Attention, Option<usize>); 8] = [
        ("attention full", Attention::new(Mask::Full), None),
        ("attention causal", plain, None),
        ("attention window", Attention::new(Mask::Window { width: 3 }), None),
        ("attention strided", Attention::new(Mask::Strided { block: 3, stride: 2 }), None),
        ("attention relative", plain, Some(0)),
        ("attention relative window", Attention::new(Mask::Window { width: 2 }), Some(2)),
        ("attention scaled", Attention { scale: Some(-0.75), ..plain }, None),
        ("attention dropout", Attention { dropout: 0.25, ..plain }, Some(1)),
    ];
    type Op =
        fn(&Tensor, &Tensor, &Tensor, Option<&Tensor>, &Attention, &mut Rng) -> Result<Tensor>;
    let run = |op: Op, how: Attention| {
        move |x: &[Tensor]| op(&x[0], &x[1], &x[2], x.get(3), &how, &mut Rng::stream(5, 2))
    };
    let entry = |(name, how, relative)| {
        case(name, Domain::Any, shapes(relative), run(attention, how), move |x| reference(how, x))
            .twin(run(attention_plain, how))
    };
    let mut all: Vec<Case> = entries.into_iter().map(entry).collect();
    for (name, relative) in [("attention self", None), ("attention self relative", Some(2))] {
        let run = move |x: &[Tensor]| self_attention(&x[0], x.get(1), &plain, &mut Rng::new(0));
        let twin = move |x: &[Tensor]| {
            let part = |at| x[0].select(2, at)?.permute(&[0, 2, 1, 3]);
            let (q, k, v) = (part(0)?, part(1)?, part(2)?);
            attention_plain(&q, &k, &v, x.get(1), &plain, &mut Rng::new(0))?.permute(&[0, 2, 1, 3])
        };
        let one = |[batch, rows, heads, d]: [usize; 4]| {
            let mut shapes = vec![vec![batch, rows, 3, heads, d]];
            shapes.extend(relative.map(|more| vec![heads, rows + more, d]));
            shapes
        };
        let sizes = [
            [1, 1, 1, 1],
            [2, 3, 2, 2],
            [1, 5, 3, 4],
            [0, 2, 1, 3],
            [2, 0, 1, 1],
            [1, 2, 1, 5],
            [1, 4, 2, 3],
            [3, 1, 2, 2],
        ];
        let shapes = (sizes.into_iter().map(one).collect(), one([2, 67, 3, 33]));
        all.push(case(name, Domain::Any, shapes, run, move |x| of_one(plain, x)).twin(twin));
    }
    all
}

/// Attention of the parts of one projection `[batch, rows, 3, heads, head_dim]`, by its definition.
fn of_one(how: Attention, x: &[Array]) -> Array {
    let &[batch, rows, _, heads, d] = &x[0].shape[..] else { unreachable!("five axes") };
    let at =
        |b: usize, t: usize, part: usize, h: usize| (((b * rows + t) * 3 + part) * heads + h) * d;
    let part = |part: usize| {
        let mut data = Vec::new();
        for (b, h) in (0..batch * heads).map(|plane| (plane / heads, plane % heads)) {
            for t in 0..rows {
                data.extend(&x[0].data[at(b, t, part, h)..][..d]);
            }
        }
        Array::new(&[batch, heads, rows, d], data)
    };
    let mut operands = vec![part(0), part(1), part(2)];
    operands.extend(x.get(1).cloned());
    let y = reference(how, &operands);
    let mut data = Vec::new();
    for (b, t) in (0..batch * rows).map(|row| (row / rows, row % rows)) {
        for h in 0..heads {
            data.extend(&y.data[((b * heads + h) * rows + t) * d..][..d]);
        }
    }
    Array::new(&[batch, rows, heads, d], data)
}
