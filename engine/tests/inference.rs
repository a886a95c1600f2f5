//! Step-by-step inference: the numbers of training, and not one allocation.

use etude_engine::{Attention, KeyValueCache, Mask, RelativeStep, attention};
use etude_engine::{
    Cell, Ids, Input, LayerWeights, LinearStep, NO_ID, Nonlinearity, Precision, RecurrentStep,
    Result, Rng, Tensor, gru_layer, init, lstm_layer, no_grad, rnn_layer,
};
use etude_kernels::threads::Pool;

const CELLS: [Cell; 4] =
    [Cell::Lstm, Cell::Gru, Cell::Rnn(Nonlinearity::Tanh), Cell::Rnn(Nonlinearity::Relu)];

/// `w_ih`, `w_hh`, `b_ih`, `b_hh` of each layer.
fn weights(cell: Cell, inputs: usize, hidden: &[usize]) -> Result<Vec<[Tensor; 4]>> {
    let mut rng = Rng::new(6);
    let mut below = inputs;
    let mut layers = Vec::new();
    for h in hidden {
        let rows = cell.gates() * h;
        layers.push([
            init::by_fan(&mut rng, &[rows, below], *h)?,
            init::by_fan(&mut rng, &[rows, *h], *h)?,
            init::by_fan(&mut rng, &[rows], *h)?,
            init::by_fan(&mut rng, &[rows], *h)?,
        ]);
        below = *h;
    }
    Ok(layers)
}

fn packed(layers: &[[Tensor; 4]]) -> Vec<LayerWeights<'_>> {
    layers.iter().map(|[w_ih, w_hh, b_ih, b_hh]| LayerWeights { w_ih, w_hh, b_ih, b_hh }).collect()
}

/// The hidden states of the last layer for all steps, as training computes them.
fn training(cell: Cell, x: Input, layers: &[[Tensor; 4]], batch: usize) -> Result<Tensor> {
    no_grad(|| {
        let mut x = x;
        let mut y = Tensor::scalar(0.0);
        for [w_ih, w_hh, b_ih, b_hh] in layers {
            let zero = Tensor::zeros(&[batch, w_hh.shape()[1]])?;
            y = match cell {
                Cell::Lstm => lstm_layer(&x, w_ih, w_hh, b_ih, b_hh, &zero, &zero)?.select(0, 0)?,
                Cell::Gru => gru_layer(&x, w_ih, w_hh, b_ih, b_hh, &zero)?,
                Cell::Rnn(f) => rnn_layer(&x, f, w_ih, w_hh, b_ih, b_hh, &zero)?,
            };
            x = Input::Dense(y.clone());
        }
        Ok(y)
    })
}

/// The input products of training run over more rows at once, so a row may fall into another tile:
/// each of the `depth` products and sums is then rounded differently, in values of order 1; gates
/// have slopes of at most 1 and errors add up over the steps.
fn bound(depth: usize, steps: usize) -> f32 {
    (depth * steps) as f32 * f32::EPSILON
}

#[test]
fn steps_equal_the_training_forward() -> Result<()> {
    let (vocab, steps) = (23, 9);
    for cell in CELLS {
        for batch in [1, 3] {
            let layers = weights(cell, vocab, &[17, 12])?;
            let mut rng = Rng::new(8);
            let ids: Vec<u32> = (0..steps * batch * 2)
                .map(|i| if i % 5 == 4 { NO_ID } else { rng.below(vocab as u32) })
                .collect();
            let bags = Ids::bags(ids.clone(), 2)?;
            let x = Input::OneHot { ids: bags, steps, batch };
            let want = training(cell, x, &layers, batch)?.to_vec();
            let mut step =
                RecurrentStep::for_ids(cell, &packed(&layers), None, batch, Precision::F32)?;
            for (t, want) in want.chunks(batch * 12).enumerate() {
                let got = step.step_ids(&ids[t * batch * 2..(t + 1) * batch * 2])?;
                near(got, want, bound(23 + 17, steps));
            }

            let x = init::normal(&mut rng, &[steps, batch, vocab], 0.0, 1.0)?;
            let want = training(cell, Input::Dense(x.clone()), &layers, batch)?.to_vec();
            let mut step =
                RecurrentStep::for_dense(cell, &packed(&layers), None, batch, Precision::F32)?;
            for (t, want) in want.chunks(batch * 12).enumerate() {
                let got = step.step_dense(&x.select(0, t)?.to_vec())?;
                near(got, want, bound(23 + 17, steps));
            }
        }
    }
    Ok(())
}

fn near(got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= tolerance, "{got} {want} {tolerance}");
    }
}

#[test]
fn a_step_allocates_nothing() -> Result<()> {
    for cell in CELLS {
        for precision in Precision::ALL {
            count_allocations(cell, precision)?;
            // Inside of a pool threads share a step. They are counted each for itself; this one
            // packs, forks and waits.
            let pool = Pool::new(2).expect("threads");
            pool.run(|| count_allocations(cell, precision))?;
        }
    }
    Ok(())
}

fn count_allocations(cell: Cell, precision: Precision) -> Result<()> {
    let layers = weights(cell, 40, &[96, 80])?;
    let head = init::by_fan(&mut Rng::new(1), &[40, 80], 80)?;
    let bias = init::by_fan(&mut Rng::new(2), &[40], 80)?;
    let output = Some((&head, &bias));
    let mut step = RecurrentStep::for_ids(cell, &packed(&layers), output, 1, precision)?;
    let mut dense = RecurrentStep::for_dense(cell, &packed(&layers), None, 1, precision)?;
    let mut head = LinearStep::new(&head, None, 1, precision)?;
    let x = [0.5; 40];
    let mut run = |steps: u32| -> Result<f32> {
        let mut sum = 0.0;
        for t in 0..steps {
            sum += step.step_ids(&[t % 40, NO_ID])?[0];
            sum += head.apply(dense.step_dense(&x)?)?[0];
        }
        Ok(sum)
    };
    // The first steps may set up what lives as long as the thread.
    run(2)?;
    let mut sum = Ok(0.0);
    let counted = allocation_counter::measure(|| sum = run(100));
    assert!(sum?.is_finite());
    assert_eq!(counted.count_total, 0, "{cell:?} {precision:?}");
    Ok(())
}

#[test]
fn an_output_layer_gives_what_a_linear_step_makes_of_the_state() -> Result<()> {
    for cell in CELLS {
        for (batch, precision) in [(1, Precision::F32), (1, Precision::Int8), (3, Precision::F32)] {
            let layers = weights(cell, 9, &[17, 12])?;
            let head = init::by_fan(&mut Rng::new(1), &[21, 12], 12)?;
            let bias = init::by_fan(&mut Rng::new(2), &[21], 12)?;
            let output = Some((&head, &bias));
            let new =
                |output| RecurrentStep::for_ids(cell, &packed(&layers), output, batch, precision);
            let (mut joined, mut apart) = (new(output)?, new(None)?);
            let mut head = LinearStep::new(&head, Some(&bias), batch, precision)?;
            for t in 0..5 {
                let ids: Vec<u32> = (0..batch as u32).map(|b| (t * 4 + b) % 9).collect();
                let want = head.apply(apart.step_ids(&ids)?)?;
                assert_eq!(joined.step_ids(&ids)?, want, "{cell:?} {batch}");
                assert_eq!(joined.h(1), apart.h(1));
            }
        }
    }
    Ok(())
}

#[test]
fn int8_steps_stay_near_f32_steps() -> Result<()> {
    for cell in CELLS {
        let layers = weights(cell, 24, &[33, 48])?;
        let mut exact = RecurrentStep::for_ids(cell, &packed(&layers), None, 1, Precision::F32)?;
        let mut narrow = RecurrentStep::for_ids(cell, &packed(&layers), None, 1, Precision::Int8)?;
        for t in 0..12 {
            let want = exact.step_ids(&[t % 24])?.to_vec();
            let got = narrow.step_ids(&[t % 24])?;
            // Weights are at most 1 / sqrt(33), states at most 1 (or, rectified, about as much), so a
            // product is off by a 127th of 0.17 at the worst. Of 81 with signs at random that is
            // 9 / 127 * 0.17 / sqrt(3), and gates and states pass on less than they get.
            near(got, &want, 0.02);
        }
    }
    Ok(())
}

#[test]
fn bf16_weights_give_the_steps_of_f32_weights_that_were_rounded() -> Result<()> {
    for cell in CELLS {
        let layers = weights(cell, 24, &[33, 18])?;
        let mut rounded = Vec::new();
        for [w_ih, w_hh, b_ih, b_hh] in &layers {
            rounded.push([to_bf16(w_ih)?, to_bf16(w_hh)?, b_ih.clone(), b_hh.clone()]);
        }
        let mut narrow =
            RecurrentStep::for_dense(cell, &packed(&layers), None, 1, Precision::Bf16)?;
        let mut exact = RecurrentStep::for_dense(cell, &packed(&rounded), None, 1, Precision::F32)?;
        let head = init::by_fan(&mut Rng::new(1), &[40, 18], 18)?;
        let mut narrow_head = LinearStep::new(&head, None, 1, Precision::Bf16)?;
        let mut exact_head = LinearStep::new(&to_bf16(&head)?, None, 1, Precision::F32)?;
        let mut rng = Rng::new(9);
        for _ in 0..7 {
            let x = init::normal(&mut rng, &[24], 0.0, 1.0)?.to_vec();
            let (narrow, exact) = (narrow.step_dense(&x)?, exact.step_dense(&x)?);
            assert_eq!(narrow, exact, "{cell:?}");
            assert_eq!(narrow_head.apply(narrow)?, exact_head.apply(exact)?, "{cell:?}");
        }
    }
    Ok(())
}

/// The bf16 number next to each weight, ties to the even one.
fn to_bf16(w: &Tensor) -> Result<Tensor> {
    let nearest = |x: &f32| {
        let bits = x.to_bits();
        f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
    };
    Tensor::new(w.to_vec().iter().map(nearest).collect::<Vec<f32>>(), w.shape())
}

#[test]
fn states_can_be_reset_read_and_branched() -> Result<()> {
    let layers = weights(Cell::Lstm, 5, &[4])?;
    let mut a = RecurrentStep::for_ids(Cell::Lstm, &packed(&layers), None, 1, Precision::F32)?;
    let first = a.step_ids(&[1])?.to_vec();
    let mut b = RecurrentStep::for_ids(Cell::Lstm, &packed(&layers), None, 1, Precision::F32)?;
    b.copy_state(&a)?;
    let second = a.step_ids(&[2])?.to_vec();
    assert_eq!(b.step_ids(&[2])?, second);
    a.reset();
    assert_eq!(a.step_ids(&[1])?, first);
    let (h, c) = (a.h(0).to_vec(), a.c(0).to_vec());
    b.set_state(0, &h, &c)?;
    assert_eq!(b.step_ids(&[2])?, second);
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let layers = weights(Cell::Gru, 5, &[4])?;
    let mut step = RecurrentStep::for_ids(Cell::Gru, &packed(&layers), None, 2, Precision::F32)?;
    for ids in [&[0, 1, 2][..], &[], &[0, 5]] {
        assert!(step.step_ids(ids).is_err());
    }
    assert!(step.step_dense(&[0.0; 10]).is_err());
    assert!(step.set_state(0, &[0.0; 8], &[0.0; 8]).is_err());
    assert!(step.set_state(1, &[0.0; 8], &[]).is_err());
    assert!(RecurrentStep::for_ids(Cell::Gru, &[], None, 1, Precision::F32).is_err());
    assert!(
        RecurrentStep::for_dense(Cell::Lstm, &packed(&layers), None, 1, Precision::F32).is_err()
    );
    assert!(LinearStep::new(&layers[0][2], None, 1, Precision::F32).is_err());
    Ok(())
}

/// What a cache of this precision finds, token by token, beside attention over all of them.
#[test]
fn a_cache_finds_what_attention_finds() -> Result<()> {
    let (heads, steps, d) = (3, 29, 10);
    let mut rng = Rng::new(2);
    let mut random = |rows: usize| init::uniform(&mut rng, &[1, heads, rows, d], -1.0, 1.0);
    let (q, k, v, er) = (random(steps)?, random(steps)?, random(steps)?, random(12)?);
    let er = er.reshape(&[heads, 12, d])?;
    let row = |x: &Tensor, t: usize| Ok::<_, etude_engine::Error>(x.select(2, t)?.to_vec());
    let window = Mask::Window { width: 12 };
    let strided = Mask::Strided { block: 5, stride: 3 };
    for (mask, er) in [(Mask::Causal, None), (window, Some(&er)), (strided, None)] {
        let how = Attention::new(mask);
        let all = attention(&q, &k, &v, er, &how, &mut Rng::new(0))?;
        for precision in [Precision::F32, Precision::Bf16] {
            let mut cache = KeyValueCache::new(heads, d, 40, precision)?;
            let embeddings = er.map(|er| RelativeStep::new(er, precision)).transpose()?;
            let mut o = vec![0.0; heads * d];
            for t in 0..steps {
                cache.push(&row(&k, t)?, &row(&v, t)?)?;
                cache.attend(&row(&q, t)?, embeddings.as_ref(), mask, &mut o)?;
                // f32: some hundred roundings of numbers up to 1. bf16 rounds keys, embeddings and
                // values by 2^-9: a score is off by at most 10 / sqrt(10) of that by its key and by
                // its embedding, a value by one more.
                let allowed = if precision == Precision::F32 { 1e-5 } else { 9.0 / 512.0 };
                let wanted = row(&all, t)?;
                let off = o.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off < allowed, "{mask:?} {precision:?} token {t}: {off}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_cache_that_forgets_is_one_that_never_knew() -> Result<()> {
    let row = |t: usize| -> Vec<f32> { (0..6).map(|i| ((t * 7 + i) % 5) as f32 - 2.0).collect() };
    let mut cache = KeyValueCache::new(2, 3, 4, Precision::F32)?;
    let mut later = KeyValueCache::new(2, 3, 9, Precision::F32)?;
    (0..4).try_for_each(|t| cache.push(&row(t), &row(t + 1)))?;
    assert!(cache.push(&row(4), &row(5)).is_err() && cache.push(&[0.0], &[0.0]).is_err());
    cache.forget(2);
    cache.push(&row(4), &row(5))?;
    (2..5).try_for_each(|t| later.push(&row(t), &row(t + 1)))?;
    let (mut a, mut b) = (vec![0.0; 6], vec![0.0; 6]);
    cache.attend(&row(9), None, Mask::Causal, &mut a)?;
    later.attend(&row(9), None, Mask::Causal, &mut b)?;
    assert_eq!(a, b);
    // Two distances for three tokens; three heads for two; four queries for three tokens.
    for (shape, queries) in [([2, 2, 3], 1), ([3, 4, 3], 1), ([2, 4, 3], 4)] {
        let er = RelativeStep::new(&Tensor::zeros(&shape)?, Precision::F32)?;
        let (q, mut o) = (vec![0.0; queries * 6], vec![0.0; queries * 6]);
        assert!(cache.attend(&q, Some(&er), Mask::Causal, &mut o).is_err(), "{shape:?}");
    }
    Ok(())
}

#[test]
fn a_mask_that_shows_nothing_is_an_error() -> Result<()> {
    let mut cache = KeyValueCache::new(1, 3, 2, Precision::F32)?;
    cache.push(&[1.0; 3], &[2.0; 3])?;
    let x = Tensor::zeros(&[1, 1, 1, 3])?;
    for mask in [
        Mask::Window { width: 0 },
        Mask::Strided { block: 0, stride: 1 },
        Mask::Strided { block: 1, stride: 0 },
    ] {
        let step = cache.attend(&[1.0; 3], None, mask, &mut [0.0; 3]);
        let all = attention(&x, &x, &x, None, &Attention::new(mask), &mut Rng::new(0)).map(|_| ());
        for result in [step, all] {
            let text = result.expect_err("a mask without a key").to_string();
            assert!(text.contains(&format!("{mask:?}: its sizes are at least 1")), "{text}");
        }
    }
    Ok(())
}
