//! Matrix products of bf16 numbers with sums in f32: half the memory, twice the products.
//!
//! Where the CPU multiplies bf16 pairs (avx512bf16, on the AVX-512 tier) that is used; elsewhere both
//! operands are widened to f32, which is exact. The two round differently: a pair's products are added
//! to each other before they reach the sum. The matrix tiles of AMX are not used.

#[cfg(target_arch = "x86_64")]
mod avx512;

use crate::gemm::{MatMut, MatRef, gemm_forward};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use std::cell::RefCell;

/// Rounds to bf16, to nearest even.
pub fn to_bf16(x: &[f32]) -> Vec<bf16> {
    let mut y = vec![bf16::ZERO; x.len()];
    y.convert_from_f32_slice(x);
    y
}

/// Computes `C = A B`, or `C = A B^T` if `trans_b`, and rounds the sums to bf16.
///
/// # Shapes
/// `a` `[m, k]`, `b` `[k, n]` or `[n, k]`, `c` `[m, n]`, all contiguous.
///
/// # Panics
/// If a length disagrees with its sizes.
pub fn gemm_bf16_forward(
    a: &[bf16],
    b: &[bf16],
    c: &mut [bf16],
    m: usize,
    k: usize,
    n: usize,
    trans_b: bool,
) {
    assert_eq!((a.len(), b.len(), c.len()), (m * k, k * n, m * n));
    #[cfg(target_arch = "x86_64")]
    if avx512::is_active() {
        return avx512::product(a, b, c, (m, k, n), trans_b);
    }
    widened(a, b, c, (m, k, n), trans_b);
}

/// The product of the operands widened to f32.
fn widened(
    a: &[bf16],
    b: &[bf16],
    c: &mut [bf16],
    (m, k, n): (usize, usize, usize),
    trans_b: bool,
) {
    thread_local! {
        static WIDE: RefCell<[Vec<f32>; 3]> = const { RefCell::new([const { Vec::new() }; 3]) };
    }
    // Taken out while in use: the product may run other work on this thread, even this function.
    let [mut x, mut y, mut z] = WIDE.take();
    x.resize(a.len(), 0.0);
    y.resize(b.len(), 0.0);
    z.resize(c.len(), 0.0);
    a.convert_to_f32_slice(&mut x);
    b.convert_to_f32_slice(&mut y);
    let right = if trans_b { MatRef::new(&y, n, k).t() } else { MatRef::new(&y, k, n) };
    gemm_forward(MatRef::new(&x, m, k), right, &mut MatMut::new(&mut z, m, n), false);
    c.convert_from_f32_slice(&z);
    WIDE.replace([x, y, z]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both operands and the product by the definition, in f64.
    fn example(m: usize, k: usize, n: usize, trans_b: bool) -> (Vec<bf16>, Vec<bf16>, Vec<f64>) {
        let values = |seed: usize, len: usize| -> Vec<bf16> {
            (0..len).map(|i| bf16::from_f32(((i * 37 + seed) % 101) as f32 / 50.0 - 1.0)).collect()
        };
        let (a, b) = (values(3, m * k), values(8, k * n));
        let at = |l: usize, j: usize| b[if trans_b { j * k + l } else { l * n + j }].to_f64();
        let mut c = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                c[i * n + j] = (0..k).map(|l| a[i * k + l].to_f64() * at(l, j)).sum();
            }
        }
        (a, b, c)
    }

    #[test]
    fn bf16_products_agree_with_the_definition_both_ways() {
        type Product = fn(&[bf16], &[bf16], &mut [bf16], (usize, usize, usize), bool);
        let mut ways: Vec<Product> = vec![widened];
        #[cfg(target_arch = "x86_64")]
        if avx512::is_available() {
            ways.push(avx512::product);
        }
        let sizes = [(1, 1, 1), (3, 2, 17), (8, 33, 48), (9, 64, 50), (1, 100, 300), (40, 7, 5)];
        for (m, k, n) in sizes.into_iter().chain([(0, 3, 3), (3, 0, 3), (3, 3, 0), (70, 130, 600)])
        {
            for trans_b in [false, true] {
                let (a, b, want) = example(m, k, n, trans_b);
                for way in &ways {
                    let mut c = vec![bf16::NAN; m * n];
                    way(&a, &b, &mut c, (m, k, n), trans_b);
                    for (got, want) in c.iter().zip(&want) {
                        // k products below 1 in f32, then one rounding to 8 bits of the sum.
                        let sums = (k * k) as f64 * f64::from(f32::EPSILON);
                        let rounding = (want.abs() + sums) * 2f64.powi(-8);
                        assert!((got.to_f64() - want).abs() <= sums + rounding, "{m}x{k}x{n}");
                    }
                }
            }
        }
    }
}
