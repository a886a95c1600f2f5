//! Inference: one step after another, without a graph and without allocating.
//!
//! Weights are packed once and every step reuses the same buffers. With f32 weights the numbers are
//! those of training. A single row streams its weights ([`etude_kernels::step`]), and may keep them
//! as bf16 or int8: memory is what limits it. Several rows use the matrix products of training.

mod cache;
mod rows;

use etude_kernels::activation::{Activation, activation_forward};
use etude_kernels::elementwise::{Unary, unary_forward};
use etude_kernels::embedding::NO_ID;
use etude_kernels::gemm::MatRef;
use etude_kernels::norm::layer_norm_forward;
use etude_kernels::step::{StepInput, StepStack, StepWeights};
use etude_kernels::stream::{self, Precision};
use rows::{Layer, Weight};

pub use cache::{KeyValueCache, RelativeStep};
pub use etude_kernels::recurrent::attend_forward as attend_row;
pub use etude_kernels::step::Cell;

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// The weights of one recurrent layer, as the training layers take them.
#[derive(Debug, Clone, Copy)]
pub struct LayerWeights<'a> {
    /// `[gates * hidden, inputs]`
    pub w_ih: &'a Tensor,
    /// `[gates * hidden, hidden]`
    pub w_hh: &'a Tensor,
    /// `[gates * hidden]`
    pub b_ih: &'a Tensor,
    /// `[gates * hidden]`
    pub b_hh: &'a Tensor,
}

/// Recurrent layers that advance by one step at a time.
pub struct RecurrentStep {
    cell: Cell,
    batch: usize,
    ids: bool,
    form: Form,
}

/// How a step is computed.
enum Form {
    /// One row: everything in one stream of weights.
    Stack(StepStack),
    /// Several rows: layer after layer.
    Layers(Vec<Layer>, Option<LinearStep>),
}

impl RecurrentStep {
    /// Packs layers whose first one reads ids ([`RecurrentStep::step_ids`]); states begin at 0.
    ///
    /// `output`, a weight `[outputs, hidden]` and a bias, makes a step return what it makes of the
    /// last layer's state. `precision` is that of the weights of a batch of one row; with more rows,
    /// and in the table of the first layer, of which a step reads a few rows, they stay f32.
    ///
    /// # Errors
    /// If a shape does not fit or there is no layer.
    pub fn for_ids(
        cell: Cell,
        layers: &[LayerWeights],
        output: Option<(&Tensor, &Tensor)>,
        batch: usize,
        precision: Precision,
    ) -> Result<RecurrentStep> {
        RecurrentStep::new(cell, layers, output, batch, precision, true)
    }

    /// Packs layers whose first one reads vectors ([`RecurrentStep::step_dense`]); states begin at 0.
    ///
    /// `output` and `precision` are those of [`RecurrentStep::for_ids`].
    ///
    /// # Errors
    /// If a shape does not fit or there is no layer.
    pub fn for_dense(
        cell: Cell,
        layers: &[LayerWeights],
        output: Option<(&Tensor, &Tensor)>,
        batch: usize,
        precision: Precision,
    ) -> Result<RecurrentStep> {
        RecurrentStep::new(cell, layers, output, batch, precision, false)
    }

    fn new(
        cell: Cell,
        layers: &[LayerWeights],
        output: Option<(&Tensor, &Tensor)>,
        batch: usize,
        precision: Precision,
        ids: bool,
    ) -> Result<RecurrentStep> {
        let mut below = None;
        for w in layers {
            below = Some(check_layer(cell, w, below)?);
        }
        let Some(hidden) = below else {
            return Err(Error::argument("recurrent step", "at least one layer is wanted"));
        };
        let output = output.map(|(weight, bias)| (weight, Some(bias)));
        if let Some((weight, bias)) = output {
            let (_, inputs) = check_linear(weight, bias)?;
            if inputs != hidden {
                let why = "the output layer reads the last layer's state";
                return Err(Error::shape("recurrent step", weight.shape(), &[hidden], why));
            }
        }
        let form = if batch == 1 {
            Form::Stack(stack(cell, layers, output, ids, precision))
        } else {
            let packed = layers.iter().enumerate();
            let packed = packed.map(|(l, w)| Layer::new(cell, w, batch, ids && l == 0));
            let packed = packed.collect::<Result<_>>()?;
            let output = output
                .map(|(weight, bias)| LinearStep::new(weight, bias, batch, precision))
                .transpose()?;
            Form::Layers(packed, output)
        };
        Ok(RecurrentStep { cell, batch, ids, form })
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        match &self.form {
            Form::Stack(stack) => stack.layers(),
            Form::Layers(layers, _) => layers.len(),
        }
    }

    /// Rows of a step.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Sets all states to 0.
    pub fn reset(&mut self) {
        match &mut self.form {
            Form::Stack(stack) => stack.reset(),
            Form::Layers(layers, _) => layers.iter_mut().for_each(|layer| {
                layer.h.fill(0.0);
                layer.c.fill(0.0);
            }),
        }
    }

    /// The hidden state of a layer, `[batch, hidden]`.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn h(&self, layer: usize) -> &[f32] {
        match &self.form {
            Form::Stack(stack) => stack.h(layer),
            Form::Layers(layers, _) => &layers[layer].h,
        }
    }

    /// The cell state of an LSTM layer, `[batch, hidden]`; empty for the other cells.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn c(&self, layer: usize) -> &[f32] {
        match &self.form {
            Form::Stack(stack) => stack.c(layer),
            Form::Layers(layers, _) => &layers[layer].c,
        }
    }

    /// Sets the state of a layer; `c` is empty for all cells but the LSTM.
    ///
    /// # Errors
    /// If there is no such layer or a length differs.
    pub fn set_state(&mut self, layer: usize, h: &[f32], c: &[f32]) -> Result<()> {
        let count = self.layers();
        if layer >= count {
            return Err(Error::argument("set_state", format!("layer {layer} of {count}")));
        }
        if (h.len(), c.len()) != (self.h(layer).len(), self.c(layer).len()) {
            let (left, right) = ([h.len(), c.len()], [self.h(layer).len(), self.c(layer).len()]);
            return Err(Error::shape("set_state", &left, &right, "lengths of h and c differ"));
        }
        match &mut self.form {
            Form::Stack(stack) => stack.set_state(layer, h, c),
            Form::Layers(layers, _) => {
                layers[layer].h.copy_from_slice(h);
                layers[layer].c.copy_from_slice(c);
            }
        }
        Ok(())
    }

    /// Copies the states of another run of the same layers: a branch of a search.
    ///
    /// # Errors
    /// If the layers differ in number or size.
    pub fn copy_state(&mut self, from: &RecurrentStep) -> Result<()> {
        (0..from.layers()).try_for_each(|l| self.set_state(l, from.h(l), from.c(l)))
    }

    /// Advances by one step and returns the hidden state of the last layer, `[batch, hidden]`, or
    /// what the output layer makes of it.
    ///
    /// # Shapes
    /// `ids` `[batch, active]`; [`NO_ID`](crate::NO_ID) fills what is not used.
    ///
    /// # Errors
    /// If there are not as many bags as rows, an id is too large, or the first layer reads vectors.
    pub fn step_ids(&mut self, ids: &[u32]) -> Result<&[f32]> {
        if !self.ids {
            return Err(Error::argument("step_ids", "the first layer reads vectors"));
        }
        if self.batch == 0 || ids.is_empty() || !ids.len().is_multiple_of(self.batch) {
            let why = "one bag of ids for each row is wanted";
            return Err(Error::shape("step_ids", &[ids.len()], &[self.batch], why));
        }
        let rows = self.inputs();
        if let Some(id) = ids.iter().find(|id| **id != NO_ID && **id as usize >= rows) {
            return Err(Error::Id { op: "step_ids", id: *id, rows });
        }
        self.advance(StepInput::Ids(ids))
    }

    /// Advances by one step and returns the hidden state of the last layer, `[batch, hidden]`, or
    /// what the output layer makes of it.
    ///
    /// # Shapes
    /// `x` `[batch, inputs]`.
    ///
    /// # Errors
    /// If the length differs or the first layer reads ids.
    pub fn step_dense(&mut self, x: &[f32]) -> Result<&[f32]> {
        if self.ids {
            return Err(Error::argument("step_dense", "the first layer reads ids"));
        }
        if x.len() != self.batch * self.inputs() {
            let right = [self.batch, self.inputs()];
            return Err(Error::shape("step_dense", &[x.len()], &right, "the lengths differ"));
        }
        self.advance(StepInput::Dense(x))
    }

    fn inputs(&self) -> usize {
        match &self.form {
            Form::Stack(stack) => stack.inputs(),
            Form::Layers(layers, _) => layers[0].inputs,
        }
    }

    fn advance(&mut self, input: StepInput) -> Result<&[f32]> {
        let (layers, output) = match &mut self.form {
            Form::Stack(stack) => return Ok(stack.step(input)),
            Form::Layers(layers, output) => (layers, output),
        };
        for at in 0..layers.len() {
            let (below, above) = layers.split_at_mut(at);
            let input = below.last().map_or(input, |layer| StepInput::Dense(&layer.h));
            above[0].step(self.cell, self.batch, input);
        }
        let h = &layers[layers.len() - 1].h;
        match output {
            None => Ok(h),
            Some(output) => output.apply(h),
        }
    }
}

/// Makes sure that the weights of a layer fit together and to the layer below; returns its units.
fn check_layer(cell: Cell, w: &LayerWeights, below: Option<usize>) -> Result<usize> {
    let fault = |why| Error::shape("recurrent step", w.w_ih.shape(), w.w_hh.shape(), why);
    let &[outputs, inputs] = w.w_ih.shape() else { return Err(fault("W_ih has two axes")) };
    let hidden = outputs / cell.gates();
    if w.w_hh.shape() != [outputs, hidden] || outputs != hidden * cell.gates() {
        return Err(fault("W_ih [gates * hidden, inputs] and W_hh [gates * hidden, hidden]"));
    }
    if w.b_ih.shape() != [outputs] || w.b_hh.shape() != [outputs] {
        return Err(fault("a bias has a number for each row of the weights"));
    }
    if below.is_some_and(|below| below != inputs) {
        return Err(fault("a layer reads what the one below it gives"));
    }
    Ok(hidden)
}

/// Outputs and inputs of a linear layer whose shapes fit.
fn check_linear(weight: &Tensor, bias: Option<&Tensor>) -> Result<(usize, usize)> {
    let fault = |right: &[usize]| {
        let why = "weight [outputs, inputs] and bias [outputs]";
        Error::shape("linear step", weight.shape(), right, why)
    };
    let &[outputs, inputs] = weight.shape() else { return Err(fault(&[])) };
    match bias {
        Some(bias) if bias.shape() != [outputs] => Err(fault(bias.shape())),
        _ => Ok((outputs, inputs)),
    }
}

/// Packs checked weights for one row.
fn stack(
    cell: Cell,
    layers: &[LayerWeights],
    output: Option<(&Tensor, Option<&Tensor>)>,
    ids: bool,
    precision: Precision,
) -> StepStack {
    let all = layers.iter().map(|w| [w.w_ih, w.w_hh, w.b_ih, w.b_hh].map(Tensor::values));
    let all: Vec<_> = all.collect();
    let mut weights = Vec::new();
    for (w, [w_ih, w_hh, b_ih, b_hh]) in layers.iter().zip(&all) {
        let (of_ih, of_hh) = (w.w_ih.shape(), w.w_hh.shape());
        weights.push(StepWeights {
            w_ih: MatRef::new(w_ih, of_ih[0], of_ih[1]).t(),
            w_hh: MatRef::new(w_hh, of_hh[0], of_hh[1]).t(),
            b_ih,
            b_hh,
        });
    }
    let values = output.map(|(weight, bias)| {
        let zeros = || vec![0.0; weight.shape()[0]];
        (weight.shape(), weight.values(), bias.map_or_else(zeros, Tensor::to_vec))
    });
    let output = values
        .as_ref()
        .map(|(shape, weight, bias)| (MatRef::new(weight, shape[0], shape[1]).t(), &bias[..]));
    StepStack::new(cell, &weights, ids, output, precision)
}

/// A linear layer that is applied to one batch after another.
pub struct LinearStep {
    w: Weight,
    bias: Vec<f32>,
    inputs: usize,
    y: Vec<f32>,
}

impl LinearStep {
    /// Packs a weight `[outputs, inputs]` and a bias `[outputs]` for batches of `batch` rows.
    ///
    /// `precision` is that of the weight of a batch of one row; with more rows it stays f32.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn new(
        weight: &Tensor,
        bias: Option<&Tensor>,
        batch: usize,
        precision: Precision,
    ) -> Result<LinearStep> {
        let (outputs, inputs) = check_linear(weight, bias)?;
        let bias = bias.map_or_else(|| vec![0.0; outputs], Tensor::to_vec);
        let w = Weight::new(weight, outputs, inputs, batch, precision);
        Ok(LinearStep { w, bias, inputs, y: vec![0.0; batch * outputs] })
    }

    /// Computes `x W^T + b` and returns it, `[batch, outputs]`.
    ///
    /// # Shapes
    /// `x` `[batch, inputs]`.
    ///
    /// # Errors
    /// If the length differs.
    pub fn apply(&mut self, x: &[f32]) -> Result<&[f32]> {
        let outputs = self.bias.len();
        let batch = self.y.len().checked_div(outputs).unwrap_or(0);
        if x.len() != batch * self.inputs {
            let right = [batch, self.inputs];
            return Err(Error::shape("linear step", &[x.len()], &right, "the lengths differ"));
        }
        self.w.apply(x, Some(&self.bias), &mut self.y, false);
        Ok(&self.y)
    }

    /// Computes `x W^T + b` of any number of rows; one that was packed for batches of one row gives
    /// each the bits that it has alone.
    ///
    /// # Shapes
    /// `x` `[rows, inputs]`, `y` `[rows, outputs]`.
    ///
    /// # Errors
    /// If the lengths differ.
    pub fn apply_to(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        let (inputs, outputs) = (self.inputs, self.bias.len());
        let rows = y.len().checked_div(outputs).unwrap_or(0);
        if (x.len(), y.len()) != (rows * inputs, rows * outputs) {
            let why = format!("rows of {inputs} and of {outputs} numbers are wanted");
            return Err(Error::shape("linear step", &[x.len()], &[y.len()], why));
        }
        self.w.apply(x, Some(&self.bias), y, false);
        Ok(())
    }
}

/// Tells layers that they are applied one after another, each once a token, the first one first: then
/// how their weights are asked for before they are wanted is chosen for all of them.
pub fn read_in_turn<'a>(layers: impl IntoIterator<Item = &'a mut LinearStep>) {
    stream::read_in_turn(layers.into_iter().filter_map(|l| l.w.stream()));
}

/// Normalises one row: `y = (x - mean) / sqrt(var + eps) * weight + bias`.
///
/// # Panics
/// If the lengths differ.
pub fn layer_norm_row(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
    layer_norm_forward(x, weight, bias, y, &mut [0.0], &mut [0.0], eps);
}

/// Computes `y = f(x)` for each number.
///
/// # Panics
/// If the lengths differ.
pub fn activation_row(f: Activation, x: &[f32], y: &mut [f32]) {
    activation_forward(f, x, y);
}

/// Computes `y = exp(x)` for each number, with the same bits on every instruction set.
///
/// # Panics
/// If the lengths differ.
pub fn exp(x: &[f32], y: &mut [f32]) {
    unary_forward(Unary::Exp, x, y);
}
