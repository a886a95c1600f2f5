//! Stacked recurrent layers: several layers, one direction or both, rows of different lengths.
//!
//! A layer that reads backwards is the same layer on a reversed sequence, and its outputs are
//! reversed back. A row that is shorter than the others runs on over its padding, where nothing
//! counts: outputs there are 0, final states are those of the row's own last step, and no gradient
//! comes from there. Reversing and cutting are gathers of rows, so every derivative is at hand.
//!
//! Source: Schuster & Paliwal 1997 (both directions); the conventions are PyTorch's.

use std::sync::Arc;

use super::{Input, gru_layer, lstm_layer, rnn_layer};
use crate::error::{Error, Result};
use crate::infer::{Cell, LayerWeights};
use crate::op::index::{Ids, NO_ID};
use crate::tensor::Tensor;

/// What a stack of recurrent layers gives.
#[derive(Debug, Clone)]
pub struct Stacked {
    /// The last layer's outputs, both directions side by side: `[steps, batch, directions * hidden]`.
    pub output: Tensor,
    /// The state after each row's last step, layer by layer and, inside of a layer, forwards before
    /// backwards: `[layers * directions, batch, hidden]`.
    pub h: Tensor,
    /// The cell state of an LSTM, likewise.
    pub c: Option<Tensor>,
}

/// Runs stacked recurrent layers over a batch of sequences.
///
/// `layers` holds for each layer the weights of one direction, or of both (forwards, backwards).
/// `initial` are the first states, zeros if there are none; the second one is an LSTM's cell state.
/// `lengths` gives each row's number of steps, all of them if `None`.
///
/// # Shapes
/// `x` `[steps, batch, inputs]`; `initial` `[layers * directions, batch, hidden]`; layers after the
/// first one have `directions * hidden` inputs.
///
/// # Errors
/// If the sizes do not fit, there is no layer, layers differ in their directions, or a length is 0
/// or above `steps`.
pub fn recurrent_stack(
    cell: Cell,
    x: &Input,
    layers: &[&[LayerWeights]],
    initial: Option<(&Tensor, Option<&Tensor>)>,
    lengths: Option<&[usize]>,
) -> Result<Stacked> {
    const OP: &str = "recurrent_stack";
    let (steps, batch) = x.sizes(OP)?;
    let Some(directions) = layers.first().map(|layer| layer.len()) else {
        return Err(Error::argument(OP, "no layer"));
    };
    if !(1..=2).contains(&directions) || layers.iter().any(|layer| layer.len() != directions) {
        let found: Vec<usize> = layers.iter().map(|layer| layer.len()).collect();
        return Err(Error::argument(OP, format!("layers of {found:?} directions: 1 or 2 each")));
    }
    let rows = Rows::new(steps, batch, lengths)?;
    if let Some((h, c)) = initial {
        for state in std::iter::once(h).chain(c) {
            let all = layers.len() * directions;
            if state.rank() != 3 || state.shape()[..2] != [all, batch] {
                let why = "a state is [layers * directions, batch, hidden]";
                return Err(Error::shape(OP, state.shape(), &[all, batch], why));
            }
        }
    }

    let mut x = x.clone();
    let (mut last_h, mut last_c) = (Vec::new(), Vec::new());
    let mut output = None;
    for (l, layer) in layers.iter().enumerate() {
        let mut sides = Vec::new();
        for (d, w) in layer.iter().enumerate() {
            let hidden = w.w_hh.shape().last().copied().unwrap_or(0);
            let first = |state: Option<&Tensor>| match state {
                Some(state) => state.select(0, l * directions + d),
                None => Tensor::zeros(&[batch, hidden]),
            };
            let h0 = first(initial.map(|(h, _)| h))?;
            let c0 = first(initial.and_then(|(_, c)| c))?;
            let backwards = d == 1;
            let input = if backwards { rows.reversed_input(&x)? } else { x.clone() };
            let (h, c) = run(cell, &input, w, &h0, &c0)?;
            last_h.push(rows.last(&h, &h0)?);
            if let Some(c) = c {
                last_c.push(rows.last(&c, &c0)?);
            }
            sides.push(if backwards { rows.reversed(&h)? } else { rows.cut(&h)? });
        }
        let y = match &sides[..] {
            [one] => one.clone(),
            both => Tensor::concat(&both.iter().collect::<Vec<_>>(), 2)?,
        };
        x = Input::Dense(y.clone());
        output = Some(y);
    }
    let all = |states: &[Tensor]| Tensor::stack(&states.iter().collect::<Vec<_>>());
    let output = output.ok_or_else(|| Error::argument(OP, "no layer"))?;
    let c = if last_c.is_empty() { None } else { Some(all(&last_c)?) };
    Ok(Stacked { output, h: all(&last_h)?, c })
}

/// Runs one layer in one direction: its states at every step and, of an LSTM, its cell states.
fn run(
    cell: Cell,
    x: &Input,
    w: &LayerWeights,
    h0: &Tensor,
    c0: &Tensor,
) -> Result<(Tensor, Option<Tensor>)> {
    let LayerWeights { w_ih, w_hh, b_ih, b_hh } = *w;
    match cell {
        Cell::Rnn(f) => Ok((rnn_layer(x, f, w_ih, w_hh, b_ih, b_hh, h0)?, None)),
        Cell::Gru => Ok((gru_layer(x, w_ih, w_hh, b_ih, b_hh, h0)?, None)),
        Cell::Lstm => {
            let both = lstm_layer(x, w_ih, w_hh, b_ih, b_hh, h0, c0)?;
            Ok((both.select(0, 0)?, Some(both.select(0, 1)?)))
        }
    }
}

/// Which steps of each row count.
struct Rows<'a> {
    steps: usize,
    batch: usize,
    lengths: Option<&'a [usize]>,
}

impl<'a> Rows<'a> {
    fn new(steps: usize, batch: usize, lengths: Option<&'a [usize]>) -> Result<Rows<'a>> {
        if let Some(lengths) = lengths {
            if lengths.len() != batch {
                let why = "one length for each row is wanted";
                return Err(Error::shape("recurrent_stack", &[lengths.len()], &[batch], why));
            }
            if let Some(length) = lengths.iter().find(|length| !(1..=steps).contains(*length)) {
                let why = format!("a length of {length} in a sequence of {steps} steps");
                return Err(Error::argument("recurrent_stack", why));
            }
        }
        if steps.checked_mul(batch).is_none_or(|rows| rows >= NO_ID as usize) {
            return Err(Error::argument("recurrent_stack", "too many rows to number"));
        }
        Ok(Rows { steps, batch, lengths })
    }

    fn length(&self, row: usize) -> usize {
        self.lengths.map_or(self.steps, |lengths| lengths[row])
    }

    /// For each step and row the step that `from` names, if it is one of that row.
    fn numbers(&self, from: impl Fn(usize, usize) -> usize) -> Arc<[u32]> {
        let place = |t: usize, b: usize| {
            if t < self.length(b) { (from(t, b) * self.batch + b) as u32 } else { NO_ID }
        };
        (0..self.steps)
            .flat_map(|t| (0..self.batch).map(move |b| (t, b)))
            .map(|(t, b)| place(t, b))
            .collect()
    }

    /// Each row's own steps backwards, then padding.
    fn backwards(&self) -> Arc<[u32]> {
        self.numbers(|t, b| self.length(b) - 1 - t)
    }

    fn gathered(&self, x: &Tensor, numbers: Arc<[u32]>) -> Result<Tensor> {
        let width = x.shape()[2];
        let rows = x.reshape(&[self.steps * self.batch, width])?.embedding(&Ids::new(numbers))?;
        rows.reshape(&[self.steps, self.batch, width])
    }

    /// `x` `[steps, batch, width]` with each row's steps reversed and zeros behind them; reversing
    /// twice gives the row's steps back.
    fn reversed(&self, x: &Tensor) -> Result<Tensor> {
        self.gathered(x, self.backwards())
    }

    /// `x` `[steps, batch, width]` with zeros behind each row's last step.
    fn cut(&self, x: &Tensor) -> Result<Tensor> {
        match self.lengths {
            None => Ok(x.clone()),
            Some(_) => self.gathered(x, self.numbers(|t, _| t)),
        }
    }

    fn reversed_input(&self, x: &Input) -> Result<Input> {
        match x {
            Input::Dense(x) => Ok(Input::Dense(self.reversed(x)?)),
            Input::OneHot { ids, steps, batch } => {
                let (from, active) = (ids.as_slice(), ids.active());
                let mut bags = Vec::with_capacity(from.len());
                for number in self.backwards().iter() {
                    match *number {
                        NO_ID => bags.extend(std::iter::repeat_n(NO_ID, active)),
                        number => {
                            let at = number as usize * active;
                            bags.extend_from_slice(&from[at..at + active]);
                        }
                    }
                }
                let ids = Ids::bags(bags, active)?;
                Ok(Input::OneHot { ids, steps: *steps, batch: *batch })
            }
        }
    }

    /// The state after each row's last step: `[batch, hidden]` of `[steps, batch, hidden]`.
    fn last(&self, h: &Tensor, initial: &Tensor) -> Result<Tensor> {
        match (self.steps, self.lengths) {
            (0, _) => Ok(initial.clone()),
            (steps, None) => h.select(0, steps - 1),
            (steps, Some(lengths)) => {
                let place = |(b, length): (usize, &usize)| ((length - 1) * self.batch + b) as u32;
                let places: Arc<[u32]> = lengths.iter().enumerate().map(place).collect();
                h.reshape(&[steps * self.batch, h.shape()[2]])?.embedding(&Ids::new(places))
            }
        }
    }
}
