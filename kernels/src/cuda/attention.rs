//! Launchers of the family `attention`.
