//! The same numbers in other layouts and types, and functions that broadcast. Source:
//! `kernels/cuda/layout.cu`.

use super::over;
use crate::cuda::{Args, Error, Gpu, Launch};
use crate::elementwise::Binary;

/// Most axes of a view.
pub const MAX_RANK: usize = 6;

/// Where the numbers of a view lie: sizes, and for each operand the way from one to the next along each
/// axis (0 where it repeats) and its address.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The address of the first number.
    pub address: u64,
    /// One for each axis, in numbers.
    pub strides: &'a [usize],
}

impl View<'_> {
    /// Numbers from the first to the last, both included.
    fn reach(self, dims: &[usize]) -> usize {
        1 + dims.iter().zip(self.strides).map(|(dim, stride)| (dim - 1) * stride).sum::<usize>()
    }
}

/// Axes of size 1 left out, and those joined that lie one in the other for all operands.
fn coalesce<const N: usize>(dims: &[usize], strides: [&[usize]; N]) -> Vec<(usize, [usize; N])> {
    assert!(dims.len() <= MAX_RANK && strides.iter().all(|s| s.len() == dims.len()));
    let mut axes: Vec<(usize, [usize; N])> = Vec::with_capacity(MAX_RANK);
    for (d, dim) in dims.iter().enumerate().filter(|(_, dim)| **dim != 1) {
        let here = strides.map(|s| s[d]);
        match axes.last_mut() {
            Some((size, outer)) if (0..N).all(|i| outer[i] == here[i] * dim) => {
                *size *= dim;
                *outer = here;
            }
            _ => axes.push((*dim, here)),
        }
    }
    axes
}

/// The axes as the kernels take them.
fn words(axes: &[(usize, [usize; 3])]) -> [u64; 24] {
    let mut words = [0; 24];
    let first = MAX_RANK - axes.len();
    for d in 0..MAX_RANK {
        let (size, strides) = if d < first { (1, [0; 3]) } else { axes[d - first] };
        words[d] = size as u64;
        for (operand, stride) in strides.into_iter().enumerate() {
            words[(1 + operand) * MAX_RANK + d] = stride as u64;
        }
    }
    words
}

/// Copies the numbers of one view to the places of another: permutations, slices, joins, paddings.
///
/// # Shapes
/// Both views have the sizes `dims`; `word` is 2 or 4, the bytes of a number. No place of `y` repeats.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
///
/// # Panics
/// If there are more than [`MAX_RANK`] axes.
pub fn copy_strided(
    gpu: &dyn Gpu,
    word: usize,
    x: View,
    y: View,
    dims: &[usize],
) -> Result<(), Error> {
    let n: usize = dims.iter().product();
    if n == 0 {
        return Ok(());
    }
    let mut axes = coalesce(dims, [x.strides, y.strides]);
    if axes.is_empty() {
        axes.push((1, [1, 1]));
    }
    if word == 4
        && let Some((batch, rows, cols)) = as_transposes(&axes)
    {
        return transpose(gpu, x.address, y.address, batch, rows, cols);
    }
    let (bytes_x, bytes_y) = (x.reach(dims) * word, y.reach(dims) * word);
    let pack = 16 / word;
    let packs = axes.last().is_some_and(|(size, s)| size.is_multiple_of(pack) && *s == [1, 1])
        && axes[..axes.len() - 1].iter().all(|(_, s)| s.iter().all(|s| s.is_multiple_of(pack)))
        && x.address.is_multiple_of(16)
        && y.address.is_multiple_of(16);
    let (mut n, mut word) = (n, word);
    if packs {
        // The same copy in words of 16 bytes.
        let last = axes.len() - 1;
        axes[last].0 /= pack;
        axes[..last].iter_mut().for_each(|(_, s)| *s = s.map(|s| s / pack));
        (n, word) = (n / pack, 16);
    }
    let axes: Vec<_> = axes.into_iter().map(|(size, [a, b])| (size, [a, b, 0])).collect();
    let args = Args::new().span(x.address, bytes_x).span(y.address, bytes_y);
    let args = args.plain(&words(&axes)).i64(n as i64);
    // SAFETY: the kernel takes x, y, axes, n and touches the places of the two views.
    unsafe { gpu.launch(&format!("copy_strided_{word}"), &over(gpu, n, 2, 0), &args) }
}

/// Whether a copy turns matrices that lie one after the other: their number, rows and columns in `x`.
fn as_transposes(axes: &[(usize, [usize; 2])]) -> Option<(usize, usize, usize)> {
    // y runs along the rows of x.
    let (batch, cols, rows) = match *axes {
        [cols, rows] => ((1, [cols.0 * rows.0; 2]), cols, rows),
        [batch, cols, rows] => (batch, cols, rows),
        _ => return None,
    };
    let image = rows.0 * cols.0;
    let turned = rows.1 == [cols.0, 1] && cols.1 == [1, rows.0] && batch.1 == [image, image];
    turned.then_some((batch.0, rows.0, cols.0))
}

/// Transposes matrices of numbers of 4 bytes.
///
/// # Shapes
/// `x` `[batch, rows, cols]`, `y` `[batch, cols, rows]`.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn transpose(
    gpu: &dyn Gpu,
    x: u64,
    y: u64,
    batch: usize,
    rows: usize,
    cols: usize,
) -> Result<(), Error> {
    let bytes = batch * rows * cols * 4;
    if bytes == 0 {
        return Ok(());
    }
    let down = rows.div_ceil(32);
    let tiles = down * cols.div_ceil(32);
    let args = Args::new().span(x, bytes).span(y, bytes).i64(rows as i64).i64(cols as i64);
    let args = args.i64(down as i64).i64(tiles as i64);
    let launch = Launch::linear((tiles * batch) as u32, 256).shared(32 * 33 * 4);
    // SAFETY: the kernel takes x, y, rows, cols, tiles_down, tiles and touches whole matrices, one for each
    // `tiles` blocks.
    unsafe { gpu.launch("copy_transposed_4", &launch, &args) }
}

/// Applies `f` to every pair of two views of the same sizes; `y` lies in order.
///
/// # Shapes
/// `a`, `b`, `y` `dims`, f32.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
///
/// # Panics
/// If there are more than [`MAX_RANK`] axes.
pub fn binary_strided_forward(
    gpu: &dyn Gpu,
    f: Binary,
    a: View,
    b: View,
    y: u64,
    dims: &[usize],
) -> Result<(), Error> {
    let n: usize = dims.iter().product();
    if n == 0 {
        return Ok(());
    }
    let axes: Vec<_> = coalesce(dims, [a.strides, b.strides])
        .into_iter()
        .map(|(size, [a, b])| (size, [a, b, 0]))
        .collect();
    let args = Args::new().i32(f as i32).span(a.address, a.reach(dims) * 4);
    let args = args.span(b.address, b.reach(dims) * 4).span(y, n * 4).plain(&words(&axes));
    // SAFETY: the kernel takes op, a, b, y, axes, n and touches the places of the views and `n` of y.
    unsafe { gpu.launch("binary_strided_f32", &over(gpu, n, 2, 0), &args.i64(n as i64)) }
}

/// Takes `a` where `mask` is not 0, else `b`; all views of the same sizes, `y` lies in order.
///
/// # Shapes
/// `mask`, `a`, `b`, `y` `dims`, f32.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
///
/// # Panics
/// If there are more than [`MAX_RANK`] axes.
pub fn where_mask_forward(
    gpu: &dyn Gpu,
    mask: View,
    a: View,
    b: View,
    y: u64,
    dims: &[usize],
) -> Result<(), Error> {
    let n: usize = dims.iter().product();
    if n == 0 {
        return Ok(());
    }
    let axes = coalesce(dims, [a.strides, b.strides, mask.strides]);
    let args = Args::new().span(mask.address, mask.reach(dims) * 4);
    let args = args.span(a.address, a.reach(dims) * 4).span(b.address, b.reach(dims) * 4);
    let args = args.span(y, n * 4).plain(&words(&axes)).i64(n as i64);
    // SAFETY: the kernel takes mask, a, b, y, axes, n and touches the places of the views and `n` of y.
    unsafe { gpu.launch("where_mask_f32", &over(gpu, n, 2, 0), &args) }
}

/// Writes one word of 4 bytes everywhere.
///
/// # Shapes
/// `y` `[n]`.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn fill(gpu: &dyn Gpu, y: u64, value: u32, n: usize) -> Result<(), Error> {
    if n == 0 {
        return Ok(());
    }
    let args = Args::new().span(y, n * 4).u32(value).i64(n as i64);
    // SAFETY: the kernel takes y, value, n and touches `n` words.
    unsafe { gpu.launch("fill_4", &over(gpu, n, 16, 16), &args) }
}

/// Rounds f32 to bf16.
///
/// # Shapes
/// `x`, `y` `[n]`.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn to_bf16(gpu: &dyn Gpu, x: u64, y: u64, n: usize) -> Result<(), Error> {
    if n == 0 {
        return Ok(());
    }
    let args = Args::new().span(x, n * 4).span(y, n * 2).i64(n as i64);
    // SAFETY: the kernel takes x, y, n and touches `n` numbers of both.
    unsafe { gpu.launch("cast_f32_bf16", &over(gpu, n, 16, 0), &args) }
}

/// Widens bf16 to f32.
///
/// # Shapes
/// `x`, `y` `[n]`.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn from_bf16(gpu: &dyn Gpu, x: u64, y: u64, n: usize) -> Result<(), Error> {
    if n == 0 {
        return Ok(());
    }
    let args = Args::new().span(x, n * 2).span(y, n * 4).i64(n as i64);
    // SAFETY: the kernel takes x, y, n and touches `n` numbers of both.
    unsafe { gpu.launch("cast_bf16_f32", &over(gpu, n, 16, 0), &args) }
}
