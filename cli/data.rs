//! Music to learn from: a built-in corpus, a folder, or files, as scores in three parts.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use etude_tokenizer::chord::with_chords;
use etude_tokenizer::twins::{self, Sketch};
use etude_tokenizer::{Score, read_file};

use crate::console::{Console, show_path};
use crate::corpora::{self, Split};
use crate::error::{Error, Result, reason};

/// Most files of a folder that are looked at.
pub const MAX_FILES: usize = 500_000;
/// Most notes that are kept in memory: about 3 GB.
pub const MAX_NOTES: usize = 100_000_000;

/// A piece with its part.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The file's path below the folder, or its name in the corpus.
    pub name: String,
    /// Which part it belongs to.
    pub split: Split,
    /// The music.
    pub score: Score,
}

/// A file that was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The file.
    pub path: PathBuf,
    /// Why, in words.
    pub why: String,
    /// Whether this is the same file once more, which nobody needs a warning about.
    pub duplicate: bool,
}

/// Pieces to learn from, and what was left out.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Data {
    /// What was asked for, as given.
    pub source: String,
    /// The pieces, in an order that does not depend on the system.
    pub pieces: Vec<Piece>,
    /// Files that were not taken.
    pub skipped: Vec<Skipped>,
    /// Files that were taken although something in them had to be mended.
    pub mended: usize,
    /// Pieces of the valid and the test part with a twin in the training part.
    pub leaks: usize,
}

impl Data {
    /// The scores of a part.
    pub fn scores(&self, split: Split) -> Vec<&Score> {
        self.pieces.iter().filter(|p| p.split == split).map(|p| &p.score).collect()
    }

    /// Takes the pieces apart: train, valid, test.
    pub fn into_scores(self) -> [Vec<Score>; 3] {
        let mut parts = [Vec::new(), Vec::new(), Vec::new()];
        for piece in self.pieces {
            parts[piece.split as usize].push(piece.score);
        }
        parts
    }

    /// Says what was read, and warns about what was not.
    ///
    /// # Errors
    /// If stdout cannot be written to.
    pub fn report(&self, console: &Console) -> Result<()> {
        let count = |split| self.pieces.iter().filter(|p| p.split == split).count();
        let summary = Summary {
            source: &self.source,
            parts: Split::ALL.map(count),
            notes: self.pieces.iter().map(|p| p.score.note_count()).sum(),
            skipped: &self.skipped,
            mended: self.mended,
            leaks: self.leaks,
            known: 0,
        };
        summary.report(console)
    }
}

/// What was read, in numbers.
pub struct Summary<'a> {
    /// What was asked for, as given.
    pub source: &'a str,
    /// Pieces to learn from, to validate and to test with.
    pub parts: [usize; 3],
    /// Notes in all of them.
    pub notes: usize,
    /// Files that were not taken.
    pub skipped: &'a [Skipped],
    /// Files that were taken although something in them had to be mended.
    pub mended: usize,
    /// Pieces of the valid and the test part with a twin in the training part.
    pub leaks: usize,
    /// Files that were found in the cache.
    pub known: usize,
}

impl Summary<'_> {
    /// Says what was read, and warns about what was not.
    ///
    /// # Errors
    /// If stdout cannot be written to.
    pub fn report(&self, console: &Console) -> Result<()> {
        const MOST: usize = 10;
        let faults: Vec<&Skipped> = self.skipped.iter().filter(|s| !s.duplicate).collect();
        for fault in faults.iter().take(MOST) {
            console.warn(format!("{}: skipped: {}", show_path(&fault.path), fault.why));
        }
        if faults.len() > MOST {
            console.warn(format!("and {} more files skipped", faults.len() - MOST));
        }
        if self.mended > 0 {
            console.warn(format!(
                "{}: {} damaged or odd files were mended; `etude tokenize FILE` tells what",
                self.source, self.mended
            ));
        }
        if self.leaks > 0 {
            console.warn(format!(
                "{}: {} pieces of its valid and test parts are nearly the same music as a training \
                 piece, perhaps in another key",
                self.source, self.leaks
            ));
        }
        let [train, valid, test] = self.parts;
        let mut line = format!(
            "data       {}: {} pieces ({train} train, {valid} valid, {test} test), {} notes",
            self.source,
            train + valid + test,
            self.notes
        );
        for (number, what) in [
            (self.mended, "mended"),
            (faults.len(), "skipped"),
            (self.skipped.len() - faults.len(), "twice there"),
            (self.known, "read before"),
        ] {
            if number > 0 {
                line += &format!("; {number} {what}");
            }
        }
        console.say(line)
    }
}

/// Loads music from a built-in corpus, or from folders and files.
///
/// A single source that is the name of a built-in corpus means that corpus; write `./folk` for a
/// folder of that name. Folders are searched through for `.mid`, `.midi` and `.rmi` files. A folder
/// on the way that is called `train`, `valid` or `test` decides the part of what is below it. Other
/// pieces fall into parts by their content: 90 % train, 5 % valid, 5 % test, and at least one piece
/// each if there are three. Pieces that are nearly the same music, also in another key or at another
/// speed ([`twins`]), fall into one part.
///
/// # Errors
/// If a path does not exist, if nothing usable is found, or if there is more than [`MAX_FILES`] or
/// [`MAX_NOTES`] allow. A file of a folder that cannot be read is left out instead, and noted.
pub fn load(sources: &[PathBuf]) -> Result<Data> {
    match sources {
        [] => Err(Error::input("data: nothing to read")),
        [name] if name.to_str().and_then(corpora::find).is_some() => {
            built_in(name.to_str().unwrap_or_default())
        }
        _ => from_files(sources),
    }
}

fn built_in(name: &str) -> Result<Data> {
    let corpus = corpora::load(name)?;
    let mut data = Data { source: name.to_owned(), ..Data::default() };
    for piece in corpus.pieces {
        let reading = Score::from_midi(&piece.midi)
            .map_err(|e| Error::failed(format!("corpora: {name}/{}: {e}", piece.name)))?;
        data.pieces.push(Piece {
            name: piece.name,
            split: piece.split,
            score: with_chords(reading),
        });
    }
    Ok(data)
}

/// A file that was found: its path, its name, and the part that its folder decides.
pub(crate) struct Found {
    pub path: PathBuf,
    pub name: String,
    pub split: Option<Split>,
}

/// Finds the MIDI files of folders and files.
///
/// # Errors
/// If a path does not exist, or there are more than [`MAX_FILES`].
pub(crate) fn survey(sources: &[PathBuf]) -> Result<(Vec<Found>, Vec<Skipped>)> {
    let (mut found, mut skipped) = (Vec::new(), Vec::new());
    for source in sources {
        let kind = fs::metadata(source).map_err(|e| {
            let names: Vec<&str> = corpora::list().iter().map(|entry| entry.name).collect();
            let why = format!("{} (built-in corpora: {})", reason(&e), names.join(", "));
            Error::file(source, why)
        })?;
        if kind.is_dir() {
            walk(source, &mut found, &mut skipped)?;
        } else {
            let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.push(Found { path: source.clone(), name, split: None });
        }
    }
    Ok((found, skipped))
}

/// Several sources in one line.
pub(crate) fn shown(sources: &[PathBuf]) -> String {
    sources.iter().map(|path| show_path(path)).collect::<Vec<_>>().join(", ")
}

/// The error of sources without a usable file.
pub(crate) fn nothing_usable(sources: &[PathBuf], skipped: &[Skipped]) -> Error {
    match (sources, skipped) {
        ([_], [only]) => Error::file(&only.path, &only.why),
        (_, []) => Error::file(&sources[0], "no .mid, .midi or .rmi file in it"),
        (_, [first, ..]) => Error::file(
            &sources[0],
            format!(
                "none of {} files is usable; the first: {}: {}",
                skipped.len(),
                show_path(&first.path),
                first.why
            ),
        ),
    }
}

/// What the files of a source gave so far.
#[derive(Default)]
pub(crate) struct Taken {
    /// What decides the part of each piece.
    pub marks: Vec<Mark>,
    /// Files that were not taken.
    pub skipped: Vec<Skipped>,
    /// Notes in all pieces.
    pub notes: usize,
    /// Files that were taken although something in them had to be mended.
    pub mended: usize,
    /// The file of each music.
    seen: BTreeMap<u64, PathBuf>,
}

impl Taken {
    /// Leaves a file out.
    pub fn skip(&mut self, path: &Path, why: String) {
        self.skipped.push(Skipped { path: path.to_owned(), why, duplicate: false });
    }

    /// Takes a file; `false` if its music was taken before.
    pub fn take(&mut self, path: &Path, mark: Mark, notes: usize, is_mended: bool) -> bool {
        match self.seen.entry(mark.hash) {
            Entry::Occupied(first) => {
                let why = format!("the same music as {}", show_path(first.get()));
                self.skipped.push(Skipped { path: path.to_owned(), why, duplicate: true });
                return false;
            }
            Entry::Vacant(free) => free.insert(path.to_owned()),
        };
        self.notes += notes;
        self.mended += usize::from(is_mended);
        self.marks.push(mark);
        true
    }
}

fn from_files(sources: &[PathBuf]) -> Result<Data> {
    let mut data = Data { source: shown(sources), ..Data::default() };
    let (found, skipped) = survey(sources)?;
    let mut taken = Taken { skipped, ..Taken::default() };
    for Found { path, name, split } in found {
        let reading = match read_file(&path) {
            Ok(reading) if reading.score.note_count() > 0 => reading,
            Ok(_) => {
                taken.skip(&path, "no notes in it".to_owned());
                continue;
            }
            Err(etude_tokenizer::Error::File { why, .. }) => {
                taken.skip(&path, why);
                continue;
            }
            Err(error) => {
                taken.skip(&path, error.to_string());
                continue;
            }
        };
        let is_mended = !reading.warnings.is_empty();
        let score = with_chords(reading);
        let mark = Mark { hash: fingerprint(&score), sketch: Sketch::of(&score), split };
        if !taken.take(&path, mark, score.note_count(), is_mended) {
            continue;
        }
        if taken.notes > MAX_NOTES {
            return Err(Error::input(format!(
                "{}: more than {MAX_NOTES} notes; give a part of it",
                data.source
            )));
        }
        data.pieces.push(Piece { name, split: split.unwrap_or(Split::Train), score });
    }
    (data.skipped, data.mended) = (taken.skipped, taken.mended);
    if data.pieces.is_empty() {
        return Err(nothing_usable(sources, &data.skipped));
    }
    let (splits, leaks) = divide(&taken.marks);
    data.pieces.iter_mut().zip(splits).for_each(|(piece, split)| piece.split = split);
    data.leaks = leaks;
    Ok(data)
}

/// What decides the part of a piece.
pub(crate) struct Mark {
    /// A hash of its music.
    pub hash: u64,
    /// What its twins are found by.
    pub sketch: Option<Sketch>,
    /// What its folder says.
    pub split: Option<Split>,
}

/// The part of each piece, and how many pieces of the valid and the test part have a twin in the
/// training part.
///
/// Where folders decide, the others are for learning. Else groups of twins fall into parts by the
/// least hash among them, so that a piece stays in its part when others come or go. Only when a part
/// would be empty the groups with the lowest hashes fill it.
pub(crate) fn divide(marks: &[Mark]) -> (Vec<Split>, usize) {
    let sketches: Vec<Option<&Sketch>> = marks.iter().map(|m| m.sketch.as_ref()).collect();
    let groups = twins::groups(&sketches);
    if marks.iter().any(|m| m.split.is_some()) {
        let splits: Vec<Split> = marks.iter().map(|m| m.split.unwrap_or(Split::Train)).collect();
        let there = splits.iter().zip(&groups).filter(|(split, _)| **split == Split::Train);
        let learned: BTreeSet<usize> = there.map(|(_, group)| *group).collect();
        let leak =
            |(split, group): &(&Split, &usize)| **split != Split::Train && learned.contains(group);
        let leaks = splits.iter().zip(&groups).filter(leak).count();
        return (splits, leaks);
    }
    let mut least: BTreeMap<usize, u64> = BTreeMap::new();
    for (mark, group) in marks.iter().zip(&groups) {
        let least = least.entry(*group).or_insert(mark.hash);
        *least = (*least).min(mark.hash);
    }
    let mut order: Vec<(u64, usize)> =
        least.into_iter().map(|(group, hash)| (hash, group)).collect();
    order.sort_unstable();
    let mut split_of: BTreeMap<usize, Split> = BTreeMap::new();
    for &(hash, group) in &order {
        let split = match hash % 100 {
            0..=89 => Split::Train,
            90..=94 => Split::Valid,
            _ => Split::Test,
        };
        split_of.insert(group, split);
    }
    for (split, needed) in [(Split::Valid, 2), (Split::Test, 3), (Split::Train, 1)] {
        let count = |s: Split| split_of.values().filter(|other| **other == s).count();
        if order.len() >= needed && count(split) == 0 {
            let spare = order.iter().find(|(_, group)| {
                let from = split_of[group];
                from == Split::Train || count(from) > 1 || order.len() == 1
            });
            if let Some((_, group)) = spare {
                split_of.insert(*group, split);
            }
        }
    }
    (groups.iter().map(|group| split_of[group]).collect(), 0)
}

/// A hash of the notes and their clock: equal music in another wrapping is found again.
pub(crate) fn fingerprint(score: &Score) -> u64 {
    // FNV-1a over words, then the finish of splitmix64 to spread the low bits.
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add =
        |word: u64| hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    add(u64::from(score.ticks_per_quarter));
    for track in &score.tracks {
        add(u64::from(track.program) << 1 | u64::from(track.is_drum));
        for note in &track.notes {
            add(note.tick);
            add(note.duration << 16 | u64::from(note.pitch) << 8 | u64::from(note.velocity));
        }
    }
    twins::mix(hash)
}

/// Collects the MIDI files below a folder, in order of their paths.
fn walk(root: &Path, found: &mut Vec<Found>, skipped: &mut Vec<Skipped>) -> Result<()> {
    let mut visited = std::collections::BTreeSet::new();
    visited.extend(fs::canonicalize(root));
    let mut folders = vec![(root.to_owned(), None)];
    let first = found.len();
    while let Some((folder, split)) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if folder == root => return Err(Error::file(root, reason(&e))),
            Err(e) => {
                skipped.push(Skipped { path: folder, why: reason(&e), duplicate: false });
                continue;
            }
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let is_midi = path.extension().is_some_and(|ending| {
                ["mid", "midi", "rmi"].iter().any(|e| ending.eq_ignore_ascii_case(e))
            });
            match fs::metadata(&path) {
                Ok(kind) if kind.is_dir() => {
                    let name = entry.file_name();
                    let below = name.to_str().and_then(Split::from_name).or(split);
                    // A link back up the tree leads to a folder that was seen under its real name.
                    let new = fs::canonicalize(&path).is_ok_and(|real| visited.insert(real));
                    folders.extend(new.then_some((path, below)));
                }
                Ok(_) if is_midi => {
                    let name = path.strip_prefix(root).unwrap_or(&path);
                    let name = name.to_string_lossy().replace('\\', "/");
                    found.push(Found { path, name, split });
                }
                Err(e) if is_midi => {
                    skipped.push(Skipped { path, why: reason(&e), duplicate: false });
                }
                _ => {}
            }
            if found.len() > MAX_FILES {
                return Err(Error::file(root, format!("more than {MAX_FILES} MIDI files in it")));
            }
        }
    }
    found[first..].sort_by(|a, b| a.path.as_os_str().cmp(b.path.as_os_str()));
    skipped.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use etude_tokenizer::{Note, Track};

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("etude-data-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn piece(pitch: u8) -> Vec<u8> {
        let mut score = Score::new(480);
        let note = Note { tick: 0, duration: 480, pitch, velocity: 90 };
        score.tracks.push(Track { notes: vec![note], ..Track::default() });
        score.to_midi()
    }

    fn parts(data: &Data) -> [usize; 3] {
        Split::ALL.map(|split| data.scores(split).len())
    }

    #[test]
    fn a_built_in_corpus_keeps_its_parts() {
        let data = load(&["chorales".into()]).unwrap();
        assert_eq!(parts(&data), [229, 76, 77]);
        assert_eq!(data.scores(Split::Train).iter().map(|s| s.note_count()).sum::<usize>(), 49_300);
        assert_eq!(data.into_scores().map(|part| part.len()), [229, 76, 77]);
    }

    #[test]
    fn folders_named_train_valid_and_test_decide() {
        let root = folder("named");
        for (i, path) in ["train/a.mid", "train/deep/b.MIDI", "valid/c.mid", "test/d.rmi", "e.mid"]
            .iter()
            .enumerate()
        {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, piece(60 + i as u8)).unwrap();
        }
        fs::write(root.join("notes.txt"), "no music").unwrap();
        let data = load(std::slice::from_ref(&root)).unwrap();
        assert_eq!(parts(&data), [3, 1, 1]);
        let names: Vec<&str> = data.pieces.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(
            names,
            ["e.mid", "test/d.rmi", "train/a.mid", "train/deep/b.MIDI", "valid/c.mid"]
        );
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_flat_folder_is_divided_by_content_and_no_part_is_empty() {
        let root = folder("flat");
        for n in 0..100u8 {
            fs::write(root.join(format!("{n}.mid")), piece(n)).unwrap();
        }
        let data = load(std::slice::from_ref(&root)).unwrap();
        let [train, valid, test] = parts(&data);
        assert_eq!(train + valid + test, 100);
        assert!(train >= 75 && valid >= 1 && test >= 1, "{train} {valid} {test}");
        let part_of = |data: &Data, pitch| {
            data.pieces.iter().find(|p| p.score.tracks[0].notes[0].pitch == pitch).unwrap().split
        };
        let before = part_of(&data, 7);
        fs::rename(root.join("7.mid"), root.join("renamed.mid")).unwrap();
        assert_eq!(part_of(&load(std::slice::from_ref(&root)).unwrap(), 7), before);
        for keep in [3, 2, 1] {
            for n in keep..100u8 {
                let _ = fs::remove_file(root.join(format!("{n}.mid")));
                let _ = fs::remove_file(root.join("renamed.mid"));
            }
            let parts = parts(&load(std::slice::from_ref(&root)).unwrap());
            assert_eq!(parts, [1, usize::from(keep > 1), usize::from(keep > 2)]);
        }
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn damage_duplicates_and_silence_are_left_out_and_noted() {
        let root = folder("damage");
        fs::write(root.join("a.mid"), piece(60)).unwrap();
        fs::write(root.join("b.mid"), piece(60)).unwrap();
        fs::write(root.join("c.mid"), b"not music").unwrap();
        fs::write(root.join("d.mid"), Score::new(480).to_midi()).unwrap();
        let data = load(std::slice::from_ref(&root)).unwrap();
        assert_eq!(data.pieces.len(), 1);
        let skipped: Vec<(&str, bool)> = data
            .skipped
            .iter()
            .map(|s| (s.path.file_name().unwrap().to_str().unwrap(), s.duplicate))
            .collect();
        assert_eq!(skipped, [("b.mid", true), ("c.mid", false), ("d.mid", false)]);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn nothing_to_learn_from_is_a_clear_error() {
        let root = folder("empty");
        let error = load(std::slice::from_ref(&root)).unwrap_err();
        assert!(error.to_string().ends_with("no .mid, .midi or .rmi file in it"), "{error}");
        fs::write(root.join("c.mid"), b"not music").unwrap();
        let error = load(&[root.join("c.mid")]).unwrap_err();
        assert_eq!(error.path(), Some(root.join("c.mid").as_path()));
        assert_eq!(load(&[root.join("nowhere")]).unwrap_err().exit_code(), 2);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    #[cfg(unix)]
    fn links_in_a_circle_and_broken_links_do_no_harm() {
        use std::os::unix::fs::symlink;
        let root = folder("links");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/x.mid"), piece(60)).unwrap();
        symlink(&root, root.join("a/up")).unwrap();
        symlink(root.join("gone.mid"), root.join("dangling.mid")).unwrap();
        symlink("/dev/zero", root.join("endless.mid")).unwrap();
        let data = load(std::slice::from_ref(&root)).unwrap();
        assert_eq!((data.pieces.len(), data.skipped.len()), (1, 2));
        fs::remove_dir_all(root).unwrap();
    }
}
