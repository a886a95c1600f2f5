//! Reverse-mode differentiation: the file to learn it from.
//!
//! Every operation on a tensor that needs a gradient leaves a node with its
//! inputs and its **vector-Jacobian product**: a function that takes the gradient of the result and
//! gives the gradients of the inputs. The chain rule is then one walk from the result backwards:
//!
//! `d_input += vjp(d_output)`, newest node first.
//!
//! Nodes are numbered as they are made, so a falling id is an order in which every node comes after
//! all that was made of it. Vector-Jacobian products are written with tensor operations; when they
//! are recorded too ([`Graph::Keep`]), gradients have gradients.
//!
//! Source: Linnainmaa 1970; Griewank & Walther, "Evaluating Derivatives", 2008.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::tensor::Tensor;

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(true) };
}

/// Tells whether operations on this thread are remembered.
pub fn is_recording() -> bool {
    RECORDING.get()
}

/// Restores what was before when dropped.
#[must_use = "recording is restored as soon as this is dropped"]
pub struct Recording {
    before: bool,
}

impl Drop for Recording {
    fn drop(&mut self) {
        RECORDING.set(self.before);
    }
}

/// Switches recording on this thread until the guard is dropped.
pub fn set_recording(on: bool) -> Recording {
    Recording { before: RECORDING.replace(on) }
}

/// Runs `f` without remembering operations.
pub fn no_grad<R>(f: impl FnOnce() -> R) -> R {
    let _off = set_recording(false);
    f()
}

/// What becomes of the graph of the gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Graph {
    /// The gradient is recorded and can be differentiated again.
    Keep,
    /// The gradient is a plain number array; fused operations run their own backward kernels.
    Drop,
}

/// What a vector-Jacobian product works on.
pub struct Vjp<'a> {
    /// The inputs of the operation.
    pub inputs: &'a [Tensor],
    /// Its result.
    pub output: &'a Tensor,
    /// The gradient of the result, in its shape.
    pub d_output: Tensor,
    /// For each input, whether its gradient will be used.
    pub wanted: &'a [bool],
    /// True if the node dies with this call: what it saved may be overwritten.
    pub last: bool,
}

/// The derivative of an operation: one gradient for each input, `None` where none flows.
pub(crate) type VjpFn = dyn Fn(Vjp) -> Result<Vec<Option<Tensor>>> + Send + Sync;

/// The operation that made a node.
pub(crate) struct GradFn {
    pub name: &'static str,
    inputs: Vec<Tensor>,
    vjp: Box<VjpFn>,
}

impl GradFn {
    pub fn new(name: &'static str, inputs: &[&Tensor], vjp: Box<VjpFn>) -> GradFn {
        GradFn { name, inputs: inputs.iter().map(|t| (*t).clone()).collect(), vjp }
    }

    pub fn into_inputs(self) -> Vec<Tensor> {
        self.inputs
    }
}

/// Ids are handed out one by one, so they need no scrambling beyond one multiplication.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u64(u64::from(*b)));
    }
    fn write_u64(&mut self, id: u64) {
        self.0 = (self.0 ^ id).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32);
    }
}

type ById<T> = HashMap<u64, T, BuildHasherDefault<IdHasher>>;

/// Gradients, looked up by the tensor that they belong to.
#[derive(Default)]
pub struct Grads(ById<Tensor>);

impl Grads {
    /// The gradient of a leaf, if the loss depends on it.
    pub fn get(&self, of: &Tensor) -> Option<&Tensor> {
        self.0.get(&of.id())
    }

    /// Takes the gradient of a leaf out, so that its memory can be used again.
    pub fn take(&mut self, of: &Tensor) -> Option<Tensor> {
        self.0.remove(&of.id())
    }

    /// Replaces the gradient of a leaf.
    pub fn insert(&mut self, of: &Tensor, d: Tensor) {
        self.0.insert(of.id(), d);
    }

    /// Number of leaves with a gradient.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether no leaf has a gradient.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Tensor {
    /// Computes the gradients of this one number with respect to all leaves that it depends on.
    ///
    /// It is consumed, so that the graph is freed while the walk passes through it.
    ///
    /// # Errors
    /// If this is not one element, or depends on no leaf that needs a gradient.
    pub fn backward(self) -> Result<Grads> {
        let seed = seed(&self)?;
        if !self.needs_grad() {
            return Err(Error::argument("backward", "nothing here needs a gradient"));
        }
        walk(self, seed, None, Graph::Drop).map(Grads)
    }
}

/// Computes the gradients of the number `y` with respect to `xs`; zeros where `y` does not depend on one.
///
/// # Errors
/// If `y` is not one element, or one of `xs` was not made to need a gradient.
pub fn grad(y: &Tensor, xs: &[&Tensor], graph: Graph) -> Result<Vec<Tensor>> {
    vector_jacobian(y, seed(y)?, xs, graph)
}

/// Computes `d_y^T J`, the gradients of `sum(d_y * y)` with respect to `xs`.
///
/// # Shapes
/// `d_y` has the shape of `y`, each result the shape of its `x`.
///
/// # Errors
/// If the shapes differ, or one of `xs` was not made to need a gradient.
pub fn vector_jacobian(
    y: &Tensor,
    d_y: Tensor,
    xs: &[&Tensor],
    graph: Graph,
) -> Result<Vec<Tensor>> {
    jacobian(y.clone(), d_y, xs, graph)
}

/// [`vector_jacobian`] that frees the graph while it walks through it, if it is to be dropped and nobody
/// else holds `y`.
fn jacobian(y: Tensor, d_y: Tensor, xs: &[&Tensor], graph: Graph) -> Result<Vec<Tensor>> {
    if y.shape() != d_y.shape() {
        return Err(Error::shape(
            "grad",
            y.shape(),
            d_y.shape(),
            "a gradient has its value's shape",
        ));
    }
    if let Some(at) = xs.iter().position(|x| !x.needs_grad()) {
        return Err(Error::argument("grad", format!("input {at} does not need a gradient")));
    }
    let grads = walk(y, d_y, Some(xs), graph)?;
    xs.iter()
        .map(|x| grads.get(&x.id()).cloned().map_or_else(|| Tensor::zeros(x.shape()), Ok))
        .collect()
}

fn seed(y: &Tensor) -> Result<Tensor> {
    match y.len() {
        1 => Tensor::ones(y.shape()),
        _ => Err(Error::shape("grad", y.shape(), &[], "the gradient of one number is wanted")),
    }
}

/// The chain rule. Returns the gradients of `targets`, or of all leaves.
fn walk(y: Tensor, d_y: Tensor, targets: Option<&[&Tensor]>, graph: Graph) -> Result<ById<Tensor>> {
    let mut nodes = reachable(y, targets);
    nodes.sort_unstable_by_key(Tensor::id);
    let wanted = targets.map(|targets| leads_to(targets, &nodes));
    let is_wanted = |t: &Tensor| match &wanted {
        Some(ids) => ids.contains_key(&t.id()),
        None => t.needs_grad(),
    };
    let is_target = |t: &Tensor| match targets {
        Some(targets) => targets.iter().any(|x| x.id() == t.id()),
        None => t.0.grad_fn.is_none(),
    };

    let _recording = set_recording(graph == Graph::Keep);
    let mut grads: ById<Tensor> = ById::default();
    if let Some(y) = nodes.last() {
        grads.insert(y.id(), d_y);
    }
    let mut found = ById::default();
    let mut flags = Vec::new();
    while let Some(mut node) = nodes.pop() {
        let Some(d_output) = grads.remove(&node.id()) else { continue };
        if is_target(&node) {
            found.insert(node.id(), d_output.clone());
        }
        // All that was made of this node is gone by now. If nobody else holds it, it dies here.
        let owned = match Arc::get_mut(&mut node.0) {
            Some(unique) if graph == Graph::Drop => unique.grad_fn.take(),
            _ => None,
        };
        let last = owned.is_some();
        let Some(grad_fn) = owned.as_ref().or(node.0.grad_fn.as_ref()) else { continue };
        flags.clear();
        flags.extend(grad_fn.inputs.iter().map(is_wanted));
        if !flags.contains(&true) {
            continue;
        }
        let vjp = Vjp { inputs: &grad_fn.inputs, output: &node, d_output, wanted: &flags, last };
        let d_inputs = (grad_fn.vjp)(vjp)?;
        debug_assert_eq!(d_inputs.len(), grad_fn.inputs.len(), "{}", grad_fn.name);
        for ((input, d), wanted) in grad_fn.inputs.iter().zip(d_inputs).zip(&flags) {
            let (Some(d), true) = (d, *wanted) else { continue };
            debug_assert_eq!(input.shape(), d.shape(), "gradient of {}", grad_fn.name);
            match grads.remove(&input.id()) {
                None => grads.insert(input.id(), d),
                Some(sum) => grads.insert(input.id(), accumulate(sum, d)?),
            };
        }
    }
    Ok(found)
}

/// All nodes that `y` was made of and that a gradient can flow into.
fn reachable(y: Tensor, targets: Option<&[&Tensor]>) -> Vec<Tensor> {
    // What is older than every target cannot depend on one.
    let oldest = targets.and_then(|t| t.iter().map(|x| x.id()).min()).unwrap_or(0);
    let mut seen: ById<()> = ById::default();
    let mut nodes = Vec::new();
    let mut stack = vec![y];
    while let Some(node) = stack.pop() {
        if node.id() < oldest || seen.insert(node.id(), ()).is_some() {
            continue;
        }
        if let Some(grad_fn) = &node.0.grad_fn {
            stack.extend(grad_fn.inputs.iter().filter(|t| t.needs_grad()).cloned());
        }
        nodes.push(node);
    }
    nodes
}

/// The ids of those nodes (oldest first) through which a gradient reaches a target.
fn leads_to(targets: &[&Tensor], nodes: &[Tensor]) -> ById<()> {
    let mut ids: ById<()> = targets.iter().map(|t| (t.id(), ())).collect();
    for node in nodes {
        if let Some(grad_fn) = &node.0.grad_fn
            && grad_fn.inputs.iter().any(|t| ids.contains_key(&t.id()))
        {
            ids.insert(node.id(), ());
        }
    }
    ids
}

/// Adds two gradients, in place where nobody else sees the first.
fn accumulate(mut sum: Tensor, d: Tensor) -> Result<Tensor> {
    if is_recording() {
        return sum.add(&d);
    }
    let d = d.compact();
    sum.update(|sum| etude_kernels::elementwise::axpy(1.0, &d, sum));
    Ok(sum)
}

/// Computes `f(inputs)` without keeping what lies between, and computes it again in the backward:
/// time for memory.
///
/// A gradient flows to `inputs` only, so everything that needs one must be among them. Randomness
/// must be a copy of an [`Rng`](crate::Rng), so that the second run draws the same numbers.
///
/// # Errors
/// Those of `f`.
///
/// # Source
/// Griewank & Walther 2000; Chen, Xu, Zhang & Guestrin 2016.
pub fn recompute(
    inputs: &[&Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let value = no_grad(|| f(&inputs.iter().map(|t| t.detach()).collect::<Vec<_>>()))?;
    Ok(Tensor::custom("recompute", inputs, &value, move |v| twin_gradients(v, &f)))
}

/// Differentiates `twin`, a function of the same value as the operation, in its place.
pub(crate) fn twin_gradients(
    v: Vjp,
    twin: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<Vec<Option<Tensor>>> {
    let graph = if is_recording() { Graph::Keep } else { Graph::Drop };
    // One input may be made of another. Aliases cut that link, so these are partial derivatives;
    // they stay linked to the inputs, so a second derivative goes on through them.
    let aliases: Vec<Tensor> = {
        let _on = set_recording(true);
        v.inputs.iter().map(|t| if graph == Graph::Keep { t.alias() } else { leaf(t) }).collect()
    };
    let y = {
        let _on = set_recording(true);
        twin(&aliases)?
    };
    let pairs = aliases.iter().zip(v.wanted);
    let xs: Vec<&Tensor> = pairs.filter(|(_, wanted)| **wanted).map(|(t, _)| t).collect();
    let mut grads = jacobian(y, v.d_output, &xs, graph)?.into_iter();
    Ok(v.wanted.iter().map(|wanted| if *wanted { grads.next() } else { None }).collect())
}

fn leaf(t: &Tensor) -> Tensor {
    if t.needs_grad() { t.detach().requires_grad() } else { t.detach() }
}
