//! Arrays of f64 with the few operations that the references of the case table are written in.
//!
//! Slow and plain on purpose: every loop is over an index that is taken apart by hand.

/// A row-major array of f64.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

/// The index of element `at` of a row-major array.
fn unravel(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for axis in (0..shape.len()).rev() {
        index[axis] = at % shape[axis];
        at /= shape[axis];
    }
    index
}

/// The place of an index in a row-major array; axes of size 1 repeat, missing axes are leading.
fn ravel(index: &[usize], shape: &[usize]) -> usize {
    let lead = index.len() - shape.len();
    let pairs = index[lead..].iter().zip(shape);
    pairs.fold(0, |at, (i, dim)| at * dim + if *dim == 1 { 0 } else { *i })
}

impl Array {
    pub fn new(shape: &[usize], data: Vec<f64>) -> Array {
        assert_eq!(shape.iter().product::<usize>(), data.len());
        Array { shape: shape.to_vec(), data }
    }

    /// Computes each element from its index.
    pub fn build(shape: &[usize], f: impl Fn(&[usize]) -> f64) -> Array {
        let len = shape.iter().product();
        Array::new(shape, (0..len).map(|at| f(&unravel(at, shape))).collect())
    }

    /// The element at an index, repeated along axes of size 1.
    pub fn at(&self, index: &[usize]) -> f64 {
        self.data[ravel(index, &self.shape)]
    }

    pub fn map(&self, f: impl Fn(f64) -> f64) -> Array {
        Array::new(&self.shape, self.data.iter().map(|x| f(*x)).collect())
    }

    pub fn zip(&self, other: &Array, f: impl Fn(f64, f64) -> f64) -> Array {
        let rank = self.shape.len().max(other.shape.len());
        let dim = |a: &Array, axis: usize| {
            (axis + a.shape.len()).checked_sub(rank).map_or(1, |axis| a.shape[axis])
        };
        let shape: Vec<usize> = (0..rank)
            .map(|axis| match (dim(self, axis), dim(other, axis)) {
                (1, n) => n,
                (n, _) => n,
            })
            .collect();
        Array::build(&shape, |index| f(self.at(index), other.at(index)))
    }

    pub fn reshape(&self, shape: &[usize]) -> Array {
        Array::new(shape, self.data.clone())
    }

    pub fn expand(&self, shape: &[usize]) -> Array {
        Array::build(shape, |index| self.at(index))
    }

    pub fn permute(&self, axes: &[usize]) -> Array {
        let shape: Vec<usize> = axes.iter().map(|axis| self.shape[*axis]).collect();
        Array::build(&shape, |index| {
            let mut from = vec![0; axes.len()];
            axes.iter().zip(index).for_each(|(axis, i)| from[*axis] = *i);
            self.data[ravel_exact(&from, &self.shape)]
        })
    }

    /// Swaps the last two axes.
    pub fn t(&self) -> Array {
        let mut axes: Vec<usize> = (0..self.shape.len()).collect();
        axes.swap(self.shape.len() - 2, self.shape.len() - 1);
        self.permute(&axes)
    }

    pub fn slice(&self, axis: usize, start: usize, end: usize) -> Array {
        let mut shape = self.shape.clone();
        shape[axis] = end - start;
        Array::build(&shape, |index| {
            let mut from = index.to_vec();
            from[axis] += start;
            self.data[ravel_exact(&from, &self.shape)]
        })
    }

    pub fn pad(&self, axis: usize, before: usize, after: usize) -> Array {
        let mut shape = self.shape.clone();
        shape[axis] += before + after;
        Array::build(&shape, |index| {
            let mut from = index.to_vec();
            match from[axis].checked_sub(before) {
                Some(at) if at < self.shape[axis] => {
                    from[axis] = at;
                    self.data[ravel_exact(&from, &self.shape)]
                }
                _ => 0.0,
            }
        })
    }

    /// Joins arrays along an axis.
    pub fn concat(parts: &[&Array], axis: usize) -> Array {
        let total = parts.iter().map(|p| p.shape[axis]).sum();
        let mut shape = parts[0].shape.clone();
        shape[axis] = total;
        Array::build(&shape, |index| {
            let mut from = index.to_vec();
            for part in parts {
                if from[axis] < part.shape[axis] {
                    return part.data[ravel_exact(&from, &part.shape)];
                }
                from[axis] -= part.shape[axis];
            }
            unreachable!("the index lies in one of the parts")
        })
    }

    /// Sums over axes.
    pub fn sum(&self, axes: &[usize], keep: bool) -> Array {
        let mut wide = self.shape.clone();
        axes.iter().for_each(|axis| wide[*axis] = 1);
        let mut sum = vec![0.0; wide.iter().product()];
        for (at, x) in self.data.iter().enumerate() {
            sum[ravel(&unravel(at, &self.shape), &wide)] += x;
        }
        let kept = |axis: &usize| keep || !axes.contains(axis);
        let shape: Vec<usize> = (0..wide.len()).filter(kept).map(|axis| wide[axis]).collect();
        Array::new(&shape, sum)
    }

    /// The product of the last two axes; leading axes repeat.
    pub fn matmul(&self, other: &Array) -> Array {
        let (ra, rb) = (self.shape.len(), other.shape.len());
        let (m, k, n) = (self.shape[ra - 2], self.shape[ra - 1], other.shape[rb - 1]);
        let wide = |a: &Array| {
            Array::new(
                &a.shape[..a.shape.len() - 2],
                vec![0.0; a.shape[..a.shape.len() - 2].iter().product()],
            )
        };
        let lead = wide(self).zip(&wide(other), |_, _| 0.0).shape;
        let shape = [&lead[..], &[m, n]].concat();
        Array::build(&shape, |index| {
            let (i, j) = (index[lead.len()], index[lead.len() + 1]);
            let a = ravel(&index[..lead.len()], &self.shape[..ra - 2]) * m * k + i * k;
            let b = ravel(&index[..lead.len()], &other.shape[..rb - 2]) * k * n + j;
            (0..k).map(|l| self.data[a + l] * other.data[b + l * n]).sum()
        })
    }

    /// Adds up the rows that each bag names; `None` fills a bag.
    pub fn rows(&self, bags: &[Vec<Option<usize>>]) -> Array {
        let width = self.shape[1];
        Array::build(&[bags.len(), width], |index| {
            bags[index[0]].iter().flatten().map(|id| self.data[id * width + index[1]]).sum()
        })
    }

    /// The largest element of each row of the last axis, kept as an axis of size 1.
    pub fn row_max(&self) -> Array {
        let mut shape = self.shape.clone();
        let cols = shape.pop().unwrap_or(1);
        shape.push(1);
        let max = |row: &[f64]| row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let rows = shape.iter().product();
        Array::new(&shape, (0..rows).map(|r| max(&self.data[r * cols..(r + 1) * cols])).collect())
    }
}

/// As [`ravel`], but an axis of size 1 has index 0 anyway.
fn ravel_exact(index: &[usize], shape: &[usize]) -> usize {
    index.iter().zip(shape).fold(0, |at, (i, dim)| at * dim + i)
}

/// The Gauss error function to 1e-15: its Taylor series, and beyond 5 it is 1.
pub fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut sum, mut term) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}
