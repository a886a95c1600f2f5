//! What the kernels take: one struct, the same fields in the same order as `Attention` in
//! `kernels/cuda/attention_tile.cuh`.

use super::{Format, Relative, Rows};
use crate::attention::{Mask, Rule, Sizes, Strides};
use crate::cuda::{Args, Error, Gpu, Launch};

/// Which results are f32.
pub(super) const WIDE_O: i32 = 1;
pub(super) const WIDE_D_Q: i32 = 2;
pub(super) const WIDE_D_KV: i32 = 4;
pub(super) const WIDE_D_ER: i32 = 8;

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct At {
    batch: i64,
    head: i64,
    row: i64,
}

impl From<Strides> for At {
    fn from(s: Strides) -> At {
        At { batch: s.batch as i64, head: s.head as i64, row: s.row as i64 }
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Fields {
    q: u64,
    k: u64,
    v: u64,
    er: u64,
    d_o: u64,
    o: u64,
    d_q: u64,
    d_k: u64,
    d_v: u64,
    d_er: u64,
    lse: u64,
    delta: u64,
    parts: u64,
    q_at: At,
    k_at: At,
    v_at: At,
    o_at: At,
    d_o_at: At,
    d_q_at: At,
    d_k_at: At,
    d_v_at: At,
    seed: u64,
    position: u64,
    batch: i32,
    heads: i32,
    queries: i32,
    keys: i32,
    head_dim: i32,
    max_len: i32,
    mask: i32,
    width: i32,
    stride: i32,
    wide: i32,
    run: i32,
    accumulate: i32,
    slots: i32,
    stream: u32,
    threshold: u32,
    scale: f32,
    keep_scale: f32,
    /// C++ fills the struct up to a multiple of 8 bytes.
    rest: u32,
}

// SAFETY: plain numbers in the order of C, without a gap: 8-byte fields, then 18 of 4 bytes.
unsafe impl bytemuck::NoUninit for Fields {}

/// The arguments of a launch and the memory that it touches.
#[derive(Debug, Clone)]
pub(super) struct Arguments {
    fields: Fields,
    spans: Vec<(u64, usize)>,
    s: Sizes,
}

/// A mask as the kernels number it, with its sizes.
pub(super) fn mask_of(mask: Mask) -> (i32, i32, i32) {
    match mask {
        Mask::Full => (0, 0, 0),
        Mask::Causal => (1, 0, 0),
        // Wider than any sequence is as wide as the longest.
        Mask::Window { width } => (2, width.min(1 << 30) as i32, 0),
        Mask::Strided { block, stride } => {
            (3, block.min(1 << 30) as i32, stride.min(1 << 30) as i32)
        }
    }
}

impl Arguments {
    /// What forward and backward share.
    pub(super) fn new(
        q: Rows,
        k: Rows,
        v: Rows,
        relative: Option<Relative>,
        o: Rows,
        lse: u64,
        s: Sizes,
        rule: &Rule,
    ) -> Arguments {
        let (mask, width, stride) = mask_of(rule.mask);
        let mut fields = Fields {
            q: q.address,
            k: k.address,
            v: v.address,
            o: o.address,
            lse,
            q_at: q.strides.into(),
            k_at: k.strides.into(),
            v_at: v.strides.into(),
            o_at: o.strides.into(),
            batch: s.batch as i32,
            heads: s.heads as i32,
            queries: s.queries as i32,
            keys: s.keys as i32,
            head_dim: s.head_dim as i32,
            mask,
            width,
            stride,
            scale: rule.scale,
            keep_scale: 1.0,
            slots: 1,
            ..Fields::default()
        };
        if let Some(d) = rule.dropout {
            (fields.seed, fields.stream, fields.position) = (d.seed, d.stream, d.position);
            // The same arithmetic as `philox::dropout`.
            fields.threshold = (f64::from(d.p) * 4_294_967_296.0) as u64 as u32;
            fields.keep_scale = 1.0 / (1.0 - d.p);
        }
        let lse_bytes = s.batch * s.heads * s.queries * 4;
        let mut arguments = Arguments { fields, spans: vec![(lse, lse_bytes)], s };
        for (rows, count) in [(q, s.queries), (k, s.keys), (v, s.keys), (o, s.queries)] {
            arguments.spans.push((rows.address, rows.extent(s, count)));
        }
        arguments.set_wide(WIDE_O, o.format);
        if let Some(r) = relative {
            (arguments.fields.er, arguments.fields.max_len) = (r.er, r.max_len as i32);
            let bytes = s.heads * r.max_len * s.head_dim * q.format.bytes();
            arguments.spans.push((r.er, bytes));
        }
        arguments
    }

    /// What the backward reads and writes beside that; `delta` and `parts` lie in `room`.
    pub(super) fn with_gradients(
        mut self,
        d_o: Rows,
        [d_q, d_k, d_v]: [Rows; 3],
        d_er: Option<(u64, Format)>,
        (room, parts_at, room_len): (u64, usize, usize),
        slots: usize,
    ) -> Arguments {
        let (s, f) = (self.s, &mut self.fields);
        (f.d_o, f.d_o_at) = (d_o.address, d_o.strides.into());
        (f.d_q, f.d_q_at) = (d_q.address, d_q.strides.into());
        (f.d_k, f.d_k_at) = (d_k.address, d_k.strides.into());
        (f.d_v, f.d_v_at) = (d_v.address, d_v.strides.into());
        (f.delta, f.parts, f.slots) = (room, room + parts_at as u64 * 4, slots as i32);
        for (rows, count) in [(d_o, s.queries), (d_q, s.queries), (d_k, s.keys), (d_v, s.keys)] {
            self.spans.push((rows.address, rows.extent(s, count)));
        }
        self.spans.push((room, room_len * 4));
        self.set_wide(WIDE_D_Q, d_q.format);
        self.set_wide(WIDE_D_KV, d_k.format);
        if let Some((address, format)) = d_er {
            self.fields.d_er = address;
            let count = s.heads * self.fields.max_len as usize * s.head_dim;
            self.spans.push((address, count * format.bytes()));
            self.set_wide(WIDE_D_ER, format);
        }
        self
    }

    /// Names a run of keys, and whether its gradients are added to what is there.
    pub(super) fn of_run(mut self, run: usize) -> Arguments {
        (self.fields.run, self.fields.accumulate) = (run as i32, i32::from(run > 0));
        self
    }

    fn set_wide(&mut self, bit: i32, format: Format) {
        if format == Format::F32 {
            self.fields.wide |= bit;
        }
    }

    /// Queues a kernel, if it has anything to do.
    pub(super) fn launch(
        &self,
        gpu: &dyn Gpu,
        kernel: &str,
        grid: [usize; 2],
        threads: usize,
        shared: usize,
    ) -> Result<(), Error> {
        if grid.contains(&0) {
            return Ok(());
        }
        let mut args = Args::new().plain(&self.fields);
        for (address, bytes) in &self.spans {
            args = args.touches(*address, *bytes);
        }
        let launch = Launch::new([grid[0] as u32, grid[1] as u32, 1], [threads as u32, 1, 1])
            .shared(shared as u32);
        // SAFETY: every kernel of the family takes this struct alone, and touches rows of the sizes
        // in it, all of which the spans cover.
        unsafe { gpu.launch(kernel, &launch, &args) }
    }
}
