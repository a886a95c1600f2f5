//! Softmax, log-softmax and cross-entropy over the last axis. Source: `kernels/cuda/rows.cu`.

use super::{Args, Error, Gpu, Launch};

pub mod reduce;

/// What the numbers of a device buffer are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Float {
    /// 32 bits.
    F32,
    /// The upper 16 bits of that.
    Bf16,
}

impl Float {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Float::F32 => 4,
            Float::Bf16 => 2,
        }
    }

    /// What kernels for it have in their names.
    pub fn name(self) -> &'static str {
        match self {
            Float::F32 => "f32",
            Float::Bf16 => "bf16",
        }
    }
}

/// Columns from which on a row is not held in registers.
const LONGEST: usize = 8192;

/// How a kernel goes over rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walk {
    /// The end of the kernel's name, such as `w8`: a warp a row, up to 8 packs of 16 bytes a lane; `b4`:
    /// a block a row, up to 4 packs a thread; `long`: a row of any length.
    pub form: &'static str,
    /// Blocks for each multiprocessor, which then go on to further rows; 0: as many as there are rows.
    pub blocks_per_sm: u32,
}

impl Walk {
    /// The forms that can take rows of `cols` numbers, the preferred one first.
    pub fn forms(float: Float, cols: usize) -> &'static [&'static str] {
        match (float, cols) {
            (Float::F32, ..=256) => &["w2", "w8", "b4", "long"],
            (Float::F32, ..=1024) => &["w8", "b4", "long"],
            (Float::F32, ..=LONGEST) => &["b4", "long"],
            (Float::Bf16, ..=256) => &["w1", "w4", "b2", "long"],
            (Float::Bf16, ..=1024) => &["w4", "b2", "long"],
            (Float::Bf16, ..=LONGEST) => &["b2", "long"],
            _ => &["long"],
        }
    }

    /// The one for rows of `cols` numbers, as measured on an H200: a block a row in bf16 is so short that
    /// going on to the next row beats a new block.
    pub fn of(float: Float, cols: usize) -> Walk {
        let form = Walk::forms(float, cols)[0];
        let goes_on = form == "b2" && cols > LONGEST / 2;
        Walk { form, blocks_per_sm: if goes_on { 2 } else { 0 } }
    }

    /// The one for cross-entropy, whose blocks wait for a target first: going on pays in f32, too.
    fn of_targets(float: Float, cols: usize) -> Walk {
        let walk = Walk::of(float, cols);
        let goes_on = walk.form == "b4" && cols > LONGEST / 2;
        if goes_on { Walk { blocks_per_sm: 2, ..walk } } else { walk }
    }

    /// Threads of a block, and rows of `cols` numbers that it works on at a time.
    fn block(self, cols: usize) -> (u32, usize) {
        match self.form {
            "w1" | "w2" | "w4" | "w8" => (128, 4),
            // 16 numbers a thread.
            "b2" | "b4" => (cols.div_ceil(16).next_multiple_of(32) as u32, 1),
            _ => (512, 1),
        }
    }

    /// Grid, block and room for the reductions.
    pub(super) fn launch(self, gpu: &dyn Gpu, rows: usize, cols: usize) -> Launch {
        let (threads, at_once) = self.block(cols);
        let blocks = rows.div_ceil(at_once);
        let blocks = match self.blocks_per_sm {
            0 => blocks,
            per_sm => blocks.min((per_sm * gpu.properties().sms) as usize),
        };
        Launch::linear(blocks as u32, threads).shared(256)
    }
}

/// The columns as the kernels of a form take them.
pub(super) fn columns(args: Args, walk: Walk, cols: usize) -> Args {
    if walk.form == "long" { args.i64(cols as i64) } else { args.i32(cols as i32) }
}

/// Computes `y = exp(x - max) / sum` for each row.
///
/// # Shapes
/// `x`, `y` `[rows, cols]`; they may be the same.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn softmax_forward(
    gpu: &dyn Gpu,
    float: Float,
    x: u64,
    y: u64,
    rows: usize,
    cols: usize,
) -> Result<(), Error> {
    forward(gpu, Walk::of(float, cols), float, x, y, rows, cols, false)
}

/// Computes `y = x - max - log(sum(exp(x - max)))` for each row.
///
/// # Shapes
/// `x`, `y` `[rows, cols]`; they may be the same.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn log_softmax_forward(
    gpu: &dyn Gpu,
    float: Float,
    x: u64,
    y: u64,
    rows: usize,
    cols: usize,
) -> Result<(), Error> {
    forward(gpu, Walk::of(float, cols), float, x, y, rows, cols, true)
}

/// [`softmax_forward`], or [`log_softmax_forward`] where `log`, in a form of one's choice.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn forward(
    gpu: &dyn Gpu,
    walk: Walk,
    float: Float,
    x: u64,
    y: u64,
    rows: usize,
    cols: usize,
    log: bool,
) -> Result<(), Error> {
    if rows * cols == 0 {
        return Ok(());
    }
    let bytes = rows * cols * float.bytes();
    let args = Args::new().span(x, bytes).span(y, bytes).i64(rows as i64);
    let args = columns(args, walk, cols).i32(i32::from(log));
    let kernel = format!("softmax_forward_{}_{}", float.name(), walk.form);
    // SAFETY: the kernel takes x, y, rows, cols, log and touches `rows * cols` numbers of both.
    unsafe { gpu.launch(&kernel, &walk.launch(gpu, rows, cols), &args) }
}

/// Computes `d_x = y * (d_y - sum(d_y * y))` for each row.
///
/// # Shapes
/// `y`, `d_y`, `d_x` `[rows, cols]`; `d_x` may be one of the others.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn softmax_backward(
    gpu: &dyn Gpu,
    float: Float,
    y: u64,
    d_y: u64,
    d_x: u64,
    rows: usize,
    cols: usize,
) -> Result<(), Error> {
    backward(gpu, Walk::of(float, cols), float, y, d_y, d_x, rows, cols, false)
}

/// Computes `d_x = d_y - exp(y) * sum(d_y)` for each row, `y` being the log-probabilities.
///
/// # Shapes
/// `y`, `d_y`, `d_x` `[rows, cols]`; `d_x` may be one of the others.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn log_softmax_backward(
    gpu: &dyn Gpu,
    float: Float,
    y: u64,
    d_y: u64,
    d_x: u64,
    rows: usize,
    cols: usize,
) -> Result<(), Error> {
    backward(gpu, Walk::of(float, cols), float, y, d_y, d_x, rows, cols, true)
}

/// [`softmax_backward`], or [`log_softmax_backward`] where `log`, in a form of one's choice.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn backward(
    gpu: &dyn Gpu,
    walk: Walk,
    float: Float,
    y: u64,
    d_y: u64,
    d_x: u64,
    rows: usize,
    cols: usize,
    log: bool,
) -> Result<(), Error> {
    if rows * cols == 0 {
        return Ok(());
    }
    let bytes = rows * cols * float.bytes();
    let args = Args::new().span(y, bytes).span(d_y, bytes).span(d_x, bytes).i64(rows as i64);
    let args = columns(args, walk, cols).i32(i32::from(log));
    let kernel = format!("softmax_backward_{}_{}", float.name(), walk.form);
    // A block of `b4` has 512 threads here: two rows and a stride would not fit the registers.
    let like = if walk.form == "b4" { LONGEST } else { cols };
    // SAFETY: the kernel takes y, d_y, d_x, rows, cols, log and touches `rows * cols` numbers of each.
    unsafe { gpu.launch(&kernel, &walk.launch(gpu, rows, like), &args) }
}

/// What a row of logits is held against.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Targets {
    /// Address of a token for each row, `[rows]`; [`NO_TARGET`](crate::softmax::NO_TARGET) is none.
    pub targets: u64,
    /// Address of the losses `[rows]`, f32.
    pub losses: u64,
    /// Multiplies the gradient.
    pub scale: f32,
    /// Share of the probability that is spread evenly over all tokens (Szegedy et al. 2016).
    pub smoothing: f32,
}

/// Computes `-log softmax(x)[target]` for each row and, in the same pass, its gradient.
///
/// Rows without a target give loss 0 and gradient 0. `d_logits` is the gradient of the **sum** of the
/// losses times `scale`; 0 where no gradient is wanted. With smoothing the loss is
/// `log_sum - (1 - smoothing) x[target] - smoothing mean(x)`.
///
/// # Shapes
/// `logits`, `d_logits` `[rows, vocab]`; they may be the same. Targets are below `vocab`.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn cross_entropy_forward(
    gpu: &dyn Gpu,
    float: Float,
    logits: u64,
    t: Targets,
    d_logits: u64,
    rows: usize,
    vocab: usize,
) -> Result<(), Error> {
    cross_entropy(gpu, Walk::of_targets(float, vocab), float, logits, t, d_logits, rows, vocab)
}

/// [`cross_entropy_forward`] in a form of one's choice.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn cross_entropy(
    gpu: &dyn Gpu,
    walk: Walk,
    float: Float,
    logits: u64,
    t: Targets,
    d_logits: u64,
    rows: usize,
    vocab: usize,
) -> Result<(), Error> {
    if rows * vocab == 0 {
        return Ok(());
    }
    let bytes = rows * vocab * float.bytes();
    let args = Args::new().span(logits, bytes).span(t.targets, rows * 4).span(t.losses, rows * 4);
    let args = args.optional((d_logits != 0).then_some(d_logits), bytes);
    let args = columns(args.f32(t.scale).f32(t.smoothing).i64(rows as i64), walk, vocab);
    let kernel = format!("cross_entropy_forward_{}_{}", float.name(), walk.form);
    // SAFETY: the kernel takes logits, targets, losses, d_logits or null, scale, smoothing, rows, vocab and
    // touches `rows * vocab` logits and gradients, and targets below `vocab`.
    unsafe { gpu.launch(&kernel, &walk.launch(gpu, rows, vocab), &args) }
}

/// The simplest forms, for comparison: f32, a thread a row.
pub mod plain {
    use super::{Args, Error, Gpu, Launch, Targets};

    fn launch(rows: usize) -> Launch {
        Launch::linear(rows.div_ceil(128) as u32, 128)
    }

    /// Softmax, or log-softmax.
    ///
    /// # Errors
    /// If the spans are not allocated, or the driver refuses.
    pub fn forward(
        gpu: &dyn Gpu,
        x: u64,
        y: u64,
        rows: usize,
        cols: usize,
        log: bool,
    ) -> Result<(), Error> {
        let bytes = rows * cols * 4;
        let args = Args::new().span(x, bytes).span(y, bytes).i64(rows as i64);
        let args = args.i32(cols as i32).i32(i32::from(log));
        // SAFETY: the kernel takes x, y, rows, cols, log and touches `rows * cols` numbers of both.
        unsafe { gpu.launch("softmax_forward_plain", &launch(rows), &args) }
    }

    /// The gradient of softmax, or log-softmax.
    ///
    /// # Errors
    /// If the spans are not allocated, or the driver refuses.
    pub fn backward(
        gpu: &dyn Gpu,
        y: u64,
        d_y: u64,
        d_x: u64,
        rows: usize,
        cols: usize,
        log: bool,
    ) -> Result<(), Error> {
        let bytes = rows * cols * 4;
        let args = Args::new().span(y, bytes).span(d_y, bytes).span(d_x, bytes).i64(rows as i64);
        let args = args.i32(cols as i32).i32(i32::from(log));
        // SAFETY: the kernel takes y, d_y, d_x, rows, cols, log and touches `rows * cols` of each.
        unsafe { gpu.launch("softmax_backward_plain", &launch(rows), &args) }
    }

    /// Cross-entropy and its gradient.
    ///
    /// # Errors
    /// If the spans are not allocated, or the driver refuses.
    pub fn cross_entropy(
        gpu: &dyn Gpu,
        logits: u64,
        t: Targets,
        d_logits: u64,
        rows: usize,
        vocab: usize,
    ) -> Result<(), Error> {
        let bytes = rows * vocab * 4;
        let args = Args::new().span(logits, bytes).span(t.targets, rows * 4);
        let args = args.span(t.losses, rows * 4).span(d_logits, bytes).f32(t.scale);
        let args = args.f32(t.smoothing).i64(rows as i64).i32(vocab as i32);
        // SAFETY: as `cross_entropy` above.
        unsafe { gpu.launch("cross_entropy_forward_plain", &launch(rows), &args) }
    }
}
