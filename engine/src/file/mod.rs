//! Weight files in the safetensors layout.
//!
//! ```text
//! 8 bytes      length n of the header, little-endian
//! n bytes      JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ..}
//! the rest     the numbers, little-endian, row-major, without gaps
//! ```
//! `__metadata__` in the header holds texts: a model's own config. A tensor may be stored as f32,
//! f16, bf16, or as int8 with one f32 scale for each row, which stands beside it under the name
//! `<name>.scale`.

mod dtype;
mod header;
mod write;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

pub use dtype::Dtype;
pub use header::{Entry, MAX_HEADER};
pub use write::{named_parameters, write_weights};

use crate::error::{Error, Result, Shape};
use crate::layout::Layout;
use crate::memory::Buffer;
use crate::param::Module;
use crate::tensor::Tensor;
use header::printable;

/// Ends the name of the scales of a tensor that is stored as int8.
const SCALE: &str = ".scale";

/// A weight file whose structure has been checked. The numbers are read when they are asked for.
pub struct WeightFile<'a> {
    bytes: Cow<'a, [u8]>,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl<'a> WeightFile<'a> {
    /// Checks the bytes of a file, borrowed (as those built into a program) or owned.
    ///
    /// # Errors
    /// [`Error::Format`] that says where the bytes break the format.
    pub fn parse(bytes: impl Into<Cow<'a, [u8]>>) -> Result<WeightFile<'a>> {
        let bytes = bytes.into();
        let header = header::parse(&bytes)?;
        Ok(WeightFile { bytes, tensors: header.tensors, metadata: header.metadata })
    }

    /// The texts of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// All tensors by name.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.tensors
    }

    /// The bytes of one tensor.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.tensors.get(name).map(|entry| &self.bytes[entry.bytes.clone()])
    }

    /// Reads a tensor as f32, whatever it is stored as.
    ///
    /// # Errors
    /// If there is no such tensor, or it has a format or a number of axes that the engine does not
    /// compute with.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let why = |why: String| Error::Weights { why: format!("{}: {why}", printable(name)) };
        let Some(entry) = self.tensors.get(name) else { return Err(why("is missing".into())) };
        let layout = Layout::contiguous("weights", &entry.shape)
            .map_err(|_| why(format!("{} axes are too many", entry.shape.len())))?;
        let mut values = Buffer::scratch(layout.len());
        if !entry.dtype.decode(&self.bytes[entry.bytes.clone()], &mut values) {
            return Err(why(format!("is stored as {}, which is not read", entry.dtype.name())));
        }
        if let Some(scales) = self.scales(name, entry) {
            let cols = layout.len().checked_div(scales.len()).unwrap_or(0).max(1);
            for (row, scale) in values.chunks_exact_mut(cols).zip(scales) {
                row.iter_mut().for_each(|x| *x *= scale);
            }
        }
        Ok(Tensor::constant(values, layout))
    }

    /// The scales of an int8 tensor, if they stand beside it.
    fn scales(&self, name: &str, entry: &Entry) -> Option<Vec<f32>> {
        let scales = self.tensors.get(&format!("{name}{SCALE}"))?;
        let fits = entry.dtype == Dtype::I8
            && scales.dtype == Dtype::F32
            && !entry.shape.is_empty()
            && scales.shape == entry.shape[..1];
        if !fits {
            return None;
        }
        let mut y = vec![0.0; entry.shape[0]];
        scales.dtype.decode(&self.bytes[scales.bytes.clone()], &mut y);
        Some(y)
    }

    /// Makes sure that no float in the file is NaN or infinite.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for the first one that is.
    pub fn check_finite(&self) -> Result<()> {
        for (name, entry) in &self.tensors {
            if matches!(entry.dtype, Dtype::F16 | Dtype::Bf16 | Dtype::F32 | Dtype::F64) {
                self.tensor(name)?.check_finite(&printable(name))?;
            }
        }
        Ok(())
    }

    /// Gives every parameter of a model its value from this file.
    ///
    /// # Errors
    /// [`Error::Weights`] that names every missing, extra and misshapen tensor. The model has not
    /// changed then.
    pub fn load_into(&self, model: &mut dyn Module) -> Result<()> {
        let mut extra: BTreeSet<&str> = self.tensors.keys().map(String::as_str).collect();
        let (mut missing, mut misfit) = (Vec::new(), Vec::new());
        model.visit(&mut |p| {
            extra.remove(p.name.as_str());
            let Some(entry) = self.tensors.get(&p.name) else {
                missing.push(p.name.clone());
                return;
            };
            if self.scales(&p.name, entry).is_some() {
                extra.remove(format!("{}{SCALE}", p.name).as_str());
            }
            if entry.shape != p.value.shape() {
                let (found, wanted) = (Shape(&entry.shape), Shape(p.value.shape()));
                misfit.push(format!("{} is {found}, the model wants {wanted}", p.name));
            }
        });
        let extra: Vec<String> = extra.into_iter().map(printable).collect();
        let lists =
            [("missing", &missing), ("not part of the model", &extra), ("misshapen", &misfit)];
        let faults: Vec<String> = lists
            .iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| format!("{what}: {}", list(names)))
            .collect();
        if !faults.is_empty() {
            return Err(Error::Weights { why: faults.join("; ") });
        }
        let mut values = Vec::new();
        let mut result = Ok(());
        model.visit(&mut |p| match self.tensor(&p.name) {
            Ok(value) => values.push(value),
            Err(error) => result = Err(error),
        });
        result?;
        let mut values = values.into_iter();
        let mut result = Ok(());
        model.visit_mut(&mut |p| {
            if let (Ok(()), Some(value)) = (&result, values.next()) {
                result = p.set(&value);
            }
        });
        result
    }

    /// Reads and checks a file of at most `max_bytes`.
    ///
    /// # Errors
    /// [`Error::File`] with the path if it cannot be read, is not a regular file, is longer, or its
    /// bytes break the format.
    #[cfg(feature = "files")]
    pub fn read(path: impl AsRef<std::path::Path>, max_bytes: u64) -> Result<WeightFile<'static>> {
        use std::io::Read;
        let path = path.as_ref();
        let shown = printable(&path.to_string_lossy());
        let fault = |why: String| Error::File { path: shown.clone(), why };
        // Looked at before it is opened: opening a FIFO waits for a writer that may never come.
        let about = std::fs::metadata(path).map_err(|e| fault(e.to_string()))?;
        if !about.is_file() {
            return Err(fault("is not a regular file".into()));
        }
        if about.len() > max_bytes {
            let why = format!("{} bytes are more than the {max_bytes} allowed", about.len());
            return Err(fault(why));
        }
        let file = std::fs::File::open(path).map_err(|e| fault(e.to_string()))?;
        let mut bytes = Vec::with_capacity(about.len() as usize);
        file.take(max_bytes).read_to_end(&mut bytes).map_err(|e| fault(e.to_string()))?;
        WeightFile::parse(bytes).map_err(|e| fault(e.to_string()))
    }
}

/// Joins names for a message, a long list cut.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
