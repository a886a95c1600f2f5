//! The LSTM with attention over its last outputs: what it refuses, and a graph that is walked twice.

use etude_engine::{Attended, Graph, Ids, Input, Result, Rng, Tensor, attended_lstm, grad, init};

const HIDDEN: usize = 5;
const INPUTS: usize = 3;

/// Weights in the order of [`Attended`].
fn weights() -> Result<Vec<Tensor>> {
    let (n, g) = (HIDDEN, 4 * HIDDEN);
    let shapes: [&[usize]; 11] = [
        &[g, INPUTS],
        &[g, n],
        &[g],
        &[g],
        &[g, n],
        &[n, 2 * n],
        &[n],
        &[n, n],
        &[n],
        &[n, 2 * n],
        &[n],
    ];
    let mut rng = Rng::new(3);
    let draw = |shape: &&[usize]| Ok(init::uniform(&mut rng, shape, -0.4, 0.4)?.requires_grad());
    shapes.iter().map(draw).collect()
}

fn of(w: &[Tensor]) -> Attended<'_> {
    let [w_ih, w_hh, b_ih, b_hh, w_d, w_q, b_q, w_k, v, w_o, b_o] = w else {
        panic!("{} weights", w.len())
    };
    Attended { w_ih, w_hh, b_ih, b_hh, w_d, w_q, b_q, w_k, v, w_o, b_o }
}

#[test]
fn sizes_that_do_not_fit_are_told() -> Result<()> {
    let w = weights()?;
    let x = Input::Dense(Tensor::zeros(&[2, 3, INPUTS])?);
    let fault = |w: &[Tensor], x: &Input, length: usize| {
        attended_lstm(x, &of(w), length).expect_err("a fault").to_string()
    };
    assert_eq!(fault(&w, &x, 0), "attended_lstm: a memory of no outputs");
    for at in 4..11 {
        let mut wrong = w.clone();
        wrong[at] = Tensor::zeros(&[HIDDEN, 3 * HIDDEN])?;
        let fault = fault(&wrong, &x, 2);
        assert!(fault.starts_with("attended_lstm: [5, 15]") && fault.contains("W_hh"), "{fault}");
    }
    let wide = Input::Dense(Tensor::zeros(&[2, 3, INPUTS + 1])?);
    assert!(fault(&w, &wide, 2).contains("[2, 3, 4]"), "{}", fault(&w, &wide, 2));
    let ids = Input::OneHot { ids: Ids::new(vec![INPUTS as u32]), steps: 1, batch: 1 };
    assert!(fault(&w, &ids, 2).starts_with("attended_lstm: "));
    // More than any memory holds.
    assert!(attended_lstm(&x, &of(&w), usize::MAX / 8).is_err());
    Ok(())
}

#[test]
fn a_graph_gives_the_same_gradients_twice() -> Result<()> {
    let w = weights()?;
    let x = init::uniform(&mut Rng::new(4), &[6, 2, INPUTS], -1.0, 1.0)?.requires_grad();
    let y = attended_lstm(&Input::Dense(x.clone()), &of(&w), 3)?;
    let loss = y.mul(&y)?.sum_all()?;
    let all: Vec<&Tensor> = w.iter().chain([&x]).collect();
    let values = |grads: Vec<Tensor>| grads.iter().map(Tensor::to_vec).collect::<Vec<_>>();
    let first = values(grad(&loss, &all, Graph::Drop)?);
    assert_eq!(values(grad(&loss, &all, Graph::Drop)?), first);
    assert!(first.iter().all(|d| d.iter().any(|d| *d != 0.0)));
    // Gradients flow into what is asked for, whatever else needs none.
    let fixed: Vec<Tensor> = w.iter().map(Tensor::detach).collect();
    let mut one = fixed.clone();
    one[8] = w[8].clone();
    let y = attended_lstm(&Input::Dense(x.detach()), &of(&one), 3)?;
    let d = values(grad(&y.mul(&y)?.sum_all()?, &[&w[8]], Graph::Drop)?);
    assert_eq!(d[0], first[8]);
    Ok(())
}
