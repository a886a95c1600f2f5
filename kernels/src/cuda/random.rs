//! Launchers of the family `random`.
