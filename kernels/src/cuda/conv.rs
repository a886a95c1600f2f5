//! Convolution over one to three axes, its transpose, and all their gradients. Source:
//! `kernels/cuda/conv_*.cu`.
//!
//! As on the CPU three sums are all there is: the forward, the gradient of the data and that of the
//! filter. Each is linear in both of its factors, and its gradients are the other two; so a second
//! derivative, as a gradient penalty needs it, calls the same three functions.
//!
//! Results have the same bits in every run: sums are cut along samples and taps in one way that depends
//! on the sizes alone, and the parts are added in order.

use super::gemm::Scratch;
use super::{Args, Error, Gpu, Launch};
use crate::conv::ConvShape;

/// How factors are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Factors {
    /// One sum per thread, without tensor cores: the definition.
    Plain,
    /// As the sum of two tf32 each, in three products on tensor cores: about 21 bits.
    #[default]
    Split,
    /// Rounded to tf32: 10 bits behind the point, as PyTorch's convolutions do unless told otherwise.
    Tf32,
}

/// Rows and columns of a block's tile. Rows are output channels, or input channels and remainders of the
/// stride; columns are places, or input channels and taps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tile {
    /// For few results.
    T32x64,
    /// For few channels; tf32 only.
    T32x128,
    /// In between.
    T64x64,
    /// For many results; tf32 only.
    T64x128,
    /// For many channels; tf32 only.
    T128x128,
}

/// How a convolution is computed; by default chosen by its sizes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plan {
    /// How factors are multiplied.
    pub factors: Factors,
    /// The tile.
    pub tile: Option<Tile>,
    /// Parts that the sum is cut into, at most; they need scratch memory for as many results.
    pub splits: Option<usize>,
    /// Memory for those parts.
    pub scratch: Scratch,
}

impl Tile {
    /// Every tile.
    pub const ALL: [Tile; 5] =
        [Tile::T32x64, Tile::T32x128, Tile::T64x64, Tile::T64x128, Tile::T128x128];

    /// Whether there are kernels that multiply so.
    pub fn has(self, factors: Factors) -> bool {
        factors == Factors::Tf32 || matches!(self, Tile::T32x64 | Tile::T64x64)
    }

    /// Rows, columns, depth between two barriers, stages of shared memory.
    fn sizes(self) -> [usize; 4] {
        match self {
            Tile::T32x64 => [32, 64, 32, 3],
            Tile::T32x128 => [32, 128, 32, 3],
            Tile::T64x64 => [64, 64, 32, 3],
            Tile::T64x128 => [64, 128, 32, 3],
            Tile::T128x128 => [128, 128, 16, 4],
        }
    }

    fn threads(self) -> u32 {
        if self == Tile::T32x64 { 128 } else { 256 }
    }

    /// Bytes of shared memory: the stages or the sums in their place, tables of rows, columns and depth,
    /// biases.
    fn shared(self) -> u32 {
        let [m, n, k, stages] = self.sizes();
        let tables = (2 * m + 2 * n + 2 * stages * k) * 16 + m * 4;
        ((stages * (m + n) * k * 4).max(m * n * 4) + tables) as u32
    }

    fn name(self) -> String {
        let [m, n, ..] = self.sizes();
        format!("{m}x{n}")
    }
}

/// `Size` of `conv_shape.cuh`: a number, and what divides by it.
fn divisor(size: usize) -> [u32; 3] {
    let size = u32::try_from(size).expect("a size below 2^31");
    let bits = size.max(1).next_power_of_two().trailing_zeros();
    let magic = (1u64 << (31 + bits)).div_ceil(u64::from(size.max(1)));
    [size, magic as u32, 31 + bits]
}

/// A convolution in the words of `conv_shape.cuh`: 4 sizes, 18 divisors, 9 numbers.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Packed([u32; 67]);

// SAFETY: an array of u32 has no padding, and a transparent struct adds none.
unsafe impl bytemuck::NoUninit for Packed {}

fn packed(shape: &ConvShape) -> Packed {
    let mut words = [0; 67];
    let [cin, cout] = [shape.channels_in, shape.channels_out].map(|c| c / shape.groups);
    for (to, from) in words.iter_mut().zip([shape.batch, shape.groups, cin, cout]) {
        *to = from as u32;
    }
    let walk = [0, 1, 2].map(|a| Walk::new(shape, a));
    let sizes = [
        shape.input,
        shape.output,
        shape.kernel,
        shape.stride,
        walk.map(|walk| walk.taps),
        walk.map(|walk| walk.places),
    ];
    for (to, size) in words[4..58].chunks_exact_mut(3).zip(sizes.as_flattened()) {
        to.copy_from_slice(&divisor(*size));
    }
    let rest = [shape.padding, shape.dilation, walk.map(|walk| walk.first)];
    for (to, from) in words[58..].iter_mut().zip(rest.as_flattened()) {
        *to = *from as u32;
    }
    Packed(words)
}

/// How the gradient of the data walks along an axis: input place `p` has `j = (p + padding) / stride`.
#[derive(Clone, Copy)]
struct Walk {
    /// Taps that one remainder meets.
    taps: usize,
    /// First `j`.
    first: usize,
    /// Number of `j`.
    places: usize,
}

impl Walk {
    fn new(shape: &ConvShape, axis: usize) -> Walk {
        let (stride, padding) = (shape.stride[axis], shape.padding[axis]);
        let first = padding / stride;
        let last = (shape.input[axis] + padding).saturating_sub(1) / stride;
        let places = if shape.input[axis] == 0 { 0 } else { last - first + 1 };
        Walk { taps: shape.kernel[axis].div_ceil(stride), first, places }
    }
}

/// Which of the three sums.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sum {
    Forward,
    Data,
    Filter,
}

/// One sum as a product of matrices.
struct Job<'a> {
    sum: Sum,
    shape: &'a ConvShape,
    /// The factors in the order of the kernel's parameters, with their elements.
    factors: [(u64, usize); 2],
    bias: Option<u64>,
    result: (u64, usize),
    /// Channels and places of the result, for the bias.
    channels: usize,
    places: usize,
}

impl Job<'_> {
    /// Rows, columns and depth of a group's product.
    fn sizes(&self) -> [usize; 3] {
        let s = self.shape;
        let [cin, cout] = [s.channels_in, s.channels_out].map(|c| c / s.groups);
        let volume = |x: [usize; 3]| x.iter().product::<usize>();
        let walk = [0, 1, 2].map(|a| Walk::new(s, a));
        match self.sum {
            Sum::Forward => [cout, s.batch * volume(s.output), cin * volume(s.kernel)],
            Sum::Data => [
                cin * volume(s.stride),
                s.batch * volume(walk.map(|walk| walk.places)),
                cout * volume(walk.map(|walk| walk.taps)),
            ],
            Sum::Filter => [cout, cin * volume(s.kernel), s.batch * volume(s.output)],
        }
    }

    fn name(&self) -> &'static str {
        match self.sum {
            Sum::Forward => "conv_forward",
            Sum::Data => "conv_data",
            Sum::Filter => "conv_filter",
        }
    }

    /// Whether tiles cannot: offsets of 32 bits, and no dilation on a strided axis in the data's gradient.
    fn must_be_plain(&self) -> bool {
        let s = self.shape;
        let strided = (0..3).any(|a| s.stride[a] > 1 && s.dilation[a] > 1);
        let [rows, cols, depth] = self.sizes();
        let largest = [self.factors[0].1, self.factors[1].1, self.result.1, rows, cols, depth];
        // Windows begin before the image and taps end behind it: half the range is left for that.
        self.sum == Sum::Data && strided || largest.iter().any(|size| *size >= 1 << 29)
    }

    fn operands(&self, result: (u64, usize), bias: Option<u64>) -> Args {
        let args = self.factors.iter().fold(Args::new(), |args, x| args.span(x.0, x.1 * 4));
        let args = match self.sum {
            Sum::Filter => args,
            _ => args.optional(bias, self.channels * 4),
        };
        args.span(result.0, result.1 * 4)
    }

    fn run(&self, gpu: &dyn Gpu, plan: Plan) -> Result<(), Error> {
        if self.result.1 == 0 {
            return Ok(());
        }
        if plan.factors == Factors::Plain || self.must_be_plain() {
            return self.plain(gpu);
        }
        let [rows, cols, depth] = self.sizes();
        let (tile, splits) = self.choose(plan, gpu.properties().sms as usize);
        let [m, n, k, _] = tile.sizes();
        let split_k = depth.div_ceil(splits).next_multiple_of(k).max(k);
        let splits = depth.div_ceil(split_k).max(1);

        let kind = if plan.factors == Factors::Tf32 { "tf32" } else { "f32" };
        let kernel = format!("{}_{kind}_{}", self.name(), tile.name());
        let tiles = rows.div_ceil(m) * cols.div_ceil(n);
        let grid = [tiles as u32, self.shape.groups as u32, splits as u32];
        let launch = Launch::new(grid, [tile.threads(), 1, 1]).shared(tile.shared());
        let parts = splits * self.result.1;
        let args = match splits {
            1 => self.operands(self.result, self.bias),
            _ => self.operands((plan.scratch.address, parts), None),
        };
        let args = match self.sum {
            Sum::Forward => args.i32(self.filter_alignment(rows, depth)),
            _ => args,
        };
        let stride = if splits == 1 { 0 } else { self.result.1 as i64 };
        let args = args.i32(split_k as i32).i64(stride).plain(&packed(self.shape));
        // SAFETY: these are the parameters of the macros in conv_tile.cuh. Elements of the factors are
        // read where coordinates lie inside of the image and the kernel, and each element of the result
        // (or of each part of it, in scratch memory) is written once.
        unsafe { gpu.launch(&kernel, &launch, &args)? };
        if splits == 1 {
            return Ok(());
        }
        let from = (plan.scratch.address, parts);
        finish(gpu, from, self.bias, self.result, splits, self.channels, self.places)
    }

    /// The bytes that the addresses of all rows of the filter are multiples of, 16 or 4.
    fn filter_alignment(&self, rows: usize, depth: usize) -> i32 {
        let strides = (rows * depth * 4 * usize::from(self.shape.groups > 1)) | (depth * 4);
        let all = self.factors[1].0 | strides as u64;
        if all.is_multiple_of(16) { 16 } else { 4 }
    }

    /// The tile and the number of parts that should be fastest, of those that the plan leaves open.
    fn choose(&self, plan: Plan, sms: usize) -> (Tile, usize) {
        let [rows, cols, _] = self.sizes();
        let room = (plan.scratch.bytes / (self.result.1 * 4)).max(1);
        let tiles = Tile::ALL.into_iter().filter(|tile| match plan.tile {
            Some(wanted) => *tile == wanted,
            None => tile.has(plan.factors),
        });
        let ways = tiles.flat_map(|tile| {
            let [m, n, ..] = tile.sizes();
            let blocks = rows.div_ceil(m) * cols.div_ceil(n) * self.shape.groups;
            // A whole sum, or parts for one to four rounds of blocks.
            let parts = (0..=4).map(move |rounds| rounds * sms / blocks);
            parts.map(move |parts| (tile, plan.splits.unwrap_or(parts.min(64)).clamp(1, room)))
        });
        let time = |way: &(Tile, usize)| self.microseconds(plan.factors, way.0, way.1, sms);
        ways.min_by(|a, b| time(a).total_cmp(&time(b))).expect("every plan has a tile")
    }

    /// About how long it takes, less what every launch does. The numbers are fitted to the times of all
    /// tiles and parts of `etude bench --device cuda conv` on an H200; of the ways measured there, they
    /// pick one within 5 % of the fastest in nine cases of ten.
    fn microseconds(&self, factors: Factors, tile: Tile, splits: usize, sms: usize) -> f64 {
        let [rows, cols, depth] = self.sizes();
        let [m, n, k, _] = tile.sizes();
        let split_k = depth.div_ceil(splits).next_multiple_of(k).max(k);
        let splits = depth.div_ceil(split_k).max(1);
        // Of 32 terms of the sum in every multiprocessor: with a block each, and for each block more.
        let (alone, more) = match (tile, factors) {
            (Tile::T32x64, Factors::Tf32) => (0.7, 0.51),
            (Tile::T32x128, _) => (0.86, 0.86),
            (Tile::T64x64, Factors::Tf32) => (0.76, 0.76),
            (Tile::T64x128, _) => (1.13, 1.13),
            (Tile::T128x128, _) => (1.9, 1.9),
            (Tile::T32x64, _) => (0.97, 0.73),
            (Tile::T64x64, _) => (1.25, 1.25),
        };
        let blocks = rows.div_ceil(m) * cols.div_ceil(n) * self.shape.groups * splits;
        let each = blocks as f64 / sms as f64;
        // Blocks of a last round that is not full have more of a multiprocessor for themselves, where
        // several share it.
        let shared = if tile == Tile::T128x128 { each.ceil() } else { each };
        let rounds = ((each.ceil() + shared) / 2.0).max(1.0);
        // A block begins and ends as slowly as 48 terms are added.
        let steps = split_k.div_ceil(32) as f64 + 1.5;
        // A second launch, and a million numbers to add in a microsecond.
        let finish = if splits > 1 { 5.0 + (splits * self.result.1) as f64 * 1e-6 } else { 0.0 };
        f64::max(alone, rounds * more) * steps + finish
    }

    fn plain(&self, gpu: &dyn Gpu) -> Result<(), Error> {
        let per_block = if self.sum == Sum::Filter { 8 } else { 256 };
        let launch = Launch::linear(self.result.1.div_ceil(per_block) as u32, 256);
        let args = self.operands(self.result, self.bias).plain(&packed(self.shape));
        // SAFETY: these are the parameters of the plain kernels, which read and write elements of the
        // operands only.
        unsafe { gpu.launch(&format!("{}_plain", self.name()), &launch, &args) }
    }
}

/// Adds parts of a result, in order.
fn finish(
    gpu: &dyn Gpu,
    parts: (u64, usize),
    bias: Option<u64>,
    result: (u64, usize),
    splits: usize,
    channels: usize,
    places: usize,
) -> Result<(), Error> {
    let args = Args::new()
        .span(parts.0, parts.1 * 4)
        .optional(bias, channels * 4)
        .span(result.0, result.1 * 4)
        .i64(result.1 as i64)
        .i32(splits as i32)
        .i64(result.1 as i64)
        .i32(channels as i32)
        .i32(places as i32);
    let launch = Launch::linear(result.1.div_ceil(256) as u32, 256);
    // SAFETY: these are the parameters of conv_finish, which reads all parts and writes the result.
    unsafe { gpu.launch("conv_finish", &launch, &args) }
}

/// Asserts that the sizes make sense, as the CPU's kernels do.
fn check(shape: &ConvShape) {
    assert!(shape.groups > 0 && shape.channels_in.is_multiple_of(shape.groups));
    assert!(shape.channels_out.is_multiple_of(shape.groups));
    for a in 0..3 {
        let most = ConvShape::output_size(
            shape.input[a],
            shape.kernel[a],
            shape.stride[a],
            shape.padding[a],
            shape.dilation[a],
        );
        assert!(most.is_some_and(|most| shape.output[a] <= most), "conv: {shape:?}");
    }
}

/// Computes a convolution.
///
/// # Shapes
/// `x` `[batch, channels_in, d, h, w]`, `w` `[channels_out, channels_in / groups, kd, kh, kw]`,
/// `bias` `[channels_out]`, `y` `[batch, channels_out, d', h', w']`, all f32.
///
/// # Errors
/// Those of the device.
///
/// # Panics
/// If `output` is larger than the sizes allow.
pub fn conv_forward(
    gpu: &dyn Gpu,
    x: u64,
    w: u64,
    bias: Option<u64>,
    y: u64,
    shape: &ConvShape,
    plan: Plan,
) -> Result<(), Error> {
    check(shape);
    let job = Job {
        sum: Sum::Forward,
        shape,
        factors: [(x, shape.x_len()), (w, shape.w_len())],
        bias,
        result: (y, shape.y_len()),
        channels: shape.channels_out,
        places: shape.output.iter().product(),
    };
    job.run(gpu, plan)
}

/// Computes the gradient of the data: the transposed convolution of `d_y`, plus `bias` if there is one.
///
/// # Shapes
/// As in [`conv_forward`]: `d_y` as `y`, `d_x` as `x`; `bias` `[channels_in]`.
///
/// # Errors
/// Those of the device.
///
/// # Panics
/// As [`conv_forward`].
pub fn conv_data_backward(
    gpu: &dyn Gpu,
    d_y: u64,
    w: u64,
    bias: Option<u64>,
    d_x: u64,
    shape: &ConvShape,
    plan: Plan,
) -> Result<(), Error> {
    check(shape);
    let job = Job {
        sum: Sum::Data,
        shape,
        factors: [(d_y, shape.y_len()), (w, shape.w_len())],
        bias,
        result: (d_x, shape.x_len()),
        channels: shape.channels_in,
        places: shape.input.iter().product(),
    };
    job.run(gpu, plan)
}

/// Computes the gradient of the filter and, if it is wanted, of the bias.
///
/// # Shapes
/// As in [`conv_forward`]: `d_y` as `y`, `d_w` as `w`; `d_bias` `[channels_out]`.
///
/// # Errors
/// Those of the device.
///
/// # Panics
/// As [`conv_forward`].
pub fn conv_filter_backward(
    gpu: &dyn Gpu,
    x: u64,
    d_y: u64,
    d_w: u64,
    d_bias: Option<u64>,
    shape: &ConvShape,
    plan: Plan,
) -> Result<(), Error> {
    check(shape);
    let job = Job {
        sum: Sum::Filter,
        shape,
        factors: [(x, shape.x_len()), (d_y, shape.y_len())],
        bias: None,
        result: (d_w, shape.w_len()),
        channels: 1,
        places: 1,
    };
    job.run(gpu, plan)?;
    let places = shape.output.iter().product();
    match d_bias {
        Some(d_bias) => {
            bias_backward(gpu, d_y, d_bias, shape.batch, shape.channels_out, places, plan.scratch)
        }
        None => Ok(()),
    }
}

/// Computes a transposed convolution. `shape` is that of the convolution whose transpose it is.
///
/// # Shapes
/// `x` `[batch, channels_out, d', h', w']`, `w` `[channels_out, channels_in / groups, kd, kh, kw]`,
/// `bias` `[channels_in]`, `y` `[batch, channels_in, d, h, w]`, in the words of `shape`.
///
/// # Errors
/// Those of the device.
///
/// # Panics
/// As [`conv_forward`].
pub fn conv_transpose_forward(
    gpu: &dyn Gpu,
    x: u64,
    w: u64,
    bias: Option<u64>,
    y: u64,
    shape: &ConvShape,
    plan: Plan,
) -> Result<(), Error> {
    conv_data_backward(gpu, x, w, bias, y, shape, plan)
}

/// Computes the gradients of a transposed convolution: of its data (which is [`conv_forward`]), its
/// filter and its bias.
///
/// # Shapes
/// As in [`conv_transpose_forward`].
///
/// # Errors
/// Those of the device.
///
/// # Panics
/// As [`conv_forward`].
#[allow(clippy::too_many_arguments)] // the CPU's, and the device
pub fn conv_transpose_backward(
    gpu: &dyn Gpu,
    x: u64,
    w: u64,
    d_y: u64,
    d_x: u64,
    d_w: u64,
    d_bias: u64,
    shape: &ConvShape,
    plan: Plan,
) -> Result<(), Error> {
    conv_forward(gpu, d_y, w, None, d_x, shape, plan)?;
    conv_filter_backward(gpu, d_y, x, d_w, None, shape, plan)?;
    let places = shape.input.iter().product();
    bias_backward(gpu, d_y, d_bias, shape.batch, shape.channels_in, places, plan.scratch)
}

/// Sums `d_y` over samples and places.
///
/// # Shapes
/// `d_y` `[batch, channels, places]`, `d_bias` `[channels]`.
///
/// # Errors
/// Those of the device.
pub fn bias_backward(
    gpu: &dyn Gpu,
    d_y: u64,
    d_bias: u64,
    batch: usize,
    channels: usize,
    places: usize,
    scratch: Scratch,
) -> Result<(), Error> {
    if channels == 0 {
        return Ok(());
    }
    // Parts of at least 2048 numbers, until every multiprocessor has two blocks.
    let wanted = (2 * gpu.properties().sms as usize).div_ceil(channels);
    let room = scratch.bytes / (4 * channels);
    let parts = wanted.min(batch * places / 2048).min(room).max(1);
    let to = if parts == 1 { d_bias } else { scratch.address };
    let args = Args::new()
        .span(d_y, batch * channels * places * 4)
        .span(to, parts * channels * 4)
        .i32(batch as i32)
        .i32(channels as i32)
        .i32(places as i32);
    let launch = Launch::new([channels as u32, parts as u32, 1], [256, 1, 1]).shared(32 * 4);
    // SAFETY: these are the parameters of conv_bias_backward, which reads all of `d_y` and writes a sum
    // for each channel and part.
    unsafe { gpu.launch("conv_bias_backward", &launch, &args)? };
    if parts == 1 {
        return Ok(());
    }
    finish(gpu, (to, parts * channels), None, (d_bias, channels), parts, channels, 1)
}
