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
use crate::stream::{Precision, Row, StreamedB, read_in_turn};
use std::ops::Range;

/// Bytes of weights that are worth a task of their own, and the most tasks of a layer.
const TASK: usize = 24 << 10;
const TASKS: usize = 16;
/// Bytes of weights from which threads share a step; below, to come together takes longer than it
/// saves (bench `rnn_generate`).
const FORK: usize = 320 << 10;

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
    /// All numbers that a step writes, each layer's in its [`Places`].
    state: Pages,
    /// Which of the two places of `h` and `c` is the present one.
    now: usize,
    stages: Stages,
    /// Tasks of each stage.
    tasks: Vec<usize>,
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

/// The blocks of the state at which the numbers of a layer begin.
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
            Output { bias: w.table(&row(bias)), y: room.take(w.blocks()), w }
        });
        let (mut packed, mut output) = (packed, output);
        let streams = || packed.iter().map(|l| &l.w).chain(output.as_ref().map(|o| &o.w));
        let bytes: usize = streams().map(StreamedB::bytes).sum();
        let most = if bytes < FORK { 1 } else { TASKS };
        let tasks = |w: &StreamedB| (w.bytes() / TASK).clamp(1, most).min(w.panels());
        let tasks: Vec<usize> = streams().map(tasks).collect();
        read_in_turn(
            packed.iter_mut().map(|l| &mut l.w).chain(output.iter_mut().map(|o| &mut o.w)),
        );
        StepStack {
            cell,
            precision,
            layers: packed,
            output,
            state: Pages::new(room.0),
            now: 0,
            stages: Stages::new(tasks.iter().copied()),
            tasks,
        }
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
        &self.state[layer.places.h[self.now]..].as_flattened()[..layer.hidden]
    }

    /// The cell state of an LSTM layer, `[hidden]`; empty for the other cells.
    pub fn c(&self, layer: usize) -> &[f32] {
        let layer = &self.layers[layer];
        let len = if self.cell == Cell::Lstm { layer.hidden } else { 0 };
        &self.state[layer.places.c[self.now]..].as_flattened()[..len]
    }

    /// Sets the state of a layer; `c` is empty for all cells but the LSTM.
    ///
    /// # Panics
    /// If a length differs.
    pub fn set_state(&mut self, layer: usize, h: &[f32], c: &[f32]) {
        let places = &self.layers[layer].places;
        assert_eq!((h.len(), c.len()), (self.h(layer).len(), self.c(layer).len()));
        for (place, x) in [(places.h, h), (places.c, c)] {
            self.state[place[self.now]..].as_flattened_mut()[..x.len()].copy_from_slice(x);
        }
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
        let (cell, state, tasks) = (self.cell, Shared::new(&mut self.state), &self.tasks);
        self.stages.run(|stage, some| {
            let cut = |w: &StreamedB| {
                let (panels, all) = (w.panels(), tasks[stage].max(1));
                panels * some.start / all..panels * some.end / all
            };
            let below = stage.checked_sub(1).map(|below| &layers[below]);
            // SAFETY: the stage before has finished writing it, and no later one writes there.
            let below = below.map(|l| unsafe { state.view(l.units(l.places.h[to])) });
            let below = below.map(|h| &h.as_flattened()[..layers[stage - 1].hidden]);
            if let Some(layer) = layers.get(stage) {
                let input = below.map_or(input, StepInput::Dense);
                layer.advance(cell, input, cut(&layer.w), state, (from, to));
            } else if let (Some(output), Some(h)) = (output, below) {
                output.apply(h, precision, cut(&output.w), state);
            }
        });
        match &self.output {
            None => self.h(self.layers.len() - 1),
            Some(output) => &self.state[output.y..].as_flattened()[..output.w.n()],
        }
    }
}

/// A number for each column as a matrix of one row.
fn row(x: &[f32]) -> MatRef<'_> {
    MatRef::new(x, 1, x.len())
}

/// Hands out places in the state.
struct Room(usize);

impl Room {
    fn take(&mut self, blocks: usize) -> usize {
        let at = self.0;
        self.0 += blocks;
        at
    }
}

impl Layer {
    fn new(cell: Cell, w: &StepWeights, ids: bool, precision: Precision, room: &mut Room) -> Layer {
        let (inputs, hidden, gates) = (w.w_ih.rows, w.w_hh.rows, cell.gates());
        assert!(w.w_hh.cols == gates * hidden && w.w_ih.cols == gates * hidden);
        assert!(w.b_ih.len() == gates * hidden && w.b_hh.len() == gates * hidden);
        let matrices = [w.w_ih, w.w_hh];
        let stream = StreamedB::joined(&matrices[usize::from(ids)..], gates, precision);
        let table = if ids { stream.table(&w.w_ih) } else { Vec::new() };
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
        let b_hh = if is_gru { stream.table(&row(w.b_hh)) } else { Vec::new() };
        Layer { inputs, hidden, bias: stream.table(&row(&bias)), w: stream, table, b_hh, places }
    }

    /// The blocks of the state that hold a number of each unit.
    fn units(&self, start: usize) -> Range<usize> {
        start..start + self.hidden.div_ceil(LANES)
    }

    /// Advances the units of some panels.
    fn advance(
        &self,
        cell: Cell,
        input: StepInput,
        panels: Range<usize>,
        state: Shared<Block>,
        (from, to): (usize, usize),
    ) {
        if panels.is_empty() {
            return;
        }
        let (gates, places, precision) = (cell.gates(), &self.places, self.w.precision());
        let blocks = self.w.blocks_of(panels.start).start..self.w.blocks_of(panels.end - 1).end;
        let units = blocks.start / gates..blocks.end / gates;
        let at = |start: usize, each| start + units.start * each..start + units.end * each;
        // SAFETY: tasks have units of their own, and a step writes only to the later of two states.
        let (h_prev, h) =
            unsafe { (state.view(self.units(places.h[from])), state.slice(at(places.h[to], 1))) };
        let dense = match input {
            StepInput::Dense(x) => x,
            StepInput::Ids(_) => &[],
        };
        let rooms = [dense.len(), self.hidden].map(|k| Row::room(k, precision));
        with_scratch(rooms[0] + rooms[1], |room| {
            let (room_x, room_h) = room.split_at_mut(rooms[0]);
            let x = Row::new(dense, precision, room_x);
            let h_row = Row::new(&h_prev.as_flattened()[..self.hidden], precision, room_h);
            let input = match input {
                StepInput::Ids(ids) => Err(ids),
                StepInput::Dense(_) => Ok(x),
            };
            // As rows of sixteen units, which is how the stream holds them.
            match cell {
                Cell::Rnn(f) => {
                    self.sums(panels, input, h_row, h, None);
                    dispatch(RnnCell { h: h.as_flattened_mut(), f });
                }
                Cell::Lstm => {
                    // SAFETY: as above.
                    let (c_prev, c, gates) = unsafe {
                        (
                            state.view(at(places.c[from], 1)).as_flattened(),
                            state.slice(at(places.c[to], 1)).as_flattened_mut(),
                            state.slice(at(places.gates, gates)),
                        )
                    };
                    self.sums(panels, input, h_row, gates, None);
                    let (gates, h) = (gates.as_flattened_mut(), h.as_flattened_mut());
                    dispatch(LstmCell { gates, c_prev, c, h, hidden: LANES });
                }
                Cell::Gru => {
                    // SAFETY: as above.
                    let (h_prev, h_n, gates, rec) = unsafe {
                        (
                            state.view(at(places.h[from], 1)).as_flattened(),
                            state.slice(at(places.h_n, 1)).as_flattened_mut(),
                            state.slice(at(places.gates, gates)),
                            state.slice(at(places.rec, gates)),
                        )
                    };
                    self.sums(panels, input, h_row, gates, Some(rec));
                    let (gates, rec) = (gates.as_flattened_mut(), rec.as_flattened());
                    let h = h.as_flattened_mut();
                    dispatch(GruCell { gates, rec, h_prev, h, h_n, hidden: LANES });
                }
            }
        });
    }

    /// Computes the sums of some panels: of the input with its bias, and of the state with its own if
    /// there is a second place for it; else one sum of both. The input is a row, or ids of rows of the
    /// table.
    #[inline]
    fn sums(
        &self,
        panels: Range<usize>,
        input: Result<Row, &[u32]>,
        h: Row,
        mut of_input: &mut [Block],
        mut of_state: Option<&mut [Block]>,
    ) {
        for panel in panels {
            let blocks = self.w.blocks_of(panel);
            let bias = &self.bias[blocks.clone()];
            let sums = take(&mut of_input, blocks.len());
            let part = match input {
                Err(ids) => {
                    put(sums, bias);
                    for id in ids.iter().filter(|id| **id != NO_ID) {
                        let row = *id as usize * self.bias.len();
                        add(sums, &self.table[row + blocks.start..row + blocks.end]);
                    }
                    0
                }
                Ok(x) => {
                    sums.fill([0.0; LANES]);
                    self.w.add(panel, 0, x, sums);
                    add(sums, bias);
                    1
                }
            };
            match &mut of_state {
                None => self.w.add(panel, part, h, sums),
                Some(of_state) => {
                    let sums = take(of_state, blocks.len());
                    sums.fill([0.0; LANES]);
                    self.w.add(panel, part, h, sums);
                    add(sums, &self.b_hh[blocks]);
                }
            }
        }
    }
}

impl Output {
    /// Computes the columns of some panels.
    fn apply(&self, h: &[f32], precision: Precision, panels: Range<usize>, state: Shared<Block>) {
        with_scratch(Row::room(h.len(), precision), |room| {
            let x = Row::new(h, precision, room);
            for panel in panels {
                let blocks = self.w.blocks_of(panel);
                // SAFETY: tasks have panels of their own.
                let y = unsafe { state.slice(self.y + blocks.start..self.y + blocks.end) };
                y.fill([0.0; LANES]);
                self.w.add(panel, 0, x, y);
                add(y, &self.bias[blocks]);
            }
        });
    }
}

/// Cuts the first blocks off.
fn take<'a>(blocks: &mut &'a mut [Block], count: usize) -> &'a mut [Block] {
    let (first, rest) = std::mem::take(blocks).split_at_mut(count);
    *blocks = rest;
    first
}

// Block by block: a copy of unknown length is a call.
fn put(y: &mut [Block], x: &[Block]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = *x);
}

fn add(y: &mut [Block], x: &[Block]) {
    for (y, x) in y.iter_mut().zip(x) {
        for lane in 0..LANES {
            y[lane] += x[lane];
        }
    }
}
