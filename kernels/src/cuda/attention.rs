//! Attention on the device: the launchers of `kernels/cuda/attention_*.cu`.
//!
//! bf16 operands whose rows are whole pieces of 16 bytes run on tensor cores; everything else, f32
//! included, runs on the plain kernels, which take any size. Several tiles are compiled for the usual
//! head sizes; `variant` names one of them, and without a name the first that fits is taken.

mod arguments;
mod backward;
mod forward;
mod step;
mod variants;

pub use backward::{attention_backward, attention_backward_plain, attention_backward_room};
pub use forward::{attention_forward, attention_forward_plain};
pub use step::{NewRow, Step, attention_step, attention_step_plain, attention_step_room};
pub use variants::{backward_variants, forward_variants};

use crate::attention::{Mask, Rule, Sizes, Strides};

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// 32 bits.
    F32,
    /// The upper 16 bits of an f32.
    Bf16,
}

impl Format {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::Bf16 => 2,
        }
    }
}

/// Rows in the device's memory, `[batch, heads, rows, head_dim]`, read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// The first number's address.
    pub address: u64,
    /// How the rows lie; where they are written, no two share a number.
    pub strides: Strides,
    /// How numbers are stored.
    pub format: Format,
}

/// Relative position embeddings `[heads, max_len, head_dim]`, contiguous, in the format of the queries;
/// row `max_len - 1 - d` is for a key `d` steps back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relative {
    /// The first number's address.
    pub er: u64,
    /// Distances that have an embedding.
    pub max_len: usize,
}

/// Asserts what every call has in common.
fn check(s: Sizes, rule: &Rule, relative: Option<Relative>) {
    assert!(rule.mask.is_valid());
    assert!(!rule.mask.is_causal() || s.queries <= s.keys);
    assert!(rule.dropout.is_none_or(|d| (0.0..1.0).contains(&d.p)));
    assert!(s.batch * s.heads < 1 << 16, "a grid has room for 65535 heads");
    if let Some(r) = relative {
        assert!(matches!(rule.mask, Mask::Causal | Mask::Window { .. }));
        assert!(rule.mask.reach(s.keys) <= r.max_len);
    }
}

impl Rows {
    /// Bytes from the first number to one past the last.
    fn extent(&self, s: Sizes, rows: usize) -> usize {
        self.strides.extent(s.batch, s.heads, rows, s.head_dim) * self.format.bytes()
    }

    /// Whether rows can be copied 16 bytes at a time, and the offsets within a head fit in 31 bits.
    fn is_tiled(&self, rows: usize) -> bool {
        let Strides { batch, head, row } = self.strides;
        self.format == Format::Bf16
            && self.address.is_multiple_of(16)
            && [batch, head, row].iter().all(|stride| stride.is_multiple_of(8))
            && (rows + 256).saturating_mul(row) < 1 << 31
    }

    /// Whether two neighbouring numbers can be written at once.
    fn is_paired(&self) -> bool {
        let Strides { batch, head, row } = self.strides;
        self.address.is_multiple_of(2 * self.format.bytes() as u64)
            && [batch, head, row].iter().all(|stride| stride.is_multiple_of(2))
    }
}
