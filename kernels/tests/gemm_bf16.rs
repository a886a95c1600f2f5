//! Products of bf16 numbers: every tier and layout against the definition, and the promise about bits.
//!
//! Products of two bf16 numbers are exact in f32. A sum of `k` of them goes through at most `k`
//! roundings, each off by at most `U` times a partial sum, which is at most `sum |a b| (1 + k U)`; a
//! bias adds one more. `U` is the unit roundoff of f32, and all sizes here have `k U < 1/1000`.

mod support;

use etude_kernels::gemm::{MatMut, MatRef};
use etude_kernels::gemm_bf16::{
    Operand, PackedBf16, gemm_bf16_f32_forward, gemm_bf16_forward, gemm_bf16_packed_forward,
    gemm_bf16_rounded_forward, has_pairs, to_bf16,
};
use etude_kernels::isa::Isa;
use half::bf16;
use proptest::prelude::*;
use support::*;

const U: f64 = 1.0 / 16_777_216.0;

/// How a matrix lies in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Layout {
    Rows,
    Columns,
    /// Row-major with a gap after each row.
    Gaps,
    /// Neither rows nor columns are contiguous.
    Steps,
}

const LAYOUTS: [Layout; 4] = [Layout::Rows, Layout::Columns, Layout::Gaps, Layout::Steps];

/// A matrix in f32 and in bf16, in memory that begins at an odd place and ends where it ends.
struct Stored {
    wide: Vec<f32>,
    narrow: Vec<bf16>,
    rows: usize,
    cols: usize,
    strides: (usize, usize),
}

const OFFSET: usize = 1;

impl Stored {
    fn new(values: &[f32], rows: usize, cols: usize, layout: Layout) -> Stored {
        let strides = match layout {
            Layout::Rows => (cols, 1),
            Layout::Columns => (1, rows),
            Layout::Gaps => (cols + 3, 1),
            Layout::Steps => (2 * cols + 1, 2),
        };
        let last =
            if values.is_empty() { 0 } else { (rows - 1) * strides.0 + (cols - 1) * strides.1 + 1 };
        // What lies between the elements must not be read as one.
        let mut wide = vec![f32::NAN; OFFSET + last];
        for (i, x) in values.iter().enumerate() {
            wide[OFFSET + i / cols * strides.0 + i % cols * strides.1] = *x;
        }
        Stored { narrow: to_bf16(&wide), wide, rows, cols, strides }
    }

    fn operand(&self, rounded: bool) -> Operand<'_> {
        let (rows, cols, (r, c)) = (self.rows, self.cols, self.strides);
        if rounded {
            Operand::strided(&self.narrow[OFFSET..], rows, cols, r, c)
        } else {
            MatRef::strided(&self.wide[OFFSET..], rows, cols, r, c).into()
        }
    }
}

/// Rounded operands, what they give, and how far a computed sum may be off.
struct Example {
    a: Vec<f32>,
    b: Vec<f32>,
    bias: Vec<f32>,
    c: Vec<f32>,
    want: Vec<f64>,
    bound: Vec<f64>,
}

impl Example {
    fn new(m: usize, k: usize, n: usize, seed: u64) -> Example {
        let (a, b) = (uniform(seed, m * k), uniform(seed ^ 1, k * n));
        let (bias, c) = (uniform(seed ^ 2, n), uniform(seed ^ 3, m * n));
        let round = |x: f32| bf16::from_f32(x).to_f64();
        let (mut want, mut bound) = (vec![0.0; m * n], vec![0.0; m * n]);
        for i in 0..m {
            for j in 0..n {
                let terms = (0..k).map(|l| round(a[i * k + l]) * round(b[l * n + j]));
                let size: f64 = terms.clone().map(f64::abs).sum();
                want[i * n + j] = terms.sum();
                bound[i * n + j] = (k + 2) as f64 * U * (size + 2.0) * 1.001;
            }
        }
        Example { a, b, bias, c, want, bound }
    }

    fn check(&self, what: &str, got: &[f32], extra: impl Fn(usize) -> f64) {
        for (i, got) in got.iter().enumerate() {
            let want = self.want[i] + extra(i);
            let error = (f64::from(*got) - want).abs();
            assert!(error <= self.bound[i], "{what}: element {i} is {got:e}, should be {want:e}");
        }
    }
}

#[test]
fn few_rows_without_pairs_have_the_bits_of_the_packed_product() {
    on_every_tier(|isa| {
        if has_pairs() {
            return; // products of pairs round in another order than those of packed weights
        }
        for k in [1, 2, 7, 8, 9, 31, 32, 33, 65, 2048] {
            for n in [1, 7, 8, 9, 15, 16, 31, 33, 40, 130] {
                let (a, b, start) = (uniform(1, 6 * k), uniform(2, k * n), uniform(3, 6 * n));
                let packed = PackedBf16::new(MatRef::new(&b, k, n));
                for (m, lb) in (1..=6).flat_map(|m| LAYOUTS.map(|lb| (m, lb))) {
                    let stored = Stored::new(&b, k, n, lb);
                    for (la, accumulate) in [(Layout::Rows, false), (Layout::Columns, true)] {
                        let a = Stored::new(&a[..m * k], m, k, la);
                        let (mut got, mut want) =
                            (start[..m * n].to_vec(), start[..m * n].to_vec());
                        let c = &mut MatMut::new(&mut got, m, n);
                        gemm_bf16_f32_forward(a.operand(true), stored.operand(true), c, accumulate);
                        let c = &mut MatMut::new(&mut want, m, n);
                        gemm_bf16_packed_forward(a.operand(true), &packed, None, c, accumulate);
                        let what = format!("{} {m}x{k}x{n} {la:?} {lb:?}", isa.name());
                        if isa == Isa::Neon && m == 1 {
                            continue; // there one row times columns is one of scalar products
                        }
                        assert_same(&what, &want, &got);
                    }
                }
            }
        }
    });
}

#[test]
fn one_row_without_pairs_has_the_same_bits_for_any_number_of_threads() {
    let (k, n) = (260, 5000);
    let (a, b) = (to_bf16(&uniform(1, k)), to_bf16(&uniform(2, k * n)));
    for trans_b in [false, true] {
        same_for_any_threads("one row", || {
            let mut c = vec![bf16::ZERO; n];
            gemm_bf16_forward(&a, &b, &mut c, 1, k, n, trans_b);
            c.iter().map(|c| c.to_f32()).collect()
        });
    }
}

#[test]
fn products_of_every_layout_and_tier_agree_with_the_definition() {
    let sizes = [(1, 1, 1), (3, 2, 17), (8, 33, 48), (9, 64, 50), (40, 7, 5), (1, 100, 300)];
    let more = [(4, 31, 97), (17, 129, 33), (8, 5, 64), (2, 257, 16), (65, 63, 49), (11, 1030, 20)];
    let empty = [(0, 3, 3), (3, 0, 3), (3, 3, 0)];
    on_every_tier(|isa| {
        for (m, k, n) in sizes.into_iter().chain(more).chain(empty) {
            let e = Example::new(m, k, n, (m * 31 + k) as u64);
            for (at, la) in LAYOUTS.into_iter().enumerate() {
                for (bt, lb) in LAYOUTS.into_iter().enumerate() {
                    let what = format!("{} {m}x{k}x{n} {la:?} {lb:?}", isa.name());
                    let (a, b) = (Stored::new(&e.a, m, k, la), Stored::new(&e.b, k, n, lb));
                    let (a, b) = (a.operand(at % 2 == bt % 2), b.operand(at < bt));
                    let mut c = Guarded::new(m * n, 3);
                    let c_mat = &mut MatMut::new(c.get(), m, n);
                    gemm_bf16_f32_forward(a, b, c_mat, false);
                    e.check(&what, &c.finish(&what), |_| 0.0);
                    let mut c = Guarded::of(&e.c, 1);
                    gemm_bf16_f32_forward(a, b, &mut MatMut::new(c.get(), m, n), true);
                    e.check(&what, &c.finish(&what), |i| f64::from(e.c[i]));

                    let packed = PackedBf16::new(b);
                    let mut c = Guarded::of(&e.c, 2);
                    let c_mat = &mut MatMut::new(c.get(), m, n);
                    gemm_bf16_packed_forward(a, &packed, Some(&e.bias), c_mat, true);
                    let bias = |i: usize| f64::from(e.bias[i % n]) + f64::from(e.c[i]);
                    e.check(&what, &c.finish(&what), bias);

                    let mut c = vec![bf16::NAN; m * n];
                    gemm_bf16_rounded_forward(a, b, &mut c);
                    for (i, got) in c.iter().enumerate() {
                        // One rounding to 8 bits of a sum that is off itself.
                        let (want, off) = (e.want[i], e.bound[i]);
                        let bound = off + (want.abs() + off) / 256.0;
                        assert!((got.to_f64() - want).abs() <= bound, "{what}: {i}");
                    }
                }
            }
        }
    });
}

#[test]
fn rows_of_a_matrix_with_gaps_leave_the_gaps_alone() {
    let (m, k, n, gap) = (11, 35, 50, 7);
    let e = Example::new(m, k, n, 5);
    on_every_tier(|isa| {
        let mut c = vec![7.5; (m - 1) * (n + gap) + n];
        let (a, b) = (MatRef::new(&e.a, m, k), MatRef::new(&e.b, k, n));
        gemm_bf16_f32_forward(a, b, &mut MatMut::strided(&mut c, m, n, n + gap), false);
        let rows: Vec<f32> = c.chunks(n + gap).flat_map(|row| row[..n].to_vec()).collect();
        e.check(isa.name(), &rows, |_| 0.0);
        assert!(c.chunks(n + gap).all(|row| row[n..].iter().all(|x| *x == 7.5)));
    });
}

#[test]
fn sums_longer_than_a_block_agree_in_both_formats() {
    on_every_tier(|isa| {
        for (m, k, n) in [(5, 1025, 17), (9, 2049, 50), (3, 5000, 20)] {
            let e = Example::new(m, k, n, 77);
            let (a, b) = (to_bf16(&e.a), to_bf16(&e.b));
            let mut c = vec![0.0; m * n];
            let (left, right) = (Operand::new(&a, m, k), Operand::new(&b, k, n));
            gemm_bf16_f32_forward(left, right, &mut MatMut::new(&mut c, m, n), false);
            e.check(isa.name(), &c, |_| 0.0);
            let mut rounded = vec![bf16::NAN; m * n];
            gemm_bf16_forward(&a, &b, &mut rounded, m, k, n, false);
            assert_eq!(rounded, to_bf16(&c), "{} {m}x{k}x{n}", isa.name());
        }
    });
}

#[test]
fn every_length_of_every_size_agrees() {
    on_every_tier(|isa| {
        for len in (0..=70).chain([127, 128, 129, 255, 256, 257]) {
            for (m, k, n) in [(len, 3, 5), (5, len, 3), (3, 5, len)] {
                let e = Example::new(m, k, n, len as u64);
                let b: Vec<f32> = (0..n * k).map(|i| e.b[i % k * n + i / k]).collect();
                let (a16, b16) = (to_bf16(&e.a), to_bf16(&b));
                let mut c = vec![0.0; m * n];
                let (a, right) = (Operand::new(&a16, m, k), Operand::new(&b16, n, k).t());
                gemm_bf16_f32_forward(a, right, &mut MatMut::new(&mut c, m, n), false);
                e.check(&format!("{} {m}x{k}x{n}", isa.name()), &c, |_| 0.0);
            }
        }
    });
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let sizes =
        [(1, 700, 3000), (7, 515, 1500), (64, 512, 2048), (300, 300, 300), (1024, 1100, 64)];
    for (m, k, n) in sizes {
        let (a, b) = (to_bf16(&uniform(1, m * k)), to_bf16(&uniform(2, k * n)));
        for trans_b in [false, true] {
            same_for_any_threads(&format!("{m}x{k}x{n} {trans_b}"), || {
                let mut c = vec![bf16::ZERO; m * n];
                gemm_bf16_forward(&a, &b, &mut c, m, k, n, trans_b);
                c.into_iter().map(bf16::to_f32).collect()
            });
        }
    }
    let (w, x) = (uniform(3, 700 * 900), uniform(4, 130 * 700));
    same_for_any_threads("packed", || {
        let w = PackedBf16::new(MatRef::new(&w, 700, 900));
        let mut c = vec![0.0; 130 * 900];
        let c_mat = &mut MatMut::new(&mut c, 130, 900);
        gemm_bf16_packed_forward(MatRef::new(&x, 130, 700), &w, None, c_mat, false);
        c
    });
}

#[test]
fn numbers_that_are_not_finite_reach_the_sums_that_they_belong_to() {
    let (m, k, n) = (9, 37, 50);
    on_every_tier(|isa| {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 5, k - 1] {
                let (mut a, b) = (vec![1.0f32; m * k], vec![1.0f32; k * n]);
                a[4 * k + place] = bad;
                let mut c = vec![0.0; m * n];
                let (a, b) = (MatRef::new(&a, m, k), MatRef::new(&b, k, n));
                gemm_bf16_f32_forward(a, b, &mut MatMut::new(&mut c, m, n), false);
                for (i, c) in c.iter().enumerate() {
                    let right = match i / n {
                        4 => c.is_nan() == bad.is_nan() && (bad.is_nan() || *c == bad),
                        _ => *c == k as f32,
                    };
                    assert!(right, "{}: {bad} at {place} gives {c} at {i}", isa.name());
                }
            }
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others(
        m in 1usize..40, k in 1usize..300, n in 1usize..120, seed: u64,
    ) {
        let (a, w) = (uniform(seed, m * k), uniform(seed ^ 9, n * k));
        on_every_tier(|_| {
            let w = PackedBf16::new(MatRef::new(&w, n, k).t());
            let product = |rows: std::ops::Range<usize>| {
                let mut c = vec![0.0; rows.len() * n];
                let a = MatRef::new(&a[rows.start * k..rows.end * k], rows.len(), k);
                gemm_bf16_packed_forward(a, &w, None, &mut MatMut::new(&mut c, rows.len(), n), false);
                c
            };
            let alone: Vec<f32> = (0..m).flat_map(|r| product(r..r + 1)).collect();
            assert_eq!(bits(&product(0..m)), bits(&alone));
        });
    }
}
