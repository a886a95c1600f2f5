//! Launchers of the family `recurrent`.
