//! Optimizers: a saved state goes on bit for bit, clipping, and numbers that are not finite.

use etude_engine::{Error, Grads, Module, Optimizer, Param, Result, Rng, Tensor, init};

fn params(seed: u64) -> Result<Vec<Param>> {
    let mut rng = Rng::new(seed);
    Ok(vec![
        Param::new("w", init::normal(&mut rng, &[3, 5], 0.0, 1.0)?),
        Param::new("b", init::normal(&mut rng, &[5], 0.0, 1.0)?),
        Param::new("unused", init::normal(&mut rng, &[2], 0.0, 1.0)?),
    ])
}

fn gradients(p: &[Param], t: f32) -> Result<Grads> {
    let y = p[0].value.mul(&p[0].value)?.sum(&[0], false)?.mul(&p[1].value)?.scale(t)?;
    y.mul(&y)?.mean_all()?.backward()
}

fn bits(p: &Vec<Param>) -> Vec<u32> {
    let mut bits = Vec::new();
    p.visit(&mut |p| bits.extend(p.value.values().iter().map(|x| x.to_bits())));
    bits
}

#[test]
fn a_saved_optimizer_goes_on_bit_for_bit() -> Result<()> {
    for make in [|| Optimizer::sgd(0.9), Optimizer::adam, || Optimizer::adamw(0.1).clip_norm(0.5)] {
        let mut p = params(1)?;
        let mut optimizer = make();
        let mut saved = None;
        for step in 0..8 {
            if step == 4 {
                let at = (optimizer.state()?, optimizer.steps());
                saved = Some((at, p.iter().map(|p| p.value.to_vec()).collect::<Vec<_>>()));
            }
            let grads = gradients(&p, 1.0 + step as f32)?;
            optimizer.step(&mut p, &grads, 0.03)?;
        }
        let ((state, steps), values) = saved.expect("saved in the middle");
        let mut again = params(2)?;
        for (p, values) in again.iter_mut().zip(&values) {
            p.update(|x| x.copy_from_slice(values));
        }
        let mut optimizer = make();
        optimizer.load_state(&again, steps, &state)?;
        for step in 4..8 {
            let grads = gradients(&again, 1.0 + step as f32)?;
            optimizer.step(&mut again, &grads, 0.03)?;
        }
        assert_eq!(bits(&p), bits(&again));
        // What has no gradient stays as it was.
        assert_eq!(p[2].value.to_vec(), params(1)?[2].value.to_vec());
    }
    Ok(())
}

#[test]
fn a_state_of_another_model_is_refused() -> Result<()> {
    let mut p = params(1)?;
    let mut optimizer = Optimizer::adam();
    let grads = gradients(&p, 1.0)?;
    optimizer.step(&mut p, &grads, 0.1)?;
    let mut state = optimizer.state()?;
    state.push(("m.other".into(), Tensor::scalar(0.0)));
    state.retain(|(name, _)| name != "v.b");
    let error = Optimizer::adam().load_state(&p, 1, &state).expect_err("another model");
    assert_eq!(
        error.to_string(),
        "weights: optimizer: the moments of b are not whole; \"m.other\" belongs to no parameter"
    );
    Ok(())
}

#[test]
fn clipping_scales_all_gradients_to_the_norm() -> Result<()> {
    let norm_after = |clip: Option<f32>| -> Result<(f64, f64)> {
        let mut p = params(1)?;
        let before: Vec<Vec<f32>> = p.iter().map(|p| p.value.to_vec()).collect();
        let mut optimizer = Optimizer::sgd(0.0);
        if let Some(max) = clip {
            optimizer = optimizer.clip_norm(max);
        }
        let grads = gradients(&p, 1.0)?;
        let norm = optimizer.step(&mut p, &grads, 1.0)?;
        let moved = p.iter().zip(&before).flat_map(|(p, b)| {
            let x = p.value.to_vec();
            x.into_iter().zip(b.clone()).map(|(x, b)| f64::from(x - b).powi(2)).collect::<Vec<_>>()
        });
        Ok((norm, moved.sum::<f64>().sqrt()))
    };
    let (norm, moved) = norm_after(None)?;
    assert!(norm > 1.0 && (norm - moved).abs() < 1e-4 * norm, "{norm} {moved}");
    let (same, moved) = norm_after(Some(0.25))?;
    assert_eq!(norm, same);
    // The steps are differences of numbers of size 1: 2^-24 each.
    assert!((moved - 0.25).abs() < 1e-5, "{moved}");
    assert_eq!(norm_after(Some(1e9))?, norm_after(None)?);
    Ok(())
}

#[test]
fn a_gradient_that_is_not_finite_is_named_and_changes_nothing() -> Result<()> {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut p = params(1)?;
        let mut optimizer = Optimizer::adam();
        let good = gradients(&p, 1.0)?;
        optimizer.step(&mut p, &good, 0.1)?;
        let (before, state) = (bits(&p), optimizer.state()?);
        let mut grads = gradients(&p, 1.0)?;
        let planted = Tensor::from_slice(&[0.0, 1.0, 2.0, bad, 4.0], &[5])?;
        grads.insert(&p[1].value, planted);
        let error = optimizer.step(&mut p, &grads, 0.1).expect_err("not finite");
        assert!(matches!(&error, Error::NotFinite { what, at: 3, .. } if what == "gradient of b"));
        assert_eq!((bits(&p), optimizer.steps()), (before.clone(), 1));
        for ((_, a), (_, b)) in optimizer.state()?.iter().zip(&state) {
            assert_eq!(a.to_vec(), b.to_vec());
        }
        let good = gradients(&p, 1.0)?;
        assert!(optimizer.step(&mut p, &good, bad).is_err());
        assert_eq!(bits(&p), before);
        p[0].update(|x| x[7] = bad);
        let error = p.check_finite().expect_err("not finite");
        assert!(error.to_string().starts_with("w: element 7 is "), "{error}");
    }
    Ok(())
}
