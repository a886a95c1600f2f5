//! Arrays that begin at a cache line, as those of the engine and of PyTorch do: a vector that straddles
//! two lines costs twice, and large allocations of the system begin 16 bytes after a page.

use std::ops::{Deref, DerefMut};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Numbers that begin at a cache line.
pub struct Aligned<T> {
    room: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy> Aligned<T> {
    /// `len` times the same number.
    pub fn filled(value: T, len: usize) -> Aligned<T> {
        let spare = LINE / size_of::<T>().max(1);
        let room = vec![value; len + spare];
        // At most a line: the allocation is aligned to the numbers themselves.
        let start = room.as_ptr().align_offset(LINE).min(spare);
        Aligned { room, start, len }
    }

    /// A copy of some numbers.
    pub fn copy(numbers: &[T]) -> Aligned<T> {
        let Some(first) = numbers.first() else {
            return Aligned { room: Vec::new(), start: 0, len: 0 };
        };
        let mut aligned = Aligned::filled(*first, numbers.len());
        aligned.copy_from_slice(numbers);
        aligned
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.room[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.room[self.start..self.start + self.len]
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
