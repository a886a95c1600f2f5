//! The graph: long chains, shared parts, gradients of gradients, what is freed and what is not.

use std::thread;

use etude_engine::{
    Error, Graph, Ids, NO_ID, Result, Rng, Tensor, grad, init, no_grad, recompute, vector_jacobian,
};

fn leaf(values: &[f32]) -> Tensor {
    Tensor::from_slice(values, &[values.len()]).expect("a vector").requires_grad()
}

/// Runs on a thread with the stack that test threads have.
fn on_small_stack<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|s| {
        let builder = thread::Builder::new().stack_size(2 << 20);
        let handle = builder.spawn_scoped(s, f).expect("a thread");
        handle.join().expect("no overflow, no panic")
    })
}

#[test]
fn a_chain_of_100_000_nodes_needs_no_stack() {
    on_small_stack(|| -> Result<()> {
        let x = leaf(&[1.0]);
        let mut y = x.clone();
        for _ in 0..100_000 {
            y = y.shift(1.0)?;
        }
        assert_eq!(y.to_vec(), [100_001.0]);
        let grads = y.sum_all()?.backward()?;
        assert_eq!(grads.get(&x).map(Tensor::to_vec), Some(vec![1.0]));
        // A chain that is never walked is only dropped.
        let mut y = x.clone();
        for _ in 0..100_000 {
            y = y.mul(&x)?;
        }
        drop(y);
        // A walk that may not consume the chain leaves it to be dropped.
        let mut y = x.clone();
        for _ in 0..100_000 {
            y = y.neg()?;
        }
        let d = grad(&y.sum_all()?, &[&x], Graph::Drop)?;
        assert_eq!(d[0].to_vec(), [1.0]);
        drop(y);
        Ok(())
    })
    .expect("a chain");
}

#[test]
fn a_value_that_is_used_twice_gets_both_gradients() -> Result<()> {
    let x = leaf(&[2.0, 3.0]);
    let y = x.mul(&x)?;
    let z = y.add(&x)?.mul(&y)?.sum_all()?; // x^4 + x^3
    let grads = z.backward()?;
    assert_eq!(grads.get(&x).map(Tensor::to_vec), Some(vec![44.0, 135.0]));
    Ok(())
}

#[test]
fn gradients_of_any_order_can_be_taken() -> Result<()> {
    let x = leaf(&[1.5]);
    let mut y = x.pow(5.0)?.sum_all()?;
    for want in [5.0 * 1.5f32.powi(4), 20.0 * 1.5f32.powi(3), 60.0 * 2.25, 180.0, 120.0] {
        let d = grad(&y, &[&x], Graph::Keep)?.remove(0);
        if want == 180.0 {
            // The fourth derivative of x^5 is 120 x.
            assert!((d.item()? - 120.0 * 1.5).abs() < 1e-3);
        } else {
            assert!((d.item()? - want).abs() < want * 1e-5, "{d:?} {want}");
        }
        y = d.sum_all()?;
    }
    Ok(())
}

/// The penalty of a Wasserstein critic: `mean((|d critic / d x| - 1)^2)`, whose gradient goes
/// through a gradient.
#[test]
fn a_gradient_penalty_has_the_right_gradient() -> Result<()> {
    let mut rng = Rng::new(3);
    let x = init::normal(&mut rng, &[6, 5], 0.0, 1.0)?.requires_grad();
    let mut w1 = init::normal(&mut rng, &[7, 5], 0.0, 0.7)?.requires_grad();
    let b1 = init::normal(&mut rng, &[7], 0.0, 0.3)?.requires_grad();
    let w2 = init::normal(&mut rng, &[1, 7], 0.0, 0.7)?.requires_grad();
    let penalty = |w1: &Tensor| -> Result<Tensor> {
        let score = x.linear(w1, Some(&b1))?.tanh()?.linear(&w2, None)?.sum_all()?;
        let d_x = grad(&score, &[&x], Graph::Keep)?.remove(0);
        let norm = d_x.mul(&d_x)?.sum(&[1], false)?.shift(1e-12)?.sqrt()?;
        norm.shift(-1.0)?.pow(2.0)?.mean_all()
    };
    let d = penalty(&w1)?.backward()?;
    let d = d.get(&w1).expect("a gradient").to_vec();
    assert!(d.iter().any(|d| d.abs() > 0.01));
    let values = w1.to_vec();
    for at in 0..values.len() {
        let mut at_moved = |by: f32| -> Result<f64> {
            let mut moved = values.clone();
            moved[at] += by;
            w1 = Tensor::from_slice(&moved, &[7, 5])?.requires_grad();
            Ok(f64::from(penalty(&w1)?.item()?))
        };
        // f32 differences with step 1e-2: truncation about 1e-4, rounding 1e-7 / 1e-2 = 1e-5.
        let want = (at_moved(1e-2)? - at_moved(-1e-2)?) / 2e-2;
        assert!((f64::from(d[at]) - want).abs() < 1e-3, "{at}: {} {want}", d[at]);
    }
    Ok(())
}

#[test]
fn gradients_with_respect_to_values_in_the_middle_are_total_derivatives() -> Result<()> {
    let x = leaf(&[2.0]);
    let y = x.mul(&x)?;
    let z = y.mul(&x)?.sum_all()?; // z = y x, y = x^2
    let d = grad(&z, &[&x, &y], Graph::Drop)?;
    assert_eq!((d[0].item()?, d[1].item()?), (12.0, 2.0));
    let other = leaf(&[1.0, 2.0]);
    assert_eq!(grad(&z, &[&other], Graph::Drop)?[0].to_vec(), [0.0, 0.0]);
    let d = vector_jacobian(&y, Tensor::from_slice(&[3.0], &[1])?, &[&x], Graph::Drop)?;
    assert_eq!(d[0].to_vec(), [12.0]);
    Ok(())
}

#[test]
fn two_losses_over_one_graph_can_be_walked_one_after_the_other() -> Result<()> {
    let w = init::normal(&mut Rng::new(1), &[3, 4], 0.0, 1.0)?.requires_grad();
    let logits = w.linear(&init::normal(&mut Rng::new(2), &[5, 4], 0.0, 1.0)?, None)?;
    let targets = Ids::new(vec![1, 0, NO_ID]);
    let one = logits.cross_entropy(&targets)?;
    let two = one.clone().scale(2.0)?;
    let first = two.backward()?.take(&w).expect("a gradient").to_vec();
    // `one` is still there, with all that it saved.
    let second = one.clone().backward()?.take(&w).expect("a gradient").to_vec();
    let again = one.backward()?.take(&w).expect("a gradient").to_vec();
    assert_eq!(second, again);
    let doubled: Vec<f32> = second.iter().map(|d| d * 2.0).collect();
    assert_eq!(first, doubled);
    Ok(())
}

#[test]
fn nothing_is_recorded_inside_no_grad() -> Result<()> {
    let x = leaf(&[1.0]);
    let y = no_grad(|| x.exp())?;
    assert!(!y.needs_grad() && y.op_name().is_none());
    assert!(x.exp()?.needs_grad());
    assert_eq!(x.exp()?.op_name(), Some("exp"));
    assert!(!x.exp()?.detach().needs_grad());
    let error = y.sum_all()?.backward().err().expect("nothing to differentiate");
    assert_eq!(error.to_string(), "backward: nothing here needs a gradient");
    // A panic inside restores recording too.
    let caught = std::panic::catch_unwind(|| no_grad(|| panic!("on purpose")));
    assert!(caught.is_err() && x.exp()?.needs_grad());
    Ok(())
}

#[test]
fn recomputing_draws_the_same_random_numbers() -> Result<()> {
    let x = init::normal(&mut Rng::new(1), &[50], 0.0, 1.0)?.requires_grad();
    let f = |x: &Tensor| {
        let mut rng = Rng::stream(9, 1);
        x.tanh()?.dropout(0.5, &mut rng)?.mul(x)?.dropout(0.2, &mut rng)
    };
    let plain = f(&x)?;
    let again = recompute(&[&x], move |x| f(&x[0]))?;
    assert_eq!(plain.to_vec(), again.to_vec());
    let d = grad(&plain.sum_all()?, &[&x], Graph::Drop)?;
    assert_eq!(d[0].to_vec(), grad(&again.sum_all()?, &[&x], Graph::Drop)?[0].to_vec());
    Ok(())
}

#[test]
fn dropout_keeps_its_share_and_its_mean() -> Result<()> {
    let n = 100_000;
    let y = Tensor::ones(&[n])?.dropout(0.3, &mut Rng::new(2))?.to_vec();
    let kept = y.iter().filter(|y| **y != 0.0).count() as f64;
    // Five standard deviations of a binomial distribution.
    assert!((kept - 0.7 * n as f64).abs() < 5.0 * (n as f64 * 0.21).sqrt(), "{kept}");
    assert!(y.iter().all(|y| *y == 0.0 || *y == 1.0 / 0.7));
    assert!(Tensor::ones(&[1])?.dropout(1.0, &mut Rng::new(2)).is_err());
    assert_eq!(Tensor::ones(&[3])?.dropout(0.0, &mut Rng::new(2))?.to_vec(), [1.0; 3]);
    Ok(())
}

#[test]
fn tensors_and_their_graphs_can_move_between_threads() -> Result<()> {
    let x = leaf(&[1.0, 2.0]);
    let y = x.mul(&x)?.sum_all()?;
    let grads = thread::spawn(move || y.backward()).join().expect("no panic")?;
    assert_eq!(grads.get(&x).map(Tensor::to_vec), Some(vec![2.0, 4.0]));
    Ok(())
}

#[test]
fn in_place_updates_are_never_seen_through_another_tensor() -> Result<()> {
    let mut p = etude_engine::Param::new("p", Tensor::from_slice(&[1.0, 2.0], &[2])?);
    let (before, view) = (p.value.clone(), p.value.slice(0, 0..1)?);
    p.update(|x| x.fill(9.0));
    assert_eq!((before.to_vec(), view.to_vec()), (vec![1.0, 2.0], vec![1.0]));
    assert_eq!(p.value.to_vec(), [9.0, 9.0]);
    assert!(p.value.needs_grad());
    drop((before, view));
    let at = p.value.values().as_ptr();
    p.update(|x| x[0] = 5.0);
    assert_eq!(p.value.values().as_ptr(), at, "alone, it is changed where it lies");
    Ok(())
}

#[test]
fn errors_begin_with_the_operation_and_show_both_sides() -> Result<()> {
    let a = Tensor::zeros(&[32, 512])?;
    let b = Tensor::zeros(&[256, 2048])?;
    let told = |e: Result<Tensor>| e.err().map(|e: Error| e.to_string()).unwrap_or_default();
    assert_eq!(
        told(a.matmul(&b)),
        "matmul: [32, 512] and [256, 2048]: inner sizes 512 and 256 differ"
    );
    assert_eq!(told(a.add(&b)), "add: [32, 512] and [256, 2048]: sizes 512 and 2048 differ");
    assert_eq!(told(a.reshape(&[5])), "reshape: [32, 512] and [5]: 16384 elements and 5");
    assert_eq!(told(a.slice(0, 30..40)), "slice: 30..40 of an axis of size 32");
    assert_eq!(told(a.sum(&[0, 0], false)), "sum: axis 0 is named twice");
    assert_eq!(
        told(a.embedding(&Ids::new(vec![40]))),
        "embedding: id 40 is outside of a table of 32 rows"
    );
    assert_eq!(told(Tensor::zeros(&[1; 7])), "zeros: [1, 1, 1, 1, 1, 1, 1] and []: at most 6 axes");
    assert_eq!(
        told(Tensor::zeros(&[usize::MAX, 0, usize::MAX])),
        format!("zeros: [{0}, 0, {0}] and []: too many elements", usize::MAX)
    );
    assert!(told(a.pad(0, usize::MAX, 1)).ends_with("too many elements"));
    let y = a.requires_grad();
    assert_eq!(
        y.backward().err().map(|e| e.to_string()).unwrap_or_default(),
        "grad: [32, 512] and []: the gradient of one number is wanted"
    );
    let constant = Tensor::scalar(1.0);
    let tracked = leaf(&[1.0]).sum_all()?;
    let error = grad(&tracked, &[&constant], Graph::Drop).err().map(|e| e.to_string());
    assert_eq!(error.unwrap_or_default(), "grad: input 0 does not need a gradient");
    Ok(())
}
