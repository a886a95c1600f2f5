//! Convolutions that PyTorch computed (`golden/make_conv.py`): values, gradients, and the gradients of a
//! gradient penalty.

use etude_engine::{Conv, Graph, Result, Tensor, WeightFile, grad};

fn golden() -> WeightFile<'static> {
    const BYTES: &[u8] = include_bytes!("golden/conv.safetensors");
    WeightFile::parse(BYTES).expect("the golden file")
}

/// Both sides are f32 with their own order of sums of at most 100 terms of size 1: 1e-5 is about 80
/// roundings; where terms cancel, the size of the largest value is what roundings are relative to.
#[track_caller]
fn near(what: &str, got: &Tensor, want: &Tensor) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    let size = want.values().iter().fold(1.0f32, |max, x| max.max(x.abs()));
    for (at, (got, want)) in got.values().iter().zip(want.values().iter()).enumerate() {
        let near = (got - want).abs() <= 1e-5 * want.abs() + 1e-6 * size;
        assert!(near, "{what}: number {at} is {got}, PyTorch has {want}");
    }
}

#[test]
fn convolutions_and_their_gradients_equal_pytorch() -> Result<()> {
    let new = Conv::new;
    let cases = [
        ("conv1d", false, new().stride(&[2]).padding(&[3]).dilation(&[2])),
        ("conv2d", false, new().padding(&[1])),
        ("conv2d_strided", false, new().stride(&[2, 3]).padding(&[1, 0]).groups(2)),
        ("conv3d", false, new().stride(&[1, 2, 1]).padding(&[0, 0, 1])),
        ("conv_transpose1d", true, new().stride(&[3]).padding(&[1]).output_padding(&[2])),
        ("conv_transpose2d", true, new().stride(&[2]).padding(&[1])),
        ("conv_transpose2d_groups", true, new().groups(2).dilation(&[1, 2])),
        ("conv_transpose3d", true, new().stride(&[1, 4, 12])),
    ];
    let file = golden();
    for (name, transposed, how) in cases {
        let get = |part: &str| file.tensor(&format!("{name}.{part}"));
        let operands = [get("x")?, get("w")?, get("b")?].map(Tensor::requires_grad);
        let [x, w, b] = &operands;
        let y = match transposed {
            true => x.conv_transpose(w, Some(b), &how)?,
            false => x.conv(w, Some(b), &how)?,
        };
        near(name, &y, &get("y")?);
        let u: Vec<f32> = (0..y.len()).map(|i| ((i * 37 % 16) as f32 - 7.5) / 8.0).collect();
        let loss = y.mul(&Tensor::from_slice(&u, y.shape())?)?.sum_all()?;
        let grads = grad(&loss, &[x, w, b], Graph::Drop)?;
        for (part, d) in ["d_x", "d_w", "d_b"].into_iter().zip(&grads) {
            near(&format!("{name} {part}"), d, &get(part)?);
        }
        // The way that can be differentiated again gives the same.
        for (d, kept) in grads.iter().zip(grad(&loss, &[x, w, b], Graph::Keep)?) {
            near(name, &kept, d);
        }
    }
    Ok(())
}

#[test]
fn the_gradient_of_a_gradient_penalty_equals_pytorch() -> Result<()> {
    let file = golden();
    let get = |part: &str| file.tensor(&format!("penalty.{part}"));
    let x = get("x")?.requires_grad();
    let names = ["w1", "b1", "w2", "b2"];
    let params: Vec<Tensor> =
        names.iter().map(|n| Ok(get(n)?.requires_grad())).collect::<Result<_>>()?;
    let h = x.conv(&params[0], Some(&params[1]), &Conv::new().stride(&[1, 1, 3]))?;
    let y =
        h.leaky_relu(0.2)?.conv(&params[2], Some(&params[3]), &Conv::new().padding(&[1, 1, 0]))?;
    let d_x = &grad(&y.tanh()?.sum_all()?, &[&x], Graph::Keep)?[0];
    near("d_x", d_x, &get("d_x")?);
    let rows = d_x.reshape(&[3, d_x.len() / 3])?;
    let norms = rows.mul(&rows)?.sum(&[1], false)?.sqrt()?;
    let off = norms.shift(-1.0)?;
    let loss = off.mul(&off)?.mean(&[0], false)?;
    near("loss", &loss.reshape(&[1])?, &get("loss")?);
    let grads = grad(&loss, &params.iter().collect::<Vec<_>>(), Graph::Drop)?;
    for (name, d) in names.iter().zip(&grads) {
        near(name, d, &get(&format!("d_{name}"))?);
    }
    Ok(())
}

#[test]
fn sizes_that_do_not_fit_are_named() -> Result<()> {
    let (x, w) = (Tensor::zeros(&[2, 3, 5])?, Tensor::zeros(&[4, 3, 7])?);
    let why = |r: Result<Tensor>| r.expect_err("a fault").to_string();
    let got = why(x.conv(&w, None, &Conv::new()));
    assert!(got.starts_with("conv: [2, 3, 5] and [4, 3, 7]: no place for a kernel of 7"), "{got}");
    let w = Tensor::zeros(&[4, 2, 3])?;
    assert!(why(x.conv(&w, None, &Conv::new())).contains("3 channels"));
    assert!(why(x.conv(&w, None, &Conv::new().stride(&[1, 1]))).contains("channels"));
    let w = Tensor::zeros(&[4, 3, 3])?;
    assert!(
        why(x.conv(&w, None, &Conv::new().stride(&[1, 1]))).contains("2 sizes of stride for 1")
    );
    assert!(why(x.conv(&w, None, &Conv::new().stride(&[0]))).contains("stride 0"));
    assert!(why(x.conv(&w, None, &Conv::new().dilation(&[usize::MAX]))).contains("dilation"));
    assert!(why(x.conv(&w, None, &Conv::new().groups(0))).contains("0 groups"));
    assert!(why(x.conv(&w, Some(&Tensor::zeros(&[3])?), &Conv::new())).contains("bias"));
    let w = Tensor::zeros(&[3, 4, 3])?;
    let out = Conv::new().stride(&[2]).output_padding(&[2]);
    assert!(why(x.conv_transpose(&w, None, &out)).contains("output padding 2"));
    assert!(why(x.conv_transpose(&w, None, &Conv::new().padding(&[9]))).contains("no place"));
    assert!(why(x.conv_transpose(&Tensor::zeros(&[3])?, None, &out)).contains("axes"));
    Ok(())
}
