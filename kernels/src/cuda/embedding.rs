//! Launchers of the family `embedding`.
