//! How a persistent kernel divides a sequence: hidden units to a block, weights kept in registers, rows
//! of the batch to a group of blocks. Which of the ways that fit is the default, and all of them.

use super::{BY_COUNTER, Precision, ROWS, Sequence, THREADS, WARPS};
use crate::cuda::{Args, Error, Gpu, Launch};
use crate::step::Cell;

/// One way to run a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// One persistent kernel.
    Persistent {
        /// Hidden units of a block: 16 or 32 in bf16, 8 or 16 in f32.
        units: usize,
        /// Groups of blocks that share the batch; 0: as many as find room.
        groups: usize,
        /// What blocks wait for.
        wait: Wait,
    },
    /// A product and a cell for each step.
    Plain,
}

/// What a block waits for at each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The data itself, asked for at once and again where it is missing.
    Data,
    /// A counter of each block, then the data.
    Counter,
}

/// Hidden units and chunks in registers of the kernels that there are.
type Kernels = &'static [(usize, &'static [usize])];

fn bf16_forward(cell: Cell) -> Kernels {
    match cell {
        Cell::Lstm => &[(16, &[1, 2, 3, 4]), (32, &[1, 2])],
        Cell::Gru => &[(16, &[1, 2, 3, 4]), (32, &[2, 3])],
        Cell::Rnn(_) => &[(16, &[1, 2, 3, 4]), (32, &[2, 4])],
    }
}

fn bf16_backward(cell: Cell) -> Kernels {
    match cell {
        Cell::Lstm => &[(16, &[2, 4, 8, 12, 16]), (32, &[8, 10])],
        Cell::Gru => &[(16, &[3, 6, 9, 12]), (32, &[6, 9])],
        Cell::Rnn(_) => &[(16, &[1, 2, 3, 4]), (32, &[2, 4])],
    }
}

/// Hidden units of a block, of any kernel.
const UNITS: [usize; 3] = [8, 16, 32];

/// Forwards or backwards through time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    Backward,
}

/// A persistent launch.
pub(super) struct Plan {
    pub kernel: String,
    pub launch: Launch,
    /// Rows of the product that a block has, and how long its sum is.
    m: usize,
    length: usize,
    turned: bool,
    units: usize,
    /// Chunks (bf16) or elements (f32) of the sum that each warp has.
    pub span: usize,
    /// Times that a group goes through eight rows at each step.
    pub passes: usize,
    /// Bytes of weights of bf16 that find no room in registers.
    spilled: usize,
    wait: Wait,
}

impl Plan {
    /// The bits of the kernel's flags that tell what to wait for.
    pub(super) fn flags(&self) -> i32 {
        match self.wait {
            Wait::Data => 0,
            Wait::Counter => BY_COUNTER,
        }
    }

    /// The launch of a variant; none: it finds no room on this device.
    fn new(
        gpu: &dyn Gpu,
        q: &Sequence,
        pass: Pass,
        (units, groups, wait): (usize, usize, Wait),
    ) -> Result<Option<Plan>, Error> {
        let gates = q.cell.gates();
        let (m, length, direction) = match pass {
            Pass::Forward => (gates * units, q.sizes.hidden, "forward"),
            Pass::Backward => (units, gates * q.pitch(), "backward"),
        };
        let tiles = q.sizes.batch.div_ceil(ROWS);
        // As in recurrent_seq.cuh: two buffers of partial sums.
        let partial = 2 * WARPS * (ROWS * (m + 4) + 4) * 4;
        let (kernel, span, spilled, weights) = match q.precision {
            Precision::Bf16 => {
                let span = length.div_ceil(32 * WARPS);
                let kernels = match pass {
                    Pass::Forward => bf16_forward(q.cell),
                    Pass::Backward => bf16_backward(q.cell),
                };
                let Some((_, sizes)) = kernels.iter().find(|entry| entry.0 == units) else {
                    return Ok(None);
                };
                let largest = sizes[sizes.len() - 1];
                let chunks = *sizes.iter().find(|chunks| **chunks >= span).unwrap_or(&largest);
                let spilled = span.saturating_sub(chunks) * WARPS * m * 64;
                let name = format!("{}_{direction}_bf16_u{units}_k{chunks}", q.name());
                (name, span, spilled, spilled)
            }
            Precision::F32 => {
                if units > 16 {
                    return Ok(None);
                }
                let span = length.div_ceil(WARPS).next_multiple_of(4);
                let name = format!("{}_{direction}_f32_u{units}", q.name());
                // Eight rows of 64 numbers are staged for each warp, 12 floats apart.
                (name, span, 0, length * m * 4 + WARPS * 64 * 12 * 4)
            }
        };
        let shared = |passes: usize| partial + passes * THREADS as usize * 4 + weights;
        let sms = gpu.properties().sms as usize;
        let slices = q.pitch().div_ceil(units);
        let fits = |groups: usize| groups.clamp(1, tiles.max(1));
        let groups = fits(if groups == 0 { sms / slices } else { groups });
        let passes = tiles.div_ceil(groups);
        let groups = tiles.div_ceil(passes);
        if shared(passes) > gpu.properties().shared_bytes as usize {
            return Ok(None);
        }
        let launch = Launch::new([slices as u32, groups as u32, 1], [THREADS, 1, 1])
            .shared(shared(passes) as u32)
            .cooperative();
        let resident = gpu.resident_blocks(&kernel, &launch)? as usize;
        let turned = pass == Pass::Backward;
        let plan = Plan { kernel, launch, m, length, turned, units, span, passes, spilled, wait };
        Ok((slices * groups <= resident).then_some(plan))
    }

    /// The launch of `variant`, or the best one; none: step by step.
    pub(super) fn choose(
        gpu: &dyn Gpu,
        q: &Sequence,
        pass: Pass,
        variant: Option<Variant>,
    ) -> Result<Option<Plan>, Error> {
        match variant {
            Some(Variant::Plain) => Ok(None),
            Some(Variant::Persistent { units, groups, wait }) => {
                let plan = Plan::new(gpu, q, pass, (units, groups, wait))?;
                plan.map(Some).ok_or_else(|| Error::Launch {
                    kernel: format!("{} with {units} units a block", q.name()),
                    why: "its weights find no room on this device".to_string(),
                })
            }
            None => {
                let mut plans = Vec::new();
                for units in UNITS {
                    plans.extend(Plan::new(gpu, q, pass, (units, 0, Wait::Data))?);
                }
                Ok(plans.into_iter().min_by_key(|plan| plan.rank(q)))
            }
        }
    }

    /// Puts `w_hh` where this launch reads it, in its order.
    pub(super) fn pack(
        &self,
        gpu: &dyn Gpu,
        q: &Sequence,
        w_hh: u64,
        to: u64,
    ) -> Result<usize, Error> {
        let (gates, hidden) = (q.cell.gates(), q.sizes.hidden);
        let slices = self.launch.grid[0] as usize;
        // Of 16 bytes, or floats.
        let (pieces, bytes, of_block, of_warp) = match q.precision {
            Precision::Bf16 => {
                let pieces = slices * WARPS * self.span * self.m / 16 * 64;
                (pieces, 16 * pieces, self.m / 16, self.span)
            }
            Precision::F32 => {
                let pieces = slices * self.length * self.m;
                (pieces, 4 * pieces, self.m, self.length)
            }
        };
        let args = Args::new()
            .span(w_hh, gates * hidden * hidden * q.element())
            .span(to, bytes)
            .i64(pieces as i64)
            .i32(gates as i32)
            .i32(hidden as i32)
            .i32(q.pitch() as i32)
            .i32(self.units as i32)
            .i32(of_block as i32)
            .i32(of_warp as i32)
            .i32(i32::from(self.turned));
        let kernel = format!("recurrent_weights_{}", q.suffix());
        let launch = Launch::linear(pieces.div_ceil(256) as u32, 256);
        // SAFETY: the kernel's parameters; it reads w_hh and writes the pieces.
        unsafe { gpu.launch(&kernel, &launch, &args) }?;
        Ok(bytes)
    }

    /// The lowest is the fastest: within 3 % of what is best on an H200, of all layers at hidden sizes
    /// from 128 to 1024 and batches from 1 to 128.
    ///
    /// A pass takes the same time whatever its units are, up to half as much again where it reads
    /// weights from shared memory. Few blocks exchange faster than many, but the products of f32 take
    /// longest and are to be done by many, and a pass of one chunk is too short for 32 units of an RNN.
    fn rank(&self, q: &Sequence) -> (usize, usize, usize) {
        let short = matches!(q.cell, Cell::Rnn(_)) && self.span == 1;
        let many = q.precision == Precision::F32 || short;
        (self.passes, self.spilled, if many { self.units } else { usize::MAX - self.units })
    }
}

/// All variants of a forward that this device has room for.
///
/// # Errors
/// If the driver refuses.
pub fn variants_forward(gpu: &dyn Gpu, q: &Sequence) -> Result<Vec<Variant>, Error> {
    variants(gpu, q, Pass::Forward)
}

/// All variants of a backward that this device has room for.
///
/// # Errors
/// If the driver refuses.
pub fn variants_backward(gpu: &dyn Gpu, q: &Sequence) -> Result<Vec<Variant>, Error> {
    variants(gpu, q, Pass::Backward)
}

fn variants(gpu: &dyn Gpu, q: &Sequence, pass: Pass) -> Result<Vec<Variant>, Error> {
    let mut found: Vec<Variant> = Vec::new();
    let mut grids = Vec::new();
    for units in UNITS {
        let most = q.sizes.batch.div_ceil(ROWS);
        for groups in [0, most.div_ceil(2), 1] {
            for wait in [Wait::Data, Wait::Counter] {
                let Some(plan) = Plan::new(gpu, q, pass, (units, groups, wait))? else {
                    continue;
                };
                let grid = (units, plan.launch.grid, wait);
                if !grids.contains(&grid) {
                    grids.push(grid);
                    found.push(Variant::Persistent { units, groups, wait });
                }
            }
        }
    }
    found.push(Variant::Plain);
    Ok(found)
}
