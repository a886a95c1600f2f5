//! Functions of one and two numbers, element by element; sums in a fixed tree.

use super::bypass::before_line;
use super::lanes::{Block, Body, LANES, Lanes, Numbers};
use super::three::{Three, threes, threes_mut};

/// A function of one number.
pub(crate) trait Map: Copy + Sync {
    /// Whether it is a long chain of steps, so that three at a time may be faster.
    const LONG: bool = false;

    fn apply<L: Lanes>(self, x: L) -> L;
    /// [`Map::apply`] to three, in turn if it is long.
    #[inline(always)]
    fn apply_three<L: Lanes>(self, x: Three<L>) -> Three<L> {
        Three([self.apply(x.0[0]), self.apply(x.0[1]), self.apply(x.0[2])])
    }
}

/// A function of two numbers.
pub(crate) trait Zip: Copy + Sync {
    /// As [`Map::LONG`].
    const LONG: bool = false;

    fn apply<L: Lanes>(self, a: L, b: L) -> L;
    /// As [`Map::apply_three`].
    #[inline(always)]
    fn apply_three<L: Lanes>(self, a: Three<L>, b: Three<L>) -> Three<L> {
        Three([self.apply(a.0[0], b.0[0]), self.apply(a.0[1], b.0[1]), self.apply(a.0[2], b.0[2])])
    }
}

/// Loads three blocks.
#[inline(always)]
pub(crate) fn load_three<L: Lanes>(x: &[Block; 3]) -> Three<L> {
    Three([L::load(&x[0]), L::load(&x[1]), L::load(&x[2])])
}

/// [`put`] for three blocks.
#[inline(always)]
pub(crate) fn put_three<L: Lanes, const PAST: bool>(value: Three<L>, y: &mut [Block; 3]) {
    put::<L, PAST>(value.0[0], &mut y[0]);
    put::<L, PAST>(value.0[1], &mut y[1]);
    put::<L, PAST>(value.0[2], &mut y[2]);
}

/// Stores a block, past the cache where `PAST`: it lies on a cache line then.
#[inline(always)]
pub(crate) fn put<L: Lanes, const PAST: bool>(value: L, y: &mut Block) {
    if PAST { value.stream(y) } else { value.store(y) }
}

/// `y = f(x)`.
pub(crate) struct MapBody<'a, F> {
    pub f: F,
    pub x: &'a [f32],
    pub y: &'a mut [f32],
    /// Whether the result goes past the cache.
    pub past: bool,
}

#[inline(always)]
fn map_blocks<L: Lanes, F: Map, const PAST: bool>(f: F, x: &[f32], y: &mut [f32]) {
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (y, y_tail) = y.as_chunks_mut::<LANES>();
    let (x_threes, x) = threes(L::IN_TURN && F::LONG, x);
    let (y_threes, y) = threes_mut(L::IN_TURN && F::LONG, y);
    for (x, y) in x_threes.iter().zip(y_threes) {
        put_three::<L, PAST>(f.apply_three(load_three(x)), y);
    }
    for (x, y) in x.iter().zip(y) {
        put::<L, PAST>(f.apply(L::load(x)), y);
    }
    if !x_tail.is_empty() {
        f.apply(L::load_part(x_tail)).store_part(y_tail);
    }
}

/// [`MapBody`] for one row, to be inlined into bodies over many.
#[inline(always)]
pub(crate) fn map_row<L: Lanes, F: Map>(f: F, x: &[f32], y: &mut [f32]) {
    map_blocks::<L, F, false>(f, x, y);
}

/// [`map_row`], past the cache if `past`.
#[inline(always)]
pub(crate) fn map_out<L: Lanes, F: Map>(past: bool, f: F, x: &[f32], y: &mut [f32]) {
    if !past {
        return map_row::<L, F>(f, x, y);
    }
    let head = before_line(y);
    map_row::<L, F>(f, &x[..head], &mut y[..head]);
    map_blocks::<L, F, true>(f, &x[head..], &mut y[head..]);
}

impl<F: Map> Body for MapBody<'_, F> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        map_out::<L, F>(self.past, self.f, self.x, self.y);
    }
}

/// `y = f(a, b)`.
pub(crate) struct ZipBody<'a, F> {
    pub f: F,
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub y: &'a mut [f32],
    pub past: bool,
}

#[inline(always)]
fn zip_blocks<L: Lanes, F: Zip, const PAST: bool>(f: F, a: &[f32], b: &[f32], y: &mut [f32]) {
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    let (y, y_tail) = y.as_chunks_mut::<LANES>();
    let (a_threes, a) = threes(L::IN_TURN && F::LONG, a);
    let (b_threes, b) = threes(L::IN_TURN && F::LONG, b);
    let (y_threes, y) = threes_mut(L::IN_TURN && F::LONG, y);
    for ((a, b), y) in a_threes.iter().zip(b_threes).zip(y_threes) {
        put_three::<L, PAST>(f.apply_three(load_three(a), load_three(b)), y);
    }
    for ((a, b), y) in a.iter().zip(b).zip(y) {
        put::<L, PAST>(f.apply(L::load(a), L::load(b)), y);
    }
    if !a_tail.is_empty() {
        f.apply(L::load_part(a_tail), L::load_part(b_tail)).store_part(y_tail);
    }
}

/// [`ZipBody`] for one row, to be inlined into bodies over many.
#[inline(always)]
pub(crate) fn zip_row<L: Lanes, F: Zip>(f: F, a: &[f32], b: &[f32], y: &mut [f32]) {
    zip_blocks::<L, F, false>(f, a, b, y);
}

/// [`zip_row`], past the cache if `past`.
#[inline(always)]
pub(crate) fn zip_out<L: Lanes, F: Zip>(past: bool, f: F, a: &[f32], b: &[f32], y: &mut [f32]) {
    if !past {
        return zip_row::<L, F>(f, a, b, y);
    }
    let head = before_line(y);
    zip_row::<L, F>(f, &a[..head], &b[..head], &mut y[..head]);
    zip_blocks::<L, F, true>(f, &a[head..], &b[head..], &mut y[head..]);
}

impl<F: Zip> Body for ZipBody<'_, F> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        zip_out::<L, F>(self.past, self.f, self.a, self.b, self.y);
    }
}

/// `y = f(a, b)` with the same row `b` for each row of `a`.
pub(crate) struct ZipRowsBody<'a, F> {
    pub f: F,
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub y: &'a mut [f32],
    pub past: bool,
}

impl<F: Zip> Body for ZipRowsBody<'_, F> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let cols = self.b.len();
        for (a, y) in self.a.chunks_exact(cols).zip(self.y.chunks_exact_mut(cols)) {
            zip_out::<L, F>(self.past, self.f, a, self.b, y);
        }
    }
}

/// `y = f(x, y)`.
pub(crate) struct UpdateBody<'a, F> {
    pub f: F,
    pub x: &'a [f32],
    pub y: &'a mut [f32],
}

/// [`UpdateBody`] for one row, to be inlined into bodies over many.
#[inline(always)]
pub(crate) fn update_row<L: Lanes, F: Zip>(f: F, x: &[f32], y: &mut [f32]) {
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (y, y_tail) = y.as_chunks_mut::<LANES>();
    for (x, y) in x.iter().zip(y) {
        f.apply(L::load(x), L::load(y)).store(y);
    }
    if !x_tail.is_empty() {
        f.apply(L::load_part(x_tail), L::load_part(y_tail)).store_part(y_tail);
    }
}

impl<F: Zip> Body for UpdateBody<'_, F> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        update_row::<L, F>(self.f, self.x, self.y);
    }
}

/// The number of each lane.
const PLACES: Block =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// The sum of `f(x)`.
pub(crate) struct SumBody<'a, F> {
    pub f: F,
    pub x: &'a [f32],
}

/// [`SumBody`] for one row: block `4 q + p` goes to partial sum `p`, `(0 + 1) + (2 + 3)` at the end.
#[inline(always)]
pub(crate) fn sum_row<L: Lanes, F: Map>(f: F, x: &[f32]) -> f32 {
    let (x, tail) = x.as_chunks::<LANES>();
    let (fours, rest) = x.as_chunks::<4>();
    let mut sums = [L::zero(); 4];
    for four in fours {
        for p in 0..4 {
            sums[p] = sums[p].add(f.apply(L::load(&four[p])));
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum = sum.add(f.apply(L::load(x)));
    }
    if !tail.is_empty() {
        // Lanes past the end count as 0 whatever `f` makes of them.
        let inside = L::load(&PLACES).lt(L::splat(tail.len() as f32));
        let last = L::select(inside, f.apply(L::load_part(tail)), L::zero());
        sums[3] = sums[3].add(last);
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).reduce_add()
}

impl<F: Map> Body for SumBody<'_, F> {
    type Out = f32;
    #[inline(always)]
    fn run<L: Lanes>(self) -> f32 {
        sum_row::<L, F>(self.f, self.x)
    }
}

/// `y[r]` = the sum of row `r`.
pub(crate) struct SumRowsBody<'a> {
    pub x: &'a [f32],
    pub y: &'a mut [f32],
    pub cols: usize,
}

impl Body for SumRowsBody<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (x, y) in self.x.chunks_exact(self.cols).zip(self.y) {
            *y = sum_row::<L, Same>(Same, x);
        }
    }
}

/// `((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))`
#[inline(always)]
fn sum_of_eight<L: Lanes>(x: [L; 8]) -> L {
    let low = x[0].add(x[1]).add(x[2].add(x[3]));
    low.add(x[4].add(x[5]).add(x[6].add(x[7])))
}

/// Adds each column's sum to `y`: eight rows at a time, a tree over them, then the rest one by one.
pub(crate) struct SumColsBody<'a> {
    pub x: &'a [f32],
    pub y: &'a mut [f32],
}

impl Body for SumColsBody<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let cols = self.y.len();
        let eights = self.x.chunks_exact(8 * cols);
        let rest = eights.remainder();
        for eight in eights {
            let whole = cols / LANES * LANES;
            for at in (0..whole).step_by(LANES) {
                let x: [L; 8] = std::array::from_fn(|r| {
                    let at = r * cols + at;
                    L::load(eight[at..at + LANES].as_array().unwrap_or(&[0.0; LANES]))
                });
                let sum = sum_of_eight(x);
                if let Some(y) = self.y[at..at + LANES].as_mut_array::<LANES>() {
                    L::load(y).add(sum).store(y);
                }
            }
            if whole < cols {
                let x: [L; 8] =
                    std::array::from_fn(|r| L::load_part(&eight[r * cols + whole..(r + 1) * cols]));
                let sum = sum_of_eight(x);
                let y = &mut self.y[whole..];
                L::load_part(y).add(sum).store_part(y);
            }
        }
        for row in rest.chunks_exact(cols) {
            update_row::<L, Add>(Add, row, self.y);
        }
    }
}

/// Defines functions of one or two numbers.
macro_rules! functions {
    ($kind:ident: $($(#[$doc:meta])* $name:ident($($arg:ident),+) = $value:expr;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name;
        impl $kind for $name {
            #[inline(always)]
            fn apply<L: Lanes>(self, $($arg: L),+) -> L {
                $value
            }
        }
    )+};
}

/// Defines functions of [`math`](super::math).
macro_rules! long_functions {
    ($($name:ident = $f:ident;)+) => {$(
        #[derive(Clone, Copy)]
        pub(crate) struct $name;
        impl Map for $name {
            const LONG: bool = true;
            #[inline(always)]
            fn apply<L: Lanes>(self, x: L) -> L {
                super::math::$f(x)
            }
            #[inline(always)]
            fn apply_three<L: Lanes>(self, x: Three<L>) -> Three<L> {
                super::math::$f(x)
            }
        }
    )+};
}

long_functions! {
    Exp = exp;
    Log = log;
    Tanh = tanh;
    Sigmoid = sigmoid;
    Gelu = gelu;
    GeluTanh = gelu_tanh;
    Silu = silu;
    Softplus = softplus;
    Erf = erf;
}

functions! { Map:
    Same(x) = x;
    Square(x) = x.mul(x);
    Cube(x) = x.mul(x).mul(x);
    Neg(x) = x.neg();
    Sqrt(x) = x.sqrt();
    Recip(x) = L::splat(1.0).div(x);
    /// The order of operands keeps NaN.
    Relu(x) = L::zero().max(x);
    Step(x) = L::select(x.gt(L::zero()), L::splat(1.0), L::zero());
    Sin(x) = super::math::sin(x);
    Cos(x) = super::math::cos(x);
    Abs(x) = x.abs();
}

functions! { Zip:
    Add(a, b) = a.add(b);
    Sub(a, b) = a.sub(b);
    Mul(a, b) = a.mul(b);
    Div(a, b) = a.div(b);
    /// NaN where either is NaN.
    Max(a, b) = L::select(a.eq(a), a.max(b), a);
    /// NaN where either is NaN.
    Min(a, b) = L::select(a.eq(a), a.min(b), a);
}

/// `x` where positive, else `slope * x`.
#[derive(Clone, Copy)]
pub(crate) struct LeakyRelu(pub f32);

impl Map for LeakyRelu {
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L) -> L {
        L::select(x.gt(L::zero()), x, x.mul(L::splat(self.0)))
    }
}

/// `x` where positive, else `.0 * (e^x - 1)`.
#[derive(Clone, Copy)]
pub(crate) struct Elu(pub f32);

#[inline(always)]
fn elu<L: Numbers>(alpha: f32, x: L) -> L {
    let below = super::math::exp_less_one(L::zero().min(x)).mul(L::splat(alpha));
    L::select(x.gt(L::zero()), x, below)
}

impl Map for Elu {
    const LONG: bool = true;
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L) -> L {
        elu(self.0, x)
    }
    #[inline(always)]
    fn apply_three<L: Lanes>(self, x: Three<L>) -> Three<L> {
        elu(self.0, x)
    }
}

/// `scale * x + shift`, rounded once.
#[derive(Clone, Copy)]
pub(crate) struct Affine(pub f32, pub f32);

impl Map for Affine {
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L) -> L {
        x.mul_add(L::splat(self.0), L::splat(self.1))
    }
}

/// `x^p` by way of f64, one lane after the other: every special case of the standard, half an ulp.
#[derive(Clone, Copy)]
pub(crate) struct Pow(pub f32);

impl Map for Pow {
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L) -> L {
        let mut y = [0.0; LANES];
        x.store(&mut y);
        y.iter_mut().for_each(|y| *y = f64::from(*y).powf(f64::from(self.0)) as f32);
        L::load(&y)
    }
}

/// A function of two numbers with one of them given.
#[derive(Clone, Copy)]
pub(crate) struct With<F>(pub F, pub f32);

impl<F: Zip> Map for With<F> {
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L) -> L {
        self.0.apply(x, L::splat(self.1))
    }
}

/// `scale * a + b`, rounded once.
#[derive(Clone, Copy)]
pub(crate) struct Axpy(pub f32);

impl Zip for Axpy {
    #[inline(always)]
    fn apply<L: Lanes>(self, a: L, b: L) -> L {
        a.mul_add(L::splat(self.0), b)
    }
}
