//! How a persistent kernel divides a sequence: hidden units to a block, weights kept in registers, rows
//! of the batch to a group of blocks. Which of the ways that fit is the default, and all of them.

use super::{BY_COUNTER, PROBE, Precision, ROWS, Sequence, THREADS, WARPS};
use crate::cuda::{Args, Error, Gpu, Launch};
use crate::step::Cell;

/// One way to run a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// One persistent kernel.
    Persistent {
        /// Hidden units of a block: 8, 16 or 32.
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
    /// The first 16 bytes of the data, then all of it.
    Probe,
    /// A counter of each block, then the data.
    Counter,
}

/// Hidden units and chunks in registers of the kernels that there are, in the order of preference.
type Kernels = &'static [(usize, &'static [usize])];

fn bf16_forward(cell: Cell) -> Kernels {
    match cell {
        Cell::Lstm => &[(16, &[1, 2, 3, 4]), (8, &[3, 4]), (32, &[1, 2])],
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
    wait: Wait,
}

impl Plan {
    /// The bits of the kernel's flags that tell what to wait for.
    pub(super) fn flags(&self) -> i32 {
        match self.wait {
            Wait::Data => 0,
            Wait::Probe => PROBE,
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
        let (kernel, span, weights) = match q.precision {
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
                (name, span, spilled)
            }
            Precision::F32 => {
                if units > 16 {
                    return Ok(None);
                }
                let span = length.div_ceil(WARPS).next_multiple_of(4);
                let name = format!("{}_{direction}_f32_u{units}", q.name());
                // Eight rows of 64 numbers are staged for each warp, 12 floats apart.
                (name, span, length * m * 4 + WARPS * 64 * 12 * 4)
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
        let plan = Plan { kernel, launch, m, length, turned, units, span, passes, wait };
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
                let units: &[usize] = match q.precision {
                    Precision::Bf16 => &[16, 32, 8],
                    // The products of f32 take longest: over as many multiprocessors as there are.
                    Precision::F32 => &[8, 16],
                };
                let mut best: Option<Plan> = None;
                for units in units {
                    let Some(plan) = Plan::new(gpu, q, pass, (*units, 0, Wait::Data))? else {
                        continue;
                    };
                    let more = |best: &Plan| plan.blocks() > best.blocks();
                    match (&best, q.precision) {
                        (None, _) => best = Some(plan),
                        (Some(found), Precision::F32) if more(found) => best = Some(plan),
                        _ => {}
                    }
                }
                Ok(best)
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

    fn blocks(&self) -> u32 {
        self.launch.grid.iter().product()
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
    for units in [16, 8, 32] {
        let most = q.sizes.batch.div_ceil(ROWS);
        for groups in [0, most.div_ceil(2), 1] {
            for wait in [Wait::Data, Wait::Probe, Wait::Counter] {
                // Products of f32 ask for little at a time.
                if wait == Wait::Probe && q.precision == Precision::F32 {
                    continue;
                }
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
