//! Writing a piece with a trained model, token by token.
//!
//! ```text
//! repeat: rows of the step -> logits -> drawn token -> rows of the next step
//! ```
//!
//! One step reads every weight once (large networks keep them as int8) and allocates nothing. Which
//! numbers are drawn depends on the seed alone, so the same seed writes the same piece.

use crate::data::meter_of;
use crate::frames::Drawing;
use crate::registry::ModelConfig;
use crate::sampling::{Sampler, Sampling};
use crate::{Error, Generator, Model, Precision, Result};
use etude_engine::Rng;
use etude_tokenizer::step_input::{StepInput, steps_per_bar};
use etude_tokenizer::{Encoding, Melody, Meter, PianoRollTokens, Score, Tempo, TokenTime};

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

/// A piece that a model wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct Composition {
    /// All tokens, those of the primer first.
    pub tokens: Vec<u32>,
    /// How many of them the primer gave.
    pub primed: usize,
    /// The music.
    pub score: Score,
}

/// The longest piece that is written, in tokens.
pub const MAX_TOKENS: usize = 1_000_000;
/// The longest piece that can be asked for, in bars or seconds.
pub const MAX_LENGTH: usize = 100_000;

const SAMPLING_STREAM: u32 = 4;

/// A model made ready to write: weights packed once, then any number of pieces.
pub struct Writer {
    config: ModelConfig,
    encoding: Box<dyn Encoding>,
    generator: Box<dyn Generator>,
    times: Vec<TokenTime>,
    onsets: Vec<bool>,
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
        let times = tokens.clone().map(|t| encoding.token_time(t)).collect();
        let onsets = tokens.map(|t| encoding.is_onset(t)).collect();
        Ok(Writer {
            config: config.clone(),
            generator: model.generator(precision)?,
            encoding,
            times,
            onsets,
        })
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
        request.sampling.check()?;
        check_length(request)?;
        let meter = request.primer.as_ref().map_or(request.meter, meter_of);
        let mut tokens = match &request.primer {
            None => Vec::new(),
            Some(primer) => self.encoding.encode(primer)?.tokens,
        };
        if request.primer.is_some() && tokens.is_empty() {
            let why =
                format!("the primer holds no music for the encoding {}", self.encoding.name());
            return Err(Error::Data { why });
        }
        let clock = Clock::new(request, meter);
        self.round_up(&mut tokens, &clock);
        let primed = tokens.len();
        let wanted = self.elapsed(&tokens, &clock) + clock.wanted;
        let total_steps = primed + clock.steps(request.length);
        let input = self.config.conditions.input(self.encoding.vocab_size(), meter, total_steps);
        tokens.reserve((primed + 64).min(MAX_TOKENS));
        self.extend(&mut tokens, input, request, &clock, wanted)?;
        let mut score = self.encoding.decode(&tokens)?;
        if self.times.iter().any(|time| matches!(time, TokenTime::Steps(_))) {
            let micros_per_quarter = (60e6 / request.tempo_bpm).round() as u32;
            score.tempos = vec![Tempo { tick: 0, micros_per_quarter }];
            score.meters = vec![Meter { tick: 0, ..meter }];
        }
        Ok(Composition { tokens, primed, score })
    }

    /// Draws tokens until the piece is as long as wanted.
    fn extend(
        &mut self,
        tokens: &mut Vec<u32>,
        input: StepInput,
        request: &Request,
        clock: &Clock,
        wanted: f64,
    ) -> Result<()> {
        let mut sampler = Sampler::new(request.sampling.clone(), self.encoding.vocab_size());
        let mut rng = Rng::stream(request.seed, SAMPLING_STREAM);
        let mut rows = vec![0; input.active()];
        let mut reader = input.reader();
        self.generator.reset();
        if input.is_keys() {
            return self.extend_keys(tokens, &mut rng, request, clock, wanted);
        }
        for t in 0..tokens.len() {
            reader.fill(tokens, t, &mut rows);
            self.generator.step(&rows)?;
            self.hear(&mut sampler, tokens[t]);
        }
        let mut now = self.elapsed(tokens, clock);
        // A thousandth of a step is rounding: 96 times 1/12 of a bar is 8 bars.
        let wanted = wanted - 1e-3 * clock.time(TokenTime::Steps(1));
        while now < wanted && tokens.len() < MAX_TOKENS {
            reader.fill(tokens, tokens.len(), &mut rows);
            let logits = self.generator.step(&rows)?;
            let token = sampler.draw(logits, rng.unit(), |_| true);
            self.hear(&mut sampler, token);
            tokens.push(token);
            now += clock.time(self.times[token as usize]);
        }
        Ok(())
    }

    /// Draws steps of keys until the piece is as long as wanted.
    fn extend_keys(
        &mut self,
        tokens: &mut Vec<u32>,
        rng: &mut Rng,
        request: &Request,
        clock: &Clock,
        wanted: f64,
    ) -> Result<()> {
        let mut drawing = Drawing::begin(&mut *self.generator, tokens)?;
        let mut now = self.elapsed(tokens, clock);
        let wanted = wanted - 1e-3 * clock.time(TokenTime::Steps(1));
        while now < wanted && tokens.len() < MAX_TOKENS {
            let keys = drawing.step(&mut *self.generator, &request.sampling, rng)?;
            tokens.extend(PianoRollTokens::tokens_of(keys));
            now += clock.time(self.times[PianoRollTokens::STEP_END as usize]);
        }
        Ok(())
    }

    fn hear(&self, sampler: &mut Sampler, token: u32) {
        sampler.heard(self.onsets[token as usize].then_some(token));
    }

    /// The time of all tokens, in the clock's unit.
    fn elapsed(&self, tokens: &[u32], clock: &Clock) -> f64 {
        tokens.iter().map(|t| clock.time(self.times[*t as usize])).sum()
    }

    /// Fills a primer's last bar, so that what follows begins on a bar.
    fn round_up(&self, tokens: &mut Vec<u32>, clock: &Clock) {
        if self.times.first() == Some(&TokenTime::Steps(1)) {
            let full = tokens.len().next_multiple_of(clock.steps_per_bar);
            tokens.resize(full, Melody::NO_EVENT);
        }
    }
}

/// Adds up the time of tokens, in bars or seconds, whichever the request counts in.
struct Clock {
    steps_per_bar: usize,
    seconds_per_step: f64,
    in_bars: bool,
    wanted: f64,
}

impl Clock {
    fn new(request: &Request, meter: Meter) -> Clock {
        let (in_bars, wanted) = match request.length {
            Length::Bars(bars) => (true, bars as f64),
            Length::Seconds(seconds) => (false, seconds),
        };
        let seconds_per_step = 15.0 / request.tempo_bpm;
        Clock { steps_per_bar: steps_per_bar(meter), seconds_per_step, in_bars, wanted }
    }

    fn time(&self, time: TokenTime) -> f64 {
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
