//! The pieces of a part of the data: in memory, or on the disk and read as they are wanted.

use crate::augment::Augment;
use crate::data::{Conditions, Piece};
use crate::infill;
#[cfg(feature = "train")]
use crate::store::{Place, Store};
use crate::{Error, Result};
use etude_engine::Rng;
#[cfg(feature = "train")]
use etude_tokenizer::{ChordTrack, Guide};
use etude_tokenizer::{Encoding, Meter};
use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex};

/// The pieces of a part.
#[derive(Default)]
pub struct Pieces {
    held: Held,
    change: Option<(Augment, Box<dyn Encoding>)>,
    /// The order of one epoch: seed, epoch and the numbers of the pieces.
    order: Mutex<(u64, u64, Arc<Vec<u32>>)>,
}

enum Held {
    Memory(Vec<Piece>),
    #[cfg(feature = "train")]
    Disk(Arc<Store>, Vec<Stored>, (Conditions, usize)),
}

impl Default for Held {
    fn default() -> Held {
        Held::Memory(Vec::new())
    }
}

/// A piece whose tokens are on the disk.
#[cfg(feature = "train")]
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Its name in the data set.
    pub name: Box<str>,
    /// Where its tokens are.
    pub place: Place,
    /// Where its chords are, as [`ChordTrack::to_text`] writes them, a word for each byte; `None`
    /// where the model reads none.
    pub chords: Option<Place>,
    /// Its first metre.
    pub meter: Meter,
    /// Notes in the quantised score.
    pub notes: usize,
    /// Sixteenth-note steps, to the end of the last note.
    pub frames: usize,
    /// Length by the tempo map, in seconds.
    pub seconds: f64,
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pieces", self.len())
    }
}

impl From<Vec<Piece>> for Pieces {
    fn from(pieces: Vec<Piece>) -> Pieces {
        Pieces { held: Held::Memory(pieces), ..Pieces::default() }
    }
}

/// Reads chords from a store.
#[cfg(feature = "train")]
fn chords(store: &Store, place: Place) -> Result<ChordTrack> {
    let bytes: Vec<u8> = store.tokens(place)?.into_iter().map(|word| word as u8).collect();
    let text = String::from_utf8(bytes).ok();
    text.and_then(|text| ChordTrack::from_text(&text)).ok_or_else(|| Error::File {
        path: store.path().display().to_string(),
        why: "chords that make no sense; delete it and begin anew".into(),
    })
}

const ORDER_STREAM: u32 = 1;

impl Pieces {
    /// Takes pieces whose tokens, of a vocabulary of `vocab`, are in a store.
    #[cfg(feature = "train")]
    pub fn stored(
        store: &Arc<Store>,
        pieces: Vec<Stored>,
        conditions: Conditions,
        vocab: usize,
    ) -> Pieces {
        Pieces { held: Held::Disk(store.clone(), pieces, (conditions, vocab)), ..Pieces::default() }
    }

    /// The same pieces, changed from window to window.
    ///
    /// # Errors
    /// If the encoding does not hold what is changed, or is none of [`etude_tokenizer::schemes`].
    pub fn changed(mut self, encoding: &dyn Encoding, augment: Augment) -> Result<Pieces> {
        if let Some((key, why)) = augment.unheard(encoding) {
            return Err(Error::Config { key: key.into(), why });
        }
        self.change = None;
        if augment != Augment::default() {
            let known = etude_tokenizer::encoding(encoding.name()).ok_or_else(|| {
                let why = format!("no encoding {}: its pieces cannot be changed", encoding.name());
                Error::Data { why }
            })?;
            self.change = Some((augment, known));
        }
        Ok(self)
    }

    /// How many pieces there are.
    pub fn len(&self) -> usize {
        match &self.held {
            Held::Memory(pieces) => pieces.len(),
            #[cfg(feature = "train")]
            Held::Disk(_, pieces, _) => pieces.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of a piece.
    ///
    /// # Panics
    /// If there is no such piece.
    pub fn tokens(&self, piece: usize) -> usize {
        match &self.held {
            Held::Memory(pieces) => pieces[piece].tokens.len(),
            #[cfg(feature = "train")]
            Held::Disk(_, pieces, _) => pieces[piece].place.tokens(),
        }
    }

    /// Tokens of all pieces.
    pub fn token_count(&self) -> usize {
        (0..self.len()).map(|piece| self.tokens(piece)).sum()
    }

    /// A piece as it is.
    ///
    /// # Errors
    /// If it cannot be read.
    ///
    /// # Panics
    /// If there is no such piece.
    pub fn get(&self, piece: usize) -> Result<Cow<'_, Piece>> {
        match &self.held {
            Held::Memory(pieces) => Ok(Cow::Borrowed(&pieces[piece])),
            #[cfg(feature = "train")]
            Held::Disk(store, pieces, (conditions, vocab)) => {
                let stored = &pieces[piece];
                let tokens = store.tokens(stored.place)?;
                let mut input = conditions.input(*vocab, stored.meter, tokens.len());
                if let Some(place) = stored.chords {
                    input = input.told(Guide::Chords(chords(store, place)?));
                }
                let frames = match conditions {
                    Conditions::Keys => crate::frames::counted(&tokens),
                    _ => stored.frames,
                };
                Ok(Cow::Owned(Piece {
                    name: stored.name.to_string(),
                    input,
                    tokens,
                    meter: stored.meter,
                    notes: stored.notes,
                    frames,
                    seconds: stored.seconds,
                }))
            }
        }
    }

    /// All pieces as they are, one after the other.
    pub fn iter(&self) -> impl Iterator<Item = Result<Cow<'_, Piece>>> {
        (0..self.len()).map(|piece| self.get(piece))
    }

    /// Pieces in all keys in which they come.
    pub(crate) fn variants(&self) -> usize {
        self.len() * self.change.as_ref().map_or(1, |(augment, _)| augment.keys())
    }

    /// A piece in one of its keys, perhaps with a hole, for window `number` of training, which has
    /// `window` tokens.
    pub(crate) fn variant(
        &self,
        at: usize,
        (seed, number): (u64, u64),
        window: usize,
    ) -> Result<Cow<'_, Piece>> {
        let Some((augment, encoding)) = &self.change else { return self.get(at) };
        let piece = self.get(at / augment.keys())?;
        let changed = augment.apply(&piece, &**encoding, at % augment.keys(), (seed, number))?;
        let piece = changed.map_or(piece, Cow::Owned);
        let Some(infill) = encoding.infill() else { return Ok(piece) };
        let told = infill::with_hole(&piece, infill, augment.fill, window, (seed, number));
        Ok(told.map_or(piece, Cow::Owned))
    }

    /// The variant that comes at a place of an epoch, in an order of its own: a function of the seed
    /// and the epoch alone.
    pub(crate) fn at(&self, seed: u64, epoch: u64, place: usize) -> usize {
        let mut order = self.order.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let count = self.variants();
        if (order.0, order.1, order.2.len()) != (seed, epoch, count) {
            let mut numbers: Vec<u32> = (0..count as u32).collect();
            Rng { seed, stream: ORDER_STREAM, position: epoch << 34 }.shuffle(&mut numbers);
            *order = (seed, epoch, Arc::new(numbers));
        }
        order.2[place] as usize
    }
}
