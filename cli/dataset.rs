//! A data set for training, of any size: files are read one after the other, their tokens go to the
//! disk, and only an index stays in memory.
//!
//! What was read once is found again by the hash of a file's content, in a folder of the user's cache
//! (`ETUDE_CACHE`, else `etude` in `XDG_CACHE_HOME` or `~/.cache`), a file for each encoding. Deleting
//! it costs time alone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use etude_models::data::{self as tokens, Conditions, Dataset, Pieces, Stored};
use etude_models::store::{Place, Store, content_hash};
use etude_models::train::RunConfig;
use etude_tokenizer::chord::with_chords;
use etude_tokenizer::twins::Sketch;
use etude_tokenizer::{Encoding, MAX_FILE_BYTES, Meter, Score};
use serde_json::{Value, json};

use crate::console::Console;
use crate::corpora::{self, Split};
use crate::data::{self, Found, Mark, Summary, Taken};
use crate::error::{Error, Result};
use crate::input::read_bytes;

/// Reads what a model learns from.
///
/// # Errors
/// If the sources cannot be read, or hold nothing to learn from.
pub fn open(
    config: &RunConfig,
    sources: &[PathBuf],
    cached: bool,
    console: &Console,
) -> Result<Dataset> {
    let encoding = config.model.encoding().map_err(|e| Error::input(e.to_string()))?;
    let data = match sources {
        [] => return Err(Error::input("data.source: no folder, file or corpus is named")),
        [name] if name.to_str().and_then(corpora::find).is_some() => {
            let loaded = data::load(sources)?;
            loaded.report(console)?;
            let scores = crate::command::train::scores(loaded);
            Dataset::new(&scores, &*encoding, config.model.conditions, 0)
                .and_then(|d| d.changed(&*encoding, scores.train.len(), config.train.augment()))
        }
        _ => {
            let (data, count) = from_files(config, &*encoding, sources, cached, console)?;
            data.changed(&*encoding, count, config.train.augment())
        }
    };
    let data = data.map_err(|e| Error::input(format!("{}: {e}", data::shown(sources))))?;
    for (reason, count) in &data.lost {
        console.warn(format!("{}: {count} lost: {reason}", config.model.encoding));
    }
    Ok(data)
}

/// What is kept about a file.
struct About {
    /// A hash of its music.
    hash: u64,
    sketch: Option<Sketch>,
    meter: Meter,
    /// Notes of the score, and of what the encoding hears of it.
    notes: [usize; 2],
    frames: usize,
    seconds: f64,
    is_mended: bool,
    lost: Vec<(String, usize)>,
}

impl About {
    fn write(&self) -> Value {
        let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        json!({
            "hash": self.hash, "sketch": self.sketch.as_ref().map(|s| hex(s.to_bytes())),
            "meter": [self.meter.numerator, self.meter.denominator], "notes": self.notes,
            "frames": self.frames, "mended": self.is_mended, "lost": self.lost,
            // Its bits: a number that goes through text may come back as its neighbour.
            "seconds": self.seconds.to_bits(),
        })
    }

    fn read(value: &Value) -> Option<About> {
        let number = |value: &Value| value.as_u64();
        let sketch = match value["sketch"].as_str() {
            None => None,
            Some(hex) => {
                let byte = |at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
                let bytes: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(byte).collect();
                Some(Sketch::from_bytes(&bytes?)?)
            }
        };
        let part = |at: usize| u8::try_from(number(&value["meter"][at])?).ok();
        let lost = value["lost"].as_array()?.iter();
        let lost = lost.map(|l| Some((l[0].as_str()?.to_owned(), number(&l[1])? as usize)));
        Some(About {
            hash: number(&value["hash"])?,
            sketch,
            meter: Meter { tick: 0, numerator: part(0)?, denominator: part(1)? },
            notes: [number(&value["notes"][0])? as usize, number(&value["notes"][1])? as usize],
            frames: number(&value["frames"])? as usize,
            seconds: f64::from_bits(number(&value["seconds"])?),
            is_mended: value["mended"].as_bool()?,
            lost: lost.collect::<Option<_>>()?,
        })
    }
}

/// What a file gives: music and where its tokens are, or why it is of no use.
type Given = std::result::Result<(About, Place), String>;

/// What the record of a content's chords is found by, beside the content's hash.
const CHORDS: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834;

/// Reads files into the cache of an encoding, or into something for this run alone where there can be
/// none, or no room for more in it.
fn gather(
    found: &[Found],
    (encoding, conditions): (&dyn Encoding, Conditions),
    cached: bool,
    console: &Console,
) -> Result<(Store, Gathered)> {
    let (name, vocab) = (encoding.name(), encoding.vocab_size());
    let failed = |e: etude_models::Error| Error::failed(e.to_string());
    if let Some(folder) = cache_folder().filter(|_| cached) {
        let all = Store::open(&folder, name, vocab).map_err(failed).and_then(|mut store| {
            let gathered = Gathered::read(found, (encoding, conditions), &mut store)?;
            Ok((store, gathered))
        });
        match all {
            Ok(all) => return Ok(all),
            Err(e) => console.note(format!("no cache: {e}")),
        }
    }
    let mut store = Store::scratch(name, vocab).map_err(failed)?;
    let gathered = Gathered::read(found, (encoding, conditions), &mut store)?;
    Ok((store, gathered))
}

fn cache_folder() -> Option<PathBuf> {
    let given =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    given("ETUDE_CACHE")
        .or_else(|| Some(given("XDG_CACHE_HOME").or_else(|| given("LOCALAPPDATA"))?.join("etude")))
        .or_else(|| Some(given("HOME")?.join(".cache/etude")))
}

/// What files gave.
#[derive(Default)]
struct Gathered {
    taken: Taken,
    pieces: Vec<Stored>,
    lost: BTreeMap<String, usize>,
    /// Files that the store knew.
    known: usize,
}

impl Gathered {
    fn read(
        found: &[Found],
        (encoding, conditions): (&dyn Encoding, Conditions),
        store: &mut Store,
    ) -> Result<Gathered> {
        let mut all = Gathered::default();
        for &Found { ref path, ref name, split } in found {
            let bytes = match read_bytes(path, MAX_FILE_BYTES) {
                Ok(bytes) => bytes,
                Err(Error::Input { why, .. }) => {
                    all.taken.skip(path, why);
                    continue;
                }
                Err(other) => return Err(other),
            };
            let (about, place) = match file(&bytes, encoding, store, &mut all.known)? {
                Ok(given) => given,
                Err(why) => {
                    all.taken.skip(path, why);
                    continue;
                }
            };
            let mark = Mark { hash: about.hash, sketch: about.sketch, split };
            if !all.taken.take(path, mark, about.notes[0], about.is_mended) {
                continue;
            }
            for (reason, count) in about.lost {
                *all.lost.entry(reason).or_insert(0) += count;
            }
            let chords = chords(&bytes, (encoding, conditions), store, &mut all.lost)?;
            all.pieces.push(Stored {
                name: name.as_str().into(),
                place,
                chords,
                meter: about.meter,
                notes: about.notes[1],
                frames: about.frames,
                seconds: about.seconds,
            });
        }
        Ok(all)
    }
}

/// Makes a data set of files; returns also the number of training files.
fn from_files(
    config: &RunConfig,
    encoding: &dyn Encoding,
    sources: &[PathBuf],
    cached: bool,
    console: &Console,
) -> Result<(Dataset, usize)> {
    let (found, mut skipped) = data::survey(sources)?;
    let how = (encoding, config.model.conditions);
    let (store, gathered) = gather(&found, how, cached, console)?;
    store.settle();
    let Gathered { taken, pieces, lost, known } = gathered;
    let Taken { marks, notes, mended, .. } = taken;
    skipped.extend(taken.skipped);
    if pieces.is_empty() {
        return Err(data::nothing_usable(sources, &skipped));
    }
    let (splits, leaks) = data::divide(&marks);
    let mut parts = [Vec::new(), Vec::new(), Vec::new()];
    let mut counts = [0; 3];
    for (piece, split) in pieces.into_iter().zip(splits) {
        counts[split as usize] += 1;
        if piece.place.tokens() > 0 {
            parts[split as usize].push(piece);
        }
    }
    let source = data::shown(sources);
    let summary =
        Summary { source: &source, parts: counts, notes, skipped: &skipped, mended, leaks, known };
    summary.report(console)?;
    let (store, vocab) = (Arc::new(store), encoding.vocab_size());
    let [train, valid, test] =
        parts.map(|part| Pieces::stored(&store, part, config.model.conditions, vocab));
    let lost = lost.into_iter().collect();
    Ok((Dataset { train, valid, test, lost }, counts[Split::Train as usize]))
}

/// Finds the chords of a file that has music, or those that were found in its content before; `None` for
/// a model that reads none.
fn chords(
    bytes: &[u8],
    (encoding, conditions): (&dyn Encoding, Conditions),
    store: &mut Store,
    lost: &mut BTreeMap<String, usize>,
) -> Result<Option<Place>> {
    let Conditions::Chords(input, _) = conditions else { return Ok(None) };
    // One content has chords of its own for each way to write them: what is lost differs.
    let content = content_hash(bytes) ^ CHORDS.rotate_left(input.width());
    let mut count = |of: &Value| {
        let of = of.as_array().into_iter().flatten();
        for (reason, n) in of.filter_map(|l| Some((l[0].as_str()?, l[1].as_u64()?))) {
            *lost.entry(reason.to_owned()).or_insert(0) += n as usize;
        }
    };
    if let Some((kept, place)) = store.find(content) {
        count(&kept["lost"]);
        return Ok(Some(place));
    }
    let mut untold = Vec::new();
    let score = Score::from_midi(bytes).map(with_chords).ok();
    let track = score.and_then(|score| conditions.guide(&score, encoding, Some(&mut untold)));
    let text = track.map(|track| track.to_text()).unwrap_or_default();
    let about = json!({ "lost": untold });
    count(&about["lost"]);
    let words: Vec<u32> = text.bytes().map(u32::from).collect();
    let place = store.add(content, &about, &words);
    place.map(Some).map_err(|e| Error::failed(e.to_string()))
}

/// Encodes a file, or finds what was made of its content before.
fn file(
    bytes: &[u8],
    encoding: &dyn Encoding,
    store: &mut Store,
    known: &mut usize,
) -> Result<Given> {
    let content = content_hash(bytes);
    if let Some((kept, place)) = store.find(content) {
        let given = match kept["why"].as_str() {
            Some(why) => Some(Err(why.to_owned())),
            None => About::read(&kept).map(|about| Ok((about, place))),
        };
        if let Some(given) = given {
            *known += 1;
            return Ok(given);
        }
    }
    let keep = |store: &mut Store, about: &Value, tokens: &[u32]| {
        store.add(content, about, tokens).map_err(|e| Error::failed(e.to_string()))
    };
    let reading = match Score::from_midi(bytes) {
        Ok(reading) if reading.score.note_count() > 0 => reading,
        other => {
            let why = other.err().map_or("no notes in it".to_owned(), |e| match e {
                etude_tokenizer::Error::Midi { why } => why,
                e => e.to_string(),
            });
            keep(store, &json!({ "why": why }), &[])?;
            return Ok(Err(why));
        }
    };
    let (score, mut lost) = (&reading.score, Vec::new());
    // What is kept serves models of the encoding under any conditions.
    let piece = tokens::piece("", score, encoding, Conditions::None, Some(&mut lost));
    let about = About {
        hash: data::fingerprint(score),
        sketch: Sketch::of(score),
        meter: tokens::meter_of(score),
        notes: [score.note_count(), piece.as_ref().map_or(0, |p| p.notes)],
        frames: piece.as_ref().map_or(0, |p| p.frames),
        seconds: score.seconds(),
        is_mended: !reading.warnings.is_empty(),
        lost,
    };
    let tokens = piece.map(|p| p.tokens).unwrap_or_default();
    let place = keep(store, &about.write(), &tokens)?;
    Ok(Ok((about, place)))
}
