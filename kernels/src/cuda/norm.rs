//! Launchers of the family `norm`.
