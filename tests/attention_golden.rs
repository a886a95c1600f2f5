//! Attention beside the numbers of PyTorch (`golden/attention.py`): values and all gradients.

use etude_engine::{Attention, Graph, Mask, Result, Rng, Tensor, WeightFile, attention, grad};

/// Both sides are f32 with their own order of sums and their own exp: rtol 1e-5 is about 80
/// roundings, and atol 1e-6 (of the largest value, since terms cancel) about 16.
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
fn attention_and_its_gradients_equal_pytorch() -> Result<()> {
    const BYTES: &[u8] = include_bytes!("golden/attention.safetensors");
    let file = WeightFile::parse(BYTES)?;
    for (name, mask) in [
        ("full", Mask::Full),
        ("causal", Mask::Causal),
        ("late", Mask::Causal),
        ("window", Mask::Window { width: 9 }),
        ("strided", Mask::Strided { block: 8, stride: 5 }),
        ("relative", Mask::Causal),
    ] {
        let get = |part: &str| file.tensor(&format!("{name}.{part}"));
        let names = ["q", "k", "v", "er"];
        let count = if name == "relative" { 4 } else { 3 };
        let x: Vec<Tensor> =
            names[..count].iter().map(|x| Ok(get(x)?.requires_grad())).collect::<Result<_>>()?;
        let how = Attention::new(mask);
        let y = attention(&x[0], &x[1], &x[2], x.get(3), &how, &mut Rng::new(0))?;
        near(&format!("{name} y"), &y, &get("y")?);
        let w: Vec<f32> = (0..y.len()).map(|i| ((i * 37 % 16) as f32 - 7.5) / 8.0).collect();
        let loss = y.mul(&Tensor::from_slice(&w, y.shape())?)?.sum_all()?;
        let d = grad(&loss, &x.iter().collect::<Vec<_>>(), Graph::Drop)?;
        for (d, part) in d.iter().zip(names) {
            near(&format!("{name} d_{part}"), d, &get(&format!("d_{part}"))?);
        }
    }
    Ok(())
}

#[test]
fn projections_are_read_where_they_lie_and_results_lie_as_they_do() -> Result<()> {
    let (batch, rows, heads, dim) = (2, 7, 3, 4);
    let mut rng = Rng::new(3);
    let mut numbers = vec![0.0; batch * rows * 3 * heads * dim];
    rng.fill_normal(&mut numbers, 0.0, 1.0);
    let joined = Tensor::from_slice(&numbers, &[batch, rows, 3, heads, dim])?.requires_grad();
    let run = |copy: bool| -> Result<(Tensor, Tensor)> {
        let part = |i| -> Result<Tensor> {
            let x = joined.select(2, i)?.permute(&[0, 2, 1, 3])?;
            if copy { x.contiguous() } else { Ok(x) }
        };
        let how = Attention::new(Mask::Causal);
        let y = attention(&part(0)?, &part(1)?, &part(2)?, None, &how, &mut Rng::new(0))?;
        let d = grad(&y.mul(&y)?.sum_all()?, &[&joined], Graph::Drop)?;
        Ok((y, d.into_iter().next().expect("one gradient")))
    };
    let ((y, d), (y_copy, d_copy)) = (run(false)?, run(true)?);
    assert_eq!(y.to_vec(), y_copy.to_vec());
    assert_eq!(d.to_vec(), d_copy.to_vec());
    // [batch, rows, heads * dim] without a copy: the next projection reads it as it is.
    assert!(y.permute(&[0, 2, 1, 3])?.layout().is_contiguous());
    Ok(())
}

#[test]
fn faults_name_both_sides() -> Result<()> {
    let zeros = |shape: &[usize]| Tensor::zeros(shape);
    let (q, k) = (zeros(&[1, 2, 5, 4])?, zeros(&[1, 2, 3, 4])?);
    let fails = |q: &Tensor, k: &Tensor, v: &Tensor, er: Option<&Tensor>, how: Attention| {
        let fault =
            attention(q, k, v, er, &how, &mut Rng::new(0)).expect_err("a fault").to_string();
        assert!(fault.starts_with("attention: "), "{fault}");
        fault
    };
    let causal = Attention::new(Mask::Causal);
    let why = fails(&q, &k, &k, None, causal);
    assert!(why.contains("[1, 2, 5, 4] and [1, 2, 3, 4]"), "{why}");
    fails(&q, &q, &k, None, causal);
    fails(&zeros(&[5, 4])?, &q, &q, None, causal);
    fails(&q, &zeros(&[1, 3, 5, 4])?, &zeros(&[1, 3, 5, 4])?, None, causal);
    fails(&q, &q, &q, Some(&zeros(&[2, 4, 4])?), causal);
    fails(&q, &q, &q, Some(&zeros(&[3, 5, 4])?), causal);
    fails(&q, &q, &q, Some(&zeros(&[2, 5, 4])?), Attention::new(Mask::Full));
    fails(&q, &q, &q, None, Attention::new(Mask::Window { width: 0 }));
    fails(&q, &q, &q, None, Attention::new(Mask::Strided { block: 0, stride: 1 }));
    fails(&q, &q, &q, None, Attention { dropout: 1.0, ..causal });
    fails(&q, &q, &q, None, Attention { dropout: f32::NAN, ..causal });
    Ok(())
}
