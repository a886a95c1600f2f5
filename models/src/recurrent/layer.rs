//! One recurrent layer: its cell and its weights.

use super::cells::{gru_before, lstm_peephole};
use crate::Result;
use etude_engine::{Input, Module, Nonlinearity, Param, Rng, Tensor};
use etude_engine::{gru_layer, init, lstm_layer, rnn_layer};

/// Which equations a layer follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// Elman's.
    Rnn,
    /// Elman's with `max(x, 0)` in place of tanh.
    RnnRelu,
    /// The gated recurrent unit.
    Gru,
    /// The gated recurrent unit that resets the state before it is multiplied.
    GruBefore,
    /// The long short-term memory.
    Lstm,
    /// The long short-term memory whose gates see it.
    LstmPeephole,
}

impl Cell {
    /// Rows of `W_ih`, in units of `hidden`.
    pub fn gates(self) -> usize {
        match self {
            Cell::Rnn | Cell::RnnRelu => 1,
            Cell::Gru | Cell::GruBefore => 3,
            Cell::Lstm | Cell::LstmPeephole => 4,
        }
    }

    /// The name in weight files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Cell::Rnn | Cell::RnnRelu => "rnn",
            Cell::Gru | Cell::GruBefore => "gru",
            Cell::Lstm | Cell::LstmPeephole => "lstm",
        }
    }

    /// The cells of an architecture, the usual one first.
    pub fn kinds(id: &str) -> [Cell; 2] {
        match id {
            "rnn" => [Cell::Rnn, Cell::RnnRelu],
            "gru" => [Cell::Gru, Cell::GruBefore],
            _ => [Cell::Lstm, Cell::LstmPeephole],
        }
    }

    /// The name in a configuration.
    pub fn kind(self) -> &'static str {
        match self {
            Cell::Rnn => "tanh",
            Cell::RnnRelu => "relu",
            Cell::Gru => "reset-after",
            Cell::GruBefore => "reset-before",
            Cell::Lstm => "plain",
            Cell::LstmPeephole => "peephole",
        }
    }

    /// The cell of the fused kernels; the others are made of small operations.
    pub(super) fn fused(self) -> Option<etude_engine::Cell> {
        match self {
            Cell::Rnn => Some(etude_engine::Cell::Rnn(Nonlinearity::Tanh)),
            Cell::RnnRelu => Some(etude_engine::Cell::Rnn(Nonlinearity::Relu)),
            Cell::Gru => Some(etude_engine::Cell::Gru),
            Cell::Lstm => Some(etude_engine::Cell::Lstm),
            Cell::GruBefore | Cell::LstmPeephole => None,
        }
    }
}

/// The weights of one layer, named as in the equations above.
pub(super) struct Layer {
    cell: Cell,
    pub w_ih: Param,
    w_hh: Param,
    b_ih: Param,
    /// The recurrent bias: only a GRU tells it from the other.
    pub b_hh: Option<Param>,
    /// What the gates see of the memory, `[3 * hidden]`, for the input, forget and output gate.
    pub peepholes: Option<Param>,
}

impl Layer {
    /// Uniform weights in `±1 / sqrt(hidden)`; the forget gate starts open (bias 1), so that the
    /// memory lasts before anything is learned (Jozefowicz, Zaremba & Sutskever 2015).
    pub fn new(
        name: &str,
        cell: Cell,
        inputs: usize,
        hidden: usize,
        rng: &mut Rng,
    ) -> Result<Layer> {
        let rows = cell.gates() * hidden;
        let mut param = |part: &str, shape: &[usize]| {
            Ok::<_, crate::Error>(Param::new(
                format!("{name}.{part}"),
                init::by_fan(rng, shape, hidden)?,
            ))
        };
        let mut layer = Layer {
            cell,
            w_ih: param("w_ih", &[rows, inputs])?,
            w_hh: param("w_hh", &[rows, hidden])?,
            b_ih: param("b_ih", &[rows])?,
            b_hh: (cell == Cell::Gru).then(|| param("b_hh", &[rows])).transpose()?,
            peepholes: (cell == Cell::LstmPeephole)
                .then(|| param("peepholes", &[3 * hidden]))
                .transpose()?,
        };
        if cell.gates() == 4 {
            layer.b_ih.update(|bias| bias[hidden..2 * hidden].fill(1.0));
        }
        Ok(layer)
    }

    /// `w_ih`, `w_hh`, `b_ih`, `b_hh`.
    pub fn weights(&self) -> Result<[Tensor; 4]> {
        let b_hh = match &self.b_hh {
            Some(b_hh) => b_hh.value.clone(),
            None => Tensor::zeros(self.b_ih.value.shape())?,
        };
        Ok([self.w_ih.value.clone(), self.w_hh.value.clone(), self.b_ih.value.clone(), b_hh])
    }

    /// Runs the layer over a sequence from a zero state: `[steps, batch, hidden]`.
    pub fn forward(&self, x: &Input, batch: usize) -> Result<Tensor> {
        let [w_ih, w_hh, b_ih, b_hh] = self.weights()?;
        let zero = Tensor::zeros(&[batch, w_hh.shape()[1]])?;
        let relu = Nonlinearity::Relu;
        Ok(match self.cell {
            Cell::RnnRelu => rnn_layer(x, relu, &w_ih, &w_hh, &b_ih, &b_hh, &zero)?,
            Cell::GruBefore => gru_before(x, &[w_ih, w_hh, b_ih, b_hh])?,
            Cell::LstmPeephole => match &self.peepholes {
                Some(p) => lstm_peephole(x, &[w_ih, w_hh, b_ih, b_hh], &p.value)?,
                None => unreachable!("made with the layer"),
            },
            Cell::Rnn => rnn_layer(x, Nonlinearity::Tanh, &w_ih, &w_hh, &b_ih, &b_hh, &zero)?,
            Cell::Gru => gru_layer(x, &w_ih, &w_hh, &b_ih, &b_hh, &zero)?,
            Cell::Lstm => lstm_layer(x, &w_ih, &w_hh, &b_ih, &b_hh, &zero, &zero)?.select(0, 0)?,
        })
    }
}

impl Module for Layer {
    fn visit(&self, f: &mut dyn FnMut(&Param)) {
        let all = [&self.w_ih, &self.w_hh, &self.b_ih].into_iter();
        all.chain(&self.b_hh).chain(&self.peepholes).for_each(f);
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param)) {
        let all = [&mut self.w_ih, &mut self.w_hh, &mut self.b_ih];
        all.into_iter().chain(&mut self.b_hh).chain(&mut self.peepholes).for_each(f);
    }
}
