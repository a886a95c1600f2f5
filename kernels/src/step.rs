//! A recurrent network one row and one step at a time: the way in which it writes.
//!
//! Each layer is one stream of weights: for sixteen hidden units (for four times sixteen without
//! gates) all their gates, first the part of the input, then that of the state, and right after it
//! the cell. The output layer follows as one more stage. So a step is one fork, however many layers
//! there are, and reads every weight once.
//!
//! A number's sums do not depend on how the work is cut: the same bits for any number of threads.

use crate::cpu::cell_gru::GruCell;
use crate::cpu::cell_lstm::LstmCell;
use crate::cpu::cell_rnn::RnnCell;
use crate::cpu::lanes::{Block, LANES, dispatch};
use crate::cpu::shared::{Shared, with_scratch};
use crate::embedding::NO_ID;
use crate::gemm::MatRef;
use crate::pages::Pages;
use crate::recurrent::Nonlinearity;
use crate::stages::Stages;
use crate::stream::{PANEL, Precision, Row, StreamedB};
use std::ops::Range;

/// Bytes of weights that are worth a task of their own, and the most tasks of a layer.
const TASK: usize = 24 << 10;
const TASKS: usize = 16;

/// Which recurrent layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// Elman's network.
    Rnn(Nonlinearity),
    /// Gated recurrent unit.
    Gru,
    /// Long short-term memory.
    Lstm,
}

impl Cell {
    /// Rows of the weights for each hidden unit.
    pub fn gates(self) -> usize {
        match self {
            Cell::Rnn(_) => 1,
            Cell::Gru => 3,
            Cell::Lstm => 4,
        }
    }
}

/// The weights of a layer, transposed.
#[derive(Clone, Copy)]
pub struct StepWeights<'a> {
    /// `[inputs, gates * hidden]`
    pub w_ih: MatRef<'a>,
    /// `[hidden, gates * hidden]`
    pub w_hh: MatRef<'a>,
    /// `[gates * hidden]`
    pub b_ih: &'a [f32],
    /// `[gates * hidden]`
    pub b_hh: &'a [f32],
}

/// What a step reads.
#[derive(Debug, Clone, Copy)]
pub enum StepInput<'a> {
    /// Rows of the first layer's `W_ih^T`; [`NO_ID`] is none.
    Ids(&'a [u32]),
    /// Numbers.
    Dense(&'a [f32]),
}

/// Recurrent layers and an output layer, packed, with their states.
pub struct StepStack {
    cell: Cell,
    precision: Precision,
    layers: Vec<Layer>,
    output: Option<Output>,
    /// All numbers that a step writes, each layer's in [`Layer::places`].
    state: Pages,
    /// Which of the two places of `h` and `c` is the present one.
    now: usize,
    stages: Stages,
}

struct Layer {
    inputs: usize,
    hidden: usize,
    /// `W_hh^T`, after `W_ih^T` if the input is dense.
    w: StreamedB,
    /// `W_ih^T` by rows if ids choose them, in the order of the stream: `[inputs][blocks]`.
    table: Vec<Block>,
    bias: Vec<Block>,
    /// Only that of a GRU is kept apart.
    b_hh: Vec<Block>,
    places: Places,
}

/// Where the numbers of a layer lie in the state.
struct Places {
    h: [usize; 2],
    c: [usize; 2],
    gates: usize,
    /// Of a GRU: the recurrent part, and what of it meets the reset gate.
    rec: usize,
    h_n: usize,
}

struct Output {
    w: StreamedB,
    bias: Vec<Block>,
    y: usize,
}

impl StepStack {
    /// Packs layers; the first one reads rows by id if `ids`. States begin at 0.
    ///
    /// `output` is a weight `[hidden, outputs]` and a bias that turn the last layer's state into what
    /// a step returns. The table that ids choose from stays f32 whatever the `precision`.
    ///
    /// # Panics
    /// If there is no layer or sizes disagree.
    pub fn new(
        cell: Cell,
        layers: &[StepWeights],
        ids: bool,
        output: Option<(MatRef, &[f32])>,
        precision: Precision,
    ) -> StepStack {
        assert!(!layers.is_empty());
        let mut room = Room(0);
        let packed: Vec<Layer> = layers
            .iter()
            .enumerate()
            .map(|(l, w)| Layer::new(cell, w, ids && l == 0, precision, &mut room))
            .collect();
        assert!(packed.windows(2).all(|pair| pair[0].hidden == pair[1].inputs));
        let output = output.map(|(w, bias)| {
            assert_eq!((Some(w.rows), w.cols), (packed.last().map(|l| l.hidden), bias.len()));
            let w = StreamedB::new(w, precision);
            Output { bias: spread(&w, bias), y: room.take(w.blocks()), w }
        });
        let streams = packed.iter().map(|l| &l.w).chain(output.as_ref().map(|o| &o.w));
        let stages = Stages::new(streams.map(tasks));
        let state = Pages::new(room.0 / LANES);
        StepStack { cell, precision, layers: packed, output, state, now: 0, stages }
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Numbers that the first layer reads, or rows that ids choose from.
    pub fn inputs(&self) -> usize {
        self.layers[0].inputs
    }

    /// Sets all states to 0.
    pub fn reset(&mut self) {
        self.state.fill([0.0; LANES]);
    }

    /// The hidden state of a layer, `[hidden]`.
    pub fn h(&self, layer: usize) -> &[f32] {
        let layer = &self.layers[layer];
        &self.state.as_flattened()[layer.places.h[self.now]..][..layer.hidden]
    }

    /// The cell state of an LSTM layer, `[hidden]`; empty for the other cells.
    pub fn c(&self, layer: usize) -> &[f32] {
        let layer = &self.layers[layer];
        let len = if self.cell == Cell::Lstm { layer.hidden } else { 0 };
        &self.state.as_flattened()[layer.places.c[self.now]..][..len]
    }

    /// Sets the state of a layer; `c` is empty for all cells but the LSTM.
    ///
    /// # Panics
    /// If a length differs.
    pub fn set_state(&mut self, layer: usize, h: &[f32], c: &[f32]) {
        let places = &self.layers[layer].places;
        assert_eq!((h.len(), c.len()), (self.h(layer).len(), self.c(layer).len()));
        let state = self.state.as_flattened_mut();
        state[places.h[self.now]..][..h.len()].copy_from_slice(h);
        state[places.c[self.now]..][..c.len()].copy_from_slice(c);
    }

    /// Advances by one step and returns what the output layer makes of the last layer's state, or
    /// that state.
    ///
    /// # Panics
    /// If the input is not what the first layer reads: ids below [`StepStack::inputs`] or so many
    /// numbers.
    pub fn step(&mut self, input: StepInput) -> &[f32] {
        match input {
            StepInput::Ids(ids) => {
                let rows = self.inputs();
                assert!(ids.iter().all(|id| *id == NO_ID || (*id as usize) < rows));
            }
            StepInput::Dense(x) => assert_eq!(x.len(), self.inputs()),
        }
        let (from, to) = (self.now, 1 - self.now);
        self.now = to;
        let (layers, output, precision) = (&self.layers, &self.output, self.precision);
        let (cell, state) = (self.cell, Shared::new(self.state.as_flattened_mut()));
        self.stages.run(|stage, tasks| {
            let below = stage.checked_sub(1).map(|below| &layers[below]);
            // SAFETY: the stage before has finished writing it, and no later one writes there.
            let below = below.map(|l| unsafe { state.view(l.places.h(to, l.hidden)) });
            if let Some(layer) = layers.get(stage) {
                let panels = cut(&layer.w, tasks);
                let input = below.map_or(input, StepInput::Dense);
                layer.advance(cell, input, panels, state, (from, to));
            } else if let (Some(output), Some(h)) = (output, below) {
                output.apply(h, precision, cut(&output.w, tasks), state);
            }
        });
        match &self.output {
            None => self.h(self.layers.len() - 1),
            Some(output) => &self.state.as_flattened()[output.y..][..output.w.n()],
        }
    }
}

/// Tasks into which a product is cut.
fn tasks(w: &StreamedB) -> usize {
    (w.bytes() / TASK).clamp(1, TASKS).min(w.panels())
}

/// The panels of some tasks.
fn cut(w: &StreamedB, some: Range<usize>) -> Range<usize> {
    let (panels, all) = (w.panels(), tasks(w).max(1));
    panels * some.start / all..panels * some.end / all
}

/// A number for each column, in the order of the stream.
fn spread(w: &StreamedB, x: &[f32]) -> Vec<Block> {
    let value = |block, lane| w.column(block, lane).map_or(0.0, |j| x[j]);
    (0..w.blocks()).map(|block| std::array::from_fn(|lane| value(block, lane))).collect()
}

/// Hands out places in the state.
struct Room(usize);

impl Room {
    fn take(&mut self, blocks: usize) -> usize {
        let at = self.0;
        self.0 += blocks * LANES;
        at
    }
}

impl Places {
    fn h(&self, which: usize, hidden: usize) -> Range<usize> {
        self.h[which]..self.h[which] + hidden
    }
}

impl Layer {
    fn new(cell: Cell, w: &StepWeights, ids: bool, precision: Precision, room: &mut Room) -> Layer {
        let (inputs, hidden, gates) = (w.w_ih.rows, w.w_hh.rows, cell.gates());
        assert!(w.w_hh.cols == gates * hidden && w.w_ih.cols == gates * hidden);
        assert!(w.b_ih.len() == gates * hidden && w.b_hh.len() == gates * hidden);
        let matrices = [w.w_ih, w.w_hh];
        let stream = StreamedB::joined(&matrices[usize::from(ids)..], gates, precision);
        let mut table = Vec::new();
        if ids {
            let mut row = vec![0.0; gates * hidden];
            for l in 0..inputs {
                for (j, x) in row.iter_mut().enumerate() {
                    *x = w.w_ih.data[l * w.w_ih.row_stride + j * w.w_ih.col_stride];
                }
                table.extend(spread(&stream, &row));
            }
        }
        let is_gru = cell == Cell::Gru;
        let bias: Vec<f32> = match is_gru {
            true => w.b_ih.to_vec(),
            false => w.b_ih.iter().zip(w.b_hh).map(|(ih, hh)| ih + hh).collect(),
        };
        let blocks = hidden.div_ceil(LANES);
        let mut take = |is: bool, blocks| room.take(if is { blocks } else { 0 });
        let is_lstm = cell == Cell::Lstm;
        let places = Places {
            h: [0; 2].map(|_| take(true, blocks)),
            c: [0; 2].map(|_| take(is_lstm, blocks)),
            gates: take(gates > 1, gates * blocks),
            rec: take(is_gru, gates * blocks),
            h_n: take(is_gru, blocks),
        };
        let b_hh = if is_gru { spread(&stream, w.b_hh) } else { Vec::new() };
        Layer { inputs, hidden, bias: spread(&stream, &bias), w: stream, table, b_hh, places }
    }

    /// Advances the units of some panels.
    fn advance(
        &self,
        cell: Cell,
        input: StepInput,
        panels: Range<usize>,
        state: Shared<f32>,
        (from, to): (usize, usize),
    ) {
        if panels.is_empty() {
            return;
        }
        let (gates, precision) = (cell.gates(), self.w.precision());
        let blocks = self.w.blocks_of(panels.start).start..self.w.blocks_of(panels.end - 1).end;
        let at = |start: usize, each: usize| {
            let units = blocks.start / gates..blocks.end / gates;
            start + units.start * each * LANES..start + units.end * each * LANES
        };
        let places = &self.places;
        // SAFETY: tasks have units of their own, and a step writes only to the later of two states.
        let (h_prev, h) =
            unsafe { (state.view(places.h(from, self.hidden)), state.slice(at(places.h[to], 1))) };
        let dense = match input {
            StepInput::Dense(x) => x,
            StepInput::Ids(_) => &[],
        };
        let rooms = [dense.len(), self.hidden].map(|k| Row::room(k, precision));
        with_scratch(rooms[0] + rooms[1], |room| {
            let (room_x, room_h) = room.split_at_mut(rooms[0]);
            let x = Row::new(dense, precision, room_x);
            let h_row = Row::new(h_prev, precision, room_h);
            // Finished sums: of the input with its bias, and of the state with its own; one for both
            // if there is no second place.
            let sums = |finished: &mut [f32], mut apart: Option<&mut [f32]>| {
                for panel in panels {
                    let of = self.w.blocks_of(panel);
                    let place = (of.start - blocks.start) * LANES..(of.end - blocks.start) * LANES;
                    let mut sums = [[0.0; LANES]; PANEL];
                    let sums = &mut sums[..of.len()];
                    match input {
                        StepInput::Ids(ids) => {
                            sums.copy_from_slice(&self.bias[of.clone()]);
                            for id in ids.iter().filter(|id| **id != NO_ID) {
                                let row = *id as usize * self.bias.len();
                                add(sums, &self.table[row + of.start..row + of.end]);
                            }
                        }
                        StepInput::Dense(_) => {
                            self.w.add(panel, 0, x, sums);
                            add(sums, &self.bias[of.clone()]);
                        }
                    }
                    let part = usize::from(matches!(input, StepInput::Dense(_)));
                    if let Some(apart) = &mut apart {
                        finished[place.clone()].copy_from_slice(sums.as_flattened());
                        sums.fill([0.0; LANES]);
                        self.w.add(panel, part, h_row, sums);
                        add(sums, &self.b_hh[of]);
                        apart[place].copy_from_slice(sums.as_flattened());
                    } else {
                        self.w.add(panel, part, h_row, sums);
                        finished[place].copy_from_slice(sums.as_flattened());
                    }
                }
            };
            // As rows of sixteen units, which is how the stream holds them.
            match cell {
                Cell::Rnn(f) => {
                    sums(h, None);
                    dispatch(RnnCell { h, f });
                }
                Cell::Lstm => {
                    // SAFETY: as above.
                    let (c_prev, c, gates) = unsafe {
                        (
                            state.view(at(places.c[from], 1)),
                            state.slice(at(places.c[to], 1)),
                            state.slice(at(places.gates, gates)),
                        )
                    };
                    sums(gates, None);
                    dispatch(LstmCell { gates, c_prev, c, h, hidden: LANES });
                }
                Cell::Gru => {
                    // SAFETY: as above.
                    let (h_prev, h_n, gates, rec) = unsafe {
                        (
                            state.view(at(places.h[from], 1)),
                            state.slice(at(places.h_n, 1)),
                            state.slice(at(places.gates, gates)),
                            state.slice(at(places.rec, gates)),
                        )
                    };
                    sums(gates, Some(rec));
                    dispatch(GruCell { gates, rec, h_prev, h, h_n, hidden: LANES });
                }
            }
        });
    }
}

impl Output {
    /// Computes the columns of some panels.
    fn apply(&self, h: &[f32], precision: Precision, panels: Range<usize>, state: Shared<f32>) {
        with_scratch(Row::room(h.len(), precision), |room| {
            let x = Row::new(h, precision, room);
            for panel in panels {
                let of = self.w.blocks_of(panel);
                let mut sums = [[0.0; LANES]; PANEL];
                let sums = &mut sums[..of.len()];
                self.w.add(panel, 0, x, sums);
                add(sums, &self.bias[of.clone()]);
                // SAFETY: tasks have panels of their own.
                let y = unsafe { state.slice(self.y + of.start * LANES..self.y + of.end * LANES) };
                y.copy_from_slice(sums.as_flattened());
            }
        });
    }
}

fn add(y: &mut [Block], x: &[Block]) {
    y.as_flattened_mut().iter_mut().zip(x.as_flattened()).for_each(|(y, x)| *y += x);
}
