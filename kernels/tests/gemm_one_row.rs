//! One row times a matrix as it lies: against the definition in f64, and bits that are its own.

mod support;

use etude_kernels::gemm::{Epilogue, MatMut, MatRef, Operand, gemm_fused_forward};
use etude_kernels::isa::Isa;
use etude_kernels::reference;
use etude_kernels::threads::Pool;
use support::*;

/// Edges of vectors, of groups of four columns and of tasks; an `A` of every stride, a part of a wider
/// matrix. Bits are the same on every tier of vectors and for any number of threads.
///
/// Numbers lie in `[-1, 1)`: a sum of `k` products, a bias and a start is at most `k + 2`, and none of its
/// `2 k + 2` roundings errs by more than half an ulp of that.
#[test]
fn one_row_times_columns_agrees_with_the_definition_and_with_itself() {
    for (k, n) in [(64, 1), (65, 3), (79, 4), (80, 5), (100, 70), (511, 131), (2048, 257)] {
        let tolerance = (2 * k + 2) as f32 * (k + 2) as f32 * f32::EPSILON / 2.0;
        let (a, b) = (uniform(k as u64, 3 * k), uniform(n as u64, (k + 5) * n));
        let (bias, start) = (uniform(3, n), uniform(4, n));
        let b = MatRef::strided(&b, k, n, 1, k + 5);
        let contiguous: Vec<f32> = a.chunks(3).map(|a| a[0]).collect();
        let row = MatRef::new(&contiguous, 1, k);
        let mut first: Option<Vec<f32>> = None;
        on_every_tier(|tier| {
            for (threads, accumulate) in [(1, false), (2, false), (3, true), (1, true)] {
                let what = format!("{} 1x{k}x{n} {threads} {accumulate}", tier.name());
                let [x, y] = [row, MatRef::strided(&a, 1, k, 3 * k, 3)].map(|a| {
                    let mut c = if accumulate { start.clone() } else { vec![f32::NAN; n] };
                    let epilogue =
                        Epilogue { accumulate, bias: Some(&bias), ..Epilogue::default() };
                    let mut to = MatMut::new(&mut c, 1, n);
                    let pool = Pool::new(threads).expect("threads");
                    pool.run(|| gemm_fused_forward(a, Operand::Plain(b), epilogue, &mut to));
                    c
                });
                assert_same(&what, &x, &y);
                let mut want = start.clone();
                let to = &mut MatMut::new(&mut want, 1, n);
                reference::gemm(row, b, Some(&bias), to, accumulate);
                for (i, (x, want)) in x.iter().zip(&want).enumerate() {
                    assert!((x - want).abs() <= tolerance, "{what}: element {i}: {x}, not {want}");
                }
                if tier != Isa::Scalar && !accumulate {
                    assert_same(&what, first.get_or_insert_with(|| x.clone()), &x);
                }
            }
        });
    }
}
