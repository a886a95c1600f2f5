//! Sixteen lanes in plain Rust: the meaning of each operation, and every machine's floor.

use super::lanes::{Block, LANES, Lanes, Numbers};
use std::array::from_fn;

/// Sixteen f32 in an array.
#[derive(Clone, Copy)]
pub(crate) struct Scalar(Block);

/// `2^n` for `-126 <= n <= 127`.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) << 23) as u32)
}

impl Numbers for Scalar {
    type Ints = [i32; LANES];
    type Mask = [bool; LANES];

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Scalar([x; LANES])
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        Scalar(from_fn(|l| self.0[l] + b.0[l]))
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        Scalar(from_fn(|l| self.0[l] - b.0[l]))
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        Scalar(from_fn(|l| self.0[l] * b.0[l]))
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        Scalar(from_fn(|l| self.0[l] / b.0[l]))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Scalar(from_fn(|l| self.0[l].sqrt()))
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        Scalar(from_fn(|l| self.0[l].mul_add(b.0[l], c.0[l])))
    }
    #[inline(always)]
    fn neg_mul_add(self, b: Self, c: Self) -> Self {
        Scalar(from_fn(|l| (-self.0[l]).mul_add(b.0[l], c.0[l])))
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        Scalar(from_fn(|l| if self.0[l] > b.0[l] { self.0[l] } else { b.0[l] }))
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        Scalar(from_fn(|l| if self.0[l] < b.0[l] { self.0[l] } else { b.0[l] }))
    }
    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        // Two factors: 2^n itself overflows or is denormal at the ends. The first product is exact.
        Scalar(from_fn(|l| {
            let n = n.0[l] as i32;
            let half = n >> 1;
            self.0[l] * power_of_two(half) * power_of_two(n - half)
        }))
    }

    #[inline(always)]
    fn lt(self, b: Self) -> Self::Mask {
        from_fn(|l| self.0[l] < b.0[l])
    }
    #[inline(always)]
    fn gt(self, b: Self) -> Self::Mask {
        from_fn(|l| self.0[l] > b.0[l])
    }
    #[inline(always)]
    fn eq(self, b: Self) -> Self::Mask {
        from_fn(|l| self.0[l] == b.0[l])
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        Scalar(from_fn(|l| if mask[l] { yes.0[l] } else { no.0[l] }))
    }

    #[inline(always)]
    fn ints(x: i32) -> Self::Ints {
        [x; LANES]
    }
    #[inline(always)]
    fn bits(self) -> Self::Ints {
        from_fn(|l| self.0[l].to_bits() as i32)
    }
    #[inline(always)]
    fn from_bits(x: Self::Ints) -> Self {
        Scalar(from_fn(|l| f32::from_bits(x[l] as u32)))
    }
    #[inline(always)]
    fn and(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        from_fn(|l| a[l] & b[l])
    }
    #[inline(always)]
    fn or(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        from_fn(|l| a[l] | b[l])
    }
    #[inline(always)]
    fn xor(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        from_fn(|l| a[l] ^ b[l])
    }
    #[inline(always)]
    fn int_add(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        from_fn(|l| a[l].wrapping_add(b[l]))
    }
    #[inline(always)]
    fn int_sub(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        from_fn(|l| a[l].wrapping_sub(b[l]))
    }
    #[inline(always)]
    fn shift_left<const N: u32>(a: Self::Ints) -> Self::Ints {
        from_fn(|l| a[l] << N)
    }
    #[inline(always)]
    fn shift_right<const N: u32>(a: Self::Ints) -> Self::Ints {
        from_fn(|l| a[l] >> N)
    }
}

impl Lanes for Scalar {
    #[inline(always)]
    fn load(x: &Block) -> Self {
        Scalar(*x)
    }
    #[inline(always)]
    fn load_part(x: &[f32]) -> Self {
        let mut block = [0.0; LANES];
        block[..x.len()].copy_from_slice(x);
        Scalar(block)
    }
    #[inline(always)]
    fn store(self, y: &mut Block) {
        *y = self.0;
    }
    #[inline(always)]
    fn store_part(self, y: &mut [f32]) {
        y.copy_from_slice(&self.0[..y.len()]);
    }

    #[inline(always)]
    fn reduce_add(self) -> f32 {
        let mut x = self.0;
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                x[l] += x[l + half];
            }
        }
        x[0]
    }
    #[inline(always)]
    fn reduce_max(self) -> f32 {
        let mut x = self.0;
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                x[l] = if x[l] > x[l + half] { x[l] } else { x[l + half] };
            }
        }
        x[0]
    }
}
