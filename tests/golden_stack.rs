//! Stacked layers in both directions over rows of different lengths, against PyTorch's packed
//! sequences (`golden/make.py`): outputs, last states and all gradients.

use etude_engine::{
    Cell, Graph, Ids, Input, LayerWeights, NO_ID, Nonlinearity, Result, Tensor, WeightFile, grad,
    recurrent_stack,
};

fn golden() -> WeightFile<'static> {
    const BYTES: &[u8] = include_bytes!("golden/golden.safetensors");
    WeightFile::parse(BYTES).expect("the golden file")
}

const LENGTHS: [usize; 5] = [7, 3, 5, 1, 7];

/// f32 on both sides with sums in another order: rtol 1e-5 is about 80 roundings.
#[track_caller]
fn near(what: &str, got: &Tensor, want: &Tensor) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    let size = want.values().iter().fold(1.0f32, |max, x| max.max(x.abs()));
    for (at, (got, want)) in got.values().iter().zip(want.values().iter()).enumerate() {
        let near = (got - want).abs() <= 1e-5 * want.abs() + 1e-6 * size;
        assert!(near, "{what}: number {at} is {got}, PyTorch has {want}");
    }
}

/// The weights that turn a result into a loss.
fn weighted(t: &Tensor) -> Result<Tensor> {
    let w: Vec<f32> = (0..t.len()).map(|i| ((i * 37 % 16) as f32 - 7.5) / 8.0).collect();
    t.mul(&Tensor::from_slice(&w, t.shape())?)?.sum_all()
}

/// Names of the four tensors of a layer and direction.
fn names(layer: usize, backwards: bool) -> [String; 4] {
    let end = if backwards { "_reverse" } else { "" };
    ["weight_ih", "weight_hh", "bias_ih", "bias_hh"].map(|n| format!("{n}_l{layer}{end}"))
}

#[test]
fn both_directions_and_lengths_equal_pytorch() -> Result<()> {
    let file = golden();
    let cells =
        [("lstm", Cell::Lstm, 2), ("gru", Cell::Gru, 1), ("rnn", Cell::Rnn(Nonlinearity::Tanh), 1)];
    for (name, cell, states) in cells {
        let get = |what: &str| file.tensor(&format!("{name}_stack.{what}"));
        let (mut leaves, mut leaf_names) = (Vec::new(), Vec::new());
        for layer in 0..2 {
            for backwards in [false, true] {
                for n in names(layer, backwards) {
                    leaves.push(get(&format!("w.{n}"))?.requires_grad());
                    leaf_names.push(n);
                }
            }
        }
        for n in ["x", "h0", "c0"].into_iter().take(1 + states) {
            leaves.push(get(n)?.requires_grad());
            leaf_names.push(n.into());
        }
        let weights: Vec<LayerWeights> = leaves[..16]
            .chunks(4)
            .map(|w| LayerWeights { w_ih: &w[0], w_hh: &w[1], b_ih: &w[2], b_hh: &w[3] })
            .collect();
        let layers: Vec<&[LayerWeights]> = weights.chunks(2).collect();
        let x = Input::Dense(leaves[16].clone());
        let initial = Some((&leaves[17], leaves.get(18)));
        let found = recurrent_stack(cell, &x, &layers, initial, Some(&LENGTHS))?;
        near(&format!("{name} y"), &found.output, &get("y")?);
        near(&format!("{name} h"), &found.h, &get("h")?);
        let mut loss = weighted(&found.output)?.add(&weighted(&found.h)?)?;
        if let Some(c) = &found.c {
            near(&format!("{name} c"), c, &get("c")?);
            loss = loss.add(&weighted(c)?)?;
        }
        let d = grad(&loss, &leaves.iter().collect::<Vec<_>>(), Graph::Drop)?;
        for (d, n) in d.iter().zip(&leaf_names) {
            near(&format!("{name} d.{n}"), d, &get(&format!("d.{n}"))?);
        }
    }
    Ok(())
}

/// Sizes of the smaller stacks below.
const STEPS: usize = 4;
const BATCH: usize = 3;

fn drawn(shape: &[usize], seed: usize) -> Result<Tensor> {
    let x = (0..shape.iter().product()).map(|i| ((i * 29 + seed * 7) % 23) as f32 / 23.0 - 0.5);
    Tensor::new(x.collect::<Vec<f32>>(), shape)
}

#[test]
fn ids_give_what_their_one_hot_vectors_give() -> Result<()> {
    let (vocab, hidden) = (6, 5);
    let ids: Vec<u32> = (0..STEPS * BATCH).map(|i| (i * 5 % vocab) as u32).collect();
    let mut hot = vec![0.0; STEPS * BATCH * vocab];
    ids.iter().enumerate().for_each(|(row, id)| hot[row * vocab + *id as usize] = 1.0);
    let dense = Input::Dense(Tensor::new(hot, &[STEPS, BATCH, vocab])?);
    let sparse = Input::OneHot { ids: Ids::new(ids), steps: STEPS, batch: BATCH };
    let make = |seed: usize| -> Result<[Tensor; 4]> {
        let rows = 3 * hidden;
        Ok([
            drawn(&[rows, vocab], seed)?,
            drawn(&[rows, hidden], seed + 1)?,
            drawn(&[rows], seed + 2)?,
            drawn(&[rows], seed + 3)?,
        ])
    };
    let both = [make(1)?, make(9)?];
    let weights: Vec<LayerWeights> = both
        .iter()
        .map(|[w_ih, w_hh, b_ih, b_hh]| LayerWeights { w_ih, w_hh, b_ih, b_hh })
        .collect();
    for lengths in [None, Some([4, 1, 3].as_slice())] {
        let of = |x: &Input| recurrent_stack(Cell::Gru, x, &[&weights], None, lengths);
        let (a, b) = (of(&dense)?, of(&sparse)?);
        near("output", &a.output, &b.output);
        near("h", &a.h, &b.h);
        for (b, length) in lengths.unwrap_or(&[]).iter().enumerate() {
            let padding = a.output.select(1, b)?.slice(0, *length..STEPS)?;
            assert!(padding.values().iter().all(|x| *x == 0.0));
        }
    }
    Ok(())
}

#[test]
fn a_row_does_not_feel_its_padding_or_its_neighbours() -> Result<()> {
    let w = [drawn(&[16, 2], 1)?, drawn(&[16, 4], 2)?, drawn(&[16], 3)?, drawn(&[16], 4)?];
    let weights = LayerWeights { w_ih: &w[0], w_hh: &w[1], b_ih: &w[2], b_hh: &w[3] };
    let layers: [&[LayerWeights]; 1] = [&[weights, weights]];
    let x = drawn(&[STEPS, BATCH, 2], 5)?;
    let lengths = [2, 4, 3];
    let all = recurrent_stack(Cell::Lstm, &Input::Dense(x.clone()), &layers, None, Some(&lengths))?;
    for (b, length) in lengths.into_iter().enumerate() {
        let alone = Input::Dense(x.slice(1, b..b + 1)?.slice(0, 0..length)?);
        let alone = recurrent_stack(Cell::Lstm, &alone, &layers, None, None)?;
        let row = all.output.slice(1, b..b + 1)?.slice(0, 0..length)?;
        assert_eq!(alone.output.to_vec(), row.to_vec());
        assert_eq!(alone.h.to_vec(), all.h.slice(1, b..b + 1)?.to_vec());
    }
    Ok(())
}

#[test]
fn sizes_that_do_not_fit_are_told() -> Result<()> {
    let w = [drawn(&[3, 2], 1)?, drawn(&[3, 3], 2)?, drawn(&[3], 3)?, drawn(&[3], 4)?];
    let one = [LayerWeights { w_ih: &w[0], w_hh: &w[1], b_ih: &w[2], b_hh: &w[3] }];
    let x = Input::Dense(drawn(&[STEPS, BATCH, 2], 5)?);
    let cell = Cell::Rnn(Nonlinearity::Relu);
    let fault =
        |layers: &[&[LayerWeights]], initial: Option<&Tensor>, lengths: Option<&[usize]>| {
            let initial = initial.map(|h| (h, None));
            recurrent_stack(cell, &x, layers, initial, lengths).expect_err("a fault").to_string()
        };
    assert!(fault(&[], None, None).contains("no layer"));
    assert!(fault(&[&one, &[one[0], one[0]]], None, None).contains("[1, 2] directions"));
    assert!(fault(&[&one], None, Some(&[1, 2])).contains("one length for each row"));
    assert!(fault(&[&one], None, Some(&[1, 0, 2])).contains("a length of 0"));
    assert!(fault(&[&one], None, Some(&[1, 5, 2])).contains("a length of 5"));
    let state = Tensor::zeros(&[2, BATCH, 3])?;
    assert!(fault(&[&one], Some(&state), None).contains("layers * directions"));
    let none = Input::OneHot { ids: Ids::new(vec![NO_ID; 3]), steps: 1, batch: 3 };
    assert!(recurrent_stack(cell, &none, &[&one], None, None).is_ok());
    Ok(())
}
