//! Attention, fused: `softmax(scale * (q k^T + r)) v` without the square of queries and keys.
//!
//! `r_ij = q_i . e_(j - i + max_len - 1)` are the relative logits of the Music Transformer. Operands may
//! lie as a projection gives them, `[batch, rows, heads, head_dim]` seen as
//! `[batch, heads, rows, head_dim]`: nothing is copied, and results lie as their operands do.
//!
//! Source: Vaswani et al. 2017; relative logits and the skew from Huang et al. 2018.

use etude_kernels::attention::{
    Dropout, Relative, Rows, RowsMut, Rule, Sizes, Strides, attention_backward,
    attention_backward_room, attention_forward,
};

pub use etude_kernels::attention::Mask;

use crate::autograd::{Vjp, is_recording, twin_gradients};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::memory::Buffer;
use crate::op::random::Position;
use crate::rng::Rng;
use crate::tensor::{Compact, Tensor};

const OP: &str = "attention";

/// How queries look at keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Which keys a query sees.
    pub mask: Mask,
    /// What scores are multiplied by; `1 / sqrt(head_dim)` if `None`.
    pub scale: Option<f32>,
    /// Probability to drop a weight, in `[0, 1)`.
    pub dropout: f32,
}

impl Attention {
    /// Attention under a mask, scaled as usual, without dropout.
    pub fn new(mask: Mask) -> Attention {
        Attention { mask, scale: None, dropout: 0.0 }
    }
}

/// An attention whose operands were checked.
#[derive(Clone, Copy)]
struct Call {
    s: Sizes,
    rule: Rule,
    /// Distances that have an embedding.
    max_len: usize,
}

/// Computes what each query finds among the values.
///
/// Queries are the last of the keys where the mask is causal. `rng` draws the weights to drop; without
/// dropout it is not used.
///
/// # Shapes
/// `q` `[batch, heads, queries, head_dim]`; `k`, `v` `[batch, heads, keys, head_dim]`; `er`
/// `[heads, max_len, head_dim]`; the result has the shape of `q`.
///
/// # Errors
/// If the sizes do not fit, a causal mask has more queries than keys, relative embeddings come with a
/// mask that is not causal or strided, or there are fewer of them than the mask reaches back.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    er: Option<&Tensor>,
    how: &Attention,
    rng: &mut Rng,
) -> Result<Tensor> {
    let call = Call::check(q, k, v, er, how, rng)?;
    let s = call.s;
    let layout = layout_like(q)?;
    let mut o = Buffer::scratch(layout.len());
    let mut operands = vec![q, k, v];
    operands.extend(er);
    if o.is_empty() || s.keys == 0 {
        o.fill(0.0);
        return Ok(Tensor::from_op(OP, &operands, o, layout, zero_gradients));
    }
    let lse = call.forward(q, k, v, er, &mut o, &layout);
    Ok(Tensor::from_op(OP, &operands, o, layout, move |v| {
        if is_recording() {
            return twin_gradients(v, |x| call.plain(&x[0], &x[1], &x[2], x.get(3)));
        }
        let [q, k, value, ..] = v.inputs else { unreachable!("attention has three operands") };
        let (d, d_er) =
            call.backward([q, k, value], v.inputs.get(3), v.output, &lse, &v.d_output)?;
        Ok(d.into_iter().chain(d_er).map(Some).collect())
    }))
}

/// Computes what the rows of one projection find among each other: its parts are queries, keys and
/// values, and so is its gradient: one copy brings those of the three together.
///
/// # Shapes
/// `qkv` `[batch, rows, 3, heads, head_dim]`; `er` `[heads, max_len, head_dim]`; the result
/// `[batch, rows, heads, head_dim]`.
///
/// # Errors
/// As [`attention`].
pub fn self_attention(
    qkv: &Tensor,
    er: Option<&Tensor>,
    how: &Attention,
    rng: &mut Rng,
) -> Result<Tensor> {
    let &[batch, rows, 3, heads, head_dim] = qkv.shape() else {
        let why = format!("[batch, rows, 3, heads, head_dim] is wanted, not {:?}", qkv.shape());
        return Err(Error::argument(OP, why));
    };
    let width = heads * head_dim;
    let [q, k, v] = parts(qkv)?;
    let call = Call::check(&q, &k, &v, er, how, rng)?;
    let layout = Layout::contiguous(OP, &[batch, rows, heads, head_dim])?;
    let mut o = Buffer::scratch(layout.len());
    let mut operands = vec![qkv];
    operands.extend(er);
    if o.is_empty() {
        return Ok(Tensor::from_op(OP, &operands, o, layout, zero_gradients));
    }
    let lse = call.forward(&q, &k, &v, er, &mut o, &layout.permute(&[0, 2, 1, 3]));
    Ok(Tensor::from_op(OP, &operands, o, layout, move |v| {
        if is_recording() {
            return twin_gradients(v, |x| {
                let [q, k, v] = parts(&x[0])?;
                call.plain(&q, &k, &v, x.get(1))?.permute(&[0, 2, 1, 3])
            });
        }
        let qkv = parts(&v.inputs[0])?;
        let by_head = |x: &Tensor| x.permute(&[0, 2, 1, 3]);
        let (o, d_o) = (by_head(v.output)?, by_head(&v.d_output)?);
        let (d, d_er) = call.backward(qkv.each_ref(), v.inputs.get(1), &o, &lse, &d_o)?;
        let row = |x: &Tensor| by_head(x)?.reshape(&[batch * rows, width]);
        let [d_q, d_k, d_v] = [row(&d[0])?, row(&d[1])?, row(&d[2])?];
        let d_qkv = Tensor::concat(&[&d_q, &d_k, &d_v], 1)?.reshape(v.inputs[0].shape())?;
        Ok([d_qkv].into_iter().chain(d_er).map(Some).collect())
    }))
}

/// The gradients of operands that the result does not depend on.
fn zero_gradients(v: Vjp) -> Result<Vec<Option<Tensor>>> {
    v.inputs.iter().map(|t| Tensor::zeros(t.shape()).map(Some)).collect()
}

/// Queries, keys and values of a projection `[batch, rows, 3, heads, head_dim]`, each seen as
/// `[batch, heads, rows, head_dim]`.
fn parts(qkv: &Tensor) -> Result<[Tensor; 3]> {
    let part = |at| qkv.select(2, at)?.permute(&[0, 2, 1, 3]);
    Ok([part(0)?, part(1)?, part(2)?])
}

/// Attention of small operations, with the whole square: oracle, second derivative, lesson.
///
/// # Shapes
/// As in [`attention`].
///
/// # Errors
/// As [`attention`].
pub fn attention_plain(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    er: Option<&Tensor>,
    how: &Attention,
    rng: &mut Rng,
) -> Result<Tensor> {
    Call::check(q, k, v, er, how, rng)?.plain(q, k, v, er)
}

impl Call {
    fn check(
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        er: Option<&Tensor>,
        how: &Attention,
        rng: &mut Rng,
    ) -> Result<Call> {
        let fault = |left: &Tensor, right: &Tensor, why: &str| {
            Err(Error::shape(OP, left.shape(), right.shape(), why))
        };
        let &[batch, heads, queries, head_dim] = q.shape() else {
            return fault(q, k, "[batch, heads, rows, head_dim] is wanted");
        };
        let &[.., keys, _] = k.shape() else {
            return fault(q, k, "[batch, heads, rows, head_dim] is wanted");
        };
        if k.shape() != [batch, heads, keys, head_dim] {
            return fault(q, k, "only the number of rows of queries and keys may differ");
        }
        if v.shape() != k.shape() {
            return fault(k, v, "there is one value for each key");
        }
        let s = Sizes { batch, heads, queries, keys, head_dim };
        if !how.mask.is_valid() {
            let why = format!("{:?}: its sizes are at least 1", how.mask);
            return Err(Error::argument(OP, why));
        }
        if how.mask.is_causal() && queries > keys {
            return fault(q, k, "a causal mask wants a key for each query");
        }
        let mut max_len = 0;
        if let Some(er) = er {
            max_len = er.shape().get(1).copied().unwrap_or(0);
            if er.shape() != [heads, max_len, head_dim] {
                return fault(q, er, "relative embeddings are [heads, max_len, head_dim]");
            }
            if !matches!(how.mask, Mask::Causal | Mask::Window { .. }) {
                let why = format!("relative embeddings look back: not with {:?}", how.mask);
                return Err(Error::argument(OP, why));
            }
            if how.mask.reach(keys) > max_len {
                return fault(k, er, "the mask reaches back further than there are embeddings");
            }
        }
        let p = how.dropout;
        if !(0.0..1.0).contains(&p) {
            return Err(Error::argument(OP, format!("dropout {p} is not in [0, 1)")));
        }
        let dropout = (p > 0.0).then(|| {
            let at = rng.reserve(batch * heads * queries * keys.next_multiple_of(4));
            Dropout { p, seed: at.seed, stream: at.stream, position: at.block }
        });
        let scale = how.scale.unwrap_or(1.0 / (head_dim as f32).sqrt());
        Ok(Call { s, rule: Rule { mask: how.mask, scale, dropout }, max_len })
    }

    /// Fills `o`, which lies as `layout`, and returns the log of the sum of each query's weights.
    fn forward(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        er: Option<&Tensor>,
        o: &mut [f32],
        layout: &Layout,
    ) -> Buffer {
        let mut lse = Buffer::scratch(self.s.batch * self.s.heads * self.s.queries);
        let (q, k, v) = (Operand::new(q), Operand::new(k), Operand::new(v));
        let er = er.map(Tensor::compact);
        let relative = er.as_deref().map(|er| Relative { er, max_len: self.max_len });
        let into = RowsMut { data: o, strides: strides(layout) };
        let rule = &self.rule;
        attention_forward(q.rows(), k.rows(), v.rows(), relative, into, &mut lse, self.s, rule);
        lse
    }

    /// The gradients of queries, keys, values and relative embeddings.
    fn backward(
        &self,
        [q, k, v]: [&Tensor; 3],
        er: Option<&Tensor>,
        o: &Tensor,
        lse: &[f32],
        d_o: &Tensor,
    ) -> Result<([Tensor; 3], Option<Tensor>)> {
        let (of_q, of_k, of_v) = (layout_like(q)?, layout_like(k)?, layout_like(v)?);
        let mut d_q = Buffer::scratch(of_q.len());
        let (mut d_k, mut d_v) = (Buffer::scratch(of_k.len()), Buffer::scratch(of_v.len()));
        let of_er = er.map(|er| Layout::contiguous(OP, er.shape())).transpose()?;
        let mut d_er = Buffer::scratch(of_er.map_or(0, |layout| layout.len()));
        let er = er.map(Tensor::compact);
        let relative = er.as_deref().map(|er| Relative { er, max_len: self.max_len });
        let mut room =
            Buffer::scratch(attention_backward_room(self.s, &self.rule, relative.is_some()));
        let [q, k, v, o, d_o] = [q, k, v, o, d_o].map(Operand::new);
        attention_backward(
            q.rows(),
            k.rows(),
            v.rows(),
            relative,
            o.rows(),
            lse,
            d_o.rows(),
            RowsMut { data: &mut d_q, strides: strides(&of_q) },
            RowsMut { data: &mut d_k, strides: strides(&of_k) },
            RowsMut { data: &mut d_v, strides: strides(&of_v) },
            &mut d_er,
            &mut room,
            self.s,
            &self.rule,
        );
        let d = [(d_q, of_q), (d_k, of_k), (d_v, of_v)];
        Ok((
            d.map(|(d, layout)| Tensor::constant(d, layout)),
            of_er.map(|layout| Tensor::constant(d_er, layout)),
        ))
    }

    fn plain(&self, q: &Tensor, k: &Tensor, v: &Tensor, er: Option<&Tensor>) -> Result<Tensor> {
        let Sizes { queries, keys, .. } = self.s;
        if queries == 0 || keys == 0 {
            return q.scale(0.0);
        }
        let mut scores = q.matmul(&k.t()?)?;
        if let Some(er) = er {
            scores = scores.add(&self.relative_plain(q, er)?)?;
        }
        let shift = keys - queries.min(keys);
        let hidden = (0..queries * keys)
            .map(|at| f32::from(u8::from(!self.rule.mask.sees(at / keys + shift, at % keys))));
        let hidden = Tensor::new(hidden.collect::<Vec<f32>>(), &[queries, keys])?;
        let scores = scores.scale(self.rule.scale)?.masked_fill(&hidden, f32::NEG_INFINITY)?;
        let mut weights = scores.softmax()?;
        if let Some(d) = self.rule.dropout {
            // A row begins at a block of four words.
            let wide = weights.pad(3, 0, keys.next_multiple_of(4) - keys)?;
            let at = Position { seed: d.seed, stream: d.stream, block: d.position };
            weights = wide.dropout_at(d.p, at)?.slice(3, 0..keys)?;
        }
        weights.matmul(v)
    }

    /// `q e^T` and the skew: read with rows one number shorter, row `i` moves `i` numbers.
    fn relative_plain(&self, q: &Tensor, er: &Tensor) -> Result<Tensor> {
        let Sizes { batch, heads, queries, keys, .. } = self.s;
        // One column for each distance that a key can have, the nearest last.
        let used = keys.min(self.max_len);
        let er = er.slice(1, self.max_len - used..self.max_len)?.pad(1, keys - used, 0)?;
        let wide = q.matmul(&er.t()?)?.pad(3, 0, queries)?;
        let row = keys + queries;
        wide.reshape(&[batch, heads, queries * row])?
            .slice(2, queries - 1..queries - 1 + queries * (row - 1))?
            .reshape(&[batch, heads, queries, row - 1])?
            .slice(3, 0..keys)
    }
}

/// An operand whose last axis is contiguous: itself, or a copy.
struct Operand<'a> {
    data: Compact<'a>,
    strides: Strides,
}

impl<'a> Operand<'a> {
    fn new(x: &'a Tensor) -> Operand<'a> {
        let layout = x.layout();
        if x.is_empty() || layout.strides()[3] == 1 || layout.dims()[3] == 1 {
            let data = x.storage().get(layout.offset()..).unwrap_or_default();
            return Operand { data: Compact::Borrowed(data), strides: strides(layout) };
        }
        let Sizes4([_, heads, rows, width]) = Sizes4::of(layout);
        Operand { data: x.compact(), strides: Strides::by_head(heads, rows, width) }
    }

    fn rows(&self) -> Rows<'_> {
        Rows { data: &self.data, strides: self.strides }
    }
}

/// The four sizes of a checked operand.
struct Sizes4([usize; 4]);

impl Sizes4 {
    fn of(layout: &Layout) -> Sizes4 {
        let dims = layout.dims();
        Sizes4([dims[0], dims[1], dims[2], dims[3]])
    }
}

fn strides(layout: &Layout) -> Strides {
    let strides = layout.strides();
    Strides { batch: strides[0], head: strides[1], row: strides[2] }
}

/// A layout without gaps that keeps heads beside each other where `x` does.
fn layout_like(x: &Tensor) -> Result<Layout> {
    let Sizes4([batch, heads, rows, width]) = Sizes4::of(x.layout());
    let strides = x.layout().strides();
    if strides[1] < strides[2] && heads > 1 && rows > 1 {
        return Ok(Layout::contiguous(OP, &[batch, rows, heads, width])?.permute(&[0, 2, 1, 3]));
    }
    Layout::contiguous(OP, &[batch, heads, rows, width])
}
