//! Matrix products: every tier against the definition in f64, the promise about bits, and bounds.

use etude_kernels::activation::{Activation, activation_forward};
use etude_kernels::gemm::{
    Epilogue, MatMut, MatRef, Operand, PackedB, gemm_forward, gemm_fused_forward,
    gemm_packed_forward,
};
use etude_kernels::isa::{self, Isa};
use etude_kernels::ladder;
use etude_kernels::reference;
use etude_kernels::threads::Pool;
use proptest::prelude::*;
use std::sync::Mutex;

/// The tier is a setting of the whole process: one test at a time may change it.
static TIER: Mutex<()> = Mutex::new(());

/// Runs `f` once on every tier of this machine.
fn on_every_tier(mut f: impl FnMut(Isa)) {
    let _guard = TIER.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let before = isa::active();
    for tier in Isa::available() {
        isa::force(tier);
        f(tier);
    }
    isa::force(before);
}

/// `len` numbers in `[-1, 1)` from a linear congruential generator.
fn uniform(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// How a matrix lies in memory.
#[derive(Debug, Clone, Copy)]
enum Layout {
    Rows,
    Columns,
    /// Row-major, with a gap after each row, one element off the start.
    Gaps,
    /// Neither rows nor columns are contiguous.
    Steps,
}

const LAYOUTS: [Layout; 4] = [Layout::Rows, Layout::Columns, Layout::Gaps, Layout::Steps];

/// Whether a product of `m` rows and `b` is one of scalar products, whose bits are their own.
fn scalar_products(tier: Isa, m: usize, b: MatRef) -> bool {
    tier != Isa::Scalar && m == 1 && b.row_stride == 1 && b.col_stride != 1 && b.rows >= 64
}

/// A matrix in a layout, in memory that ends where the matrix ends.
struct Stored {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
    offset: usize,
    strides: (usize, usize),
}

impl Stored {
    fn new(values: &[f32], rows: usize, cols: usize, layout: Layout) -> Stored {
        let (offset, strides) = match layout {
            Layout::Rows => (0, (cols, 1)),
            Layout::Columns => (0, (1, rows)),
            Layout::Gaps => (1, (cols + 3, 1)),
            Layout::Steps => (2, (2 * cols + 1, 2)),
        };
        let last =
            if rows * cols == 0 { 0 } else { (rows - 1) * strides.0 + (cols - 1) * strides.1 + 1 };
        // What lies between must not matter.
        let mut data = vec![f32::NAN; offset + last];
        for r in 0..rows {
            for c in 0..cols {
                data[offset + r * strides.0 + c * strides.1] = values[r * cols + c];
            }
        }
        Stored { data, rows, cols, offset, strides }
    }

    fn view(&self) -> MatRef<'_> {
        MatRef::strided(
            &self.data[self.offset..],
            self.rows,
            self.cols,
            self.strides.0,
            self.strides.1,
        )
    }
}

/// The largest error that a sum of `k` products, a bias and a start may have, all in `[-1, 1]`.
///
/// The sum has `k + 2` terms; each of its at most `k + 2` roundings (`2 k + 2` without a fused
/// multiply-add) errs by half an ulp of a partial sum that is at most `k + 2`.
fn tolerance(k: usize) -> f32 {
    (2 * k + 2) as f32 * (k + 2) as f32 * f32::EPSILON / 2.0
}

/// The product by the definition.
fn expected(
    a: MatRef,
    b: MatRef,
    bias: Option<&[f32]>,
    start: &[f32],
    accumulate: bool,
) -> Vec<f32> {
    let (m, n) = (a.rows, b.cols);
    let mut c = start.to_vec();
    reference::gemm(a, b, bias, &mut MatMut::new(&mut c, m, n), accumulate);
    c
}

fn assert_close(got: &[f32], want: &[f32], k: usize, what: &str) {
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance(k), "{what}: element {i} is {g}, not {w}");
    }
}

/// Checks one size in all layouts, packed and not, accumulating or not, on every tier.
fn check(m: usize, n: usize, k: usize, seed: u64) {
    let (a, b) = (uniform(seed, m * k), uniform(seed ^ 1, k * n));
    let (bias, start) = (uniform(seed ^ 2, n), uniform(seed ^ 3, m * n));
    on_every_tier(|tier| {
        for accumulate in [false, true] {
            let plain_a = Stored::new(&a, m, k, Layout::Rows);
            let plain_b = Stored::new(&b, k, n, Layout::Rows);
            let want = expected(plain_a.view(), plain_b.view(), None, &start, accumulate);
            let want_bias =
                expected(plain_a.view(), plain_b.view(), Some(&bias), &start, accumulate);
            let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
            for (la, lb) in LAYOUTS.into_iter().flat_map(|a| LAYOUTS.map(|b| (a, b))) {
                let what = format!("{} {m}x{k}x{n} {la:?} {lb:?} {accumulate}", tier.name());
                let (a, b) = (Stored::new(&a, m, k, la), Stored::new(&b, k, n, lb));
                // NaN instead of a start: a sum that does not accumulate must not read C.
                let begin = |fresh| if accumulate { start.clone() } else { vec![fresh; m * n] };
                let mut c = begin(f32::NAN);
                gemm_forward(a.view(), b.view(), &mut MatMut::new(&mut c, m, n), accumulate);
                assert_close(&c, &want, k, &what);
                let packed = PackedB::new(b.view());
                let mut d = begin(f32::NAN);
                gemm_packed_forward(
                    a.view(),
                    &packed,
                    None,
                    &mut MatMut::new(&mut d, m, n),
                    accumulate,
                );
                let alone = scalar_products(tier, m, b.view());
                assert!(alone || c == d, "{what}: packed gives other bits");
                let mut e = begin(f32::NAN);
                gemm_packed_forward(
                    a.view(),
                    &packed,
                    Some(&bias),
                    &mut MatMut::new(&mut e, m, n),
                    accumulate,
                );
                assert_close(&e, &want_bias, k, &what);
                match &first {
                    None => first = Some((d, e)),
                    Some((c1, e1)) => {
                        assert!(alone || c1 == &c, "{what}: the layout changes bits");
                        assert_eq!(e1, &e, "{what}: the layout changes bits");
                    }
                }
            }
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn gemm_agrees_with_the_triple_loop(m in 0usize..40, n in 0usize..150, k in 0usize..70, seed: u64) {
        check(m, n, k, seed);
    }
}

#[test]
fn sizes_around_lanes_tiles_and_blocks_agree_with_the_triple_loop() {
    for (m, n, k) in [
        (0, 5, 5),
        (5, 0, 5),
        (5, 5, 0),
        (0, 0, 0),
        (1, 1, 0),
        (1, 1, 1),
        (1, 129, 33),
        (2, 15, 3),
        (3, 16, 4),
        (7, 17, 5),
        (8, 48, 16),
        (9, 49, 17),
        (16, 97, 31),
        (1, 300, 400),
        (5, 64, 800),
        (47, 40, 385),
        (100, 33, 129),
        // Few rows times contiguous columns: whole and half slivers, columns that crowd a cache's set.
        (8, 47, 1024),
        (17, 49, 40),
        (24, 100, 300),
        (4, 2, 256),
        (67, 33, 257),
        (100, 49, 700),
    ] {
        check(m, n, k, (m * 1_000_000 + n * 1_000 + k) as u64);
    }
}

#[test]
fn large_products_agree_with_the_triple_loop_in_every_layout() {
    let (m, n, k) = (205, 523, 401);
    let (a, b) = (uniform(7, m * k), uniform(8, k * n));
    let plain = (Stored::new(&a, m, k, Layout::Rows), Stored::new(&b, k, n, Layout::Rows));
    let want = expected(plain.0.view(), plain.1.view(), None, &vec![0.0; m * n], false);
    on_every_tier(|tier| {
        for (la, lb) in LAYOUTS.into_iter().flat_map(|a| LAYOUTS.map(|b| (a, b))) {
            let (a, b) = (Stored::new(&a, m, k, la), Stored::new(&b, k, n, lb));
            let mut c = vec![f32::NAN; m * n];
            gemm_forward(a.view(), b.view(), &mut MatMut::new(&mut c, m, n), false);
            assert_close(&c, &want, k, &format!("{} {la:?} {lb:?}", tier.name()));
        }
    });
}

#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    let (m, n, k) = (150, 200, 500);
    let (a, b) = (uniform(1, m * k), uniform(2, k * n));
    let bt = Stored::new(&b, k, n, Layout::Columns);
    on_every_tier(|tier| {
        let packed = PackedB::new(MatRef::new(&b, k, n));
        let mut whole = vec![0.0; m * n];
        gemm_packed_forward(
            MatRef::new(&a, m, k),
            &packed,
            None,
            &mut MatMut::new(&mut whole, m, n),
            false,
        );
        for rows in [1, 2, 3, 5, 8, 13, 64, 149] {
            for from in [0, 1, m - rows] {
                let part = MatRef::new(&a[from * k..(from + rows) * k], rows, k);
                let want = &whole[from * n..(from + rows) * n];
                let mut c = vec![0.0; rows * n];
                gemm_packed_forward(part, &packed, None, &mut MatMut::new(&mut c, rows, n), false);
                assert_eq!(c, want, "{} packed {from}+{rows}", tier.name());
                gemm_forward(part, MatRef::new(&b, k, n), &mut MatMut::new(&mut c, rows, n), false);
                assert_eq!(c, want, "{} plain {from}+{rows}", tier.name());
                gemm_forward(part, bt.view(), &mut MatMut::new(&mut c, rows, n), false);
                if scalar_products(tier, rows, bt.view()) {
                    let want = expected(part, MatRef::new(&b, k, n), None, &[0.0; 200], false);
                    assert_close(&c, &want, k, &format!("{} transposed {from}", tier.name()));
                } else {
                    assert_eq!(c, want, "{} transposed {from}+{rows}", tier.name());
                }
            }
        }
    });
}

#[test]
fn few_rows_have_the_bits_of_the_packed_product_at_every_edge() {
    // Around blocks of 4 and 8 rows, lines of 16, groups of 8 columns and of four groups; the last one
    // is longer than what is multiplied at once, and its columns lie 4 KiB apart.
    let depths = [1, 3, 4, 15, 16, 17, 31, 33, 64, 5120];
    let widths = [1, 2, 7, 8, 9, 16, 31, 32, 33, 47, 127, 128, 131, 145];
    on_every_tier(|tier| {
        for (k, n) in depths.into_iter().flat_map(|k| widths.map(|n| (k, n))) {
            if k > 64 && n > 33 {
                continue;
            }
            let (a, b) = (uniform(k as u64, 6 * k), uniform(n as u64, k * n));
            let (bias, start) = (uniform(3, n), uniform(4, 6 * n));
            let packed = PackedB::new(MatRef::new(&b, k, n));
            for (m, lb) in (1..=6).flat_map(|m| LAYOUTS.map(|lb| (m, lb))) {
                let stored = Stored::new(&b, k, n, lb);
                // The rows of A as they lie, and the columns of what lies.
                for a in [MatRef::new(&a[..m * k], m, k), MatRef::new(&a[..m * k], k, m).t()] {
                    for accumulate in [false, true] {
                        let epilogue = Epilogue {
                            accumulate,
                            bias: accumulate.then_some(&bias),
                            activation: accumulate.then_some(Activation::Relu),
                            residual: None,
                        };
                        let [got, want] = [Operand::Plain(stored.view()), Operand::Packed(&packed)]
                            .map(|b| {
                                let mut c = start[..m * n].to_vec();
                                let mut to = MatMut::new(&mut c, m, n);
                                gemm_fused_forward(a, b, epilogue, &mut to);
                                c
                            });
                        let what = format!("{} {m}x{k}x{n} {lb:?} {accumulate}", tier.name());
                        if scalar_products(tier, m, stored.view()) {
                            // Each is off by a tolerance at most.
                            let far = |(g, w): (&f32, &f32)| (g - w).abs() > 2.0 * tolerance(k);
                            assert!(!got.iter().zip(&want).any(far), "{what}");
                        } else {
                            let bits = |c: Vec<f32>| c.into_iter().map(f32::to_bits);
                            assert!(bits(got).eq(bits(want)), "{what}");
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn a_column_has_the_same_bits_in_any_width() {
    let (m, n, k) = (20, 260, 410);
    let (a, b) = (uniform(3, m * k), uniform(4, k * n));
    on_every_tier(|tier| {
        let mut whole = vec![0.0; m * n];
        gemm_forward(
            MatRef::new(&a, m, k),
            MatRef::new(&b, k, n),
            &mut MatMut::new(&mut whole, m, n),
            false,
        );
        for (from, width) in [(0, 1), (3, 15), (100, 16), (17, 49), (11, 200), (259, 1)] {
            let part = MatRef::strided(&b[from..], k, width, n, 1);
            let mut c = vec![0.0; m * width];
            gemm_forward(MatRef::new(&a, m, k), part, &mut MatMut::new(&mut c, m, width), false);
            for r in 0..m {
                let want = &whole[r * n + from..r * n + from + width];
                assert_eq!(&c[r * width..(r + 1) * width], want, "{} {from}+{width}", tier.name());
            }
        }
    });
}

#[test]
fn a_sum_may_be_interrupted_and_continued() {
    let (m, n, k) = (9, 70, 300);
    let (a, b) = (uniform(5, m * k), uniform(6, k * n));
    on_every_tier(|tier| {
        let mut whole = vec![0.0; m * n];
        gemm_forward(
            MatRef::new(&a, m, k),
            MatRef::new(&b, k, n),
            &mut MatMut::new(&mut whole, m, n),
            false,
        );
        let mut c = vec![0.0; m * n];
        for (from, len) in [(0, 100), (100, 1), (101, 199)] {
            let left = MatRef::strided(&a[from..], m, len, k, 1);
            let right = MatRef::new(&b[from * n..(from + len) * n], len, n);
            gemm_forward(left, right, &mut MatMut::new(&mut c, m, n), true);
        }
        assert_eq!(c, whole, "{}", tier.name());
    });
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    // Large enough to be cut both ways.
    let (m, n, k) = (300, 700, 200);
    let (a, b) = (uniform(9, m * k), uniform(10, k * n));
    let bt = Stored::new(&b, k, n, Layout::Columns);
    let at = Stored::new(&a, m, k, Layout::Columns);
    let pools = [1, 2, 3, 8].map(|threads| Pool::new(threads).expect("a pool of threads"));
    on_every_tier(|tier| {
        let mut first: Option<Vec<f32>> = None;
        for pool in &pools {
            let results = pool.run(|| {
                let packed = PackedB::new(bt.view());
                let mut c = [vec![0.0; m * n], vec![0.0; m * n], vec![0.0; m * n]];
                gemm_packed_forward(
                    MatRef::new(&a, m, k),
                    &packed,
                    None,
                    &mut MatMut::new(&mut c[0], m, n),
                    false,
                );
                gemm_forward(
                    MatRef::new(&a, m, k),
                    bt.view(),
                    &mut MatMut::new(&mut c[1], m, n),
                    false,
                );
                gemm_forward(
                    at.view(),
                    MatRef::new(&b, k, n),
                    &mut MatMut::new(&mut c[2], m, n),
                    false,
                );
                c
            });
            for c in results {
                match &first {
                    None => first = Some(c),
                    Some(first) => assert!(first == &c, "{}: bits differ", tier.name()),
                }
            }
        }
    });
}

#[test]
fn a_wide_gradient_has_the_bits_of_the_packed_product() {
    let pools = [1, 3].map(|n| Pool::new(n).expect("a pool of threads"));
    on_every_tier(|tier| {
        for (m, n, k) in [(5, 2, 256), (31, 15, 300), (131, 65, 1030), (514, 130, 600)] {
            let (a, b, start) = (uniform(1, m * k), uniform(2, k * n), uniform(3, m * (n + 3)));
            let (at, b) = (Stored::new(&a, m, k, Layout::Columns), MatRef::new(&b, k, n));
            let packed = PackedB::new(b);
            for (pool, add) in pools.iter().flat_map(|p| [(p, false), (p, true)]) {
                let [got, want] = [false, true].map(|packs| {
                    let mut memory = start.clone();
                    let c = &mut MatMut::strided(&mut memory, m, n, n + 3);
                    pool.run(|| match packs {
                        false => gemm_forward(at.view(), b, c, add),
                        true => gemm_packed_forward(at.view(), &packed, None, c, add),
                    });
                    memory
                });
                assert!(got == want, "{} {m}x{n}x{k} {add}: bits differ", tier.name());
            }
        }
    });
}

#[test]
fn nothing_outside_of_the_window_of_c_is_written() {
    let canary = f32::from_bits(0x7fc0_beef);
    on_every_tier(|tier| {
        for (m, n, k) in [
            (1, 1, 3),
            (1, 130, 20),
            (3, 17, 9),
            (5, 13, 40),
            (8, 47, 30),
            (13, 50, 390),
            (60, 100, 40),
        ] {
            let (a, b) = (uniform(11, m * k), uniform(12, k * n));
            let columns = Stored::new(&b, k, n, Layout::Columns);
            let want = expected(
                MatRef::new(&a, m, k),
                MatRef::new(&b, k, n),
                None,
                &vec![0.0; m * n],
                false,
            );
            let (offset, stride) = (5, n + 4);
            let packed = PackedB::new(MatRef::new(&b, k, n));
            let rows = MatRef::new(&b, k, n);
            for (form, right) in
                [("rows", Some(rows)), ("columns", Some(columns.view())), ("packed", None)]
            {
                let mut memory = vec![canary; offset + m * stride + 64];
                {
                    let mut c = MatMut::strided(&mut memory[offset..], m, n, stride);
                    let a = MatRef::new(&a, m, k);
                    match right {
                        Some(right) => gemm_forward(a, right, &mut c, false),
                        None => gemm_packed_forward(a, &packed, None, &mut c, false),
                    }
                }
                let what = format!("{} {m}x{n}x{k}, {form}", tier.name());
                for (i, x) in memory.iter().enumerate() {
                    let at = i.wrapping_sub(offset);
                    let (r, j) = (at / stride, at % stride);
                    if i >= offset && r < m && j < n {
                        assert!((x - want[r * n + j]).abs() <= tolerance(k), "{what} at {r}, {j}");
                    } else {
                        assert_eq!(x.to_bits(), canary.to_bits(), "{what} at {i}");
                    }
                }
            }
        }
    });
}

#[test]
fn a_packed_weight_serves_every_tier_and_repacks_in_place() {
    let (m, n, k) = (4, 33, 21);
    let (a, b) = (uniform(13, m * k), uniform(14, k * n));
    let mut packed = PackedB::new(MatRef::new(&uniform(15, 50 * 80), 50, 80));
    packed.pack(MatRef::new(&b, k, n));
    assert_eq!((packed.k(), packed.n()), (k, n));
    let want =
        expected(MatRef::new(&a, m, k), MatRef::new(&b, k, n), None, &vec![0.0; m * n], false);
    on_every_tier(|tier| {
        let mut c = vec![0.0; m * n];
        gemm_packed_forward(
            MatRef::new(&a, m, k),
            &packed,
            None,
            &mut MatMut::new(&mut c, m, n),
            false,
        );
        assert_close(&c, &want, k, tier.name());
    });
}

#[test]
fn every_step_of_the_ladder_is_the_product() {
    on_every_tier(|tier| {
        for (m, n, k) in [(0, 3, 2), (3, 0, 2), (2, 3, 0), (1, 1, 1), (7, 17, 5), (13, 150, 300)] {
            let (a, b) = (uniform(20, m * k), uniform(21, k * n));
            let zeros = vec![0.0; m * n];
            let want = expected(MatRef::new(&a, m, k), MatRef::new(&b, k, n), None, &zeros, false);
            for step in ladder::gemm::STEPS {
                let mut c = vec![f32::NAN; m * n];
                (step.run)(&a, &b, &mut c, m, n, k);
                assert_close(&c, &want, k, &format!("{} {} {m}x{k}x{n}", tier.name(), step.name));
            }
        }
    });
}

#[test]
fn an_epilogue_gives_the_bits_of_separate_steps() {
    let functions = [
        None,
        Some(Activation::Identity),
        Some(Activation::Relu),
        Some(Activation::LeakyRelu(0.2)),
        Some(Activation::Gelu),
        Some(Activation::GeluTanh),
        Some(Activation::Silu),
        Some(Activation::Tanh),
        Some(Activation::Sigmoid),
        Some(Activation::Elu(1.5)),
        Some(Activation::Softplus),
    ];
    on_every_tier(|tier| {
        for (m, n, k) in
            [(1, 1, 0), (1, 530, 20), (3, 17, 9), (8, 47, 30), (13, 50, 600), (60, 100, 40)]
        {
            let (a, b) = (uniform(31, m * k), uniform(32, k * n));
            let (bias, start) = (uniform(33, n), uniform(34, m * n));
            let residual = Stored::new(&uniform(35, m * n), m, n, Layout::Gaps);
            let bt = Stored::new(&b, k, n, Layout::Columns);
            let (a, b) = (MatRef::new(&a, m, k), MatRef::new(&b, k, n));
            let packed = PackedB::new(b);
            for (activation, accumulate) in
                functions.into_iter().flat_map(|f| [(f, false), (f, true)])
            {
                let mut sums = start.clone();
                let c = &mut MatMut::new(&mut sums, m, n);
                gemm_packed_forward(a, &packed, Some(&bias), c, accumulate);
                let mut want = sums.clone();
                if let Some(f) = activation {
                    activation_forward(f, &sums, &mut want);
                }
                for with_residual in [false, true] {
                    let epilogue = Epilogue {
                        accumulate,
                        bias: Some(&bias),
                        activation,
                        residual: with_residual.then(|| residual.view()),
                    };
                    if with_residual {
                        for (i, x) in want.iter_mut().enumerate() {
                            *x += residual.view().data[i / n * (n + 3) + i % n];
                        }
                    }
                    let operands =
                        [Operand::Plain(b), Operand::Plain(bt.view()), Operand::Packed(&packed)];
                    for (i, b) in operands.into_iter().enumerate() {
                        let mut c = start.clone();
                        gemm_fused_forward(a, b, epilogue, &mut MatMut::new(&mut c, m, n));
                        assert_eq!(c, want, "{} {m}x{k}x{n} {activation:?} {i}", tier.name());
                    }
                }
            }
        }
    });
}

#[test]
#[should_panic(expected = "assertion")]
fn a_view_that_leaves_its_slice_is_refused() {
    MatRef::strided(&[0.0; 10], 2, 5, 6, 1);
}

#[test]
#[should_panic(expected = "assertion")]
fn sizes_that_disagree_are_refused() {
    let mut c = [0.0; 4];
    gemm_forward(
        MatRef::new(&[0.0; 6], 2, 3),
        MatRef::new(&[0.0; 4], 2, 2),
        &mut MatMut::new(&mut c, 2, 2),
        false,
    );
}
