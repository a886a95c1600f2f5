//! Arrays that lie where those of the engine do: on a cache line, since a vector that straddles two lines
//! costs twice, and on huge pages if large.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use etude_kernels::pages::Pages;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Numbers that begin at a cache line.
pub struct Aligned<T> {
    room: Pages,
    len: usize,
    kind: PhantomData<T>,
}

impl<T: Pod> Aligned<T> {
    /// `len` times the same number.
    pub fn filled(value: T, len: usize) -> Aligned<T> {
        let room = Pages::lean((len * size_of::<T>()).div_ceil(LINE));
        let mut aligned = Aligned { room, len, kind: PhantomData };
        aligned.fill(value);
        aligned
    }

    /// A copy of some numbers.
    pub fn copy(numbers: &[T]) -> Aligned<T> {
        let mut aligned = Aligned::filled(T::zeroed(), numbers.len());
        aligned.copy_from_slice(numbers);
        aligned
    }
}

impl<T: Pod> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.room)[..self.len]
    }
}

impl<T: Pod> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.room)[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_begin_at_a_cache_line_and_keep_their_numbers() {
        for len in [0, 1, 17, 100_000] {
            let numbers: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let aligned = Aligned::copy(&numbers);
            assert_eq!(*aligned, *numbers);
            assert!(len == 0 || (aligned.as_ptr() as usize).is_multiple_of(LINE));
        }
    }
}
