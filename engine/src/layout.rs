//! How the elements of a tensor lie in its storage: sizes, strides, offset.

use crate::error::{Error, Result};

/// The most axes that a tensor may have.
pub const MAX_RANK: usize = 6;

/// Sizes and strides (in elements) of a view over shared storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    rank: usize,
    dims: [usize; MAX_RANK],
    strides: [usize; MAX_RANK],
    offset: usize,
}

impl Layout {
    /// Lays a shape out row-major from the start of its storage.
    ///
    /// # Errors
    /// If there are more than [`MAX_RANK`] axes or more elements than memory can hold.
    pub fn contiguous(op: &'static str, dims: &[usize]) -> Result<Layout> {
        if dims.len() > MAX_RANK {
            let why = format!("at most {MAX_RANK} axes");
            return Err(Error::shape(op, dims, &[], why));
        }
        // The product without the zeros is checked too: strides are computed from it.
        let product = dims.iter().try_fold(1usize, |n, d| n.checked_mul((*d).max(1)));
        if product.is_none_or(|n| n > isize::MAX as usize / 8) {
            return Err(Error::shape(op, dims, &[], "too many elements"));
        }
        let mut layout =
            Layout { rank: dims.len(), dims: [1; MAX_RANK], strides: [0; MAX_RANK], offset: 0 };
        layout.dims[..dims.len()].copy_from_slice(dims);
        let mut stride = 1;
        for axis in (0..dims.len()).rev() {
            layout.strides[axis] = stride;
            stride *= dims[axis].max(1);
        }
        Ok(layout)
    }

    /// Sizes of the axes.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// Elements from one index to the next, for each axis.
    pub fn strides(&self) -> &[usize] {
        &self.strides[..self.rank]
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Where the first element lies.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.dims().iter().product()
    }

    /// Tells whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.dims().contains(&0)
    }

    /// Tells whether the elements lie row-major without gaps.
    pub fn is_contiguous(&self) -> bool {
        let mut stride = 1;
        for (dim, s) in self.dims().iter().zip(self.strides()).rev() {
            if *dim == 0 {
                return true;
            }
            if *dim != 1 && *s != stride {
                return false;
            }
            stride *= dim;
        }
        true
    }

    /// The same elements under another shape, if no copy is needed.
    pub(crate) fn reshape(&self, dims: &[usize]) -> Option<Layout> {
        if !self.is_contiguous() {
            return None;
        }
        let mut layout = Layout::contiguous("reshape", dims).ok()?;
        layout.offset = self.offset;
        (layout.len() == self.len()).then_some(layout)
    }

    /// Reorders the axes; `axes` is a permutation.
    pub(crate) fn permute(&self, axes: &[usize]) -> Layout {
        let mut layout = *self;
        for (to, from) in axes.iter().enumerate() {
            layout.dims[to] = self.dims[*from];
            layout.strides[to] = self.strides[*from];
        }
        layout
    }

    /// Keeps `start..start + len` of one axis.
    pub(crate) fn slice(&self, axis: usize, start: usize, len: usize) -> Layout {
        let mut layout = *self;
        layout.dims[axis] = len;
        // Nothing lies anywhere: an offset would point behind the storage.
        layout.offset =
            if layout.is_empty() { 0 } else { self.offset + start * self.strides[axis] };
        layout
    }

    /// Repeats axes of size 1 (and adds leading ones) without moving anything.
    pub(crate) fn expand(&self, op: &'static str, dims: &[usize]) -> Result<Layout> {
        let mut layout = Layout::contiguous(op, dims)?;
        layout.offset = self.offset;
        layout.strides = [0; MAX_RANK];
        let fault = |why: &str| Error::shape(op, self.dims(), dims, why);
        let lead = dims.len().checked_sub(self.rank).ok_or_else(|| fault("an axis is missing"))?;
        for axis in 0..self.rank {
            if self.dims[axis] == dims[lead + axis] {
                layout.strides[lead + axis] = self.strides[axis];
            } else if self.dims[axis] != 1 {
                return Err(fault("only an axis of size 1 can be repeated"));
            }
        }
        Ok(layout)
    }
}

/// The shape that two shapes broadcast to: axes are matched from the last, size 1 repeats.
pub(crate) fn broadcast(op: &'static str, a: &[usize], b: &[usize]) -> Result<Layout> {
    let rank = a.len().max(b.len());
    if rank > MAX_RANK {
        return Err(Error::shape(op, a, b, format!("at most {MAX_RANK} axes")));
    }
    let mut dims = [1; MAX_RANK];
    for i in 0..rank {
        let from_end = |d: &[usize]| d.len().checked_sub(i + 1).map_or(1, |at| d[at]);
        dims[rank - 1 - i] = match (from_end(a), from_end(b)) {
            (x, y) if x == y => x,
            (1, y) => y,
            (x, 1) => x,
            (x, y) => return Err(Error::shape(op, a, b, format!("sizes {x} and {y} differ"))),
        };
    }
    Layout::contiguous(op, &dims[..rank])
}

/// Merges neighbouring axes that all layouts step through as one, so that loops have long rows.
///
/// Returns the merged sizes and the strides of each layout; axes of size 1 vanish.
pub(crate) fn coalesce<const N: usize>(layouts: [&Layout; N]) -> (Vec<usize>, [Vec<usize>; N]) {
    let mut dims: Vec<usize> = Vec::with_capacity(MAX_RANK);
    let mut strides: [Vec<usize>; N] = std::array::from_fn(|_| Vec::with_capacity(MAX_RANK));
    for axis in 0..layouts[0].rank {
        let dim = layouts[0].dims[axis];
        if dim == 1 {
            continue;
        }
        let joins = !dims.is_empty()
            && (0..N).all(|i| strides[i].last() == Some(&(layouts[i].strides[axis] * dim)));
        if let (true, Some(last)) = (joins, dims.last_mut()) {
            *last *= dim;
            for i in 0..N {
                strides[i].pop();
                strides[i].push(layouts[i].strides[axis]);
            }
        } else {
            dims.push(dim);
            (0..N).for_each(|i| strides[i].push(layouts[i].strides[axis]));
        }
    }
    (dims, strides)
}

/// Calls `f` with the offsets of every index over `dims`, the last axis running fastest.
pub(crate) fn for_each_index<const N: usize>(
    dims: &[usize],
    strides: [&[usize]; N],
    mut f: impl FnMut([usize; N]),
) {
    if dims.contains(&0) {
        return;
    }
    let (mut index, mut at) = ([0; MAX_RANK], [0; N]);
    loop {
        f(at);
        let mut axis = dims.len();
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            index[axis] += 1;
            if index[axis] < dims[axis] {
                (0..N).for_each(|i| at[i] += strides[i][axis]);
                break;
            }
            (0..N).for_each(|i| at[i] -= (dims[axis] - 1) * strides[i][axis]);
            index[axis] = 0;
        }
    }
}

/// Copies the elements of a view, row-major, into `y`.
pub(crate) fn copy_strided(x: &[f32], layout: &Layout, y: &mut [f32]) {
    if layout.is_empty() {
        return;
    }
    let x = &x[layout.offset..];
    let (dims, [strides]) = coalesce([layout]);
    let Some((&cols, outer)) = dims.split_last() else {
        y[0] = x[0];
        return;
    };
    let (outer_strides, stride) = (&strides[..outer.len()], strides[outer.len()]);
    if stride <= 1 {
        let mut rows = y.chunks_exact_mut(cols);
        for_each_index(outer, [outer_strides], |[at]| {
            let Some(row) = rows.next() else { return };
            if stride == 1 {
                row.copy_from_slice(&x[at..at + cols]);
            } else {
                row.fill(x[at]);
            }
        });
    } else if let Some((&rows, outermost)) = outer.split_last() {
        // Both sides of a transpose stay in the cache when it is done in blocks.
        const BLOCK: usize = 32;
        let row_stride = outer_strides[outermost.len()];
        let mut planes = y.chunks_exact_mut(rows * cols);
        for_each_index(outermost, [&outer_strides[..outermost.len()]], |[at]| {
            let Some(plane) = planes.next() else { return };
            for r0 in (0..rows).step_by(BLOCK) {
                for c0 in (0..cols).step_by(BLOCK) {
                    let c1 = (c0 + BLOCK).min(cols);
                    for r in r0..(r0 + BLOCK).min(rows) {
                        let from = at + r * row_stride;
                        for (c, y) in (c0..c1).zip(&mut plane[r * cols + c0..r * cols + c1]) {
                            *y = x[from + c * stride];
                        }
                    }
                }
            }
        });
    } else {
        y.iter_mut().zip(x.iter().step_by(stride)).for_each(|(y, x)| *y = *x);
    }
}
