//! The header of a weight file: which tensors there are and where their bytes lie.
//!
//! Everything is checked before anything is allocated for it: the length against the file, every key
//! against every other (a map that merges duplicates would hide them), shapes against byte counts,
//! and the byte ranges against each other, so that they cover the file once and completely.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;

use serde_core::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::dtype::Dtype;
use crate::error::{Error, Result};

/// The format's own ceiling for the length of a header.
pub const MAX_HEADER: u64 = 100_000_000;

/// Where one tensor lies and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Format of the numbers.
    pub dtype: Dtype,
    /// Sizes of the axes.
    pub shape: Vec<usize>,
    /// Its bytes within the file.
    pub bytes: Range<usize>,
}

/// A checked header.
pub(crate) struct Header {
    pub tensors: BTreeMap<String, Entry>,
    pub metadata: BTreeMap<String, String>,
}

/// Makes text from a file fit to print: control characters escaped, long text cut.
pub(crate) fn printable(text: &str) -> String {
    const SHOWN: usize = 100;
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push_str("..");
    }
    shown
}

fn fault<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::Format { why: why.into() })
}

/// Reads and checks the header of a whole file.
pub(crate) fn parse(file: &[u8]) -> Result<Header> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return fault(format!("{} bytes, but the header length alone takes 8", file.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return fault(format!("a header of {length} bytes, above the ceiling of {MAX_HEADER}"));
    }
    let Some((header, data)) = rest.split_at_checked(length as usize) else {
        return fault(format!("a header of {length} bytes, but {} follow", rest.len()));
    };
    let start = file.len() - data.len();
    let Ok(text) = std::str::from_utf8(header) else {
        return fault("the header is not UTF-8 text");
    };
    if !text.starts_with('{') {
        return fault("the header does not begin with {");
    }
    let raw: RawHeader = serde_json::from_str(text)
        .map_err(|e| Error::Format { why: format!("header: {}", printable(&e.to_string())) })?;

    let mut tensors: Vec<(String, RawEntry)> = raw.tensors;
    tensors.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut at = 0;
    let mut checked = BTreeMap::new();
    for (name, entry) in tensors {
        let shown = printable(&name);
        let Some(dtype) = Dtype::from_name(&entry.dtype) else {
            return fault(format!("{shown}: unknown number format {}", printable(&entry.dtype)));
        };
        let (begin, end) = entry.data_offsets;
        if begin != at {
            let what = if begin > at { "a hole" } else { "an overlap" };
            return fault(format!(
                "{shown}: begins at {begin}, {what}: the last one ended at {at}"
            ));
        }
        if end < begin || end > data.len() as u64 {
            return fault(format!("{shown}: bytes {begin}..{end} of {}", data.len()));
        }
        let count = entry.shape.iter().try_fold(1u64, |n, dim| n.checked_mul(*dim));
        let bytes = count.and_then(|n| n.checked_mul(dtype.size() as u64));
        if bytes != Some(end - begin) {
            let shape = join(&entry.shape);
            let length = end - begin;
            return fault(format!("{shown}: {} [{shape}] in {length} bytes", dtype.name()));
        }
        let shape: std::result::Result<Vec<usize>, _> =
            entry.shape.iter().map(|dim| usize::try_from(*dim)).collect();
        let Ok(shape) = shape else {
            return fault(format!("{shown}: [{}] is too large", join(&entry.shape)));
        };
        let bytes = start + begin as usize..start + end as usize;
        checked.insert(name, Entry { dtype, shape, bytes });
        at = end;
    }
    if at != data.len() as u64 {
        return fault(format!("{} bytes after the last tensor", data.len() as u64 - at));
    }
    Ok(Header { tensors: checked, metadata: raw.metadata.unwrap_or_default() })
}

/// Writes sizes for a message, a long list cut.
fn join(dims: &[u64]) -> String {
    const SHOWN: usize = 8;
    let mut shown: Vec<String> = dims.iter().take(SHOWN).map(u64::to_string).collect();
    if dims.len() > SHOWN {
        shown.push(format!(".. {} axes", dims.len()));
    }
    shown.join(", ")
}

/// The header as JSON gives it, duplicates refused.
struct RawHeader {
    tensors: Vec<(String, RawEntry)>,
    metadata: Option<BTreeMap<String, String>>,
}

struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// A map of strings that refuses duplicate keys.
struct Metadata(BTreeMap<String, String>);

fn duplicate<E: serde_core::de::Error>(what: &str, key: &str) -> E {
    E::custom(format_args!("{what} {} stands there twice", printable(key)))
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Header;
        impl<'de> Visitor<'de> for Header {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<RawHeader, A::Error> {
                let mut names = HashSet::new();
                let mut header = RawHeader { tensors: Vec::new(), metadata: None };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        if header.metadata.is_some() {
                            return Err(duplicate("the key", &name));
                        }
                        header.metadata = Some(map.next_value::<Metadata>()?.0);
                        continue;
                    }
                    if !names.insert(name.clone()) {
                        return Err(duplicate("the tensor", &name));
                    }
                    header.tensors.push((name, map.next_value()?));
                }
                Ok(header)
            }
        }
        from.deserialize_map(Header)
    }
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = Metadata;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of texts")
            }
            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Metadata, A::Error> {
                let mut strings = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if strings.contains_key(&key) {
                        return Err(duplicate("the metadata key", &key));
                    }
                    strings.insert(key, map.next_value()?);
                }
                Ok(Metadata(strings))
            }
        }
        from.deserialize_map(Strings)
    }
}

impl<'de> Deserialize<'de> for RawEntry {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        use serde_core::de::Error as _;
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = RawEntry;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object with dtype, shape and data_offsets")
            }
            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<RawEntry, A::Error> {
                let (mut dtype, mut shape, mut offsets) = (None, None, None);
                while let Some(key) = map.next_key::<String>()? {
                    let twice = match key.as_str() {
                        "dtype" => dtype.replace(map.next_value()?).is_some(),
                        "shape" => shape.replace(map.next_value()?).is_some(),
                        "data_offsets" => offsets.replace(map.next_value()?).is_some(),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            false
                        }
                    };
                    if twice {
                        return Err(duplicate("the field", &key));
                    }
                }
                let missing = A::Error::missing_field;
                Ok(RawEntry {
                    dtype: dtype.ok_or_else(|| missing("dtype"))?,
                    shape: shape.ok_or_else(|| missing("shape"))?,
                    data_offsets: offsets.ok_or_else(|| missing("data_offsets"))?,
                })
            }
        }
        from.deserialize_map(Fields)
    }
}
