//! Writing weight files: the same tensors give the same bytes.

use std::collections::BTreeMap;

use super::SCALE;
use super::dtype::{Dtype, encode, quantise_rows};
use super::header::printable;
use crate::error::{Error, Result};
use crate::param::Module;
use crate::tensor::Tensor;

/// The parameters of a model as named tensors, as [`write_weights`] takes them.
pub fn named_parameters(model: &dyn Module) -> Vec<(String, Tensor)> {
    let mut named = Vec::new();
    model.visit(&mut |p| named.push((p.name.clone(), p.value.detach())));
    named
}

/// Lays tensors out as a weight file, stored as F32, F16, BF16 or I8.
///
/// I8 takes matrices only (each row gets a scale of its own, stored beside it); everything else
/// stays F32 then. Tensors lie in the order of their number format, widest first, then of their
/// names, so the bytes depend on nothing but names, values and `metadata`.
///
/// # Errors
/// [`Error::Weights`] if a name is used twice or reserved, or the format is none of the four.
pub fn write_weights(
    tensors: &[(String, Tensor)],
    dtype: Dtype,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::I8) {
        let why = format!("numbers are not written as {}", dtype.name());
        return Err(Error::Weights { why });
    }
    let mut stored: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    let mut put = |name: String, dtype, shape: &[usize], bytes| {
        if name == "__metadata__" || stored.contains_key(&name) {
            let why = format!("{}: this name is reserved or used twice", printable(&name));
            return Err(Error::Weights { why });
        }
        stored.insert(name, (dtype, shape.to_vec(), bytes));
        Ok(())
    };
    for (name, tensor) in tensors {
        let values = tensor.values();
        let mut bytes = Vec::new();
        if dtype == Dtype::I8 && tensor.rank() == 2 {
            let rows = tensor.shape()[0];
            let scales = quantise_rows(&values, rows, &mut bytes);
            let mut scale_bytes = Vec::new();
            encode(&scales, Dtype::F32, &mut scale_bytes);
            put(name.clone(), Dtype::I8, tensor.shape(), bytes)?;
            put(format!("{name}{SCALE}"), Dtype::F32, &[rows], scale_bytes)?;
        } else {
            let dtype = if dtype == Dtype::I8 { Dtype::F32 } else { dtype };
            encode(&values, dtype, &mut bytes);
            put(name.clone(), dtype, tensor.shape(), bytes)?;
        }
    }
    // Widest first: so every tensor begins at a multiple of its number size.
    let mut order: Vec<_> = stored.iter().collect();
    order.sort_by_key(|(name, (dtype, ..))| (std::cmp::Reverse(dtype.size()), name.as_str()));

    let mut header = String::from("{");
    if !metadata.is_empty() {
        header.push_str("\"__metadata__\":{");
        for (i, (key, value)) in metadata.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            header.push_str(&format!("{comma}{}:{}", quoted(key), quoted(value)));
        }
        header.push('}');
    }
    let mut at = 0;
    for (name, (dtype, shape, bytes)) in &order {
        if header.len() > 1 {
            header.push(',');
        }
        let (name, dtype, end) = (quoted(name), dtype.name(), at + bytes.len());
        let shape = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        header.push_str(&format!(
            r#"{name}:{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{at},{end}]}}"#
        ));
        at = end;
    }
    header.push('}');
    // Spaces until the numbers begin at a multiple of 8.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));

    let mut file = Vec::with_capacity(8 + header.len() + at);
    file.extend((header.len() as u64).to_le_bytes());
    file.extend(header.as_bytes());
    order.iter().for_each(|(_, (.., bytes))| file.extend(bytes));
    Ok(file)
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c < ' ' => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
