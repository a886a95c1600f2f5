//! Launchers of the family `gemm`.
