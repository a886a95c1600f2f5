//! What can go wrong, said with both sides.

use std::fmt;

/// What the engine returns.
pub type Result<T> = std::result::Result<T, Error>;

/// A fault that a caller of the engine can cause.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// Operands whose shapes do not fit together.
    Shape {
        /// The operation.
        op: &'static str,
        /// Shape of the first operand.
        left: Vec<usize>,
        /// Shape of the second operand, or the shape asked for.
        right: Vec<usize>,
        /// What does not fit.
        why: String,
    },
    /// An axis, a range or a number that the operation cannot take.
    Argument {
        /// The operation.
        op: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// An id that lies outside of its table.
    Id {
        /// The operation.
        op: &'static str,
        /// The id.
        id: u32,
        /// The number of rows of the table.
        rows: usize,
    },
    /// A value that is NaN or infinite where it must not be.
    NotFinite {
        /// What holds it: `gradient of lstm.w_hh`.
        what: String,
        /// Position of the first such element.
        at: usize,
        /// The element.
        value: f32,
    },
    /// A weight file whose bytes break the format.
    Format {
        /// What is wrong, with offsets.
        why: String,
    },
    /// Weights that do not belong to the model.
    Weights {
        /// Every missing, extra and misshapen tensor.
        why: String,
    },
    /// A file that could not be read or written.
    File {
        /// The path.
        path: String,
        /// What the system said.
        why: String,
    },
}

impl Error {
    /// Makes a shape error.
    pub fn shape(
        op: &'static str,
        left: &[usize],
        right: &[usize],
        why: impl Into<String>,
    ) -> Error {
        Error::Shape { op, left: left.to_vec(), right: right.to_vec(), why: why.into() }
    }

    /// Makes an argument error.
    pub fn argument(op: &'static str, why: impl Into<String>) -> Error {
        Error::Argument { op, why: why.into() }
    }
}

/// Writes a shape as `[2, 3]`.
pub(crate) struct Shape<'a>(pub &'a [usize]);

impl fmt::Display for Shape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("[")?;
        for (i, dim) in self.0.iter().enumerate() {
            write!(f, "{}{dim}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Error::Shape { op, left, right, why } => {
                write!(f, "{op}: {} and {}: {why}", Shape(left), Shape(right))
            }
            Error::Argument { op, why } => write!(f, "{op}: {why}"),
            Error::Id { op, id, rows } => {
                write!(f, "{op}: id {id} is outside of a table of {rows} rows")
            }
            Error::NotFinite { what, at, value } => {
                write!(f, "{what}: element {at} is {value}, not a finite number")
            }
            Error::Format { why } => write!(f, "weight file: {why}"),
            Error::Weights { why } => write!(f, "weights: {why}"),
            Error::File { path, why } => write!(f, "{path}: {why}"),
        }
    }
}

impl std::error::Error for Error {}
