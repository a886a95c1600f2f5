//! Launchers of the family `conv`.
