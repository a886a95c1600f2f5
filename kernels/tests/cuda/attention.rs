//! Attention on the device against its definition in f64: every mask, odd sizes, strides, relative
//! logits, dropout, every tile that is compiled.

mod case;
mod step;

use super::Check;
use case::{Case, OnDevice};
use etude_kernels::attention::Mask;
use etude_kernels::cuda::Gpu;
use etude_kernels::cuda::attention::{Format, backward_variants, forward_variants};
use step::steps;

pub const CHECKS: &[Check] = &[
    Check { name: "forward_equals_its_definition_in_every_tile", run: forward_tiles },
    Check { name: "backward_equals_its_definition_in_every_tile", run: backward_tiles },
    Check { name: "every_length_and_mask", run: lengths_and_masks },
    Check { name: "relative_logits_and_their_gradient", run: relative },
    Check { name: "dropout_is_the_stream_of_the_cpu", run: dropout },
    Check { name: "plain_kernels_take_any_size", run: plain },
    Check { name: "results_can_be_bf16", run: narrow_results },
    Check { name: "gradients_have_the_same_bits_twice", run: same_bits },
    Check { name: "a_step_equals_the_last_row", run: steps },
];

fn largest(shares: impl IntoIterator<Item = f64>) -> f64 {
    shares.into_iter().fold(0.0, |a, b| if b.is_nan() { b } else { f64::max(a, b) })
}

/// Masks and sizes that no tile divides, for heads of `d` numbers.
fn odd_cases(d: usize) -> Vec<Case> {
    vec![
        Case::new(Mask::Causal, [1, 2, 131, 131, d]),
        Case::new(Mask::Window { width: 33 }, [1, 1, 77, 203, d]),
        Case::new(Mask::Full, [2, 1, 65, 50, d]),
    ]
}

const HEADS: [usize; 8] = [16, 24, 32, 48, 64, 80, 96, 128];

fn forward_tiles(gpu: &dyn Gpu) -> f64 {
    largest(HEADS.iter().flat_map(|&d| {
        forward_variants(d, false).into_iter().flat_map(move |name| {
            odd_cases(d).into_iter().map(move |mut case| {
                case.forward = Some(name);
                case.check_forward(gpu)
            })
        })
    }))
}

fn backward_tiles(gpu: &dyn Gpu) -> f64 {
    largest(HEADS.iter().flat_map(|&d| {
        let (keys, queries) = backward_variants(d, false);
        let count = keys.len().max(queries.len());
        (0..count).flat_map(move |n| {
            let named = (keys[n.min(keys.len() - 1)], queries[n.min(queries.len() - 1)]);
            odd_cases(d).into_iter().map(move |mut case| {
                case.backward = Some(named);
                case.check_backward(gpu)
            })
        })
    }))
}

fn lengths_and_masks(gpu: &dyn Gpu) -> f64 {
    let masks = [
        Mask::Full,
        Mask::Causal,
        Mask::Window { width: 1 },
        Mask::Window { width: 70 },
        Mask::Strided { block: 16, stride: 4 },
        Mask::Strided { block: 13, stride: 7 },
        Mask::Strided { block: 64, stride: 300 },
    ];
    largest([1, 2, 15, 64, 65, 113, 200].iter().flat_map(|&n| {
        masks.iter().enumerate().map(move |(nth, &mask)| {
            let keys = n + [0, 5, 70][nth % 3];
            let mut case = Case::new(mask, [1, 2, n, keys, [32, 64][nth % 2]]);
            case.by_row = nth % 2 == 0;
            case.check(gpu)
        })
    }))
}

fn relative(gpu: &dyn Gpu) -> f64 {
    let mut shares = Vec::new();
    for d in [16, 64, 80, 128] {
        let (keys, queries) = backward_variants(d, true);
        for (nth, name) in forward_variants(d, true).into_iter().enumerate() {
            for (mask, sizes, more) in [
                (Mask::Causal, [2, 2, 1, 1, d], 0),
                (Mask::Causal, [2, 1, 130, 130, d], 0),
                (Mask::Causal, [1, 1, 70, 197, d], 9),
                (Mask::Window { width: 40 }, [1, 1, 99, 99, d], 0),
                (Mask::Window { width: 90 }, [1, 1, 65, 99, d], 100),
            ] {
                let mut case = Case::new(mask, sizes).relative(more);
                case.forward = Some(name);
                case.backward = Some((keys[0], queries[0]));
                shares.push(case.check_forward(gpu));
                if nth == 0 {
                    shares.push(case.check_backward(gpu));
                }
            }
        }
    }
    largest(shares)
}

fn dropout(gpu: &dyn Gpu) -> f64 {
    let strided = Mask::Strided { block: 16, stride: 3 };
    let cases = [
        Case::new(Mask::Causal, [2, 2, 67, 67, 32]).dropout(0.25),
        Case::new(Mask::Full, [1, 2, 30, 101, 64]).dropout(0.5),
        Case::new(strided, [1, 2, 90, 90, 64]).dropout(0.25),
        Case::new(strided, [1, 1, 70, 75, 96]).dropout(0.1),
        Case::new(Mask::Causal, [1, 1, 70, 75, 128]).dropout(0.1),
        Case::new(Mask::Causal, [2, 1, 67, 67, 24]).relative(0).dropout(0.25),
        Case::new(Mask::Window { width: 50 }, [1, 2, 80, 90, 64]).relative(3).dropout(0.25),
        Case::new(Mask::Causal, [1, 1, 70, 70, 96]).relative(0).dropout(0.25),
        Case::new(Mask::Causal, [1, 1, 70, 70, 128]).relative(0).dropout(0.25),
        Case::new(strided, [1, 2, 50, 53, 20]).dropout(0.25).plain(Format::F32),
    ];
    largest(cases.iter().map(|case| case.check(gpu)))
}

fn plain(gpu: &dyn Gpu) -> f64 {
    let mut shares = Vec::new();
    for format in [Format::F32, Format::Bf16] {
        for d in [1, 7, 40, 129] {
            for mask in [Mask::Full, Mask::Causal, Mask::Window { width: 9 }] {
                shares.push(Case::new(mask, [2, 1, 30, 41, d]).plain(format).check(gpu));
            }
            let case = Case::new(Mask::Causal, [2, 2, 33, 33, d]).relative(2).plain(format);
            shares.push(case.check(gpu));
            let strided = Mask::Strided { block: 5, stride: 3 };
            shares.push(Case::new(strided, [1, 2, 141, 141, d]).plain(format).check(gpu));
        }
    }
    largest(shares)
}

fn narrow_results(gpu: &dyn Gpu) -> f64 {
    let cases = [
        Case::new(Mask::Causal, [1, 2, 100, 100, 64]),
        Case::new(Mask::Full, [1, 2, 40, 70, 128]),
        Case::new(Mask::Causal, [1, 2, 80, 80, 64]).relative(0),
        Case::new(Mask::Full, [1, 2, 20, 30, 10]).plain(Format::Bf16),
    ];
    largest(cases.into_iter().map(|mut case| {
        case.results = Format::Bf16;
        case.check(gpu)
    }))
}

fn same_bits(gpu: &dyn Gpu) -> f64 {
    for case in [
        Case::new(Mask::Causal, [2, 2, 150, 150, 64]).relative(0),
        Case::new(Mask::Full, [1, 2, 130, 90, 128]),
    ] {
        let x = case.operands();
        let [o, lse, ..] = case.expected(&x);
        let device = OnDevice::new(gpu, &case, &x);
        let bits = || device.backward(&o.value, &lse.value).concat();
        assert_eq!(bits(), bits(), "{case:?}");
    }
    0.0
}
