//! Products of bf16 in layers: near those of f32, by derived bounds, and only where they are asked for.
//!
//! Rounding to bf16 changes a number by at most `U16` of it, so a product of two by at most
//! `E = 2 U16 + U16^2` of it. What f32 adds is less than a thousandth of that for sums of 100 terms.

use etude_engine::{
    Graph, Input, Nonlinearity, Products, Result, Rng, Tensor, grad, init, products, rnn_layer,
    set_products, vector_jacobian,
};

const U16: f32 = 1.0 / 256.0;
const E: f32 = (2.0 * U16 + U16 * U16) * 1.01;

fn uniform(rng: &mut Rng, shape: &[usize], scale: f32) -> Result<Tensor> {
    Ok(init::uniform(rng, shape, -scale, scale)?.requires_grad())
}

/// The largest size in a tensor.
fn largest(x: &Tensor) -> f32 {
    x.to_vec().iter().fold(0.0, |most, x| most.max(x.abs()))
}

fn distance(a: &Tensor, b: &Tensor) -> Result<f32> {
    Ok(largest(&a.sub(b)?))
}

#[test]
fn the_setting_lasts_as_long_as_its_guard() {
    assert_eq!(products(), Products::F32);
    {
        let _outer = set_products(Products::Bf16);
        {
            let _inner = set_products(Products::F32);
            assert_eq!(products(), Products::F32);
        }
        assert_eq!(products(), Products::Bf16);
    }
    assert_eq!(products(), Products::F32);
}

#[test]
fn a_linear_layer_and_its_gradients_are_off_by_the_rounding_of_their_operands() -> Result<()> {
    let mut rng = Rng::new(3);
    for (rows, inputs, outputs) in [(1, 1, 1), (7, 33, 5), (40, 17, 50), (64, 100, 31), (0, 3, 2)] {
        let x = uniform(&mut rng, &[rows, inputs], 1.0)?;
        let w = uniform(&mut rng, &[outputs, inputs], 1.0)?;
        let b = uniform(&mut rng, &[outputs], 1.0)?;
        let d = uniform(&mut rng, &[rows, outputs], 1.0)?.detach();
        let run = |numbers| {
            let y = {
                let _products = set_products(numbers);
                x.linear(&w, Some(&b))?
            };
            // The backward keeps to what the forward ran in.
            let mut all = vector_jacobian(&y, d.clone(), &[&x, &w, &b], Graph::Drop)?;
            all.push(y.detach());
            Ok::<_, etude_engine::Error>(all)
        };
        let (exact, rounded) = (run(Products::F32)?, run(Products::Bf16)?);
        // The same sums with the sizes of all terms, which the errors are a share of.
        let size = |t: &Tensor| t.detach().abs();
        let (xs, ws, ds) = (size(&x)?, size(&w)?, size(&d)?);
        let sizes = [ds.matmul(&ws)?, ds.t()?.matmul(&xs)?, Tensor::zeros(&[outputs])?, {
            xs.matmul(&ws.t()?)?
        }];
        for (at, ((exact, rounded), size)) in exact.iter().zip(&rounded).zip(&sizes).enumerate() {
            let each = exact.to_vec().into_iter().zip(rounded.to_vec()).zip(size.to_vec());
            for ((exact, rounded), size) in each {
                let bound = E * size + 1e-5 * f32::from(at == 2) * rows as f32;
                assert!((exact - rounded).abs() <= bound, "{at}: {exact} {rounded} {size}");
            }
        }
        if rows * inputs * outputs > 1000 {
            assert!(distance(&exact[1], &rounded[1])? > 0.0, "nothing was rounded");
        }
    }
    Ok(())
}

/// An Elman layer `h = tanh(W_ih x + b + W_hh h)` whose weights are small enough for a bound on the
/// whole sequence. Rows of `W_ih` add up to at most `X`, rows and columns of `W_hh` to at most
/// `W < 1`, and states are below 1.
///
/// Forwards each sum is off by `E (X + W)` and by `W` times what the state before is off; tanh shrinks
/// errors. So states are off by `e = E (X + W) / (1 - W)` at most.
///
/// Backwards `d_t = (1 - h^2) (D + W_hh^T d_{t+1})` with `D` the largest gradient from above, so `d`
/// is at most `M = D / (1 - W)`. Its error `f` has `2 e M` of the slope, `E W M` of the product, and
/// `W f` of the step after: `f = M (2 e + E W) / (1 - W)`.
///
/// Each of the `steps * batch` terms of a weight gradient is `d` times a number of at most 1 that is
/// off by `e`: `f + e M + E M`.
#[test]
fn gradients_through_a_sequence_are_off_by_the_rounding_of_every_product() -> Result<()> {
    let mut rng = Rng::new(5);
    for (steps, batch, inputs, hidden) in [(1, 1, 1, 1), (6, 3, 9, 17), (20, 9, 16, 24)] {
        let x = uniform(&mut rng, &[steps, batch, inputs], 1.0)?;
        let w_ih = uniform(&mut rng, &[hidden, inputs], 0.5 / inputs as f32)?;
        let w_hh = uniform(&mut rng, &[hidden, hidden], 0.5 / hidden as f32)?;
        let b = uniform(&mut rng, &[hidden], 0.5)?;
        let h0 = uniform(&mut rng, &[batch, hidden], 1.0)?;
        let above = uniform(&mut rng, &[steps, batch, hidden], 1.0)?.detach();
        let (big_x, w, d) = (0.5f32, 0.5f32, 1.0f32);
        let run = |numbers| {
            let _products = set_products(numbers);
            let input = Input::Dense(x.clone());
            let h = rnn_layer(&input, Nonlinearity::Tanh, &w_ih, &w_hh, &b, &b, &h0)?;
            let loss = h.mul(&above)?.sum_all()?;
            grad(&loss, &[&w_ih, &w_hh, &x, &h0], Graph::Drop)
        };
        let (exact, rounded) = (run(Products::F32)?, run(Products::Bf16)?);
        let e = E * (big_x + w) / (1.0 - w);
        let most = d / (1.0 - w);
        let f = most * (2.0 * e + E * w) / (1.0 - w);
        let terms = (steps * batch) as f32;
        let weight = terms * (f + e * most + E * most);
        // x and h0 get a product of d with a matrix whose columns add up to X or W at most; those of
        // W_ih to `hidden` numbers of 0.5 / inputs.
        let columns = 0.5 * hidden as f32 / inputs as f32;
        let bounds = [weight, weight, columns * (f + E * most), w * (f + E * most)];
        for ((exact, rounded), bound) in exact.iter().zip(&rounded).zip(bounds) {
            let off = distance(exact, rounded)?;
            assert!(off > 0.0 && off <= bound, "{off} of {bound}");
        }
    }
    Ok(())
}
