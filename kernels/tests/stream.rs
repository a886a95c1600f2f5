//! Products of one row: every tier against the definition in f64, the promise about bits, and bounds.

mod support;

use etude_kernels::gemm::{MatMut, MatRef, PackedB, gemm_packed_forward};
use etude_kernels::isa::{self, Isa};
use etude_kernels::reference::stream::stream_int8_forward;
use etude_kernels::stream::{Precision, StreamedB, stream_forward};
use half::bf16;
use support::{Guarded, assert_near, assert_same, on_every_tier, same_for_any_threads, uniform};

/// Rows and columns of the weights: none, one, one less and more than a block, a pair of blocks and a
/// panel, and several panels.
fn sizes() -> impl Iterator<Item = (usize, usize)> {
    let n = [0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 160, 388, 512, 515];
    n.into_iter().flat_map(|n| [0, 1, 2, 7, 130].map(|k| (k, n)))
}

const PRECISIONS: [Precision; 3] = Precision::ALL;

/// `x W (+ bias) (+ y)` by the definition, in f64.
fn definition(x: &[f32], w: &[f32], bias: Option<&[f32]>, y: Option<&[f32]>, n: usize) -> Vec<f64> {
    let column = |j: usize| {
        let products = x.iter().enumerate().map(|(l, x)| f64::from(*x) * f64::from(w[l * n + j]));
        let start = |x: Option<&[f32]>| x.map_or(0.0, |x| f64::from(x[j]));
        products.sum::<f64>() + start(bias) + start(y)
    };
    (0..n).map(column).collect()
}

#[test]
fn products_agree_with_the_definition_on_every_tier_and_write_nothing_else() {
    for (case, (k, n)) in sizes().enumerate() {
        let (x, w) = (uniform(1, k), uniform(2, k * n));
        let (bias, before) = (uniform(3, n), uniform(4, n));
        let bias = case.is_multiple_of(2).then_some(&bias[..]);
        for precision in PRECISIONS {
            let packed = StreamedB::new(MatRef::new(&w, k, n), precision);
            assert_eq!((packed.k(), packed.n(), packed.precision()), (k, n, precision));
            for accumulate in [false, true] {
                let want = definition(&x, &w, bias, accumulate.then_some(&before), n);
                // Sums of k + 2 numbers of at most 1: each addition and product is off by half an
                // EPSILON of a partial sum of at most k + 2. A bf16 weight has 8 bits of fraction, so
                // that each product is off by at most 2^-9 more. An int8 row and weight are off by half
                // a step of at most 1/127 each.
                let terms = (k + 2) as f64;
                let rounding = terms * terms * f64::from(f32::EPSILON);
                let bound = match precision {
                    Precision::F32 => rounding,
                    Precision::Bf16 => rounding + k as f64 * 2f64.powi(-9),
                    Precision::Int8 => rounding + k as f64 * (2.0 / 254.0 + 1.0 / 254.0 / 254.0),
                };
                on_every_tier(|isa| {
                    let (mut x, mut y) =
                        (Guarded::of(&x, case % 7), Guarded::of(&before, case % 5));
                    stream_forward(x.get(), &packed, bias, y.get(), accumulate);
                    let what = format!("{k}x{n} {precision:?} on {}", isa.name());
                    assert_near(&what, &want, &y.finish(&what), bound);
                });
            }
        }
    }
}

#[test]
fn f32_weights_give_the_bits_of_the_packed_product() {
    for (k, n) in sizes().chain([(513, 256), (1100, 140)]) {
        let (x, w, bias) = (uniform(5, k), uniform(6, k * n), uniform(7, n));
        // The transpose of what lies in memory, as layers hold it.
        let w = MatRef::new(&w, n, k).t();
        let (streamed, packed) = (StreamedB::new(w, Precision::F32), PackedB::new(w));
        for accumulate in [false, true] {
            on_every_tier(|isa| {
                let (mut y, mut want) = (uniform(8, n), uniform(8, n));
                let c = &mut MatMut::new(&mut want, 1, n);
                gemm_packed_forward(MatRef::new(&x, 1, k), &packed, Some(&bias), c, accumulate);
                stream_forward(&x, &streamed, Some(&bias), &mut y, accumulate);
                assert_same(&format!("{k}x{n} on {}", isa.name()), &want, &y);
            });
        }
    }
}

#[test]
fn bf16_weights_give_the_bits_of_f32_weights_that_were_rounded() {
    for (k, n) in sizes() {
        let (x, w) = (uniform(9, k), uniform(10, k * n));
        let rounded: Vec<f32> = w.iter().map(|w| bf16::from_f32(*w).to_f32()).collect();
        let narrow = StreamedB::new(MatRef::new(&w, k, n), Precision::Bf16);
        let exact = StreamedB::new(MatRef::new(&rounded, k, n), Precision::F32);
        assert_eq!(narrow.bytes(), k.next_multiple_of(2) * n.next_multiple_of(16) * 2);
        on_every_tier(|isa| {
            let (mut y, mut want) = (vec![0.0; n], vec![0.0; n]);
            stream_forward(&x, &narrow, None, &mut y, false);
            stream_forward(&x, &exact, None, &mut want, false);
            assert_same(&format!("{k}x{n} on {}", isa.name()), &want, &y);
        });
    }
}

#[test]
fn int8_weights_give_the_bits_of_the_definition_on_every_tier() {
    for (k, n) in sizes().chain([(1027, 70)]) {
        let (mut x, mut w) = (uniform(13, k), uniform(14, k * n));
        // Rows and columns of other sizes, one of zeros, and the largest steps of both signs.
        x.iter_mut().for_each(|x| *x *= 3.7);
        w.iter_mut().enumerate().for_each(|(i, w)| *w *= (i % n) as f32);
        if let ([first, .., last], [.., corner]) = (&mut x[..], &mut w[..]) {
            (*first, *last, *corner) = (-4.0, 4.0, n as f32);
        }
        let packed = StreamedB::new(MatRef::new(&w, k, n), Precision::Int8);
        assert_eq!(packed.bytes(), k.div_ceil(4) * 4 * n.next_multiple_of(16));
        let before = uniform(15, n);
        let mut want = before.clone();
        stream_int8_forward(&x, &w, &mut want);
        on_every_tier(|isa| {
            let mut y = before.clone();
            stream_forward(&x, &packed, None, &mut y, true);
            assert_same(&format!("{k}x{n} on {}", isa.name()), &want, &y);
        });
    }
}

#[test]
fn weights_are_packed_alike_on_every_tier_and_however_they_lie() {
    for (k, n) in [(1, 1), (3, 17), (130, 40), (257, 65)] {
        let (x, mut w) = (uniform(20, k), uniform(21, k * n));
        // Ties between two bf16, a denormal, and what is not finite, each in a column of its own.
        let odd = [0x3f80_8000, 0x3f81_8000, 0x0000_8001, 0x7fc0_0000, 0xff80_0000];
        w.iter_mut().zip(odd).for_each(|(w, bits)| *w = f32::from_bits(bits));
        let columns: Vec<f32> = (0..k * n).map(|i| w[i % k * n + i / k]).collect();
        let spread: Vec<f32> = w.iter().flat_map(|w| [*w, 0.5]).collect();
        let views = [
            MatRef::new(&w, k, n),
            MatRef::new(&columns, n, k).t(),
            MatRef::strided(&spread, k, n, 2 * n, 2),
        ];
        for precision in PRECISIONS {
            let mut first: Option<Vec<f32>> = None;
            on_every_tier(|isa| {
                let packed = views.map(|w| StreamedB::new(w, precision));
                // All by the same code: what differs is how they were packed.
                isa::force(Isa::Scalar);
                for packed in packed {
                    let mut y = vec![0.0; n];
                    stream_forward(&x, &packed, None, &mut y, false);
                    let want = first.get_or_insert_with(|| y.clone());
                    assert_same(&format!("{k}x{n} {precision:?} on {}", isa.name()), want, &y);
                }
            });
        }
    }
}

#[test]
fn int8_weights_that_are_whole_multiples_of_a_scale_are_kept() {
    // As a weight file of int8 gives them back: a whole number times the scale of its column.
    let (k, n) = (130, 40);
    let scale = |j: usize| 0.001 + 0.0137 * j as f32;
    let whole = |l: usize, j: usize| ((l * 89 + j * 31) % 255) as i32 - 127;
    let mut w = vec![0.0; k * n];
    for (i, w) in w.iter_mut().enumerate() {
        // Each column has its largest number, as it has in such a file.
        *w = if i / n == i % n { 127 } else { whole(i / n, i % n) } as f32 * scale(i % n);
    }
    let packed = StreamedB::new(MatRef::new(&w, k, n), Precision::Int8);
    for l in [0, 3, 77, k - 1] {
        let mut x = vec![0.0; k];
        x[l] = 1.0;
        let mut y = vec![0.0; n];
        stream_forward(&x, &packed, None, &mut y, false);
        for (j, y) in y.into_iter().enumerate() {
            // The row is 127 units of 1 / 127: five roundings in all.
            let (want, off) = (w[l * n + j], (y - w[l * n + j]).abs());
            assert!(off <= 5.0 * f32::EPSILON * want.abs(), "{l} {j}: {y} {want}");
        }
    }
}

#[test]
fn numbers_that_are_not_finite_or_tiny_do_no_harm_to_an_int8_row() {
    let (k, n) = (33, 20);
    let packed = StreamedB::new(MatRef::new(&uniform(16, k * n), k, n), Precision::Int8);
    for (bad, finite) in [
        (f32::NAN, false),
        (f32::INFINITY, false),
        (f32::NEG_INFINITY, false),
        (f32::MAX, true),
        (f32::MIN_POSITIVE, true),
        (1e-45, true),
        (-0.0, true),
    ] {
        for at in [0, 17, 32] {
            on_every_tier(|isa| {
                let (mut x, mut y) = (vec![0.0; k], vec![0.0; n]);
                x[at] = bad;
                stream_forward(&x, &packed, None, &mut y, false);
                let all = y.iter().all(|y| y.is_finite() == finite && y.is_nan() != finite);
                assert!(all, "{bad} at {at} on {}: {y:?}", isa.name());
            });
        }
    }
}

#[test]
fn a_row_has_the_same_bits_among_others_as_alone() {
    for (k, n) in [(1, 1), (2, 40), (7, 16), (130, 388), (131, 70), (0, 20)] {
        let (w, bias) = (uniform(2, k * n), uniform(3, n));
        for rows in [2, 3, 4, 5, 9] {
            let (x, before) = (uniform(1, rows * k), uniform(4, rows * n));
            for precision in PRECISIONS {
                let packed = StreamedB::new(MatRef::new(&w, k, n), precision);
                for (bias, accumulate) in [(Some(&bias[..]), false), (None, true)] {
                    on_every_tier(|isa| {
                        let what = format!("{rows}x{k}x{n} {precision:?} on {}", isa.name());
                        let mut y = Guarded::of(&before, 1);
                        stream_forward(&x, &packed, bias, y.get(), accumulate);
                        let y = y.finish(&what);
                        for (row, mut want) in
                            before.chunks_exact(n).map(<[f32]>::to_vec).enumerate()
                        {
                            let x = &x[row * k..(row + 1) * k];
                            stream_forward(x, &packed, bias, &mut want, accumulate);
                            assert_same(&what, &want, &y[row * n..(row + 1) * n]);
                        }
                    });
                }
            }
        }
    }
}

#[test]
fn large_products_have_the_same_bits_for_any_number_of_threads() {
    // 4 MiB and more: several tasks.
    let (k, n) = (520, 2100);
    let (x, w) = (uniform(11, k), uniform(12, k * n));
    for precision in PRECISIONS {
        let w = StreamedB::new(MatRef::new(&w, k, n), precision);
        on_every_tier(|_| {
            same_for_any_threads("stream", || {
                let mut y = vec![0.5; n];
                stream_forward(&x, &w, None, &mut y, true);
                y
            });
            same_for_any_threads("stream of rows", || {
                let mut y = vec![0.5; 6 * n];
                stream_forward(&x.repeat(6), &w, None, &mut y, true);
                y
            });
        });
    }
}
