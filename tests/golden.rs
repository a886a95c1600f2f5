//! Numbers that PyTorch computed (`golden/make.py`): single operations, recurrent models with all
//! their gradients, and ten steps of training.

use etude_engine::{Error, Graph};
use etude_engine::{
    Grads, Ids, Input, Module, NO_ID, Nonlinearity, Optimizer, Param, Result, Rule, Tensor,
    WeightFile, grad, gru_layer, lstm_layer, rnn_layer,
};

fn golden() -> WeightFile<'static> {
    const BYTES: &[u8] = include_bytes!("golden/golden.safetensors");
    WeightFile::parse(BYTES).expect("the golden file")
}

/// Both sides are f32 with their own order of sums and their own exp: rtol 1e-5 is about 80
/// roundings, and atol 1e-6 (for values of size 1) about 16.
#[track_caller]
fn near(what: &str, got: &Tensor, want: &Tensor, rtol: f32, atol: f32) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    // Where terms cancel, the size of the largest value is what roundings are relative to.
    let size = want.values().iter().fold(1.0f32, |max, x| max.max(x.abs()));
    for (at, (got, want)) in got.values().iter().zip(want.values().iter()).enumerate() {
        let near = (got - want).abs() <= rtol * want.abs() + atol * size;
        assert!(near, "{what}: number {at} is {got}, PyTorch has {want}");
    }
}

fn run_op(name: &str, x: &[Tensor]) -> Result<Tensor> {
    match name.trim_end_matches("_far") {
        "exp" => x[0].exp(),
        "tanh" => x[0].tanh(),
        "sigmoid" => x[0].sigmoid(),
        "relu" => x[0].relu(),
        "gelu" => x[0].gelu(),
        "sin" => x[0].sin(),
        "cos" => x[0].cos(),
        "erf" => x[0].erf(),
        "abs" => x[0].abs(),
        "neg" => x[0].neg(),
        "leaky_relu" => x[0].leaky_relu(0.2),
        "log" => x[0].log(),
        "sqrt" => x[0].sqrt(),
        "recip" => x[0].recip(),
        "pow" => x[0].pow(1.7),
        "add" => x[0].add(&x[1]),
        "sub" => x[0].sub(&x[1]),
        "mul" => x[0].mul(&x[1]),
        "div" => x[0].div(&x[1]),
        "maximum" => x[0].maximum(&x[1]),
        "minimum" => x[0].minimum(&x[1]),
        "sum" => x[0].sum(&[0, 2], false),
        "mean" => x[0].mean(&[1], true),
        "matmul" => x[0].matmul(&x[1]),
        "linear" => x[0].linear(&x[1], Some(&x[2])),
        "softmax" => x[0].softmax(),
        "log_softmax" => x[0].log_softmax(),
        "layer_norm" => x[0].layer_norm(&x[1], &x[2], 1e-5),
        "cross_entropy" => x[0].cross_entropy(&Ids::new(vec![3, NO_ID, 0, 12, 5])),
        "binary_cross_entropy" => {
            x[0].binary_cross_entropy(&Tensor::from_slice(&[0.0, 1.0, 0.25].repeat(5), &[15])?)
        }
        "embedding" => x[0].embedding(&Ids::new(vec![4, 0, 4, 8, 1, 4])),
        _ => Err(Error::argument("golden", format!("no operation {name}"))),
    }
}

#[test]
fn operations_and_their_gradients_equal_pytorch() -> Result<()> {
    let file = golden();
    let results = file.entries().keys().filter_map(|k| k.strip_prefix("op.")?.strip_suffix(".y"));
    let mut count = 0;
    for name in results {
        let number = |kind: &str, i: usize| format!("op.{name}.{kind}{i}");
        let arity = (0..).take_while(|i| file.entries().contains_key(&number("x", *i))).count();
        let x: Vec<Tensor> = (0..arity)
            .map(|i| Ok(file.tensor(&number("x", i))?.requires_grad()))
            .collect::<Result<_>>()?;
        let y = run_op(name, &x)?;
        near(name, &y, &file.tensor(&format!("op.{name}.y"))?, 1e-5, 1e-6);
        let w: Vec<f32> = (0..y.len()).map(|i| ((i * 37 % 16) as f32 - 7.5) / 8.0).collect();
        let loss = y.mul(&Tensor::from_slice(&w, y.shape())?)?.sum_all()?;
        let d = grad(&loss, &x.iter().collect::<Vec<_>>(), Graph::Drop)?;
        for (i, d) in d.iter().enumerate() {
            near(&number("d", i), d, &file.tensor(&number("d", i))?, 1e-5, 1e-6);
        }
        count += 1;
    }
    println!("{count} operations");
    assert!(count >= 35);
    Ok(())
}

const SIZES: (usize, usize, usize, usize) = (7, 5, 13, 9);

struct Recurrent {
    kind: &'static str,
    params: Vec<Param>,
}

impl Module for Recurrent {
    fn visit(&self, f: &mut dyn FnMut(&Param)) {
        self.params.visit(f);
    }
    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param)) {
        self.params.visit_mut(f);
    }
}

impl Recurrent {
    fn load(kind: &'static str, file: &WeightFile) -> Result<Recurrent> {
        let mut params = Vec::new();
        let layers = [0, 1].into_iter().flat_map(|layer| {
            ["weight_ih", "weight_hh", "bias_ih", "bias_hh"].map(|n| format!("{n}_l{layer}"))
        });
        for name in layers.chain(["head.weight".into(), "head.bias".into()]) {
            let value = file.tensor(&format!("{kind}.init.{name}"))?;
            params.push(Param::new(name, value));
        }
        Ok(Recurrent { kind, params })
    }

    /// The last layer's output, the final `h` of both layers and, for the LSTM, the final `c`.
    fn forward(&self, x: &Tensor) -> Result<(Tensor, Vec<Tensor>, Vec<Tensor>)> {
        let (steps, batch, hidden, _) = SIZES;
        let zero = Tensor::zeros(&[batch, hidden])?;
        let (mut y, mut hs, mut cs) = (x.clone(), Vec::new(), Vec::new());
        for layer in 0..2 {
            let w: Vec<&Tensor> = self.params[4 * layer..][..4].iter().map(|p| &p.value).collect();
            let x = Input::Dense(y);
            y = match self.kind {
                "lstm" => {
                    let hc = lstm_layer(&x, w[0], w[1], w[2], w[3], &zero, &zero)?;
                    cs.push(hc.select(0, 1)?.select(0, steps - 1)?);
                    hc.select(0, 0)?
                }
                "gru" => gru_layer(&x, w[0], w[1], w[2], w[3], &zero)?,
                kind => {
                    let f = if kind == "rnn" { Nonlinearity::Tanh } else { Nonlinearity::Relu };
                    rnn_layer(&x, f, w[0], w[1], w[2], w[3], &zero)?
                }
            };
            hs.push(y.select(0, steps - 1)?);
        }
        Ok((y, hs, cs))
    }

    fn loss(&self, x: &Tensor) -> Result<Tensor> {
        let (steps, batch, hidden, vocab) = SIZES;
        let targets = (0..steps * batch).map(|i| match i % 6 {
            0 => NO_ID,
            _ => (i * 5 % vocab) as u32,
        });
        let h = self.forward(x)?.0.reshape(&[steps * batch, hidden])?;
        let logits = h.linear(&self.params[8].value, Some(&self.params[9].value))?;
        logits.cross_entropy(&Ids::new(targets.collect::<Vec<_>>()))
    }
}

#[test]
fn recurrent_models_equal_pytorch_forward_backward_and_after_ten_steps() -> Result<()> {
    let file = golden();
    for kind in ["lstm", "gru", "rnn", "rnn_relu"] {
        let get = |name: &str| file.tensor(&format!("{kind}.{name}"));
        let mut model = Recurrent::load(kind, &file)?;
        let x = get("x")?;
        let (y, h, c) = model.forward(&x)?;
        near(&format!("{kind} y"), &y, &get("y")?, 1e-5, 1e-6);
        near(&format!("{kind} h"), &Tensor::stack(&[&h[0], &h[1]])?, &get("h")?, 1e-5, 1e-6);
        if kind == "lstm" {
            near("lstm c", &Tensor::stack(&[&c[0], &c[1]])?, &get("c")?, 1e-5, 1e-6);
        }
        let (losses, norms) = (get("losses")?.to_vec(), get("norms")?.to_vec());
        let mut optimizer = Optimizer::adam().clip_norm(0.5);
        for step in 0..10 {
            let loss = model.loss(&x)?;
            let found = loss.item()?;
            assert!((found - losses[step]).abs() <= 1e-4 * losses[step], "{kind} {step}");
            let grads: Grads = loss.backward()?;
            if step == 0 {
                for p in &model.params {
                    let d = grads.get(&p.value).expect("every parameter has a gradient");
                    let name = format!("grad.{}", p.name);
                    near(&format!("{kind} {name}"), d, &get(&name)?, 1e-5, 1e-6);
                }
            }
            let norm = optimizer.step(&mut model, &grads, 0.01)?;
            assert!((norm - f64::from(norms[step])).abs() <= 1e-4 * norm, "{kind} {step}: {norm}");
        }
        for p in &model.params {
            // Ten steps: Adam divides by roots of tiny second moments, which magnifies roundings.
            let name = format!("final.{}", p.name);
            near(&format!("{kind} {name}"), &p.value, &get(&name)?, 1e-4, 1e-4);
        }
    }
    Ok(())
}

#[test]
fn optimizers_end_where_pytorch_ends() -> Result<()> {
    let file = golden();
    let scale = file.tensor("optim.scale")?;
    let adam = |weight_decay| Rule::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay };
    let rules = [
        ("sgd", Rule::Sgd { momentum: 0.0 }),
        ("momentum", Rule::Sgd { momentum: 0.9 }),
        ("adam", adam(0.0)),
        ("adamw", adam(0.1)),
    ];
    for (name, rule) in rules {
        let mut p = Param::new("p", file.tensor("optim.start")?);
        let mut optimizer = Optimizer::new(rule);
        for _ in 0..10 {
            let loss = p.value.shift(-1.0)?.pow(2.0)?.mul(&scale)?.sum_all()?;
            let grads = loss.backward()?;
            optimizer.step(&mut p, &grads, 0.05)?;
        }
        near(name, &p.value, &file.tensor(&format!("optim.{name}"))?, 1e-5, 2e-6);
    }
    Ok(())
}
