//! Run directories: saved so that a crash at any moment loses at most the steps since the last save.
//!
//! `config.toml`, `model.safetensors`, `optimizer.safetensors`, `state.json`, `metrics.jsonl`,
//! `samples/`, and `best.safetensors` (the weights with the lowest validation loss so far).
//!
//! A save goes in three moves. First every changed file is written in full beside its place, as
//! `<name>.new`, and flushed to the disk. Then `state.json`, which names the length and the checksum
//! of every file, is renamed into place: this one rename is the moment at which the save counts.
//! Last the `.new` files are renamed over the old ones. Whoever opens the directory checks every
//! file against `state.json`; where the file in place is still the old one, the `.new` one is the
//! one meant, and the last move is done again. So a save either happened whole or not at all.

use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// The files that a save may hold, beside `state.json`.
const FILES: [&str; 4] =
    ["config.toml", "model.safetensors", "optimizer.safetensors", "best.safetensors"];
const STATE: &str = "state.json";
const METRICS: &str = "metrics.jsonl";
/// The largest file that is read back: far above any model of this crate.
const MAX_FILE: u64 = 1 << 34;

/// An open run directory, locked against a second writer.
pub struct RunDir {
    path: PathBuf,
    _lock: Option<File>,
    /// Length and checksum of each file as of the last save, and the state beside them.
    entries: Map<String, Value>,
    state: Value,
}

fn fault(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::File { path: path.display().to_string(), why: why.to_string() }
}

fn entry(bytes: &[u8]) -> Value {
    json!({ "bytes": bytes.len(), "crc32": format!("{:08x}", crc32fast::hash(bytes)) })
}

/// Reads a regular file of bounded size.
fn read(path: &Path) -> Result<Vec<u8>> {
    let meta = fs::metadata(path).map_err(|e| fault(path, e))?;
    if !meta.is_file() {
        return Err(fault(path, "not a regular file"));
    }
    if meta.len() > MAX_FILE {
        return Err(fault(path, format!("{} bytes; at most {MAX_FILE} are read", meta.len())));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| fault(path, e))?;
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(|e| fault(path, e))?;
    Ok(bytes)
}

/// Writes a file in full and flushes it to the disk.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(|e| fault(path, e))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| fault(path, e))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| fault(to, e))
}

/// Makes the renames of a folder last through a power cut.
fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| fault(path, e))
}

impl RunDir {
    /// Begins a new run directory beside its place, as `<path>.new`; the first save and
    /// [`RunDir::publish`] put it there.
    ///
    /// # Errors
    /// If the path holds something already, or the folder cannot be made or locked.
    pub fn create(path: &Path) -> Result<RunDir> {
        if path.join(STATE).exists() {
            let why = "holds a run already; go on with it by --resume, or name another folder";
            return Err(fault(path, why));
        }
        if path.is_dir() && fs::read_dir(path).map_err(|e| fault(path, e))?.next().is_some() {
            return Err(fault(path, "the folder is not empty and holds no run"));
        }
        if path.exists() && !path.is_dir() {
            return Err(fault(path, "not a folder"));
        }
        // Without a slash at its end: `run/` and `run` are one folder.
        let staged = new_name(&path.components().collect::<PathBuf>());
        fs::create_dir_all(staged.join("samples")).map_err(|e| fault(&staged, e))?;
        let lock = lock(&staged)?;
        // What a run that was killed before its first save may have left.
        match fs::remove_file(staged.join(METRICS)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(fault(&staged, e)),
            _ => {}
        }
        let (entries, state) = (Map::new(), Value::Null);
        Ok(RunDir { path: staged, _lock: Some(lock), entries, state })
    }

    /// Moves a run directory that [`RunDir::create`] began, once it holds a save, to its place.
    ///
    /// # Errors
    /// Names the path and what the system said.
    pub fn publish(&mut self) -> Result<()> {
        let place = self.path.with_extension("");
        if place.is_dir() {
            fs::remove_dir(&place).map_err(|e| fault(&place, e))?;
        }
        rename(&self.path, &place)?;
        let parent = place.parent().filter(|p| !p.as_os_str().is_empty());
        sync_folder(parent.unwrap_or(Path::new(".")))?;
        self.path = place;
        Ok(())
    }

    /// Opens a run directory, finishes a save that was cut short, and checks every file.
    ///
    /// `writing` locks it against a second writer and drops metrics written after the last save.
    ///
    /// # Errors
    /// Names the file that is missing or damaged.
    pub fn open(path: &Path, writing: bool) -> Result<RunDir> {
        let _lock = if writing && path.is_dir() { Some(lock(path)?) } else { None };
        let state_path = path.join(STATE);
        if !path.is_dir() {
            return Err(fault(path, "not a run directory"));
        }
        if !state_path.exists() {
            return Err(fault(
                path,
                "no state.json: not a run directory, or stopped before its first save",
            ));
        }
        let bytes = read(&state_path)?;
        let (state, entries) = parse_state(&bytes).map_err(|why| fault(&state_path, why))?;
        let run = RunDir { path: path.into(), _lock, entries, state };
        for name in FILES {
            run.settle(name, writing)?;
        }
        run.check_metrics(writing)?;
        Ok(run)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The state of the last save, as it was given to [`RunDir::save`].
    pub fn state(&self) -> &Value {
        &self.state
    }

    /// Reads a file of the last save; `None` if the save holds none of that name.
    ///
    /// # Errors
    /// If the file is missing or its checksum differs.
    pub fn file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(wanted) = self.entries.get(name) else { return Ok(None) };
        let path = self.path.join(name);
        for candidate in [path.clone(), new_name(&path)] {
            match read(&candidate) {
                Ok(bytes) if entry(&bytes) == *wanted => return Ok(Some(bytes)),
                _ => {}
            }
        }
        Err(self.damaged(&path, wanted))
    }

    /// Saves: the changed `files`, and `state` beside them. Files not named keep their last form.
    ///
    /// # Errors
    /// Names the path and what the system said; the last save stays whole.
    pub fn save(&mut self, files: &[(&str, Vec<u8>)], state: Value) -> Result<()> {
        let mut entries = self.entries.clone();
        for (name, bytes) in files {
            write(&new_name(&self.path.join(name)), bytes)?;
            entries.insert((*name).into(), entry(bytes));
        }
        // Made here if there is none yet: whoever resumes must know that the save had no lines.
        let metrics = self.path.join(METRICS);
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&metrics)
            .and_then(|f| f.sync_all())
            .map_err(|e| fault(&metrics, e))?;
        entries.insert(METRICS.into(), entry(&read(&metrics)?));
        let body = json!({ "files": entries, "state": state });
        let text = format!("{body}\n");
        let text = format!("{text}{:08x}\n", crc32fast::hash(text.as_bytes()));
        let state_path = self.path.join(STATE);
        write(&new_name(&state_path), text.as_bytes())?;
        rename(&new_name(&state_path), &state_path)?;
        sync_folder(&self.path)?;
        (self.entries, self.state) = (entries, state);
        for (name, _) in files {
            let path = self.path.join(name);
            rename(&new_name(&path), &path)?;
        }
        sync_folder(&self.path)
    }

    /// Adds a line to `metrics.jsonl`.
    ///
    /// # Errors
    /// Names the path and what the system said.
    pub fn log(&self, line: &Value) -> Result<()> {
        let path = self.path.join(METRICS);
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut f| f.write_all(format!("{line}\n").as_bytes()))
            .map_err(|e| fault(&path, e))
    }

    /// Checks one file of the save; finishes its last rename if that was cut off.
    fn settle(&self, name: &str, writing: bool) -> Result<()> {
        let (path, fresh) = (self.path.join(name), new_name(&self.path.join(name)));
        let Some(wanted) = self.entries.get(name) else { return Ok(()) };
        let right = |path: &Path| read(path).is_ok_and(|bytes| entry(&bytes) == *wanted);
        if right(&path) {
            return Ok(());
        }
        if right(&fresh) {
            return if writing { rename(&fresh, &path) } else { Ok(()) };
        }
        Err(self.damaged(&path, wanted))
    }

    fn damaged(&self, path: &Path, wanted: &Value) -> Error {
        match read(path) {
            Err(e) => e,
            Ok(bytes) if bytes.len() as u64 != wanted["bytes"].as_u64().unwrap_or(0) => {
                fault(path, format!("{} bytes; state.json says {}", bytes.len(), wanted["bytes"]))
            }
            Ok(_) => fault(path, "damaged: its checksum is not the one in state.json"),
        }
    }

    /// Checks the saved part of the metrics; cuts off what a killed run wrote after its last save.
    fn check_metrics(&self, writing: bool) -> Result<()> {
        let path = self.path.join(METRICS);
        let Some(wanted) = self.entries.get(METRICS) else { return Ok(()) };
        let bytes = read(&path)?;
        let saved = wanted["bytes"].as_u64().unwrap_or(0) as usize;
        let Some(kept) = bytes.get(..saved) else { return Err(self.damaged(&path, wanted)) };
        if entry(kept) != *wanted {
            return Err(fault(&path, "damaged: its checksum is not the one in state.json"));
        }
        if writing && bytes.len() > saved {
            let file = OpenOptions::new().write(true).open(&path).map_err(|e| fault(&path, e))?;
            file.set_len(saved as u64).map_err(|e| fault(&path, e))?;
        }
        Ok(())
    }
}

/// `name` -> `name.new`, in the same folder.
fn new_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Takes the lock of a run directory; it goes with the process.
fn lock(path: &Path) -> Result<File> {
    let at = path.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&at)
        .map_err(|e| fault(&at, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            Err(fault(path, "another process is training in this run directory"))
        }
        Err(fs::TryLockError::Error(e)) => Err(fault(&at, e)),
    }
}

/// Reads `state.json`: a line of JSON and its checksum.
fn parse_state(bytes: &[u8]) -> std::result::Result<(Value, Map<String, Value>), String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "damaged: not UTF-8".to_string())?;
    let (body, sum) = text
        .strip_suffix('\n')
        .and_then(|t| t.rsplit_once('\n'))
        .ok_or("damaged: two lines are wanted")?;
    let body = format!("{body}\n");
    if sum != format!("{:08x}", crc32fast::hash(body.as_bytes())) {
        return Err("damaged: its checksum differs".into());
    }
    let mut value: Value =
        serde_json::from_str(&body).map_err(|e| format!("damaged: not JSON: {e}"))?;
    match (value["state"].take(), value["files"].take()) {
        (state, Value::Object(files)) => Ok((state, files)),
        _ => Err("damaged: no list of files".into()),
    }
}
