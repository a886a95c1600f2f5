//! In which numbers matrix products are made.
//!
//! A training step may multiply in bf16 while everything else stays f32: weights, activations, sums,
//! gradients, moments. Operands are rounded to bf16 on their way into a product, and the product's
//! sums are f32: an operation on this thread asks [`products`] when it runs forwards and makes the
//! products of its backward in the same numbers. Linear and recurrent layers do; derivatives of
//! gradients, and operations that name no precision, are f32.

use std::cell::Cell;

use etude_kernels::gemm::{MatMut, MatRef, gemm_forward, gemm_packed_forward};
use etude_kernels::gemm_bf16::{PackedBf16, gemm_bf16_f32_forward, gemm_bf16_packed_forward};
use etude_kernels::recurrent::Weight;

use crate::memory::{Packed, Pooled};

/// The numbers of a product's operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Products {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bf16, to nearest even: twice as many products a second where the CPU has them.
    Bf16,
}

thread_local! {
    static CURRENT: Cell<Products> = const { Cell::new(Products::F32) };
}

/// The numbers in which operations on this thread multiply.
pub fn products() -> Products {
    CURRENT.get()
}

/// Restores what was before when dropped.
#[must_use = "the setting is restored as soon as this is dropped"]
pub struct Setting {
    before: Products,
}

impl Drop for Setting {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

/// Sets the numbers in which operations on this thread multiply until the guard is dropped.
pub fn set_products(products: Products) -> Setting {
    Setting { before: CURRENT.replace(products) }
}

impl Products {
    /// Computes `C = A B (+ C)`.
    pub(crate) fn gemm(self, a: MatRef, b: MatRef, c: &mut MatMut, accumulate: bool) {
        match self {
            Products::F32 => gemm_forward(a, b, c, accumulate),
            Products::Bf16 => gemm_bf16_f32_forward(a, b, c, accumulate),
        }
    }

    /// Packs a weight `[k, n]` that serves several products.
    pub(crate) fn pack(self, b: MatRef) -> PackedWeight {
        match self {
            Products::F32 => PackedWeight::F32(Packed::new(b)),
            Products::Bf16 => PackedWeight::Bf16(Pooled::new(b)),
        }
    }
}

/// A weight packed in the numbers in which it is multiplied.
pub(crate) enum PackedWeight {
    F32(Packed),
    Bf16(Pooled<PackedBf16>),
}

impl PackedWeight {
    /// Computes `C = A W (+ bias)`.
    pub fn apply(&self, a: MatRef, bias: Option<&[f32]>, c: &mut MatMut) {
        match self {
            PackedWeight::F32(w) => gemm_packed_forward(a, w, bias, c, false),
            PackedWeight::Bf16(w) => gemm_bf16_packed_forward(a, w, bias, c, false),
        }
    }
}

impl<'a> From<&'a PackedWeight> for Weight<'a> {
    fn from(w: &'a PackedWeight) -> Self {
        match w {
            PackedWeight::F32(w) => Weight::F32(w),
            PackedWeight::Bf16(w) => Weight::Bf16(w),
        }
    }
}
