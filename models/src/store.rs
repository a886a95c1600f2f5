//! Tokens on the disk: a data set of any size that takes no memory.
//!
//! A store is one file of records, one for each MIDI file that was ever read into it, found again by
//! the hash of the file's content. Only the index stays in memory. Records are added at the end; a
//! record whose checksum is wrong, such as the last of a program that was stopped, ends the store and
//! is written over.
//!
//! ```text
//! etude tokens 2 ENCODING VOCAB VERSION\n
//! record: head bytes u32, tokens u32, crc of tokens u32, crc u32, head (JSON), tokens (u16)
//! ```
//!
//! The second crc is that of all before it and of the head.

use crate::{Error, Result};
use crc32fast::hash as crc32;
use etude_tokenizer::twins::mix;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Bytes of a record before its head.
const LEAD: usize = 16;
/// The longest head that is read.
const MAX_HEAD: u32 = 1 << 20;
/// A store that has grown beyond this begins anew.
const MAX_BYTES: u64 = 1 << 33;

/// Where the tokens of a piece lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    at: u64,
    count: u32,
    crc: u32,
}

impl Place {
    /// How many tokens there are.
    pub fn tokens(&self) -> usize {
        self.count as usize
    }
}

/// A file of tokens.
pub struct Store {
    path: PathBuf,
    is_scratch: bool,
    file: Mutex<File>,
    /// Where the next record goes.
    end: u64,
    /// Where the record of a content begins.
    records: HashMap<u128, u64>,
}

impl Store {
    /// Opens the store of an encoding in a folder, or makes it.
    ///
    /// The store is locked against a second writer until [`Store::settle`].
    ///
    /// # Errors
    /// If the folder cannot be written to, the file system has no locks, or another process writes to
    /// the store.
    pub fn open(folder: &Path, encoding: &str, vocab: usize) -> Result<Store> {
        let path = folder.join(format!("{encoding}.tokens"));
        std::fs::create_dir_all(folder).map_err(|e| fault(folder, e))?;
        let open = || -> Result<File> {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create(true).truncate(false);
            let file = options.open(&path).map_err(|e| fault(&path, e))?;
            match file.try_lock() {
                Ok(()) => Ok(file),
                Err(TryLockError::WouldBlock) => Err(fault(&path, "another process writes to it")),
                Err(TryLockError::Error(e)) => Err(fault(&path, format!("cannot be locked: {e}"))),
            }
        };
        let mut store = Store::empty(path.clone(), open()?, false);
        let title = title(encoding, vocab);
        if !store.scan(title.as_bytes()) {
            // Not emptied but made anew: somebody may still read what it holds.
            std::fs::remove_file(&path).map_err(|e| fault(&path, e))?;
            store = Store::empty(path.clone(), open()?, false);
            store.append(title.as_bytes())?;
        }
        Ok(store)
    }

    /// Ends the writing: from now on other processes may add records.
    pub fn settle(&self) {
        if let Ok(file) = self.file.lock() {
            let _ = file.unlock(); // at the latest it goes with the file
        }
    }

    /// Makes a store that is gone when it is dropped.
    ///
    /// # Errors
    /// If the folder for temporary files cannot be written to.
    pub fn scratch(encoding: &str, vocab: usize) -> Result<Store> {
        let folder = std::env::temp_dir();
        for number in 0..1000u32 {
            let name = format!("etude-{}-{number}.tokens", std::process::id());
            let path = folder.join(name);
            let mut new = OpenOptions::new();
            match new.read(true).write(true).create_new(true).open(&path) {
                Ok(file) => {
                    // Where the system lets an open file have no name, it is gone however we end.
                    let is_named = !cfg!(unix) || std::fs::remove_file(&path).is_err();
                    let mut store = Store::empty(path, file, is_named);
                    store.append(title(encoding, vocab).as_bytes())?;
                    return Ok(store);
                }
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(fault(&path, e)),
            }
        }
        Err(fault(&folder, "too many stores of this process"))
    }

    fn empty(path: PathBuf, file: File, is_scratch: bool) -> Store {
        Store { path, is_scratch, file: Mutex::new(file), end: 0, records: HashMap::new() }
    }

    /// Finds the records; `false` if this is no store of the title, or one that is too large.
    fn scan(&mut self, title: &[u8]) -> bool {
        let bytes = self.file.get_mut().map_or(0, |f| f.metadata().map_or(0, |m| m.len()));
        if bytes > MAX_BYTES || self.read(0, title.len()).is_ok_and(|found| found != title) {
            return false;
        }
        if bytes < title.len() as u64 {
            return false;
        }
        self.end = title.len() as u64;
        while let Some((key, next)) = self.record(self.end, bytes) {
            self.records.insert(key, self.end);
            self.end = next;
        }
        true
    }

    /// The content of a record and where the next one begins; `None` if it is not whole.
    fn record(&self, at: u64, bytes: u64) -> Option<(u128, u64)> {
        let (head, place) = self.head(at)?;
        let next = place.at + 2 * u64::from(place.count);
        let key = u128::from_str_radix(head["content"].as_str()?, 16).ok()?;
        (next <= bytes).then_some((key, next))
    }

    fn head(&self, at: u64) -> Option<(Value, Place)> {
        let lead = self.read(at, LEAD).ok()?;
        let word = |i: usize| u32::from_le_bytes([0, 1, 2, 3].map(|j| lead[4 * i + j]));
        let [length, count, crc, head_crc] = [0, 1, 2, 3].map(word);
        if length > MAX_HEAD {
            return None;
        }
        let head = self.read(at + LEAD as u64, length as usize).ok()?;
        if crc32(&[&lead[..LEAD - 4], &head].concat()) != head_crc {
            return None;
        }
        let place = Place { at: at + LEAD as u64 + u64::from(length), count, crc };
        Some((serde_json::from_slice(&head).ok()?, place))
    }

    /// Where the store is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is kept about a content: what [`Store::add`] was told, and where its tokens are. What is
    /// damaged is not found.
    pub fn find(&self, content: u128) -> Option<(Value, Place)> {
        let (mut head, place) = self.head(*self.records.get(&content)?)?;
        self.tokens(place).ok()?;
        Some((head["about"].take(), place))
    }

    /// Keeps the tokens of a content.
    ///
    /// # Errors
    /// If the file cannot be written, a token is above 65535, or there is too much of them or of what
    /// is told about them.
    pub fn add(&mut self, content: u128, about: &Value, tokens: &[u32]) -> Result<Place> {
        let head = json!({ "content": format!("{content:x}"), "about": about }).to_string();
        let mut body = Vec::with_capacity(2 * tokens.len());
        for &token in tokens {
            let token = u16::try_from(token).map_err(|_| {
                fault(&self.path, format!("token {token}; it holds those up to {}", u16::MAX))
            })?;
            body.extend(token.to_le_bytes());
        }
        let (length, count) = (u32::try_from(head.len()), u32::try_from(tokens.len()));
        let (Ok(length @ 0..=MAX_HEAD), Ok(count)) = (length, count) else {
            let why = format!("{} bytes about {} tokens are too many", head.len(), tokens.len());
            return Err(fault(&self.path, why));
        };
        let at = self.end;
        let place = Place { at: at + (LEAD + head.len()) as u64, count, crc: crc32(&body) };
        let mut record: Vec<u8> =
            [length, count, place.crc].iter().flat_map(|word| word.to_le_bytes()).collect();
        let head_crc = crc32(&[&record, head.as_bytes()].concat());
        record.extend(head_crc.to_le_bytes());
        self.append(&[&record, head.as_bytes(), &body].concat())?;
        self.records.insert(content, at);
        Ok(place)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let (end, path) = (self.end, &self.path);
        let file = self.file.get_mut().map_err(|_| fault(path, "a reader failed"))?;
        let write = |file: &mut File| {
            file.set_len(end)?;
            file.seek(SeekFrom::Start(end))?;
            file.write_all(bytes)
        };
        write(file).map_err(|e| fault(path, e))?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    fn read(&self, at: u64, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        let mut file = self.file.lock().map_err(|_| fault(&self.path, "a reader failed"))?;
        file.seek(SeekFrom::Start(at))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|e| fault(&self.path, e))?;
        Ok(bytes)
    }

    /// Reads the tokens of a place.
    ///
    /// # Errors
    /// If the file cannot be read, or its checksum is wrong.
    pub fn tokens(&self, place: Place) -> Result<Vec<u32>> {
        let bytes = self.read(place.at, 2 * place.count as usize)?;
        if crc32(&bytes) != place.crc {
            return Err(fault(
                &self.path,
                "damaged: a checksum is wrong; delete it and begin anew",
            ));
        }
        let tokens = bytes.chunks_exact(2).map(|t| u32::from(u16::from_le_bytes([t[0], t[1]])));
        Ok(tokens.collect())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if self.is_scratch {
            let _ = std::fs::remove_file(&self.path); // nobody else knows of it
        }
    }
}

/// A hash of a file's content.
pub fn content_hash(bytes: &[u8]) -> u128 {
    // Two lanes of word-wise FNV with a rotation, finished by splitmix64.
    let mut lanes = [0xcbf2_9ce4_8422_2325u64, 0x9e37_79b9_7f4a_7c15];
    let mut add = |word: u64| {
        lanes[0] = (lanes[0] ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        lanes[1] = (lanes[1] ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(31);
    };
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        add(u64::from_le_bytes(word));
    }
    add(bytes.len() as u64);
    u128::from(mix(lanes[0])) << 64 | u128::from(mix(lanes[1]))
}

/// The first line of a store.
fn title(encoding: &str, vocab: usize) -> String {
    format!("etude tokens 2 {encoding} {vocab} {}\n", etude_tokenizer::FORMAT)
}

fn fault(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::File { path: path.display().to_string(), why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("etude-store-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        path
    }

    fn tokens(seed: u32) -> Vec<u32> {
        (0..100 + seed).map(|i| (i * 7919 + seed) % 65_536).collect()
    }

    #[test]
    fn what_was_added_is_found_again_by_another_process() {
        let folder = folder("again");
        let mut store = Store::open(&folder, "melody", 38).unwrap();
        for seed in 0..5 {
            store.add(u128::from(seed) << 90, &json!({ "seed": seed }), &tokens(seed)).unwrap();
        }
        let second = Store::open(&folder, "melody", 38).err().map(|e| e.to_string());
        assert!(second.unwrap().contains("another process writes to it"));
        store.settle();
        assert!(Store::open(&folder, "melody", 38).is_ok());
        drop(store);
        let store = Store::open(&folder, "melody", 38).unwrap();
        for seed in 0..5 {
            let (about, place) = store.find(u128::from(seed) << 90).unwrap();
            assert_eq!(
                (about["seed"].as_u64(), place.tokens()),
                (Some(seed.into()), 100 + seed as usize)
            );
            assert_eq!(store.tokens(place).unwrap(), tokens(seed));
        }
        assert_eq!(store.find(7), None);
        drop(store);
        // Another vocabulary: what was kept means something else.
        assert_eq!(Store::open(&folder, "melody", 40).unwrap().find(0), None);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_store_that_was_cut_off_anywhere_keeps_the_records_before() {
        let folder = folder("cut");
        let mut store = Store::open(&folder, "melody", 38).unwrap();
        let mut ends = Vec::new();
        for seed in 0..3u32 {
            store.add(u128::from(seed), &json!({ "seed": seed }), &tokens(seed)).unwrap();
            ends.push(store.end);
        }
        let path = store.path().to_owned();
        drop(store);
        let whole = std::fs::read(&path).unwrap();
        for cut in (0..whole.len()).step_by(13) {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut store = Store::open(&folder, "melody", 38).unwrap();
            for seed in 0..3u32 {
                let kept = ends[seed as usize] <= cut as u64;
                assert_eq!(store.find(seed.into()).is_some(), kept, "{cut} {seed}");
            }
            let place = store.add(9, &Value::Null, &tokens(9)).unwrap();
            assert_eq!(store.tokens(place).unwrap(), tokens(9));
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let folder = folder("flip");
        let mut store = Store::open(&folder, "melody", 38).unwrap();
        store.add(1, &json!({ "seed": 1 }), &tokens(1)).unwrap();
        let path = store.path().to_owned();
        drop(store);
        let whole = std::fs::read(&path).unwrap();
        assert!(Store::open(&folder, "melody", 38).unwrap().find(1).is_some());
        for at in (0..whole.len()).step_by(7) {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            std::fs::write(&path, &bytes).unwrap();
            let store = Store::open(&folder, "melody", 38).unwrap();
            assert_eq!(store.find(1), None, "{at}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_flipped_bit_before_a_head_ends_the_store() {
        let folder = folder("lead");
        let mut store = Store::open(&folder, "melody", 38).unwrap();
        let from = store.end as usize;
        store.add(1, &json!({ "seed": 1 }), &tokens(1)).unwrap();
        let path = store.path().to_owned();
        drop(store);
        let whole = std::fs::read(&path).unwrap();
        for bit in 0..8 * LEAD {
            let mut bytes = whole.clone();
            bytes[from + bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bytes).unwrap();
            let store = Store::open(&folder, "melody", 38).unwrap();
            assert_eq!((store.end as usize, store.records.len()), (from, 0), "bit {bit}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_a_record_cannot_hold_is_refused() {
        let mut store = Store::scratch("melody", 38).unwrap();
        let error = store.add(1, &Value::Null, &[3, 65_536]).unwrap_err().to_string();
        assert!(error.contains("token 65536"), "{error}");
        let long = "x".repeat(MAX_HEAD as usize);
        assert!(store.add(1, &json!(long), &[3]).is_err());
        assert_eq!(store.find(1), None);
        let place = store.add(1, &Value::Null, &[3, 65_535]).unwrap();
        assert_eq!(store.tokens(place).unwrap(), [3, 65_535]);
    }

    #[test]
    fn a_scratch_store_is_gone_afterwards_and_contents_differ_in_their_hash() {
        let store = Store::scratch("melody", 38).unwrap();
        let (path, two) = (store.path().to_owned(), Store::scratch("melody", 38).unwrap());
        assert_eq!(path.exists(), !cfg!(unix));
        drop((store, two));
        assert!(!path.exists());
        let all = [&b""[..], b"\0", b"\0\0", b"a", b"b", b"aaaaaaaa", b"aaaaaaaab"];
        let hashes: std::collections::BTreeSet<u128> =
            all.iter().map(|b| content_hash(b)).collect();
        assert_eq!(hashes.len(), all.len());
    }
}
