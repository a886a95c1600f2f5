//! Instruction-set tiers: which vector units this machine has, and which one is in use.
//!
//! `ETUDE_ISA=scalar|avx2|avx512|neon` pins the tier. A tier that the machine lacks is refused.

use std::sync::atomic::{AtomicU8, Ordering};

/// A family of vector instructions that the kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Isa {
    /// Plain Rust, one number at a time: the lesson, and every machine's floor.
    Scalar = 1,
    /// 128-bit vectors of aarch64.
    Neon = 2,
    /// 256-bit vectors with fused multiply-add (x86-64).
    Avx2 = 3,
    /// 512-bit vectors with masks (x86-64: F, BW, DQ, VL).
    Avx512 = 4,
}

impl Isa {
    /// Every tier, lowest first.
    pub const ALL: [Isa; 4] = [Isa::Scalar, Isa::Neon, Isa::Avx2, Isa::Avx512];

    /// The name that `ETUDE_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }

    /// Finds a tier by its name.
    pub fn from_name(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name)
    }

    /// Tells whether this machine can run the tier.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => true,
            #[allow(unreachable_patterns)] // which arms are left depends on the architecture
            _ => false,
        }
    }

    /// The tiers that this machine can run, lowest first.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The best tier of this machine.
    pub fn detect() -> Isa {
        Isa::ALL.into_iter().rfind(|isa| isa.is_available()).unwrap_or(Isa::Scalar)
    }
}

/// 0: not chosen yet; else the `Isa` as a number.
static ACTIVE: AtomicU8 = AtomicU8::new(0);

/// The tier in use: what `ETUDE_ISA` or [`force`] says, else the best of this machine.
///
/// An `ETUDE_ISA` that is unknown or not available falls back to [`Isa::detect`]; the program
/// checks it first with [`from_env`] and refuses it.
#[inline]
pub fn active() -> Isa {
    match ACTIVE.load(Ordering::Relaxed) {
        1 => Isa::Scalar,
        2 => Isa::Neon,
        3 => Isa::Avx2,
        4 => Isa::Avx512,
        _ => {
            let isa = from_env().ok().flatten().unwrap_or_else(Isa::detect);
            ACTIVE.store(isa as u8, Ordering::Relaxed);
            isa
        }
    }
}

/// Reads `ETUDE_ISA`.
///
/// # Errors
/// A text that says what is wrong, if the tier is unknown or this machine cannot run it.
pub fn from_env() -> Result<Option<Isa>, String> {
    let Ok(name) = std::env::var("ETUDE_ISA") else { return Ok(None) };
    let known = || Isa::available().iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ");
    match Isa::from_name(&name) {
        Some(isa) if isa.is_available() => Ok(Some(isa)),
        Some(isa) => Err(format!(
            "ETUDE_ISA: this machine cannot run {}; it can run {}",
            isa.name(),
            known()
        )),
        None => Err(format!("ETUDE_ISA: unknown tier {name:?}; this machine can run {}", known())),
    }
}

/// Switches the whole process to another tier, for tests and benches that compare tiers.
///
/// # Panics
/// If this machine cannot run the tier.
pub fn force(isa: Isa) {
    assert!(isa.is_available(), "this machine cannot run {}", isa.name());
    ACTIVE.store(isa as u8, Ordering::Relaxed);
}
