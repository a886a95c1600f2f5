//! Softmax, cross-entropy, layer normalisation, embeddings, optimizers and random numbers, against
//! their definitions in f64 or in plain loops.

mod support;

use etude_kernels::embedding::{NO_ID, embedding_backward, embedding_forward};
use etude_kernels::norm::{layer_norm_backward, layer_norm_forward};
use etude_kernels::optim::{AdamStep, adam, sgd};
use etude_kernels::philox;
use etude_kernels::reference::{optim as optim_reference, rows as reference};
use etude_kernels::softmax::*;
use support::*;

const U: f64 = 1.0 / 16_777_216.0;

/// Rows of `[-scale, scale)`.
fn scaled(seed: u64, n: usize, scale: f32) -> Vec<f32> {
    uniform(seed, n).into_iter().map(|x| x * scale).collect()
}

fn by_rows(x: &[f32], cols: usize, f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    x.chunks_exact(cols).flat_map(|row| f(&wide(row))).collect()
}

/// Row lengths around the lane count and two long ones.
fn widths() -> impl Iterator<Item = usize> {
    (1..=65).chain([127, 128, 129, 388, 1025])
}

/// Asserts `|got - want| <= relative * |want| + absolute`.
fn assert_close(what: &str, want: &[f64], got: &[f32], relative: f64, absolute: f64) {
    assert_eq!(want.len(), got.len(), "{what}: lengths");
    for (i, (w, g)) in want.iter().zip(got).enumerate() {
        let bound = relative * w.abs() + absolute;
        let near = (w - f64::from(*g)).abs() <= bound;
        assert!(near, "{what}: element {i} is {g:e}, should be {w:e} within {bound:e}");
    }
}

#[test]
fn softmax_and_its_kin_equal_their_definitions() {
    for cols in widths() {
        let rows = 3;
        let (x, d_y) = (scaled(1, rows * cols, 12.0), uniform(2, rows * cols));
        let run = |f: fn(&[f32], &mut [f32], usize)| {
            same_on_every_tier("softmax", || {
                let mut y = Guarded::new(x.len(), 3);
                f(&x, y.get(), cols);
                y.finish("softmax")
            })
        };
        let back = |f: fn(&[f32], &[f32], &mut [f32], usize), y: &[f32]| {
            same_on_every_tier("softmax_backward", || {
                let mut d_x = Guarded::new(x.len(), 3);
                f(y, &d_y, d_x.get(), cols);
                d_x.finish("softmax_backward")
            })
        };
        // A chain of n / 16 adds of positive numbers and 4 in the tree.
        let sum = (cols as f64 / 16.0 + 6.0) * U;
        // exp: 2 ulp = 4 U, and 24 U for its argument, |x - max| <= 24 rounded once; division, product.
        let y = run(softmax_forward);
        let relative = sum + 2.0 * (4.0 + 24.0) * U + 3.0 * U;
        assert_close("softmax", &by_rows(&x, cols, reference::softmax), &y, relative, 1e-44);
        let want: Vec<f64> = y
            .chunks_exact(cols)
            .zip(d_y.chunks_exact(cols))
            .flat_map(|(y, d)| reference::softmax_backward(&wide(y), &wide(d)))
            .collect();
        // |dot| <= 1 is off by its sum; y <= 1.
        assert_near("softmax_backward", &want, &back(softmax_backward, &y), sum + 4.0 * U);

        let y = run(log_softmax_forward);
        // Two subtractions of numbers up to 24 + ln(cols) <= 31, and the error of the logarithm.
        let absolute = sum + 28.0 * U + 4.0 * 31.0 * U;
        assert_near("log", &by_rows(&x, cols, reference::log_softmax), &y, absolute);
        let want: Vec<f64> = y
            .chunks_exact(cols)
            .zip(d_y.chunks_exact(cols))
            .flat_map(|(y, d)| reference::log_softmax_backward(&wide(y), &wide(d)))
            .collect();
        // The sum of d_y is at most cols; exp is off by 4 U of at most 1.
        let absolute = (sum + 4.0 * U) * cols as f64 + 2.0 * U;
        assert_near("log_backward", &want, &back(log_softmax_backward, &y), absolute);
    }
}

#[test]
fn softmax_rows_sum_to_one_even_at_the_ends_of_the_range() {
    on_every_tier(|_| {
        for x in [vec![1e30; 7], vec![-1e30; 40], vec![88.0, -88.0, 3e38], vec![-0.0; 17]] {
            let mut y = vec![0.0; x.len()];
            softmax_forward(&x, &mut y, x.len());
            assert!((y.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{x:?} gives {y:?}");
        }
        // A masked position has no probability; NaN and infinity show.
        let mut y = [0.0; 3];
        softmax_forward(&[1.0, f32::NEG_INFINITY, 1.0], &mut y, 3);
        assert_eq!(y, [0.5, 0.0, 0.5]);
        for x in [f32::NAN, f32::INFINITY] {
            softmax_forward(&[1.0, x, 1.0], &mut y, 3);
            assert!(y[1].is_nan(), "{y:?}");
        }
    });
    softmax_forward(&[], &mut [], 0);
    log_softmax_forward(&[], &mut [], 5);
}

#[test]
fn cross_entropy_equals_its_definition() {
    for vocab in widths() {
        let rows = 5;
        let logits = scaled(3, rows * vocab, 8.0);
        let mut targets: Vec<u32> = (0..rows as u32).map(|r| r * 7 % vocab as u32).collect();
        targets[2] = NO_TARGET;
        let got = same_on_every_tier("cross_entropy", || {
            let (mut losses, mut d) = (Guarded::new(rows, 3), Guarded::new(rows * vocab, 1));
            cross_entropy_forward(&logits, &targets, losses.get(), d.get(), 0.25, vocab);
            let losses = losses.finish("losses");
            let mut alone = vec![0.0; rows];
            cross_entropy_forward(&logits, &targets, &mut alone, &mut [], 0.25, vocab);
            assert_same("without a gradient", &losses, &alone);
            [losses, d.finish("d_logits")].concat()
        });
        let (losses, d_logits) = got.split_at(rows);
        let sum = (vocab as f64 / 16.0 + 6.0) * U;
        for r in 0..rows {
            let (loss, gradient) =
                reference::cross_entropy(&wide(&logits[r * vocab..(r + 1) * vocab]), targets[r]);
            // exp of up to 16 rounded: 20 U each; the maximum, the logarithm and x are below 16.
            assert_near("loss", &[loss], &losses[r..=r], sum + 24.0 * U + 4.0 * 24.0 * U);
            let want: Vec<f64> = gradient.iter().map(|g| 0.25 * g).collect();
            let bound = 0.25 * (sum + 2.0 * 20.0 * U + 4.0 * U);
            assert_near("d_logits", &want, &d_logits[r * vocab..(r + 1) * vocab], bound);
        }
    }
}

#[test]
#[should_panic(expected = "index out of bounds")]
fn a_target_outside_of_the_vocabulary_panics() {
    cross_entropy_forward(&[0.0; 4], &[4], &mut [0.0], &mut [], 1.0, 4);
}

/// Asserts that `gradient` is the slope of `loss` at `x`, by central differences in f64: with a step
/// of 1e-5 off by 1e-9 for functions whose third derivatives are of order 10.
fn check_slope(what: &str, x: &[f64], gradient: &[f64], loss: impl Fn(&[f64]) -> f64) {
    for at in 0..x.len() {
        let mut moved = x.to_vec();
        moved[at] = x[at] + 1e-5;
        let above = loss(&moved);
        moved[at] = x[at] - 1e-5;
        let slope = (above - loss(&moved)) / 2e-5;
        let error = (slope - gradient[at]).abs();
        assert!(error <= 1e-7, "{what}[{at}]: {} but the slope is {slope}", gradient[at]);
    }
}

#[test]
fn the_reference_gradients_are_slopes() {
    let (x, d_y) = (wide(&uniform(4, 6)), wide(&uniform(5, 6)));
    let (weight, bias) = (wide(&uniform(6, 6)), wide(&uniform(7, 6)));
    let dot = |a: &[f64]| a.iter().zip(&d_y).map(|(a, b)| a * b).sum::<f64>();
    let d_x = reference::softmax_backward(&reference::softmax(&x), &d_y);
    check_slope("softmax", &x, &d_x, |x| dot(&reference::softmax(x)));
    let d_x = reference::log_softmax_backward(&reference::log_softmax(&x), &d_y);
    check_slope("log_softmax", &x, &d_x, |x| dot(&reference::log_softmax(x)));
    let (_, d_x) = reference::cross_entropy(&x, 3);
    check_slope("cross_entropy", &x, &d_x, |x| reference::cross_entropy(x, 3).0);
    let (d_x, d_weight, d_bias) = reference::layer_norm_backward(&x, &weight, &d_y, 1e-5);
    check_slope("x", &x, &d_x, |x| dot(&reference::layer_norm(x, &weight, &bias, 1e-5)));
    check_slope("weight", &weight, &d_weight, |w| dot(&reference::layer_norm(&x, w, &bias, 1e-5)));
    check_slope("bias", &bias, &d_bias, |b| dot(&reference::layer_norm(&x, &weight, b, 1e-5)));
}

#[test]
fn layer_norm_equals_its_definition() {
    let eps = 1e-5;
    // One column has no variance: its result is the bias, tested below.
    for cols in widths().skip(3) {
        let rows = 4;
        let (x, d_y) = (uniform(8, rows * cols), uniform(9, rows * cols));
        let (weight, bias) = (uniform(10, cols), uniform(11, cols));
        let got = same_on_every_tier("layer_norm", || {
            let (mut y, mut d_x) = (Guarded::new(x.len(), 3), Guarded::new(x.len(), 1));
            let (mut mean, mut rstd) = (vec![0.0; rows], vec![0.0; rows]);
            layer_norm_forward(&x, &weight, &bias, y.get(), &mut mean, &mut rstd, eps);
            let (mut d_weight, mut d_bias) = (vec![0.5; cols], vec![0.25; cols]);
            let (d, dw, db) = (d_x.get(), &mut d_weight, &mut d_bias);
            layer_norm_backward(&x, &weight, &mean, &rstd, &d_y, d, dw, db);
            [y.finish("y"), d_x.finish("d_x"), d_weight, d_bias].concat()
        });
        let (w, b) = (wide(&weight), wide(&bias));
        let eps = f64::from(eps);
        let want = by_rows(&x, cols, |x| reference::layer_norm(x, &w, &b, eps));
        // Sums are off by `sum` of a mean below 1; the deviation of a row of 4 or more here is above
        // 0.1, so rstd <= 10 and |hat| <= 20 are off by that times the sum's error and some more.
        let sum = (cols as f64 / 64.0 + 10.0) * U;
        let hat = 20.0 * 2.0 * 10.0 * sum;
        assert_near("y", &want, &got[..x.len()], hat + 20.0 * U);
        let parts: Vec<_> = (0..rows)
            .map(|r| {
                let at = r * cols..(r + 1) * cols;
                reference::layer_norm_backward(&wide(&x[at.clone()]), &w, &wide(&d_y[at]), eps)
            })
            .collect();
        let want: Vec<f64> = parts.iter().flat_map(|p| p.0.clone()).collect();
        let (got_x, rest) = got[x.len()..].split_at(x.len());
        // rstd (d - a - hat b): rstd <= 10, |a|, |b| <= 1 and 20, each off by a few of hat's errors.
        assert_near("d_x", &want, got_x, 10.0 * (4.0 * 20.0 * hat));
        let column_sums = |rows: Vec<&Vec<f64>>, start: f64| -> Vec<f64> {
            (0..cols).map(|j| rows.iter().fold(start, |sum, row| sum + row[j])).collect()
        };
        let d_weight = column_sums(parts.iter().map(|p| &p.1).collect(), 0.5);
        let d_bias = column_sums(parts.iter().map(|p| &p.2).collect(), 0.25);
        let (got_w, got_b) = rest.split_at(cols);
        assert_near("d_weight", &d_weight, got_w, rows as f64 * (hat + 100.0 * U));
        assert_near("d_bias", &d_bias, got_b, rows as f64 * 5.0 * U);
    }
}

#[test]
fn layer_norm_of_a_constant_row_is_the_bias() {
    let (mut y, mut mean, mut rstd) = ([0.0; 20], [0.0], [0.0]);
    let bias = uniform(12, 20);
    layer_norm_forward(&[3.0; 20], &[2.0; 20], &bias, &mut y, &mut mean, &mut rstd, 1e-5);
    assert_eq!(y.to_vec(), bias);
    layer_norm_forward(&[], &[], &[], &mut [], &mut [0.0; 3], &mut [0.0; 3], 1e-5);
}

/// Ids below `vocab` with an empty slot here and there.
fn bags(seed: u64, rows: usize, active: usize, vocab: usize) -> Vec<u32> {
    uniform(seed, rows * active)
        .iter()
        .enumerate()
        .map(|(i, x)| if i % 5 == 3 { NO_ID } else { ((x + 1.0) * 0.5 * vocab as f32) as u32 })
        .collect()
}

#[test]
fn an_embedding_adds_rows_and_its_gradient_adds_them_back() {
    for (rows, active, vocab, width) in [
        (0, 1, 3, 4),
        (5, 1, 7, 1),
        (6, 1, 7, 17),
        (9, 3, 5, 33),
        (4, 0, 5, 16),
        (40, 2, 300, 1100),
    ] {
        let (table, bias) = (uniform(13, vocab * width), uniform(14, width));
        let (ids, d_y) = (bags(15, rows, active, vocab), uniform(16, rows * width));
        for bias in [None, Some(&bias[..])] {
            let mut want = vec![0.0f32; rows * width];
            for r in 0..rows {
                for j in 0..width {
                    let hot = ids[r * active..(r + 1) * active].iter().filter(|id| **id != NO_ID);
                    want[r * width + j] = hot.fold(bias.map_or(0.0, |b| b[j]), |sum, id| {
                        sum + table[*id as usize * width + j]
                    });
                }
            }
            let got = same_on_every_tier("embedding", || {
                let mut y = Guarded::new(rows * width, 3);
                embedding_forward(&table, &ids, bias, y.get(), active, width);
                y.finish("embedding")
            });
            assert_eq!(want, got);
        }
        let mut want = table.clone();
        for r in 0..rows {
            for id in ids[r * active..(r + 1) * active].iter().filter(|id| **id != NO_ID) {
                for j in 0..width {
                    want[*id as usize * width + j] += d_y[r * width + j];
                }
            }
        }
        let got = same_on_every_tier("embedding_backward", || {
            let mut d_table = Guarded::of(&table, 3);
            embedding_backward(&ids, &d_y, d_table.get(), active, width);
            d_table.finish("embedding_backward")
        });
        assert_same("embedding_backward", &want, &got);
    }
}

#[test]
#[should_panic(expected = "out of range")]
fn an_id_outside_of_the_table_panics() {
    embedding_forward(&[0.0; 6], &[3], None, &mut [0.0; 2], 1, 2);
}

const STEP: AdamStep = AdamStep {
    lr: 0.01,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.1,
    step: 3,
    grad_scale: 0.5,
};

#[test]
fn adam_equals_its_definition() {
    let all = 4097;
    let (p, m, grad) = (uniform(17, all), uniform(18, all), uniform(19, all));
    let v: Vec<f32> = uniform(20, all).iter().map(|v| v.abs()).collect();
    for n in lengths() {
        let got = same_on_every_tier("adam", || {
            let (mut p, mut m, mut v) =
                (Guarded::of(&p[..n], 1), Guarded::of(&m[..n], 2), Guarded::of(&v[..n], 3));
            adam(p.get(), m.get(), v.get(), &grad[..n], STEP);
            [p.finish("p"), m.finish("m"), v.finish("v")].concat()
        });
        for i in 0..n {
            let [p, m, v, g] = [p[i], m[i], v[i], grad[i]].map(f64::from);
            let (p, m, v) = optim_reference::adam(p, m, v, g, STEP);
            // Moments: four roundings of numbers below 1 (1 - beta in f32 is off by U as well).
            assert_near("m", &[m], &got[n + i..=n + i], 5.0 * U);
            assert_near("v", &[v], &got[2 * n + i..=2 * n + i], 5.0 * U);
            // m_hat / sqrt(v_hat): m is off by 5 U, v relatively by 5 U at v >= 0.001 g^2, the
            // quotient by 8 roundings; times lr. The parameter is rounded twice and its decay once.
            let quotient = (p.abs() + 1.0).max(1.0);
            let root = (v / (1.0 - 0.999f64.powi(3))).sqrt().max(1e-4);
            let update =
                0.01 / (1.0 - 0.9f64.powi(3)) * (5.0 * U / root + 16.0 * U * m.abs() / root);
            assert_near("p", &[p], &got[i..=i], update + 3.0 * U * quotient);
        }
    }
}

#[test]
fn sgd_equals_its_definition() {
    let all = 4097;
    let (p, u, grad) = (uniform(21, all), uniform(22, all), uniform(23, all));
    for n in lengths() {
        let got = same_on_every_tier("sgd", || {
            let (mut p, mut u) = (Guarded::of(&p[..n], 1), Guarded::of(&u[..n], 2));
            sgd(p.get(), u.get(), &grad[..n], 0.1, 0.9, 2.0);
            [p.finish("p"), u.finish("u")].concat()
        });
        let want_u: Vec<f64> = (0..n)
            .map(|i| f64::from(0.9f32) * f64::from(u[i]) + 2.0 * f64::from(grad[i]))
            .collect();
        let want_p: Vec<f64> =
            (0..n).map(|i| f64::from(p[i]) - f64::from(0.1f32) * want_u[i]).collect();
        assert_near("u", &want_u, &got[n..], 3.0 * U);
        assert_near("p", &want_p, &got[..n], 2.0 * U);
    }
}

#[test]
fn random_numbers_are_a_function_of_their_position() {
    let (seed, stream) = (0x0123_4567_89ab_cdef, 5);
    // Across the border of the low word of the position, too.
    for position in [0, 77, u64::from(u32::MAX) - 3] {
        let plain: Vec<f32> = (0..1100)
            .flat_map(|b| philox::block(seed, stream, position + b).map(philox::to_unit))
            .collect();
        let x = uniform(24, 4097);
        for n in lengths() {
            let got = same_on_every_tier("uniform", || {
                let mut y = Guarded::new(n, 3);
                philox::uniform(y.get(), seed, stream, position);
                y.finish("uniform")
            });
            assert_same("uniform", &plain[..n], &got);
            let got = same_on_every_tier("uniform_between", || {
                let mut y = Guarded::new(n, 3);
                philox::uniform_between(y.get(), (-0.3, 1.9), seed, stream, position);
                y.finish("uniform_between")
            });
            let want: Vec<f32> = plain[..n].iter().map(|u| -0.3 + (1.9 - -0.3) * u).collect();
            assert_same("uniform_between", &want, &got);
            let got = same_on_every_tier("dropout", || {
                let mut y = Guarded::new(n, 3);
                philox::dropout(&x[..n], y.get(), 0.3, seed, stream, position);
                y.finish("dropout")
            });
            for i in 0..n {
                // 24 of the word's 32 bits are in `plain`: a tie is not decided by them.
                let kept = f64::from(plain[i]) >= f64::from(0.3f32);
                let want = if kept { x[i] * (1.0 / (1.0 - 0.3)) } else { 0.0 };
                let tie = (f64::from(plain[i]) - f64::from(0.3f32)).abs() < 2.0 * U;
                assert!(got[i].to_bits() == want.to_bits() || tie, "dropout of element {i}");
            }
        }
    }
}

#[test]
fn dropout_keeps_all_or_nothing_at_the_ends() {
    let x = uniform(25, 1000);
    let mut y = vec![0.0; 1000];
    philox::dropout(&x, &mut y, 0.0, 1, 2, 3);
    assert_eq!(x, y);
    philox::dropout(&x, &mut y, 1.0, 1, 2, 3);
    assert!(y.iter().all(|y| *y == 0.0));
}

#[test]
fn normal_numbers_have_the_moments_of_the_normal_distribution() {
    let n = 200_000;
    let x = same_on_every_tier("normal", || {
        let mut y = vec![0.0; n];
        philox::normal(&mut y, 9, 1, 0);
        y
    });
    let moved = same_on_every_tier("normal_around", || {
        let mut y = vec![0.0; 333];
        philox::normal_around(&mut y, 1.5, 0.2, 9, 1, 0);
        y
    });
    let want: Vec<f32> = x[..333].iter().map(|x| 1.5 + 0.2 * x).collect();
    assert_same("normal_around", &want, &moved);
    // Any part of the stream is the same numbers.
    let mut part = vec![0.0; 333];
    philox::normal(&mut part, 9, 1, 250);
    assert_same("from block 250", &x[1000..1333], &part);
    let moment = |p: i32| wide(&x).iter().map(|x| x.powi(p)).sum::<f64>() / n as f64;
    // The variances of x, x^2, x^3, x^4 are 1, 2, 15, 96; five standard errors.
    let error = |variance: f64| 5.0 * (variance / n as f64).sqrt();
    assert!(moment(1).abs() < error(1.0) && (moment(2) - 1.0).abs() < error(2.0));
    assert!(moment(3).abs() < error(15.0) && (moment(4) - 3.0).abs() < error(96.0));
    // Neighbours, the two halves of a pair among them, do not move together.
    let pairs: f64 = x.windows(2).map(|w| f64::from(w[0]) * f64::from(w[1])).sum();
    assert!((pairs / n as f64).abs() < error(1.0));
    assert!(x.iter().all(|x| x.is_finite() && x.abs() < 6.0));
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let (rows, cols) = (600, 388);
    let (x, d_y) = (scaled(26, rows * cols, 5.0), uniform(27, rows * cols));
    let targets: Vec<u32> = (0..rows as u32).map(|r| r * 31 % cols as u32).collect();
    let ids = bags(28, rows, 2, 50);
    same_for_any_threads("families", || {
        let (mut y, mut d) = (x.clone(), x.clone());
        softmax_forward(&x, &mut y, cols);
        softmax_backward(&y, &d_y, &mut d, cols);
        let mut losses = vec![0.0; rows];
        let mut d_logits = x.clone();
        cross_entropy_forward(&x, &targets, &mut losses, &mut d_logits, 0.5, cols);
        let (mut norm, mut mean, mut rstd) = (x.clone(), losses.clone(), losses.clone());
        let weight = &d_y[..cols];
        layer_norm_forward(&x, weight, weight, &mut norm, &mut mean, &mut rstd, 1e-5);
        let (mut d_x, mut dw, mut db) = (x.clone(), vec![0.0; cols], vec![0.0; cols]);
        layer_norm_backward(&x, weight, &mean, &rstd, &d_y, &mut d_x, &mut dw, &mut db);
        let mut table = vec![0.0; 50 * cols];
        embedding_backward(&ids, &d_y, &mut table, 2, cols);
        let mut z = x.clone();
        embedding_forward(&table, &ids, None, &mut z, 2, cols);
        let (mut p, mut m, mut v) = (x.clone(), y.clone(), y.clone());
        adam(&mut p, &mut m, &mut v, &d_y, STEP);
        let mut random = vec![0.0; 150_001];
        philox::normal(&mut random, 1, 2, 3);
        [d, losses, d_logits, norm, d_x, dw, db, table, z, p, random].concat()
    });
}
