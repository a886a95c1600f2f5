//! The table of operations: the one place that says how each is called, on which shapes, and what it
//! means in f64.
//!
//! From it come the gradient checks, the parity of the instruction-set tiers and the shapes of the
//! timings. A new operation adds one entry.

use etude_engine::{NO_ID, Result, Rng, Tensor};

use crate::array::Array;

mod case_attended;
mod case_attention;
mod case_conv;
mod case_elementwise;
mod case_norm;
mod case_recurrent;
mod case_rows;
mod case_shapes;

/// Shapes of the inputs of one call.
pub type Shapes = Vec<Vec<usize>>;
type Forward = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;
type Reference = Box<dyn Fn(&[Array]) -> Array>;

/// Where the inputs are drawn from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Domain {
    /// `[-1.5, 1.5]`
    Any,
    /// `[0.5, 2]`: logarithms, roots, divisors.
    Positive,
    /// `0.1` to `1.5` away from 0 on both sides: functions with a kink there.
    NoZero,
    /// Inputs whose elements differ by at least 0.1 from those of every other input.
    Distinct,
    /// `[-1.5, 1.5] / sqrt(last size)`: recurrent weights that forget. With larger ones a sequence is
    /// chaotic and doubles every rounding from step to step.
    Fading,
}

/// One operation.
#[allow(dead_code)] // each test program reads the fields that it needs
pub struct Case {
    pub name: &'static str,
    pub domain: Domain,
    /// Small shapes for gradient checks: empty, one, odd, broadcast.
    pub shapes: Vec<Shapes>,
    /// A shape of real size: odd for parity, and what a bench times.
    pub large: Shapes,
    pub forward: Forward,
    /// The same of small operations, for fused ones.
    pub twin: Option<Forward>,
    pub reference: Reference,
}

impl Case {
    /// Draws inputs of these shapes; the same shapes give the same numbers.
    pub fn draw(&self, shapes: &Shapes) -> Vec<(Vec<usize>, Vec<f32>)> {
        let mut rng = Rng::stream(17, shapes.iter().flatten().sum::<usize>() as u32);
        let mut inputs = Vec::new();
        for (nth, shape) in shapes.iter().enumerate() {
            let mut x = vec![0.0; shape.iter().product()];
            rng.fill_uniform(&mut x, -1.5, 1.5);
            for x in &mut x {
                *x = match self.domain {
                    Domain::Any => *x,
                    Domain::Fading => *x / (shape.last().copied().unwrap_or(1) as f32).sqrt(),
                    Domain::Positive => 1.25 + *x * 0.5,
                    Domain::NoZero => x.signum() * (0.1 + x.abs() * (1.4 / 1.5)),
                    // Steps of 0.25 with offsets of 0.125 for every second input.
                    Domain::Distinct => (*x * 4.0).round() * 0.25 + (nth % 2) as f32 * 0.125,
                };
            }
            inputs.push((shape.clone(), x));
        }
        inputs
    }
}

fn case(
    name: &'static str,
    domain: Domain,
    (shapes, large): (Vec<Shapes>, Shapes),
    forward: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
    reference: impl Fn(&[Array]) -> Array + 'static,
) -> Case {
    let (forward, reference) = (Box::new(forward), Box::new(reference));
    Case { name, domain, shapes, large, forward, twin: None, reference }
}

impl Case {
    fn twin(mut self, twin: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> Case {
        self.twin = Some(Box::new(twin));
        self
    }
}

/// Shapes for functions of one tensor.
fn one() -> (Vec<Shapes>, Shapes) {
    let shapes: [&[usize]; 10] =
        [&[], &[0], &[1], &[7], &[16], &[17], &[3, 5], &[2, 0, 3], &[2, 3, 4], &[1, 33]];
    (shapes.iter().map(|s| vec![s.to_vec()]).collect(), vec![vec![129, 517]])
}

/// Shapes for functions of two tensors that broadcast.
fn two() -> (Vec<Shapes>, Shapes) {
    let pairs: [[&[usize]; 2]; 13] = [
        [&[], &[]],
        [&[0], &[1]],
        [&[1], &[1]],
        [&[17], &[17]],
        [&[3, 5], &[5]],
        [&[3, 5], &[3, 1]],
        [&[5], &[3, 5]],
        [&[3, 1], &[1, 5]],
        [&[2, 3, 4], &[]],
        [&[], &[7]],
        [&[2, 1, 4], &[3, 1]],
        [&[2, 0, 3], &[2, 1, 3]],
        [&[1, 3, 2, 2], &[2, 1, 2, 1]],
    ];
    let shapes = pairs.iter().map(|p| p.iter().map(|s| s.to_vec()).collect()).collect();
    (shapes, vec![vec![129, 517], vec![517]])
}

/// Shapes given one by one.
fn given(shapes: &[&[&[usize]]], large: &[&[usize]]) -> (Vec<Shapes>, Shapes) {
    let owned = |s: &[&[usize]]| s.iter().map(|s| s.to_vec()).collect::<Shapes>();
    (shapes.iter().map(|s| owned(s)).collect(), owned(large))
}

/// Shapes with at least one axis, with two of them, with three.
fn matrices() -> (Vec<Shapes>, Shapes) {
    let shapes: [&[usize]; 9] =
        [&[1, 1], &[0, 3], &[3, 0], &[3, 5], &[7, 1], &[1, 17], &[4, 16], &[5, 33], &[2, 2]];
    (shapes.iter().map(|s| vec![s.to_vec()]).collect(), vec![vec![65, 131]])
}

fn boxes() -> (Vec<Shapes>, Shapes) {
    let shapes: [&[usize]; 8] = [
        &[1, 1, 1],
        &[2, 3, 4],
        &[0, 2, 3],
        &[2, 0, 3],
        &[3, 2, 1],
        &[1, 5, 7],
        &[4, 1, 3],
        &[3, 3, 3],
    ];
    (shapes.iter().map(|s| vec![s.to_vec()]).collect(), vec![vec![7, 33, 65]])
}

/// Bags of ids over `vocab` rows, some slots empty; the engine's form and the reference's.
fn bags(rows: usize, active: usize, vocab: usize) -> (Vec<u32>, Vec<Vec<Option<usize>>>) {
    let id = |i: usize| if vocab == 0 || i % 5 == 3 { None } else { Some((i * 7 + 2) % vocab) };
    let ids: Vec<Option<usize>> = (0..rows * active).map(id).collect();
    let flat = ids.iter().map(|id| id.map_or(NO_ID, |id| id as u32)).collect();
    (flat, ids.chunks(active).map(<[_]>::to_vec).collect())
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn last(rank: usize) -> usize {
    rank - 1
}

/// All operations.
pub fn cases() -> Vec<Case> {
    let families = [
        case_elementwise::cases,
        case_shapes::cases,
        case_rows::cases,
        case_norm::cases,
        case_recurrent::cases,
        case_attended::cases,
        case_conv::cases,
        case_attention::cases,
    ];
    families.into_iter().flat_map(|family| family()).collect()
}
