//! The tensor: an immutable array of numbers that remembers how it was made.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::autograd::{GradFn, Vjp, is_recording};
use crate::device::{Device, Storage};
use crate::error::{Error, Result};
use crate::layout::{Layout, copy_strided};
use crate::memory::Buffer;

/// An array of f32 with up to six axes, row-major, that remembers how it was made.
///
/// Cloning copies a pointer. Views (reshape, permute, slice, expand) share the numbers. Nothing
/// that is visible through another tensor ever changes.
#[derive(Clone)]
pub struct Tensor(pub(crate) Arc<Node>);

/// One value of the graph: where its numbers lie and which operation made it.
pub(crate) struct Node {
    /// Order of creation, which is a topological order: inputs are older than what is made of them.
    pub id: u64,
    pub layout: Layout,
    pub storage: Arc<Storage>,
    pub grad_fn: Option<GradFn>,
    pub needs_grad: bool,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

impl Node {
    fn new(storage: Arc<Storage>, layout: Layout, grad_fn: Option<GradFn>) -> Node {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let needs_grad = grad_fn.is_some();
        Node { id, layout, storage, grad_fn, needs_grad }
    }
}

impl Drop for Node {
    /// Takes chains apart in a loop: the plain way recurses and overflows the stack on long ones.
    fn drop(&mut self) {
        let Some(grad_fn) = self.grad_fn.take() else { return };
        let mut stack = grad_fn.into_inputs();
        while let Some(tensor) = stack.pop() {
            if let Some(mut node) = Arc::into_inner(tensor.0)
                && let Some(grad_fn) = node.grad_fn.take()
            {
                stack.extend(grad_fn.into_inputs());
            }
        }
    }
}

/// The numbers of a tensor in row-major order: borrowed where they lie so, else copied.
pub(crate) enum Compact<'a> {
    Borrowed(&'a [f32]),
    Copied(Buffer),
}

impl Deref for Compact<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match self {
            Compact::Borrowed(slice) => slice,
            Compact::Copied(buffer) => buffer,
        }
    }
}

/// How many numbers a tensor prints.
const PRINTED: usize = 8;

impl Tensor {
    /// Makes a tensor from numbers in row-major order.
    ///
    /// # Errors
    /// If their count is not the product of the sizes, or there are more than six axes.
    pub fn new(values: impl Into<Buffer>, shape: &[usize]) -> Result<Tensor> {
        let values = values.into();
        let layout = Layout::contiguous("tensor", shape)?;
        if layout.len() != values.len() {
            let why = format!("{} values for {} elements", values.len(), layout.len());
            return Err(Error::shape("tensor", &[values.len()], shape, why));
        }
        Ok(Tensor::constant(values, layout))
    }

    /// Makes a tensor from a slice of numbers in row-major order.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_slice(values: &[f32], shape: &[usize]) -> Result<Tensor> {
        Tensor::new(Buffer::copy(values), shape)
    }

    /// Makes a tensor of zeros.
    ///
    /// # Errors
    /// If there are more than six axes.
    pub fn zeros(shape: &[usize]) -> Result<Tensor> {
        let layout = Layout::contiguous("zeros", shape)?;
        Ok(Tensor::constant(Buffer::zeros(layout.len()), layout))
    }

    /// Makes a tensor of one number. It takes the memory of one number.
    ///
    /// # Errors
    /// If there are more than six axes.
    pub fn full(value: f32, shape: &[usize]) -> Result<Tensor> {
        let layout = Tensor::scalar(value).0.layout.expand("full", shape)?;
        Ok(Tensor::constant(Buffer::copy(&[value]), layout))
    }

    /// Makes a tensor of ones. It takes the memory of one number.
    ///
    /// # Errors
    /// If there are more than six axes.
    pub fn ones(shape: &[usize]) -> Result<Tensor> {
        Tensor::full(1.0, shape)
    }

    /// Makes a tensor `[]` of one number.
    pub fn scalar(value: f32) -> Tensor {
        match Layout::contiguous("scalar", &[]) {
            Ok(layout) => Tensor::constant(Buffer::copy(&[value]), layout),
            Err(_) => unreachable!("a shape without axes always fits"),
        }
    }

    /// Wraps a buffer; its length is known to agree with the layout.
    pub(crate) fn constant(buffer: Buffer, layout: Layout) -> Tensor {
        Tensor(Arc::new(Node::new(Arc::new(Storage::Cpu(buffer)), layout, None)))
    }

    /// Makes the result of an operation over a new buffer and, where a gradient can flow, remembers
    /// its vector-Jacobian product.
    pub(crate) fn from_op(
        name: &'static str,
        inputs: &[&Tensor],
        buffer: Buffer,
        layout: Layout,
        vjp: impl Fn(Vjp) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
    ) -> Tensor {
        Tensor::record(name, inputs, Arc::new(Storage::Cpu(buffer)), layout, vjp)
    }

    /// Makes a view of `input`.
    pub(crate) fn view(
        &self,
        name: &'static str,
        layout: Layout,
        vjp: impl Fn(Vjp) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
    ) -> Tensor {
        Tensor::record(name, &[self], self.0.storage.clone(), layout, vjp)
    }

    fn record(
        name: &'static str,
        inputs: &[&Tensor],
        storage: Arc<Storage>,
        layout: Layout,
        vjp: impl Fn(Vjp) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
    ) -> Tensor {
        let grad_fn = (inputs.iter().any(|t| t.needs_grad()) && is_recording())
            .then(|| GradFn::new(name, inputs, Box::new(vjp)));
        Tensor(Arc::new(Node::new(storage, layout, grad_fn)))
    }

    /// Wraps a value that was computed elsewhere as the result of an operation with a derivative of
    /// its own: for fused operations and straight-through estimators.
    ///
    /// `vjp` gets the gradient of the result and returns one gradient for each input, in the
    /// input's shape, or `None` where none flows.
    ///
    /// # Shapes
    /// The result has the shape of `value`.
    pub fn custom(
        name: &'static str,
        inputs: &[&Tensor],
        value: &Tensor,
        vjp: impl Fn(Vjp) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
    ) -> Tensor {
        Tensor::record(name, inputs, value.0.storage.clone(), value.0.layout, vjp)
    }

    /// Makes this value a leaf whose gradient is wanted, cut off from how it was made.
    pub fn requires_grad(self) -> Tensor {
        let mut node = Node::new(self.0.storage.clone(), self.0.layout, None);
        node.needs_grad = true;
        Tensor(Arc::new(node))
    }

    /// The same numbers, cut off from how they were made: no gradient flows through.
    pub fn detach(&self) -> Tensor {
        Tensor(Arc::new(Node::new(self.0.storage.clone(), self.0.layout, None)))
    }

    /// The same value as a node of its own, so that a gradient can be asked at exactly this place.
    pub(crate) fn alias(&self) -> Tensor {
        self.view("alias", self.0.layout, |v| Ok(vec![Some(v.d_output)]))
    }

    /// The number that identifies this value among all of this process.
    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }

    /// Tells whether a gradient can flow into this value.
    pub fn needs_grad(&self) -> bool {
        self.0.needs_grad
    }

    /// The name of the operation that made this value, if it was recorded.
    pub fn op_name(&self) -> Option<&'static str> {
        self.0.grad_fn.as_ref().map(|f| f.name)
    }

    /// Sizes of the axes.
    pub fn shape(&self) -> &[usize] {
        self.0.layout.dims()
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.0.layout.rank()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.0.layout.len()
    }

    /// Tells whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.0.layout.is_empty()
    }

    /// How the elements lie in their storage.
    pub fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// Where the numbers live.
    pub fn device(&self) -> Device {
        self.0.storage.device()
    }

    /// The numbers in row-major order, borrowed where they lie so, else copied.
    pub fn values(&self) -> Cow<'_, [f32]> {
        match self.compact() {
            Compact::Borrowed(slice) => Cow::Borrowed(slice),
            Compact::Copied(buffer) => Cow::Owned(buffer.to_vec()),
        }
    }

    /// Copies the numbers, in row-major order.
    pub fn to_vec(&self) -> Vec<f32> {
        self.compact().to_vec()
    }

    /// The number of a tensor that holds one.
    ///
    /// # Errors
    /// If it holds none or several.
    pub fn item(&self) -> Result<f32> {
        match &*self.compact() {
            [value] => Ok(*value),
            _ => Err(Error::shape("item", self.shape(), &[], "one element is wanted")),
        }
    }

    /// Makes sure that no element is NaN or infinite.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with `what`, the place and the value of the first one that is.
    pub fn check_finite(&self, what: &str) -> Result<()> {
        match self.compact().iter().enumerate().find(|(_, x)| !x.is_finite()) {
            Some((at, value)) => {
                Err(Error::NotFinite { what: what.to_string(), at, value: *value })
            }
            None => Ok(()),
        }
    }

    /// The storage, for kernels that take strides.
    pub(crate) fn storage(&self) -> &[f32] {
        self.0.storage.cpu()
    }

    pub(crate) fn compact(&self) -> Compact<'_> {
        let layout = &self.0.layout;
        if layout.is_contiguous() {
            return match layout.len() {
                0 => Compact::Borrowed(&[]),
                len => Compact::Borrowed(&self.storage()[layout.offset()..layout.offset() + len]),
            };
        }
        let mut buffer = Buffer::scratch(layout.len());
        copy_strided(self.storage(), layout, &mut buffer);
        Compact::Copied(buffer)
    }

    /// Lets `f` change the numbers in place when nobody else can see them, else of a copy.
    pub(crate) fn update<R>(&mut self, f: impl FnOnce(&mut [f32]) -> R) -> R {
        f(self.numbers_mut())
    }

    /// The numbers, to be changed: in place when nobody else can see them, else of a copy.
    pub(crate) fn numbers_mut(&mut self) -> &mut [f32] {
        let whole = self.0.layout.is_contiguous() && self.0.layout.len() == self.storage().len();
        let alone = Arc::get_mut(&mut self.0).is_some_and(|node| {
            node.grad_fn.is_none() && Arc::get_mut(&mut node.storage).is_some()
        });
        if !(whole && alone) {
            let buffer = match self.compact() {
                Compact::Borrowed(slice) => Buffer::copy(slice),
                Compact::Copied(buffer) => buffer,
            };
            let Ok(layout) = Layout::contiguous("update", self.shape()) else {
                unreachable!("the shape of a tensor is a shape")
            };
            let mut node = Node::new(Arc::new(Storage::Cpu(buffer)), layout, None);
            node.needs_grad = self.needs_grad();
            *self = Tensor(Arc::new(node));
        }
        match Arc::get_mut(&mut self.0).and_then(|node| Arc::get_mut(&mut node.storage)) {
            Some(storage) => storage.cpu_mut(),
            None => unreachable!("a copy is nobody else's"),
        }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "tensor {} ", crate::error::Shape(self.shape()))?;
        let values = self.compact();
        let mut list = f.debug_list();
        list.entries(&values[..values.len().min(PRINTED)]);
        if values.len() > PRINTED {
            list.entry(&format_args!(".."));
        }
        list.finish()
    }
}
