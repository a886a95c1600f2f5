//! Products of one row: every tier against the definition in f64, the promise about bits, and bounds.

mod support;

use etude_kernels::gemm::{MatMut, MatRef, PackedB, gemm_packed_forward};
use etude_kernels::stream::{Precision, StreamedB, stream_forward};
use half::bf16;
use support::{Guarded, assert_near, assert_same, on_every_tier, same_for_any_threads, uniform};

/// Rows and columns of the weights: none, one, one less and more than a block, a pair of blocks and a
/// panel, and several panels.
fn sizes() -> impl Iterator<Item = (usize, usize)> {
    let n = [0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 160, 388, 512, 515];
    n.into_iter().flat_map(|n| [0, 1, 2, 7, 130].map(|k| (k, n)))
}

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

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
                // that each product is off by at most 2^-9 more.
                let terms = (k + 2) as f64;
                let rounding = terms * terms * f64::from(f32::EPSILON);
                let bound = match precision {
                    Precision::F32 => rounding,
                    Precision::Bf16 => rounding + k as f64 * 2f64.powi(-9),
                };
                on_every_tier(|isa| {
                    let mut y = Guarded::of(&before, case % 5);
                    stream_forward(&x, &packed, bias, y.get(), accumulate);
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
        assert_eq!(2 * narrow.bytes(), exact.bytes());
        on_every_tier(|isa| {
            let (mut y, mut want) = (vec![0.0; n], vec![0.0; n]);
            stream_forward(&x, &narrow, None, &mut y, false);
            stream_forward(&x, &exact, None, &mut want, false);
            assert_same(&format!("{k}x{n} on {}", isa.name()), &want, &y);
        });
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
        });
    }
}
