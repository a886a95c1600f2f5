//! Three times sixteen lanes, step by step in turn.
//!
//! A polynomial is a chain: each multiply-add waits four cycles for the one before it, and two of
//! them could begin in every cycle. Three [`Lanes`] in turn keep the units of AVX2 busy (six chains;
//! with eight, registers run out): GELU takes half the time. The bits are those of one at a time.

use super::lanes::{Block, Lanes, Numbers};

/// Three [`Lanes`].
#[derive(Clone, Copy)]
pub(crate) struct Three<L>(pub [L; 3]);

/// Splits blocks into threes, where they are wanted ([`Lanes::IN_TURN`] for a long function), and the
/// others.
#[inline(always)]
pub(crate) fn threes(wanted: bool, x: &[Block]) -> (&[[Block; 3]], &[Block]) {
    if wanted { x.as_chunks() } else { (&[], x) }
}

/// [`threes`] that are written.
#[inline(always)]
pub(crate) fn threes_mut(wanted: bool, x: &mut [Block]) -> (&mut [[Block; 3]], &mut [Block]) {
    if wanted { x.as_chunks_mut() } else { (&mut [], x) }
}

/// Defines methods that do the same to each of the three.
macro_rules! each {
    ($($name:ident($($arg:ident),*);)+) => {$(
        #[inline(always)]
        fn $name(self $(, $arg: Self)*) -> Self {
            Three([
                self.0[0].$name($($arg.0[0]),*),
                self.0[1].$name($($arg.0[1]),*),
                self.0[2].$name($($arg.0[2]),*),
            ])
        }
    )+};
}

macro_rules! each_mask {
    ($($name:ident)+) => {$(
        #[inline(always)]
        fn $name(self, b: Self) -> Self::Mask {
            [self.0[0].$name(b.0[0]), self.0[1].$name(b.0[1]), self.0[2].$name(b.0[2])]
        }
    )+};
}

macro_rules! each_ints {
    ($($name:ident)+) => {$(
        #[inline(always)]
        fn $name(a: Self::Ints, b: Self::Ints) -> Self::Ints {
            [L::$name(a[0], b[0]), L::$name(a[1], b[1]), L::$name(a[2], b[2])]
        }
    )+};
}

impl<L: Lanes> Numbers for Three<L> {
    type Ints = [L::Ints; 3];
    type Mask = [L::Mask; 3];

    each! {
        add(b);
        sub(b);
        mul(b);
        div(b);
        sqrt();
        mul_add(b, c);
        neg_mul_add(b, c);
        max(b);
        min(b);
        scale(n);
    }
    each_mask!(lt gt eq);
    each_ints!(and or xor int_add int_sub);

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Three([L::splat(x); 3])
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        Three([
            L::select(mask[0], yes.0[0], no.0[0]),
            L::select(mask[1], yes.0[1], no.0[1]),
            L::select(mask[2], yes.0[2], no.0[2]),
        ])
    }
    #[inline(always)]
    fn ints(x: i32) -> Self::Ints {
        [L::ints(x); 3]
    }
    #[inline(always)]
    fn bits(self) -> Self::Ints {
        [self.0[0].bits(), self.0[1].bits(), self.0[2].bits()]
    }
    #[inline(always)]
    fn from_bits(x: Self::Ints) -> Self {
        Three([L::from_bits(x[0]), L::from_bits(x[1]), L::from_bits(x[2])])
    }
    #[inline(always)]
    fn shift_left<const N: u32>(a: Self::Ints) -> Self::Ints {
        [L::shift_left::<N>(a[0]), L::shift_left::<N>(a[1]), L::shift_left::<N>(a[2])]
    }
    #[inline(always)]
    fn shift_right<const N: u32>(a: Self::Ints) -> Self::Ints {
        [L::shift_right::<N>(a[0]), L::shift_right::<N>(a[1]), L::shift_right::<N>(a[2])]
    }
    #[inline(always)]
    fn meet(self) -> Self {
        Three(L::meet_three(self.0))
    }
}
