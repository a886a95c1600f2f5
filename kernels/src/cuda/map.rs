//! Launchers of the family `map`.
