//! Cases: one set of sizes of a workload, as a shapes file writes it.

use std::fmt::Write as _;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use crate::console::clean;
use crate::error::{Error, Result};
use crate::input::read_bytes;

/// The built-in list: the workloads that this program has, with sizes of real models.
const BUILT_IN: &str = include_str!("shapes.json");

/// Bytes of the largest shapes file that is read.
const MAX_BYTES: u64 = 16 << 20;

/// Keys and values of one case, in the order of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    entries: Vec<(String, Value)>,
}

/// Workloads and their cases, in the order of the file.
struct Shapes(Vec<(String, Vec<Case>)>);

/// Reads a JSON object as a list, refusing a key that comes twice.
struct Entries<T>(std::marker::PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
    type Value = Vec<(String, T)>;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(
        self,
        mut map: A,
    ) -> std::result::Result<Self::Value, A::Error> {
        let mut entries: Self::Value = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, T>()? {
            if entries.iter().any(|(known, _)| *known == key) {
                return Err(A::Error::custom(format!("key \"{}\" comes twice", clean(&key))));
            }
            entries.push((key, value));
        }
        Ok(entries)
    }
}

impl<'de> Deserialize<'de> for Case {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Case, D::Error> {
        d.deserialize_map(Entries(std::marker::PhantomData)).map(|entries| Case { entries })
    }
}

impl<'de> Deserialize<'de> for Shapes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Shapes, D::Error> {
        d.deserialize_map(Entries(std::marker::PhantomData)).map(Shapes)
    }
}

/// Reads the cases of `workloads` from a shapes file, or from the built-in list.
///
/// # Errors
/// If the file cannot be read or is not of the form `{workload: [case, ...]}`.
pub fn read(path: Option<&Path>, workloads: &[&str]) -> Result<Vec<(String, Vec<Case>)>> {
    let form = "a shapes file is {workload: [case, ...]}";
    let shapes: Shapes = match path {
        None => serde_json::from_str(BUILT_IN)
            .map_err(|e| Error::failed(format!("the built-in shapes: {e}")))?,
        Some(path) => serde_json::from_slice(&read_bytes(path, MAX_BYTES)?)
            .map_err(|e| Error::file(path, format!("{}; {form}", clean(&e.to_string()))))?,
    };
    let mut wanted = Vec::new();
    for name in workloads {
        let cases = shapes.0.iter().find(|(known, _)| known == name);
        wanted.push(((*name).to_owned(), cases.map_or_else(Vec::new, |(_, cases)| cases.clone())));
    }
    Ok(wanted)
}

impl Case {
    /// Reads a case from JSON text.
    ///
    /// # Errors
    /// If it is not an object.
    pub fn parse(text: &str) -> Result<Case> {
        serde_json::from_str(text)
            .map_err(|e| Error::input(format!("bench: case: {}", clean(&e.to_string()))))
    }

    /// The JSON text as Python's `json.dumps` writes it, which is what `--match` looks into.
    pub fn text(&self) -> String {
        let entries: Vec<String> =
            self.entries.iter().map(|(k, v)| format!("{}: {}", quoted(k), python(v))).collect();
        format!("{{{}}}", entries.join(", "))
    }

    /// The case in few letters, for people: what is on is named, what is off is left out.
    pub fn brief(&self) -> String {
        let entry = |(key, value): &(String, Value)| match value {
            Value::Bool(true) => Some(key.clone()),
            Value::Bool(false) | Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(format!("{key} {}", python(other))),
        };
        clean(&self.entries.iter().filter_map(entry).collect::<Vec<_>>().join(" "))
    }

    /// The case as a JSON value.
    pub fn json(&self) -> Value {
        Value::Object(self.entries.iter().cloned().collect())
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    /// Whether the case has this key.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// An error that names this case.
    pub fn fault(&self, why: impl std::fmt::Display) -> Error {
        Error::input(format!("bench: case {}: {why}", clean(&self.text())))
    }

    /// Refuses every key that is not in `known`.
    ///
    /// # Errors
    /// Names the first unknown key.
    pub fn only(&self, known: &[&str]) -> Result<()> {
        match self.entries.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some((key, _)) => Err(self.fault(format!(
                "unknown key \"{}\"; this workload knows {}",
                clean(key),
                known.join(", ")
            ))),
        }
    }

    /// A count in `1..=most`.
    ///
    /// # Errors
    /// If it is missing or is not such a number.
    pub fn count(&self, key: &str, most: usize) -> Result<usize> {
        self.count_in(key, 1, most)
    }

    fn count_in(&self, key: &str, least: usize, most: usize) -> Result<usize> {
        let value = self.get(key).ok_or_else(|| self.fault(format!("key \"{key}\" is missing")))?;
        let count = value.as_u64().and_then(|n| usize::try_from(n).ok());
        count.filter(|n| (least..=most).contains(n)).ok_or_else(|| {
            self.fault(format!("\"{key}\" is {}, not a number in {least}..={most}", python(value)))
        })
    }

    /// [`Self::count`], or `default` where the key is missing.
    ///
    /// # Errors
    /// If it is not such a number.
    pub fn count_or(&self, key: &str, default: usize, most: usize) -> Result<usize> {
        if self.get(key).is_some() { self.count(key, most) } else { Ok(default) }
    }

    /// A count in `0..=most`; 0 where the key is missing.
    ///
    /// # Errors
    /// If it is not such a number.
    pub fn count_from_0(&self, key: &str, most: usize) -> Result<usize> {
        if self.get(key).is_some() { self.count_in(key, 0, most) } else { Ok(0) }
    }

    /// Two counts in `least..=most`, written as one number for both or as a list.
    ///
    /// # Errors
    /// If it is missing or is not such a number or list.
    pub fn pair(&self, key: &str, least: usize, most: usize) -> Result<[usize; 2]> {
        let value = self.get(key).ok_or_else(|| self.fault(format!("key \"{key}\" is missing")))?;
        let count = |value: &Value| {
            let count = value.as_u64().and_then(|n| usize::try_from(n).ok());
            count.filter(|n| (least..=most).contains(n))
        };
        let pair = match value.as_array().map(Vec::as_slice) {
            Some([h, w]) => count(h).zip(count(w)),
            Some(_) => None,
            None => count(value).map(|n| (n, n)),
        };
        pair.map(|(h, w)| [h, w]).ok_or_else(|| {
            let value = python(value);
            self.fault(format!("\"{key}\" is {value}, not one or two numbers in {least}..={most}"))
        })
    }

    /// A flag; false where the key is missing (or null).
    ///
    /// # Errors
    /// If it is neither true nor false.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => {
                Err(self.fault(format!("\"{key}\" is {}, not true or false", python(other))))
            }
        }
    }

    /// One of some words; the first where the key is missing and `required` is false.
    ///
    /// # Errors
    /// If it is missing though required, or another word.
    pub fn word<'a>(&self, key: &str, known: &[&'a str], required: bool) -> Result<&'a str> {
        let value = match self.get(key) {
            None if !required => return Ok(known[0]),
            None => return Err(self.fault(format!("key \"{key}\" is missing"))),
            Some(value) => value,
        };
        known.iter().find(|word| value.as_str() == Some(**word)).copied().ok_or_else(|| {
            let known = known.join(", ");
            self.fault(format!("\"{key}\" is {}, not one of {known}", python(value)))
        })
    }

    /// Refuses sizes whose product is too much for a machine to hold.
    ///
    /// # Errors
    /// If `numbers` is above 2 to the power of 31.
    pub fn holds(&self, numbers: usize) -> Result<()> {
        if numbers > 1 << 31 {
            return Err(self.fault(format!("{numbers} numbers are more than 2147483648")));
        }
        Ok(())
    }
}

/// A value as Python's `json.dumps` writes it.
fn python(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(python).collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let entries: Vec<String> =
                map.iter().map(|(k, v)| format!("{}: {}", quoted(k), python(v))).collect();
            format!("{{{}}}", entries.join(", "))
        }
        other => other.to_string(),
    }
}

/// A text in quotes, everything outside of ASCII escaped.
fn quoted(text: &str) -> String {
    let mut out = String::new();
    for unit in Value::from(text).to_string().encode_utf16() {
        match char::from_u32(u32::from(unit)).filter(char::is_ascii) {
            Some(c) => out.push(c),
            None => {
                let _ = write!(out, "\\u{unit:04x}"); // a String takes everything
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_case_is_what_python_prints() {
        let case = Case::parse(r#"{"n":2,"dtype":"bf16","a":[1,12],"f":0.5,"t":true,"ü":"é😀"}"#);
        let text = case.expect("a case").text();
        assert_eq!(
            text,
            r#"{"n": 2, "dtype": "bf16", "a": [1, 12], "f": 0.5, "t": true, "\u00fc": "\u00e9\ud83d\ude00"}"#
        );
    }

    #[test]
    fn every_built_in_workload_has_cases() {
        let names: Vec<&str> = super::super::WORKLOADS.iter().map(|w| w.name).collect();
        for (name, cases) in read(None, &names).expect("the built-in list") {
            assert!(!cases.is_empty(), "{name}");
        }
    }

    #[test]
    fn faults_of_a_case_are_named() {
        let case = Case::parse(r#"{"m": 0, "k": "x", "flag": 1, "op": "add"}"#).expect("a case");
        let why = |r: Result<usize>| r.expect_err("a fault").to_string();
        assert!(why(case.count("m", 9)).contains("\"m\" is 0, not a number in 1..=9"));
        assert!(why(case.count("k", 9)).contains("\"k\" is \"x\""));
        assert!(why(case.count("n", 9)).contains("key \"n\" is missing"));
        let case_of = |text| Case::parse(text).and_then(|case| case.pair("k", 1, 9));
        assert_eq!(case_of(r#"{"k": 3}"#).ok(), Some([3, 3]));
        assert_eq!(case_of(r#"{"k": [1, 9]}"#).ok(), Some([1, 9]));
        for bad in [r#"{"k": [1]}"#, r#"{"k": [0, 1]}"#, r#"{"k": "3"}"#, r#"{"k": 10}"#, "{}"] {
            assert!(case_of(bad).is_err(), "{bad}");
        }
        assert!(case.flag("flag", false).is_err() && case.only(&["m", "k"]).is_err());
        assert!(case.word("op", &["tanh"], true).is_err());
        assert!(Case::parse(r#"{"m": 1, "m": 2}"#).is_err());
    }
}
