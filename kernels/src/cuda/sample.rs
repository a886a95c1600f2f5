//! Launchers of the family `sample`.
