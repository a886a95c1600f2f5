//! Launchers of the family `optim`.
