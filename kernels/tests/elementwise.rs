//! Elementwise functions and sums: every length on every tier, at odd places, with canaries.

mod support;

use etude_kernels::activation::{Activation, bias_activation_forward};
use etude_kernels::elementwise::*;
use etude_kernels::norm::layer_norm_forward;
use etude_kernels::optim::sum_of_squares_all;
use etude_kernels::reference::elementwise as reference;
use etude_kernels::softmax::{log_softmax_backward, log_softmax_forward, softmax_backward};
use support::*;

const U: f64 = 1.0 / 16_777_216.0;

const UNARY: [Unary; 21] = [
    Unary::Neg,
    Unary::Exp,
    Unary::Log,
    Unary::Sqrt,
    Unary::Recip,
    Unary::Tanh,
    Unary::Sigmoid,
    Unary::Relu,
    Unary::LeakyRelu(0.2),
    Unary::Gelu,
    Unary::GeluTanh,
    Unary::Silu,
    Unary::Elu(1.5),
    Unary::Softplus,
    Unary::Pow(1.7),
    Unary::Affine(1.5, -0.25),
    Unary::Step,
    Unary::Sin,
    Unary::Cos,
    Unary::Erf,
    Unary::Abs,
];

const BINARY: [Binary; 6] =
    [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div, Binary::Max, Binary::Min];

/// Numbers in `[-3, 3)`, and now and then a special one.
fn mixed(seed: u64, n: usize) -> Vec<f32> {
    let special = [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-41, -1e-41, f32::MAX];
    let mut x = uniform(seed, n);
    for (i, x) in x.iter_mut().enumerate() {
        *x = if i % 11 == 7 { special[i / 11 % special.len()] } else { 3.0 * *x };
    }
    x
}

#[test]
fn unary_functions_give_one_result_at_every_length_offset_and_tier() {
    // One long run, whose accuracy the tests of the functions establish; every length must be a
    // prefix of it, bit for bit.
    let x = mixed(1, 4097);
    for f in UNARY {
        let mut whole = vec![0.0; x.len()];
        let whole = same_on_every_tier(&format!("{f:?}"), || {
            unary_forward(f, &x, &mut whole);
            whole.clone()
        });
        for (x, y) in x.iter().zip(&whole) {
            let want = reference::unary(f, f64::from(*x));
            // 4 ulp of the result, or of the terms that cancel in it (1.5 x - 0.25).
            let near = (f64::from(*y) - want).abs() <= 8.0 * U * want.abs().max(1.0);
            let same = *y == want as f32 || (y.is_nan() && want.is_nan());
            assert!(near || same, "{f:?}({x:e}) is {y:e}, should be {want:e}");
        }
        on_every_tier(|isa| {
            for n in lengths() {
                let what = format!("{f:?} of {n} on {}", isa.name());
                let x = Guarded::of(&x[..n], n % 5).finish(&what);
                let mut y = Guarded::new(n, 1 + n % 16);
                unary_forward(f, &x, y.get());
                assert_same(&what, &whole[..n], &y.finish(&what));
            }
        });
    }
}

#[test]
fn binary_functions_give_one_result_at_every_length_offset_and_tier() {
    let (a, b) = (mixed(2, 4097), mixed(3, 4097));
    for f in BINARY {
        // Each of the six is rounded once, so it is f64's result rounded to f32.
        let want: Vec<f32> = a
            .iter()
            .zip(&b)
            .map(|(a, b)| match f {
                Binary::Max | Binary::Min if a.is_nan() || b.is_nan() => f32::NAN,
                _ => reference::binary(f, f64::from(*a), f64::from(*b)) as f32,
            })
            .collect();
        // 0 and -0 are equally large: either may win.
        let plain = |x: &[f32]| x.iter().map(|x| x + 0.0).collect::<Vec<f32>>();
        let signless = matches!(f, Binary::Max | Binary::Min);
        on_every_tier(|isa| {
            for n in lengths() {
                let what = format!("{f:?} of {n} on {}", isa.name());
                let mut y = Guarded::new(n, 1 + n % 16);
                binary_forward(f, &a[..n], &b[..n], y.get());
                let y = y.finish(&what);
                if signless {
                    assert_same(&what, &plain(&want[..n]), &plain(&y));
                } else {
                    assert_same(&what, &want[..n], &y);
                }
            }
        });
    }
}

#[test]
fn a_row_or_a_number_is_broadcast() {
    on_every_tier(|_| {
        for (rows, cols) in [(0, 3), (1, 1), (3, 16), (5, 17), (4, 31), (2, 257), (300, 400)] {
            let (a, b) = (mixed(4, rows * cols), mixed(5, cols));
            let tiled: Vec<f32> = b.iter().copied().cycle().take(rows * cols).collect();
            for f in BINARY {
                let mut want = vec![0.0; a.len()];
                binary_forward(f, &a, &tiled, &mut want);
                let mut y = Guarded::new(a.len(), 3);
                binary_row_forward(f, &a, &b, y.get());
                assert_same("row", &want, &y.finish("row"));
                binary_forward(f, &a, &vec![0.75; a.len()], &mut want);
                let mut y = Guarded::new(a.len(), 3);
                binary_scalar_forward(f, &a, 0.75, y.get());
                assert_same("scalar", &want, &y.finish("scalar"));
            }
        }
    });
    binary_row_forward(Binary::Add, &[], &[], &mut []);
}

#[test]
fn axpy_rounds_once() {
    let (x, y) = (uniform(6, 4097), uniform(7, 4097));
    // In f64 the product is exact and the sum is off by 2^-53 of it: too little to move the result
    // unless it lies in the middle between two f32.
    on_every_tier(|isa| {
        for n in lengths() {
            let what = format!("axpy of {n} on {}", isa.name());
            let mut got = Guarded::of(&y[..n], n % 7);
            axpy(0.3, &x[..n], got.get());
            let want: Vec<f32> =
                x[..n].iter().zip(&y).map(|(x, y)| 0.3f32.mul_add(*x, *y)).collect();
            assert_same(&what, &want, &got.finish(&what));
        }
    });
}

#[test]
fn sums_are_near_the_exact_ones_and_the_same_on_every_tier() {
    for n in lengths().chain([65_535, 65_537, 300_000, 4_500_000]) {
        if n > 10_000 && cfg!(debug_assertions) && n != 65_537 {
            continue;
        }
        let x = uniform(8, n);
        let got = same_on_every_tier("sum", || {
            vec![sum(&x), sum_of_squares_all([&x[..]].into_iter()) as f32]
        });
        let (exact, size) = x
            .iter()
            .fold((0.0, 0.0), |(sum, size), x| (sum + f64::from(*x), size + f64::from(*x).abs()));
        let squares: f64 = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        // 16 adds in each of 64 chains, 6 in the tree, one for the tail, one rounding to f32 at
        // the end; one more for a square.
        assert!((f64::from(got[0]) - exact).abs() <= 24.0 * U * size, "sum of {n}");
        assert!((f64::from(got[1]) - squares).abs() <= 25.0 * U * squares, "squares of {n}");
    }
    assert_eq!(sum(&[]).to_bits(), 0);
    assert!(sum(&[1.0, f32::NAN, 2.0]).is_nan());
}

#[test]
fn sums_of_rows_and_columns_are_near_the_exact_ones() {
    for (rows, cols) in [(1, 1), (7, 5), (8, 16), (9, 33), (40, 100), (2, 4097), (700, 257)] {
        let x = uniform(9, rows * cols);
        let by_row = same_on_every_tier("sum_rows", || {
            let mut y = Guarded::new(rows, 3);
            sum_rows(&x, y.get(), cols);
            y.finish("sum_rows")
        });
        let want: Vec<f64> = x.chunks(cols).map(|row| wide(row).iter().sum()).collect();
        // At most cols / 64 + 1 adds in a chain, 7 in the tree and the tail, of numbers below 1.
        assert_near("rows", &want, &by_row, (cols as f64 / 64.0 + 8.0) * U * cols as f64);
        for accumulate in [false, true] {
            let by_col = same_on_every_tier("sum_cols", || {
                let mut y = Guarded::of(&vec![0.5; cols], 3);
                sum_cols(&x, y.get(), accumulate);
                y.finish("sum_cols")
            });
            let start = if accumulate { 0.5 } else { 0.0 };
            let want: Vec<f64> = (0..cols)
                .map(|j| start + x.iter().skip(j).step_by(cols).map(|x| f64::from(*x)).sum::<f64>())
                .collect();
            // Eight rows in a tree of 3, one add for each eight, at most 7 single rows, 32 groups.
            let adds = 3.0 + rows as f64 / 8.0 + 7.0 + 32.0;
            assert_near("columns", &want, &by_col, adds * U * (rows as f64 + 0.5));
        }
    }
    let mut y = [1.0, 2.0];
    sum_cols(&[], &mut y, false);
    assert_eq!(y, [0.0, 0.0]);
    let mut y = [1.0, 2.0];
    sum_rows(&[], &mut y, 0);
    assert_eq!(y, [0.0, 0.0]);
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let (rows, cols) = (700, 300);
    let (x, b) = (uniform(13, rows * cols), uniform(14, cols));
    same_for_any_threads("elementwise", || {
        let mut y = x.clone();
        unary_forward(Unary::Tanh, &x, &mut y);
        let mut z = y.clone();
        binary_forward(Binary::Mul, &x, &y, &mut z);
        binary_row_forward(Binary::Add, &z, &b, &mut y);
        axpy(0.1, &z, &mut y);
        let mut by_row = vec![0.0; rows];
        sum_rows(&y, &mut by_row, cols);
        let mut by_col = vec![0.0; cols];
        sum_cols(&y, &mut by_col, false);
        let sums = vec![sum(&y), sum_of_squares_all([&z[..]].into_iter()) as f32];
        [y, z, by_row, by_col, sums].concat()
    });
}

/// Results above the size of the last-level cache, which are stored past it, have the bits of the same
/// rows computed a few at a time; rows of an odd length begin at every place of a cache line.
#[test]
fn what_goes_past_the_cache_has_the_bits_of_what_does_not() {
    const COLS: usize = 1021;
    // 33.6 MB, above the 32 MiB from which on every machine streams.
    let rows = (33 << 20) / 4 / COLS + 1;
    let n = rows * COLS;
    let (a, b, bias) = (uniform(1, n), uniform(2, n), uniform(3, COLS));
    type Run<'a> = &'a dyn Fn(&[f32], &[f32], &mut [f32]);
    let norm = |a: &[f32], _: &[f32], y: &mut [f32]| {
        let mut stats = [vec![0.0; y.len() / COLS], vec![0.0; y.len() / COLS]];
        let [mean, rstd] = &mut stats;
        layer_norm_forward(a, &bias, &bias, y, mean, rstd, 1e-5);
    };
    let all: [(&str, Run); 9] = [
        ("copy", &|a, _, y| copy_forward(a, y)),
        ("gelu", &|a, _, y| unary_forward(Unary::Gelu, a, y)),
        ("add", &|a, b, y| binary_forward(Binary::Add, a, b, y)),
        ("add a row", &|a, _, y| binary_row_forward(Binary::Add, a, &bias, y)),
        ("bias, gelu, residual", &|a, b, y| {
            bias_activation_forward(Activation::Gelu, a, &bias, Some(b), y);
        }),
        ("layer norm", &norm),
        ("log softmax", &|a, _, y| log_softmax_forward(a, y, COLS)),
        ("softmax backward", &|a, b, y| softmax_backward(a, b, y, COLS)),
        ("log softmax backward", &|a, b, y| log_softmax_backward(a, b, y, COLS)),
    ];
    let (mut whole, mut parts) = (vec![f32::NAN; n + 3], vec![f32::NAN; n]);
    for (name, run) in all {
        // Three numbers further on, so that the first line of the result is not a whole one.
        run(&a, &b, &mut whole[3..]);
        let piece = 100 * COLS;
        for ((a, b), y) in a.chunks(piece).zip(b.chunks(piece)).zip(parts.chunks_mut(piece)) {
            run(a, b, y);
        }
        let same = whole[3..].iter().zip(&parts).position(|(x, y)| x.to_bits() != y.to_bits());
        assert_eq!(same, None, "{name}: the first number that differs");
    }
}
