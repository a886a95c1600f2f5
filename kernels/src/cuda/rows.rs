//! Launchers of the family `rows`.
