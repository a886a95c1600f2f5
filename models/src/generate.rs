//! Writing a piece with a trained model, token by token.
//!
//! ```text
//! repeat: rows of the step -> logits -> drawn token -> rows of the next step
//! ```
//!
//! One step reads every weight once (large networks keep them as int8) and allocates nothing. Which
//! numbers are drawn depends on the seed alone, so the same seed writes the same piece. What may not
//! come next by the encoding's grammar has probability 0. With a beam ([`crate::beam`]) several
//! pieces grow and the likeliest is the result.

pub use crate::beam::MAX_TOKENS;
use crate::beam::{Desk, Draft};
use crate::data::meter_of;
use crate::frames::Drawing;
use crate::registry::ModelConfig;
use crate::sampling::{Sampler, Sampling};
use crate::wishes::{Wishes, guide_like};
use crate::{Error, Generator, Model, Precision, Result};
use etude_engine::Rng;
use etude_tokenizer::TokenTime;
use etude_tokenizer::chord::Chord;
use etude_tokenizer::step_input::{StepInput, steps_per_bar};
use etude_tokenizer::{
    Encoding, Guide, Infill, Meter, PianoRollTokens, Polyphony, Satb, Score, Tempo,
};

/// How long a piece shall be, after its primer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    /// In bars of the piece's metre.
    Bars(usize),
    /// In seconds, by the tempo.
    Seconds(f64),
}

/// What to write.
#[derive(Debug, Clone)]
pub struct Request {
    /// How long.
    pub length: Length,
    /// The metre; that of the primer if there is one.
    pub meter: Meter,
    /// Quarter notes a minute, where the encoding holds no tempo of its own.
    pub tempo_bpm: f64,
    /// Music to go on from.
    pub primer: Option<Score>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Start of the random numbers.
    pub seed: u64,
}

/// What a piece is written around.
#[derive(Debug, Clone)]
pub struct Around {
    /// Voices that sound from the beginning of the piece.
    pub voice: Score,
    /// The chord at each sixteenth step: the other voices sing its notes. Where there is none they are
    /// free.
    pub chords: Vec<Option<Chord>>,
}

/// A piece that a model wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct Composition {
    /// All tokens, those of the primer first.
    pub tokens: Vec<u32>,
    /// How many of them the primer gave.
    pub primed: usize,
    /// The music.
    pub score: Score,
    /// Notes of the primer that the encoding could not hold, counted by reason.
    pub lost: Vec<(String, usize)>,
}

/// The longest piece that can be asked for, in bars or seconds.
pub const MAX_LENGTH: usize = 100_000;

const SAMPLING_STREAM: u32 = 4;

/// A model made ready to write: weights packed once, then any number of pieces.
pub struct Writer {
    pub(crate) config: ModelConfig,
    pub(crate) encoding: Box<dyn Encoding>,
    generator: Box<dyn Generator>,
    times: Vec<TokenTime>,
    onsets: Vec<bool>,
    pitches: Vec<Option<u8>>,
    wishes: Wishes,
    /// What is told in place of the wishes.
    like: Option<Guide>,
}

impl Writer {
    /// Prepares a model, its weights in the precision that suits their number
    /// ([`Precision::for_weights`]).
    ///
    /// # Errors
    /// If the encoding is unknown or the weights do not fit together.
    pub fn new(config: &ModelConfig, model: &dyn Model) -> Result<Writer> {
        let precision = Precision::for_weights(model.parameter_count());
        Writer::with_precision(config, model, precision)
    }

    /// Prepares a model, its weights in this precision.
    ///
    /// # Errors
    /// If the encoding is unknown or the weights do not fit together.
    pub fn with_precision(
        config: &ModelConfig,
        model: &dyn Model,
        precision: Precision,
    ) -> Result<Writer> {
        let encoding = config.encoding()?;
        let tokens = 0..encoding.vocab_size() as u32;
        let mut times: Vec<_> = tokens.clone().map(|t| encoding.token_time(t)).collect();
        let mut onsets: Vec<_> = tokens.clone().map(|t| encoding.is_onset(t)).collect();
        let mut pitches: Vec<_> = tokens.map(|t| encoding.pitch(t)).collect();
        // A network may write tokens that are none of the encoding's: ends.
        let (_, vocab) = config.widths()?;
        times.resize(times.len().max(vocab), TokenTime::None);
        onsets.resize(times.len(), false);
        pitches.resize(times.len(), None);
        Ok(Writer {
            config: config.clone(),
            generator: model.generator(precision)?,
            encoding,
            times,
            onsets,
            pitches,
            wishes: Wishes::default(),
            like: None,
        })
    }

    /// Asks that the pieces from now on be like this.
    ///
    /// # Errors
    /// If the model does not read what is asked for, or a number is out of its range.
    pub fn ask(&mut self, wishes: Wishes) -> Result<()> {
        wishes.check(self.config.conditions)?;
        (self.wishes, self.like) = (wishes, None);
        Ok(())
    }

    /// Asks that the pieces from now on go over the chords of another, or be as dense and in its pitch
    /// classes; nothing happens where the model reads neither.
    pub fn ask_like(&mut self, piece: &Score) {
        self.like = guide_like(piece, self.config.conditions, &*self.encoding);
    }

    /// The encoding that the model speaks.
    pub fn encoding(&self) -> &dyn Encoding {
        &*self.encoding
    }

    /// Writes a piece.
    ///
    /// # Errors
    /// If the request is out of range, or the primer holds nothing that the encoding can write.
    pub fn write(&mut self, request: &Request) -> Result<Composition> {
        self.write_watched(request, None, &mut |_, _| true)
    }

    /// Writes a piece and shows each token as it is drawn, with the time at its end in bars or
    /// seconds, as the length of the request counts. Where `hear` says `false` the piece ends.
    ///
    /// The voice of `around` is written into the piece from its beginning: the model adds the others,
    /// and knows of its notes no more than what it has played (Magenta's `inject_primer`). In a
    /// search for a likely piece only the tokens of the result are shown, at its end.
    ///
    /// # Errors
    /// If the request is out of range, the primer holds nothing that the encoding can write, or the
    /// encoding cannot hold other voices around one.
    pub fn write_watched(
        &mut self,
        request: &Request,
        around: Option<&Around>,
        hear: &mut dyn FnMut(u32, f64) -> bool,
    ) -> Result<Composition> {
        request.sampling.check()?;
        if self.config.conditions.is_pair() {
            return self.accompany(request, hear);
        }
        check_length(request)?;
        let meter = request.primer.as_ref().map_or(request.meter, meter_of);
        let clock = Clock::new(request, meter);
        let mut draft = Draft::new(self.encoding.grammar());
        let lost = self.begin(request, &clock, &mut draft)?;
        let primed = draft.tokens.len();
        let voice = around.map(|a| self.steps_of(&a.voice)).transpose()?.unwrap_or_default();
        let chords = around.map_or(&[][..], |around| &around.chords);
        let total_steps = primed + clock.steps(request.length);
        let guide = self.guide(request, meter)?;
        let input = self.config.conditions.input(self.encoding.vocab_size(), meter, total_steps);
        let input = input.told(guide.clone());
        if input.is_keys() {
            self.extend_keys(&mut draft, request, &clock, hear)?;
            let score = self.score_of(&draft.tokens, request, meter)?;
            return Ok(Composition { tokens: draft.tokens, primed, score, lost });
        }
        let mut desk = Desk { voice, chords, ..self.desk(request, input, &clock) };
        desk.prime(&mut draft)?;
        desk.wanted = draft.now + clock.wanted - clock.rounding();
        match &request.sampling {
            Sampling { beam: 1, branch: 1, .. } => desk.extend(&mut draft, hear)?,
            &Sampling { beam, branch, iteration, .. } => {
                draft = desk.search(draft, (beam, branch, iteration))?;
                let mut now = draft.tokens[..primed].iter().map(|t| desk.time(*t)).sum::<f64>();
                let ended = draft.tokens[primed..].iter().position(|token| {
                    now += desk.time(*token);
                    !hear(*token, now)
                });
                if let Some(last) = ended {
                    draft.cut(primed + last + 1);
                }
            }
        }
        if let Some(end) = draft.grammar.end().filter(|end| draft.grammar.allows(*end)) {
            draft.tokens.push(end);
        }
        let mut score = self.score_of(&draft.tokens, request, meter)?;
        if let Guide::Chords(track) = &guide {
            // Back to the primer's key, as the notes.
            let track = track.transpose(-self.moved(request));
            let end = draft.tokens.len() as u64 * u64::from(score.ticks_per_quarter) / 4;
            score.markers = track.markers(end, score.ticks_per_quarter);
        }
        Ok(Composition { tokens: draft.tokens, primed, score, lost })
    }

    /// Semitones by which the primer is moved to be read.
    fn moved(&self, request: &Request) -> i32 {
        request.primer.as_ref().map_or(0, |primer| self.encoding.key_shift(primer))
    }

    /// What the model is told beside the events, in the key in which it reads them.
    fn guide(&self, request: &Request, meter: Meter) -> Result<Guide> {
        match &self.like {
            Some(guide) => Ok(guide.clone()),
            None => {
                let guide = self.wishes.guide(self.config.conditions, steps_per_bar(meter))?;
                Ok(guide.transpose(self.moved(request)))
            }
        }
    }

    /// Everything that a piece is written with, without a voice around it.
    pub(crate) fn desk<'a>(
        &'a mut self,
        request: &Request,
        input: StepInput,
        clock: &'a Clock,
    ) -> Desk<'a> {
        Desk {
            generator: &mut *self.generator,
            sampler: Sampler::new(request.sampling.clone(), self.times.len()),
            rng: Rng::stream(request.seed, SAMPLING_STREAM),
            rows: vec![0; input.active()],
            reader: input.reader(),
            input,
            clock,
            times: &self.times,
            onsets: &self.onsets,
            pitches: &self.pitches,
            wanted: 0.0,
            voice: Vec::new(),
            chords: &[],
            allowed: vec![false; self.times.len()],
            read: Vec::new(),
        }
    }

    /// Goes on with a piece whose steps are written whole, and shows the tokens of each step.
    fn extend_keys(
        &mut self,
        draft: &mut Draft,
        request: &Request,
        clock: &Clock,
        hear: &mut dyn FnMut(u32, f64) -> bool,
    ) -> Result<()> {
        if (request.sampling.beam, request.sampling.branch) != (1, 1) {
            let why = "a search goes token by token; this model writes all keys of a step at once";
            return Err(Error::Config { key: "beam".into(), why: why.into() });
        }
        let mut rng = Rng::stream(request.seed, SAMPLING_STREAM);
        self.generator.reset();
        let mut drawing = Drawing::begin(&mut *self.generator, &draft.tokens)?;
        let time = |token: u32| clock.time(self.times[token as usize]);
        draft.now = draft.tokens.iter().map(|token| time(*token)).sum();
        let wanted = draft.now + clock.wanted - clock.rounding();
        while draft.now < wanted && draft.tokens.len() < MAX_TOKENS {
            let keys = drawing.step(&mut *self.generator, &request.sampling, &mut rng)?;
            let mut goes_on = true;
            for token in PianoRollTokens::tokens_of(keys) {
                draft.push(token);
                draft.now += time(token);
                goes_on = goes_on && hear(token, draft.now);
            }
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    /// Reads the primer into a draft: its tokens up to the end of a bar, without the token that ends
    /// a piece. Returns what the encoding could not hold of it.
    fn begin(
        &self,
        request: &Request,
        clock: &Clock,
        draft: &mut Draft,
    ) -> Result<Vec<(String, usize)>> {
        let Some(primer) = &request.primer else { return Ok(Vec::new()) };
        let encoded = self.encoding.encode(primer)?;
        let mut tokens = encoded.tokens;
        if self.encoding.decode(&tokens)?.note_count() == 0 {
            let notes = primer.note_count();
            let why = format!(
                "the primer holds no notes that the encoding {} can write (it has {notes} notes)",
                self.encoding.name()
            );
            return Err(Error::Data { why });
        }
        let end = draft.grammar.end();
        tokens.truncate(tokens.iter().position(|t| Some(*t) == end).unwrap_or(tokens.len()));
        tokens.iter().for_each(|token| draft.grammar.push(*token));
        // What follows begins on a bar, where time goes in steps.
        let steps = |token: &u32| match self.times[*token as usize] {
            TokenTime::Steps(n) => n as usize,
            _ => 0,
        };
        let mut into_bar = tokens.iter().map(steps).sum::<usize>() % clock.steps_per_bar;
        while let Some(rest) = draft.grammar.rest().filter(|_| into_bar > 0) {
            into_bar += steps(&rest);
            draft.grammar.push(rest);
            tokens.push(rest);
            if into_bar >= clock.steps_per_bar {
                break;
            }
        }
        draft.tokens = tokens;
        Ok(encoded.lost)
    }

    /// What a voice tells at each step: notes, and in four-part writing its silence too.
    fn steps_of(&self, voice: &Score) -> Result<Vec<Vec<u32>>> {
        let tokens = self.encoding.encode(voice)?.tokens;
        let is_note = |token: &u32| self.pitches[*token as usize].is_some();
        let steps: Vec<Vec<u32>> = match self.encoding.name().trim_end_matches(Infill::SUFFIX) {
            "polyphony" => {
                let steps = tokens.split(|token| *token == Polyphony::STEP_END);
                steps.map(|step| step.iter().copied().filter(is_note).collect()).collect()
            }
            "satb" => {
                let sings = |voice| tokens.iter().any(|t| Satb::voice(*t) == voice && is_note(t));
                let given = [0, 1, 2, 3].map(sings);
                let steps = tokens.chunks(Satb::VOICES.len());
                let told = |token: &u32| given[Satb::voice(*token)];
                steps.map(|step| step.iter().copied().filter(told).collect()).collect()
            }
            other => {
                // Only in these, notes of several voices stand in one order in which one can be held.
                let why = format!(
                    "a voice is written into a piece of the encodings polyphony and satb; this \
                     model speaks {other}"
                );
                return Err(Error::Config { key: "encoding".into(), why });
            }
        };
        if !tokens.iter().any(is_note) {
            return Err(Error::Data { why: "the voice to write around holds no notes".into() });
        }
        Ok(steps)
    }

    /// The music of the tokens, with the metre, the tempo and the key that they do not hold.
    fn score_of(&self, tokens: &[u32], request: &Request, meter: Meter) -> Result<Score> {
        let mut score = self.encoding.decode(tokens)?;
        if self.times.iter().any(|time| matches!(time, TokenTime::Steps(_))) {
            let micros_per_quarter = (60e6 / request.tempo_bpm).round() as u32;
            score.tempos = vec![Tempo { tick: 0, micros_per_quarter }];
            score.meters = vec![Meter { tick: 0, ..meter }];
        }
        let moved = self.moved(request);
        // Back to the primer's key, where every note can go there.
        Ok(etude_tokenizer::transpose(&score, -moved).unwrap_or(score))
    }
}

/// Adds up the time of tokens, in bars or seconds, whichever the request counts in.
pub(crate) struct Clock {
    steps_per_bar: usize,
    seconds_per_step: f64,
    in_bars: bool,
    wanted: f64,
}

impl Clock {
    pub(crate) fn new(request: &Request, meter: Meter) -> Clock {
        let (in_bars, wanted) = match request.length {
            Length::Bars(bars) => (true, bars as f64),
            Length::Seconds(seconds) => (false, seconds),
        };
        let seconds_per_step = 15.0 / request.tempo_bpm;
        Clock { steps_per_bar: steps_per_bar(meter), seconds_per_step, in_bars, wanted }
    }

    pub(crate) fn time(&self, time: TokenTime) -> f64 {
        let bar_seconds = self.steps_per_bar as f64 * self.seconds_per_step;
        match (time, self.in_bars) {
            (TokenTime::None, _) => 0.0,
            (TokenTime::Steps(n), true) => f64::from(n) / self.steps_per_bar as f64,
            (TokenTime::Steps(n), false) => f64::from(n) * self.seconds_per_step,
            (TokenTime::Centiseconds(n), true) => f64::from(n) / 100.0 / bar_seconds,
            (TokenTime::Centiseconds(n), false) => f64::from(n) / 100.0,
            (TokenTime::Bars(n), true) => f64::from(n),
            (TokenTime::Bars(n), false) => f64::from(n) * bar_seconds,
        }
    }

    /// What a sum of times may be off: 96 times 1/12 of a bar is 8 bars.
    fn rounding(&self) -> f64 {
        1e-3 * self.time(TokenTime::Steps(1))
    }

    /// Sixteenth-note steps of a length.
    fn steps(&self, length: Length) -> usize {
        match length {
            Length::Bars(bars) => bars * self.steps_per_bar,
            Length::Seconds(seconds) => (seconds / self.seconds_per_step).ceil() as usize,
        }
    }
}

fn check_length(request: &Request) -> Result<()> {
    let bad = |key: &str, why: String| Err(Error::Config { key: key.into(), why });
    match request.length {
        Length::Bars(n) if n == 0 || n > MAX_LENGTH => {
            bad("bars", format!("{n} is not in 1 to {MAX_LENGTH}"))
        }
        Length::Seconds(s) if !(s > 0.0 && s <= MAX_LENGTH as f64) => {
            bad("seconds", format!("{s} is not above 0 and at most {MAX_LENGTH}"))
        }
        _ if !(10.0..=1000.0).contains(&request.tempo_bpm) => {
            bad("tempo", format!("{} is not in 10 to 1000", request.tempo_bpm))
        }
        _ => Ok(()),
    }
}
