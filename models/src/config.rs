//! Configurations: what a run directory's `config.toml` and a bundled model's metadata hold.
//!
//! A configuration is read strictly: an unknown table or key, a wrong type, a number out of its
//! range are errors that name the key. The same reader serves TOML files, `--set key=value` and the
//! JSON in a weight file.

use crate::{Error, Result};
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// Reads the keys of one table, each once, then complains about what is left.
pub struct Table {
    name: String,
    left: Map<String, Value>,
}

impl Table {
    /// Takes a table by its name out of a configuration; missing means empty.
    ///
    /// # Errors
    /// If the name holds something that is not a table.
    pub fn take(config: &mut Map<String, Value>, name: &str) -> Result<Table> {
        match config.remove(name) {
            None => Ok(Table { name: name.into(), left: Map::new() }),
            Some(Value::Object(left)) => Ok(Table { name: name.into(), left }),
            Some(other) => Err(Error::Config {
                key: name.into(),
                why: format!("a table is wanted, {} was given", kind(&other)),
            }),
        }
    }

    fn fault<T>(&self, key: &str, why: String) -> Result<T> {
        Err(Error::Config { key: format!("{}.{key}", self.name), why })
    }

    /// Reads a whole number.
    ///
    /// # Errors
    /// If it is not a whole number in `range`.
    pub fn count(
        &mut self,
        key: &str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> Result<usize> {
        let Some(value) = self.left.remove(key) else { return Ok(default) };
        match value.as_u64().and_then(|v| usize::try_from(v).ok()) {
            Some(v) if range.contains(&v) => Ok(v),
            Some(v) => {
                self.fault(key, format!("{v} is not in {} to {}", range.start(), range.end()))
            }
            None => self.fault(key, format!("a whole number is wanted, {}", shown(&value))),
        }
    }

    /// Reads a number.
    ///
    /// # Errors
    /// If it is not a number in `range`.
    pub fn number(&mut self, key: &str, default: f64, range: RangeInclusive<f64>) -> Result<f64> {
        let Some(value) = self.left.remove(key) else { return Ok(default) };
        match value.as_f64() {
            Some(v) if range.contains(&v) => Ok(v),
            Some(v) => {
                self.fault(key, format!("{v} is not in {} to {}", range.start(), range.end()))
            }
            None => self.fault(key, format!("a number is wanted, {}", shown(&value))),
        }
    }

    /// Reads a yes or no.
    ///
    /// # Errors
    /// If it is neither true nor false.
    pub fn flag(&mut self, key: &str, default: bool) -> Result<bool> {
        match self.left.remove(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => self.fault(key, format!("true or false is wanted, {}", shown(&other))),
        }
    }

    /// Reads a text.
    ///
    /// # Errors
    /// If it is not a text.
    pub fn text(&mut self, key: &str, default: &str) -> Result<String> {
        match self.left.remove(key) {
            None => Ok(default.into()),
            Some(Value::String(text)) if text.len() <= 4096 => Ok(text),
            Some(Value::String(text)) => {
                self.fault(key, format!("a text of {} bytes; at most 4096", text.len()))
            }
            Some(other) => self.fault(key, format!("a text is wanted, {}", shown(&other))),
        }
    }

    /// Reads one of several names.
    ///
    /// # Errors
    /// If it is none of them.
    pub fn choice(&mut self, key: &str, default: &str, known: &[&str]) -> Result<String> {
        let text = self.text(key, default)?;
        if known.contains(&text.as_str()) {
            return Ok(text);
        }
        self.fault(key, format!("{} is not one of {}", quoted(&text), known.join(", ")))
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// If a key was not asked for.
    pub fn finish(self) -> Result<()> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(key) => Err(Error::Config {
                key: format!("{}.{}", self.name, plain(key)),
                why: "unknown key".into(),
            }),
        }
    }
}

/// Ends the reading of a whole configuration.
///
/// # Errors
/// If a table was not asked for.
pub fn finish(config: &Map<String, Value>) -> Result<()> {
    match config.keys().next() {
        None => Ok(()),
        Some(key) => Err(Error::Config { key: plain(key), why: "unknown table or key".into() }),
    }
}

/// Sets `key` (or `table.key`) of a configuration, as `--set key=value` does.
///
/// The value is read as JSON where it is JSON (`3`, `0.5`, `"x"`), else as a text. A key without a
/// table must be one of `known`, pairs of table and key.
///
/// # Errors
/// If there is no `=`, or the key is not known.
pub fn set(
    config: &mut Map<String, Value>,
    assignment: &str,
    known: &[(&str, &str)],
) -> Result<()> {
    let Some((key, value)) = assignment.split_once('=') else {
        let why = "key=value is wanted, such as hidden=192".into();
        return Err(Error::Config { key: format!("--set {}", plain(assignment)), why });
    };
    let (key, value) = (key.trim(), value.trim());
    let found = known.iter().find(|(table, name)| match key.split_once('.') {
        Some((t, k)) => t == *table && k == *name,
        None => key == *name,
    });
    let Some((table, name)) = found else {
        let names = known.iter().map(|(_, k)| *k).collect::<Vec<_>>().join(", ");
        let why = format!("unknown key; known: {names}");
        return Err(Error::Config { key: format!("--set {}", plain(key)), why });
    };
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.into()));
    let table = config.entry(*table).or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(table) = table {
        table.insert((*name).into(), value);
    }
    Ok(())
}

/// The largest configuration that is read, in bytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// Reads TOML into the common form.
///
/// # Errors
/// If the text is too long or is not TOML; the message says the line.
#[cfg(feature = "train")]
pub fn from_toml(text: &str) -> Result<Map<String, Value>> {
    let fault = |why: String| Error::Config { key: "config".into(), why };
    if text.len() as u64 > MAX_BYTES {
        return Err(fault(format!("{} bytes; at most {MAX_BYTES}", text.len())));
    }
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map(|s| text[..s.start].matches('\n').count() + 1);
        let at = line.map(|l| format!("line {l}: ")).unwrap_or_default();
        fault(format!("not TOML: {at}{}", plain(e.message())))
    })?;
    fn json(value: toml::Value) -> Value {
        match value {
            toml::Value::String(s) => Value::String(s),
            toml::Value::Integer(i) => i.into(),
            toml::Value::Float(f) => f.into(),
            toml::Value::Boolean(b) => b.into(),
            toml::Value::Datetime(d) => Value::String(d.to_string()),
            toml::Value::Array(a) => a.into_iter().map(json).collect(),
            toml::Value::Table(t) => {
                Value::Object(t.into_iter().map(|(k, v)| (k, json(v))).collect())
            }
        }
    }
    Ok(table.into_iter().map(|(k, v)| (k, json(v))).collect())
}

/// A number as it was written: `0.3f32` as f64 has digits that nobody wrote.
pub(crate) fn written(x: f32) -> Value {
    Value::from(x.to_string().parse::<f64>().unwrap_or(0.0))
}

/// Writes tables of plain values as TOML.
pub fn to_toml(config: &Map<String, Value>) -> String {
    let mut text = String::new();
    for (name, table) in config {
        let Value::Object(table) = table else { continue };
        text.push_str(&format!("[{name}]\n"));
        for (key, value) in table {
            // Texts, numbers and booleans are written alike in JSON and TOML.
            text.push_str(&format!("{key} = {value}\n"));
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a table",
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Bool(_) | Value::Number(_) => format!("{value} was given"),
        Value::String(text) => format!("the text {} was given", quoted(text)),
        _ => format!("{} was given", kind(value)),
    }
}

/// A name from a file, short and without control characters.
pub(crate) fn plain(text: &str) -> String {
    let mut out: String =
        text.chars().take(60).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().nth(60).is_some() {
        out.push_str("...");
    }
    out
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", plain(text))
}
