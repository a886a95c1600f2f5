//! An LSTM that looks back at its own last outputs.
//!
//! ```text
//! c, h = LSTM(W_ih x + b_ih + W_hh h + b_hh + W_d d)     with h and d of the step before
//! q    = W_q [c, h] + b_q
//! s_i  = v . tanh(W_k y_i + q)                           for each of the last `length` outputs
//! d    = sum over i of softmax(s)_i y_i
//! y    = W_o [h, d] + b_o
//! ```
//! Before the first step the outputs were zeros.
//!
//! Source: Bahdanau, Cho & Bengio 2015 for the score; the wrapper of Magenta's attention RNN (Waite
//! 2016).

use std::sync::Mutex;

use etude_kernels::gemm::{MatMut, MatRef};
use etude_kernels::recurrent::{
    AttendedWeights, Sizes, attended_lstm_backward, attended_lstm_forward,
};

use super::{Input, Layer, bias_gradient, no_gradients, project_backward};
use crate::autograd::{is_recording, no_grad, twin_gradients};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::memory::Buffer;
use crate::products::{PackedWeight, Products};
use crate::tensor::Tensor;

/// The weights of an LSTM with attention over its last outputs.
#[derive(Debug, Clone, Copy)]
pub struct Attended<'a> {
    /// `[4 * hidden, inputs]`, gates in the order i, f, g, o.
    pub w_ih: &'a Tensor,
    /// `[4 * hidden, hidden]`
    pub w_hh: &'a Tensor,
    /// `[4 * hidden]`
    pub b_ih: &'a Tensor,
    /// `[4 * hidden]`
    pub b_hh: &'a Tensor,
    /// From what was found to the gates: `[4 * hidden, hidden]`.
    pub w_d: &'a Tensor,
    /// From cell and state to the query: `[hidden, 2 * hidden]`.
    pub w_q: &'a Tensor,
    /// `[hidden]`
    pub b_q: &'a Tensor,
    /// From an output to its key: `[hidden, hidden]`.
    pub w_k: &'a Tensor,
    /// `[hidden]`
    pub v: &'a Tensor,
    /// From state and what was found to the output: `[hidden, 2 * hidden]`.
    pub w_o: &'a Tensor,
    /// `[hidden]`
    pub b_o: &'a Tensor,
}

impl<'a> Attended<'a> {
    /// The order in which the graph sees the weights.
    fn all(&self) -> [&'a Tensor; 11] {
        let Attended { w_ih, w_hh, b_ih, b_hh, w_d, w_q, b_q, w_k, v, w_o, b_o } = *self;
        [w_ih, w_hh, b_ih, b_hh, w_d, w_q, b_q, w_k, v, w_o, b_o]
    }

    /// The weights in the order of [`Attended::all`].
    fn of(t: &'a [Tensor]) -> Attended<'a> {
        let [w_ih, w_hh, b_ih, b_hh, w_d, w_q, b_q, w_k, v, w_o, b_o] = &t[..11] else {
            unreachable!("eleven weights are recorded")
        };
        Attended { w_ih, w_hh, b_ih, b_hh, w_d, w_q, b_q, w_k, v, w_o, b_o }
    }

    fn check<'b>(&self, x: &'b Input, length: usize) -> Result<Layer<'b>>
    where
        'a: 'b,
    {
        let layer = Layer::check(OP, 4, x, [self.w_ih, self.w_hh, self.b_ih, self.b_hh], &[])?;
        let n = layer.sizes.hidden;
        let [_, _, _, _, rest @ ..] = self.all();
        let wanted: [&[usize]; 7] =
            [&[4 * n, n], &[n, 2 * n], &[n], &[n, n], &[n], &[n, 2 * n], &[n]];
        for (tensor, shape) in rest.into_iter().zip(wanted) {
            if tensor.shape() != shape {
                let why = "the weights of the attention follow from the hidden size of W_hh";
                return Err(Error::shape(OP, tensor.shape(), shape, why));
            }
        }
        if length == 0 {
            return Err(Error::argument(OP, "a memory of no outputs"));
        }
        Ok(Layer { products: Products::F32, ..layer })
    }
}

const OP: &str = "attended_lstm";

/// The weights as they are multiplied.
struct Packed {
    w_hd: PackedWeight,
    w_q: PackedWeight,
    w_k: PackedWeight,
    w_o: PackedWeight,
}

impl Packed {
    /// Packs the transposes for the forward, the weights for the backward.
    fn new(products: Products, w: &Attended, transposed: bool) -> Result<Packed> {
        let n = w.v.len();
        let pack = |w: &[f32], rows: usize, cols: usize| {
            let w = MatRef::new(w, rows, cols);
            products.pack(if transposed { w.t() } else { w })
        };
        let w_hd = no_grad(|| Tensor::concat(&[w.w_hh, w.w_d], 1))?;
        Ok(Packed {
            w_hd: pack(&w_hd.compact(), 4 * n, 2 * n),
            w_q: pack(&w.w_q.compact(), n, 2 * n),
            w_k: pack(&w.w_k.compact(), n, n),
            w_o: pack(&w.w_o.compact(), n, 2 * n),
        })
    }

    fn with<'a>(&'a self, b_q: &'a [f32], v: &'a [f32], b_o: &'a [f32]) -> AttendedWeights<'a> {
        let Packed { w_hd, w_q, w_k, w_o } = self;
        let (w_hd, w_q) = (w_hd.into(), w_q.into());
        AttendedWeights { w_hd, w_q, b_q, v, w_k: w_k.into(), w_o: w_o.into(), b_o }
    }
}

/// What the forward leaves for the backward, in the shapes of [`attended_lstm_forward`].
struct Trace {
    states: Buffer,
    queries: Buffer,
    shares: Buffer,
    memory: Buffer,
    keys: Buffer,
}

/// Runs an LSTM with attention over its last `length` outputs over a whole sequence, as one node, from
/// a zero state. Its products are f32.
///
/// # Shapes
/// `x` `[steps, batch, inputs]`, result `[steps, batch, hidden]`.
///
/// # Errors
/// If the sizes do not fit, an id is not below `inputs`, or `length` is 0.
///
/// # Source
/// Bahdanau, Cho & Bengio 2015; Waite 2016.
pub fn attended_lstm(x: &Input, w: &Attended, length: usize) -> Result<Tensor> {
    let layer = w.check(x, length)?;
    let (s, products) = (layer.sizes, layer.products);
    let n = s.hidden;
    let layout = Layout::contiguous(OP, &[s.steps, s.batch, n])?;
    let operands: Vec<&Tensor> = w.all().into_iter().chain(x.tensor()).collect();
    let mut y = Buffer::scratch(layout.len());
    if y.is_empty() {
        return Ok(Tensor::from_op(OP, &operands, y, layout, |v| no_gradients(v.inputs)));
    }
    let remembered = Layout::contiguous(OP, &[s.batch, length, n])?.len() + y.len();
    let shares = Layout::contiguous(OP, &[s.steps, s.batch, length])?.len();
    let mut gates = layer.project(true);
    let mut trace = Trace {
        states: Buffer::scratch(3 * y.len()),
        queries: Buffer::scratch(y.len()),
        shares: Buffer::scratch(shares),
        memory: Buffer::scratch(remembered),
        keys: Buffer::scratch(remembered),
    };
    {
        let packed = Packed::new(products, w, true)?;
        let (b_q, v, b_o) = (w.b_q.compact(), w.v.compact(), w.b_o.compact());
        let Trace { states, queries, shares, memory, keys } = &mut trace;
        let w = packed.with(&b_q, &v, &b_o);
        attended_lstm_forward(
            &mut gates, &w, states, queries, shares, memory, keys, &mut y, length, s,
        );
    }
    let saved = Mutex::new(Some(gates));
    let x = x.with(None);
    Ok(Tensor::from_op(OP, &operands, y, layout, move |v| {
        let x = x.with(v.inputs.get(11));
        if is_recording() {
            return twin_gradients(v, |t| {
                attended_lstm_plain(&x.with(t.get(11)), &Attended::of(t), length)
            });
        }
        let mut gates = {
            let mut saved = saved.lock().unwrap_or_else(|e| e.into_inner());
            let gates = if v.last { saved.take() } else { saved.clone() };
            gates.ok_or_else(|| Error::argument(OP, "its gates are gone"))?
        };
        let w = Attended::of(v.inputs);
        let (mut d_queries, mut d_v) =
            (Buffer::scratch(trace.queries.len()), Buffer::scratch(s.batch * n));
        let mut d_keys = Buffer::scratch(trace.keys.len());
        let mut d_y = v.d_output;
        d_y.update(|d_y| {
            let packed = Packed::new(products, &w, false)?;
            let (b_q, v, b_o) = (w.b_q.compact(), w.v.compact(), w.b_o.compact());
            let Trace { states, queries, shares, memory, keys } = &trace;
            let w = packed.with(&b_q, &v, &b_o);
            let mut d_memory = Buffer::scratch(memory.len());
            attended_lstm_backward(
                &mut gates,
                &w,
                states,
                queries,
                shares,
                memory,
                keys,
                d_y,
                &mut d_queries,
                &mut d_memory,
                &mut d_keys,
                &mut d_v,
                length,
                s,
            );
            Ok::<_, Error>(())
        })?;
        let d_y = d_y.compact();
        let wants_x = v.wanted.get(11) == Some(&true);
        let d = project_backward(products, &x, w.w_ih, &gates, v.wanted[0], wants_x)?;
        let (rows, width) = (s.steps * s.batch, 3 * n);
        let weight = |d: MatRef, x: MatRef| {
            let layout = Layout::contiguous(OP, &[d.cols, x.cols])?;
            let mut d_w = Buffer::scratch(layout.len());
            products.gemm(d.t(), x, &mut MatMut::new(&mut d_w, d.cols, x.cols), false);
            Ok::<_, Error>(Tensor::constant(d_w, layout))
        };
        // `[c, h]` and `[h, d]` of some rows; the first step read a state of zeros.
        let pair =
            |at: usize, rows: usize| MatRef::strided(&trace.states[at..], rows, 2 * n, width, 1);
        let later = rows - s.batch;
        let d_w_hd = weight(MatRef::new(&gates[s.batch * 4 * n..], later, 4 * n), pair(n, later))?;
        let remembered = s.batch * (length + s.steps);
        let mut grads = vec![
            d.w_ih,
            Some(d_w_hd.slice(1, 0..n)?),
            Some(d.bias.clone()),
            Some(d.bias),
            Some(d_w_hd.slice(1, n..2 * n)?),
            Some(weight(MatRef::new(&d_queries, rows, n), pair(0, rows))?),
            Some(bias_gradient(&d_queries, n)?),
            Some(weight(
                MatRef::new(&d_keys, remembered, n),
                MatRef::new(&trace.memory, remembered, n),
            )?),
            Some(bias_gradient(&d_v, n)?),
            Some(weight(MatRef::new(&d_y, rows, n), pair(n, rows))?),
            Some(bias_gradient(&d_y, n)?),
        ];
        if v.inputs.len() > 11 {
            grads.push(d.x);
        }
        Ok(grads)
    }))
}

/// The attended LSTM of small operations: oracle, second derivative, lesson.
///
/// # Shapes
/// As in [`attended_lstm`].
///
/// # Errors
/// As [`attended_lstm`].
pub fn attended_lstm_plain(x: &Input, w: &Attended, length: usize) -> Result<Tensor> {
    let Sizes { steps, batch, hidden } = w.check(x, length)?.sizes;
    let input_part = x.project_plain(w.w_ih, Some(&w.b_ih.add(w.b_hh)?))?;
    let zero = Tensor::zeros(&[batch, hidden])?;
    let (mut h, mut c, mut d) = (zero.clone(), zero.clone(), zero);
    let mut memory = Tensor::zeros(&[length, batch, hidden])?;
    let mut keys = memory.clone();
    let mut outputs = Vec::with_capacity(steps);
    for t in 0..steps {
        let from_state = h.matmul(&w.w_hh.t()?)?.add(&d.matmul(&w.w_d.t()?)?)?;
        let gates = input_part.select(0, t)?.add(&from_state)?;
        let gate = |k: usize| gates.slice(1, k * hidden..(k + 1) * hidden);
        let (i, f) = (gate(0)?.sigmoid()?, gate(1)?.sigmoid()?);
        let (g, o) = (gate(2)?.tanh()?, gate(3)?.sigmoid()?);
        c = f.mul(&c)?.add(&i.mul(&g)?)?;
        h = o.mul(&c.tanh()?)?;
        let query = Tensor::concat(&[&c, &h], 1)?.matmul(&w.w_q.t()?)?.add(w.b_q)?;
        let scores = keys.add(&query)?.tanh()?.mul(w.v)?.sum(&[2], false)?;
        let share = scores.t()?.softmax()?.t()?.reshape(&[length, batch, 1])?;
        d = memory.mul(&share)?.sum(&[0], false)?;
        let y = Tensor::concat(&[&h, &d], 1)?.matmul(&w.w_o.t()?)?.add(w.b_o)?;
        let key = y.matmul(&w.w_k.t()?)?.reshape(&[1, batch, hidden])?;
        let row = y.reshape(&[1, batch, hidden])?;
        memory = Tensor::concat(&[&memory.slice(0, 1..length)?, &row], 0)?;
        keys = Tensor::concat(&[&keys.slice(0, 1..length)?, &key], 0)?;
        outputs.push(y);
    }
    if outputs.is_empty() {
        return Tensor::zeros(&[0, batch, hidden]);
    }
    Tensor::stack(&outputs.iter().collect::<Vec<_>>())
}
