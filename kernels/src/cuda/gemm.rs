//! Matrix products: `C = activation(A B (+ C) + bias) + residual`, on tensor cores where that pays.
//! Source: `kernels/cuda/gemm_*.cu`, `kernels/cuda/gemv.cu`.
//!
//! Any sizes and strides are right; fast are those whose rows (or columns) are contiguous and start at
//! multiples of 16 bytes. [`tiles::choose`] picks the tile by sizes, layout and alignment; [`Plan`] can be
//! given by hand, for measurements. A product whose result is small and whose sum is long is cut along
//! the sum: the parts go to scratch memory and are added in a fixed order, so that results do not differ
//! from run to run.

mod few;
mod tiles;

pub use few::{QuantisedRows, gemv_forward, gemv_int8_forward};
pub use tiles::{Plan, TILES, Tile, choose};

use super::{Args, Error, Gpu, Launch};
use crate::activation::Activation;

/// The type of a matrix's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 32-bit floats.
    F32,
    /// bf16.
    Bf16,
}

impl Element {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::Bf16 => 2,
        }
    }
}

/// How f32 factors are multiplied. bf16 factors are always exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Factors {
    /// As f32, without tensor cores.
    Exact,
    /// As the sum of two tf32 each, in three products on tensor cores: about 21 bits.
    #[default]
    Split,
    /// Rounded to tf32: 10 bits behind the point.
    Tf32,
}

/// A matrix in device memory; element `(r, c)` lies `r * row_stride + c * col_stride` elements behind
/// `address`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// The first element.
    pub address: u64,
    /// Type of the elements.
    pub element: Element,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one column to the next.
    pub col_stride: usize,
}

impl Matrix {
    /// A contiguous row-major `[rows, cols]` matrix.
    pub fn new(address: u64, element: Element, rows: usize, cols: usize) -> Matrix {
        Matrix { address, element, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The same elements with rows so far apart.
    pub fn row_stride(self, row_stride: usize) -> Matrix {
        Matrix { row_stride, ..self }
    }

    /// The transpose, without moving anything.
    pub fn t(self) -> Matrix {
        Matrix {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Bytes from the first element of the first of `count` matrices to the last of the last.
    fn span(&self, count: usize, stride: usize) -> usize {
        if count == 0 || self.rows == 0 || self.cols == 0 {
            return 0;
        }
        let last = (count - 1) * stride
            + (self.rows - 1) * self.row_stride
            + (self.cols - 1) * self.col_stride;
        (last + 1) * self.element.bytes()
    }

    /// Whether rows are contiguous (`false`: columns are) and the distance from one to the next; `None` if
    /// neither is.
    fn layout(&self) -> Option<(bool, usize)> {
        if self.col_stride == 1 || self.cols <= 1 {
            // A single row may claim any stride.
            Some((
                true,
                if self.rows <= 1 { self.cols.next_multiple_of(8) } else { self.row_stride },
            ))
        } else if self.row_stride == 1 || self.rows <= 1 {
            Some((
                false,
                if self.cols <= 1 { self.rows.next_multiple_of(8) } else { self.col_stride },
            ))
        } else {
            None
        }
    }
}

/// What a product does with its sums before they are written; nothing by default.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue {
    /// Whether the sums start from `C` instead of zero.
    pub accumulate: bool,
    /// f32 numbers added to each row of the sums.
    pub bias: Option<u64>,
    /// Applied to that.
    pub activation: Option<Activation>,
    /// Added last; of `C`'s type, with contiguous rows.
    pub residual: Option<Matrix>,
}

/// Products of the same sizes: how far one's operands lie behind the last one's, in elements.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    /// Number of products.
    pub count: usize,
    /// Distance between matrices `A`; 0 if they share one.
    pub stride_a: usize,
    /// Distance between matrices `B`.
    pub stride_b: usize,
    /// Distance between matrices `C`.
    pub stride_c: usize,
    /// Distance between residuals.
    pub stride_residual: usize,
}

impl Batch {
    /// One product.
    pub const ONE: Batch =
        Batch { count: 1, stride_a: 0, stride_b: 0, stride_c: 0, stride_residual: 0 };
}

/// Device memory that a launcher may write over: what parts of long sums need.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scratch {
    /// The first byte, aligned to 16.
    pub address: u64,
    /// How many there are; with none, sums are not cut.
    pub bytes: usize,
}

impl Scratch {
    /// No memory.
    pub const NONE: Scratch = Scratch { address: 0, bytes: 0 };
}

/// Computes `C = A B`, or `C = C + A B` if `accumulate`.
///
/// # Shapes
/// `a` `[m, k]`, `b` `[k, n]`, `c` `[m, n]`. `k = 0` gives zeros (or leaves `c` when accumulating).
///
/// # Errors
/// Those of the device.
///
/// # Panics
/// As [`gemm_fused_forward`].
pub fn gemm_forward(
    gpu: &dyn Gpu,
    a: Matrix,
    b: Matrix,
    c: Matrix,
    accumulate: bool,
    scratch: Scratch,
) -> Result<(), Error> {
    let epilogue = Epilogue { accumulate, ..Epilogue::default() };
    gemm_fused_forward(gpu, a, b, epilogue, c, Factors::default(), scratch)
}

/// Computes `C = activation(A B (+ C) + bias) + residual`, each part where `epilogue` has it.
///
/// # Shapes
/// `a` `[m, k]`, `b` `[k, n]`, bias `[n]`, residual and `c` `[m, n]` with contiguous rows.
///
/// # Errors
/// Those of the device.
///
/// # Panics
/// If the sizes or the types disagree, or rows of `c` or the residual are not contiguous.
pub fn gemm_fused_forward(
    gpu: &dyn Gpu,
    a: Matrix,
    b: Matrix,
    epilogue: Epilogue,
    c: Matrix,
    factors: Factors,
    scratch: Scratch,
) -> Result<(), Error> {
    if few::fits(&a, &b) {
        return gemv_forward(gpu, a, b, epilogue, c);
    }
    gemm_batched_forward(gpu, a, b, epilogue, c, Batch::ONE, factors, scratch)
}

/// Computes [`gemm_fused_forward`] for each product of a batch; the bias is the same for all.
///
/// # Errors
/// Those of the device.
///
/// # Panics
/// As [`gemm_fused_forward`].
#[allow(clippy::too_many_arguments)] // each of them is an operand or a choice of its own
pub fn gemm_batched_forward(
    gpu: &dyn Gpu,
    a: Matrix,
    b: Matrix,
    epilogue: Epilogue,
    c: Matrix,
    batch: Batch,
    factors: Factors,
    scratch: Scratch,
) -> Result<(), Error> {
    let plan = choose(gpu, &a, &b, &c, batch, factors, scratch);
    gemm_planned_forward(gpu, a, b, epilogue, c, batch, plan, scratch)
}

/// Computes [`gemm_batched_forward`] in the way that `plan` says.
///
/// # Errors
/// Those of the device.
///
/// # Panics
/// As [`gemm_fused_forward`], and if the plan cannot take these matrices.
#[allow(clippy::too_many_arguments)] // each of them is an operand or a choice of its own
pub fn gemm_planned_forward(
    gpu: &dyn Gpu,
    a: Matrix,
    b: Matrix,
    epilogue: Epilogue,
    c: Matrix,
    batch: Batch,
    plan: Plan,
    scratch: Scratch,
) -> Result<(), Error> {
    check(&a, &b, &epilogue, &c);
    if c.rows == 0 || c.cols == 0 {
        return Ok(());
    }
    // A grid has at most 65535 blocks along y.
    let mut done = 0;
    while done < batch.count {
        let part = Batch { count: (batch.count - done).min(65_535), ..batch };
        let shift = |x: Matrix, stride: usize| Matrix {
            address: x.address + (done * stride * x.element.bytes()) as u64,
            ..x
        };
        let residual = epilogue.residual.map(|x| shift(x, batch.stride_residual));
        let job = Job {
            a: shift(a, batch.stride_a),
            b: shift(b, batch.stride_b),
            c: shift(c, batch.stride_c),
            epilogue: Epilogue { residual, ..epilogue },
            batch: part,
        };
        match plan.tile {
            None => job.plain(gpu)?,
            Some(tile) => job.tiled(gpu, tile, plan.splits, scratch)?,
        }
        done += part.count;
    }
    Ok(())
}

/// Asserts that sizes and types fit together.
fn check(a: &Matrix, b: &Matrix, epilogue: &Epilogue, c: &Matrix) {
    assert_eq!((a.rows, b.cols, a.cols), (c.rows, c.cols, b.rows), "gemm: sizes");
    assert_eq!(a.element, b.element, "gemm: the factors' types");
    assert!(c.col_stride == 1 || c.cols <= 1, "gemm: rows of C are contiguous");
    assert!([a.rows, a.cols, b.cols].iter().all(|size| *size <= i32::MAX as usize / 2));
    if let Some(residual) = epilogue.residual {
        assert_eq!((residual.rows, residual.cols), (c.rows, c.cols), "gemm: the residual's sizes");
        assert_eq!(residual.element, c.element, "gemm: the residual's type");
        assert!(residual.col_stride == 1 || c.cols <= 1, "gemm: rows of the residual");
    }
}

/// The number of an activation in `finish.cuh`, and its parameter.
fn activation_code(activation: Option<Activation>) -> (i32, f32) {
    match activation {
        None | Some(Activation::Identity) => (0, 0.0),
        Some(Activation::Relu) => (1, 0.0),
        Some(Activation::LeakyRelu(slope)) => (2, slope),
        Some(Activation::Gelu) => (3, 0.0),
        Some(Activation::GeluTanh) => (4, 0.0),
        Some(Activation::Silu) => (5, 0.0),
        Some(Activation::Tanh) => (6, 0.0),
        Some(Activation::Sigmoid) => (7, 0.0),
        Some(Activation::Elu(alpha)) => (8, alpha),
        Some(Activation::Softplus) => (9, 0.0),
    }
}

/// The bits of `flags` in `finish.cuh`.
fn flags(accumulate: bool, element: Element) -> i32 {
    i32::from(accumulate) | i32::from(element == Element::Bf16) << 1
}

/// Operands of a launch.
struct Job {
    a: Matrix,
    b: Matrix,
    c: Matrix,
    epilogue: Epilogue,
    batch: Batch,
}

impl Job {
    /// The first five parameters of every kernel but `gemm_split_finish`.
    fn pointers(&self, c: u64, c_bytes: usize, with_epilogue: bool) -> Args {
        let Batch { count, stride_a, stride_b, .. } = self.batch;
        let args = Args::new()
            .span(self.a.address, self.a.span(count, stride_a))
            .span(self.b.address, self.b.span(count, stride_b))
            .span(c, c_bytes);
        if with_epilogue { self.bias_and_residual(args) } else { args.u64(0).u64(0) }
    }

    fn bias_and_residual(&self, args: Args) -> Args {
        let residual = self.epilogue.residual;
        let bytes = residual.map_or(0, |x| x.span(self.batch.count, self.batch.stride_residual));
        args.optional(self.epilogue.bias, self.c.cols * 4)
            .optional(residual.map(|x| x.address), bytes)
    }

    fn sizes(&self, args: Args) -> Args {
        args.i32(self.c.rows as i32).i32(self.c.cols as i32).i32(self.a.cols as i32)
    }

    fn residual_stride(&self) -> i64 {
        self.epilogue.residual.map_or(0, |x| x.row_stride as i64)
    }

    /// `flags`, `activation` and `slope`.
    fn finish(&self, args: Args) -> Args {
        let (activation, slope) = activation_code(self.epilogue.activation);
        args.i32(flags(self.epilogue.accumulate, self.c.element)).i32(activation).f32(slope)
    }

    fn c_bytes(&self) -> usize {
        self.c.span(self.batch.count, self.batch.stride_c)
    }

    /// The definition, for strides that no tile can take.
    fn plain(&self, gpu: &dyn Gpu) -> Result<(), Error> {
        let kernel = match self.a.element {
            Element::F32 => "gemm_f32_plain",
            Element::Bf16 => "gemm_bf16_plain",
        };
        let Batch { count, stride_a, stride_b, stride_c, stride_residual } = self.batch;
        let args = self.sizes(self.pointers(self.c.address, self.c_bytes(), true));
        let args = args
            .i64(self.a.row_stride as i64)
            .i64(self.a.col_stride as i64)
            .i64(self.b.row_stride as i64)
            .i64(self.b.col_stride as i64)
            .i64(self.c.row_stride as i64)
            .i64(self.residual_stride());
        let strides = [stride_a, stride_b, stride_c, stride_residual];
        let args = self.finish(strides.iter().fold(args, |args, stride| args.i64(*stride as i64)));
        let tiles = self.c.rows.div_ceil(16) * self.c.cols.div_ceil(16);
        let launch = Launch::new([tiles as u32, count as u32, 1], [256, 1, 1]).shared(2048);
        // SAFETY: these are the parameters of the plain kernels; they touch elements of the matrices only.
        unsafe { gpu.launch(kernel, &launch, &args) }
    }

    fn tiled(
        &self,
        gpu: &dyn Gpu,
        tile: &Tile,
        splits: usize,
        scratch: Scratch,
    ) -> Result<(), Error> {
        let Batch { count, stride_a, stride_b, stride_c, stride_residual } = self.batch;
        let (m, n, k) = (self.c.rows, self.c.cols, self.a.cols);
        let Some((kernel, [lda, ldb], alignment)) = tile.kernel(&self.a, &self.b, self.batch)
        else {
            panic!("gemm: {} cannot take {:?} and {:?}", tile.name, self.a, self.b)
        };
        let split_k = k.div_ceil(splits).next_multiple_of(tile.k).max(tile.k);
        let splits = k.div_ceil(split_k).max(1);
        let part = count * m * n;
        let grid = [(m.div_ceil(tile.m) * n.div_ceil(tile.n)) as u32, count as u32, splits as u32];
        let launch = Launch::new(grid, [tile.threads, 1, 1]).shared(tile.shared());
        let leading = |args: Args, ldc: usize, residual: i64| {
            args.i64(lda as i64).i64(ldb as i64).i64(ldc as i64).i64(residual)
        };
        let batches = |args: Args, c: usize, residual: usize, split: usize| {
            let strides = [stride_a, stride_b, c, residual, split];
            strides.iter().fold(args, |args, stride| args.i64(*stride as i64)).i32(split_k as i32)
        };
        if splits == 1 {
            let args = self.sizes(self.pointers(self.c.address, self.c_bytes(), true));
            let args = leading(args, self.c.row_stride, self.residual_stride());
            let args = self.finish(batches(args, stride_c, stride_residual, 0));
            let args = args.i32(alignment[0]).i32(alignment[1]);
            // SAFETY: these are GEMM_PARAMETERS; the kernel touches elements of the matrices only, and
            // `tile.kernel` found that the strides and addresses are as aligned as it needs.
            return unsafe { gpu.launch(&kernel, &launch, &args) };
        }
        assert!(splits * part * 4 <= scratch.bytes, "gemm: scratch memory for {splits} parts");
        let args = self.sizes(self.pointers(scratch.address, splits * part * 4, false));
        let args = batches(leading(args, n, 0), m * n, 0, part);
        let args = args.i32(0).i32(0).f32(0.0).i32(alignment[0]).i32(alignment[1]);
        // SAFETY: as above; the parts lie one behind the other in the scratch memory.
        unsafe { gpu.launch(&kernel, &launch, &args)? };

        let args = Args::new()
            .span(scratch.address, splits * part * 4)
            .span(self.c.address, self.c_bytes());
        let args = self.bias_and_residual(args).i32(m as i32).i32(n as i32);
        let args = args.i64(self.c.row_stride as i64).i64(self.residual_stride());
        let args = args.i64(stride_c as i64).i64(stride_residual as i64).i64(part as i64);
        let args = self.finish(args.i32(splits as i32));
        let blocks = (m * n.div_ceil(4)).div_ceil(256);
        let launch = Launch::new([blocks as u32, count as u32, 1], [256, 1, 1]);
        // SAFETY: these are the kernel's parameters; it reads all parts and touches elements of C.
        unsafe { gpu.launch("gemm_split_finish", &launch, &args) }
    }
}
