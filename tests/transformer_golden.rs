//! The decoder beside the numbers of PyTorch (`golden/transformer.py`): logits, loss, all gradients.

use etude_engine::{Activation, Module, NO_ID, Tensor, WeightFile};
use etude_models::data::Batch;
use etude_models::transformer::{Positions, Transformer, TransformerConfig};
use etude_models::{Model, Result};

/// Both sides are f32 with their own order of sums: rtol 1e-5 is about 80 roundings, and atol 2e-6 of
/// the largest value about 32, since terms cancel.
#[track_caller]
fn near(what: &str, got: &[f32], want: &Tensor) {
    let want = want.values();
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(1.0f32, |max, x| max.max(x.abs()));
    for (at, (got, want)) in got.iter().zip(want.iter()).enumerate() {
        let near = (got - want).abs() <= 1e-5 * want.abs() + 2e-6 * size;
        assert!(near, "{what}: number {at} is {got}, PyTorch has {want}");
    }
}

#[test]
fn a_decoder_and_its_gradients_equal_pytorch() -> Result<()> {
    const BYTES: &[u8] = include_bytes!("golden/transformer.safetensors");
    let file = WeightFile::parse(BYTES)?;
    let plain = TransformerConfig { context: 16, ..TransformerConfig::plain(12, 2, 3, 20) };
    let learned = TransformerConfig {
        positions: Positions::Learned,
        pre_norm: false,
        activation: Activation::Relu,
        tied: true,
        ..plain.clone()
    };
    for (name, sizes) in [("relative", plain), ("learned", learned)] {
        let get = |part: &str| file.tensor(&format!("{name}.{part}"));
        let mut model = Transformer::new(sizes, 9, 9, 1)?;
        let mut fault = Ok(());
        model.visit_mut(&mut |p| {
            if let Err(e) = get(&p.name).and_then(|value| p.set(&value)) {
                fault = Err(e);
            }
        });
        fault?;
        // The file has piece after piece, a batch has step after step; 9 is the start of a piece.
        let ids = |part: &str| -> Result<Vec<u32>> {
            let values = get(part)?.t()?.to_vec();
            Ok(values.into_iter().map(|x| if x == 9.0 { NO_ID } else { x as u32 }).collect())
        };
        let (rows, targets, keys) = (ids("rows")?, ids("targets")?, Vec::new());
        let batch = Batch { rows, targets, keys, steps: 11, batch: 2, active: 1 };
        near(&format!("{name} logits"), &model.forward(&batch, None)?.to_vec(), &get("logits")?);
        let loss = model.loss(&batch, None)?;
        near(&format!("{name} loss"), &loss.to_vec(), &get("loss")?);
        let grads = loss.backward()?;
        model.visit(&mut |p| {
            let d = grads.get(&p.value).expect("every weight has a gradient");
            let want = get(&format!("d.{}", p.name)).expect("the file has it");
            near(&format!("{name} {}", p.name), &d.to_vec(), &want);
        });
    }
    Ok(())
}
