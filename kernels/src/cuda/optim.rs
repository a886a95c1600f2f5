//! Parameter updates over all tensors in one launch, with clipping by the global norm. Source:
//! `kernels/cuda/optim.cu`.

use super::map::over;
use super::{Args, Error, Gpu, Launch};

/// One tensor of parameters with its gradient and what the optimizer keeps for it: addresses of f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The parameters.
    pub param: u64,
    /// Their gradient.
    pub grad: u64,
    /// The first moment, or the momentum of gradient descent.
    pub m: u64,
    /// The second moment; 0 for gradient descent.
    pub v: u64,
    /// The parameters in bf16, written by each step; 0 where nobody wants them.
    pub shadow: u64,
    /// How many.
    pub count: usize,
}

/// Numbers in a piece of work: 8 rounds of a block of 256 threads with 16 bytes each.
const PIECE: usize = 8192;
/// Words of a piece in the table.
const WORDS: usize = 6;

/// The table of pieces of all tensors, to be uploaded once: [`Pieces::words`] to any address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pieces {
    words: Vec<u64>,
    parts: Vec<Part>,
}

impl Pieces {
    /// Cuts tensors into pieces.
    pub fn new(parts: &[Part]) -> Pieces {
        let mut words = Vec::new();
        for part in parts {
            for from in (0..part.count).step_by(PIECE) {
                let at = |address: u64, bytes: usize| match address {
                    0 => 0,
                    address => address + (from * bytes) as u64,
                };
                words.extend([
                    at(part.param, 4),
                    at(part.grad, 4),
                    at(part.m, 4),
                    at(part.v, 4),
                    at(part.shadow, 2),
                    PIECE.min(part.count - from) as u64,
                ]);
            }
        }
        Pieces { words, parts: parts.to_vec() }
    }

    /// What has to lie on the device.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// How many pieces there are: as many doubles are the scratch memory of a step.
    pub fn len(&self) -> usize {
        self.words.len() / WORDS
    }

    /// Whether there is nothing to update.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// A launch's arguments begin with the table; the tensors are named, too, so that they are checked.
    fn launch(&self, gpu: &dyn Gpu, table: u64, per_sm: u32) -> (Args, Launch) {
        let args = Args::new().span(table, self.words.len() * 8);
        let most = if per_sm == 0 { u32::MAX } else { per_sm * gpu.properties().sms };
        (args, Launch::linear((self.len() as u32).min(most), 256).shared(64))
    }
}

/// What lies on the device from step to step, as the kernels have it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct State {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay (AdamW); 0 for Adam.
    pub weight_decay: f32,
    /// Momentum of gradient descent.
    pub momentum: f32,
    /// All gradients together are scaled down to this norm; 0: they are not.
    pub max_norm: f32,
    /// Steps taken.
    pub step: u64,
    /// The norm of all gradients before clipping; written by [`step_begin`].
    pub norm: f64,
    /// Whether that is finite: if not, a step changes nothing. Written by [`step_begin`].
    pub finite: bool,
    /// What gradients are multiplied by; written by [`step_begin`].
    pub grad_scale: f32,
}

impl State {
    /// Bytes of a state on the device.
    pub const BYTES: usize = 72;
    /// Where the learning rate lies in it, the one number that changes while training.
    pub const LR: usize = 0;

    /// As it lies on the device.
    pub fn to_bytes(&self) -> [u8; State::BYTES] {
        let mut bytes = [0; State::BYTES];
        let floats = [
            self.lr,
            self.beta1,
            self.beta2,
            self.eps,
            self.weight_decay,
            self.momentum,
            self.max_norm,
        ];
        for (to, from) in bytes.chunks_exact_mut(4).zip(floats) {
            to.copy_from_slice(&from.to_ne_bytes());
        }
        bytes[32..40].copy_from_slice(&self.step.to_ne_bytes());
        bytes[40..48].copy_from_slice(&self.norm.to_ne_bytes());
        bytes[48..52].copy_from_slice(&self.grad_scale.to_ne_bytes());
        bytes[64..68].copy_from_slice(&u32::from(self.finite).to_ne_bytes());
        bytes
    }

    /// What was read from the device.
    pub fn from_bytes(bytes: &[u8; State::BYTES]) -> State {
        let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        let float = |k: usize| f32::from_ne_bytes(word(4 * k));
        let double = |at: usize| {
            let mut wide = [0; 8];
            wide.copy_from_slice(&bytes[at..at + 8]);
            wide
        };
        State {
            lr: float(0),
            beta1: float(1),
            beta2: float(2),
            eps: float(3),
            weight_decay: float(4),
            momentum: float(5),
            max_norm: float(6),
            step: u64::from_ne_bytes(double(32)),
            norm: f64::from_ne_bytes(double(40)),
            finite: u32::from_ne_bytes(word(64)) != 0,
            grad_scale: float(12),
        }
    }
}

/// Measures the norm of all gradients, counts the step and makes its constants.
///
/// # Shapes
/// `table` [`Pieces::words`], `state` [`State::BYTES`], `scratch` [`Pieces::len`] doubles.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn step_begin(
    gpu: &dyn Gpu,
    pieces: &Pieces,
    table: u64,
    state: u64,
    scratch: u64,
) -> Result<(), Error> {
    let count = pieces.len();
    if count > 0 {
        let (args, launch) = pieces.launch(gpu, table, 0);
        let args = args.span(scratch, count * 8).i32(count as i32);
        let args =
            pieces.spans(false).iter().fold(args, |args, (at, bytes)| args.touches(*at, *bytes));
        // SAFETY: the kernel takes pieces, squares, count and reads the gradients that the table names.
        unsafe { gpu.launch("squares_all", &launch, &args) }?;
    }
    let args = Args::new().span(scratch, count * 8).span(state, State::BYTES).i32(count as i32);
    // SAFETY: the kernel takes squares, state, count and touches `count` doubles and the state.
    unsafe { gpu.launch("step_begin", &Launch::linear(1, 256).shared(64), &args) }
}

/// Updates parameters and moments of all tensors by Adam (AdamW), after [`step_begin`].
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
///
/// # Source
/// Kingma & Ba 2015, algorithm 1; decoupled decay from Loshchilov & Hutter 2019.
pub fn adam_all(gpu: &dyn Gpu, pieces: &Pieces, table: u64, state: u64) -> Result<(), Error> {
    adam_all_with(gpu, 0, pieces, table, state)
}

/// [`adam_all`] with so many blocks for each multiprocessor; 0: one a piece.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn adam_all_with(
    gpu: &dyn Gpu,
    per_sm: u32,
    pieces: &Pieces,
    table: u64,
    state: u64,
) -> Result<(), Error> {
    if pieces.is_empty() {
        return Ok(());
    }
    let (args, launch) = pieces.launch(gpu, table, per_sm);
    let args = args.span(state, State::BYTES).i32(pieces.len() as i32);
    let args = pieces.spans(true).iter().fold(args, |args, (at, bytes)| args.touches(*at, *bytes));
    // SAFETY: the kernel takes pieces, state, count and touches the tensors that the table names.
    unsafe { gpu.launch("adam_all", &launch, &args) }
}

/// Updates all tensors by gradient descent with momentum, `u = momentum * u + g; p = p - lr * u`, after
/// [`step_begin`].
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn sgd_all(gpu: &dyn Gpu, pieces: &Pieces, table: u64, state: u64) -> Result<(), Error> {
    if pieces.is_empty() {
        return Ok(());
    }
    let (args, launch) = pieces.launch(gpu, table, 0);
    let args = args.span(state, State::BYTES).i32(pieces.len() as i32);
    let args = pieces.spans(true).iter().fold(args, |args, (at, bytes)| args.touches(*at, *bytes));
    // SAFETY: the kernel takes pieces, state, count and touches the tensors that the table names.
    unsafe { gpu.launch("sgd_all", &launch, &args) }
}

/// Updates one tensor in the simplest form, for comparison: a thread a number.
///
/// # Errors
/// If the spans are not allocated, or the driver refuses.
pub fn adam_plain(gpu: &dyn Gpu, part: Part, state: u64) -> Result<(), Error> {
    let (n, bytes) = (part.count, part.count * 4);
    let args = Args::new().span(part.param, bytes).span(part.m, bytes).span(part.v, bytes);
    let args = args.span(part.grad, bytes).span(state, State::BYTES).i64(n as i64);
    // SAFETY: the kernel takes param, m, v, grad, state, n and touches `n` numbers of each.
    unsafe { gpu.launch("adam_plain", &over(gpu, n, 1, 0), &args) }
}

impl Pieces {
    /// What the kernels touch through the table: gradients, and the other arrays if `all`.
    fn spans(&self, all: bool) -> Vec<(u64, usize)> {
        let mut spans = Vec::with_capacity(5 * self.parts.len());
        for part in &self.parts {
            spans.push((part.grad, part.count * 4));
            if !all {
                continue;
            }
            spans.extend([(part.param, part.count * 4), (part.m, part.count * 4)]);
            let optional = [(part.v, part.count * 4), (part.shadow, part.count * 2)];
            spans.extend(optional.into_iter().filter(|(address, _)| *address != 0));
        }
        spans
    }
}
