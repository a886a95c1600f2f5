//! Views and broadcasting at sizes drawn at random, against index arithmetic done by hand.

use etude_engine::{Result, Tensor};
use proptest::prelude::*;

/// Numbers that name their own place.
fn counting(shape: &[usize]) -> Result<Tensor> {
    let n: usize = shape.iter().product();
    Tensor::new((0..n).map(|i| i as f32).collect::<Vec<f32>>(), shape)
}

/// The element at an index, found without any view.
fn place(index: &[usize], shape: &[usize]) -> f32 {
    index.iter().zip(shape).fold(0, |at, (i, dim)| at * dim + i) as f32
}

/// Every index of a shape, the last axis running fastest.
fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    shape.iter().fold(vec![vec![]], |all, dim| {
        let longer = |index: &Vec<usize>| {
            let index = index.clone();
            (0..*dim).map(move |i| [&index[..], &[i]].concat()).collect::<Vec<_>>()
        };
        all.iter().flat_map(longer).collect()
    })
}

/// A step of a chain of views, and how it maps an index back.
#[derive(Debug, Clone)]
enum Step {
    Swap(usize, usize),
    Slice(usize, usize, usize),
    Copy,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0usize..4, 0usize..4).prop_map(|(a, b)| Step::Swap(a, b)),
        (0usize..4, 0usize..40, 0usize..40).prop_map(|(a, b, c)| Step::Slice(a, b, c)),
        Just(Step::Copy),
    ];
    prop::collection::vec(step, 0..6)
}

proptest! {
    #[test]
    fn chains_of_views_show_the_right_elements(
        shape in prop::collection::vec(0usize..40, 1..=4),
        steps in steps(),
    ) {
        prop_assume!(shape.iter().product::<usize>() < 20_000);
        let mut view = counting(&shape).unwrap();
        // For each axis of the view: which axis of the original it is, and where it starts.
        let mut axes: Vec<(usize, usize)> = (0..shape.len()).map(|axis| (axis, 0)).collect();
        for step in steps {
            let rank = shape.len();
            match step {
                Step::Swap(a, b) => {
                    view = view.transpose(a % rank, b % rank).unwrap();
                    axes.swap(a % rank, b % rank);
                }
                Step::Slice(axis, a, b) => {
                    let (axis, dim) = (axis % rank, view.shape()[axis % rank]);
                    let (a, b) = (a % (dim + 1), b % (dim + 1));
                    view = view.slice(axis, a.min(b)..a.max(b)).unwrap();
                    axes[axis].1 += a.min(b);
                }
                Step::Copy => view = view.contiguous().unwrap(),
            }
        }
        let original = |index: Vec<usize>| {
            let mut at = vec![0; shape.len()];
            index.iter().zip(&axes).for_each(|(i, (axis, start))| at[*axis] = start + i);
            place(&at, &shape)
        };
        let want: Vec<f32> = indices(view.shape()).into_iter().map(original).collect();
        prop_assert_eq!(view.to_vec(), want);
    }

    #[test]
    fn broadcasting_pairs_the_right_elements(
        dims in prop::collection::vec((0usize..7, any::<bool>(), any::<bool>()), 0..=4),
        cut in 0usize..4,
        swap: bool,
    ) {
        let side = |i: usize| -> Vec<usize> {
            dims.iter().map(|d| if [d.1, d.2][i] { 1 } else { d.0 }).collect()
        };
        let cut = cut.min(dims.len());
        let (a_shape, b_shape) = (side(0), side(1)[cut..].to_vec());
        let (mut a, b) = (counting(&a_shape).unwrap(), counting(&b_shape).unwrap());
        let mut a_strided = a_shape.clone();
        if swap && a_shape.len() >= 2 {
            // The same values, stored the other way round.
            a = a.t().unwrap().contiguous().unwrap().t().unwrap();
            a_strided = a.shape().to_vec();
        }
        let y = a.sub(&b).unwrap();
        let at = |index: &[usize], shape: &[usize]| {
            let lead = index.len() - shape.len();
            let clipped: Vec<usize> =
                index[lead..].iter().zip(shape).map(|(i, d)| if *d == 1 { 0 } else { *i }).collect();
            place(&clipped, shape)
        };
        let want: Vec<f32> = indices(y.shape())
            .iter()
            .map(|i| at(i, &a_strided) - at(i, &b_shape))
            .collect();
        prop_assert_eq!(y.to_vec(), want);
        let back = b.sub(&a).unwrap().to_vec();
        prop_assert_eq!(back, y.neg().unwrap().to_vec());
    }

    #[test]
    fn sums_add_the_right_elements(
        shape in prop::collection::vec(0usize..9, 1..=4),
        reduced in prop::collection::vec(any::<bool>(), 4),
        swap: bool,
        keep: bool,
    ) {
        let mut x = counting(&shape).unwrap();
        if swap && shape.len() >= 2 {
            x = x.transpose(0, shape.len() - 1).unwrap();
        }
        let axes: Vec<usize> = (0..shape.len()).filter(|axis| reduced[*axis]).collect();
        let y = x.sum(&axes, keep).unwrap();
        let mut wide = x.shape().to_vec();
        axes.iter().for_each(|axis| wide[*axis] = 1);
        let mut want = vec![0.0; wide.iter().product()];
        for (index, value) in indices(x.shape()).iter().zip(x.to_vec()) {
            let clipped: Vec<usize> =
                index.iter().zip(&wide).map(|(i, d)| if *d == 1 { 0 } else { *i }).collect();
            want[place(&clipped, &wide) as usize] += f64::from(value);
        }
        // Whole numbers below 2^24 in every partial sum: no rounding at all.
        prop_assert_eq!(y.to_vec(), want.iter().map(|x| *x as f32).collect::<Vec<_>>());
    }

    #[test]
    fn batched_products_equal_their_definition(
        lead in prop::collection::vec(1usize..4, 0..=2),
        ones in any::<(bool, bool)>(),
        (m, k, n) in (0usize..9, 0usize..9, 0usize..9),
        swap in any::<(bool, bool)>(),
    ) {
        let side = |one: bool, rows: usize, cols: usize, swap: bool| -> Result<Tensor> {
            let lead: Vec<usize> = lead.iter().map(|d| if one { 1 } else { *d }).collect();
            let shape = if swap { [cols, rows] } else { [rows, cols] };
            let x = counting(&[&lead[..], &shape].concat())?.affine(0.125, -2.0)?;
            if swap { x.t() } else { Ok(x) }
        };
        let a = side(ones.0, m, k, swap.0).unwrap();
        let b = side(ones.1, k, n, swap.1).unwrap();
        let y = a.matmul(&b).unwrap();
        let (a_values, b_values) = (a.to_vec(), b.to_vec());
        let at = |index: &[usize], r: usize, c: usize, t: &Tensor| {
            let rank = t.rank();
            let clipped: Vec<usize> =
                index.iter().zip(t.shape()).map(|(i, d)| if *d == 1 { 0 } else { *i }).collect();
            place(&[&clipped[..rank - 2], &[r, c]].concat(), t.shape()) as usize
        };
        for (index, y) in indices(y.shape()).iter().zip(y.to_vec()) {
            let (lead, row_col) = index.split_at(index.len() - 2);
            let product = |l: usize| {
                let (i, j) = (at(lead, row_col[0], l, &a), at(lead, l, row_col[1], &b));
                f64::from(a_values[i]) * f64::from(b_values[j])
            };
            let (want, size) = (0..k).map(product).fold((0.0, 1.0), |(s, z), p| (s + p, z + p.abs()));
            // k products and sums, each rounded to 2^-24 of what was added up so far.
            prop_assert!((f64::from(y) - want).abs() <= (k + 1) as f64 * 6e-8 * size);
        }
    }
}
