//! Every instruction-set tier of this machine against the scalar one, through the whole engine.
//!
//! The tier is one setting for the whole process, so this file holds one test.

#[path = "support/array.rs"]
mod array;
#[path = "support/cases.rs"]
mod cases;

use cases::{Case, Shapes, cases};
use etude_engine::isa::{Isa, force};
use etude_engine::{Graph, Result, Tensor, grad};

/// The value and all gradients.
fn run(case: &Case, shapes: &Shapes) -> Result<Vec<Vec<f32>>> {
    let inputs: Vec<Tensor> = case
        .draw(shapes)
        .iter()
        .map(|(shape, x)| Ok(Tensor::from_slice(x, shape)?.requires_grad()))
        .collect::<Result<_>>()?;
    let y = (case.forward)(&inputs)?;
    // Weights of both signs: sums then cancel, and an error stands out.
    let w: Vec<f32> = (0..y.len()).map(|i| ((i * 37 % 16) as f32 - 7.5) / 8.0).collect();
    let loss = y.mul(&Tensor::from_slice(&w, y.shape())?)?.sum_all()?;
    let mut all = vec![y.to_vec()];
    for d in grad(&loss, &inputs.iter().collect::<Vec<_>>(), Graph::Drop)? {
        all.push(d.to_vec());
    }
    Ok(all)
}

#[test]
fn every_tier_agrees_with_the_scalar_one() {
    let tiers: Vec<Isa> = Isa::available().into_iter().filter(|t| *t != Isa::Scalar).collect();
    let mut compared = 0;
    for case in cases() {
        for shapes in case.shapes.iter().chain([&case.large]) {
            force(Isa::Scalar);
            let want = run(&case, shapes).expect("the scalar tier");
            // Tiers order sums differently. The roundings of a sum of n terms add up like the steps
            // of a random walk: to sqrt(n) * EPSILON / 2 of the partial sums, which are about as
            // large as the largest result. Eight times that is allowed; a chain of short operations
            // counts as a sum of 256.
            let terms = shapes.iter().map(|s| s.iter().product::<usize>()).max().unwrap_or(1);
            for tier in &tiers {
                force(*tier);
                let got = run(&case, shapes).expect("the tier");
                let again = run(&case, shapes).expect("the tier");
                let bits = |all: &[Vec<f32>]| -> Vec<u32> {
                    all.iter().flatten().map(|x| x.to_bits()).collect()
                };
                assert_eq!(bits(&got), bits(&again), "{}: twice the same bits", case.name);
                for (got, want) in got.iter().zip(&want) {
                    assert_eq!(got.len(), want.len());
                    let size = want.iter().fold(1.0f32, |max, x| max.max(x.abs()));
                    let walk = (terms as f32).sqrt().max(16.0) * f32::EPSILON / 2.0;
                    let tolerance = 8.0 * walk * size;
                    for (got, want) in got.iter().zip(want) {
                        assert!(
                            (got - want).abs() <= tolerance,
                            "{} {shapes:?} {}: {got} {want}, tolerance {tolerance}",
                            case.name,
                            tier.name()
                        );
                    }
                    compared += got.len();
                }
            }
        }
    }
    let names: Vec<&str> = tiers.iter().map(|t| t.name()).collect();
    println!("{compared} numbers agree with the scalar tier: {}", names.join(", "));
}
