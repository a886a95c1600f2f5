//! Every operation of the case table: its value, its gradient and the gradient of its gradient,
//! against f64 references and their central differences; fused forms against their plain twins; and
//! wrong gradients, planted on purpose, which must be found.

#[path = "support/array.rs"]
mod array;
#[path = "support/cases.rs"]
mod cases;

use std::slice::from_ref;

use array::Array;
use cases::{Case, Shapes, cases};
use etude_engine::{Graph, Result, Tensor, grad};

/// PyTorch's tolerances for gradients. Ours are f32: at most about 100 roundings of terms of size 1
/// to 10 give 100 * 6e-8 * 2 = 1e-5; a wrong factor in a derivative is off by far more than 1e-3.
const ATOL: f64 = 1e-5;
const RTOL: f64 = 1e-3;
/// Values, by the same count of roundings, have no cancelled terms: relative to themselves.
const VALUE_RTOL: f64 = 1e-5;
/// The step of central differences in f64: truncation 1e-12, rounding 1e-16 / 1e-6 = 1e-10.
const STEP: f64 = 1e-6;
/// The step of mixed second differences: truncation 1e-8, rounding 4e-16 / 1e-8 = 4e-8.
const SECOND_STEP: f64 = 1e-4;

/// How the inputs lie in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
enum View {
    Plain,
    /// Axes stored in reverse order.
    Transposed,
    /// Cut out of something larger.
    Sliced,
    /// The first row repeated without a copy.
    Expanded,
}

const VIEWS: [View; 4] = [View::Plain, View::Transposed, View::Sliced, View::Expanded];

/// Lays an input out; all forms but [`View::Expanded`] hold the same values.
fn lay_out(view: View, shape: &[usize], values: &[f32]) -> Result<Tensor> {
    let rank = shape.len();
    let plain = Tensor::from_slice(values, shape)?;
    let reverse: Vec<usize> = (0..rank).rev().collect();
    match view {
        _ if rank == 0 => Ok(plain.requires_grad()),
        View::Plain => Ok(plain.requires_grad()),
        View::Transposed => {
            plain.permute(&reverse)?.contiguous()?.requires_grad().permute(&reverse)
        }
        View::Sliced => {
            let wide = plain.pad(rank - 1, 1, 2)?.pad(0, 2, 1)?.requires_grad();
            let rows = wide.shape()[0];
            wide.slice(0, 2..rows - 1)?.slice(rank - 1, 1..1 + shape[rank - 1])
        }
        View::Expanded if shape[0] == 0 => Ok(plain.requires_grad()),
        View::Expanded => plain.slice(0, 0..1)?.contiguous()?.requires_grad().expand(shape),
    }
}

/// One operation on one set of inputs.
struct Setup {
    inputs: Vec<Tensor>,
    arrays: Vec<Array>,
    /// Weights of the sum of the outputs, so that each output has a gradient of its own.
    weights: Vec<f64>,
}

impl Setup {
    fn new(case: &Case, shapes: &Shapes, view: View) -> Result<Setup> {
        let drawn = case.draw(shapes);
        let inputs: Vec<Tensor> =
            drawn.iter().map(|(shape, x)| lay_out(view, shape, x)).collect::<Result<_>>()?;
        let to_array =
            |t: &Tensor| Array::new(t.shape(), t.values().iter().map(|x| f64::from(*x)).collect());
        let arrays: Vec<Array> = inputs.iter().map(to_array).collect();
        let outputs = (case.reference)(&arrays).data.len();
        // Exact in f32, of both signs, none 0.
        let weight = |i: usize| ((i * 37 % 16) as f64 - 7.5) / 8.0;
        Ok(Setup { inputs, arrays, weights: (0..outputs).map(weight).collect() })
    }

    /// `sum(weights * f(inputs))` in f64, with one number of one input moved.
    fn loss(&self, case: &Case, moved: &[Array]) -> f64 {
        let y = (case.reference)(moved);
        y.data.iter().zip(&self.weights).map(|(y, w)| y * w).sum()
    }

    /// `sum(weights * y)` as a tensor.
    fn weigh(&self, y: &Tensor) -> Result<Tensor> {
        let w: Vec<f32> = self.weights.iter().map(|w| *w as f32).collect();
        y.mul(&Tensor::from_slice(&w, y.shape())?)?.sum_all()
    }

    /// The gradient of the loss by central differences.
    fn gradient(&self, case: &Case) -> Vec<Vec<f64>> {
        self.each_element(|arrays, nth, at| {
            let x = arrays[nth].data[at];
            arrays[nth].data[at] = x + STEP;
            let above = self.loss(case, arrays);
            arrays[nth].data[at] = x - STEP;
            let below = self.loss(case, arrays);
            arrays[nth].data[at] = x;
            (above - below) / (2.0 * STEP)
        })
    }

    /// The gradient of `sum(direction * gradient)` by mixed differences.
    fn second(&self, case: &Case, direction: &[Vec<f64>]) -> Vec<Vec<f64>> {
        self.each_element(|arrays, nth, at| {
            let mut sum = 0.0;
            for (a, b) in [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)] {
                let mut moved = arrays.to_vec();
                moved[nth].data[at] += a * SECOND_STEP;
                for (array, d) in moved.iter_mut().zip(direction) {
                    array.data.iter_mut().zip(d).for_each(|(x, d)| *x += b * SECOND_STEP * d);
                }
                sum += a * b * self.loss(case, &moved);
            }
            sum / (4.0 * SECOND_STEP * SECOND_STEP)
        })
    }

    fn each_element(&self, mut f: impl FnMut(&mut [Array], usize, usize) -> f64) -> Vec<Vec<f64>> {
        let mut arrays = self.arrays.clone();
        let lengths: Vec<usize> = arrays.iter().map(|a| a.data.len()).collect();
        let each = lengths.iter().enumerate();
        each.map(|(nth, len)| (0..*len).map(|at| f(&mut arrays, nth, at)).collect()).collect()
    }

    /// The direction of second derivatives, exact in f32.
    fn direction(&self) -> Vec<Vec<f64>> {
        let number = |(nth, a): (usize, &Array)| {
            (0..a.data.len()).map(|i| (((i + 3 * nth) * 11 % 8) as f64 - 3.5) / 4.0).collect()
        };
        self.arrays.iter().enumerate().map(number).collect()
    }

    /// `sum(direction * gradients)` as a tensor that can be differentiated again.
    fn project(&self, gradients: &[Tensor]) -> Result<Tensor> {
        let mut sum = Tensor::scalar(0.0);
        for (g, d) in gradients.iter().zip(self.direction()) {
            let d: Vec<f32> = d.iter().map(|d| *d as f32).collect();
            sum = sum.add(&g.mul(&Tensor::from_slice(&d, g.shape())?)?.sum_all()?)?;
        }
        Ok(sum)
    }
}

/// Compares tensors with what they should be; the error names the first element that is off.
fn compare(
    what: &str,
    got: &[Tensor],
    want: &[Vec<f64>],
    rtol: f64,
) -> std::result::Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{what}: {} tensors instead of {}", got.len(), want.len()));
    }
    for (nth, (got, want)) in got.iter().zip(want).enumerate() {
        let values = got.values();
        if values.len() != want.len() {
            return Err(format!("{what}: {} values instead of {}", values.len(), want.len()));
        }
        for (at, (got, want)) in values.iter().zip(want).enumerate() {
            let got = f64::from(*got);
            let near = (got - want).abs() <= ATOL + rtol * want.abs();
            // NaN on either side is near nothing.
            if !near {
                return Err(format!("{what}: number {at} of tensor {nth} is {got}, not {want}"));
            }
        }
    }
    Ok(())
}

fn references(inputs: &[Tensor]) -> Vec<&Tensor> {
    inputs.iter().collect()
}

/// Runs `check` on every case, shape and view; collects all that fails.
fn on_all(
    views: &[View],
    check: impl Fn(&Case, &Setup) -> Result<std::result::Result<(), String>>,
) -> usize {
    let (mut runs, mut faults) = (0, Vec::new());
    for case in cases() {
        assert!(case.shapes.len() >= 8, "{}: at least 8 shapes", case.name);
        for shapes in &case.shapes {
            for view in views {
                let at = format!("{} {shapes:?} {view:?}", case.name);
                let result =
                    Setup::new(&case, shapes, *view).and_then(|setup| check(&case, &setup));
                runs += 1;
                match result {
                    Ok(Ok(())) => {}
                    Ok(Err(fault)) => faults.push(format!("{at}: {fault}")),
                    Err(error) => faults.push(format!("{at}: {error}")),
                }
            }
        }
    }
    assert!(faults.is_empty(), "{} of {runs}:\n{}", faults.len(), faults.join("\n"));
    runs
}

#[test]
fn values_equal_their_f64_references() {
    let runs = on_all(&VIEWS, |case, setup| {
        let y = (case.forward)(&setup.inputs)?;
        let want = (case.reference)(&setup.arrays);
        if y.shape() != want.shape {
            return Ok(Err(format!("shape {:?}, not {:?}", y.shape(), want.shape)));
        }
        Ok(compare("value", &[y], &[want.data], VALUE_RTOL))
    });
    println!("{runs} values of {} operations", cases().len());
}

#[test]
fn gradients_equal_central_differences() {
    let runs = on_all(&VIEWS, |case, setup| {
        let want = setup.gradient(case);
        for graph in [Graph::Drop, Graph::Keep] {
            let loss = setup.weigh(&(case.forward)(&setup.inputs)?)?;
            let got = grad(&loss, &references(&setup.inputs), graph)?;
            if let Err(fault) = compare(&format!("{graph:?}"), &got, &want, RTOL) {
                return Ok(Err(fault));
            }
        }
        Ok(Ok(()))
    });
    println!("{runs} gradients of {} operations, twice each", cases().len());
}

#[test]
fn gradients_of_gradients_equal_mixed_differences() {
    let runs = on_all(&[View::Plain, View::Transposed], |case, setup| {
        let loss = setup.weigh(&(case.forward)(&setup.inputs)?)?;
        let first = grad(&loss, &references(&setup.inputs), Graph::Keep)?;
        let got = second(setup, &first)?;
        Ok(compare("second derivative", &got, &setup.second(case, &setup.direction()), RTOL))
    });
    println!("{runs} second derivatives of {} operations", cases().len());
}

/// The gradient of `sum(direction * first)`; zeros where the first is constant.
fn second(setup: &Setup, first: &[Tensor]) -> Result<Vec<Tensor>> {
    grad(&setup.project(first)?, &references(&setup.inputs), Graph::Drop)
}

#[test]
fn fused_operations_equal_their_plain_twins() {
    let mut fused = 0;
    let runs = on_all(&VIEWS, |case, setup| {
        let Some(twin) = &case.twin else { return Ok(Ok(())) };
        let (y, y_twin) = ((case.forward)(&setup.inputs)?, twin(&setup.inputs)?);
        let f64s = |all: &[Tensor]| -> Vec<Vec<f64>> {
            all.iter().map(|t| t.values().iter().map(|x| f64::from(*x)).collect()).collect()
        };
        if let Err(fault) = compare("value", from_ref(&y), &f64s(from_ref(&y_twin)), VALUE_RTOL) {
            return Ok(Err(fault));
        }
        let xs = references(&setup.inputs);
        let (loss, loss_twin) = (setup.weigh(&y)?, setup.weigh(&y_twin)?);
        let first = grad(&loss, &xs, Graph::Drop)?;
        let first_twin = grad(&loss_twin, &xs, Graph::Keep)?;
        if let Err(fault) = compare("first derivative", &first, &f64s(&first_twin), RTOL) {
            return Ok(Err(fault));
        }
        let kept = grad(&loss, &xs, Graph::Keep)?;
        let want = f64s(&second(setup, &first_twin)?);
        Ok(compare("second derivative", &second(setup, &kept)?, &want, RTOL))
    });
    for case in cases() {
        fused += usize::from(case.twin.is_some());
    }
    assert!(fused >= 12);
    println!("{fused} fused operations among {runs} runs");
}

/// A wrong derivative.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// 1 % too large.
    Factor,
    /// The wrong sign.
    Sign,
    /// Only the last number is wrong, by 0.01.
    OneNumber,
    /// No gradient at all.
    Missing,
}

/// The identity, with this fault in its derivative.
fn faulty(x: &Tensor, fault: Fault) -> Tensor {
    Tensor::custom("faulty", &[x], x, move |v| {
        let d = v.d_output;
        Ok(vec![Some(match fault {
            Fault::Factor => d.scale(1.01)?,
            Fault::Sign => d.neg()?,
            Fault::OneNumber => {
                let mut values = d.to_vec();
                if let Some(last) = values.last_mut() {
                    *last += 0.01;
                }
                Tensor::from_slice(&values, d.shape())?
            }
            Fault::Missing => Tensor::zeros(d.shape())?,
        })])
    })
}

#[test]
fn a_planted_wrong_gradient_is_found_in_every_operation() {
    let (mut planted, mut operations) = (0, 0);
    for case in cases() {
        let mut found_here = 0;
        for shapes in &case.shapes {
            let setup = Setup::new(&case, shapes, View::Plain).expect("inputs");
            let want = setup.gradient(&case);
            for nth in 0..setup.inputs.len() {
                // A gradient below 0.02 hides a fault of 1 % under the tolerance.
                if want[nth].iter().all(|d| d.abs() < 0.02) {
                    continue;
                }
                for fault in [Fault::Factor, Fault::Sign, Fault::OneNumber, Fault::Missing] {
                    let mut inputs = setup.inputs.clone();
                    inputs[nth] = faulty(&inputs[nth], fault);
                    let loss = (case.forward)(&inputs).and_then(|y| setup.weigh(&y));
                    let got = loss.and_then(|l| grad(&l, &references(&setup.inputs), Graph::Drop));
                    let got = got.expect("a gradient, though a wrong one");
                    let verdict = compare("planted", &got, &want, RTOL);
                    assert!(verdict.is_err(), "{} {shapes:?} {nth} {fault:?}", case.name);
                    planted += 1;
                    found_here += 1;
                }
            }
        }
        assert!(found_here > 0, "{}: no fault could be planted", case.name);
        operations += 1;
    }
    println!("{planted} wrong gradients found in {operations} operations");
}
