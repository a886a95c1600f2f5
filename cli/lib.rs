//! The parts of the program that a person sees.
#![forbid(unsafe_code)]
