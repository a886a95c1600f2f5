//! Rows of a table by id: embeddings, multi-hot bags, picking one number of each row.

use std::sync::Arc;

use etude_kernels::embedding::{embedding_backward, embedding_forward};

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::memory::Buffer;
use crate::tensor::Tensor;

/// Marks an empty slot in a bag of ids, and a row without a target.
pub const NO_ID: u32 = etude_kernels::embedding::NO_ID;

/// Whole numbers that name rows: tokens, pitches, targets. Cloning copies a pointer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    ids: Arc<[u32]>,
    rows: usize,
    active: usize,
}

impl Ids {
    /// Makes bags of `active` ids each, row after row; [`NO_ID`] fills what is not used.
    ///
    /// # Errors
    /// If the count is not a multiple of `active`, or `active` is 0.
    pub fn bags(ids: impl Into<Arc<[u32]>>, active: usize) -> Result<Ids> {
        let ids = ids.into();
        if active == 0 || !ids.len().is_multiple_of(active) {
            return Err(Error::argument("ids", format!("{} ids in bags of {active}", ids.len())));
        }
        Ok(Ids { rows: ids.len() / active, ids, active })
    }

    /// Makes one id for each row.
    pub fn new(ids: impl Into<Arc<[u32]>>) -> Ids {
        let ids = ids.into();
        Ids { rows: ids.len(), ids, active: 1 }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Ids in each row.
    pub fn active(&self) -> usize {
        self.active
    }

    /// All ids, row after row.
    pub fn as_slice(&self) -> &[u32] {
        &self.ids
    }

    /// Makes sure that every id names one of `rows` rows.
    pub(crate) fn check(&self, op: &'static str, rows: usize) -> Result<()> {
        match self.ids.iter().find(|id| **id != NO_ID && **id as usize >= rows) {
            Some(id) => Err(Error::Id { op, id: *id, rows }),
            None => Ok(()),
        }
    }
}

impl Tensor {
    /// Gathers rows of this table and adds up those of one bag. An empty bag gives zeros.
    ///
    /// # Shapes
    /// `self` `[vocab, width]`, `ids` `[rows, active]`, result `[rows, width]`.
    ///
    /// # Errors
    /// If this is not a matrix or an id lies outside of it.
    pub fn embedding(&self, ids: &Ids) -> Result<Tensor> {
        let &[vocab, width] = self.shape() else {
            return Err(Error::shape("embedding", self.shape(), &[], "a table has two axes"));
        };
        ids.check("embedding", vocab)?;
        let layout = Layout::contiguous("embedding", &[ids.rows, width])?;
        let mut y = Buffer::scratch(layout.len());
        if !y.is_empty() {
            embedding_forward(&self.compact(), ids.as_slice(), None, &mut y, ids.active, width);
        }
        let ids = ids.clone();
        Ok(Tensor::from_op("embedding", &[self], y, layout, move |v| {
            Ok(vec![Some(v.d_output.scatter_add(&ids, vocab)?)])
        }))
    }

    /// Adds each row to all rows of a table of zeros that its bag names: the embedding backwards.
    ///
    /// # Shapes
    /// `self` `[rows, width]`, `ids` `[rows, active]`, result `[vocab, width]`.
    ///
    /// # Errors
    /// If there is not one bag for each row, or an id is not below `vocab`.
    pub fn scatter_add(&self, ids: &Ids, vocab: usize) -> Result<Tensor> {
        let fault = |why| Error::shape("scatter_add", self.shape(), &[ids.rows, ids.active], why);
        let &[rows, width] = self.shape() else { return Err(fault("two axes are wanted")) };
        if rows != ids.rows {
            return Err(fault("one bag for each row is wanted"));
        }
        ids.check("scatter_add", vocab)?;
        let layout = Layout::contiguous("scatter_add", &[vocab, width])?;
        let mut y = Buffer::zeros(layout.len());
        if !y.is_empty() {
            embedding_backward(ids.as_slice(), &self.compact(), &mut y, ids.active, width);
        }
        let ids = ids.clone();
        Ok(Tensor::from_op("scatter_add", &[self], y, layout, move |v| {
            Ok(vec![Some(v.d_output.embedding(&ids)?)])
        }))
    }

    /// Picks one number of each row: `y[r] = x[r][ids[r]]`, and 0 where there is no id.
    ///
    /// # Shapes
    /// `self` `[rows, cols]`, `ids` `[rows]`, result `[rows]`.
    ///
    /// # Errors
    /// If there is not one id for each row, or an id is not below `cols`.
    pub fn gather(&self, ids: &Ids) -> Result<Tensor> {
        let fault = |why| Error::shape("gather", self.shape(), &[ids.rows, ids.active], why);
        let &[rows, cols] = self.shape() else { return Err(fault("two axes are wanted")) };
        if ids.active != 1 || ids.rows != rows {
            return Err(fault("one id for each row is wanted"));
        }
        ids.check("gather", cols)?;
        if rows.checked_mul(cols).is_none_or(|n| n >= NO_ID as usize) {
            return Err(fault("too many elements to number"));
        }
        let number = |(r, id): (usize, &u32)| match *id {
            NO_ID => NO_ID,
            id => (r * cols) as u32 + id,
        };
        let flat = Ids::new(ids.as_slice().iter().enumerate().map(number).collect::<Arc<[u32]>>());
        self.reshape(&[rows * cols, 1])?.embedding(&flat)?.reshape(&[rows])
    }
}
