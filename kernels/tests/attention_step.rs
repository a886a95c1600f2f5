//! One token's attention over kept keys and values, against its definition in f64 and against itself.
//!
//! `U` is the unit roundoff; a score is off as in `attention.rs`.

mod support;

use etude_kernels::attention::{Cache, Mask, Stored, attention_step};
use etude_kernels::gemm::MatRef;
use etude_kernels::reference::attention::Head;
use etude_kernels::stream::{Precision, StreamedB};
use half::bf16;
use support::*;

const U: f64 = 1.0 / 16_777_216.0;

/// The relative embeddings `[heads, max_len, d]` as a step reads them.
fn distances(er: &[f32], max_len: usize, d: usize, precision: Precision) -> Vec<StreamedB> {
    let heads = er.chunks_exact(max_len * d);
    heads.map(|er| StreamedB::new(MatRef::new(er, max_len, d).t(), precision)).collect()
}

/// The last query of a causal head, from a cache that has room for more.
fn check_step<T: Stored>(
    mask: Mask,
    heads: usize,
    len: usize,
    d: usize,
    max_len: usize,
    of: fn(f32) -> T,
) {
    let capacity = len + 3;
    let cache = Cache { heads, capacity, len, head_dim: d };
    let store = |seed| uniform(seed, heads * capacity * d).into_iter().map(of).collect::<Vec<T>>();
    let (q, k, v) = (uniform(1, heads * d), store(2), store(3));
    let er = uniform(4, heads * max_len * d);
    let scale = 1.0 / (d as f32).sqrt();
    let relative = (max_len > 0).then(|| distances(&er, max_len, d, Precision::F32));
    let mut o = Guarded::new(heads * d, 1);
    attention_step(&q, &k, &v, relative.as_deref(), o.get(), cache, mask, scale);
    let o = o.finish("o");
    let terms = (if max_len > 0 { 2.0 } else { 1.0 }) * d as f64;
    let exponent = 2.0 * f64::from(scale) * terms * (terms + 2.0) * U + 8.0 * U;
    let weight = exponent + (len as f64 + 16.0) * U;
    for h in 0..heads {
        let rows = |x: &[T]| -> Vec<f64> {
            x[h * capacity * d..][..len * d].iter().map(|x| f64::from(x.widen())).collect()
        };
        let head = Head {
            q: &wide(&q[h * d..(h + 1) * d]),
            k: &rows(&k),
            v: &rows(&v),
            er: &wide(&er[h * max_len * d..(h + 1) * max_len * d]),
            mask,
            scale: f64::from(scale),
            keep: &[],
            head_dim: d,
        };
        let what = format!("{mask:?} len {len} head_dim {d} max_len {max_len}");
        // As for the forward: weights sum to 1, each off by `weight` of itself.
        assert_near(&what, &head.forward().0, &o[h * d..(h + 1) * d], 2.0 * weight);
    }
}

#[test]
fn a_step_agrees_with_the_last_row_of_the_definition() {
    on_every_tier(|_| {
        for mask in masks() {
            for len in [1, 2, 15, 16, 17, 100, 257] {
                check_step(mask, 2, len, 24, 0, |x| x);
                check_step(mask, 2, len, 24, 0, bf16::from_f32);
            }
        }
        for d in (1..=34).chain([48, 63, 64, 65, 80, 96, 127, 128, 160, 200]) {
            for max_len in [0, 40, 47] {
                check_step(Mask::Causal, 3, 40, d, max_len, |x| x);
                check_step(Mask::Causal, 3, 40, d, max_len, bf16::from_f32);
            }
        }
        check_step(Mask::Window { width: 9 }, 2, 40, 16, 9, |x| x);
    });
    let mut o = [1.0; 6];
    let cache = Cache { heads: 2, capacity: 0, len: 0, head_dim: 3 };
    attention_step::<f32>(&[1.0; 6], &[], &[], None, &mut o, cache, Mask::Causal, 1.0);
    assert_eq!(o, [0.0; 6]);
}

/// Embeddings of fewer bits are what they are rounded to: bf16 to its neighbours; int8 to 255 steps
/// of the largest number of a distance, and the query likewise.
#[test]
fn distances_of_fewer_bits_are_read_as_they_are_rounded() {
    let (heads, len, d, max_len) = (2, 70, 24, 90);
    let cache = Cache { heads, capacity: len, len, head_dim: d };
    let (k, v) = (vec![0.0; heads * len * d], uniform(3, heads * len * d));
    let (q, er) = (uniform(1, heads * d), uniform(4, heads * max_len * d));
    let find = |er: &[f32], precision| {
        let relative = distances(er, max_len, d, precision);
        let mut o = vec![0.0; heads * d];
        attention_step(&q, &k, &v, Some(&relative), &mut o, cache, Mask::Causal, 1.0);
        o
    };
    on_every_tier(|isa| {
        let rounded: Vec<f32> = er.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        let wanted = find(&rounded, Precision::F32);
        assert_same(isa.name(), &wanted, &find(&er, Precision::Bf16));
        // A logit is a sum of 24 products, each off by at most a 126th: half of a step of a 127th of a
        // query and of an embedding of at most 1. So weights are off by the factor exp(24 / 126) at
        // most, both where they are and in their sum, and values are at most 1.
        let off = find(&er, Precision::F32).into_iter().zip(find(&er, Precision::Int8));
        let off = off.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off > 0.0 && off < (2.0f32 * 24.0 / 126.0).exp_m1(), "{}: {off}", isa.name());
    });
}

#[test]
fn queries_find_together_what_each_finds_alone() {
    let (heads, len, d, max_len, queries) = (3, 75, 20, 80, 9);
    let cache = Cache { heads, capacity: 77, len, head_dim: d };
    let (q, er) = (uniform(1, queries * heads * d), uniform(4, heads * max_len * d));
    let (k, v) = (uniform(2, heads * 77 * d), uniform(3, heads * 77 * d));
    let (window, strided) = (Mask::Window { width: 70 }, Mask::Strided { block: 8, stride: 3 });
    for (mask, precision) in [
        (Mask::Causal, Some(Precision::F32)),
        (window, Some(Precision::Int8)),
        (Mask::Causal, Some(Precision::Bf16)),
        (strided, None),
    ] {
        let relative = precision.map(|precision| distances(&er, max_len, d, precision));
        on_every_tier(|isa| {
            let mut all = vec![0.0; queries * heads * d];
            attention_step(&q, &k, &v, relative.as_deref(), &mut all, cache, mask, 0.2);
            for (at, q) in q.chunks_exact(heads * d).enumerate() {
                let mut o = vec![0.0; heads * d];
                let cache = Cache { len: len - queries + at + 1, ..cache };
                attention_step(q, &k, &v, relative.as_deref(), &mut o, cache, mask, 0.2);
                let what = format!("{mask:?} query {at} on {}", isa.name());
                assert_same(&what, &o, &all[at * heads * d..(at + 1) * heads * d]);
            }
        });
    }
}

#[test]
fn a_step_has_the_same_bits_for_any_number_of_threads() {
    let cache = Cache { heads: 8, capacity: 1500, len: 1400, head_dim: 64 };
    let x = uniform(9, 8 * 1500 * 64);
    on_one_tier(|| {
        same_for_any_threads("step", || {
            let mut o = vec![0.0; 512];
            attention_step(&x[..512], &x, &x, None, &mut o, cache, Mask::Causal, 0.125);
            o
        });
    });
}
