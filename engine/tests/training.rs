//! A whole training loop: it learns, it allocates nothing once it runs, and it is deterministic.

use std::sync::{Mutex, PoisonError};

use etude_engine::{
    Ids, Input, Module, Optimizer, Param, Pool, Products, Result, Rng, Tensor, init, lstm_layer,
    memory, set_products,
};

/// Counts of buffers are those of the whole process, so the tests here run one after another.
static ALONE: Mutex<()> = Mutex::new(());

/// A token model of one LSTM layer.
struct Model {
    params: Vec<Param>,
    hidden: usize,
}

impl Model {
    fn new(vocab: usize, hidden: usize, rng: &mut Rng) -> Result<Model> {
        let mut params = Vec::new();
        let shapes: [(&str, Vec<usize>); 6] = [
            ("w_ih", vec![4 * hidden, vocab]),
            ("w_hh", vec![4 * hidden, hidden]),
            ("b_ih", vec![4 * hidden]),
            ("b_hh", vec![4 * hidden]),
            ("out.weight", vec![vocab, hidden]),
            ("out.bias", vec![vocab]),
        ];
        for (name, shape) in shapes {
            params.push(Param::new(name, init::by_fan(rng, &shape, hidden)?));
        }
        Ok(Model { params, hidden })
    }

    fn loss(&self, inputs: &Ids, targets: &Ids, steps: usize, batch: usize) -> Result<Tensor> {
        let p: Vec<&Tensor> = self.params.iter().map(|p| &p.value).collect();
        let zero = Tensor::zeros(&[batch, self.hidden])?;
        let x = Input::OneHot { ids: inputs.clone(), steps, batch };
        let y = lstm_layer(&x, p[0], p[1], p[2], p[3], &zero, &zero)?;
        let h = y.select(0, 0)?.reshape(&[steps * batch, self.hidden])?;
        h.linear(p[4], Some(p[5]))?.cross_entropy(targets)
    }
}

impl Module for Model {
    fn visit(&self, f: &mut dyn FnMut(&Param)) {
        self.params.visit(f);
    }
    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param)) {
        self.params.visit_mut(f);
    }
}

/// The sizes of a training.
#[derive(Clone, Copy)]
struct Sizes {
    vocab: usize,
    length: usize,
    batch: usize,
    hidden: usize,
}

const SMALL: Sizes = Sizes { vocab: 11, length: 13, batch: 3, hidden: 17 };
/// Above every size from which kernels split their work over threads.
const LARGE: Sizes = Sizes { vocab: 301, length: 24, batch: 33, hidden: 160 };

/// Trains on a sequence that counts upwards; returns the losses and the final weights.
fn train(s: Sizes, steps: usize, mut each: impl FnMut(usize)) -> Result<(Vec<f32>, Vec<u32>)> {
    let Sizes { vocab, length, batch, hidden } = s;
    let mut rng = Rng::new(1);
    let mut model = Model::new(vocab, hidden, &mut rng)?;
    let mut optimizer = Optimizer::adam().clip_norm(1.0);
    let ids = |shift| {
        let at = |i: usize| ((i / batch + i % batch + shift) % vocab) as u32;
        Ids::new((0..length * batch).map(at).collect::<Vec<_>>())
    };
    let mut losses = Vec::new();
    for step in 0..steps {
        let loss = model.loss(&ids(0), &ids(1), length, batch)?;
        losses.push(loss.item()?);
        let grads = loss.backward()?;
        optimizer.step(&mut model, &grads, 0.02)?;
        drop(grads);
        each(step);
    }
    let mut bits = Vec::new();
    model.visit(&mut |p| bits.extend(p.value.values().iter().map(|x| x.to_bits())));
    Ok((losses, bits))
}

#[test]
fn the_loss_falls_and_step_after_step_allocates_no_buffer() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for numbers in [Products::F32, Products::Bf16] {
        let _products = set_products(numbers);
        let mut fresh = Vec::new();
        let (losses, _) = train(SMALL, 120, |_| fresh.push(memory::stats().fresh))?;
        // The chance level is ln 11 = 2.4; the task is deterministic.
        assert!(losses[0] > 2.0 && losses[119] < 0.1, "{numbers:?} {losses:?}");
        assert_eq!(fresh[2], fresh[119], "buffers allocated after the third step");
    }
    Ok(())
}

#[test]
fn the_same_seed_gives_the_same_bits_for_any_number_of_threads() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let run = |threads| {
        let pool = Pool::new(threads).expect("a pool");
        pool.run(|| Ok((train(SMALL, 10, |_| ())?, train(LARGE, 3, |_| ())?)))
    };
    let one = run(1)?;
    for threads in [2, 3, 8] {
        assert!(run(threads)? == one, "{threads} threads");
    }
    Ok(())
}
