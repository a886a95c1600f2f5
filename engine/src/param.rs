//! Parameters and the trait of everything that has some.

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// A tensor that training changes, under the name that it has in weight files.
#[derive(Debug, Clone)]
pub struct Param {
    /// The full name: `lstm.0.w_hh`.
    pub name: String,
    /// The value: a leaf of the graph.
    pub value: Tensor,
}

impl Param {
    /// Makes a parameter of a value.
    pub fn new(name: impl Into<String>, value: Tensor) -> Param {
        Param { name: name.into(), value: value.requires_grad() }
    }

    /// Replaces the value.
    ///
    /// # Errors
    /// If the shape would change.
    pub fn set(&mut self, value: &Tensor) -> Result<()> {
        if value.shape() != self.value.shape() {
            let why = format!("the shape of {} stays", self.name);
            return Err(Error::shape("set", self.value.shape(), value.shape(), why));
        }
        self.value = value.contiguous()?.requires_grad();
        Ok(())
    }

    /// Changes the numbers: in place when no other tensor shares them.
    pub fn update<R>(&mut self, f: impl FnOnce(&mut [f32]) -> R) -> R {
        self.value.update(f)
    }
}

/// Something with parameters: a layer, a model.
pub trait Module {
    /// Shows every parameter, always in the same order.
    fn visit(&self, f: &mut dyn FnMut(&Param));

    /// Lends every parameter, in the order of [`Module::visit`].
    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param));

    /// Counts the numbers in all parameters.
    fn parameter_count(&self) -> usize {
        let mut count = 0;
        self.visit(&mut |p| count += p.value.len());
        count
    }

    /// Makes sure that every parameter is finite.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for the first one that is not.
    fn check_finite(&self) -> Result<()> {
        let mut result = Ok(());
        self.visit(&mut |p| {
            if result.is_ok() {
                result = p.value.check_finite(&p.name);
            }
        });
        result
    }
}

impl Module for Param {
    fn visit(&self, f: &mut dyn FnMut(&Param)) {
        f(self);
    }
    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param)) {
        f(self);
    }
}

impl<M: Module> Module for Vec<M> {
    fn visit(&self, f: &mut dyn FnMut(&Param)) {
        self.iter().for_each(|m| m.visit(f));
    }
    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param)) {
        self.iter_mut().for_each(|m| m.visit_mut(f));
    }
}
